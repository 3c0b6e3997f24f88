"""``cite``: the sentences of an installed docstring, with the fingerprints that claims cite them by."""

from __future__ import annotations

import argparse
import textwrap

from torch_conformance import docs
from torch_conformance.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("object", metavar="OBJECT", help="a dotted name, as in torch.nn.Dropout")


def execute(options: argparse.Namespace) -> int:
    try:
        docs.resolve(options.object)
    except LookupError as error:
        raise UsageError(str(error)) from None
    found = docs.cited(options.object)
    if not found:
        raise UsageError(f"{options.object} has no docstring")
    for fingerprint, sentence in found.items():
        print(f"{options.object}#{fingerprint}\n{textwrap.indent(textwrap.fill(sentence, 100), '    ')}")
    return 0
