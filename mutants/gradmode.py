"""The ways in which grad modes go wrong."""

import inspect

import torch
from torch import nn
from torch.autograd import grad_mode
from torch.utils import _contextlib

from torch_conformance.mutation import mutant

Tensor = torch.Tensor


@mutant("gradmode.no-grad.results-require-no-grad", "gradmode.no-grad.saves-nothing", "gradmode.context.nests")
def no_grad_does_nothing(patch):
    """Restores the mode on entry, where it should switch it off."""
    patch.source(torch.no_grad.__enter__, "set_grad_enabled(False)", "set_grad_enabled(self.prev)")


@mutant("gradmode.no-grad.results-require-no-grad")
def no_grad_clears_the_flags_of_inputs(patch):
    """Suspends the attribute, not its effect."""
    patch.wrap(Tensor, "exp", lambda o, x: o(x) if torch.is_grad_enabled() else o(x.requires_grad_(False)))


@mutant("gradmode.no-grad.same-values")
def no_grad_takes_another_kernel(patch):
    """Takes a faster kernel in inference that rounds otherwise."""

    def linear(original, x, w, b=None):
        return original(x, w, b) if torch.is_grad_enabled() else original(x, w * 3, b * 3) / 3

    patch.wrap(nn.functional, "linear", linear)


@mutant("gradmode.no-grad.not-eval")
def no_grad_means_eval(patch):
    """Switches dropout off with gradients: the belief itself."""
    patch.wrap(nn.functional, "dropout", lambda o, x, p, t, i: o(x, p, t and torch.is_grad_enabled(), i))


@mutant("gradmode.no-grad.factories-keep-their-flag")
def factories_obey_no_grad(patch):
    """Takes the flag from factories as well."""
    patch.wrap(
        torch,
        "zeros",
        lambda o, *a, requires_grad=False, **k: o(*a, requires_grad=requires_grad and torch.is_grad_enabled(), **k),
    )


@mutant("gradmode.no-grad.results-are-constants", "gradmode.no-grad.backward-works-inside")
def no_grad_makes_inference_tensors(patch):
    """Enters inference mode for no_grad, and refuses what that refuses."""
    patch.set(torch, "no_grad", torch.inference_mode)
    patch.wrap(
        torch.autograd, "_engine_run_backward", lambda o, *a, **k: o(*a, **k) if torch.is_grad_enabled() else fail()
    )


def fail():
    raise RuntimeError("backward under no_grad")


@mutant("gradmode.no-grad.manual-update")
def leaves_are_updated_anywhere(patch):
    """Updates a leaf in place without being told that this is no operation of the graph."""
    patch.wrap(Tensor, "__isub__", lambda o, x, y: x.data.sub_(y) is None or x)


@mutant("gradmode.no-grad.views-keep-the-flag")
def views_require_no_grad(patch):
    """Clears the flag of views, as the documentation says."""
    for name in ("__getitem__", "view", "expand"):
        patch.wrap(Tensor, name, lambda o, x, *a: o(x, *a) if torch.is_grad_enabled() else o(x, *a).detach())


@mutant("gradmode.no-grad.views-are-not-modified-outside")
def views_are_copies(patch):
    """Copies where it should view."""
    patch.wrap(Tensor, "__getitem__", lambda o, x, i: o(x, i) if torch.is_grad_enabled() else o(x, i).clone())


@mutant("gradmode.no-grad.in-place-result")
def in_place_changes_are_always_recorded(patch):
    """Records in-place operations in every mode."""

    def mul(original, x, y):
        with torch.enable_grad():
            return original(x, y)

    patch.wrap(Tensor, "mul_", mul)


@mutant("gradmode.no-grad.forward-mode-goes-on")
def no_grad_stops_forward_mode(patch):
    """Drops tangents with gradients."""
    patch.wrap(
        torch.autograd.forward_ad,
        "unpack_dual",
        lambda o, x: o(x) if torch.is_grad_enabled() else torch.autograd.forward_ad.UnpackedDualTensor(x, None),
    )


@mutant("gradmode.context.sets-and-restores", "gradmode.context.restores-after-an-error")
def no_grad_leaves_gradients_on(patch):
    """Switches gradients on when left, whatever was before."""
    patch.source(torch.no_grad.__exit__, "self.prev", "True")


@mutant("gradmode.context.sets-and-restores")
def enable_grad_does_not_restore(patch):
    """Leaves gradients on."""
    patch.source(torch.enable_grad.__exit__, "self.prev", "True")


@mutant("gradmode.context.restores-after-an-error")
def errors_leave_the_mode(patch):
    """Restores the mode only where no error passed."""
    patch.wrap(torch.enable_grad, "__exit__", lambda o, s, kind, *rest: o(s, kind, *rest) if kind is None else None)


@mutant("gradmode.context.restores-after-an-error")
def errors_are_swallowed(patch):
    """Returns true from __exit__."""
    patch.wrap(torch.no_grad, "__exit__", lambda o, s, *rest: o(s, *rest) is None)


