"""Architectures: build, save, load, and walk layer by layer. May import: data and below."""
