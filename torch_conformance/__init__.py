"""The executable specification of PyTorch's training semantics."""

__version__ = "1.0.0"
