"""Recurrent networks: one formula a step, carried through time, layers, directions and packed batches."""

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from specs.reference import recurrent as reference
from specs.reference.rounding import Rounded, gradients
from torch_conformance.axes import FLOATING, PRECISE
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

RELU = partial(nn.RNN, nonlinearity="relu")
RELU_CELL = partial(nn.RNNCell, nonlinearity="relu")
STEPS = {
    nn.RNN: reference.rnn_tanh, RELU: reference.rnn_relu, nn.LSTM: reference.lstm, nn.GRU: reference.gru,
    nn.RNNCell: reference.rnn_tanh, RELU_CELL: reference.rnn_relu, nn.LSTMCell: reference.lstm,
    nn.GRUCell: reference.gru,
}  # fmt: skip
NETWORKS = [nn.RNN, nn.LSTM, nn.GRU]
CELLS = [nn.RNNCell, nn.LSTMCell, nn.GRUCell]
WIDTH, HIDDEN = 3, 5


def name(value):
    return "RELU" if isinstance(value, partial) else getattr(value, "__name__", str(value))


def states_for(case, cls, *shape, **kwargs):
    """Initial states as a tuple: hidden, and for an LSTM the cell."""
    count = 2 if cls in (nn.LSTM, nn.LSTMCell) else 1
    return tuple(case.tensor(*shape, **kwargs) for _ in range(count))


def as_argument(states):
    return states if len(states) == 2 else states[0]


def as_tuple(states):
    return states if isinstance(states, tuple) else (states,)


def rounded(tensors):
    return tuple(Rounded(array(tensor)) for tensor in tensors)


def parameters(layer):
    return {name: Rounded(array(parameter)) for name, parameter in layer.named_parameters()}


def law(cls, layer, x, states, layers=1, directions=1):
    return reference.network(STEPS[cls], *rounded([x]), rounded(states), parameters(layer), layers, directions)


def within(case, actual, expected):
    """Within the bound of the running error analysis, which counts every rounding: so k is 1."""
    for result, wanted in zip(actual, expected, strict=True):
        case.close(result, wanted.value, k=1, scale=wanted.error)


def follows(case, cls, *shape, layers=1, directions=1, projection=0, **options):
    """Run the network on random states and hold output and final states against the law."""
    layer = case.module(cls, WIDTH, HIDDEN, layers, bidirectional=directions == 2, **options)
    x, states = case.tensor(*shape, WIDTH), states_for(case, cls, layers * directions, shape[1], HIDDEN)
    if projection:
        states = case.tensor(layers * directions, shape[1], projection), states[1]
    y, end = run(case, layer, x, states)
    wanted, final = law(cls, layer, x, states, layers, directions)
    within(case, (y, *as_tuple(end)), (wanted, *final))


def run(case, layer, x, states):
    """Older oneDNN is chosen for bfloat16 on processors for which it has no LSTM."""
    try:
        return layer(x, as_argument(states))
    except RuntimeError as error:
        if case.dtype == torch.bfloat16 and "could not create a primitive descriptor" in str(error):
            raise case.unsupported(f"no bfloat16 LSTM for this processor: {error}") from None
        raise


@claim("recurrent.rnn.formula")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("cls", [nn.RNN, RELU], ids=name)
def test_rnn_follows_its_formula(case, cls):
    follows(case, cls, 3, 2)


@claim("recurrent.rnn.state-is-of-its-own-layer")
def test_a_layer_remembers_itself_not_the_layer_below(case):
    layer = case.module(nn.RNN, WIDTH, HIDDEN, 2)
    x, start = case.tensor(4, 2, WIDTH), case.tensor(2, 2, HIDDEN)
    with torch.no_grad():
        layer.weight_ih_l1.zero_()
    changed = torch.stack([start[0] + 1, start[1]])
    case.same(layer(x + 1, changed)[0], layer(x, start)[0])


@claim("recurrent.lstm.formula", "recurrent.lstm.gate-order")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
def test_lstm_follows_its_formula(case):
    follows(case, nn.LSTM, 3, 2)


@claim("recurrent.lstm.formula")
@axes(dtype=PRECISE)
def test_lstm_follows_its_formula_for_many_steps(case):
    follows(case, nn.LSTM, 67, 2)


@claim("recurrent.lstm.formula")
@axes(dtype=PRECISE)
def test_lstm_follows_its_formula_for_many_samples(case):
    follows(case, nn.LSTM, 2, 37)


@claim("recurrent.lstm.gate-order")
@pytest.mark.parametrize(("gate", "hidden", "cell"), [(0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 0, 0)])
def test_lstm_gate_rows(case, gate, hidden, cell):
    layer = case.module(nn.LSTM, WIDTH, 1)
    rest = case.tensor_of([[[0.5]]])
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias_ih_l0.copy_(case.tensor_of([0.0, 0.0, 0.75, 0.0]))
        before = layer(case.tensor(1, 1, WIDTH), (rest, rest))[1][1].item()
        layer.bias_hh_l0[gate] = 2.0
        after = layer(case.tensor(1, 1, WIDTH), (rest, rest))[1][1].item()
    grown = {0: (torch.sigmoid(case.tensor_of(2.0)) - 0.5) * torch.tanh(case.tensor_of(0.75)),
             1: (torch.sigmoid(case.tensor_of(2.0)) - 0.5) * 0.5,
             2: 0.5 * (torch.tanh(case.tensor_of(2.75)) - torch.tanh(case.tensor_of(0.75))),
             3: case.tensor_of(0.0)}[gate]  # fmt: skip
    case.close(case.tensor_of(after - before), array(grown), k=8, scale=1.0)  # the cell state is below 1: 8 roundings


