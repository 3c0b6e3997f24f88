"""train() and eval(): what a switch changes, what it does not, and what no_grad has to do with it (nothing)."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_conformance.axes import FLOATING
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim


def network(case):
    """Both layers whose behaviour a mode decides, between two that it does not touch."""
    layers = [nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.3), nn.Linear(7, 3)]
    return case.module(nn.Sequential, *layers)


def nest():
    """Modules at several depths: in containers, in a module of one's own, and one of them shared."""
    shared = nn.Dropout(0.3)
    named = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.ModuleList([nn.BatchNorm1d(3), shared])})
    return nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Sequential(shared, nn.ReLU()), named), shared)


def flags(model):
    return {name: module.training for name, module in model.named_modules()}


def attributes(model):
    """Every attribute of every module; containers of attributes as their keys and the identity of their values."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[name, key] = tuple((k, id(v)) for k, v in value.items()) if isinstance(value, dict) else value
    return found


def step(model, optimizer, x, target):
    optimizer.zero_grad()
    F.mse_loss(model(x), target).backward()
    optimizer.step()


# -- The flag ----------------------------------------------------------------------------------------------------------


@claim("modes.flag.default-is-training")
def test_new_modules_are_in_training_mode(case):
    assert set(flags(nest()).values()) == {True}
    assert nn.Module().training is True


@claim("modes.flag.recursive")
@pytest.mark.parametrize("mode", [True, False])
def test_train_switches_every_module(case, mode):
    model = nest().train(not mode)
    assert model.train(mode) is model
    assert flags(model) == dict.fromkeys(flags(model), mode)
    assert len(flags(model)) == 10


@claim("modes.flag.eval-is-train-false")
def test_eval_is_train_false(case):
    model, other = nest(), nest()
    assert model.eval() is model
    assert flags(model) == flags(other.train(mode=False)) == dict.fromkeys(flags(model), False)
    assert model.train() is model
    assert flags(model) == flags(other.train(True)) == dict.fromkeys(flags(model), True)


@claim("modes.flag.nothing-else-changes")
@pytest.mark.parametrize("mode", [True, False])
def test_a_switch_changes_the_flag_alone(case, mode):
    model = network(case).train(not mode)
    model(case.tensor(4, 5)).sum().backward()
    model[0].weight.requires_grad_(False)
    model[2].register_forward_hook(lambda *_: None)
    before, names = attributes(model), ["training", *(f"{i}.training" for i in range(5))]
    with case.unchanged(model, but=names):
        model.train() if mode else model.eval()
    after = attributes(model)
    assert {key for key in after if after[key] != before.get(key)} == {(name, "training") for name in flags(model)}
    assert before.keys() == after.keys()


@claim("modes.flag.bad-mode-raises")
@pytest.mark.parametrize("mode", [1, 0, "yes", None])
def test_train_refuses_what_is_no_bool(case, mode):
    model = nest().eval()
    with case.unchanged(model), case.raises(ValueError, "training mode.*bool"):
        model.train(mode)


@claim("modes.flag.plain-list-not-reached")
def test_plain_containers_are_not_reached(case):
    model = nn.Module()
    model.hidden = [nn.Dropout()], {"a": nn.Dropout()}
    model.listed, model.named = nn.ModuleList([nn.Dropout()]), nn.ModuleDict({"a": nn.Dropout()})
    model.eval()
    assert model.hidden[0][0].training
    assert model.hidden[1]["a"].training
    assert not model.listed[0].training
    assert not model.named["a"].training


@claim("modes.flag.assignment-not-recursive")
def test_assignment_switches_one_module(case):
    model = nest()
    model.training = False
    assert flags(model) == {name: name != "" for name in flags(model)}


@claim("modes.flag.child-on-its-own")
def test_a_child_may_be_switched_on_its_own(case):
    model, x = network(case), case.tensor(4, 5)
    with case.unchanged(model, but={"1.training"}):
        model[1].eval()
    with case.unchanged(model, but={"rng"}):  # the Dropout still draws, the BatchNorm counts no more
        model(x)


@claim("modes.flag.parent-overrides-child")
def test_the_parent_overrides_a_child(case):
    model = nest()
    model[0].eval()
    model[1][1]["b"][0].eval()
    model.train()
    assert set(flags(model).values()) == {True}


@claim("modes.flag.later-child-keeps-its-mode")
def test_a_later_child_keeps_its_mode(case):
    model = nest().eval()
    model.late, model[0] = nn.Dropout(), nn.Dropout()
    model.add_module("later", nn.Dropout())
    assert [name for name, on in flags(model).items() if on] == ["0", "late", "later"]


class Frozen(nn.BatchNorm1d):
    """Stays in eval mode whatever it is told."""

    def train(self, mode=True):
        self.told = mode
        return super().train(False)


@claim("modes.flag.overridden-train-honoured")
def test_an_overridden_train_is_honoured(case):
    model = nn.Sequential(nn.Sequential(Frozen(3)), nn.Dropout())
    assert flags(model.train()) == {"": True, "0": True, "0.0": False, "1": True}
    assert model[0][0].told is True
    model.eval()
    assert model[0][0].told is False
    model[0][0].training = True
    assert model[0][0].eval().training is False


@claim("modes.flag.copied")
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_keep_the_mode(case, duplicate):
    model = nest()
    model[1].eval()
    model.training = False
    twin = duplicate(model)
    assert flags(twin) == flags(model)
    twin.train()
    assert flags(twin) != flags(model)


@claim("modes.flag.not-in-state-dict")
def test_state_dict_holds_no_mode(case):
    model, target = network(case), network(case).eval()
    assert not [key for key in model.state_dict() if "training" in key]
    target.load_state_dict(model.state_dict())
    assert set(flags(target).values()) == {False}
    model.load_state_dict(target.state_dict())
    assert set(flags(model).values()) == {True}


# -- In eval mode ------------------------------------------------------------------------------------------------------


@claim("modes.eval.sticky")
def test_eval_holds_until_train(case):
    model, seen = network(case), []
    model[1].num_batches_tracked.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for batch in range(4):
        seen.append(model.training)
        step(model, optimizer, case.tensor(4, 5), case.tensor(4, 3))
        if batch == 0:
            model.eval()
        model(case.tensor(4, 5))
    assert seen == [True, False, False, False]
    assert set(flags(model).values()) == {False}
    assert int(model[1].num_batches_tracked) == 1


@claim("modes.eval.train-at-every-batch")
def test_train_at_every_batch_makes_no_difference(case):
    model, twin = network(case), network(case)
    twin.load_state_dict(model.state_dict())
    batches = [(case.tensor(4, 5), case.tensor(4, 3)) for _ in range(3)]
    for net, at_every_batch in ((model, False), (twin, True)):
        case.reseed()
        optimizer = torch.optim.SGD(net.train().parameters(), lr=0.1)
        for x, target in batches:
            if at_every_batch:
                net.train()
            step(net, optimizer, x, target)
    for name, value in model.state_dict().items():
        case.same(twin.state_dict()[name], value)


@claim("modes.eval.forgotten")
def test_a_loop_without_modes_runs_in_training_mode(case):
    model = network(case)
    step(model, torch.optim.SGD(model.parameters(), lr=0.1), case.tensor(4, 5), case.tensor(4, 3))
    x = case.tensor(64, 5)
    with torch.no_grad(), case.unchanged(model, but={f"1.{name}" for name in STATISTICS} | {"rng"}):
        first, second = model(x), model(x)
    assert not torch.equal(first, second)


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@claim("modes.eval.forward-in-both-modes")
@axes(dtype=FLOATING)
def test_a_module_can_be_called_in_both_modes(case):
    model, x = network(case), case.tensor(4, 5)
    for mode in (True, False):
        y = model.train(mode)(x)
        assert y.shape == (4, 3)
        assert y.dtype == case.dtype


@claim("modes.eval.forward-changes-nothing")
@pytest.mark.parametrize("grad", [True, False])
def test_a_forward_in_eval_mode_changes_nothing(case, grad):
    model, x = network(case).eval(), case.tensor(4, 5)
    with torch.set_grad_enabled(grad), case.unchanged(model, x=x):
        model(x)


@claim("modes.eval.deterministic")
@axes(dtype=FLOATING)
def test_eval_is_deterministic(case):
    model, x = network(case).eval(), case.tensor(64, 5)
    case.same(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@claim("modes.eval.independent-of-batch-mates")
def test_eval_outputs_do_not_depend_on_batch_mates(case):
    model, x = network(case).eval(), case.tensor(9, 5)
    other = torch.cat([x[:4], case.tensor(5, 5)])
    case.same(model(x)[:4], model(other)[:4])
    to_norm = model.train()[:2]
    assert not torch.equal(to_norm(x)[:4], to_norm(other)[:4])


@claim("modes.eval.untrained-batchnorm")
def test_untrained_batchnorm_normalises_by_zero_and_one(case):
    model = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.5), nn.Linear(10, 1))
    model.to(case.device, case.dtype).eval()
    x = case.tensor(5, 10)
    with torch.no_grad(), case.unchanged(model):
        y = model(x)
    assert y.shape == (5, 1)
    assert y.grad_fn is None
    assert not y.requires_grad
    assert (model[1].running_mean == 0).all()
    assert (model[1].running_var == 1).all()
    hidden = model[0](x)
    case.close(model[1](hidden), array(hidden) / math.sqrt(1 + 1e-5), k=4)  # root, reciprocal, product, shift by zero


@claim("modes.eval.backward-runs")
def test_backward_runs_in_eval_mode(case):
    model, x = network(case).eval(), case.tensor(4, 5)
    y = model(x)
    assert y.requires_grad
    assert y.grad_fn is not None
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    case.same(model[4].bias.grad, torch.full_like(model[4].bias, 4))  # one from each sample
    scale = model[1].weight / (model[1].running_var + model[1].eps).sqrt()
    hidden = model[0](x)
    by_hand = F.relu((hidden - model[1].running_mean) * scale + model[1].bias) @ model[4].weight.t()
    (wanted,) = torch.autograd.grad(by_hand.sum(), model[0].weight)
    # sums of 4 · 7 · 3 products that differ in the order of about 10 roundings each
    sizes = (abs(array(x)[:, None, :]) * abs(array(model[4].weight)).sum(0)[None, :, None]).sum(0)
    case.close(model[0].weight.grad, array(wanted), k=40, scale=sizes * abs(array(scale))[:, None])


@claim("modes.eval.parameters-can-be-updated")
@pytest.mark.parametrize("mode", [True, False])
def test_step_updates_in_both_modes(case, mode):
    model = network(case).train(mode)
    model(case.tensor(4, 5)).square().sum().backward()
    before = [array(p).copy() for p in model.parameters()]
    torch.optim.SGD(model.parameters(), lr=0.25).step()
    for old, p in zip(before, model.parameters(), strict=True):
        step = 0.25 * array(p.grad)
        case.close(p, old - step, k=2, scale=abs(old) + abs(array(p.grad)))  # product and difference
        # Before a BatchNorm in training the gradient of a bias is zero but for rounding: too small to show, at times.
        assert ((array(p) != old) | (abs(step) <= torch.finfo(p.dtype).eps * abs(old))).all()


@claim("modes.eval.requires-grad-kept")
def test_eval_freezes_nothing(case):
    model = network(case)
    model[0].requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    model.eval()
    assert [p.requires_grad for p in model.parameters()] == before == [False] * 2 + [True] * 4


@claim("modes.train.does-not-update-by-itself")
def test_a_training_forward_updates_no_parameter(case):
    model, x = network(case).train(), case.tensor(4, 5)
    with case.unchanged(model, x=x, but={f"1.{name}" for name in STATISTICS} | {"rng"}):
        model(x)


# -- The census --------------------------------------------------------------------------------------------------------

PLANES = {1: (2, 4, 6), 2: (2, 4, 6, 6), 3: (2, 4, 4, 4, 4)}
PLANE = PLANES[2]
FAMILIES = {
    "AvgPool{}d": (2,),
    "MaxPool{}d": (2,),
    "LPPool{}d": (2, 2),
    "AdaptiveAvgPool{}d": (3,),
    "AdaptiveMaxPool{}d": (3,),
    "Conv{}d": (4, 3, 3),
    "ConvTranspose{}d": (4, 3, 2),
    "LazyConv{}d": (3, 3),
    "LazyConvTranspose{}d": (3, 2),
    "CircularPad{}d": (1,),
    "ConstantPad{}d": (1, 0.5),
    "ReflectionPad{}d": (1,),
    "ReplicationPad{}d": (1,),
    "ZeroPad{}d": (1,),
    "InstanceNorm{}d": (4,),
}
ELEMENTWISE = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "LogSigmoid",
    "LogSoftmax",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SELU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softmax2d",
    "Softmin",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "Flatten",
]
PAIRED = [
    "L1Loss",
    "MSELoss",
    "SmoothL1Loss",
    "HuberLoss",
    "KLDivLoss",
    "PoissonNLLLoss",
    "SoftMarginLoss",
    "BCEWithLogitsLoss",
    "HingeEmbeddingLoss",
    "PairwiseDistance",
    "CosineSimilarity",
]
IDS, ROWS, POSITIVE = "ids", (5, 4), "positive"
NUMBERS = {
    IDS: [0, 3, 1, 2, 3],
    "bags": [[0, 3, 1], [2, 8, 8]],
    "labels": [3, 0, -1, 1],
    "strings": [[1, 2, 3], [4, 1, 4]],
    "lengths of inputs": [7, 6],
    "lengths of strings": [3, 2],
}
INSENSITIVE = {
    **{name.format(d): (args, PLANES[d]) for name, args in FAMILIES.items() for d in PLANES},
    **dict.fromkeys(ELEMENTWISE, ((), PLANE)),
    **dict.fromkeys(PAIRED, ((), PLANE, PLANE)),
    "Threshold": ((0.1, 2.0), PLANE),
    "ChannelShuffle": ((2,), PLANE),
    "PixelShuffle": ((2,), PLANE),
    "PixelUnshuffle": ((2,), PLANE),
    "Upsample": ((None, 2), PLANE),
    "UpsamplingBilinear2d": ((None, 2), PLANE),
    "UpsamplingNearest2d": ((None, 2), PLANE),
    "Unflatten": ((1, (2, 2)), PLANE),
    "Unfold": ((2,), PLANE),
    "Fold": (((3, 3), 2), (*PLANES[1][:2], 4)),
    "CrossMapLRN2d": ((3,), PLANE),
    "LocalResponseNorm": ((3,), PLANE),
    "GroupNorm": ((2, 4), PLANE),
    "LayerNorm": ((6,), PLANE),
    "RMSNorm": ((6,), PLANE),
    "Linear": ((6, 3), PLANE),
    "LazyLinear": ((3,), PLANE),
    "Bilinear": ((6, 6, 3), PLANE, PLANE),
    "Embedding": ((9, 3), IDS),
    "EmbeddingBag": ((9, 3), "bags"),
    "RNN": ((6, 3, 2), PLANES[1]),
    "LSTM": ((6, 3, 2), PLANES[1]),
    "GRU": ((6, 3, 2), PLANES[1]),
    "RNNCell": ((4, 3), ROWS),
    "LSTMCell": ((4, 3), ROWS),
    "GRUCell": ((4, 3), ROWS),
    "MultiheadAttention": ((6, 2), PLANES[1], PLANES[1], PLANES[1]),
    "BCELoss": ((), POSITIVE, POSITIVE),
    "CrossEntropyLoss": ((), ROWS, IDS),
    "NLLLoss": ((), ROWS, IDS),
    "MultiMarginLoss": ((), ROWS, IDS),
    "CTCLoss": ((), (7, 2, 5), "strings", "lengths of inputs", "lengths of strings"),
    "LinearCrossEntropyLoss": ((4, 9), ROWS, IDS),
    "AdaptiveLogSoftmaxWithLoss": ((4, 9, [3]), ROWS, IDS),
    "MultiLabelMarginLoss": ((), (4,), "labels"),
    "MultiLabelSoftMarginLoss": ((), ROWS, POSITIVE),
    "GaussianNLLLoss": ((), ROWS, ROWS, POSITIVE),
    "MarginRankingLoss": ((), (5,), (5,), (5,)),
    "CosineEmbeddingLoss": ((), ROWS, ROWS, "signs"),
    "TripletMarginLoss": ((), ROWS, ROWS, ROWS),
    "TripletMarginWithDistanceLoss": ((), ROWS, ROWS, ROWS),
}
SENSITIVE = {
    "Dropout": ((0.3,), PLANE),
    "Dropout1d": ((0.3,), (64, 4, 6)),
    "Dropout2d": ((0.3,), (64, 4, 6, 6)),
    "Dropout3d": ((0.3,), (64, 4, 4, 4, 4)),
    "AlphaDropout": ((0.3,), PLANE),
    "FeatureAlphaDropout": ((0.3,), (64, 4, 6)),
    **{f"BatchNorm{d}d": ((4,), PLANES[d]) for d in PLANES},
    **{f"LazyBatchNorm{d}d": ((), PLANES[d]) for d in PLANES},
    **{f"InstanceNorm{d}d": ((4, 1e-3, 0.2, True, True), PLANES[d]) for d in PLANES},
    **{f"LazyInstanceNorm{d}d": ((), PLANES[d]) for d in PLANES},
    "RReLU": ((), PLANE),
    **dict.fromkeys(("RNN", "LSTM", "GRU"), ((6, 30, 2, {"dropout": 0.3}), PLANES[1])),
    "MultiheadAttention": ((6, 2, 0.3), (9, 4, 6), (9, 4, 6), (9, 4, 6)),
    "TransformerEncoderLayer": ((6, 2, 9, 0.3), PLANES[1]),
    "TransformerDecoderLayer": ((6, 2, 9, 0.3), PLANES[1], PLANES[1]),
    "Transformer": ((6, 2, 1, 1, 9, 0.3), PLANES[1], PLANES[1]),
}
ELSEWHERE = {
    *("Module", "Container", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"),
    *("RNNBase", "RNNCellBase", "DataParallel", "NLLLoss2d"),  # bases, and what is deprecated
    *("TransformerEncoder", "TransformerDecoder"),  # as the layers in them
    *("MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d", "FractionalMaxPool2d", "FractionalMaxPool3d"),  # tests of their own
    "SyncBatchNorm",  # trains on accelerators with a process group only
}


def made(case, what):
    """An input of the census: a shape of normal values, or what its name says."""
    if isinstance(what, tuple):
        return case.tensor(*what)
    if what == POSITIVE:
        return case.tensor_of(case.rng.uniform(0.1, 0.9, ROWS))
    if what == "signs":
        return case.tensor_of([1.0, -1.0, 1.0, 1.0, -1.0])
    return case.tensor_of(NUMBERS[what], dtype=torch.int64)


def of_this_torch(names):
    return [name for name in names if hasattr(nn, name)]


def in_the_census(case, name, args, *inputs):
    options = args[-1] if args and isinstance(args[-1], dict) else {}
    place = {"device": case.device} if name.startswith("Lazy") else {}  # to be moved is a promise of its own
    layer = getattr(nn, name)(*args[: len(args) - bool(options)], **options, **place).to(case.device, case.dtype)
    given = [made(case, what) for what in inputs]
    layer.eval()(*given)  # a lazy layer takes its shape
    case.randomise(layer)
    return layer, given


def tensors(output):
    """The tensors of an output, which may be nested."""
    if isinstance(output, torch.Tensor):
        return [output]
    return [t for part in output for t in tensors(part)] if isinstance(output, tuple) else []


@claim("modes.layers.mode-sensitive")
@pytest.mark.parametrize("name", of_this_torch(SENSITIVE))
def test_these_layers_depend_on_the_mode(case, name):
    layer, given = in_the_census(case, name, *SENSITIVE[name])
    calm = tensors(layer(*given))
    trained = tensors(layer.train()(*given))
    assert any(not torch.equal(a, b) for a, b in zip(trained, calm, strict=True))


@claim("modes.layers.mode-insensitive")
@pytest.mark.parametrize("name", of_this_torch(INSENSITIVE))
def test_these_layers_do_not_depend_on_the_mode(case, name):
    layer, given = in_the_census(case, name, *INSENSITIVE[name])
    with case.unchanged(layer):
        calm = tensors(layer(*given))
    with case.unchanged(layer.train()):
        trained = tensors(layer(*given))
    for a, b in zip(trained, calm, strict=True):
        case.same(a, b)


@claim("modes.layers.mode-insensitive")
@pytest.mark.parametrize("d", [1, 2, 3])
def test_unpooling_does_not_depend_on_the_mode(case, d):
    pooled, indices = getattr(nn, f"MaxPool{d}d")(2, return_indices=True)(case.tensor(*PLANES[d]))
    layer = getattr(nn, f"MaxUnpool{d}d")(2)
    case.same(layer.train()(pooled, indices), layer.eval()(pooled, indices))


@claim("modes.layers.mode-insensitive", "modes.layers.mode-sensitive")
def test_the_census_is_complete(case):
    modules = {n for n in dir(nn) if isinstance(getattr(nn, n), type) and issubclass(getattr(nn, n), nn.Module)}
    if unknown := sorted(modules - {*SENSITIVE, *INSENSITIVE, *ELSEWHERE}):
        raise case.unsupported(f"the census does not know {', '.join(unknown)} yet")


@claim("modes.layers.fractional-pooling-random-in-both")
@pytest.mark.parametrize("d", [2, 3])
def test_fractional_pooling_is_random_in_both_modes(case, d):
    layer = getattr(nn, f"FractionalMaxPool{d}d")(2, output_size=(5,) * d)
    for mode in (True, False):
        layer.train(mode)
        with case.unchanged(layer, but={"rng"}):
            layer(case.tensor_of(case.rng.standard_normal((2, 3, *(9,) * d))))


class Careless(nn.Module):
    """Drops by the functional form, and does not say in which mode."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x, 0.3)