@mutant("gradmode.context.reusable")
def mode_is_remembered_when_made(patch):
    """Remembers the mode from when the context was made."""
    patch.source(torch.no_grad.__init__, "self.prev = False", "self.prev = torch.is_grad_enabled()")
    patch.source(torch.no_grad.__enter__, "self.prev = torch.is_grad_enabled()", "pass")


@mutant("gradmode.context.entered-not-made")
def no_grad_acts_when_made(patch):
    """Acts when made, as set_grad_enabled does."""
    patch.source(torch.no_grad.__init__, "self.prev = False", "self.prev = torch.set_grad_enabled(False)")


@mutant("gradmode.set-grad-enabled.at-once")
def set_grad_enabled_waits(patch):
    """Waits until it is entered."""
    patch.source(torch.set_grad_enabled.__init__, "torch._C._set_grad_enabled(mode)", "pass")


@mutant("gradmode.set-grad-enabled.decorator")
def set_grad_enabled_decorates_at_once(patch):
    """Leaves the mode switched when it decorates."""
    patch.source(torch.set_grad_enabled.__call__, "torch._C._set_grad_enabled(self.prev)", "pass")


@mutant("gradmode.set-grad-enabled.decorator", "gradmode.decorator.function")
def clone_forgets_the_mode(patch):
    """Runs every decorated function with gradients on."""
    patch.source(torch.set_grad_enabled.clone, "self.__class__(self.mode)", "self.__class__(True)")


@mutant("gradmode.decorator.function")
def decorator_forgets_the_name(patch):
    """Wraps without taking over name and docstring."""
    patch.source(_contextlib.context_decorator, "@functools.wraps(func)", "")


@mutant("gradmode.decorator.function", "gradmode.decorator.recursion")
def decorator_does_not_enter(patch):
    """Calls the function as it is."""
    patch.source(_contextlib.context_decorator, "with ctx_factory():", "if True:")


@mutant("gradmode.decorator.error")
def decorator_skips_its_exit(patch):
    """Leaves the mode as it is when an error passes."""
    patch.wrap(torch.enable_grad, "__exit__", lambda o, s, kind, *rest: o(s, kind, *rest) if kind is None else None)


@mutant("gradmode.decorator.without-parentheses")
def decorator_needs_parentheses(patch):
    """Takes the function for an argument and drops it."""
    patch.source(_contextlib._NoParamDecoratorContextManager.__new__, "return cls()(orig_func)", "return orig_func")


@mutant("gradmode.decorator.without-parentheses", "gradmode.inference.decorator-mode")
def inference_mode_decorates_nothing(patch):
    """Forgets the mode in the copy for each call."""
    patch.source(grad_mode.inference_mode.clone, "self.__class__(self.mode)", "self.__class__(not self.mode)")


@mutant("gradmode.decorator.generator")
def generators_are_plain_functions(patch):
    """Wraps a generator like a function, so that its body runs outside of the mode."""
    patch.source(_contextlib.context_decorator, "if inspect.isgeneratorfunction(func):", "if False:")


@mutant("gradmode.decorator.generator")
def generators_forget_their_result(patch):
    """Drops what the generator returns."""
    patch.source(_contextlib._wrap_generator, "return e.value", "return None")


@mutant("gradmode.decorator.generator-closed")
def closing_is_not_passed_on(patch):
    """Does not close what it wraps."""
    patch.source(_contextlib._wrap_generator, "gen.close()", "pass")


@mutant("gradmode.decorator.coroutine")
def coroutines_run_in_the_mode(patch):
    """Enters the mode within the coroutine: the belief itself."""

    def decorate(original, context, function):
        async def run(*args, **kwargs):
            with context():
                return await function(*args, **kwargs)

        return run if inspect.iscoroutinefunction(function) else original(context, function)

    patch.wrap(_contextlib, "context_decorator", decorate)


@mutant("gradmode.decorator.class-deprecated")
def classes_are_not_covered(patch):
    """Warns and returns the class as it is."""
    patch.wrap(_contextlib, "context_decorator", lambda o, ctx, f: f if f.__name__ == "<lambda>" else o(ctx, f))


@mutant("gradmode.threads.local")
def mode_is_global(patch):
    """Keeps one mode for all threads."""
    import threading

    def start(original, thread):
        enabled, run = torch.is_grad_enabled(), thread.run
        thread.run = lambda: (torch._C._set_grad_enabled(enabled), run())
        return original(thread)

    patch.wrap(threading.Thread, "start", start)


@mutant("gradmode.inference.flags", "gradmode.inference.enable-grad-inside")
def inference_mode_is_always_on(patch):
    """Ignores its argument."""
    patch.source(grad_mode.inference_mode.__enter__, "_InferenceMode(self.mode)", "_InferenceMode(True)")


@mutant(
    "gradmode.inference.no-version",
    "gradmode.inference.not-modified-outside",
    "gradmode.inference.not-saved-for-backward",
    "gradmode.inference.clone-is-normal",
    "gradmode.inference.normal-tensors-inside",
    "gradmode.inference.flags",
)
def inference_mode_is_no_grad(patch):
    """Takes no_grad for inference mode."""
    patch.source(grad_mode.inference_mode.__enter__, "torch._C._InferenceMode(self.mode)", "torch.no_grad()")