@claim("recurrent.lstm.projection")
@axes(dtype=PRECISE)
@pytest.mark.parametrize(("layers", "directions", "size"), [(1, 1, 2), (2, 2, 2), (1, 1, 1)])
def test_lstm_projects_its_hidden_state(case, layers, directions, size):
    follows(case, nn.LSTM, 3, 2, layers=layers, directions=directions, projection=size, proj_size=size)


@claim("recurrent.gru.reset-after-product", "recurrent.gru.gate-order")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
def test_gru_follows_its_formula(case):
    follows(case, nn.GRU, 3, 2)


@claim("recurrent.cell.formula", "recurrent.lstm.gate-order", "recurrent.gru.gate-order")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cls", [*CELLS, RELU_CELL], ids=name)
def test_cells_take_one_step(case, cls, bias):
    cell = case.module(cls, WIDTH, 37, bias=bias)
    x, states = case.tensor(7, WIDTH), states_for(case, cls, 7, 37)
    end = as_tuple(cell(x, as_argument(states)))
    within(case, end, STEPS[cls](*rounded([x]), rounded(states), parameters(cell)))
    alone = as_tuple(cell(x[2], as_argument([s[2] for s in states])))
    expected = STEPS[cls](*rounded([x[2:3]]), rounded([s[2:3] for s in states]), parameters(cell))
    within(case, [a[None] for a in alone], expected)


@claim("recurrent.cell.state-defaults-to-zeros")
@axes(dtype="float64")  # not the default, which zeros of their own would have
@pytest.mark.parametrize("cls", [*CELLS, RELU_CELL], ids=name)
def test_cells_start_from_zeros(case, cls):
    cell, x = case.module(cls, WIDTH, HIDDEN), case.tensor(2, WIDTH)
    zeros = [torch.zeros_like(s) for s in states_for(case, cls, 2, HIDDEN)]
    for given in (x, x[0]):
        start = as_argument([zero if given is x else zero[0] for zero in zeros])
        for ours, default in zip(as_tuple(cell(given, start)), as_tuple(cell(given)), strict=True):
            case.same(default, ours)


@claim("recurrent.cell.errors")
@pytest.mark.parametrize("cls", CELLS, ids=name)
@pytest.mark.parametrize(
    ("x", "state", "words"),
    [((2, WIDTH + 1), (2, HIDDEN), "input|inconsistent"), ((2, WIDTH), (2, HIDDEN + 1), "hidden|inconsistent"),
     ((2, WIDTH), (3, HIDDEN), "batch|size|match"), ((1, 1, 2, WIDTH), (2, HIDDEN), "1-?D or 2-?D|rank|dimension")],
)  # fmt: skip
def test_cells_refuse_wrong_shapes(case, cls, x, state, words):
    cell = case.module(cls, WIDTH, HIDDEN)
    with case.raises((RuntimeError, ValueError, AssertionError), words):
        cell(case.tensor(*x), as_argument(states_for(case, cls, *state)))


def gradients_follow(case, layer, run, reference_run, *inputs):
    """Backward from random seeds, against the law's own chain rule."""
    results = run(*inputs)
    seeds = [case.tensor(*result.shape) for result in results]
    torch.autograd.backward(results, seeds)
    named, given = parameters(layer), rounded(inputs)
    outputs = reference_run(given, named)
    expected = gradients(zip(outputs, map(array, seeds), strict=True), [*given, *named.values()])
    within(case, [t.grad for t in (*inputs, *layer.parameters())], expected)


@claim("recurrent.gradient.through-time")
@axes(dtype=PRECISE)
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_gradients_run_back_through_time(case, cls, layers, directions):
    layer = case.module(cls, WIDTH, 2, layers, bidirectional=directions == 2)
    x = case.tensor(3, 2, WIDTH, requires_grad=True)
    states = states_for(case, cls, layers * directions, 2, 2, requires_grad=True)

    def run(x, *states):
        y, end = layer(x, as_argument(states))
        return y, *as_tuple(end)

    def reference_run(given, named):
        y, end = reference.network(STEPS[cls], given[0], given[1:], named, layers, directions)
        return y, *end

    gradients_follow(case, layer, run, reference_run, x, *states)


@claim("recurrent.gradient.through-time", "recurrent.lstm.projection")
@axes(dtype=PRECISE)
def test_gradients_run_back_through_the_projection(case):
    layer = case.module(nn.LSTM, WIDTH, 4, proj_size=2)
    x, h, c = (case.tensor(*shape, requires_grad=True) for shape in [(3, 2, WIDTH), (1, 2, 2), (1, 2, 4)])

    def reference_run(given, named):
        y, end = reference.network(reference.lstm, given[0], given[1:], named)
        return y, *end

    gradients_follow(case, layer, lambda x, h, c: ((y := layer(x, (h, c)))[0], *y[1]), reference_run, x, h, c)


