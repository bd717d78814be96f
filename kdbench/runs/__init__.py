"""One config to one results.json."""
