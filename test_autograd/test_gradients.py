"""Gradients: derivatives of the elementary functions, sums and views, and what is returned where there is none."""

import contextlib
import copy
import functools
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from specs.reference import autograd as reference
from torch_conformance.axes import FLOATING, PRECISE, REDUCED
from torch_conformance.checks import array, eps
from torch_conformance.marks import axes, claim

SHAPES = [(1,), (9, 131)]  # below and beyond a vector register, with an odd tail
POSITIVE = {"log", "log2", "log1p", "sqrt", "rsqrt", "pow", "reciprocal"}
ALPHA, SLOPE, BETA, EXPONENT = reference.ALPHA, reference.SLOPE, reference.BETA, reference.EXPONENT
CALLS = {
    "pow": lambda x: torch.pow(x, EXPONENT),
    "leaky_relu": lambda x: F.leaky_relu(x, SLOPE),
    "elu": lambda x: F.elu(x, ALPHA),
    "softplus": lambda x: F.softplus(x, beta=BETA),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "threshold": lambda x: F.threshold(x, 0.5, -2.0),
}


def function_named(name):
    return CALLS.get(name) or getattr(torch, name, None) or getattr(F, name)


def value_sizes(name, x, y):
    """What the rounding errors of a value y are measured by."""
    if name in ("gelu", "gelu_tanh"):
        return abs(x)  # times a sum of one and a function near minus one
    if name == "softplus":
        return abs(y) * (1 + BETA * abs(x))  # the exponential of a rounded product
    return 1.0 if name in ("sin", "cos", "elu") else abs(y)


def sizes(name, x):
    """What a derivative's rounding errors are measured by: its terms, each taken absolutely."""
    slope = abs(reference.FUNCTIONS[name][1](x))
    if name in ("tanh", "sigmoid", "softplus", "logsigmoid"):
        return 1.0  # differences from one of a value that is rounded relative to one
    if name == "silu":
        return reference.sigmoid(x) * (1 + abs(x))
    if name == "gelu":
        return 1 + abs(x) * reference.normal_density(x)
    if name == "gelu_tanh":
        return 1 + abs(x) * reference.unbent(x)
    if name in ("mish", "exp2"):
        return (1 + abs(x)) * np.maximum(slope, 1 if name == "mish" else 0)
    if name == "expm1":
        return 1 + slope  # the result, rounded, plus one
    if name in ("sin", "cos", "elu"):
        return 1.0
    return slope


def keeps_value_and_derivative(case, name, x, y):
    """Of y, which the function of this name has made of the leaf x."""
    y.backward(g := case.tensor(*x.shape))
    value, slope = (f(array(x)) for f in reference.FUNCTIONS[name])
    # Vectorised functions are good to one eps; at most four of them and four products or sums follow each other.
    case.close(y, value, k=8, scale=value_sizes(name, array(x), value))
    case.close(x.grad, array(g) * slope, k=8, scale=abs(array(g)) * sizes(name, array(x)))


@claim("autograd.gradient.elementary-functions")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("name", reference.FUNCTIONS)
def test_elementary_functions_have_their_value_and_derivative(case, name):
    for shape in SHAPES:
        values = case.rng.uniform(0.3, 3, shape) if name in POSITIVE else case.rng.uniform(-6, 6, shape)
        x = case.tensor_of(values, requires_grad=True)
        keeps_value_and_derivative(case, name, x, case.function(function_named(name))(x))


FURTHER = {
    "acos": (np.arccos, lambda x: -1 / np.sqrt(1 - x * x)),
    "acosh": (np.arccosh, lambda x: 1 / np.sqrt(x * x - 1)),
    "asin": (np.arcsin, lambda x: 1 / np.sqrt(1 - x * x)),
    "asinh": (np.arcsinh, lambda x: 1 / np.sqrt(1 + x * x)),
    "atanh": (np.arctanh, lambda x: 1 / (1 - x * x)),
    "cosh": (np.cosh, np.sinh),
    "deg2rad": (np.deg2rad, lambda x: np.full(x.shape, math.pi / 180)),
    "digamma": (reference.digamma, reference.trigamma),
    "erf": (np.vectorize(math.erf), lambda x: 2 / math.pi**0.5 * np.exp(-x * x)),
    "erfc": (np.vectorize(math.erfc), lambda x: -2 / math.pi**0.5 * np.exp(-x * x)),
    "erfinv": (reference.erf_inverse, lambda x: math.pi**0.5 / 2 * np.exp(reference.erf_inverse(x) ** 2)),
    "hardsigmoid": (lambda x: x / 6 + 0.5, lambda x: np.full(x.shape, 1 / 6)),
    "lgamma": (np.vectorize(math.lgamma), reference.digamma),
    "log10": (np.log10, lambda x: 1 / (x * math.log(10))),
    "logit": (lambda x: np.log(x / (1 - x)), lambda x: 1 / (x * (1 - x))),
    "rad2deg": (np.rad2deg, lambda x: np.full(x.shape, 180 / math.pi)),
    "sinh": (np.sinh, np.cosh),
    "tan": (np.tan, lambda x: 1 + np.tan(x) ** 2),
    "threshold": (lambda x: np.where(x > 0.5, x, -2.0), lambda x: x > 0.5),
}


def selu(x):
    return 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))


ACTIVATIONS = {  # the call, the value and the derivative
    "celu": (lambda x: F.celu(x, 0.7), lambda x: np.where(x > 0, x, 0.7 * np.expm1(np.minimum(x, 0) / 0.7)),
             lambda x: np.exp(np.minimum(x, 0) / 0.7)),
    "hardshrink": (lambda x: F.hardshrink(x, 0.7), lambda x: x * (abs(x) > 0.7), lambda x: abs(x) > 0.7),
    "hardswish": (F.hardswish, lambda x: x * np.clip(x + 3, 0, 6) / 6,
                  lambda x: np.where(abs(x) < 3, (2 * x + 3) / 6, x > 0)),
    "hardtanh": (lambda x: F.hardtanh(x, -0.7, 1.3), lambda x: np.clip(x, -0.7, 1.3), lambda x: (x > -0.7) & (x < 1.3)),
    "relu6": (F.relu6, lambda x: np.clip(x, 0, 6), lambda x: (x > 0) & (x < 6)),
    "selu": (F.selu, selu, lambda x: np.where(x > 0, 1.0507009873554805, selu(x) + 1.7580993408473766)),
    "softshrink": (lambda x: F.softshrink(x, 0.7), lambda x: x - np.clip(x, -0.7, 0.7), lambda x: abs(x) > 0.7),
    "softsign": (F.softsign, lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2.0),
    "tanhshrink": (F.tanhshrink, lambda x: x - np.tanh(x), lambda x: np.tanh(x) ** 2),
}  # fmt: skip


@claim("autograd.gradient.elementary-functions")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_their_value_and_derivative(case, name):
    call, value, slope = ACTIVATIONS[name]
    x, g = case.tensor_of(case.rng.uniform(-7, 7, 67), requires_grad=True), case.tensor(67)
    y = case.function(call)(x)
    y.backward(g)
    # As above. The differences are of terms no greater than 1 + |x|, the derivatives of terms no greater than 3
    case.close(y, value(array(x)), k=8, scale=1 + abs(array(x)))
    case.close(x.grad, array(g) * slope(array(x)), k=8, scale=3 * abs(array(g)))


@claim("autograd.higher.derivatives")
@axes(via="eager")
@pytest.mark.parametrize("name", [*reference.FUNCTIONS, *ACTIVATIONS])
def test_second_derivatives_of_elementary_functions(case, name):
    call, value, slope = ACTIVATIONS.get(name) or (function_named(name), *reference.FUNCTIONS[name])
    values = np.linspace(0.31, 3.85, 38)  # at a distance from every kink
    x = case.tensor_of(values if name in POSITIVE else values * (-1) ** np.arange(38), requires_grad=True)
    (first,) = torch.autograd.grad((x * call(x)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    law = reference.along(lambda v: value(v) + v * slope(v), array(x))
    # some twenty steps; the inner slopes of tanh and GELU, of the order of x squared, enter with their square
    case.close(second, law, k=20, scale=(1 + array(x) ** 2) ** 2 + abs(law))


@claim("autograd.gradient.elementary-functions")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("name", FURTHER)
def test_further_functions_have_their_value_and_derivative(case, name):
    value, slope = FURTHER[name]
    at = case.rng.uniform(1.5, 3, 37) if name == "acosh" else case.rng.uniform(0.2, 0.8, 37)
    x, g = case.tensor_of(at, requires_grad=True), case.tensor(37)
    y = case.function(function_named(name))(x)
    y.backward(g)
    # As above. A difference from 1 or from x^2 is no less than a third of its greater term, a log less than 2, and what
    # digamma, the slope of lgamma, adds up on its way less than 8
    case.close(y, value(array(x)), k=8, scale={"logit": 2, "log10": 2, "lgamma": 2, "digamma": 8}.get(name))
    case.close(x.grad, array(g) * slope(array(x)), k=8, scale=8 * abs(array(g)) if name == "lgamma" else None)


@claim("autograd.gradient.elementary-functions")
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "sigmoid", "tanh", "silu", "gelu_tanh", "exp"])
def test_more_elements_than_one_thread_takes(case, name):
    x = case.tensor(313, 131, requires_grad=True)
    keeps_value_and_derivative(case, name, x, case.function(function_named(name))(x))


@claim("autograd.gradient.nan-passes")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("name", reference.FUNCTIONS)
def test_elementary_functions_of_nan_are_nan(case, name):
    x = case.tensor_of(case.rng.uniform(0.3, 3, 35))
    x[[3, -1]] = math.nan
    assert array(case.function(function_named(name))(x).isnan()).nonzero()[0].tolist() == [3, 34]


@claim("autograd.gradient.nan-passes")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_a_row_with_nan_has_no_softmax(case, name, dim):
    x = case.tensor(5, 35)
    x[3, [1, -1]] = math.nan
    y = case.function(getattr(torch, name))(x.movedim(1, dim), dim).movedim(dim, 1)
    assert array(y.isnan()).any(1).tolist() == array(y.isnan()).all(1).tolist() == [False, False, False, True, False]


IN_PLACE = {
    "elu": lambda x: F.elu(x, ALPHA, inplace=True),
    "leaky_relu": lambda x: F.leaky_relu(x, SLOPE, inplace=True),
    "exp": torch.exp_,
    "mish": lambda x: F.mish(x, inplace=True),
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "silu": lambda x: F.silu(x, inplace=True),
    "tanh": torch.tanh_,
}


@claim("autograd.gradient.elementary-functions")
@axes(dtype=FLOATING, via="eager")
@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_they_have_the_same_derivative(case, name):
    x = case.tensor(9, 13, requires_grad=True)
    keeps_value_and_derivative(case, name, x, IN_PLACE[name](x * 1))


@claim("autograd.gradient.softplus-threshold")
@axes(dtype=FLOATING)
def test_softplus_compares_beta_x_with_its_threshold(case):
    x = case.tensor_of([2.0, 1.0], requires_grad=True)
    y = case.function(F.softplus)(x, 2.0, 3.0)
    y.sum().backward()
    case.same(y[:1], x[:1])
    case.same(x.grad[:1], torch.ones_like(x[:1]))
    case.close(y[1:], np.log1p(np.exp([2.0])) / 2, k=8)
    case.close(x.grad[1:], 1 / (1 + np.exp([-2.0])), k=8)


@claim("autograd.gradient.elementary-functions")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_gated_linear_unit_is_the_first_half_by_the_sigmoid_of_the_other(case, dim):
    x = case.tensor(6, 10, 22, requires_grad=True)
    y = case.function(F.glu)(x, dim)
    y.backward(g := case.tensor(*y.shape))
    a, b = np.split(array(x), 2, axis=dim)
    gate, slope = (f(b) for f in reference.FUNCTIONS["sigmoid"])
    case.close(y, a * gate, k=4)  # a function within one eps, a product
    wanted = np.concatenate([array(g) * gate, array(g) * a * slope], axis=dim)
    case.close(x.grad, wanted, k=8, scale=np.concatenate([abs(array(g)) * gate, abs(array(g) * a)], axis=dim))


FAR = {"logsigmoid": 1.0, "softplus": 1.0, "silu": 1.0, "gelu": 1.0, "tanh": 0.0, "sigmoid": 0.0}


@claim("autograd.gradient.elementary-functions")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("name", FAR)
def test_far_from_zero_the_derivative_is_its_limit(case, name):
    x = case.tensor_of([-100.0 if name == "logsigmoid" else 100.0], requires_grad=True)
    case.function(function_named(name))(x).sum().backward()
    case.same(x.grad, case.tensor_of([FAR[name]]))


@claim("autograd.gradient.binary-functions")
@axes(dtype=PRECISE)
def test_zero_to_any_power_has_no_slope(case):
    base, x = case.tensor_of([0.0, 0.0], requires_grad=True), case.tensor_of([2.0, 3.0], requires_grad=True)
    torch.pow(base, x).sum().backward()
    case.same(torch.cat((base.grad, x.grad)), torch.zeros_like(torch.cat((base, x))))


@claim("autograd.gradient.binary-functions")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("shape", [(6, 5), (7, 5, 271)], ids=str)
def test_every_channel_of_prelu_has_its_slope(case, shape):
    x, w, g = case.tensor(*shape, requires_grad=True), case.tensor(5, requires_grad=True), case.tensor(*shape)
    y = case.function(F.prelu)(x, w)
    y.backward(g)
    slope = array(w).reshape(5, *[1] * (len(shape) - 2))
    case.close(y, array(x) * np.where(array(x) > 0, 1, slope), k=1)
    case.close(x.grad, array(g) * np.where(array(x) > 0, 1, slope), k=1)
    terms = np.where(array(x) > 0, 0, array(x) * array(g)).swapaxes(0, 1).reshape(5, -1)
    case.close(w.grad, terms.sum(1), k=terms.shape[1] / 2 + 2, scale=abs(terms).sum(1))  # a sum of products


BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "atan2": np.arctan2,
    "hypot": np.hypot,
    "pow": np.power,
}


@claim("autograd.gradient.binary-functions")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("name", BINARY)
def test_binary_functions_have_their_value_and_two_derivatives(case, name):
    for shape in SHAPES:
        x = case.tensor_of(case.rng.uniform(0.5, 3, shape), requires_grad=True)
        y = case.tensor_of(-case.rng.uniform(0.5, 3, shape), requires_grad=True)
        g = case.tensor(*shape)
        z = case.function(getattr(torch, name))(x, y)
        z.backward(g)
        # At most two squares, a sum, a root, a quotient and a product, for the value and for each derivative
        case.close(z, BINARY[name](array(x), array(y)), k=6)
        for leaf, slope in zip((x, y), binary_slopes(name, array(x), array(y)), strict=True):
            case.close(leaf.grad, array(g) * slope, k=6)


FURTHER_BINARY = {
    "copysign": (np.copysign, lambda x, y: (np.sign(x) * np.sign(y), 0 * y)),
    "fmod": (np.fmod, lambda x, y: (np.ones(4), -np.trunc(x / y))),
    "logaddexp2": (np.logaddexp2, lambda x, y: (1 / (1 + 2 ** (y - x)), 1 / (1 + 2 ** (x - y)))),
    "remainder": (np.remainder, lambda x, y: (np.ones(4), -np.floor(x / y))),
}


@claim("autograd.gradient.binary-functions")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("name", FURTHER_BINARY)
def test_further_functions_of_two_have_their_derivatives(case, name):
    value, slopes = FURTHER_BINARY[name]
    x, y = (case.tensor_of(v, requires_grad=True) for v in ([0.7, 1.9, -2.6, 1.3], [0.5, 0.8, 1.1, -0.6]))
    z = case.function(getattr(torch, name))(x, y)
    z.backward(g := case.tensor(4))
    case.close(z, value(array(x), array(y)), k=6, scale=abs(array(x)) + abs(array(y)))
    for leaf, slope in zip((x, y), slopes(array(x), array(y)), strict=True):
        case.close(leaf.grad, array(g) * slope, k=6)


def binary_slopes(name, x, y):
    square = x * x + y * y
    return {
        "add": (1, 1),
        "sub": (1, -1),
        "mul": (y, x),
        "div": (1 / y, -x / y**2),
        "maximum": (x > y, y > x),
        "minimum": (x < y, y < x),
        "atan2": (y / square, -x / square),
        "hypot": (x / np.sqrt(square), y / np.sqrt(square)),
        "pow": (y * x ** (y - 1), x**y * np.log(x)),
    }[name]


@claim("autograd.gradient.scaled-sums")
@axes(dtype=FLOATING)
def test_factors_reach_the_gradient(case):
    x, y, z, g = (case.tensor(17, requires_grad=True) for _ in range(4))
    total = torch.add(x, y, alpha=-2.5)
    total.backward(g.detach())
    case.close(total, array(x) - 2.5 * array(y), k=2, scale=abs(array(x)) + 2.5 * abs(array(y)))
    case.same(x.grad, g.detach())
    case.close(y.grad, -2.5 * array(g), k=1)
    x.grad = None
    y.grad = None
    torch.sub(x.detach(), y, alpha=0.3).backward(g.detach())
    case.close(y.grad, -0.3 * array(g), k=2)  # the factor rounded, a product
    total = torch.addcmul(z, x, y, value=0.7)
    total.backward(g.detach())
    terms = 0.7 * array(x) * array(y)
    case.close(total, array(z) + terms, k=4, scale=abs(array(z)) + abs(terms))  # the factor, two products, a sum
    case.close(x.grad, 0.7 * array(g) * array(y), k=3)  # the factor rounded, two products
    case.same(z.grad, g.detach())


PRODUCTS = {  # the dimensions of either factor and of their product
    "addbmm": ("bij", "bjk", "ik"),
    "addmm": ("ij", "jk", "ik"),
    "addmv": ("ij", "j", "i"),
    "addr": ("i", "j", "ij"),
    "baddbmm": ("bij", "bjk", "bik"),
}


@claim("autograd.gradient.scaled-sums")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("name", PRODUCTS)
def test_factors_reach_the_gradients_of_a_product(case, name):
    a, b, ab = PRODUCTS[name]
    sizes = {"b": 2, "i": 4, "j": 5, "k": 3}
    x, y, z, g = (case.tensor(*[sizes[n] for n in letters], requires_grad=True) for letters in (a, b, ab, ab))
    total = getattr(torch, name)(z, x, y, beta=0.7, alpha=-2.5)
    total.backward(g.detach())
    vx, vy, vz, vg = (array(t) for t in (x, y, z, g))
    # sums of ten products at most, with the factors
    size = 0.7 * abs(vz) + 2.5 * np.einsum(f"{a},{b}->{ab}", abs(vx), abs(vy))
    case.close(total, 0.7 * vz - 2.5 * np.einsum(f"{a},{b}->{ab}", vx, vy), k=12, scale=size)
    case.close(z.grad, 0.7 * vg, k=1)
    for tensor, law, other in ((x, f"{ab},{b}->{a}", vy), (y, f"{ab},{a}->{b}", vx)):
        scale = 2.5 * np.einsum(law, abs(vg), abs(other))
        case.close(tensor.grad, -2.5 * np.einsum(law, vg, other), k=12, scale=scale)


@claim("autograd.gradient.scaled-sums")
@axes(dtype=FLOATING, layout=("contiguous", "strided"))
@pytest.mark.parametrize("weight", [0.375, 0.75])  # exact, and on either side of a half
@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_a_weight_parts_the_gradient(case, weight, kind):
    x, y, g = (case.tensor(7, 37, requires_grad=True) for _ in range(3))
    found = torch.lerp(x, y, weight if kind == "number" else torch.full_like(g, weight))
    found.backward(g.detach())
    # the difference, a product and the sum: half an eps each
    case.close(found, array(x) + weight * (array(y) - array(x)), k=1.5, scale=abs(array(x)) + abs(array(y)))
    case.close(x.grad, (1 - weight) * array(g), k=1)
    case.close(y.grad, weight * array(g), k=1)


@claim("autograd.gradient.matrix-product")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided", "expanded"))
@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradients_of_a_matrix_product(case, batch):
    a, b = case.tensor(*batch, 5, 3, requires_grad=True), case.tensor(*batch, 3, 4, requires_grad=True)
    g = case.tensor(*batch, 5, 4)
    y = case.function(torch.matmul)(a, b)
    y.backward(g)
    va, vb, vg = array(a), array(b), array(g)
    ta, tb = np.swapaxes(va, -1, -2), np.swapaxes(vb, -1, -2)
    case.close(y, va @ vb, k=3, scale=abs(va) @ abs(vb))  # sums of three products
    case.close(a.grad, vg @ tb, k=4, scale=abs(vg) @ abs(tb))  # sums of four products
    case.close(b.grad, ta @ vg, k=5, scale=abs(ta) @ abs(vg))  # sums of five products


@claim("autograd.gradient.sum-and-mean")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("dim", [None, 0, 1, (0, 1), (0, 2), -1])
@pytest.mark.parametrize("keepdim", [False, True])
def test_sum_and_mean_spread_the_gradient(case, dim, keepdim):
    x = case.tensor(3, 11, 7, requires_grad=True)
    kept = {} if dim is None else {"dim": dim, "keepdim": keepdim}
    for name, number in (("sum", 1), ("mean", x.numel() / array(x).sum(dim).size)):
        y = getattr(x, name)(**kept)
        g, x.grad = case.tensor(*y.shape), None
        y.backward(g)
        law = functools.partial(getattr(np, name), axis=dim, keepdims=kept.get("keepdim", False))
        # a sum of 231 terms at most, which low precision adds up in float32, the quotient, and what is rounded last
        terms = 231 * min(1, eps(torch.float32) / eps(case.dtype)) / 2 + 1.5
        case.close(y, law(array(x)), k=terms, scale=law(abs(array(x))))
        full = array(g) if keepdim and dim is not None else array(g).reshape(array(x).sum(dim, keepdims=True).shape)
        case.close(x.grad, np.broadcast_to(full / number, x.shape), k=1)  # the quotient, at most by a rounded inverse


@claim("autograd.gradient.product")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_the_gradient_of_a_product_leaves_one_factor_out(case, zeros):
    values = case.rng.uniform(0.5, 2, 5)
    values[:zeros] = 0
    x = case.tensor_of(values, requires_grad=True)
    x.prod().backward()
    others = [np.prod(np.delete(array(x), i)) for i in range(5)]
    case.close(x.grad, np.array(others), k=8)  # at most seven products and a quotient
    rows, g = case.tensor_of([values, values + 1], requires_grad=True), case.tensor(2)
    rows.prod(1).backward(g)
    others = np.array([[np.prod(np.delete(row, i)) for i in range(5)] for row in array(rows)])
    case.close(rows.grad, array(g)[:, None] * others, k=9)  # and a product


def close_to_softmax(case, name, x, g, dim):
    """The value and the gradient; their sums err at worst by a rounding an element, an exponential by its argument."""
    y = case.function(getattr(torch, name))(x, dim)
    (found,) = torch.autograd.grad(y, x, g)
    vx, vg = (np.moveaxis(array(t), dim, -1) for t in (x, g))
    s, logs = reference.softmax(vx), reference.log_softmax(vx)
    size = 1 + abs(logs)
    if name == "softmax":
        law, scale, scale_of_gradient = s, s * size, 2 * s * size * (abs(vg) + (abs(vg) * s).sum(-1, keepdims=True))
    else:
        law, scale, scale_of_gradient = logs, size, abs(vg) + s * size * abs(vg).sum(-1, keepdims=True)
    roundings = vx.shape[-1] + 8
    case.close(y, np.moveaxis(law, -1, dim), k=roundings, scale=np.moveaxis(scale, -1, dim))
    wanted = getattr(reference, f"{name}_gradient")(vx, vg)
    case.close(found, np.moveaxis(wanted, -1, dim), k=roundings, scale=np.moveaxis(scale_of_gradient, -1, dim))


@claim("autograd.gradient.softmax")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("length", [1, 3, 17])
def test_softmax_and_its_gradient(case, length):
    for name in ("softmax", "log_softmax"):
        close_to_softmax(case, name, case.tensor(61, length, requires_grad=True), case.tensor(61, length), -1)


@claim("autograd.higher.derivatives")
@axes(via="eager")
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_second_derivatives_of_softmax(case, name):
    x, g, v = case.tensor(5, requires_grad=True), case.tensor(5), case.tensor(5)
    (first,) = torch.autograd.grad(getattr(torch, name)(x, 0), x, g, create_graph=True)
    (second,) = torch.autograd.grad(first, x, v)
    slope = getattr(reference, f"{name}_gradient")
    law = reference.along(lambda u: slope(u, array(g)), array(x), array(v))
    # products of two shares, each good to ten steps, and sums of five
    case.close(second, law, k=32, scale=abs(array(g)).sum() * abs(array(v)).sum())


@claim("autograd.gradient.softmax")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("dim", [0, 1])
def test_softmax_over_other_dimensions(case, dim):
    for name in ("softmax", "log_softmax"):
        close_to_softmax(case, name, case.tensor(3, 4, 37, requires_grad=True), case.tensor(3, 4, 37), dim)


@claim("autograd.gradient.softmax")
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_more_elements_than_one_thread_takes(case, name, dim):
    x, g = (case.tensor(521, 67).movedim(1, dim).requires_grad_() for _ in range(2))
    close_to_softmax(case, name, x, g, dim)


@claim("autograd.gradient.softmax")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("place", [0, 7, 8, 16, 18])
def test_a_large_logit_takes_all_wherever_it_stands(case, place):
    x = torch.zeros_like(case.tensor(3, 19))
    x[:, place] = 2000.0
    for dim, values in ((1, x), (0, x.T)):
        case.same(torch.log_softmax(values, dim), values - 2000.0)
        case.same(torch.softmax(values, dim), values / 2000.0)


@claim("autograd.gradient.indexing")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("width", [1, 3, 271])
def test_an_element_read_twice_gets_both_gradients(case, width):
    x, g = case.tensor(5, width, requires_grad=True), case.tensor(36, width)
    index = torch.tensor([0, 3, 0, -1] * 9, device=case.device)
    expected, size = np.zeros((5, width)), np.zeros((5, width))
    np.add.at(expected, array(index % 5).astype(int), array(g))
    np.add.at(size, array(index % 5).astype(int), abs(array(g)))
    for read in (
        lambda: x[index],
        lambda: x.index_select(0, index % 5),
        lambda: torch.gather(x, 0, (index % 5)[:, None].expand(36, width)),
    ):
        x.grad = None
        y = read()
        assert np.array_equal(array(y), array(x)[array(index)])
        y.backward(g)
        case.close(x.grad, expected, k=9, scale=size)  # a sum of eighteen at most


@claim("autograd.gradient.joining")
@axes(dtype=FLOATING)
def test_joining_tensors_splits_the_gradient(case):
    x, y, g = case.tensor(2, 3, requires_grad=True), case.tensor(4, 3, requires_grad=True), case.tensor(6, 3)
    joined = torch.cat([x, y])
    assert np.array_equal(array(joined), np.concatenate([array(x), array(y)]))
    joined.backward(g)
    case.same(x.grad, g[:2])
    case.same(y.grad, g[2:])
    x.grad = None
    stacked = torch.stack([x, x], dim=1)
    assert np.array_equal(array(stacked), np.stack([array(x), array(x)], axis=1))
    stacked.backward(pair := case.tensor(2, 2, 3))
    case.same(x.grad, pair[:, 0] + pair[:, 1])


