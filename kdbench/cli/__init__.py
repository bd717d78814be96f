"""From the words of a command line to jobs, and answers that need no run. May import: everything."""
