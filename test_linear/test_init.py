"""Initialisation: the functions of torch.nn.init, and what every new layer starts with."""

import math
import warnings
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

from specs.reference import init as reference
from torch_conformance.axes import FLOATING, PRECISE, REDUCED
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim
from torch_conformance.switches import switched

init = nn.init
SHAPES = [(9, 101), (11, 7, 13), (11, 7, 3, 5)]
FILLS = {
    "uniform_": (9, 9),
    "normal_": (9, 9),
    "trunc_normal_": (9, 9),
    "constant_": (9, 9),
    "ones_": (9, 9),
    "zeros_": (9, 9),
    "eye_": (9, 9),
    "dirac_": (4, 4, 3),
    "xavier_uniform_": (9, 9),
    "xavier_normal_": (9, 9),
    "kaiming_uniform_": (9, 9),
    "kaiming_normal_": (9, 9),
    "orthogonal_": (9, 9),
    "sparse_": (9, 9),
}
RANDOM = [name for name in FILLS if name not in ("constant_", "ones_", "zeros_", "eye_", "dirac_")]
EXTRA = {"constant_": {"val": 0.3}, "sparse_": {"sparsity": 0.3}}


def fill(name, tensor, **options):
    return getattr(init, name)(tensor, **{**EXTRA.get(name, {}), **options})


def draws(case, tensor, borders):
    """The tensor holds independent draws with equal probability in each of the intervals between the borders."""
    for count in reference.counts(array(tensor), borders):
        case.binomial(int(count), tensor.numel(), 1 / (len(borders) + 1))


def is_uniform(case, tensor, bound):
    """Uniform within ±bound, which nothing passes by more than its own rounding."""
    assert array(tensor.abs().max()) <= bound * (1 + torch.finfo(tensor.dtype).eps)
    draws(case, tensor, reference.uniform_cells(-bound, bound))


def is_normal(case, tensor, std, mean=0.0):
    assert abs(array(tensor) - mean).max() < 8 * std  # of a thousand draws, one lies beyond that once in 1e12
    draws(case, tensor, reference.normal_cells(mean, std))
    draws(case, tensor, reference.normal_cells(mean, std, 2))


# -- the functions -----------------------------------------------------------------------------------------------------


@claim("init.functions.in-place")
@pytest.mark.parametrize("name", FILLS)
def test_functions_write_in_place_without_a_graph(case, name):
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.full(FILLS[name], 7.0, device=case.device))
    result = fill(name, layer.weight)
    assert result is layer.weight
    assert layer.weight.requires_grad
    assert layer.weight.is_leaf
    assert layer.weight.grad_fn is None
    assert (layer.weight != 7).all()
    assert torch.is_grad_enabled()


@claim("init.functions.dtype-and-layout")
@axes(dtype=("bfloat16", "float64"), layout=("contiguous", "transposed"))
@pytest.mark.parametrize("name", [name for name in FILLS if name not in ("orthogonal_", "trunc_normal_")])
def test_functions_keep_dtype_and_strides(case, name):
    tensor = case.tensor(*FILLS[name])
    before = tensor.dtype, tensor.stride(), tensor.data_ptr()
    fill(name, tensor)
    assert (tensor.dtype, tensor.stride(), tensor.data_ptr()) == before


@claim("init.functions.constants")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
def test_constants(case):
    x = case.tensor(11, 13)
    assert (init.constant_(x, 0.25) == 0.25).all()
    assert (init.ones_(x) == 1).all()
    assert (init.zeros_(x) == 0).all()


@claim("init.functions.uniform")
@axes(dtype=PRECISE)
@pytest.mark.parametrize(("low", "high"), [(-3.0, 1.5), (2.0, 2.5)])
def test_uniform(case, low, high):
    for x in (case.tensor(1103), case.tensor(29, 38).t()):
        init.uniform_(x, low, high)
        assert low <= x.min()
        assert x.max() <= high
        draws(case, x, reference.uniform_cells(low, high))


@claim("init.functions.uniform")
@axes(dtype=REDUCED)
def test_uniform_keeps_its_bounds_in_low_precision(case):
    x = init.uniform_(case.tensor(1103), 2.0, 2.5)
    assert x.min() >= 2.0
    assert x.max() <= 2.5


@claim("init.functions.normal")
@axes(dtype=PRECISE)
def test_normal(case):
    is_normal(case, init.normal_(case.tensor(1103), -3.0, 0.3), 0.3, mean=-3.0)
    is_normal(case, init.normal_(case.tensor(29, 38).t(), -3.0, 0.3), 0.3, mean=-3.0)
    small = torch.cat([init.normal_(case.tensor(7), -3.0, 0.3) for _ in range(99)])  # drawn one by one
    is_normal(case, small, 0.3, mean=-3.0)


