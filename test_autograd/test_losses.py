"""Losses: the loss of each element, what the reduction divides by, and the gradient of both arguments."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import autograd as reference
from torch_conformance.axes import FLOATING, PRECISE
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim
from torch_conformance.switches import switched

DELTA = reference.DELTA
CALLS = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": lambda x, t, reduction: F.smooth_l1_loss(x, t, reduction=reduction, beta=DELTA),
    "huber": lambda x, t, reduction: F.huber_loss(x, t, reduction=reduction, delta=DELTA),
    "bce": F.binary_cross_entropy,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "kl_div": F.kl_div,
    "soft_margin": F.soft_margin_loss,
    "hinge_embedding": lambda x, t, reduction: F.hinge_embedding_loss(x, t, reduction=reduction, margin=DELTA),
    "poisson_nll": F.poisson_nll_loss,
}
MODULES = {
    "mse": nn.MSELoss,
    "l1": nn.L1Loss,
    "smooth_l1": lambda reduction: nn.SmoothL1Loss(reduction=reduction, beta=DELTA),
    "huber": lambda reduction: nn.HuberLoss(reduction=reduction, delta=DELTA),
    "bce": nn.BCELoss,
    "bce_with_logits": nn.BCEWithLogitsLoss,
    "kl_div": nn.KLDivLoss,
    "soft_margin": nn.SoftMarginLoss,
    "hinge_embedding": lambda reduction: nn.HingeEmbeddingLoss(reduction=reduction, margin=DELTA),
    "poisson_nll": nn.PoissonNLLLoss,
}
SHAPES = [(3, 367), (1, 1)]  # beyond 1,024 elements, with an odd tail


def operands(case, name, shape):
    """Prediction and target within the loss's domain."""
    if name in ("soft_margin", "hinge_embedding"):
        values = case.rng.standard_normal(shape)
        values += 0.125 * (abs(values - DELTA) < 0.0625)  # away from the kink, where roundings decide
        return case.tensor_of(values, requires_grad=True), case.tensor_of(case.rng.choice([-1.0, 1.0], shape))
    inside = name in ("bce", "kl_div", "bce_with_logits")
    target = case.tensor_of(case.rng.uniform(0.1, 0.9, shape) if inside else case.rng.standard_normal(shape))
    values = case.rng.uniform(0.1, 0.9, shape) if name == "bce" else case.rng.standard_normal(shape)
    return case.tensor_of(values, requires_grad=True), target


def sizes(name, x, t):
    """Terms of loss and derivative, each taken absolutely."""
    if name in ("mse", "l1", "smooth_l1", "huber"):
        return (abs(x) + abs(t)) ** 2 + abs(x) + abs(t), 2 * (abs(x) + abs(t)) / DELTA + 1
    if name == "bce":
        return 1 - np.log(x) - np.log1p(-x), 1 / (x * (1 - x))
    if name == "bce_with_logits":
        return 1 + 2 * abs(x), 2.0 + 0 * x
    if name in ("soft_margin", "hinge_embedding"):
        return 1 + abs(x), 1.0 + 0 * x
    if name == "poisson_nll":
        return np.exp(x) + abs(t * x), np.exp(x) + abs(t)
    return t * (abs(np.log(t)) + 1 + abs(x)), t


@claim("autograd.loss.each-element")
@axes(dtype=FLOATING, layout=("contiguous", "strided"))
@pytest.mark.parametrize("name", CALLS)
def test_the_loss_of_each_element_and_its_gradient(case, name):
    for shape in SHAPES:
        x, t = operands(case, name, shape)
        g = case.tensor(*shape)
        losses = case.function(CALLS[name])(x, t, reduction="none")
        losses.backward(g)
        value, slope = (f(array(x), array(t)) for f in reference.LOSSES[name])
        value_scale, slope_scale = sizes(name, array(x), array(t))
        case.close(losses, value, k=8, scale=value_scale)  # at most two functions within one eps and six more steps
        case.close(x.grad, array(g) * slope, k=8, scale=abs(array(g)) * slope_scale)


