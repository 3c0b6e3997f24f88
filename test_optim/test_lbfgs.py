"""L-BFGS: first step, direction, history, line search and the counts that bound it."""

import numpy as np
import pytest
import torch

from specs.reference import line_search
from specs.reference import optim as reference
from specs.reference.line_search import Trial
from specs.reference.rounded import Rounded, absolute, minimum
from torch_conformance.axes import PRECISE
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

SIZE = 5


class Quadratic:
    """x^T A x / 2 - b^T x in two tensors, its closure, and a list of what the closure saw."""

    def __init__(self, case, condition=4.0, dtype=None):
        dtype = dtype or torch.float64
        q = np.linalg.qr(case.rng.standard_normal((SIZE, SIZE)))[0]
        self.A = case.tensor_of(q @ np.diag(np.linspace(1, condition, SIZE)) @ q.T, dtype=dtype)
        self.b = case.tensor_of(case.rng.standard_normal(SIZE), dtype=dtype)
        self.parts = [case.tensor(3, dtype=dtype, requires_grad=True), case.tensor(2, dtype=dtype, requires_grad=True)]
        self.calls = []

    @property
    def x(self):
        return torch.cat([p.detach() for p in self.parts])

    def value(self, x):
        return x @ (self.A @ x) / 2 - self.b @ x

    def gradient(self, x):
        return self.A @ x - self.b

    def __call__(self):
        for p in self.parts:
            p.grad = None
        loss = self.value(torch.cat(self.parts))
        loss.backward()
        self.calls.append((torch.is_grad_enabled(), loss.item()))
        return loss


def lbfgs(problem, **options):
    return torch.optim.LBFGS(problem.parts, **{"tolerance_change": 0.0, "tolerance_grad": 0.0} | options)


@claim("optim.lbfgs.first-step")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("size", [0.01, 1.0])
def test_the_first_step_goes_down_the_gradient(case, size):
    problem = Quadratic(case, dtype=case.dtype)
    problem.A, problem.b = problem.A * size, problem.b * size
    x, g = array(problem.x).copy(), array(problem.gradient(problem.x)).copy()
    lbfgs(problem, lr=0.7, max_iter=1).step(problem)
    moved = 0.7 * min(1, 1 / np.abs(g).sum()) * g
    # the gradient is a sum of six, its norm of five more; both enter the move
    spread = np.abs(array(problem.A)) @ np.abs(x) + np.abs(array(problem.b))
    case.close(problem.x, x - moved, k=2 * (6 + 5), scale=np.abs(x) + np.abs(moved) + spread * 0.7)


@claim("optim.lbfgs.direction")
@pytest.mark.parametrize("history", [1, 2, 10])
def test_the_direction_is_that_of_the_inverse_hessian(case, history):
    problem = Quadratic(case)
    optimizer = lbfgs(problem, lr=0.3, max_iter=1, history_size=history)
    points, gradients = [], []
    for _ in range(5):
        points.append(array(problem.x).copy())
        gradients.append(array(problem.gradient(problem.x)).copy())
        optimizer.step(problem)
    moves, changes = np.diff(points, axis=0), np.diff(gradients, axis=0)
    estimate, size = reference.inverse_hessian(moves[-history:], changes[-history:])
    wanted = points[-1] - 0.3 * estimate @ gradients[-1]
    # a product of matrices of five a pair: moves and changes, as differences, bring a rounding of their own each
    k = 4 * SIZE * (len(moves) + 2)
    amplified = max(np.abs(points).max() / np.abs(m).max() for m in moves)
    case.close(problem.x, wanted, k=k * amplified, scale=np.abs(points[-1]) + size @ np.abs(gradients[-1]))


@claim("optim.lbfgs.history")
def test_the_history_is_bounded(case):
    problem = Quadratic(case)
    optimizer = lbfgs(problem, lr=0.3, max_iter=1, history_size=3)
    for count in (0, 1, 2, 3, 3, 3):
        optimizer.step(problem)
        state = optimizer.state[problem.parts[0]]
        assert len(state["old_dirs"]) == len(state["old_stps"]) == len(state["ro"]) == count


