"""The selftest runs small suites of its own, whose chapter ``house`` makes the machine show one behaviour each."""

import textwrap

import pytest
import torch

pytest_plugins = ["pytester"]

CHAPTER = """
title = "House rules"

["topic.holds"]
says  = "One is one."
law   = '1 = 1'
level = "must"
"""


@pytest.fixture(scope="session")
def registered():
    """Import the modules that register operators.

    Were a run of `house` the first to, pytester would forget them after it, and torch would refuse to register twice.
    """
    torch.testing.assert_close(0, 0)
    torch.compile(torch.nn.Identity())


@pytest.fixture
def house(pytester, registered):
    """Write a chapter and a test file, run pytest on them, and return its result."""

    def run(tests, *arguments, more="", deviations=None):
        specs = pytester.mkdir("specs")
        (specs / "house.toml").write_text(CHAPTER + more)
        folder = pytester.mkdir("test_house")
        head = "import pytest, torch\nfrom torch import nn\nfrom torch_conformance.marks import axes, claim\n"
        (folder / "test_house.py").write_text(head + textwrap.dedent(tests))
        pytester.makeini("[pytest]\nconformance_specs = specs\ntestpaths = test_*\n")
        extra = []
        if deviations is not None:
            extra = ["--deviations", str(pytester.makefile(".toml", deviations=deviations))]
        return pytester.runpytest_inprocess(
            "-p", "torch_conformance.plugin", "-p", "no:randomly", "-p", "no:hypothesispytest", *extra, *arguments
        )

    return run