@claim("autograd.higher.derivatives")
@axes(via="eager")
@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives_of_losses(case, name):
    x, t = operands(case, name, (37,))
    if name in ("l1", "smooth_l1", "huber"):
        t = x.detach() + torch.linspace(-2.9, 2.96, 37, device=case.device)  # at a distance from every kink
    (first,) = torch.autograd.grad((x * CALLS[name](x, t, reduction="none")).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    value, slope = reference.LOSSES[name]
    law = reference.along(lambda v: value(v, array(t)) + v * slope(v, array(t)), array(x))
    # some twenty steps; the second derivative of a logarithm is the square of the first
    case.close(second, law, k=20, scale=(1 + abs(array(x))) * (1 + sizes(name, array(x), array(t))[1]) ** 2)


@claim("autograd.loss.nan-passes")
@axes(dtype=FLOATING)
@pytest.mark.filterwarnings("ignore:reduction. .mean")
@pytest.mark.parametrize("name", [name for name in CALLS if name != "bce"])  # which refuses what is not in [0, 1]
def test_the_loss_of_nan_is_nan(case, name):
    x, t = operands(case, name, (35,))
    x = x.detach().index_fill(0, torch.tensor([3, 34], device=case.device), torch.nan)
    losses = case.function(CALLS[name])(x, t, reduction="none")
    assert array(losses.isnan()).nonzero()[0].tolist() == [3, 34]
    assert all(case.function(CALLS[name])(x, t, reduction=how).isnan() for how in ("sum", "mean"))


@claim("autograd.loss.reductions")
@axes(dtype=FLOATING)
@pytest.mark.filterwarnings("ignore:reduction. .mean")
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", CALLS)
def test_the_reduction_divides_value_and_gradient(case, name, reduction):
    shape = (2, 3)
    x, t = operands(case, name, shape)
    loss = case.function(CALLS[name])(x, t, reduction=reduction)
    loss.backward()
    divisor = 6 if reduction == "mean" else 1
    value, slope = (f(array(x), array(t)) for f in reference.LOSSES[name])
    value_scale, slope_scale = sizes(name, array(x), array(t))
    case.close(loss, reference.reduce(value, reduction), k=8 + 7, scale=value_scale.sum() / divisor)  # and the sums
    case.close(x.grad, slope / divisor, k=8 + 2, scale=slope_scale / divisor)  # the quotient, by a rounded inverse


@claim("autograd.loss.reductions")
@pytest.mark.parametrize("name", ["mse", "smooth_l1", "huber"])
def test_the_mean_of_many_elements_divides_by_all(case, name):
    x = torch.full_like(case.tensor(33_000), DELTA / 2).requires_grad_()
    loss = case.function(CALLS[name])(x, torch.zeros_like(x), reduction="mean")
    loss.backward()
    value, slope = (f(array(x), 0 * array(x)) for f in reference.LOSSES[name])
    case.close(loss, value.mean(), k=33_000 / 2 + 10)  # the sum, at worst one term after the other
    case.close(x.grad, slope / 33_000, k=10)


@claim("autograd.loss.modules")
@pytest.mark.filterwarnings("ignore:reduction. .mean")
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", MODULES)
def test_the_module_is_the_function(case, name, reduction):
    x, t = operands(case, name, (3, 7))
    loss = MODULES[name](reduction=reduction)
    case.same(loss(x, t).detach(), CALLS[name](x, t, reduction=reduction).detach())


@claim("autograd.loss.binary-weights")
@axes(dtype=PRECISE)
def test_weights_multiply_the_losses_and_not_the_divisor(case):
    weight, positive = (case.tensor_of(case.rng.uniform(0.3, 2, 7)) for _ in range(2))
    for name, options in [("bce", {}), ("bce_with_logits", {}), ("bce_with_logits", {"pos_weight": positive})]:
        x, t = operands(case, name, (3, 7))
        p = array(x) if name == "bce" else 1 / (1 + np.exp(-array(x)))
        parts = array(t) * np.log(p), (1 - array(t)) * np.log1p(-p)
        wanted = -array(weight) * (parts[0] * (array(positive) if options else 1) + parts[1])
        k, scale = 8 + 3, sizes(name, array(x), array(t))[0] * array(weight) * 2  # three products more, pos_weight < 2
        losses = CALLS[name](x, t, weight=weight, reduction="none", **options)
        case.close(losses, wanted, k=k, scale=scale)
        mean = CALLS[name](x, t, weight=weight, reduction="mean", **options)
        case.close(mean, wanted.sum() / 21, k=k + 21, scale=scale.sum() / 21)  # and the sum


@claim("autograd.loss.mean-by-default")
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:reduction. .mean")
def test_the_mean_is_the_default(case, name):
    x, t = operands(case, name, (3, 7))
    named = {"smooth_l1": nn.SmoothL1Loss, "huber": nn.HuberLoss, "hinge_embedding": nn.HingeEmbeddingLoss}
    default = named.get(name, MODULES[name])
    case.same(default()(x, t).detach(), default(reduction="mean")(x, t).detach())
    assert default().reduction == "mean"


@claim("autograd.loss.mean-divides-by-elements")
def test_mean_divides_by_elements_and_batchmean_by_samples(case):
    x, t = operands(case, "kl_div", (4, 3))
    squares, divergence = array(F.mse_loss(x, t, reduction="sum")), array(F.kl_div(x, t, reduction="sum"))
    case.close(F.mse_loss(x, t), squares / 12, k=12)  # the same sum of twelve terms, perhaps in another order
    case.close(F.kl_div(x, t, reduction="batchmean"), divergence / 4, k=1)
    for shape, samples in [((5,), 5), ((), 1)]:
        x, t = operands(case, "kl_div", shape)
        divergence = array(F.kl_div(x, t, reduction="sum"))
        case.close(F.kl_div(x, t, reduction="batchmean"), divergence / samples, k=1)


@claim("autograd.loss.gradient-of-the-target")
@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "huber"])
def test_the_target_gets_the_opposite_gradient(case, name):
    x, t = case.tensor(3, 7, requires_grad=True), case.tensor(3, 7, requires_grad=True)
    CALLS[name](x, t, reduction="sum").backward()
    case.same(t.grad, -x.grad)


@claim("autograd.loss.kink-at-the-target")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "huber"])
def test_the_gradient_at_the_target_is_zero(case, name):
    x = case.tensor(17, requires_grad=True)
    CALLS[name](x, x.detach().clone(), reduction="sum").backward()
    case.same(x.grad.abs(), torch.zeros_like(x))


def classes(case, n=6):
    """Scores (6, 5), class indices (6,), and the size of the gradient's terms (6, 5)."""
    x, target = case.tensor(n, 5, requires_grad=True), torch.as_tensor(case.rng.integers(0, 5, n)).to(case.device)
    logs = reference.log_softmax(array(x))
    return x, target, np.exp(logs) * (1 + abs(logs)) + np.eye(5)[array(target)]


@claim("autograd.loss.cross-entropy")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_cross_entropy_is_weighted_by_class(case, reduction):
    x, target, size = classes(case, 19)
    weight = case.tensor_of(case.rng.uniform(0.3, 2, 5))
    losses, weights = reference.cross_entropy(array(x), array(target), array(weight))
    divisor = weights.sum() if reduction == "mean" else 1.0
    loss = case.function(F.cross_entropy)(x, target, weight=weight, reduction=reduction)
    loss.sum().backward()
    value, terms = (part if reduction == "none" else part.sum() / divisor for part in (losses, losses + weights))
    case.close(loss, value, k=5 + 19 + 6, scale=terms)  # sums over classes, samples and their weights
    gradient = reference.cross_entropy_gradient(array(x), array(target), array(weight)) / divisor
    case.close(x.grad, gradient, k=5 + 19 + 4, scale=size * (weights / divisor)[:, None])  # and four steps more


@claim("autograd.loss.cross-entropy")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
def test_every_place_of_an_image_is_a_sample(case):
    x, weight = case.tensor(2, 5, 3, 4, requires_grad=True), case.tensor_of(case.rng.uniform(0.3, 2, 5))
    target = torch.as_tensor(case.rng.integers(0, 5, (2, 3, 4))).to(case.device)
    loss = case.function(F.cross_entropy)(x, target, weight=weight)
    loss.backward()
    rows, labels = np.moveaxis(array(x), 1, -1).reshape(-1, 5), array(target).ravel()
    losses, weights = reference.cross_entropy(rows, labels, array(weight))
    case.close(loss, losses.sum() / weights.sum(), k=5 + 24 + 6, scale=(losses + weights).sum() / weights.sum())
    wanted = reference.cross_entropy_gradient(rows, labels, array(weight)) / weights.sum()
    logs, shares = reference.log_softmax(rows), (weights / weights.sum())[:, None]
    scale = (np.exp(logs) * (1 + abs(logs)) + np.eye(5)[labels]) * shares
    found = np.moveaxis(array(x.grad), 1, -1).reshape(-1, 5)
    case.close(case.tensor_of(found), wanted, k=5 + 24 + 6, scale=scale)  # sums over classes and weights


