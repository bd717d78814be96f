"""compare-runs: which of the finished students should I ship? Reads `results.json` only, never torch."""
