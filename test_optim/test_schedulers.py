"""Learning rate schedulers: every schedule in closed form, from the first epoch on, resumed, chained, in sequence."""

import copy
import inspect
import io
import math
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from specs.reference import schedulers as reference
from test_optim.stepping import Options
from torch_conformance.marks import claim, since

EPOCHS = 23
RATES = (0.5, 0.08)


def decay(t):
    return 0.9**t + 0.1 * (t % 3)


def shrink(t):
    return 0.8 if t % 2 else 1.1


WAVE = {"base_lr": 0.02, "max_lr": 0.7, "step_size_up": 3, "step_size_down": 5}
CYCLE = {"max_lr": 0.7, "total_steps": 24, "div_factor": 7.0, "final_div_factor": 30.0}
LAWS = {
    "StepLR": reference.step,
    "MultiStepLR": reference.multi_step,
    "ConstantLR": reference.constant,
    "LinearLR": reference.linear,
    "ExponentialLR": reference.exponential,
    "PolynomialLR": reference.polynomial,
    "CosineAnnealingLR": reference.cosine,
    "CosineAnnealingWarmRestarts": reference.warm_restarts,
    "LambdaLR": reference.lambda_,
    "MultiplicativeLR": reference.multiplicative,
    "CyclicLR": reference.cyclic,
    "OneCycleLR": reference.one_cycle,
}
SCHEDULES = [
    ("StepLR", {"step_size": 4, "gamma": 0.3}),
    ("MultiStepLR", {"milestones": [2, 7, 7, 11], "gamma": 0.4}),
    ("ConstantLR", {"factor": 0.3, "total_iters": 4}),
    ("LinearLR", {"start_factor": 0.25, "end_factor": 0.75, "total_iters": 6}),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 5}),
    ("ExponentialLR", {"gamma": 0.83}),
    ("PolynomialLR", {"total_iters": 9, "power": 2.5}),
    ("CosineAnnealingLR", {"T_max": 7, "eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", {"T_0": 5, "eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2, "eta_min": 0.01}),
    ("LambdaLR", {"lr_lambda": decay}),
    ("MultiplicativeLR", {"lr_lambda": shrink}),
    ("CyclicLR", WAVE),
    ("CyclicLR", WAVE | {"mode": "triangular2"}),
    ("CyclicLR", WAVE | {"mode": "exp_range", "gamma": 0.9}),
    ("OneCycleLR", CYCLE),
    ("OneCycleLR", CYCLE | {"anneal_strategy": "linear", "pct_start": 0.4}),
    ("OneCycleLR", CYCLE | {"three_phase": True, "pct_start": 0.25}),
]
FIXED = ("CyclicLR", "OneCycleLR")  # their rates are their own, whatever the optimiser was made with


def these(schedules):
    return pytest.mark.parametrize(("name", "options"), [(name, Options(o)) for name, o in schedules], ids=str)


schedules = these(SCHEDULES)
relative = these([(name, o) for name, o in SCHEDULES if name not in FIXED])


def optimizer_of(case, rates=RATES, cls=torch.optim.SGD, **options):
    """One parameter a group, each group with its rate."""
    options = options or ({"momentum": 0.6} if cls is torch.optim.SGD else {})
    groups = [{"params": [case.tensor(3, requires_grad=True)], "lr": lr} for lr in rates]
    return cls(groups, lr=9.0, **options)


def schedule(case, name, optimizer, options, **more):
    cls = getattr(lr_scheduler, name, None)
    if cls is None:
        raise case.unsupported(f"torch {torch.__version__} has no {name}")
    return cls(optimizer, **options, **more)


def rates_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def advance(optimizer, scheduler, *metrics):
    optimizer.step()
    scheduler.step(*metrics)


def course(optimizer, scheduler, epochs):
    """The rates of every group, epoch by epoch from this one on."""
    found = []
    for _ in range(epochs):
        found.append(rates_of(optimizer))
        advance(optimizer, scheduler)
    return found


def holds(case, found, wanted, options, epochs=EPOCHS):
    """Chained forms multiply once an epoch, four roundings each; next to the cosine's zero they lose T^2 more."""
    k = 4 * epochs * options.get("T_max", 1) ** 2
    case.close(torch.tensor(found, dtype=torch.float64), np.array(wanted), k=k, scale=np.abs(wanted) + 0.01)


def hold_along(case, found, wanted, options):
    """As above for the rates of every epoch from the first: each has lost what the epochs before it cost."""
    for t, (rates, law) in enumerate(zip(found, wanted, strict=True), 1):
        holds(case, rates, law, options, t)


@claim("schedulers.law.closed-form")
@schedules
def test_every_epoch_has_the_rate_of_the_closed_form(case, name, options):
    optimizer = optimizer_of(case)
    scheduler, found, wanted = schedule(case, name, optimizer, options), [], []
    for t in range(EPOCHS):
        found.append(rates_of(optimizer))
        wanted.append([LAWS[name](t, base, **options) for base in RATES])
        assert [float(lr) for lr in scheduler.get_last_lr()] == found[-1]
        assert scheduler.last_epoch == t
        advance(optimizer, scheduler)
    hold_along(case, found, wanted, options)


@claim("schedulers.law.rates-per-group")
@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR", "CyclicLR", "OneCycleLR"])
def test_each_group_may_have_a_schedule_of_its_own(case, name):
    single = {
        "LambdaLR": [{"lr_lambda": decay}, {"lr_lambda": shrink}],
        "MultiplicativeLR": [{"lr_lambda": shrink}, {"lr_lambda": lambda t: 0.7}],
        "CyclicLR": [WAVE, WAVE | {"base_lr": 0.1, "max_lr": 0.3}],
        "OneCycleLR": [CYCLE, CYCLE | {"max_lr": 0.2}],
    }[name]
    both = {key: [o[key] for o in single] if single[0][key] != single[1][key] else single[0][key] for key in single[0]}
    optimizer, found, wanted = optimizer_of(case), [], []
    scheduler = schedule(case, name, optimizer, both)
    for t in range(9):
        found.append(rates_of(optimizer))
        wanted.append([LAWS[name](t, base, **o) for base, o in zip(RATES, single, strict=True)])
        advance(optimizer, scheduler)
    holds(case, found, wanted, {}, 9)


@claim("schedulers.law.as-many-as-groups")
@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR", "CyclicLR", "OneCycleLR"])
def test_lists_have_as_many_entries_as_groups(case, name):
    options = {
        "LambdaLR": {"lr_lambda": [decay]},
        "MultiplicativeLR": {"lr_lambda": [shrink] * 3},
        "CyclicLR": WAVE | {"max_lr": [0.1]},
        "OneCycleLR": CYCLE | {"max_lr": [0.1] * 3},
    }[name]
    with case.raises(ValueError, "expected 2|same length"):
        schedule(case, name, optimizer_of(case), options)


@claim("schedulers.law.defaults")
@pytest.mark.parametrize("name", LAWS)
def test_options_have_their_documented_defaults(case, name):
    cls = getattr(lr_scheduler, name, None)
    if cls is None:
        raise case.unsupported(f"torch {torch.__version__} has no {name}")
    found = inspect.signature(cls).parameters
    for parameter in inspect.signature(LAWS[name]).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "total_steps":
            assert found[parameter.name].default == parameter.default, parameter.name


@claim("schedulers.law.tensor-lr")
@schedules
def test_a_tensor_lr_is_filled_in_place(case, name, options):
    optimizer = optimizer_of(case, [torch.tensor(lr, dtype=torch.float64) for lr in RATES])
    tensors = [group["lr"] for group in optimizer.param_groups]
    scheduler, found, wanted = schedule(case, name, optimizer, options), [], []
    for t in range(9):
        found.append(rates_of(optimizer))
        wanted.append([LAWS[name](t, base, **options) for base in RATES])
        handed = scheduler.get_last_lr()
        assert not any(a is b for a, b in zip(handed, tensors, strict=True))
        advance(optimizer, scheduler)
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))
    holds(case, found, wanted, options, 9)


