"""Attention: one formula, whether called by itself, in heads, or within the layers of the Transformer."""

import faulthandler
import functools
import os
import warnings
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from specs.reference import attention as reference
from specs.reference.rounding import Rounded, gelu, gradients, own_errors, relu, sharpened
from torch_conformance.axes import FLOATING, PRECISE
from torch_conformance.checks import array, eps
from torch_conformance.marks import axes, claim, since

# queries (…, L, E) and keys (…, S, E): vector tails, more than one block of queries, more than one block of keys
SIZES = [(2, 3, 5, 7, 4), (1, 1, 33, 17, 17), (1, 2, 2, 520, 3), (1, 1, 200, 3, 1), (2, 1, 1, 1, 8)]
LEAD = {3: (2,), 4: (1, 2)}  # what stands before the length, by the rank
WIDTH, HEADS = 6, 2


def sdpa(case, *args, **kwargs):
    return case.function(F.scaled_dot_product_attention)(*args, **kwargs)


def rounded(*tensors):
    return [Rounded(array(tensor)) for tensor in tensors]


def parameters(layer):
    return {name: Rounded(array(parameter)) for name, parameter in layer.named_parameters()}


def within(case, actual, wanted):
    """Within the bound of the running error analysis, which counts every rounding: so k is 1."""
    case.close(actual, wanted.value, k=1, scale=wanted.error)


def sharply(law, *args, **options):
    """The law with the sharper bound of the two, for layers of many steps."""
    with own_errors():
        result = law(*args, **options)
    return sharpened(result)


def queries_keys_values(case, n, h, length, keys, width, *, wide=None, **kwargs):
    shapes = (length, width), (keys, width), (keys, wide or width)
    return [case.tensor(n, h, *shape, **kwargs) for shape in shapes]


def hidden(case, *shape):
    """A boolean mask, True with probability 0.3, but not of the first key."""
    mask = case.rng.uniform(size=shape) < 0.3
    mask[..., 0] = False
    return torch.as_tensor(mask).to(case.device)


def padding_mask(case, *shape):
    """A mask of keys with floats, or where torch is too old to take one, with booleans."""
    return case.tensor(*shape) if since("2.0") else hidden(case, *shape)


def additive(mask):
    return np.where(mask.cpu().numpy(), -np.inf, 0.0) if mask.dtype == torch.bool else array(mask)


@claim("attention.sdpa.formula")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sdpa_follows_its_formula(case, size):
    q, k, v = queries_keys_values(case, *size)
    within(case, sdpa(case, q, k, v), reference.attention(*rounded(q, k, v)))


@claim("attention.sdpa.formula", "attention.sdpa.scale")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_sdpa_takes_any_leading_axes(case, rank):
    q, k, v = (case.tensor(*[1, 2, 1][: rank - 2], *shape) for shape in [(5, 4), (7, 4), (7, 3)])
    within(case, sdpa(case, q, k, v), reference.attention(*rounded(q, k, v)))


@claim("attention.sdpa.gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("kind", ["plain", "causal", "boolean", "float"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_of_sdpa(case, size, kind):
    q, k, v = queries_keys_values(case, *size, requires_grad=True)
    length, keys = size[2:4]
    boolean, additions = hidden(case, length, keys), case.tensor(length, keys, requires_grad=True)
    masks = {
        "plain": None,
        "causal": reference.causal(length, keys),
        "boolean": additive(boolean),
        "float": array(additions),
    }
    given = {"boolean": ~boolean, "float": additions.detach()}.get(kind)
    y = sdpa(case, q, k, v, given, is_causal=kind == "causal")
    y.backward(seed := case.tensor(*y.shape))
    inputs = rounded(q, k, v)
    expected = gradients([(reference.attention(*inputs, masks[kind]), array(seed))], inputs)
    for tensor, wanted in zip((q, k, v), expected, strict=True):
        within(case, tensor.grad, wanted)


@claim("attention.sdpa.scale")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("scale", [0.3, 1.0, 0.0])
def test_scale_replaces_the_root(case, scale, rank):
    for wide in (3, 4):  # values as wide as the keys take a kernel of their own
        q, k, v = (t[0] if rank == 3 else t for t in queries_keys_values(case, 1, 2, 5, 7, 4, wide=wide))
        within(case, sdpa(case, q, k, v, scale=scale), reference.attention(*rounded(q, k, v), scale=scale))


@claim("attention.sdpa.formula")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("wide", [3, 4])
def test_large_scores_do_not_overflow(case, wide):
    q, k, v = queries_keys_values(case, 1, 2, 5, 17, 4, wide=wide, spread=40)
    within(case, sdpa(case, q, k, v), reference.attention(*rounded(q, k, v)))


@claim("attention.sdpa.boolean-mask")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("shape", [(5, 17), (1, 17), (3, 5, 17), (2, 1, 5, 17), (2, 1, 1, 17), (2, 3, 5, 17)], ids=str)
def test_true_lets_the_query_attend(case, shape):
    q, k, v = queries_keys_values(case, 2, 3, 5, 17, 4)
    out = hidden(case, *shape)
    within(case, sdpa(case, q, k, v, ~out), reference.attention(*rounded(q, k, v), additive(out)))


@claim("attention.sdpa.float-mask")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("shape", [(5, 17), (1, 17), (3, 5, 17), (3, 1, 17)], ids=str)
def test_a_float_mask_is_added(case, shape, rank):
    q, k, v = (t[0] if rank == 3 else t for t in queries_keys_values(case, 2, 3, 5, 17, 4))
    mask = case.tensor(*shape)
    mask[..., 3] = -torch.inf
    within(case, sdpa(case, q, k, v, mask), reference.attention(*rounded(q, k, v), array(mask)))


@claim("attention.sdpa.mask-of-one-column")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("shape", [(5, 1), (2, 1, 5, 1)], ids=str)
@pytest.mark.parametrize("kind", ["boolean", "float"])
def test_one_column_stands_for_all_keys(case, kind, shape):
    q, k, v = queries_keys_values(case, 2, 3, 5, 7, 4)
    mask = case.tensor(*shape) if kind == "float" else torch.ones(shape, dtype=torch.bool, device=case.device)
    mask[..., 3, :] = -torch.inf if kind == "float" else False
    shown = [0, 1, 2, 4]
    added = array(mask)[..., shown, :] if kind == "float" else None
    within(case, sdpa(case, q, k, v, mask)[..., shown, :], reference.attention(*rounded(q[..., shown, :], k, v), added))


@claim("attention.sdpa.masked-stretch")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("kind", ["boolean", "float"])
def test_long_stretches_of_keys_may_be_hidden(case, kind):
    q, k, v = queries_keys_values(case, 1, 2, 3, 1100, 4)
    shown = torch.zeros(3, 1100, dtype=torch.bool, device=case.device)
    shown[0, :7] = shown[1, 600:605] = shown[2, -3:] = True
    added = case.tensor_of(np.zeros((3, 1100))).masked_fill(~shown, -torch.inf)
    y = sdpa(case, q, k, v, shown if kind == "boolean" else added)
    within(case, y, reference.attention(*rounded(q, k, v), array(added)))


@claim("attention.sdpa.nan-stays")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("keys", [3, 64])  # fewer than any vector holds; whole vectors of any width
@pytest.mark.parametrize(("of", "spoilt"), [(0, (1, slice(None))), (1, slice(None)), (2, (slice(None), 2))], ids="qkv")
def test_nan_shows_wherever_it_enters(case, of, spoilt, keys, rank):
    tensors = [case.tensor(*LEAD[rank], length, 4) for length in (5, keys, keys)]
    tensors[of][..., 1, 2] = torch.nan
    wanted = torch.zeros(5, 4, dtype=torch.bool, device=case.device)
    wanted[spoilt] = True
    case.same(sdpa(case, *tensors).isnan(), wanted.expand_as(tensors[0]))


@claim("attention.sdpa.float-mask", "attention.sdpa.gradient")
@axes(dtype=PRECISE)
def test_a_float_mask_has_a_gradient(case):
    q, k, v = queries_keys_values(case, 2, 3, 5, 7, 4)
    mask = case.tensor(5, 7, requires_grad=True)
    y = sdpa(case, q, k, v, mask)
    y.backward(seed := case.tensor(*y.shape))
    added = Rounded(array(mask))
    scores = rounded(q)[0] @ rounded(k)[0].T * 0.5 + added
    wanted = gradients([(reference.softmax(scores) @ rounded(v)[0], array(seed))], [added])[0]
    within(case, mask.grad, wanted)


@claim("attention.sdpa.causal")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize(("length", "keys"), [(5, 5), (3, 7), (7, 3), (33, 65)])
def test_causal_counts_from_the_upper_left(case, length, keys, rank):
    q, k, v = (t[0] if rank == 3 else t for t in queries_keys_values(case, 1, 2, length, keys, 4))
    mask = reference.causal(length, keys)
    within(case, sdpa(case, q, k, v, is_causal=True), reference.attention(*rounded(q, k, v), mask))


@claim("attention.sdpa.mask-or-causal")
@pytest.mark.parametrize("rank", [3, 4])
def test_mask_and_causal_exclude_each_other(case, rank):
    q = case.tensor(*LEAD[rank], 5, 4)
    with case.raises((RuntimeError, ValueError), "attn_mask|is_causal"):
        sdpa(case, q, q, q, case.tensor(5, 5), is_causal=True)


@claim("attention.sdpa.masked-row-is-zero")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("kind", ["boolean", "float"])
def test_a_row_without_keys_is_zero(case, kind, rank):
    q, k, v = (case.tensor(*LEAD[rank], 5, 4, requires_grad=True) for _ in range(3))
    shown = torch.ones(5, 5, dtype=torch.bool, device=case.device)
    shown[3] = False
    additions = case.tensor_of(np.zeros((5, 5))).masked_fill(~shown, -torch.inf)
    y = sdpa(case, q, k, v, shown if kind == "boolean" else additions)
    y.backward(case.tensor(*y.shape))
    assert (y[..., 3, :] == 0).all()
    assert (q.grad[..., 3, :] == 0).all()
    rest = [0, 1, 2, 4]
    within(case, y[..., rest, :], reference.attention(*rounded(q[..., rest, :], k, v)))
    assert all(torch.isfinite(t.grad).all() for t in (q, k, v))


@claim("attention.sdpa.masked-row-is-nan")
@pytest.mark.parametrize("rank", [3, 4])
def test_a_row_without_keys_was_nan(case, rank):
    q = case.tensor(*LEAD[rank], 5, 4)
    shown = torch.ones(5, 5, dtype=torch.bool, device=case.device)
    shown[3] = False
    assert torch.isnan(sdpa(case, q, q, q, shown)[..., 3, :]).all()


@claim("attention.sdpa.dropout", "attention.sdpa.dropout-ignores-the-mode")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("p", [0.2, 0.7])
def test_sdpa_drops_weights(case, p):
    q, k = (case.tensor(1, 2, 24, 4) for _ in range(2))
    unit = case.tensor_of(np.eye(24)).expand(1, 2, 24, 24)  # the values show the weights
    shown = sdpa(case, q, k, unit, dropout_p=p)
    kept = array(shown) != 0
    weights = reference.weights(*rounded(q, k))
    scale = (weights.error + 2 * weights.value) / (1 - p)
    case.close(shown, np.where(kept, weights.value / (1 - p), 0), k=1, scale=np.where(kept, scale, 0))
    case.binomial((~kept).sum(), kept.size, p)


@claim("attention.sdpa.dropout")
@axes(dtype=PRECISE)
def test_the_gradient_uses_the_dropped_weights(case):
    q, k, gradient = (case.tensor(2, 5, 4) for _ in range(3))
    v = case.tensor(2, 5, 4, requires_grad=True)
    with torch.random.fork_rng():
        shown = sdpa(case, q, k, case.tensor_of(np.eye(5)).expand(2, 5, 5), dropout_p=0.4)
    sdpa(case, q, k, v, dropout_p=0.4).backward(gradient)
    wanted = Rounded(array(shown), abs(array(shown))).T @ rounded(gradient)[0]
    within(case, v.grad, wanted)


@claim("attention.sdpa.dropout-ignores-the-mode")
def test_eval_does_not_stop_sdpa(case):
    class Attend(nn.Module):
        def forward(self, x):
            return sdpa(case, x, x, torch.ones_like(x), dropout_p=0.4)

    layer, x = Attend().eval(), case.tensor(1, 2, 33, 4)
    with case.unchanged(layer, x=x, but={"rng"}):
        assert (layer(x) - 1).abs().max() > 0.1


@claim("attention.sdpa.deterministic-without-dropout")
@pytest.mark.parametrize("rank", [3, 4])
def test_sdpa_draws_nothing_without_dropout(case, rank):
    q, k, v = (case.tensor(*LEAD[rank], 5, 4) for _ in range(3))
    with case.unchanged(q=q, k=k, v=v):
        sdpa(case, q, k, v)
        sdpa(case, q, k, v, is_causal=True)


@claim("attention.sdpa.grouped-queries")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("heads", [1, 2])
def test_grouped_queries_share_keys(case, heads):
    q, k, v = case.tensor(2, 4, 5, 3), case.tensor(2, heads, 7, 3), case.tensor(2, heads, 7, 3)
    shared = [Rounded(array(t).repeat(4 // heads, 1)) for t in (k, v)]
    within(case, sdpa(case, q, k, v, enable_gqa=True), reference.attention(*rounded(q), *shared))
    with case.raises((RuntimeError, ValueError), "heads|size|divi|shape"):
        sdpa(case, q[:, :3], case.tensor(2, 2, 7, 3), case.tensor(2, 2, 7, 3), enable_gqa=True)


# -- heads -----------------------------------------------------------------------------------------------------------


def attend(case, layer, *inputs, mask=None, zero_row=False, **kwargs):
    """Run the layer (batch first) and hold its output and its weights against the law."""
    y, weights = layer(*inputs, average_attn_weights=False, **kwargs)
    wanted, shares = reference.multihead(*rounded(*inputs), parameters(layer), layer.num_heads, mask, zero_row)
    within(case, y, wanted)
    within(case, weights, shares)
    bare, nothing = layer(*inputs, need_weights=False, **kwargs)
    assert nothing is None
    within(case, bare, wanted)


@claim("attention.mha.formula")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_multihead_follows_its_formula(case, mode, bias):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, bias=bias, batch_first=True).train(mode == "train")
    q, k, v = case.tensor(2, 5, WIDTH), case.tensor(2, 7, WIDTH), case.tensor(2, 7, WIDTH)
    attend(case, layer, q, k, v)
    within(case, layer(k, v, v)[0], reference.multihead(*rounded(k, v, v), parameters(layer), HEADS)[0])
    within(case, layer(q, q, q)[0], reference.multihead(*rounded(q, q, q), parameters(layer), HEADS)[0])


@claim("attention.mha.gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", [{}, {"kdim": 3, "vdim": 5}, {"add_bias_kv": True}, {"bias": False}], ids=str)
def test_gradients_of_multihead(case, options, need_weights):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True, **options)
    widths = options.get("kdim", WIDTH), options.get("vdim", WIDTH)
    inputs = [case.tensor(2, 3, w, requires_grad=True) for w in (WIDTH, *widths)]
    y, _ = layer(*inputs, need_weights=need_weights)
    y.backward(seed := case.tensor(*y.shape))
    given, named = rounded(*inputs), parameters(layer)
    wanted, _ = reference.multihead(*given, named, HEADS)
    expected = gradients([(wanted, array(seed))], [*given, *named.values()])
    for tensor, gradient in zip((*inputs, *layer.parameters()), expected, strict=True):
        within(case, tensor.grad, gradient)


@claim("attention.mha.widths-of-keys-and-values")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("options", [{"kdim": 3}, {"vdim": 5}, {"kdim": 3, "vdim": 5}], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_keys_and_values_of_other_widths(case, options, bias):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True, bias=bias, **options)
    k, v = case.tensor(2, 7, options.get("kdim", WIDTH)), case.tensor(2, 7, options.get("vdim", WIDTH))
    assert layer.in_proj_weight is None
    out, padding = hidden(case, 5, 7), hidden(case, 2, 7)
    mask = additive(out)[None, None] + additive(padding)[:, None, None]
    attend(case, layer, case.tensor(2, 5, WIDTH), k, v, mask=mask, attn_mask=out, key_padding_mask=padding)


@claim("attention.mha.added-keys")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("bias_kv", "zero"), [(True, False), (False, True), (True, True)])
def test_added_keys_are_never_hidden(case, bias_kv, zero, mode, masked):
    layer = case.module(
        nn.MultiheadAttention, WIDTH, HEADS, batch_first=True, add_bias_kv=bias_kv, add_zero_attn=zero
    ).train(mode == "train")
    x, out, padding = case.tensor(2, 5, WIDTH), hidden(case, 5, 5), hidden(case, 2, 5)
    masks = {"attn_mask": out, "key_padding_mask": padding} if masked else {}
    mask = additive(out)[None, None] + additive(padding)[:, None, None] if masked else None
    with torch.no_grad() if mode == "eval" else nullcontext():
        attend(case, layer, x, x, x, mask=mask, zero_row=zero, **masks)


@claim("attention.mha.boolean-mask", "attention.mha.mask-polarity-differs")
def test_true_hides_the_key(case):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True)
    x, out, padding = case.tensor(2, 5, WIDTH), hidden(case, 5, 5), hidden(case, 2, 5)
    weights = layer(x, x, x, attn_mask=out)[1]
    assert ((weights == 0) == out).all()
    weights = layer(x, x, x, key_padding_mask=padding)[1]
    assert ((weights == 0) == padding[:, None]).all()


