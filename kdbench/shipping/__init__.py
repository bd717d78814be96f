"""What leaves the house: exports and the model card."""
