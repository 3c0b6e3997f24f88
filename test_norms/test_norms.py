"""What the normalisations have in common, and the plain formulas that go by the same name."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from specs.reference import norms as reference
from specs.reference.rounded import Rounded
from torch_conformance.axes import FLOATING, PRECISE, REDUCED
from torch_conformance.checks import array, eps
from torch_conformance.marks import axes, claim
from torch_conformance.switches import switched

LAYERS = {
    "LayerNorm": lambda: nn.LayerNorm((6, 5)),
    "GroupNorm": lambda: nn.GroupNorm(2, 6),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(6, affine=True),
    "RMSNorm": lambda: nn.RMSNorm((6, 5)),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(3),
}


IMAGES = {
    "LayerNorm": lambda: nn.LayerNorm((6, 5, 2)),
    "GroupNorm": lambda: nn.GroupNorm(2, 6),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(6, affine=True),
    "BatchNorm2d": lambda: nn.BatchNorm2d(6),
    "RMSNorm": lambda: nn.RMSNorm((6, 5, 2)),
}


def make(case, name, layers=LAYERS):
    if not hasattr(nn, name):
        raise case.unsupported(f"this torch has no {name}")
    return case.module(layers[name])


@claim("norms.common.samples-apart")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_sample_does_not_see_the_others(case, name, training):
    layer, x = make(case, name).train(training), case.tensor(4, 6, 5)
    alone = layer(x)[1:2].cpu()  # computed by now, and so by the same program, where a backend puts it off
    spoilt = array(x).copy()
    spoilt[0], spoilt[2:] = np.nan, 1e30 if case.dtype != torch.float16 else 1e4
    case.same(layer(case.tensor_of(spoilt))[1:2].cpu(), alone)


@claim("norms.common.stateless")
@pytest.mark.parametrize("name", LAYERS)
def test_modes_are_alike_and_nothing_is_kept(case, name):
    layer, x = make(case, name), case.tensor(4, 6, 5)
    assert not list(layer.buffers())
    with case.unchanged(layer.eval(), x=x):
        evaluated = layer(x)
    with case.unchanged(layer.train(), x=x):
        case.same(layer(x), evaluated)


@claim("norms.common.nan-stays-in-its-sample")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("name", [n for n in LAYERS if n != "LocalResponseNorm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_is_not_swallowed(case, name, value):
    layer, x = make(case, name), case.tensor(2, 6, 5)
    x[0, 1, 2] = value
    y = layer(x)
    assert y[0, 1, 2].isnan()
    assert not y[1].isnan().any()


LONG = 4099  # terms; added up one by one in bfloat16, ones never pass 256, in float16 never 2048


@claim("norms.common.sums-in-float32")
@axes(dtype=REDUCED, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("name", ["layer_norm", "group_norm", "instance_norm", "rms_norm"])
def test_long_sums_are_held_in_float32(case, name):
    x, groups = case.tensor(2, 2, LONG, 1, loc=1), 2 if name in ("group_norm", "instance_norm") else 1
    if not hasattr(F, name):
        raise case.unsupported(f"this torch has no {name}")
    options = {"layer_norm": [x.shape[1:]], "group_norm": [2], "instance_norm": [], "rms_norm": [x.shape[1:]]}[name]
    y = case.function(getattr(F, name))(x, *options, eps=0.3)
    law = {"centred": name != "rms_norm"}
    expected = reference.over_groups(lambda *a: reference.standardise(*a, **law)[0], groups, array(x), eps=0.3)
    scale = reference.over_groups(lambda *a: reference.magnitude(*a, **law), groups, array(x), eps=0.3)
    case.close(y, expected, k=reference.roundings(2 * LONG, eps(case.dtype)), scale=scale)


@claim("norms.common.gradient-sums-in-float32")
@axes(dtype=REDUCED)
@pytest.mark.parametrize("cls", [nn.LayerNorm, nn.GroupNorm])
def test_long_sums_of_gradients_are_held_in_float32(case, cls):
    x = case.tensor(LONG, 2) if cls is nn.LayerNorm else case.tensor(1, 2, LONG)
    layer = case.module(cls, 2) if cls is nn.LayerNorm else case.module(cls, 1, 2)
    g = case.tensor_of(1 + case.rng.uniform(size=x.shape))
    with switched("threads", 1):  # or each of them sums a part, which is not so long
        layer(x).backward(g)
    every = (0,) if cls is nn.LayerNorm else (0, 2)
    case.close(layer.bias.grad, array(g).sum(every), k=reference.roundings(LONG, eps(case.dtype)))


@claim("norms.common.expanded-gradient")
@axes(via="eager", layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", IMAGES)
def test_the_gradient_of_a_sum_is_that_of_ones(case, name, training):
    layer, x = make(case, name, IMAGES).train(training), case.tensor(3, 6, 5, 2, requires_grad=True)
    leaves = (x, *layer.parameters())
    found = torch.autograd.grad(layer(x).sum(), leaves)
    for gradient, wanted in zip(found, torch.autograd.grad(layer(x), leaves, torch.ones_like(x)), strict=True):
        case.close(gradient, array(wanted), k=60, scale=60)  # sums of at most as many terms, in another order


@claim("norms.common.weight-with-strides")
@axes(via="eager", layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", IMAGES)
def test_weight_and_bias_are_read_where_they_lie(case, name, training):
    layer, x = make(case, name, IMAGES).train(training), case.tensor(3, 6, 5, 2)
    wanted = layer(x)
    for parameter in layer.parameters():
        parameter.data = torch.stack([parameter.data, -parameter.data], -1)[..., 0]
    # perhaps by another kernel: half an eps of both for each of at most 60 terms, which are below 4
    case.close(layer(x), array(wanted), k=60, scale=4 + abs(array(wanted)))


@claim("norms.normalize.formula")
@axes(dtype=FLOATING, layout=("contiguous", "strided"))
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
def test_normalize_divides_by_the_norm(case, p):
    x = case.tensor(3, 7, 5)
    for dim in (0, 1, -1):  # half an eps for each term of the sum, and powers, root and quotient
        expected = reference.normalize(array(x), p, dim, 1e-12)
        case.close(case.function(F.normalize)(x, p=p, dim=dim), expected, k=x.shape[dim] / 2 + 4)


@claim("norms.normalize.eps-is-a-floor")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("at", [1e-3, 0.5, 10.0])
def test_eps_is_the_least_divisor(case, at):
    x = case.tensor(3, 7, spread=0.2) * case.tensor_of([[0.0], [1.0], [10.0]])
    expected = reference.normalize(array(x), 2, 1, at)
    case.close(case.function(F.normalize)(x, eps=at), expected, k=8)  # half of seven terms, square, root, quotient


@claim("norms.normalize.defaults")
def test_normalize_is_euclidean_along_dimension_one(case):
    x = case.tensor(3, 7, 5)
    x[1] *= 1e-14
    case.close(case.function(F.normalize)(x), reference.normalize(array(x), 2, 1, 1e-12), k=8)


@claim("norms.minmax.formula")
@axes(dtype=FLOATING)
def test_minmax_reaches_zero_and_one(case):
    x = case.tensor(65, loc=3)
    y = (x - x.min()) / (x.max() - x.min())
    assert (y.min(), y.max()) == (0, 1)
    values = array(x)  # two differences and a quotient, half an eps each
    case.close(y, (values - values.min()) / np.ptp(values), k=2)


@claim("norms.minmax.other-range")
def test_minus_one_to_one_takes_another_map(case):
    x = case.tensor(65, loc=3)
    y = (x - x.min()) / (x.max() - x.min())
    assert (y >= 0).all()
    assert ((2 * y - 1).min(), (2 * y - 1).max()) == (-1, 1)


@claim("norms.minmax.constant")
def test_minmax_of_a_constant_is_nan(case):
    x = case.tensor_of([2.5, 2.5, 2.5])
    assert ((x - x.min()) / (x.max() - x.min())).isnan().all()


@claim("norms.zscore.formula")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("unbiased", [True, False])
def test_zscore_has_unit_variance_in_its_own_estimator(case, unbiased):
    x = case.tensor(17, loc=3, spread=2)
    z = (x - x.mean()) / x.std(unbiased=unbiased)
    values = array(x)
    scale = (abs(values) + abs(values).mean()) / values.std() * 2
    case.close(z, (values - values.mean()) / values.std(ddof=int(unbiased)), k=12, scale=scale)  # sums of 17 terms


@claim("norms.zscore.estimators-differ")
def test_zscore_and_layernorm_differ_by_the_estimator(case):
    x = case.tensor(17)
    z, y = (x - x.mean()) / x.std(), case.module(nn.LayerNorm, 17, eps=0.0, elementwise_affine=False)(x)
    scale = (abs(array(x)) + abs(array(x)).mean()) / array(x).std() * 2
    case.close(z, array(y) * np.sqrt(16 / 17), k=24, scale=scale)  # two results with sums of 17 terms each


@claim("norms.weightnorm.formula")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_is_a_magnitude_times_a_direction(case, dim):
    layer = nn.Linear(7, 5, device=case.device, dtype=case.dtype)
    before = array(layer.weight).copy()
    norm = np.linalg.norm(before) if dim is None else np.linalg.norm(before, axis=1 - dim, keepdims=True)
    torch.nn.utils.parametrizations.weight_norm(layer, dim=dim)
    size = layer.parametrizations.weight.original0
    case.close(size.reshape(norm.shape), norm, k=20)  # a sum of up to 35 squares, and its root
    case.close(layer.weight, before, k=22)  # that norm twice in quotient, and a product
    with torch.no_grad():
        size *= 3
    case.close(layer.weight, 3 * before, k=22)


# -- derivatives of every order and direction --------------------------------------------------------------------------

CURVED = {  # the layer, the axes of (4, 6, 5) and, for groups, of (4, 2, 15) that it averages over
    "LayerNorm": (lambda: nn.LayerNorm((6, 5), eps=0.25), (1, 2)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 6, eps=0.25), (2,)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(6, eps=0.25, affine=True), (2,)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6, eps=0.25, track_running_stats=False), (0, 2)),
    "RMSNorm": (lambda: nn.RMSNorm((6, 5), eps=0.25), (1, 2)),
}


def curve(case, name):
    """The layer, a point and a direction, the derivatives of the layer along it, and how many eps they may err."""
    if not hasattr(nn, name):
        raise case.unsupported(f"this torch has no {name}")
    make_layer, over = CURVED[name]
    layer, x, v = case.module(make_layer), case.tensor(4, 6, 5), case.tensor(4, 6, 5)
    shape = (4, 2, 15) if name == "GroupNorm" else (4, 6, 5)
    at, along = (array(a).reshape(shape) for a in (x, v))
    weight = array(layer.weight).reshape((6, 5) if layer.weight.ndim == 2 else (6, 1))
    found = reference.derivatives(at, along, over, 0.25, centred=name != "RMSNorm")
    whole = [Rounded(a.value.reshape(4, 6, 5), a.error.reshape(4, 6, 5)) * weight for a in found]
    return layer, x, v, [a.value for a in whole], [a.error for a in whole]


def judge_weighted(case, found, gradients, values, errors):
    """Sums of 120 products each; another order of the operations may err once more as the law's own."""
    g = array(gradients)
    scale = weighted(abs(g), errors) + 120 * weighted(abs(g), abs(values))
    case.close(torch.stack(found), weighted(g, values), k=2, scale=scale)