@claim("attention.mha.mask-polarity-differs")
def test_sdpa_reads_masks_the_other_way_round(case):
    q, out = case.tensor(1, 2, 5, 5), hidden(case, 5, 5)
    eye = case.tensor_of(np.eye(5)).expand(1, 2, 5, 5)
    assert ((sdpa(case, q, q, eye, ~out) == 0) == out).all()


MASKS = {
    "positions": lambda case: ({"attn_mask": hidden(case, 5, 7)}, {}),
    "heads": lambda case: ({"attn_mask": hidden(case, 2 * HEADS, 5, 7)}, {}),
    "keys": lambda case: ({}, {"key_padding_mask": hidden(case, 2, 7)}),
    "both": lambda case: ({"attn_mask": hidden(case, 5, 7)}, {"key_padding_mask": hidden(case, 2, 7)}),
    "all": lambda case: ({"attn_mask": hidden(case, 2 * HEADS, 5, 7)}, {"key_padding_mask": hidden(case, 2, 7)}),
    "floats": lambda case: ({"attn_mask": case.tensor(5, 7)}, {"key_padding_mask": padding_mask(case, 2, 7)}),
    "floats by head": lambda case: ({"attn_mask": case.tensor(2 * HEADS, 5, 7)}, {}),
}


def merged(attn, padding):
    """What the masks add up to, of shape (N, H, L, S)."""
    total = np.zeros((2, HEADS, 5, 7))
    for mask in attn.values():
        total = total + (additive(mask) if mask.ndim == 2 else additive(mask).reshape(2, HEADS, 5, 7))
    for mask in padding.values():
        total = total + additive(mask)[:, None, None]
    return total


@claim("attention.mha.masks")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("kind", MASKS)
def test_masks_add_up(case, kind):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True)
    attn, padding = MASKS[kind](case)
    inputs = case.tensor(2, 5, WIDTH), case.tensor(2, 7, WIDTH), case.tensor(2, 7, WIDTH)
    attend(case, layer, *inputs, mask=merged(attn, padding), **attn, **padding)


@claim("attention.mha.masks-of-one-kind")
def test_masks_of_two_kinds_are_added_with_a_warning(case):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True)
    x, out, padding = case.tensor(2, 5, WIDTH), case.tensor(5, 5), hidden(case, 2, 5)
    with pytest.warns(UserWarning, match="mismatched key_padding_mask and attn_mask"):
        y = layer(x, x, x, attn_mask=out, key_padding_mask=padding)[0]
    total = array(out) + additive(padding)[:, None, None]
    within(case, y, reference.multihead(*rounded(x, x, x), parameters(layer), HEADS, total)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x, x, x, attn_mask=hidden(case, 5, 5), key_padding_mask=padding)
        layer(x, x, x, attn_mask=out, key_padding_mask=case.tensor(2, 5))


@claim("attention.mha.weights")
def test_weights_are_averaged_over_heads(case):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True)
    x = case.tensor(2, 5, WIDTH)
    _, each = layer(x, x, x, average_attn_weights=False)
    assert each.shape == (2, HEADS, 5, 5)
    case.close(layer(x, x, x)[1], array(each).mean(1), k=2)  # the sum of two and the half, one rounding each
    case.close(each.sum(-1), np.ones((2, HEADS, 5)), k=8)  # a quotient of the sum each, and five terms to add
    assert layer(x, x, x, need_weights=False)[1] is None


@claim("attention.mha.weights-after-dropout")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("p", [0.2, 0.7])
def test_returned_weights_are_those_after_dropout(case, p):
    layer = case.module(nn.MultiheadAttention, 8, HEADS, dropout=p, batch_first=True)
    x = case.tensor(2, 12, 8)
    y, weights = layer(x, x, x, average_attn_weights=False)
    named, kept = parameters(layer), array(weights) != 0
    _, whole = reference.multihead(*rounded(x, x, x), named, HEADS)
    used = Rounded(
        np.where(kept, whole.value / (1 - p), 0), np.where(kept, (whole.error + 2 * whole.value) / (1 - p), 0)
    )
    within(case, weights, used)
    case.binomial((~kept).sum(), kept.size, p)
    values = reference.linear(rounded(x)[0], named["in_proj_weight"][16:], named["in_proj_bias"][16:])
    joined = (used @ reference.split(values, HEADS)).swapaxes(1, 2).reshape(2, 12, 8)
    within(case, y, reference.linear(joined, named["out_proj.weight"], named["out_proj.bias"]))


