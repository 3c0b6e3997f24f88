"""Tools beside backward: Jacobians and Hessians, forward mode, gradcheck, hooks on saved tensors, anomaly detection."""

import logging
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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


@claim("autograd.functional.complex-jacobian")
@axes(dtype="complex128", via="eager")
@pytest.mark.parametrize("vectorize", [False, True])
def test_a_complex_jacobian_has_gradients_for_rows(case, vectorize):
    found = functional.jacobian(lambda x: (2 + 1j) * x, case.tensor(3), vectorize=vectorize)
    case.close(found, (2 - 1j) * np.eye(3), k=1)  # a product with one


@claim("autograd.functional.jacobian-of-nothing")
@axes(**EAGER)
@pytest.mark.parametrize("inputs", [0, 3])
def test_a_jacobian_of_nothing_is_empty(case, inputs):
    assert functional.jacobian(lambda x: 2 * x[:0], case.tensor(inputs)).shape == (0, inputs)


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


@claim("autograd.functional.create-graph")
def test_create_graph_makes_products_differentiable(case):
    """All on x^4: each product with v is c x^n v, so that its derivatives by x and by v are known."""
    for name, factor, power in (("vjp", 4, 3), ("jvp", 4, 3), ("hvp", 12, 2), ("vhp", 12, 2)):
        for inside in (True, False):
            x, v = case.tensor(3, requires_grad=True), case.tensor(3, requires_grad=True)
            call = getattr(functional, name)
            function = (lambda x: x**4) if power == 3 else (lambda x: (x**4).sum())
            with torch.set_grad_enabled(inside):
                value, product = call(function, x, v, create_graph=True)
                silent = call(function, x, v)
            assert not any(each.requires_grad for each in silent), f"{name} without create_graph"
            case.close(product.detach(), factor * array(x) ** power * array(v), k=8)
            by_x, by_v = torch.autograd.grad(product.sum(), (x, v), retain_graph=True)
            case.close(by_x, factor * power * array(x) ** (power - 1) * array(v), k=12)
            case.close(by_v, factor * array(x) ** power, k=12)
            (slope,) = torch.autograd.grad(value.sum(), x)
            case.close(slope, 4 * array(x) ** 3, k=8)
    sparse = torch.eye(3).to_sparse().requires_grad_()
    _, product = functional.vjp(lambda s: s.to_dense() * 2, sparse, torch.ones(3, 3), create_graph=True)
    assert product.shape == (3, 3)


@claim("autograd.functional.strategies")
def test_every_strategy_gives_the_same(case):
    a, x, y = case.tensor(3, 3), case.tensor(3), case.tensor(2)

    def several(x, y):
        return (a @ x) * x, y * 2, x.sum(), y.detach() + 1

    wanted = functional.jacobian(several, (x, y))
    for strategy in ("reverse-mode", "forward-mode"):
        found = functional.jacobian(several, (x, y), vectorize=True, strategy=strategy)
        for row, expected in zip(found, wanted, strict=True):
            for block, other in zip(row, expected, strict=True):
                assert block.shape == other.shape
                assert not block.requires_grad
                case.close(block, array(other), k=4, scale=abs(array(other)) + 1)
    curve = functional.hessian(lambda x: (x**4).sum(), x)
    for strategy in ("reverse-mode", "forward-mode"):
        found = functional.hessian(lambda x: (x**4).sum(), x, vectorize=True, outer_jacobian_strategy=strategy)
        case.close(found, array(curve), k=8)
    with case.raises(NotImplementedError, "vectorize=True"):
        functional.hessian(lambda x: (x**4).sum(), x, outer_jacobian_strategy="forward-mode")
    with case.raises((ValueError, AssertionError), "strategy"):
        functional.jacobian(torch.sin, x, strategy="sideways")
    with case.raises((ValueError, AssertionError), "strategy"):
        functional.hessian(lambda x: x.sum(), x, outer_jacobian_strategy="sideways")
    for options in (
        {"strict": True, "vectorize": True},
        {"strict": True, "strategy": "forward-mode", "vectorize": True},
    ):
        with case.raises((RuntimeError, NotImplementedError), "strict"):
            functional.jacobian(torch.sin, x, **options)


