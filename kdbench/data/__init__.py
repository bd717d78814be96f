"""Turn texts into batches, and compute the teacher's outputs for them. May import: training and below."""