@claim("schedulers.law.tensor-lr-of-several-groups")
def test_groups_that_share_a_tensor_lr_go_their_own_ways(case):
    groups = [{"params": [case.tensor(3, requires_grad=True)]} for _ in RATES]
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.5, dtype=torch.float64))
    scheduler = lr_scheduler.LambdaLR(optimizer, [decay, shrink])
    advance(optimizer, scheduler)
    holds(case, rates_of(optimizer), [0.5 * decay(1), 0.5 * shrink(1)], {}, 1)


@claim("schedulers.law.group-added-later")
@schedules
def test_a_schedule_goes_on_when_a_group_is_added(case, name, options):
    optimizer, found, wanted = optimizer_of(case), [], []
    scheduler = schedule(case, name, optimizer, options)
    optimizer.add_param_group({"params": [case.tensor(2, requires_grad=True)]})
    for t in range(1, 5):
        advance(optimizer, scheduler)
        found.append(rates_of(optimizer)[:2])
        wanted.append([LAWS[name](t, base, **options) for base in RATES])
    hold_along(case, found, wanted, options)


@claim("schedulers.law.tensor-lr-of-one-element")
@schedules
def test_a_tensor_lr_may_have_one_dimension(case, name, options):
    optimizer = optimizer_of(case, [torch.tensor([lr], dtype=torch.float64) for lr in RATES], cls=torch.optim.Adam)
    tensors = [group["lr"] for group in optimizer.param_groups]
    scheduler = schedule(case, name, optimizer, options | ({"cycle_momentum": False} if name in FIXED else {}))
    for _ in range(4):
        advance(optimizer, scheduler)
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))
    holds(case, rates_of(optimizer), [LAWS[name](4, base, **options) for base in RATES], options, 4)


@claim("schedulers.start.initial-step")
@schedules
def test_construction_performs_the_initial_step(case, name, options):
    optimizer = optimizer_of(case)
    scheduler = schedule(case, name, optimizer, options)
    assert scheduler.last_epoch == 0
    holds(case, rates_of(optimizer), [LAWS[name](0, base, **options) for base in RATES], {}, 1)
    if name not in FIXED:
        assert [group["initial_lr"] for group in optimizer.param_groups] == list(RATES)
        assert scheduler.base_lrs == list(RATES)


@claim("schedulers.start.no-cycle")
@schedules
def test_an_optimizer_is_freed_with_its_scheduler(case, name, options):
    optimizer_of(case)  # the first of a process imports Dynamo, which holds on to it
    optimizer = optimizer_of(case)
    scheduler, seen = schedule(case, name, optimizer, options), weakref.ref(optimizer)
    del scheduler, optimizer
    assert seen() is None, "the optimiser waits for the garbage collector"


@claim("schedulers.start.touches-only-rates")
@schedules
def test_a_scheduler_touches_nothing_but_rates_and_momenta(case, name, options):
    optimizer = optimizer_of(case)
    p = optimizer.param_groups[0]["params"][0]
    p.grad = case.tensor(3)
    keys = ("weight_decay", "dampening", "nesterov", "params")
    before = [group[key] for group in optimizer.param_groups for key in keys]
    with case.unchanged(p=p):
        scheduler = schedule(case, name, optimizer, options)
        optimizer._opt_called = True
        scheduler.step()
    after = [group[key] for group in optimizer.param_groups for key in keys]
    assert all(a is b for a, b in zip(before, after, strict=True))
    if name not in FIXED:
        assert [group["momentum"] for group in optimizer.param_groups] == [0.6, 0.6]


@claim("schedulers.start.wants-an-optimizer")
@schedules
def test_only_an_optimizer_can_be_scheduled(case, name, options):
    with case.raises((TypeError, AttributeError), "optimizer|param_groups"):
        schedule(case, name, torch.nn.Linear(2, 2), options)