def weighted(gradients, values):
    return (gradients * values).sum((1, 2, 3))


@claim("norms.common.forward-mode")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("name", CURVED)
def test_forward_mode_carries_the_slope(case, name):
    layer, x, v, along, errors = curve(case, name)
    with forward_ad.dual_level():
        value, slope = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, v)))
    case.same(value, layer(x))
    case.close(slope, along[1], k=2, scale=errors[1])  # in another order it may err once more as the law's own


@claim("norms.common.backward-through-forward-mode")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("name", CURVED)
def test_forward_mode_can_be_differentiated(case, name):
    layer, x, v, along, errors = curve(case, name)
    t, gradients = case.tensor_of(np.zeros(())).requires_grad_(), case.tensor(3, 4, 6, 5)
    with forward_ad.dual_level():
        slope = forward_ad.unpack_dual(layer(forward_ad.make_dual(x + t * v, v))).tangent
        bends = [torch.autograd.grad(slope, t, g, retain_graph=True)[0] for g in gradients]
    judge_weighted(case, bends, gradients, along[2], errors[2])


@claim("norms.common.third-derivative")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("name", CURVED)
def test_a_third_derivative_is_right_or_refused(case, name):
    layer, x, v, along, errors = curve(case, name)
    t, gradients = case.tensor_of(np.zeros(())).requires_grad_(), case.tensor(3, 4, 6, 5)
    found = list((layer(x + t * v) * gradients).sum((1, 2, 3)))
    try:
        for _ in range(3):
            found = [torch.autograd.grad(f, t, create_graph=True)[0] for f in found]
    except RuntimeError as refusal:
        if "does not support 3rd" not in str(refusal):
            raise
    else:
        judge_weighted(case, found, gradients, along[3], errors[3])