@claim("autograd.gradient.joining")
@axes(layout=("contiguous", "channels_last", "transposed"))
def test_joining_images_keeps_their_channels_apart(case):
    x, y = case.tensor(2, 3, 4, 5, requires_grad=True), case.tensor(2, 2, 4, 5, requires_grad=True)
    joined, g = torch.cat([x, y], 1), case.tensor(2, 5, 4, 5)
    assert np.array_equal(array(joined), np.concatenate([array(x), array(y)], 1))
    joined.backward(g)
    case.same(x.grad, g[:, :3])
    case.same(y.grad, g[:, 3:])


@claim("autograd.gradient.copies")
@axes(dtype=("float32", "bfloat16"))
@pytest.mark.parametrize(
    ("shape", "copy"),
    [
        ((67, 71), lambda x: x.t().contiguous().t()),
        ((2, 19, 3, 4), lambda x: x.contiguous(memory_format=torch.channels_last)),
        ((2, 5, 3, 4), lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).contiguous()),
        ((2, 5, 3, 2, 4), lambda x: x.clone(memory_format=torch.channels_last_3d)),
        ((259, 131), lambda x: x.double()),
    ],
    ids=["transposed", "channels_last", "and back", "channels_last_3d", "double"],
)
def test_copies_keep_every_element(case, shape, copy):
    x, g = case.tensor(*shape, requires_grad=True), case.tensor(*shape)
    y = copy(x)
    assert np.array_equal(array(y), array(x))
    y.backward(g.to(y.dtype))
    case.same(x.grad, g)


@claim("autograd.gradient.copies")
def test_a_row_is_copied_to_every_row_and_a_deep_copy_is_whole(case):
    x = case.tensor(259, 131)
    case.same(torch.zeros_like(x).copy_(x[0].expand(259, 131)), torch.stack([x[0]] * 259))
    case.same(copy.deepcopy(x), x)


@claim("autograd.reduction.in-the-dtype-asked-for")
@axes(dtype=REDUCED)
def test_a_sum_converts_before_it_adds(case):
    x = torch.full_like(case.tensor(1000), 100)
    for y in (x.sum(dtype=torch.float32), x.sum(0, dtype=torch.float32)):
        case.same(y, torch.tensor(100_000.0, device=case.device))


@claim("autograd.reduction.every-element")
@axes(dtype=PRECISE, layout=("contiguous", "transposed"))  # of low precision each thread's sum may be rounded
@pytest.mark.parametrize("dim", [(), (0,)], ids=str)
def test_sum_and_mean_count_every_element(case, dim):
    x = case.tensor_of(case.rng.integers(-8, 9, (259, 131)))  # whose sums are exact
    wanted = array(x).sum(*dim)
    case.close(torch.sum(x, *dim), wanted, k=1)
    case.close(torch.mean(x, *dim), wanted * wanted.size / x.numel(), k=2)  # and a quotient, or its rounded inverse


@claim("autograd.reduction.sums-in-float32")
@axes(dtype=REDUCED)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("first", [0, 2**15])  # which some ones at a time would leave as it is
def test_sum_and_mean_count_every_one_in_low_precision(case, dim, first):
    n = int(4 / torch.finfo(case.dtype).eps)  # a sum of ones would stop at half of that
    x = case.tensor_of(np.array([first] + n * [1])[:, None] * np.ones(3))
    x = x if dim == 0 else x.T.contiguous()
    case.same(torch.sum(x, dim), torch.full_like(x.select(dim, 0), first + n))
    case.close(torch.mean(x, dim), np.full(3, (first + n) / (n + 1)), k=1)


@claim("autograd.reduction.extremes-of-nan")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("name", ["max", "min", "amax", "amin", "maximum", "minimum"])
def test_extremes_do_not_swallow_nan(case, name):
    for place in (0, 17, 18):  # the first, and two after the last whole vector
        x = case.tensor(19)
        x[place] = torch.nan
        if name in ("maximum", "minimum"):
            y = torch.zeros_like(x)
            assert getattr(torch, name)(x, y)[place].isnan()
            assert getattr(torch, name)(y, x)[place].isnan()
        else:
            assert getattr(torch, name)(x).isnan()
            along = getattr(torch, name)(x.expand(2, 19), 1)
            assert (along if name.startswith("a") else along.values).isnan().all()


SCATTERED = {"sum": np.sum, "prod": np.prod, "mean": np.mean, "amax": np.max, "amin": np.min}


@claim("autograd.reduction.scattered")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("included", [True, False])
@pytest.mark.parametrize("name", SCATTERED)
def test_rows_are_reduced_with_or_without_what_was_there(case, name, included):
    x, values, index = case.tensor(4, 3), case.tensor(9, 3), torch.tensor([0, 2, 0, 1, 0, 2, 1, 0, 0]).to(case.device)
    found = x.scatter_reduce(0, index[:, None].expand(9, 3), values, name, include_self=included)
    rows = [np.concatenate([array(x)[i : i + included], array(values)[array(index) == i]]) for i in range(3)]
    wanted, size = (np.stack([SCATTERED[name](f(row), 0) for row in rows]) for f in (np.array, abs))
    case.close(found[:3], wanted, k=8, scale=size)  # six at most
    case.same(found[3], x[3])  # to which nothing was scattered


@claim("autograd.reduction.stable-order")
@axes(dtype=FLOATING, via="eager")
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dim", [0, 1])
def test_equals_keep_their_order(case, dim, descending):
    x = case.tensor_of(case.rng.integers(-2, 3, (37, 67)))
    values, index = torch.sort(x, dim=dim, descending=descending, stable=True)
    wanted = np.argsort(array(-x if descending else x), axis=dim, kind="stable")
    assert np.array_equal(array(index), wanted)
    assert np.array_equal(array(values), np.take_along_axis(array(x), wanted, dim))


@claim("autograd.reduction.logsumexp-of-infinities")
@axes(dtype=FLOATING, via="eager")
@pytest.mark.parametrize("dim", [0, 1])
def test_a_sum_of_exponentials_may_be_zero_or_infinite(case, dim):
    x = case.tensor_of([[-math.inf, -math.inf], [-math.inf, 512.0], [-math.inf, math.inf]])
    wanted = case.tensor_of([-math.inf, 512.0, math.inf])
    case.same(torch.logsumexp(x if dim else x.T, dim), wanted)
    case.same(torch.logaddexp(x[:, 0], x[:, 1]), wanted)


@claim("autograd.reduction.mean-in-half-range")
@axes(dtype="float16")
@pytest.mark.parametrize("dim", [0, 1])
def test_a_mean_is_in_range_where_the_sum_is_not(case, dim):
    x = case.tensor_of(np.full((2048, 3) if dim == 0 else (3, 2048), 64.0))
    case.same(torch.mean(x, dim), torch.full_like(x.select(dim, 0), 64))
    case.same(F.l1_loss(x, torch.zeros_like(x)), torch.full_like(x[0, 0], 64))


@claim("autograd.reduction.nanmean-in-half-range")
@axes(dtype="float16", via="eager")
def test_a_mean_without_nan_is_in_range_where_the_sum_is_not(case):
    x = case.tensor_of([np.nan] + 2048 * [64.0])
    case.same(torch.nanmean(x), torch.full_like(x[0], 64))


@claim("autograd.reduction.variance")
@axes(dtype=FLOATING, layout=("contiguous", "transposed"))
@pytest.mark.parametrize("correction", [0, 1, 2])
@pytest.mark.parametrize("dim", [None, 0, (0, 2)])
def test_variance_divides_by_the_number_less_the_correction(case, dim, correction):
    x = case.tensor(5, 7, 37, loc=1.5)
    wanted = array(x).var(dim, ddof=correction)
    # two sums, a square, a quotient and a root; low precision takes them in float32 and rounds the result
    finer = min(1, eps(torch.float32) / eps(case.dtype))
    scale = (x.numel() / wanted.size + 5) * finer * (array(x) ** 2).max()
    case.close(torch.var(x, dim, correction=correction), wanted, k=1, scale=scale + wanted)
    case.close(torch.std(x, dim, correction=correction), wanted**0.5, k=1, scale=scale + wanted**0.5)


SHARES = {  # what each element of a row gets of the row's gradient
    "amax": lambda x: x == x.max(-1, keepdims=True),
    "amin": lambda x: x == x.min(-1, keepdims=True),
    "logsumexp": reference.softmax,
    "max": lambda x: x == x.max(-1, keepdims=True),
    "min": lambda x: x == x.min(-1, keepdims=True),
    "nansum": np.ones_like,
    "norm": lambda x: x / np.sqrt((x**2).sum(-1, keepdims=True)),
    "prod": lambda x: x.prod(-1, keepdims=True) / x,
}


@claim("autograd.gradient.along-a-dimension")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("name", SHARES)
def test_a_reduction_gives_each_row_its_own_gradient(case, name):
    x = case.tensor(3, 4, 5, requires_grad=True)
    for dim, keepdim in itertools.product((0, 1, 2), (False, True)):
        y = getattr(torch, name)(x, dim=dim, keepdim=keepdim)
        y = y[0] if name in ("max", "min") else y
        assert y.shape == array(x).sum(dim, keepdims=keepdim).shape
        (found,) = torch.autograd.grad(y, x, g := case.tensor(*y.shape))
        share = np.moveaxis(SHARES[name](np.moveaxis(array(x), dim, -1)), -1, dim)
        wanted = share * (array(g) if keepdim else np.expand_dims(array(g), dim))
        # sums and products of at most five, a root or an exponential, whose argument is rounded, and two products
        case.close(found, wanted, k=12, scale=abs(wanted) * (1 + abs(array(x)).max()))


@claim("autograd.gradient.variance")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("correction", [1, 2])
@pytest.mark.parametrize("dim", [None, (0, 2)])
def test_gradient_of_the_variance_divides_by_the_same(case, dim, correction):
    x = case.tensor(3, 7, 5, requires_grad=True)
    wanted, mean = (f(array(x), dim, keepdims=True) for f in (functools.partial(np.var, ddof=correction), np.mean))
    n = x.numel() / wanted.size
    shares = {"var": 2 / (n - correction), "std": wanted**-0.5 / (n - correction)}
    for name, share in ((f"{name}{more}", shares[name]) for name in shares for more in ("", "_mean")):
        y = getattr(torch, name)(x, dim, correction=correction, keepdim=True)
        y = y[0] if "mean" in name else y
        (found,) = torch.autograd.grad(y, x, g := case.tensor(*y.shape))
        # half an eps for each term of the mean, a quarter for each under the root, and a dozen roundings of a half
        size = abs(array(g)) * share * (abs(array(x) - mean) + abs(array(x)).mean(dim, keepdims=True))
        case.close(found, array(g) * share * (array(x) - mean), k=0.75 * n + 6, scale=size)


@claim("autograd.reduction.variance-large-offset")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("dim", [0, 1])
def test_a_large_mean_costs_the_variance_its_own_rounding(case, dim):
    x = case.tensor(67, 67, loc=1000)
    mean, wanted = abs(array(x).mean(dim)), array(x).var(dim, ddof=1)
    # the mean is off by an eps for each term at most, which twice the deviation multiplies, and by its own square
    error = 67 * eps(case.dtype) * mean
    case.close(torch.var(x, dim), wanted, k=1, scale=67 * wanted + (2 * wanted**0.5 + error) * error / eps(case.dtype))


VIEWS = {
    "slice": lambda x: x[1:, ::2],
    "transpose": lambda x: x.T,
    "reshape": lambda x: x.reshape(5, 3),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(2, 1),
    "select": lambda x: x[2],
    "last": lambda x: x[-1],
    "last but one": lambda x: x[..., -2],
    "narrow": lambda x: x.narrow(0, -2, 1),
    "unfold": lambda x: x.unfold(1, 2, 2),
    "diagonal": lambda x: x.diagonal(1),
    "split": lambda x: x.split(2, 1)[1],
    "split by sizes": lambda x: x.split([1, 4], 1)[1],
    "unbind": lambda x: x.unbind(1)[3],
    "pad": lambda x: F.pad(x, (1, 2), value=99.0),
}


@claim("autograd.gradient.views")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("name", VIEWS)
def test_views_send_each_gradient_where_its_element_came_from(case, name):
    view, x = VIEWS[name], case.tensor(3, 5, requires_grad=True)
    y = view(x)
    y.backward(g := case.tensor(*y.shape))
    places = view(torch.arange(1, 16, device=case.device).reshape(3, 5).double()).flatten().long()
    expected = np.zeros(16)
    inside = array(places).ravel() % 16 * (array(y).ravel() != 99.0)
    np.add.at(expected, inside, array(g).ravel())
    case.same(x.grad, case.tensor_of(expected[1:].reshape(3, 5)))


@claim("autograd.gradient.scattered")
@axes(via="eager")
@pytest.mark.parametrize(
    ("name", "place"),
    [("diagonal", ()), ("select", (1, 2)), ("slice", (0, 1, 3, 1)), ("as_strided", ((2, 3), (3, 1), 1))],
)
def test_scattering_parts_the_gradient(case, name, place):
    x, g = case.tensor(3, 3, requires_grad=True), case.tensor(3, 3)
    part = g[1:3] if name == "slice" else getattr(g, name)(*place)
    written = case.tensor(*part.shape, requires_grad=True)
    getattr(torch, f"{name}_scatter")(x, written, *place).backward(g)
    case.same(written.grad, part)
    part.zero_()
    case.same(x.grad, g)