@claim("modes.layers.functional-dropout-ignores-eval")
@pytest.mark.parametrize("name", of_this_torch(["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"]))
def test_functional_dropout_ignores_eval(case, name):
    function = getattr(F, name.lower())
    ones = case.tensor_of([1.0]).expand(505).reshape(101, 5, *[1] * {"Dropout1d": 1, "Dropout2d": 2}.get(name, 3))
    case.binomial((case.module(Careless, function).eval()(ones) == 0).sum(), 505, 0.3)


# -- Mode and grad mode ------------------------------------------------------------------------------------------------


@claim("modes.grad.no-grad-does-not-switch")
def test_no_grad_does_not_switch_the_mode(case):
    model, x = network(case), case.tensor(64, 5)
    with torch.no_grad(), case.unchanged(model, but={f"1.{name}" for name in STATISTICS} | {"rng"}):
        first, second = model(x), model(x)
    assert not torch.equal(first, second)


@claim("modes.grad.inference-mode-does-not-switch")
def test_inference_mode_does_not_switch_the_mode(case):
    model, x = network(case), case.tensor(64, 5)
    count = int(model[1].num_batches_tracked)
    with torch.inference_mode():
        first, second = model(x), model(x)
        assert set(flags(model).values()) == {True}
    assert not torch.equal(first, second)
    assert int(model[1].num_batches_tracked) == count + 2


