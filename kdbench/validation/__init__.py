"""May this run? Every fault is found before anything starts."""
