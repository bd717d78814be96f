"""One config to one results.json, and what a method may ask of its run. May import: shipping and below."""
