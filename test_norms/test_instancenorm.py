"""InstanceNorm: every plane of every sample standardised; running statistics only where they are asked for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import norms as reference
from torch_conformance.axes import FLOATING, PRECISE
from torch_conformance.checks import array, arrays, eps
from torch_conformance.marks import axes, claim

PLANES = {nn.InstanceNorm1d: (7,), nn.InstanceNorm2d: (5, 3), nn.InstanceNorm3d: (3, 2, 5)}
CLASSES = list(PLANES)
LAZY = [nn.LazyInstanceNorm1d, nn.LazyInstanceNorm2d, nn.LazyInstanceNorm3d]
BUFFERS = ["running_mean", "running_var", "num_batches_tracked"]


def parameters(layer, channels):
    """Weight and bias of the layer in float64, ones and zeros where it has none."""
    weight = np.ones(channels) if layer.weight is None else array(layer.weight)
    return weight, np.zeros(channels) if layer.bias is None else array(layer.bias)


def judge(case, y, x, layer, at=None):
    """The output keeps the law, within the roundings of sums over a plane."""
    law = array(x), x.shape[1], at or layer.eps, *parameters(layer, x.shape[1])
    k = reference.roundings(x[0, 0].numel(), eps(case.dtype))
    case.close(y, reference.group_norm(*law), k=k, scale=reference.group_norm_magnitude(*law))


@claim("norms.instancenorm.formula")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("affine", [True, False])
def test_planes_are_standardised(case, cls, affine):
    layer, x = case.module(cls, 5, eps=0.03, affine=affine), case.tensor(3, 5, *PLANES[cls], spread=2)
    judge(case, layer(x), x, layer)


@claim("norms.instancenorm.formula")
@axes(dtype=FLOATING, layout=("channels_last", "transposed", "strided", "expanded"))
@pytest.mark.parametrize("cls", CLASSES)
def test_every_memory_layout_is_taken(case, cls):
    layer, x = case.module(cls, 5, eps=0.03, affine=True), case.tensor(3, 5, *PLANES[cls], spread=2)
    judge(case, layer(x), x, layer)


@claim("norms.instancenorm.formula")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("length", [2, 3, 8, 15, 16, 17, 31, 33, 63, 65, 129])
def test_any_length_of_a_plane(case, length):
    layer, x = case.module(nn.InstanceNorm1d, 3, eps=0.03, affine=True), case.tensor(2, 3, length)
    judge(case, layer(x), x, layer)


@claim("norms.instancenorm.unbatched")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", CLASSES)
def test_one_sample_needs_no_batch_dimension(case, cls):
    layer, x = case.module(cls, 5, eps=0.3, affine=True), case.tensor(5, *PLANES[cls])
    judge(case, layer(x)[None], x[None], layer)


@claim("norms.instancenorm.eps-inside-the-root")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("at", [1e-9, 1e-5, 0.1, 7.0, 1e4])
def test_eps_is_added_to_the_variance(case, at):
    layer, x = case.module(nn.InstanceNorm1d, 5, eps=at), case.tensor(3, 5, 7, spread=np.sqrt(at))
    judge(case, layer(x), x, layer)


@claim("norms.instancenorm.default-eps")
@pytest.mark.parametrize("form", ["module", "function"])
def test_default_eps_is_1e_5(case, form):
    layer, x = case.module(nn.InstanceNorm1d, 5), case.tensor(3, 5, 7, spread=1e-3)
    y = layer(x) if form == "module" else case.function(F.instance_norm)(x)
    judge(case, y, x, layer, at=1e-5)


@claim("norms.instancenorm.large-offset")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_large_mean_costs_no_more_than_its_conditioning(case, cls):
    layer, x = case.module(cls, 5, eps=1e-3), case.tensor(3, 5, *PLANES[cls], loc=1000)
    judge(case, layer(x), x, layer)


@claim("norms.instancenorm.start")
@pytest.mark.parametrize("cls", CLASSES)
def test_starts_without_parameters_and_buffers(case, cls):
    layer = cls(5, device=case.device)
    assert not list(layer.parameters())
    assert not list(layer.buffers())
    assert not layer.state_dict()


@claim("norms.instancenorm.affine")
@pytest.mark.parametrize("cls", CLASSES)
def test_affine_brings_weight_and_bias(case, cls):
    layer = cls(5, affine=True, device=case.device)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert torch.equal(layer.weight, torch.ones(5, device=case.device))
    assert torch.equal(layer.bias, torch.zeros(5, device=case.device))


@claim("norms.instancenorm.bias-off")
@pytest.mark.parametrize("cls", CLASSES)
def test_bias_false_keeps_only_the_weight(case, cls):
    layer, x = case.module(cls, 5, eps=0.3, affine=True, bias=False), case.tensor(3, 5, *PLANES[cls])
    assert list(layer.state_dict()) == ["weight"]
    judge(case, layer(x), x, layer)


@claim("norms.instancenorm.gradients")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("cls", CLASSES)
def test_gradients(case, cls):
    layer = case.module(cls, 5, eps=0.1, affine=True).train(case.rng.random() < 0.5)  # the mode makes no difference
    x, g = case.tensor(3, 5, *PLANES[cls], requires_grad=True), case.tensor(3, 5, *PLANES[cls])
    layer(x).backward(g)
    law = array(g), array(x), 5, layer.eps, array(layer.weight)
    values, sizes = reference.group_norm_gradients(*law), reference.group_norm_gradients_magnitude(*law)
    k = reference.roundings(g[0, 0].numel(), eps(case.dtype))
    case.close(x.grad, values.x, k=2 * k, scale=sizes.x)  # averages of products with the statistics: twice as long
    case.close(layer.weight.grad, values.weight, k=2 * k + 3, scale=sizes.weight)  # then over three samples
    case.close(layer.bias.grad, values.bias, k=2 * k + 3, scale=sizes.bias)


@claim("norms.instancenorm.double-backward")
@axes(dtype=PRECISE)
def test_double_backward(case):
    layer = case.module(nn.InstanceNorm1d, 5, eps=0.5, affine=True)
    x, g = (case.tensor(2, 5, 7, requires_grad=True) for _ in range(2))
    v = case.tensor(2, 5, 7)
    (slope,) = torch.autograd.grad(layer(x), x, g, create_graph=True)
    found = torch.autograd.grad(slope, (g, x, layer.weight), v)
    at, (weight, bias) = arrays(x, v, g), parameters(layer, 5)
    laws = [
        lambda x: reference.group_norm(x, 5, 0.5, weight, bias),
        lambda x: reference.group_norm_gradients(at[2], x, 5, 0.5, weight).x,
        lambda x: reference.group_norm_gradients(at[2], x, 5, 0.5, weight).weight,
    ]
    for actual, law in zip(found, laws, strict=True):  # the size of a derivative of sums: its largest element
        expected = reference.along(law, at[0], at[1])
        case.close(actual, expected, k=4 * 7 + 8, scale=abs(expected).max())


@claim("norms.instancenorm.modes-alike")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("affine", [True, False])
def test_modes_are_alike_by_default(case, cls, affine):
    layer, x = case.module(cls, 5, eps=0.3, affine=affine), case.tensor(3, 5, *PLANES[cls])
    with case.unchanged(layer.eval(), x=x):
        evaluated = layer(x)
    with case.unchanged(layer.train(), x=x):
        case.same(layer(x), evaluated)


@claim("norms.instancenorm.running-buffers")
@pytest.mark.parametrize("cls", CLASSES)
def test_track_running_stats_brings_buffers(case, cls):
    layer = cls(5, track_running_stats=True, device=case.device)
    assert list(layer.state_dict()) == BUFFERS
    assert not list(layer.parameters())
    assert torch.equal(layer.running_mean, torch.zeros(5, device=case.device))
    assert torch.equal(layer.running_var, torch.ones(5, device=case.device))
    assert layer.num_batches_tracked == 0


@claim("norms.instancenorm.running-update")
@axes(dtype=PRECISE, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("momentum", "samples"), [(0.3, 3), (1.0, 1)])
def test_training_moves_the_running_statistics(case, cls, momentum, samples):
    layer = case.module(cls, 5, momentum=momentum, affine=True, track_running_stats=True)
    before = arrays(layer.running_mean.clone(), layer.running_var.clone())
    x = case.tensor(samples, 5, *PLANES[cls], loc=1)
    judge(case, layer.train()(x), x, layer)
    k = reference.roundings(x[:, 0].numel(), eps(case.dtype))
    found, seen = (layer.running_mean, layer.running_var), reference.instance_statistics(array(x))
    for now, old, new in zip(found, before, seen, strict=True):
        case.close(now, (1 - momentum) * old + momentum * new, k=k, scale=abs(old) + abs(array(x)).max() ** 2)


@claim("norms.instancenorm.running-update")
def test_training_changes_nothing_but_the_statistics(case):
    layer, x = case.module(nn.InstanceNorm1d, 5, affine=True, track_running_stats=True), case.tensor(3, 5, 7)
    with case.unchanged(layer.train(), x=x, but={"running_mean", "running_var"}):
        layer(x)


@claim("norms.instancenorm.default-momentum")
def test_default_momentum_is_a_tenth(case):
    layer, x = case.module(nn.InstanceNorm1d, 5, track_running_stats=True), case.tensor(3, 5, 7)
    before, seen = array(layer.running_mean.clone()), reference.instance_statistics(array(x))[0]
    layer(x)
    case.close(layer.running_mean, 0.9 * before + 0.1 * seen, k=14, scale=abs(before) + abs(array(x)).mean((0, 2)))


@claim("norms.instancenorm.eval-uses-running")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("cls", CLASSES)
def test_eval_uses_the_running_statistics(case, cls):
    layer = case.module(cls, 5, eps=0.3, affine=True, track_running_stats=True).eval()
    x = case.tensor(3, 5, *PLANES[cls])
    y = layer(x)
    law = [array(x), *arrays(layer.running_mean, layer.running_var), 0.3, *arrays(layer.weight, layer.bias)]
    size = reference.standardise_with(abs(law[0]), -abs(law[1]), law[2], 0.3, abs(law[4]), abs(law[5]))
    case.close(y, reference.standardise_with(*law), k=5, scale=size)  # sum, root, difference, two products, bias


@claim("norms.instancenorm.eval-keeps-running")
@pytest.mark.parametrize("cls", CLASSES)
def test_eval_leaves_the_running_statistics(case, cls):
    layer, x = case.module(cls, 5, affine=True, track_running_stats=True), case.tensor(3, 5, *PLANES[cls])
    with case.unchanged(layer.eval(), x=x):
        layer(x)


@claim("norms.instancenorm.eval-gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("cls", CLASSES)
def test_in_eval_the_statistics_are_constants(case, cls):
    layer = case.module(cls, 5, eps=0.3, affine=True, track_running_stats=True).eval()
    x, g = case.tensor(3, 5, *PLANES[cls], requires_grad=True), case.tensor(3, 5, *PLANES[cls])
    layer(x).backward(g)
    mean, var, weight, bias = arrays(layer.running_mean, layer.running_var, layer.weight, layer.bias)
    expected = reference.standardise_with(array(g), 0 * mean, var, 0.3, weight, 0 * bias)
    case.close(x.grad, expected, k=4)  # sum, root, two products
    hat, every = reference.standardise_with(array(x), mean, var, 0.3, 1 + 0 * mean, 0 * mean), (0, *range(2, x.ndim))
    size = reference.standardise_with(abs(array(x)), -abs(mean), var, 0.3, 1 + 0 * mean, 0 * mean)
    case.close(layer.weight.grad, (array(g) * hat).sum(every), k=96, scale=(abs(array(g)) * size).sum(every))
    case.close(layer.bias.grad, array(g).sum(every), k=90, scale=abs(array(g)).sum(every))  # 90 values a channel


@claim("norms.instancenorm.counter-stands")
def test_the_batches_are_never_counted(case):
    layer = nn.InstanceNorm1d(5, track_running_stats=True, device=case.device)
    for _ in range(3):
        layer(case.tensor(2, 5, 7))
    assert layer.num_batches_tracked == 0


@claim("norms.instancenorm.momentum-none")
def test_momentum_none_never_updates(case):
    layer = case.module(nn.InstanceNorm1d, 5, momentum=None, track_running_stats=True)
    before = arrays(layer.running_mean.clone(), layer.running_var.clone())
    layer.train()(case.tensor(2, 5, 7, loc=3))
    for now, old in zip((layer.running_mean, layer.running_var), before, strict=True):
        assert (array(now) == old).all()


@claim("norms.instancenorm.functional")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("given", ["", "weight", "bias"])
def test_functional_form_takes_weight_and_bias(case, given):
    layer, x = case.module(nn.InstanceNorm2d, 5, affine=True), case.tensor(3, 5, 2, 7)
    layer.weight, layer.bias = (getattr(layer, name) if name == given else None for name in ("weight", "bias"))
    y = case.function(F.instance_norm)(x, weight=layer.weight, bias=layer.bias, eps=0.3)
    judge(case, y, x, layer, at=0.3)


@claim("norms.instancenorm.functional-needs-statistics")
def test_without_input_statistics_running_ones_are_needed(case):
    with case.raises(RuntimeError, "running_mean and running_var"):
        case.function(F.instance_norm)(case.tensor(3, 5, 7), use_input_stats=False)


@claim("norms.instancenorm.one-spatial-element")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cls", CLASSES)
def test_one_spatial_element_is_refused_in_both_modes(case, cls, training):
    layer, x = case.module(cls, 5).train(training), case.tensor(3, 5, *[1] * len(PLANES[cls]))
    with case.raises(ValueError, "more than 1 spatial element"):
        layer(x)
    tracking = case.module(cls, 5, track_running_stats=True).eval()
    assert tracking(x).shape == x.shape


@claim("norms.instancenorm.num-features")
def test_other_channels_are_refused_with_parameters_only(case):
    x = case.tensor(3, 6, 7)
    with case.raises(ValueError, "num_features"):
        case.module(nn.InstanceNorm1d, 5, affine=True)(x)
    with pytest.warns(UserWarning, match="num_features"):
        y = case.module(nn.InstanceNorm1d, 5, eps=0.3)(x)
    judge(case, y, x, case.module(nn.InstanceNorm1d, 6, eps=0.3))


@claim("norms.instancenorm.rank-error")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("off", [-2, 1])
def test_another_rank_is_refused(case, cls, off):
    with case.raises(ValueError, r"expected \dD"):
        case.module(cls, 5)(case.tensor(*[5] * (len(PLANES[cls]) + 2 + off)))


@claim("norms.instancenorm.lazy-defaults")
@pytest.mark.parametrize("cls", LAZY)
def test_lazy_form_has_parameters_and_buffers(case, cls):
    layer = cls(device=case.device)
    layer(case.tensor(3, 5, *[2] * (LAZY.index(cls) + 1)))
    assert list(layer.state_dict()) == ["weight", "bias", *BUFFERS]
    assert type(layer) is CLASSES[LAZY.index(cls)]
    assert layer.weight.shape == (5,)


@claim("norms.instancenorm.lazy-rank")
@pytest.mark.parametrize("cls", LAZY)
@pytest.mark.filterwarnings("ignore:.*num_features")
def test_lazy_form_takes_the_ranks_of_the_regular_one(case, cls):
    rank = LAZY.index(cls) + 3
    layer, x = cls(eps=0.3, device=case.device), case.tensor(*[5] * (rank - 1))
    y = layer(x)  # one sample, the channels first
    judge(case, y[None], x[None], layer)
    bare = cls(affine=False, track_running_stats=False)  # nothing to wait for: the method itself may be called
    for given in (x, case.tensor(*[5] * rank)):
        assert bare.forward(given).shape == given.shape
    for off in (-2, 1):
        with case.raises(ValueError, r"expected \dD"):
            bare.forward(case.tensor(*[5] * (rank + off)))


@claim("norms.instancenorm.checkpoint-without-version")
def test_statistics_of_old_checkpoints_are_refused(case):
    layer, values = case.module(nn.InstanceNorm1d, 5, affine=True), case.tensor(5)
    old = {"0.weight": values, "0.bias": values, "0.running_var": values.abs()}
    with case.raises(RuntimeError, '"0.running_var" for InstanceNorm1d with track_running_stats=False'):
        nn.Sequential(layer).load_state_dict(old)
    case.same(layer.weight.detach(), values)
    del old["0.running_var"]
    nn.Sequential(layer).load_state_dict(old)
    tracking = case.module(nn.InstanceNorm1d, 5, track_running_stats=True)
    current = {"running_mean": values, "running_var": values.abs(), "num_batches_tracked": torch.tensor(3)}
    tracking.load_state_dict(current)
    case.same(tracking.running_mean, values)
    current = tracking.state_dict()
    with case.raises(RuntimeError, "unexpected key"):
        case.module(nn.InstanceNorm1d, 5).load_state_dict(current)


@claim("norms.instancenorm.no-elements")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("affine", [False, True])
def test_an_empty_batch_gives_an_empty_result(case, affine):
    layer, x = case.module(nn.InstanceNorm1d, 6, affine=affine), case.tensor(0, 6, 5, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 6, 5)
    assert not affine or not (layer.weight.grad.any() or layer.bias.grad.any())


@claim("norms.instancenorm.empty-batch-tells-nothing")
def test_an_empty_batch_leaves_running_statistics_finite(case):
    layer = case.module(nn.InstanceNorm1d, 3, track_running_stats=True)
    layer(case.tensor(0, 3, 2))
    assert layer.running_mean.isfinite().all(), "the mean of no samples is NaN"
    assert layer.running_var.isfinite().all(), "the variance of no samples is NaN"


@claim("norms.instancenorm.one-sample-strides")
@axes(via="eager")
def test_gradients_of_one_sample_do_not_depend_on_layout(case):
    layer, g = case.module(nn.InstanceNorm2d, 3, affine=True), case.tensor(1, 3, 5, 4)
    layer(case.tensor(1, 3, 5, 4)).backward(g.contiguous(memory_format=torch.channels_last))
    case.close(layer.bias.grad, array(g).sum((0, 2, 3)), k=20, scale=abs(array(g)).sum((0, 2, 3)))  # 20 terms


@claim("norms.instancenorm.lazy-unbatched")
def test_a_lazy_layer_takes_a_sample_without_batch(case):
    layer, x = nn.LazyInstanceNorm1d(eps=0.03, device=case.device), case.tensor(3, 7)
    layer(x)
    assert layer.num_features == 3


@claim("norms.instancenorm.lazy-loaded")
def test_a_lazy_layer_runs_with_the_state_that_it_loads(case):
    options = {"affine": True, "track_running_stats": True, "device": case.device}
    layer, other = nn.LazyInstanceNorm1d(**options), nn.InstanceNorm1d(3, **options)
    layer.load_state_dict(other.state_dict())
    layer(case.tensor(2, 3, 5, dtype=torch.float32))
    assert layer.num_features == 3