@claim("schedulers.order.optimizer-first")
@schedules
def test_stepping_before_the_optimizer_warns(case, name, options):
    """The first rate is skipped. The restarting cosine, which has a step of its own, does not look."""
    if name == "CosineAnnealingWarmRestarts":
        raise case.unsupported("its step() does not look at the order")
    scheduler = schedule(case, name, optimizer_of(case), options)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


@claim("schedulers.order.no-warning-when-right")
@schedules
def test_the_right_order_is_silent(case, name, options):
    optimizer = optimizer_of(case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = schedule(case, name, optimizer, options)
        for _ in range(3):
            advance(optimizer, scheduler)


@claim("schedulers.order.the-rate-of-an-epoch")
def test_an_epoch_trains_at_the_rate_of_its_number(case):
    """optimizer.step() then scheduler.step(): epoch t moves by the rate of epoch t."""
    p = case.tensor_of([1.0], requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.5)
    scheduler, moves = lr_scheduler.StepLR(optimizer, 1, 0.5), []
    for _ in range(3):
        p.grad, before = torch.ones_like(p), p.item()
        advance(optimizer, scheduler)
        moves.append(before - p.item())
    assert moves == [0.5, 0.25, 0.125]


@claim("schedulers.state.round-trip")
@schedules
def test_a_loaded_scheduler_goes_on_as_the_saved_one(case, name, options):
    first, second = optimizer_of(case), optimizer_of(case)
    old, new = schedule(case, name, first, options), schedule(case, name, second, options)
    for _ in range(8):
        advance(first, old)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(8):
        assert (rates_of(second), new.last_epoch) == (rates_of(first), old.last_epoch)
        assert new.get_last_lr() == old.get_last_lr()
        advance(first, old)
        advance(second, new)


@claim("schedulers.state.copied")
@schedules
def test_a_copied_scheduler_goes_on_as_the_first(case, name, options):
    optimizer = optimizer_of(case)
    scheduler = schedule(case, name, optimizer, options)
    for _ in range(2):
        advance(optimizer, scheduler)
    copies = [copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
    for each in (scheduler, *copies):
        for _ in range(3):
            advance(each.optimizer, each)
    assert [rates_of(each.optimizer) for each in copies] == [rates_of(optimizer)] * 2
    assert all(each.optimizer is not optimizer for each in copies)


@claim("schedulers.state.without-optimizer")
@schedules
def test_the_state_holds_no_optimizer_and_no_function(case, name, options):
    state = schedule(case, name, optimizer_of(case), options).state_dict()
    assert "optimizer" not in state
    assert not any(isinstance(value, torch.optim.Optimizer) for value in state.values())
    assert state.get("lr_lambdas", [None, None]) == [None, None]


AS_WEIGHTS = {
    "MultiStepLR": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [2, 5]),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 1.0, 10, cycle_momentum=False),
    "SWALR": lambda optimizer: torch.optim.swa_utils.SWALR(optimizer, 0.05),
}


@claim("schedulers.state.loads-as-weights")
@pytest.mark.parametrize("name", AS_WEIGHTS)
def test_the_state_is_read_as_weights_only(case, name):
    scheduler, file = AS_WEIGHTS[name](optimizer_of(case)), io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["last_epoch"] == 0


@claim("schedulers.state.given-dict-untouched")
def test_loading_leaves_the_given_state_alone(case):
    optimizer = optimizer_of(case)
    scheduler = lr_scheduler.CyclicLR(optimizer, 0.1, 1.0, cycle_momentum=False)
    state = scheduler.state_dict()
    before = set(state)
    scheduler.load_state_dict(state)
    assert set(state) == before


class Halving:
    """A schedule with state of its own, which is saved with the scheduler's."""

    def __init__(self, start):
        self.start = start

    def __call__(self, t):
        return self.start * 0.5**t


@claim("schedulers.state.callable-objects")
@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR"])
def test_state_of_callable_objects_is_saved(case, name):
    old = schedule(case, name, optimizer_of(case), {"lr_lambda": [Halving(0.9), decay]})
    new = schedule(case, name, optimizer_of(case), {"lr_lambda": [Halving(0.1), decay]})
    state = old.state_dict()
    new.load_state_dict(state)
    assert new.lr_lambdas[0].start == 0.9
    assert "lr_lambdas" in state


@claim("schedulers.state.callable-scale")
def test_state_of_a_callable_scale_is_saved(case):
    first, second = optimizer_of(case), optimizer_of(case)
    old, new = (
        schedule(case, "CyclicLR", optimizer, WAVE | {"scale_fn": Halving(start), "scale_mode": "cycle"})
        for optimizer, start in ((first, 0.9), (second, 0.1))
    )
    new.load_state_dict(old.state_dict())
    for _ in range(3):
        advance(first, old)
        advance(second, new)
        assert rates_of(second) == rates_of(first)


@claim("schedulers.state.last-epoch")
@pytest.mark.parametrize("epoch", [1, 4, 11])
@relative
def test_last_epoch_resumes_the_schedule(case, name, options, epoch):
    optimizer = optimizer_of(case)
    old = schedule(case, name, optimizer, options)
    for _ in range(epoch):
        advance(optimizer, old)
    fresh = optimizer_of(case, [group["lr"] for group in optimizer.param_groups])
    for group, base in zip(fresh.param_groups, RATES, strict=True):
        group["initial_lr"] = base
    new, found, wanted = schedule(case, name, fresh, options, last_epoch=epoch - 1), [], []
    if name in ("LambdaLR", "CosineAnnealingWarmRestarts"):  # closed forms; the others find the epoch's rate in place
        holds(case, rates_of(fresh), [LAWS[name](epoch, base, **options) for base in RATES], options)
    for t in range(epoch + 1, epoch + 6):
        advance(fresh, new)
        found.append(rates_of(fresh))
        wanted.append([LAWS[name](t, base, **options) for base in RATES])
    hold_along(case, found, wanted, options)


