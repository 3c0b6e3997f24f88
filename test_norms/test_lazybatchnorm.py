"""LazyBatchNorm: a layer that reads its channels off the first input, and is a BatchNorm from then on."""

import numpy as np
import pytest
import torch
from torch import nn

from test_norms.batchnorms import (
    CLASSES,
    EPS,
    INPUTS,
    close_to_train,
    close_to_updated,
    inputs,
)
from torch_conformance.marks import claim


@claim("batchnorm.lazy.becomes-regular")
@inputs
def test_lazy_layer_becomes_regular(case, cls, shape):
    options = {"eps": EPS, "momentum": 0.7, "device": case.device}
    layer, x = getattr(nn, f"Lazy{cls.__name__}")(**options), case.tensor(*shape, loc=1.5)
    first = layer(x)
    assert type(layer) is cls
    assert layer.num_features == 5
    close_to_train(case, first, x, 1.0, 0.0, EPS)
    close_to_updated(case, layer, (np.zeros(5), np.ones(5)), x, 0.7)
    assert list(layer.state_dict()) == list(cls(5).state_dict())


@claim("batchnorm.lazy.uninitialised")
@pytest.mark.parametrize("cls", CLASSES)
def test_lazy_layer_has_no_shapes(case, cls):
    layer = getattr(nn, f"Lazy{cls.__name__}")(dtype=torch.float64)
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert getattr(layer, name).dtype == torch.float64
        with case.raises(RuntimeError, "shape of an uninitialized"):
            assert getattr(layer, name).shape
    case.same(layer.num_batches_tracked, torch.tensor(0))
    assert (layer.num_features, layer.eps, layer.momentum) == (0, 1e-5, 0.1)
    assert (layer.affine, layer.track_running_stats) == (True, True)


@claim("batchnorm.lazy.rank")
@inputs
def test_lazy_layer_takes_the_ranks_of_the_regular_one(case, cls, shape):
    lazy = getattr(nn, f"Lazy{cls.__name__}")
    bare = lazy(EPS, affine=False, track_running_stats=False)  # nothing to wait for: forward itself may be called
    close_to_train(case, bare.forward(x := case.tensor(*shape, loc=1.5)), x, 1.0, 0.0, EPS)
    for wrong in {1, 2, 3, 4, 5, 6} - {len(s) for c, s in INPUTS if c is cls}:
        with case.raises(ValueError, r"expected \dD"):
            bare.forward(case.tensor(*[2] * wrong))


@claim("batchnorm.lazy.becomes-regular")
def test_lazy_layer_of_one_channel_starts_like_any(case):
    layer = nn.LazyBatchNorm1d(device=case.device)
    layer.eval()(case.tensor(9, 1))
    expected = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for name, value in expected.items():
        case.same(getattr(layer, name).detach(), torch.full((1,), value))


@claim("batchnorm.lazy.settings")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("with_affine", "tracked"), [(True, False), (False, True), (False, False)])
def test_lazy_layer_keeps_its_settings(case, cls, with_affine, tracked):
    settings = {"eps": EPS, "momentum": 0.7, "affine": with_affine, "track_running_stats": tracked}
    layer = getattr(nn, f"Lazy{cls.__name__}")(**settings, device=case.device)
    x = case.tensor(*dict(INPUTS)[cls], loc=1.5)
    close_to_train(case, layer(x), x, 1.0, 0.0, EPS)
    assert {name: getattr(layer, name) for name in settings} == settings
    assert list(layer.state_dict()) == list(cls(5, **settings).state_dict())


@claim("batchnorm.lazy.loaded")
@pytest.mark.parametrize("cls", CLASSES)
def test_a_lazy_layer_has_the_channels_of_the_state_that_it_loads(case, cls):
    layer = getattr(nn, f"Lazy{cls.__name__}")(device=case.device)
    layer.load_state_dict(cls(5, device=case.device).state_dict())
    assert layer.num_features == 5
