"""The ways in which an implementation of the learning rate schedulers goes wrong."""

import torch
from torch.optim import lr_scheduler as s

from torch_conformance.mutation import mutant


@mutant("schedulers.law.closed-form")
def step_one_epoch_late(patch):
    """Decays an epoch late."""
    patch.source(s.StepLR.get_lr, "self.last_epoch % self.step_size", "(self.last_epoch - 1) % self.step_size")


@mutant("schedulers.law.closed-form")
def milestones_count_once(patch):
    """Counts a milestone once, however often it is listed."""
    patch.source(s.MultiStepLR.get_lr, "self.gamma ** self.milestones[self.last_epoch]", "self.gamma")


@mutant("schedulers.law.closed-form")
def linear_never_ends(patch):
    """Goes on past the end."""
    patch.source(s.LinearLR.get_lr, "self.last_epoch > self.total_iters", "False")


@mutant("schedulers.law.closed-form")
def polynomial_ignores_the_power(patch):
    """Leaves the power out."""
    patch.source(s.PolynomialLR.get_lr, "** self.power", "** 1.0")


@mutant("schedulers.law.closed-form")
def cosine_forgets_the_floor(patch):
    """Anneals towards zero."""
    patch.source(s.CosineAnnealingLR.get_lr, '* (group["lr"] - self.eta_min)', '* group["lr"]')


@mutant("schedulers.law.closed-form")
def restarts_of_equal_length(patch):
    """Leaves T_mult out."""
    patch.source(s.CosineAnnealingWarmRestarts.step, "self.T_i = self.T_i * self.T_mult", "pass")


@mutant("schedulers.law.closed-form")
def cyclic_down_as_fast_as_up(patch):
    """Falls as fast as it rises."""
    patch.source(s.CyclicLR.get_lr, "(x - 1) / (self.step_ratio - 1)", "(1 - x) / self.step_ratio")


@mutant("schedulers.law.closed-form")
def one_cycle_ends_at_the_start(patch):
    """Anneals back to the start's rate."""
    patch.source(
        s.OneCycleLR.get_lr, 'group[phase["end_lr"]]', 'group[phase["end_lr"].replace("min_lr", "initial_lr")]'
    )


@mutant("schedulers.law.rates-per-group")
def lambda_of_the_first_group(patch):
    """Takes the first group's function for all."""
    patch.source(s.LambdaLR.get_lr, "lmbda(self.last_epoch)", "self.lr_lambdas[0](self.last_epoch)")


@mutant("schedulers.law.rates-per-group")
def cyclic_peaks_alike(patch):
    """Takes the first group's peak for all."""
    patch.source(s.CyclicLR.get_lr, "(max_lr - base_lr)", "(self.max_lrs[0] - base_lr)")


@mutant("schedulers.law.as-many-as-groups")
def lists_of_any_length(patch):
    """Does not compare lengths."""
    patch.source(s.MultiplicativeLR.__init__, "len(lr_lambda) != len(optimizer.param_groups)", "False")


@mutant("schedulers.law.defaults")
def step_default_gamma(patch):
    """Defaults to halving."""
    patch.wrap(
        s.StepLR,
        "__init__",
        lambda original, self, optimizer, step_size, gamma=0.5, last_epoch=-1: original(
            self, optimizer, step_size, gamma, last_epoch
        ),
    )
    del s.StepLR.__init__.__wrapped__


@mutant("schedulers.law.tensor-lr")
def tensor_lr_replaced(patch):
    """Puts a number in the tensor's place."""
    patch.source(s._update_param_group_val, "isinstance(param_group[key], Tensor)", "False")


@mutant("schedulers.law.tensor-lr")
def last_lr_is_the_tensor(patch):
    """Hands out the optimiser's own tensor."""
    patch.source(
        s._param_groups_val_list, "group[key].clone() if isinstance(group[key], Tensor) else group[key]", "group[key]"
    )