@claim("schedulers.state.last-epoch-of-cycles")
@these([(name, o) for name, o in SCHEDULES if name in FIXED])
def test_last_epoch_resumes_a_cycle(case, name, options):
    first, second = optimizer_of(case), optimizer_of(case)
    old, found, wanted = schedule(case, name, first, options), [], []
    for _ in range(4):
        advance(first, old)
    second.load_state_dict(first.state_dict())
    new = schedule(case, name, second, options, last_epoch=3)
    for t in range(4, 12):
        found.append(rates_of(second))
        wanted.append([LAWS[name](t, base, **options) for base in RATES])
        advance(second, new)
    hold_along(case, found, wanted, options)


@claim("schedulers.state.last-epoch-wants-initial-lr")
def test_resuming_without_initial_lr_is_refused(case):
    with case.raises(KeyError, "initial_lr"):
        lr_scheduler.StepLR(optimizer_of(case), 3, last_epoch=2)


@claim("schedulers.state.optimizer-loaded-last")
def test_a_scheduler_made_after_loading_overwrites_the_loaded_rate(case):
    first = optimizer_of(case)
    scheduler = lr_scheduler.LinearLR(first, 0.25, total_iters=8)
    for _ in range(3):
        advance(first, scheduler)
    saved, loaded = copy.deepcopy(first.state_dict()), rates_of(first)
    before, after = optimizer_of(case), optimizer_of(case)
    lr_scheduler.LinearLR(before, 0.25, total_iters=8)
    before.load_state_dict(saved)
    after.load_state_dict(saved)
    lr_scheduler.LinearLR(after, 0.25, total_iters=8)
    assert rates_of(before) == loaded
    assert rates_of(after) != loaded


CLOSED = [
    "StepLR",
    "MultiStepLR",
    "ConstantLR",
    "LinearLR",
    "ExponentialLR",
    "PolynomialLR",
    "CosineAnnealingLR",
    "LambdaLR",
]


@claim("schedulers.epoch.jumps")
@these([(name, o) for name, o in SCHEDULES if name in CLOSED])
def test_an_epoch_may_be_named(case, name, options):
    """Deprecated, and warned of; the closed form is used."""
    optimizer = optimizer_of(case)
    scheduler = schedule(case, name, optimizer, options)
    optimizer.step()
    for t in (7, 2, 12):
        with pytest.warns(UserWarning, match="epoch parameter"):
            scheduler.step(t)
        holds(case, rates_of(optimizer), [LAWS[name](t, base, **options) for base in RATES], options)


@claim("schedulers.epoch.restarts")
@pytest.mark.parametrize(("start", "times"), [(5, 1), (3, 2), (1, 3), (2, 5)])
def test_the_restarting_cosine_may_jump_to_any_epoch(case, start, times):
    """Fractions of an epoch included; a restart is a restart however far it lies."""
    optimizer, options = optimizer_of(case), {"T_0": start, "T_mult": times, "eta_min": 0.01}
    scheduler, found, wanted = schedule(case, "CosineAnnealingWarmRestarts", optimizer, options), [], []
    for t in [0, 0.25, 1, 2.5, 4, 7, 9, 12.75, 13, 30, 39, 40, 62, 120, 121, 312]:
        scheduler.step(t)
        found.append(rates_of(optimizer))
        wanted.append([reference.warm_restarts(t, base, **options) for base in RATES])
        assert scheduler.last_epoch == math.floor(t)
    hold_along(case, found, wanted, {})


@claim("schedulers.cosine.climbs-back")
def test_past_t_max_the_cosine_climbs_back(case):
    optimizer = optimizer_of(case)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 5, 0.01)
    found = [first for first, *_ in course(optimizer, scheduler, 11)]
    assert found[:6] == sorted(found[:6], reverse=True)
    assert found[5:] == sorted(found[5:])
    holds(case, [found[5], found[10]], [0.01, 0.5], {"T_max": 5})


@claim("schedulers.constant.factor-zero")
def test_a_constant_factor_of_zero_ends_too(case):
    optimizer = optimizer_of(case)
    scheduler = lr_scheduler.ConstantLR(optimizer, factor=0.0, total_iters=2)
    found = course(optimizer, scheduler, 4)
    assert found == [[0.0, 0.0], [0.0, 0.0], list(RATES), list(RATES)]


@claim("schedulers.constant.no-iterations")
@pytest.mark.parametrize("name", ["ConstantLR", "LinearLR"])
def test_a_schedule_without_iterations_is_over(case, name):
    optimizer = optimizer_of(case)
    scheduler = schedule(case, name, optimizer, {"total_iters": 0})
    assert course(optimizer, scheduler, 3) == [list(RATES)] * 3


@claim("schedulers.linear.listing-shifted")
def test_the_linear_listing_begins_an_epoch_late(case):
    optimizer = optimizer_of(case, [0.05])
    scheduler = lr_scheduler.LinearLR(optimizer, start_factor=0.05, total_iters=40)
    found = [first for first, *_ in course(optimizer, scheduler, 2)]
    holds(case, found, [0.0025, 0.0036875], {}, 2)


@claim("schedulers.polynomial.listing-shifted")
def test_the_polynomial_listing_begins_an_epoch_late(case):
    optimizer = optimizer_of(case, [0.05])
    scheduler = lr_scheduler.PolynomialLR(optimizer, total_iters=50, power=0.9)
    found = [first for first, *_ in course(optimizer, scheduler, 2)]
    holds(case, found, [0.05, 0.05 * 0.98**0.9], {}, 2)


# -- momentum that cycles along ----------------------------------------------------------------------------------------

MOMENTA = {"base_momentum": 0.6, "max_momentum": 0.7}
families = pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam])


def momentum_of(optimizer):
    group = optimizer.param_groups[0]
    return group["betas"][0] if "betas" in group else group["momentum"]


