"""The command line: ``torch-conformance COMMAND``, the same as ``python -m torch_conformance COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import sys

from torch_conformance import __version__
from torch_conformance.errors import UsageError

COMMANDS = {
    "run": "the suite, with pytest's own arguments",
    "claims": "every claim: id, level, torch range, sentence",
    "explain": "one claim as a lesson: sentence, law, documentation, test, mutants",
    "cite": "the sentences of an installed docstring, with their fingerprints",
    "compare": "two result files: what got worse, better, or was announced",
    "bench": "paired timing of the norm kernels in two interpreters",
    "gate": "two versions of torch: may this fleet be upgraded?",
    "report": "result files as a static HTML score card",
    "mutants": "the kill matrix: which wrong torch each claim refuses",
    "deviations": "write the entries for what is violated now, ready to be explained",
    "ledger": "the committed summary of each torch version",
}
MODULES = {
    "compare": "upgrade.compare",
    "bench": "bench.command",
    "gate": "upgrade.gate",
    "report": "report",
    "mutants": "matrix",
    "ledger": "upgrade.ledger",
}


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The whole parser; only the module of the command that is called for is imported."""
    top = argparse.ArgumentParser(
        prog="torch-conformance",
        description="The executable specification of PyTorch's training semantics.",
        epilog="Begin with `torch-conformance run`, then `torch-conformance explain dropout.eval.identity`.",
    )
    top.add_argument("--version", action="version", version=f"torch-conformance {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, help in COMMANDS.items():
        below = commands.add_parser(
            name, help=help, description=f"{help[0].upper()}{help[1:]}.", add_help=name != "run"
        )
        if name == command:
            importlib.import_module(f"torch_conformance.{module(name)}").configure(below)
    return top


def module(command: str) -> str:
    return MODULES.get(command, f"commands.{command}")


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        options, rest = parser(command if command in COMMANDS else None).parse_known_args(words)
        if options.command == "run":
            options.arguments = words[words.index("run") + 1 :]
        elif rest:
            parser(command).error(f"unrecognized arguments: {' '.join(rest)}")
        chosen = importlib.import_module(f"torch_conformance.{module(options.command)}")
        return int(chosen.execute(options))
    except UsageError as error:
        print(f"torch-conformance: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
