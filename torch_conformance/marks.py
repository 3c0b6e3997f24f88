"""What a test says of itself: its claims, its axes, and where torch's releases differ."""

import pytest
import torch

from torch_conformance.versions import release

claim = pytest.mark.claim
axes = pytest.mark.axes


def since(version: str) -> bool:
    """Whether the torch under test is this release or a later one."""
    return release(torch.__version__) >= release(version)
