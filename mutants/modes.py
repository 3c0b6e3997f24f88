"""The ways in which modes go wrong: flags that do not travel, and functions that take one mode for another."""

import torch
import torch.nn.functional as F
from torch import nn

from torch_conformance.mutation import mutant

Module = nn.Module
BatchNorm = nn.modules.batchnorm._BatchNorm


@mutant("modes.flag.default-is-training", "modes.eval.forgotten")
def starts_in_eval_mode(patch):
    """Starts in eval mode, as inference runtimes do."""

    def init(original, module, *args, **kwargs):
        original(module, *args, **kwargs)
        module.training = False

    patch.wrap(Module, "__init__", init)


@mutant("modes.flag.recursive")
def switches_children_only(patch):
    """Stops one level down, as a loop over children() without recursion does."""

    def train(module, mode=True):
        module.training = mode
        for child in module.children():
            child.training = mode
        return module

    patch.set(Module, "train", train)


@mutant("modes.flag.recursive")
def train_returns_nothing(patch):
    """Forgets to return self, as in-place methods of Python's own containers do."""
    patch.source(Module.train, "return self", "return None")


@mutant("modes.flag.eval-is-train-false", "modes.eval.deterministic")
def eval_forgets_the_children(patch):
    """Sets the flag of the module alone."""

    def evaluate(module):
        module.training = False
        return module

    patch.set(Module, "eval", evaluate)


@mutant("modes.flag.eval-is-train-false")
def train_toggles(patch):
    """Takes train() without an argument for train(False)."""
    patch.set(Module.train, "__defaults__", (False,))


@mutant("modes.flag.nothing-else-changes", "modes.eval.requires-grad-kept")
def eval_freezes(patch):
    """Freezes the parameters in eval mode, which Keras does with layer.trainable = False."""
    patch.wrap(Module, "eval", lambda original, module: original(module).requires_grad_(False))


@mutant("modes.flag.nothing-else-changes")
def train_clears_gradients(patch):
    """Starts a training phase with fresh gradients."""

    def train(original, module, mode=True):
        for parameter in module.parameters():
            parameter.grad = None
        return original(module, mode)

    patch.wrap(Module, "train", train)


@mutant("modes.flag.nothing-else-changes")
def eval_resets_the_seed(patch):
    """Makes evaluation repeatable by seeding the generator."""

    def evaluate(original, module):
        torch.manual_seed(0)
        return original(module)

    patch.wrap(Module, "eval", evaluate)
    patch.wrap(Module, "train", lambda original, module, mode=True: original(module, mode) if mode else reseed(module))


def reseed(module):
    torch.manual_seed(0)
    for each in module.modules():
        each.training = False
    return module


@mutant("modes.flag.bad-mode-raises")
def takes_any_mode(patch):
    """Takes whatever is true for True: the check was dropped."""
    patch.source(Module.train, "if not isinstance(mode, bool)", "if False")


@mutant("modes.flag.bad-mode-raises")
def switches_before_it_checks(patch):
    """Sets the flag first and looks at the mode afterwards."""

    def train(original, module, mode=True):
        module.training = bool(mode)
        return original(module, mode)

    patch.wrap(Module, "train", train)


@mutant("modes.flag.plain-list-not-reached")
def searches_plain_lists(patch):
    """Searches plain lists for modules, as JAX's pytrees would."""

    def train(original, module, mode=True):
        for value in vars(module).values():
            for held in value if isinstance(value, (list, tuple)) else ():
                for each in held if isinstance(held, list) else [held]:
                    if isinstance(each, Module):
                        each.train(mode)
        return original(module, mode)

    patch.wrap(Module, "train", train)


@mutant("modes.flag.plain-list-not-reached")
def forgets_containers(patch):
    """Does not descend into ModuleDict."""
    patch.set(nn.ModuleDict, "train", lambda module, mode=True: module)


@mutant("modes.flag.assignment-not-recursive")
def assignment_recurses(patch):
    """Makes training a property that reaches the children."""

    def assign(original, module, name, value):
        original(module, name, value)
        if name == "training":
            for child in vars(module).get("_modules", {}).values():
                child.training = value

    patch.wrap(Module, "__setattr__", assign)


@mutant("modes.flag.child-on-its-own")
def forward_takes_the_parents_mode(patch):
    """Hands the mode of the container on to the layers that it runs."""

    def forward(original, module, x):
        for child in module.children():
            child.train(module.training)
        return original(module, x)

    patch.wrap(nn.Sequential, "forward", forward)


@mutant("modes.flag.parent-overrides-child")
def children_in_eval_mode_stay(patch):
    """Takes a child in eval mode for frozen, and leaves it."""
    patch.source(Module.train, "module.train(mode)", "module.train(mode) if module.training or not mode else None")


@mutant("modes.flag.later-child-keeps-its-mode")
def children_inherit_the_mode(patch):
    """Puts a module in the mode of the model that it is added to."""

    def assign(original, module, name, value):
        original(module, name, value)
        if isinstance(value, Module):
            value.train(module.training)

    patch.wrap(Module, "__setattr__", assign)