WRITTEN = {
    "index_copy": lambda x, index, written: x.index_copy(0, index, written),
    "index_fill": lambda x, index, written: x.index_fill(0, index, written.sum()),
    "masked_fill": lambda x, index, written: x.masked_fill(F.one_hot(index, 7).sum(0).bool(), written.sum()),
    "masked_scatter": lambda x, index, written: x.masked_scatter(F.one_hot(index, 7).sum(0).bool(), written),
    "put": lambda x, index, written: x.put(index, written),
    "scatter": lambda x, index, written: x.scatter(0, index, written),
    "scatter_add": lambda x, index, written: x.scatter_add(0, index, written),
}


@claim("autograd.gradient.written-by-index")
@axes(via="eager")
@pytest.mark.parametrize("name", WRITTEN)
def test_writing_by_index_parts_the_gradient(case, name):
    x, written, g = case.tensor(7, requires_grad=True), case.tensor(3, requires_grad=True), case.tensor(7)
    index = torch.tensor([0, 2, 5], device=case.device)
    WRITTEN[name](x, index, written).backward(g)
    of_written = g[index].sum().expand(3) if "fill" in name else g[index]
    case.close(written.grad, array(of_written), k=2, scale=abs(array(g[index])).sum())  # a sum of three
    case.same(x.grad, g if name == "scatter_add" else g.index_fill(0, index, 0.0))


ROWS = {
    "index_add": lambda x, index, rows: x.index_add(0, index, rows),
    "index_copy": lambda x, index, rows: x.index_copy(0, index, rows),
    "index_put": lambda x, index, rows: x.index_put((index,), rows, accumulate=True),
    "scatter": lambda x, index, rows: x.scatter(0, index[:, None].expand_as(rows), rows),
    "scatter_add": lambda x, index, rows: x.scatter_add(0, index[:, None].expand_as(rows), rows),
}


@claim("autograd.indexing.rows-of-any-layout")
@axes(layout=("contiguous", "transposed", "strided", "expanded"), via="eager")
@pytest.mark.parametrize("name", ROWS)
def test_rows_are_written_whatever_their_strides(case, name):
    x, rows, wanted = case.tensor(7, 5), case.tensor(3, 5), np.zeros((7, 5))
    wanted[[5, 0, 2]] = array(rows)
    found = ROWS[name](torch.zeros_like(x), torch.tensor([5, 0, 2], device=case.device), rows)
    case.close(found, wanted, k=0)


@claim("autograd.gradient.scattered-whatever-the-strides")
@axes(via="eager")
def test_scattering_by_strides_parts_a_transposed_gradient(case):
    x, written, g = (case.tensor(*shape, requires_grad=True) for shape in ((3, 3), (2, 2), (3, 3)))
    torch.as_strided_scatter(x, written, (2, 2), (1, 2)).backward(g.detach().t())
    case.same(x.grad.flatten()[:4], torch.zeros(4, dtype=g.dtype, device=case.device))
    case.same(written.grad, g.detach().t().contiguous().as_strided((2, 2), (1, 2)))


def resized(mode, **options):
    return lambda x: F.interpolate(x, scale_factor=2, mode=mode, **options)


def sampled(x):
    grid = x.new_tensor([[[[[0.3, -0.2, 0.5], [-0.7, 0.1, 0.9]]]]])
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1, -1), align_corners=True)


def unpooled(x):
    index = torch.tensor([[[0, 3], [9, 14]]], device=x.device)
    return F.max_unpool2d(x, index.expand(len(x), -1, -1, -1), 2)


def added_by_index(x):
    index = torch.tensor([2, 0, 2], device=x.device)
    rows = [row.new_zeros(4).index_add(0, index, row, alpha=0.7) for row in x]  # vectors have a kernel of their own
    return x.new_zeros(len(x), 4).index_add(1, index, x, alpha=-0.3) + torch.stack(rows)


LINEAR_MAPS = {
    "added by index": (added_by_index, (3,)),
    "added up": (lambda x: x.cumsum(1), (3, 4)),
    "affine_grid": (lambda x: F.affine_grid(x, (len(x), 1, 2, 3), align_corners=True), (2, 3)),
    "averaged": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (2, 4, 5)),
    "bicubic": (resized("bicubic", align_corners=False), (1, 3, 2)),
    "bilinear": (resized("bilinear", align_corners=True), (2, 2, 3)),
    "bilinear, smoothed": (lambda x: F.interpolate(x, (2, 3), mode="bilinear", antialias=True), (1, 4, 3)),
    "fold": (lambda x: F.fold(x, (3, 3), 2), (4, 4)),
    "nearest": (resized("nearest"), (2, 2, 3)),
    "nearest of a volume": (resized("nearest"), (1, 2, 1, 3)),
    "nearest, exactly": (resized("nearest-exact"), (2, 2, 3)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (8, 1, 2)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), (1, 2, 4)),
    "reflected row": (lambda x: F.pad(x, (2, 1), mode="reflect"), (2, 4)),
    "reflected image": (lambda x: F.pad(x, (2, 1, 0, 1), mode="reflect"), (1, 3, 4)),
    "reflected volume": (lambda x: F.pad(x, (1, 1, 0, 1, 1, 0), mode="reflect"), (1, 2, 2, 3)),
    "rfft": (lambda x: torch.view_as_real(torch.fft.rfft(x)), (6,)),
    "rot90": (lambda x: x.rot90(1, (-2, -1)), (2, 3)),
    "diag_embed": (lambda x: x.diag_embed(1), (4,)),
    "cross": (lambda x: torch.linalg.cross(x, x.new_tensor([0.3, -1.2, 2.5]).expand_as(x)), (3,)),
    "kron": (lambda x: torch.kron(x, x.new_tensor([[0.3, -1.2]])), (2, 3)),
    "repeated": (lambda x: x.repeat_interleave(3, 1), (2, 2)),
    "second differences": (lambda x: x.diff(2, 1), (5,)),
    "tensordot": (lambda x: torch.tensordot(x, x.new_tensor([[0.3, -1.2], [2.5, 0.7], [1.1, 0.2]]), 1), (2, 3)),
    "trace": (lambda x: torch.stack([image.trace() for image in x]), (3, 3)),
    "sampled volume": (sampled, (1, 2, 2, 2)),
    "trilinear": (resized("trilinear", align_corners=False), (1, 2, 1, 3)),
    "triu": (lambda x: x.triu(1), (3, 4)),
    "unpooled": (unpooled, (1, 2, 2)),
    "windows": (lambda x: x.unfold(1, 3, 2), (7,)),
}


@claim("autograd.gradient.linear-maps")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("name", LINEAR_MAPS)
def test_a_linear_map_sends_the_gradient_through_its_transpose(case, name):
    function, shape = LINEAR_MAPS[name]
    x = case.tensor(2, *shape, requires_grad=True)
    y = function(x)
    y.backward(g := case.tensor(*y.shape))
    n = x[0].numel()
    matrix = array(function(case.tensor_of(np.eye(n).reshape(n, *shape)))).reshape(n, -1)  # the images of the axes
    rows, gradients = array(x).reshape(2, n), array(g).reshape(2, -1)
    # a sum of at most so many products, each of three weights at most
    case.close(y.reshape(2, -1), rows @ matrix, k=n + 8, scale=abs(rows) @ abs(matrix))
    law, scale = gradients @ matrix.T, abs(gradients) @ abs(matrix).T
    case.close(x.grad.reshape(2, n), law, k=matrix.shape[1] + 8, scale=scale)


@claim("autograd.gradient.broadcast-is-summed")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (1, 1), (2, 3), (2, 1, 3), (1, 2, 1)])
def test_broadcasting_sums_the_gradient(case, shape):
    x, y = case.tensor(*shape, requires_grad=True), case.tensor(2, 2, 3)
    expected, size = sum_to(array(y), shape), sum_to(abs(array(y)), shape)
    for multiply in (lambda: x * y, lambda: y * x):
        x.grad = None
        multiply().sum().backward()
        case.close(x.grad, expected, k=12, scale=size)  # sums of at most twelve terms, in any order
    expanded = case.tensor(*shape, requires_grad=True)
    expanded.expand(2, 2, 3).backward(y)
    case.close(expanded.grad, expected, k=12, scale=size)


def sum_to(values, shape):
    """Sum the array over the axes along which ``shape`` would be broadcast to it."""
    lead = values.ndim - len(shape)
    axes_of_one = [i + lead for i, n in enumerate(shape) if n == 1 != values.shape[i + lead]]
    return values.sum((*range(lead), *axes_of_one)).reshape(shape)


@claim("autograd.gradient.where-selects")
@axes(dtype=FLOATING)
def test_where_sends_the_gradient_to_the_branch_taken(case):
    x, y, g = case.tensor(17, requires_grad=True), case.tensor(17, requires_grad=True), case.tensor(17)
    taken = case.tensor(17) > 0
    torch.where(taken, x, y).backward(g)
    case.same(x.grad, torch.where(taken, g, torch.zeros_like(g)))
    case.same(y.grad, torch.where(taken, torch.zeros_like(g), g))


# -- where there is no derivative ------------------------------------------------------------------------------------

KINKS = {
    "relu": (torch.relu, 0.0, 0.0),
    "abs": (torch.abs, 0.0, 0.0),
    "leaky-relu": (lambda x: F.leaky_relu(x, 0.3), 0.0, 0.3),
    "hardtanh-low": (F.hardtanh, -1.0, 0.0),
    "hardtanh-high": (F.hardtanh, 1.0, 0.0),
    "hardtanh-below": (lambda x: F.hardtanh(x, -1.0, 2.0), -1.5, 0.0),
    "hardtanh-inside": (lambda x: F.hardtanh(x, -1.0, 2.0), 1.5, 1.0),
    "relu6": (F.relu6, 6.0, 0.0),
    "relu6-low": (F.relu6, -0.5, 0.0),
    "sqrt": (torch.sqrt, 0.0, math.inf),
    "sign": (torch.sign, 0.0, 0.0),
    "floor": (torch.floor, 1.0, 0.0),
    "round": (torch.round, 0.5, 0.0),
    "norm": (torch.Tensor.norm, 0.0, 0.0),
    "pow-zero": (lambda x: x**0, 0.0, 0.0),
    "pow-one": (lambda x: x**1, 0.0, 1.0),
    "log": (torch.log, 0.0, math.inf),
}


@claim("autograd.gradient.kinks")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("name", KINKS)
def test_derivatives_at_kinks(case, name):
    function, place, slope = KINKS[name]
    x = case.tensor_of([place], requires_grad=True)
    case.function(function)(x).sum().backward()
    case.same(x.grad, case.tensor_of([slope]) + 0.0)


BOUNDS = {
    "clamp-low": (lambda x: x.clamp(min=0.5), 0.0),
    "clamp-high": (lambda x: x.clamp(max=0.5), 0.0),
    "clamp-both": (lambda x: x.clamp(0.5, 2), 0.0),
    "clamp-tensor": (lambda x: x.clamp(min=torch.full_like(x, 0.5)), 0.5),
    "clamp_min": (lambda x: x.clamp_min(0.5), 0.0),
    "clamp_max": (lambda x: x.clamp_max(0.5), 0.0),
    "fmax": (lambda x: torch.fmax(x, torch.full_like(x, 0.5)), 0.5),
    "fmin": (lambda x: torch.fmin(x, torch.full_like(x, 0.5)), 0.5),
    "maximum": (lambda x: torch.maximum(x, torch.full_like(x, 0.5)), 0.5),
    "minimum": (lambda x: torch.minimum(x, torch.full_like(x, 0.5)), 0.5),
}


@claim("autograd.gradient.bounds")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("name", BOUNDS)
def test_derivatives_at_bounds(case, name):
    function, slope = BOUNDS[name]
    x = case.tensor_of([0.5], requires_grad=True)
    case.function(function)(x).sum().backward()
    case.same(x.grad, case.tensor_of([slope]))


@claim("autograd.gradient.norm-at-zero")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("p", [1, 2, 3])
def test_the_gradient_of_a_norm_at_zero_is_zero(case, p):
    x = case.tensor_of(np.zeros((3, 5)), requires_grad=True)
    torch.linalg.vector_norm(x, ord=p, dim=1).sum().backward()
    case.same(x.grad, torch.zeros_like(x))


@claim("autograd.gradient.ties-share-evenly")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("name", ["max", "min", "amax", "amin"])
def test_ties_over_all_elements_share_the_gradient(case, name):
    sign = -1.0 if "min" in name else 1.0
    x = case.tensor_of([2 * sign, 0.0, 2 * sign, 2 * sign, 2 * sign], requires_grad=True)
    getattr(torch, name)(x).backward()
    case.same(x.grad, case.tensor_of([0.25, 0.0, 0.25, 0.25, 0.25]))


@claim("autograd.gradient.ties-along-an-axis")
@axes(dtype=FLOATING)
def test_ties_along_an_axis_go_to_the_index_returned(case):
    x = case.tensor_of([[0.0, 2.0, 2.0], [5.0, 1.0, 5.0]], requires_grad=True)
    values, index = x.max(1)
    values.sum().backward()
    case.same(x.grad, F.one_hot(index, 3).to(case.dtype))
    x.grad = None
    torch.amax(x, 1).sum().backward()
    case.same(x.grad, case.tensor_of([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5]]))


@claim("autograd.gradient.ties-along-an-axis")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("name", ["max", "min"])
def test_the_greatest_of_each_row_has_its_index(case, name, dim):
    x, g = case.tensor(7, 271).movedim(1, dim).requires_grad_(), case.tensor(7)
    values, index = getattr(torch, name)(x, dim)
    assert np.array_equal(array(values), getattr(np, name)(array(x), dim))
    case.same(values, x.gather(dim, index.unsqueeze(dim)).squeeze(dim))
    values.backward(g)
    case.same(x.grad, torch.zeros_like(x).scatter(dim, index.unsqueeze(dim), g.unsqueeze(dim)))


