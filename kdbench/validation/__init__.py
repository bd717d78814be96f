"""May this run? Every fault is found before anything starts. May import: objectives and below."""
