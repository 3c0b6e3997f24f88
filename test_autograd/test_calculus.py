"""Tools beside backward: Jacobians and Hessians, forward mode, gradcheck, hooks on saved tensors, anomaly detection."""

import warnings

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad, functional, gradcheck
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from torch_conformance.axes import PRECISE
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

pytestmark = axes(via="eager")
EAGER = {"dtype": PRECISE, "via": "eager"}


def cubic(a, x):
    """A function of two vectors with a Jacobian that is not symmetric; Jacobians: diag(3 x^2) a^T and diag(x^3)."""
    return (a * x**3).sum(), a * x**3


@claim("autograd.functional.jacobian")
@axes(**EAGER)
@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_jacobian_has_output_axes_then_input_axes(case, strategy, vectorize):
    if strategy == "forward-mode" and not vectorize:
        with case.raises(NotImplementedError, "vectorize=True"):
            functional.jacobian(torch.sin, case.tensor(2), strategy=strategy)
        return
    a, x = case.tensor(2, 3), case.tensor(3, 4)
    found = functional.jacobian(lambda x: a @ x, x, vectorize=vectorize, strategy=strategy)
    expected = np.einsum("ij,kl->ikjl", array(a), np.eye(4))
    case.same(found, case.tensor_of(expected))
    assert not found.requires_grad


@claim("autograd.functional.jacobian-of-tuples")
@axes(**EAGER)
@pytest.mark.parametrize("vectorize", [False, True])
def test_jacobian_of_tuples_is_a_tuple_of_tuples(case, vectorize):
    a, x = case.tensor(3), case.tensor(3)
    found = functional.jacobian(cubic, (a, x), vectorize=vectorize)
    va, vx = array(a), array(x)
    expected = ((vx**3, 3 * va * vx**2), (np.diag(vx**3), np.diag(3 * va * vx**2)))
    for row, wanted in zip(found, expected, strict=True):
        for block, values in zip(row, wanted, strict=True):
            case.close(block, values, k=5)  # a power within two eps, two products


@claim("autograd.functional.hessian")
@axes(**EAGER)
@pytest.mark.parametrize("vectorize", [False, True])
def test_hessian_of_a_quadratic_form(case, vectorize):
    a, x = case.tensor(4, 4), case.tensor(4)
    found = functional.hessian(lambda x: x @ (a @ x), x, vectorize=vectorize)
    case.close(found, array(a) + array(a).T, k=1)  # one sum of two parts
    with case.raises(RuntimeError, "single (element|tensor)|contain a single|scalar"):
        functional.hessian(lambda x: a @ x, x)


@claim("autograd.functional.hessian-of-two-inputs")
@axes(**EAGER)
def test_hessian_of_two_inputs_is_a_table_of_blocks(case):
    a, x = case.tensor(3), case.tensor(3)
    (aa, ax), (xa, xx) = functional.hessian(lambda a, x: cubic(a, x)[0], (a, x))
    va, vx = array(a), array(x)
    assert (aa == 0).all()
    for block, wanted in ((ax, 3 * vx**2), (xa, 3 * vx**2), (xx, 6 * va * vx)):
        case.close(block, np.diag(wanted), k=6)  # a power within two eps, three products


@claim("autograd.functional.products")
@axes(**EAGER)
def test_products_with_jacobian_and_hessian(case):
    a, x, v, w = case.tensor(5, 3), case.tensor(3), case.tensor(3), case.tensor(5)
    square = case.tensor(3, 3)

    def linear(x):
        return a @ x

    def quadratic(x):
        return x @ (square @ x)

    va, vv, vw, h = array(a), array(v), array(w), array(square) + array(square).T
    for found, output, wanted, matrix in (
        (functional.vjp(linear, x, w), linear(x), vw @ va, (abs(vw), abs(va))),
        (functional.jvp(linear, x, v), linear(x), va @ vv, (abs(va), abs(vv))),
        (functional.hvp(quadratic, x, v), quadratic(x), h @ vv, (abs(array(square)) + abs(array(square).T), abs(vv))),
        (functional.vhp(quadratic, x, v), quadratic(x), h @ vv, (abs(array(square)) + abs(array(square).T), abs(vv))),
    ):
        value, product = found
        case.same(value, output)
        case.close(product, wanted, k=6, scale=matrix[0] @ matrix[1])  # sums of at most five products, and one sum
        assert not product.requires_grad
        assert not value.requires_grad


