"""Linear, Bilinear and Identity: affine maps of the last dimension."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import linear as reference
from test_norms.freezing import frozen, the_others_keep_theirs
from torch_conformance.axes import FLOATING, PRECISE, REDUCED, UNBATCHED
from torch_conformance.checks import array, arrays, eps
from torch_conformance.marks import axes, claim

SIZES = [(1, 1), (3, 7), (8, 16), (17, 5), (33, 31), (65, 2), (129, 3), (1031, 3)]
LEADING = [(), (1,), (4,), (2, 3), (2, 1, 3), (2, 2, 1, 3), (67,)]


def roundings(case, terms):
    """n products and n sums, half an eps each; reduced dtypes add up in float32, round, and add the bias."""
    return 1 + terms * min(1.0, 2.0**-23 / eps(case.dtype))


def parameters(layer):
    return array(layer.weight), 0.0 if layer.bias is None else array(layer.bias)


def judge(case, y, x, layer):
    """The output keeps the law, within the roundings of a sum over the input features."""
    weight, bias = parameters(layer)
    scale = reference.linear(abs(array(x)), abs(weight), abs(bias))
    case.close(y, reference.linear(array(x), weight, bias), k=roundings(case, x.shape[-1]), scale=scale)


def judge_gradients(case, g, x, layer):
    """The gradients keep the law, within the roundings of the sums behind each."""
    weight, rows = array(layer.weight), max(1, x.numel() // x.shape[-1])
    values = reference.linear_gradients(array(g), array(x), weight)
    sizes = reference.linear_gradients(abs(array(g)), abs(array(x)), abs(weight))
    case.close(x.grad, values[0], k=roundings(case, g.shape[-1]), scale=sizes[0])
    case.close(layer.weight.grad, values[1], k=roundings(case, rows), scale=sizes[1])
    if layer.bias is not None:
        case.close(layer.bias.grad, values[2], k=roundings(case, rows), scale=sizes[2])


@claim("linear.linear.formula")
@axes(dtype=PRECISE)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_multiplies_by_the_transposed_weight_and_adds_the_bias(case, inputs, outputs, bias):
    layer, x = case.module(nn.Linear, inputs, outputs, bias=bias), case.tensor(5, inputs)
    judge(case, layer(x), x, layer)


@claim("linear.linear.formula")
@axes(dtype=PRECISE, layout=("transposed", "strided", "expanded", "channels_last"))
@pytest.mark.parametrize("leading", [(4,), (2, 3), (2, 2, 3)], ids=str)
def test_every_memory_layout_is_taken(case, leading):
    for outputs in (5, 17):
        layer, x = case.module(nn.Linear, 17, outputs), case.tensor(*leading, 17)
        layer.weight = nn.Parameter(case.tensor(outputs, 17))
        judge(case, layer(x), x, layer)


@claim("linear.linear.formula")
@axes(dtype=REDUCED, layout=("contiguous", "transposed", "strided", "expanded"))
@pytest.mark.parametrize("rows", [4, 67])
def test_every_memory_layout_is_taken_in_low_precision(case, rows):
    """Of whole numbers, whose sums are exact even where every step is rounded, as up to 2.0."""
    layer = case.module(nn.Linear, 17, 5)
    x, weight, bias = (case.tensor_of(case.rng.integers(-3, 4, shape)) for shape in ((rows, 17), (5, 17), 5))
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    judge(case, layer(x), x, layer)


@claim("linear.linear.weight-layout")
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_weight_is_out_by_in(case, inputs, outputs):
    layer = nn.Linear(inputs, outputs)
    assert layer.weight.shape == (outputs, inputs)
    assert layer.bias.shape == (outputs,)
    assert (layer.in_features, layer.out_features) == (inputs, outputs)


@claim("linear.linear.leading-dimensions")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_any_leading_dimensions_and_none(case, leading):
    layer, x = case.module(nn.Linear, 7, 3), case.tensor(*leading, 7)
    y = layer(x)
    assert y.shape == (*leading, 3)
    judge(case, y, x, layer)


@claim("linear.linear.leading-dimensions")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3)], ids=str)
def test_an_empty_batch_gives_an_empty_result(case, leading, bias):
    layer, x = case.module(nn.Linear, 7, 3, bias=bias), case.tensor(*leading, 7, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (*leading, 3)
    assert x.grad.shape == x.shape
    assert not any(p.grad.any() for p in layer.parameters())


@claim("linear.linear.sparse-weight")
@axes(dtype=PRECISE)
def test_a_sparse_weight_does_as_its_dense_form(case):
    x, weight = case.tensor(4, 7), case.tensor(5, 7).relu()
    size = abs(array(x)) @ array(weight).T
    case.close(F.linear(x, weight.to_sparse()), array(x) @ array(weight).T, k=7, scale=size)  # at most seven products


@claim("linear.linear.zero-features")
def test_no_input_features_give_the_bias(case):
    with pytest.warns(UserWarning, match="zero-element"):
        layer = nn.Linear(0, 3, device=case.device)
    with torch.no_grad():
        layer.bias.copy_(case.tensor(3))
    case.same(layer(case.tensor(4, 0)), layer.bias.detach().expand(4, 3))


@claim("linear.linear.transposed-view")
def test_the_weight_is_transposed_when_computing(case):
    layer, x = case.module(nn.Linear, 7, 3), case.tensor(4, 7)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    assert weight.t().data_ptr() == weight.data_ptr()
    with case.unchanged(layer, x=x):
        judge(case, layer(x), x, layer)
    for y in (x.matmul(weight.t()) + bias, torch.addmm(bias, x, weight.t())):
        judge(case, y, x, layer)


@claim("linear.linear.calls-functional")
@axes(dtype=FLOATING, via=UNBATCHED)  # vmap gives the function many weights
@pytest.mark.parametrize("bias", [True, False])
def test_module_and_function_agree_bit_by_bit(case, bias):
    layer, x = case.module(nn.Linear, 7, 3, bias=bias), case.tensor(2, 4, 7)
    case.same(layer(x), case.function(F.linear)(x, layer.weight, layer.bias))


@claim("linear.linear.bias-false")
def test_bias_false_registers_none(case):
    layer = nn.Linear(7, 3, bias=False)
    assert layer.bias is None
    assert list(layer.state_dict()) == ["weight"] == [name for name, _ in layer.named_parameters()]
    assert "bias" in layer._parameters


@claim("linear.linear.gradients")
@axes(dtype=PRECISE)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients(case, inputs, outputs, bias):
    layer = case.module(nn.Linear, inputs, outputs, bias=bias)
    x, g = case.tensor(5, inputs, requires_grad=True), case.tensor(5, outputs)
    layer(x).backward(g)
    judge_gradients(case, g, x, layer)


@claim("linear.linear.gradients")
@axes(dtype=PRECISE, layout=("contiguous", "transposed"))
@pytest.mark.parametrize("leading", [(), (2, 3), (2, 2, 1, 3), (131,)], ids=str)
def test_gradients_sum_over_all_leading_dimensions(case, leading):
    layer = case.module(nn.Linear, 7, 3)
    x, g = case.tensor(*leading, 7, requires_grad=True), case.tensor(*leading, 3)
    layer(x).backward(g)
    judge_gradients(case, g, x, layer)


@claim("linear.linear.formula", "linear.linear.gradients")
def test_many_rows_keep_the_law(case):
    layer, x, g = case.module(nn.Linear, 67, 37), case.tensor(601, 67, requires_grad=True), case.tensor(601, 37)
    y = layer(x)
    y.backward(g)
    judge(case, y, x, layer)
    judge_gradients(case, g, x, layer)


@claim("linear.linear.gradients")
@frozen
def test_what_needs_no_gradient_gets_none(case, frozen):
    layer, x, g = case.module(nn.Linear, 7, 3), case.tensor(4, 7, requires_grad=True), case.tensor(4, 3)
    the_others_keep_theirs(layer, x, g, frozen)


@claim("linear.linear.sums-in-float32")
@axes(dtype=REDUCED)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_reduced_dtypes_add_up_in_float32(case, inputs, outputs, bias):
    layer = case.module(nn.Linear, inputs, outputs, bias=bias)
    x, g = case.tensor(2, 3, inputs, requires_grad=True), case.tensor(2, 3, outputs)
    y = layer(x)
    judge(case, y, x, layer)
    y.backward(g)
    judge_gradients(case, g, x, layer)


@claim("linear.linear.sums-in-float32")
@axes(dtype=REDUCED)
def test_every_feature_counts(case):
    features = int(4 / eps(case.dtype))  # as below
    y = F.linear(*(case.tensor_of(np.ones((rows, features))) for rows in (3, 2)))
    case.same(y, torch.full_like(y, features))


@claim("linear.linear.counts-every-row")
@axes(dtype=REDUCED)
def test_gradients_count_every_row(case):
    rows = int(4 / eps(case.dtype))  # a sum of ones would stop at half of that; more in bfloat16 might go to oneDNN
    layer = case.module(nn.Linear, 3, 2)
    layer(case.tensor_of(np.ones((rows, 3)))).sum().backward()
    case.same(layer.weight.grad, torch.full_like(layer.weight, rows))
    case.same(layer.bias.grad, torch.full_like(layer.bias, rows))


@claim("linear.linear.double-backward")
@axes(dtype=PRECISE)
def test_double_backward(case):
    layer, x, g = (
        case.module(nn.Linear, 7, 3),
        case.tensor(4, 7, requires_grad=True),
        case.tensor(4, 3, requires_grad=True),
    )
    v = case.tensor(4, 7)
    (slope,) = torch.autograd.grad(layer(x), x, g, create_graph=True)
    found = torch.autograd.grad(slope, (g, layer.weight), v)
    at, weight = arrays(v, g), array(layer.weight)
    case.close(found[0], at[0] @ weight.T, k=7, scale=abs(at[0]) @ abs(weight).T)  # sums of seven products
    case.close(found[1], at[1].T @ at[0], k=4, scale=abs(at[1]).T @ abs(at[0]))  # sums of four


@claim("linear.linear.shape-error")
@pytest.mark.parametrize("shape", [(4, 6), (6,), (2, 4, 6)], ids=str)
def test_another_width_is_refused(case, shape):
    layer = case.module(nn.Linear, 5, 2)
    with case.raises(RuntimeError, "shapes? cannot be multiplied|size mismatch"):
        layer(case.tensor(*shape))


@claim("linear.linear.bias-length")
@axes(via="eager")
def test_a_bias_is_as_long_as_the_outputs(case):
    for length in (1, 3):
        with case.raises(RuntimeError, "size|shape"):
            F.linear(case.tensor(2, 3), case.tensor(4, 3), case.tensor(length))


@claim("linear.linear.dtype-error")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64], ids=str)
def test_another_dtype_is_refused(case, dtype):
    layer = case.module(nn.Linear, 5, 2)
    with case.raises(RuntimeError, "dtype|scalar type"):
        layer(case.tensor(4, 5, dtype=dtype))


@claim("linear.linear.seed-class")
@pytest.mark.parametrize("seed", [0, 7])
def test_the_class_of_the_textbooks_draws_the_same_parameters(case, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(20, 30)
    torch.manual_seed(seed)
    weight, bias = torch.empty(30, 20), torch.empty(30)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    nn.init.uniform_(bias, -1 / math.sqrt(20), 1 / math.sqrt(20))
    case.same(layer.weight.detach(), weight)
    case.same(layer.bias.detach(), bias)


@claim("linear.linear.notes-layout")
def test_a_weight_stored_in_by_out_does_not_load(case):
    layer, x = case.module(nn.Linear, 4, 3), case.tensor(5, 4)
    weight = case.tensor(4, 3)
    with case.raises(RuntimeError, "size mismatch"):
        layer.load_state_dict({"weight": weight, "bias": layer.bias.detach()})
    layer.load_state_dict({"weight": weight.t(), "bias": layer.bias.detach()})
    scale = abs(array(x)) @ abs(array(weight)) + abs(array(layer.bias))
    case.close(layer(x), array(x) @ array(weight) + array(layer.bias), k=5, scale=scale)  # four products, the bias


@claim("linear.functional.vector-weight")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("leading", LEADING[1:5], ids=str)
def test_a_vector_weight_drops_the_last_dimension(case, leading):
    x, weight = case.tensor(*leading, 7), case.tensor(7)
    y = case.function(F.linear)(x, weight)
    case.close(y, array(x) @ array(weight), k=7, scale=abs(array(x)) @ abs(array(weight)))  # sums of seven products


@claim("linear.bilinear.formula")
@axes(dtype=PRECISE, layout=("contiguous", "transposed"))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (4,), (2, 1, 3)], ids=str)
def test_bilinear(case, leading, bias):
    layer = case.module(nn.Bilinear, 5, 3, 7, bias=bias)
    x1, x2 = case.tensor(*leading, 5), case.tensor(*leading, 3)
    weight, added = parameters(layer)
    expected = reference.bilinear(array(x1), array(x2), weight, added)
    scale = reference.bilinear(abs(array(x1)), abs(array(x2)), abs(weight), abs(added))
    case.close(layer(x1, x2), expected, k=roundings(case, 17), scale=scale)  # 15 terms, each of two products


@claim("linear.bilinear.gradients")
@axes(dtype=PRECISE)
def test_bilinear_gradients(case):
    layer, g = case.module(nn.Bilinear, 5, 3, 7), case.tensor(4, 7)
    x1, x2 = case.tensor(4, 5, requires_grad=True), case.tensor(4, 3, requires_grad=True)
    layer(x1, x2).backward(g)
    law = arrays(g, x1, x2, layer.weight)
    values, sizes = reference.bilinear_gradients(*law), reference.bilinear_gradients(*map(abs, law))
    found = (x1.grad, x2.grad, layer.weight.grad, layer.bias.grad)
    for actual, expected, scale in zip(found, values, sizes, strict=True):
        case.close(actual, expected, k=7 * 5 + 2, scale=scale)  # at most 35 terms, each of two products


@claim("linear.bilinear.shape-error")
@pytest.mark.parametrize(("one", "two"), [((4, 6), (4, 3)), ((4, 5), (4, 2)), ((4, 5), (3, 3))])
def test_bilinear_refuses_other_shapes(case, one, two):
    layer = case.module(nn.Bilinear, 5, 3, 7)
    with case.raises(RuntimeError, "size|dimension"):
        layer(case.tensor(*one), case.tensor(*two))


@claim("linear.bilinear.zero-features")
def test_bilinear_refuses_no_features(case):
    with case.raises(ValueError, "in1_features"):
        nn.Bilinear(0, 3, 7)


@claim("linear.bilinear.zero-second-features")
def test_bilinear_refuses_no_second_features(case):
    with case.raises(ValueError, "in2_features"):
        nn.Bilinear(3, 0, 7)


@claim("linear.identity.arguments-ignored")
@axes(dtype=FLOATING)
def test_identity_returns_its_input(case):
    layer, x = case.module(nn.Identity, 54, unused=True, size=(2, 3)), case.tensor(2, 3)
    case.identical(layer(x), x)
    assert not layer.state_dict()


@claim("linear.lazy.materialises")
@pytest.mark.parametrize("bias", [True, False])
def test_lazy_linear_takes_its_width_from_the_first_input(case, bias):
    layer, x = nn.LazyLinear(3, bias=bias, device=case.device), case.tensor(2, 4, 7)
    assert all(isinstance(p, nn.parameter.UninitializedParameter) for p in layer.parameters())
    y = layer(x)
    assert type(layer) is nn.Linear
    assert (layer.in_features, layer.weight.shape, layer.bias is None) == (7, (3, 7), not bias)
    assert all(type(p) is nn.Parameter and p.requires_grad for p in layer.parameters())
    assert (abs(array(layer.weight)) <= 1 / np.sqrt(7)).all()
    assert (layer.weight != 0).any()
    judge(case, y, x, layer)


@claim("linear.lazy.state")
def test_a_lazy_layer_saves_and_loads_what_it_has(case):
    made, x = case.module(nn.Linear, 7, 3), case.tensor(4, 7)
    there = {"device": case.device}
    lazy, other = nn.Sequential(nn.LazyLinear(3, **there)), nn.Sequential(nn.LazyLinear(3, **there))
    saved = lazy.state_dict()
    assert list(saved) == ["0.weight", "0.bias"]
    assert all(nn.parameter.is_lazy(value) for value in saved.values())
    other.load_state_dict(saved)
    assert other[0].has_uninitialized_params()
    with case.raises(RuntimeError, "missing key"):
        other.load_state_dict({"0.weight": made.weight})
    for layer in (lazy, nn.Sequential(nn.LazyLinear(3, bias=False, **there))):
        state = {f"0.{name}": value for name, value in made.state_dict().items() if name in layer[0].state_dict()}
        layer.load_state_dict(state)
        assert not layer[0].has_uninitialized_params()
        assert not any(value.requires_grad for value in layer.state_dict().values())
        assert all(value.requires_grad for value in layer.state_dict(keep_vars=True).values())
        case.same(layer(x), F.linear(x, made.weight, made.bias if layer is lazy else None))
        assert type(layer[0]) is nn.Linear
        assert not layer[0]._forward_pre_hooks
        assert not layer[0]._load_state_dict_pre_hooks


@claim("linear.lazy.buffers")
def test_lazy_buffers_are_saved_and_loaded(case):
    lazy, made = nn.LazyBatchNorm1d(momentum=0.3), case.module(nn.BatchNorm1d, 5)
    lazy.register_buffer("scratch", torch.zeros(2), persistent=False)
    assert list(lazy.state_dict()) == list(made.state_dict())
    lazy.load_state_dict(made.state_dict())
    for name, value in lazy.state_dict().items():
        case.same(value, made.state_dict()[name])
    assert lazy.state_dict(keep_vars=True)["running_mean"] is lazy.running_mean


class Unfinished(nn.modules.lazy.LazyModuleMixin, nn.Module):
    """A lazy layer of one's own, which forgets to make its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.parameter.UninitializedParameter()

    def forward(self, x):
        return x