@mutant("schedulers.start.initial-step")
def initial_step_left_out(patch):
    """Leaves the first step to the user."""
    patch.source(s.LRScheduler._initial_step, "self.step()", "self.last_epoch += 1")


@mutant("schedulers.start.touches-only-rates")
def scheduler_zeroes_gradients(patch):
    """Clears gradients at every step."""

    def step(original, self, *args):
        self.optimizer.zero_grad()
        return original(self, *args)

    patch.wrap(s.LRScheduler, "step", step)


@mutant("schedulers.start.wants-an-optimizer")
def anything_is_scheduled(patch):
    """Gives whatever it gets the groups of an optimiser."""
    patch.set(torch.nn.Module, "param_groups", [{"lr": 1.0, "momentum": 0.5}])
    patch.set(torch.nn.Module, "defaults", {"momentum": 0.5})
    patch.set(torch.nn.Module, "step", torch.optim.Optimizer.step)
    patch.set(s, "Optimizer", object)


@mutant("schedulers.order.optimizer-first")
def order_is_not_looked_at(patch):
    """Does not look whether the optimiser has stepped."""
    patch.source(s.LRScheduler.step, "self._step_count == 1", "False")


@mutant("schedulers.order.no-warning-when-right")
def order_always_warned_of(patch):
    """Warns whether the optimiser has stepped or not."""
    patch.source(s.LRScheduler.step, 'elif not getattr(self.optimizer, "_opt_called", False)', "elif True")


@mutant("schedulers.order.the-rate-of-an-epoch", "schedulers.start.initial-step")
def schedule_ahead_by_one(patch):
    """Is an epoch ahead from the start."""
    patch.source(s.LRScheduler._initial_step, "self.step()", "self.step(); self.step()")


@mutant("schedulers.state.round-trip")
def state_without_the_epoch(patch):
    """Forgets the epoch."""

    def state_dict(original, self):
        return {k: v for k, v in original(self).items() if k != "last_epoch"}

    patch.wrap(s.LRScheduler, "state_dict", state_dict)


@mutant("schedulers.state.without-optimizer")
def state_with_the_optimizer(patch):
    """Saves the optimiser along."""
    patch.wrap(s.LRScheduler, "state_dict", lambda original, self: original(self) | {"optimizer": self.optimizer})


@mutant("schedulers.state.callable-scale")
def the_scale_of_a_wave_is_not_saved(patch):
    """Saves nothing of a callable scale."""
    patch.source(s.CyclicLR.state_dict, 'state["_scale_fn_custom"] = fn.__dict__.copy()', "pass")


@mutant("schedulers.state.callable-objects")
def callables_not_restored(patch):
    """Forgets what callable objects hold."""
    patch.source(s.LambdaLR.load_state_dict, "if fn is not None:", "if False:")


@mutant("schedulers.state.last-epoch")
def resumes_from_the_start(patch):
    """Starts at epoch 0 whatever is asked."""
    patch.source(s.LRScheduler.__init__, "self.last_epoch = last_epoch", "self.last_epoch = -1")


@mutant("schedulers.state.last-epoch-of-cycles")
def one_cycle_starts_again(patch):
    """Takes last_epoch and keeps it for itself."""
    patch.source(s.OneCycleLR.__init__, "super().__init__(optimizer, last_epoch", "super().__init__(optimizer, -1")


@mutant("schedulers.state.last-epoch-wants-initial-lr")
def resumes_without_initial_lr(patch):
    """Takes the present rate for the first."""
    patch.source(
        s.LRScheduler.__init__,
        'if "initial_lr" not in group:',
        'if group.setdefault("initial_lr", group["lr"]) is None:',
    )


@mutant("schedulers.state.optimizer-loaded-last")
def construction_keeps_the_rate(patch):
    """Leaves a loaded rate alone."""

    def init(original, self, optimizer, *args, **kwargs):
        rates = [group["lr"] for group in optimizer.param_groups]
        original(self, optimizer, *args, **kwargs)
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr

    patch.wrap(s.LinearLR, "__init__", init)


