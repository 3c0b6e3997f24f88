"""The surface of the installed torch: what its public names look like, apart from what they compute.

Signatures and defaults, the keys of state dicts, the sentences that claims cite, and what the examples of the announced
changes (``specs/changes.toml``) give here. All of it is plain text, so that two interpreters can be compared later.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from torch_conformance import changes, docs

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
TYPICAL: dict[str, Any] = {
    "in_features": 4, "out_features": 6, "in1_features": 4, "in2_features": 5, "bias": True,
    "num_features": 4, "num_channels": 4, "num_groups": 2, "normalized_shape": 4, "size": 3,
    "in_channels": 4, "out_channels": 6, "kernel_size": 3, "num_embeddings": 7, "embedding_dim": 4,
    "input_size": 4, "hidden_size": 6, "embed_dim": 4, "num_heads": 2, "d_model": 4, "nhead": 2,
    "num_layers": 1, "num_parameters": 4, "n_classes": 9, "cutoffs": [3, 6],
    "step_size": 2, "milestones": [2, 4], "gamma": 0.5, "T_max": 5, "T_0": 3, "base_lr": 0.1, "max_lr": 0.2,
    "total_steps": 9, "start_factor": 0.5, "total_iters": 4, "swa_lr": 0.1,
}  # fmt: skip
LAYER_SIZE = 4


def collect(objects: Iterable[str], claims: Collection[str]) -> dict[str, Any]:
    """What the installed torch shows of these names, and by the examples of the changes that speak of these claims.

    An entry ``name#fingerprint`` also asks for that sentence. The random number generator is left as it was found.
    """
    cited = sorted(set(objects))
    found = {name: resolved(name) for name in sorted({entry.partition("#")[0] for entry in cited})}
    with torch.random.fork_rng(devices=[]), quiet():
        return {
            "signatures": dict(signatures(found)),
            "state_dict_keys": dict(state_dict_keys(found)),
            "sentences": {entry: sentence(entry) for entry in cited if "#" in entry},
            "examples": {
                change.id: run(change.example)
                for change in changes.load()
                if change.example and any(map(change.speaks_of, claims))
            },
        }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    nowhere = io.StringIO()
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # not only for who comes first: the tests of this process came before
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_warn_always(always)


def resolved(name: str) -> Any:
    try:
        return docs.resolve(name)
    except LookupError:
        return None


def sentence(entry: str) -> str | None:
    """The cited sentence as the installed documentation has it; None where it has none such."""
    name, _, fingerprint = entry.partition("#")
    return docs.cited(name).get(fingerprint)


# -- signatures --------------------------------------------------------------------------------------------------------


def signatures(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The signature of each name, and of the public methods that a class itself defines."""
    for name, thing in found.items():
        if callable(thing):
            yield name, signature(thing)
        elif thing is None:
            yield name, "absent"
        for method in methods(thing):
            yield f"{name}.{method}", signature(getattr(thing, method))


def methods(thing: Any) -> list[str]:
    if not inspect.isclass(thing):
        return []
    return sorted(name for name, value in vars(thing).items() if inspect.isfunction(value) and name[0] != "_")


def signature(thing: Callable[..., Any]) -> str:
    """Names, kinds and defaults of the parameters; annotations are left out, for they change without meaning.

    A builtin has no signature that Python knows; the first line of its docstring stands for it.
    """
    try:
        known = inspect.signature(thing)
    except (TypeError, ValueError):
        lines = (inspect.getdoc(thing) or "").splitlines()
        return lines[0] if lines and "(" in lines[0] else "unknown"
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in known.parameters.values()]
    return ADDRESS.sub("", str(inspect.Signature(bare)))


# -- state dicts -------------------------------------------------------------------------------------------------------


def state_dict_keys(found: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The keys that the state dict of each layer, optimizer and scheduler has at typical arguments."""
    for name, thing in found.items():
        if inspect.isclass(thing) and (keys_of := reader(thing)):
            try:
                yield name, keys_of(thing)
            except Exception as error:  # whatever the constructor says against typical arguments is what it shows
                yield name, [f"cannot be made of typical arguments: {type(error).__name__}"]


def reader(cls: type) -> Callable[[type], list[str]] | None:
    scheduler: Any = getattr(torch.optim.lr_scheduler, "LRScheduler", torch.optim.lr_scheduler._LRScheduler)
    if issubclass(cls, nn.Module) and cls is not nn.Module:
        return layer_keys
    if issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer:
        return optimizer_keys
    if issubclass(cls, scheduler) and cls is not scheduler:
        return scheduler_keys
    return None


def layer_keys(cls: type) -> list[str]:
    return list(cls(**typical(cls)).state_dict())


def optimizer_keys(cls: type) -> list[str]:
    """Keys of a parameter group, and of a parameter's state after one step."""
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = cls([parameter], lr=0.1)
    parameter.grad = torch.full((2, 2), 0.5)
    optimizer.step(lambda: parameter.sum())
    state = optimizer.state_dict()
    kept = state["state"].get(0, {})
    return sorted(f"param_groups.{key}" for key in state["param_groups"][0]) + sorted(f"state.{key}" for key in kept)


def scheduler_keys(cls: type) -> list[str]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    return sorted(cls(optimizer, **typical(cls)).state_dict())


def typical(cls: type) -> dict[str, Any]:
    """Typical values for the parameters that the class requires."""
    parameters = inspect.signature(cls).parameters.values()
    required = {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    made = {name: TYPICAL[name] for name in required & set(TYPICAL)}
    if "lr_lambda" in required:
        made["lr_lambda"] = lambda epoch: 0.5**epoch
    if "encoder_layer" in required:
        made["encoder_layer"] = nn.TransformerEncoderLayer(LAYER_SIZE, 2, 8)
    if "decoder_layer" in required:
        made["decoder_layer"] = nn.TransformerDecoderLayer(LAYER_SIZE, 2, 8)
    return made


# -- examples ----------------------------------------------------------------------------------------------------------


def run(example: str) -> str:
    """What the example's last expression gives here: its text, or the error that the example raises."""
    *statements, last = ast.parse(example).body
    names: dict[str, Any] = {
        "torch": torch, "nn": nn, "F": nn.functional, "error": error, "message": message, "warned": warned
    }  # fmt: skip
    try:
        torch.manual_seed(0)
        exec(compile(ast.Module(statements, []), "<example>", "exec"), names)
        return ADDRESS.sub("", str(eval(compile(ast.Expression(expression(last)), "<example>", "eval"), names)))
    except Exception as raised:
        return f"{type(raised).__name__}: {str(raised).splitlines()[0] if str(raised) else ''}"


def error(thunk: Callable[[], Any]) -> str:
    """For examples: the name of the error that the call raises, or "no error"."""
    return message(thunk).partition(":")[0]


def message(thunk: Callable[[], Any]) -> str:
    """For examples: name and text of the error that the call raises, or "no error"."""
    try:
        thunk()
    except Exception as raised:
        return f"{type(raised).__name__}: {str(raised).splitlines()[0] if str(raised) else ''}"
    return "no error"


def warned(thunk: Callable[[], Any]) -> list[str]:
    """For examples: the categories of the warnings that the call raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thunk()
    return sorted({warning.category.__name__ for warning in caught})


def expression(statement: ast.stmt) -> ast.expr:
    if not isinstance(statement, ast.Expr):
        raise TypeError("an example ends in an expression, whose value is what it shows")
    return statement.value