@claim("autograd.loss.weights-of-probabilities")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_weights_of_probable_classes_are_not_in_the_divisor(case, reduction):
    x, weight = case.tensor(6, 5, requires_grad=True), case.tensor_of(case.rng.uniform(0.3, 2, 5))
    target = case.tensor_of(case.rng.dirichlet(np.ones(5), 6))
    loss = case.function(F.cross_entropy)(x, target, weight=weight, reduction=reduction)
    loss.sum().backward()
    shares, logs = array(target) * array(weight), reference.log_softmax(array(x))
    divisor = 6 if reduction == "mean" else 1
    values, terms = -(shares * logs).sum(1), (shares * (1 - logs)).sum(1)
    if reduction != "none":
        values, terms = values.sum() / divisor, terms.sum() / divisor
    case.close(loss, values, k=5 + 6 + 6, scale=terms)  # sums over classes twice, and over samples
    total, s = shares.sum(1, keepdims=True), np.exp(logs)
    scale = (total * s * (1 - logs) + shares) / divisor
    case.close(x.grad, (total * s - shares) / divisor, k=5 + 6 + 4, scale=scale)


@claim("autograd.loss.divergence-of-logarithms")
@axes(dtype=FLOATING)
def test_a_target_of_logarithms_gets_a_gradient_too(case):
    x, t, g = case.tensor(3, 7, requires_grad=True), case.tensor(3, 7, requires_grad=True), case.tensor(3, 7)
    losses = F.kl_div(x, t, reduction="none", log_target=True)
    losses.backward(g)
    p, apart, up = np.exp(array(t)), array(t) - array(x), array(g)
    sizes = abs(array(t)) + abs(array(x))
    case.close(losses, p * apart, k=4, scale=p * sizes)  # an exponential, a difference, a product
    case.close(x.grad, -up * p, k=4)
    case.close(t.grad, up * p * (apart + 1), k=6, scale=abs(up) * p * (sizes + 1))


@claim("autograd.loss.counts-by-stirling")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("log_input", [True, False])
def test_the_factorial_of_a_count_beyond_one_is_approximated(case, log_input):
    t = case.tensor_of([0.0, 0.5, 1.0, 1.5, 4.0, 30.0])
    x = case.tensor_of(case.rng.uniform(0.5, 2, 6))
    loss = F.poisson_nll_loss(x, t, log_input=log_input, full=True, eps=0.25, reduction="none")
    counts, rates, logs = array(t), array(x), np.log(array(x) + 0.25)
    if log_input:
        rates, logs = np.exp(array(x)), array(x)
    more = np.maximum(counts, 1)
    stirling = np.where(counts > 1, more * np.log(more) - more + np.log(2 * np.pi * more) / 2, 0)
    scale = 1 + rates + counts * (2 + abs(logs) + abs(np.log(more)))
    case.close(loss, rates - counts * logs + stirling, k=12, scale=scale)  # four functions, and eight steps


@claim("autograd.loss.triplet")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0, 2.6])
def test_a_negative_should_be_farther_by_the_margin(case, p, swap):
    anchor, positive, negative = (case.tensor(5, 4) for _ in range(3))
    losses = F.triplet_margin_loss(anchor, positive, negative, margin=0.7, p=p, eps=1e-3, swap=swap, reduction="none")

    def apart(a, b):
        return (abs(array(a) - array(b) + 1e-3) ** p).sum(1) ** (1 / p)

    far = np.minimum(apart(anchor, negative), apart(positive, negative)) if swap else apart(anchor, negative)
    near = apart(anchor, positive)
    size = near + far + sum(abs(array(t)).sum(1) for t in (anchor, positive, negative))
    # differences, a sum of four powers and a root, each distance; two steps more
    case.close(losses, np.maximum(near - far + 0.7, 0), k=16, scale=0.7 + size)


@claim("autograd.loss.ranking")
@axes(dtype=FLOATING)
def test_the_better_should_be_ahead_by_the_margin(case):
    a, b = (case.tensor_of(case.rng.integers(-8, 8, 35) / 4, requires_grad=True) for _ in range(2))
    t, g = signs(case, 35), case.tensor(35)
    losses = F.margin_ranking_loss(a, b, t, margin=0.375, reduction="none")  # never apart by just the margin
    losses.backward(g)
    case.close(losses, np.maximum(0.375 - array(t) * (array(a) - array(b)), 0), k=0)
    case.same(a.grad + 0.0, torch.where(losses > 0, -t * g, 0.0))  # no zero with a sign
    case.same(b.grad, -a.grad)


@claim("autograd.loss.cosine-embedding")
@axes(dtype=PRECISE)
def test_unlike_rows_should_have_an_angle(case):
    a, b = case.tensor(35, 7), case.tensor(35, 7)
    t = signs(case, 35)
    losses = F.cosine_embedding_loss(a, b, t, margin=0.2, reduction="none")
    lengths = np.sqrt(((array(a) ** 2).sum(1) + 1e-12) * ((array(b) ** 2).sum(1) + 1e-12))
    cosine = (array(a) * array(b)).sum(1) / lengths
    wanted = np.where(array(t) == 1, 1 - cosine, np.maximum(cosine - 0.2, 0))
    # three sums of seven, a root and a quotient
    case.close(losses, wanted, k=15, scale=1 + abs(array(a) * array(b)).sum(1) / lengths)


