"""The ways in which modules go wrong: things not registered, not found, cast too much or not restored."""

import copy
import inspect
import textwrap

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from torch_conformance.mutation import NotApplicable, mutant

Module = nn.Module
module_file = nn.modules.module
containers = nn.modules.container


def fragment(patch, function, *choices):
    """Replace the first fragment that this torch's source holds; each choice is ``(old, new)``."""
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    for old, new in choices:
        if old in text:
            return patch.source(function, old, new)
    raise NotApplicable(f"{function.__qualname__} holds none of {choices}")


@mutant("module.register.by-assignment")
def tensors_become_parameters(patch):
    """Registers any tensor that is assigned."""

    def assign(original, module, name, value):
        plain = type(value) is torch.Tensor and name not in module.__dict__.get("_buffers", ())
        original(module, name, nn.Parameter(value) if plain else value)

    patch.wrap(Module, "__setattr__", assign)


@mutant("module.register.by-assignment", "module.names.order")
def names_sorted(patch):
    """Yields names in alphabetical order, as a framework with sorted trees does."""

    def members(original, module, *args, **kwargs):
        return iter(sorted(original(module, *args, **kwargs), key=lambda pair: pair[0]))

    patch.wrap(Module, "_named_members", members)


@mutant("module.register.reassignment")
def old_attribute_shadows(patch):
    """Leaves the plain attribute in place, which then hides the parameter."""
    patch.source(Module.__setattr__, "del d[name]", "d.get(name)")


@mutant("module.register.none")
def none_unregisters(patch):
    """Takes None for del."""

    def assign(original, module, name, value):
        original(module, name, value)
        if value is None:
            module._parameters.pop(name, None)
            module._buffers.pop(name, None)

    patch.wrap(Module, "__setattr__", assign)


@mutant("module.register.deletion")
def deletion_leaves_children(patch):
    """Sets a child to None instead of taking it off."""
    patch.source(Module.__delattr__, "del self._modules[name]", "self._modules[name] = None")


@mutant("module.register.wrong-kind")
def any_value_for_a_parameter(patch):
    """Lets a plain attribute hide a parameter."""
    patch.source(Module.__setattr__, "elif params is not None and name in params:", "elif False:")


@mutant("module.register.wrong-kind")
def any_value_for_a_child(patch):
    """Lets a plain attribute hide a child."""
    patch.source(Module.__setattr__, "elif modules is not None and name in modules:", "elif False:")


@mutant("module.register.bad-names")
def dots_in_names(patch):
    """Takes names with dots, which nobody can find again."""
    for function in (Module.register_parameter, Module.register_buffer, Module.add_module):
        patch.source(function, '"." in name', "False")


@mutant("module.register.bad-names")
def names_taken_twice(patch):
    """Registers a name that stands for something else already."""
    for function in (Module.register_parameter, Module.register_buffer, Module.add_module):
        patch.source(function, "hasattr(self, name)", "False")


@mutant("module.register.bad-values")
def parameters_from_tensors(patch):
    """Makes a parameter of whatever tensor is registered as one."""

    def register(original, module, name, param):
        original(module, name, nn.Parameter(param) if type(param) is torch.Tensor else param)

    patch.wrap(Module, "register_parameter", register)


@mutant("module.register.bad-values")
def non_leaves_as_parameters(patch):
    """Registers tensors that have a history."""
    patch.source(Module.register_parameter, "elif param.grad_fn:", "elif False:")


@mutant("module.register.before-init")
def registers_made_when_needed(patch):
    """Makes the registers when the first name comes, so that a forgotten __init__ goes unnoticed."""

    def assign(original, module, name, value):
        if "_parameters" not in module.__dict__:
            Module.__init__(module)
        original(module, name, value)

    patch.wrap(Module, "__setattr__", assign)


@mutant("module.register.buffer-class")
def buffers_always_persistent(patch):
    """Does not ask a Buffer whether it is persistent."""
    patch.source(Module.__setattr__, "persistent = value.persistent", "persistent = True")


@mutant("module.names.order")
def recurse_ignored(patch):
    """Recurses whatever it is told."""
    patch.source(Module._named_members, "if recurse", "if True")


@mutant("module.names.order")
def prefix_ignored_by_buffers(patch):
    """Hands the prefix on for parameters, not for buffers."""

    def named(original, module, prefix="", recurse=True, *rest, **kwargs):
        return original(module, "", recurse, *rest, **kwargs)

    patch.wrap(Module, "named_buffers", named)


