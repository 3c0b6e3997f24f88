"""The ways in which an implementation of recurrent networks goes wrong."""

from functools import partial

import torch
from torch import nn
from torch.nn.modules import rnn
from torch.nn.utils import rnn as utils

from mutants._gradient import once
from torch_conformance.mutation import mutant

_VF = torch._VF
NETWORKS = ("rnn_tanh", "rnn_relu", "lstm", "gru")
CELLS = ("rnn_tanh_cell", "rnn_relu_cell", "lstm_cell", "gru_cell")


class Functions:
    """The namespace of kernels with some of them replaced."""

    def __init__(self, **replaced):
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(_VF, name)


def replace(patch, names, wrapper):
    """Call ``wrapper(name, kernel, *args)`` in place of each kernel, for the layers of one step or of many."""

    def wrapped(name):
        return lambda *args: wrapper(name, getattr(_VF, name), *args)

    replaced = {name: wrapped(name) for name in names}
    patch.set(rnn, "_VF", Functions(**replaced))
    patch.set(rnn, "_rnn_impls", {name.upper(): getattr(rnn._VF, name) for name in ("rnn_tanh", "rnn_relu")})


def weights_of(args):
    """Place of the list of weights among a network kernel's arguments."""
    return next(i for i, a in enumerate(args) if isinstance(a, (list, tuple)) and len(a) > 1 and a[0].ndim == 2)


def with_weights(change):
    def wrapper(name, kernel, *args):
        place = weights_of(args)
        return kernel(*args[:place], change(name, list(args[place])), *args[place + 1 :])

    return wrapper


def swapped(tensor, gates, a, b):
    parts = list(tensor.chunk(gates))
    parts[a], parts[b] = parts[b], parts[a]
    return torch.cat(parts)


@mutant("recurrent.rnn.formula", "recurrent.gradient.through-time", "recurrent.layers.stacked")
def hidden_bias_forgotten(patch):
    """Leaves bias_hh out, as an implementation with a single bias does that loads these weights."""

    def change(name, weights):
        return [w * 0 if w.ndim == 1 and i % 4 == 3 else w for i, w in enumerate(weights)]

    replace(patch, NETWORKS, with_weights(change))


@mutant("recurrent.lstm.formula", "recurrent.lstm.gate-order", "recurrent.lstm.projection")
def lstm_gates_as_in_tensorflow(patch):
    """Holds the gates in the order input, cell, forget, output, as TensorFlow's cell does."""
    replace(
        patch, ("lstm",), with_weights(lambda name, ws: [w if w.shape[0] == 2 else swapped(w, 4, 1, 2) for w in ws])
    )


@mutant("recurrent.gru.gate-order", "recurrent.gru.reset-after-product")
def gru_gates_as_in_keras(patch):
    """Holds the gates in the order update, reset, new, as Keras does."""
    replace(patch, ("gru",), with_weights(lambda name, ws: [swapped(w, 3, 0, 1) for w in ws]))


@mutant("recurrent.cell.formula")
def gru_cell_resets_the_state_first(patch):
    """Applies the reset gate before the product, as the paper's first version does."""

    def wrapper(name, kernel, x, h, w_ih, w_hh, b_ih=None, b_hh=None):
        b_ih, b_hh = (0 if b is None else b for b in (b_ih, b_hh))
        xr, xz, xn = (x @ w_ih.T + b_ih).chunk(3, -1)
        hr, hz, _ = (h @ w_hh.T + b_hh).chunk(3, -1)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        n = (xn + (r * h) @ w_hh.chunk(3)[2].T + (b_hh.chunk(3)[2] if isinstance(b_hh, torch.Tensor) else 0)).tanh()
        return (1 - z) * n + z * h

    replace(patch, ("gru_cell",), wrapper)


@mutant("recurrent.gradient.cell", "recurrent.gradient.through-time")
def gradient_truncated(patch):
    """Cuts the gradient at the state it was given, as truncated backpropagation does."""

    def detached(state):
        return tuple(s.detach() for s in state) if isinstance(state, (tuple, list)) else state.detach()

    replace(patch, (*NETWORKS, *CELLS), lambda name, kernel, x, state, *rest: kernel(x, detached(state), *rest)
            if isinstance(rest[0], (list, tuple)) or name in CELLS else kernel(x, state, *rest))  # fmt: skip