@claim("autograd.functional.strict")
def test_strict_says_what_is_independent_of_what(case):
    x, y = case.tensor(3), case.tensor(3)
    rough, both = {"strict": True, "create_graph": True}, (x, y)

    def one(x, y):
        return (x * x).sum()

    for call, words in (
        (lambda: functional.vjp(one, both, strict=True), "output .*independent of input 1"),
        (lambda: functional.jacobian(one, both, strict=True), "Output 0 .*independent of input 1"),
        (lambda: functional.jvp(lambda x, y: x * x, both, both, strict=True), "output .*independent of input 1"),
        (lambda: functional.vjp(lambda x: 2 * x, x, y, **rough), "jacobian .*independent of input 0.*create_graph"),
        (lambda: functional.jvp(lambda x: 2 * x, x, y, **rough), "jacobian .*independent of input 0.*create_graph"),
        (lambda: functional.jacobian(lambda x: 2 * x, x, **rough), "jacobian .*independent of input 0.*create_graph"),
        (lambda: functional.hvp(lambda x, y: (x * x + y).sum(), both, both, strict=True), "jacobian .*independent of"),
        (lambda: functional.vhp(lambda x, y: (x * x + y).sum(), both, both, strict=True), "jacobian .*independent of"),
        (
            lambda: functional.hvp(lambda x: (x * x).sum(), x, y, **rough),
            "hessian .*independent of input 0.*create_graph",
        ),
        (
            lambda: functional.vhp(lambda x: (x * x).sum(), x, y, **rough),
            "hessian .*independent of input 0.*create_graph",
        ),
    ):
        x.requires_grad_()
        with case.raises(RuntimeError, words):
            call()


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
    pair, more = (case.tensor(3), case.tensor(3)), tuple(case.tensor(3) for _ in range(3))
    both = (lambda x, y: (x * 2, y * 2)) if name == "vjp" else (lambda x, y: (x * y).sum())
    with case.raises(RuntimeError, "tuple of invalid length"):
        getattr(functional, name)(both, pair, more)
    x = case.tensor_of([2.0])
    _, product = getattr(functional, name)(lambda x: (x**3).sum(), x)
    case.close(product.reshape(()), 3 * 2**2 if name in ("vjp", "jvp") else 6 * 2, k=4)  # a power and a product
    if function is not torch.sin:
        with case.raises(RuntimeError, "single element|contain a single|scalar"):
            getattr(functional, name)(torch.sin, case.tensor(3), case.tensor(3))
        with case.raises(RuntimeError, "return a single Tensor"):
            getattr(functional, name)(lambda x: (x.sum(),), case.tensor(3), case.tensor(3))
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


@claim("autograd.forward.scattered-product")
@axes(**EAGER)
def test_the_tangent_of_a_scattered_product_is_that_of_the_product_rule(case):
    x, s = (case.tensor_of(case.rng.uniform(0.5, 2, 3)) for _ in range(2))
    u, v, index = case.tensor(3), case.tensor(3), torch.tensor([0, 0, 2], device=case.device)
    with forward_ad.dual_level():
        y = torch.scatter_reduce(forward_ad.make_dual(x, u), 0, index, forward_ad.make_dual(s, v), reduce="prod")
        tangent = forward_ad.unpack_dual(y).tangent
    (a, _, c), (d, e, f), (da, db, dc), (dd, de, df) = (array(t) for t in (x, s, u, v))
    terms = [[da * d * e, a * dd * e, a * d * de], [db, 0, 0], [dc * f, c * df, 0]]
    # each term in three products and a quotient, two sums
    case.close(tangent, np.sum(terms, 1), k=8, scale=np.sum(np.abs(terms), 1))


@claim("autograd.forward.cumprod-twice")
@axes(**EAGER)
def test_the_tangent_of_a_running_product_with_a_zero_is_differentiable(case):
    """Of a + ab + abc in direction (1, 1, 1) the tangent is 1 + a + b + ab + ac + bc."""
    x = case.tensor_of([0.3, 0.0, 0.8], requires_grad=True)
    with forward_ad.dual_level():
        y = forward_ad.make_dual(x, torch.ones_like(x)).cumprod(0).sum()
        (found,) = torch.autograd.grad(forward_ad.unpack_dual(y).tangent, x)
    case.close(found, np.array([1.8, 2.1, 0.3]), k=8)