@claim("recurrent.gradient.second")
@pytest.mark.parametrize("cls", NETWORKS, ids=name)
def test_gradients_can_be_differentiated(case, cls):
    layer, seed, along = case.module(cls, WIDTH, 2), case.tensor(3, 2, 2), case.tensor(3, 2, WIDTH)
    x, states = case.tensor(3, 2, WIDTH, requires_grad=True), states_for(case, cls, 1, 2, 2)
    (slope,) = torch.autograd.grad(layer(x, as_argument(states))[0], x, seed, create_graph=True)
    found = torch.autograd.grad(slope, (x, *layer.parameters()), along)
    named, start, step = parameters(layer), rounded(states), 2.0**-17  # errs by 1e-10: its square, and eps / step

    def slopes(x):
        y, _ = reference.network(STEPS[cls], given := Rounded(x), start, named)
        return gradients([(y, array(seed))], [given, *named.values()])

    above, below = (slopes(array(x) + sign * step * array(along)) for sign in (1, -1))
    for actual, up, down in zip(found, above, below, strict=True):
        wanted = (up.value - down.value) / (2 * step)
        case.close(actual, wanted, k=3 * 3 * 16, scale=abs(wanted).max())  # 3 steps, run thrice, of 16 roundings


@claim("recurrent.gradient.cell")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("cls", [*CELLS, RELU_CELL], ids=name)
def test_gradients_of_a_cell(case, cls):
    cell = case.module(cls, WIDTH, HIDDEN)
    x, states = case.tensor(3, WIDTH, requires_grad=True), states_for(case, cls, 3, HIDDEN, requires_grad=True)
    gradients_follow(
        case, cell, lambda x, *states: as_tuple(cell(x, as_argument(states))),
        lambda given, named: STEPS[cls](given[0], given[1:], named), x, *states,
    )  # fmt: skip


@claim("recurrent.layers.stacked")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cls", NETWORKS, ids=name)
def test_layers_read_the_layer_below(case, cls, bias):
    follows(case, cls, 3, 2, layers=3, bias=bias)


@claim("recurrent.layers.bidirectional")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_two_directions(case, cls):
    follows(case, cls, 3, 2, layers=2, directions=2)


@claim("recurrent.layers.parameters")
@pytest.mark.parametrize(("cls", "gates"), [(nn.RNN, 1), (nn.LSTM, 4), (nn.GRU, 3)], ids=name)
def test_names_and_shapes_of_the_parameters(case, cls, gates):
    expected = {}
    for suffix, below in (("l0", WIDTH), ("l0_reverse", WIDTH), ("l1", 2 * HIDDEN), ("l1_reverse", 2 * HIDDEN)):
        expected |= {f"weight_ih_{suffix}": (gates * HIDDEN, below), f"weight_hh_{suffix}": (gates * HIDDEN, HIDDEN)}
        expected |= {f"bias_ih_{suffix}": (gates * HIDDEN,), f"bias_hh_{suffix}": (gates * HIDDEN,)}
    layer = cls(WIDTH, HIDDEN, 2, bidirectional=True, device=case.device)
    assert [(k, tuple(v.shape)) for k, v in layer.named_parameters()] == list(expected.items())
    bare = cls(WIDTH, HIDDEN, 2, bidirectional=True, bias=False, device=case.device)
    assert [k for k, _ in bare.named_parameters()] == [k for k in expected if k.startswith("weight")]


@claim("recurrent.layers.parameters", "recurrent.lstm.projection")
def test_shapes_with_a_projection(case):
    layer = nn.LSTM(WIDTH, HIDDEN, 2, proj_size=2, bias=False, bidirectional=True, device=case.device)
    shapes = [tuple(p.shape) for p in layer.parameters()]
    assert shapes == [(20, WIDTH), (20, 2), (2, HIDDEN)] * 2 + [(20, 4), (20, 2), (2, HIDDEN)] * 2


@claim("recurrent.state.final")
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_the_final_state_is_the_last_output(case, cls):
    layer = case.module(cls, WIDTH, HIDDEN, 2, bidirectional=True)
    y, end = layer(case.tensor(4, 2, WIDTH))
    hidden = as_tuple(end)[0]
    case.same(hidden[2], y[-1, :, :HIDDEN])
    case.same(hidden[3], y[0, :, HIDDEN:])


@claim("recurrent.state.defaults-to-zeros")
@axes(dtype="float64")  # not the default, which zeros of their own would have
@pytest.mark.parametrize("shape", [(4, 2, WIDTH), (4, WIDTH)])
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_networks_start_from_zeros_at_every_call(case, cls, shape):
    layer, x = case.module(cls, WIDTH, HIDDEN, 2, bidirectional=True), case.tensor(*shape)
    zeros = [torch.zeros_like(s) for s in states_for(case, cls, 4, *shape[1:-1], HIDDEN)]
    layer(case.tensor(*shape))
    for ours, default in zip(layer(x, as_argument(zeros))[0], layer(x)[0], strict=True):
        case.same(default, ours)


@claim("recurrent.state.carries-over")
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_a_sequence_in_two_pieces(case, cls):
    layer, x = case.module(cls, WIDTH, HIDDEN, 2), case.tensor(4, 2, WIDTH)
    start = states_for(case, cls, 2, 2, HIDDEN)
    first, between = layer(x[:1], as_argument(start))
    second, end = layer(x[1:], between)
    wanted, final = law(cls, layer, x, start, layers=2)
    within(case, (torch.cat([first, second]), *as_tuple(end)), (wanted, *final))


@claim("recurrent.layout.batch-first")
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_batch_first_moves_the_batch_axis_of_the_sequences_alone(case, cls):
    layer = case.module(cls, WIDTH, HIDDEN, 2, bidirectional=True, batch_first=True)
    usual = cls(WIDTH, HIDDEN, 2, bidirectional=True, device=case.device)
    usual.load_state_dict(layer.state_dict())
    assert usual.batch_first is False
    x, states = case.tensor(19, 4, WIDTH), states_for(case, cls, 4, 19, HIDDEN)
    y, end = layer(x, as_argument(states))
    wanted, final = law(cls, usual, x.transpose(0, 1), states, layers=2, directions=2)
    within(case, (y.transpose(0, 1), *as_tuple(end)), (wanted, *final))
    within(case, [usual(x.transpose(0, 1), as_argument(states))[0]], [wanted])
    zeros = as_argument([torch.zeros_like(state) for state in as_tuple(states)])
    case.same(layer(x)[0], layer(x, zeros)[0])