@mutant("modes.flag.overridden-train-honoured")
def sets_flags_directly(patch):
    """Sets the flags of modules() without asking them."""

    def train(module, mode=True):
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        for each in module.modules():
            each.training = mode
        return module

    patch.set(Module, "train", train)


@mutant("modes.flag.copied")
def unpickles_in_eval_mode(patch):
    """Puts what was loaded in eval mode, as those expect who load a model to use it."""

    def restore(original, module, state):
        original(module, state)
        module.training = False

    patch.wrap(Module, "__setstate__", restore)


@mutant("modes.flag.not-in-state-dict")
def load_switches_to_eval(patch):
    """Puts the target of load_state_dict in eval mode."""

    def load(original, module, *args, **kwargs):
        found = original(module, *args, **kwargs)
        module.eval()
        return found

    patch.wrap(Module, "load_state_dict", load)


@mutant("modes.flag.not-in-state-dict")
def state_dict_holds_the_mode(patch):
    """Saves the flag beside the weights."""

    def save(original, module, destination, prefix, keep_vars):
        original(module, destination, prefix, keep_vars)
        destination[f"{prefix}training"] = torch.tensor(module.training)

    patch.wrap(Module, "_save_to_state_dict", save)


@mutant("modes.eval.sticky")
def backward_returns_to_training(patch):
    """Takes a backward for training."""
    asleep: list[nn.Module] = []

    def evaluate(original, module):
        asleep.append(module)
        return original(module)

    def backward(original, *args, **kwargs):
        original(*args, **kwargs)
        for module in asleep:
            module.train()

    patch.wrap(Module, "eval", evaluate)
    patch.wrap(torch.Tensor, "backward", backward)


@mutant("modes.eval.train-at-every-batch")
def train_resets_statistics(patch):
    """Forgets the running statistics when training begins."""

    def train(original, module, mode=True):
        if mode and module.running_mean is not None:
            module.reset_running_stats()
        return original(module, mode)

    patch.wrap(BatchNorm, "train", train)


@mutant("modes.eval.forgotten", "modes.grad.no-grad-does-not-switch", "modes.grad.orthogonal")
def no_grad_means_eval(patch):
    """Takes no_grad for evaluation."""

    def forward(original, module, *args):
        before, module.training = module.training, module.training and torch.is_grad_enabled()
        try:
            return original(module, *args)
        finally:
            module.training = before

    patch.wrap(nn.Dropout, "forward", forward)
    patch.wrap(BatchNorm, "forward", forward)


@mutant("modes.grad.inference-mode-does-not-switch")
def inference_mode_means_eval(patch):
    """Takes inference_mode for evaluation."""

    def dropout(original, x, p=0.5, training=True, inplace=False):
        return original(x, p, training and not torch.is_inference_mode_enabled(), inplace)

    patch.wrap(F, "dropout", dropout)


@mutant("modes.eval.forward-in-both-modes")
def eval_upcasts(patch):
    """Normalises in float64 in eval mode, and returns what it has."""

    def forward(original, module, x):
        y = original(module, x)
        return y if module.training else y.double().squeeze(0)

    patch.wrap(nn.Sequential, "forward", forward)


@mutant("modes.eval.forward-changes-nothing")
def eval_counts_batches(patch):
    """Counts the batch before it looks at the mode."""

    def forward(original, module, x):
        if not module.training and module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
        return original(module, x)

    patch.wrap(BatchNorm, "forward", forward)


@mutant("modes.eval.deterministic", "modes.grad.numbers-need-eval-alone")
def dropout_ignores_the_mode(patch):
    """Drops in both modes: Monte Carlo dropout."""
    patch.wrap(nn.Dropout, "forward", lambda original, module, x: F.dropout(x, module.p, True))


