"""torch.autograd.Function: what forward and backward are given, what they may return, and what ctx keeps."""

import gc
import importlib
import weakref

import numpy as np
import pytest
import torch
from torch.autograd import Function, forward_ad
from torch.autograd.function import InplaceFunction, NestedIOFunction, once_differentiable

from torch_conformance.axes import FLOATING
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim, since

pytestmark = axes(via="eager")


def define(forward, backward, setup_context=None, base=Function, **members):
    """A Function of these static methods."""
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward), **members}
    if setup_context:
        methods["setup_context"] = staticmethod(setup_context)
    return type("Defined", (base,), methods)


class Product(Function):
    """x times y, with the analytic gradients; differentiable any number of times."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        return gradient * y, gradient * x


@claim("function.forward.called-by-apply")
@axes(dtype=FLOATING, via="eager")
def test_apply_runs_forward_and_backward_runs_the_rule(case):
    x, y, g = case.tensor(17, requires_grad=True), case.tensor(17, requires_grad=True), case.tensor(17)
    z = Product.apply(x, y)
    case.same(z.detach(), (x * y).detach())
    assert type(z.grad_fn).__name__ == "ProductBackward"
    z.backward(g)
    case.same(x.grad, g * y.detach())
    case.same(y.grad, g * x.detach())


@claim("function.forward.unrecorded")
def test_forward_runs_without_recording(case):
    seen = []

    def forward(ctx, x):
        seen.append((torch.is_grad_enabled(), (x * 2).requires_grad))
        return x * 2

    define(forward, lambda ctx, g: g).apply(case.tensor(3, requires_grad=True))
    assert seen == [(False, False)]
    assert torch.is_grad_enabled()


@claim("function.forward.rule-replaces-derivative")
def test_the_rule_replaces_the_derivative_of_what_forward_did(case):
    x = case.tensor(3, requires_grad=True)
    define(lambda ctx, x: x.exp(), lambda ctx, g: 7 * g).apply(x).sum().backward()
    case.same(x.grad, torch.full_like(x, 7))


@claim("function.forward.constants")
def test_without_anything_that_requires_grad_nothing_is_recorded(case):
    x = case.tensor(3, requires_grad=True)
    assert Product.apply(case.tensor(3), case.tensor(3)).grad_fn is None
    with torch.no_grad():
        assert Product.apply(x, x).grad_fn is None
    assert Product.apply(x, case.tensor(3)).requires_grad


@claim("function.forward.returns-its-input")
def test_an_input_returned_as_it_is_becomes_a_new_tensor(case):
    x = case.tensor(3, requires_grad=True)
    y = define(lambda ctx, x: x, lambda ctx, g: 3 * g).apply(x)
    assert y is not x
    assert y.data_ptr() == x.data_ptr()
    y.sum().backward()
    case.same(x.grad, torch.full_like(x, 3))


class Named(torch.Tensor):
    """A subclass that changes nothing."""


@claim("function.forward.keeps-the-subclass")
def test_an_input_returned_as_it_is_keeps_its_subclass(case):
    x = case.tensor(3).as_subclass(Named).requires_grad_()
    assert type(define(lambda ctx, x: x, lambda ctx, g: 3 * g).apply(x)) is Named


@claim("function.forward.not-to-be-instantiated")
def test_a_function_is_not_called_as_an_object(case):
    with pytest.warns(DeprecationWarning, match="should not be instantiated"):
        made = Product()
    with case.raises(RuntimeError, "Legacy autograd function"):
        made(case.tensor(3), case.tensor(3))


@claim("function.forward.must-be-written")
def test_forward_and_backward_must_be_written(case):
    x = case.tensor(3, requires_grad=True)
    with case.raises(NotImplementedError, "implement the forward"):
        type("Nothing", (Function,), {}).apply(x)
    y = type("NoBackward", (Function,), {"forward": staticmethod(lambda ctx, x: x * 2)}).apply(x)
    with case.raises(NotImplementedError, "implement either the backward or vjp"):
        y.sum().backward()


@claim("function.forward.several-outputs")
def test_several_outputs_have_a_gradient_each(case):
    x = case.tensor(3, requires_grad=True)
    pair = define(lambda ctx, x: (x * 2, x * 3, "word"), lambda ctx, a, b, word: 2 * a + 3 * b)
    double, triple, word = pair.apply(x)
    assert word == "word"
    assert double.grad_fn is triple.grad_fn
    (double * 5 + triple).sum().backward()
    case.same(x.grad, torch.full_like(x, 13))


class Flat:
    """The engine as NestedIOFunction knew it: tensors in a row go in and come out."""

    def _do_forward(self, *tensors):
        self.flat = tensors
        return self.forward(*tensors)

    def _do_backward(self, gradients, retain_variables):
        return self.backward(*gradients)


class Nested(NestedIOFunction, Flat):
    def forward_extended(self, x, rest):
        self.given = x, rest
        self.save_for_backward(x, [rest[0]])
        self.mark_dirty(x, also=[rest[0]])
        self.mark_non_differentiable([x])
        return [x, None, (rest[1], rest[0])]

    def backward_extended(self, first, none, pair):
        self.sent = first, none, pair
        return [first, None], pair


@claim("function.forward.nested")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nested_inputs_are_flat_for_the_engine_and_nested_for_the_rule(case):
    nested, (x, y, z) = Nested(), (case.tensor(2, requires_grad=n == 0) for n in range(3))
    first, none, pair = nested(x, [y, z, None])
    assert [t is u for t, u in zip(nested.flat, (x, y, z), strict=True)] == [True] * 3
    assert not nested.given[0].requires_grad  # the rule sees values alone
    assert type(nested.given[1]) is list
    assert nested.given[1][2] is None
    assert (none, type(pair)) == (None, tuple)
    for found, wanted in ((first, x), (pair[0], z), (pair[1], y)):
        case.same(found, wanted.detach())
    assert [t.data_ptr() for t in nested.to_save] == [x.data_ptr(), y.data_ptr()]
    assert [t.data_ptr() for t in nested.dirty_tensors] == [x.data_ptr(), y.data_ptr()]
    assert [t.data_ptr() for t in nested.non_differentiable] == [x.data_ptr()]
    for retain in (True, False):
        found = nested._do_backward((x, y, z), retain)
        assert nested.sent[0] is x
        assert nested.sent[1] is None
        assert [t is u for t, u in zip(nested.sent[2], (y, z), strict=True)] == [True] * 2
        assert [t is u for t, u in zip(found, (x, None, y, z), strict=True)] == [True] * 4
        assert nested.retain_variables is retain
        assert hasattr(nested, "_nested_output") == hasattr(nested, "_to_save_nested") == retain
    with case.raises(ValueError, "process an input object of type"):
        nested(x, "text")
    empty = type("Empty", (NestedIOFunction,), {})()
    for method in (empty.forward_extended, empty.backward_extended):
        with case.raises(NotImplementedError, ""):
            method(x)
    assert (InplaceFunction().inplace, InplaceFunction(True).inplace) == (False, True)


# -- ctx -------------------------------------------------------------------------------------------------------------


@claim("function.ctx.saved-tensors")
def test_saved_tensors_come_back_as_they_were_saved(case):
    seen, x = [], case.tensor(3, requires_grad=True)

    def forward(ctx, x):
        y = x * 2
        ctx.save_for_backward(x, None, y)
        ctx.number = 5
        return y

    def backward(ctx, g):
        seen.extend(ctx.saved_tensors)
        return g * ctx.number

    y = define(forward, backward).apply(x)
    y.sum().backward()
    assert seen[0] is x
    assert seen[1] is None
    case.same(seen[2].detach(), y.detach())
    assert seen[2].grad_fn is y.grad_fn
    case.same(x.grad, torch.full_like(x, 5))


@claim("function.ctx.saved-tensors-are-checked")
def test_a_saved_tensor_that_was_modified_is_refused(case):
    x, y = case.tensor(3, requires_grad=True), case.tensor(3)
    z = Product.apply(x, y)
    y.add_(1)
    with case.raises(RuntimeError, "modified by an inplace operation"):
        z.sum().backward()


@claim("function.ctx.saved-tensors-are-freed")
def test_saved_tensors_are_freed_by_backward(case):
    x = case.tensor(3, requires_grad=True)
    z = Product.apply(x, x)
    z.sum().backward(retain_graph=True)
    z.sum().backward()
    with case.raises(RuntimeError, "second time"):
        z.sum().backward()


@claim("function.ctx.saved-tensors-go-through-hooks")
def test_saved_tensors_go_through_the_hooks(case):
    packed, x = [], case.tensor(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.detach(), lambda t: 2 * t):
        z = Product.apply(x, case.tensor_of([1.0, 1.0, 1.0]))
    z.sum().backward()
    assert len(packed) == 2
    case.same(x.grad, torch.full_like(x, 2))


@claim("function.ctx.needs-input-grad")
@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)])
def test_needs_input_grad_mirrors_the_inputs(case, flags):
    seen = []

    def backward(ctx, g):
        seen.append(ctx.needs_input_grad)
        return g, None, g

    def forward(ctx, x, word, y):
        seen.append(ctx.needs_input_grad)
        return x + y

    x, y = (case.tensor(3, requires_grad=flag) for flag in flags)
    define(forward, backward).apply(x, "word", y).sum().backward()
    assert seen == [(flags[0], False, flags[1])] * 2


@claim("function.ctx.mark-dirty")
def test_mark_dirty_declares_an_in_place_operation(case):
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(3)

    triple = define(forward, lambda ctx, g: 3 * g)
    x = case.tensor(3, requires_grad=True)
    y = x * 2
    assert triple.apply(y) is y
    assert y._version > 0
    assert type(y.grad_fn).__name__ == "DefinedBackward"
    y.sum().backward()
    case.same(x.grad, torch.full_like(x, 6))
    with case.raises(RuntimeError, "leaf Variable that requires grad"):
        triple.apply(x)


@claim("function.ctx.mark-dirty-of-constants")
def test_a_dirty_constant_comes_back_itself(case):
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(3)

    x = case.tensor(3)
    assert define(forward, lambda ctx, g: 3 * g).apply(x) is x


@claim("function.ctx.mark-dirty-is-checked")
def test_a_dirty_tensor_that_another_backward_needs_is_noticed(case):
    def forward(ctx, x):
        x.detach().numpy()[...] = 0  # what torch cannot see
        ctx.mark_dirty(x)
        return x

    y = case.tensor(3, requires_grad=True).cpu() * 2
    z = y.square()
    define(forward, lambda ctx, g: g).apply(y)
    with case.raises(RuntimeError, "modified by an inplace operation"):
        z.sum().backward()


@claim("function.ctx.mark-dirty-of-own-views")
def test_a_view_of_what_forward_made_is_not_marked_dirty(case):
    def forward(ctx, x):
        view = x.clone()[:2]
        ctx.mark_dirty(view)
        return view.mul_(2)

    with case.raises(RuntimeError, "not an input"):
        define(forward, lambda ctx, g: 2 * g).apply(case.tensor(3, requires_grad=True))


@claim("function.ctx.saved-view-is-freed")
def test_a_dirty_view_that_was_saved_is_freed(case):
    def forward(ctx, x):
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x.mul_(2)

    view = case.tensor(3, requires_grad=True).clone()[:2]
    define(forward, lambda ctx, g: 2 * g).apply(view)
    alive = weakref.ref(view)
    del view
    gc.collect(1)
    assert alive() is None


@claim("function.ctx.mark-non-differentiable")
def test_an_output_marked_non_differentiable_gets_zeros(case):
    seen = []

    def forward(ctx, x):
        values, index = x.sort()
        floor = x.floor()
        ctx.mark_non_differentiable(index, floor)
        ctx.save_for_backward(index)
        return values, index, floor

    def backward(ctx, g, g_index, g_floor):
        seen.extend([g_index, g_floor])
        (index,) = ctx.saved_tensors
        return torch.zeros_like(g).index_put((index,), g)

    x, g = case.tensor(5, requires_grad=True), case.tensor(5)
    values, index, floor = define(forward, backward).apply(x)
    assert (values.requires_grad, index.requires_grad, floor.requires_grad) == (True, False, False)
    (values * g).sum().backward()
    case.same(x.grad, torch.zeros_like(g).index_put((index,), g))
    case.same(seen[1], torch.zeros_like(x))
    assert (seen[0] == 0).all()


@claim("function.ctx.materialized-zeros")
@pytest.mark.parametrize("materialize", [None, True, False])
def test_gradients_that_nobody_sent_are_zeros_or_none(case, materialize):
    seen = []

    def forward(ctx, x):
        if materialize is not None:
            ctx.set_materialize_grads(materialize)
        return x * 2, x[:2] * 3

    def backward(ctx, a, b):
        seen.append(b)
        return 2 * a

    x = case.tensor(3, requires_grad=True)
    define(forward, backward).apply(x)[0].sum().backward()
    if materialize is False:
        assert seen == [None]
    else:
        case.same(seen[0], torch.zeros_like(x[:2].detach()))


# -- backward --------------------------------------------------------------------------------------------------------


@claim("function.backward.number-of-gradients")
@pytest.mark.parametrize("returned", [1, 3])
def test_backward_returns_one_gradient_for_each_input(case, returned):
    x, y = case.tensor(3, requires_grad=True), case.tensor(3, requires_grad=True)
    wrong = define(lambda ctx, x, y: x + y, lambda ctx, g: (g,) * returned)
    with case.raises(RuntimeError, rf"incorrect number of gradients \(expected 2, got {returned}\)"):
        wrong.apply(x, y).sum().backward()


@claim("function.backward.trailing-none")
def test_trailing_none_is_accepted(case):
    x = case.tensor(3, requires_grad=True)
    define(lambda ctx, x: x * 2, lambda ctx, g: (2 * g, None, None)).apply(x).sum().backward()
    case.same(x.grad, torch.full_like(x, 2))


@claim("function.backward.none-is-no-gradient")
def test_none_for_an_input_leaves_its_grad_as_it_is(case):
    x, y = case.tensor(3, requires_grad=True), case.tensor(3, requires_grad=True)
    with case.unchanged(x=x, y=y, but={"y.grad"}):
        define(lambda ctx, x, y: x * y, lambda ctx, g: (None, g)).apply(x, y).sum().backward()
    assert x.grad is None


@claim("function.backward.gradient-for-a-constant")
def test_a_gradient_for_a_constant_is_dropped(case):
    x, y = case.tensor(3, requires_grad=True), case.tensor(3)
    define(lambda ctx, x, y: x * y, lambda ctx, g: (g, g)).apply(x, y).sum().backward()
    assert y.grad is None
    bad = define(lambda ctx, x, n: x * n, lambda ctx, g: (g, g))
    with case.raises(RuntimeError, "different than None.*input was not a Variable"):
        bad.apply(x, 3.0).sum().backward()


@claim("function.backward.shape-is-checked")
def test_a_gradient_of_another_shape_is_refused_or_summed(case):
    x = case.tensor(3, requires_grad=True)
    with case.raises(RuntimeError, "invalid gradient.*shape"):
        define(lambda ctx, x: x * 2, lambda ctx, g: g[:2]).apply(x).sum().backward()
    define(lambda ctx, x: x * 2, lambda ctx, g: torch.ones(4, 3, dtype=g.dtype, device=g.device)).apply(
        x
    ).sum().backward()
    case.same(x.grad, torch.full_like(x, 4))


@claim("function.backward.type-is-checked")
def test_a_gradient_that_is_no_tensor_is_refused(case):
    x = case.tensor(3, requires_grad=True)
    with case.raises((TypeError, RuntimeError), "expected Variable|Tensor.*got float|not a Variable"):
        define(lambda ctx, x: x * 2, lambda ctx, g: 1.0).apply(x).sum().backward()


@claim("function.backward.error-passes-on")
def test_an_error_in_backward_passes_on(case):
    def backward(ctx, g):
        raise KeyError("mine")

    x = case.tensor(3, requires_grad=True)
    with case.raises(KeyError, "mine"):
        define(lambda ctx, x: x * 2, backward).apply(x).sum().backward()
    assert x.grad is None


@claim("function.backward.vjp-is-an-alias")
def test_vjp_is_another_name_of_backward(case):
    x = case.tensor(3, requires_grad=True)
    methods = {"forward": staticmethod(lambda ctx, x: x * 2), "vjp": staticmethod(lambda ctx, g: 5 * g)}
    type("ByVjp", (Function,), methods).apply(x).sum().backward()
    case.same(x.grad, torch.full_like(x, 5))
    both = {**methods, "backward": methods["vjp"]}
    with case.raises(RuntimeError, "both 'backward' and 'vjp'"):
        type("Both", (Function,), both).apply(x).sum().backward()


@claim("function.backward.gradcheck")
def test_gradcheck_accepts_a_correct_function(case):
    x, y = (case.tensor(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(Product.apply, (x, y))
    assert torch.autograd.gradgradcheck(Product.apply, (x, y))


# -- higher derivatives ----------------------------------------------------------------------------------------------


@claim("function.double.backward-is-recorded")
@pytest.mark.parametrize("create_graph", [True, False])
def test_backward_is_recorded_if_a_graph_is_wanted(case, create_graph):
    seen = []

    def backward(ctx, g):
        seen.append(torch.is_grad_enabled())
        (x,) = ctx.saved_tensors
        return 2 * x * g

    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    x = case.tensor(3, requires_grad=True)
    (first,) = torch.autograd.grad(define(forward, backward).apply(x).sum(), x, create_graph=create_graph)
    assert seen == [create_graph]
    assert first.requires_grad == create_graph
    if create_graph:
        case.same(torch.autograd.grad(first.sum(), x)[0], torch.full_like(x, 2))


@claim("function.double.once-differentiable")
def test_once_differentiable_refuses_a_second_derivative(case):
    seen = []

    def backward(ctx, g):
        seen.append(torch.is_grad_enabled())
        return 2 * g * ctx.saved_tensors[0]

    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    x, g = case.tensor(3, requires_grad=True), case.tensor(3, requires_grad=True)
    (first,) = torch.autograd.grad(define(forward, once_differentiable(backward)).apply(x), x, g, create_graph=True)
    assert seen == [False]
    case.same(first.detach(), (2 * g * x).detach())
    with case.raises(RuntimeError, "differentiate twice a function that was marked with @once_differentiable"):
        first.sum().backward()


@claim("function.double.once-differentiable-silent")
def test_once_differentiable_says_nothing_if_no_gradient_requires_grad(case):
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    x = case.tensor(3, requires_grad=True)
    once = define(forward, once_differentiable(lambda ctx, g: 2 * g * ctx.saved_tensors[0]))
    (first,) = torch.autograd.grad(once.apply(x).sum(), x, create_graph=True)
    assert not first.requires_grad
    case.same(first, 2 * x.detach())


@claim("function.double.once-differentiable-several")
def test_once_differentiable_keeps_several_gradients_apart(case):
    x, y, g = (case.tensor(3, requires_grad=True) for _ in range(3))
    once = define(lambda ctx, x, n, y: x + 2 * y, once_differentiable(lambda ctx, g: (g, None, 2 * g)))
    first, second = torch.autograd.grad(once.apply(x, 5, y), [x, y], g, create_graph=True)
    case.same(first.detach(), g.detach())
    case.same(second.detach(), 2 * g.detach())
    case.same(torch.autograd.grad(once.apply(x, 5, y).sum(), y)[0], torch.full_like(y, 2))


# -- setup_context, forward mode and vmap ----------------------------------------------------------------------------


def split(members=None):
    """x^2 times n, with setup_context; ``members`` are added to the class."""

    def setup(ctx, inputs, output):
        x, ctx.n = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        ctx.of = type(inputs), output

    def jvp(ctx, tangent, _):
        return 2 * ctx.n * ctx.saved_tensors[0] * tangent

    return define(
        lambda x, n=3: n * x * x,
        lambda ctx, g: (2 * ctx.n * ctx.saved_tensors[0] * g, None),
        setup,
        jvp=staticmethod(jvp),
        **(members or {}),
    )


@claim("function.setup.forward-without-ctx")
def test_setup_context_fills_ctx_after_a_forward_without_it(case):
    x = case.tensor(3, requires_grad=True)
    y = split().apply(x, 5)
    case.close(y.detach(), 5 * array(x) ** 2, k=2)
    y.sum().backward()
    case.close(x.grad, 10 * array(x), k=2)


@claim("function.setup.default-arguments")
def test_setup_context_sees_default_arguments(case):
    x = case.tensor(3, requires_grad=True)
    split().apply(x).sum().backward()
    case.close(x.grad, 6 * array(x), k=2)


@claim("function.setup.keyword-only-defaults")
def test_forward_may_have_keyword_only_defaults(case):
    x = case.tensor(3, requires_grad=True)

    def forward(x, *, factor=3.0):
        return factor * x

    define(forward, lambda ctx, g: 3 * g, lambda ctx, inputs, output: None).apply(x).sum().backward()
    case.same(x.grad, torch.full_like(x, 3))


@claim("function.setup.saved-as-returned")
def test_setup_context_saves_no_input_that_is_returned(case):
    """What would be saved has not the function's node but that of the input, and with it a wrong second derivative."""
    identity = define(lambda x: x, lambda ctx, g: g, lambda ctx, inputs, output: ctx.save_for_backward(output))
    with case.raises(RuntimeError, "returned as-is"):
        identity.apply(case.tensor(3, requires_grad=True))


