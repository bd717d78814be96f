"""A finished model at work: its answers and its speed."""
