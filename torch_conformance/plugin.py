"""The pytest plugin: its options, and the hooks that they lead to.

Loaded by the suite's ``conftest.py``, or with ``-p torch_conformance.plugin`` for claims and tests of one's own.
Torch is imported only once the options have been read, so that a torch that cannot be imported is one clear line.
"""

from __future__ import annotations

import atexit
import gc
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from torch_conformance.errors import UsageError

RARELY = (1_000_000, 20, 100)  # most that a run makes lives to its end; to look for garbage as usual costs 6 % more


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("torch-conformance", "the executable specification of PyTorch's training semantics")

    def repeatable(flag: str, metavar: str, help: str, **kwargs: Any) -> None:
        group.addoption(flag, action="append", default=[], metavar=metavar, help=help, **kwargs)

    repeatable("--device", "NAME", "repeatable; default: cpu and the accelerator that torch reports, if any")
    repeatable("--backend", "MODULE", "imported first; registers an out-of-tree device")
    repeatable("--dtype", "NAME", "repeatable, for numeric tests; default: what the device's profile lists")
    repeatable("--via", "NAME", "repeatable; eager (default), functional, vmap, aot, compile, export")
    repeatable("--claim", "GLOB", "repeatable; run only the tests of these claims, as in 'dropout.*'")
    repeatable("--deviations", "FILE", "repeatable; known violations, beside the project's own", type=Path)
    repeatable("--replace", "NAME=MODULE:OBJECT", "repeatable; judge that object by the claims about torch's")
    group.addoption("--results", metavar="FILE", type=Path, help="write the result file (JSON Lines)")
    group.addoption("--seed", metavar="N", type=int, default=0, help="default 0")
    group.addoption("--threads", metavar="N", type=int, default=1, help="threads of torch on the CPU, default 1")
    group.addoption("--explore", metavar="N", type=int, help="look at N places between the cases of every numeric law")
    group.addoption("--given", metavar="JSON", help='parameters in place of those of the cases, as in {"size": 37}')
    group.addoption("--mutant", metavar="ID", help="run against that wrong torch")
    parser.addini("conformance_specs", "folders with claim files of your own", type="paths", default=[])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "claim(*ids): the claims that the test asserts")
    config.addinivalue_line("markers", "axes(dtype=(), layout=(), via=()): what the test ranges over")
    if config.option.help or config.option.markers:
        return
    config.add_cleanup(partial(gc.set_threshold, *gc.get_threshold()))
    gc.set_threshold(*RARELY)
    atexit.register(freeze)
    try:
        import torch  # noqa: F401
    except Exception as error:
        raise pytest.UsageError(f"torch cannot be imported: {type(error).__name__}: {error}".splitlines()[0]) from None
    from torch_conformance import collecting, mutation, reporting, running, settings

    try:
        settled = settings.settle(config.option, config.getini("conformance_specs"))
        if config.option.mutant:
            config.add_cleanup(mutation.find(config.option.mutant).apply().close)
        for hooks in (
            collecting.Collecting(config, settled),
            running.Running(settled),
            reporting.Reporting(config, settled),
        ):
            config.pluginmanager.register(hooks, f"torch-conformance-{type(hooks).__name__.lower()}")
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


def freeze() -> None:
    """Spare the ending interpreter a look through all that the run made, which costs 4 % more.

    Not where Triton was imported: its bindings would call what is then never freed a leak.
    """
    if "triton" not in sys.modules:
        gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Benchmarks are collected only when benchmarks are asked for."""
    asked = config.getoption("benchmark_only", False) or config.getoption("benchmark_enable", False)
    return True if collection_path.name.startswith("bench_") and not asked else None
