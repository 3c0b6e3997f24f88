"""Order among torch's versions."""

from __future__ import annotations

from packaging.version import Version


def release(version: str) -> Version:
    """Without build and pre-release: a nightly counts as the release that it leads to."""
    return Version(Version(version).base_version)
