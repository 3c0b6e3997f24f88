"""``run``: the suite, from a checkout or from the installed package."""

from __future__ import annotations

import argparse

import pytest

from torch_conformance.settings import ROOT


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "torch-conformance run [pytest arguments]"
    parser.epilog = "All of pytest's arguments and those of the suite: `torch-conformance run --help` lists them."


def execute(options: argparse.Namespace) -> int:
    return int(pytest.main([f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", *options.arguments]))