@mutant("modes.eval.independent-of-batch-mates", "modes.eval.untrained-batchnorm")
def eval_uses_batch_statistics(patch):
    """Normalises by the batch in eval mode too."""

    def batch_norm(original, x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        if training:
            return original(x, mean, var, weight, bias, training, momentum, eps)
        return original(x, None, None, weight, bias, True, momentum, eps)

    patch.wrap(F, "batch_norm", batch_norm)


@mutant("modes.eval.untrained-batchnorm")
def statistics_start_at_one(patch):
    """Starts the running mean at one, as the variance does."""
    patch.source(BatchNorm.reset_running_stats, "self.running_mean.zero_()", "self.running_mean.fill_(1)")


@mutant("modes.eval.backward-runs")
def eval_detaches(patch):
    """Leaves out the graph in eval mode: the belief that there is no backward."""

    def call(original, module, *args, **kwargs):
        y = original(module, *args, **kwargs)
        return y.detach() if not module.training and isinstance(y, torch.Tensor) else y

    patch.wrap(Module, "__call__", call)


@mutant("modes.eval.parameters-can-be-updated")
def step_skips_in_eval_mode(patch):
    """Lets backward leave no gradients in eval mode, so that step has nothing to do."""

    def backward(original, tensor, *args, **kwargs):
        original(tensor, *args, **kwargs)
        for module in seen:
            for p in module.parameters() if not module.training else ():
                p.grad = torch.zeros_like(p)

    seen.clear()
    patch.wrap(nn.Sequential, "forward", lambda original, module, x: (seen.append(module), original(module, x))[1])
    patch.wrap(torch.Tensor, "backward", backward)
    patch.wrap(torch.optim.SGD, "step", lambda original, self, closure=None: None)


seen: list[nn.Module] = []


@mutant("modes.train.does-not-update-by-itself")
def training_forward_decays(patch):
    """Lets a forward in training mode touch its weights, as layers do that renormalise them."""

    def forward(original, module, x):
        if module.training:
            module.weight.data.mul_(0.99)
        return original(module, x)

    patch.wrap(nn.Linear, "forward", forward)


@mutant("modes.layers.mode-sensitive")
def rrelu_always_calm(patch):
    """Uses the mean slope in both modes."""
    patch.wrap(
        F,
        "rrelu",
        lambda original, x, lower=0.125, upper=1 / 3, training=False, inplace=False: original(x, lower, upper),
    )


@mutant("modes.layers.mode-sensitive")
def lstm_forgets_its_dropout(patch):
    """Hands no dropout on to the recurrent kernel."""
    patch.source(nn.LSTM.forward, "self.dropout", "0.0")


@mutant("modes.layers.mode-insensitive")
def layer_norm_scales_by_mode(patch):
    """Mixes LayerNorm up with BatchNorm, and uses another eps in training."""

    def forward(original, module, x):
        return original(module, x * 1.001 if module.training else x)

    patch.wrap(nn.LayerNorm, "forward", forward)


@mutant("modes.layers.mode-insensitive")
def leaky_relu_draws_its_slope(patch):
    """Draws a slope in training, as its randomised sister does."""

    def forward(original, module, x):
        return F.rrelu(x, training=module.training) if module.training else original(module, x)

    patch.wrap(nn.LeakyReLU, "forward", forward)


@mutant("modes.layers.fractional-pooling-random-in-both")
def fractional_pooling_calm_in_eval(patch):
    """Pools at regular places in eval mode."""
    for cls in (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d):
        patch.wrap(
            cls, "forward", lambda original, m, x: original(m, x) if m.training else x[..., : m.output_size[-1]].clone()
        )


@mutant("modes.layers.functional-dropout-ignores-eval")
def functional_dropout_off_by_default(patch):
    """Drops only when told to train, as F.alpha_dropout does."""
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d"):
        function = getattr(F, name)
        patch.set(function, "__defaults__", (0.5, False, False))


@mutant("modes.grad.orthogonal", "modes.grad.no-grad-saves-nothing")
def eval_turns_grad_on(patch):
    """Runs eval forwards with gradients, whatever the grad mode."""

    def forward(original, module, x):
        with torch.enable_grad():
            return original(module, x)

    patch.wrap(nn.Linear, "forward", forward)


@mutant("modes.autograd.module-is-a-container")
def call_scales_gradients(patch):
    """Lets modules scale the gradient that passes them."""

    def forward(original, module, x):
        y = original(module, x)
        return y * 2 - y.detach()

    patch.wrap(nn.Linear, "forward", forward)


@mutant("modes.autograd.parameters-are-leaves")
def parameters_of_no_grad_are_frozen(patch):
    """Lets no_grad decide whether a new parameter requires grad."""

    def new(original, cls, data=None, requires_grad=True):
        return original(cls, data, requires_grad and torch.is_grad_enabled())

    patch.wrap(nn.Parameter, "__new__", new)


@mutant("modes.autograd.parameters-are-leaves")
def plain_tensors_become_buffers(patch):
    """Registers any tensor that is assigned as a buffer."""

    def assign(original, module, name, value):
        if type(value) is torch.Tensor and name == "plain":
            module._buffers[name] = value
        else:
            original(module, name, value)

    patch.wrap(Module, "__setattr__", assign)


@mutant("modes.loop.seed-example", "modes.loop.equals-gradient-descent")
def step_climbs(patch):
    """Steps up the gradient."""
    patch.wrap(torch.optim.SGD, "step", lambda original, self, closure=None: climb(self))


def climb(optimizer):
    with torch.no_grad():
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=group["lr"])


@mutant("modes.loop.equals-gradient-descent")
def loss_averages_over_samples(patch):
    """Divides the squared error by the samples alone."""
    patch.wrap(F, "mse_loss", lambda original, x, y, *a, **kw: original(x, y, *a, **kw) * x.shape[-1])


@mutant("modes.flag.eval-is-train-false")
def eval_returns_nothing(patch):
    """Switches, and forgets to return the module."""
    patch.wrap(Module, "eval", lambda original, module: original(module) and None)


@mutant("modes.layers.mode-sensitive")
def gru_forgets_its_dropout(patch):
    """Drops between the layers in neither mode."""
    patch.source(nn.GRU.forward, "self.dropout", "0.0")


@mutant("modes.layers.functional-dropout-ignores-eval")
def alpha_dropout_is_on_by_default(patch):
    """Drops features only when told to."""
    patch.set(F.feature_alpha_dropout, "__defaults__", (0.5, True, False))
    patch.set(F.dropout, "__defaults__", (0.5, False, False))