@claim("recurrent.layout.unbatched")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_two_dimensions_are_one_sequence(case, cls, batch_first):
    layer = case.module(cls, WIDTH, HIDDEN, 2, bidirectional=True, batch_first=batch_first)
    x, states = case.tensor(3, WIDTH), states_for(case, cls, 4, HIDDEN)
    y, end = layer(x, as_argument(states))
    wanted, final = law(cls, layer, x[:, None], [s[:, None] for s in states], layers=2, directions=2)
    within(case, [t.unsqueeze(1) for t in (y, *as_tuple(end))], (wanted, *final))


@claim("recurrent.layout.errors")
@pytest.mark.parametrize("cls", NETWORKS, ids=name)
@pytest.mark.parametrize(
    ("x", "state", "words"),
    [((4, WIDTH + 1), None, "input"), ((4, 2, WIDTH + 1), None, "input"), ((4, 2, 2, WIDTH), None, "-?D|dimension"),
     ((4, 2, WIDTH), (2, 3, HIDDEN), "hidden"), ((4, 2, WIDTH), (1, 2, HIDDEN), "hidden"),
     ((4, 2, WIDTH), (2, 2, HIDDEN + 1), "hidden"), ((4, 2, WIDTH), (2, HIDDEN), "3-?D|batched"),
     ((4, WIDTH), (2, 1, HIDDEN), "2-?D|unbatched")],
)  # fmt: skip
def test_networks_refuse_wrong_shapes(case, cls, x, state, words):
    layer = case.module(cls, WIDTH, HIDDEN, 2)
    with case.raises((RuntimeError, ValueError, AssertionError), words):
        layer(case.tensor(*x), as_argument(states_for(case, cls, *state)) if state else None)


@claim("recurrent.layout.errors")
@pytest.mark.parametrize("cls", NETWORKS, ids=name)
def test_the_state_must_fit_the_batch(case, cls):
    layer = case.module(cls, WIDTH, HIDDEN, 2, batch_first=True)
    with case.raises(RuntimeError, "hidden"):
        layer(case.tensor(4, 2, WIDTH), as_argument(states_for(case, cls, 2, 2, HIDDEN)))
    packed = pack_padded_sequence(case.tensor(4, 3, WIDTH), [4, 3, 1])
    with case.raises(RuntimeError, "hidden|size of tensor"):
        layer(packed, as_argument(states_for(case, cls, 2, 2, HIDDEN)))


@claim("recurrent.layout.errors", "recurrent.cell.errors")
def test_the_cell_state_is_checked_like_the_hidden(case):
    layer, cell = case.module(nn.LSTM, WIDTH, HIDDEN, 2), case.module(nn.LSTMCell, WIDTH, HIDDEN)
    for x, good, bad in [
        ((4, 2, WIDTH), (2, 2, HIDDEN), (2, 2, HIDDEN + 1)),
        ((4, 2, WIDTH), (2, 2, HIDDEN), (2, HIDDEN)),
        ((4, WIDTH), (2, HIDDEN), (2, 1, HIDDEN)),
    ]:
        for states in ((good, bad), (bad, good)):
            with case.raises(RuntimeError, "hidden|-D"):
                layer(case.tensor(*x), tuple(case.tensor(*shape) for shape in states))
    for states in (((2, HIDDEN), (2, HIDDEN + 1)), ((2, HIDDEN), (3, HIDDEN))):
        with case.raises(RuntimeError, "hidden|batch|size|inconsistent"):
            cell(case.tensor(2, WIDTH), tuple(case.tensor(*shape) for shape in states))


@claim("recurrent.cell.state-rank")
@pytest.mark.parametrize("cls", CELLS, ids=name)
def test_cells_refuse_states_of_three_dimensions(case, cls):
    cell, good, bad = case.module(cls, WIDTH, HIDDEN), case.tensor(2, HIDDEN), case.tensor(1, 2, HIDDEN)
    for state in ((good, bad), (bad, good)) if cls is nn.LSTMCell else (bad,):
        with case.raises(ValueError, "1D or 2D.*3D"):
            cell(case.tensor(2, WIDTH), state)


LENGTHS = [1, 4, 3]


@claim("recurrent.packed.each-sequence-alone", "recurrent.packed.order-restored")
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
@pytest.mark.parametrize(("lengths", "is_sorted"), [(LENGTHS, False), ([4, 2, 2], True)])
def test_packed_sequences_run_alone(case, cls, lengths, is_sorted):
    layer = case.module(cls, WIDTH, HIDDEN, 2, bidirectional=True)
    x, states = case.tensor(4, 3, WIDTH), states_for(case, cls, 4, 3, HIDDEN)
    packed, end = layer(pack_padded_sequence(x, lengths, enforce_sorted=is_sorted), as_argument(states))
    y, returned = pad_packed_sequence(packed, padding_value=-7.0)
    assert returned.tolist() == lengths
    for i, length in enumerate(lengths):
        start = [s[:, i : i + 1] for s in states]
        wanted, final = law(cls, layer, x[:length, i : i + 1], start, layers=2, directions=2)
        within(case, (y[:length, i : i + 1], *(s[:, i : i + 1] for s in as_tuple(end))), (wanted, *final))
        assert (y[length:, i] == -7.0).all()


