"""The right miniature: ``pytest --backend selftest.miniature.right --device miniature``."""

from selftest.miniature.device import conformance_profile  # noqa: F401
