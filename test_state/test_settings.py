"""Layers keep the settings that they were made with, and activations act in place where asked to."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

INPLACE = {"inplace": (False, True)}
MEAN = {"reduction": ("mean", "sum")}
RUNNING = {"eps": (1e-5, 0.1), "momentum": (0.1, 0.3), "affine": (True, False), "track_running_stats": (True, False)}
INSTANCE = RUNNING | {"affine": (False, True), "track_running_stats": (False, True)}
LAYERS = {
    "num_layers": (1, 2), "bias": (True, False), "batch_first": (False, True), "dropout": (0.0, 0.3),
    "bidirectional": (False, True),
}  # fmt: skip
BIAS = {"bias": (True, False)}
SIZES = {"input_size": 5, "hidden_size": 4}
# what must be given, and each option with its default and something else
SETTINGS = {
    "Linear": ({"in_features": 5, "out_features": 3}, BIAS),
    "Bilinear": ({"in1_features": 5, "in2_features": 4, "out_features": 3}, BIAS),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"), ({"num_features": 4}, RUNNING)),
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), ({"num_features": 4}, INSTANCE)),
    "GroupNorm": ({"num_groups": 2, "num_channels": 4}, {"eps": (1e-5, 0.1), "affine": (True, False)}),
    "LayerNorm": ({"normalized_shape": (4,)}, {"eps": (1e-5, 0.1), "elementwise_affine": (True, False)}),
    "RMSNorm": ({"normalized_shape": (4,)}, {"eps": (None, 0.1), "elementwise_affine": (True, False)}),
    "LocalResponseNorm": ({"size": 3}, {"alpha": (1e-4, 0.2), "beta": (0.75, 0.3), "k": (1.0, 2.0)}),
    "CrossMapLRN2d": ({"size": 3}, {"alpha": (1e-4, 0.2), "beta": (0.75, 0.3), "k": (1, 2)}),
    **dict.fromkeys(
        ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"),
        ({}, {"p": (0.5, 0.3)} | INPLACE),
    ),
    "RNN": (SIZES, LAYERS | {"nonlinearity": ("tanh", "relu")}),
    "LSTM": (SIZES, LAYERS | {"proj_size": (0, 2)}),
    "GRU": (SIZES, LAYERS),
    "RNNCell": (SIZES, BIAS | {"nonlinearity": ("tanh", "relu")}),
    "LSTMCell": (SIZES, BIAS),
    "GRUCell": (SIZES, BIAS),
    "MultiheadAttention": ({"embed_dim": 6, "num_heads": 3}, {"dropout": (0.0, 0.3), "batch_first": (False, True)}),
    **dict.fromkeys(("ReLU", "ReLU6", "SELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid"), ({}, INPLACE)),
    **dict.fromkeys(("ELU", "CELU"), ({}, {"alpha": (1.0, 0.7)} | INPLACE)),
    "LeakyReLU": ({}, {"negative_slope": (0.01, 0.2)} | INPLACE),
    "RReLU": ({}, {"lower": (1 / 8, 0.2), "upper": (1 / 3, 0.7)} | INPLACE),
    "Threshold": ({"threshold": 0.5, "value": 2.0}, INPLACE),
    "Hardtanh": ({}, {"min_val": (-1.0, -2.0), "max_val": (1.0, 3.0)} | INPLACE),
    **dict.fromkeys(("Hardshrink", "Softshrink"), ({}, {"lambd": (0.5, 0.2)})),
    "Softplus": ({}, {"beta": (1, 2.0), "threshold": (20, 3.0)}),
    "GELU": ({}, {"approximate": ("none", "tanh")}),
    "GLU": ({}, {"dim": (-1, 1)}),
    "PReLU": ({}, {"num_parameters": (1, 3)}),
    **dict.fromkeys(("Softmin", "Softmax", "LogSoftmax"), ({}, {"dim": (None, 1)})),
    "Flatten": ({}, {"start_dim": (1, 0), "end_dim": (-1, 2)}),
    "CosineSimilarity": ({}, {"dim": (1, 0), "eps": (1e-8, 0.1)}),
    **dict.fromkeys(
        ("L1Loss", "MSELoss", "BCELoss", "BCEWithLogitsLoss", "SoftMarginLoss", "MultiLabelMarginLoss",
         "MultiLabelSoftMarginLoss"), ({}, MEAN)),
    "SmoothL1Loss": ({}, MEAN | {"beta": (1.0, 0.3)}),
    "HuberLoss": ({}, MEAN | {"delta": (1.0, 0.3)}),
    "NLLLoss": ({}, MEAN | {"ignore_index": (-100, 1)}),
    "CrossEntropyLoss": ({}, MEAN | {"ignore_index": (-100, 1), "label_smoothing": (0.0, 0.3)}),
    "PoissonNLLLoss": ({}, MEAN | {"log_input": (True, False), "full": (False, True), "eps": (1e-8, 0.1)}),
    "GaussianNLLLoss": ({}, MEAN | {"full": (False, True), "eps": (1e-6, 0.1)}),
    "KLDivLoss": ({}, MEAN | {"log_target": (False, True)}),
    "HingeEmbeddingLoss": ({}, MEAN | {"margin": (1.0, 0.3)}),
    **dict.fromkeys(("CosineEmbeddingLoss", "MarginRankingLoss"), ({}, MEAN | {"margin": (0.0, 0.3)})),
    "MultiMarginLoss": ({}, MEAN | {"p": (1, 2), "margin": (1.0, 0.3)}),
    "TripletMarginLoss": (
        {}, MEAN | {"margin": (1.0, 0.3), "p": (2.0, 3.0), "eps": (1e-6, 0.1), "swap": (False, True)}),
    "TripletMarginWithDistanceLoss": ({}, MEAN | {"margin": (1.0, 0.3), "swap": (False, True)}),
    "CTCLoss": ({}, MEAN | {"blank": (0, 1), "zero_infinity": (False, True)}),
}  # fmt: skip


@claim("module.settings.kept")
def test_layers_keep_what_they_were_made_with(case):
    for name in SETTINGS.keys() & vars(nn).keys():
        required, options = SETTINGS[name]
        for chosen in (0, 1):
            wanted = {option: values[chosen] for option, values in options.items()}
            layer = getattr(nn, name)(*required.values(), **(wanted if chosen else {}))
            for option, value in {**required, **wanted}.items():
                found = getattr(layer, option, "missing")
                if isinstance(found, nn.Parameter) or (option == "bias" and found is None):
                    found = found is not None
                assert found == value, f"{name}: {option} is {found!r}, not {value!r}"


ACTIVATIONS = {
    "ReLU": {}, "ReLU6": {}, "SiLU": {}, "Mish": {}, "ELU": {"alpha": 0.7}, "CELU": {"alpha": 0.7}, "SELU": {},
    "LeakyReLU": {"negative_slope": 0.3}, "Threshold": {"threshold": 0.2, "value": 0.5}, "Hardtanh": {"min_val": -0.4},
    "RReLU": {"lower": 0.2, "upper": 0.2}, "Hardsigmoid": {}, "Hardswish": {},
}  # fmt: skip


@claim("module.activation.in-place")
def test_activations_in_place_change_their_input(case):
    for name, options in ACTIVATIONS.items():
        cls, x = getattr(nn, name), case.tensor(33)
        before, wanted = x.clone(), cls(**options)(x)
        case.same(x, before)
        y = cls(**options, inplace=True)(x)
        assert y is x, f"{name} makes a new tensor"
        case.same(y, wanted)
        assert not torch.equal(wanted, before), name


@claim("module.activation.in-place")
def test_relu6_in_place_changes_its_input(case):
    """The function; the layer goes by hardtanh."""
    x = case.tensor_of([-1.0, 0.5, 7.0])
    case.same(F.relu6(x), clipped := case.tensor_of([0.0, 0.5, 6.0]))
    case.same(x, case.tensor_of([-1.0, 0.5, 7.0]))
    assert F.relu6(x, inplace=True) is x
    case.same(x, clipped)


@claim("module.activation.softmax-dim")
def test_softmax_chooses_its_dimension_with_a_warning(case):
    for shape, dim in (((), 0), ((3,), 0), ((3, 4), 1), ((3, 4, 5), 0), ((2, 3, 4, 5), 1)):
        x = case.tensor(*shape)
        for name in ("Softmax", "LogSoftmax", "Softmin"):
            made = getattr(nn, name)()
            old = type(made).__new__(type(made))
            old.__setstate__({key: value for key, value in vars(made).items() if key != "dim"})
            for each in (made, old):
                with pytest.warns(UserWarning, match="Implicit dimension choice"):
                    y = each(x)
                assert torch.equal(y, getattr(nn, name)(dim)(x)), f"{name} of {shape}"
    for shape in ((3, 4, 5), (2, 3, 4, 5)):
        x = case.tensor(*shape)
        case.same(nn.Softmax2d()(x), x.softmax(-3))
    for shape in ((3, 4), (1, 2, 3, 4, 5)):
        with case.raises((ValueError, AssertionError), "3D or 4D|2D or 3D|expected input"):
            nn.Softmax2d()(case.tensor(*shape))


@claim("module.activation.softmax-dim-is-a-number")
@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Softmin"])
def test_a_dimension_that_is_no_number_is_refused(case, name):
    with case.raises(TypeError, "dim"):
        getattr(nn, name)(dim="1")


@claim("module.activation.elu-near-zero")
@axes(dtype="float32")
@pytest.mark.parametrize("name", ["ELU", "CELU", "SELU"])
def test_small_negative_numbers_keep_their_digits(case, name):
    x = case.tensor_of([-1e-9, -3e-8, -2e-6, -1e-3, -0.5, -5.0])
    factor = {"ELU": 1.0, "CELU": 1.0, "SELU": 1.6732632423543772 * 1.0507009873554805}[name]
    law = factor * np.expm1(array(x))
    case.close(getattr(nn, name)()(x), law, k=4, scale=abs(law))  # expm1 is good to two, and two products follow
