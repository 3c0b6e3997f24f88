"""LocalResponseNorm: every channel divided by a power of the squares of the channels around it."""

import pytest
import torch.nn.functional as F
from torch import nn

from specs.reference import norms as reference
from torch_conformance.axes import FLOATING, PRECISE
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

SHAPES = [(2, 7, 5), (2, 7, 3, 5), (2, 7, 3, 2, 5), (1, 1, 17), (2, 2, 1, 33), (1, 19, 3, 2)]


def judge(case, y, x, *options):
    """The output keeps the law."""
    size, expected = options[0], reference.local_response_norm(array(x), *options)
    case.close(y, expected, k=size / 2 + 5)  # the window's sum; square, mean, two products, sum, power and quotient


@claim("norms.localresponsenorm.formula")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("size", [1, 3, 5, 9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels_are_divided_by_their_neighbours(case, shape, size):
    layer, x = case.module(nn.LocalResponseNorm, size, alpha=0.5, beta=0.7, k=1.3), case.tensor(*shape)
    judge(case, layer(x), x, size, 0.5, 0.7, 1.3)


@claim("norms.localresponsenorm.any-layout")
@axes(dtype=PRECISE, layout=("channels_last", "transposed", "strided", "expanded"))
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_every_memory_layout_is_taken(case, shape):
    x = case.tensor(*shape)
    judge(case, case.function(F.local_response_norm)(x, 3, 0.5, 0.7, 1.3), x, 3, 0.5, 0.7, 1.3)


@claim("norms.localresponsenorm.even-window")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("size", [2, 4, 6])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_an_even_window_reaches_one_further_back(case, shape, size):
    layer, x = case.module(nn.LocalResponseNorm, size, alpha=0.5, beta=0.7, k=1.3), case.tensor(*shape)
    judge(case, layer(x), x, size, 0.5, 0.7, 1.3)


@claim("norms.localresponsenorm.defaults")
@pytest.mark.parametrize("form", ["module", "function"])
def test_defaults(case, form):
    x = case.tensor(2, 7, 5, spread=30)
    function = case.module(nn.LocalResponseNorm, 3) if form == "module" else case.function(F.local_response_norm)
    judge(case, function(x) if form == "module" else function(x, 3), x, 3, 1e-4, 0.75, 1.0)


@claim("norms.localresponsenorm.gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_gradient(case, shape, size):
    layer = case.module(nn.LocalResponseNorm, size, alpha=0.5, beta=0.7, k=1.3)
    x, g = case.tensor(*shape, requires_grad=True), case.tensor(*shape)
    layer(x).backward(g)
    law = size, 0.5, 0.7, 1.3
    expected = reference.local_response_norm_gradient(array(g), array(x), *law)
    scale = reference.local_response_norm_gradient(abs(array(g)), abs(array(x)), *law, sign=-1)
    case.close(x.grad, expected, k=size + 10, scale=scale)  # two sums over a window, each with the roundings of a power


@claim("norms.localresponsenorm.stateless")
def test_has_no_state_and_no_mode(case):
    layer, x = case.module(nn.LocalResponseNorm, 3), case.tensor(2, 7, 5)
    assert not layer.state_dict()
    with case.unchanged(layer.eval(), x=x):
        evaluated = layer(x)
    case.same(layer.train()(x), evaluated)


@claim("norms.localresponsenorm.rank-error")
def test_two_dimensions_are_refused(case):
    with case.raises(ValueError, "3D or higher"):
        case.module(nn.LocalResponseNorm, 3)(case.tensor(2, 7))


@claim("norms.localresponsenorm.no-elements")
@pytest.mark.parametrize("shape", [(0, 7, 5), (2, 7, 0), (0, 7, 3, 5)], ids=str)
def test_no_elements_give_no_elements(case, shape):
    assert case.module(nn.LocalResponseNorm, 3)(case.tensor(*shape)).shape == shape


# -- CrossMapLRN2d: the same law by a sum that runs along the channels -------------------------------------------------


def judge_running(case, y, x, expected, size):
    """Within half an eps for each term that the running sum took up or let go, however small it became."""
    squares = 0.5 / size * (array(x) ** 2).sum(1, keepdims=True) / 1.3
    case.close(y, expected, k=1, scale=abs(expected) * (size / 2 + 5 + 0.7 * x.shape[1] * squares))


@claim("norms.crossmaplrn.formula")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("part", ["first", "whole"])
@pytest.mark.parametrize("size", [3, 5])
def test_cross_map_lrn_follows_the_same_law(case, size, part):
    layer, x = case.module(nn.CrossMapLRN2d, size, alpha=0.5, beta=0.7, k=1.3), case.tensor(2, 7, 3, 5)
    shown = slice(size // 2 + 1 if part == "first" else None)  # windows that reach back to the first channel
    expected = reference.local_response_norm(array(x), size, 0.5, 0.7, 1.3)
    judge_running(case, layer(x)[:, shown], x, expected[:, shown], size)


@claim("norms.crossmaplrn.gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize(("size", "channels"), [(3, 7), (5, 2), (7, 3)])
def test_gradient_of_cross_map_lrn(case, size, channels):
    layer = case.module(nn.CrossMapLRN2d, size, alpha=0.5, beta=0.7, k=1.3)
    x, g = case.tensor(2, channels, 3, 5, requires_grad=True), case.tensor(2, channels, 3, 5)
    layer(x).backward(g)
    law = size, 0.5, 0.7, 1.3
    expected = reference.local_response_norm_gradient(array(g), array(x), *law)
    scale = reference.local_response_norm_gradient(abs(array(g)), abs(array(x)), *law, sign=-1)
    case.close(x.grad, expected, k=2 * channels + 10, scale=scale)  # running sums of all channels, and a power each


@claim("norms.crossmaplrn.settings")
def test_cross_map_lrn_keeps_its_settings_and_takes_images_only(case):
    layer = nn.CrossMapLRN2d(3)
    assert (layer.size, layer.alpha, layer.beta, layer.k) == (3, 1e-4, 0.75, 1)
    with case.raises((ValueError, AssertionError), "4D|^$"):
        layer(case.tensor(7, 3, 5))
