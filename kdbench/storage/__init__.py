"""Files that are complete or absent, and what identifies them. May import: schema and below (the order is in pyproject.toml)."""