BIASED = {
    "batch_norm": lambda x, b: F.batch_norm(x, None, None, None, b, training=True),
    "instance_norm": lambda x, b: F.instance_norm(x, None, None, None, b),
    "layer_norm": lambda x, b: F.layer_norm(x, (4,), None, b),
    "group_norm": lambda x, b: F.group_norm(x, 2, None, b),
}


@claim("norms.common.bias-alone-twice")
@axes(via="eager")
@pytest.mark.parametrize("name", BIASED)
def test_the_gradient_of_a_bias_without_weight_is_differentiable(case, name):
    x, b = case.tensor(3, 4, 4), case.tensor(4, requires_grad=True)
    g = case.tensor(3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(BIASED[name](x, b), b, g, create_graph=True)
    (found,) = torch.autograd.grad(gradient.sum(), g)
    case.same(found, torch.ones_like(found))


@claim("norms.groupnorm.forward-mode-channels-last")
@axes(via="eager")
def test_forward_mode_takes_channels_last(case):
    layer, x, v = case.module(nn.GroupNorm, 2, 4), case.tensor(2, 4, 3, 2), case.tensor(2, 4, 3, 2)
    tangents = []
    for form in (torch.contiguous_format, torch.channels_last):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.contiguous(memory_format=form), v.contiguous(memory_format=form))
            tangents.append(forward_ad.unpack_dual(layer(dual)).tangent)
    # the law's tangent is held elsewhere; two orders of sums over 12 terms, thrice in a formula
    case.close(tangents[1], array(tangents[0]), k=3 * 12, scale=abs(array(tangents[0])) + abs(array(v)))


@claim("norms.normalize.zeros-in-half")
@axes(dtype="float16", via="eager")
def test_normalize_leaves_zeros_in_half_precision(case):
    zeros = torch.zeros_like(case.tensor(2, 3))
    case.same(F.normalize(zeros), zeros)


HALF = {
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "group_norm": lambda x: F.group_norm(x, 2),
    "instance_norm": F.instance_norm,
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
}


@claim("norms.common.half-range")
@axes(dtype="float16", via="eager")
@pytest.mark.parametrize("name", HALF)
def test_a_variance_beyond_the_range_does_no_harm(case, name):
    signs = np.tile([1.0, -1.0], (2, 4, 3))  # of mean 0 and variance 1 in every direction
    case.close(HALF[name](case.tensor_of(400 * signs)), signs, k=2)  # the root's inverse and the product