@claim("optim.lbfgs.strong-wolfe")
@pytest.mark.parametrize("lr", [0.01, 0.3, 1.0, 20.0])
def test_the_line_search_ends_where_the_wolfe_conditions_hold(case, lr):
    problem = Quadratic(case)
    x, g = problem.x, problem.gradient(problem.x)
    lbfgs(problem, lr=lr, max_iter=1, max_eval=50, line_search_fn="strong_wolfe").step(problem)
    move = problem.x - x
    assert problem.value(problem.x) <= problem.value(x) + 1e-4 * (g @ move)
    assert (problem.gradient(problem.x) @ move).abs() <= 0.9 * (g @ move).abs()
    assert g @ move < 0


TERRAINS = {  # neither convex nor concave, so that first steps overshoot, fall short and end on rising ground
    "well": lambda x: -x / (x * x + 2),
    "bell": lambda x: -(-x * x / 2).exp(),
    "funnel": lambda x: (1 + x * x).log(),
    "two-wells": lambda x: x**4 / 4 - x * x / 2 + x / 10,
    "notch": lambda x: -2 * x * (1 - x) ** 2,  # as high and flat at 1 as it is at its start, 0
    "waves": lambda x: x.cos() + x * x / 50 + (3 * x).sin() / 3,
}


class Path:
    """A function of one number, its closure, and a list of where it was evaluated: place, value, slope."""

    def __init__(self, case, terrain, start):
        self.terrain = terrain
        self.parts = [case.tensor_of([start], dtype=torch.float64, requires_grad=True)]
        self.seen = []

    def __call__(self):
        (x,) = self.parts
        x.grad = None
        loss = self.terrain(x).sum()
        loss.backward()
        self.seen.append((x.item(), loss.item(), x.grad.item()))
        return loss


@claim("optim.lbfgs.strong-wolfe")
@pytest.mark.parametrize("name", TERRAINS)
def test_the_line_search_ends_where_the_wolfe_conditions_hold_on_rough_ground(case, name):
    """From the first step that meets both it goes nowhere else, but a step no lower than one before is none."""
    places = [(-2.5, 10.0), (0.4, 1.0), (0.4, 10.0), (0.4, 60.0), (1.7, 60.0)]
    for start, lr in [(0.0, 1.0), (0.0, 0.95)] if name == "notch" else places:
        path = Path(case, TERRAINS[name], start)
        lbfgs(path, lr=lr, max_iter=1, max_eval=60, line_search_fn="strong_wolfe").step(path)
        (x, before, slope), *tried = path.seen
        lowest, good = before, []
        for y, after, end in tried:
            if after <= before + 1e-4 * slope * (y - x) and abs(end) <= 0.9 * abs(slope) and after < lowest:
                good.append(y)
            lowest = min(lowest, after)
        assert path.parts[0].item() == good[0], f"from {start} with lr {lr} it tried {tried}"
        assert tried[-1][0] == good[0], f"from {start} with lr {lr} it went on after {good[0]}"


class Recorded:
    """What a path saw, as the law's line search would: it may be asked for the next step alone, and is."""

    def __init__(self, case, path):
        (self.start, value, self.slope), *self.rest = path.seen
        self.case, self.origin = case, Trial(Rounded(0.0), value, -(self.slope**2))

    def __call__(self, step):
        assert self.rest, f"nothing was tried at the step {float(step.value)}, but should be"
        x, value, slope = self.rest.pop(0)
        wanted = Rounded(self.start) + step * -self.slope
        self.case.close(self.case.tensor_of(x, dtype=torch.float64), wanted.value, k=1, scale=wanted.error)
        return Trial((Rounded(x, abs(x)) - self.start) / -self.slope, value, slope * -self.slope)