@mutant("recurrent.gradient.second")
def networks_differentiate_once(patch):
    """Takes the gradient for a constant, as a fused kernel does that has no second derivative."""
    replace(patch, NETWORKS, lambda name, kernel, x, *rest: kernel(once(x), *rest))


@mutant("recurrent.cell.state-defaults-to-zeros", "recurrent.state.defaults-to-zeros")
def states_default_to_ones(patch):
    """Starts from ones: a buffer that was never cleared."""

    class Torch:
        zeros = staticmethod(torch.ones)

        def __getattr__(self, name):
            return getattr(torch, name)

    patch.set(rnn, "torch", Torch())


@mutant("recurrent.cell.errors", "recurrent.layout.errors")
def shapes_unchecked(patch):
    """Takes any shape of input and broadcasts: zeros in place of an error."""

    def call(original, module, x, *args, **kwargs):
        try:
            return original(module, x, *args, **kwargs)
        except (RuntimeError, ValueError, AssertionError):
            return x

    for cls in (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell):
        patch.wrap(cls, "forward", call)


@mutant("recurrent.layers.stacked", "recurrent.rnn.state-is-of-its-own-layer")
def recurrence_from_the_layer_below(patch):
    """Starts each layer from the state of the layer below: the docstring taken at its word."""

    def wrapper(name, kernel, x, state, *rest):
        if isinstance(rest[0], (list, tuple)) and isinstance(state, torch.Tensor):
            state = state.roll(1, 0)
        return kernel(x, state, *rest)

    replace(patch, ("rnn_tanh", "rnn_relu", "gru"), wrapper)


@mutant("recurrent.layers.bidirectional", "recurrent.packed.each-sequence-alone")
def reverse_direction_shares_weights(patch):
    """Uses the forward weights in both directions."""

    def change(name, weights):
        half = len(weights) // 4 if len(weights) >= 16 else len(weights) // 2
        return (
            weights[:half] * 2
            if len(weights) == 8
            else weights[:4] * 2 + weights[8:12] * 2
            if len(weights) == 16
            else weights
        )

    replace(patch, NETWORKS, with_weights(change))


@mutant("recurrent.layers.parameters", "recurrent.init.uniform")
def biases_share_one_tensor_less(patch):
    """Starts from a normal distribution of the same deviation."""

    def reset(module):
        for weight in module.parameters():
            nn.init.normal_(weight, 0, 1 / (3 * module.hidden_size) ** 0.5)

    patch.set(nn.RNNBase, "reset_parameters", reset)
    patch.set(rnn.RNNCellBase, "reset_parameters", reset)
    patch.set(
        nn.RNNBase,
        "named_parameters",
        lambda module, *a, **k: iter(sorted(nn.Module.named_parameters(module, *a, **k))),
    )


@mutant("recurrent.state.final", "recurrent.state.carries-over", "recurrent.packed.each-sequence-alone")
def final_state_is_the_first(patch):
    """Returns the state that it was given as the final one."""

    def forward(original, module, x, hx=None):
        y, end = original(module, x, hx)
        return y, (tuple(s * 0.5 for s in end) if isinstance(end, tuple) else end * 0.5)

    for cls in (nn.RNN, nn.LSTM, nn.GRU):
        patch.wrap(cls, "forward", forward)


@mutant("recurrent.layout.batch-first", "recurrent.layout.unbatched")
def batch_first_moves_the_states_too(patch):
    """Takes the batch axis of the sequence where there is none, or forgets batch_first."""

    def forward(original, module, x, hx=None):
        if isinstance(x, torch.Tensor) and module.batch_first:
            x = x.flip(0)
        return original(module, x, hx)

    for cls in (nn.RNN, nn.LSTM, nn.GRU):
        patch.wrap(cls, "forward", forward)


@mutant("recurrent.packed.order-restored")
def order_not_restored(patch):
    """Leaves the sequences in order of their lengths."""
    patch.set(nn.utils.rnn, "invert_permutation", lambda permutation: permutation)


@mutant("recurrent.packed.round-trip")
def padding_value_ignored(patch):
    """Pads with zeros whatever value is asked for."""

    original = _VF._pad_packed_sequence

    def pad(data, sizes, batch_first, value, length):
        return original(data, sizes, batch_first, 0.0, length)

    patch.set(nn.utils.rnn, "_VF", Functions(_pad_packed_sequence=pad))