@claim("autograd.forward.householder-twice")
@axes(**EAGER)
def test_the_tangent_of_a_reflection_is_differentiable(case):
    """The first column of I - 2 v v^T / |v|^2 for v = (1, t) adds up to 1 - 2 (1 + t) / (1 + t^2)."""
    t = case.tensor_of(0.7, requires_grad=True)
    with forward_ad.dual_level():
        s = forward_ad.make_dual(t, torch.ones_like(t))
        column = torch.stack((torch.ones_like(s), s))[:, None]
        y = torch.linalg.householder_product(column, (2 / (1 + s * s))[None]).sum()
        (found,) = torch.autograd.grad(forward_ad.unpack_dual(y).tangent, t)
    at, root = array(t), 1 + array(t) ** 2
    law = 4 * ((1 + at) * root + 2 * at * (1 - 2 * at - at**2)) / root**3
    case.close(found, law, k=32, scale=8)  # some thirty steps, none of them on numbers above 8


@claim("autograd.forward.cholesky-inverse")
@axes(**EAGER)
def test_the_tangent_of_an_inverse_from_its_factor(case):
    factor, v = case.tensor_of([[1.7, 0.0], [1.0, 2.0]]), case.tensor_of([[1.0, 0.0], [0.5, -1.0]])
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(torch.cholesky_inverse(forward_ad.make_dual(factor, v))).tangent
    inverse, change = (
        np.linalg.inv(array(factor) @ array(factor).T),
        array(v) @ array(factor).T + array(factor) @ array(v).T,
    )
    law = -inverse @ change @ inverse
    # an inverse and two products of matrices of two rows, whose condition is below 6
    case.close(found, law, k=6 * 16, scale=abs(inverse) @ abs(change) @ abs(inverse))


@claim("autograd.forward.cholesky-solve-broadcast")
@axes(**EAGER)
def test_the_tangents_of_a_right_hand_side_that_factors_share(case):
    b = case.tensor_of([[1.0, 2.0], [-1.0, 3.0]])
    factor = case.tensor_of([[[2.0, 0.0], [0.7, 3.0]], [[3.0, 0.0], [1.0, 2.0]]])
    v = case.tensor_of([[[1.0, 0.0], [0.5, -1.0]], [[-1.0, 0.0], [2.0, 0.5]]])
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(torch.cholesky_solve(b, forward_ad.make_dual(factor, v))).tangent
    transposed = array(factor).transpose(0, 2, 1)
    inverse = np.linalg.inv(array(factor) @ transposed)
    change = array(v) @ transposed + array(factor) @ array(v).transpose(0, 2, 1)
    law = -inverse @ change @ inverse @ array(b)
    # two solutions and two products with matrices of two rows, whose condition is below 6
    case.close(found, law, k=6 * 16, scale=abs(inverse) @ abs(change) @ abs(inverse) @ abs(array(b)))


SOLVED = {  # of [[t + 2, 1], [1, 3]], whose determinant is 3 t + 5
    "det": (lambda a: torch.linalg.det(a * a[:1, :1]), lambda t: 18 * t + 34),  # of (t + 2)^2 (3 t + 5)
    "slogdet": (lambda a: torch.linalg.slogdet(a)[1], lambda t: -9 / (3 * t + 5) ** 2),
    "solve": (lambda a: torch.linalg.solve(a, torch.ones_like(a[0])).sum(), lambda t: 24 / (3 * t + 5) ** 3),
}


@claim("autograd.forward.solve-twice")
@axes(**EAGER)
@pytest.mark.parametrize("name", SOLVED)
def test_the_tangent_of_what_solves_a_matrix_is_differentiable(case, name):
    function, law = SOLVED[name]
    t = case.tensor_of(0.7, requires_grad=True)
    with forward_ad.dual_level():
        s = forward_ad.make_dual(t, torch.ones_like(t))
        one = torch.ones_like(s)
        y = function(torch.stack((s + 2, one, one, 3 * one)).reshape(2, 2))
        (found,) = torch.autograd.grad(forward_ad.unpack_dual(y).tangent, t)
    case.close(found, law(array(t)), k=64, scale=abs(law(array(t))) + 1)  # some thirty steps of a matrix of condition 3


@claim("autograd.forward.eigenvectors-twice")
@axes(**EAGER)
def test_the_tangent_of_eigenvectors_is_differentiable(case):
    """The square of the first entry of the first one, of the matrix of 1, t, t and 3."""
    t = case.tensor_of(0.7, requires_grad=True)
    with forward_ad.dual_level():
        s = forward_ad.make_dual(t, torch.ones_like(t))
        one = torch.ones_like(s)
        y = torch.linalg.eigh(torch.stack((one, s, s, 3 * one)).reshape(2, 2))[1][0, 0] ** 2
        (found,) = torch.autograd.grad(forward_ad.unpack_dual(y).tangent, t)
    at = array(t)
    case.close(found, (2 * at**2 - 1) / (2 * (1 + at**2) ** 2.5), k=64, scale=1)  # some thirty steps on numbers below 1


