"""The wrong torches, grouped by chapter."""
