"""``run``: the suite, from a checkout or from the installed package."""

from __future__ import annotations

import argparse

import pytest

from torch_conformance.settings import ROOT


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "torch-conformance run [pytest arguments]"
    parser.epilog = "All of pytest's arguments and those of the suite: `torch-conformance run --help` lists them."


def execute(options: argparse.Namespace) -> int:
    return int(
        pytest.main([f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", *joined(options.arguments)])
    )


def joined(arguments: list[str]) -> list[str]:
    """``--results FILE`` as one word: pytest, which does not know the option yet, would take the file for a test."""
    words: list[str] = []
    for word in arguments:
        if words and words[-1] in ("--results", "--deviations"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words