@claim("init.functions.normal")
@axes(dtype=REDUCED, layout=("contiguous", "transposed"))
def test_normal_in_low_precision(case):
    x = init.normal_(case.tensor(29, 38), -3.0, 0.3)
    for border in (-3.25, -2.75):  # rounded to it or below: at most half a step above, which is eps between 2 and 4
        p = NormalDist(-3.0, 0.3).cdf(border + torch.finfo(case.dtype).eps)
        case.binomial(int((x <= border).sum()), x.numel(), p)


@claim("init.functions.independent")
@axes(dtype="float64", layout=("contiguous", "transposed"))
@pytest.mark.parametrize("name", [name for name in RANDOM if name != "sparse_"])
def test_no_two_elements_are_the_same_draw(case, name):
    for shape in [(23, 17), (5, 3)]:
        values = fill(name, case.tensor(*shape))
        assert values.abs().unique().numel() == values.numel()  # by chance: once in 1e10


@claim("init.functions.independent")
@axes(dtype="float64")
@pytest.mark.parametrize("name", ["uniform_", "normal_"])
def test_no_block_of_many_draws_repeats_another(case, name):
    values = fill(name, case.tensor(40_002))  # more than a thread takes at once
    assert values.unique().numel() > 40_000  # one pair is the same by chance once in 1e7, two are once in 1e14


@claim("init.functions.defaults")
def test_defaults_of_uniform_and_normal(case):
    x = init.uniform_(case.tensor(997))
    assert 0 <= x.min() <= x.max() <= 1
    draws(case, x, reference.uniform_cells(0, 1))
    is_normal(case, init.normal_(x), 1.0)


@claim("init.functions.defaults")
def test_options_left_out_are_those_documented(case):
    for name, options in {
        "uniform_": {"a": 0.0, "b": 1.0},
        "normal_": {"mean": 0.0, "std": 1.0},
        "trunc_normal_": {"mean": 0.0, "std": 1.0, "a": -2.0, "b": 2.0},
        "dirac_": {"groups": 1},
        "xavier_uniform_": {"gain": 1.0},
        "xavier_normal_": {"gain": 1.0},
        "kaiming_uniform_": {"a": 0, "mode": "fan_in", "nonlinearity": "leaky_relu"},
        "kaiming_normal_": {"a": 0, "mode": "fan_in", "nonlinearity": "leaky_relu"},
        "orthogonal_": {"gain": 1},
        "sparse_": {"std": 0.01},
    }.items():
        filled = []
        for given in ({}, options):
            torch.manual_seed(case.seed)
            filled.append(array(fill(name, torch.zeros((4, 6, 3) if name == "dirac_" else (9, 7)), **given)))
        assert np.array_equal(*filled), name


@claim("init.truncnormal.bounds")
@axes(dtype=PRECISE)
@pytest.mark.parametrize(
    ("mean", "std", "low", "width"),
    [
        (0.5, 2.0, -1.0, 3.0),
        (0.0, 1.0, -0.1, 0.3),
        (0.0, 1.0, 0.5, 2.5),
        (0.0, 1.0, 1.0, 2.0),
        (1.0, 0.7, 0.0, 4.0),
        (0.5, 2.0, 1.5, 1.0),
    ],
)
def test_truncated_normal_keeps_its_bounds_and_its_distribution(case, mean, std, low, width):
    high = low + width
    for x in (case.tensor(997), case.tensor(29, 38).t()):
        init.trunc_normal_(x, mean, std, low, high)
        slack = 4 * torch.finfo(x.dtype).eps * max(abs(low), abs(high))
        assert low - slack <= array(x).min() <= array(x).max() <= high + slack
        draws(case, x, reference.truncated_cells(mean, std, low, high))


@claim("init.truncnormal.warns-of-a-far-mean")
def test_truncation_beside_the_mean_is_warned_of(case):
    for low, high in ((3.0, 4.0), (-5.0, -2.5)):
        with pytest.warns(UserWarning, match="mean is more than 2 std"):
            init.trunc_normal_(case.tensor(5), 0.0, 1.0, low, high)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for low, high in ((-1.0, 1.0), (1.5, 3.0), (-3.0, -1.5)):
            init.trunc_normal_(case.tensor(5), 0.0, 1.0, low, high)


@claim("init.truncnormal.far-tail")
def test_truncated_normal_far_out_in_the_tail(case):
    x = init.trunc_normal_(case.tensor(997), 0.0, 1.0, 6.5, 9.0)
    assert len(np.unique(array(x))) > 500  # 997 draws of a float32 near 7: a dozen coincide
    assert np.median(array(x)) < 7.5  # half of it lies below 6.61