@claim("autograd.gradient.ties-between-two")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_maximum_of_equals_halves_the_gradient(case, name):
    x, g = case.tensor(17, requires_grad=True), case.tensor(17)
    y = x.detach().clone().requires_grad_()
    getattr(torch, name)(x, y).backward(g)
    case.same(x.grad, g / 2)
    case.same(y.grad, g / 2)


def windows(pool, *size):
    """Rows of nine as images of three by three, each a volume of its own or a sample of one channel."""
    return lambda x: [t.reshape(3, -1) for t in pool(x.reshape(3, 1, 3, 3), *size, return_indices=True)]


PICKS = {
    "adaptive_max_pool3d": windows(F.adaptive_max_pool3d, (1, 2, 2)),
    "cummax": lambda x: x.cummax(1),
    "cummin": lambda x: x.cummin(1),
    "fractional_max_pool2d": windows(F.fractional_max_pool2d, 2, (2, 2)),
    "kthvalue": lambda x: x.kthvalue(3, 1, keepdim=True),
    "max_pool3d": windows(F.max_pool3d, (1, 2, 2), 1),
    "median": lambda x: x.median(1, keepdim=True),
    "mode": lambda x: x.mode(1, keepdim=True),
    "nanmedian": lambda x: x.nanmedian(1, keepdim=True),
    "sort": lambda x: x.sort(1, descending=True),
    "topk": lambda x: x.topk(4, 1),
}


@claim("autograd.gradient.picked-by-order")
@axes(dtype="float32", via="eager")
@pytest.mark.parametrize("name", PICKS)
def test_what_is_picked_by_order_gets_the_gradient(case, name):
    x = case.tensor(3, 9, requires_grad=True)
    y, index = PICKS[name](x)
    assert np.array_equal(array(y), np.take_along_axis(array(x), array(index).astype(int), 1))
    y.backward(g := case.tensor(*y.shape))
    expected, size, row = np.zeros((3, 9)), np.zeros((3, 9)), np.arange(3)[:, None]
    np.add.at(expected, (row, array(index).astype(int)), array(g))
    np.add.at(size, (row, array(index).astype(int)), abs(array(g)))
    case.close(x.grad, expected, k=9, scale=size)  # a sum of nine at most


@claim("autograd.gradient.picked-by-order")
@axes(layout=("contiguous", "channels_last"), via="eager")
def test_what_several_windows_pick_gets_all_their_gradients(case):
    x = case.tensor(2, 3, 5, 6, requires_grad=True)
    y, index = F.max_pool2d(x, 3, stride=1, return_indices=True)
    y.backward(g := case.tensor(*y.shape))
    places = F.one_hot(index.flatten(2), 30).to(g.dtype) * g.flatten(2)[..., None]
    case.close(x.grad.flatten(2), array(places).sum(2), k=9, scale=abs(array(places)).sum(2))  # a sum of nine at most


@claim("autograd.gradient.clamp")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("bounds", [(-0.5, 0.75), (-0.5, None), (None, 0.75)])
def test_clamp_passes_the_gradient_within_its_bounds(case, bounds):
    values = case.rng.integers(-24, 24, (3, 67)) / 8 + 1 / 16  # never at a bound, in any dtype
    x, g = case.tensor_of(values, requires_grad=True), case.tensor(3, 67)
    case.function(torch.clamp)(x, *bounds).backward(g)
    low, high = (b if b is not None else s * math.inf for b, s in zip(bounds, (-1, 1), strict=True))
    inside = (array(x) > low) & (array(x) < high)
    case.same(x.grad, case.tensor_of(np.where(inside, array(g), 0.0)))


@claim("autograd.gradient.clamp-between-tensors")
@axes(dtype=FLOATING)
def test_a_bound_gets_the_gradient_of_what_it_replaces(case):
    x, g = case.tensor_of(case.rng.integers(-24, 24, (3, 67)) / 8 + 1 / 16, requires_grad=True), case.tensor(3, 67)
    low, high = (case.tensor_of(np.full((3, 67), bound), requires_grad=True) for bound in (-0.5, 0.75))
    torch.clamp(x, low, high).backward(g)
    case.same(low.grad, torch.where(x < low, g, 0))
    case.same(high.grad, torch.where(x > high, g, 0))
    case.same(x.grad, g - low.grad - high.grad)


@claim("autograd.gradient.clamp-at-the-bound")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("bounds", [(-1.0, None), (None, 2.0), (-1.0, 2.0)])
def test_clamp_at_the_bound_passes_no_gradient(case, bounds):
    at_bounds = [b for b in bounds if b is not None]
    x = case.tensor_of(at_bounds, requires_grad=True)
    torch.clamp(x, *bounds).sum().backward()
    case.same(x.grad, torch.zeros_like(x))


@claim("autograd.gradient.clamp-at-the-bound-until-2-13")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("bounds", [(-1.0, None), (None, 2.0), (-1.0, 2.0)])
def test_clamp_at_the_bound_passed_the_gradient(case, bounds):
    at_bounds = [b for b in bounds if b is not None]
    x = case.tensor_of(at_bounds, requires_grad=True)
    torch.clamp(x, *bounds).sum().backward()
    case.same(x.grad, torch.ones_like(x))


@claim("autograd.gradient.masking-does-not-hide-nan")
def test_masking_a_result_does_not_mask_its_gradient(case):
    x, divisor = case.tensor_of([1.0, 1.0], requires_grad=True), case.tensor_of([0.0, 1.0])
    quotient = x / divisor
    quotient.masked_fill(divisor == 0, 0.0).sum().backward()
    assert x.grad.tolist()[1] == 1.0
    assert x.grad.isnan().tolist() == [True, False]


@claim("autograd.gradient.where-does-not-hide-nan")
def test_where_around_an_infinite_branch_gives_nan(case):
    x = case.tensor_of([0.0, 4.0], requires_grad=True)
    torch.where(x > 0, torch.sqrt(x), torch.zeros_like(x)).sum().backward()
    assert x.grad.isnan().tolist() == [True, False]
    x.grad = None
    safe = torch.where(x > 0, x, torch.ones_like(x))
    torch.where(x > 0, torch.sqrt(safe), torch.zeros_like(x)).sum().backward()
    case.same(x.grad, case.tensor_of([0.0, 0.25]))


@claim("autograd.gradient.random-operations")
@axes(via="eager")
def test_random_operations_pass_zeros(case):
    p = case.tensor_of([0.3, 0.6], requires_grad=True)
    for sample in (torch.bernoulli(p), torch.poisson(p)):
        (gradient,) = torch.autograd.grad(sample.sum(), p)
        case.same(gradient, torch.zeros_like(p))


# -- complex numbers -------------------------------------------------------------------------------------------------


def complex_tensor(case, *shape):
    values = case.rng.standard_normal(shape) + 1j * case.rng.standard_normal(shape)
    return torch.as_tensor(values).to(torch.complex64).to(case.device).requires_grad_()


@claim("autograd.complex.twice-the-conjugate-derivative")
def test_the_gradient_of_a_real_loss_is_that_of_its_two_real_variables(case):
    z = complex_tensor(case, 17)
    (z * z.conj()).real.sum().backward()
    case.close(z.grad, 2 * array(z), k=2)  # |z|^2 has derivatives 2a and 2b; dL/dz* would be z
    real = torch.view_as_real(z.detach()).requires_grad_()
    real.square().sum().backward()
    case.close(torch.view_as_complex(real.grad), array(z.grad), k=2)


@claim("autograd.complex.holomorphic-conjugated")
def test_a_holomorphic_function_multiplies_by_its_conjugate_derivative(case):
    z, g = complex_tensor(case, 17), complex_tensor(case, 17).detach()
    z.exp().backward(g)
    expected = array(g) * np.conj(np.exp(array(z)))
    case.close(z.grad, expected, k=8)  # exponential, sine and cosine within one eps each, a complex product


@claim("autograd.complex.real-input-real-gradient")
def test_a_real_input_gets_a_real_gradient(case):
    x, z = case.tensor(17, requires_grad=True, dtype=torch.float32), complex_tensor(case, 17).detach()
    (x * z).backward(z)
    assert x.grad.dtype == torch.float32
    case.close(x.grad, abs(array(z)) ** 2, k=2)  # two squares and a sum


@claim("autograd.gradient.log-softmax-counts-every-class")
@axes(dtype=REDUCED, via="eager")
@pytest.mark.parametrize("dim", [0, 1])
def test_the_gradient_of_log_softmax_counts_every_class(case, dim):
    n = int(4 / torch.finfo(case.dtype).eps)  # a sum of ones would stop at half of that
    x = case.tensor_of(np.zeros((n, 2) if dim == 0 else (2, n)), requires_grad=True)
    torch.log_softmax(x, dim).sum().backward()
    case.close(x.grad, np.zeros(x.shape), k=8, scale=2.0)  # one less the sum of gradients times the softmax, 1 / n


def spread(saved):
    """The same values, with others between them in memory."""
    return torch.stack([saved, -saved], -1)[..., 0]


def close_to_softmax_gradient(case, name, found, x, g):
    size = abs(array(g))
    # the output to 4 + 4 roundings, a sum of four products and what follows
    wanted = getattr(reference, f"{name}_gradient")(array(x), array(g))
    case.close(found, wanted, k=16, scale=size + size.sum(-1, keepdims=True))


@claim("autograd.gradient.softmax-of-spread-output")
@axes(via="eager")
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_gradient_of_softmax_reads_the_output_where_it_lies(case, name):
    x, g = case.tensor(3, 4, requires_grad=True), case.tensor(3, 4)
    with saved_tensors_hooks(torch.detach, spread):
        getattr(torch, name)(x, -1).backward(g)
    close_to_softmax_gradient(case, name, x.grad, x, g)


@claim("autograd.gradient.softmax-in-another-dtype")
@axes(dtype=("float32", *REDUCED))
@pytest.mark.parametrize("name", ["softmax", "softmin", "log_softmax"])
def test_softmax_is_computed_in_the_dtype_that_is_asked_for(case, name):
    x, g = case.tensor(3, 5, requires_grad=True), case.tensor(3, 5, dtype=torch.float64)
    y = case.function(getattr(F, name))(x, 1, dtype=torch.float64)
    y.backward(g)
    assert (y.dtype, x.grad.dtype) == (torch.float64, x.dtype)
    sign, law = (-1, reference.softmax) if name == "softmin" else (1, getattr(reference, name))
    case.close(
        y, law(sign * array(x)), k=16, scale=1 + abs(array(y))
    )  # as above, in float64: nothing rounds to x's dtype
    gradient = reference.log_softmax_gradient if name == "log_softmax" else reference.softmax_gradient
    case.close(x.grad, sign * gradient(sign * array(x), array(g)), k=1)  # the cast


@claim("autograd.gradient.sparse-softmax-from-the-end")
@axes(via="eager")
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_a_sparse_softmax_counts_dimensions_from_the_end(case, name):
    values, g = case.tensor(3, 4), case.tensor(3, 4)
    x = values.to_sparse().requires_grad_()
    getattr(torch.sparse, name)(x, -1).to_dense().backward(g)
    close_to_softmax_gradient(case, name, x.grad.to_dense(), values, g)


@claim("autograd.complex.choice")
@axes(via="eager")
def test_gradient_of_a_choice_of_complex_and_real_numbers(case):
    x, z = case.tensor(17, requires_grad=True, dtype=torch.float32), complex_tensor(case, 17)
    g, taken = complex_tensor(case, 17).detach(), torch.arange(17, device=case.device) % 3 == 0
    torch.where(taken, x, z).backward(g)
    case.same(x.grad, torch.where(taken, g.real, torch.zeros_like(g.real)))
    case.same(z.grad, torch.where(taken, torch.zeros_like(g), g))


@claim("autograd.complex.index-add")
@axes(via="eager")
def test_gradient_of_what_is_added_times_a_complex_number(case):
    z, g = complex_tensor(case, 3), complex_tensor(case, 2).detach()
    index = torch.tensor([1, 0, 1], device=case.device)
    torch.zeros_like(g).index_add(0, index, z, alpha=1 + 2j).backward(g)
    case.close(z.grad, (1 - 2j) * array(g)[array(index)], k=4, scale=3 * abs(array(g)).max())  # two products, a sum


@claim("autograd.gradient.log-softmax-of-columns")
@axes(dtype=REDUCED, via="eager")
def test_neighbouring_columns_have_maxima_of_their_own(case):
    x = torch.zeros_like(case.tensor(2, 32))
    x[0, 8:24] = 300.0  # halves of a vector of 16 columns differ, and those of one of 32
    found = torch.log_softmax(x, 0)
    high = np.isin(np.arange(32), range(8, 24))
    case.close(found, np.where(high, [[0.0], [-300.0]], -np.log(2)), k=2)


@claim("autograd.gradient.aminmax")
@axes(via="eager")
def test_gradients_of_both_ends(case):
    x = case.tensor_of([0.3, -2.0, 5.0], requires_grad=True)
    low, high = torch.aminmax(x)
    (2 * low + 3 * high).backward()
    case.same(x.grad, case.tensor_of([0.0, 2.0, 3.0]))


@claim("autograd.gradient.det-of-singular")
@axes(dtype=PRECISE, via="eager")
def test_gradient_of_a_determinant_that_is_zero(case):
    x = case.tensor_of([[1.0, 2.0], [2.0, 4.0]], requires_grad=True)
    torch.linalg.det(x).backward()
    case.close(x.grad, np.array([[4.0, -2.0], [-2.0, 1.0]]), k=8, scale=4)


@claim("autograd.gradient.hardswish-at-its-bounds")
@axes(dtype=PRECISE, via="eager")
def test_hardswish_is_flat_at_its_lower_bound(case):
    x = case.tensor_of([-3.0, 3.0], requires_grad=True)
    F.hardswish(x).sum().backward()
    case.same(x.grad, case.tensor_of([0.0, 1.0]))