@mutant("module.names.shared-once")
def shared_twice(patch):
    """Yields what is shared as often as it has names."""
    fragment(patch, Module._named_members, ("v in memo", "False"))


@mutant("module.names.shared-once")
def modules_come_once_whatever_is_asked(patch):
    """Takes remove_duplicate and hands nothing on."""
    patch.source(Module.modules, "remove_duplicate=remove_duplicate", "")


@mutant("module.names.modules", "module.names.order")
def children_first(patch):
    """Yields a module after its descendants."""

    def modules(original, module, memo=None, prefix="", remove_duplicate=True):
        found = list(original(module, memo, prefix, remove_duplicate))
        return iter(found[1:] + found[:1])

    patch.wrap(Module, "named_modules", modules)


@mutant("module.names.modules")
def children_twice(patch):
    """Yields a child under each of its names."""
    patch.source(Module.named_children, "module not in memo", "True")


@mutant("module.names.get")
def get_takes_any_kind(patch):
    """Finds by name whatever stands there."""
    patch.source(Module.get_submodule, "not isinstance(mod, torch.nn.Module)", "False")
    patch.source(Module.get_buffer, "buffer_name not in mod._buffers", "False")


@mutant("module.names.get")
def get_parameter_takes_any_kind(patch):
    """Takes a buffer for a parameter."""
    patch.source(Module.get_parameter, "not isinstance(param, torch.nn.Parameter)", "False")


@mutant("module.names.set-submodule")
def set_submodule_at_the_root(patch):
    """Puts the module at the last part of its name, in the root."""
    if not hasattr(Module, "set_submodule"):
        raise NotApplicable("Module has no set_submodule")

    def put(module, target, new, strict=False):
        setattr(module, target.rpartition(".")[2], new)

    patch.set(Module, "set_submodule", put)


@mutant("module.apply.children-first")
def apply_from_the_root(patch):
    """Starts with the module itself."""

    def apply(module, fn):
        fn(module)
        for child in module.children():
            child.apply(fn)
        return module

    patch.set(Module, "apply", apply)


@mutant("module.cast.floating-alone")
def casts_integers(patch):
    """Casts integer buffers along."""
    for name in ("half", "bfloat16", "float", "double"):
        text = inspect.getsource(getattr(Module, name))
        patch.source(getattr(Module, name), "if t.is_floating_point() else t", "") if "else t)" in text else None


@mutant("module.cast.floating-alone")
def casts_parameters_alone(patch):
    """Forgets the buffers."""
    patch.source(Module._apply, "self._buffers.items()", "()")


@mutant("module.cast.type-casts-everything")
def type_spares_integers(patch):
    """Treats type() as to()."""
    patch.wrap(Module, "type", lambda original, module, dtype: module.to(dtype))


@mutant("module.cast.integer-refused")
def integers_accepted(patch):
    """Casts to integers: nothing happens to what is floating, or worse."""

    def to(original, module, *args, **kwargs):
        if args and args[0] is torch.int64:
            return module._apply(lambda t: t.long() if not t.requires_grad else t)
        return original(module, *args, **kwargs)

    patch.wrap(Module, "to", to)


@mutant("module.cast.parameters-kept")
def casts_replace_parameters(patch):
    """Makes new parameters, as torch.__future__ allows and the docstring of cuda says."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    patch.stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)


@mutant("module.cast.parameters-kept")
def gradients_not_cast(patch):
    """Drops the gradients of what is cast."""

    def apply(original, module, *args, **kwargs):
        for parameter in module.parameters():
            parameter.grad = None
        return original(module, *args, **kwargs)

    patch.wrap(Module, "_apply", apply)


@mutant("module.cast.memory-format")
def memory_format_ignored(patch):
    """Reads device and dtype, and forgets the memory format."""
    fragment(patch, Module.to, ("convert_to_format is not None and", "False and"))


@mutant("module.cast.to-empty-alone")
def to_empty_always_recurses(patch):
    """Moves the children, whatever it is told."""
    patch.source(Module.to_empty, "recurse=recurse", "recurse=True")


@mutant("module.cast.to-empty")
def to_empty_thaws(patch):
    """Lets empty parameters require grad, whether the old ones did or not."""

    def to_empty(original, module, **kwargs):
        found = original(module, **kwargs)
        for parameter in module.parameters():
            parameter.requires_grad_()
        return found

    patch.wrap(Module, "to_empty", to_empty)


@mutant("module.cast.ties")
def casts_make_new_parameters(patch):
    """Makes a parameter anew in each of its places."""
    patch.source(
        Module._apply,
        "p_should_use_set_data = compute_should_use_set_data(param, param_applied)",
        "p_should_use_set_data = False",
    )


@mutant("module.freeze.requires-grad")
def freezes_one_level(patch):
    """Freezes the module's own parameters, not those below."""
    patch.source(Module.requires_grad_, "self.parameters()", "self.parameters(recurse=False)")