@claim("init.truncnormal.far-bounds")
@axes(dtype=REDUCED)
def test_far_bounds_attract_no_draws(case):
    x = init.trunc_normal_(case.tensor(39_989), 0.5, 0.02, -3.0, 4.0)
    far = int(((x - 0.5).abs() > 0.25).sum())  # twelve deviations: once in 1e33 draws
    assert far == 0, f"{far} of {x.numel()} draws lie more than twelve deviations from the mean, up to {x.max()}"


@claim("init.truncnormal.bounds-absolute")
def test_truncation_is_absolute_and_not_in_units_of_std(case):
    x = init.trunc_normal_(case.tensor(997), std=0.02)
    assert x.abs().max() > 2 * 0.02  # 997 draws all within two deviations: once in 1e20
    is_normal(case, x, 0.02)
    wide = init.trunc_normal_(x, std=2.0)
    assert wide.abs().max() <= 2
    draws(case, wide, reference.truncated_cells(0.0, 2.0, -2.0, 2.0))


@claim("init.fan.definition")
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 7), (3, 5, 2, 4), (3, 5, 2, 4, 3)], ids=str)
def test_fans_are_channels_times_the_receptive_field(case, shape):
    for mode in ("fan_in", "fan_out"):
        x = init.kaiming_uniform_(torch.empty(8 * shape[0], *shape[1:]), mode=mode, nonlinearity="linear")
        bound = math.sqrt(3) * reference.kaiming_std(x.shape, 1.0, mode)
        assert 0.5 * bound < x.abs().max() <= bound * (1 + 1e-6)


@claim("init.fan.too-few-dimensions")
@pytest.mark.parametrize("name", ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"])
@pytest.mark.parametrize("shape", [(), (7,)], ids=str)
def test_fans_need_two_dimensions(case, name, shape):
    with case.raises(ValueError, "fewer than 2 dimensions"):
        fill(name, torch.empty(shape))


@claim("init.fan.unknown-mode")
@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
def test_an_unknown_mode_is_refused(case, name):
    with case.raises(ValueError, "mode .*not supported"):
        fill(name, torch.empty(3, 5), mode="fan_avg")


@claim("init.xavier.uniform")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_xavier_uniform(case, shape):
    x = init.xavier_uniform_(case.tensor(*shape), gain=1.7)
    is_uniform(case, x, math.sqrt(3) * reference.xavier_std(shape, 1.7))


@claim("init.xavier.normal")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_xavier_normal(case, shape):
    is_normal(case, init.xavier_normal_(case.tensor(*shape), gain=1.7), reference.xavier_std(shape, 1.7))


@claim("init.xavier.default-gain")
def test_xavier_gain_is_one_by_default(case):
    is_uniform(case, init.xavier_uniform_(case.tensor(29, 31)), math.sqrt(3) * reference.xavier_std((29, 31), 1.0))
    is_normal(case, init.xavier_normal_(case.tensor(29, 31)), reference.xavier_std((29, 31), 1.0))


@claim("init.kaiming.uniform")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kaiming_uniform(case, shape, mode):
    x = init.kaiming_uniform_(case.tensor(*shape), a=0.7, mode=mode)
    is_uniform(case, x, math.sqrt(3) * reference.kaiming_std(shape, reference.leaky_gain(0.7), mode))


@claim("init.kaiming.normal")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kaiming_normal(case, shape, mode):
    x = init.kaiming_normal_(case.tensor(*shape), a=0.7, mode=mode)
    is_normal(case, x, reference.kaiming_std(shape, reference.leaky_gain(0.7), mode))


@claim("init.kaiming.defaults")
def test_kaiming_is_he_with_fan_in_by_default(case):
    std = reference.kaiming_std((23, 47), math.sqrt(2), "fan_in")
    is_uniform(case, init.kaiming_uniform_(case.tensor(23, 47)), math.sqrt(3) * std)
    is_normal(case, init.kaiming_normal_(case.tensor(23, 47)), std)


@claim("init.kaiming.nonlinearity")
@pytest.mark.parametrize("name", ["tanh", "selu", "linear"])
def test_kaiming_takes_the_gain_of_its_nonlinearity(case, name):
    std = reference.kaiming_std((29, 31), reference.GAINS[name], "fan_in")
    is_uniform(case, init.kaiming_uniform_(case.tensor(29, 31), nonlinearity=name), math.sqrt(3) * std)
    is_normal(case, init.kaiming_normal_(case.tensor(29, 31), nonlinearity=name), std)


@claim("init.kaiming.sqrt-five")
@pytest.mark.parametrize("inputs", [3, 20, 64])
def test_sqrt_five_is_one_over_the_root_of_fan_in(case, inputs):
    torch.manual_seed(case.seed)
    x = init.kaiming_uniform_(torch.empty(17, inputs), a=math.sqrt(5))
    torch.manual_seed(case.seed)
    y = init.uniform_(torch.empty(17, inputs), -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
    case.close(x, array(y), k=4, scale=1 / math.sqrt(inputs))  # bound by two roots and two quotients


@claim("init.kaiming.no-elements")
@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
def test_no_elements_are_left_alone_with_a_warning(case, name):
    with pytest.warns(UserWarning, match="zero-element"):
        assert fill(name, torch.empty(0, 5)).shape == (0, 5)


@claim("init.gain.table")
def test_gains(case):
    for name, gain in reference.GAINS.items():
        assert math.isclose(init.calculate_gain(name), gain, rel_tol=1e-15)
    for slope in (0.3, 2, 0):
        assert math.isclose(init.calculate_gain("leaky_relu", slope), reference.leaky_gain(slope), rel_tol=1e-15)
    assert math.isclose(init.calculate_gain("leaky_relu"), reference.leaky_gain(0.01), rel_tol=1e-15)


@claim("init.gain.unknown")
@pytest.mark.parametrize(("name", "slope"), [("gelu", None), ("leaky_relu", "steep"), ("leaky_relu", True)])
def test_unknown_gains_are_refused(case, name, slope):
    with case.raises(ValueError, "unsupported nonlinearity|not a valid number"):
        init.calculate_gain(name, slope)


@claim("init.orthogonal.rows-or-columns")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (4, 3, 2), (9, 2, 2), (67, 3)], ids=str)
def test_rows_or_columns_are_orthogonal_and_as_long_as_gain(case, shape):
    matrix = init.orthogonal_(case.tensor(*shape), gain=1.7).flatten(1)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.t()
    gram = array(tall).T @ array(tall)
    # Householder: an error of the order of rows times columns roundings in every entry
    case.close(torch.as_tensor(gram).to(case.dtype), 1.7**2 * np.eye(len(gram)), k=4 * matrix.numel(), scale=1.7**2)