@claim("optim.lbfgs.line-search-steps")
@pytest.mark.parametrize("name", [name for name in TERRAINS if name != "notch"])  # which falls for ever
def test_the_line_search_tries_the_steps_of_the_law(case, name):
    for start in (-2.5, 0.4, 1.7):
        for lr in (0.02, 1.0, 10.0, 60.0):
            path = Path(case, TERRAINS[name], start)
            lbfgs(path, lr=lr, max_iter=1, max_eval=26, line_search_fn="strong_wolfe").step(path)
            recorded = Recorded(case, path)
            first = minimum(1.0, 1 / absolute(Rounded(recorded.slope))) * lr
            ended = line_search.strong_wolfe(recorded, recorded.origin, first, limit=25, size=abs(recorded.slope))
            assert not recorded.rest, f"from {start} with lr {lr} it went on to {recorded.rest}"
            wanted = Rounded(start) + ended.step * -recorded.slope
            case.close(path.parts[0].detach()[0], wanted.value, k=1, scale=wanted.error)


@claim("optim.lbfgs.strong-wolfe")
def test_the_line_search_gives_up_where_nothing_ends_the_descent(case):
    path = Path(case, lambda x: -2 * x, 0.5)
    lbfgs(path, max_iter=1, max_eval=25, line_search_fn="strong_wolfe").step(path)
    assert 20 < len(path.seen) <= 27
    assert path.parts[0].item() == max(x for x, _, _ in path.seen)


@claim("optim.lbfgs.line-search-tolerance")
def test_the_line_search_ends_where_its_bracket_is_narrow(case):
    """Nowhere beside the kink at 1/3 is it flat enough to end before; a bracket that halves is as narrow after 30."""
    for tolerance in (0.1, 1e-12):
        path = Path(case, lambda x: (x - 1 / 3).abs(), 0.0)
        lbfgs(path, max_iter=1, max_eval=100, tolerance_change=tolerance, line_search_fn="strong_wolfe").step(path)
        assert abs(path.parts[0].item() - 1 / 3) < 1e-9
        assert len(path.seen) <= 30 + 2


@claim("optim.lbfgs.line-search-counts")
def test_the_line_search_keeps_to_the_evaluations_allowed(case):
    path = Path(case, lambda x: -2 * x, 0.5)
    lbfgs(path, max_iter=1, max_eval=7, line_search_fn="strong_wolfe").step(path)
    assert len(path.seen) <= 7, f"{len(path.seen)} evaluations"


@claim("optim.lbfgs.goes-on")
@pytest.mark.parametrize("name", ["two-wells", "waves"])
def test_iterations_go_on_from_step_to_step(case, name):
    for search, lr in [(None, 0.1), ("strong_wolfe", 1.0), ("strong_wolfe", 60.0)]:
        ends = []
        for steps, iterations in [(1, 4), (4, 1)]:
            path = Path(case, TERRAINS[name], 0.4)
            optimizer = lbfgs(path, lr=lr, max_iter=iterations, max_eval=100, line_search_fn=search)
            for _ in range(steps):
                optimizer.step(path)
            ends.append(path.parts[0].item())
        assert ends[0] == ends[1], f"{search} from lr {lr} ends in {ends}"


