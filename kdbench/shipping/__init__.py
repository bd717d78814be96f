"""What leaves the house: exports and the model card. May import: compare and below."""