@claim("init.orthogonal.haar")
def test_signs_of_the_first_entry_are_even(case):
    signs = [array(init.orthogonal_(torch.empty(2, 2))) > 0 for _ in range(97)]
    case.binomial(sum(int(s[0, 0]) for s in signs), 97, 0.5)
    case.binomial(sum(int(s[1, 1]) for s in signs), 97, 0.5)


@claim("init.orthogonal.too-few-dimensions")
def test_orthogonal_needs_two_dimensions(case):
    with case.raises(ValueError, "2 or more dimensions"):
        init.orthogonal_(torch.empty(7))


@claim("init.orthogonal.any-memory-format")
def test_a_weight_with_the_channels_last_is_made_orthogonal(case):
    weight = case.tensor(3, 2, 2, 2).to(memory_format=torch.channels_last)
    init.orthogonal_(weight)
    matrix = array(weight).reshape(3, -1)
    # Householder: an error of the order of rows times columns roundings in every entry
    case.close(torch.as_tensor(matrix @ matrix.T).to(case.dtype), np.eye(3), k=4 * matrix.size, scale=1)


@claim("init.sparse.zeros")
@pytest.mark.parametrize(("rows", "sparsity", "zeros"), [(10, 0.3, 3), (10, 0.31, 4), (7, 0.5, 4), (9, 0.0, 0)])
def test_every_column_has_so_many_zeros(case, rows, sparsity, zeros):
    x = init.sparse_(case.tensor(rows, 23), sparsity)
    assert ((x == 0).sum(0) == zeros).all()


@claim("init.sparse.rows-at-random")
def test_the_zeros_of_a_column_lie_at_random(case):
    x = init.sparse_(case.tensor(4, 101), 0.5)
    for row in x:
        case.binomial((row == 0).sum(), 101, 0.5)


@claim("init.sparse.std")
def test_the_rest_has_that_standard_deviation(case):
    x = init.sparse_(case.tensor(40, 41), 0.3)
    is_normal(case, x[x != 0], 0.01)
    x = init.sparse_(case.tensor(40, 41), 0.3, std=2.0)
    is_normal(case, x[x != 0], 2.0)


@claim("init.sparse.two-dimensions")
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)], ids=str)
def test_sparse_and_eye_need_two_dimensions(case, shape):
    for name in ("sparse_", "eye_"):
        with case.raises(ValueError, "2 dimensions"):
            fill(name, torch.empty(shape))


@claim("init.identity.eye")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3)], ids=str)
def test_eye_makes_linear_the_identity(case, shape):
    weight, x = init.eye_(case.tensor(*shape)), case.tensor(2, shape[1])
    case.close(weight, np.eye(*shape), k=0)
    least = min(shape)
    y = nn.functional.linear(x, weight)
    case.close(y[:, :least], array(x)[:, :least], k=0)


