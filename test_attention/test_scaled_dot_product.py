"""scaled_dot_product_attention: softmax(q kᵀ / √width + mask) v, its masks, its dropout and its gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from specs.reference import attention as reference
from specs.reference.rounding import Rounded, gradients
from test_attention.attending import (
    additive,
    hidden,
    rounded,
    sdpa,
    within,
)
from torch_conformance.axes import FLOATING, PRECISE, REDUCED
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

# queries (…, L, E) and keys (…, S, E): vector tails, more than one block of queries, more than one block of keys
SIZES = [(2, 3, 5, 7, 4), (1, 1, 33, 17, 17), (1, 2, 2, 520, 3), (1, 1, 200, 3, 1), (2, 1, 1, 1, 8)]
LEAD = {3: (2,), 4: (1, 2)}  # what stands before the length, by the rank


def queries_keys_values(case, n, h, length, keys, width, *, wide=None, **kwargs):
    shapes = (length, width), (keys, width), (keys, wide or width)
    return [case.tensor(n, h, *shape, **kwargs) for shape in shapes]


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


@claim("attention.sdpa.formula", "attention.sdpa.gradient")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("width", [1, 7, 17, 33, 65, 271])
def test_each_query_finds_its_key(case, width):
    """Keys along the axes, so far out that a query sees one alone; no dimension, no key and no query is left out."""
    far = round(9 * width**0.25)  # scores of about 80
    keys = far * case.tensor_of(np.eye(width)[None, None])
    v, g = (case.tensor(1, 1, width, width) for _ in range(2))
    y = sdpa(case, keys, keys, v.requires_grad_())
    y.backward(g)
    case.close(y, array(v), k=1)  # the other weights are below exp(-70) < 2^-100
    # Weights anew: exponentials of scores that were rounded four times, by scale, product, logarithm and difference
    case.close(v.grad, array(g), k=2 * far**2 / width**0.5 + 1)


@claim("attention.sdpa.long-mean")
@axes(dtype=REDUCED)
def test_the_mean_of_many_ones_is_one(case):
    q, k, v = queries_keys_values(case, 1, 2, 3, 1041, 5)
    case.close(sdpa(case, q, k, torch.ones_like(v)), np.ones(q.shape), k=2)  # weights are rounded, and the result


@claim("attention.sdpa.gradient")
@axes(dtype=FLOATING)
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
@pytest.mark.parametrize("scale", [0.3, -0.7, 0.0])
def test_scale_replaces_the_root(case, scale, rank):
    for wide in (3, 4):  # values as wide as the keys take a kernel of their own
        q, k, v = (t[0] if rank == 3 else t for t in queries_keys_values(case, 1, 2, 5, 7, 4, wide=wide))
        within(case, sdpa(case, q, k, v, scale=scale), reference.attention(*rounded(q, k, v), scale=scale))


@claim("attention.sdpa.scale")
@axes(dtype=PRECISE)
def test_scale_reaches_the_gradients(case):
    q, k, v = queries_keys_values(case, 1, 2, 5, 7, 4, requires_grad=True)
    y = sdpa(case, q, k, v, scale=0.3)
    y.backward(seed := case.tensor(*y.shape))
    inputs = rounded(q, k, v)
    expected = gradients([(reference.attention(*inputs, scale=0.3), array(seed))], inputs)
    for tensor, wanted in zip((q, k, v), expected, strict=True):
        within(case, tensor.grad, wanted)


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
    law = reference.attention(*rounded(q, k, v), additive(out))
    for given in (~out, ~out.mT.contiguous().mT):
        within(case, sdpa(case, q, k, v, given), law)


@claim("attention.sdpa.float-mask")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("shape", [(5, 17), (1, 17), (3, 5, 17), (3, 1, 17)], ids=str)
def test_a_float_mask_is_added(case, shape, rank):
    q, k, v = (t[0] if rank == 3 else t for t in queries_keys_values(case, 2, 3, 5, 17, 4))
    mask = case.tensor(*shape)
    mask[..., 3] = -torch.inf
    law = reference.attention(*rounded(q, k, v), array(mask))
    for given in (mask, mask.mT.contiguous().mT):
        within(case, sdpa(case, q, k, v, given), law)


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
@pytest.mark.parametrize("kind", ["plain", "causal", "masked"])
@pytest.mark.parametrize("p", [0.2, 0.7])
def test_sdpa_drops_weights(case, p, kind):
    q, k = (case.tensor(1, 2, 24, 4) for _ in range(2))
    unit = case.tensor_of(np.eye(24)).expand(1, 2, 24, 24)  # the values show the weights
    seen = torch.ones(24, 24, dtype=torch.bool, device=case.device).tril()
    mask = seen if kind == "masked" else None
    shown = sdpa(case, q, k, unit, mask, dropout_p=p, is_causal=kind == "causal")
    seen = np.broadcast_to(array(seen).astype(bool) | (kind == "plain"), shown.shape)
    kept = array(shown) != 0
    weights = reference.weights(*rounded(q, k), None if kind == "plain" else reference.causal(24, 24))
    scale = (weights.error + 2 * weights.value) / (1 - p)
    case.close(shown, np.where(kept, weights.value / (1 - p), 0), k=1, scale=np.where(kept, scale, 0))
    case.binomial((~kept & seen).sum(), seen.sum(), p)


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
@pytest.mark.parametrize("wide", [3, 4])  # values as wide as the keys take a kernel of their own
@pytest.mark.parametrize("heads", [1, 2])
def test_grouped_queries_share_keys(case, heads, wide):
    q, k, v = case.tensor(2, 4, 5, 3), case.tensor(2, heads, 7, 3), case.tensor(2, heads, 7, wide)
    shared = [Rounded(array(t).repeat(4 // heads, 1)) for t in (k, v)]
    within(case, sdpa(case, q, k, v, enable_gqa=True), reference.attention(*rounded(q), *shared))
    with case.raises((RuntimeError, ValueError), "heads|size|divi|shape"):
        sdpa(case, q[:, :3], case.tensor(2, 2, 7, 3), case.tensor(2, 2, 7, 3), enable_gqa=True)


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


@claim("attention.sdpa.no-width")
@axes(via="eager")
@pytest.mark.parametrize("rank", [3, 4])
def test_without_a_width_the_values_are_averaged(case, rank):
    q, k, v = (t[0] if rank == 3 else t for t in queries_keys_values(case, 1, 2, 5, 4, 0, wide=3))
    wanted = array(v).mean(-2, keepdims=True).repeat(5, axis=-2)
    case.close(sdpa(case, q, k, v, scale=1.0), wanted, k=8, scale=abs(array(v)).max())  # four products, their sum


@claim("attention.sdpa.no-heads")
@axes(via="eager")
def test_attention_without_heads(case):
    q, k, v = (t[:, :0] for t in queries_keys_values(case, 1, 2, 5, 3, 4))
    assert case.survived(lambda: sdpa(case, q, k, v)).shape == (1, 0, 5, 4)
