"""What the tests of the optimisers share: build one by its path, and hold each of its steps against the law."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch

from specs.reference import optim as reference
from specs.reference.rounded import Rounded
from torch_conformance.checks import array, eps
from torch_conformance.marks import since

PATHS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
FUSED_ON_CPU = {"SGD": "2.4", "Adam": "2.4", "AdamW": "2.4", "Adagrad": "2.4"}
SHAPES = [
    (7,),
    (1,),
    (),
    (3, 11),
    (3, 7, 1, 3),
    (1041,),
]  # below, at and above multiples of a vector register, with every kind of tail; an image lies in channels_last
NUMBERS = {"eta", "mu", "mu_product"}

# every option away from its default, as far as one step can show them together
USUAL = {
    "SGD": {"lr": 0.3, "momentum": 0.7, "dampening": 0.4, "weight_decay": 0.2, "maximize": True},
    "Adam": {"lr": 0.03, "betas": (0.6, 0.8), "eps": 0.1, "weight_decay": 0.2, "amsgrad": True},
    "AdamW": {"lr": 0.03, "betas": (0.3, 0.8), "eps": 0.1, "weight_decay": 0.2, "maximize": True},
    "NAdam": {"lr": 0.03, "betas": (0.6, 0.8), "eps": 0.1, "weight_decay": 0.2, "momentum_decay": 0.3},
    "RAdam": {"lr": 0.03, "betas": (0.6, 0.95), "eps": 0.1, "weight_decay": 0.2},
    "Adagrad": {"lr": 0.03, "lr_decay": 0.2, "eps": 0.1, "weight_decay": 0.2, "initial_accumulator_value": 0.3},
    "Adadelta": {"lr": 0.3, "rho": 0.7, "eps": 0.1, "weight_decay": 0.2},
    "RMSprop": {"lr": 0.03, "alpha": 0.7, "eps": 0.1, "weight_decay": 0.2, "momentum": 0.6},
    "Adamax": {"lr": 0.03, "betas": (0.6, 0.8), "eps": 0.1, "weight_decay": 0.2},
    "ASGD": {"lr": 0.03125, "lambd": 0.1, "alpha": 0.6, "t0": 1, "weight_decay": 0.2},
    "Rprop": {"lr": 0.3, "etas": (0.4, 1.3), "step_sizes": (0.1, 0.4)},
}
ALL = list(USUAL)


class Options(dict):
    """Options of an optimiser, which read well in a test's id."""

    def __str__(self):
        return ",".join(f"{key}={getattr(value, '__name__', value)}" for key, value in self.items())


paths = pytest.mark.parametrize("path", PATHS)
loops = pytest.mark.parametrize("path", ["loop", "foreach"])
every = pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name in ALL for path in PATHS if path != "fused" or name in FUSED_ON_CPU]
)


def variants(*options):
    return pytest.mark.parametrize("options", [Options(o) for o in options], ids=str)


def law_of(case, name):
    """The law; NAdam's is told how coarse mu_product is, for torch keeps it in the default dtype, float32."""
    law = getattr(reference, name.lower())
    return functools.partial(law, coarseness=max(1.0, eps(torch.float32) / eps(case.dtype))) if name == "NAdam" else law


def parameters_of(case, shapes=SHAPES, dtype=None):
    """Leaves of these shapes, images in channels_last; complex ones for a complex dtype."""
    dtype = dtype or case.dtype
    if dtype.is_complex:
        return [torch.view_as_complex(case.tensor(*shape, 2)).requires_grad_() for shape in shapes]
    tensors = [case.tensor(*shape, dtype=dtype) for shape in shapes]
    formats = [torch.channels_last if p.dim() == 4 else torch.contiguous_format for p in tensors]
    return [p.to(memory_format=f).requires_grad_() for p, f in zip(tensors, formats, strict=True)]


