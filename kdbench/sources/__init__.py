"""Where models and data come from: the package index, the hub, a path. May import: console and below."""
