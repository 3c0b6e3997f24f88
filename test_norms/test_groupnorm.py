"""GroupNorm: the channels of every sample standardised group by group, alike in train and in eval mode."""

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

SHAPES = [
    ((3, 6), 1),
    ((3, 6), 3),
    ((3, 6, 7), 2),
    ((1, 6, 1), 2),
    ((2, 6, 17), 3),
    ((3, 6, 5), 6),
    ((3, 6, 5, 3), 2),
    ((1, 6, 1, 33), 1),
    ((2, 6, 3, 5, 2), 3),
    ((67, 6, 3), 2),  # many samples, and many places
    ((2, 6, 401), 2),
]


def parameters(layer, channels):
    """Weight and bias of the layer in float64, ones and zeros where it has none."""
    weight = np.ones(channels) if layer.weight is None else array(layer.weight)
    return weight, np.zeros(channels) if layer.bias is None else array(layer.bias)


def judge(case, y, x, layer, groups=None, at=None):
    """The output keeps the law, within the roundings of sums over a group."""
    law = array(x), groups or layer.num_groups, at or layer.eps, *parameters(layer, x.shape[1])
    k = reference.roundings(x[0].numel() // law[1], eps(case.dtype))
    case.close(y, reference.group_norm(*law), k=k, scale=reference.group_norm_magnitude(*law))


def backward(case, layer, x, g):
    """Gradients of x, weight and bias keep the law, within the roundings of the sums behind each."""
    layer(x).backward(g)
    law = array(g), array(x), layer.num_groups, layer.eps, parameters(layer, x.shape[1])[0]
    values, sizes = reference.group_norm_gradients(*law), reference.group_norm_gradients_magnitude(*law)
    k = reference.roundings(x[0].numel() // layer.num_groups, eps(case.dtype))
    rest = reference.roundings(x.numel() // x.shape[1], eps(case.dtype))  # a channel is summed after its group
    case.close(x.grad, values.x, k=2 * k, scale=sizes.x)  # averages of products with the statistics: twice as long
    for name in ("weight", "bias"):
        if (parameter := getattr(layer, name)) is not None:
            case.close(parameter.grad, getattr(values, name), k=k + rest, scale=getattr(sizes, name))


@claim("norms.groupnorm.formula")
@axes(dtype=FLOATING)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_groups_of_neighbouring_channels_are_standardised(case, shape, groups):
    layer, x = case.module(nn.GroupNorm, groups, 6, eps=0.03), case.tensor(*shape, spread=2)
    judge(case, layer(x), x, layer)


@claim("norms.groupnorm.formula")
@axes(dtype=FLOATING, layout=("channels_last", "transposed", "strided", "expanded"))
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(3, 6, 5, 3), (2, 6, 3, 5, 2)], ids=str)
def test_every_memory_layout_is_taken(case, shape, groups):
    layer, x = case.module(nn.GroupNorm, groups, 6, eps=0.03), case.tensor(*shape, spread=2)
    judge(case, layer(x), x, layer)


@claim("norms.groupnorm.formula")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("channels", [1, 3, 8, 17, 32, 33, 65])
def test_any_number_of_channels(case, channels):
    layer, x = case.module(nn.GroupNorm, 1, channels, eps=0.03), case.tensor(2, channels, 2, 1)
    judge(case, layer(x), x, layer)


@claim("norms.groupnorm.eps-inside-the-root")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("at", [1e-9, 1e-5, 0.1, 7.0, 1e4])
def test_eps_is_added_to_the_variance(case, at):
    layer, x = case.module(nn.GroupNorm, 2, 6, eps=at), case.tensor(3, 6, 5, spread=np.sqrt(at))
    judge(case, layer(x), x, layer)


@claim("norms.groupnorm.default-eps")
@pytest.mark.parametrize("form", ["module", "function"])
def test_default_eps_is_1e_5(case, form):
    layer, x = case.module(nn.GroupNorm, 2, 6, affine=False), case.tensor(3, 6, 5, spread=1e-3)
    y = layer(x) if form == "module" else case.function(F.group_norm)(x, 2)
    judge(case, y, x, layer, at=1e-5)


@claim("norms.groupnorm.large-offset")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("shape", [(2, 6, 17), (2, 6, 5, 7), (2, 6, 401)], ids=str)
def test_a_large_mean_costs_no_more_than_its_conditioning(case, shape):
    layer, x = case.module(nn.GroupNorm, 2, 6, eps=1e-3), case.tensor(*shape, loc=1000)
    judge(case, layer(x), x, layer)


@claim("norms.groupnorm.large-offset-channels-last")
@axes(dtype=PRECISE, layout="channels_last")
def test_so_too_in_channels_last(case):
    layer, x = case.module(nn.GroupNorm, 2, 6, eps=1e-3), case.tensor(8, 6, 5, 7, loc=1000)
    judge(case, layer(x), x, layer)


@claim("norms.groupnorm.channels-last-result")
@axes(dtype=PRECISE, layout=("contiguous", "channels_last"))
def test_the_memory_format_stays(case):
    x = case.tensor(2, 6, 5, 7)
    assert case.module(nn.GroupNorm, 2, 6)(x).stride() == x.stride()


@claim("norms.groupnorm.gradients")
@axes(dtype=FLOATING)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_gradients(case, shape, groups):
    layer = case.module(nn.GroupNorm, groups, 6, eps=0.1)
    backward(case, layer, case.tensor(*shape, requires_grad=True), case.tensor(*shape))


@claim("norms.groupnorm.gradients")
@axes(dtype=FLOATING, layout=("channels_last", "strided"))
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(3, 6, 5, 3), (2, 6, 3, 5, 2)], ids=str)
def test_gradients_in_every_memory_layout(case, shape, groups):
    layer = case.module(nn.GroupNorm, groups, 6, eps=0.1)
    backward(case, layer, case.tensor(*shape, requires_grad=True), case.tensor(*shape))