NORMALISED = {  # rows of two numbers
    "layer_norm": lambda x: F.layer_norm(x, (2,), eps=0.25),
    "group_norm": lambda x: F.group_norm(x, 1, eps=0.25),
    "batch_norm": lambda x: F.batch_norm(x.reshape(2, 1), None, None, training=True, eps=0.25),
    "instance_norm": lambda x: F.instance_norm(x.reshape(1, 1, 2), eps=0.25),
}


@claim("autograd.forward.norm-twice")
@axes(**EAGER)
@pytest.mark.parametrize("name", NORMALISED)
def test_the_tangent_of_a_normalisation_is_differentiable(case, name):
    """The numbers t and 0 become t / sqrt(1 + t^2) and its opposite."""
    t = case.tensor_of(0.7, requires_grad=True)
    with forward_ad.dual_level():
        s = forward_ad.make_dual(t, torch.ones_like(t))
        y = NORMALISED[name](torch.stack((s, torch.zeros_like(s)))[None]).reshape(2)
        (found,) = torch.autograd.grad(forward_ad.unpack_dual(y[1]).tangent, t)
    at = array(t)
    case.close(found, 3 * at / (1 + at**2) ** 2.5, k=64, scale=4)  # some thirty steps, none of them on numbers above 4


@claim("autograd.forward.det-of-singular")
@axes(**EAGER)
def test_the_tangent_of_a_determinant_of_zero(case):
    a, v = case.tensor_of([[1.0, 2.0], [2.0, 4.0]]), case.tensor_of([[3.0, 1.0], [0.5, 2.0]])
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(torch.linalg.det(forward_ad.make_dual(a, v))).tangent
    wanted = np.array(4 * 3.0 - 2 * 1.0 - 2 * 0.5 + 1 * 2.0)
    case.close(found, wanted, k=16, scale=17)  # the terms, each taken absolutely


@claim("autograd.forward.prelu-at-its-kink")
@axes(**EAGER)
def test_the_slope_of_prelu_at_zero(case):
    x, v = case.tensor_of([[0.0, 0.0]], requires_grad=True), case.tensor_of([[2.0, -4.0]])
    with forward_ad.dual_level():
        y = F.prelu(forward_ad.make_dual(x, v), case.tensor_of([0.25]))
        case.same(forward_ad.unpack_dual(y).tangent.detach(), case.tensor_of([[0.5, -1.0]]))
        (gradient,) = torch.autograd.grad(y, x, v)
    case.same(gradient, case.tensor_of([[0.5, -1.0]]))


POWERS = {  # of two and of i
    "base": (lambda t: t ** torch.full_like(t, 1j, dtype=torch.complex128), 1j * 2 ** (1j - 1)),
    "exponent": (lambda t: torch.full_like(t, 1j, dtype=torch.complex128) ** t, -0.5j * np.pi),
}


@claim("autograd.forward.complex-power")
@axes(dtype="float64", via="eager")
@pytest.mark.parametrize("name", POWERS)
def test_the_tangent_of_a_complex_power_is_complex(case, name):
    function, law = POWERS[name]
    t = case.tensor_of([2.0])
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(function(forward_ad.make_dual(t, torch.ones_like(t)))).tangent
    case.close(found, np.array([law]), k=16)  # a power, a logarithm and a product, of some ten steps


@claim("autograd.gradient.complex-exponent")
@axes(dtype="complex128", via="eager")
def test_the_gradient_in_the_complex_exponent_of_a_negative_number(case):
    z = torch.full_like(case.tensor(1), 0.5 + 1j).requires_grad_()
    y = torch.pow(torch.full_like(z.detach().real, -2.0), z)
    y.backward(torch.ones_like(y))
    law = np.conj(np.power(-2 + 0j, 0.5 + 1j) * np.log(-2 + 0j))
    case.close(z.grad, np.array([law]), k=16)  # a power, a logarithm and a product, of some ten steps


@claim("autograd.forward.unit-triangle")
@axes(**EAGER)
@pytest.mark.filterwarnings("ignore:torch.triangular_solve")
def test_the_diagonal_of_a_unit_triangle_has_no_tangent(case):
    a, b = case.tensor_of([[2.0, 1.0], [0.0, 3.0]]), case.tensor_of([[1.0], [2.0]])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(a, torch.eye(2, dtype=case.dtype, device=case.device))
        found = forward_ad.unpack_dual(torch.triangular_solve(b, dual, unitriangular=True).solution).tangent
    case.close(found, np.zeros((2, 1)), k=0)