@claim("recurrent.packed.each-sequence-alone")
@axes(dtype="float64")  # not the default, which zeros of their own would have
@pytest.mark.parametrize("cls", NETWORKS, ids=name)
def test_packed_sequences_start_from_zeros(case, cls):
    layer, x = case.module(cls, WIDTH, HIDDEN, bidirectional=True), case.tensor(4, 3, WIDTH)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    zeros = [torch.zeros_like(s) for s in states_for(case, cls, 2, 3, HIDDEN)]
    case.same(layer(packed)[0].data, layer(packed, as_argument(zeros))[0].data)


@claim("recurrent.packed.round-trip")
@pytest.mark.parametrize("batch_first", [False, True])
def test_packing_and_padding_are_inverse(case, batch_first):
    x = case.tensor(4, 3, 2)
    for i, length in enumerate(LENGTHS):
        x[length:, i] = -7.0
    given = x.transpose(0, 1) if batch_first else x
    packed = pack_padded_sequence(given, LENGTHS, batch_first, enforce_sorted=False)
    assert packed.batch_sizes.tolist() == [3, 2, 2, 1]
    assert packed.sorted_indices.tolist() == [1, 2, 0]
    y, lengths = pad_packed_sequence(packed, batch_first, padding_value=-7.0)
    case.same(y, given)
    assert lengths.tolist() == LENGTHS
    longer, _ = pad_packed_sequence(packed, batch_first, total_length=6)
    assert longer.shape == ((3, 6, 2) if batch_first else (6, 3, 2))
    with case.raises(ValueError, "total_length"):
        pad_packed_sequence(packed, batch_first, total_length=3)
    with case.raises(RuntimeError, "sorted"):
        pack_padded_sequence(given, LENGTHS, batch_first)


@claim("recurrent.packed.lengths-within")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [[6, 2], [2, 6], [7, 6]], ids=str)
def test_no_sequence_is_longer_than_its_padding(case, lengths, batch_first):
    x = case.tensor(2, 5, WIDTH) if batch_first else case.tensor(5, 2, WIDTH)
    whole = pack_padded_sequence(x, [5, 5], batch_first)
    case.same(whole.data, (x.transpose(0, 1) if batch_first else x).reshape(10, WIDTH))
    with case.raises((RuntimeError, ValueError), "length"):
        pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)


@claim("recurrent.packed.lists")
def test_a_list_of_sequences_is_packed_and_unpacked(case):
    given = [case.tensor(length, 2) for length in LENGTHS]
    packed = rnn.pack_sequence(given, enforce_sorted=False)
    wanted = pack_padded_sequence(rnn.pad_sequence(given), LENGTHS, enforce_sorted=False)
    for ours, theirs in zip(packed, wanted, strict=True):
        case.same(ours, theirs)
    for ours, theirs in zip(rnn.unpack_sequence(packed), given, strict=True):
        case.same(ours, theirs)
    with case.raises(RuntimeError, "sorted"):
        rnn.pack_sequence(given)
    assert rnn.pack_sequence(sorted(given, key=len, reverse=True)).sorted_indices is None


@claim("recurrent.packed.padded-lists")
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_list_of_sequences_is_padded_and_unpadded(case, batch_first):
    given, lengths = [case.tensor(length, 2) for length in LENGTHS], torch.tensor(LENGTHS)
    for options, value in (({}, 0.0), ({"padding_value": -7.0}, -7.0)):
        padded = rnn.pad_sequence(given, batch_first, **options)
        rows = padded if batch_first else padded.transpose(0, 1)
        assert rows.shape == (len(LENGTHS), max(LENGTHS), 2)
        for row, sequence in zip(rows, given, strict=True):
            case.same(row[: len(sequence)], sequence)
            assert (row[len(sequence) :] == value).all()
        for ours, theirs in zip(rnn.unpad_sequence(padded, lengths, batch_first), given, strict=True):
            case.same(ours, theirs)


@claim("recurrent.packed.padded-left")
def test_padding_may_come_first(case):
    given = [case.tensor(length, 2) for length in LENGTHS]
    padded = rnn.pad_sequence(given, batch_first=True, padding_value=-7.0, padding_side="left")
    for row, sequence in zip(padded, given, strict=True):
        case.same(row[-len(sequence) :], sequence)
        assert (row[: -len(sequence)] == -7).all()
    with case.raises((RuntimeError, ValueError), "padding_side"):
        rnn.pad_sequence(given, padding_side="middle")


@claim("recurrent.packed.unpadding-changes-nothing")
def test_unpadding_leaves_its_argument_alone(case):
    padded = rnn.pad_sequence([case.tensor(length, 2) for length in LENGTHS])
    shape = padded.shape
    rnn.unpad_sequence(padded, torch.tensor(LENGTHS))
    assert padded.shape == shape


@claim("recurrent.packed.conversions")
def test_a_packed_sequence_converts_its_data(case):
    packed = rnn.pack_sequence([case.tensor(length, 2) * 9 for length in LENGTHS], enforce_sorted=False)
    names = {"double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16", "char": "int8"}
    for name, dtype in names.items():
        other = getattr(packed, name)()
        case.same(other.data, packed.data.to(getattr(torch, dtype)))
        assert other.batch_sizes is packed.batch_sizes
        case.same(other.unsorted_indices, packed.unsorted_indices)
        case.same(packed.to(getattr(torch, dtype)).data, other.data)
    assert packed.float() is packed is packed.to(case.device) is packed.to(packed.data.dtype)


