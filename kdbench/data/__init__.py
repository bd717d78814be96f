"""Where models and texts come from, and how they become batches."""