@claim("modes.grad.orthogonal")
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_mode_and_grad_mode_are_independent(case, mode, grad):
    model, x = network(case).train(mode), case.tensor(64, 5)
    with torch.set_grad_enabled(grad):
        y, again = model(x), model(x)
        assert torch.is_grad_enabled() is grad
    assert torch.equal(y, again) is not mode
    assert y.requires_grad is grad
    assert (y.grad_fn is not None) is grad


@claim("modes.grad.numbers-need-eval-alone")
@axes(dtype=FLOATING)
def test_for_the_numbers_eval_suffices(case):
    model, x = network(case).eval(), case.tensor(17, 5)
    with torch.no_grad():
        without = model(x)
    case.same(without, model(x))


@claim("modes.grad.no-grad-saves-nothing")
def test_no_grad_saves_nothing_for_a_backward(case):
    model, x, saved = network(case).eval(), case.tensor(4, 5), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t), lambda t: t):
        with torch.no_grad():
            model(x)
        assert not saved
        model(x)
    assert saved


# -- nn and autograd ---------------------------------------------------------------------------------------------------


@claim("modes.autograd.module-is-a-container")
@axes(via=("eager", "functional", "aot", "compile", "export"))  # vmap batches the arguments, and parameters are some
def test_gradients_are_those_of_the_functional_expression(case):
    model, x = case.module(nn.Sequential, nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), case.tensor(4, 5)
    assert not hasattr(model, "backward")
    leaves = [p.detach().clone().requires_grad_() for p in model.parameters()]
    model(x).square().sum().backward()
    expression = case.function(lambda x, w, b, v, c: F.linear(torch.tanh(F.linear(x, w, b)), v, c))
    expression(x, *leaves).square().sum().backward()
    for parameter, leaf in zip(model.parameters(), leaves, strict=True):
        case.same(parameter.grad, leaf.grad)


