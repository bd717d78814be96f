"""The training loop and what a step needs. May import: sources and below."""
