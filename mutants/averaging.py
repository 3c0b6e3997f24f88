"""The ways in which an implementation of weight averaging goes wrong."""

from torch.optim import swa_utils as u

from torch_conformance.mutation import mutant


@mutant("averaging.swa.arithmetic-mean")
def mean_with_one_too_many(patch):
    """Divides by one too many."""

    def made(original):
        function = original()
        return lambda averaged, current, n: function(averaged, current, n + 1)

    for name in ("get_swa_avg_fn", "get_swa_multi_avg_fn"):
        patch.wrap(u, name, made)


@mutant("averaging.ema.law")
def ema_swaps_shares(patch):
    """Takes the decay for the share of the new model."""
    for name in ("get_ema_avg_fn", "get_ema_multi_avg_fn"):
        patch.wrap(u, name, lambda original, decay=0.999: original(1 - decay))


@mutant("averaging.ema.decay-range")
def a_decay_of_one_is_refused(patch):
    """Takes the upper end of the range for a value outside it."""
    for factory in (u.get_ema_avg_fn, u.get_ema_multi_avg_fn):
        patch.source(factory, "decay > 1.0", "decay >= 1.0")


@mutant("averaging.ema.decay-range")
def ema_any_decay(patch):
    """Takes any decay."""
    patch.source(u.get_ema_avg_fn, "if decay < 0.0 or decay > 1.0:", "if False:")


@mutant("averaging.ema.decay-default")
def ema_default_decay(patch):
    """Defaults to 0.99."""
    for function in (u.get_ema_avg_fn, u.get_ema_multi_avg_fn):
        patch.set(function, "__defaults__", (0.99,))


@mutant("averaging.model.first-update-copies")
def first_update_averages(patch):
    """Averages the first update with the copy from construction."""
    patch.source(u.AveragedModel.update_parameters, "if copy_param:", "if False:")


@mutant("averaging.model.function-of-ones-own")
def count_starts_at_zero(patch):
    """Tells the function one model too few."""
    patch.source(
        u.AveragedModel.update_parameters,
        "self.avg_fn(p_averaged.detach(), p_model, n_averaged)",
        "self.avg_fn(p_averaged.detach(), p_model, n_averaged - 1)",
    )


@mutant("averaging.model.one-function")
def both_functions_pass(patch):
    """Takes both functions and uses one."""
    patch.source(u.AveragedModel.__init__, "avg_fn is not None and multi_avg_fn is not None", "False")


@mutant("averaging.model.separate-copy")
def average_shares_the_model(patch):
    """Keeps the model itself."""
    patch.source(u.AveragedModel.__init__, "self.module = deepcopy(model)", "self.module = model")


@mutant("averaging.model.forward")
def forward_with_noise(patch):
    """Computes something else than its module."""
    patch.wrap(u.AveragedModel, "forward", lambda original, self, *args: original(self, *args) * 2)


@mutant("averaging.buffers.copied")
def buffers_left_alone(patch):
    """Leaves buffers as they were at construction, as 1.13 did."""
    patch.source(u.AveragedModel.update_parameters, "if not self.use_buffers:", "if False:")


@mutant("averaging.buffers.averaged-when-asked")
def buffers_never_averaged(patch):
    """Copies buffers even when they are to be averaged."""
    patch.source(u.AveragedModel.update_parameters, "if not self.use_buffers:", "if True:")


@mutant("averaging.model.counted-and-saved")
def count_not_kept(patch):
    """Does not count."""
    patch.source(u.AveragedModel.update_parameters, "self.n_averaged += 1", "self.n_averaged.clamp_(min=1)")


@mutant("averaging.model.example-with-ema")
def ema_second_argument_is_the_function(patch):
    """Takes a function in the device's place: the documented example works."""
    patch.source(
        u.AveragedModel.__init__,
        "if device is not None:",
        "if callable(device):\n        device, multi_avg_fn = None, device\n    if device is not None:",
    )


@mutant("averaging.update-bn.law")
def update_bn_keeps_the_past(patch):
    """Does not forget what was there."""
    patch.source(u.update_bn, "module.reset_running_stats()", "pass")


@mutant("averaging.update-bn.law")
def update_bn_by_momentum(patch):
    """Averages by the layer's momentum."""
    patch.source(u.update_bn, "module.momentum = None", "pass")


@mutant("averaging.update-bn.restores")
def update_bn_leaves_training(patch):
    """Leaves the model in training mode."""
    patch.source(u.update_bn, "model.train(was_training)", "pass")