@claim("norms.groupnorm.gradients")
@axes(dtype=FLOATING, layout="channels_last")
@pytest.mark.parametrize("contiguous", ["input", "gradient"])
def test_gradients_laid_out_otherwise_than_the_input(case, contiguous):
    x, g = case.tensor(3, 6, 5, 3), case.tensor(3, 6, 5, 3)
    x, g = (x.contiguous(), g) if contiguous == "input" else (x, g.contiguous())
    backward(case, case.module(nn.GroupNorm, 3, 6, eps=0.1), x.requires_grad_(), g)


@claim("norms.groupnorm.gradients")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("affine", [True, False])
def test_gradients_where_strides_fit_either_layout(case, affine):
    x = case.tensor(1, 7, 6, 1).permute(1, 2, 0, 3).requires_grad_()  # one place a channel
    assert x.is_contiguous(memory_format=torch.channels_last)
    g = case.tensor(7, 6, 1, 1).to(memory_format=torch.channels_last)
    backward(case, case.module(nn.GroupNorm, 2, 6, eps=0.1, affine=affine), x, g)


@claim("norms.groupnorm.formula", "norms.groupnorm.gradients")
@axes(layout=("contiguous", "channels_last"))
def test_every_thread_keeps_the_law(case):
    layer, x = case.module(nn.GroupNorm, 3, 6, eps=0.1), case.tensor(23, 6, 31, 11, requires_grad=True)
    with switched("threads", 2):
        judge(case, layer(x), x, layer)
        backward(case, layer, x, case.tensor(23, 6, 31, 11))


@claim("norms.groupnorm.gradients")
@axes(dtype=FLOATING)
@frozen
def test_what_needs_no_gradient_gets_none(case, frozen):
    layer, g = case.module(nn.GroupNorm, 2, 6, eps=0.1), case.tensor(3, 6, 5)
    x = case.tensor(3, 6, 5, requires_grad=True)
    the_others_keep_theirs(layer, x, g, frozen)


@claim("norms.groupnorm.gradients")
@axes(layout="channels_last")
@pytest.mark.parametrize("frozen", ["weight", "bias", "weight bias"])  # a frozen input is the first layer's, below
def test_what_needs_no_gradient_gets_none_in_channels_last(case, frozen):
    layer, g = case.module(nn.GroupNorm, 2, 6, eps=0.1), case.tensor(3, 6, 5, 2)
    x = case.tensor(3, 6, 5, 2, requires_grad=True)
    the_others_keep_theirs(layer, x, g, frozen)