@claim("function.setup.transforms-need-it")
def test_only_functions_with_setup_context_work_under_transforms(case):
    x = case.tensor(3)
    found = torch.func.grad(lambda x: split().apply(x, 5).sum())(x)
    case.close(found, 10 * array(x), k=2)
    with case.raises(RuntimeError, "must override the setup_context"):
        torch.func.grad(lambda x: Product.apply(x, x).sum())(x)


@claim("function.jvp.forward-mode")
def test_jvp_is_the_rule_of_forward_mode(case):
    x, v = case.tensor(3), case.tensor(3)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(split().apply(forward_ad.make_dual(x, v), 5)).tangent
        case.close(tangent, 10 * array(x) * array(v), k=3)
        with case.raises(NotImplementedError, "implement the jvp"):
            Product.apply(forward_ad.make_dual(x, v), x)


@claim("function.jvp.nested")
def test_forward_mode_can_be_nested(case):
    square, x, v = split({"generate_vmap_rule": True}), case.tensor(3), case.tensor(3)

    def slope(x):
        return torch.func.jvp(lambda x: square.apply(x, 5), (x,), (v,))[1]

    case.close(torch.func.jvp(slope, (x,), (v,))[1], 10 * array(v) ** 2, k=4)


@claim("function.jvp.saves-tensors-only")
def test_save_for_forward_takes_tensors_only(case):
    def forward(ctx, x):
        ctx.save_for_forward(x, None)
        if x.numel() > 1:
            ctx.save_for_forward(3)
        return x

    with case.raises(AssertionError, "expects all arguments to be tensors"):
        define(forward, lambda ctx, g: g).apply(case.tensor(3, requires_grad=True))
    define(forward, lambda ctx, g: g).apply(case.tensor(1, requires_grad=True))


