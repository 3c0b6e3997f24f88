"""What became of a case: `holds`, `violated`, `deviates`, `unsupported` or `broken`, and the words for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pytest
import torch

from torch_conformance.axes import REDUCED, Point

OUTCOMES = ("holds", "violated", "deviates", "unsupported", "broken")
LACKS = re.compile(
    r"not implemented for '?(Half|BFloat16|Complex\w+|Double)"
    r"|Could not run 'aten::"
    r"|not (currently )?(implemented|supported) (for|on) (the |this )?('?\w+'? )?(device|backend)"
    r"|already associated to a python object of type"
    r"|No backend type associated with device type"
    r"|(does not|doesn't) support (float64|Half|BFloat16)"
    r"|scalar types: [\w, ]+; but got \w*(Half|BFloat16)",
    re.IGNORECASE,
)
REFUSED_BY_VIAS = re.compile(
    r"torch.compile with \w+ does not currently support double backward|Batching rule not implemented for aten::"
)
OURS = tuple(str(Path(__file__).parent.parent / folder) for folder in ("torch_conformance", "specs"))
CALLS_TORCH = ("mutation.py", "vias.py")  # a subject written in C leaves no frame of its own
SUITE_ERRORS = (NameError, ImportError, SyntaxError, MemoryError)
OUT_OF_MEMORY: type[BaseException] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


@dataclass(frozen=True)
class Outcome:
    """The verdict on one case, with its message and, where torch raised, the name of the error."""

    name: str
    message: str | None = None
    error: str | None = None


def judge(error: BaseException | None, point: Point) -> Outcome:
    """The outcome of a test that ended with this error, or none."""
    if error is None:
        return Outcome("holds")
    if isinstance(error, pytest.skip.Exception):
        return Outcome("unsupported", str(error.msg))
    text = str(error).strip() or type(error).__name__
    if isinstance(error, (AssertionError, pytest.fail.Exception)):  # the latter says that no warning came
        if lacks(str(error.__cause__), point):  # where another error is claimed
            return Outcome("unsupported", str(error.__cause__).splitlines()[0])
        return Outcome("violated", text)
    named = f"{type(error).__name__}: {text}"
    if lacks(text, point):
        return Outcome("unsupported", named.splitlines()[0])
    if isinstance(error, (*SUITE_ERRORS, OUT_OF_MEMORY)) or raised_by_the_suite(error.__traceback__):
        return Outcome("broken", named)
    return Outcome("violated", f"raised {named}", type(error).__name__)


def lacks(text: str, point: Point) -> bool:
    """Whether torch says that it has no such kernel; of the CPU's own float32 and float64 nothing may be lacking.

    What a compiler cannot express may also show later than at the call, when its graph is walked backwards.
    """
    if point.via != "eager" and REFUSED_BY_VIAS.search(text):
        return True
    optional = point.dtype in REDUCED or point.device.partition(":")[0] != "cpu"
    return optional and LACKS.search(text) is not None


def raised_by_the_suite(traceback: TracebackType | None) -> bool:
    """Whether the error arose in the machine or in a reference, and not in torch, a mutant of it or at a call of it."""
    innermost = ""
    while traceback is not None:
        innermost = traceback.tb_frame.f_code.co_filename
        traceback = traceback.tb_next
    return innermost.startswith(OURS) and not innermost.endswith(CALLS_TORCH)
