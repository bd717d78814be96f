"""Get models and data from the package index, the Hugging Face hub or a path. May import: console and below."""