@mutant("recurrent.packed.padding-gets-no-gradient", "recurrent.packed.each-sequence-alone")
def lengths_ignored(patch):
    """Runs every sequence over the whole length, as an implementation does that masks the outputs afterwards."""

    original = _VF._pack_padded_sequence

    def pack(x, lengths, batch_first):
        return original(x, torch.full_like(lengths, x.shape[1 if batch_first else 0]), batch_first)

    patch.set(nn.utils.rnn, "_VF", Functions(_pack_padded_sequence=pack))


def dropout_argument(change):
    """Alter the dropout and the mode among a network kernel's arguments (…, layers, dropout, training, …)."""

    def wrapper(name, kernel, *args):
        args = list(args)
        place = next(i for i, a in enumerate(args) if isinstance(a, float))
        args[place], args[place + 1] = change(args[place], args[place + 1])
        return kernel(*args)

    return wrapper


@mutant("recurrent.dropout.between-layers-only", "recurrent.dropout.rate-and-scale")
def dropout_missing(patch):
    """Forgets dropout between layers."""
    replace(patch, NETWORKS, dropout_argument(lambda p, training: (0.0, training)))


@mutant("recurrent.dropout.rate-and-scale", "recurrent.dropout.between-layers-only")
def dropout_keeps_with_p(patch):
    """Takes p for the probability of keeping."""
    replace(patch, NETWORKS, dropout_argument(lambda p, training: (1 - p, training)))


@mutant("recurrent.dropout.eval-off")
def dropout_in_eval(patch):
    """Drops in eval mode too."""
    replace(patch, NETWORKS, dropout_argument(lambda p, training: (p, True)))


@mutant("recurrent.dropout.one-layer-warns", "recurrent.modes.stateless", "recurrent.dropout.between-layers-only")
def last_layer_dropped_too(patch):
    """Drops the outputs of the last layer too, as Keras does."""

    def forward(original, module, x, hx=None):
        y, end = original(module, x, hx)
        if isinstance(y, torch.Tensor):
            y = nn.functional.dropout(y, max(module.dropout, 0.1), module.training)
        return y, end

    for cls in (nn.RNN, nn.LSTM, nn.GRU):
        patch.wrap(cls, "forward", forward)


@mutant("recurrent.modes.grad-mode-makes-no-difference")
def inference_kernel_drops_a_bias(patch):
    """A fast path for inference that forgets the biases of the hidden state."""

    def change(name, weights):
        if torch.is_grad_enabled():
            return weights
        return [w * 0.9 for w in weights]

    replace(patch, NETWORKS, with_weights(change))


@mutant("recurrent.init.arguments-checked")
def arguments_unchecked(patch):
    """Takes any number for dropout, and any width of projection."""
    patch.source(nn.RNNBase.__init__, "raise ValueError(", "print(")
    patch.source(nn.RNNBase.__init__, "proj_size < 0", "False")


@mutant("recurrent.cell.state-rank")
def state_of_three_dimensions_taken(patch):
    """Leaves the rank of the state to the kernel."""
    for cls in (nn.RNNCell, nn.LSTMCell, nn.GRUCell):
        patch.source(cls.forward, "raise ValueError", "repr")


@mutant("recurrent.layout.errors")
def cell_state_unchecked(patch):
    """Checks the hidden state and not the cell's."""
    patch.source(
        nn.LSTM.check_forward_args, "self.get_expected_cell_size(input, batch_sizes)", "tuple(hidden[1].shape)"
    )


@mutant("recurrent.init.sizes-checked")
def sizes_unchecked(patch):
    """Makes layers of no features."""
    patch.source(nn.RNNBase.__init__, "input_size <= 0", "input_size < 0")


@mutant("recurrent.init.sizes-checked")
def whole_numbers_not_asked_for(patch):
    """Rounds sizes down."""
    patch.source(nn.RNNBase.__init__, "not isinstance(input_size, int)", "False")
    patch.source(nn.RNNBase.__init__, "input_size <= 0", "input_size < 1.0")


@mutant("recurrent.init.positions")
def nonlinearity_by_position_lost(patch):
    """Takes the fourth position for the bias, as other networks do."""
    patch.source(nn.RNN.__init__, "self.nonlinearity = args[3]", "self.nonlinearity = 'tanh'")


