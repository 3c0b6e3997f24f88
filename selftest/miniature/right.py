"""The right miniature: ``pytest --backend selftest.miniature.right --device miniature``."""

from selftest.miniature import device  # noqa: F401
