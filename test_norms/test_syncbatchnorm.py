"""SyncBatchNorm in one process, and the conversion of other layers to it."""

import pytest
import torch
from torch import nn

from test_norms.batchnorms import (
    BUFFERS,
    EPS,
    INPUTS,
    affine,
    close_to_eval,
    close_to_train,
    close_to_updated,
    no_longer_tracks,
    statistics,
)
from torch_conformance.checks import array
from torch_conformance.marks import claim


@claim("batchnorm.sync.weight-uniform")
def test_weight_of_sync_batchnorm_starts_at_one(case):
    assert (nn.SyncBatchNorm(129).weight == 1).all()


@claim("batchnorm.sync.single-process")
@pytest.mark.parametrize("shape", [s for _, s in INPUTS] + [(2, 5, 3, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_sync_batchnorm_of_one_process(case, shape, momentum):
    layer, x = case.module(nn.SyncBatchNorm, 5, eps=EPS, momentum=momentum), case.tensor(*shape, loc=1.5)
    before, rate = statistics(layer), momentum or 1 / (int(layer.num_batches_tracked) + 1)
    with case.unchanged(layer, x=x, but=BUFFERS):
        close_to_train(case, layer(x), x, *affine(layer), EPS)
    close_to_updated(case, layer, before, x, rate)
    with case.unchanged(layer.eval(), x=x):
        close_to_eval(case, layer(x), x, *statistics(layer), *affine(layer), EPS)


@claim("batchnorm.sync.single-process")
def test_sync_batchnorm_refuses_vectors_and_no_channels(case):
    with case.raises(ValueError, "at least 2D"):
        case.module(nn.SyncBatchNorm, 5)(case.tensor(5))
    with case.raises(ValueError, "channels should be non-zero"):
        case.module(nn.SyncBatchNorm, 5)(case.tensor(9, 0))


@claim("batchnorm.sync.single-process")
def test_untracked_sync_batchnorm_uses_the_batch(case):
    layer, x = case.module(nn.SyncBatchNorm, 5, eps=EPS, track_running_stats=False), case.tensor(9, 5, loc=1.5)
    for training in (True, False):
        close_to_train(case, layer.train(training)(x), x, *affine(layer), EPS)
    half = case.module(nn.SyncBatchNorm, 5).eval()
    half.running_mean = None  # the variance alone is not taken for an untracked layer
    with case.raises(RuntimeError, "running_mean"):
        half(x)


@claim("batchnorm.sync.single-process")
def test_tracking_of_sync_batchnorm_switched_off_later(case):
    no_longer_tracks(case, case.module(nn.SyncBatchNorm, 5, eps=EPS), case.tensor(9, 5, loc=1.5))


@claim("batchnorm.sync.convert")
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
def test_conversion_takes_tensors_and_settings_over(case, settings):
    group = object()
    old = case.module(nn.BatchNorm2d, 5, eps=EPS, momentum=0.7, **settings)
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"inner": old}))
    found = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
    new, names = model[1]["inner"], ("weight", "bias", *sorted(BUFFERS))
    assert (found is model, type(new), type(model[0])) == (True, nn.SyncBatchNorm, nn.Linear)
    assert all(getattr(new, name) is getattr(old, name) for name in names)
    assert (new.num_features, new.eps, new.momentum, new.process_group) == (5, EPS, 0.7, group)
    assert (new.affine, new.track_running_stats) == (old.affine, old.track_running_stats)
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(old)) is nn.SyncBatchNorm


@claim("batchnorm.sync.convert-without-bias")
def test_conversion_keeps_a_layer_without_bias(case):
    old = case.module(nn.BatchNorm1d, 5, eps=EPS, bias=False)
    new, x = nn.SyncBatchNorm.convert_sync_batchnorm(old), case.tensor(9, 5, loc=1.5)
    assert new.weight is old.weight
    assert list(new.state_dict()) == ["weight", "running_mean", "running_var", "num_batches_tracked"]
    assert "bias=False" in repr(new)
    close_to_train(case, new(x), x, array(old.weight), 0.0, EPS)


@claim("batchnorm.sync.convert-keeps-mode")
@pytest.mark.parametrize("training", [True, False])
def test_conversion_keeps_the_mode(case, training):
    old = nn.BatchNorm1d(5).train(training)
    old.qconfig = "of quantisation"
    new = nn.SyncBatchNorm.convert_sync_batchnorm(old)
    assert (new.training, new.qconfig) == (training, "of quantisation")


@claim("batchnorm.sync.needs-an-accelerator")
def test_sync_batchnorm_trains_on_the_cpu_in_one_process_alone(case, monkeypatch):
    if case.device.type != "cpu":
        raise case.unsupported("the claim is of the CPU")
    layer, x = case.module(nn.SyncBatchNorm, 5), case.tensor(9, 5)
    for name, value in (("is_available", True), ("is_initialized", True)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with (
        case.raises(ValueError, "SyncBatchNorm expected input tensor to be on (the )?GPU"),
        case.unchanged(layer, x=x, but={"num_batches_tracked"}),
    ):
        layer.train()(x)
    layer.eval()(x)


@claim("batchnorm.sync.convert-shared")
def test_a_layer_of_two_names_is_converted_under_both(case):
    shared = nn.BatchNorm1d(3)
    found = nn.SyncBatchNorm.convert_sync_batchnorm(nn.ModuleDict({"a": shared, "b": shared}))
    assert type(found["a"]) is type(found["b"]) is nn.SyncBatchNorm
