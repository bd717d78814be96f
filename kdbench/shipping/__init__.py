"""Ship a finished run: exports and the model card. May import: compare and below."""