@claim("attention.mha.dropout-in-training-only")
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_drops_in_training_only(case, need_weights):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, dropout=0.6, batch_first=True)
    x = case.tensor(2, 5, WIDTH)
    with case.unchanged(layer, x=x, but={"rng"}):
        first = layer(x, x, x, need_weights=need_weights)[0]
    assert not torch.equal(first, layer(x, x, x, need_weights=need_weights)[0])
    layer.eval()
    with case.unchanged(layer, x=x):
        y = layer(x, x, x, need_weights=need_weights)[0]
    within(case, y, reference.multihead(*rounded(x, x, x), parameters(layer), HEADS)[0])


@claim("attention.mha.dropout-in-training-only")
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_drops_weights_with_probability_p(case, need_weights):
    layer = case.module(nn.MultiheadAttention, 32, 1, dropout=0.3, batch_first=True)
    with torch.no_grad():
        for parameter in (layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.bias):
            parameter.zero_()
        layer.in_proj_weight[64:].copy_(torch.eye(32))
        layer.out_proj.weight.copy_(torch.eye(32))
    eye = case.tensor_of(np.eye(32)).expand(2, 32, 32)
    y = layer(eye, eye, eye, need_weights=need_weights)[0]
    case.close(y[y != 0], np.full(int((y != 0).sum()), 1 / 32 / 0.7), k=4)  # softmax of zeros, the scale, the product
    case.binomial((y == 0).sum(), y.numel(), 0.3)


@claim("attention.mha.is-causal-is-a-hint")
@pytest.mark.parametrize("need_weights", [True, False])
def test_is_causal_needs_a_mask(case, need_weights):
    layer, x = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True), case.tensor(2, 5, WIDTH)
    with case.raises((RuntimeError, AssertionError), "attn_mask"):
        layer(x, x, x, is_causal=True, need_weights=need_weights)
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool, device=case.device), 1)
    attend(case, layer, x, x, x, mask=reference.causal(5, 5), attn_mask=mask, is_causal=True)
    padding = hidden(case, 2, 5)
    both = reference.causal(5, 5) + additive(padding)[:, None, None]
    attend(case, layer, x, x, x, mask=both, attn_mask=mask, key_padding_mask=padding, is_causal=True)


@claim("attention.mha.batch-first")
def test_batch_first_exchanges_two_axes(case):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS)
    assert layer.batch_first is False
    q, k = case.tensor(5, 2, WIDTH), case.tensor(7, 2, WIDTH)
    padding = hidden(case, 2, 7)
    y, weights = layer(q, k, k, key_padding_mask=padding)
    inputs = rounded(q.transpose(0, 1), k.transpose(0, 1), k.transpose(0, 1))
    wanted, shares = reference.multihead(*inputs, parameters(layer), HEADS, additive(padding)[:, None, None])
    within(case, y.transpose(0, 1), wanted)
    case.close(weights, shares.value.mean(1), k=1, scale=shares.error.mean(1) + 2 * shares.value.mean(1))


@claim("attention.mha.unbatched")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_two_dimensions_are_one_sample(case, masked, batch_first):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=batch_first)
    q, k = case.tensor(5, WIDTH), case.tensor(7, WIDTH)
    padding = hidden(case, 7) if masked else torch.zeros(7, dtype=torch.bool, device=case.device)
    y, weights = layer(q, k, k, average_attn_weights=False, **({"key_padding_mask": padding} if masked else {}))
    wanted, shares = reference.multihead(
        *rounded(q[None], k[None], k[None]), parameters(layer), HEADS, additive(padding)
    )
    within(case, y[None], wanted)
    within(case, weights[None], shares)


KINDS = ["none", "positions", "keys", "positions and keys", "positions by floats", "keys by floats"]


def mask_by(case, kind):
    """What draws the masks: floats or booleans."""
    if kind == "keys by floats" and not since("2.0"):
        raise case.unsupported("masks of keys are boolean before torch 2.0")
    return case.tensor if "floats" in kind else functools.partial(hidden, case)


@claim("attention.mha.fast-path")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("kind", [*KINDS, "heads", "heads and keys", "heads by floats"])
@pytest.mark.parametrize("heads", [HEADS, 3])
def test_the_fast_path_follows_the_formula(case, kind, heads):
    layer = case.module(nn.MultiheadAttention, WIDTH, heads, dropout=0.5, batch_first=True).eval()
    x, mask = case.tensor(2, 5, WIDTH), mask_by(case, kind)
    out, padding = mask(2 * heads, 5, 5) if "heads" in kind else mask(5, 5), mask(2, 5)
    masks = {"attn_mask": out} if "positions" in kind or "heads" in kind else {}
    masks |= {"key_padding_mask": padding} if "keys" in kind else {}
    total = np.zeros((2, 1, 5, 5))
    if "attn_mask" in masks:
        total = total + (additive(out) if out.ndim == 2 else additive(out).reshape(2, heads, 5, 5))
    total = total + (additive(padding)[:, None, None] if "key_padding_mask" in masks else 0)
    with torch.no_grad(), case.unchanged(layer, x=x):
        attend(case, layer, x, x, x, mask=total, **masks)
        mean = layer(x, x, x, **masks)[1]
    shares = reference.multihead(*rounded(x, x, x), parameters(layer), heads, total)[1]
    case.close(mean, shares.value.mean(1), k=1, scale=shares.error.mean(1) + heads * shares.value.mean(1))


@claim("attention.mha.errors")
@pytest.mark.parametrize(
    ("inputs", "masks", "words"),
    [
        (((2, 5, 6), (2, 7, 6), (2, 6, 6)), {}, "shape|match"),
        (((2, 5, 4), (2, 5, 4), (2, 5, 4)), {}, "embed"),
        (((5, 6), (2, 5, 6), (2, 5, 6)), {}, "2-?D|unbatched"),
        (((2, 5, 6), (2, 7, 6), (2, 7, 6)), {"attn_mask": (7, 5)}, "attn_mask"),
        (((2, 5, 6), (2, 7, 6), (2, 7, 6)), {"attn_mask": (2, 5, 7)}, "attn_mask"),
        (((2, 5, 6), (2, 7, 6), (2, 7, 6)), {"key_padding_mask": (7, 2)}, "key_padd"),
        (((1, 2, 5, 6), (1, 2, 5, 6), (1, 2, 5, 6)), {}, "2-?D|3-?D|dimension"),
    ],
)
def test_multihead_refuses_wrong_shapes(case, inputs, masks, words):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True)
    with case.raises((RuntimeError, AssertionError, ValueError), words):
        layer(*(case.tensor(*s) for s in inputs), **{k: hidden(case, *s) for k, s in masks.items()})


@claim("attention.mha.errors")
@pytest.mark.parametrize("training", [True, False])
def test_whole_numbers_are_no_mask(case, training):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True).train(training)
    x = case.tensor(2, 5, WIDTH)
    for name, shape in (("key_padding_mask", (2, 5)), ("attn_mask", (5, 5))):
        with torch.no_grad(), case.raises(AssertionError, "only .*bool|only .*byte"):
            layer(x, x, x, **{name: torch.zeros(shape, dtype=torch.int64, device=case.device)})


@claim("attention.mha.positive-sizes")
@pytest.mark.parametrize(("width", "heads"), [(0, 2), (6, 0), (6, -2)])
def test_width_and_heads_must_be_positive(case, width, heads):
    with case.raises(ValueError, "greater than 0"):
        nn.MultiheadAttention(width, heads)


@claim("attention.mha.start")
@pytest.mark.parametrize(("k", "v"), [(None, None), (33, 17)])
def test_projections_start_xavier_uniform(case, k, v):
    layer = nn.MultiheadAttention(64, HEADS, kdim=k, vdim=v, add_bias_kv=True, device=case.device)
    fans = {"q_proj_weight": 128, "k_proj_weight": 97, "v_proj_weight": 81} if k else {"in_proj_weight": 256}
    for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        assert (getattr(layer, name) is not None) == (name in fans)
    scaled = {name: getattr(layer, name) * (count / 6) ** 0.5 for name, count in fans.items()}
    scaled["out_proj.weight"] = layer.out_proj.weight * 8  # as any linear layer of 64 features starts
    for name, values in scaled.items():
        assert abs(values).max() <= 1, name
        for threshold in (-0.9, -0.5, 0.0, 0.5, 0.9):
            case.binomial((values < threshold).sum(), values.numel(), (1 + threshold) / 2)
    for added in (layer.bias_k, layer.bias_v):  # normal, of deviation 1 / 8
        case.binomial((added < 0).sum(), 64, 0.5)
        case.binomial((abs(added) * 8 < 0.6744898).sum(), 64, 0.5)
    assert not layer.in_proj_bias.any()
    assert not layer.out_proj.bias.any()


@claim("attention.mha.old-pickle", "attention.encoder-layer.old-pickle")
@pytest.mark.parametrize(
    ("make", "name", "default", "other"),
    [
        (lambda: nn.MultiheadAttention(WIDTH, HEADS), "_qkv_same_embed_dim", True, False),
        (lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, FEEDS), "activation", F.relu, F.gelu),
        (lambda: nn.TransformerDecoderLayer(WIDTH, HEADS, FEEDS), "activation", F.relu, F.gelu),
    ],
)
def test_layers_of_old_pickles_get_what_they_lack(case, make, name, default, other):
    layer = make()
    for given in ({}, {name: other}):
        made = type(layer).__new__(type(layer))
        made.__setstate__({k: v for k, v in vars(layer).items() if k != name} | given)
        assert getattr(made, name) is given.get(name, default)
        assert all(a is b for a, b in zip(made.parameters(), layer.parameters(), strict=True))


@claim("attention.mha.errors")
def test_heads_must_divide_the_width(case):
    with case.raises((AssertionError, ValueError), "divisible"):
        nn.MultiheadAttention(WIDTH, 4)
    with case.raises((AssertionError, ValueError), "greater than 0|embed_dim|num_heads|zero|divisible"):
        nn.MultiheadAttention(WIDTH, 5)


@claim("attention.mha.stateless")
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_attention_changes_nothing(case, mode):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True).train(mode == "train")
    q, k, padding = case.tensor(2, 5, WIDTH), case.tensor(2, 7, WIDTH), hidden(case, 2, 7)
    with case.unchanged(layer, q=q, k=k, padding=padding):
        layer(q, k, k, key_padding_mask=padding)
        layer(q, q, q, need_weights=False)