@mutant("schedulers.epoch.jumps")
def jumps_are_steps(patch):
    """Takes a named epoch for the next."""
    patch.source(s.LRScheduler._update_lr, "if epoch is None:", "if True:")


@mutant("schedulers.epoch.jumps")
def jump_closed_form_of_linear(patch):
    """Leaves the end out of the closed form."""
    patch.source(s.LinearLR._get_closed_form_lr, "min(self.total_iters, self.last_epoch)", "self.last_epoch")


@mutant("schedulers.epoch.restarts")
def restarts_jump_by_the_first_cycle(patch):
    """Jumps within the first cycle alone."""
    patch.source(s.CosineAnnealingWarmRestarts.step, "if epoch >= self.T_0:", "if epoch >= self.T_0 * 99:")


@mutant("schedulers.cosine.climbs-back")
def cosine_stays_down(patch):
    """Stays at the least rate after T_max: the myth made true."""
    patch.source(
        s.CosineAnnealingLR.get_lr, "if self._is_initial:", "if self._is_initial or self.last_epoch > self.T_max:"
    )


@mutant("schedulers.constant.factor-zero", "schedulers.law.closed-form")
def constant_never_ends(patch):
    """Never comes back to the full rate."""
    patch.source(s.ConstantLR.get_lr, 'group["lr"] * (1.0 / self.factor)', 'group["lr"]')


@mutant("schedulers.linear.listing-shifted", "schedulers.law.closed-form")
def linear_as_listed(patch):
    """Begins an epoch ahead, as the listing has it."""
    patch.source(
        s.LinearLR.get_lr,
        'group["lr"] * self.start_factor',
        'group["lr"] * (self.start_factor + (self.end_factor - self.start_factor) / self.total_iters)',
    )


