"""Recurrent networks: Elman, LSTM (Hochreiter & Schmidhuber 1997, Gers 2000) and GRU (Cho et al. 2014, variant v3).

A step takes ``x`` of shape (N, H_in), the state as a tuple of (N, H), and the parameters by their names without the
layer: ``weight_ih`` (gates * H, H_in), ``weight_hh`` (gates * H, H), ``bias_ih`` and ``bias_hh`` (gates * H) if any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from specs.reference.rounding import Rounded, concatenate, exact, relu, sigmoid, stack, tanh

State = tuple[Rounded, ...]
Parameters = Mapping[str, Rounded]
Step = Callable[[Rounded, State, Parameters], State]


def affine(x: Rounded, p: Parameters, kind: str) -> Rounded:
    product = x @ p[f"weight_{kind}"].T
    return product + p[f"bias_{kind}"] if f"bias_{kind}" in p else product


def chunks(x: Rounded, count: int) -> list[Rounded]:
    size = x.shape[-1] // count
    return [x[..., i * size : (i + 1) * size] for i in range(count)]


def rnn_tanh(x: Rounded, state: State, p: Parameters) -> State:
    return (tanh(affine(x, p, "ih") + affine(state[0], p, "hh")),)


def rnn_relu(x: Rounded, state: State, p: Parameters) -> State:
    return (relu(affine(x, p, "ih") + affine(state[0], p, "hh")),)


def lstm(x: Rounded, state: State, p: Parameters) -> State:
    """Gates in the order input, forget, cell, output; ``weight_hr`` (P, H) projects the hidden state if it is there."""
    i, f, g, o = chunks(affine(x, p, "ih") + affine(state[0], p, "hh"), 4)
    c = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(c)
    return (h @ p["weight_hr"].T if "weight_hr" in p else h), c


def gru(x: Rounded, state: State, p: Parameters) -> State:
    """Gates in the order reset, update, new; the reset gate acts after the product with the hidden state."""
    x_r, x_z, x_n = chunks(affine(x, p, "ih"), 3)
    h_r, h_z, h_n = chunks(affine(state[0], p, "hh"), 3)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = tanh(x_n + r * h_n)
    return ((exact(1.0) - z) * n + z * state[0],)


def layer(step: Step, inputs: Sequence[Rounded], state: State, p: Parameters, reverse: bool):
    """One direction of one layer: the hidden state at each of the inputs' places, and the final state."""
    hidden = []
    for x in reversed(inputs) if reverse else inputs:
        state = step(x, state, p)
        hidden.append(state[0])
    return hidden[::-1] if reverse else hidden, state


def network(step: Step, x: Rounded, states: State, p: Parameters, layers: int = 1, directions: int = 1):
    """Output (L, N, directions * H) and final states (layers * directions, N, H), for ``x`` of shape (L, N, H_in).

    Parameters are named as torch does: ``weight_ih_l0``, ``weight_ih_l0_reverse``, ``weight_ih_l1``, …
    """
    inputs, final = [x[t] for t in range(x.shape[0])], []
    for i in range(layers):
        sides = []
        for d in range(directions):
            suffix = f"_l{i}" + "_reverse" * d
            own = {name.removesuffix(suffix): value for name, value in p.items() if name.endswith(suffix)}
            start = tuple(state[i * directions + d] for state in states)
            hidden, end = layer(step, inputs, start, own, reverse=bool(d))
            sides.append(hidden)
            final.append(end)
        inputs = [concatenate(parts) for parts in zip(*sides, strict=True)]
    return stack(inputs), tuple(stack(parts) for parts in zip(*final, strict=True))
