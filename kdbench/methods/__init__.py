"""One paper a file: the stages of a method. May import: runs and below; no method imports another."""