@claim("norms.groupnorm.first-layer-channels-last")
@axes(layout="channels_last", via="eager")
def test_the_first_layer_trains_in_channels_last(case):
    layer, x, g = case.module(nn.GroupNorm, 2, 6, eps=0.1), case.tensor(3, 6, 5, 2), case.tensor(3, 6, 5, 2)
    with switched("threads", 1):  # of several, a fork has none but its own
        found = case.survived(lambda: torch.autograd.grad(layer(x), (layer.weight, layer.bias), g))
    wanted = torch.autograd.grad(layer(x.requires_grad_()), (layer.weight, layer.bias), g)
    for gradient, beside in zip(found, wanted, strict=True):
        case.same(gradient, beside)


@claim("norms.groupnorm.double-backward")
@axes(dtype=PRECISE)
def test_double_backward(case):
    layer = case.module(nn.GroupNorm, 2, 6, eps=0.5)
    x, g = (case.tensor(2, 6, 3, requires_grad=True) for _ in range(2))
    v = case.tensor(2, 6, 3)
    (slope,) = torch.autograd.grad(layer(x), x, g, create_graph=True)
    found = torch.autograd.grad(slope, (g, x, layer.weight), v)
    at, (weight, bias) = arrays(x, v, g), parameters(layer, 6)
    laws = [
        lambda x: reference.group_norm(x, 2, 0.5, weight, bias),
        lambda x: reference.group_norm_gradients(at[2], x, 2, 0.5, weight).x,
        lambda x: reference.group_norm_gradients(at[2], x, 2, 0.5, weight).weight,
    ]
    for actual, law in zip(found, laws, strict=True):  # the size of a derivative of sums: its largest element
        expected = reference.along(law, at[0], at[1])
        case.close(actual, expected, k=4 * 9 + 8, scale=abs(expected).max())


@claim("norms.groupnorm.affine")
@axes(dtype=FLOATING)
def test_without_weight_and_bias(case):
    layer, x = case.module(nn.GroupNorm, 2, 6, eps=0.3, affine=False), case.tensor(3, 6, 5)
    assert not layer.state_dict()
    assert (layer.weight, layer.bias) == (None, None)
    judge(case, layer(x), x, layer)


@claim("norms.groupnorm.affine")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("given", ["weight", "bias"])
def test_functional_form_takes_either_alone(case, given):
    layer, x = case.module(nn.GroupNorm, 2, 6, eps=0.3), case.tensor(3, 6, 5, 2)
    keep = {name: getattr(layer, name) if name == given else None for name in ("weight", "bias")}
    y = case.function(F.group_norm)(x, 2, keep["weight"], keep["bias"], 0.3)
    layer.weight, layer.bias = keep["weight"], keep["bias"]
    judge(case, y, x, layer)


@claim("norms.groupnorm.affine")
@axes(dtype=PRECISE, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_either_alone_is_trained(case, missing):
    layer = case.module(nn.GroupNorm, 2, 6, eps=0.3)
    setattr(layer, missing, None)
    backward(case, layer, case.tensor(3, 6, 5, 2, requires_grad=True), case.tensor(3, 6, 5, 2))


@claim("norms.groupnorm.bias-off")
@axes(dtype=PRECISE)
def test_bias_false_keeps_only_the_weight(case):
    layer, x = case.module(nn.GroupNorm, 2, 6, eps=0.3, bias=False), case.tensor(3, 6, 5, requires_grad=True)
    assert list(layer.state_dict()) == ["weight"]
    judge(case, layer(x), x, layer)
    backward(case, layer, x, case.tensor(3, 6, 5))


@claim("norms.groupnorm.start")
def test_starts_as_the_plain_standardisation(case):
    layer = nn.GroupNorm(2, 6, device=case.device)
    assert torch.equal(layer.weight, torch.ones(6, device=case.device))
    assert torch.equal(layer.bias, torch.zeros(6, device=case.device))
    assert layer.weight.requires_grad
    assert layer.bias.requires_grad
    assert (layer.num_groups, layer.num_channels, layer.eps, layer.affine) == (2, 6, 1e-5, True)


@claim("norms.groupnorm.one-group-is-layernorm")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 6, 5, 2)], ids=str)
def test_one_group_standardises_like_layernorm(case, shape):
    x = case.tensor(*shape)
    layer = case.module(nn.LayerNorm, shape[1:], eps=0.3, elementwise_affine=False)
    group = case.module(nn.GroupNorm, 1, 6, eps=0.3, affine=False)
    judge(case, layer(x), x, group)
    judge(case, group(x), x, group)
    assert nn.GroupNorm(1, 6).weight.shape == (6,) != nn.LayerNorm(shape[1:]).weight.shape


