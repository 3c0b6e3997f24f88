"""The ways in which automatic mixed precision goes wrong."""

import torch
import torch.nn.functional as F
from torch import nn

from torch_conformance.mutation import NotApplicable, mutant

autocast = torch.amp.autocast_mode.autocast


def entering(patch, wrapper):
    patch.wrap(autocast, "__enter__", wrapper)


def scaler(patch, name, wrapper):
    if not hasattr(torch.amp, "GradScaler"):
        raise NotApplicable("no torch.amp.GradScaler")
    patch.wrap(torch.amp.GradScaler, name, wrapper)


@mutant(
    "amp.autocast.eligible-operations", "amp.autocast.parameters-stay", "amp.autocast.default-dtype",
    "amp.autocast.backward", "amp.autocast.norm-buffers-stay", "amp.autocast.binary-cross-entropy",
)  # fmt: skip
def autocast_never_enabled(patch):
    """Enters the region without effect, as on a device whose autocast is not implemented."""

    def enter(original, self):
        self._enabled = False
        return original(self)

    entering(patch, enter)


@mutant("amp.autocast.value", "amp.autocast.dtype-given")
def another_dtype(patch):
    """Casts to a dtype of its own choice."""

    def enter(original, self):
        self.fast_dtype = torch.bfloat16 if self.fast_dtype == torch.float16 else torch.float16
        return original(self)

    entering(patch, enter)


@mutant("amp.autocast.others-keep-their-dtype")
def norms_forced_to_float32(patch):
    """Runs norms in float32 on the CPU, as CUDA does."""

    def float32(original, x, *args, **kwargs):
        return original(x.float(), *args, **kwargs)

    for name in ("batch_norm", "layer_norm", "group_norm", "instance_norm"):
        patch.wrap(F, name, float32)


@mutant("amp.autocast.ineligible-dtypes")
def doubles_are_cast(patch):
    """Casts float64 operands too."""
    patch.wrap(F, "linear", lambda original, x, *rest: original(*(
        t.float() if t is not None and t.dtype == torch.float64 and torch.is_autocast_cpu_enabled() else t
        for t in (x, *rest))))  # fmt: skip


@mutant("amp.autocast.in-place-and-out")
def in_place_rounds(patch):
    """Rounds the operands of in-place products."""

    def addmm_(original, self, a, b, **kwargs):
        return original(self, a.bfloat16().float(), b.bfloat16().float(), **kwargs)

    patch.set(torch.Tensor, "addmm_", lambda self, a, b: addmm_(torch._C.TensorBase.addmm_
              if hasattr(torch._C, "TensorBase") else torch._C._TensorBase.addmm_, self, a, b))  # fmt: skip


@mutant("amp.autocast.leaves-modes-alone")
def autocast_switches_gradients_off(patch):
    """Takes mixed precision for inference and switches gradients off."""

    def enter(original, self):
        torch.set_grad_enabled(False)
        return original(self)

    entering(patch, enter)


@mutant("amp.autocast.nested-disable")
def nested_disable_ignored(patch):
    """Leaves the outer region's state where a nested one disables it."""

    def enter(original, self):
        self._enabled = self._enabled or torch.is_autocast_cpu_enabled()
        return original(self)

    entering(patch, enter)


@mutant("amp.autocast.restored-and-thread-local", "amp.autocast.nested-disable")
def state_not_restored(patch):
    """Leaves the region without restoring what was before."""
    patch.wrap(autocast, "__exit__", lambda original, self, *error: (torch.autocast_decrement_nesting(), False)[1])


@mutant("amp.autocast.weight-cache")
def cache_switch_inverted(patch):
    """Caches where it must not, and not where it may."""

    def enter(original, self):
        self._cache_enabled = not self._cache_enabled
        return original(self)

    entering(patch, enter)


@mutant("amp.custom.device-type")
def custom_takes_no_arguments(patch):
    """Needs no device: the notes taken at their word."""
    patch.wrap(torch.amp, "custom_fwd", lambda original, fwd=None, **o: original(fwd, **{"device_type": "cuda", **o}))


