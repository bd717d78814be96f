"""Files that are complete or absent, and what identifies them. May import: schema and below."""