@claim("autograd.loss.images-of-any-strides")
@axes(via="eager")
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_an_image_with_its_classes_last_has_a_gradient(case, reduction):
    x = case.tensor(2, 3, 4, 5).permute(0, 3, 1, 2).requires_grad_()
    target = torch.as_tensor(case.rng.integers(0, 5, (2, 3, 4))).to(case.device)
    weight = case.tensor_of(case.rng.uniform(0.3, 2, 5))
    loss = F.nll_loss(x, target, weight, reduction=reduction)
    shares = np.moveaxis(np.eye(5)[array(target)] * array(weight), -1, 1)
    shares /= shares.sum() if reduction == "mean" else 1
    terms = shares * array(x)
    case.close(loss, -terms.sum(None if reduction == "mean" else 1), k=50, scale=abs(terms).sum())  # two sums of 24
    loss.sum().backward()
    case.close(x.grad, -shares, k=26)


@claim("autograd.loss.pixels-are-samples")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_pixel_is_a_sample(case, reduction, weighted):
    x, t = case.tensor(2, 5, 3, 4, requires_grad=True), torch.as_tensor(case.rng.integers(0, 5, (2, 3, 4)))
    t[:, 1, 1:3] = torch.tensor([1, 4])
    weight = case.tensor_of([0.5, 0.25, 1.0, 2.0, 4.0]) if weighted else None
    loss = F.nll_loss(x, t.to(case.device), weight, ignore_index=1, reduction=reduction)
    loss.sum().backward()
    size = (array(weight)[array(t)] if weighted else 1.0) * (array(t) != 1)
    size = size / (size.sum() if reduction == "mean" else 1)
    places = np.eye(5)[array(t)].transpose(0, 3, 1, 2) * size[:, None]
    losses = (places * array(x)).sum(1)
    case.close(loss, -losses if reduction == "none" else -losses.sum(), k=24 + 2, scale=abs(losses).sum())
    case.close(x.grad, -places, k=24 + 2, scale=places)  # a sum of the weights, and a quotient


@claim("autograd.loss.ignored-samples")
@axes(dtype=FLOATING)
@pytest.mark.parametrize(
    ("n", "places", "weighted"), [(6, 1, False), (211, 1, False), (6, 3, False), (6, 1, True), (6, 3, True)]
)
def test_ignored_samples_count_for_nothing(case, n, places, weighted):
    x, target, size = classes(case, n)
    target[:4] = torch.tensor([4, 2, 4, 0], device=case.device)
    weight = case.tensor_of(case.rng.uniform(0.3, 2, 5)) if weighted else None
    images = x.view(-1, places, 5).transpose(1, 2).contiguous(), target.view(-1, places)
    loss = case.function(F.cross_entropy)(*((x, target) if places == 1 else images), weight=weight, ignore_index=4)
    loss.backward()
    law = array(x), array(target), array(weight) if weighted else np.ones(5)
    losses, weights = reference.cross_entropy(*law)
    kept = array(target) != 4
    total = weights[kept].sum()
    case.close(loss, losses[kept].sum() / total, k=5 + n + 6, scale=(losses + weights)[kept].sum() / total)  # two sums
    wanted, scale = reference.cross_entropy_gradient(*law) * kept[:, None], (size + 1) * weights[:, None]
    case.close(x.grad, wanted / total, k=5 + 6 + 4, scale=scale / total)  # sums over classes and six weights
    assert (x.grad[target == 4] == 0).all()


@claim("autograd.loss.label-smoothing")
@axes(dtype=FLOATING)
def test_label_smoothing_mixes_in_the_uniform_distribution(case):
    x, target, size = classes(case)
    loss = case.function(F.cross_entropy)(x, target, label_smoothing=0.3)
    loss.backward()
    wanted = 0.7 * np.eye(5)[array(target)] + 0.3 / 5
    losses = -(wanted * reference.log_softmax(array(x))).sum(1)
    case.close(loss, losses.mean(), k=5 + 6 + 6, scale=(losses + 1).mean())  # sums over classes and samples
    case.close(x.grad, (reference.softmax(array(x)) - wanted) / 6, k=5 + 6, scale=(size + 0.06) / 6)  # two more
    x.grad, target[2] = None, 5
    case.function(F.cross_entropy)(x, target, label_smoothing=0.3, ignore_index=5).backward()
    wanted = (reference.softmax(array(x)) - wanted) / 5 * (np.arange(6) != 2)[:, None]
    case.close(x.grad, wanted, k=5 + 6, scale=(size + 0.06) / 5)


@claim("autograd.loss.bad-reduction")
@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_reduction_is_refused(case, name):
    x, t = operands(case, name, (3, 7))
    with case.raises(ValueError, "average is not (a )?valid"):
        CALLS[name](x, t, reduction="average")


@claim("autograd.loss.broadcast-warns")
@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "huber"])
def test_broadcasting_a_target_warns(case, name):
    x, t = case.tensor(3, 1), case.tensor(3)
    with pytest.warns(UserWarning, match="target size"):
        losses = CALLS[name](x, t, reduction="none")
    assert losses.shape == (3, 3)


def distance(a, b):
    return (a - b).abs().sum(-1)


def signs(case, *shape):
    """One and minus one in turn."""
    return case.tensor_of(1 - 2 * (np.arange(np.prod(shape)) % 2).reshape(shape))


def labels(case, *shape):
    """Every class in turn."""
    return torch.as_tensor(np.arange(np.prod(shape)).reshape(shape) % 4).to(case.device)