@claim("norms.groupnorm.a-group-each-is-instancenorm")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d])
def test_a_group_for_each_channel_standardises_like_instancenorm(case, cls):
    x = case.tensor(3, 6, *(5, 2, 3)[: int(cls.__name__[-2])])
    judge(case, case.module(cls, 6, eps=0.3)(x), x, case.module(nn.GroupNorm, 6, 6, eps=0.3, affine=False))
    layer = case.module(nn.GroupNorm, 6, 6, eps=0.3)
    judge(case, layer(x), x, layer)


@claim("norms.groupnorm.small-batch")
@axes(dtype=PRECISE)
def test_a_batch_of_one_and_of_many_are_treated_alike(case):
    layer, x = case.module(nn.GroupNorm, 3, 6, eps=0.3), case.tensor(64, 6, 5)
    judge(case, layer(x), x, layer)
    judge(case, layer(x[:1]), x[:1], layer)
    batchnorm = case.module(nn.BatchNorm1d, 6)
    assert not np.allclose(array(batchnorm(x[:1])), array(batchnorm(x))[:1], atol=1e-2)


@claim("norms.groupnorm.divisibility")
@pytest.mark.parametrize("groups", [4, 5, 12, 0])
def test_channels_that_do_not_divide_are_refused(case, groups):
    with case.raises(ValueError, "must be divisible"):
        nn.GroupNorm(groups, 6)


@claim("norms.groupnorm.functional-divisibility")
@pytest.mark.parametrize("groups", [4, 5, 12, 0, -1])
def test_the_function_refuses_channels_that_do_not_divide(case, groups):
    with case.raises(RuntimeError, "divisible|greater than 0"):
        case.function(F.group_norm)(case.tensor(2, 6, 5), groups)


@claim("norms.groupnorm.single-value")
@pytest.mark.parametrize("training", [True, False])
def test_a_lone_value_per_group_is_refused_in_a_batch_of_one(case, training):
    layer = case.module(nn.GroupNorm, 6, 6).train(training)
    with case.raises(ValueError, "more than 1 value per channel"):
        layer(case.tensor(1, 6))
    x = case.tensor(2, 6)
    judge(case, layer(x), x, layer)


@claim("norms.groupnorm.shape-error")
def test_other_channels_are_refused(case):
    layer = case.module(nn.GroupNorm, 2, 6)
    with case.raises(RuntimeError, "weight|channels"):
        layer(case.tensor(3, 8, 5))


@claim("norms.groupnorm.rank-error")
def test_a_vector_is_refused(case):
    with case.raises(RuntimeError, "at least 2 dim"):
        case.module(nn.GroupNorm, 2, 6)(case.tensor(6))


@claim("norms.groupnorm.mixed-dtypes")
@axes(dtype=REDUCED, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("shape", [(3, 6, 17), (3, 6, 5, 3)], ids=str)
def test_reduced_input_with_float32_parameters(case, shape):
    layer, x = case.module(nn.GroupNorm, 2, 6, eps=0.3).float(), case.tensor(*shape, requires_grad=True)
    y = layer(x)
    assert y.dtype == case.dtype
    judge(case, y, x, layer)
    backward(case, layer, x, case.tensor(*x.shape))
    assert (x.grad.dtype, layer.weight.grad.dtype, layer.bias.grad.dtype) == (case.dtype, torch.float32, torch.float32)


@claim("norms.groupnorm.no-elements")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("shape", [(0, 6, 5), (0, 6)], ids=str)
def test_an_empty_batch_gives_an_empty_result(case, shape):
    layer, x = case.module(nn.GroupNorm, 2, 6), case.tensor(*shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert not layer.weight.grad.any()
    assert not layer.bias.grad.any()


@claim("norms.groupnorm.no-positions")
@pytest.mark.parametrize("shape", [(2, 6, 0), (2, 6, 3, 0)], ids=str)
def test_an_input_without_positions(case, shape):
    layer, x = case.module(nn.GroupNorm, 2, 6), case.tensor(*shape, requires_grad=True)
    try:
        y = layer(x)
    except RuntimeError as refusal:
        if "greater than 0" not in str(refusal):
            raise
        return
    y.sum().backward()
    case.same(layer.weight.grad, torch.zeros_like(layer.weight))
    case.same(layer.bias.grad, torch.zeros_like(layer.bias))