@mutant("recurrent.layers.copied")
def copies_share_weights(patch):
    """Copies a layer without what its list of weights holds."""
    patch.set(nn.RNNBase, "__deepcopy__", lambda layer, memo: layer)


@mutant("recurrent.layers.old-pickle")
def old_pickles_lose_the_biases(patch):
    """Rebuilds the names of the weights alone."""
    patch.source(nn.RNNBase.__setstate__, "if self.bias:", "if False:")


@mutant("recurrent.layers.old-pickle")
def old_pickles_get_a_projection(patch):
    """Reads a projection into layers that were pickled before there was one."""
    patch.source(nn.RNNBase.__setstate__, "self.proj_size = 0", "self.proj_size = 1")


@mutant("recurrent.layers.replaced-weights")
def weights_cached_for_ever(patch):
    """Holds on to the weights it was built with."""
    patch.source(nn.RNNBase._weights_have_changed, "weights_changed = True", "weights_changed = False")
    patch.source(nn.RNNBase.__setattr__, "self._flat_weights[idx] = value", "pass")


@mutant("recurrent.rnn.formula", "recurrent.cell.formula")
def relu_is_tanh(patch):
    """Takes tanh where the ReLU was asked for."""
    replace(
        patch,
        ("rnn_relu", "rnn_relu_cell"),
        lambda name, kernel, *args: getattr(_VF, name.replace("relu", "tanh"))(*args),
    )


@mutant("recurrent.cell.formula", "recurrent.gradient.cell")
def cell_forgets_the_second_bias(patch):
    """Leaves the hidden state's bias out of a cell."""
    replace(
        patch, CELLS, lambda name, kernel, *args: kernel(*args[:-1], args[-1] * 0 if args[-1] is not None else None)
    )


@mutant("recurrent.cell.state-defaults-to-zeros", "recurrent.state.defaults-to-zeros")
def batched_zeros_for_a_single_sequence(patch):
    """Makes the zeros in the default dtype."""
    zeros_of_torch = torch.zeros

    class Torch:
        zeros = staticmethod(lambda *shape, dtype=None, **kwargs: zeros_of_torch(*shape, **kwargs))

        def __getattr__(self, name):
            return getattr(torch, name)

    patch.set(rnn, "torch", Torch())


@mutant("recurrent.lstm.projection")
def projection_forgotten_in_the_state(patch):
    """Returns the state before its projection."""
    patch.source(
        nn.LSTM.get_expected_hidden_size
        if "get_expected_hidden_size" in vars(nn.LSTM)
        else nn.RNNBase.get_expected_hidden_size,
        "if self.proj_size > 0:",
        "if False:",
    )


@mutant("recurrent.packed.each-sequence-alone")
def first_batch_size_is_the_second(patch):
    """Takes the number of sequences from the second step."""
    patch.source(nn.RNNBase.get_expected_hidden_size, "batch_sizes[0]", "batch_sizes[1]")


@mutant("recurrent.packed.order-restored")
def permuted_state_not_restored(patch):
    """Leaves the final states in order of their lengths."""
    for cls in (nn.RNN, nn.LSTM, nn.GRU):
        patch.set(cls, "permute_hidden", lambda layer, state, permutation: state)


@mutant("recurrent.packed.order-restored", "recurrent.packed.each-sequence-alone")
def initial_state_not_permuted(patch):
    """Gives the sequences the states of others."""
    for cls in (nn.RNN, nn.GRU):
        patch.source(cls.forward, "hx = self.permute_hidden(hx, sorted_indices)", "pass")


@mutant("recurrent.packed.round-trip")
def total_length_unchecked(patch):
    """Takes a total length below that of the longest sequence."""
    patch.source(nn.utils.rnn.pad_packed_sequence, "if total_length < max_seq_length:", "if False:")


@mutant("recurrent.packed.round-trip")
def unsorted_lengths_taken_as_sorted(patch):
    """Sorts whatever it is given."""
    patch.source(nn.utils.rnn.pack_padded_sequence, "if enforce_sorted:", "if False:")


@mutant("recurrent.layers.parameters", "recurrent.layers.bidirectional")
def reverse_names_come_first(patch):
    """Names the reverse direction's weights as the forward one's."""
    patch.source(nn.RNNBase.__init__, "if direction == 1 else", "if direction == 0 else")


