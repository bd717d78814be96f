"""What leaves the house: exports and the model card. May import: compare and below (the order is in pyproject.toml)."""