SETTINGS = {  # settings unlike the defaults, and the arguments of one call
    "L1Loss": lambda case: ({}, [case.tensor(3, 4), case.tensor(3, 4)]),
    "MSELoss": lambda case: ({}, [case.tensor(3, 4), case.tensor(3, 4)]),
    "SmoothL1Loss": lambda case: ({"beta": 0.3}, [case.tensor(3, 4), case.tensor(3, 4)]),
    "HuberLoss": lambda case: ({"delta": 0.3}, [case.tensor(3, 4), case.tensor(3, 4)]),
    "SoftMarginLoss": lambda case: ({}, [case.tensor(3, 4), signs(case, 3, 4)]),
    "NLLLoss": lambda case: ({"weight": case.tensor(4).abs(), "ignore_index": 1}, [case.tensor(5, 4), labels(case, 5)]),
    "CrossEntropyLoss": lambda case: (
        {"weight": case.tensor(4).abs(), "ignore_index": 1, "label_smoothing": 0.3},
        [case.tensor(5, 4), labels(case, 5)],
    ),
    "PoissonNLLLoss": lambda case: (
        {"log_input": False, "full": True, "eps": 0.3},
        [case.tensor(3, 4).abs(), 3 * case.tensor(3, 4).abs()],
    ),
    "GaussianNLLLoss": lambda case: (
        {"full": True, "eps": 0.7},
        [case.tensor(3, 4), case.tensor(3, 4), case.tensor(3, 4).abs()],
    ),
    "KLDivLoss": lambda case: ({"log_target": True}, [case.tensor(3, 4), case.tensor(3, 4)]),
    "BCELoss": lambda case: (
        {"weight": case.tensor(4).abs()},
        [case.tensor(3, 4).sigmoid(), case.tensor(3, 4).sigmoid()],
    ),
    "BCEWithLogitsLoss": lambda case: (
        {"weight": case.tensor(4).abs(), "pos_weight": case.tensor(4).abs()},
        [case.tensor(3, 4), case.tensor(3, 4).sigmoid()],
    ),
    "HingeEmbeddingLoss": lambda case: ({"margin": 0.4}, [case.tensor(3, 4), signs(case, 3, 4)]),
    "MultiLabelMarginLoss": lambda case: ({}, [case.tensor(3, 4), labels(case, 3, 4)]),
    "MultiLabelSoftMarginLoss": lambda case: (
        {"weight": case.tensor(4).abs()},
        [case.tensor(3, 4), case.tensor(3, 4).sigmoid()],
    ),
    "CosineEmbeddingLoss": lambda case: ({"margin": -0.4}, [case.tensor(5, 4), case.tensor(5, 4), signs(case, 5)]),
    "MarginRankingLoss": lambda case: ({"margin": 0.4}, [case.tensor(5), case.tensor(5), signs(case, 5)]),
    "MultiMarginLoss": lambda case: (
        {"p": 2, "margin": 0.4, "weight": case.tensor(4).abs()},
        [case.tensor(5, 4), labels(case, 5)],
    ),
    "TripletMarginLoss": lambda case: (
        {"margin": 3.0, "p": 3.0, "eps": 0.3, "swap": True},
        [case.tensor(5, 4) for _ in range(3)],
    ),
    "TripletMarginWithDistanceLoss": lambda case: (
        {"distance_function": distance, "margin": 3.0, "swap": True},
        [case.tensor(5, 4) for _ in range(3)],
    ),
    "CTCLoss": lambda case: (
        {"blank": 2, "zero_infinity": True},
        [
            case.tensor(4, 2, 5).log_softmax(-1),
            torch.tensor([[1, 3, 1], [4, 4, 4]]),
            torch.tensor([4, 4]),
            torch.tensor([2, 3]),
        ],
    ),
}
LATER = ("HuberLoss", "GaussianNLLLoss", "CTCLoss", "TripletMarginWithDistanceLoss")  # than the two old arguments
FUNCTIONS = {
    "SmoothL1Loss": "smooth_l1_loss",
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "KLDivLoss": "kl_div",
    "CrossEntropyLoss": "cross_entropy",
    "MultiLabelMarginLoss": "multilabel_margin_loss",
    "MultiLabelSoftMarginLoss": "multilabel_soft_margin_loss",
    "NLLLoss": "nll_loss",
    "PoissonNLLLoss": "poisson_nll_loss",
    "GaussianNLLLoss": "gaussian_nll_loss",
    "CTCLoss": "ctc_loss",
    "L1Loss": "l1_loss",
    "MSELoss": "mse_loss",
    "HuberLoss": "huber_loss",
    "SoftMarginLoss": "soft_margin_loss",
    "HingeEmbeddingLoss": "hinge_embedding_loss",
    "CosineEmbeddingLoss": "cosine_embedding_loss",
    "MarginRankingLoss": "margin_ranking_loss",
    "MultiMarginLoss": "multi_margin_loss",
    "TripletMarginLoss": "triplet_margin_loss",
    "TripletMarginWithDistanceLoss": "triplet_margin_with_distance_loss",
}


@claim("autograd.loss.settings-handed-on")
@pytest.mark.filterwarnings("ignore:reduction. .mean", "ignore:Using a target size", "ignore:.*var")
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_the_module_reaches_the_function(case, name):
    settings, inputs = SETTINGS[name](case)
    function, cls = getattr(F, FUNCTIONS[name]), getattr(nn, name)
    for reduction in ("none", "sum", "mean"):
        expected = function(*inputs, reduction=reduction, **settings)
        case.same(cls(reduction=reduction, **settings)(*inputs), expected)
    plain = function(*inputs)
    case.same(cls()(*inputs), plain)


@claim("autograd.loss.old-reductions")
@pytest.mark.filterwarnings("ignore:reduction. .mean", "ignore:Using a target size")
@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in LATER])
def test_size_average_and_reduce_still_choose_the_reduction(case, name):
    function, (_, inputs) = getattr(F, FUNCTIONS[name]), SETTINGS[name](case)
    for average, reduce, reduction in [
        (None, False, "none"),
        (False, None, "sum"),
        (True, None, "mean"),
        (None, True, "mean"),
        (False, True, "sum"),
        (True, False, "none"),
    ]:
        with pytest.warns(UserWarning, match="size_average and reduce"):
            assert getattr(nn, name)(size_average=average, reduce=reduce).reduction == reduction
        with pytest.warns(UserWarning, match="size_average and reduce"):
            found = function(*inputs, size_average=average, reduce=reduce)
        case.same(found, function(*inputs, reduction=reduction))


@claim("autograd.loss.settings-checked")
def test_settings_outside_their_domain_are_refused(case):
    with case.raises(ValueError, "only p == 1 and p == 2"):
        nn.MultiMarginLoss(p=3)
    with case.raises((ValueError, AssertionError), "weight|^$"):
        nn.MultiMarginLoss(weight=case.tensor(2, 2))
    with case.raises(ValueError, "margin"):
        nn.TripletMarginLoss(margin=0)
    with case.raises(ValueError, "margin"):
        nn.TripletMarginWithDistanceLoss(margin=0)
    with case.raises(TypeError, "delta"):
        nn.HuberLoss(delta="1")