@claim("autograd.forward.padding-row")
@axes(**EAGER)
def test_the_padding_row_has_no_tangent(case):
    table, v = case.tensor(3, 2), case.tensor(3, 2)
    index = torch.tensor([1, 2, 1], device=case.device)
    with forward_ad.dual_level():
        y = F.embedding(index, forward_ad.make_dual(table, v), padding_idx=1)
        found = forward_ad.unpack_dual(y).tangent
    case.same(found, torch.stack((torch.zeros_like(v[1]), v[2], torch.zeros_like(v[1]))))


@claim("autograd.forward.softmax-of-nothing")
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_the_tangent_of_a_softmax_over_nothing(case, name):
    with forward_ad.dual_level():
        y = getattr(F, name)(forward_ad.make_dual(case.tensor(2, 0), case.tensor(2, 0)), -1)
        assert forward_ad.unpack_dual(y).tangent.shape == (2, 0)


@claim("autograd.forward.angle-at-the-origin")
@axes(**EAGER)
def test_the_tangent_of_an_angle_at_the_origin(case):
    x = case.tensor_of([0.0])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        found = forward_ad.unpack_dual(torch.atan2(dual, dual)).tangent
    case.close(found, np.zeros(1), k=0)


@claim("autograd.gradient.entropy-at-the-ends")
@axes(**EAGER)
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_the_derivative_of_a_cross_entropy_at_its_ends(case, mode):
    x = case.tensor_of([0.0, 1.0], requires_grad=True)
    with forward_ad.dual_level():
        y = F.binary_cross_entropy(forward_ad.make_dual(x, torch.ones_like(x)), x.detach(), reduction="none")
        if mode == "forward":
            found = forward_ad.unpack_dual(y).tangent
        else:
            (found,) = torch.autograd.grad(y.sum(), x)
    case.close(found, np.array([1.0, -1.0]), k=4)


@claim("autograd.forward.infinite-tangent-of-the-other")
@axes(**EAGER)
@pytest.mark.parametrize("name", ["maximum", "minimum", "fmax", "fmin"])
def test_the_tangent_of_the_greater_alone_counts(case, name):
    pairs = [(-3.0, np.inf), (2.0, 1.5)] if name in ("maximum", "fmax") else [(3.0, np.inf), (-2.0, 1.5)]
    with forward_ad.dual_level():
        lost, kept = (forward_ad.make_dual(case.tensor_of([x]), case.tensor_of([v])) for x, v in pairs)
        for ordered in ((lost, kept), (kept, lost)):
            found = forward_ad.unpack_dual(getattr(torch, name)(*ordered)).tangent
            case.same(found, case.tensor_of([1.5]))


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


@claim("autograd.gradcheck.jacobians")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_jacobians_may_be_had_without_a_verdict(case):
    module, x = sys.modules["torch.autograd.gradcheck"], doubles(case, 3)
    (numerical,) = module.get_numerical_jacobian(lambda given: given[0] ** 2, (x,))
    analytical, reentrant, sizes, types = module.get_analytical_jacobian((x,), x**2)
    wanted = np.diag(2 * array(x))
    case.close(analytical[0].to(x.dtype), wanted, k=2, scale=abs(wanted) + 1)
    assert abs(array(numerical) - wanted).max() < 1e-8  # rounding, 1e-16, over steps of 1e-6
    assert (reentrant, sizes, types) == (True, True, True)
    for wrong in (2.0, 1j):
        with case.raises(ValueError, "grad_out"):
            module.get_numerical_jacobian(lambda given: given[0] ** 2, (x,), grad_out=wrong)
        with case.raises(ValueError, "grad_out"):
            module.get_analytical_jacobian((x,), x**2, grad_out=wrong)


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


class Rule(torch.autograd.Function):
    """Twice a, and a times b, with rules that a table of faults may replace."""

    @staticmethod
    def forward(ctx, rules, a, b):
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)
        ctx.set_materialize_grads(rules.get("materialize", True))
        ctx.rules = rules
        return 2 * a, a * b

    @staticmethod
    def backward(ctx, g, h):
        a, b = ctx.saved_tensors
        return None, *ctx.rules.get("backward", right)(a, b, g, h)

    @staticmethod
    def jvp(ctx, _, s, t):
        a, b = ctx.saved_tensors
        return ctx.rules.get("jvp", forwards)(a, b, s, t)