@claim("autograd.functional.create-graph")
@axes(**EAGER)
@pytest.mark.parametrize("name", ["jacobian", "hessian"])
def test_create_graph_makes_the_result_differentiable(case, name):
    x = case.tensor(1, requires_grad=True)
    found = getattr(functional, name)(lambda x: (x**4).sum(), x, create_graph=True)
    (further,) = torch.autograd.grad(found.sum(), x)
    case.close(further, {"jacobian": 12 * array(x) ** 2, "hessian": 24 * array(x)}[name], k=7)
    assert not functional.jacobian(lambda x: (x**4).sum(), x).requires_grad


@claim("autograd.functional.strict")
@pytest.mark.parametrize("name", ["jacobian", "hessian"])
def test_strict_refuses_an_input_without_influence(case, name):
    x, unused = case.tensor(3), case.tensor(2)
    call = getattr(functional, name)

    def function(x, unused):
        return (x * x).sum()

    blocks = call(function, (x, unused))
    assert (blocks[1] == 0).all() if name == "jacobian" else (blocks[1][1] == 0).all()
    with case.raises(RuntimeError, "independent of (the )?input 1|input 1"):
        call(function, (x, unused), strict=True)
    with case.raises(RuntimeError, "output 0.*does not require grad"):
        call(lambda x: torch.ones(()), x, strict=True)


@claim("autograd.functional.strict")
@pytest.mark.parametrize("name", ["hessian", "hvp", "vhp"])
def test_strict_refuses_a_linear_function(case, name):
    x = case.tensor(3)
    rest = () if name == "hessian" else (case.tensor(3),)
    call = getattr(functional, name)
    found = call(torch.sum, x, *rest)
    assert not (found[1] if rest else found).any()
    with case.raises(RuntimeError, "jacobian.*independent of the input"):
        call(torch.sum, x, *rest, strict=True)


@claim("autograd.functional.strict")
@pytest.mark.parametrize("name", ["vjp", "jvp"])
def test_strict_products_refuse_an_input_without_influence(case, name):
    x, unused, call = case.tensor(3), case.tensor(3), getattr(functional, name)
    vector = x if name == "vjp" else (x, x)
    value, product = call(lambda x, unused: x * 2, (x, unused), vector)
    case.same(value, x * 2)
    assert name == "jvp" or not product[1].any()
    if name == "vjp":
        with case.raises(RuntimeError, "independent of input 1"):
            call(lambda x, unused: x * 2, (x, unused), vector, strict=True)
    with case.raises(RuntimeError, "output 0.*does not require grad"):
        call(lambda x: torch.ones(3), x, x, strict=True)


@claim("autograd.functional.inputs-untouched")
def test_the_tools_leave_the_inputs_alone(case):
    for x in (case.tensor(3, requires_grad=True), case.tensor(3)):
        with case.unchanged(x=x):
            functional.jacobian(torch.sin, x)
            functional.hessian(lambda x: x.sin().sum(), x)
            functional.vjp(torch.sin, x, x.detach())
            functional.jvp(torch.sin, x, x.detach())