@claim("autograd.loss.smooth-l1-without-beta")
def test_smooth_l1_without_beta_is_l1(case):
    x = case.tensor_of([0.0, 1.5, -2.0], requires_grad=True)
    loss = F.smooth_l1_loss(x, torch.zeros_like(x), reduction="sum", beta=0.0)
    loss.backward()
    case.same(loss.detach(), case.tensor_of(3.5))
    case.same(x.grad, case.tensor_of([0.0, 1.0, -1.0]))


@claim("autograd.loss.bce-target-range")
def test_targets_of_cross_entropy_are_probabilities(case):
    x = case.tensor_of([0.25, 0.5])
    for target in ([0.5, 1.5], [-0.5, 0.5]):
        with case.raises((RuntimeError, ValueError), "between 0 and 1|target"):
            F.binary_cross_entropy(x, case.tensor_of(target))


@claim("autograd.loss.linear-cross-entropy")
@pytest.mark.parametrize("bias", [True, False])
def test_linear_cross_entropy_is_cross_entropy_of_a_linear_layer(case, bias):
    settings = {"weight": case.tensor(4).abs(), "ignore_index": 1, "label_smoothing": 0.3}
    loss, x = nn.LinearCrossEntropyLoss(7, 4, bias=bias, **settings).to(case.device), case.tensor(5, 7)
    target = labels(case, 5)
    assert (loss.linear.bias is not None) == bias
    assert nn.LinearCrossEntropyLoss(7, 4).linear.bias is None
    expected = F.cross_entropy(loss.linear(x), target, **settings)
    case.close(loss(x, target), array(expected), k=50)  # the same sums of seven, four and five terms, twice
    alone = F.cross_entropy(loss.linear(x[0]), target[0], **settings)
    case.close(loss(x[0], target[0]), array(alone), k=50)
    total = nn.LinearCrossEntropyLoss(7, 4, bias=bias, reduction="sum", **settings).to(case.device)
    total.linear = loss.linear
    expected = F.cross_entropy(loss.linear(x), target, reduction="sum", **settings)
    case.close(total(x, target), array(expected), k=50)
    with case.raises(RuntimeError, "label_smoothing"):
        nn.LinearCrossEntropyLoss(7, 4, label_smoothing=1.1)
    with case.raises(RuntimeError, "weight"):
        nn.LinearCrossEntropyLoss(7, 4, weight=case.tensor(3))


@claim("autograd.loss.weighted-elements")
@pytest.mark.parametrize("name", ["mse", "l1", "huber"])
def test_weights_of_elements_weigh_the_mean(case, name):
    x, t, w = case.tensor(3, 4), case.tensor(3, 4), case.tensor(3, 4).abs()
    plain = array(CALLS[name](x, t, reduction="none")) * array(w)
    call = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": lambda *a, **k: F.huber_loss(*a, delta=DELTA, **k)}[name]
    case.close(call(x, t, reduction="none", weight=w), plain, k=1)  # the product
    case.close(call(x, t, reduction="sum", weight=w), plain.sum(), k=1 + 12)  # and a sum of twelve
    divisor = 12 if name == "huber" else array(w).sum()
    case.close(call(x, t, weight=w), plain.sum() / divisor, k=1 + 24 + 1)  # two sums and the quotient
    with case.raises(ValueError, "weight"):
        call(x, t, weight=w[:2])
    with case.raises(ValueError, "reduction"):
        call(x, t, weight=w, reduction="average")


@claim("autograd.loss.soft-margin-range")
@axes(dtype=PRECISE)
def test_soft_margin_loss_of_a_distant_value_is_the_distance(case):
    far = 100.0 if case.dtype == torch.float32 else 800.0
    x = case.tensor_of([-far], requires_grad=True)
    loss = F.soft_margin_loss(x, torch.ones_like(x))
    loss.backward()
    case.close(loss, far, k=2)
    case.close(x.grad, np.array([-1.0]), k=2)


def even_odds(case, length, classes):
    return torch.log_softmax(torch.zeros(length, 1, classes, device=case.device), -1)


def whole(case, *values):
    return torch.tensor(values, dtype=torch.int64, device=case.device)


@claim("autograd.loss.ctc-without-input")
def test_nothing_cannot_be_aligned_with_something(case):
    loss = F.ctc_loss(even_odds(case, 4, 3), whole(case, 1, 2)[None], whole(case, 0), whole(case, 2), reduction="none")
    assert loss.item() == np.inf, f"a loss of {loss.item():.3f}"


@claim("autograd.loss.ctc-zero-infinity")
@axes(via="eager")
def test_an_infinite_loss_counts_for_nothing_when_asked(case):
    x = even_odds(case, 2, 3).repeat(1, 2, 1).requires_grad_()
    targets, lengths = whole(case, 1, 1, 1, 1, 1, 1).view(2, 3), (whole(case, 2, 2), whole(case, 3, 1))  # 3 in 2 steps
    losses = F.ctc_loss(x, targets, *lengths, reduction="none", zero_infinity=True)
    losses.sum().backward()
    case.close(losses, np.array([0.0, np.log(3)]), k=16, scale=np.log(9))  # 3 paths of 9
    assert (x.grad[:, 0] == 0).all()
    assert (x.grad[:, 1] != 0).any()


@claim("autograd.loss.ctc-blank-is-no-target")
def test_a_blank_among_the_targets_is_refused(case):
    with case.raises((RuntimeError, ValueError), "blank|target"):
        F.ctc_loss(even_odds(case, 4, 3), whole(case, 1, 0)[None], whole(case, 4), whole(case, 2))


@claim("autograd.loss.ctc-impossible-class")
def test_a_class_without_probability_leaves_the_gradient_finite(case):
    logits = torch.tensor([[[0.0, 1.0, -np.inf]]] * 3, device=case.device, requires_grad=True)
    loss = F.ctc_loss(logits.log_softmax(-1), whole(case, 1)[None], whole(case, 3), whole(case, 1), reduction="sum")
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all(), "the gradient is NaN"


@claim("autograd.loss.ctc-negative-lengths")
@axes(via="eager")
@pytest.mark.parametrize(("inputs", "targets"), [([4, -1], [1, 1]), ([4, 4], [1, -1])])
def test_lengths_below_zero_are_refused(case, inputs, targets):
    odds = even_odds(case, 4, 3).expand(4, 2, 3)
    with case.raises((RuntimeError, ValueError), "length"):
        F.ctc_loss(odds, whole(case, 1, 2)[:, None], whole(case, *inputs), whole(case, *targets))