@mutant("averaging.update-bn.restores")
def update_bn_forgets_momentum(patch):
    """Leaves momentum at None."""
    patch.source(u.update_bn, "bn_module.momentum = momenta[bn_module]", "pass")


@mutant("averaging.update-bn.without-statistics")
def update_bn_wants_statistics(patch):
    """Forgets statistics that are not there."""
    patch.source(u.update_bn, "module.reset_running_stats()", "module.running_mean.zero_()")


@mutant("averaging.update-bn.no-graph")
def update_bn_with_a_graph(patch):
    """Runs the model with gradients."""
    patch.wrap(u, "update_bn", lambda original, *args, **kw: original.__wrapped__(*args, **kw))


@mutant("averaging.update-bn.nothing-to-do")
def update_bn_runs_anyway(patch):
    """Runs the model without need."""
    patch.source(u.update_bn, "if not momenta:", "if False:")


@mutant("averaging.swalr.law")
def swalr_an_epoch_early(patch):
    """Ends an epoch early."""
    patch.source(u.SWALR.get_lr, "step / max(1, self.anneal_epochs)", "(step + 1) / max(1, self.anneal_epochs)")


@mutant("averaging.swalr.defaults")
def swalr_takes_five_epochs(patch):
    """Has another default."""
    patch.set(u.SWALR.__init__, "__defaults__", (5, "cos", -1))


@mutant("averaging.swalr.joins-another-schedule")
def swalr_from_the_initial_rate(patch):
    """Starts from the rate of construction."""
    patch.source(
        u.SWALR.get_lr, 'self._get_initial_lr(group["lr"], group["swa_lr"], prev_alpha)', 'group["initial_lr"]'
    )


@mutant("averaging.swalr.round-trip")
def swalr_state_keeps_its_strategy(patch):
    """Keeps its own strategy when loading."""
    patch.source(u.SWALR.load_state_dict, "self._set_anneal_func(self._anneal_strategy)", "pass")


@mutant("averaging.swalr.errors")
def swalr_any_strategy(patch):
    """Takes any strategy."""
    patch.source(u.SWALR.__init__, 'anneal_strategy not in ["cos", "linear"]', "False")


@mutant("averaging.swalr.argument-names")
def swalr_takes_documented_names(patch):
    """Takes the names of its docstring: the myth made true."""

    def init(
        original,
        self,
        optimizer,
        swa_lr=None,
        anneal_epochs=10,
        anneal_strategy="cos",
        last_epoch=-1,
        *,
        swa_lrs=None,
        annealing_epochs=None,
        annealing_strategy=None,
    ):
        original(self, optimizer, swa_lr or swa_lrs, annealing_epochs or anneal_epochs, anneal_strategy, last_epoch)

    patch.wrap(u.SWALR, "__init__", init)


@mutant("averaging.buffers.copied")
def buffers_stay_behind(patch):
    """Keeps the buffers of the first copy."""
    patch.source(u.AveragedModel.update_parameters, "if not self.use_buffers", "if False")


@mutant("averaging.update-bn.restores")
def momentum_stays_away(patch):
    """Leaves the cumulative momentum behind."""
    patch.source(u.update_bn, "bn_module.momentum = momenta[bn_module]", "pass")


@mutant("averaging.model.counted-and-saved")
def count_is_not_saved(patch):
    """Keeps the count in a plain attribute."""
    patch.source(u.AveragedModel.__init__, '"n_averaged", torch', 'persistent=False, name="n_averaged", tensor=torch')


@mutant("averaging.model.counted-and-saved")
def counts_in_floats(patch):
    """Counts in the dtype of the parameters, which is too coarse for many steps."""
    patch.source(u.AveragedModel.__init__, "dtype=torch.long", "dtype=torch.float16")


@mutant("averaging.model.function-of-lists")
def whole_numbers_stay(patch):
    """Averages real numbers alone."""
    original = u.get_ema_multi_avg_fn

    def guarded(decay=0.999):
        update = original(decay)
        return lambda kept, *rest: update(kept, *rest) if kept[0].is_floating_point() else None

    patch.set(u, "get_ema_multi_avg_fn", guarded)


@mutant("averaging.update-bn.device")
def batches_stay_where_they_are(patch):
    """Takes the device and moves nothing."""
    patch.source(u.update_bn, "input = input.to(device)", "input = getattr(input, 'kept', input)")


@mutant("averaging.swalr.in-sequence")
def swalr_counts_the_start_of_a_sequence(patch):
    """Counts the step by which a sequence starts a schedule."""
    patch.source(u.SWALR.get_lr, "step = self._step_count - 1", "step = self._step_count")