def right(a, b, g, h):
    return 2 * g + h * b.conj(), h * a.conj()


def forwards(a, b, s, t):
    return 2 * s, s * b + t * a


def unsteady(a, b, g, h, calls=[0]):  # noqa: B006
    calls[0] += 1
    return tuple(x * (1 + 1e-9 * calls[0]) for x in right(a, b, g, h))


def of_present(a, b, g, h):
    return right(a, b, torch.zeros_like(a) if g is None else g, torch.zeros_like(a) if h is None else h)


FAULTS = {  # name: (the rules, real or complex, options under which it shows, options under which it does not, words)
    "second input": (
        {"backward": lambda a, b, g, h: (2 * g + h * b, h * a * 1.1)}, "real", {}, {"rtol": 0.2}, "mismatch"),
    "second output": (
        {"backward": lambda a, b, g, h: (2 * g + h * b * 1.1, h * a)}, "real", {}, {"atol": 2}, "mismatch"),
    "no conjugate": (
        {"backward": lambda a, b, g, h: (2 * g + h * b, h * a)}, "complex", {}, {"atol": 20}, "mismatch"),
    "real part only": (
        {"backward": lambda a, b, g, h: tuple(x.real + 0j for x in right(a, b, g, h))},
        "complex", {}, {"atol": 20}, "mismatch"),
    "jvp": ({"jvp": lambda a, b, s, t: (2 * s, s * b)}, "real", {"check_forward_ad": True}, {}, "mismatch"),
    "jvp of complex numbers": (
        {"jvp": lambda a, b, s, t: (2 * s, s.conj() * b + t * a)},
        "complex", {"check_forward_ad": True}, {}, "mismatch"),
    "dtype of jvp": (
        {"jvp": lambda a, b, s, t: (2 * s + 0j, s * b + t * a + 0j)}, "real",
        {"check_forward_ad": True, "check_grad_dtypes": True}, {"check_forward_ad": True}, "dtype mismatch"),
    "backward": (
        {"backward": lambda a, b, g, h: (g, h)}, "real", {"check_forward_ad": True},
        {"check_forward_ad": True, "check_backward_ad": False, "check_undefined_grad": False}, "mismatch"),
    "unsteady": ({"backward": unsteady}, "real", {}, {"nondet_tol": 1e-3}, "not reentrant"),
    "constant": (
        {"backward": lambda a, b, g, h: (2 * g + h * b + 1e-6, h * a)},
        "real", {}, None, "not multiplied by grad_output"),
    "undefined": (
        {"backward": right, "materialize": False}, "real", {}, {"check_undefined_grad": False}, "NoneType|undefined"),
    "undefined is made up": (
        {"backward": lambda a, b, g, h: tuple(x + (g is None) for x in of_present(a, b, g, h)), "materialize": False},
        "real", {}, {"check_undefined_grad": False}, "undefined"),
    "steps": ({}, "real", {"eps": 1.0, "atol": 1e-9, "rtol": 0}, {"eps": 1e-3}, "mismatch"),
}  # fmt: skip