@claim("schedulers.momentum.cyclic")
@families
@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_momentum_cycles_against_the_rate(case, cls, mode):
    optimizer, options = optimizer_of(case, cls=cls), WAVE | {"mode": mode, "gamma": 0.9}
    scheduler, found, wanted = lr_scheduler.CyclicLR(optimizer, **options, **MOMENTA), [], []
    for t in range(18):
        found.append(momentum_of(optimizer))
        wanted.append(reference.cyclic(t, 0, **options | {"base_lr": 0.7, "max_lr": 0.6}))
        advance(optimizer, scheduler)
    hold_along(case, found, wanted, {})
    assert all(group.get("betas", (0, 0.999))[1] == 0.999 for group in optimizer.param_groups)


@claim("schedulers.momentum.cyclic-resumed")
def test_a_cycle_of_momentum_is_resumed(case):
    first, second = optimizer_of(case), optimizer_of(case)
    old, found, wanted = lr_scheduler.CyclicLR(first, **WAVE, **MOMENTA), [], []
    for _ in range(4):
        advance(first, old)
    second.load_state_dict(first.state_dict())
    new = lr_scheduler.CyclicLR(second, **WAVE, **MOMENTA, last_epoch=3)
    for t in range(4, 12):
        found.append(momentum_of(second))
        wanted.append(reference.cyclic(t, 0, **WAVE | {"base_lr": 0.7, "max_lr": 0.6}))
        advance(second, new)
    hold_along(case, found, wanted, {})


@claim("schedulers.momentum.one-cycle")
@families
@pytest.mark.parametrize("three_phase", [False, True])
def test_momentum_falls_while_the_rate_rises(case, cls, three_phase):
    optimizer, n = optimizer_of(case, cls=cls), 24
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.7, n, pct_start=0.25, three_phase=three_phase, **MOMENTA)
    values, found, wanted = [0.7, 0.6, 0.7, 0.7] if three_phase else [0.7, 0.6, 0.7], [], []
    for t in range(n - 1):
        found.append(momentum_of(optimizer))
        wanted.append(reference.phased(t, values, n, 0.25, "cos"))
        advance(optimizer, scheduler)
    hold_along(case, found, wanted, {})


@claim("schedulers.momentum.may-be-left-alone")
@these([("CyclicLR", WAVE), ("OneCycleLR", CYCLE)])
def test_momentum_may_be_left_alone(case, name, options):
    optimizer = optimizer_of(case)
    scheduler = schedule(case, name, optimizer, options, cycle_momentum=False)
    for _ in range(3):
        advance(optimizer, scheduler)
    assert momentum_of(optimizer) == 0.6


@claim("schedulers.momentum.must-be-there")
@these([("CyclicLR", WAVE), ("OneCycleLR", CYCLE)])
def test_momentum_must_be_there_to_cycle(case, name, options):
    with case.raises(ValueError, "momentum"):
        schedule(case, name, optimizer_of(case, cls=torch.optim.Adagrad), options)


@claim("schedulers.cyclic.scale-function")
@pytest.mark.parametrize("mode", ["cycle", "iterations"])
def test_a_scale_function_of_ones_own(case, mode):
    optimizer, up = optimizer_of(case), WAVE | {"scale_fn": lambda x: 1 / (1 + x), "scale_mode": mode}
    scheduler, found, wanted = lr_scheduler.CyclicLR(optimizer, **up), [], []
    for t in range(18):
        found.append(rates_of(optimizer)[0])
        cycle, height = reference.wave(t, 3, 5)
        wanted.append(0.02 + 0.68 * height / (1 + (cycle if mode == "cycle" else t)))
        advance(optimizer, scheduler)
    hold_along(case, found, wanted, {})


@claim("schedulers.one-cycle.limits")
def test_one_cycle_starts_peaks_and_ends_as_documented(case):
    optimizer = optimizer_of(case)
    scheduler = lr_scheduler.OneCycleLR(optimizer, **CYCLE | {"pct_start": 0.25})
    found = [first for first, *_ in course(optimizer, scheduler, 24)]
    holds(case, [found[0], max(found), found[5], found[-1]], [0.1, 0.7, 0.7, 0.1 / 30], {})


@claim("schedulers.one-cycle.peak-at-once")
@pytest.mark.parametrize("n", [5, 10])
def test_a_rise_of_one_step_peaks_at_once(case, n):
    optimizer, found, wanted = optimizer_of(case), [], []
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.7, n, pct_start=1 / n, anneal_strategy="linear")
    for t in range(1, n):
        advance(optimizer, scheduler)
        found.append(rates_of(optimizer)[0])
        wanted.append(reference.phased(t, [0.7 / 25, 0.7, 0.7 / 25e4], n, 1 / n, "linear"))
    hold_along(case, found, wanted, {})


@claim("schedulers.one-cycle.epochs-times-steps")
def test_steps_may_be_given_by_epochs(case):
    optimizer = optimizer_of(case)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.7, epochs=4, steps_per_epoch=6)
    assert scheduler.total_steps == 24
    with case.raises((ValueError, TypeError), "steps|int"):
        lr_scheduler.OneCycleLR(optimizer, 0.7, epochs=4)


@claim("schedulers.one-cycle.too-many-steps")
def test_one_cycle_ends(case):
    optimizer = optimizer_of(case)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.7, 5)
    for _ in range(5):
        advance(optimizer, scheduler)
    with case.raises(ValueError, r"tried to step \d+ times"):
        advance(optimizer, scheduler)


@claim("schedulers.one-cycle.never-negative")
@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_the_last_permitted_step_leaves_a_rate_to_train_at(case, strategy):
    optimizer = optimizer_of(case)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.7, 5, anneal_strategy=strategy)
    for _ in range(5):
        advance(optimizer, scheduler)
        assert rates_of(optimizer)[0] >= 0, f"a negative rate, {rates_of(optimizer)[0]:.3g}"


# -- several schedulers ------------------------------------------------------------------------------------------------


