"""Words on a command line to jobs, and what a command answers without running anything. May import: everything."""