@claim("init.identity.dirac")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(4, 4, 3), (6, 3, 5), (4, 6, 5, 4), (2, 2, 5, 4, 7), (4, 2, 2)], ids=str)
def test_dirac_passes_channels_on(case, shape, groups):
    case.close(init.dirac_(case.tensor(*shape), groups), reference.dirac(shape, groups), k=0)


@claim("init.identity.dirac-convolution")
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_with_dirac_is_the_identity(case, groups):
    layer, x = nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False, device=case.device), case.tensor(2, 4, 5, 7)
    init.dirac_(layer.weight, groups)
    case.close(layer(x), array(x), k=0)


@claim("init.identity.dirac-errors")
def test_dirac_refuses_other_shapes(case):
    with case.raises(ValueError, "3, 4, or 5 dimensions"):
        init.dirac_(torch.empty(4, 4))
    with case.raises(ValueError, "divisible by groups"):
        init.dirac_(torch.empty(5, 4, 3), groups=2)


@claim("init.generator.own")
@pytest.mark.parametrize("name", [name for name in RANDOM if name != "sparse_"])
def test_a_generator_of_ones_own_leaves_the_global_one(case, name):
    narrow = [{"a": 1.0, "b": 3.0}] if name == "trunc_normal_" else []  # few of whose draws lie there
    for options in [{}, *narrow]:
        made = []
        for _ in range(2):
            generator = torch.Generator().manual_seed(case.seed)
            with case.unchanged():
                made.append(fill(name, torch.empty(FILLS[name]), generator=generator, **options))
        case.same(made[0], made[1])
        assert not torch.equal(made[0], fill(name, torch.empty(FILLS[name]), generator=generator, **options))


@claim("init.generator.global")
@pytest.mark.parametrize("name", RANDOM)
def test_without_a_generator_the_global_one_is_drawn_from(case, name):
    with case.unchanged(but={"rng"}):
        fill(name, torch.empty(FILLS[name]))


# -- the layers --------------------------------------------------------------------------------------------------------

UNIFORM = {
    "Linear": (lambda: nn.Linear(17, 61), 17),
    "Linear of one": (lambda: nn.Linear(1, 61), 1),
    "Bilinear": (lambda: nn.Bilinear(17, 5, 61), 17),
    "Bilinear of one": (lambda: nn.Bilinear(1, 5, 61), 1),
    "Conv1d": (lambda: nn.Conv1d(6, 62, 5, groups=2), 15),
    "Conv2d": (lambda: nn.Conv2d(6, 62, (3, 5), groups=2), 45),
    "Conv3d": (lambda: nn.Conv3d(2, 61, (3, 1, 2)), 12),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(6, 62, (3, 5), groups=2), 31 * 15),
    "RNN": (lambda: nn.RNN(3, 19, num_layers=2, bidirectional=True), 19),
    "LSTM": (lambda: nn.LSTM(3, 19, proj_size=5), 19),
    "GRU": (lambda: nn.GRU(3, 19), 19),
    "RNNCell": (lambda: nn.RNNCell(3, 61), 61),
    "LSTMCell": (lambda: nn.LSTMCell(3, 19), 19),
    "GRUCell": (lambda: nn.GRUCell(3, 19), 19),
}
CONSTANT = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(5),
    "BatchNorm2d": lambda: nn.BatchNorm2d(5),
    "LayerNorm": lambda: nn.LayerNorm((3, 5)),
    "GroupNorm": lambda: nn.GroupNorm(2, 6),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(5, affine=True),
}


@claim("init.layers.uniform")
@pytest.mark.parametrize("name", UNIFORM)
def test_weights_and_biases_are_uniform_within_the_root_of_fan_in(case, name):
    make, fan = UNIFORM[name]
    for copies in zip(*(make().parameters() for _ in range(6)), strict=True):  # a bias alone is too short to judge
        is_uniform(case, torch.cat([copy.detach().flatten() for copy in copies]), 1 / math.sqrt(fan))


@claim("init.layers.bias-is-not-zero")
@pytest.mark.parametrize("name", UNIFORM)
def test_biases_are_drawn_too(case, name):
    biases = [p for key, p in UNIFORM[name][0]().named_parameters() if "bias" in key]
    assert biases
    assert all((bias != 0).any() for bias in biases)


@claim("init.layers.constant")
@pytest.mark.parametrize("name", CONSTANT)
def test_normalisations_start_at_one_and_zero(case, name):
    layer = CONSTANT[name]()
    with case.unchanged():
        layer = CONSTANT[name]()
    assert (layer.weight == 1).all()
    assert (layer.bias == 0).all()