@claim("autograd.functional.vector-must-match")
@pytest.mark.parametrize("name", ["vjp", "jvp", "hvp", "vhp"])
def test_the_vector_must_match(case, name):
    function = torch.sin if name in ("vjp", "jvp") else lambda x: x.sin().sum()
    with case.raises(RuntimeError, "size|shape|length"):
        getattr(functional, name)(function, case.tensor(3), case.tensor(4))
    with case.raises(RuntimeError, "only be None|vector v|None"):
        getattr(functional, name)(torch.sin if name == "vjp" else function, case.tensor(3))
    with case.raises(RuntimeError, "tuple of invalid length|single Tensor"):
        getattr(functional, name)(function, case.tensor(3), (case.tensor(3), case.tensor(3)))
    if function is not torch.sin:
        with case.raises(RuntimeError, "single element|contain a single|scalar"):
            getattr(functional, name)(torch.sin, case.tensor(3), case.tensor(3))
    for bad in ("text", (case.tensor(3), 2)):
        with case.raises(TypeError, "must be"):
            getattr(functional, name)(function, bad, case.tensor(3))
        with case.raises(TypeError, "must be"):
            getattr(functional, name)(lambda x, bad=bad: bad, case.tensor(3), case.tensor(3))


# -- forward mode ----------------------------------------------------------------------------------------------------


@claim("autograd.forward.jacobian-vector-product")
@axes(**EAGER)
def test_a_dual_tensor_carries_the_jacobian_vector_product(case):
    x, v, a = case.tensor(3), case.tensor(3), case.tensor(5, 3)
    with forward_ad.dual_level():
        primal, tangent = forward_ad.unpack_dual(a @ forward_ad.make_dual(x, v))
        case.same(primal, a @ x)
        case.close(tangent, array(a) @ array(v), k=3, scale=abs(array(a)) @ abs(array(v)))  # sums of three products


@claim("autograd.forward.chain-rule")
@axes(**EAGER)
def test_forward_mode_follows_the_chain_rule(case):
    x, v = case.tensor(17), case.tensor(17)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual((forward_ad.make_dual(x, v) * 2).sin()).tangent
    case.close(tangent, 2 * np.cos(2 * array(x)) * array(v), k=3)  # cosine within one eps, one product


@claim("autograd.forward.constants-have-no-tangent")
def test_a_constant_has_no_tangent(case):
    x, v = case.tensor(3), case.tensor(3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, v)
        assert forward_ad.unpack_dual(x * 2).tangent is None
        assert forward_ad.unpack_dual(dual.detach()).tangent is None
        assert forward_ad.unpack_dual(dual).tangent is not None


@claim("autograd.forward.levels")
def test_dual_tensors_live_within_a_level(case):
    x, v = case.tensor(3), case.tensor(3)
    with case.raises(RuntimeError, "forward AD level|dual_level|enter"):
        forward_ad.make_dual(x, v)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, v)
        with case.raises(RuntimeError, "nested"), forward_ad.dual_level():
            pass
        case.same(forward_ad.unpack_dual(dual, level=0).tangent, v)
        assert forward_ad.unpack_dual(dual, level=-1).tangent is None
        with case.raises(RuntimeError, "level"):
            forward_ad.exit_dual_level(level=3)
    with case.raises(RuntimeError, "level"):
        forward_ad.exit_dual_level()
    level = forward_ad.enter_dual_level()
    case.same(forward_ad.unpack_dual(forward_ad.make_dual(x, v, level=level)).tangent, v)
    forward_ad.exit_dual_level(level=level)
    with forward_ad.dual_level():
        assert forward_ad.unpack_dual(dual).tangent is None


@claim("autograd.forward.tangent-must-match")
def test_a_tangent_must_match_its_primal(case):
    with forward_ad.dual_level():
        with case.raises(RuntimeError, "same size|size"):
            forward_ad.make_dual(case.tensor(3), case.tensor(4))
        with case.raises(ValueError, "primal.*floating point"):
            forward_ad.make_dual(torch.ones(3, dtype=torch.int64), case.tensor(3))
        with case.raises(ValueError, "tangent.*floating point"):
            forward_ad.make_dual(case.tensor(3), torch.ones(3, dtype=torch.int64))