@mutant("module.freeze.requires-grad")
def thaws_never(patch):
    """Takes False for the default."""
    patch.set(Module.requires_grad_, "__defaults__", (False,))


@mutant("module.zero-grad.scope")
def zero_grad_skips_frozen(patch):
    """Passes over parameters that do not require grad."""
    patch.source(Module.zero_grad, "if p.grad is not None:", "if p.grad is not None and p.requires_grad:")


@mutant("module.zero-grad.scope")
def zero_grad_one_level(patch):
    """Clears the module's own parameters, not those below."""
    patch.source(Module.zero_grad, "self.parameters()", "self.parameters(recurse=False)")


@mutant("module.zero-grad.none-or-zeros")
def zero_grad_keeps_the_graph(patch):
    """Fills with zeros what still hangs on its graph."""
    patch.source(Module.zero_grad, "p.grad.detach_()", "p.grad.mul_(0)")


@mutant("module.zero-grad.none-or-zeros")
def zero_grad_always_none(patch):
    """Sets None whatever it is told."""
    patch.source(Module.zero_grad, "if set_to_none:", "if True:")


def zero_grad_default(patch, before, after):
    if Module.zero_grad.__defaults__ != (before,):
        raise NotApplicable(f"the default of this torch is not {before}")
    patch.set(Module.zero_grad, "__defaults__", (after,))


@mutant("module.zero-grad.default-none")
def zero_grad_fills_by_default(patch):
    """Keeps the default of before 2.0."""
    zero_grad_default(patch, True, False)


@mutant("module.zero-grad.default-zeros")
def zero_grad_drops_by_default(patch):
    """Takes the default of 2.0 early."""
    zero_grad_default(patch, False, True)


@mutant("module.containers.sequential")
def sequential_skips_its_first(patch):
    """Runs a parallel sum of its modules' first two: the loop forgets to hand outputs on."""

    def forward(original, module, x):
        for child in module:
            y = child(x) if x.shape[-1] == getattr(child, "in_features", x.shape[-1]) else x
        return y if len(module) else x

    patch.wrap(nn.Sequential, "forward", forward)


@mutant("module.containers.sequential")
def deletion_leaves_holes(patch):
    """Does not renumber what follows a deleted module."""
    fragment(
        patch,
        nn.Sequential.__delitem__,
        ("self._modules = OrderedDict(", "OrderedDict("),
    )


@mutant("module.containers.sequential")
def insert_after(patch):
    """Inserts one place too late."""
    patch.source(
        nn.Sequential.insert, "self._modules[str(index)] = module", "self._modules[str(min(index + 1, n))] = module"
    )


@mutant("module.containers.sequential-sum")
def sums_copy(patch):
    """Copies the modules of a sum."""
    patch.wrap(nn.Sequential, "__mul__", lambda original, module, times: copy.deepcopy(original(module, times)))


@mutant("module.containers.module-list")
def pop_returns_a_copy(patch):
    """Leaves the popped module in the list."""
    patch.wrap(nn.ModuleList, "pop", lambda original, module, key: module[key])


@mutant("module.containers.module-list")
def list_insert_overwrites(patch):
    """Writes over the module that stands at the place."""
    patch.set(nn.ModuleList, "insert", lambda module, index, new: module._modules.update({str(index): new}))


@mutant("module.containers.module-dict")
def plain_dicts_sorted(patch):
    """Sorts the keys of a plain dict, as torch did before dicts were ordered."""

    def update(original, module, modules):
        original(module, dict(sorted(modules.items())) if type(modules) is dict else modules)

    patch.wrap(nn.ModuleDict, "update", update)


@mutant("module.containers.parameter-list")
def tensors_stay_tensors(patch):
    """Keeps tensors as they come, so that no optimizer sees them."""
    patch.source(
        nn.ParameterList.__setitem__, "isinstance(param, torch.Tensor) and not isinstance(param, Parameter)", "False"
    )