@claim("init.layers.embedding")
@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_are_standard_normal(case, cls):
    is_normal(case, cls(31, 33).weight.detach(), 1.0)


@claim("init.layers.prelu")
def test_prelu_starts_at_a_quarter(case):
    assert (nn.PReLU(3).weight == 0.25).all()
    assert (nn.PReLU(3, init=0.5).weight == 0.5).all()


@claim("init.layers.attention")
def test_attention_is_xavier_with_zero_biases(case):
    layer = nn.MultiheadAttention(16, 2)
    is_uniform(case, layer.in_proj_weight.detach(), math.sqrt(3) * reference.xavier_std((48, 16), 1.0))
    is_uniform(case, layer.out_proj.weight.detach(), 1 / math.sqrt(16))
    assert not layer.in_proj_bias.any()
    assert not layer.out_proj.bias.any()


@claim("init.layers.in-the-constructor")
def test_reset_parameters_draws_again_in_place(case):
    layer = nn.Linear(7, 5)
    weight, before = layer.weight, layer.weight.detach().clone()
    with case.unchanged(layer, but={"weight", "bias", "rng"}):
        layer.reset_parameters()
    assert layer.weight is weight
    assert (weight != before).any()
    init.constant_(layer.weight, 3.0)
    assert (layer.weight == 3).all()


@claim("init.layers.seed")
@pytest.mark.parametrize("name", UNIFORM)
def test_the_seed_decides_the_parameters(case, name):
    made = []
    for _ in range(2):
        torch.manual_seed(case.seed)
        made.append(list(UNIFORM[name][0]().parameters()))
    for one, other in zip(*made, strict=True):
        case.same(one.detach(), other.detach())


@claim("init.layers.order")
def test_a_layer_made_in_between_shifts_the_later_ones(case):
    torch.manual_seed(case.seed)
    first, second = nn.Linear(7, 5), nn.Linear(7, 5)
    torch.manual_seed(case.seed)
    again, _, later = nn.Linear(7, 5), nn.Linear(3, 3), nn.Linear(7, 5)
    case.same(again.weight.detach(), first.weight.detach())
    assert (later.weight != second.weight).any()


@claim("init.layers.skip")
def test_skip_init_draws_nothing(case):
    with case.unchanged():
        layer = nn.utils.skip_init(nn.Linear, 7, 5)
    assert layer.weight.shape == (5, 7)
    assert layer.weight.requires_grad


@claim("init.layers.apply")
def test_apply_visits_children_first(case):
    seen = []
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Tanh()))
    assert model.apply(seen.append) is model
    assert seen == [model[0], model[1][0], model[1][1], model[1], model]


# -- the generator -----------------------------------------------------------------------------------------------------


@claim("init.rng.negative-seed")
@pytest.mark.parametrize("seed", [-1, -5, -(2**63)])
def test_negative_seeds_count_from_two_to_the_64(case, seed):
    assert torch.manual_seed(seed).initial_seed() == 2**64 + seed


@claim("init.rng.state")
def test_the_state_is_taken_and_put_back(case):
    state = torch.get_rng_state()
    first = torch.rand(5)
    torch.set_rng_state(state)
    case.same(torch.rand(5), first)


@claim("init.rng.fork")
def test_fork_rng_leaves_the_outer_state(case):
    foreign = case.backend() not in (torch, torch.cuda)  # the option came with 2.1
    options = {"device_type": case.device.type} if foreign else {}
    devices = [] if case.device.type == "cpu" else [case.device.index or 0]
    with case.unchanged(), torch.random.fork_rng(devices, **options):
        torch.manual_seed(3)
        torch.rand(5, device=case.device)


@claim("init.rng.deterministic-fill")
@axes(dtype=FLOATING)
def test_deterministic_algorithms_fill_new_memory_with_nan(case):
    with switched("deterministic algorithms", True):
        assert torch.empty(5, dtype=case.dtype, device=case.device).isnan().all()


@claim("init.sparse.generator")
def test_the_generator_decides_where_the_zeros_lie(case):
    def fill(seed):
        torch.manual_seed(seed)
        return nn.init.sparse_(torch.empty(64, 8), 0.5, generator=torch.Generator().manual_seed(3))

    case.same(fill(1), fill(2))


@claim("init.sparse.fraction")
@pytest.mark.parametrize("fraction", [-0.5, 1.5])
def test_a_fraction_of_zeros_lies_between_none_and_all(case, fraction):
    with case.raises(ValueError, "sparsity"):
        nn.init.sparse_(torch.empty(4, 3, device=case.device), fraction)


@claim("init.xavier.no-elements")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", ["xavier_uniform_", "xavier_normal_"])
def test_xavier_leaves_what_holds_nothing_alone(case, name):
    x = torch.empty(0, 0, device=case.device)
    assert getattr(nn.init, name)(x) is x