@claim("linear.lazy.own")
def test_a_lazy_layer_of_ones_own_must_make_its_parameters(case):
    layer, x = Unfinished(), case.tensor(2)
    with case.raises(NotImplementedError, "initialize_parameters is not implemented for Unfinished"):
        layer(x)
    layer.initialize_parameters = lambda x: None
    with case.raises(RuntimeError, "not been fully initialized"):
        layer(x)
    layer.initialize_parameters = lambda x: layer.weight.materialize(x.shape)
    case.same(layer(x), x)
    assert type(layer) is Unfinished
    assert not hasattr(layer, "_load_hook")
    assert not hasattr(layer, "_initialize_hook")


@claim("linear.lazy.reset")
def test_a_lazy_layer_resets_nothing_until_it_is_made(case):
    layer, x = nn.LazyLinear(61, device=case.device), case.tensor(2, 17)
    with case.unchanged():
        layer.reset_parameters()
    assert layer.has_uninitialized_params()
    case.reseed()
    layer(input=x)
    case.reseed()
    plain = nn.Linear(17, 61, device=case.device)
    for name in ("weight", "bias"):
        case.same(getattr(layer, name).detach(), getattr(plain, name).detach())


@claim("linear.lazy.loaded-width")
def test_a_loaded_lazy_layer_takes_the_loaded_width_only(case):
    layer = nn.LazyLinear(3, device=case.device)
    layer.load_state_dict(case.module(nn.Linear, 7, 3).state_dict())
    with case.raises((AssertionError, RuntimeError), "in_features|shapes cannot be multiplied"):
        layer(case.tensor(2, 5))
    layer(case.tensor(2, 4, 7))
    assert layer.in_features == 7


