"""What torch promises: claim files, and their laws in NumPy float64. Nothing here imports torch."""