@claim("schedulers.several.chained")
def test_chained_schedules_multiply(case):
    optimizer, found, wanted = optimizer_of(case), [], []
    parts = [lr_scheduler.ConstantLR(optimizer, 0.3, 4), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    scheduler = lr_scheduler.ChainedScheduler([*parts, lr_scheduler.StepLR(optimizer, 3, 0.5)])
    for t in range(9):
        found.append(rates_of(optimizer))
        assert scheduler.get_last_lr() == found[-1]
        shared = reference.constant(t, 1, factor=0.3, total_iters=4) * 0.9**t * 0.5 ** (t // 3)
        wanted.append([base * shared for base in RATES])
        advance(optimizer, scheduler)
    hold_along(case, found, wanted, {})


TENTH = {"factor": 0.1, "total_iters": 20}


@claim("schedulers.several.sequential")
@relative
def test_schedules_in_sequence_start_at_their_milestones(case, name, options):
    optimizer, found, wanted = optimizer_of(case), [], []
    parts = [lr_scheduler.ConstantLR(optimizer, **TENTH), schedule(case, name, optimizer, options)]
    scheduler = lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])
    for t in range(14):
        found.append(rates_of(optimizer))
        assert [float(lr) for lr in scheduler.get_last_lr()] == found[-1]
        wanted.append([reference.constant(t, b, **TENTH) if t < 4 else LAWS[name](t - 4, b, **options) for b in RATES])
        advance(optimizer, scheduler)
    hold_along(case, found, wanted, options)


@claim("schedulers.several.sequential-tensor-lr")
def test_a_tensor_rate_follows_a_sequence(case):
    optimizer = optimizer_of(case, [torch.tensor(lr, dtype=torch.float64) for lr in RATES])
    parts = [lr_scheduler.ConstantLR(optimizer, **TENTH), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    scheduler = lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])
    found = course(optimizer, scheduler, 9)
    wanted = [[reference.constant(t, b, **TENTH) if t < 4 else b * 0.9 ** (t - 4) for b in RATES] for t in range(9)]
    hold_along(case, found, wanted, {})


@claim("schedulers.several.nested")
def test_a_sequence_may_be_part_of_a_sequence(case):
    optimizer = optimizer_of(case)
    parts = [lr_scheduler.ConstantLR(optimizer, **TENTH), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    scheduler = lr_scheduler.SequentialLR(optimizer, [lr_scheduler.SequentialLR(optimizer, parts, [3])], [])
    found = course(optimizer, scheduler, 7)
    wanted = [[reference.constant(t, b, **TENTH) if t < 3 else b * 0.9 ** (t - 3) for b in RATES] for t in range(7)]
    hold_along(case, found, wanted, {})


@claim("schedulers.several.nested")
def test_a_chain_may_be_part_of_a_sequence(case):
    optimizer = optimizer_of(case)
    chain = [lr_scheduler.ConstantLR(optimizer, **TENTH), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 9), lr_scheduler.ChainedScheduler(chain)]
    scheduler = lr_scheduler.SequentialLR(optimizer, parts, [2])
    found = course(optimizer, scheduler, 9)
    wanted = [
        [b / 2 if t < 2 else reference.constant(t - 2, b, **TENTH) * 0.9 ** (t - 2) for b in RATES] for t in range(9)
    ]
    hold_along(case, found, wanted, {})


@claim("schedulers.several.sequence-resumed")
@pytest.mark.parametrize("epoch", [2, 6])
def test_a_sequence_goes_on_from_last_epoch(case, epoch):
    def sequence(optimizer, last_epoch=-1):
        parts = [
            lr_scheduler.ConstantLR(optimizer, **TENTH, last_epoch=last_epoch),
            lr_scheduler.ExponentialLR(optimizer, 0.5, last_epoch=last_epoch),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, [4], last_epoch)

    optimizer = optimizer_of(case)
    scheduler = sequence(optimizer)
    for _ in range(epoch):
        advance(optimizer, scheduler)
    resumed = optimizer_of(case, rates_of(optimizer))
    for group, base in zip(resumed.param_groups, RATES, strict=True):
        group["initial_lr"] = base
    scheduler = sequence(resumed, epoch - 1)
    wanted = [reference.constant(epoch, b, **TENTH) if epoch < 4 else b * 0.5 ** (epoch - 4) for b in RATES]
    hold_along(case, [rates_of(resumed)], [wanted], {})