def functional(layer, q, k, v, **options):
    settings = {"bias_k": None, "bias_v": None, "add_zero_attn": False, "dropout_p": 0.0} | options
    return F.multi_head_attention_forward(
        q, k, v, WIDTH, HEADS, layer.in_proj_weight, layer.in_proj_bias,
        out_proj_weight=layer.out_proj.weight, out_proj_bias=layer.out_proj.bias, **settings,
    )  # fmt: skip


@claim("attention.mha.static-keys")
def test_static_keys_and_values_are_not_projected(case):
    layer, x = case.module(nn.MultiheadAttention, WIDTH, HEADS), case.tensor(5, 2, WIDTH)
    k, v = case.tensor(2 * HEADS, 7, WIDTH // HEADS), case.tensor(2 * HEADS, 7, WIDTH // HEADS)
    y = functional(layer, x, x, x, static_k=k, static_v=v)[0]
    named, given = parameters(layer), rounded(x.transpose(0, 1))[0]
    q = reference.split(reference.linear(given, named["in_proj_weight"][:WIDTH], named["in_proj_bias"][:WIDTH]), HEADS)
    heads = reference.attention(q, *(t.reshape(2, HEADS, 7, WIDTH // HEADS) for t in rounded(k, v)))
    joined = heads.swapaxes(1, 2).reshape(2, 5, WIDTH)
    within(case, y.transpose(0, 1), reference.linear(joined, named["out_proj.weight"], named["out_proj.bias"]))
    for name, wrong in (("static_k", k[1:]), ("static_k", k[..., 1:]), ("static_v", v[1:]), ("static_v", v[..., 1:])):
        with case.raises(AssertionError, f"{name}.size"):
            functional(layer, x, x, x, **({"static_k": k, "static_v": v} | {name: wrong}))


@claim("attention.mha.errors")
def test_the_functional_form_checks_its_arguments(case):
    layer, x = case.module(nn.MultiheadAttention, WIDTH, HEADS), case.tensor(5, 2, WIDTH)
    one = x[:, 0]
    wrong = [
        ((x, x, one), {}), ((x, one, x), {}), ((one, x, one), {}), ((one, one, x), {}),
        ((one, one, one), {"key_padding_mask": hidden(case, 1, 5)}),
        ((one, one, one), {"attn_mask": hidden(case, 1, 1, 5, 5)}),
        ((x, x, x), {"key_padding_mask": hidden(case, 5)}), ((x, x, x), {"attn_mask": hidden(case, 5)}),
        ((x, x, x[:4]), {}), ((x, x, x[:, :1]), {}),
        ((x, x, x), {"bias_k": case.tensor(1, 1, WIDTH)}), ((x, x, x), {"bias_v": case.tensor(1, 1, WIDTH)}),
    ]  # fmt: skip
    for inputs, options in wrong:
        alone = options.keys() & {"bias_k", "bias_v"}  # one without the other: older releases say nothing of it
        with case.raises((AssertionError, RuntimeError), "bias|^$" if alone else "expect|match|shape|size"):
            functional(layer, *inputs, **options)
    proj = {f"{name}_proj_weight": case.tensor(WIDTH, WIDTH) for name in "qkv"}
    functional(layer, x, x, x, use_separate_proj_weight=True, **proj)
    for name in proj:
        with case.raises((AssertionError, RuntimeError), "expecting|shape"):
            functional(layer, x, x, x, use_separate_proj_weight=True, **(proj | {name: case.tensor(WIDTH, WIDTH - 1)}))
        with case.raises((AssertionError, TypeError), "None|^$"):
            functional(layer, x, x, x, use_separate_proj_weight=True, **(proj | {name: None}))


# -- layers of the Transformer ---------------------------------------------------------------------------------------

IN_FULL = "float64"  # for stacks of layers, where the bound in float32 would be too wide to see a fault
EPS, FEEDS = 0.03, 5
ACTIVATIONS = {"relu": relu, "gelu": gelu}


def encoder_layer(case, *, heads=HEADS, dropout=0.0, batch_first=True, **options):
    return case.module(
        nn.TransformerEncoderLayer, WIDTH, heads, FEEDS, dropout, layer_norm_eps=EPS, batch_first=batch_first, **options
    )


def decoder_layer(case, *, dropout=0.0, **options):
    return case.module(
        nn.TransformerDecoderLayer, WIDTH, HEADS, FEEDS, dropout, layer_norm_eps=EPS, batch_first=True, **options
    )


@claim("attention.encoder-layer.formula")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer_follows_its_formula(case, norm_first, activation):
    layer = encoder_layer(case, norm_first=norm_first, activation=activation)
    x, mask = case.tensor(2, 5, WIDTH), case.tensor(5, 5)
    wanted = sharply(
        reference.encoder_layer,
        *rounded(x),
        parameters(layer),
        HEADS,
        EPS,
        norm_first=norm_first,
        activation=ACTIVATIONS[activation],
        mask=array(mask),
    )
    within(case, layer(x, src_mask=mask), wanted)
    within(case, layer.eval()(x, mask), wanted)


@claim("attention.encoder-layer.formula")
@axes(dtype=IN_FULL)
def test_encoder_layer_without_bias(case):
    if not since("2.1"):
        raise case.unsupported("bias=False came with torch 2.1")
    layer, x = encoder_layer(case, bias=False), case.tensor(2, 5, WIDTH)
    assert not any("bias" in name for name, _ in layer.named_parameters())
    within(case, layer(x), reference.encoder_layer(*rounded(x), parameters(layer), HEADS, EPS))


@claim("attention.encoder-layer.formula")
@axes(dtype=IN_FULL)
def test_encoder_layer_takes_any_activation(case):
    layer, x = encoder_layer(case, activation=lambda x: -x), case.tensor(2, 5, WIDTH)
    within(case, layer(x), reference.encoder_layer(*rounded(x), parameters(layer), HEADS, EPS, activation=lambda x: -x))
    with case.raises(RuntimeError, "activation"):
        nn.TransformerEncoderLayer(WIDTH, HEADS, activation="tanh")


@claim("attention.encoder-layer.gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_gradients_of_the_encoder_layer(case, norm_first, activation):
    layer, x = (
        encoder_layer(case, norm_first=norm_first, activation=activation),
        case.tensor(2, 3, WIDTH, requires_grad=True),
    )
    y = layer(x)
    y.backward(seed := case.tensor(*y.shape))
    given, named = rounded(x), parameters(layer)
    wanted = reference.encoder_layer(
        *given, named, HEADS, EPS, norm_first=norm_first, activation=ACTIVATIONS[activation]
    )
    expected = gradients([(wanted, array(seed))], [*given, *named.values()])
    for tensor, gradient in zip((x, *layer.parameters()), expected, strict=True):
        within(case, tensor.grad, gradient)


def without(named, *names):
    """The parameters with those of these names at zero, as if what they make were dropped."""
    return {k: Rounded(0 * v.value) if k in names else v for k, v in named.items()}


GONE = {
    "attention weights": ("self_attn", ["self_attn.in_proj_weight", "self_attn.in_proj_bias"]),
    "attention output": ("dropout1", ["self_attn.out_proj.weight", "self_attn.out_proj.bias"]),
    "inner activation": ("dropout", ["linear2.weight"]),
    "feed-forward output": ("dropout2", ["linear2.weight", "linear2.bias"]),
}


def drop_all(layer, name):
    """Let this one dropout of the layer take everything, and no other anything."""
    part = layer.get_submodule(name)
    setattr(part, "dropout" if isinstance(part, nn.MultiheadAttention) else "p", 1.0)


@claim("attention.encoder-layer.dropout-places")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("place", GONE)
@axes(dtype=IN_FULL)
def test_places_of_dropout_in_the_encoder_layer(case, place, norm_first):
    layer, x = encoder_layer(case, norm_first=norm_first), case.tensor(2, 5, WIDTH)
    name, lost = GONE[place]
    drop_all(layer, name)
    named = without(parameters(layer), *lost)
    within(case, layer(x), reference.encoder_layer(*rounded(x), named, HEADS, EPS, norm_first=norm_first))


@claim("attention.encoder-layer.dropout-places", "attention.decoder-layer.dropout-places")
@pytest.mark.parametrize("cls", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_dropout_has_the_probability_given(case, cls):
    layer, default = cls(WIDTH, HEADS, FEEDS, 0.37), cls(WIDTH, HEADS, FEEDS)
    for made, p in ((layer, 0.37), (default, 0.1)):
        found = [
            m.p if isinstance(m, nn.Dropout) else m.dropout
            for m in made.modules()
            if isinstance(m, (nn.Dropout, nn.MultiheadAttention))
        ]
        assert found == [p] * (4 if cls is nn.TransformerEncoderLayer else 6)


@claim("attention.encoder-layer.eval-drops-nothing")
@pytest.mark.parametrize("no_grad", [False, True])
@axes(dtype=IN_FULL)
def test_eval_drops_nothing(case, no_grad):
    layer, x = encoder_layer(case, dropout=0.6).eval(), case.tensor(2, 5, WIDTH)
    with torch.set_grad_enabled(not no_grad), case.unchanged(layer, x=x):
        y = layer(x)
    within(case, y, reference.encoder_layer(*rounded(x), parameters(layer), HEADS, EPS))
    with case.unchanged(layer.train(), x=x, but={"rng"}):
        assert not torch.equal(layer(x), y)


class Calls:
    """Counts the calls of a fused kernel."""

    def __init__(self, patch, name="_transformer_encoder_layer_fwd"):
        self.count, original = 0, getattr(torch, name)

        def counted(*args, **kwargs):
            self.count += 1
            return original(*args, **kwargs)

        patch.setattr(torch, name, counted)


@contextmanager
def surroundings(how):
    """What is switched on or off around the call."""
    mha = getattr(torch.backends, "mha", None)
    with torch.set_grad_enabled(how in ("gradients", "frozen", "input needs gradient")):
        if how == "switched off":
            mha.set_fastpath_enabled(False)
        yield
        if how == "switched off":
            mha.set_fastpath_enabled(True)


FAST = {
    "eval": True,
    "mask": True,
    "padding": True,
    "train": False,
    "gradients": False,
    "sequence first": False,
    "odd heads": False,
    "hook": False,
    "pre-hook and hook": False,
    "frozen": True,
    "input needs gradient": False,
    "other activation": False,
    "module of the activation": True,
    "unbatched": False,
    "other eps": False,
    "no bias": False,
    "switched off": False,
}


@claim("attention.encoder-layer.fast-path-only-in-eval")
@axes(via="eager")
@pytest.mark.parametrize("how", FAST)
def test_when_the_fused_kernel_runs(case, how, monkeypatch):
    if how in ("mask", "no bias", "switched off") and not since("2.4"):
        raise case.unsupported("claimed from torch 2.4 on")
    options = {"bias": False} if how == "no bias" else {}
    activation = {"other activation": torch.tanh, "module of the activation": nn.GELU()}.get(how, "relu")
    heads = 3 if how == "odd heads" else HEADS
    layer = encoder_layer(case, batch_first=how != "sequence first", heads=heads, activation=activation, **options)
    layer.train(how == "train").requires_grad_(how not in ("frozen", "input needs gradient"))
    x, calls, seen = case.tensor(2, 5, WIDTH), Calls(monkeypatch), []
    if "hook" in how:
        layer.linear1.register_forward_hook(lambda *args: seen.append(args))
    if "pre-hook" in how:
        layer.linear1.register_forward_pre_hook(lambda *args: None)
    if how == "other eps":
        layer.norm2.eps = 2 * EPS
    masks = {"mask": {"src_mask": hidden(case, 5, 5)}, "padding": {"src_key_padding_mask": hidden(case, 2, 5)}}
    x = x.requires_grad_(how == "input needs gradient")
    with surroundings(how):
        layer(x[0] if how == "unbatched" else x, **masks.get(how, {}))
    assert calls.count == FAST[how]
    assert len(seen) == ("hook" in how)


FAST_ATTENTION = {
    "eval": True,
    "mask": True,
    "padding": True,
    "float mask": False,
    "float padding": False,
    "train": False,
    "gradients": False,
    "frozen": True,
    "input needs gradient": False,
    "sequence first": False,
    "odd heads": False,
    "unbatched": False,
    "other keys": False,
    "other values": False,
    "added keys": False,
    "zero key": False,
    "no bias": False,
    "switched off": False,
}


@claim("attention.mha.fast-path-conditions")
@axes(via="eager")
@pytest.mark.parametrize("how", FAST_ATTENTION)
def test_when_the_fused_attention_runs(case, how, monkeypatch):
    named = {"added keys": {"add_bias_kv": True}, "zero key": {"add_zero_attn": True}, "no bias": {"bias": False}}
    heads, options = 3 if how == "odd heads" else HEADS, named.get(how, {})
    layer = case.module(nn.MultiheadAttention, WIDTH, heads, batch_first=how != "sequence first", **options)
    layer.train(how == "train").requires_grad_(how not in ("frozen", "input needs gradient"))
    calls = Calls(monkeypatch, "_native_multi_head_attention")
    x = case.tensor(2, 5, WIDTH, requires_grad=how == "input needs gradient")
    masks = {
        "mask": {"attn_mask": hidden(case, 5, 5)},
        "padding": {"key_padding_mask": hidden(case, 2, 5)},
        "float mask": {"attn_mask": case.tensor(5, 5)},
        "float padding": {"key_padding_mask": case.tensor(2, 5)},
    }
    x = x[0] if how == "unbatched" else x
    k, v = x.clone() if how == "other keys" else x, x.clone() if how == "other values" else x
    with surroundings(how):
        y, weights = layer(x, k, v, **masks.get(how, {}))
    assert calls.count == FAST_ATTENTION[how]
    assert weights is not None
    assert y.requires_grad == (how in ("gradients", "input needs gradient"))


@claim("attention.mha.nested")
@axes(via=("eager", "functional", "aot", "compile", "export"))  # vmap has no rule for a new dimension of nested ones
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_sequences_attend_to_themselves_in_eval_only(case):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True).eval()
    parts = [case.tensor(5, WIDTH), case.tensor(3, WIDTH)]
    x = torch.nested.nested_tensor(parts)
    with torch.no_grad():
        for y, part in zip(layer(x, x, x, need_weights=False)[0].unbind(), parts, strict=True):
            wanted = reference.multihead(*rounded(*[part[None]] * 3), parameters(layer), HEADS)[0]
            within(case, y[None], wanted)
        with case.raises(AssertionError, "NestedTensor"):
            layer(x, x, x, need_weights=False, key_padding_mask=hidden(case, 2, 5))
    with case.raises(AssertionError, "NestedTensor"):
        layer(x, x, x, need_weights=False)


@claim("attention.encoder-layer.activation")
@axes(dtype=IN_FULL)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["F.relu", "nn.ReLU()", "F.gelu", "nn.GELU()", "nn.GELU('tanh')"])
def test_both_paths_apply_the_activation_given(case, name, training):
    activation = eval(name)
    layer, x = encoder_layer(case, activation=activation).train(training), case.tensor(2, 5, WIDTH, spread=2)
    with torch.no_grad():
        y = layer(x)
        inner = layer.norm1(x + layer.self_attn(x, x, x)[0])
        by_hand = layer.norm2(inner + layer.linear2(activation(layer.linear1(inner))))
    case.close(y, array(by_hand), k=1, scale=1e-9 / eps(case.dtype))  # other activations are 1e-4 and more apart


@claim("attention.encoder-layer.fast-path-agrees")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("norm_first", "activation"), [(False, "relu"), (True, "gelu")])
def test_the_fused_kernel_follows_the_formula(case, norm_first, activation, kind):
    layer = encoder_layer(case, norm_first=norm_first, activation=activation, dropout=0.5).eval()
    x, mask = case.tensor(2, 5, WIDTH), mask_by(case, kind)
    out, padding = mask(5, 5), mask(2, 5)
    total = np.zeros((2, 1, 5, 5)) + (additive(out) if "positions" in kind else 0)
    total = total + (additive(padding)[:, None, None] if "keys" in kind else 0)
    masks = {"src_mask": out} if "positions" in kind else {}
    masks |= {"src_key_padding_mask": padding} if "keys" in kind else {}
    with torch.no_grad(), case.unchanged(layer, x=x):
        y = layer(x, **masks)
    wanted = sharply(
        reference.encoder_layer,
        *rounded(x),
        parameters(layer),
        HEADS,
        EPS,
        norm_first=norm_first,
        activation=ACTIVATIONS[activation],
        mask=total,
    )
    within(case, y, wanted)


@claim("attention.encoder-layer.replaced-parts")
@pytest.mark.parametrize("part", ["linear1", "linear2", "norm1", "norm2"])
def test_replaced_parts_are_run_without_gradients_too(case, part):
    layer, x = encoder_layer(case).eval(), case.tensor(2, 5, WIDTH)
    layer.linear1.bias.data.abs_()  # if all units were off, linear1 would not matter
    replaced = getattr(layer, part)

    class Doubled(type(replaced)):
        def forward(self, x):
            return 2 * super().forward(x)

    replaced.__class__ = Doubled
    named = parameters(layer)
    named |= {f"{part}.{kind}": named[f"{part}.{kind}"] * 2.0 for kind in ("weight", "bias")}
    wanted = reference.encoder_layer(*rounded(x), named, HEADS, EPS)
    within(case, layer(x), wanted)
    with torch.no_grad():
        within(case, layer(x), wanted)


@claim("attention.encoder-layer.masked-row")
@pytest.mark.parametrize("of", ["attention", "layer"])
def test_a_row_without_keys_is_the_same_on_both_paths(case, of):
    x, out, whole = case.tensor(2, 5, WIDTH), hidden(case, 5, 5), encoder_layer(case)
    out[1] = True

    def answer():
        return whole(x, out) if of == "layer" else whole.self_attn(x, x, x, attn_mask=out, need_weights=False)[0]

    with torch.no_grad():
        slow = answer()
        whole.eval()
        fast = answer()
    assert slow.isnan()[:, 1].any() != since("2.5")
    case.same(fast.isnan(), slow.isnan())


def stack(case, cls, layer, count=2, **options):
    """The stack, every layer of it with parameters of its own."""
    made = cls(layer, count, nn.LayerNorm(WIDTH, eps=EPS), **options).to(device=case.device, dtype=case.dtype)
    case.randomise(made)
    return made


def encoder_law(x, model, mask=None):
    named, y = parameters(model), rounded(x)[0]
    for i, layer in enumerate(model.layers):
        y = reference.encoder_layer(y, reference.below(named, f"layers.{i}"), layer.self_attn.num_heads, EPS, mask=mask)
    return reference.layer_norm(y, named, "norm", EPS) if model.norm is not None else y


@claim("attention.encoder.layers-start-identical", "attention.decoder.stack")
@pytest.mark.parametrize("cls", [nn.TransformerEncoder, nn.TransformerDecoder])
def test_layers_start_identical_and_apart(case, cls):
    layer = encoder_layer(case) if cls is nn.TransformerEncoder else decoder_layer(case)
    model = cls(layer, 3)
    assert len(model.layers) == model.num_layers == 3
    for made in model.layers:
        assert made is not layer
        for (name, parameter), original in zip(made.named_parameters(), layer.parameters(), strict=True):
            case.same(parameter, original)
            assert parameter is not original, name
    assert len({id(p) for p in model.parameters()}) == 3 * len(list(layer.parameters()))


@claim("attention.encoder.stack")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("norm", [True, False])
def test_the_encoder_applies_its_layers_in_turn(case, norm):
    model = stack(case, nn.TransformerEncoder, encoder_layer(case))
    if not norm:
        model.norm = None
    x, mask, padding = case.tensor(2, 5, WIDTH), case.tensor(5, 5), padding_mask(case, 2, 5)
    total = array(mask) + additive(padding)[:, None, None]
    within(case, model(x, mask=mask, src_key_padding_mask=padding), encoder_law(x, model, total))


PADDING = [[False] * 5, [False, False, False, True, True]]


class OwnLayer(nn.Module):
    """A layer with nothing in it that the standard layer has; hidden places count as zeros."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def forward(self, src, src_mask=None, is_causal=None, src_key_padding_mask=None):
        return self.map(src if src_key_padding_mask is None else src * (src_key_padding_mask == 0)[..., None])


@claim("attention.encoder.custom-layers")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_layer_may_derive_from_module_alone(case, mode, padded):
    model, x = stack(case, nn.TransformerEncoder, OwnLayer()).train(mode == "train"), case.tensor(2, 5, WIDTH)
    padding = hidden(case, 2, 5) if padded else None
    first, second = model.layers
    with torch.set_grad_enabled(mode == "train"):
        y = model(x, src_key_padding_mask=padding)
        case.same(y, model.norm(second(first(x, None, None, padding), None, None, padding)))


@claim("attention.encoder.padding-output")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("how", ["nested", "left", "flag", "train", "gradients"])
def test_padded_places_of_the_output(case, how):
    model = stack(case, nn.TransformerEncoder, encoder_layer(case), enable_nested_tensor=how != "flag")
    x, padding = case.tensor(2, 5, WIDTH), torch.tensor(PADDING, device=case.device)
    padding = padding.flip(1) if how == "left" else padding
    model.train(how == "train")
    if how != "nested":
        model.norm = None
    with torch.set_grad_enabled(how in ("train", "gradients")):
        y = model(x, src_key_padding_mask=padding)
    valid = ~padding.cpu().numpy()
    wanted = encoder_law(x, model, additive(padding)[:, None, None])
    assert y.shape == x.shape
    case.close(y[~padding], wanted.value[valid], k=1, scale=wanted.error[valid])
    if how == "nested":  # the final norm of zeros is its bias
        case.same(y[padding], model.norm.bias.detach().expand(2, WIDTH))
    elif how != "flag":
        assert (y[padding] != 0).all()


@claim("attention.encoder.padding-output")
def test_padded_places_are_zero_without_a_final_norm(case):
    model = stack(case, nn.TransformerEncoder, encoder_layer(case)).eval()
    model.norm = None
    x, padding = case.tensor(2, 5, WIDTH), torch.tensor(PADDING, device=case.device)
    with torch.no_grad():
        assert (model(x, src_key_padding_mask=padding)[padding] == 0).all()
    assert (model(x, src_key_padding_mask=padding)[padding] != 0).all()


@claim("attention.encoder.padding-keeps-the-length")
def test_places_that_are_padding_in_every_sample_stay(case):
    model, x = stack(case, nn.TransformerEncoder, encoder_layer(case)).eval(), case.tensor(2, 5, WIDTH)
    padding = torch.tensor([[False, False, False, True, True], [False, True, True, True, True]], device=case.device)
    with torch.no_grad():
        assert model(x, src_key_padding_mask=padding).shape == x.shape


@claim("attention.encoder.is-causal")
@pytest.mark.parametrize("hint", [None, True, False])
@axes(dtype=IN_FULL)
def test_a_causal_mask_is_recognised(case, hint):
    model, x = stack(case, nn.TransformerEncoder, encoder_layer(case)), case.tensor(2, 5, WIDTH)
    mask = nn.Transformer.generate_square_subsequent_mask(5).to(x)
    within(case, model(x, mask=mask, is_causal=hint), encoder_law(x, model, reference.causal(5, 5)))
    other = mask.clone()
    other[0, 4] = 0.0
    if hint is not True:  # a wrong hint may give anything
        within(case, model(x, mask=other, is_causal=hint), encoder_law(x, model, array(other)))


@claim("attention.encoder.hooks-run")
def test_hooks_within_an_encoder_run_in_eval(case):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2).eval()
    seen, padding = [], torch.tensor([[False, False, True]], device=case.device)
    encoder.layers[1].linear1.register_forward_hook(lambda *_: seen.append(1))
    x = case.tensor(1, 3, 4)
    with torch.no_grad():
        encoder.to(x)(x)
        encoder(x, src_key_padding_mask=padding)
    assert len(seen) == 2


@claim("attention.encoder-layer.autocast")
def test_the_fused_layer_runs_under_autocast(case):
    layer, x = encoder_layer(case, batch_first=True).eval(), case.tensor(2, 3, WIDTH)
    with torch.autocast(case.device.type, dtype=torch.bfloat16):
        wanted = layer(x)
        with torch.no_grad():
            found = layer(x)
    assert abs(array(found) - array(wanted)).max() < 0.25  # sums of a few units, in eight bits


@claim("attention.encoder-layer.autocast-in-training")
@pytest.mark.parametrize("floats", [False, True])
def test_a_layer_with_padding_trains_under_autocast(case, floats):
    layer, x = encoder_layer(case, batch_first=True).train(), case.tensor(2, 3, WIDTH)
    padding = torch.tensor([[False, False, True], [False, True, True]], device=case.device)
    padding = padding.float() * -1e4 if floats else padding
    wanted = layer(x, src_key_padding_mask=padding)
    with torch.autocast(case.device.type, dtype=torch.bfloat16):
        found = layer(x, src_key_padding_mask=padding)
    assert abs(array(found) - array(wanted)).max() < 0.25  # sums of a few units, in eight bits


@claim("attention.encoder.autocast")
def test_padding_is_left_out_under_autocast(case):
    encoder = nn.TransformerEncoder(encoder_layer(case, batch_first=True), 1).eval()
    padding = torch.tensor([[False, False, True]], device=case.device)
    with torch.autocast(case.device.type, dtype=torch.bfloat16), torch.no_grad():
        assert encoder(case.tensor(1, 3, WIDTH), src_key_padding_mask=padding).shape == (1, 3, WIDTH)


@claim("attention.encoder-layer.no-bias")
def test_the_fused_layer_needs_no_bias(case):
    layer, x = encoder_layer(case, batch_first=True, bias=False).eval(), case.tensor(2, 3, WIDTH)
    wanted = layer(x)
    with torch.no_grad():
        case.close(layer(x), array(wanted), k=64, scale=1 + abs(array(wanted)))


@claim("attention.mha.no-bias")
def test_the_fast_path_needs_no_bias(case):
    layer, x = case.module(nn.MultiheadAttention, WIDTH, HEADS, bias=False, batch_first=True), case.tensor(2, 3, WIDTH)
    wanted = layer.eval()(x, x, x)[0]
    with torch.no_grad():
        case.close(layer(x, x, x)[0], array(wanted), k=64, scale=1 + abs(array(wanted)))


@claim("attention.mha.masked-row")
def test_asking_for_weights_changes_no_result(case):
    layer, x = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True), case.tensor(2, 5, WIDTH)
    mask = torch.zeros(5, 5, dtype=torch.bool, device=case.device)
    mask[1] = True
    found, wanted = (layer(x, x, x, attn_mask=mask, need_weights=asked)[0] for asked in (True, False))
    assert found.isnan().equal(wanted.isnan()), "the result is NaN with weights or without, not both"
    case.close(found.nan_to_num(), array(wanted.nan_to_num()), k=64, scale=1 + abs(array(wanted.nan_to_num())))


@claim("attention.mha.hooks-run")
def test_a_hook_on_the_output_projection_runs(case):
    layer, seen = nn.MultiheadAttention(4, 2, batch_first=True).to(case.device), []
    layer.out_proj.register_forward_hook(lambda *_: seen.append(1))
    x = torch.ones(1, 3, 4, device=case.device)
    layer(x, x, x)
    assert seen, "the hook on out_proj did not run"


@claim("attention.decoder-layer.formula")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_layer_follows_its_formula(case, norm_first, activation):
    layer = decoder_layer(case, norm_first=norm_first, activation=activation)
    x, memory = case.tensor(2, 5, WIDTH), case.tensor(2, 7, WIDTH)
    masks = {
        "tgt_mask": case.tensor(5, 5),
        "memory_mask": case.tensor(5, 7),
        "tgt_key_padding_mask": padding_mask(case, 2, 5),
        "memory_key_padding_mask": padding_mask(case, 2, 7),
    }
    own, other, keys, memory_keys = (additive(mask) for mask in masks.values())
    wanted = sharply(
        reference.decoder_layer,
        *rounded(x, memory),
        parameters(layer),
        HEADS,
        EPS,
        norm_first=norm_first,
        activation=ACTIVATIONS[activation],
        mask=own + keys[:, None, None],
        memory_mask=other + memory_keys[:, None, None],
    )
    within(case, layer(x, memory, **masks), wanted)
    with torch.no_grad():
        within(case, layer.eval()(x, memory, **masks), wanted)


@claim("attention.decoder-layer.gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("norm_first", [False, True])
def test_gradients_of_the_decoder_layer(case, norm_first):
    layer = decoder_layer(case, norm_first=norm_first)
    x, memory = case.tensor(2, 3, WIDTH, requires_grad=True), case.tensor(2, 4, WIDTH, requires_grad=True)
    y = layer(x, memory)
    y.backward(seed := case.tensor(*y.shape))
    given, named = rounded(x, memory), parameters(layer)
    wanted = reference.decoder_layer(*given, named, HEADS, EPS, norm_first=norm_first)
    expected = gradients([(wanted, array(seed))], [*given, *named.values()])
    for tensor, gradient in zip((x, memory, *layer.parameters()), expected, strict=True):
        within(case, tensor.grad, gradient)


GONE_IN_DECODER = {
    **GONE,
    "memory weights": ("multihead_attn", ["multihead_attn.in_proj_weight", "multihead_attn.in_proj_bias"]),
    "memory output": ("dropout2", ["multihead_attn.out_proj.weight", "multihead_attn.out_proj.bias"]),
    "feed-forward output": ("dropout3", ["linear2.weight", "linear2.bias"]),
}


@claim("attention.decoder-layer.dropout-places")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("place", GONE_IN_DECODER)
@axes(dtype=IN_FULL)
def test_places_of_dropout_in_the_decoder_layer(case, place, norm_first):
    layer = decoder_layer(case, norm_first=norm_first)
    x, memory = case.tensor(2, 5, WIDTH), case.tensor(2, 7, WIDTH)
    whole = parameters(layer)
    name, lost = GONE_IN_DECODER[place]
    drop_all(layer, name)
    named = without(whole, *lost)
    within(
        case, layer(x, memory), reference.decoder_layer(*rounded(x, memory), named, HEADS, EPS, norm_first=norm_first)
    )
    untouched = reference.decoder_layer(*rounded(x, memory), whole, HEADS, EPS, norm_first=norm_first)
    with case.unchanged(layer.eval(), x=x, memory=memory):
        y = layer(x, memory)
    within(case, y, untouched)


def decoder_law(x, memory, model, mask=None, memory_mask=None):
    named, y = parameters(model), rounded(x)[0]
    memory = memory if isinstance(memory, Rounded) else rounded(memory)[0]
    for i in range(len(model.layers)):
        below = reference.below(named, f"layers.{i}")
        y = reference.decoder_layer(y, memory, below, HEADS, EPS, mask=mask, memory_mask=memory_mask)
    return reference.layer_norm(y, named, "norm", EPS) if model.norm is not None else y


@claim("attention.decoder.stack")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("norm", [True, False])
def test_the_decoder_gives_the_memory_to_each_layer(case, norm):
    model = stack(case, nn.TransformerDecoder, decoder_layer(case))
    if not norm:
        model.norm = None
    x, memory = case.tensor(2, 5, WIDTH), case.tensor(2, 7, WIDTH)
    masks = {
        "tgt_mask": case.tensor(5, 5),
        "memory_mask": case.tensor(5, 7),
        "tgt_key_padding_mask": padding_mask(case, 2, 5),
        "memory_key_padding_mask": padding_mask(case, 2, 7),
    }
    own, other, keys, memory_keys = (additive(mask) for mask in masks.values())
    wanted = decoder_law(x, memory, model, own + keys[:, None, None], other + memory_keys[:, None, None])
    within(case, model(x, memory, **masks), wanted)


@claim("attention.transformer.composition")
@axes(dtype=PRECISE)
def test_the_transformer_is_encoder_and_decoder(case):
    model = case.module(nn.Transformer, WIDTH, HEADS, 2, 1, FEEDS, 0.0, layer_norm_eps=EPS, batch_first=True)
    src, tgt = case.tensor(2, 7, WIDTH), case.tensor(2, 5, WIDTH)
    shapes = {"src": (7, 7), "tgt": (5, 5), "memory": (5, 7)}
    masks = {f"{k}_mask": case.tensor(*s) for k, s in shapes.items()}
    keys = {f"{k}_key_padding_mask": padding_mask(case, 2, s[1]) for k, s in shapes.items()}
    sums = {k: array(masks[f"{k}_mask"]) + additive(keys[f"{k}_key_padding_mask"])[:, None, None] for k in shapes}
    memory = encoder_law(src, model.encoder, sums["src"])
    within(case, model(src, tgt, **masks, **keys), decoder_law(tgt, memory, model.decoder, sums["tgt"], sums["memory"]))


@claim("attention.transformer.causal-mask")
@pytest.mark.parametrize("size", [1, 5])
def test_the_causal_mask_is_square(case, size):
    mask = nn.Transformer.generate_square_subsequent_mask(size)
    case.same(mask, torch.as_tensor(reference.causal(size, size)).to(mask.dtype))


@claim("attention.transformer.batch-first-default")
@pytest.mark.parametrize("batch_first", [False, True])
@axes(dtype=IN_FULL)
def test_sequence_comes_first_by_default(case, batch_first):
    options = {"batch_first": True} if batch_first else {}
    model = case.module(nn.Transformer, WIDTH, HEADS, 1, 1, FEEDS, 0.0, layer_norm_eps=EPS, **options)
    src, tgt = case.tensor(2, 7, WIDTH), case.tensor(2, 5, WIDTH)
    given = (src, tgt) if batch_first else (src.transpose(0, 1), tgt.transpose(0, 1))
    y = model(*given) if batch_first else model(*given).transpose(0, 1)
    within(case, y, decoder_law(tgt, encoder_law(src, model.encoder), model.decoder))
    shape = (3, 2, WIDTH) if batch_first else (2, 3, WIDTH)
    with case.raises(RuntimeError, "batch"):
        model(given[0], case.tensor(*shape))


# -- settings of the Transformer -------------------------------------------------------------------------------------


def settings(layer):
    """What a layer was made with, read off its parts."""
    parts = list(layer.modules())[1:]
    attentions = [m for m in parts if isinstance(m, nn.MultiheadAttention)]
    return {
        "width": layer.linear1.in_features,
        "feeds": layer.linear1.out_features,
        "heads": {m.num_heads for m in attentions},
        "dropout": {m.p for m in parts if isinstance(m, nn.Dropout)} | {m.dropout for m in attentions},
        "activation": layer.activation,
        "eps": {m.eps for m in parts if isinstance(m, nn.LayerNorm)},
        "batch_first": {m.batch_first for m in attentions},
        "norm_first": layer.norm_first,
    }


DEFAULTS = {
    "feeds": 2048,
    "heads": {8},
    "dropout": {0.1},
    "activation": F.relu,
    "eps": {1e-5},
    "batch_first": {False},
    "norm_first": False,
}


@claim("attention.transformer.settings")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_settings_by_default(case):
    model = nn.Transformer(8)
    assert (model.d_model, model.nhead, model.batch_first) == (8, 8, False)
    assert len(model.encoder.layers) == len(model.decoder.layers) == 6
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        assert settings(layer) == {"width": 8, **DEFAULTS}
    assert model.encoder.norm.eps == model.decoder.norm.eps == 1e-5
    wide = nn.Transformer(num_encoder_layers=1, num_decoder_layers=0, dim_feedforward=1)
    assert wide.d_model == wide.encoder.layers[0].linear1.in_features == 512
    for cls in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
        assert settings(cls(8, 8)) == {"width": 8, **DEFAULTS}


@claim("attention.transformer.settings")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_settings_reach_every_layer(case):
    model = nn.Transformer(8, 4, 2, 3, 5, 0.3, "gelu", None, None, EPS, True, True)
    assert (model.d_model, model.nhead, model.batch_first) == (8, 4, True)
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (2, 3)
    given = {"width": 8, "heads": {4}, "feeds": 5, "dropout": {0.3}, "activation": F.gelu, "eps": {EPS}}
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        assert settings(layer) == given | {"batch_first": {True}, "norm_first": True}
    assert model.encoder.norm.eps == model.decoder.norm.eps == EPS


@claim("attention.transformer.no-bias")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_without_bias_nothing_has_one(case):
    model = nn.Transformer(8, 4, 1, 1, 5, bias=False)
    alone = nn.TransformerDecoderLayer(8, 4, 5, bias=False)
    assert not [name for part in (model, alone) for name, _ in part.named_parameters() if "bias" in name]
    assert any("bias" in name for name, _ in nn.Transformer(8, 4, 1, 1, 5).named_parameters())


@claim("attention.transformer.custom-parts")
def test_custom_parts_take_the_place_of_encoder_and_decoder(case):
    seen = []

    class Part(nn.Module):
        def forward(self, *tensors, **options):
            seen.append((tensors, options))
            return tensors[0] * 2

    encoder, decoder = Part(), Part()
    model, src, tgt = (
        nn.Transformer(WIDTH, HEADS, custom_encoder=encoder, custom_decoder=decoder),
        case.tensor(7, 2, WIDTH),
        case.tensor(5, 2, WIDTH),
    )
    assert (model.encoder, model.decoder) == (encoder, decoder)
    masks = {
        name: case.tensor(1) for name in ("tgt_mask", "memory_mask", "tgt_key_padding_mask", "memory_key_padding_mask")
    }
    own = {"mask": case.tensor(1), "src_key_padding_mask": case.tensor(1)}
    y = model(src, tgt, own["mask"], src_key_padding_mask=own["src_key_padding_mask"], **masks)
    case.same(y, tgt * 2)
    (first, options), (second, others) = seen
    assert first[0] is src
    assert all(options[name] is mask for name, mask in own.items())
    assert second[0] is tgt
    case.same(second[1], src * 2)
    assert all(others[name] is mask for name, mask in masks.items())


@claim("attention.transformer.start")
def test_matrices_start_xavier_uniform(case):
    model = nn.Transformer(32, HEADS, 1, 1, 96, batch_first=True, device=case.device)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            values = parameter * (sum(parameter.shape) / 6) ** 0.5
            assert abs(values).max() <= 1, name
            for threshold in (-0.9, 0.0, 0.9):
                case.binomial((values < threshold).sum(), values.numel(), (1 + threshold) / 2)
        elif "linear" in name:
            assert parameter.any(), name  # the biases of the linear layers keep their own start


@claim("attention.transformer.errors")
@pytest.mark.parametrize("wrong", ["src", "tgt"])
def test_features_must_be_those_of_the_model(case, wrong):
    model = case.module(nn.Transformer, WIDTH, HEADS, 1, 1, FEEDS, batch_first=True)
    widths = {"src": WIDTH, "tgt": WIDTH} | {wrong: WIDTH + 1}
    with case.raises(RuntimeError, "feature number"):
        model(case.tensor(2, 7, widths["src"]), case.tensor(2, 5, widths["tgt"]))


class Spy:
    """Records the named arguments with which modules are called."""

    def __init__(self, *modules):
        self.seen = []
        for module in modules:
            module.register_forward_pre_hook(lambda m, args, named: self.seen.append(named), with_kwargs=True)

    def take(self, *names):
        seen, self.seen = self.seen, []
        return [tuple(named[name] for name in names) for named in seen]


@claim("attention.encoder.is-causal", "attention.decoder.is-causal")
@pytest.mark.parametrize("shape", [(2, 5, WIDTH), (5, 2, WIDTH), (5, WIDTH)], ids=str)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_layers_are_told_of_a_causal_mask(case, shape):
    batch_first = shape[0] == 2
    encoder = nn.TransformerEncoder(encoder_layer(case, batch_first=batch_first), 2)
    plain = nn.TransformerDecoderLayer(WIDTH, HEADS, FEEDS, batch_first=batch_first).to(case.device, case.dtype)
    decoder, x = nn.TransformerDecoder(plain, 2), case.tensor(*shape)
    spy, below, causal = Spy(*encoder.layers), Spy(*decoder.layers), torch.full((5, 5), -torch.inf).triu(1).to(x)
    other, window = causal.flip(0), causal.masked_fill(torch.ones(5, 5).tril(-2).bool().to(x.device), -torch.inf)
    heads = causal.expand(HEADS * (2 if x.ndim == 3 else 1), 5, 5)
    for mask, hint, told in [(None, None, False), (causal, None, True), (causal != 0, None, True), (other, None, False),
                             (window, None, False), (heads, None, False), (causal, True, True), (causal, False, False),
                             (other, True, True)]:  # fmt: skip
        encoder(x, mask, is_causal=hint)
        assert spy.take("is_causal") == [(told,)] * 2, (mask, hint)
        decoder(x, x, mask, tgt_is_causal=hint)
        assert below.take("tgt_is_causal", "memory_is_causal") == [(told, False)] * 2, (mask, hint)
    decoder(x, x, memory_mask=causal, memory_is_causal=True)
    assert below.take("tgt_is_causal", "memory_is_causal") == [(False, True)] * 2


@claim("attention.transformer.is-causal")
@pytest.mark.parametrize("norm_first", [False, True])
def test_hints_go_to_the_attention_they_are_named_for(case, norm_first):
    model = case.module(nn.Transformer, WIDTH, HEADS, 1, 1, FEEDS, 0.0, batch_first=True, norm_first=norm_first)
    x, causal = case.tensor(2, 5, WIDTH), nn.Transformer.generate_square_subsequent_mask(5).to(case.tensor(1))
    above, below = model.encoder.layers[0], model.decoder.layers[0]
    spy = Spy(above.self_attn, below.self_attn, below.multihead_attn)
    for hints in [(False, False, False), (True, False, False), (False, True, False), (False, False, True)]:
        named = dict(zip(("src_is_causal", "tgt_is_causal", "memory_is_causal"), hints, strict=True))
        model(x, x, causal, causal, causal, **named)
        assert spy.take("is_causal", "need_weights") == [(hint, False) for hint in hints]
    model(x, x)
    assert spy.take("is_causal") == [(False,)] * 3
    above(x, causal), below(x, x, causal, causal)
    assert spy.take("is_causal") == [(False,)] * 3


NESTED = {
    "eval": True,
    "frozen": True,
    "train": False,
    "gradients": False,
    "input needs gradient": False,
    "unbatched": False,
    "no padding": False,
    "padding on the left": False,
    "mask too": False,
    "norm first": False,
    "odd heads": False,
    "sequence first": False,
    "other activation": False,
    "other eps": False,
    "no bias": False,
    "flag": False,
    "not checked": True,
    "switched off": False,
}
REFUSED = {"norm first", "odd heads", "sequence first", "other activation", "other eps", "no bias"}


@claim("attention.encoder.nested-conditions")
@pytest.mark.parametrize("how", NESTED)
def test_when_padding_is_left_out(case, how, monkeypatch):
    options = {"norm first": {"norm_first": True}, "no bias": {"bias": False}, "sequence first": {"batch_first": False},
               "odd heads": {"heads": 3}, "other activation": {"activation": torch.tanh}}  # fmt: skip
    layer = encoder_layer(case, **options.get(how, {}))
    if how == "other eps":
        layer.norm2.eps = 2 * EPS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = nn.TransformerEncoder(layer, 2, None, how != "flag", how != "not checked")
    assert [str(w.message)[:28] for w in caught] == ["enable_nested_tensor is True"] * (how in REFUSED)
    assert (model.enable_nested_tensor, model.mask_check) == (how != "flag", how != "not checked")
    assert model.use_nested_tensor == (how not in REFUSED and how != "flag")
    model.train(how == "train").requires_grad_(how not in ("frozen", "input needs gradient"))
    x = case.tensor(2, 5, WIDTH, requires_grad=how == "input needs gradient")
    padding = torch.tensor(PADDING, device=case.device)
    padding = padding.flip(1) if how == "padding on the left" else padding
    mask = hidden(case, 5, 5) if how == "mask too" else None
    calls = Calls(monkeypatch, "_nested_tensor_from_mask")
    checked = Calls(monkeypatch, "_nested_tensor_from_mask_left_aligned")
    with surroundings(how):
        if how == "unbatched":
            model(x[0], mask, padding[0])
        elif how == "sequence first":
            model(x.transpose(0, 1), mask, padding)
        else:
            model(x, mask, None if how == "no padding" else padding)
    assert calls.count == NESTED[how]
    assert not (checked.count and how == "not checked")


@claim("attention.mha.added-keys-under-a-hint")
@axes(dtype=PRECISE)
@pytest.mark.parametrize(("bias_kv", "zero"), [(True, False), (False, True)])
def test_is_causal_hides_no_added_key(case, bias_kv, zero):
    """The hint and the mask that it is about, together, are as the mask alone."""
    options = {"batch_first": True, "add_bias_kv": bias_kv, "add_zero_attn": zero}
    layer, x = case.module(nn.MultiheadAttention, WIDTH, HEADS, **options), case.tensor(2, 5, WIDTH)
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool, device=case.device), 1)
    attend(case, layer, x, x, x, mask=reference.causal(5, 5), zero_row=zero, attn_mask=mask, is_causal=True)


@claim("attention.sdpa.causal-scale")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("scale", [0.3, 0.0, -1.0])
def test_any_scale_goes_with_is_causal(case, scale, rank):
    q, k, v = (t[0] if rank == 3 else t for t in queries_keys_values(case, 1, 2, 5, 5, 4))
    found = sdpa(case, q, k, v, is_causal=True, scale=scale)
    within(case, found, reference.attention(*rounded(q, k, v), reference.causal(5, 5), scale))


@claim("attention.sdpa.lengths-agree")
@pytest.mark.parametrize("rank", [3, 4])
def test_keys_and_values_of_other_lengths_are_refused(case, rank):
    lead = LEAD[rank]
    with case.raises((RuntimeError, ValueError), "size|shape|length|batch"):
        sdpa(case, case.tensor(*lead, 2, 8), case.tensor(*lead, 7, 8), case.tensor(*lead, 6, 8))


@claim("attention.sdpa.second-derivative")
@axes(via="eager")
@pytest.mark.parametrize("rank", [3, 4])
def test_the_gradient_of_attention_is_differentiable(case, rank):
    def plain(q, k, v):
        return torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1) @ v

    tensors, found = [case.tensor(*LEAD[rank], 3, 4, requires_grad=True) for _ in range(3)], []
    for function in (F.scaled_dot_product_attention, plain):
        gradients = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        found += torch.autograd.grad(sum(g.square().sum() for g in gradients), tensors)
    for one, other in zip(found[:3], found[3:], strict=True):
        # two orders of a formula of some twenty steps, each of sums of at most eight terms
        case.close(one, array(other), k=20 * 8, scale=abs(array(other)) + abs(array(other)).max())


@claim("attention.sdpa.half-range")
@axes(dtype="float16")
def test_scores_are_scaled_before_they_are_rounded(case):
    """Products beyond the range of float16 whose scaled scores lie within it."""
    q = torch.full_like(case.tensor(1, 1, 2, 64), 60.0)
    found = sdpa(case, q, q, torch.ones_like(q))
    case.close(found, np.ones((1, 1, 2, 64)), k=2)


@claim("attention.sdpa.dropout-range")
@pytest.mark.parametrize("rank", [3, 4])
def test_a_negative_dropout_is_refused(case, rank):
    x = case.tensor(*LEAD[rank], 3, 4)
    with case.raises((RuntimeError, ValueError), "dropout|probability"):
        sdpa(case, x, x, x, dropout_p=-0.5)


@claim("attention.mha.is-causal-needs-a-mask-in-eval")
@axes(via="eager")
def test_is_causal_needs_a_mask_on_the_fast_path_too(case):
    layer, x = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True).eval(), case.tensor(2, 5, WIDTH)
    with torch.no_grad(), case.raises((RuntimeError, AssertionError, ValueError), "attn_mask"):
        layer(x, x, x, is_causal=True)


@claim("attention.encoder-layer.global-hooks")
@axes(via="eager")
def test_global_hooks_see_the_parts_of_a_layer_in_eval(case):
    layer, x, seen = encoder_layer(case, batch_first=True).eval(), case.tensor(2, 3, WIDTH), []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try:
        layer(x)
        with_gradients = len(seen)
        with torch.no_grad():
            layer(x)
    finally:
        handle.remove()
    assert len(seen) == 2 * with_gradients, "the parts of the layer ran unseen"


@claim("attention.encoder.finite-padding-mask")
@axes(via="eager")
def test_a_finite_padding_mask_adds_to_the_scores(case):
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, device=case.device, dtype=case.dtype)
    encoder, x = nn.TransformerEncoder(layer, 1).eval(), case.tensor(1, 3, 4)
    padding = case.tensor_of([[0.0, 0.0, -1.0]])
    wanted = encoder(x, src_key_padding_mask=padding)
    with torch.no_grad():
        found = encoder(x, src_key_padding_mask=padding)
    assert found.shape == wanted.shape, "places were cut off"
    # two orders of a layer of some thirty steps of sums of at most eight terms; its output is normalised
    case.close(found, array(wanted), k=30 * 8, scale=abs(array(wanted)) + 1)


@claim("attention.sdpa.forward-mode")
@axes(via="eager")
@pytest.mark.parametrize("rank", [3, 4])
def test_attention_has_a_forward_mode(case, rank):
    q, k, v, u = (case.tensor(*LEAD[rank], 3, 4) for _ in range(4))
    with forward_ad.dual_level():
        y = F.scaled_dot_product_attention(forward_ad.make_dual(q, u), k, v)
        tangent = forward_ad.unpack_dual(y).tangent
    scale = 0.5
    shares = array(torch.softmax((q @ k.transpose(-2, -1) * scale).double(), -1))
    slope = array(u) @ np.swapaxes(array(k), -2, -1) * scale
    law = (shares * (slope - (shares * slope).sum(-1, keepdims=True))) @ array(v)
    size = (shares * (abs(slope) + (shares * abs(slope)).sum(-1, keepdims=True))) @ abs(array(v))
    # scores, their exponentials, two sums of three, and a product: sums of four terms thrice, and the shares again
    case.close(tangent, law, k=32, scale=size + abs(law).max())


@claim("attention.sdpa.mask-of-keys-alone")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("kind", ["boolean", "float"])
def test_a_mask_of_one_dimension_is_one_of_keys(case, rank, kind):
    q, k, v = (t[0] if rank == 3 else t for t in queries_keys_values(case, 1, 2, 5, 4, 4))
    shown = torch.tensor([True, False, True, True], device=case.device)
    mask = shown if kind == "boolean" else case.tensor_of([0.0, -np.inf, 0.0, 0.0])
    wanted = np.where(array(shown), 0.0, -np.inf)
    within(case, sdpa(case, q, k, v, attn_mask=mask), reference.attention(*rounded(q, k, v), wanted))


@claim("attention.mha.dropout-range")
@pytest.mark.parametrize("p", [-0.5, 1.5])
def test_attention_refuses_a_dropout_that_is_no_probability(case, p):
    with case.raises(ValueError, "dropout|probability"):
        nn.MultiheadAttention(WIDTH, HEADS, dropout=p)


@claim("attention.encoder.no-layers")
@axes(via="eager")
def test_an_encoder_without_layers_returns_its_input(case):
    layer = nn.TransformerEncoderLayer(4, 2, 8, device=case.device, dtype=case.dtype)
    x = case.tensor(3, 2, 4)
    case.same(nn.TransformerEncoder(layer, 0, enable_nested_tensor=False)(x), x)


@claim("attention.decoder.no-layers")
@axes(via="eager")
def test_a_decoder_without_layers_returns_its_target(case):
    layer = nn.TransformerDecoderLayer(4, 2, 8, device=case.device, dtype=case.dtype)
    x = case.tensor(3, 2, 4)
    case.same(nn.TransformerDecoder(layer, 0)(x, case.tensor(5, 2, 4)), x)


@claim("attention.transformer.causal-mask-dtype")
@axes(via="eager")
def test_the_causal_mask_has_the_default_dtype(case):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert nn.Transformer.generate_square_subsequent_mask(3).dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


@claim("attention.encoder-layer.is-causal-needs-a-mask-in-eval")
@axes(via="eager")
def test_a_layer_told_of_a_causal_mask_needs_it(case):
    layer, x = encoder_layer(case, batch_first=True).eval(), case.tensor(2, 3, WIDTH)
    with torch.no_grad(), case.raises((RuntimeError, AssertionError, ValueError), "attn_mask|src_mask"):
        layer(x, is_causal=True)


@claim("attention.sdpa.no-width")
@axes(via="eager")
@pytest.mark.parametrize("rank", [3, 4])
def test_without_a_width_the_values_are_averaged(case, rank):
    q, k, v = (t[0] if rank == 3 else t for t in queries_keys_values(case, 1, 2, 5, 4, 0, wide=3))
    wanted = array(v).mean(-2, keepdims=True).repeat(5, axis=-2)
    case.close(sdpa(case, q, k, v, scale=1.0), wanted, k=8, scale=abs(array(v)).max())  # four products, their sum


@claim("attention.sdpa.no-heads")
@axes(via="eager")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork, and a crash would end the run")
def test_attention_without_heads(case):
    q, k, v = (t[:, :0] for t in queries_keys_values(case, 1, 2, 5, 3, 4))
    child = os.fork()  # attending crashes the process on some releases
    if child == 0:
        faulthandler.disable()
        os._exit(sdpa(case, q, k, v).shape != (1, 0, 5, 4))
    _, status = os.waitpid(child, 0)
    assert status == 0, f"attention without heads ended the process with signal {os.WTERMSIG(status)}"