@claim("init.identity.eye-beside-the-default-device")
def test_eye_fills_its_tensor_whatever_the_default_device(case):
    x = torch.zeros(3, 4, device=case.device)
    with torch.device("meta"):
        nn.init.eye_(x)
    case.same(x, case.tensor_of([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]]))


AFFINE = {"affine": True, "track_running_stats": True}
PLACED = {
    **{f"{kind}{d}d": ((3, 4, 2), {}) for kind in ("Conv", "ConvTranspose") for d in (1, 2, 3)},
    **{f"{kind}Norm{d}d": ((3,), AFFINE) for kind in ("Batch", "Instance") for d in (1, 2, 3)},
    **{name: ((3, 5), {"num_layers": 2, "bidirectional": True}) for name in ("RNN", "GRU", "LSTM")},
    **dict.fromkeys(("RNNCell", "GRUCell", "LSTMCell", "Linear", "Embedding", "EmbeddingBag"), ((3, 5), {})),
    **dict.fromkeys(("LayerNorm", "RMSNorm", "SyncBatchNorm", "PReLU"), ((3,), {})),
    **{f"Transformer{part}Layer": ((4, 2, 8), {}) for part in ("Encoder", "Decoder")},
    "Transformer": ((4, 2, 1, 1, 8), {"batch_first": True}),
    "MultiheadAttention": ((4, 2), {"kdim": 3, "vdim": 5, "add_bias_kv": True}),
    "GroupNorm": ((2, 6), {}),
    "Bilinear": ((3, 5, 2), {}),
    "AdaptiveLogSoftmaxWithLoss": ((4, 9, [3]), {"head_bias": True}),
}


@claim("init.layers.dtype-and-device")
@axes(via="eager")
@pytest.mark.parametrize("name", PLACED)
def test_a_layer_is_made_in_the_dtype_and_on_the_device_it_is_told(case, name):
    if not hasattr(nn, name):
        raise case.unsupported(f"no {name}")
    sizes, options = PLACED[name]
    with torch.device("meta"):
        layer = getattr(nn, name)(*sizes, **options, device=case.device, dtype=torch.bfloat16)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert {x.device.type for x in tensors} == {case.device.type}
    assert {x.dtype for x in tensors if x.is_floating_point()} == {torch.bfloat16}
    assert [x.dtype for x in tensors if not x.is_floating_point()] in ([], [torch.int64])


@claim("init.layers.any-memory-format")
@axes(via="eager")
def test_a_convolution_draws_the_same_in_any_memory_format(case):
    def drawn(memory_format):
        layer = nn.Conv2d(2, 3, 3, device=case.device).to(memory_format=memory_format)
        torch.manual_seed(5)
        layer.reset_parameters()
        return layer.weight

    case.same(drawn(torch.channels_last), drawn(torch.contiguous_format))


@claim("init.rng.bernoulli")
@axes(dtype=FLOATING, layout=("contiguous", "transposed"))
def test_each_element_is_drawn_by_its_own_probability(case):
    p = case.tensor_of([[0.0], [0.125], [0.5], [0.875], [1.0]] * np.ones(4001))
    for drawn in (torch.bernoulli(p), torch.empty_like(p).bernoulli_(p)):
        assert set(drawn.unique().tolist()) == {0.0, 1.0}
        for row, share in zip(drawn, p[:, 0].tolist(), strict=True):
            case.binomial(row.double().sum(), 4001, share)


@claim("init.rng.cauchy")
@pytest.mark.parametrize("sigma", [-1.0, 0.0])
def test_a_cauchy_scale_must_be_positive(case, sigma):
    with case.raises(RuntimeError, "sigma"):
        case.tensor(3).cauchy_(0.5, sigma)


@claim("init.rng.exponential")
@pytest.mark.parametrize("rate", [-1.0, 0.0])
def test_an_exponential_rate_must_be_positive(case, rate):
    with case.raises(RuntimeError, "lambda"):
        case.tensor(3).exponential_(rate)


@claim("init.rng.permutation")
@pytest.mark.parametrize(("length", "dtype"), [(257, "uint8"), (2050, "float16"), (258, "bfloat16")])
def test_a_permutation_needs_a_dtype_that_holds_it(case, length, dtype):
    with case.raises(RuntimeError, "cannot be (converted|greater)"):
        torch.randperm(length, dtype=getattr(torch, dtype), device=case.device)