@claim("schedulers.several.sequential-is-silent")
def test_a_sequence_in_the_right_order_is_silent(case):
    optimizer = optimizer_of(case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = [lr_scheduler.ConstantLR(optimizer, **TENTH), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        course(optimizer, lr_scheduler.SequentialLR(optimizer, parts, [2]), 4)


@claim("schedulers.several.one-cycle-comes-second")
@these([("CyclicLR", WAVE), ("OneCycleLR", CYCLE)])
def test_a_cycle_in_sequence_waits_for_its_milestone(case, name, options):
    optimizer = optimizer_of(case)
    parts = [lr_scheduler.ConstantLR(optimizer, **TENTH), schedule(case, name, optimizer, options)]
    scheduler = lr_scheduler.SequentialLR(optimizer, parts, [2])
    for _ in range(2):
        holds(case, rates_of(optimizer), [base / 10 for base in RATES], {}, 2)
        assert [group["momentum"] for group in optimizer.param_groups] == [0.6, 0.6]
        advance(optimizer, scheduler)


@claim("schedulers.several.chained-restarts")
@pytest.mark.parametrize("first", [True, False])
def test_restarts_multiply_in_a_chain(case, first):
    optimizer, found, wanted = optimizer_of(case), [], []
    parts = [lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5), lr_scheduler.MultiStepLR(optimizer, [2], 0.1)]
    scheduler = lr_scheduler.ChainedScheduler(parts if first else parts[::-1])
    for t in range(7):
        found.append(rates_of(optimizer))
        wanted.append([reference.warm_restarts(t, b, T_0=5) * (0.1 if t >= 2 else 1) for b in RATES])
        advance(optimizer, scheduler)
    hold_along(case, found, wanted, {})


@claim("schedulers.several.three-in-sequence")
def test_three_schedules_in_sequence(case):
    optimizer, found, wanted = optimizer_of(case), [], []
    parts = [lr_scheduler.LinearLR(optimizer, 0.25, total_iters=3), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    scheduler = lr_scheduler.SequentialLR(optimizer, [*parts, lr_scheduler.StepLR(optimizer, 2, 0.5)], [3, 7])
    for t in range(12):
        found.append(rates_of(optimizer)[0])
        linear = reference.linear(t, 0.5, start_factor=0.25, total_iters=3)
        wanted.append(linear if t < 3 else 0.5 * 0.9 ** (t - 3) if t < 7 else 0.5 * 0.5 ** ((t - 7) // 2))
        advance(optimizer, scheduler)
    hold_along(case, found, wanted, {})


@claim("schedulers.several.milestone-at-zero")
def test_a_milestone_at_zero_starts_with_the_next_schedule(case):
    optimizer = optimizer_of(case)
    parts = [lr_scheduler.ConstantLR(optimizer, **TENTH), lr_scheduler.ExponentialLR(optimizer, 0.5)]
    lr_scheduler.SequentialLR(optimizer, parts, milestones=[0])
    assert rates_of(optimizer) == list(RATES)


@claim("schedulers.several.no-plateau")
def test_a_plateau_is_no_part_of_a_sequence(case):
    optimizer = optimizer_of(case)
    parts = [lr_scheduler.ReduceLROnPlateau(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    with case.raises(ValueError, "ReduceLROnPlateau|metric"):
        lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])
    with case.raises(ValueError, "ReduceLROnPlateau|metric"):
        lr_scheduler.ChainedScheduler(parts)


@claim("schedulers.several.state")
@pytest.mark.parametrize("name", ["SequentialLR", "ChainedScheduler"])
def test_several_schedulers_are_saved_together(case, name):
    def made():
        optimizer = optimizer_of(case)
        parts = [lr_scheduler.LinearLR(optimizer, 0.25, total_iters=6), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        if name == "SequentialLR":
            return optimizer, lr_scheduler.SequentialLR(optimizer, parts, [5])
        return optimizer, lr_scheduler.ChainedScheduler(parts)

    (first, old), (second, new) = made(), made()
    for _ in range(2):
        advance(first, old)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(5):
        assert rates_of(second) == rates_of(first)
        assert new.get_last_lr() == old.get_last_lr()
        advance(first, old)
        advance(second, new)


@claim("schedulers.several.one-optimizer")
@pytest.mark.parametrize("name", ["SequentialLR", "ChainedScheduler"])
def test_several_schedulers_share_one_optimizer(case, name):
    one, other = optimizer_of(case), optimizer_of(case)
    parts = [lr_scheduler.ExponentialLR(one, 0.9), lr_scheduler.ExponentialLR(other, 0.9)]
    with case.raises(ValueError, "same optimizer"):
        lr_scheduler.SequentialLR(one, parts, [3]) if name == "SequentialLR" else lr_scheduler.ChainedScheduler(parts)


@claim("schedulers.several.optimizer-of-a-chain")
def test_a_chain_may_name_its_optimizer(case):
    one, other = optimizer_of(case), optimizer_of(case)
    parts = [lr_scheduler.ExponentialLR(one, 0.9), lr_scheduler.ExponentialLR(one, 0.5)]
    assert lr_scheduler.ChainedScheduler(parts, optimizer=one).optimizer is one
    with case.raises(ValueError, "same optimizer"):
        lr_scheduler.ChainedScheduler(parts, optimizer=other)


@claim("schedulers.several.milestones-between")
@pytest.mark.parametrize("milestones", [[], [2, 5]])
def test_there_is_one_milestone_between_two(case, milestones):
    optimizer = optimizer_of(case)
    parts = [lr_scheduler.ExponentialLR(optimizer, 0.9), lr_scheduler.ConstantLR(optimizer)]
    with case.raises(ValueError, "milestone"):
        lr_scheduler.SequentialLR(optimizer, parts, milestones)


# -- the scheduler that watches ----------------------------------------------------------------------------------------

QUICK = {"factor": 0.5, "patience": 1, "threshold": 0.1}


@claim("schedulers.plateau.law")
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize(
    "options",
    [
        Options(QUICK),
        Options(QUICK | {"cooldown": 2}),
        Options(QUICK | {"min_lr": 0.1, "patience": 0}),
        Options(QUICK | {"eps": 0.1}),
    ],
    ids=str,
)
def test_a_plateau_lowers_the_rate(case, mode, threshold_mode, options):
    optimizer, found = optimizer_of(case), []
    options = options | {"mode": mode, "threshold_mode": threshold_mode}
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    metrics = np.concatenate(
        [2 - np.arange(4) / 4, 1 + case.rng.uniform(0, 0.2, 16), [0.4, 0.4, 1, 3, 3.2, 3.18, 3.25, 3, 3]]
    )
    for metric in metrics:
        advance(optimizer, scheduler, float(metric))
        found.append(rates_of(optimizer))
    wanted = np.array([reference.plateau(metrics, base, **options) for base in RATES]).T
    hold_along(case, found, wanted, {})


@claim("schedulers.plateau.last-rates")
def test_a_plateau_tells_its_last_epoch_and_rates(case):
    optimizer = optimizer_of(case)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    for epoch in range(3):
        assert (scheduler.last_epoch, scheduler.get_last_lr()) == (epoch, rates_of(optimizer))
        advance(optimizer, scheduler, 1.0)
    with pytest.warns(UserWarning, match="deprecated"):
        scheduler.step(1.0, epoch=7)
    assert scheduler.last_epoch == 7


@claim("schedulers.plateau.is-a-scheduler")
def test_a_plateau_is_a_scheduler(case):
    assert issubclass(lr_scheduler.ReduceLROnPlateau, lr_scheduler.LRScheduler)


@claim("schedulers.plateau.equal-is-bad")
def test_an_equal_metric_counts_as_bad(case):
    optimizer, found = optimizer_of(case, [1.0]), []
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        advance(optimizer, scheduler, 1.0)
        found.append(rates_of(optimizer)[0])
    holds(case, found, [1.0, 0.1, 0.01], {}, 3)


@claim("schedulers.plateau.patience")
@pytest.mark.parametrize("patience", [0, 1, 3])
def test_patience_counts_the_epochs_that_are_forgiven(case, patience):
    optimizer, found = optimizer_of(case, [1.0]), []
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=patience, factor=0.5)
    for _ in range(patience + 2):
        advance(optimizer, scheduler, 1.0)
        found.append(rates_of(optimizer)[0])
    assert found == [1.0] * (patience + 1) + [0.5]


@claim("schedulers.plateau.min-lr-per-group")
def test_each_group_may_have_its_least_rate(case):
    optimizer = optimizer_of(case)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.01, min_lr=[0.2, 0.03])
    for _ in range(3):
        advance(optimizer, scheduler, 1.0)
    assert rates_of(optimizer) == [0.2, 0.03]
    with case.raises(ValueError, "min_lr"):
        lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=[0.2])


@claim("schedulers.plateau.group-added-later")
def test_a_plateau_lowers_the_rate_of_a_group_that_was_added_later(case):
    optimizer = optimizer_of(case)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    optimizer.add_param_group({"params": [case.tensor(2, requires_grad=True)], "lr": 4.0})
    for _ in range(3):
        advance(optimizer, scheduler, 1.0)
    assert rates_of(optimizer) == [base / 4 for base in (*RATES, 4.0)]


@claim("schedulers.plateau.tensor-lr")
def test_a_plateau_fills_a_tensor_rate(case):
    optimizer = optimizer_of(case, [torch.tensor(lr, dtype=torch.float64) for lr in RATES])
    tensors = [group["lr"] for group in optimizer.param_groups]
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    for metric in (1.0, 2.0):
        advance(optimizer, scheduler, metric)
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))
    assert [float(tensor) for tensor in tensors] == [0.5 * lr for lr in RATES]


