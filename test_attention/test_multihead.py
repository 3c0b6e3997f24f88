"""nn.MultiheadAttention: projections into heads, masks, weights, and the fast path in eval mode."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import attention as reference
from specs.reference.rounding import Rounded, gradients
from test_attention.attending import (
    FEEDS,
    HEADS,
    KINDS,
    WIDTH,
    Calls,
    additive,
    hidden,
    mask_by,
    padding_mask,
    parameters,
    rounded,
    sdpa,
    surroundings,
    within,
)
from torch_conformance.axes import FLOATING, PRECISE
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim


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


@claim("attention.mha.weights-without-samples")
@axes(via="eager")
@pytest.mark.parametrize("gradients", [True, False])
def test_an_empty_batch_has_empty_weights(case, gradients):
    layer = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True).eval()
    x = case.tensor(0, 5, WIDTH)
    with torch.set_grad_enabled(gradients):
        weights = layer(x, x, x)[1]
    assert weights is not None
    assert weights.shape == (0, 5, 5)


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


@claim("attention.mha.added-keys-under-a-hint")
@axes(dtype=PRECISE)
@pytest.mark.parametrize(("bias_kv", "zero"), [(True, False), (False, True)])
def test_is_causal_hides_no_added_key(case, bias_kv, zero):
    """The hint and the mask that it is about, together, are as the mask alone."""
    options = {"batch_first": True, "add_bias_kv": bias_kv, "add_zero_attn": zero}
    layer, x = case.module(nn.MultiheadAttention, WIDTH, HEADS, **options), case.tensor(2, 5, WIDTH)
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool, device=case.device), 1)
    attend(case, layer, x, x, x, mask=reference.causal(5, 5), zero_row=zero, attn_mask=mask, is_causal=True)


@claim("attention.mha.is-causal-needs-a-mask-in-eval")
@axes(via="eager")
def test_is_causal_needs_a_mask_on_the_fast_path_too(case):
    layer, x = case.module(nn.MultiheadAttention, WIDTH, HEADS, batch_first=True).eval(), case.tensor(2, 5, WIDTH)
    with torch.no_grad(), case.raises((RuntimeError, AssertionError, ValueError), "attn_mask"):
        layer(x, x, x, is_causal=True)


@claim("attention.mha.dropout-range")
@pytest.mark.parametrize("p", [-0.5, 1.5])
def test_attention_refuses_a_dropout_that_is_no_probability(case, p):
    with case.raises(ValueError, "dropout|probability"):
        nn.MultiheadAttention(WIDTH, HEADS, dropout=p)
