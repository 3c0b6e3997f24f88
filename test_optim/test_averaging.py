"""Weight averaging: the mean of a model over training, its exponential kin, and what goes with them."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from specs.reference import averaging as reference
from specs.reference import schedulers
from test_optim.test_schedulers import advance, hold_along, optimizer_of, rates_of
from torch_conformance.axes import PRECISE
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim, since

DECAY = 0.7


def model_of(case):
    return nn.Sequential(case.module(nn.Linear, 5, 4), case.module(nn.BatchNorm1d, 4)).to(case.dtype)


def move(case, model):
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(case.tensor(*p.shape))
        for b in model.buffers():
            b.copy_(case.tensor(*b.shape).abs()) if b.is_floating_point() else b.add_(3)


def averaged(case, model, steps=4, **options):
    """The average after some steps, and the states that went into it: a list for each parameter, then each buffer."""
    average = swa_utils.AveragedModel(model, **options)
    states = [[] for _ in [*model.parameters(), *model.buffers()]]
    for _ in range(steps):
        move(case, model)
        average.update_parameters(model)
        for kept, tensor in zip(states, [*model.parameters(), *model.buffers()], strict=True):
            kept.append(array(tensor).astype(float))
    return average, states


def magnitude(states):
    return np.abs(states).max(0)


def given(case, name):
    made = getattr(swa_utils, name, None)
    if made is None:
        raise case.unsupported(f"torch {torch.__version__} has no {name}")
    return made


@claim("averaging.swa.arithmetic-mean")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("how", ["default", "get_swa_avg_fn", "get_swa_multi_avg_fn"])
def test_the_average_is_the_arithmetic_mean(case, how):
    option = {}
    if how != "default":
        option = {"multi_avg_fn" if "multi" in how else "avg_fn": given(case, how)()}
    average, states = averaged(case, model_of(case), **option)
    assert average.n_averaged == 4
    for p, kept in zip(average.module.parameters(), states, strict=False):
        case.close(p, reference.equal(kept), k=4 * 4, scale=magnitude(kept))  # four updates of four roundings


@claim("averaging.ema.law")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("how", ["get_ema_avg_fn", "get_ema_multi_avg_fn"])
def test_the_exponential_average(case, how):
    option = {"multi_avg_fn" if "multi" in how else "avg_fn": given(case, how)(DECAY)}
    average, states = averaged(case, model_of(case), **option)
    for p, kept in zip(average.module.parameters(), states, strict=False):
        case.close(p, reference.exponential(kept, DECAY), k=4 * 4, scale=magnitude(kept))  # as above


@claim("averaging.ema.decay-range")
@pytest.mark.parametrize("how", ["get_ema_avg_fn", "get_ema_multi_avg_fn"])
@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_lies_between_zero_and_one(case, how, decay):
    average = given(case, how)
    with case.raises(ValueError, "decay"):
        average(decay)
    assert callable(average(0.0))
    assert callable(average(1.0))


@claim("averaging.ema.decay-default")
@pytest.mark.parametrize("how", ["get_ema_avg_fn", "get_ema_multi_avg_fn"])
def test_the_default_decay(case, how):
    assert inspect.signature(given(case, how)).parameters["decay"].default == 0.999


@claim("averaging.model.first-update-copies")
@pytest.mark.parametrize("how", ["swa", "ema", "own"])
def test_the_first_update_copies(case, how):
    option = {"swa": {}, "own": {"avg_fn": lambda *_: torch.tensor(7.0)}}.get(how)
    option = {"avg_fn": given(case, "get_ema_avg_fn")(DECAY)} if option is None else option
    model = model_of(case)
    average, _ = averaged(case, model, steps=1, **option)
    for p, q in zip(average.module.parameters(), model.parameters(), strict=True):
        case.same(p.detach(), q.detach())


@claim("averaging.model.function-of-ones-own")
def test_an_averaging_function_gets_average_model_and_count(case):
    counts = []

    def keep_larger(average, current, count):
        counts.append(int(count))
        return torch.maximum(average, current)

    average, states = averaged(case, model_of(case), avg_fn=keep_larger)
    for p, kept in zip(average.module.parameters(), states, strict=False):
        case.close(p, np.max(kept, axis=0), k=0)
    assert counts == [1] * 4 + [2] * 4 + [3] * 4


@claim("averaging.model.one-function")
def test_there_is_one_averaging_function(case):
    swa = given(case, "get_swa_avg_fn")(), given(case, "get_swa_multi_avg_fn")()
    with case.raises(AssertionError, "only one"):
        swa_utils.AveragedModel(model_of(case), avg_fn=swa[0], multi_avg_fn=swa[1])


@claim("averaging.model.separate-copy")
def test_the_average_is_a_copy_of_the_model(case):
    model = model_of(case)
    average = swa_utils.AveragedModel(model)
    assert not any(p is q for p, q in zip(average.parameters(), model.parameters(), strict=True))
    kept = [p.detach().clone() for p in average.parameters()]
    with case.unchanged(average.module):
        move(case, model)
    for p, q in zip(average.parameters(), kept, strict=True):
        case.same(p.detach(), q)
    with case.unchanged(model):
        average.update_parameters(model)


@claim("averaging.model.without-parameters")
def test_a_model_without_parameters_is_averaged(case):
    average = swa_utils.AveragedModel(nn.ReLU())
    for count in (1, 2):
        average.update_parameters(nn.ReLU())
        assert int(average.n_averaged) == count


@claim("averaging.model.pickled")
@pytest.mark.parametrize("how", ["default", "get_ema_multi_avg_fn", "get_swa_multi_avg_fn"])
def test_an_average_is_pickled(case, how):
    option = {} if how == "default" else {"multi_avg_fn": given(case, how)()}
    average, _ = averaged(case, model_of(case), **option)
    again = pickle.loads(pickle.dumps(average))
    assert int(again.n_averaged) == 4
    for p, q in zip(again.parameters(), average.parameters(), strict=True):
        case.same(p.detach(), q.detach())


@claim("averaging.model.forward")
def test_the_average_computes_as_its_module(case):
    average, x = swa_utils.AveragedModel(model_of(case)).eval(), case.tensor(3, 5)
    case.same(average(x), average.module(x))


@claim("averaging.buffers.copied")
def test_buffers_are_copied_from_the_model(case):
    model = model_of(case)
    average, _ = averaged(case, model)
    for ours, theirs in zip(average.module.buffers(), model.buffers(), strict=True):
        case.same(ours, theirs)


@claim("averaging.buffers.averaged-when-asked")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("how", ["swa", "ema"])
def test_buffers_are_averaged_when_asked(case, how):
    option = {} if how == "swa" else {"avg_fn": given(case, "get_ema_avg_fn")(DECAY)}
    average, states = averaged(case, model_of(case), use_buffers=True, **option)
    law = reference.equal if how == "swa" else lambda kept: reference.exponential(kept, DECAY)
    floating = [
        (b, kept) for b, kept in zip(average.module.buffers(), states[4:], strict=True) if b.is_floating_point()
    ]
    assert len(floating) == 2
    for b, kept in floating:
        case.close(b, law(kept), k=4 * 4, scale=magnitude(kept))  # as above


@claim("averaging.buffers.counters-too")
def test_integer_buffers_may_be_averaged(case):
    option = {"multi_avg_fn": given(case, "get_swa_multi_avg_fn")()}
    average, states = averaged(case, model_of(case), use_buffers=True, **option)
    mean, var = list(average.module.buffers())[:2]
    for b, kept in ((mean, states[4]), (var, states[5])):
        case.close(b, reference.equal(kept), k=4 * 4, scale=magnitude(kept))  # four updates of four operations


@claim("averaging.model.counted-and-saved")
def test_the_count_is_saved_with_the_average(case):
    model = model_of(case)
    average, _ = averaged(case, model, steps=3)
    assert (average.n_averaged.dtype, average.n_averaged.shape) == (torch.int64, ())
    assert average.state_dict()["n_averaged"] == 3
    other = swa_utils.AveragedModel(model)
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    move(case, model)
    average.update_parameters(model)
    other.update_parameters(model)
    for p, q in zip(average.parameters(), other.parameters(), strict=True):
        case.same(p.detach(), q.detach())


@claim("averaging.model.example-with-ema")
def test_the_documented_ema_example_fails(case):
    with case.raises(TypeError, "invalid combination|to\\(\\)"):
        swa_utils.AveragedModel(model_of(case), given(case, "get_ema_multi_avg_fn")(0.9), use_buffers=True)


# -- batch statistics --------------------------------------------------------------------------------------------------


@claim("averaging.update-bn.law")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("form", ["tensors", "tuples", "lists"])
def test_statistics_are_the_mean_over_the_batches(case, form):
    """Each batch counts alike, whatever momentum the layer has; what was there before is forgotten."""
    layer, batches = case.module(nn.BatchNorm1d, 3, momentum=0.3), [case.tensor(n, 3) for n in (4, 9, 6)]
    loader = {"tensors": batches, "tuples": [(b, 0) for b in batches], "lists": [[b, 0] for b in batches]}[form]
    swa_utils.update_bn(loader, layer)
    data = [array(b) for b in batches]
    size = np.max([np.abs(d).max() for d in data]) ** 2
    # sums of up to nine, then three updates
    case.close(layer.running_mean, np.mean([d.mean(0) for d in data], 0), k=9 + 3 * 4, scale=size)
    case.close(layer.running_var, np.mean([d.var(0, ddof=1) for d in data], 0), k=2 * 9 + 3 * 4, scale=size)
    assert layer.num_batches_tracked == 3


@claim("averaging.update-bn.restores")
@pytest.mark.parametrize("training", [True, False])
def test_momentum_and_mode_are_restored(case, training):
    model = model_of(case).train(training)
    momentum = model[1].momentum = 0.3
    buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    with case.unchanged(model, but=buffers):
        swa_utils.update_bn([case.tensor(4, 5)], model)
    assert model[1].momentum == momentum


@claim("averaging.update-bn.restores-after-an-error")
def test_momentum_and_mode_are_restored_after_an_error(case):
    model = model_of(case).eval()
    model[1].momentum = 0.3
    with case.raises(RuntimeError, "mat1 and mat2|shape|reduction dim"):
        swa_utils.update_bn([case.tensor(4, 7)], model)
    assert (model[1].momentum, model.training) == (0.3, False)


@claim("averaging.update-bn.modes-of-parts")
@pytest.mark.parametrize("training", [True, False])
def test_parts_keep_their_modes(case, training):
    model = nn.Sequential(model_of(case), nn.Dropout()).train(training)
    model[1].train(not training)
    swa_utils.update_bn([case.tensor(4, 5)], model)
    assert [model.training, model[0].training, model[1].training] == [training, training, not training]


@claim("averaging.update-bn.no-graph")
def test_statistics_are_taken_without_a_graph(case):
    seen, model = [], model_of(case)
    model.register_forward_hook(lambda m, x, y: seen.append((y.requires_grad, m.training)))
    swa_utils.update_bn([case.tensor(4, 5)], model.eval())
    assert seen == [(False, True)]


@claim("averaging.update-bn.without-statistics")
def test_layers_without_running_statistics_are_passed_over(case):
    first, second = nn.BatchNorm1d(5, track_running_stats=False), nn.BatchNorm1d(5)
    swa_utils.update_bn([case.tensor(4, 5)], nn.Sequential(first, second).to(case.device))
    assert first.running_mean is None
    assert int(second.num_batches_tracked) == 1


@claim("averaging.update-bn.nothing-to-do")
def test_a_model_without_batch_statistics_is_not_run(case):
    model = case.module(nn.Linear, 5, 4)
    model.register_forward_hook(lambda *_: pytest.fail("the model was run"))
    with case.unchanged(model):
        swa_utils.update_bn([case.tensor(4, 5)], model)


# -- the rate that goes with it ----------------------------------------------------------------------------------------


@claim("averaging.swalr.law")
@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("epochs", [0, 1, 5])
@pytest.mark.parametrize("rate", [0.05, [0.05, 0.3]], ids=["one", "per-group"])
def test_the_rate_is_annealed_to_swa_lr(case, strategy, epochs, rate):
    optimizer, found, wanted = optimizer_of(case), [], []
    scheduler = swa_utils.SWALR(optimizer, rate, anneal_epochs=epochs, anneal_strategy=strategy)
    rates = rate if isinstance(rate, list) else [rate] * 2
    options = {"anneal_epochs": epochs, "anneal_strategy": strategy}
    for t in range(9):
        found.append(rates_of(optimizer))
        wanted.append(
            [schedulers.swa(t, base, swa_lr=lr, **options) for base, lr in zip((0.5, 0.08), rates, strict=True)]
        )
        advance(optimizer, scheduler)
    # undoing the share of swa_lr loses what the cosine leaves of the first rate, at most T^2
    hold_along(case, found, wanted, {"T_max": max(epochs, 1)})


@claim("averaging.swalr.defaults")
def test_the_annealing_takes_ten_epochs_by_default(case):
    optimizer, found, wanted = optimizer_of(case), [], []
    scheduler = swa_utils.SWALR(optimizer, 0.05)
    for t in range(12):
        found.append(rates_of(optimizer))
        wanted.append([schedulers.swa(t, base, swa_lr=0.05, anneal_epochs=10) for base in (0.5, 0.08)])
        advance(optimizer, scheduler)
    hold_along(case, found, wanted, {"T_max": 10})


@claim("averaging.swalr.joins-another-schedule")
def test_annealing_starts_from_the_rate_it_finds(case):
    """Used after another scheduler has moved the rates, as in the documented example."""
    optimizer = optimizer_of(case)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    swa = swa_utils.SWALR(optimizer, 0.05, anneal_epochs=4, anneal_strategy="linear")
    advance(optimizer, decay)
    found, wanted = [], []
    for t in range(1, 7):
        advance(optimizer, swa)
        found.append(rates_of(optimizer))
        wanted.append(
            [schedulers.swa(t, b / 2, swa_lr=0.05, anneal_epochs=4, anneal_strategy="linear") for b in (0.5, 0.08)]
        )
    hold_along(case, found, wanted, {"T_max": 4})


@claim("averaging.swalr.last-epoch")
def test_an_annealing_is_resumed_by_its_last_epoch(case):
    options = {"anneal_epochs": 8, "anneal_strategy": "linear"}
    first = optimizer_of(case)
    old = swa_utils.SWALR(first, 0.05, **options)
    for _ in range(4):
        advance(first, old)
    second = optimizer_of(case)
    second.load_state_dict(first.state_dict())
    new = swa_utils.SWALR(second, 0.05, **options, last_epoch=3)
    found, wanted = [], []
    for t in range(5, 9):
        advance(second, new)
        found.append(rates_of(second))
        wanted.append([schedulers.swa(t, base, swa_lr=0.05, **options) for base in (0.5, 0.08)])
    hold_along(case, found, wanted, {"T_max": 8})


@claim("averaging.swalr.in-sequence")
def test_an_annealing_in_sequence_starts_at_its_milestone(case):
    options = {"anneal_epochs": 4, "anneal_strategy": "linear"}
    optimizer, found, wanted = optimizer_of(case), [], []
    parts = [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 9), swa_utils.SWALR(optimizer, 0.05, **options)]
    sequence = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [2])
    for t in range(8):
        found.append(rates_of(optimizer))
        wanted.append([schedulers.swa(max(t - 2, 0), base, swa_lr=0.05, **options) for base in (0.5, 0.08)])
        advance(optimizer, sequence)
    hold_along(case, found, wanted, {"T_max": 4})


@claim("averaging.swalr.round-trip")
@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_a_loaded_annealing_goes_on_as_the_saved_one(case, strategy):
    first, second = optimizer_of(case), optimizer_of(case)
    old = swa_utils.SWALR(first, 0.05, anneal_epochs=6, anneal_strategy=strategy)
    new = swa_utils.SWALR(second, 0.3, anneal_epochs=2)
    for _ in range(3):
        advance(first, old)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(4):
        assert rates_of(second) == rates_of(first)
        advance(first, old)
        advance(second, new)
    assert not since("2.10") or "anneal_func" not in old.state_dict()


@claim("schedulers.errors.get-lr-outside-step")
def test_get_lr_of_the_annealing_is_not_for_asking(case):
    scheduler = swa_utils.SWALR(optimizer_of(case), 0.05)
    with pytest.warns(UserWarning, match="get_last_lr"):
        scheduler.get_lr()
    advance(scheduler.optimizer, scheduler)  # which asks itself, in silence


@claim("averaging.swalr.errors")
def test_options_out_of_range_are_refused(case):
    optimizer = optimizer_of(case)
    for options, words in [
        ({"anneal_strategy": "saw"}, "anneal_strategy"),
        ({"anneal_epochs": -1}, "anneal_epochs"),
        ({"anneal_epochs": 1.5}, "anneal_epochs"),
        ({"swa_lr": [0.1]}, "swa_lr"),
    ]:
        with case.raises(ValueError, words):
            swa_utils.SWALR(optimizer, **{"swa_lr": 0.1} | options)


@claim("averaging.swalr.argument-names")
@pytest.mark.parametrize("name", ["swa_lrs", "annealing_epochs", "annealing_strategy"])
def test_the_documented_argument_names_are_not_taken(case, name):
    options = {"swa_lr": 0.1} if name != "swa_lrs" else {}
    with case.raises(TypeError, name):
        swa_utils.SWALR(optimizer_of(case), **options, **{name: 0.1})


@claim("averaging.model.function-of-lists")
def test_functions_of_lists_change_the_first_in_place(case):
    start, others = [torch.tensor([10, 20]), torch.tensor([7])], [torch.tensor([20, 40]), torch.tensor([27])]
    whole = [each.clone() for each in start]
    given(case, "get_ema_multi_avg_fn")(0.5)(whole, others, None)
    assert torch.cat(whole).tolist() == [15, 30, 17]
    alone = [start[0].clone()]
    given(case, "get_ema_multi_avg_fn")(0.5)(alone, others[:1], None)
    assert alone[0].tolist() == [15, 30]
    for count in (torch.tensor(3), 3):
        kept = [each.double() for each in start]
        given(case, "get_swa_multi_avg_fn")()(kept, [each.double() for each in others], count)
        case.close(torch.cat(kept), [12.5, 25.0, 12.0], k=3)  # a difference, a share of it and a sum


@claim("averaging.update-bn.device")
def test_batches_are_moved_only_if_a_device_is_given(case):
    class Batch:
        moves = 0

        def to(self, device):
            Batch.moves += 1
            assert device == "there"
            return x

    x, layer = case.tensor(9, 3), nn.BatchNorm1d(3).to(case.device)
    swa_utils.update_bn([Batch(), [Batch(), 5]], layer, device="there")
    assert Batch.moves == 2
    case.close(layer.running_mean, array(x).mean(0), k=9, scale=abs(array(x)).mean(0))
    swa_utils.update_bn([x], layer)
    assert Batch.moves == 2