@claim("schedulers.plateau.nan-is-bad")
def test_nan_is_no_improvement(case):
    optimizer = optimizer_of(case)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.5)
    for metric in (1.0, math.nan, math.nan):
        advance(optimizer, scheduler, metric)
    assert rates_of(optimizer) == [0.25, 0.04]


@claim("schedulers.plateau.state")
def test_a_loaded_plateau_goes_on_as_the_saved_one(case):
    options = QUICK | {"mode": "max", "threshold_mode": "abs", "cooldown": 1}
    first, second = optimizer_of(case), optimizer_of(case)
    old, new = lr_scheduler.ReduceLROnPlateau(first, **options), lr_scheduler.ReduceLROnPlateau(second)
    metrics = [*(float(m) for m in 1 + case.rng.uniform(0, 0.2, 11)), 2.0, 3.0, 4.0, 4.05, 4.05, 4.05]
    for metric in metrics[:7]:
        advance(first, old, metric)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for metric in metrics[7:]:
        advance(first, old, metric)
        advance(second, new, metric)
        assert rates_of(second) == rates_of(first)


@claim("schedulers.plateau.defaults")
def test_the_plateau_has_its_documented_defaults(case):
    found = inspect.signature(lr_scheduler.ReduceLROnPlateau).parameters
    for parameter in inspect.signature(reference.plateau).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert found[parameter.name].default == parameter.default, parameter.name


WRONG = [
    ("ConstantLR", {"factor": 1.1}), ("ConstantLR", {"factor": -0.1}), ("LinearLR", {"start_factor": 0.0}),
    ("LinearLR", {"start_factor": 1.1}), ("LinearLR", {"end_factor": 1.1}), ("LinearLR", {"end_factor": -0.1}),
    ("CosineAnnealingWarmRestarts", {"T_0": 0}), ("CosineAnnealingWarmRestarts", {"T_0": 1.5}),
    ("CosineAnnealingWarmRestarts", {"T_0": 2, "T_mult": 0}),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "mode": "saw"}),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 0}), ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "pct_start": 1.5}),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "anneal_strategy": "saw"}), ("OneCycleLR", {"max_lr": 1}),
    ("OneCycleLR", {"max_lr": 1, "epochs": 0, "steps_per_epoch": 3}),
    ("OneCycleLR", {"max_lr": 1, "epochs": 3, "steps_per_epoch": 0}),
    ("ReduceLROnPlateau", {"factor": 1.0}), ("ReduceLROnPlateau", {"mode": "least"}),
    ("ReduceLROnPlateau", {"threshold_mode": "some"}),
]  # fmt: skip


@claim("schedulers.errors.options")
@these(WRONG)
def test_options_out_of_range_are_refused(case, name, options):
    if options == {"start_factor": 0.0} and not since("2.0"):
        raise case.unsupported("before 2.0 the start factor could be zero, and the schedule divided by it")
    with case.raises(ValueError, "expected|invalid|unknown|factor|one of|must"):
        schedule(case, name, optimizer_of(case), options)


@claim("schedulers.errors.factors-are-functions")
@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR"])
def test_a_number_is_no_function_of_the_epoch(case, name):
    with case.raises(TypeError, "float"):
        schedule(case, name, optimizer_of(case), {"lr_lambda": 0.5})


@claim("schedulers.errors.least-rate-is-a-number")
def test_a_word_is_no_least_rate(case):
    with case.raises((TypeError, ValueError), "eta_min"):
        schedule(case, "CosineAnnealingWarmRestarts", optimizer_of(case), {"T_0": 2, "eta_min": "0.1"})


@claim("schedulers.errors.get-lr-outside-step")
@schedules
def test_get_lr_is_not_for_asking(case, name, options):
    scheduler = schedule(case, name, optimizer_of(case), options)
    with pytest.warns(UserWarning, match="get_last_lr"):
        scheduler.get_lr()