@claim("autograd.gradient.atan2-at-the-origin")
@axes(dtype=PRECISE, via="eager")
def test_gradient_of_an_angle_at_the_origin(case):
    x, y = (case.tensor_of([0.0], requires_grad=True) for _ in range(2))
    torch.atan2(y, x).backward()
    case.close(torch.cat((x.grad, y.grad)), np.zeros(2), k=0)


@claim("autograd.gradient.hypot-at-the-origin")
@axes(via="eager")
def test_gradient_of_a_length_at_the_origin(case):
    x, y = (case.tensor_of([0.0], requires_grad=True) for _ in range(2))
    torch.hypot(y, x).backward()
    case.close(torch.cat((x.grad, y.grad)), np.zeros(2), k=0)


@claim("autograd.gradient.incomplete-gamma-at-zero")
@axes(via="eager")
@pytest.mark.parametrize("name", ["gammainc", "gammaincc"])
def test_gradient_of_an_incomplete_gamma_function_at_zero(case, name):
    x = case.tensor_of([0.0], requires_grad=True)
    getattr(torch.special, name)(torch.ones_like(x), x).backward()
    case.close(x.grad, np.array([1.0 if name == "gammainc" else -1.0]), k=4)


@claim("autograd.gradient.reduction-without-self")
@axes(via="eager")
@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("reduce", ["amax", "amin"])
@pytest.mark.parametrize("name", ["scatter_reduce", "index_reduce"])
def test_what_a_reduction_replaces_takes_no_part_in_its_gradient(case, name, reduce):
    x, values = case.tensor_of([2.0, 1.0]), case.tensor_of([2.0, 2.0], requires_grad=True)
    index = torch.tensor([0, 0], device=case.device)
    getattr(torch, name)(x, 0, index, values, reduce, include_self=False).sum().backward()
    case.same(values.grad, case.tensor_of([0.5, 0.5]))


@claim("autograd.gradient.xlogy-at-zero")
@axes(via="eager")
def test_gradient_of_xlogy_at_zero(case):
    y = case.tensor_of([0.0], requires_grad=True)
    torch.xlogy(torch.zeros_like(y), y).backward()
    case.close(y.grad, np.zeros(1), k=0)


@claim("autograd.gradient.where-of-mixed-kinds")
@axes(via="eager")
def test_where_sends_real_numbers_a_real_gradient(case):
    x, z = case.tensor(2, requires_grad=True), torch.complex(case.tensor(2), case.tensor(2))
    torch.where(torch.tensor([True, False], device=case.device), x, z).real.sum().backward()
    case.same(x.grad, case.tensor_of([1.0, 0.0]))


@claim("autograd.gradient.polar-at-the-origin")
@axes(via="eager")
def test_gradient_of_polar_at_the_origin(case):
    magnitude, angle = case.tensor_of([0.0], requires_grad=True), case.tensor_of([1.0])
    torch.polar(magnitude, angle).real.sum().backward()
    case.close(magnitude.grad, np.cos([1.0]), k=4)  # a cosine and a sine, their squares and a quotient


@claim("autograd.gradient.logsumexp-at-infinity")
@axes(via="eager")
@pytest.mark.parametrize("name", ["logsumexp", "logaddexp"])
def test_an_infinite_term_takes_the_whole_gradient(case, name):
    x = case.tensor_of([1.0, math.inf], requires_grad=True)
    call = {"logsumexp": lambda x: x.logsumexp(0), "logaddexp": lambda x: torch.logaddexp(*x)}[name]
    call(x).backward()
    case.close(x.grad, np.array([0.0, 1.0]), k=0)


@claim("autograd.gradient.product-of-great-factors")
@axes(via="eager", dtype="float32")
@pytest.mark.parametrize("recorded", [False, True])
def test_gradient_of_a_product_beside_zeros_is_zero(case, recorded):
    x = case.tensor_of([1e20, 1e20, 0.0, 0.0], requires_grad=True)
    (g,) = torch.autograd.grad(x.prod(), x, create_graph=recorded)
    case.close(g, np.zeros(4), k=0)


@claim("autograd.gradient.hypot-at-infinity")
@axes(via="eager")
def test_gradient_of_a_length_without_end(case):
    x, y = case.tensor_of([3.0], requires_grad=True), case.tensor_of([math.inf], requires_grad=True)
    torch.hypot(x, y).backward()
    case.close(torch.cat((x.grad, y.grad)), np.array([0.0, 1.0]), k=0)


@claim("autograd.gradient.xlog1py-at-zero")
@axes(via="eager")
def test_gradient_of_xlog1py_at_minus_one(case):
    y = case.tensor_of([-1.0], requires_grad=True)
    torch.special.xlog1py(torch.zeros_like(y), y).backward()
    case.close(y.grad, np.zeros(1), k=0)


@claim("autograd.gradient.sgn-is-ordinary")
@axes(via="eager")
def test_the_gradient_of_sgn_can_be_changed(case):
    x = case.tensor(3, requires_grad=True)
    (found,) = torch.autograd.grad(torch.sgn(x).sum(), x)
    case.same(found.add_(1), torch.ones_like(x))


@claim("autograd.gradient.softshrink-nan")
@axes(dtype=PRECISE, via="eager")
def test_softshrink_hands_nan_on(case):
    found = F.softshrink(torch.full_like(case.tensor(64), math.nan))
    assert found.isnan().all(), f"{found[0].item()} where NaN is due"


@claim("autograd.gradient.gelu-far")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("scale", [0.9, math.inf])
def test_gelu_of_a_great_number_is_that_number(case, scale):
    x = torch.full_like(case.tensor(64), scale * torch.finfo(case.dtype).max)
    case.same(F.gelu(x), x)


@claim("autograd.gradient.bessel")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("kind", ["bessel_j", "bessel_y", "modified_bessel_i", "modified_bessel_k"])
def test_bessel_functions_of_order_zero_have_those_of_order_one(case, kind):
    x = case.tensor_of([0.5, 1.0, 2.0], requires_grad=True)
    value = getattr(torch.special, f"{kind}0")(x)
    assert value.requires_grad, "taken for a constant"
    value.sum().backward()
    sign = 1.0 if kind == "modified_bessel_i" else -1.0
    law = sign * array(getattr(torch.special, f"{kind}1")(x))
    case.close(x.grad, law, k=32, scale=1 + abs(law))  # polynomials of up to sixteen terms, twice


@claim("autograd.gradient.bessel-of-nan")
@axes(via="eager")
@pytest.mark.parametrize("name", ["i1", "i1e"])
def test_bessel_functions_have_no_derivative_at_nan(case, name):
    x = case.tensor_of([math.nan, 2.0], requires_grad=True)
    getattr(torch.special, name)(x).sum().backward()
    assert x.grad.isnan().tolist() == [True, False]


@claim("autograd.gradient.shuffled-channels")
@axes(dtype=PRECISE, via="eager")
def test_the_gradient_follows_the_channels_back(case):
    x, g = case.tensor(2, 6, 3, requires_grad=True), case.tensor(2, 6, 3)
    F.channel_shuffle(x, 2).backward(g)
    case.same(x.grad, g[:, [0, 2, 4, 1, 3, 5]])


@claim("autograd.gradient.long-norm-in-low-precision")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_norms_count_every_element(case, order):
    x = torch.ones_like(case.tensor(4096))
    case.close(torch.linalg.vector_norm(x, order), 4096 ** (1 / order), k=1)


@claim("autograd.gradient.long-count-in-low-precision")
@axes(dtype="bfloat16", via="eager")
def test_the_norm_of_order_zero_counts_every_element(case):
    x = torch.ones_like(case.tensor(4096))
    case.same(torch.linalg.vector_norm(x, 0), torch.full_like(x[0], 4096))


@claim("autograd.gradient.greatest-distance-of-nan")
@axes(dtype="float32", via="eager")
def test_the_distance_of_nan_is_nan(case):
    x, y = case.tensor_of([[np.nan, 2.0]]), case.tensor_of([[1.0, 3.0]])
    assert torch.cdist(x, y, p=1).isnan(), "the sum"
    assert torch.cdist(x, y, p=np.inf).isnan(), "the greatest"


@claim("autograd.gradient.norm-in-half-range")
@axes(dtype="float16", via="eager")
@pytest.mark.parametrize("order", [2, 3])
def test_a_norm_within_the_range_is_finite(case, order):
    found = torch.linalg.vector_norm(torch.full_like(case.tensor(64), 400.0), order)
    case.close(found, 400 * 64 ** (1 / order), k=1)


@claim("autograd.gradient.product-in-half-range")
@axes(dtype="float16", via="eager")
def test_a_product_within_the_range_is_finite(case):
    case.close(torch.prod(case.tensor_of([512.0, 512.0, 2.0**-9, 2.0**-9])), 1.0, k=2)


@claim("autograd.gradient.greatest-of-equal-distances")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("name", ["cdist", "pdist"])
def test_equal_greatest_distances_share_the_gradient(case, name):
    x = case.tensor_of([[2.0, -2.0, 1.0], [0.0, 0.0, 0.0]], requires_grad=True)
    found = F.pdist(x, math.inf) if name == "pdist" else torch.cdist(x[:1], x[1:], math.inf)
    found.sum().backward()
    share = x.grad[0].abs().sum().item()
    assert share == 1.0, f"parts of {share} in sum"