@claim("modes.autograd.parameters-are-leaves")
def test_parameters_are_leaves_registered_by_assignment(case):
    model = nn.Module()
    model.weight, model.plain = nn.Parameter(case.tensor(3)), case.tensor(3)
    with torch.no_grad():
        model.other = nn.Parameter(case.tensor(3) * 2)
    assert [name for name, _ in model.named_parameters()] == ["weight", "other"]
    for p in model.parameters():
        assert isinstance(p, torch.Tensor)
        assert p.is_leaf
        assert p.requires_grad
        assert p.grad_fn is None
    assert not dict(model.named_buffers())
    assert not model.plain.requires_grad


# -- The loop ----------------------------------------------------------------------------------------------------------


class SimpleModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(10, 10)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(10, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.fc2(self.dropout(self.relu(self.fc1(x))))


@claim("modes.loop.seed-example")
def test_the_textbook_loop_runs(case):
    model, criterion = SimpleModel().to(case.device, case.dtype), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, labels = case.tensor(100, 10), case.tensor(100, 1, loc=3.0)
    before = [p.detach().clone() for p in model.parameters()]
    model.train()
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = criterion(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        case.synchronise()
    model.eval()
    with torch.no_grad():
        outputs = model(case.tensor(20, 10))
        test_loss = criterion(outputs, case.tensor(20, 1))
    assert math.isfinite(test_loss.item())
    assert losses[-1] < losses[0]
    assert not outputs.requires_grad
    assert outputs.shape == (20, 1)
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@claim("modes.loop.equals-gradient-descent")
@pytest.mark.parametrize("mode", [True, False])
def test_the_loop_is_gradient_descent(case, mode):
    model = case.module(nn.Linear, 5, 2, bias=False).train(mode)
    x, target = case.tensor(3, 5), case.tensor(3, 2)
    w, rate = array(model.weight).copy(), 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    step(model, optimizer, x, target)
    error = array(x) @ w.T - array(target)
    size = abs(array(x)) @ abs(w).T + abs(array(target))
    scale = abs(w) + rate * 2 / 6 * size.T @ abs(array(x))
    wanted = w - rate * 2 / 6 * error.T @ array(x)
    case.close(model.weight, wanted, k=14, scale=scale)  # sums of 5 and of 3 terms, and six roundings around them