@claim("autograd.loss.ctc-gradient-of-each-input")
@axes(via="eager")
def test_ctc_is_differentiated_in_what_it_is_given(case):
    x = case.tensor_of([[[0.25, 0.5, 0.25]]]).log().requires_grad_()
    F.ctc_loss(x, whole(case, 1)[None], whole(case, 1), whole(case, 1), reduction="sum").backward()
    case.close(x.grad, np.array([[[0.0, -1.0, 0.0]]]), k=8, scale=1.0)  # exponentials and logarithms of one term each


@claim("autograd.loss.smoothing-range")
@pytest.mark.parametrize("smoothing", [1.5, -0.5])
def test_smoothing_out_of_its_range_is_refused(case, smoothing):
    with case.raises((RuntimeError, ValueError), "label_smoothing"):
        case.function(F.cross_entropy)(case.tensor(2, 3), whole(case, 0, 1), label_smoothing=smoothing)


@claim("autograd.loss.gaussian-variance-of-all")
def test_a_variance_may_be_that_of_all_samples(case):
    x, target, variance = case.tensor(2, 3), case.tensor(2, 3), case.tensor(1, 3).abs() + 0.5
    found = F.gaussian_nll_loss(x, target, variance, reduction="none")
    law = (np.log(array(variance)) + (array(x) - array(target)) ** 2 / array(variance)) / 2
    size = abs(np.log(array(variance))) + (abs(array(x)) + abs(array(target))) ** 2 / array(variance)
    case.close(found, law, k=6, scale=size)


@claim("autograd.loss.cosine-in-half-range")
@axes(dtype="float16", via="eager")
@pytest.mark.parametrize("length", [2.0**-10, 2.0**8])
def test_a_vector_has_no_angle_with_itself(case, length):
    x = case.tensor_of([[length, length]])
    loss = F.cosine_embedding_loss(x, x, case.tensor_of([1.0]))
    case.close(loss, 0.0, k=4, scale=1.0)  # two roots, their product, the quotient


@claim("autograd.loss.entropy-in-half-at-the-ends")
@axes(dtype="float16", via="eager")
def test_a_certain_prediction_has_a_gradient_in_half(case):
    x = case.tensor_of([0.0, 1.0], requires_grad=True)
    F.binary_cross_entropy(x, x.detach(), reduction="sum").backward()
    assert x.grad.isfinite().all(), f"gradients of {x.grad.tolist()}"


MEANS = {
    "classes": lambda x: F.nll_loss(x, torch.zeros_like(x[:, 0], dtype=torch.int64)),
    "images": lambda x: F.nll_loss(x.T[None, ..., None], torch.zeros_like(x[None], dtype=torch.int64)),
    "probabilities": lambda x: F.cross_entropy(F.pad(x, (0, 1)), F.pad(torch.ones_like(x), (0, 1))),
}


@claim("autograd.loss.mean-in-half-range")
@axes(dtype="float16", via="eager")
@pytest.mark.parametrize("name", MEANS)
def test_a_mean_is_in_range_where_its_terms_are(case, name):
    loss = MEANS[name](torch.full_like(case.tensor(512, 1), -256.0))
    case.close(loss, 256.0, k=4)  # the sum of 2^17 is a power of two; the logarithm of 1 + e^-256, and the mean


@claim("autograd.loss.poisson-in-half-at-zero")
@axes(dtype="float16", via="eager")
def test_no_event_at_no_rate_costs_nothing_in_half(case):
    rate = case.tensor_of([0.0])
    case.close(F.poisson_nll_loss(rate, rate, log_input=False), 0.0, k=1, scale=1.0)


@claim("autograd.loss.mixed-dtypes")
@axes(via="eager")
@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "huber"])
def test_each_operand_gets_a_gradient_of_its_dtype(case, name):
    x = case.tensor_of([1.0, 2.0], requires_grad=True)
    t = torch.tensor([1.25, 1.75], dtype=torch.float64, device=case.device, requires_grad=True)
    CALLS[name](x, t, reduction="sum").backward()
    assert (x.grad.dtype, t.grad.dtype) == (torch.float32, torch.float64)
    case.same(t.grad.float(), -x.grad)


@claim("autograd.loss.margins-between-classes")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("p", [1, 2])
def test_classes_within_the_margin_of_the_target_cost(case, p):
    x, weight, g = case.tensor(19, 5, requires_grad=True), case.tensor_of(case.rng.uniform(0.3, 2, 5)), case.tensor(19)
    target = case.rng.integers(0, 5, 19)
    losses = F.multi_margin_loss(x, whole(case, *target), p=p, margin=0.7, weight=weight, reduction="none")
    losses.backward(g)
    values, slopes = reference.multi_margin(array(x), target, array(weight), 0.7, p)
    terms = (0.7 + 2 * abs(array(x)).max()) ** p * array(weight)[target]
    case.close(losses, values, k=5 + 6, scale=terms)  # a sum over the classes; of each a sum, a square and two products
    case.close(x.grad, array(g)[:, None] * slopes, k=5 + 6, scale=2 * (abs(array(g)) * terms)[:, None])


@claim("autograd.loss.margins-between-labels")
@axes(dtype=PRECISE)
def test_other_classes_within_one_of_a_label_cost(case):
    x, g = case.tensor(3, 5, requires_grad=True), case.tensor(3)
    labels = torch.tensor([[3, 1, -1, 0, 2], [4, -1, 0, 1, 2], [0, 2, 1, 3, -1]], device=case.device)
    losses = F.multilabel_margin_loss(x, labels, reduction="none")
    losses.backward(g)
    chosen = np.isin(np.arange(5), [3, 1]), np.isin(np.arange(5), [4]), np.isin(np.arange(5), [0, 2, 1, 3])
    values, slopes = reference.multilabel_margin(array(x), np.array(chosen))
    case.close(losses, values, k=6 + 4, scale=6 * (1 + 2 * abs(array(x)).max()))  # at most six pairs, of three terms
    case.close(x.grad, array(g)[:, None] * slopes, k=6, scale=4 * abs(array(g))[:, None])  # each a share of g