@claim("recurrent.packed.padding-gets-no-gradient")
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_padding_does_not_matter(case, cls):
    layer, x = case.module(cls, WIDTH, HIDDEN, bidirectional=True), case.tensor(4, 3, WIDTH)
    if cls is RELU:  # units that are off would pass no gradient anywhere
        for each in (x, *layer.parameters()):
            each.data.abs_()
    for i, length in enumerate(LENGTHS):
        x[length:, i] = float("nan")
    x.requires_grad_()
    y, end = layer(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
    (y.data.sum() + as_tuple(end)[0].sum()).backward()
    assert torch.isfinite(y.data).all()
    for i, length in enumerate(LENGTHS):
        assert (x.grad[length:, i] == 0).all()
        assert (x.grad[:length, i] != 0).any(-1).all()


@claim("recurrent.dropout.between-layers-only")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_dropout_takes_all_between_layers_and_nothing_else(case, cls, packed):
    layer = case.module(cls, WIDTH, HIDDEN, 2, dropout=1.0)
    x, states = case.tensor(3, 2, WIDTH), states_for(case, cls, 2, 2, HIDDEN)
    first = {k: v for k, v in parameters(layer).items() if k.endswith("l0")}
    second = {k.replace("l1", "l0"): v for k, v in parameters(layer).items() if k.endswith("l1")}
    given = pack_padded_sequence(x, [3, 3]) if packed else x
    y, end = layer(given, as_argument(states))
    y = pad_packed_sequence(y)[0] if packed else y
    start = rounded(states)
    _, below = reference.network(STEPS[cls], *rounded([x]), tuple(s[:1] for s in start), first)
    nothing = Rounded(0 * array(states[0]).repeat(2, 0)[:3])
    wanted, above = reference.network(STEPS[cls], nothing, tuple(s[1:] for s in start), second)
    within(case, (y, *(s[:1] for s in as_tuple(end))), (wanted, *below))
    within(case, [s[1:] for s in as_tuple(end)], above)


@claim("recurrent.dropout.rate-and-scale")
@pytest.mark.parametrize("p", [0.3, 0.7])
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_dropout_between_layers_zeroes_with_probability_p(case, cls, p):
    size, steps, batch = 8, 6, 64
    layer = case.module(cls, size, size, 2, dropout=p)
    with torch.no_grad():  # the first layer gives one and the same value everywhere, the second shows what it reads
        for key, parameter in layer.named_parameters():
            parameter.zero_()
            gates = parameter.view(-1, size, *parameter.shape[1:])
            if key == "weight_ih_l1":
                gates[{nn.LSTM: 2, nn.GRU: 2}.get(cls, 0)].copy_(torch.eye(size) / 4)
            elif key == "bias_ih_l1" and cls is nn.LSTM:
                gates[0], gates[1], gates[3] = 200, -200, 200
            elif key == "bias_ih_l1" and cls is nn.GRU:
                gates[1] = -200
            elif key == "bias_ih_l0" and cls is nn.LSTM:
                gates[0], gates[1], gates[2], gates[3] = 200, -200, 0.5, 200
            elif key == "bias_ih_l0":
                gates[-1] = 0.5
                gates[1 if cls is nn.GRU else -1] = -200 if cls is nn.GRU else 0.5
    y = layer(case.tensor(steps, batch, size))[0]
    one = case.tensor_of(0.5)
    below = one if cls is RELU else one.tanh().tanh() if cls is nn.LSTM else one.tanh()
    seen = below / (1 - p) / 4
    shown = seen if cls is RELU else seen.tanh().tanh() if cls is nn.LSTM else seen.tanh()
    case.close(y[y != 0], array(shown).repeat(int((y != 0).sum())), k=16)  # at most 8 functions of slope 1, 2 eps each
    zeroed = y == 0
    case.binomial(zeroed.sum(), zeroed.numel(), p)
    again = zeroed[0::2] & zeroed[1::2]  # the mask of one step says nothing about the next
    case.binomial(again.sum(), again.numel(), p * p)
    samples = zeroed[:, 0::2] & zeroed[:, 1::2]
    case.binomial(samples.sum(), samples.numel(), p * p)


@claim("recurrent.dropout.rate-and-scale")
@pytest.mark.parametrize("cls", NETWORKS, ids=name)
def test_dropout_masks_of_two_gaps_differ(case, cls):
    layer = case.module(cls, WIDTH, HIDDEN, 3, dropout=0.3, bidirectional=True)
    x = case.tensor(3, 2, WIDTH)
    with case.unchanged(layer, x=x, but={"rng"}):
        first = layer(x)[0]
    assert not torch.equal(first, layer(x)[0])


@claim("recurrent.dropout.eval-off")
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_eval_drops_nothing(case, cls):
    layer = case.module(cls, WIDTH, HIDDEN, 2, dropout=0.7).eval()
    x, states = case.tensor(3, 2, WIDTH), states_for(case, cls, 2, 2, HIDDEN)
    with case.unchanged(layer, x=x):
        y, end = layer(x, as_argument(states))
        packed = layer(pack_padded_sequence(x, [3, 3]), as_argument(states))[0]
    wanted, final = law(cls, layer, x, states, layers=2)
    within(case, (y, *as_tuple(end)), (wanted, *final))
    within(case, [pad_packed_sequence(packed)[0]], [wanted])


@claim("recurrent.dropout.one-layer-warns")
@pytest.mark.parametrize("cls", NETWORKS, ids=name)
def test_dropout_of_one_layer_warns_and_does_nothing(case, cls):
    with pytest.warns(UserWarning, match="num_layers"):
        layer = case.module(cls, WIDTH, HIDDEN, dropout=0.9, bidirectional=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cls(WIDTH, HIDDEN, 2, dropout=0.9)
    x, states = case.tensor(3, 2, WIDTH), states_for(case, cls, 2, 2, HIDDEN)
    with case.unchanged(layer, x=x):
        y, _ = layer(x, as_argument(states))
    within(case, [y], [law(cls, layer, x, states, directions=2)[0]])


@claim("recurrent.modes.stateless")
@pytest.mark.parametrize("cls", [*NETWORKS, *CELLS, RELU, RELU_CELL], ids=name)
def test_the_mode_makes_no_difference(case, cls):
    layer, x = case.module(cls, WIDTH, HIDDEN), case.tensor(3, WIDTH)
    with case.unchanged(layer.train(), x=x):
        training = as_tuple(layer(x))
    layer.eval()
    with case.unchanged(layer, x=x):
        evaluating = as_tuple(layer(x))
    for a, b in zip(training, evaluating, strict=True):
        for one, other in zip(as_tuple(a), as_tuple(b), strict=True):
            case.same(one, other)


@claim("recurrent.modes.grad-mode-makes-no-difference")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_the_law_holds_without_gradients(case, cls):
    with torch.no_grad():
        follows(case, cls, 3, 2, layers=2, directions=2)
        follows(case, cls, 2, 1, layers=1, directions=1, bias=False)


@claim("recurrent.init.uniform")
@pytest.mark.parametrize("cls", [*NETWORKS, *CELLS], ids=name)
def test_parameters_start_uniform(case, cls):
    for key, parameter in cls(7, 64, device=case.device).named_parameters():
        values = parameter.detach() * 8
        assert values.abs().max() <= 1, key
        for threshold in (-0.9, -0.5, 0.0, 0.5, 0.9) if "weight" in key else (0.0,):
            case.binomial((values < threshold).sum(), values.numel(), (1 + threshold) / 2)


@claim("recurrent.init.arguments-checked")
@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: nn.GRU(3, 5, 2, dropout=1.1), "dropout"), (lambda: nn.LSTM(3, 5, 2, dropout=-0.1), "dropout"),
     (lambda: nn.RNN(3, 5, nonlinearity="gelu"), "nonlinearity"), (lambda: nn.LSTM(3, 5, proj_size=5), "proj_size"),
     (lambda: nn.LSTM(3, 5, proj_size=-1), "proj_size"), (lambda: nn.GRU(3, 5, proj_size=2), "proj_size"),
     (lambda: nn.RNN(3, 5, proj_size=2), "proj_size"),
     (lambda: nn.RNNCell(3, 5, nonlinearity="gelu")(torch.zeros(1, 3)), "nonlinearity")],
)  # fmt: skip
def test_constructors_refuse_nonsense(case, make, words):
    with case.raises((ValueError, RuntimeError), words):
        make()