NORMAL_FIFTH, CAUCHY_FIFTH = 0.8416212335729143, math.tan(0.3 * math.pi)  # a fifth of all lies above
ABOVE = {  # the arguments, and what share lies above two numbers
    "cauchy_": ((0.5, 0.3), {0.5 - 0.3 * CAUCHY_FIFTH: 0.8, 0.5 + 0.3 * CAUCHY_FIFTH: 0.2}),
    "exponential_": ((3.0,), {math.log(1.25) / 3: 0.8, math.log(5) / 3: 0.2}),
    "geometric_": ((0.2,), {1: 0.8, 3: 0.8**3}),
    "log_normal_": ((0.5, 0.3), {math.exp(0.5 - 0.3 * NORMAL_FIFTH): 0.8, math.exp(0.5 + 0.3 * NORMAL_FIFTH): 0.2}),
    "random_": ((3, 13), {4.5: 0.8, 10.5: 0.2}),
}


@claim("init.rng.distributions")
@axes(dtype=PRECISE, layout=("contiguous", "transposed"), via="eager")
@pytest.mark.parametrize("name", ABOVE)
def test_numbers_are_drawn_from_their_distribution(case, name):
    arguments, shares = ABOVE[name]
    drawn = getattr(torch.empty_like(case.tensor(29, 38)), name)(*arguments)
    for bound, share in shares.items():
        case.binomial((drawn > bound).sum(), drawn.numel(), share)


DRAWS = ["uniform", "normal", "log_normal", "exponential", "cauchy", "random"]
GENERATED = {
    **{f"{name}_": lambda g, name=name: getattr(torch.empty(99), f"{name}_")(generator=g) for name in DRAWS},
    "bernoulli_": lambda g: torch.empty(99).bernoulli_(0.3, generator=g),
    "geometric_": lambda g: torch.empty(99).geometric_(0.3, generator=g),
    "bernoulli": lambda g: torch.bernoulli(torch.full((99,), 0.3), generator=g),
    "multinomial": lambda g: torch.multinomial(torch.ones(99), 50, generator=g),
    "normal": lambda g: torch.normal(torch.zeros(99), 1.0, generator=g),
    "poisson": lambda g: torch.poisson(torch.full((99,), 9.0), generator=g),
    "rand": lambda g: torch.rand(99, generator=g),
    "randint": lambda g: torch.randint(99, (99,), generator=g),
    "randn": lambda g: torch.randn(99, generator=g),
    "randperm": lambda g: torch.randperm(99, generator=g),
}


@claim("init.rng.generator-of-each-draw")
@pytest.mark.parametrize("name", GENERATED)
def test_a_draw_is_of_the_generator_handed_over(case, name):
    with case.unchanged():
        first, again = (GENERATED[name](torch.Generator().manual_seed(case.seed)) for _ in range(2))
        other = GENERATED[name](torch.Generator().manual_seed(case.seed + 1))
    case.same(first, again)
    assert not torch.equal(first, other)


@claim("init.rng.upper-bound")
@axes(dtype=REDUCED, via="eager")
def test_the_upper_bound_is_never_drawn(case):
    """One number in 256 for bfloat16, and one in 2048 for float16, is nearest to 2: all miss it once in 1e13 runs."""
    x = torch.empty(2**16, dtype=case.dtype, device=case.device).uniform_(1.0, 2.0)
    assert x.max() < 2, "the upper bound was drawn"
    assert x.min() >= 1


@claim("init.rng.without-replacement")
@axes(via="eager")
def test_what_has_no_weight_is_not_drawn(case):
    weights = case.tensor_of([[2.0, 0.0, 3.0, 0.0]]).expand(50, 4)
    assert (torch.multinomial(weights, 2).sort(1).values == torch.tensor([0, 2], device=case.device)).all()
    with case.raises(RuntimeError, "without replacement|non-zero|nonzero"):
        torch.multinomial(weights, 3)


@claim("init.rng.state-within")
@axes(via="eager")
def test_a_generator_takes_its_state_from_within_a_tensor(case):
    """The tensor goes on far behind the state, for those that look too far."""
    state, generator = torch.Generator().manual_seed(case.seed + 1).get_state(), torch.Generator()
    within = torch.zeros(2**18, dtype=torch.uint8)[16 : 16 + len(state)].copy_(state)
    generator.set_state(within)
    case.same(generator.get_state(), state)


@claim("init.rng.complex-mean")
@axes(dtype="complex64", via="eager")
def test_a_real_mean_is_no_imaginary_one(case):
    x = torch.zeros_like(case.tensor(5)).normal_(3.0, 0.0)
    case.same(x, torch.full_like(x, 3.0))


@claim("init.rng.great-weights")
@axes(dtype="float32", via="eager")
def test_weights_may_be_as_great_as_the_dtype_allows(case):
    """One of three is not among 64 once in 6e10 runs."""
    drawn = torch.multinomial(case.tensor_of([3e38, 3e38, 3e38]), 64, replacement=True)
    assert len(drawn.unique()) == 3, "some are never drawn"
