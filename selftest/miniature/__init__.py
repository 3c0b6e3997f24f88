"""Miniature backends: ``right`` computes as the CPU does, the others break one promise each."""