@claim("recurrent.init.sizes-checked")
@pytest.mark.parametrize("cls", NETWORKS, ids=name)
def test_sizes_must_be_positive_whole_numbers(case, cls):
    for sizes, words in (((0, 5), "input_size"), ((3, 0), "hidden_size"), ((3, 5, 0), "num_layers")):
        with case.raises(ValueError, f"{words} must be greater than zero"):
            cls(*sizes)
    for sizes, words in (((3.0, 5), "input_size"), ((3, 5.0), "hidden_size")):
        with case.raises(TypeError, f"{words} should be of type int"):
            cls(*sizes)
    for name in ("bias", "batch_first"):
        with case.raises(TypeError, f"{name} should be of type bool"):
            cls(3, 5, **{name: 1})


@claim("recurrent.init.positions")
@pytest.mark.parametrize("cls", [nn.RNN, nn.LSTM, nn.GRU], ids=name)
def test_settings_by_position_and_by_name(case, cls):
    kind = ["relu"] if cls is nn.RNN else []
    layer, plain = cls(3, 5, 2, *kind, False, True, 0.3, True), cls(3, 5)
    assert (layer.input_size, layer.hidden_size, layer.num_layers) == (3, 5, 2)
    assert (layer.bias, layer.batch_first, layer.dropout, layer.bidirectional) == (False, True, 0.3, True)
    assert (plain.num_layers, plain.bias, plain.batch_first, plain.dropout) == (1, True, False, 0.0)
    assert (plain.bidirectional, plain.proj_size) == (False, 0)
    assert (layer.mode, plain.mode) == (("RNN_RELU", "RNN_TANH") if kind else (cls.__name__,) * 2)
    if kind:
        assert (layer.nonlinearity, plain.nonlinearity) == ("relu", "tanh")
        others = cls(3, 5, 2, "relu"), cls(3, 5, nonlinearity="relu"), nn.RNNCell(3, 5, True, "relu")
        assert {other.nonlinearity for other in others} == {"relu"}


@claim("recurrent.layers.copied")
@axes(via="eager")  # the copy would run what the original was handed to
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_has_weights_of_its_own(case, cls, how):
    layer, x = case.module(cls, WIDTH, HIDDEN, 2, bidirectional=True), case.tensor(3, 2, WIDTH)
    made = copy.deepcopy(layer) if how == "deepcopy" else pickle.loads(pickle.dumps(layer))
    before = layer(x)[0]
    case.same(made(x)[0], before)
    with torch.no_grad():
        made.bias_ih_l1.add_(3)  # ReLU may have silenced what the weights are multiplied by
    assert not torch.equal(made(x)[0], before)
    case.same(layer(x)[0], before)


