"""Embedding and EmbeddingBag: rows of a weight looked up, and the gradients that they get."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import linear as reference
from torch_conformance.axes import FLOATING, PRECISE, REDUCED
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim
from torch_conformance.switches import switched

IDS = [[1, 4, 4], [5, 4, 0]]


def indices(case, values=IDS, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype, device=case.device)


@claim("linear.embedding.lookup")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("kind", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("values", [3, [], [4, 0], IDS], ids=str)
def test_looks_up_rows_bit_by_bit(case, values, kind):
    layer, ids = case.module(nn.Embedding, 6, 5), indices(case, values, kind)
    case.same(layer(ids), layer.weight.detach()[ids.long()])


@claim("linear.embedding.lookup", "linear.embedding.gradient")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("width", [1, 271])
def test_rows_of_any_length_are_looked_up_and_trained(case, width):
    layer, g = case.module(nn.Embedding, 6, width), case.tensor(2, 3, width)
    y = layer(indices(case).t().contiguous().t())  # columns lie together
    y.backward(g)
    assert np.array_equal(array(y), array(layer.weight)[IDS])
    wanted, scale = (reference.embedding_gradient(f(array(g)), np.array(IDS), 6) for f in (np.array, abs))
    case.close(layer.weight.grad, wanted, k=3, scale=scale)  # three terms


@claim("linear.embedding.lookup", "linear.embeddingbag.formula")
@axes(layout=("transposed", "strided", "expanded"))
def test_a_table_of_any_layout_is_read(case):
    table = case.tensor(6, 37)
    rows = array(table)[IDS]
    assert np.array_equal(array(F.embedding(indices(case), table)), rows)
    bags = F.embedding_bag(indices(case), table, mode="sum")
    case.close(bags, rows.sum(1), k=3, scale=abs(rows).sum(1))  # three terms


@claim("linear.embedding.one-hot")
@axes(dtype=PRECISE)
def test_is_a_linear_map_of_one_hot_vectors(case):
    layer, ids = case.module(nn.Embedding, 6, 5), indices(case)
    hot = F.one_hot(ids, 6).to(case.dtype)
    case.close(F.linear(hot, layer.weight.t()), array(layer(ids)), k=0)


@claim("linear.embedding.lookup", "linear.embedding.gradient")
@axes(dtype=FLOATING)
@pytest.mark.parametrize(("sparse", "by_frequency"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("padding", [None, 4, -6])
def test_rows_add_up_their_gradients(case, padding, sparse, by_frequency):
    layer = case.module(nn.Embedding, 6, 37, padding_idx=padding, scale_grad_by_freq=by_frequency, sparse=sparse)
    y, g = layer(indices(case)), case.tensor(2, 3, 37)
    assert np.array_equal(array(y), array(layer.weight)[IDS])
    y.backward(g)
    law = np.array(IDS), 6, padding, by_frequency
    found = layer.weight.grad.coalesce().to_dense() if sparse else layer.weight.grad
    scale = reference.embedding_gradient(abs(array(g)), *law)
    case.close(found, reference.embedding_gradient(array(g), *law), k=3, scale=scale)  # three terms and a quotient


@claim("linear.embedding.gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("by_frequency", [False, True])
@pytest.mark.parametrize("padding", [None, 4])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32], ids=str)
def test_many_lookups_add_up_their_gradients(case, kind, padding, by_frequency):
    layer = case.module(nn.Embedding, 6, 25, padding_idx=padding, scale_grad_by_freq=by_frequency)
    ids, g = case.rng.integers(0, 6, 1501), case.tensor(1501, 25)
    layer(indices(case, ids, kind)).backward(g)
    scale = reference.embedding_gradient(abs(array(g)), ids, 6, padding, by_frequency)
    wanted = reference.embedding_gradient(array(g), ids, 6, padding, by_frequency)
    case.close(layer.weight.grad, wanted, k=np.bincount(ids).max() / 2 + 1, scale=scale)  # half an eps for each term


@claim("linear.embedding.gradient")
def test_the_last_of_many_rows_is_looked_up_and_trained(case):
    layer, g = case.module(nn.Embedding, 32_771, 2), case.tensor(1, 2)
    y = layer(indices(case, [32_770]))
    y.backward(g)
    case.same(y, layer.weight[-1:])
    case.same(layer.weight.grad[-1:], g)


@claim("linear.embedding.padding-starts-at-zero")
@pytest.mark.parametrize("padding", [0, 4, 5, -1, -6])
@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
def test_the_padding_row_starts_at_zero_and_may_be_changed(case, cls, padding):
    layer = cls(6, 5, padding_idx=padding, device=case.device)
    assert layer.padding_idx == padding % 6
    assert not layer.weight[padding].any()
    assert layer.weight[[row for row in range(6) if row != padding % 6]].any(1).all()


@claim("linear.embedding.padding-is-looked-up")
def test_the_padding_row_is_looked_up_like_any_other(case):
    layer = case.module(nn.Embedding, 6, 5, padding_idx=4)
    case.same(layer(indices(case, [4])), layer.weight.detach()[4:5])


@claim("linear.embedding.max-norm")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_the_forward_shortens_the_rows_it_looks_up(case, p, training):
    layer = case.module(nn.Embedding, 6, 5, max_norm=0.9, norm_type=p).train(training)
    with torch.no_grad():
        layer.weight[0] *= 1e-3
        before = array(layer.weight.clone())
        layer(indices(case, [4] * 40 + [5, 4, 1]))
    used, after = [1, 4, 5], array(layer.weight)
    assert (after[[0, 2, 3]] == before[[0, 2, 3]]).all()  # short, and not looked up
    # the factor is max_norm / (norm + 1e-7), a guard against zero that the documentation does not mention
    k = 10 + 1e-7 / 0.9 / torch.finfo(case.dtype).eps
    case.close(layer.weight[used], reference.bounded(before[used], 0.9, p), k=k)


@claim("linear.embedding.max-norm-in-place")
def test_shortened_rows_were_changed_in_place(case):
    layer, factors = case.module(nn.Embedding, 6, 5, max_norm=0.1), case.tensor(5, 3, requires_grad=True)
    before = layer.weight @ factors
    kept = layer.weight.clone() @ factors
    after = layer(indices(case)) @ factors
    (kept.sum() + after.sum()).backward(retain_graph=True)
    with case.raises(RuntimeError, "modified by an inplace operation"):
        before.sum().backward()


@claim("linear.embedding.sparse")
def test_sparse_gradient_is_refused_by_adam_only(case):
    layer = case.module(nn.Embedding, 6, 5, sparse=True)
    layer(indices(case)).sum().backward()
    assert layer.weight.grad.is_sparse
    for optimizer in (torch.optim.SGD, torch.optim.SparseAdam, torch.optim.Adagrad):
        optimizer(layer.parameters(), lr=0.1).step()
    with case.raises(RuntimeError, "does not support sparse"):
        torch.optim.Adam(layer.parameters(), lr=0.1).step()


@claim("linear.embedding.from-pretrained")
@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
def test_from_pretrained_holds_the_very_weights_frozen(case, cls):
    weight = case.tensor(6, 5)
    layer = cls.from_pretrained(weight)
    assert not layer.weight.requires_grad
    assert cls.from_pretrained(weight, freeze=False).weight.requires_grad
    assert layer.weight.data_ptr() == weight.data_ptr()
    assert (layer.num_embeddings, layer.embedding_dim) == (6, 5)
    with case.raises(AssertionError, "2-dimensional"):
        cls.from_pretrained(weight[0])
    with case.raises(AssertionError, "shape of weight"):
        cls(5, 6, _weight=weight)


@claim("linear.embedding.options")
@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
def test_options_are_kept_and_have_their_defaults(case, cls):
    weight = case.tensor(6, 5)
    defaults = {"padding_idx": None, "max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False, "sparse": False}
    own = {"padding_idx": 0, "max_norm": 0.9, "norm_type": 3.0, "scale_grad_by_freq": True, "sparse": True}
    if cls is nn.EmbeddingBag:
        defaults |= {"mode": "mean", "include_last_offset": False}
        own |= {"mode": "sum", "include_last_offset": True}
    for options in ({}, own):
        for layer in (cls(6, 5, **options), cls.from_pretrained(weight.clone(), **options)):
            for name, value in (defaults | options).items():
                assert getattr(layer, name) == value, f"{name} is {getattr(layer, name)}, not {value}"
    assert not cls(6, 5, padding_idx=0).weight[0].any()
    assert cls(6, 5).weight.any(1).all()
    layer = cls(6, 5)
    layer.weight.data.fill_(7.0)
    layer.reset_parameters()
    assert (layer.weight != 7).all()


@claim("linear.embedding.index-error")
@pytest.mark.parametrize("index", [6, -1])
def test_an_index_outside_is_refused(case, index):
    if case.device.type != "cpu":
        raise case.unsupported("an accelerator reports a bad index by a failed assertion that ends its context")
    with case.raises(IndexError, "out of range"):
        case.module(nn.Embedding, 6, 5)(indices(case, [0, index]))


@claim("linear.embedding.padding-error")
@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("padding", [6, -7])
def test_a_padding_row_outside_is_refused(case, cls, padding):
    with case.raises(AssertionError, "padding_idx must be within"):
        cls(6, 5, padding_idx=padding)


@claim("linear.embeddingbag.formula")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_are_reduced_and_empty_ones_are_zero(case, mode, last):
    layer = case.module(nn.EmbeddingBag, 6, 37, mode=mode, include_last_offset=last)
    for starts in ([0, 3, 3, 5, 7], [0, 3, 3, 5]):
        given = indices(case, [1, 4, 4, 2, 4, 0, 3]), indices(case, starts + [7] * last)
        y = layer.requires_grad_(True)(*given)
        law = array(given[0]).astype(int), np.array(starts), mode, np.ones(7)
        scale = reference.bags(abs(array(layer.weight)), *law)
        wanted = reference.bags(array(layer.weight), *law)
        case.close(y, wanted, k=0 if mode == "max" else 3, scale=scale)  # three terms
        case.same(layer.requires_grad_(False)(*given), y)


@claim("linear.embeddingbag.gradient")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("padding", [None, 4])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_row_adds_up_its_shares_of_the_bags(case, mode, padding):
    check_gradient(case, mode, padding)


@claim("linear.embeddingbag.formula", "linear.embeddingbag.gradient")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("width", [1, 271])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_rows_of_any_length(case, mode, width):
    check_gradient(case, mode, None, width)


@claim("linear.embeddingbag.formula", "linear.embeddingbag.gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_short_integers(case, mode):
    check_gradient(case, mode, None, kind=torch.int32)


@claim("linear.embeddingbag.gradient")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("padding", [None, 4])
@pytest.mark.parametrize("option", ["sparse", "scale_grad_by_freq"])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_the_gradient_may_be_sparse_or_scaled(case, mode, option, padding):
    check_gradient(case, mode, padding, **{option: True})


def check_gradient(case, mode, padding, width=37, sparse=False, scale_grad_by_freq=False, kind=torch.int64):
    options = {"sparse": sparse, "scale_grad_by_freq": scale_grad_by_freq}
    layer = case.module(nn.EmbeddingBag, 6, width, mode=mode, padding_idx=padding, **options)
    ids, starts, g = np.array([1, 4, 4, 2, 4, 0, 3, 3]), np.array([0, 3, 3, 5, 8]), case.tensor(5, width)
    given = indices(case, ids, kind), indices(case, starts, kind)
    y = layer(*given)
    y.backward(g)
    with torch.no_grad():
        case.same(layer(*given), y)
    if padding is None:
        wanted, scale = (reference.bags(f(array(layer.weight)), ids, starts, mode, np.ones(8)) for f in (np.array, abs))
        case.close(y, wanted, k=3, scale=scale)  # three terms

    def law(g):
        shares = reference.bag_shares(g, array(layer.weight), ids, starts, mode, padding)
        return reference.embedding_gradient(shares, ids, 6, by_frequency=scale_grad_by_freq)

    found = layer.weight.grad.to_dense() if sparse else layer.weight.grad
    case.close(found, law(array(g)), k=4, scale=law(abs(array(g))))  # three terms and two quotients


@claim("linear.embeddingbag.like-embedding")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_one_length_are_reduced_embeddings(case, mode):
    layer, ids, g = (
        case.module(nn.EmbeddingBag, 6, 5, mode=mode),
        indices(case, [[1, 4, 3], [2, 4, 0]]),
        case.tensor(2, 5),
    )
    rows = F.embedding(ids, layer.weight)
    plain = rows.max(1).values if mode == "max" else getattr(rows, mode)(1)
    (expected,) = torch.autograd.grad(plain, layer.weight, g, retain_graph=True)
    y = layer(ids)
    y.backward(g)
    case.close(y, array(plain), k=3, scale=abs(array(rows)).sum(1))  # three terms, twice
    case.close(layer.weight.grad, array(expected), k=4, scale=abs(array(g)).sum(0))  # and a quotient


@claim("linear.embeddingbag.offsets")
def test_offsets_go_with_a_list_of_indices(case):
    layer = case.module(nn.EmbeddingBag, 6, 5)
    for bad, words in (
        (None, "1D Tensor"),
        ([[0, 1]], "1D Tensor"),
        ([1, 2], "has to be 0"),
        ([0, 5], "input's length"),
    ):
        with case.raises((ValueError, RuntimeError), words):
            layer(indices(case, [1, 4, 4, 2]), None if bad is None else indices(case, bad))
    with case.raises(ValueError, "offsets has to be None"):
        layer(indices(case), indices(case, [0]))
    with case.raises(ValueError, "1D or 2D"):
        layer(indices(case)[None])


def bags_before_the_last_offset(case, mode):
    """Two bags, of 2 and 3 indices; what lies behind them would be the greatest."""
    layer = case.module(nn.EmbeddingBag, 6, 5, mode=mode, include_last_offset=True)
    with torch.no_grad():
        layer.weight[0] += 9
    return layer, layer(indices(case, [1, 4, 5, 3, 2, 0, 0]), indices(case, [0, 2, 5]))


@claim("linear.embeddingbag.last-offset")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_last_offset_ends_the_last_bag(case, mode):
    layer, y = bags_before_the_last_offset(case, mode)
    law = np.array([1, 4, 5, 3, 2]), np.array([0, 2]), mode, np.ones(5)
    scale = reference.bags(abs(array(layer.weight)), *law)
    case.close(y, reference.bags(array(layer.weight), *law), k=0 if mode == "max" else 3, scale=scale)  # three terms


@claim("linear.embeddingbag.last-offset")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_what_lies_behind_the_last_bag_gets_no_gradient(case, mode):
    layer, y = bags_before_the_last_offset(case, mode)
    g = case.tensor(2, 5)
    y.backward(g)
    ids, starts = np.array([1, 4, 5, 3, 2]), np.array([0, 2])

    def law(g):
        return reference.embedding_gradient(reference.bag_shares(g, array(layer.weight), ids, starts, mode), ids, 6)

    case.close(layer.weight.grad, law(array(g)), k=2, scale=law(abs(array(g))))  # a quotient and a product


@claim("linear.embeddingbag.last-offset-of-a-matrix")
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_matrix_of_indices_needs_no_last_offset(case, mode):
    layer = case.module(nn.EmbeddingBag, 6, 5, mode=mode)
    wanted = layer(indices(case))
    layer.include_last_offset = True
    case.same(layer(indices(case)), wanted)


@claim("linear.embeddingbag.maximum-alone")
@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_the_maximum_goes_without(case, option):
    layer = case.module(nn.EmbeddingBag, 6, 5, mode="max", **{option: True})
    with case.raises(ValueError, "max mode"):
        layer(indices(case))


@claim("linear.embeddingbag.weights")
@axes(dtype=FLOATING)
@pytest.mark.parametrize(("width", "kind"), [(5, torch.int64), (37, torch.int64), (37, torch.int32)], ids=str)
@pytest.mark.parametrize("padding", [None, 4])
def test_per_sample_weights_scale_the_rows(case, padding, width, kind):
    layer = case.module(nn.EmbeddingBag, 6, width, mode="sum", padding_idx=padding)
    ids, starts = [1, 4, 4, 2], [0, 3]
    factors, g = case.tensor(4, requires_grad=True), case.tensor(2, width)
    y = layer(indices(case, ids, kind), indices(case, starts, kind), factors)
    law = np.array(ids), np.array(starts), "sum"
    counted = np.array([i != padding for i in ids])
    scale = reference.bags(abs(array(layer.weight)), *law, abs(array(factors)))
    wanted = reference.bags(array(layer.weight), *law, array(factors) * counted)
    case.close(y, wanted, k=4, scale=scale)  # three products
    y.backward(g)
    rows, up = array(layer.weight)[ids] * counted[:, None], array(g)[[0, 0, 0, 1]]
    case.close(factors.grad, (rows * up).sum(1), k=width, scale=(abs(rows) * abs(up)).sum(1))  # so many products
    shares = array(factors * torch.tensor(counted, device=case.device))[:, None] * up
    wanted, scale = (reference.embedding_gradient(f(shares), np.array(ids), 6) for f in (np.array, abs))
    case.close(layer.weight.grad, wanted, k=3, scale=scale)  # two products


@claim("linear.embeddingbag.weights")
@pytest.mark.parametrize("lie", [lambda t: t.t().contiguous().t(), lambda t: t.repeat_interleave(2, 1)[:, ::2]])
def test_weights_of_samples_are_read_where_they_lie(case, lie):
    rows, factors = case.tensor(6, 5), case.tensor(2, 3)
    y = F.embedding_bag(indices(case), rows, mode="sum", per_sample_weights=lie(factors))
    terms = array(rows)[IDS] * array(factors)[..., None]
    case.close(y, terms.sum(1), k=3, scale=abs(terms).sum(1))  # three products


@claim("linear.embeddingbag.weights-of-every-index")
def test_every_index_has_its_weight(case):
    layer = case.module(nn.EmbeddingBag, 6, 5, mode="sum")
    with case.raises(ValueError, "same shape as the input"):
        layer(indices(case), per_sample_weights=case.tensor(3, 2))
    with case.raises(ValueError, "same shape as the input"):
        layer(indices(case, [1, 4, 4, 2]), indices(case, [0, 3]), case.tensor(3))


@claim("linear.embeddingbag.padding-left-out")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_padding_row_is_left_out_of_the_bag(case, mode):
    layer = case.module(nn.EmbeddingBag, 6, 5, mode=mode, padding_idx=4)
    y = layer(indices(case, [1, 4, 2, 4, 4]), indices(case, [0, 3]))
    expected = reference.bags(array(layer.weight), np.array([1, 2]), np.array([0, 2]), mode, np.ones(2))
    case.close(y, expected, k=2, scale=abs(array(layer.weight)).sum(0))  # a sum and a quotient


@claim("linear.embeddingbag.weights-need-sum")
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_per_sample_weights_need_the_sum(case, mode):
    layer = case.module(nn.EmbeddingBag, 6, 5, mode=mode)
    with case.raises(NotImplementedError, "per_sample_weights.*mode"):
        layer(indices(case), per_sample_weights=case.tensor(2, 3))


@claim("linear.embedding.padding-error")
def test_functional_form_checks_the_padding_row_too(case):
    weight, ids, g = case.tensor(6, 5, requires_grad=True), indices(case, [0, 1, 5]), case.tensor(3, 5)
    for padding in (6, -7):
        with case.raises(AssertionError, "Padding_idx must be within"):
            F.embedding(ids, weight, padding)
    for padding in (0, 1, 5, -1, -5, -6):
        (grad,) = torch.autograd.grad(F.embedding(ids, weight, padding), weight, g)
        held = [row for row in (0, 1, 5) if row != padding % 6]
        assert grad.any(1).nonzero().flatten().tolist() == held, padding


@claim("linear.embedding.max-norm")
def test_bags_shorten_their_rows_too(case):
    layer = case.module(nn.EmbeddingBag, 6, 5, max_norm=0.1, norm_type=1.0)
    layer(indices(case))
    assert (abs(array(layer.weight)).sum(1)[[0, 1, 4, 5]] <= 0.1 + 1e-6).all()
    assert (abs(array(layer.weight)).sum(1)[[2, 3]] > 0.1).all()


@claim("linear.embeddingbag.weights-need-sum")
def test_bags_refuse_unknown_modes(case):
    with case.raises(ValueError, "mode"):
        F.embedding_bag(indices(case), case.tensor(6, 5), mode="median")


@claim("linear.embedding.second-derivative")
@axes(via="eager")
def test_the_gradient_by_frequency_is_differentiable(case):
    w, g = case.tensor(4, 2, requires_grad=True), case.tensor(4, 2, requires_grad=True)
    y = F.embedding(indices(case, [1, 1, 1, 2]), w, scale_grad_by_freq=True)
    (gradient,) = torch.autograd.grad(y, w, g, create_graph=True)
    (found,) = torch.autograd.grad(gradient.sum(), g)
    case.close(found, np.array([[1 / 3] * 2] * 3 + [[1, 1]]), k=1)


@claim("linear.embedding.counts-every-lookup")
@axes(dtype=REDUCED, via="eager")
def test_a_row_looked_up_often_gets_every_gradient(case):
    w = case.tensor(3, 2, requires_grad=True)
    F.embedding(indices(case, [0] * 4096), w).sum().backward()
    case.close(w.grad[0], np.full(2, 4096.0), k=1)


@claim("linear.embedding.max-norm-overflow")
@axes(dtype="float16")
def test_a_row_whose_norm_overflows_is_shortened(case):
    w = torch.full_like(case.tensor(2, 4), 40000)
    F.embedding(indices(case, [0]), w, max_norm=1.0)
    assert w[0].any(), "the row became zero"


@claim("linear.embeddingbag.offsets-increase")
def test_offsets_that_decrease_are_refused(case):
    """By one thread: where several share the bags, one may be left with none of the decrease."""
    with switched("threads", 1), case.raises((RuntimeError, ValueError), "offset"):
        F.embedding_bag(indices(case, [0, 1, 2, 3]), case.tensor(4, 4), indices(case, [0, 3, 1]), mode="sum")


@claim("linear.embeddingbag.matrix-of-empty-bags")
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_rows_without_indices_are_empty_bags(case, mode):
    found = F.embedding_bag(indices(case, [[], []]), case.tensor(4, 3), mode=mode)
    case.same(found, torch.zeros_like(found))
    assert found.shape == (2, 3)


@claim("linear.embeddingbag.frozen-rows")
@axes(via="eager")
def test_weights_of_samples_learn_beside_frozen_rows(case):
    rows, weights = case.tensor(6, 3), case.tensor(2, 3, requires_grad=True)
    F.embedding_bag(indices(case), rows, mode="sum", per_sample_weights=weights).sum().backward()
    case.close(weights.grad, array(rows).sum(1)[IDS], k=3, scale=abs(array(rows)).sum(1)[IDS])  # a sum of three


@claim("linear.embeddingbag.counts-every-bag")
@axes(dtype=REDUCED, via="eager")
def test_a_row_in_many_bags_gets_every_gradient(case):
    w = case.tensor(3, 2, requires_grad=True)
    y = F.embedding_bag(indices(case, [[0]] * 4096), w, mode="sum")
    case.same(y, w[0].expand(4096, 2))
    y.sum().backward()
    case.close(w.grad[0], np.full(2, 4096.0), k=1)


@claim("linear.embedding.sparse-counts-every-lookup")
@axes(dtype="bfloat16", via="eager")
def test_a_sparse_gradient_counts_every_lookup(case):
    layer = case.module(nn.Embedding, 3, 2, sparse=True)
    layer(torch.zeros(600, dtype=torch.int64, device=case.device)).sum().backward()
    case.same(layer.weight.grad.coalesce().values(), case.tensor_of([[600.0, 600.0]]))