@claim("linear.lazy.by-keyword")
def test_a_lazy_layer_takes_its_input_by_keyword(case):
    layer = nn.LazyLinear(3, device=case.device)
    assert layer(input=case.tensor(2, 5)).shape == (2, 3)
    assert layer.in_features == 5


CONVOLUTIONS = [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "groups": 2}, {"groups": 4}]


@claim("linear.convolution.formula")
@axes(dtype=("float32", "bfloat16"), layout=("contiguous", "channels_last"), via="eager")
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_convolution_adds_up_products_with_windows(case, options):
    """Of whole numbers every sum is exact, in whichever order and dtype."""
    shapes = ((3, 4, 5, 6), (8, 4 // options.get("groups", 1), 2, 3), (8,))
    x, weight, bias = (case.tensor_of(case.rng.integers(-2, 3, s), requires_grad=True) for s in shapes)
    y = case.function(F.conv2d)(x, weight, bias, **options)
    case.close(y, reference.convolution(*arrays(x, weight, bias), **options), k=0)
    y.backward(g := torch.randint_like(y, -1, 2))
    wanted = reference.convolution_gradients(*arrays(g, x, weight), **options)
    for t, value in zip((x, weight, bias), wanted, strict=True):
        case.close(t.grad, value, k=0)


@claim("linear.convolution.circular-sample")
@axes(via="eager")
def test_circular_padding_takes_a_single_sample(case):
    layer, x = case.module(nn.Conv1d, 2, 3, 2, padding=1, padding_mode="circular"), case.tensor(2, 4)
    case.close(layer(x), array(layer(x[None])[0]), k=16, scale=8)  # five terms, none of them above 8, in either order


@claim("linear.bilinear.counts-every-product")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.parametrize("first", [True, False])
def test_a_bilinear_form_counts_every_product(case, first):
    long, one = torch.ones_like(case.tensor(1, 300)), torch.ones_like(case.tensor(1, 1))  # more might go to oneDNN
    a, b = (long, one) if first else (one, long)
    case.same(F.bilinear(a, b, torch.ones_like(case.tensor(1, a.shape[1], b.shape[1]))), case.tensor_of([[300.0]]))
