"""Files that are complete or absent, and what identifies them."""
