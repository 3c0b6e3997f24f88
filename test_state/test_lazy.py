"""Lazy layers, whose parameters get their shapes from the first input: cast, copied, frozen and loaded before it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from torch_conformance.marks import claim


@claim("module.register.uninitialized")
@pytest.mark.parametrize("cls", [nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer])
def test_what_has_no_shape_yet_gets_one(case, cls):
    lazy = cls(device="meta", dtype=torch.float64)
    kind = nn.Parameter if cls is nn.UninitializedParameter else torch.Tensor
    assert lazy.requires_grad is (kind is nn.Parameter)
    for use in (lambda: lazy.shape, lazy.share_memory_, lambda: lazy + 1):
        with case.raises((RuntimeError, ValueError), "uninitialized"):
            use()
    assert nn.parameter.is_lazy(lazy)
    lazy.materialize((2, 3))
    assert (type(lazy), lazy.shape, lazy.device.type, lazy.dtype) == (kind, (2, 3), "meta", torch.float64)
    assert not nn.parameter.is_lazy(lazy)
    other = cls(device="meta")
    other.materialize((4,), dtype=torch.float16)
    assert (other.shape, other.device.type, other.dtype) == ((4,), "meta", torch.float16)


@claim("module.register.uninitialized")
def test_a_copy_has_no_shape_either(case):
    lazy = nn.UninitializedParameter(requires_grad=False, dtype=torch.float16)
    once, again = copy.deepcopy([lazy, lazy])
    assert once is again is not lazy
    assert type(once) is type(lazy)
    assert (once.requires_grad, once.dtype) == (False, torch.float16)


@claim("module.register.uninitialized-elsewhere")
@pytest.mark.parametrize("cls", [nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer])
def test_what_has_no_shape_yet_may_get_it_elsewhere(case, cls):
    lazy = cls(device=case.device)
    lazy.materialize((4,), device="meta")
    assert lazy.device.type == "meta"


@claim("module.register.uninitialized-complex")
@pytest.mark.filterwarnings("ignore:Complex modules", "ignore:Lazy modules")
def test_a_lazy_layer_of_complex_numbers_is_cast(case):
    assert nn.LazyLinear(3, dtype=torch.complex64).to(torch.complex128).weight.dtype == torch.complex128


@claim("module.register.uninitialized-pickled")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_is_pickled_with_its_dtype(case):
    assert pickle.loads(pickle.dumps(nn.LazyLinear(3, dtype=torch.float64))).weight.dtype == torch.float64


@claim("module.lazy.buffers-copied")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_with_buffers_is_copied(case):
    layer = copy.deepcopy(nn.LazyBatchNorm1d(device=case.device))
    layer(case.tensor(3, 4))
    assert layer.running_mean.shape == (4,)


@claim("module.lazy.cast")
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("dtype", ["half", "bfloat16", "float", "double"])
def test_a_lazy_layer_is_cast_by_every_method(case, dtype):
    wanted = torch.float16 if dtype == "half" else getattr(torch, dtype)
    assert getattr(nn.LazyLinear(3), dtype)().weight.dtype == wanted


@claim("module.lazy.frozen")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_is_frozen_before_its_first_call(case):
    layer = nn.LazyLinear(3, device=case.device).requires_grad_(False)
    layer(case.tensor(2, 5))
    assert not layer.weight.requires_grad


@claim("module.lazy.emptied")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_is_moved_by_to_empty(case):
    layer = nn.LazyLinear(3, device="meta").to_empty(device=case.device)
    layer(case.tensor(2, 5))
    assert layer.weight.shape == (3, 5)


@claim("module.lazy.channels-loaded")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_convolution_reads_its_channels_from_what_it_loads(case):
    layer = nn.LazyConv2d(3, 3, device=case.device)
    layer.load_state_dict(nn.Conv2d(4, 3, 3, device=case.device).state_dict())
    layer(case.tensor(1, 4, 5, 5))
    assert layer.in_channels == 4


@claim("module.lazy.output-size")
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("named", [True, False])
def test_a_lazy_transposed_convolution_is_told_its_output_size(case, named):
    layer, x, size = nn.LazyConvTranspose1d(2, 3, stride=2, device=case.device), case.tensor(1, 4, 5), [12]
    assert (layer(x, output_size=size) if named else layer(x, size)).shape == (1, 2, 12)