@mutant("module.containers.parameter-dict")
def keys_never_sorted(patch):
    """Keeps the order of a plain dict, as the other container does."""
    patch.source(nn.ParameterDict.update, "sorted(parameters.items())", "parameters.items()")


@mutant("module.containers.parameter-dict")
def dict_tensors_stay_tensors(patch):
    """Keeps tensors as they come."""
    patch.source(
        nn.ParameterDict.__setitem__, "isinstance(value, torch.Tensor) and not isinstance(value, Parameter)", "False"
    )


@mutant("module.copy.deep")
def copies_are_shallow(patch):
    """Shares the parameters of a copy with the original."""
    patch.set(nn.Parameter, "__deepcopy__", lambda parameter, memo: parameter)


@mutant("module.functional-call.replaces", "module.functional-call.buffers")
def functional_call_copies_values(patch):
    """Copies the values into the module and leaves them there."""

    def call(original, module, given, args=None, kwargs=None, **options):
        given = {k: v for d in given for k, v in d.items()} if isinstance(given, tuple) else given
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if name in given:
                    tensor.copy_(given[name])
        return module(*(args if isinstance(args, tuple) else (args,)), **(kwargs or {}))

    if not hasattr(torch, "func"):
        raise NotApplicable("torch has no torch.func")
    patch.wrap(torch.func, "functional_call", call)


@mutant("module.functional-call.replaces")
def functional_call_forgets_to_restore(patch):
    """Restores the module after a success alone."""
    if not hasattr(torch, "func"):
        raise NotApplicable("torch has no torch.func")

    def call(original, module, given, *args, **kwargs):
        try:
            return original(module, given, *args, **kwargs)
        except RuntimeError:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.zero_()
            raise

    patch.wrap(torch.func, "functional_call", call)


@mutant("module.functional-call.buffers")
def functional_call_drops_updates(patch):
    """Works on clones of the buffers given."""
    if not hasattr(torch, "func"):
        raise NotApplicable("torch has no torch.func")

    def call(original, module, given, *args, **kwargs):
        given = {k: v.clone() for k, v in given.items()} if isinstance(given, dict) else given
        return original(module, given, *args, **kwargs)

    patch.wrap(torch.func, "functional_call", call)


@mutant("module.functional-call.tied")
def ties_ignored(patch):
    """Replaces the named one of two tied parameters alone."""
    if not hasattr(torch, "func"):
        raise NotApplicable("torch has no torch.func")

    def call(original, *args, tie_weights=True, **kwargs):
        return original(*args, tie_weights=False, **kwargs)

    patch.wrap(torch.func, "functional_call", call)


@mutant("module.functional-call.strict")
def strict_means_nothing(patch):
    """Does not look at strict."""

    def call(original, *args, strict=False, **kwargs):
        return original(*args, **kwargs)

    if not hasattr(torch, "func"):
        raise NotApplicable("torch has no torch.func")
    patch.wrap(torch.func, "functional_call", call)


@mutant("module.parametrize.computed", "module.parametrize.chain")
def first_parametrization_alone(patch):
    """Applies nothing but the last part of a chain to the original."""

    def forward(original, parts):
        if not parts.is_tensor or len(parts) < 1:
            return original(parts)
        return parts[len(parts) - 1](parts.original.detach() + 0 * parts.original)

    patch.wrap(parametrize.ParametrizationList, "forward", forward)


@mutant("module.parametrize.assignment")
def right_inverse_in_the_wrong_order(patch):
    """Inverts the parametrizations first to last."""
    patch.source(parametrize.ParametrizationList.right_inverse, "reversed(self)", "list(self)")


@mutant("module.parametrize.cached")
def cache_outlives_its_block(patch):
    """Keeps the cache when the block has ended."""
    patch.source(parametrize.cached, "_cache = {}", "pass")
    patch.stack.callback(lambda: parametrize._cache.clear())


@mutant("module.parametrize.cached")
def cache_never_fills(patch):
    """Computes the tensor at each access, cache or not."""
    patch.source(
        parametrize._get_parametrized if hasattr(parametrize, "_get_parametrized") else parametrize._inject_property,
        "_cache[key] = tensor",
        "pass",
    )


@mutant("module.parametrize.removal")
def removal_keeps_the_original(patch):
    """Always leaves the original."""

    def remove(original, module, name, leave_parametrized=True):
        return original(module, name, False)

    patch.wrap(parametrize, "remove_parametrizations", remove)