@claim("autograd.loss.margin-weights-of-classes")
@axes(via="eager")
def test_a_margin_loss_wants_a_weight_for_each_class(case):
    with case.raises((RuntimeError, ValueError), "weight"):
        F.multi_margin_loss(case.tensor(2, 3), whole(case, 0, 1), weight=case.tensor(2).abs())


@claim("autograd.loss.margin-without-samples")
@axes(via="eager")
@pytest.mark.parametrize("name", ["multi_margin_loss", "multilabel_margin_loss"])
def test_no_samples_add_up_to_nothing(case, name):
    with switched("deterministic algorithms", True):  # memory that is not written to is NaN
        target = whole(case).reshape(0, 3) if "label" in name else whole(case)
        loss = getattr(F, name)(case.tensor(0, 3), target, reduction="sum")
    assert loss.item() == 0.0, f"a sum of {loss.item()}"


@claim("autograd.loss.divergence-of-impossible-target")
@axes(dtype=PRECISE, via="eager")
def test_an_impossible_target_has_no_divergence(case):
    x, t = case.tensor_of([-2.0, 0.5], requires_grad=True), case.tensor_of([-np.inf, 0.0])
    loss = F.kl_div(x, t, reduction="sum", log_target=True)
    loss.backward()
    assert loss.item() == -0.5, f"a divergence of {loss.item()}"
    case.same(x.grad + 0.0, case.tensor_of([0.0, -1.0]))


@claim("autograd.loss.divergence-of-impossible-class")
@axes(dtype=FLOATING, via="eager")
def test_a_class_without_probability_has_no_divergence(case):
    x, t = case.tensor_of([-2.0] * 18 + [0.5]), case.tensor_of([0.0] * 18 + [1.0])
    case.same(F.kl_div(x, t, reduction="none") + 0.0, case.tensor_of([0.0] * 18 + [-0.5]))


@claim("autograd.loss.bce-clamped")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_wrong_certainty_costs_a_hundred(case, t):
    x = case.tensor_of([1 - t] * 19 + [t], requires_grad=True)
    losses = F.binary_cross_entropy(x, torch.full_like(x, t), reduction="none")
    losses.sum().backward()
    case.same(losses.detach() + 0.0, case.tensor_of([100.0] * 19 + [0.0]))
    assert x.grad.isfinite().all()


@claim("autograd.loss.certain-logits")
@axes(dtype=PRECISE, via="eager")
def test_certainty_that_is_right_costs_nothing(case):
    x, t = case.tensor_of([-np.inf, np.inf]), case.tensor_of([0.0, 1.0])
    losses = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    assert not losses.any(), f"losses of {losses.tolist()}"


@claim("autograd.loss.impossible-class")
@axes(dtype=PRECISE, via="eager")
def test_what_is_impossible_and_no_target_adds_nothing(case):
    x, t = case.tensor_of([[0.0, -np.inf, 0.0]]), case.tensor_of([[1.0, 0.0, 0.0]])
    case.close(case.function(F.cross_entropy)(x, t), np.log(2), k=4)


@claim("autograd.loss.poisson-gradient-of-no-events")
@axes(dtype=PRECISE, via="eager")
def test_no_events_have_a_finite_gradient(case):
    x, t = case.tensor_of([0.5, -1.0]), case.tensor_of([0.0, 0.5], requires_grad=True)
    F.poisson_nll_loss(x, t, full=True, reduction="sum").backward()
    case.same(t.grad, -x)


@claim("autograd.loss.margin-weights-with-strides")
@axes(via="eager")
def test_margin_weights_are_read_where_they_lie(case):
    x, weight = case.tensor_of([[0.25, 0.5, 1.0]]), case.tensor_of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[::2]
    for target, wanted in ((1, 3 * (0.75 + 1.5) / 3), (2, 5 * (0.25 + 0.5) / 3)):
        loss = F.multi_margin_loss(x, whole(case, target), weight=weight, reduction="sum")
        case.close(loss, wanted, k=3)  # a sum, and a division or a product with a rounded third


@claim("autograd.distance.pairwise")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("p", [1.0, 2.0, 2.6])
def test_pairwise_distance(case, p):
    x, y = case.tensor(4, 5), case.tensor(4, 5)
    wanted = (abs(array(x) - array(y) + 0.25) ** p).sum(1) ** (1 / p)
    scale = ((abs(array(x)) + abs(array(y)) + 0.25) ** p).sum(1) ** (1 / p)  # of which each difference is a part
    for keepdim in (False, True):
        found = F.pairwise_distance(x, y, p, 0.25, keepdim)
        assert found.shape == ((4, 1) if keepdim else (4,))
        case.close(found.reshape(4), wanted, k=12, scale=scale)  # difference and eps; powers, five terms, a root
        case.same(nn.PairwiseDistance(p, 0.25, keepdim)(x, y), found)


@claim("autograd.loss.adaptive-softmax")
@axes(dtype=PRECISE, via="eager")
@pytest.mark.parametrize("head_bias", [False, True])
def test_adaptive_softmax(case, head_bias):
    layer = case.module(nn.AdaptiveLogSoftmaxWithLoss, 7, 9, [3, 5], div_value=2.0, head_bias=head_bias)
    assert [(down.weight.shape, up.weight.shape) for down, up in layer.tail] == [((3, 7), (2, 3)), ((1, 7), (4, 1))]
    assert (layer.head.bias is not None) == head_bias
    x, t = case.tensor(5, 7), [0, 2, 3, 4, 8]

    def logits(part):
        bias = part(array(layer.head.bias)) if head_bias else 0
        tails = [part(array(x)) @ part(array(down.weight)).T @ part(array(up.weight)).T for down, up in layer.tail]
        return part(array(x)) @ part(array(layer.head.weight)).T + bias, tails

    law = reference.adaptive_log_softmax(*logits(np.asarray))
    head, tails = logits(abs)
    size = 1 + head.max() + max(y.max() for y in tails)
    # logits of seven and three terms count twice, for they are in the sum too; that sum, exp, log and two differences
    case.close(layer.log_prob(x), law, k=30, scale=size)
    output, loss = layer(x, torch.tensor(t, device=case.device))
    case.close(output, law[range(5), t], k=30, scale=size)
    case.close(loss, -law[range(5), t].mean(), k=36, scale=size)  # five terms and the quotient