@claim("autograd.forward.backward-through-tangents")
@axes(**EAGER)
def test_a_tangent_can_be_differentiated_backwards(case):
    x, v = case.tensor(5, requires_grad=True), case.tensor(5)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(forward_ad.make_dual(x, v) ** 3).tangent
        tangent.sum().backward()
    case.close(x.grad, 6 * array(x) * array(v), k=6)


# -- gradcheck -------------------------------------------------------------------------------------------------------


class WrongSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0] * 2.01


def doubles(case, *shape):
    return case.tensor(*shape, loc=1.5, spread=0.2, dtype=torch.float64, requires_grad=True)


@claim("autograd.gradcheck.tells-right-from-wrong")
@pytest.mark.parametrize("fast_mode", [False, True])
def test_gradcheck_tells_right_from_wrong(case, fast_mode):
    x = doubles(case, 3)
    assert gradcheck(torch.square, x, fast_mode=fast_mode) is True
    assert gradcheck(WrongSquare.apply, x, fast_mode=fast_mode, raise_exception=False) is False
    with case.raises(RuntimeError, "Jacobian mismatch"):
        gradcheck(WrongSquare.apply, x, fast_mode=fast_mode)


@claim("autograd.gradcheck.needs-double")
def test_gradcheck_warns_of_single_precision(case):
    x = case.tensor(3, dtype=torch.float32, requires_grad=True)
    with pytest.warns(UserWarning, match="double precision"):
        gradcheck(torch.square, x, raise_exception=False)


@claim("autograd.gradcheck.needs-requires-grad")
def test_gradcheck_needs_something_that_requires_grad(case):
    with case.raises(ValueError, "at least one input tensor to require"):
        gradcheck(torch.square, case.tensor(3, dtype=torch.float64))


