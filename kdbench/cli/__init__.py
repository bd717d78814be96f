"""From words on a command line to jobs, and what a command answers."""
