"""Dropout: the identity in eval mode; in train mode a fresh mask, scaled so that the expectation stays."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import dropout as reference
from torch_conformance.axes import FLOATING, PRECISE
from torch_conformance.checks import array, eps
from torch_conformance.marks import axes, claim
from torch_conformance.switches import switched

FORMS = {
    nn.Dropout: "dropout",
    nn.Dropout1d: "dropout1d",
    nn.Dropout2d: "dropout2d",
    nn.Dropout3d: "dropout3d",
    nn.AlphaDropout: "alpha_dropout",
    nn.FeatureAlphaDropout: "feature_alpha_dropout",
    nn.RReLU: "rrelu",
}
DROPOUTS = [cls for cls in FORMS if cls is not nn.RReLU]
CHANNELWISE = [nn.Dropout1d, nn.Dropout2d, nn.Dropout3d]
ALPHAS = [nn.AlphaDropout, nn.FeatureAlphaDropout]
SHAPES = {nn.Dropout1d: (17, 5, 7), nn.Dropout2d: (17, 5, 3, 2)}
PROBABILITIES = [0.1, 0.3, 0.8]
SIZES = [1, 3, 7, 15, 17, 31, 33, 63, 65, 127, 129]  # around the widths of vector registers


def shape_for(cls):
    return SHAPES.get(cls, (17, 5, 3, 2, 2))


def form(cls):
    return getattr(F, FORMS[cls])


def by_channel(kept):
    """The mask of the first element of each channel, for the whole channel."""
    first = kept.reshape(*kept.shape[:2], -1)[:, :, 0]
    return np.broadcast_to(first.reshape(*first.shape, *[1] * (kept.ndim - 2)), kept.shape)


def hoeffding(n, width, results=1):
    """How far the mean of n independent values may stray within a width; one alarm in 1e9 over all results."""
    return width * math.sqrt(math.log(2 * results / 1e-9) / (2 * n))


# -- eval mode ---------------------------------------------------------------------------------------------------------


@claim("dropout.eval.identity")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", DROPOUTS)
def test_eval_returns_its_input(case, cls):
    layer, x = case.module(cls, p=0.3).eval(), case.tensor(*shape_for(cls))
    before = x.clone()
    case.identical(layer(x), x)
    case.same(x, before)


@claim("dropout.arguments.nan")
def test_a_probability_that_is_no_number_is_refused(case):
    with case.raises(ValueError, "probability"):
        nn.Dropout(math.nan)


@claim("dropout.eval.gradient-one")
@pytest.mark.parametrize("cls", DROPOUTS)
def test_eval_passes_the_gradient_on(case, cls):
    x, gradient = case.tensor(*shape_for(cls), requires_grad=True), case.tensor(*shape_for(cls))
    (case.module(cls, p=0.3).eval()(x) * 1).backward(gradient)
    case.same(x.grad, gradient)


@claim("dropout.eval.rng-untouched")
@pytest.mark.parametrize("cls", DROPOUTS)
def test_only_training_draws_random_numbers(case, cls):
    layer, x = case.module(cls, p=0.3), case.tensor(*shape_for(cls))
    with case.unchanged(layer.eval(), x=x):
        layer(x)
    with case.unchanged(layer.train(), x=x, but={"rng"}):
        layer(x)


@claim("dropout.eval.scales-nothing")
@pytest.mark.parametrize("p", PROBABILITIES)
def test_inference_scales_nothing(case, p):
    layer, x = case.module(nn.Dropout, p=p), case.tensor(63)
    case.same(layer.eval()(x), x)
    kept = array(y := layer.train()(x)) != 0
    case.close(y[y != 0], array(x)[kept] / (1 - p), k=2)  # four roundings, as in test_survivors_are_scaled


@claim("dropout.eval.closes-no-neuron")
@pytest.mark.parametrize("cls", DROPOUTS)
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_eval_lets_every_neuron_through(case, cls, p):
    x = case.tensor(*shape_for(cls), loc=9)
    y = case.module(cls, p=p).eval()(x)
    assert (y == x).all()


@claim("dropout.eval.one-layer-back-in-train")
def test_dropout_alone_goes_back_to_train(case):
    model, x = case.module(nn.Sequential, nn.BatchNorm1d(31), nn.Dropout(0.3)).eval(), case.tensor(33, 31)
    model[1].train()
    with case.unchanged(model, x=x, but={"rng"}):
        case.binomial((model(x) == 0).sum(), x.numel(), 0.3)


# -- train mode --------------------------------------------------------------------------------------------------------


def drops(case, y, x, p):
    """Dropout turned x, without zeros, into y."""
    # Half an eps each for 1 - p, its inverse and the product, and for one step more on a device that has one: k = 2
    case.close(y, reference.dropout(array(x), array(y) != 0, p), k=2)


@claim("dropout.train.survivors-scaled")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided", "expanded"))
@pytest.mark.parametrize("p", PROBABILITIES)
def test_survivors_are_scaled(case, p):
    x = case.tensor(37, 31)
    y = case.module(nn.Dropout, p=p)(x)
    drops(case, y, x, p)
    if p >= 0.5:  # in no row and no column are all kept: 0.2^31
        assert (y == 0).any(0).all()
        assert (y == 0).any(1).all()


@claim("dropout.train.multiplies-by-p")
@pytest.mark.parametrize("p", PROBABILITIES)
def test_training_never_multiplies_by_p(case, p):
    y = case.module(nn.Dropout, p=p)(case.tensor_of([1.0]).expand(1009))
    assert len(y.unique()) == 2
    case.close(y.max(), 1 / (1 - p), k=2)
    case.close(y.min(), 0.0, k=0)


@claim("dropout.train.rate")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("p", [*PROBABILITIES, 0.001])
def test_p_is_the_probability_of_zeroing(case, p):
    n = 10_007 if p in PROBABILITIES else 40_009  # of rare drops more are needed
    ones = case.tensor_of([1.0]).expand(n)
    case.binomial((case.module(nn.Dropout, p=p)(ones) == 0).sum(), n, p)


@claim("dropout.train.rate")
@pytest.mark.parametrize("n", [1, 2])
def test_rate_is_the_same_in_every_thread(case, n):
    with switched("threads", n):
        y = case.module(nn.Dropout, p=0.3)(case.tensor_of([1.0]).expand(70_001))
    for part in (y[:10_007], y[30_000:40_007], y[-10_007:]):
        case.binomial((part == 0).sum(), 10_007, 0.3)


@claim("dropout.train.every-position", "dropout.train.elements-independent")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("n", [*SIZES, 1103])
def test_every_position_is_dropped_now_and_then(case, n):
    layer, x = case.module(nn.Dropout, p=0.4), case.tensor(n)
    ys = case.draws(lambda: layer(x), 57)  # 2 n 0.6^57 < 1e-9
    kept = array(ys) != 0
    assert kept.any(0).all()
    assert not kept.all(0).any()
    assert len({*map(bytes, kept.T)}) == n  # no two positions go together: by chance n^2 / 2 0.52^57 < 1e-10
    case.close(ys, reference.dropout(array(x), kept, 0.4), k=2)


@claim("dropout.train.elements-independent")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("apart", [1, 2, 8, 16, 101, 32_768])
def test_elements_are_dropped_independently(case, apart):
    ones = case.tensor_of([1.0]).expand((1024 // apart + 1) * 2 * apart)
    dropped = (case.module(nn.Dropout, p=0.3)(ones) == 0).reshape(-1, 2, apart)
    both = dropped[:, 0] & dropped[:, 1]  # disjoint pairs, so the count is binomial
    case.binomial(both.sum(), both.numel(), 0.09)


@claim("dropout.train.elements-independent")
@axes(layout=("contiguous", "channels_last", "transposed"))
@pytest.mark.parametrize(("dim", "apart"), [(0, 1), (0, 16), (1, 1), (1, 4), (2, 1), (2, 2), (3, 1)])
def test_samples_and_channels_are_independent(case, dim, apart):
    ones = case.tensor_of(np.ones((32, 8, 4, 2)))
    first, second = (case.module(nn.Dropout, p=0.3)(ones) == 0).unflatten(dim, (-1, 2, apart)).unbind(dim + 1)
    case.binomial((first & second).sum(), 1024, 0.09)


@claim("dropout.train.channels-stay-whole")
def test_dropout_breaks_channels_up(case):
    y = array(case.module(nn.Dropout, p=0.3)(case.tensor_of([[[1.0]]]).expand(61, 5, 7)))
    broken = (y == 0).any(2) & (y != 0).any(2)
    case.binomial(int(broken.sum()), 305, 1 - 0.3**7 - 0.7**7)


@claim("dropout.train.mask-fresh-at-every-call")
@pytest.mark.parametrize("cls", [nn.Dropout, nn.AlphaDropout])
def test_every_call_draws_a_mask_of_its_own(case, cls):
    layer, ones = case.module(cls, p=0.3), case.tensor_of([1.0]).expand(1009)
    first, second = layer(ones) <= 0, layer(ones) <= 0  # alpha dropout makes ones negative where it drops them
    case.binomial((first & second).sum(), 1009, 0.09)


@claim("dropout.train.mean-kept")
@pytest.mark.parametrize("p", PROBABILITIES)
def test_mean_over_the_masks_is_the_input(case, p):
    x = case.tensor(7)
    mean = array(case.module(nn.Dropout, p=p)(x.expand(4001, 7))).mean(0)
    assert (abs(mean - array(x)) <= hoeffding(4001, abs(array(x)) / (1 - p), results=7)).all()


@claim("dropout.train.gradient-uses-the-mask")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("p", PROBABILITIES)
def test_gradient_uses_the_mask(case, p):
    x, gradient = case.tensor(17, 31, requires_grad=True), case.tensor(17, 31)
    y = case.module(nn.Dropout, p=p)(x)
    y.backward(gradient)
    case.close(x.grad, reference.dropout(array(gradient), array(y) != 0, p), k=2)  # as in the forward


@claim("dropout.train.second-derivative")
def test_second_derivative_uses_the_mask(case):
    x, gradient = case.tensor(63, requires_grad=True), case.tensor(63, requires_grad=True)
    y = case.module(nn.Dropout, p=0.3)(x)
    (first,) = torch.autograd.grad(y, x, gradient, create_graph=True)
    (second,) = torch.autograd.grad(first, gradient, v := case.tensor(63))
    case.close(second, reference.dropout(array(v), array(y) != 0, 0.3), k=2)  # as in the forward


@claim("dropout.train.mask-returned")
@axes(dtype=FLOATING, via="eager")
def test_native_dropout_returns_its_mask(case):
    x, gradient = case.tensor(311, requires_grad=True), case.tensor(311)
    y, kept = torch.native_dropout(x, 0.3, True)
    y.backward(gradient)
    case.close(y, reference.dropout(array(x), array(kept), 0.3), k=2)  # as in the forward
    case.close(x.grad, reference.dropout(array(gradient), array(kept), 0.3), k=2)
    case.binomial((~kept).sum(), 311, 0.3)


@claim("dropout.train.mask-returned")
@axes(dtype=FLOATING, via="eager")
def test_native_dropout_keeps_everything_out_of_training(case):
    x, gradient = case.tensor(311, requires_grad=True), case.tensor(311)
    y, kept = torch.native_dropout(x, 0.3, False)
    y.backward(gradient)
    assert kept.all()
    case.same(y, x)
    case.same(x.grad, gradient)


@claim("dropout.train.input-untouched")
@pytest.mark.parametrize("cls", DROPOUTS)
def test_training_leaves_its_input_alone(case, cls):
    layer, x = case.module(cls, p=0.3), case.tensor(*shape_for(cls))
    with case.unchanged(x=x, but={"rng"}):
        layer(x).zero_()


@claim("dropout.train.any-shape")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", [nn.Dropout, nn.AlphaDropout])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 1, 3, 1, 2, 2)], ids=str)
def test_any_shape_comes_back(case, cls, shape):
    x = case.tensor_of(case.rng.uniform(0.5, 3, shape))
    y = case.module(cls, p=0.3)(x)
    assert y.shape == shape
    assert y.dtype == case.dtype
    (drops if cls is nn.Dropout else drops_to_saturation)(case, y, x, 0.3)


@claim("dropout.train.any-shape")
@axes(dtype=FLOATING)
def test_a_number_is_dropped_now_and_then(case):
    layer, x = case.module(nn.Dropout, p=0.4), case.tensor()
    ys = case.draws(lambda: layer(x), 53)  # 2 0.6^53 < 1e-9
    assert 0 < int((ys == 0).sum()) < 53


@claim("dropout.train.any-shape")
@pytest.mark.parametrize("cls", [*CHANNELWISE, nn.FeatureAlphaDropout])
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_no_channels_come_back(case, cls, empty):
    shape = [0 if i == empty else n for i, n in enumerate(shape_for(cls))]
    assert list(case.module(cls, p=0.3)(case.tensor(*shape)).shape) == shape


@claim("dropout.train.whole-numbers-refused")
def test_whole_numbers_cannot_be_scaled(case):
    layer, x = case.module(nn.Dropout, p=0.3), case.tensor_of([1, 2, 3], dtype=torch.int64)
    case.identical(layer.eval()(x), x)
    with case.raises(RuntimeError, "float.*long|not implemented"):
        layer.train()(x)


@claim("dropout.train.infinity")
def test_dropped_infinity_is_zero_or_nan(case):
    y = case.module(nn.Dropout, p=0.3)(case.tensor_of([math.inf]).expand(1009))
    case.binomial((y == math.inf).sum(), 1009, 0.7)
    dropped = y[y != math.inf]
    assert ((dropped == 0) | dropped.isnan()).all()


# -- seed and p --------------------------------------------------------------------------------------------------------


@claim("dropout.seed.repeats-the-mask")
@pytest.mark.parametrize("cls", DROPOUTS)
def test_seed_repeats_the_mask(case, cls):
    layer, x = case.module(cls, p=0.3), case.tensor(*shape_for(cls))
    ys = [(torch.manual_seed(seed), layer(x))[1] for seed in (case.seed, case.seed, case.seed + 1)]
    case.same(ys[0], ys[1])
    assert not torch.equal(ys[0], ys[2])


@claim("dropout.p.default-half")
@pytest.mark.parametrize("cls", DROPOUTS)
def test_p_is_a_half_by_default(case, cls):
    layer, ones = case.module(cls), case.tensor_of(np.ones((1, 1, *shape_for(cls)[2:])))
    assert layer.p == 0.5
    for y in (layer(ones := ones.expand(211, 5, *ones.shape[2:])), form(cls)(ones, training=True)):
        first = y.reshape(211, 5, -1)[:, :, 0]
        case.binomial((first <= 0).sum(), 1055, 0.5)


@claim("dropout.p.zero")
@pytest.mark.parametrize("cls", DROPOUTS)
def test_p_zero_changes_nothing(case, cls):
    x, gradient = case.tensor(*shape_for(cls), requires_grad=True), case.tensor(*shape_for(cls))
    y = case.module(cls, p=0)(x)
    case.same(y, x)
    (y * 1).backward(gradient)
    case.same(x.grad, gradient)


@claim("dropout.p.one")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", DROPOUTS)
def test_p_one_gives_zeros(case, cls):
    x, gradient = case.tensor(*shape_for(cls), requires_grad=True), case.tensor(*shape_for(cls))
    y = case.module(cls, p=1)(x)
    y.backward(gradient)
    assert y.shape == x.shape
    assert not y.any()
    assert not x.grad.any()


@claim("dropout.p.out-of-range")
@pytest.mark.parametrize("cls", DROPOUTS)
@pytest.mark.parametrize("p", [-3, -1e-6, 1 + 1e-6, 2.0])
def test_impossible_p_is_refused(case, cls, p):
    with case.raises(ValueError, "between 0 and 1"):
        cls(p=p)
    for training in (False, True):
        with case.raises(ValueError, "between 0 and 1"):
            case.function(form(cls))(case.tensor(*shape_for(cls)), p, training)


@claim("dropout.p.read-at-every-call")
@pytest.mark.parametrize("cls", DROPOUTS)
def test_p_is_read_at_every_call(case, cls):
    layer, x = case.module(cls, p=0.3), case.tensor(*shape_for(cls))
    layer(x)
    layer.p = 1.0
    assert not layer(x).any()
    layer.p = 0.0
    case.same(layer(x), x)


# -- the layer ---------------------------------------------------------------------------------------------------------


@claim("dropout.layer.no-state")
@pytest.mark.parametrize("cls", FORMS)
def test_layers_hold_no_state(case, cls):
    layer = case.module(cls)
    layer(case.tensor(*shape_for(cls)))
    assert not [*layer.parameters(), *layer.buffers(), *layer.state_dict()]


@claim("dropout.layer.repr")
@pytest.mark.parametrize("cls", DROPOUTS)
def test_printed_layers_show_their_settings(case, cls):
    assert repr(cls(p=0.25, inplace=True)) == f"{cls.__name__}(p=0.25, inplace=True)"
    assert repr(cls(0.75)) == f"{cls.__name__}(p=0.75, inplace=False)"


@claim("dropout.layer.no-self-in-self")
def test_module_has_no_attribute_self(case):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.3)

        def forward(self, x):
            return self.self.dropout(x)

    with case.raises(AttributeError, "no attribute 'self'"):
        Model()(case.tensor(3))


# -- in place ----------------------------------------------------------------------------------------------------------


@claim("dropout.inplace.overwrites")
@pytest.mark.parametrize("cls", DROPOUTS)
def test_inplace_overwrites_its_input(case, cls):
    layer, x = case.module(cls, p=0.3, inplace=True), case.tensor(*shape_for(cls))
    with case.unchanged(x=x, but={"x", "rng"}):
        y = layer(x)
    case.identical(y, x)
    with case.unchanged(x=x):
        case.identical(layer.eval()(x), x)


@claim("dropout.inplace.gradient")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "channels_last"))
@pytest.mark.parametrize("cls", [nn.Dropout, *CHANNELWISE])
def test_inplace_gradient_uses_the_mask(case, cls):
    x, gradient = case.tensor(*shape_for(cls), requires_grad=True), case.tensor(*shape_for(cls))
    y = case.module(cls, p=0.3, inplace=True)(x * 1)
    y.backward(gradient)
    kept = by_channel(array(y) != 0) if cls in CHANNELWISE else array(y) != 0
    case.close(y, reference.dropout(array(x), kept, 0.3), k=2)  # as out of place
    case.close(x.grad, reference.dropout(array(gradient), kept, 0.3), k=2)


@claim("dropout.inplace.leaf-refused")
@pytest.mark.parametrize("cls", [nn.Dropout, *CHANNELWISE])
def test_leaf_cannot_be_overwritten(case, cls):
    layer, x = case.module(cls, p=0.3, inplace=True), case.tensor(*shape_for(cls), requires_grad=True)
    before = x.detach().clone()
    with case.raises(RuntimeError, "leaf variable"):
        layer(x)
    case.same(x, before)


# -- in a network ------------------------------------------------------------------------------------------------------


@claim("dropout.network.dropped-unit-trains-no-weight")
def test_dropped_unit_trains_no_weight(case):
    dropout, linear = case.module(nn.Dropout, p=0.4), case.module(nn.Linear, 63, 5)
    hidden = dropout(case.tensor(1, 63, loc=9))
    with case.unchanged(linear, but={"weight.grad", "bias.grad"}):
        linear(hidden).sum().backward()
    assert torch.equal((linear.weight.grad == 0).all(0), hidden[0] == 0)
    case.binomial((hidden == 0).sum(), 63, 0.4)


@claim("dropout.network.averages-linear-networks")
def test_linear_network_averages_its_masks(case):
    p, linear, x = 0.3, case.module(nn.Linear, 7, 3), case.tensor(7)
    mean = array(linear(case.module(nn.Dropout, p=p)(x.expand(4001, 7)))).mean(0)
    width = (abs(array(linear.weight)) @ abs(array(x))) / (1 - p)
    assert (abs(mean - array(linear(x))) <= hoeffding(4001, width, results=3)).all()


@claim("dropout.network.averages-any-network")
def test_nonlinear_network_averages_otherwise(case):
    dropout, x = case.module(nn.Dropout, p=0.3), case.tensor_of([1.0, -1.0])
    whole, thinned = x.sum().relu(), dropout(x.expand(4001, 2)).sum(1).relu()
    assert whole == 0
    case.binomial((thinned > 0).sum(), 4001, 0.7 * 0.3)  # the first unit stays, the second goes


@claim("dropout.network.noise-at-test-time-costs")
def test_masks_at_test_time_cost_their_variance(case):
    p, x, target = 0.3, 1.7, 1.2
    f = array(case.module(nn.Dropout, p=p)(case.tensor_of([x]).expand(4001)))
    law = (x - target) ** 2 + p * x**2 / (1 - p)
    assert abs(((f - target) ** 2).mean() - law) <= hoeffding(4001, max(target, x / (1 - p) - target) ** 2)


# -- functional forms --------------------------------------------------------------------------------------------------


@claim("dropout.functional.matches-the-layer")
@pytest.mark.parametrize("cls", DROPOUTS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_functional_forms_match_the_layers(case, cls, training, inplace):
    x, layer = case.tensor(*shape_for(cls)), case.module(cls, 0.3, inplace).train(training)
    given = x.clone()
    case.reseed()
    expected = layer(x)
    case.reseed()
    y = case.function(form(cls))(given, 0.3, training, inplace)
    case.same(y, expected)
    if inplace or not training:
        case.identical(y, given)
    else:
        assert y is not given


@claim("dropout.functional.training-defaults")
@pytest.mark.parametrize("cls", FORMS)
def test_training_defaults_of_the_functional_forms(case, cls):
    x = case.tensor(*shape_for(cls))
    with case.unchanged(x=x, but={"rng"} if cls in (nn.Dropout, *CHANNELWISE) else set()):
        case.function(form(cls))(x)


@claim("dropout.functional.feature-alpha-default")
def test_feature_alpha_dropout_does_nothing_by_default(case):
    x = case.tensor(17, 5, 3)
    case.same(case.function(F.feature_alpha_dropout)(x), x)
    case.same(case.function(F.feature_alpha_dropout)(x, 0.9), x)


class Spy(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function, args, kwargs


@claim("dropout.functional.overridable")
@pytest.mark.parametrize("cls", FORMS)
@pytest.mark.parametrize("flag", [True, False])
def test_functional_forms_can_be_overridden(case, cls, flag):
    settings = {"lower": 0.1, "upper": 0.3} if cls is nn.RReLU else {"p": 0.3}
    settings |= {"training": flag, "inplace": not flag}
    spy = case.tensor(17, 5, 3).as_subclass(Spy)
    assert form(cls)(spy, *settings.values()) == (form(cls), (spy,), settings)


# -- whole channels ----------------------------------------------------------------------------------------------------


@claim("dropout.channel.whole")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last", "transposed", "strided"))
@pytest.mark.parametrize("cls", CHANNELWISE)
def test_whole_channels_are_dropped(case, cls):
    x = case.tensor(*shape_for(cls))
    y = case.module(cls, p=0.3)(x)
    kept = by_channel(array(y) != 0)
    case.close(y, reference.dropout(array(x), kept, 0.3), k=2)  # as in Dropout
    for axis in (0, 1):  # by chance all 17 samples are whole once in (0.3^5 + 0.7^5)^-17 > 1e13, all 5 channels alike
        assert (kept.any(axis) != kept.all(axis)).any()


@claim("dropout.channel.rate")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", CHANNELWISE)
@pytest.mark.parametrize("p", PROBABILITIES)
def test_channels_are_dropped_at_the_rate_p(case, cls, p):
    ones = case.tensor_of(np.ones((1, 1, *shape_for(cls)[2:])))
    y = case.module(cls, p=p)(ones.expand(211, 5, *ones.shape[2:]))
    case.binomial((y.reshape(211, 5, -1)[:, :, 0] == 0).sum(), 1055, p)


@claim("dropout.channel.independent")
@pytest.mark.parametrize("cls", [*CHANNELWISE, nn.FeatureAlphaDropout])
@pytest.mark.parametrize("pair", ["channels", "samples", "calls"])
def test_channels_are_dropped_independently(case, cls, pair):
    layer, shape = case.module(cls, p=0.3), (514, 19, *shape_for(cls)[2:])
    ones = case.tensor_of(np.ones([1] * len(shape))).expand(shape)
    first, second = (layer(ones).reshape(514, 19, -1)[:, :, 0] <= 0 for _ in range(2))
    couples = {"channels": (first[:, -2], first[:, -1]), "samples": (first[::2], first[1::2]), "calls": (first, second)}
    both = couples[pair][0] & couples[pair][1]
    case.binomial(both.sum(), both.numel(), 0.09)


@claim("dropout.channel.gradient")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("cls", CHANNELWISE)
def test_gradient_uses_the_mask_of_the_channels(case, cls):
    x, gradient = case.tensor(*shape_for(cls), requires_grad=True), case.tensor(*shape_for(cls))
    y = case.module(cls, p=0.3)(x)
    y.backward(gradient)
    case.close(x.grad, reference.dropout(array(gradient), by_channel(array(y) != 0), 0.3), k=2)  # as in the forward


@claim("dropout.channel.without-batch")
@pytest.mark.parametrize("cls", [nn.Dropout1d, nn.Dropout3d])
@pytest.mark.parametrize("inplace", [True, False])
def test_single_sample_needs_no_batch_dimension(case, cls, inplace):
    layer, x = case.module(cls, p=0.3, inplace=inplace), case.tensor(101, *shape_for(cls)[2:])
    before = x.clone()
    case.same(layer.eval()(x), before)
    y = layer.train()(x)
    assert x.shape == before.shape
    case.close(y[None], reference.dropout(array(before[None]), by_channel(array(y[None]) != 0), 0.3), k=2)  # as above
    case.binomial((y.reshape(101, -1)[:, 0] == 0).sum(), 101, 0.3)


@claim("dropout.channel.2d-of-three-dimensions")
def test_dropout2d_takes_no_single_image(case):
    x = case.tensor(61, 31, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = case.module(nn.Dropout2d, p=0.3)(x)
    assert any("assuming that channel-wise 1D" in str(warning.message) for warning in caught)
    kept = by_channel(array(y) != 0)
    case.close(y, reference.dropout(array(x), kept, 0.3), k=2)  # as above
    assert (kept.any((1, 2)) & ~kept.all((1, 2))).any()


@claim("dropout.channel.ranks")
@pytest.mark.parametrize("shape", [(5,), (5, 3, 2, 2), (5, 3, 2, 2, 2)], ids=str)
def test_dropout1d_refuses_other_ranks(case, shape):
    with case.raises(RuntimeError, f"expected 2D or 3D.*{len(shape)}D"):
        case.module(nn.Dropout1d, p=0.3)(case.tensor(*shape))


@claim("dropout.channel.ranks")
@pytest.mark.parametrize("cls", [nn.Dropout2d, nn.Dropout3d])
@pytest.mark.parametrize("rank", [2, 3, 4, 5, 6])
def test_dropout2d_and_3d_warn_at_other_ranks(case, cls, rank):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = case.module(cls, p=0.3)(case.tensor(*[2] * rank))
    warned = any(f"a {rank}-D input" in str(w.message) and "deprecated" in str(w.message) for w in caught)
    assert warned == (rank not in ({nn.Dropout2d: (3, 4), nn.Dropout3d: (4, 5)}[cls]))
    assert y.shape == (2,) * rank


@claim("dropout.channel.ranks")
@pytest.mark.parametrize("cls", [nn.Dropout2d, nn.FeatureAlphaDropout])
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_vector_has_no_channels(case, cls):
    with case.raises(RuntimeError, "at least 2 dimensions"):
        case.module(cls, p=0.3)(case.tensor(5))


# -- alpha dropout -----------------------------------------------------------------------------------------------------


def between_dropped_and_kept(p):
    """A bound below the output of every kept element of at least -1, and above that of every dropped one."""
    scale, shift = reference.alpha_constants(p)
    return scale * (reference.SATURATION - 1) / 2 + shift


def alpha_scale(x, p):
    return reference.alpha_constants(p)[0] * (abs(x) - reference.SATURATION)


def drops_to_saturation(case, y, x, p):
    """AlphaDropout turned x, of at least -1, into y."""
    kept = array(y) > between_dropped_and_kept(p)
    # Three roundings of a x, four of the constants, one of the sum, half an eps each, none above 5 / 2 in all
    case.close(y, reference.alpha_dropout(array(x), kept, p), k=2.5, scale=alpha_scale(array(x), p))


@claim("dropout.alpha.formula")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("p", PROBABILITIES)
def test_alpha_dropout_follows_its_formula(case, p):
    x = case.tensor_of(case.rng.uniform(-1, 3, (17, 31)))
    drops_to_saturation(case, case.module(nn.AlphaDropout, p=p)(x), x, p)


@claim("dropout.alpha.rate")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("p", PROBABILITIES)
def test_alpha_dropout_drops_at_the_rate_p(case, p):
    dropped = case.module(nn.AlphaDropout, p=p)(case.tensor_of([[1.0]]).expand(2003, 2)) < 0
    case.binomial(dropped.sum(), 4006, p)
    alike = dropped[:, 0] == dropped[:, 1]
    case.binomial(alike.sum(), 2003, p**2 + (1 - p) ** 2)


@claim("dropout.alpha.moments-kept")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("p", PROBABILITIES)
def test_alpha_dropout_keeps_mean_and_variance(case, p):
    y = case.module(nn.AlphaDropout, p=p)(case.tensor_of([[0.0], [1.0]]).expand(2, 301))
    shift, shifted, dropped = y[0].max(), y[1].max(), y.min()  # at 0 and at 1 where kept, and the saturation value
    # Each of the three lies within 5 / 2 eps, and the sum takes two roundings more; squares double that
    case.close((1 - p) * shift + p * dropped, 0.0, k=5, scale=2 * (1 - p) * array(shift) + p * alpha_scale(0, p))
    second = (1 - p) * ((shifted - shift) ** 2 + shift**2) + p * dropped**2
    case.close(second, 1.0, k=10, scale=1 + p * alpha_scale(1, p) ** 2)


@claim("dropout.alpha.moments-kept")
@pytest.mark.parametrize("p", PROBABILITIES)
def test_dropout_raises_the_variance(case, p):
    y = case.module(nn.Dropout, p=p)(case.tensor_of([-1.0, 1.0]).expand(301, 2))
    case.close((1 - p) * y.max() ** 2, 1 / (1 - p), k=6)  # a survivor within 2 eps, squared, and two products


@claim("dropout.alpha.gradient")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", ALPHAS)
@pytest.mark.parametrize("p", PROBABILITIES)
def test_alpha_gradient_uses_the_mask(case, cls, p):
    x = case.tensor_of(case.rng.uniform(-1, 3, (17, 31, 2)), requires_grad=True)
    y = case.module(cls, p=p)(x)
    y.backward(gradient := case.tensor(17, 31, 2))
    kept = array(y) > between_dropped_and_kept(p)
    case.close(x.grad, reference.alpha_gradient(array(gradient), kept, p), k=2)  # four roundings, as in the forward


@claim("dropout.alpha.whole-channels")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("p", PROBABILITIES)
def test_feature_alpha_dropout_drops_whole_channels(case, p):
    x = case.tensor_of(case.rng.uniform(-1, 3, (61, 7, 3, 2)))
    y = case.module(nn.FeatureAlphaDropout, p=p)(x)
    kept = by_channel(array(y) > between_dropped_and_kept(p))
    case.close(y, reference.alpha_dropout(array(x), kept, p), k=2.5, scale=alpha_scale(array(x), p))  # as above
    case.binomial(int((~kept[:, :, 0, 0]).sum()), 427, p)


# -- randomised ReLU ---------------------------------------------------------------------------------------------------


@claim("dropout.rrelu.positive-passes")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("training", [True, False])
def test_rrelu_passes_what_is_positive(case, training):
    x = case.tensor_of(case.rng.uniform(0.1, 3, 63), requires_grad=True)
    y = case.module(nn.RReLU, 0.1, 0.3).train(training)(x)
    y.backward(gradient := case.tensor(63))
    case.same(y, x)
    case.same(x.grad, gradient)


@claim("dropout.rrelu.train-slope")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("bounds", [(0.1, 0.3), (-0.5, 2.0), (0.2, 0.2)], ids=str)
def test_rrelu_slopes_lie_between_the_bounds(case, bounds):
    x = case.tensor_of(case.rng.uniform(-3, -0.1, (37, 31)))
    y = case.module(nn.RReLU, *bounds)(x)
    slopes = array(y) / array(x)
    case.close(y, array(x) * np.clip(slopes, *bounds), k=1.5)  # the slope and the product, and the bound in its dtype


@claim("dropout.rrelu.train-uniform")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_rrelu_slopes_are_uniform(case, share):
    layer, x = case.module(nn.RReLU, 0.125, 0.375), case.tensor_of([[-1.0]]).expand(503, 2)
    middle = 0.125 + share / 4
    middle += eps(case.dtype) * 2.0 ** (math.frexp(middle)[1] - 2)  # where the dtype rounds up, so that none is tied
    first, second = (array(layer(x)) < -middle for _ in range(2))
    above = (0.375 - middle) / 0.25
    case.binomial(int(first.sum()), 1006, above)
    case.binomial(int((first[:, 0] & first[:, 1]).sum()), 503, above**2)
    case.binomial(int((first & second).sum()), 1006, above**2)


@claim("dropout.rrelu.train-gradient")
@axes(dtype=FLOATING, layout=("contiguous", "transposed"))
@pytest.mark.parametrize("bounds", [(0.1, 0.3), (0.2, 0.2)], ids=str)
def test_rrelu_gradient_is_the_slope(case, bounds):
    x, gradient = case.tensor(37, 31, requires_grad=True), case.tensor(37, 31)
    y = case.module(nn.RReLU, *bounds)(x)
    y.backward(gradient)
    case.close(x.grad, array(gradient) * array(y) / array(x), k=1.5)  # a product in each pass, and their quotient


@claim("dropout.rrelu.eval-slope")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("bounds", [(0.1, 0.3), (-0.5, 2.0)], ids=str)
def test_rrelu_takes_the_mean_slope_in_eval(case, bounds):
    layer, x = case.module(nn.RReLU, *bounds).eval(), case.tensor(37, 31, requires_grad=True)
    with case.unchanged(x=x):
        y = layer(x)
    case.close(y, reference.rrelu(array(x), *bounds), k=1.5)  # the sum of the bounds, the slope, the product
    y.backward(gradient := case.tensor(37, 31))
    slope = np.where(array(x) > 0, 1.0, sum(bounds) / 2)
    case.close(x.grad, array(gradient) * slope, k=1.5)


@claim("dropout.rrelu.defaults")
def test_rrelu_defaults(case):
    layer, x = nn.RReLU(), case.tensor(63)
    assert (layer.lower, layer.upper, layer.inplace) == (1 / 8, 1 / 3, False)
    assert repr(nn.RReLU(0.25, 0.5)) == "RReLU(lower=0.25, upper=0.5)"
    case.close(case.function(F.rrelu)(x), reference.rrelu(array(x), 1 / 8, 1 / 3), k=1.5)  # as above


@claim("dropout.rrelu.inplace")
@pytest.mark.parametrize("training", [True, False])
def test_rrelu_inplace_does_the_same(case, training):
    results = []
    for inplace in (False, True):
        x = case.tensor_of(np.linspace(-3, 3, 64), requires_grad=True)
        case.reseed()
        y = case.module(nn.RReLU, 0.1, 0.3, inplace=inplace).train(training)(given := x * 1)
        y.backward(y.detach().clone())
        assert (y is given) == inplace
        results.append((y, x.grad))
    case.same(results[1][0], results[0][0])
    case.same(results[1][1], results[0][1])


@claim("dropout.rrelu.bounds")
@pytest.mark.parametrize("training", [True, False])
def test_rrelu_refuses_crossed_bounds(case, training):
    with case.raises(RuntimeError, "lower bound should be less"):
        case.module(nn.RReLU, 0.5, 0.1).train(training)(case.tensor(3))


# -- a random choice with a gradient -----------------------------------------------------------------------------------


def gumbel(case, logits, **options):
    case.reseed()
    return F.gumbel_softmax(logits, **options)


@claim("dropout.gumbel.softmax")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("dim", [0, -1])
def test_gumbel_softmax_is_a_softmax_of_noisy_scores(case, dim):
    logits = case.tensor(5, 4)
    logs = [array(gumbel(case, logits, tau=tau, dim=dim)) for tau in (1.0, 0.5)]
    case.close(gumbel(case, logits, dim=dim).sum(dim), np.ones(5 if dim else 4), k=10)  # five quotients and their sum
    squared = logs[0] ** 2 / (logs[0] ** 2).sum(dim, keepdims=True)  # tau = 1/2 doubles the scores
    size = squared * (8 + 2 * abs(np.log(squared)).max())  # an exponential carries the error of its argument
    case.close(gumbel(case, logits, tau=0.5, dim=dim), squared, k=16, scale=size)


@claim("dropout.gumbel.choice")
@pytest.mark.parametrize("hard", [True, False])
def test_gumbel_softmax_chooses_by_the_softmax(case, hard):
    logits = case.tensor_of(np.log([0.1, 0.2, 0.7])).expand(5003, 3)
    chosen = F.gumbel_softmax(logits, hard=hard).argmax(-1)
    for i, p in enumerate((0.1, 0.2, 0.7)):
        case.binomial((chosen == i).sum(), 5003, p)


@claim("dropout.gumbel.straight-through")
@pytest.mark.parametrize("dim", [0, -1])
def test_hard_choice_has_the_gradient_of_the_soft_one(case, dim):
    logits, gradient = case.tensor(5, 4, requires_grad=True), case.tensor(5, 4)
    soft, hard = gumbel(case, logits, dim=dim), gumbel(case, logits, hard=True, dim=dim)
    assert torch.equal(hard.argmax(dim), soft.argmax(dim))
    case.close(hard, array(hard).round(), k=2, scale=1.0)  # a difference and a sum with the soft choice
    assert (hard.round().sum(dim) == 1).all()
    grads = [torch.autograd.grad(y, logits, gradient)[0] for y in (soft, hard)]
    case.same(grads[1], grads[0])
    with pytest.warns(UserWarning, match="eps"):
        gumbel(case, logits, eps=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gumbel(case, logits)