@mutant("amp.autocast.weight-cache-is-not-refreshed")
def every_use_casts_anew(patch):
    """Keeps no casts: the belief itself."""

    def enter(original, self):
        self._cache_enabled = False
        return original(self)

    entering(patch, enter)


@mutant("amp.autocast.weight-cache-knows-grad-mode")
def casts_are_kept_without_their_graph(patch):
    """Hands out the first cast of a weight, made with gradients or without."""
    kept = {}

    def linear(original, x, weight, bias=None):
        cast = kept.setdefault(weight, weight.to(torch.bfloat16)) if torch.is_autocast_cpu_enabled() else weight
        return original(x, cast, bias)

    patch.wrap(F, "linear", linear)


@mutant("amp.custom.forward-state")
def custom_backward_in_the_callers_state(patch):
    """Casts nothing and runs backward in whatever state it finds."""
    if not hasattr(torch.amp, "custom_fwd"):
        raise NotApplicable("no torch.amp.custom_fwd")
    patch.set(torch.amp, "custom_fwd", lambda device_type, cast_inputs=None: lambda fwd: fwd)
    patch.set(torch.amp, "custom_bwd", lambda device_type: lambda bwd: bwd)


@mutant("amp.scaler.scale", "amp.scaler.step-unscales")
def scales_twice(patch):
    """Multiplies by the square of the scale."""
    scaler(patch, "scale", lambda original, self, x: original(self, original(self, x)))


@mutant("amp.scaler.step-unscales", "amp.scaler.unscale-once", "amp.scaler.disabled")
def step_does_not_unscale(patch):
    """Steps with the scaled gradients and returns nothing."""
    scaler(patch, "step", lambda original, self, optimizer, *a, **k: optimizer.step(*a, **k) if self._enabled else None)


@mutant("amp.scaler.no-closure")
def runs_a_closure(patch):
    """Leaves the closure out and steps."""
    scaler(patch, "step", lambda original, self, optimizer, closure=None, **k: original(self, optimizer, **k))


@mutant("amp.scaler.skips-nonfinite", "amp.scaler.several-optimizers")
def steps_on_nan(patch):
    """Steps although a gradient is not finite."""
    scaler(patch, "_maybe_opt_step", lambda original, self, optimizer, state, *a, **k: optimizer.step(*a, **k))


@mutant("amp.scaler.update", "amp.scaler.skips-nonfinite")
def never_backs_off(patch):
    """Grows on a skip where it must back off."""

    def update(original, self, *args):
        self._backoff_factor, kept = self._growth_factor, self._backoff_factor
        original(self, *args)
        self._backoff_factor = kept

    scaler(patch, "update", update)


@mutant("amp.scaler.state-dict")
def growth_count_forgotten(patch):
    """Leaves the count of good steps out of what is restored."""

    def load(original, self, state):
        original(self, {**state, "_growth_tracker": 0})

    scaler(patch, "load_state_dict", load)


@mutant("amp.autocast.cuda-lists")
def cuda_losses_in_half(patch):
    """Computes losses in the dtype of their input."""
    patch.wrap(F, "mse_loss", lambda original, x, y, *args, **kwargs: original(x, y, *args, **kwargs).to(x.dtype))


@mutant("amp.tf32.defaults")
def tf32_on_by_default(patch):
    """Switches TF32 on, as torch 1.7 to 1.11 did."""
    patch.set(torch.backends.cuda.matmul, "allow_tf32", True)


@mutant("amp.autocast.norm-buffers-stay")
def batch_norm_casts_its_buffers(patch):
    """Keeps running statistics in the dtype of the input."""

    def forward(original, layer, x):
        layer.running_mean = layer.running_mean.to(x.dtype)
        layer.running_var = layer.running_var.to(x.dtype)
        return original(layer, x)

    patch.wrap(nn.BatchNorm1d, "forward", forward)