@mutant("recurrent.layers.bidirectional", "recurrent.layers.parameters")
def deeper_layers_as_wide_as_one_direction(patch):
    """Reads the layer below in one direction."""
    patch.source(nn.RNNBase.__init__, "real_hidden_size * num_directions", "real_hidden_size")


@mutant("recurrent.init.uniform")
def start_by_the_width_of_the_input(patch):
    """Takes the bound from the input's width, as linear layers do."""
    patch.source(nn.RNNBase.reset_parameters, "self.hidden_size", "self.input_size")


@mutant("recurrent.init.uniform")
def cells_start_by_the_width_of_the_input(patch):
    """Takes a cell's bound from the input's width."""
    patch.source(rnn.RNNCellBase.reset_parameters, "self.hidden_size", "self.input_size")


@mutant("recurrent.dropout.one-layer-warns")
def warns_of_every_dropout(patch):
    """Warns of dropout between layers too."""
    patch.source(nn.RNNBase.__init__, "dropout > 0 and num_layers == 1", "dropout > 0")


@mutant("recurrent.init.arguments-checked")
def dropout_above_one_taken(patch):
    """Takes percentages."""
    patch.source(nn.RNNBase.__init__, "0 <= dropout <= 1", "0 <= dropout <= 100")


@mutant("recurrent.layout.unbatched")
def unbatched_state_taken_as_batched(patch):
    """Does not add the batch axis to the states."""
    patch.source(nn.GRU.forward, "hx = hx.unsqueeze(1)", "pass")


@mutant("recurrent.layers.refusals")
def any_packed_rank_is_taken(patch):
    """Leaves the rank of packed data to the kernel."""
    patch.source(torch.nn.RNNBase.check_input, "input.dim() != expected_input_dim", "False")


@mutant("recurrent.packed.lengths-within")
def lengths_cut_too_early(patch):
    """Cuts lengths down to what the padded tensor holds, and one step more."""
    patch.source(
        nn.utils.rnn.pack_padded_sequence,
        "_VF._pack_padded_sequence(input, lengths, batch_first)",
        "_VF._pack_padded_sequence(input, lengths.clamp(max=input.size(int(batch_first)) - 1), batch_first)",
    )


@mutant("recurrent.packed.lists")
def lists_are_packed_as_sorted(patch):
    """Packs a list of sequences as if it were sorted."""
    patch.wrap(utils, "pack_sequence", lambda o, given, enforce_sorted=True: o(sorted(given, key=len, reverse=True)))


@mutant("recurrent.packed.padded-lists")
def unpadding_keeps_the_padding(patch):
    """Gives every sequence the length of the longest."""
    patch.wrap(utils, "unpad_sequence", lambda o, x, lengths, *a: o(x, lengths.clamp(min=int(lengths.max())), *a))


@mutant("recurrent.packed.conversions")
def conversions_forget_the_order(patch):
    """Converts the data, and forgets how it was sorted."""

    def to(original, packed, *args, **kwargs):
        found = original(packed, *args, **kwargs)
        return found if found is packed else type(packed)(found.data, found.batch_sizes)

    patch.wrap(utils.PackedSequence, "to", to)


@mutant("recurrent.packed.padded-left")
def padding_always_follows(patch):
    """Pads to the right whatever was asked for."""
    patch.wrap(utils, "pad_sequence", lambda o, given, *a, padding_side="right", **k: o(given, *a, **k))


@mutant("recurrent.packed.default-device")
def lengths_go_to_the_default_device(patch):
    """Makes the tensor of lengths wherever tensors are made."""
    patch.source(utils.pack_padded_sequence, ', device="cpu"', "")


@mutant("recurrent.packed.lengths-of-all")
def sequences_without_length_are_dropped(patch):
    """Ends with the last length."""
    patch.source(utils.unpad_sequence, ", strict=True", "")


@mutant("recurrent.layout.no-steps")
def no_steps_give_no_outputs(patch):
    """Returns an empty output."""

    def run(name, x, states, *rest):
        if len(x):
            return getattr(_VF, name)(x, states, *rest)
        return (x, *states) if name == "lstm" else (x, states)

    patch.set(rnn, "_VF", Functions(**{name: partial(run, name) for name in ("lstm", "gru", "rnn_tanh")}))
    patch.set(rnn, "_rnn_impls", {**rnn._rnn_impls, "RNN_TANH": partial(run, "rnn_tanh")})
