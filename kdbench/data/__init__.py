"""Texts to batches, and the teacher's outputs for them. May import: training and below."""