@mutant("schedulers.polynomial.listing-shifted")
def polynomial_as_listed(patch):
    """Begins an epoch ahead, as the listing has it."""

    def init(original, self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.optimizer._opt_called = True
        self.step()

    patch.wrap(s.PolynomialLR, "__init__", init)


@mutant("schedulers.momentum.cyclic")
def momentum_with_the_rate(patch):
    """Moves momentum with the rate."""
    patch.source(s.CyclicLR.get_lr, "momentum = max_momentum - base_height", "momentum = base_momentum + base_height")


@mutant("schedulers.momentum.cyclic")
def momentum_has_its_usual_top(patch):
    """Goes up to the default whatever is asked."""
    patch.source(s.CyclicLR.__init__, "optimizer, max_momentum", "optimizer, 0.9")


@mutant("schedulers.momentum.one-cycle")
def one_cycle_momentum_linear(patch):
    """Goes from least to most."""
    patch.source(s.OneCycleLR.get_lr, 'group[phase["start_momentum"]]', 'group["base_momentum"]')


@mutant("schedulers.momentum.may-be-left-alone")
def momentum_always_cycles(patch):
    """Ignores cycle_momentum."""
    for cls in (s.CyclicLR, s.OneCycleLR):
        patch.wrap(
            cls, "__init__", lambda original, self, *args, cycle_momentum=True, **kw: original(self, *args, **kw)
        )


@mutant("schedulers.momentum.must-be-there")
def momentum_invented(patch):
    """Gives the optimiser a momentum that it does not know."""
    patch.source(
        s.CyclicLR.__init__,
        "if cycle_momentum:",
        'cycle_momentum = cycle_momentum and "momentum" in optimizer.defaults\n    self.cycle_momentum = cycle_momentum\n    if cycle_momentum:',  # noqa: E501
    )


@mutant("schedulers.cyclic.scale-function")
def scale_by_the_cycle_always(patch):
    """Scales by the cycle whatever the mode."""
    patch.source(s.CyclicLR.get_lr, "self.scale_fn(self.last_epoch)", "self.scale_fn(cycle)")


@mutant("schedulers.one-cycle.limits", "schedulers.law.closed-form")
def one_cycle_final_of_the_peak(patch):
    """Divides the peak instead of the start."""
    patch.source(s.OneCycleLR.__init__, 'group["initial_lr"] / final_div_factor', 'group["max_lr"] / final_div_factor')


@mutant("schedulers.one-cycle.epochs-times-steps")
def one_cycle_adds_epochs(patch):
    """Adds where it should multiply."""
    patch.source(s.OneCycleLR.__init__, "epochs * steps_per_epoch", "epochs + steps_per_epoch")


@mutant("schedulers.one-cycle.too-many-steps")
def one_cycle_goes_on(patch):
    """Never ends."""
    patch.source(s.OneCycleLR.get_lr, "if step_num > self.total_steps:", "if False:")


@mutant("schedulers.one-cycle.never-negative")
def one_cycle_cosine_below_zero(patch):
    """Ends below zero by as much as it should end above."""
    patch.source(s.OneCycleLR._annealing_cos, "return end + ", "return -end + ")


@mutant("schedulers.several.chained")
def chain_of_the_first(patch):
    """Steps the first alone."""
    patch.source(
        s.ChainedScheduler.step, "for scheduler in self._schedulers:", "for scheduler in self._schedulers[:1]:"
    )


@mutant("schedulers.several.sequential", "schedulers.several.three-in-sequence")
def sequence_goes_on_counting(patch):
    """Steps the next schedule instead of starting it."""
    patch.source(s.SequentialLR.step, "scheduler._update_lr(0)", "scheduler.step()")


@mutant("schedulers.several.sequential-tensor-lr")
def sequence_starts_from_a_shared_tensor(patch):
    """Keeps the optimiser's own tensor for the first rate, so that the first rate follows the rate."""

    def init(original, self, optimizer, *args, **kwargs):
        original(self, optimizer, *args, **kwargs)
        for scheduler in self._schedulers:
            scheduler.base_lrs = [group["lr"] for group in optimizer.param_groups]

    patch.wrap(s.SequentialLR, "__init__", init)


@mutant("schedulers.several.three-in-sequence")
def sequence_an_epoch_late(patch):
    """Changes an epoch after the milestone."""
    patch.source(
        s.SequentialLR.step,
        "bisect_right(self._milestones, self.last_epoch)",
        "bisect_right(self._milestones, self.last_epoch - 1)",
    )


@mutant("schedulers.several.state")
def sequence_state_without_parts(patch):
    """Loads its own state and forgets its parts'."""
    patch.source(s.SequentialLR.load_state_dict, "self._schedulers[idx].load_state_dict(s)", "pass")


@mutant("schedulers.several.state")
def chain_state_without_parts(patch):
    """Loads its own state and forgets its parts'."""
    patch.source(s.ChainedScheduler.load_state_dict, "self._schedulers[idx].load_state_dict(s)", "pass")


@mutant("schedulers.several.one-optimizer")
def sequence_of_two_optimizers(patch):
    """Does not compare optimisers."""
    patch.source(s.SequentialLR.__init__, "optimizer != scheduler.optimizer", "False")


@mutant("schedulers.several.optimizer-of-a-chain")
def the_first_schedule_tells_the_optimizer(patch):
    """Compares the schedules with each other alone."""
    patch.source(s.ChainedScheduler.__init__, "optimizer or schedulers[0].optimizer", "schedulers[0].optimizer")


@mutant("schedulers.several.milestones-between")
def milestones_of_any_number(patch):
    """Does not count milestones."""
    patch.source(s.SequentialLR.__init__, "len(milestones) != len(schedulers) - 1", "False")


@mutant("schedulers.plateau.law", "schedulers.plateau.patience")
def plateau_reduces_at_patience(patch):
    """Lowers the rate at the last forgiven epoch."""
    patch.source(
        s.ReduceLROnPlateau.step, "self.num_bad_epochs > self.patience", "self.num_bad_epochs >= self.patience"
    )


@mutant("schedulers.plateau.law")
def plateau_without_cooldown(patch):
    """Never rests."""
    patch.source(s.ReduceLROnPlateau.step, "self.cooldown_counter = self.cooldown", "self.cooldown_counter = 0")


@mutant("schedulers.plateau.law")
def plateau_threshold_reversed(patch):
    """Adds the threshold where it is to be taken off."""
    patch.source(s.ReduceLROnPlateau._is_better, "best - self.threshold", "best + self.threshold")


@mutant("schedulers.plateau.group-added-later")
def plateau_knows_its_first_groups_alone(patch):
    """Leaves the rate of later groups as it is."""

    def reduce(original, scheduler, epoch):
        later = scheduler.optimizer.param_groups[2:]
        rates = [group["lr"] for group in later]
        original(scheduler, epoch)
        for group, rate in zip(later, rates, strict=True):
            group["lr"] = rate

    patch.wrap(s.ReduceLROnPlateau, "_reduce_lr", reduce)


@mutant("schedulers.plateau.last-rates")
def plateau_silent(patch):
    """Does not note its rates."""
    patch.source(s.ReduceLROnPlateau.step, "self._last_lr = ", "_ = ")


@mutant("schedulers.plateau.last-rates")
def plateau_counts_no_epochs(patch):
    """Forgets which epoch it is in."""
    patch.source(s.ReduceLROnPlateau.step, "self.last_epoch = epoch", "pass")


@mutant("schedulers.plateau.last-rates")
def plateau_counts_for_itself(patch):
    """Warns of the epoch that is named, and takes the next."""
    patch.source(s.ReduceLROnPlateau.step, "self.last_epoch = epoch", "self.last_epoch += 1")


@mutant("schedulers.plateau.equal-is-bad")
def plateau_equal_is_fine(patch):
    """Forgives an equal metric: the myth made true."""
    patch.source(
        s.ReduceLROnPlateau.step,
        "if self._is_better(current, self.best):",
        "if self._is_better(current, self.best) or current == self.best:",
    )


@mutant("schedulers.plateau.min-lr-per-group")
def plateau_first_floor_for_all(patch):
    """Takes the first group's floor for all."""
    patch.source(s.ReduceLROnPlateau._reduce_lr, "self.min_lrs[i]", "self.min_lrs[0]")


@mutant("schedulers.plateau.nan-is-bad")
def plateau_takes_nan(patch):
    """Takes what is no number for an improvement."""
    patch.source(
        s.ReduceLROnPlateau.step,
        "if self._is_better(current, self.best):",
        "if self._is_better(current, self.best) or current != current:",
    )


@mutant("schedulers.plateau.state")
def plateau_state_without_mode(patch):
    """Watches for the minimum after loading."""
    patch.source(
        s.ReduceLROnPlateau.load_state_dict,
        "self.__dict__.update(state_dict)",
        'self.__dict__.update(state_dict | {"mode": "min"})',
    )


@mutant("schedulers.plateau.defaults")
def plateau_default_patience(patch):
    """Defaults to a patience of five."""
    patch.set(
        s.ReduceLROnPlateau.__init__, "__defaults__", ("min", 0.1, 5, *s.ReduceLROnPlateau.__init__.__defaults__[3:])
    )


@mutant("schedulers.errors.options")
def factors_out_of_range(patch):
    """Takes any factor."""
    patch.source(s.ReduceLROnPlateau.__init__, "if factor >= 1.0:", "if False:")


@mutant("schedulers.errors.get-lr-outside-step")
def get_lr_in_silence(patch):
    """Answers without a word."""
    patch.source(s.StepLR.get_lr, "_warn_get_lr_called_within_step(self)", "pass")


@mutant("schedulers.several.milestone-at-zero")
def sequence_begins_with_its_first(patch):
    """Begins with the first schedule, whatever the milestones."""
    patch.source(s.SequentialLR.__init__, "bisect_right(self._milestones, 0)", "0")


@mutant("schedulers.several.no-plateau")
def sequence_takes_a_plateau(patch):
    """Takes a scheduler into the sequence that waits for a metric."""
    patch.source(s.SequentialLR.__init__, "isinstance(scheduler, ReduceLROnPlateau)", "False")


@mutant("schedulers.plateau.tensor-lr")
def plateau_replaces_the_tensor(patch):
    """Puts a number where the tensor was."""
    plateau = s.ReduceLROnPlateau
    patch.source(plateau._reduce_lr, '_update_param_group_val(param_group, "lr", new_lr)', 'param_group["lr"] = new_lr')


@mutant("schedulers.state.loads-as-weights")
def state_holds_a_function(patch):
    """Saves whatever attribute there is, functions included."""
    patch.wrap(s.LRScheduler, "state_dict", lambda original, self: original(self) | {"anneal_func": s.math.cos})


@mutant("schedulers.plateau.law")
def plateau_lowers_the_bar(patch):
    """Subtracts the threshold where the greatest is best, too."""
    patch.source(s.ReduceLROnPlateau._is_better, "best + self.threshold", "best - self.threshold")


@mutant("schedulers.errors.options")
def no_epochs_are_epochs(patch):
    """Refuses negative numbers of epochs only."""
    patch.source(s.OneCycleLR.__init__, "epochs <= 0", "epochs < 0")


@mutant("schedulers.errors.get-lr-outside-step")
def annealing_asked_in_silence(patch):
    """Answers for the annealing to swa_lr without a word."""
    patch.source(torch.optim.swa_utils.SWALR.get_lr, "if not self._get_lr_called_within_step:", "if False:")


@mutant("schedulers.state.copied")
def copies_begin_again(patch):
    """Copies a scheduler without its count of epochs."""
    patch.set(s.LRScheduler, "__getstate__", lambda self: vars(self) | {"last_epoch": 0})


@mutant("schedulers.momentum.cyclic-resumed")
def cyclic_resumes_from_the_momentum_found(patch):
    """Takes the momentum that it finds for the base of the cycle."""

    def start(original, self, optimizer, *args, **kwargs):
        found = [group["momentum"] for group in optimizer.param_groups]
        original(self, optimizer, *args, **kwargs)
        if self.last_epoch > 0:
            self.base_momentums = found
            for group, momentum in zip(optimizer.param_groups, found, strict=True):
                group["momentum"] = momentum

    patch.wrap(s.CyclicLR, "__init__", start)


@mutant("schedulers.law.tensor-lr-of-one-element")
def tensor_of_one_element_is_replaced(patch):
    """Fills tensors without dimensions alone."""
    patch.source(s._update_param_group_val, "isinstance(param_group[key], Tensor)", "param_group[key].dim() == 0")


@mutant("schedulers.start.no-cycle")
def one_cycle_holds_itself(patch):
    """Keeps a bound method of its own."""

    def start(original, self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.anneal = self.get_lr

    patch.wrap(s.OneCycleLR, "__init__", start)


@mutant("schedulers.several.sequential-is-silent")
def sequence_steps_by_the_epoch(patch):
    """Starts a schedule by the deprecated step to an epoch."""
    patch.source(s.SequentialLR.step, "scheduler._update_lr(0)", "scheduler.step(0)")


@mutant("schedulers.plateau.is-a-scheduler")
def plateau_stands_alone(patch):
    """Derives it from nothing."""
    patch.set(s, "ReduceLROnPlateau", type("ReduceLROnPlateau", (), dict(vars(s.ReduceLROnPlateau))))


@mutant("schedulers.errors.factors-are-functions")
def factors_are_called_later(patch):
    """Leaves it to a later step to find that a factor cannot be called."""
    patch.source(s.MultiplicativeLR.__init__, "if not callable(lr_lambda)", "if False")


@mutant("schedulers.errors.least-rate-is-a-number")
def words_are_rates(patch):
    """Takes any least rate."""
    patch.source(s.CosineAnnealingWarmRestarts.__init__, "not isinstance(eta_min, (float, int))", "False")