@mutant("module.parametrize.removal")
def removal_swaps(patch):
    """Mixes up which of the two is to stay."""

    def remove(original, module, name, leave_parametrized=True):
        return original(module, name, not leave_parametrized)

    patch.wrap(parametrize, "remove_parametrizations", remove)


@mutant("module.parametrize.checked")
def never_checks(patch):
    """Trusts every parametrization."""

    def register(original, module, name, part, *, unsafe=False):
        return original(module, name, part, unsafe=True)

    patch.wrap(parametrize, "register_parametrization", register)


@mutant("module.parametrize.mode-of-host")
def parametrizations_always_train(patch):
    """Leaves a parametrization in training mode."""
    patch.source(
        parametrize.register_parametrization, "parametrization.train(module.training)", "parametrization.train()"
    )


@mutant("module.weight-norm.formula", "module.weight-norm.gradient")
def weight_norm_over_everything(patch):
    """Takes one length for the whole weight."""

    def forward(original, part, g, v):
        return g * v / v.norm()

    patch.wrap(parametrizations._WeightNorm, "forward", forward)


@mutant("module.weight-norm.gradient")
def weight_norm_takes_the_length_for_constant(patch):
    """Does not differentiate through the length."""

    def forward(original, part, g, v):
        return original(part, g, v).detach() + g * (v - v.detach()) / v.detach().norm() + 0 * g

    patch.wrap(parametrizations._WeightNorm, "forward", forward)


@mutant("module.spectral-norm.formula", "module.spectral-norm.gradient")
def spectral_norm_by_frobenius(patch):
    """Divides by the Frobenius norm."""

    def forward(original, part, weight):
        if part.training:
            original(part, weight)
        return weight / weight.norm()

    patch.wrap(parametrizations._SpectralNorm, "forward", forward)


@mutant("module.spectral-norm.iterates-in-training")
def spectral_norm_iterates_always(patch):
    """Iterates in eval mode too."""
    patch.source(parametrizations._SpectralNorm.forward, "if self.training:", "if True:")


@mutant("module.spectral-norm.iterates-in-training")
def spectral_norm_iterates_once(patch):
    """Runs one iteration, whatever was asked for."""
    patch.source(parametrizations._SpectralNorm.forward, "self.n_power_iterations", "1")


@mutant("module.spectral-norm.gradient")
def sigma_taken_for_constant(patch):
    """Does not differentiate through the singular value."""
    patch.source(parametrizations._SpectralNorm.forward, "weight / sigma", "weight / sigma.detach()")


@mutant("module.register.tensor-subclass")
def subclasses_become_plain(patch):
    """Makes a plain parameter of whatever it is given."""
    patch.source(nn.Parameter.__new__, "type(data) is torch.Tensor or", "True or")


@mutant("module.register.tensor-subclass")
def subclasses_are_no_parameters(patch):
    """Forgets to mark what is a parameter."""
    patch.source(nn.Parameter.__new__, "t._is_param = True", "pass")


@mutant("module.register.uninitialized")
def materialized_on_the_default_device(patch):
    """Makes the values where the default device is."""
    patch.source(nn.UninitializedParameter.materialize, "device = self.data.device", "device = None")


@mutant("module.register.uninitialized")
def copies_get_the_default_dtype(patch):
    """Copies the flag and nothing else."""
    patch.source(nn.UninitializedParameter.__deepcopy__, "self.data.dtype", "None")


@mutant("module.containers.parameter-dict")
def what_is_not_there_is_none(patch):
    """Forgets what to give instead."""
    patch.source(nn.ParameterDict.get, "else default", "else None")


@mutant("module.containers.parameter-dict")
def pairs_set_the_key(patch):
    """Stores the first of the pair for both."""
    patch.source(nn.ParameterDict.update, "self[p[0]] = p[1]", "self[p[0]] = p[0]")


@mutant("module.containers.parameter-dict")
def reversed_or_prefers_the_left(patch):
    """Merges the other way round."""
    patch.source(
        nn.ParameterDict.__ror__, "copy.update(self)", "copy.update({k: v for k, v in self.items() if k not in copy})"
    )


@mutant("module.containers.sequential-sum")
def growing_in_place_forgets_the_offset(patch):
    """Writes every repetition to the same place."""
    patch.source(nn.Sequential.__imul__, "offset += len_original", "pass")