@claim("autograd.higher.distances")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("name", ["cdist", "pdist"])
def test_distances_can_be_differentiated_twice(case, name):
    x = case.tensor_of([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    found = F.pdist(x) if name == "pdist" else torch.cdist(x[:1], x[1:])
    (slope,) = torch.autograd.grad(found.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope[0, 0], x)
    law = np.array([0.128, -0.096])  # (1 - cos cos) / 5 and - cos sin / 5
    case.close(second, np.stack([law, -law]), k=8)


@claim("autograd.gradient.hardtanh-range")
@axes(via="eager")
def test_an_empty_range_is_refused(case):
    with case.raises((ValueError, RuntimeError), "min_val|max_val"):
        F.hardtanh(case.tensor(3), 3.0, 1.0)


@claim("autograd.gradient.pool-of-infinite-norm")
@axes(dtype=PRECISE, via="eager")
def test_the_pool_of_the_infinite_norm_takes_the_greatest(case):
    x = case.tensor_of([[[3.0, -4.0, -1.0, 0.5]]], requires_grad=True)
    found = F.lp_pool1d(x, math.inf, 2)
    found.sum().backward()
    case.same(found.detach(), case.tensor_of([[[4.0, 1.0]]]))
    case.same(x.grad + 0.0, case.tensor_of([[[0.0, -1.0, -1.0, 0.0]]]))


@claim("autograd.gradient.masked-selection")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"), via="eager")
def test_what_a_mask_selects_has_the_gradient(case):
    x, mask = case.tensor(7, 5, requires_grad=True), torch.as_tensor(case.rng.random((7, 5)) < 0.5).to(case.device)
    y = x.masked_select(mask)
    y.backward(g := case.tensor(*y.shape))
    assert np.array_equal(array(y), array(x)[array(mask).astype(bool)])
    case.same(x.grad, torch.zeros_like(x).masked_scatter(mask, g))


@claim("autograd.gradient.taken-whatever-the-strides")
@axes(layout=("contiguous", "transposed", "strided"), via="eager")
def test_without_a_dimension_elements_are_taken_in_their_order(case):
    x, index = case.tensor(5, 7), torch.tensor([31, 0, 8], device=case.device)
    case.same(torch.take_along_dim(x, index), x.flatten()[index])


@claim("autograd.reduction.cosine-of-short-vectors")
@axes(dtype=PRECISE, via="eager")
def test_each_length_is_eps_at_least(case):
    x, y = case.tensor_of([[3.0, 4.0], [0.3, 0.4]]), case.tensor_of([[0.6, 0.8], [0.6, 0.8]])
    wanted = np.array([5.0 / (5.0 * 2.0), 0.5 / (2.0 * 2.0)])
    case.close(F.cosine_similarity(x, y, dim=1, eps=2.0), wanted, k=8)  # a norm, two products and a quotient


@claim("autograd.gradient.cosine-below-eps")
@axes(dtype=PRECISE, via="eager")
def test_the_cosine_of_a_short_vector_is_linear(case):
    x, y = case.tensor_of([3.0, 4.0], requires_grad=True), case.tensor_of([6.0, 8.0])
    F.cosine_similarity(x, y, dim=0, eps=7.0).backward()
    case.close(x.grad, np.array([6.0, 8.0]) / (7 * 10), k=8)  # a norm, two products and a quotient


@claim("autograd.gradient.lerp-by-a-number")
@axes(via="eager")
def test_a_weight_without_dimension_has_any_dtype(case):
    x, y = case.tensor_of([1.0, 2.0], requires_grad=True), case.tensor_of([3.0, 6.0])
    found = torch.lerp(x, y, torch.tensor(0.25, dtype=torch.float64, device=case.device))
    found.sum().backward()
    case.same(found.detach(), case.tensor_of([1.5, 3.0]))
    case.same(x.grad, case.tensor_of([0.75, 0.75]))


@claim("autograd.gradient.variance-of-one")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("name", ["var", "std"])
def test_the_gradient_of_the_variance_of_one_has_its_shape(case, name):
    x = case.tensor_of([2.0], requires_grad=True)
    getattr(torch, name)(x, unbiased=False).backward()
    case.same(x.grad.abs(), case.tensor_of([0.0]))
    x.grad = None
    getattr(torch, name)(x).backward()
    assert x.grad.isnan().tolist() == [True]


@claim("autograd.gradient.log-sums-of-impossible")
@axes(dtype=PRECISE, via="eager")
def test_an_impossible_first_term_leaves_the_others_their_share(case):
    x = case.tensor_of([-math.inf, 0.0, 0.0], requires_grad=True)
    torch.logcumsumexp(x, 0)[1:].sum().backward()
    case.close(x.grad, np.array([0.0, 1.5, 0.5]), k=8)


@claim("autograd.gradient.trace-of-tall")
@axes(via="eager")
def test_the_trace_of_a_tall_matrix_leaves_the_rows_below(case):
    x = case.tensor(5, 2, requires_grad=True)
    torch.trace(x).backward()
    case.same(x.grad, case.tensor_of(np.eye(5, 2)))


@claim("autograd.gradient.picked-from-the-end")
@axes(via="eager")
def test_negative_indices_pick_from_the_end(case):
    x = case.tensor_of([[2.0, 3.0, 5.0]], requires_grad=True)
    found = torch.take_along_dim(x, torch.tensor([[-1, 0, -1]], device=case.device), 1)
    found.sum().backward()
    case.same(found.detach(), case.tensor_of([[5.0, 2.0, 5.0]]))
    case.same(x.grad, case.tensor_of([[1.0, 0.0, 2.0]]))


@claim("autograd.gradient.cropped-to-nothing")
@axes(via="eager")
def test_padding_may_take_everything_away(case):
    x = case.tensor(2, 3, requires_grad=True)
    found = F.pad(x, (-1, -2, 1, 1), value=7.0)
    found.sum().backward()
    assert found.shape == (4, 0)
    case.same(x.grad, torch.zeros_like(x))


@claim("autograd.gradient.transposed-convolution-in-bfloat16")
@axes(via="eager")
def test_a_transposed_convolution_in_low_precision(case):
    x, w = case.tensor_of([[1.0, 2.0, 3.0]]).bfloat16(), case.tensor_of([[[1.0, 10.0], [2.0, 3.0]]]).bfloat16()
    x.requires_grad_()
    found = F.conv_transpose1d(x, w)
    found.sum().backward()
    case.same(found.detach().float(), case.tensor_of([[1.0, 12.0, 23.0, 30.0], [2.0, 7.0, 12.0, 9.0]]))
    case.same(x.grad.float(), case.tensor_of([[16.0, 16.0, 16.0]]))


@claim("autograd.gradient.aminmax-of-a-number")
@axes(via="eager")
def test_both_ends_of_a_number_are_numbers(case):
    low, high = torch.aminmax(case.tensor_of(3.0), dim=0, keepdim=True)
    assert (low.shape, high.shape) == ((), ())


@claim("autograd.gradient.norm-of-zero-matrix")
@axes(via="eager")
def test_the_norm_of_a_matrix_of_zeros_has_no_slope(case):
    x = case.tensor_of(np.zeros((2, 3)), requires_grad=True)
    torch.norm(x, dim=(0, 1)).backward()
    case.same(x.grad, torch.zeros_like(x))


@claim("autograd.gradient.cumprod-in-another-dtype")
@axes(via="eager")
def test_running_products_in_another_dtype(case):
    x = case.tensor_of([2.0, 0.0, 3.0], requires_grad=True)
    found = torch.cumprod(x, 0, dtype=torch.float64)
    found.sum().backward()
    assert found.dtype == torch.float64
    case.same(x.grad, case.tensor_of([1.0, 8.0, 0.0]))


@claim("autograd.gradient.other-than-nan")
@axes(via="eager")
@pytest.mark.parametrize("name", ["fmax", "fmin"])
def test_what_is_not_a_number_gets_no_gradient(case, name):
    x = case.tensor_of([math.nan, 2.0], requires_grad=True)
    y = case.tensor_of([3.0, math.nan], requires_grad=True)
    getattr(torch, name)(x, y).backward(case.tensor_of([5.0, 7.0]))
    case.same(x.grad, case.tensor_of([0.0, 7.0]))
    case.same(y.grad, case.tensor_of([5.0, 0.0]))


@claim("autograd.gradient.convolution-bias-dtype")
@axes(via="eager")
def test_a_bias_has_the_dtype_of_what_it_is_added_to(case):
    x, w, bias = case.tensor(1, 2, 5), case.tensor(3, 2, 2), case.tensor(3).double()
    with case.raises((RuntimeError, ValueError, TypeError), "type"):
        F.conv1d(x, w, bias)


@claim("autograd.gradient.negative-differences")
@axes(via="eager")
def test_there_is_no_negative_difference(case):
    with case.raises((RuntimeError, ValueError), "order"):
        torch.diff(case.tensor(4), n=-1)


@claim("autograd.gradient.residuals")
@axes(dtype=PRECISE, via="eager")
def test_gradient_of_the_residuals(case):
    """The nearest multiple of (1, 1) is the mean, which leaves (b - a)^2 / 2 of two numbers a and b."""
    b = case.tensor_of([[1.0], [4.0], [1.0]], requires_grad=True)
    torch.linalg.lstsq(torch.ones_like(b), b, driver="gelsd").residuals.sum().backward()
    case.close(b.grad, np.array([[-2.0], [4.0], [-2.0]]), k=32)  # twice the difference from the mean, by some ten steps


@claim("autograd.gradient.condition-number")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("p", ["fro", 1])
def test_gradient_of_a_condition_number(case, p):
    """That of diag(4, 2) is 2 by the maximum of columns; by the norm of Frobenius 5 / 2 = (a^2 + b^2) / a b."""
    x = case.tensor_of([[4.0, 0.0], [0.0, 2.0]], requires_grad=True)
    torch.linalg.cond(x, p).backward()
    law = {"fro": [0.375, -0.75], 1: [0.5, -1.0]}[p]
    case.close(x.grad.diagonal(), np.array(law), k=32)  # an inverse, two norms and their product: some ten steps


@claim("autograd.gradient.enlarged-in-low-precision")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_gradient_of_a_much_enlarged_line(case, mode):
    x = torch.ones_like(case.tensor(1, 1, 2)).requires_grad_()
    F.interpolate(x, size=2048, mode=mode).sum().backward()
    case.close(x.grad, np.full((1, 1, 2), 1024.0), k=1)


@claim("autograd.gradient.gathered-in-low-precision")
@axes(dtype="bfloat16", via="eager")
def test_gradient_of_what_is_gathered_often(case):
    x = torch.ones_like(case.tensor(2)).requires_grad_()
    x.gather(0, torch.zeros(600, dtype=torch.int64, device=case.device)).sum().backward()
    case.same(x.grad, case.tensor_of([600.0, 0.0]))


SELECTED = {
    "index": lambda x, i: x[i],
    "index_select": lambda x, i: x.index_select(0, i),
    "take": torch.take,
}


@claim("autograd.gradient.celu-in-double")
@axes(dtype="float64", via="eager")
def test_the_gradient_of_celu_is_as_fine_as_its_input(case):
    x = case.tensor_of([-0.5, -1.0, 2.0], requires_grad=True)
    F.celu(x, 0.7).sum().backward()
    case.close(x.grad, np.exp(np.minimum(array(x), 0) / 0.7), k=4)  # an inverse, a product and an exponential


@claim("autograd.gradient.selected-in-low-precision")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.parametrize("name", SELECTED)
def test_gradient_of_what_is_selected_often(case, name):
    x = torch.ones_like(case.tensor(2)).requires_grad_()
    SELECTED[name](x, torch.zeros(600, dtype=torch.int64, device=case.device)).sum().backward()
    case.same(x.grad, case.tensor_of([600.0, 0.0]))


@claim("autograd.gradient.repeated-in-low-precision")
@axes(dtype="bfloat16", via="eager")
def test_gradient_of_what_is_repeated_often(case):
    x = torch.ones_like(case.tensor(2)).requires_grad_()
    x.repeat_interleave(600).sum().backward()
    case.same(x.grad, case.tensor_of([600.0, 600.0]))


@claim("autograd.gradient.long-products-in-low-precision")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.parametrize("name", ["dot", "mv"])
def test_products_count_every_element(case, name):
    ones = torch.ones_like(case.tensor(600))  # more might go to oneDNN
    found = torch.dot(ones, ones) if name == "dot" else torch.mv(ones[None], ones)[0]
    case.same(found, case.tensor_of(600.0))


@claim("autograd.gradient.at-nan")
@axes(dtype="float32", via="eager")
@pytest.mark.parametrize("name", ["hardtanh", "hardshrink", "softshrink", "elu", "hardswish"])
def test_an_activation_has_one_derivative_at_nan(case, name):
    x = torch.full_like(case.tensor(33), math.nan).requires_grad_()  # the last one lies behind the vectors of any CPU
    getattr(F, name)(x).sum().backward()
    case.same(x.grad, x.grad[:1].expand(33))


ADAPTIVE = {
    "adaptive_avg_pool1d": 2048,
    "adaptive_avg_pool2d": (1, 2048),
    "adaptive_avg_pool3d": (1, 1, 2048),
    "adaptive_max_pool1d": 2048,
}


@claim("autograd.gradient.adaptive-pools-in-low-precision")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.parametrize("name", ADAPTIVE)
def test_gradient_of_a_much_enlarged_pool(case, name):
    x = torch.ones_like(case.tensor(1, 1, *(1, 1)[: int(name[-2]) - 1], 2)).requires_grad_()
    getattr(F, name)(x, ADAPTIVE[name]).sum().backward()
    case.same(x.grad.flatten(), case.tensor_of([1024.0, 1024.0]))


@claim("autograd.gradient.replicated-in-low-precision")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.parametrize("d", [1, 2, 3])
def test_gradient_of_much_padding(case, d):
    x = torch.ones_like(case.tensor(1, 1, *[1] * (d - 1), 2)).requires_grad_()
    F.pad(x, (511, 1023, *[0] * (2 * d - 2)), mode="replicate").sum().backward()
    case.same(x.grad.flatten(), case.tensor_of([512.0, 1024.0]))


@claim("autograd.gradient.sampled-in-low-precision")
@axes(dtype="bfloat16", via="eager")
def test_gradient_of_what_is_sampled_often(case):
    x = torch.ones_like(case.tensor(1, 1, 1, 2)).requires_grad_()
    points = torch.zeros_like(case.tensor(1, 1, 1024, 2))
    F.grid_sample(x, points, align_corners=False).sum().backward()  # halfway between the two
    case.same(x.grad.flatten(), case.tensor_of([512.0, 512.0]))


@claim("autograd.gradient.unfolded-in-low-precision")
@axes(dtype="bfloat16", via="eager")
def test_gradient_of_what_is_unfolded_often(case):
    x = torch.ones_like(case.tensor(1, 1, 1, 1)).requires_grad_()
    F.unfold(F.pad(x, (511, 511, 0, 0)), (1, 512)).sum().backward()
    case.same(x.grad.flatten(), case.tensor_of([512.0]))


@claim("autograd.gradient.pools-average-in-low-precision")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.parametrize("d", [1, 2, 3])
def test_adaptive_averages_count_every_element(case, d):
    x = torch.ones_like(case.tensor(1, 1, *[1] * (d - 1), 2048))
    found = getattr(F, f"adaptive_avg_pool{d}d")(x, (*[1] * (d - 1), 2))
    case.same(found.flatten(), case.tensor_of([1.0, 1.0]))


@claim("autograd.reduction.averages-at-the-border")
@axes(layout=("contiguous", "channels_last"), via="eager")
@pytest.mark.parametrize("counted", [True, False])
def test_an_average_counts_the_padding_or_leaves_it_out(case, counted):
    x = case.tensor_of(np.ones((2, 3, 4, 4)))
    found = F.avg_pool2d(x, 3, 2, 1, count_include_pad=counted)
    wanted = np.array([[4, 6], [6, 9]]) / 9 if counted else np.ones((2, 2))
    case.close(found, np.broadcast_to(wanted, (2, 3, 2, 2)), k=1)


@claim("autograd.reduction.greatest-of-nan")
@axes(layout=("contiguous", "channels_last"), via="eager")
def test_a_window_with_nan_gives_nan(case):
    x, wanted = case.tensor(2, 19, 4, 4), np.zeros((2, 19, 2, 2), bool)
    x[0, :, 1, 2], wanted[0, :, 0, 1] = math.nan, True
    assert np.array_equal(F.max_pool2d(x, 2).isnan().cpu(), wanted)


@claim("autograd.reduction.adaptive-windows")
@axes(layout=("contiguous", "channels_last"), via="eager")
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_adaptive_windows_overlap_where_the_sizes_do_not_divide(case, pool):
    x = case.tensor(2, 3, 5, 7)
    found = getattr(F, f"adaptive_{pool}_pool2d")(x, (3, 4))
    rows, columns = [(0, 2), (1, 4), (3, 5)], [(0, 2), (1, 4), (3, 6), (5, 7)]
    reduce = {"avg": np.mean, "max": np.max}[pool]
    wanted = [[reduce(array(x)[:, :, a:b, c:d], (2, 3)) for c, d in columns] for a, b in rows]
    case.close(found, np.moveaxis(wanted, (0, 1), (2, 3)), k=9, scale=abs(array(x)).max())  # a mean of nine at most


@claim("autograd.gradient.fractional-window")
@axes(via="eager")
@pytest.mark.parametrize("d", [2, 3])
def test_fractional_pooling_needs_a_window(case, d):
    with case.raises(RuntimeError, "kernel.size"):
        getattr(F, f"fractional_max_pool{d}d")(case.tensor(1, 1, *[8] * d), 0, output_size=2)


@claim("autograd.gradient.fractional-ratios")
@axes(via="eager")
def test_fractional_pooling_of_a_plane_takes_two_ratios(case):
    with case.raises(ValueError, "output_ratio"):
        F.fractional_max_pool2d(case.tensor(1, 1, 8, 8), 2, output_ratio=(0.5, 0.5, 0.5))


@claim("autograd.gradient.pooled-in-low-precision")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.parametrize("d", [1, 2])
def test_gradient_of_the_greatest_of_many_windows(case, d):
    x = torch.ones_like(case.tensor(1, 1, *[1] * d)).requires_grad_()
    windows = F.pad(x, (511, 511, *[0] * (2 * d - 2)))
    getattr(F, f"max_pool{d}d")(windows, (*[1] * (d - 1), 512), 1).sum().backward()
    case.same(x.grad.flatten(), case.tensor_of([512.0]))


@claim("autograd.gradient.averaged-in-low-precision")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.parametrize("d", [1, 2])
def test_gradient_of_the_average_of_many_windows(case, d):
    x = torch.ones_like(case.tensor(1, 1, *[1] * d)).requires_grad_()
    windows = F.pad(x, (511, 511, *[0] * (2 * d - 2)))
    getattr(F, f"avg_pool{d}d")(windows, (*[1] * (d - 1), 512), 1).sum().backward()
    case.same(x.grad.flatten(), case.tensor_of([1.0]))


@claim("autograd.gradient.scattered-in-part")
@axes(via="eager")
@pytest.mark.parametrize("reduce", ["prod", "amax"])
def test_what_the_index_leaves_out_takes_no_part(case, reduce):
    x, values = case.tensor_of([[1.0, 1.0]]), case.tensor_of([[2.0, 3.0], [2.0, 3.0]], requires_grad=True)
    found = x.scatter_reduce(0, torch.zeros((1, 2), dtype=torch.int64, device=case.device), values, reduce)
    with contextlib.suppress(RuntimeError):  # the documentation promises no gradient here
        found.sum().backward()
        case.same(values.grad, case.tensor_of([[1.0, 1.0], [0.0, 0.0]]))


COUNTED = {
    "scatter_add": lambda x, i, s: x.scatter_add(0, i, s) / 600,
    "scatter_reduce": lambda x, i, s: x.scatter_reduce(0, i, s, "mean", include_self=False),
    "index_reduce": lambda x, i, s: x.index_reduce(0, i, s, "mean", include_self=False),
}


@claim("autograd.gradient.scattered-in-low-precision")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", COUNTED)
def test_what_is_scattered_is_counted(case, name):
    s = torch.ones_like(case.tensor(600))
    s[300:] = 2.0 if name == "scatter_add" else 0.0
    found = COUNTED[name](torch.zeros_like(s[:1]), torch.zeros(600, dtype=torch.int64, device=case.device), s)
    case.close(found, np.array([1.5 if name == "scatter_add" else 0.5]), k=4)  # a sum of up to 900, and its share


@claim("autograd.gradient.unread-result")
@axes(via="eager")
def test_what_the_result_held_before_is_not_read(case):
    x, y = case.tensor(2, 3, 2), case.tensor(2, 2, 3)
    wanted, scale = 2 * array(x) @ array(y), 2 * abs(array(x)) @ abs(array(y))
    found = torch.full_like(x @ y, math.nan)
    torch.baddbmm(torch.zeros_like(found), x, y, beta=0, alpha=2, out=found)
    case.close(found, wanted, k=4, scale=scale)
    nothing = torch.full_like(found, math.nan)
    case.close(torch.baddbmm(nothing, x, y, beta=0, alpha=2), wanted, k=4, scale=scale)
    case.close(torch.addmm(nothing[0], x[0], y[0], beta=0, alpha=2), wanted[0], k=4, scale=scale[0])
    case.close(
        torch.addmv(nothing[0, 0], x[0], y[0, :, 0], beta=0, alpha=2), wanted[0, :, 0], k=4, scale=scale[0, :, 0]
    )


@claim("autograd.gradient.copied-columns")
@axes(via="eager")
def test_columns_are_copied_as_columns(case):
    x = case.tensor_of(np.arange(20.0).reshape(10, 2))
    case.same(torch.narrow_copy(x.t(), 1, 0, 10), x.t())


@claim("autograd.gradient.sampled-at-infinity")
@axes(via="eager")
def test_a_place_at_infinity_lies_outside(case):
    x = case.tensor(1, 1, 3, 3, requires_grad=True)
    places = torch.full_like(case.tensor(1, 1, 40, 2), math.inf)
    found = F.grid_sample(x, places, align_corners=False)
    found.sum().backward()
    case.same(found.detach(), torch.zeros_like(found))
    case.same(x.grad, torch.zeros_like(x))


@claim("autograd.complex.magnitude-in-range")
@axes(dtype="complex64", via="eager")
@pytest.mark.parametrize("power", [-100, 100])
def test_the_magnitude_of_numbers_whose_squares_are_beyond_the_range(case, power):
    x = torch.full_like(case.tensor(64), (3 + 4j) * 2.0**power)
    case.close(x.abs() * 2.0**-power, np.full(64, 5.0), k=4)
    case.close(x.sgn(), np.full(64, 0.6 + 0.8j), k=8)


@claim("autograd.complex.magnitude-gradient")
@axes(dtype="complex64", via="eager")
@pytest.mark.parametrize("power", [-80, 80])
def test_the_gradient_of_a_magnitude_whose_square_is_beyond_the_range(case, power):
    x = torch.full_like(case.tensor(64), (3 + 4j) * 2.0**power).requires_grad_()
    x.abs().sum().backward()
    case.close(x.grad, np.full(64, 0.6 + 0.8j), k=8)  # a magnitude of some rounded steps, and a quotient


@claim("autograd.complex.resolved-conjugate")
@axes(via="eager")
def test_a_conjugate_is_resolved_as_it_is_copied(case):
    z = complex_tensor(case, 67).detach()
    for found in (z.conj().resolve_conj(), torch.empty_like(z).copy_(z.conj())):
        assert not found.is_conj()
        case.same(torch.view_as_real(found), torch.stack([z.real, -z.imag], 1))


@claim("autograd.complex.magnitude-at-zero")
@axes(dtype="complex64", via="eager")
def test_the_magnitude_of_zero_has_no_slope(case):
    z = torch.zeros_like(case.tensor(19)).requires_grad_()
    z.abs().sum().backward()
    case.same(z.grad, torch.zeros_like(z))


@claim("autograd.complex.angle-gradient")
@axes(dtype="complex64", via="eager")
@pytest.mark.parametrize("power", [-80, 80])
def test_the_gradient_of_an_angle_whose_magnitude_has_a_square_beyond_the_range(case, power):
    x = torch.full_like(case.tensor(64), (3 + 4j) * 2.0**power).requires_grad_()
    x.angle().sum().backward()
    case.close(x.grad * 2.0**power, np.full(64, -0.16 + 0.12j), k=8)  # a magnitude of some rounded steps, two quotients


@claim("autograd.complex.arcs-far")
@axes(dtype="complex64", via="eager")
@pytest.mark.parametrize("name", ["asin", "atan"])
def test_the_arcs_of_a_great_complex_number(case, name):
    law = {"asin": np.arcsin, "atan": np.arctan}[name]((3 + 4j) * 2.0**70)
    x = torch.full_like(case.tensor(64), (3 + 4j) * 2.0**70)
    case.close(getattr(torch, name)(x), np.full(64, law), k=8)  # a magnitude, a logarithm and an angle


@claim("autograd.complex.quotient-in-range")
@axes(dtype="complex64", via="eager")
@pytest.mark.parametrize("power", [-80, 80])
def test_the_quotient_of_numbers_whose_squares_are_beyond_the_range(case, power):
    x = torch.full_like(case.tensor(64), (3 + 4j) * 2.0**power)
    case.close(x / x.conj(), np.full(64, -0.28 + 0.96j), k=8)  # two ratios of parts, two products, sums and quotients


@claim("autograd.complex.sigmoid-far")
@axes(dtype="complex64", via="eager")
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_sigmoid_of_a_far_complex_number(case, sign):
    x = torch.full_like(case.tensor(64), sign * 100 + 1j)
    case.close(torch.sigmoid(x), np.full(64, (1 + sign) / 2), k=4, scale=1.0)  # an exponential, a sum and a quotient


@claim("autograd.complex.reciprocal-in-range")
@axes(dtype="complex64", via="eager")
def test_the_reciprocal_of_numbers_whose_squares_are_beyond_the_range(case):
    x = torch.full_like(case.tensor(64), (3 + 4j) * 2.0**100)
    case.close(torch.reciprocal(x) * 2.0**100, np.full(64, 0.12 - 0.16j), k=8)


@claim("autograd.complex.exponential-at-infinity")
@axes(dtype="complex64", via="eager")
def test_the_exponential_at_infinity_is_not_nan(case):
    x = torch.full_like(case.tensor(64), complex(math.inf, 0))
    case.same(torch.view_as_real(x.exp()), torch.view_as_real(x))
    x = torch.full_like(x, complex(-math.inf, math.inf))
    case.same(x.exp().abs(), torch.zeros_like(x.real))


@claim("autograd.complex.truth")
@axes(dtype="complex64", via="eager")
def test_an_imaginary_number_is_true(case):
    x = case.tensor_of([3j, 0j])
    assert x.bool().tolist() == [True, False]
    assert x[:1].all(), "all"
    assert x.any(), "any"


@claim("autograd.indexing.truth")
@axes(dtype=FLOATING, via="eager")
def test_every_number_but_zero_is_true(case):
    x = case.tensor_of([0.0, 0.25, 2.0, -4.0, math.inf, math.nan])
    assert x.bool().tolist() == [False] + 5 * [True]
    assert x[:4].long().bool().tolist() == [False, False, True, True]


@claim("autograd.gradient.ldexp-beyond-powers")
@axes(dtype="float32", via="eager")
def test_ldexp_goes_beyond_the_powers_of_its_dtype(case):
    exponents = torch.tensor([150, -170], device=case.device)
    found = torch.ldexp(case.tensor_of([2.0**-100, 2.0**100]), exponents)
    case.same(found, case.tensor_of([2.0**50, 2.0**-70]))


@claim("autograd.gradient.kron-of-a-transpose")
@axes(dtype="float32", via="eager")
def test_the_kronecker_product_of_a_transpose(case):
    a, b = case.tensor(2, 3).t(), case.tensor(2, 2)
    case.close(torch.kron(a, b), np.kron(array(a), array(b)), k=1)


@claim("autograd.gradient.index-add-of-another-shape")
@axes(via="eager")
@pytest.mark.parametrize("shape", [(2,), (2, 1)], ids=str)
def test_index_add_expands_nothing(case, shape):
    with case.raises((RuntimeError, IndexError), "source|shape|dim"):
        case.tensor(3, 2).index_add(0, torch.tensor([0, 1], device=case.device), case.tensor(*shape))


@claim("autograd.gradient.summed-products-in-low-precision")
@axes(dtype="bfloat16", via="eager")
def test_a_sum_of_products_counts_every_one(case):
    ones = torch.ones_like(case.tensor(600, 1, 1))
    case.same(torch.addbmm(torch.zeros_like(ones[0]), ones, ones), case.tensor_of([[600.0]]))


@claim("autograd.complex.log-sum-far")
@axes(dtype="complex64", via="eager")
def test_a_far_greater_number_has_the_whole_gradient(case):
    x, y = case.tensor_of([0j], requires_grad=True), case.tensor_of([200 + 0j], requires_grad=True)
    torch.logaddexp(x, y).real.sum().backward()
    case.close(x.grad, np.zeros(1), k=0)
    case.close(y.grad, np.ones(1), k=0)


@claim("autograd.gradient.norm-of-one")
@axes(dtype="float32", via="eager")
@pytest.mark.parametrize("order", [2, 3])
def test_the_norm_of_one_number_is_its_magnitude(case, order):
    x = case.tensor_of([[-1e30], [1e-30]], requires_grad=True)
    found = torch.linalg.vector_norm(x, order, dim=1)
    case.same(found.detach(), x.detach().abs()[:, 0])


@claim("autograd.gradient.gelu-in-low-precision")
@axes(dtype="bfloat16", via="eager")
def test_the_approximate_gelu_is_rounded_once(case):
    x = case.tensor_of([-3.0, -2.0])
    exact = reference.FUNCTIONS["gelu_tanh"][0](array(x))
    case.close(F.gelu(x, approximate="tanh"), exact, k=1)  # rounded once, from float32


@claim("autograd.gradient.enlarged-bytes")
@axes(via="eager")
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_bytes_are_resized_as_numbers_are(case, mode):
    x = torch.from_numpy(case.rng.integers(64, 192, (1, 3, 16, 16)).astype(np.uint8)).to(case.device)
    found = F.interpolate(x, (7, 9), mode=mode, antialias=True)
    exact = F.interpolate(x.double(), (7, 9), mode=mode, antialias=True)
    # rounded to bytes after either axis, the first time under weights of a sum of magnitudes below two
    assert (found.double() - exact).abs().max() <= 2, "other bytes than those next to the numbers"


WINDOWS = {
    "avg_pool2d": lambda x: F.avg_pool2d(x, (1, 300), 1, divisor_override=1),
    "max_pool2d": lambda x: F.max_pool2d(x, (1, 300), 1),
    "unfold": lambda x: F.unfold(x, (1, 300)),
}


@claim("autograd.gradient.sorter-in-range")
@axes(via="eager")
def test_a_sorter_leads_to_places_of_the_sequence(case):
    sequence = case.tensor(8)[:2]
    with case.raises(RuntimeError, "out of range"):
        torch.searchsorted(sequence, case.tensor(3), sorter=torch.tensor([1, 5], device=case.device))


@claim("autograd.gradient.index-beyond-empty-rows")
@axes(via="eager")
def test_rows_without_elements_are_counted(case):
    with case.raises(IndexError, "out of"):
        case.tensor(3, 0)[torch.tensor([5], device=case.device)]
