"""The laws in NumPy float64, one module a family, written from the formula."""