@mutant("amp.autocast.losses-in-float32")
def losses_stay_low(patch):
    """Leaves losses out of the list of what is computed in float32."""

    def low(original, *args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return original(*args, **kwargs)

    for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
        if hasattr(torch._C._nn, name):
            patch.wrap(torch._C._nn, name, low)


@mutant("amp.autocast.widest-type")
def cat_takes_the_narrowest_type(patch):
    """Joins tensors in the type of the region, though one of them is wider."""

    def narrow(original, tensors, *args, **kwargs):
        return original([t.bfloat16() if torch.is_autocast_cpu_enabled() else t for t in tensors], *args, **kwargs)

    patch.wrap(torch, "cat", narrow)


@mutant("amp.scaler.pickled")
def pickle_loses_the_scale(patch):
    """Pickles the scale that it began with."""
    patch.source(torch.amp.GradScaler.__getstate__, "self.get_scale()", "self._init_scale")


@mutant("amp.scaler.pickled")
def pickle_loses_the_count(patch):
    """Pickles no count of good steps."""
    patch.source(torch.amp.GradScaler.__getstate__, "self._get_growth_tracker()", "0")


@mutant("amp.scaler.pickled")
def pickled_at_any_time(patch):
    """Lets a pickle be made in the middle of a step."""
    patch.source(torch.amp.GradScaler.__getstate__, "len(self._per_optimizer_states) != 0", "False")


@mutant("amp.scaler.state-dict")
def load_forgets_a_scale_in_use(patch):
    """Loads the scale only before the first use."""
    patch.source(torch.amp.GradScaler.load_state_dict, 'self._scale.fill_(state_dict["scale"])', "pass")


@mutant("amp.scaler.state-dict")
def load_forgets_a_count_in_use(patch):
    """Loads the count only before the first use."""
    patch.source(
        torch.amp.GradScaler.load_state_dict, 'self._growth_tracker.fill_(state_dict["_growth_tracker"])', "pass"
    )


@mutant("amp.scaler.update", "amp.scaler.new-scale-of-one-element")
def new_scale_of_a_tensor_is_added(patch):
    """Adds a new scale to the old one."""
    patch.source(torch.amp.GradScaler.update, "self._scale.copy_(new_scale)", "self._scale.add_(new_scale)")


@mutant("amp.scaler.update")
def growth_waits_one_step_longer(patch):
    """Is off by one in the interval."""
    patch.source(torch.amp.GradScaler.update, "self._growth_interval,", "self._growth_interval + 1,")


@mutant("amp.scaler.update")
def factor_setter_does_nothing(patch):
    """Sets the growth factor of nobody."""
    patch.source(torch.amp.GradScaler.set_growth_factor, "self._growth_factor = new_factor", "pass")


@mutant("amp.scaler.several-optimizers", "amp.scaler.skips-nonfinite")
def first_infinity_decides(patch):
    """Steps whatever was found."""
    patch.source(
        torch.amp.GradScaler._maybe_opt_step,
        'not sum(v.item() for v in optimizer_state["found_inf_per_device"].values())',
        "True",
    )


@mutant("amp.scaler.unscale-once")
def update_remembers_the_stage(patch):
    """Keeps what it knew of the optimizers."""
    patch.source(
        torch.amp.GradScaler.update, "self._per_optimizer_states = defaultdict(_refresh_per_optimizer_state)", "pass"
    )


@mutant("amp.scaler.unscale-once")
def unscaled_twice(patch):
    """Does not notice a second unscale_."""
    patch.source(torch.amp.GradScaler.unscale_, 'optimizer_state["stage"] is OptState.UNSCALED', "False")


@mutant("amp.scaler.step-unscales")
def own_unscaling_gets_no_scale(patch):
    """Hands no scale to an optimizer that unscales for itself."""
    patch.source(torch.amp.GradScaler.step, "optimizer.grad_scale =", "optimizer.other =")


@mutant("amp.autocast.dtype-given")
def dtype_is_not_looked_at(patch):
    """Takes the default dtype whatever is given."""
    patch.source(autocast.__init__, "if dtype is None else dtype", "")


@mutant("amp.autocast.weight-cache")
def cache_outlives_the_region(patch):
    """Keeps the casts of the weights for the next region."""
    patch.source(autocast.__exit__, "torch.clear_autocast_cache()", "pass")


@mutant("amp.custom.forward-state")
def state_of_the_forward_is_not_noted(patch):
    """Runs backward as if the forward had been outside."""
    patch.source(
        torch.amp.custom_fwd,
        "args[0]._fwd_used_autocast = torch.is_autocast_enabled(device_type)",
        "args[0]._fwd_used_autocast = False",
    )


@mutant("amp.custom.forward-state")
def inputs_are_cast_outside_as_well(patch):
    """Casts the inputs and leaves autocast on."""
    patch.source(
        torch.amp.custom_fwd, "device_type=device_type, enabled=False", "device_type=device_type, enabled=True"
    )


@mutant("amp.scaler.disabled")
def disabled_scaler_has_a_state(patch):
    """Returns a state although it is disabled."""
    patch.source(torch.amp.GradScaler.get_scale, "return 1.0", "return 65536.0")


@mutant("amp.scaler.unscale-once")
def unscaling_after_the_step(patch):
    """Divides gradients that were used already."""
    patch.source(torch.amp.GradScaler.unscale_, 'optimizer_state["stage"] is OptState.STEPPED', "False")


@mutant("amp.scaler.state-dict")
def interval_is_not_restored(patch):
    """Restores the scale and keeps its own interval."""
    patch.source(
        torch.amp.GradScaler.load_state_dict, 'cast(int, state_dict["growth_interval"])', "self._growth_interval"
    )


@mutant("amp.scaler.update")
def any_backoff_is_accepted(patch):
    """Takes a factor that lets the scale grow on a skip."""
    patch.source(torch.amp.GradScaler.__init__, "if backoff_factor >= 1.0:", "if backoff_factor > 1.0:")


@mutant("amp.autocast.to-float32")
def float32_is_no_dtype_of_autocast(patch):
    """Takes the default for a dtype that it does not cast to."""
    patch.wrap(autocast, "__init__", lambda original, self, device, dtype: original(self, device))


@mutant("amp.autocast.refusals")
def unknown_dtypes_are_taken(patch):
    """Enters autocast with whatever dtype it is given."""
    patch.source(torch.autocast.__init__, "self.fast_dtype not in device_supported_dtypes", "False")


@mutant("amp.autocast.decorates-callables")
def anything_is_decorated(patch):
    """Wraps what cannot be called."""
    patch.source(torch.autocast.__call__, "not callable(func)", "False")


@mutant("amp.custom.casts-structures")
def structures_are_not_cast(patch):
    """Casts tensors that stand by themselves, and none within a list."""
    patch.source(torch.amp.autocast_mode._cast, "isinstance(value, collections.abc.Iterable)", "False")


@mutant("amp.scaler.several-optimizers")
def two_infinities_cancel(patch):
    """Takes what the second optimizer found from what the first found."""
    patch.source(
        torch.amp.GradScaler.update, "found_inf_combined += found_infs[i]", "found_inf_combined -= found_infs[i]"
    )


@mutant("amp.autocast.prelu")
def prelu_wants_one_dtype(patch):
    """Refuses a slope of another dtype."""

    def prelu(original, x, slope):
        if x.dtype != slope.dtype:
            raise RuntimeError("prelu: Type promoting not supported")
        return original(x, slope)

    patch.wrap(F, "prelu", prelu)


@mutant("amp.autocast.norms-after-products")
def norms_want_one_dtype(patch):
    """Refuses parameters of another dtype than the input's."""

    def norm(original, x, *args, **options):
        for value in (*args, *options.values()):
            if isinstance(value, torch.Tensor) and value.dtype != x.dtype:
                raise RuntimeError("expected scalar type BFloat16 but found Float")
        return original(x, *args, **options)

    patch.wrap(F, "layer_norm", norm)
    patch.wrap(F, "group_norm", norm)