def vmapped(function, **options):
    """vmap of it, after what torch 2.3 would load within vmap, and fails at: Dynamo."""
    if since("2.3") and not since("2.4"):
        importlib.import_module("torch._dynamo")
    return torch.func.vmap(function, **options)


@claim("function.vmap.generated-rule")
def test_vmap_works_with_a_generated_rule(case):
    x = case.tensor(4, 3, requires_grad=True)
    y = vmapped(lambda x: split({"generate_vmap_rule": True}).apply(x, 5))(x)
    case.close(y.detach(), 5 * array(x) ** 2, k=2)
    y.sum().backward()
    case.close(x.grad, 10 * array(x), k=2)


@claim("function.vmap.generated-rule-marks")
def test_a_generated_rule_keeps_the_marks(case):
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    whole = define(lambda x: x.floor(), lambda ctx, g: g, setup_context, generate_vmap_rule=True)
    y = vmapped(whole.apply)(case.tensor(4, 3, requires_grad=True))
    assert not y.requires_grad


@claim("function.vmap.generated-rule-without-gradient")
def test_a_generated_rule_makes_no_zeros(case):
    seen, x = [], case.tensor(4, 3, requires_grad=True)

    def backward(ctx, first, second):
        seen.append(second)
        return 2 * first

    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)

    both = define(lambda x: (2 * x, 3 * x), backward, setup_context, generate_vmap_rule=True)
    vmapped(both.apply)(x)[0].sum().backward()
    assert seen == [None]
    case.same(x.grad, torch.full_like(x, 2))


