"""The axes that every test is crossed with: device, dtype, layout and via (how the subject is executed)."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

PRECISE = ("float32", "float64")
REDUCED = ("bfloat16", "float16")
FLOATING = PRECISE + REDUCED
COMPLEX = ("complex64", "complex128")
DTYPES = FLOATING + COMPLEX
LAYOUTS = ("contiguous", "channels_last", "transposed", "strided", "expanded")
COSTLY = ("compile",)  # a case takes seconds here: one dtype and one layout stand for all
EXTREMES = (0, -1)  # there, the first and the last set of a test's parameters stand for those between
VIAS = ("eager", "functional", "vmap", "aot", "compile", "export")
UNBATCHED = tuple(via for via in VIAS if via != "vmap")  # for what says nothing of a batch of calls
AXES = ("dtype", "layout", "via")
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """One point of the axes; its text stands in the test's id, the usual values left out."""

    device: str
    dtype: str
    layout: str = "contiguous"
    via: str = "eager"

    def __str__(self) -> str:
        unusual = [self.layout] * (self.layout != "contiguous") + [self.via] * (self.via != "eager")
        return "-".join([self.device, self.dtype, *unusual])


@dataclass(frozen=True)
class Axes:
    """What one test ranges over. Without dtypes it makes no difference to the test, and one stands for all."""

    dtype: tuple[str, ...] = ()
    layout: tuple[str, ...] = ("contiguous",)
    via: tuple[str, ...] = VIAS

    @classmethod
    def declared(cls, **named: str | Sequence[str]) -> Axes:
        """From the arguments of ``@axes(dtype=…, layout=…, via=…)``. Raises `ValueError` for what is unknown."""
        known = dict(zip(AXES, (DTYPES, LAYOUTS, VIAS), strict=True))
        values: dict[str, tuple[str, ...]] = {}
        for name, given in named.items():
            if name not in known:
                raise ValueError(f"no axis named {name!r}; there are {', '.join(AXES)}")
            values[name] = (given,) if isinstance(given, str) else tuple(given)
            if unknown := [value for value in values[name] if value not in known[name]]:
                raise ValueError(f"no {name} named {unknown[0]!r}; there are {', '.join(known[name])}")
        return cls(**values)

    def points(self, device: str, dtypes: Sequence[str], able: Sequence[str], vias: Sequence[str]) -> Iterator[Point]:
        """The points of this test on one device, within the dtypes and vias asked for.

        Where the dtype makes no difference, the first that the device is able to compute in stands for all, whichever
        are asked for. A costly via runs at the first dtype and layout alone.
        """
        one = list(able[:1] or dtypes[:1])
        chosen = [name for name in self.dtype if name in dtypes] if self.dtype else one
        for via in vias:
            if via in self.via:
                most = 1 if via in COSTLY else None
                for dtype in chosen[:most]:
                    for layout in self.layout[:most]:
                        yield Point(device, dtype, layout, via)


def spared(cases: Iterable[tuple[T, str, Point]]) -> set[T]:
    """The cases, each with the name of its test and its point, that a costly via leaves to the extremes of the test."""
    alike: dict[tuple[str, Point], list[T]] = {}
    for case, test, point in cases:
        if point.via in COSTLY:
            alike.setdefault((test, point), []).append(case)
    return {case for group in alike.values() for case in group if case not in [group[i] for i in EXTREMES]}


def executes_a_subject(test: types.FunctionType) -> bool:
    """Whether the test, or a function beside it that it names, asks its case for a module or a function to run.

    Only such a test has anything that another via than eager could execute.
    """
    waiting, seen = [test.__code__], set()
    while waiting:
        code = waiting.pop()
        if {"module", "function"} & set(code.co_names):
            return True
        seen.add(code)
        inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        beside = [test.__globals__.get(name) for name in code.co_names]
        functions = [
            f.__code__ for f in beside if isinstance(f, types.FunctionType) and f.__module__ == test.__module__
        ]
        waiting += [found for found in [*inner, *functions] if found not in seen]
    return False