def give_gradients(case, parameters):
    """Of either sign and between 0.5 and 1.5 in magnitude: squares and quotients stay normal numbers in float16 too."""
    sizes = [p.numel() * (1 + p.is_complex()) for p in parameters]
    values = case.rng.uniform(0.5, 1.5, sum(sizes)) * case.rng.choice([-1, 1], sum(sizes))
    real = parameters[0].real.dtype if parameters[0].is_complex() else parameters[0].dtype
    for p, part in zip(parameters, case.tensor_of(values, dtype=real).split(sizes), strict=True):
        values = torch.view_as_complex(part.reshape(*p.shape, 2)) if p.is_complex() else part.reshape(p.shape)
        p.grad = torch.empty_like(p).copy_(values)  # with the strides of the parameter


@functools.cache
def options_of(cls):
    return frozenset(inspect.signature(cls).parameters)


def build(case, name, parameters, path="loop", **options):
    """The optimiser of this name, run by this path ("fixed": the one it has, or that torch chooses).

    Raises `Unsupported` for what the torch at hand lacks.
    """
    cls = getattr(torch.optim, name, None)
    if cls is None:
        raise case.unsupported(f"torch {torch.__version__} has no torch.optim.{name}")
    if path == "fused" and case.device.type == "cpu" and not since(FUSED_ON_CPU[name]):
        raise case.unsupported(f"torch {torch.__version__} has no fused {name} on the CPU")
    known = options_of(cls)
    options |= {key: value for key, value in PATHS.get(path, {}).items() if value or key in known}
    if missing := sorted(set(options) - set(known)):
        raise case.unsupported(f"{name} of torch {torch.__version__} knows no {', '.join(missing)}")
    return cls(parameters, **options)


def flat(tensors):
    """All elements end to end, complex ones as pairs of real ones."""
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in (t.detach() for t in tensors)]
    return torch.cat([part.reshape(-1) for part in parts])


def remembered(optimizer, parameters):
    """The parameters' state by name: tensors end to end, numbers of the first parameter (all have the same)."""
    states = [optimizer.state.get(p, {}) for p in parameters]
    names = {name for name, value in states[0].items() if value is not None}
    numbers = NUMBERS & names
    found = {name: flat(state[name] for state in states) for name in names - numbers - {"step"}}
    found |= {name: states[0][name] for name in numbers}
    if "step" in names:
        (found["step"],) = {float(state["step"]) for state in states}
    return found


def as_law(state):
    return {
        name: value if name == "step" else float(value) if name in NUMBERS else Rounded(array(value))
        for name, value in state.items()
    }


def follows(case, optimizer, parameters, law, options):
    """One step, from whatever state the optimiser is in: parameters and state come out as the law says."""
    before = as_law(remembered(optimizer, parameters))
    p, g = Rounded(array(flat(parameters))), Rounded(array(flat(q.grad for q in parameters)))
    optimizer.step()
    p, expected = law(p, g, before, **options)
    case.close(flat(parameters), p.value, k=1, scale=p.error)  # the error that the law's own operations may make
    after = remembered(optimizer, parameters)
    assert set(after) == set(expected), f"remembers {sorted(after)}, the law {sorted(expected)}"
    for name, value in expected.items():
        if name == "step":
            assert after[name] == value, f"counts {after[name]} steps instead of {value}"
        elif name in NUMBERS:
            value = getattr(value, "value", value)
            case.close(after[name], value, k=2)  # one product or power, rounded to the number's dtype
        else:
            case.close(after[name], value.value, k=1, scale=value.error)


def walk(case, name, law, options, path="loop", *, steps=3, dtype=None, **more):
    """Several steps on tensors of many sizes, every one by the law."""
    parameters = parameters_of(case, dtype=dtype)
    optimizer = build(case, name, parameters, path, **options, **more)
    for _ in range(steps):
        give_gradients(case, parameters)
        follows(case, optimizer, parameters, law, options)