@claim("function.vmap.own-rule")
def test_vmap_calls_the_rule_of_the_function(case):
    seen = []

    def rule(info, in_dims, x, n):
        seen.append((info.batch_size, info.randomness, in_dims))
        return n * x * x, in_dims[0]

    x = case.tensor(3, 4)
    y = vmapped(lambda x: split({"vmap": staticmethod(rule)}).apply(x, 5), in_dims=1)(x)
    assert seen == [(4, "error", (1, None))]
    case.close(y, 5 * np.transpose(array(x)) ** 2, k=2)


@claim("function.vmap.needs-a-rule")
def test_vmap_needs_exactly_one_rule(case):
    x = case.tensor(4, 3)
    with case.raises(RuntimeError, "vmap.*generate_vmap_rule|does not have vmap support"):
        vmapped(lambda x: split().apply(x, 5))(x)
    both = split({"generate_vmap_rule": True, "vmap": staticmethod(lambda *a: None)})
    with case.raises(RuntimeError, "both.*generate_vmap_rule|generate_vmap_rule.*vmap"):
        vmapped(lambda x: both.apply(x, 5))(x)


@claim("function.ctx.mark-dirty-of-views")
@axes(via="eager")
@pytest.mark.parametrize("view", ["of-a-leaf", "of-several"])
def test_a_function_changes_no_view_that_an_operation_may_not(case, view):
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(3)

    x = case.tensor(3, requires_grad=True)
    with case.raises(RuntimeError, "view of a leaf" if view == "of-a-leaf" else "is a view"):
        define(forward, lambda ctx, g: 3 * g).apply(x[:1] if view == "of-a-leaf" else x.clone().unbind(0)[0])
