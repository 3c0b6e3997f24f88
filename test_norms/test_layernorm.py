"""LayerNorm: every sample standardised over its last dimensions, alike in train and in eval mode."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import norms as reference
from test_norms.freezing import frozen, the_others_keep_theirs
from torch_conformance.axes import FLOATING, PRECISE, REDUCED
from torch_conformance.checks import array, arrays, eps
from torch_conformance.marks import axes, claim
from torch_conformance.switches import switched

SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 129, 1101]
SHAPES = [(5,), (3, 5), (4, 3, 5), (1, 1), (2, 3, 1, 5)]


def parameters(layer, *missing):
    """Weight and bias of the layer in float64, ones and zeros where it has none."""
    shape = tuple(layer.normalized_shape)
    weight = np.ones(shape) if layer.weight is None else array(layer.weight)
    return weight, np.zeros(shape) if getattr(layer, "bias", None) is None else array(layer.bias)


def judge(case, y, x, layer, dtype=None):
    """The output keeps the law, within the roundings of sums over the normalised shape."""
    dims = len(layer.normalized_shape)
    law = array(x), dims, layer.eps, *parameters(layer)
    k = reference.roundings(int(np.prod(layer.normalized_shape)), eps(dtype or case.dtype))
    case.close(y, reference.layer_norm(*law), k=k, scale=reference.layer_norm_magnitude(*law))


def backward(case, layer, x, g):
    """Gradients of x, weight and bias keep the law, within the roundings of the sums behind each."""
    layer(x).backward(g)
    dims, size = len(layer.normalized_shape), int(np.prod(layer.normalized_shape))
    law = array(g), array(x), dims, layer.eps, parameters(layer)[0]
    values, sizes = reference.layer_norm_gradients(*law), reference.layer_norm_gradients_magnitude(*law)
    k = reference.roundings(size, eps(case.dtype))
    rows = reference.roundings(x.numel() // size, eps(case.dtype))  # the sums over the batch follow those over a row
    case.close(x.grad, values.x, k=2 * k, scale=sizes.x)  # averages of products with the statistics: twice as long
    for name in ("weight", "bias"):
        if (parameter := getattr(layer, name, None)) is not None:
            gradient = parameter.grad.to(x.dtype)  # float32 parameters of reduced inputs get it rounded like the input
            case.close(gradient, getattr(values, name), k=k + rows, scale=getattr(sizes, name))


@claim("norms.layernorm.formula")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("size", SIZES)
def test_last_dimension_is_standardised(case, size):
    layer, x = case.module(nn.LayerNorm, size, eps=0.03), case.tensor(3, size, spread=2)
    judge(case, layer(x), x, layer)


@claim("norms.layernorm.formula")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided", "channels_last", "expanded"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_dimensions_is_standardised(case, shape):
    layer, x = case.module(nn.LayerNorm, shape, eps=0.03), case.tensor(3, 2, *shape, spread=2)
    judge(case, layer(x), x, layer)


@claim("norms.layernorm.rows-and-columns")
def test_rows_of_layernorm_have_mean_zero_columns_of_batchnorm(case):
    x = case.tensor(6, 17, loc=3)
    rows, columns = array(nn.LayerNorm(17, device=case.device)(x)), array(nn.BatchNorm1d(17, device=case.device)(x))
    assert abs(rows.mean(1)).max() < 1e-5 < 1e-3 < abs(rows.mean(0)).max()  # means of rounded deviations: 1e-6
    assert abs(columns.mean(0)).max() < 1e-5 < 1e-3 < abs(columns.mean(1)).max()


@claim("norms.layernorm.no-batch-needed")
@axes(dtype=FLOATING)
def test_a_lone_sample_needs_no_batch(case):
    layer, x = case.module(nn.LayerNorm, (3, 5), eps=0.3), case.tensor(3, 5)
    judge(case, layer(x), x, layer)


@claim("norms.layernorm.eps-inside-the-root")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("at", [1e-9, 1e-5, 0.1, 7.0, 1e4])
def test_eps_is_added_to_the_variance(case, at):
    layer, x = case.module(nn.LayerNorm, 17, eps=at), case.tensor(5, 17, spread=np.sqrt(at))
    judge(case, layer(x), x, layer)


@claim("norms.layernorm.default-eps")
@pytest.mark.parametrize("make", [nn.LayerNorm, lambda n: lambda x: F.layer_norm(x, (n,))], ids=["module", "function"])
def test_default_eps_is_1e_5(case, make):
    x = case.tensor(5, 17, spread=1e-3)
    law = array(x), 1, 1e-5, np.ones(17), np.zeros(17)
    scale = reference.layer_norm_magnitude(*law)
    case.close(make(17)(x.cpu()), reference.layer_norm(*law), k=reference.roundings(17, eps(x.dtype)), scale=scale)


@claim("norms.layernorm.large-offset")
@axes(dtype=PRECISE, layout=("contiguous", "strided"))
@pytest.mark.parametrize("size", [17, 64, 129, 1101])
def test_a_large_mean_costs_no_more_than_its_conditioning(case, size):
    layer, x = case.module(nn.LayerNorm, size, eps=1e-3), case.tensor(3, size, loc=1000)
    judge(case, layer(x), x, layer)


@claim("norms.layernorm.one-element")
@axes(dtype=FLOATING)
def test_a_row_of_one_element_gives_the_bias(case):
    layer = case.module(nn.LayerNorm, 1)
    y = layer(case.tensor_of([[1e4 / 3], [1e5 / 7]]))
    y.backward(case.tensor(2, 1))
    case.same(layer.weight.grad, torch.zeros_like(layer.weight))
    case.same(y, layer.bias.expand(2, 1))


@claim("norms.layernorm.constant-row")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("size", [1, 4, 16])
def test_a_constant_row_gives_the_bias(case, size):
    layer = case.module(nn.LayerNorm, size, eps=0.3)
    y = layer(case.tensor_of(np.full((3, size), 1.75)))  # its sums are exact, so that the deviation is 0
    case.close(y, np.tile(array(layer.bias), (3, 1)), k=1, scale=1.75 / 0.3**0.5 * abs(array(layer.weight)))


@claim("norms.layernorm.great-constant-row")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("size", [4, 19])
def test_a_great_constant_row_gives_the_bias(case, size):
    layer = case.module(nn.LayerNorm, size, eps=0.3)
    y = layer(case.tensor_of(np.full((3, size), 1000.0)))  # its sums are exact, so that the deviation is 0
    case.same(y, layer.bias.expand(3, size))


@claim("norms.layernorm.long-constant-row")
@axes(dtype="bfloat16", via="eager")
def test_a_long_constant_row_gives_zeros(case):
    layer = case.module(nn.LayerNorm, 1024, eps=0.3, elementwise_affine=False)
    y = layer(torch.full_like(case.tensor(3, 1024), 1.75))  # its sums are exact in float32
    # two products of float32, which keeps 16 bits more, and their difference
    case.close(y, np.zeros((3, 1024)), k=2, scale=2.0**-16 * 1.75 / 0.3**0.5)


@claim("norms.layernorm.gradients")
@axes(dtype=FLOATING)
@pytest.mark.parametrize(
    "shape", [(5, 1), (1, 3), (5, 8), (1, 17), (5, 17), (5, 33), (1, 64), (5, 65), (131, 3), (3, 1101)], ids=str
)
def test_gradients(case, shape):
    layer = case.module(nn.LayerNorm, shape[1], eps=0.1)
    backward(case, layer, case.tensor(*shape, requires_grad=True), case.tensor(*shape))


@claim("norms.layernorm.formula", "norms.layernorm.gradients")
@axes(dtype=FLOATING)
def test_transposed_matrices_are_standardised(case):
    layer, x = case.module(nn.LayerNorm, (5, 7), eps=0.1), case.tensor(4, 7, 5).mT.requires_grad_()
    judge(case, layer(x), x, layer)
    backward(case, layer, x, case.tensor(4, 7, 5).mT)


@claim("norms.layernorm.formula", "norms.layernorm.gradients")
@axes(dtype=("float32", "bfloat16"))
def test_every_thread_keeps_the_law(case):
    layer, x = case.module(nn.LayerNorm, 67, eps=0.1), case.tensor(601, 67, requires_grad=True)
    with switched("threads", 2):
        judge(case, layer(x), x, layer)
        backward(case, layer, x, case.tensor(601, 67))


@claim("norms.layernorm.gradients")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided", "channels_last"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_over_many_dimensions(case, shape):
    layer = case.module(nn.LayerNorm, shape, eps=0.1)
    backward(case, layer, case.tensor(3, 2, *shape, requires_grad=True), case.tensor(3, 2, *shape))


@claim("norms.layernorm.gradients")
@axes(dtype=FLOATING)
@frozen
def test_what_needs_no_gradient_gets_none(case, frozen):
    layer, g = case.module(nn.LayerNorm, 7, eps=0.1), case.tensor(5, 7)
    x = case.tensor(5, 7, requires_grad=True)
    the_others_keep_theirs(layer, x, g, frozen)


@claim("norms.layernorm.double-backward")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("shape", [(7,), (3, 5)], ids=str)
def test_double_backward(case, shape):
    layer = case.module(nn.LayerNorm, shape, eps=0.5)
    x, g = (case.tensor(4, *shape, requires_grad=True) for _ in range(2))
    v = case.tensor(4, *shape)
    (slope,) = torch.autograd.grad(layer(x), x, g, create_graph=True)
    found = torch.autograd.grad(slope, (g, x, layer.weight), v)
    at, weight = arrays(x, v, g), parameters(layer)[0]
    laws = [
        lambda x: reference.layer_norm(x, len(shape), 0.5, weight, 0.0),
        lambda x: reference.layer_norm_gradients(at[2], x, len(shape), 0.5, weight).x,
        lambda x: reference.layer_norm_gradients(at[2], x, len(shape), 0.5, weight).weight,
    ]
    for actual, law in zip(found, laws, strict=True):  # the size of a derivative of sums: its largest element
        expected = reference.along(law, at[0], at[1])
        case.close(actual, expected, k=4 * 15 + 8, scale=abs(expected).max())


@claim("norms.layernorm.affine")
@axes(dtype=FLOATING)
def test_without_weight_and_bias(case):
    layer = case.module(nn.LayerNorm, (3, 5), eps=0.3, elementwise_affine=False)
    x, g = case.tensor(4, 3, 5, requires_grad=True), case.tensor(4, 3, 5)
    assert dict(layer.state_dict()) == {}
    assert (layer.weight, layer.bias) == (None, None)
    judge(case, layer(x), x, layer)
    backward(case, layer, x, g)


@claim("norms.layernorm.affine")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("given", ["weight", "bias", ""])
def test_functional_form_takes_either_alone(case, given):
    layer, x = case.module(nn.LayerNorm, 17, eps=0.3), case.tensor(4, 17)
    keep = {name: getattr(layer, name) if name == given else None for name in ("weight", "bias")}
    y = case.function(F.layer_norm)(x, (17,), keep["weight"], keep["bias"], 0.3)
    layer.weight, layer.bias = keep["weight"], keep["bias"]
    judge(case, y, x, layer)


@claim("norms.layernorm.bias-off")
@axes(dtype=PRECISE)
def test_bias_false_keeps_only_the_weight(case):
    layer, x = case.module(nn.LayerNorm, 17, eps=0.3, bias=False), case.tensor(4, 17, requires_grad=True)
    assert list(layer.state_dict()) == ["weight"]
    judge(case, layer(x), x, layer)
    backward(case, layer, x, case.tensor(4, 17))


@claim("norms.layernorm.start")
@pytest.mark.parametrize("shape", [7, (3, 5)], ids=str)
def test_starts_as_the_plain_standardisation(case, shape):
    layer = nn.LayerNorm(shape, device=case.device)
    full = torch.Size([shape] if isinstance(shape, int) else shape)
    assert torch.equal(layer.weight, torch.ones(full, device=case.device))
    assert torch.equal(layer.bias, torch.zeros(full, device=case.device))
    assert layer.weight.requires_grad
    assert layer.bias.requires_grad


@claim("norms.layernorm.integer-shape")
@pytest.mark.parametrize("shape", [5, [5], (5,), torch.Size([5])], ids=str)
def test_an_integer_means_the_last_dimension(case, shape):
    layer, x = case.module(nn.LayerNorm, shape, eps=0.3), case.tensor(2, 3, 5)
    assert tuple(layer.normalized_shape) == (5,)
    judge(case, layer(x), x, layer)


@claim("norms.layernorm.shape-error")
@pytest.mark.parametrize("shape", [(4, 6), (5, 4), (6,), ()], ids=str)
def test_another_shape_is_refused(case, shape):
    layer = case.module(nn.LayerNorm, 5)
    with case.raises((RuntimeError, IndexError), r"normalized_shape=\[5\]|dimension"):
        layer(case.tensor(*shape))


@claim("norms.layernorm.mixed-dtypes")
@axes(dtype=REDUCED)
@pytest.mark.parametrize("size", [7, 33])
def test_reduced_input_with_float32_parameters(case, size):
    layer, x = case.module(nn.LayerNorm, size, eps=0.3).float(), case.tensor(3, size, requires_grad=True)
    y = layer(x)
    assert y.dtype == case.dtype
    judge(case, y, x, layer)
    backward(case, layer, x, case.tensor(*x.shape))
    assert (x.grad.dtype, layer.weight.grad.dtype, layer.bias.grad.dtype) == (case.dtype, torch.float32, torch.float32)


@claim("norms.layernorm.no-elements")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)], ids=str)
def test_an_empty_batch_gives_an_empty_result(case, shape):
    layer, x = case.module(nn.LayerNorm, 5), case.tensor(*shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert not layer.weight.grad.any()
    assert not layer.bias.grad.any()
