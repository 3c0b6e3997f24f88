"""Vias: how a case executes its subject. ``eager`` calls it; the others hand it to a transform or a compiler first.

A via acts on calls alone: the module that the test holds stays the one that it made, with its parameters, buffers,
mode and hooks. What a via cannot express ends the case as unsupported, with the via's own words as the reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from torch_conformance.case import Case

M = TypeVar("M", bound=nn.Module)
Call = Callable[..., Any]
OWN_CALL = "_compiled_call_impl"  # what nn.Module.__call__ runs in place of hooks and forward, where it is set
COMPILERS = {"aot": "aot_eager", "compile": "inductor"}
REFUSES = tuple(
    f"torch.{name}" for name in ("_dynamo", "_inductor", "_export", "export", "fx", "_functorch", "_subclasses")
)
WORDS = ("vmap", "batching rule", "functorch", "torch.func ", "Dynamo", "torch.compile", "Inductor", "export")


def module(layer: M, case: Case) -> M:
    """The layer, whose calls go by the case's via."""
    if case.via == "eager":
        return layer
    if not hasattr(nn.Module, OWN_CALL):
        raise case.unsupported(f"torch {torch.__version__} executes modules in eager mode only")
    execute = PREPARE[case.via](layer, case)

    def call(*args: Any, **kwargs: Any) -> Any:
        setattr(layer, OWN_CALL, None)
        try:
            with refusals(case):
                return execute(*args, **kwargs)
        finally:
            setattr(layer, OWN_CALL, call)

    setattr(layer, OWN_CALL, call)
    return layer


def function(subject: Call, case: Case) -> Call:
    """The function, executed by the case's via."""
    if case.via == "eager":
        return subject
    execute = PREPARE[case.via](subject, case)

    def call(*args: Any, **kwargs: Any) -> Any:
        with refusals(case):
            return execute(*args, **kwargs)

    return call


@contextmanager
def refusals(case: Case) -> Iterator[None]:
    """Tell a via that cannot express the call from a subject that answers wrongly."""
    try:
        yield
    except Exception as error:
        met, text = own(error), str(error)
        if not is_refusal(met):
            if met is error:
                raise
            raise met from None
        lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        raise case.unsupported(f"via {case.via}: {reason[:200]}") from error


def own(error: BaseException) -> BaseException:
    """The subject's own error, where Dynamo met it while tracing and raised one of its own in its place."""
    if type(error).__name__ == "TorchRuntimeError":
        while inner := error.__cause__ or error.__context__:
            error = inner
    return error


def is_refusal(error: BaseException) -> bool:
    return type(error).__module__.startswith(REFUSES) or any(word in str(error) for word in WORDS)


def functional(subject: Call, case: Case) -> Call:
    """The module with its own parameters and buffers passed in from outside."""
    if not hasattr(torch, "func"):
        raise case.unsupported(f"torch {torch.__version__} has no torch.func")
    whole = as_module(subject)

    def call(*args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(whole, state_of(whole), args, kwargs)

    return call


def vmap(subject: Call, case: Case) -> Call:
    """The subject mapped over a batch of one, made by a new leading dimension of every tensor that it is given."""
    if not hasattr(torch, "func"):
        raise case.unsupported(f"torch {torch.__version__} has no torch.func")

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = torch.utils._pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if not tensors:
            raise case.unsupported("via vmap: nothing to map over")

        def mapped(*inner: torch.Tensor) -> Any:
            supply = iter(inner)
            filled = [next(supply) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            positional, named = torch.utils._pytree.tree_unflatten(filled, spec)
            return subject(*positional, **named)

        result = torch.func.vmap(mapped, randomness="different")(*(t.unsqueeze(0) for t in tensors))
        return torch.utils._pytree.tree_map(lambda t: t.squeeze(0) if isinstance(t, torch.Tensor) else t, result)

    return call


def compiled(subject: Call, case: Case) -> Call:
    """The subject as one graph: by AOTAutograd alone (aot), or by inductor's generated code (compile)."""
    if not hasattr(torch, "compile"):
        raise case.unsupported(f"torch {torch.__version__} has no compiler")
    if case.via == "compile" and case.device.type == "cpu" and not shutil.which("g++"):
        raise case.unsupported("via compile: inductor needs g++ for the CPU, and there is none on the path")
    torch._dynamo.reset()  # beyond its limit of recompilations Dynamo would quietly run in eager mode
    return torch.compile(subject, backend=COMPILERS[case.via], fullgraph=True, dynamic=False)


def export(subject: Call, case: Case) -> Call:
    """The subject exported for the inputs of each call, and the exported program called."""
    if not hasattr(torch, "export"):
        raise case.unsupported(f"torch {torch.__version__} has no torch.export")

    def call(*args: Any, **kwargs: Any) -> Any:
        program = torch.export.export(as_module(subject), args, kwargs)
        return program.module()(*args, **kwargs)

    return call


class Wrapped(nn.Module):
    """A function as a module, for what takes modules only."""

    def __init__(self, subject: Call) -> None:
        super().__init__()
        self.subject = subject

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.subject(*args, **kwargs)


def as_module(subject: Call) -> nn.Module:
    return subject if isinstance(subject, nn.Module) else Wrapped(subject)


def state_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


PREPARE: dict[str, Callable[[Call, Case], Call]] = {
    "functional": functional,
    "vmap": vmap,
    "aot": compiled,
    "compile": compiled,
    "export": export,
}