@mutant("module.settings.kept")
def cells_forget_whether_they_have_a_bias(patch):
    """Does not keep a setting that only the constructor reads."""
    patch.source(nn.modules.rnn.RNNCellBase.__init__, "self.bias = bias", "pass")


@mutant("module.settings.kept")
def activations_in_place(patch):
    """Saves memory unasked."""
    patch.set(nn.Mish.__init__, "__defaults__", (True,))


@mutant("module.settings.kept")
def poisson_with_a_coarse_eps(patch):
    """Takes the eps of a normalisation layer."""
    before = nn.PoissonNLLLoss.__init__.__defaults__
    patch.set(nn.PoissonNLLLoss.__init__, "__defaults__", (*before[:3], 1e-5, *before[4:]))


@mutant("module.activation.in-place")
def silu_forgets_to_be_in_place(patch):
    """Takes the flag and hands nothing on."""
    patch.source(nn.SiLU.forward, "inplace=self.inplace", "")


@mutant("module.activation.in-place")
def relu6_forgets_to_be_in_place(patch):
    """Takes the flag and makes a new tensor."""
    patch.source(nn.functional.relu6, "relu6_(", "relu6(")


@mutant("module.activation.softmax-dim")
def softmax_takes_the_channels_of_three_dimensions(patch):
    """Takes dimension 1 wherever there is one."""
    patch.source(nn.functional._get_softmax_dim, "ndim == 3", "False")


@mutant("module.register.init-takes-nothing")
def arguments_are_swallowed(patch):
    """Takes any argument and does nothing with it."""
    patch.wrap(Module, "__init__", lambda o, self, *args, **kwargs: o(self))


@mutant("module.register.call-super-init")
def next_constructor_is_never_called(patch):
    """Ends the chain of constructors whatever was asked for."""
    patch.source(Module.__init__, "if self.call_super_init:", "if False:")


@mutant("module.register.call-super-init")
def next_constructor_is_always_called(patch):
    """Calls the next constructor whether it was asked for or not."""
    patch.source(Module.__init__, "if self.call_super_init:", "if True:")


@mutant("module.register.own-parameter-class")
def marked_tensors_are_of_every_class(patch):
    """Takes the mark of a parameter for that of each class derived from it."""
    patch.source(type(nn.Parameter).__instancecheck__, "self is Parameter", "True")


@mutant("module.register.uninitialized-complex")
def complex_lazy_parameters_cannot_be_cast(patch):
    """Does not answer whether it is complex before it has a shape."""
    mixin = nn.parameter.UninitializedTensorMixin
    patch.set(mixin, "_allowed_methods", [m for m in mixin._allowed_methods if m is not torch.Tensor.is_complex])


@mutant("module.names.set-submodule-modules-alone")
def anything_is_put_among_modules(patch):
    """Puts whatever it is given."""
    patch.source(Module.set_submodule, "not isinstance(module, torch.nn.Module)", "False")


@mutant("module.names.set-submodule-strict")
def strictness_is_not_asked_for(patch):
    """Adds what is not there, strict or not."""
    patch.source(Module.set_submodule, "strict and not", "False and not")


@mutant("module.names.set-submodule-strict")
def numbers_are_replaced_by_modules(patch):
    """Puts the module in the place of whatever attribute there is."""
    patch.source(Module.set_submodule, "isinstance(mod, torch.nn.Module)", "mod is not None")


@mutant("module.functional-call.keywords-alone")
def no_arguments_are_one(patch):
    """Hands None on as an argument."""
    patch.source(nn.utils.stateless._functional_call, "args = ()", "args = (args,)")


@mutant("module.activation.elu-near-zero")
def exponential_less_one(patch):
    """Takes one from the exponential, which is one where the input is small."""

    def elu(original, x, alpha=1.0, inplace=False):
        return torch.where(x > 0, x, alpha * (x.exp() - 1))

    patch.wrap(nn.functional, "elu", elu)


@mutant("module.lazy.output-size")
def lazy_convolutions_take_an_input_alone(patch):
    """Knows no further argument in the first call, as torch did until 2.3."""

    def initialize(original, layer, x, **options):
        return original(layer, x, **options)

    patch.wrap(nn.modules.conv._LazyConvXdMixin, "initialize_parameters", initialize)


@mutant("module.cast.complex")
def complex_parameters_are_not_cast(patch):
    """Casts what is floating-point alone."""
    patch.source(nn.Module.to, "t.is_floating_point() or t.is_complex()", "t.is_floating_point()")