@claim("autograd.gradcheck.second-order")
def test_gradgradcheck_checks_the_second_derivative(case):
    class WrongSecond(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * 3 * x.detach() * x

    x = doubles(case, 3)
    assert torch.autograd.gradgradcheck(lambda x: x**3, x)
    assert gradcheck(WrongSecond.apply, x)
    assert not torch.autograd.gradgradcheck(WrongSecond.apply, x, raise_exception=False)


# -- saved tensors ---------------------------------------------------------------------------------------------------


@claim("autograd.saved.pack-and-unpack")
def test_pack_is_called_at_forward_and_unpack_at_backward(case):
    x, events = case.tensor(3, requires_grad=True), []

    def pack(tensor):
        events.append("pack")
        return tensor.detach().clone(), len(events)

    def unpack(packed):
        events.append("unpack")
        return packed[0]

    with saved_tensors_hooks(pack, unpack):
        y = x.sin()
    (y + 1).exp().sum().backward(retain_graph=True)
    assert events == ["pack", "unpack"]


@claim("autograd.saved.unpacked-value-is-used")
def test_what_unpack_returns_is_what_backward_uses(case):
    x = case.tensor(3, requires_grad=True)
    with saved_tensors_hooks(lambda tensor: tensor.detach() * 3, lambda tensor: tensor):
        y = x.square()
    y.sum().backward()
    case.close(x.grad, 6 * array(x), k=2)  # two products


@claim("autograd.saved.nothing-saved-nothing-packed")
def test_an_operation_that_saves_nothing_packs_nothing(case):
    packed, x = [], case.tensor(3, requires_grad=True)
    with saved_tensors_hooks(packed.append, lambda tensor: tensor):
        (x + 1).sum().backward()
        case.tensor(3).exp()
    assert packed == []


@claim("autograd.saved.innermost-hooks")
def test_only_the_innermost_hooks_apply(case):
    calls, x = [], case.tensor(3, requires_grad=True)

    def hooks(name):
        return saved_tensors_hooks(lambda tensor: calls.append(name) or tensor.detach(), lambda tensor: tensor)

    with hooks("outer"):
        with hooks("inner"):
            x.sin()
        x.sin()
    x.sin()
    assert calls == ["inner", "outer"]


@claim("autograd.saved.save-on-cpu")
def test_save_on_cpu_changes_no_gradient(case):
    x = case.tensor(3, 5, requires_grad=True)
    x.sin().prod().backward()
    plain, x.grad = x.grad, None
    for pin in (False, True):
        x.grad = None
        with save_on_cpu(pin_memory=pin):
            loss = x.sin().prod()
        loss.backward()
        case.same(x.grad, plain)


@claim("autograd.saved.disabled-hooks")
def test_hooks_on_saved_tensors_can_be_forbidden(case):
    x = case.tensor(3, requires_grad=True)
    forbid = torch.autograd.graph.disable_saved_tensors_hooks
    with forbid("not in here"), case.raises(RuntimeError, "not in here"), saved_tensors_hooks(lambda t: t, lambda t: t):
        pass
    with forbid("outer"):
        with forbid("inner"):
            pass
        with case.raises(RuntimeError, "outer"), saved_tensors_hooks(lambda t: t, lambda t: t):
            pass
    with saved_tensors_hooks(lambda t: t.detach(), lambda t: t):
        x.sin().sum().backward()


# -- anomaly detection -----------------------------------------------------------------------------------------------


def nan_maker(case):
    """A leaf at zero, and a loss whose backward meets 0 / 0 in the square root."""
    x = case.tensor_of([0.0], requires_grad=True)
    return x, (x.sqrt() * 0).sum()


@claim("autograd.anomaly.nan-raises")
def test_anomaly_mode_raises_where_a_backward_makes_nan(case):
    with pytest.warns(UserWarning, match="Anomaly Detection"):
        mode = torch.autograd.detect_anomaly()
    with mode, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, loss = nan_maker(case)
        with case.raises(RuntimeError, "SqrtBackward0.*nan"):
            loss.backward()
    assert not torch.is_anomaly_enabled()


@claim("autograd.anomaly.silent-otherwise")
def test_without_anomaly_mode_nan_passes_silently(case):
    x, loss = nan_maker(case)
    loss.backward()
    assert x.grad.isnan().all()


@claim("autograd.anomaly.check-nan-off")
@pytest.mark.filterwarnings("ignore:Anomaly")
def test_check_nan_off_lets_nan_pass(case):
    with torch.autograd.detect_anomaly(check_nan=False):
        x, loss = nan_maker(case)
        loss.backward()
    assert x.grad.isnan().all()


@claim("autograd.anomaly.shows-the-forward")
@pytest.mark.filterwarnings("ignore:Anomaly")
def test_anomaly_mode_shows_the_forward_call(case):
    with torch.autograd.detect_anomaly():
        _, loss = nan_maker(case)
        with (
            pytest.warns(UserWarning, match="(?s)Traceback of forward call.*nan_maker"),
            case.raises(RuntimeError, "nan"),
        ):
            loss.backward()


@claim("autograd.anomaly.set-and-restored")
@pytest.mark.filterwarnings("ignore:Anomaly")
def test_anomaly_mode_is_restored(case):
    def state():
        return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()

    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        assert state() == (True, False)
        with torch.autograd.set_detect_anomaly(False):
            assert not torch.is_anomaly_enabled()
        assert state() == (True, False)
        with torch.autograd.detect_anomaly():
            assert state() == (True, True)
        assert state() == (True, False)
    assert state() == (False, True)
    torch.autograd.set_detect_anomaly(True, check_nan=False)
    assert state() == (True, False)
    torch.autograd.set_detect_anomaly(True)
    assert state() == (True, True)
    torch.autograd.set_detect_anomaly(False)
    assert not torch.is_anomaly_enabled()