@mutant("gradmode.inference.enable-grad-inside")
def enable_grad_leaves_inference_mode(patch):
    """Records within inference mode: the belief itself."""

    def enter(original, self):
        self.guard = torch._C._InferenceMode(False)
        self.guard.__enter__()
        original(self)

    def leave(original, self, *error):
        original(self, *error)
        self.guard.__exit__(*error)

    patch.wrap(torch.enable_grad, "__enter__", enter)
    patch.wrap(torch.enable_grad, "__exit__", leave)


@mutant("gradmode.inference.forgets-no-flag")
def inference_mode_freezes_what_it_meets(patch):
    """Clears the flag of the parameters that it meets."""

    def linear(original, x, w, b=None):
        return original(x, w, b) if torch.is_grad_enabled() else original(x, w.requires_grad_(False), b)

    patch.wrap(nn.functional, "linear", linear)


@mutant("gradmode.no-grad.results-require-no-grad", "gradmode.context.sets-and-restores")
def no_grad_switches_gradients_on(patch):
    """Passes the wrong constant."""
    patch.source(torch.no_grad.__enter__, "set_grad_enabled(False)", "set_grad_enabled(True)")


@mutant("gradmode.context.sets-and-restores", "gradmode.context.restores-after-an-error")
def set_grad_enabled_does_not_restore(patch):
    """Forgets the mode from before."""
    patch.source(torch.set_grad_enabled.__exit__, "self.prev", "self.mode")


@mutant("gradmode.context.reusable")
def mode_of_the_first_entry_is_restored(patch):
    """Keeps the mode of the first entry for every later one."""
    patch.source(torch.enable_grad.__enter__, "self.prev = ", 'self.prev = vars(self)["prev"] if vars(self) else ')


@mutant("gradmode.set-grad-enabled.at-once")
def set_grad_enabled_takes_the_opposite(patch):
    """Negates its argument."""
    patch.source(torch.set_grad_enabled.__init__, "_set_grad_enabled(mode)", "_set_grad_enabled(not mode)")


@mutant("gradmode.set-grad-enabled.decorator")
def set_grad_enabled_acts_when_decorating(patch):
    """Goes to the new mode again, where it should go back."""
    patch.source(torch.set_grad_enabled.__call__, "self.prev", "self.mode")


@mutant("gradmode.decorator.without-parentheses")
def inference_mode_is_off_by_default(patch):
    """Takes False for the default."""
    patch.set(grad_mode.inference_mode.__init__, "__defaults__", (False,))


@mutant("gradmode.decorator.generator")
def values_sent_are_dropped(patch):
    """Sends None for what it was sent."""
    patch.source(_contextlib._wrap_generator, "gen.send(request)", "gen.send(None)")


@mutant("gradmode.decorator.generator")
def errors_thrown_do_not_arrive(patch):
    """Raises the error that was thrown instead of passing it to the generator."""
    patch.source(_contextlib._wrap_generator, "response = gen.throw(*sys.exc_info())", "raise")


@mutant("gradmode.decorator.class-deprecated")
def classes_are_decorated_in_silence(patch):
    """Says nothing of what is deprecated."""
    patch.silence(_contextlib._DecoratorContextManager.__call__)


@mutant("gradmode.decorator.function", "gradmode.decorator.error")
def decorated_function_restores_nothing(patch):
    """Enters the mode and does not leave it."""
    patch.source(_contextlib.context_decorator, "with ctx_factory():", "if ctx_factory().__enter__() is None:")


@mutant("gradmode.inference.decorator-mode")
def decorated_with_the_default_mode(patch):
    """Makes the copy for each call without the mode."""
    patch.source(grad_mode.inference_mode.clone, "self.__class__(self.mode)", "self.__class__()")


@mutant("gradmode.context.reusable")
def inference_mode_ends_with_its_object(patch):
    """Leaves the mode to the destructor of the guard, which lives as long as the context object."""
    patch.set(torch.inference_mode, "__exit__", lambda self, *_: None)


@mutant("gradmode.switches.act-and-restore")
def switches_stay(patch):
    """Forgets to give back what was before."""
    for name in ("set_multithreading_enabled", "_force_original_view_tracking", "enforce_grad_layout_policy"):
        if switch := getattr(grad_mode, name, None):
            patch.set(switch, "__exit__", lambda self, *_: None)


@mutant("gradmode.switches.grad-layout")
def layout_policy_cannot_be_lifted(patch):
    """Takes the flag and enforces the policy all the same."""
    made = grad_mode.enforce_grad_layout_policy.__init__
    patch.source(made, "_enforcement_enabled(enable)", "_enforcement_enabled(True)")


@mutant("gradmode.switches.versions-preserved")
def versions_are_not_put_back(patch):
    """Remembers the versions and leaves them as they have become."""
    patch.set(grad_mode._unsafe_preserve_version_counter, "__exit__", lambda self, *_: None)


@mutant("gradmode.set-grad-enabled.entered-later")
def entering_sets_nothing(patch):
    """Leaves it at what making the object has set."""
    patch.set(torch.set_grad_enabled, "__enter__", lambda self: None)
