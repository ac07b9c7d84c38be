"""What a run writes for its readers: run directory, metrics, progress line, tables, learning curves."""
