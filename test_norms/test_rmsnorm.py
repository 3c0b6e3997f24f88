"""RMSNorm: every sample divided by its root mean square over its last dimensions; nothing is subtracted."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import norms as reference
from torch_conformance.axes import FLOATING, PRECISE
from torch_conformance.checks import array, arrays, eps
from torch_conformance.marks import axes, claim

SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 129, 1101]
SHAPES = [(5,), (3, 5), (4, 3, 5), (1, 1)]


def make(case, *args, **kwargs):
    return case.module(nn.RMSNorm, *args, **kwargs)


def judge(case, y, x, shape, at, weight=None):
    """The output keeps the law, within the roundings of sums over the normalised shape."""
    size, weight = int(np.prod(shape)), np.ones(shape) if weight is None else array(weight)
    scale = reference.magnitude(array(x), reference.last(len(shape)), at, centred=False) * abs(weight)
    expected = reference.rms_norm(array(x), len(shape), at, weight)
    case.close(y, expected, k=reference.roundings(size, eps(case.dtype)), scale=scale)


def backward(case, layer, x, g, shape):
    """Gradients of x and weight keep the law, within the roundings of the sums behind each."""
    layer(x).backward(g)
    size = int(np.prod(shape))
    weight = np.ones(shape) if layer.weight is None else array(layer.weight)
    law = array(g), array(x), len(shape), layer.eps, weight
    values, sizes = reference.rms_norm_gradients(*law), reference.rms_norm_gradients_magnitude(*law)
    k = reference.roundings(size, eps(case.dtype))
    rows = reference.roundings(x.numel() // size, eps(case.dtype))
    case.close(x.grad, values[0], k=2 * k, scale=sizes[0])  # an average of products with the root: twice as long
    if layer.weight is not None:  # its sums over the batch follow those over a row
        case.close(layer.weight.grad, values[1], k=k + rows, scale=sizes[1])


@claim("norms.rmsnorm.formula")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("size", SIZES)
def test_last_dimension_is_divided_by_its_rms(case, size):
    layer, x = make(case, size, eps=0.03), case.tensor(3, size, loc=1, spread=2)
    judge(case, layer(x), x, (size,), 0.03, layer.weight)


@claim("norms.rmsnorm.formula")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided", "channels_last", "expanded"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_dimensions_is_divided(case, shape):
    layer, x = make(case, shape, eps=0.03), case.tensor(3, 2, *shape, loc=1)
    judge(case, layer(x), x, shape, 0.03, layer.weight)


@claim("norms.rmsnorm.no-centring")
def test_an_offset_is_not_removed(case):
    x = case.tensor(5, 17, loc=10)
    y = array(nn.RMSNorm(17, eps=1e-6, device=case.device)(x))
    assert (y > 0.5).all()  # ten standard deviations above zero, and so it stays


@claim("norms.rmsnorm.no-bias")
def test_there_is_no_bias(case):
    layer = nn.RMSNorm((3, 5), device=case.device)
    assert list(layer.state_dict()) == ["weight"]
    assert torch.equal(layer.weight, torch.ones(3, 5, device=case.device))
    assert not layer(torch.zeros(2, 3, 5, device=case.device)).any()


@claim("norms.rmsnorm.eps-inside-the-root")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("at", [0.0, 1e-9, 1e-5, 0.1, 7.0, 1e4])
def test_eps_is_added_to_the_mean_square(case, at):
    layer, x = make(case, 17, eps=at), case.tensor(5, 17, spread=np.sqrt(max(at, 1e-9)))
    judge(case, layer(x), x, (17,), at, layer.weight)


@claim("norms.rmsnorm.default-eps")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("form", ["module", "function"])
def test_default_eps_is_that_of_the_dtype(case, form):
    at = eps(case.dtype)
    x = case.tensor(5, 17, spread=np.sqrt(at))
    layer = make(case, 17, elementwise_affine=False)
    y = layer(x) if form == "module" else case.function(F.rms_norm)(x, (17,))
    judge(case, y, x, (17,), at)


@claim("norms.rmsnorm.default-eps-reduced")
@axes(dtype=("bfloat16", "float16"))
def test_default_eps_of_reduced_dtypes_is_that_of_float32(case):
    x = case.tensor(5, 17, spread=2**-10)
    y = make(case, 17, elementwise_affine=False)(x)
    judge(case, y, x, (17,), 2.0**-23)


@claim("norms.rmsnorm.default-eps-reduced-before")
@axes(dtype=("bfloat16", "float16"))
def test_default_eps_of_reduced_dtypes_was_their_own(case):
    x = case.tensor(5, 17, spread=2**-6)
    y = make(case, 17, elementwise_affine=False)(x)
    judge(case, y, x, (17,), eps(case.dtype))


@claim("norms.rmsnorm.gradients")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (5, 8), (5, 17), (5, 33), (5, 65), (131, 3), (3, 1101)], ids=str)
def test_gradients(case, shape):
    x = case.tensor(*shape, requires_grad=True)
    backward(case, make(case, shape[1], eps=0.1), x, case.tensor(*shape), shape[1:])


@claim("norms.rmsnorm.gradients")
@axes(dtype=PRECISE, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_over_many_dimensions(case, shape):
    x = case.tensor(3, 2, *shape, requires_grad=True)
    backward(case, make(case, shape, eps=0.1), x, case.tensor(3, 2, *shape), shape)


@claim("norms.rmsnorm.double-backward")
@axes(dtype=PRECISE)
def test_double_backward(case):
    layer = make(case, 7, eps=0.5)
    x, g = (case.tensor(4, 7, requires_grad=True) for _ in range(2))
    v = case.tensor(4, 7)
    (slope,) = torch.autograd.grad(layer(x), x, g, create_graph=True)
    found = torch.autograd.grad(slope, (g, x, layer.weight), v)
    at, weight = arrays(x, v, g), array(layer.weight)
    laws = [
        lambda x: reference.rms_norm(x, 1, 0.5, weight),
        lambda x: reference.rms_norm_gradients(at[2], x, 1, 0.5, weight)[0],
        lambda x: reference.rms_norm_gradients(at[2], x, 1, 0.5, weight)[1],
    ]
    for actual, law in zip(found, laws, strict=True):  # the size of a derivative of sums: its largest element
        expected = reference.along(law, at[0], at[1])
        case.close(actual, expected, k=4 * 7 + 8, scale=abs(expected).max())


@claim("norms.rmsnorm.affine")
@axes(dtype=FLOATING)
def test_without_weight(case):
    layer, x = make(case, (3, 17), eps=0.3, elementwise_affine=False), case.tensor(4, 3, 17, requires_grad=True)
    assert layer.weight is None
    assert not layer.state_dict()
    judge(case, layer(x), x, (3, 17), 0.3)
    backward(case, layer, x, case.tensor(4, 3, 17), (3, 17))


@claim("norms.rmsnorm.shape-error")
@pytest.mark.parametrize("shape", [(4, 6), (6,)], ids=str)
def test_another_shape_is_refused(case, shape):
    layer = make(case, 5)
    with case.raises(RuntimeError, r"normalized_shape=\[5\]"):
        layer(case.tensor(*shape))


@claim("norms.rmsnorm.no-elements")
def test_an_empty_batch_gives_an_empty_result(case):
    layer, x = make(case, 5), case.tensor(0, 5, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 5)
    assert not layer.weight.grad.any()


@claim("norms.rmsnorm.half-range")
@axes(dtype="float16", via="eager")
def test_squares_beyond_the_range_do_no_harm(case):
    found = F.rms_norm(torch.full_like(case.tensor(3, 4), 400.0), (4,))
    case.close(found, np.ones((3, 4)), k=2)