@claim("optim.lbfgs.minimises-a-quadratic")
def test_a_quadratic_is_minimised(case):
    """To gradients of 1e-5: below sqrt(eps * 30 * loss), some 1e-7, the line search sees no change of the loss."""
    problem = Quadratic(case, condition=30.0)
    lbfgs(problem, max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe").step(problem)
    assert problem.gradient(problem.x).abs().max() <= 1e-5
    assert len(problem.calls) <= 60


@claim("optim.lbfgs.counts")
@pytest.mark.parametrize(("options", "evaluations"), [({"max_iter": 4}, 4), ({"max_iter": 9, "max_eval": 3}, 3)])
def test_evaluations_and_iterations_are_bounded_and_counted(case, options, evaluations):
    problem = Quadratic(case)
    optimizer = lbfgs(problem, lr=0.3, **options)
    for step in (1, 2):
        start = problem.value(problem.x).item()
        assert optimizer.step(problem).item() == pytest.approx(start, abs=1e-12)
        state = optimizer.state[problem.parts[0]]
        assert state["func_evals"] == len(problem.calls) == step * evaluations
        assert state["n_iter"] == step * (evaluations if "max_eval" not in options else evaluations - 1)
    assert optimizer.defaults["max_eval"] == options.get("max_eval", options["max_iter"] * 5 // 4)


@claim("optim.lbfgs.stops-at-the-optimum")
def test_at_the_optimum_it_stays(case):
    problem = Quadratic(case)
    bound = problem.gradient(problem.x).abs().max().item()
    before = problem.x
    lbfgs(problem, tolerance_grad=bound * 1.01).step(problem)
    case.same(problem.x, before)
    lbfgs(problem, tolerance_grad=bound * 0.99).step(problem)
    assert (problem.x != before).all()
    assert len(problem.calls) > 2


@claim("optim.lbfgs.closure")
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_the_closure_is_a_must_and_runs_with_gradients(case, search):
    problem = Quadratic(case)
    optimizer = lbfgs(problem, line_search_fn=search, max_iter=3)
    with case.raises(TypeError, "closure"):
        optimizer.step()
    with torch.no_grad():
        optimizer.step(problem)
        assert not torch.is_grad_enabled()
    assert len(problem.calls) >= 3
    assert all(enabled for enabled, _ in problem.calls)


@claim("optim.lbfgs.one-group")
def test_there_is_one_group(case):
    problem = Quadratic(case)
    with case.raises(ValueError, "parameter groups"):
        torch.optim.LBFGS([{"params": [p]} for p in problem.parts])
    with case.raises(RuntimeError, "strong_wolfe"):
        lbfgs(problem, line_search_fn="armijo").step(problem)


@claim("optim.lbfgs.defaults")
def test_the_options_of_lbfgs_have_their_documented_defaults(case):
    defaults = torch.optim.LBFGS(Quadratic(case).parts).defaults
    assert {key: defaults[key] for key in DEFAULTS} == DEFAULTS


DEFAULTS = {
    "lr": 1, "max_iter": 20, "max_eval": 25, "tolerance_grad": 1e-7, "tolerance_change": 1e-9, "history_size": 100,
    "line_search_fn": None,
}  # fmt: skip


@claim("optim.lbfgs.layouts")
def test_parameters_may_be_laid_out_otherwise(case):
    """A transposed parameter, and the gradient that backward lays out alike, move as contiguous ones do."""
    value, pull = case.tensor(3, 4, dtype=torch.float64), case.tensor(3, 4, dtype=torch.float64)
    transposed, plain = value.t().contiguous().t().requires_grad_(), value.clone().requires_grad_()
    for p in (transposed, plain):
        optimizer = torch.optim.LBFGS([p], lr=0.5, max_iter=3)

        def closure(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (p.pow(4) / 4 - pull * p).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    # three iterations of sums over 12 terms, in another order; the loss is convex, so that errors do not grow
    case.close(transposed, array(plain), k=3 * 2 * 12, scale=abs(array(value)) + abs(array(pull)))


@claim("optim.lbfgs.complex")
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_complex_parameters_move_as_their_parts(case, search):
    start, weights = case.tensor(3, 2, dtype=torch.float64), case.tensor_of([1.0, 2.0], dtype=torch.float64)
    real, complex_ = start.clone().requires_grad_(), torch.view_as_complex(start.clone()).requires_grad_()
    for p in (real, complex_):
        optimizer = torch.optim.LBFGS([p], lr=0.5, max_iter=5, line_search_fn=search)

        def closure(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            parts = torch.view_as_real(p) if p.is_complex() else p
            loss = (weights * (parts - 1) ** 2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    case.same(torch.view_as_real(complex_.detach()), real.detach())
    assert (real.detach() - 1).abs().sum() < (start - 1).abs().sum()


@claim("optim.lbfgs.nothing-to-optimise")
def test_without_parameters_the_loss_is_returned(case):
    loss = case.tensor(1)
    assert torch.optim.LBFGS([{"params": []}], lr=0.5).step(lambda: loss) is loss


@claim("optim.lbfgs.negative-rate")
def test_lbfgs_does_not_go_backwards(case):
    with case.raises(ValueError, "learning rate"):
        torch.optim.LBFGS([case.tensor(3, requires_grad=True)], lr=-0.5)