@claim("recurrent.layers.old-pickle")
@pytest.mark.parametrize(("projection", "bias"), [(0, True), (0, False), (2, True)])
def test_layers_of_old_pickles_find_their_weights(case, projection, bias):
    layer = case.module(nn.LSTM, WIDTH, HIDDEN, 2, bias=bias, bidirectional=True, proj_size=projection)
    state = {
        k: v
        for k, v in layer.__getstate__().items()
        if k not in ("_all_weights", "_flat_weights", "_flat_weights_names")
    }
    state["all_weights"] = [list(layer.parameters())]  # tensors stood there before there were names
    if not projection:
        del state["proj_size"]
    made, x = nn.LSTM.__new__(nn.LSTM), case.tensor(3, 2, WIDTH)
    made.__setstate__(state)
    assert made.proj_size == projection
    case.same(made(x)[0], layer(x)[0])
    assert [id(p) for group in made.all_weights for p in group] == [id(p) for p in layer.parameters()]


@claim("recurrent.layers.replaced-weights")
@pytest.mark.parametrize("cls", [*NETWORKS, RELU], ids=name)
def test_weights_put_in_their_place_are_used(case, cls):
    layer, x = case.module(cls, WIDTH, HIDDEN), case.tensor(3, 2, WIDTH)
    states = states_for(case, cls, 1, 2, HIDDEN)
    other = case.module(cls, WIDTH, HIDDEN)
    wanted = law(cls, other, x, states)[0]
    own = law(cls, layer, x, states)[0]
    within(
        case, [torch.func.functional_call(layer, dict(other.named_parameters()), (x, as_argument(states)))[0]], [wanted]
    )
    within(case, [layer(x, as_argument(states))[0]], [own])
    for key, parameter in other.named_parameters():
        setattr(layer, key, parameter)
    within(case, [layer(x, as_argument(states))[0]], [wanted])
    assert all(a is b for a, b in zip(layer.all_weights[0], other.parameters(), strict=True))


@claim("recurrent.layers.refusals")
def test_layers_refuse_what_they_cannot_run(case):
    with case.raises(ValueError, "Unrecognized RNN mode: SPIN"):
        nn.RNNBase("SPIN", WIDTH, HIDDEN)
    sizes = torch.tensor([2, 1])
    for cls in NETWORKS:
        layer, zero = case.module(cls, WIDTH, HIDDEN), case.tensor(1, 2, HIDDEN)
        state = (zero, zero) if cls is nn.LSTM else zero
        for shape, words in (((3, 1, WIDTH), "2 dimensions"), ((3, WIDTH + 1), "equal to input_size")):
            with case.raises(RuntimeError, "" if cls is nn.LSTM else words):  # whose rank the kernel alone checks
                layer(nn.utils.rnn.PackedSequence(case.tensor(*shape), sizes), state)
        for shape in ((WIDTH,), (1, 2, 3, WIDTH)):
            with case.raises((RuntimeError, ValueError, AssertionError), "2-D or 3-D|2D or 3D|3 dim"):
                layer(case.tensor(*shape))


@claim("recurrent.packed.copied-to-a-dtype")
def test_a_packed_sequence_is_copied_to_another_dtype(case):
    packed = nn.utils.rnn.pack_sequence([case.tensor(2), case.tensor(3)], enforce_sorted=False)
    assert packed.to(torch.float64, copy=True).data.dtype == torch.float64


@claim("recurrent.packed.default-device")
@axes(via="eager")
def test_a_list_of_lengths_stays_on_the_cpu(case):
    torch.set_default_device("meta")
    try:
        packed = pack_padded_sequence(torch.ones(3, 2, 1, device="cpu"), [3, 2])
    finally:
        torch.set_default_device(None)
    assert packed.batch_sizes.tolist() == [2, 2, 1]


@claim("recurrent.packed.lengths-of-all")
@axes(via="eager")
def test_every_sequence_needs_a_length(case):
    with case.raises((ValueError, RuntimeError), "shorter|length|size"):
        rnn.unpad_sequence(case.tensor(4, 3, 2), torch.tensor([3, 2], device=case.device))


@claim("recurrent.packed.whole-lengths")
@axes(via="eager")
def test_a_length_is_a_whole_number(case):
    with case.raises((TypeError, ValueError, RuntimeError), "int|whole|length"):
        pack_padded_sequence(case.tensor(3, 2, 1), [3, 1.5])


@claim("recurrent.cell.nonlinearity-checked")
def test_a_cell_refuses_an_unknown_nonlinearity_when_it_is_made(case):
    with case.raises((ValueError, RuntimeError), "nonlinearity"):
        nn.RNNCell(WIDTH, HIDDEN, nonlinearity="sigmoid")


@claim("recurrent.cell.sizes-checked")
@pytest.mark.parametrize("cls", CELLS, ids=name)
def test_a_cell_without_state_is_refused(case, cls):
    with case.raises(ValueError, "hidden_size"):
        cls(WIDTH, 0)


@claim("recurrent.layout.no-steps")
@axes(via="eager")
@pytest.mark.parametrize("cls", NETWORKS, ids=name)
def test_a_sequence_without_steps_is_refused(case, cls):
    with case.raises((RuntimeError, ValueError), "sequence length"):
        cls(WIDTH, HIDDEN, device=case.device)(case.tensor(0, 2, WIDTH, dtype=torch.float32))
