"""The settings of a run: the options of pytest, checked, and what they lead to. Bad input is refused here."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import platform
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torch_conformance
from torch_conformance import claims, deviations, devices, replacements
from torch_conformance.axes import DTYPES, VIAS
from torch_conformance.deviations import Deviation
from torch_conformance.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
REPEATABLE = ("device", "backend", "dtype", "via", "deviations", "replace")
PRECISION_SWITCHES = (
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
)


@dataclass(frozen=True)
class Settings:
    """What a run ranges over and what it knows."""

    chapters: dict[str, claims.Chapter]
    selected: set[str]
    profiles: tuple[devices.Profile, ...]
    dtypes: tuple[str, ...]
    vias: tuple[str, ...]
    seed: int
    deviations: tuple[Deviation, ...] = ()
    replacements: tuple[replacements.Replacement, ...] = ()
    flags: dict[str, Any] = field(default_factory=dict)
    examples: int = 0
    """With ``--explore``: how many places a test."""
    given: dict[str, Any] = field(default_factory=dict)
    """With ``--given``: parameters in place of those of the cases."""

    @functools.cached_property
    def claims(self) -> dict[str, claims.Claim]:
        return claims.by_id(self.chapters)

    @functools.cached_property
    def covered(self) -> set[str]:
        """The claims that speak of the installed torch."""
        return {name for name, claim in self.claims.items() if claim.covers(torch.__version__)}

    @functools.cached_property
    def deviations_by_claim(self) -> dict[str, list[Deviation]]:
        found: dict[str, list[Deviation]] = {}
        for entry in self.deviations:
            found.setdefault(entry.claim, []).append(entry)
        return found

    @functools.cached_property
    def kinds(self) -> dict[str, dict[str, str]]:
        """Name of a device to what deviations say of it: its kind, and the kind whose kernels compute."""
        return {p.name: {"device": p.kind, "kernels": p.computed_by} for p in self.profiles}

    def deviation_of(self, names: list[str], facts: dict[str, str]) -> Deviation | None:
        """The listed deviation that speaks of this case, if any."""
        entries = [entry for name in names for entry in self.deviations_by_claim.get(name, ())]
        if not entries:
            return None
        where = self.kinds.get(facts["device"], {"kernels": facts["device"]})
        return next((entry for entry in entries if entry.matches({**facts, **where})), None)

    def header(self) -> dict[str, Any]:
        """The provenance of the run, as the first line of a result file holds it."""
        return {
            "suite": torch_conformance.__version__,
            "torch": torch.__version__,
            "torch_git": torch.version.git_version,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "platform": platform.platform(),
            "devices": {p.name: {**p.header(), "name": p.description} for p in self.profiles},
            "vias": list(self.vias),
            "flags": self.flags,
            "seed": self.seed,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def settle(options: argparse.Namespace, own_specs: list[Path]) -> Settings:
    """Check the options and prepare torch; ``own_specs`` are folders of claim files beside the project's.

    Raises `UsageError` with one line for what is wrong.
    """
    known(options.dtype, DTYPES, "--dtype")
    known(options.via, VIAS, "--via")
    if options.explore is not None:
        if options.explore < 1:
            raise UsageError(f"--explore {options.explore}: at least 1 example a test")
        importlib.import_module("torch_conformance.explorer")  # says what it lacks before anything runs
    chapters = claims.load([ROOT / "specs", *own_specs])
    ids = claims.by_id(chapters)
    stated = [devices.load_backend(module) for module in options.backend]
    if options.threads < 1:
        raise UsageError(f"--threads {options.threads}: at least 1")
    torch.set_num_threads(options.threads)
    # there is one CPU, and torch loads nothing from a numbered one
    asked = ["cpu" if name == "cpu:0" else name for name in options.device]
    names = list(dict.fromkeys(asked)) or devices.default_devices()
    stated += [devices.load_installed(name) for name in names]
    files = [path for path in [ROOT / "deviations.toml"] if path.exists()] + options.deviations
    return Settings(
        chapters=chapters,
        selected=claims.select(ids, options.claim) if options.claim else set(ids),
        profiles=tuple(devices.probe(name, stated) for name in names),
        dtypes=tuple(options.dtype) or DTYPES,
        vias=tuple(dict.fromkeys(options.via)) or ("eager",),
        seed=options.seed,
        deviations=tuple(
            entry for path in files for entry in deviations.load(path, ids) if entry.speaks_of(torch.__version__)
        ),
        replacements=tuple(replacements.parse(text) for text in options.replace),
        examples=options.explore or 0,
        given=parameters(options.given),
        flags={**pin_precision(), "arguments": sys.argv[1:]},
    )


def known(given: list[str], names: tuple[str, ...], option: str) -> None:
    for name in given:
        if name not in names:
            raise UsageError(f"{option} {name}: unknown; there are {', '.join(names)}")


def parameters(text: str | None) -> dict[str, Any]:
    """The parameters that ``--given`` states; JSON has no tuples, and parameters are no lists."""
    try:
        values = json.loads(text or "{}")
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    except (ValueError, AttributeError):
        raise UsageError(f'--given {text}: is no JSON object such as {{"size": 37}}') from None


def pin_precision() -> dict[str, Any]:
    """Switch off what trades accuracy for speed, and say how every such switch stands."""
    flags: dict[str, Any] = {"threads": torch.get_num_threads()}
    for owner, name in PRECISION_SWITCHES:
        try:
            setattr(owner, name, False)
            flags[name] = getattr(owner, name)
        except (AttributeError, AssertionError):  # this torch has no such switch
            flags[name] = None
    return flags