@claim("autograd.gradcheck.options")
@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("fast_mode", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_gradcheck_finds_what_its_options_ask_for(case, name, fast_mode):
    rules, kind, found_with, passed_with, words = FAULTS[name]
    a, b = doubles(case, 2), doubles(case, 2)
    if kind == "complex":
        a, b = (torch.complex(x.detach(), doubles(case, 2).detach()).requires_grad_() for x in (a, b))

    def check(rules, **options):
        def function(a, b):
            first, second = Rule.apply(rules, a, b)
            return (first + second + a**3,) if "materialize" in rules or name == "steps" else (first, second)

        return gradcheck(function, (a, b), fast_mode=fast_mode, **options)

    if name != "steps" and fast_mode == ("jvp" in name or "undefined" in name):
        assert check(rules | {"backward": of_present, "jvp": forwards}, **found_with)
    with case.raises((RuntimeError, TypeError), words):
        check(rules, **found_with)
    if "undefined" not in name and fast_mode:
        assert check(rules, raise_exception=False, **found_with) is False
    if passed_with is not None:
        assert check(rules, **passed_with), f"{name} is found with {passed_with}"


@claim("autograd.gradcheck.arguments")
def test_gradcheck_refuses_what_it_cannot_check(case):
    a = doubles(case, 3)
    total = a.sum().item()
    for function, inputs, options, kind, words in (
        (torch.square, a.detach().expand(2, 3).requires_grad_(), {}, RuntimeError, "stride 0"),
        (lambda a: a.to_sparse(), a, {}, ValueError, "Sparse output is not supported"),
        (lambda a: a.detach() * 2, a, {}, RuntimeError, "expected to be zero"),
        (lambda a: a[: 1 + int(a.sum() > total)], a, {}, AssertionError, "same shape"),
        (torch.square, a, {"check_backward_ad": False, "check_undefined_grad": False}, AssertionError, "at least one"),
        (torch.square, a, {"check_backward_ad": False, "check_forward_ad": True, "check_batched_grad": True,
                           "check_undefined_grad": False}, AssertionError, "check_batched_grad"),
        (torch.square, a, {"check_batched_forward_grad": True}, AssertionError, "check_batched_forward_grad"),
    ):  # fmt: skip
        for fast_mode in (False, True):
            with case.raises(kind, words):
                gradcheck(function, inputs, fast_mode=fast_mode, **options)
    for fast_mode in (False, True):
        assert gradcheck(lambda a: a.long(), a, fast_mode=fast_mode)
        assert gradcheck(lambda a, n: (a * n, a.long()), (a, 3.0), fast_mode=fast_mode)
        assert gradcheck(lambda a: a * 2, a[:0], fast_mode=fast_mode)
        for function, kind in ((torch.view_as_real, "in"), (torch.view_as_complex, "out"), (torch.square, "both")):
            z = case.tensor(3, 2, dtype=torch.float64)
            z = z if kind == "out" else torch.view_as_complex(z)
            assert gradcheck(function, z.requires_grad_(), fast_mode=fast_mode, check_forward_ad=True,
                             check_batched_grad=True, check_batched_forward_grad=True), kind  # fmt: skip


class Unbatched(torch.autograd.Function):
    """Twice its input; its rules leave torch, so that no batch passes them."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2 if float(g.sum()) < 1e9 else g

    @staticmethod
    def jvp(ctx, t):
        return t * 2 if float(t.sum()) < 1e9 else t


@claim("autograd.gradcheck.batched")
def test_gradcheck_tries_batched_gradients(case):
    x = doubles(case, 3)
    assert gradcheck(Unbatched.apply, x, check_forward_ad=True)
    for options in ({"check_batched_grad": True}, {"check_batched_forward_grad": True, "check_forward_ad": True}):
        with case.raises(RuntimeError, "batched grad"):
            gradcheck(Unbatched.apply, x, **options)
        assert gradcheck(Unbatched.apply, x, raise_exception=False, **options) is False


@claim("autograd.gradcheck.outputs-without-gradient")
def test_gradcheck_asks_no_gradient_of_a_constant(case):
    assert gradcheck(lambda x: ((2 * x).detach(), 3 * x), doubles(case, 3), fast_mode=True)


class Narrow(torch.autograd.Function):
    """Twice its input, with a gradient in float32."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return (g * 2).float()


@claim("autograd.gradcheck.dtype-by-name")
@pytest.mark.parametrize("fast_mode", [False, True])
def test_gradcheck_says_that_the_dtype_is_another(case, fast_mode):
    x = doubles(case, 3)
    assert gradcheck(Narrow.apply, x, fast_mode=fast_mode, check_grad_dtypes=True)  # autograd has cast it
    x.grad_dtype = None
    with case.raises(RuntimeError, "dtype mismatch"):
        gradcheck(Narrow.apply, x, fast_mode=fast_mode, check_grad_dtypes=True)


@claim("autograd.gradcheck.second-look")
def test_gradcheck_looks_again_by_the_same_step(case):
    x, seen = doubles(case, 2), []

    def half_a_rule(x):
        seen.append(x.detach().clone())
        return x * x.detach()

    assert not gradcheck(half_a_rule, x, eps=0.25, fast_mode=True, raise_exception=False)
    steps = [float((each - x.detach()).norm()) for each in seen]
    assert all(step == 0 or abs(step - 0.25) < 1e-3 for step in steps), steps


@claim("autograd.gradcheck.second-order-options")
def test_gradgradcheck_takes_what_gradcheck_takes(case):
    x, check = doubles(case, 2), torch.autograd.gradgradcheck
    for options in (
        {"check_fwd_over_rev": True},
        {"fast_mode": True, "gen_non_contig_grad_outputs": True},
        {"grad_outputs": doubles(case, 2), "check_batched_grad": True},
        {"check_rev_over_rev": False, "check_fwd_over_rev": True, "check_undefined_grad": False},
    ):
        assert check(torch.exp, x, **options), options
        with case.raises(RuntimeError, "mismatch"):
            check(lambda x: x**5, x, eps=1e-1, atol=1e-9, rtol=0, **options)
    assert check(lambda x: x**5, x, eps=1e-1, atol=1e-9, rtol=0, raise_exception=False) is False
    forwards_alone = {"check_rev_over_rev": False, "check_fwd_over_rev": True}
    for options in (
        {"check_rev_over_rev": False},
        forwards_alone,
        forwards_alone | {"check_undefined_grad": False, "check_batched_grad": True},
    ):
        with case.raises(AssertionError, "check_rev_over_rev"):
            check(torch.exp, x, **options)


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
    for options in ({}, {"pin_memory": True}):
        for kind in (x.dtype, torch.float64):
            x.grad = None
            with save_on_cpu(**options):
                loss = x.to(kind).sin().prod()
            loss.backward()
            assert kind != x.dtype or torch.equal(x.grad, plain), f"{options} gives another gradient"
            case.close(x.grad, array(plain), k=30, scale=abs(array(plain)))  # the sines and their product, twice


@claim("autograd.graph.nodes-are-nodes")
def test_every_node_is_a_node(case):
    x, node = case.tensor(3, requires_grad=True), torch.autograd.graph.Node

    class Own(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x * 2)
        backward = staticmethod(lambda ctx, g: g * 2)

    for y in (x * 2, x.sum(), Own.apply(x)):
        assert isinstance(y.grad_fn, node)
        assert issubclass(type(y.grad_fn), node)
        assert isinstance(y.grad_fn.next_functions[0][0], node)
    for other in (x, 3, None, node):
        assert not isinstance(other, node), other
    assert not issubclass(torch.Tensor, node)
    assert not issubclass(type(x.sum().grad_fn), type("Other", (node,), {}))


@claim("autograd.graph.edges-of-own-functions")
def test_an_edge_keeps_the_graph_of_an_own_function_alive(case):
    class Own(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x * 2)
        backward = staticmethod(lambda ctx, g: g * 5)

    x = case.tensor(3, requires_grad=True)
    own, plain = (torch.autograd.graph.get_gradient_edge(y) for y in (Own.apply(x * 1), x * 1))
    assert own.ownership_token is not None
    assert plain.ownership_token is None
    torch.autograd.backward([own], [torch.ones_like(x)])
    case.same(x.grad, torch.full_like(x, 5))


@claim("autograd.graph.memory-budget")
def test_a_memory_budget_is_a_share_and_for_the_compiler(case):
    budget = torch.autograd.graph.region_activation_memory_budget
    for wrong, kind, words in (
        (True, TypeError, "expects a float, got bool"),
        ("half", TypeError, "expects a float, got str"),
        (-0.01, ValueError, "must be in"),
        (1.01, ValueError, "must be in"),
        (0.0, RuntimeError, "only be used inside"),
        (1.0, RuntimeError, "only be used inside"),
        (1, RuntimeError, "only be used inside"),
    ):
        with case.raises(kind, words), budget(wrong):
            pass


class Listing(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@claim("autograd.graph.logged")
def test_backward_logs_its_nodes_when_asked(case):
    x, logger, listing = case.tensor(2, 3, requires_grad=True), logging.getLogger("torch.autograd.graph"), Listing()
    before, spread = logger.level, logger.propagate
    logger.addHandler(listing)
    logger.propagate = False
    try:
        for level, told in ((logging.DEBUG, 4), (logging.INFO, 0)):
            logger.setLevel(level)
            listing.lines.clear()
            y = x.exp()
            loss = (y + y).sum()
            for again in (True, False):
                listing.lines.clear()
                loss.backward(retain_graph=again)
            lines = [line for line in listing.lines if line.startswith("Executing")]
            assert len(lines) == told, lines
            for name, shape in (("SumBackward", "f32[]"), ("ExpBackward", "f32[2, 3]")) if told else ():
                (line,) = (line for line in lines if name in line)
                assert line.endswith(f"with grad_outputs: [{shape}]")
        logger.setLevel(logging.DEBUG)
        listing.lines.clear()
        a = (x * 2).unbind()[0]
        torch.autograd.grad([a.sum(), a.sum()], x)
        assert any("[f32[3],None]" in line for line in listing.lines), listing.lines
    finally:
        logger.setLevel(before)
        logger.propagate = spread
        logger.removeHandler(listing)
    case.same(x.grad, 8 * x.detach().exp())


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
