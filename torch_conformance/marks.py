"""The two marks of a test: the claims that it asserts, and the axes that it ranges over."""

import pytest

claim = pytest.mark.claim
axes = pytest.mark.axes
