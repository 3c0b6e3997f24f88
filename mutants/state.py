"""The ways in which checkpoints go wrong: entries lost, shared, cast or loaded where they should not be."""

import copy
import inspect
import io
import pickle
import textwrap

import torch
from torch import nn
from torch import serialization as files
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from torch_conformance.mutation import NotApplicable, mutant

Module = nn.Module
BatchNorm = nn.modules.batchnorm._NormBase


def prefer(patch, function, old, new):
    """The fragment in the spelling of this torch: the first of ``old`` that its source holds."""
    text = textwrap.dedent(inspect.getsource(function))
    for fragment, replacement in zip(old, new, strict=True):
        if fragment in text:
            return patch.source(function, fragment, replacement)
    raise NotApplicable(f"{function.__qualname__} holds none of {old}")


@mutant("state.dict.content")
def saves_scratch_buffers(patch):
    """Saves every buffer, whether it is persistent or not."""
    patch.source(Module._save_to_state_dict, " and name not in self._non_persistent_buffers_set", "")


@mutant("state.dict.content")
def assigned_buffers_are_saved(patch):
    """Makes a buffer persistent when it is assigned anew."""
    patch.source(Module.__setattr__, "persistent = name not in self._non_persistent_buffers_set", "persistent = True")


@mutant("state.dict.content", "state.load.statistics-travel")
def forgets_buffers(patch):
    """Saves what an optimizer sees: the parameters alone."""
    patch.source(Module._save_to_state_dict, "self._buffers.items()", "()")


@mutant("state.dict.content")
def children_first(patch):
    """Writes the children before the module's own entries."""

    def state_dict(original, module, *args, **kwargs):
        held = original(module, *args, **kwargs)
        for key in [key for key in held if "." not in key]:
            held.move_to_end(key)
        return held

    patch.wrap(Module, "state_dict", state_dict)


@mutant("state.dict.prefix-and-destination")
def returns_a_fresh_mapping(patch):
    """Returns a copy of the destination."""
    patch.wrap(Module, "state_dict", lambda original, m, *a, **kw: copy.copy(original(m, *a, **kw)))


@mutant("state.dict.prefix-and-destination")
def prefix_for_children_alone(patch):
    """Puts the prefix before the children's names, but not before the module's own."""
    patch.source(Module._save_to_state_dict, "destination[prefix + name] = param", "destination[name] = param")


@mutant("state.dict.snapshot")
def state_dict_copies(patch):
    """Clones every entry: the snapshot that many take it for."""
    patch.source(Module._save_to_state_dict, "param.detach()", "param.detach().clone()")


@mutant("state.dict.detached")
def entries_keep_their_graph(patch):
    """Hands out the parameters themselves."""
    patch.source(Module._save_to_state_dict, "param if keep_vars else param.detach()", "param")


@mutant("state.dict.detached")
def keep_vars_forgotten_below(patch):
    """Does not hand keep_vars on to the children."""
    patch.source(Module.state_dict, "keep_vars=keep_vars,", "keep_vars=False,") if "keep_vars=keep_vars," in (
        inspect.getsource(Module.state_dict)
    ) else patch.source(Module.state_dict, "keep_vars=keep_vars)", "keep_vars=False)")


@mutant("state.dict.versions")
def metadata_of_the_root_alone(patch):
    """Writes the version of the module that is asked, and of no other."""
    patch.source(Module.state_dict, 'if hasattr(destination, "_metadata"):', "if not prefix:")


@mutant("state.dict.versions")
def batchnorm_forgets_its_version(patch):
    """Saves BatchNorm as version 1, which has no counter."""
    patch.set(BatchNorm, "_version", 1)


@mutant("state.dict.tied")
def shared_children_once(patch):
    """Walks over the children, of which each comes once."""
    patch.source(Module.state_dict, "in self._modules.items():", "in self.named_children():")


@mutant("state.dict.tied")
def tied_entries_once(patch):
    """Saves a shared tensor once, as safetensors does."""

    def state_dict(original, module, *args, **kwargs):
        held = original(module, *args, **kwargs)
        seen = set()
        for key, value in list(held.items()):
            if isinstance(value, torch.Tensor) and value.numel() and (value.data_ptr(), value.shape) in seen:
                del held[key]
            elif isinstance(value, torch.Tensor):
                seen.add((value.data_ptr(), value.shape))
        return held

    patch.wrap(Module, "state_dict", state_dict)


@mutant("state.dict.weights-alone", "state.load.in-place")
def load_clears_gradients(patch):
    """Drops the gradients of what was loaded, for they are stale."""

    def load(original, module, *args, **kwargs):
        found = original(module, *args, **kwargs)
        for parameter in module.parameters():
            parameter.grad = None
        return found

    patch.wrap(Module, "load_state_dict", load)


@mutant("state.dict.weights-alone")
def load_unfreezes(patch):
    """Lets loaded parameters require grad."""

    def load(original, module, *args, **kwargs):
        found = original(module, *args, **kwargs)
        for parameter in module.parameters():
            parameter.requires_grad_()
        return found

    patch.wrap(Module, "load_state_dict", load)


@mutant("state.dict.extra-state")
def extra_state_not_restored(patch):
    """Saves the extra state and does not hand it back."""
    patch.source(Module._load_from_state_dict, "self.set_extra_state(", "(")


@mutant("state.dict.extra-state")
def extra_state_optional(patch):
    """Does not miss an extra state that is not there."""
    patch.source(Module._load_from_state_dict, "missing_keys.append(extra_state_key)", "pass")


@mutant("state.load.strict", "state.load.not-strict", "state.load.hooks")
def missing_keys_pass(patch):
    """Does not miss anything."""
    patch.source(Module._load_from_state_dict, "missing_keys.append(key)", "pass")


@mutant("state.load.strict", "state.load.not-strict", "state.load.below-a-parameter")
def unexpected_keys_pass_below(patch):
    """Looks for unexpected keys among the module's own names, not among those with a dot."""
    patch.source(Module._load_from_state_dict, "if input_name[0] not in self._modules:", "if False:")


@mutant("state.load.strict")
def strict_off_by_default(patch):
    """Takes what fits and says nothing."""

    def load(original, module, state_dict, strict=False, *args, **kwargs):
        return original(module, state_dict, strict, *args, **kwargs)

    patch.wrap(Module, "load_state_dict", load)


@mutant("state.load.not-strict")
def not_strict_reports_nothing(patch):
    """Returns empty lists when it is not strict."""

    def load(original, module, state_dict, strict=True, **kwargs):
        found = original(module, state_dict, strict, **kwargs)
        return type(found)([], [])

    patch.wrap(Module, "load_state_dict", load)


@mutant("state.load.size-mismatch")
def shapes_broadcast(patch):
    """Lets copy_ broadcast a smaller tensor."""
    patch.source(Module._load_from_state_dict, "input_param.shape != param.shape", "False")


@mutant("state.load.size-mismatch")
def compares_sizes_only(patch):
    """Compares the number of elements, as a flat checkpoint would."""

    def load(original, module, state_dict, prefix, *rest):
        for name, parameter in module._parameters.items():
            given = state_dict.get(prefix + name)
            if parameter is not None and torch.is_tensor(given) and given.numel() == parameter.numel():
                state_dict[prefix + name] = given.reshape(parameter.shape)
        return original(module, state_dict, prefix, *rest)

    patch.wrap(Module, "_load_from_state_dict", load)


@mutant("state.load.one-element-for-scalar")
def old_scalars_refused(patch):
    """Drops the compatibility with torch 0.3."""
    patch.source(Module._load_from_state_dict, "input_param = input_param[0]", "pass")


@mutant("state.load.no-more-than-one-for-scalar")
def scalars_take_any_vector(patch):
    """Takes the first element of a vector for a scalar, as torch 1.13 did."""
    patch.source(Module._load_from_state_dict, "and input_param.shape[0] == 1", "")


@mutant("state.load.bad-input")
def takes_pairs(patch):
    """Makes a mapping of whatever dict() takes."""
    prefer(
        patch,
        Module.load_state_dict,
        ("if not isinstance(state_dict, Mapping):", "if not isinstance(state_dict, dict):"),
        ("if False:", "if False:"),
    )


@mutant("state.load.bad-input")
def skips_what_is_no_tensor(patch):
    """Passes over entries that are no tensors."""
    patch.wrap(Module, "_load_from_state_dict", without_others)


def without_others(original, module, state_dict, *rest):
    for key in [key for key, value in state_dict.items() if isinstance(value, list)]:
        del state_dict[key]
    return original(module, state_dict, *rest)


@mutant("state.load.none-is-unexpected")
def names_of_none_pass(patch):
    """Knows a registered name, whether anything stands behind it or not."""
    patch.source(
        Module._load_from_state_dict,
        "elif input_name[0] not in local_state:",
        "elif input_name[0] not in {**self._parameters, **self._buffers}:",
    )


@mutant("state.load.in-place", "state.load.casts")
def load_replaces_parameters(patch):
    """Puts new parameters in the place of the old ones."""
    patch.source(
        Module._load_from_state_dict,
        "param.copy_(input_param)",
        "setattr(self, name, type(param)(input_param.clone()) if name in self._parameters else input_param.clone())",
    )


@mutant("state.load.casts")
def load_casts_in_the_order_of_memory(patch):
    """Writes values of another dtype as they lie, whatever the strides of the parameter."""
    place = "(param if param.dtype == input_param.dtype else param.as_strided(param.shape, input_param.stride()))"
    patch.source(Module._load_from_state_dict, "param.copy_(input_param)", f"{place}.copy_(input_param)")


@mutant("state.load.casts")
def load_truncates(patch):
    """Cuts values off at fewer bits instead of rounding them."""
    patch.source(
        Module._load_from_state_dict,
        "param.copy_(input_param)",
        "param.copy_(input_param.half() if param.is_floating_point() else input_param)",
    )


@mutant("state.load.not-atomic")
def load_checks_first(patch):
    """Checks everything before it copies anything."""

    def load(original, module, state_dict, *args, **kwargs):
        before = copy.deepcopy(dict(module.state_dict()))
        try:
            return original(module, state_dict, *args, **kwargs)
        except RuntimeError:
            original(module, before, strict=False)
            raise

    patch.wrap(Module, "load_state_dict", load)


@mutant("state.load.assign")
def assign_copies(patch):
    """Ignores assign."""
    if "assign" not in inspect.signature(Module.load_state_dict).parameters:
        raise NotApplicable("load_state_dict has no assign")
    patch.wrap(
        Module, "load_state_dict", lambda original, m, state, strict=True, assign=False: original(m, state, strict)
    )


@mutant("state.load.assign")
def assign_takes_requires_grad(patch):
    """Takes requires_grad over with the tensor."""
    patch.source(Module._load_from_state_dict, "input_param.requires_grad_(param.requires_grad)", "pass")


@mutant("state.load.given-dict-untouched")
def load_consumes_the_dict(patch):
    """Lets hooks work on the caller's own mapping, and takes out what was loaded."""

    def load(original, module, state_dict, *args, **kwargs):
        found = original(module, state_dict, *args, **kwargs)
        if isinstance(state_dict, dict):
            state_dict.clear()
        return found

    patch.wrap(Module, "load_state_dict", load)


@mutant("state.load.hooks")
def load_pre_hooks_sleep(patch):
    """Does not run the hooks that run before loading."""
    patch.source(Module._load_from_state_dict, "self._load_state_dict_pre_hooks.values()", "()")


@mutant("state.load.hooks")
def load_post_hooks_see_copies(patch):
    """Hands the post-hooks copies of the lists."""
    patch.source(
        Module.load_state_dict,
        "hook(module, incompatible_keys)",
        "hook(module, type(incompatible_keys)(list(missing_keys), list(unexpected_keys)))",
    )


@mutant("state.dict.hooks")
def state_dict_hooks_at_the_root(patch):
    """Runs the hooks of the module that is asked, not those of its children."""
    patch.source(
        Module.state_dict,
        "in self._state_dict_hooks.values()",
        "in (() if prefix.count('.') > 1 else self._state_dict_hooks.values())",
    )


@mutant("state.dict.hooks")
def pre_hooks_after(patch):
    """Runs the pre-hooks when the entries are written already."""

    def state_dict(original, module, *args, **kwargs):
        hooks = dict(module._state_dict_pre_hooks)
        module._state_dict_pre_hooks.clear()
        held = original(module, *args, **kwargs)
        module._state_dict_pre_hooks.update(hooks)
        for hook in hooks.values():
            hook(module, kwargs.get("prefix", ""), kwargs.get("keep_vars", False))
        return held

    patch.wrap(Module, "state_dict", state_dict)


@mutant("state.load.old-batchnorm")
def counter_required(patch):
    """Wants the counter of every version."""
    patch.source(BatchNorm._load_from_state_dict, "version < 2", "False")


@mutant("state.load.old-batchnorm-counter")
def counter_of_old_files_made_up(patch):
    """Supposes that an old file had counted one batch."""

    def load(original, module, state_dict, prefix, *rest):
        state_dict.setdefault(f"{prefix}num_batches_tracked", torch.tensor(1))
        return original(module, state_dict, prefix, *rest)

    patch.wrap(BatchNorm, "_load_from_state_dict", load)


@mutant("state.load.statistics-travel", "state.file.model-round-trip")
def variance_loaded_as_deviation(patch):
    """Takes the running variance for a standard deviation, as converters from other frameworks did."""

    def load(original, module, state_dict, prefix, *rest):
        original(module, state_dict, prefix, *rest)
        with torch.no_grad():
            module.running_var.sqrt_()

    patch.wrap(BatchNorm, "_load_from_state_dict", load)


# -- Files ---------------------------------------------------------------------------------------------------------


def on_load(patch, change):
    """Apply ``change`` to every tensor that comes out of torch.load."""

    def visit(value):
        if isinstance(value, torch.Tensor):
            return change(value)
        if isinstance(value, dict):
            for key in list(value):
                value[key] = visit(value[key])
        elif isinstance(value, list):
            value[:] = [visit(each) for each in value]
        return value

    patch.wrap(torch, "load", lambda original, *args, **kwargs: visit(original(*args, **kwargs)))


@mutant("state.file.round-trip")
def flushes_subnormals(patch):
    """Flushes subnormal numbers to zero on the way."""

    def flush(x):
        if not x.is_floating_point():
            return x
        return torch.where(x.abs() < torch.finfo(x.dtype).tiny, x * 0, x) if x.is_contiguous() else x

    on_load(patch, flush)


@mutant("state.file.round-trip")
def loads_contiguous(patch):
    """Forgets the strides."""
    on_load(patch, lambda x: x if x.requires_grad else x.contiguous())


@mutant("state.file.coalesced")
def sparse_tensors_come_back_uncoalesced(patch):
    """Forgets that indices are sorted and unique."""
    on_load(patch, lambda x: x._coalesced_(False) if x.is_sparse else x)


@mutant("state.file.model-round-trip")
def saves_half(patch):
    """Saves in bfloat16, to spare space."""
    on_load(patch, lambda x: x.bfloat16().to(x.dtype) if x.is_floating_point() and x.is_leaf else x)


@mutant("state.file.container-and-metadata")
def metadata_lost(patch):
    """Makes a plain dict of what it loads."""
    patch.wrap(
        torch, "load", lambda original, *a, **kw: (lambda v: dict(v) if isinstance(v, dict) else v)(original(*a, **kw))
    )


@mutant("state.file.container-and-metadata")
def parameters_become_tensors(patch):
    """Loads parameters as plain tensors."""
    on_load(patch, lambda x: x.detach().requires_grad_(x.requires_grad) if isinstance(x, nn.Parameter) else x)


@mutant("state.file.name-irrelevant")
def looks_at_the_extension(patch):
    """Accepts the usual extensions alone."""

    def save(original, what, f, *args, **kwargs):
        if isinstance(f, str) and not f.endswith((".pt", ".pth")):
            raise ValueError(f"unknown extension: {f}")
        return original(what, f, *args, **kwargs)

    patch.wrap(torch, "save", save)


@mutant("state.file.path-like")
def paths_are_called_by_their_text(patch):
    """Takes the text of a path for its name."""
    patch.wrap(
        torch, "save", lambda original, what, f, **kw: original(what, str(f) if hasattr(f, "__fspath__") else f, **kw)
    )


@mutant("state.file.leaves")
def requires_grad_lost(patch):
    """Loads everything frozen."""
    on_load(patch, lambda x: x.requires_grad_(False) if x.is_leaf else x.detach())


@mutant("state.file.shared-storage")
def every_tensor_by_itself(patch):
    """Writes each tensor by itself."""
    on_load(patch, lambda x: x.clone() if not x.requires_grad else x)


@mutant("state.file.shared-storage")
def views_saved_compactly(patch):
    """Saves of a view what is seen alone."""
    patch.wrap(
        torch, "save", lambda original, x, *a, **kw: original(x.clone() if isinstance(x, torch.Tensor) else x, *a, **kw)
    )


@mutant("state.file.legacy-format")
def legacy_always_zip(patch):
    """Has no other format than the zip file."""
    patch.wrap(torch, "save", lambda original, what, f, **kw: original(what, f))


@mutant("state.file.memory-mapped")
def mmap_off_by_a_block(patch):
    """Maps the file from the wrong place: a shift of one element."""

    def load(original, *args, mmap=None, **kwargs):
        loaded = original(*args, mmap=mmap, **kwargs)
        return {key: value.roll(1) for key, value in loaded.items()} if mmap else loaded

    patch.wrap(torch, "load", load)


@mutant("state.file.map-location")
def map_location_ignored(patch):
    """Loads everything to where it was."""
    patch.wrap(torch, "load", lambda original, f, map_location=None, **kw: original(f, **kw))


@mutant("state.file.weights-only", "state.file.weights-only-default")
def weights_only_ignored(patch):
    """Unpickles everything, trustful."""

    def load(original, f, *args, weights_only=None, **kwargs):
        return original(f, *args, weights_only=False, **kwargs)

    patch.wrap(torch, "load", load)


@mutant("state.file.weights-only-default")
def pickles_by_default(patch):
    """Keeps the default of before 2.6."""

    def load(original, f, *args, weights_only=False, **kwargs):
        return original(f, *args, weights_only=weights_only, **kwargs)

    patch.wrap(torch, "load", load)


@mutant("state.file.whole-module")
def unpickling_wakes_modules(patch):
    """Puts modules that it unpickles in training mode."""

    def load(original, *args, **kwargs):
        loaded = original(*args, **kwargs)
        return loaded.train() if isinstance(loaded, Module) else loaded

    patch.wrap(torch, "load", load)


@mutant("state.file.pickles-by-default")
def refuses_pickles_early(patch):
    """Refuses pickled modules before the default changed."""
    if hasattr(torch.serialization, "safe_globals"):
        raise NotApplicable("torch refuses them by default itself")
    patch.wrap(
        torch, "load", lambda original, f, *args, **kwargs: original(f, *args, **{"weights_only": True, **kwargs})
    )


@mutant("state.file.safe-globals")
def safe_globals_for_ever(patch):
    """Keeps what the block allowed when the block has ended."""
    if not hasattr(torch.serialization, "safe_globals"):
        raise NotApplicable("torch has no safe_globals")
    patch.set(torch.serialization.safe_globals, "__exit__", lambda self, *error: None)
    patch.stack.callback(torch.serialization.clear_safe_globals)


@mutant("state.file.missing-or-foreign")
def empty_file_is_none(patch):
    """Returns None for a file without content."""

    def load(original, f, *args, **kwargs):
        if isinstance(f, io.BytesIO) and not f.getvalue():
            return None
        return original(f, *args, **kwargs)

    patch.wrap(torch, "load", load)


@mutant("state.file.missing-or-foreign")
def missing_file_is_a_runtime_error(patch):
    """Reports a missing file as an error of its own archive reader."""

    def load(original, *args, **kwargs):
        try:
            return original(*args, **kwargs)
        except FileNotFoundError as error:
            raise pickle.UnpicklingError(str(error)) from None

    patch.wrap(torch, "load", load)


@mutant("state.file.resume")
def optimizer_state_not_restored(patch):
    """Restores the options of the groups, but not the moments."""

    def load(original, optimizer, state_dict):
        return original(optimizer, {**state_dict, "state": {}})

    patch.wrap(torch.optim.Optimizer, "load_state_dict", load)


@mutant("state.file.weights-only-values")
def weights_only_knows_no_fractions(patch):
    """Has no entry for the record of a float, as the first weights-only reader had none."""
    unpickler = torch._weights_only_unpickler
    patch.set(unpickler, "BINFLOAT", unpickler.LONG4 if hasattr(unpickler, "LONG4") else (256,))


@mutant("state.file.packages")
def packages_are_asked_in_turn(patch):
    """Asks packages in the order of registration, whatever their priority."""
    patch.source(torch.serialization.register_package, "_package_registry.append(queue_elem)", "pass")


@mutant("state.file.settings")
def byte_order_is_not_kept(patch):
    """Takes the byte order that is set, and forgets it."""
    patch.set(torch.serialization, "set_default_load_endianness", lambda order: None)


@mutant("state.file.attributes")
def attributes_are_left_behind(patch):
    """Brings the class back, and not what was attached."""
    patch.source(torch._tensor._rebuild_from_type_v2, "ret = torch._utils._set_obj_state(ret, state)", "pass")


@mutant("state.file.attributes")
def classes_are_left_behind(patch):
    """Brings plain tensors back."""
    patch.source(torch._tensor._rebuild_from_type_v2, "if type(ret) is not new_type:", "if False:")


@mutant("state.file.attributes")
def own_restoring_is_ignored(patch):
    """Sets the attributes itself where a class has its own way."""
    patch.source(
        torch._tensor._rebuild_from_type_v2, "ret.__setstate__(state)", "torch._utils._set_obj_state(ret, state)"
    )


@mutant("state.file.older-modules")
def what_came_later_stays_missing(patch):
    """Completes nothing."""
    patch.source(Module.__setstate__, 'if "_non_persistent_buffers_set" not in self.__dict__:', "if False:")


@mutant("state.file.legacy-format")
def legacy_views_forget_their_offset(patch):
    """Writes each view of the old format as if it began where its storage does."""

    def rebuild(original, storage, offset, *rest):
        return original(storage, 0, *rest)

    patch.wrap(torch._utils, "_rebuild_tensor", rebuild)


@mutant("state.file.conjugates-as-weights", "state.file.negated")
def conjugates_are_forgotten(patch):
    """Reads the numbers of a conjugate, and not that it is one."""
    patch.wrap(torch._utils, "set_tensor_metadata", lambda original, tensor, metadata: None)


@mutant("state.file.older-records")
def old_views_begin_at_the_start(patch):
    """Forgets the offset of a view in the storage that it was saved with."""
    patch.source(files._legacy_load, "offset_bytes : offset_bytes + view_size_bytes", "0:view_size_bytes")


@mutant("state.file.changed-source")
def changed_source_is_not_compared(patch):
    """Loads a class whose code is another one without a word."""
    patch.source(files._legacy_load, "original_source != current_source", "False")


@mutant("state.file.older-archives")
def old_archives_count_views_in_bytes(patch):
    """Takes the offset of a view for one in bytes."""
    patch.source(files._legacy_load, "offset_bytes = offset * element_size", "offset_bytes = offset")


@mutant("state.file.absent-device")
def absent_devices_become_the_cpu(patch):
    """Falls back to the CPU without a word."""
    patch.set(files, "_package_registry", [*files._package_registry, (99, lambda s: None, lambda s, place: s)])
    for name in ("_deserialize", "_cuda_deserialize", "_validate_device", "validate_cuda_device"):
        if hasattr(files, name):
            patch.set(files, name, lambda *a: torch.device("cpu"))


@mutant("state.file.byte-order")
def marks_do_not_count(patch):
    """Reads every file in the machine's own order."""
    patch.set(torch.UntypedStorage, "byteswap", lambda self, dtype: None)


@mutant("state.file.mapped-memory")
def maps_are_shared(patch):
    """Maps every file so that writes reach it."""
    prefer(patch, files.load, ["get_default_mmap_options() == MAP_SHARED"], ["True"])


@mutant("state.file.offsets")
def offsets_forget_the_descriptor(patch):
    """Takes the next record to begin where the bytes of the last one end."""
    prefer(patch, files._load, ["current_offset += data_descripter_size32"], ["pass"])


@mutant("state.file.skip-data")
def skip_data_writes_the_bytes(patch):
    """Writes what should only have room."""
    patch.source(files._save, "if _serialization_tls.skip_data:", "if False:")


@mutant("state.file.pickle-module")
def options_of_the_pickle_are_dropped(patch):
    """Unpickles in utf-8, whatever encoding was asked for."""
    for load in (files._load, files._legacy_load):
        patch.source(load, "unpickler = ", "pickle_load_args = {'encoding': 'utf-8'}; unpickler = ")


@mutant("state.file.environment")
def environment_lifts_what_was_asked_for(patch):
    """Lets the variable override weights_only=True as well."""
    prefer(patch, files.load, ["if weights_only_not_set:\n            warn"], ["if True:\n            warn"])


@mutant("state.file.flushed")
def saved_bytes_stay_in_the_buffer(patch):
    """What was saved waits in the caller's buffer until the file is closed."""
    patch.source(files._open_buffer_writer.__exit__, "self.file_like.flush()", "pass")
    patch.source(files._open_zipfile_writer_buffer.__exit__, "self.buffer.flush()", "pass")


@mutant("state.file.file-like")
def files_are_read_from_their_beginning(patch):
    """Rewinds before it reads."""
    patch.wrap(files, "_should_read_directly", lambda o, f: o(f) and (f.seek(0) or True))


@mutant("state.file.versions-of-modules")
def versions_are_compared_as_text(patch):
    """Finds 1.10 older than 1.2."""
    patch.source(
        files.check_module_version_greater_or_equal,
        "module_version >= req_version_tuple",
        "module.__version__ >= '.'.join(map(str, req_version_tuple))",
    )


@mutant("state.file.torchscript")
def torchscript_counts_as_weights(patch):
    """Runs a TorchScript archive although only weights were asked for."""
    patch.set(files, "_is_torchscript_zip", lambda archive: False)


@mutant("state.load.into-meta-warns")
def values_vanish_in_silence(patch):
    """Copies into the meta device without a word."""
    patch.source(nn.Module._load_from_state_dict, "and not assign_to_params_buffers", "and False")


@mutant("state.file.added-safe-globals")
def only_the_last_classes_are_allowed(patch):
    """Forgets what was allowed when more is allowed."""

    def add(original, classes):
        torch.serialization.clear_safe_globals()
        original(classes)

    patch.wrap(torch.serialization, "add_safe_globals", add)


@mutant("state.file.byte-order-mark")
def files_are_marked_big(patch):
    """Marks every file as written by a big-endian machine."""
    patch.source(torch.serialization._save, "sys.byteorder, len(sys.byteorder)", "'big', 3")


@mutant("state.file.every-dtype")
def rare_dtypes_have_no_storage(patch):
    """Knows no kind of storage for unsigned numbers, as torch did from 2.3 to 2.5."""

    def save(original, what, *args, **kwargs):
        if getattr(what, "dtype", None) in (torch.uint16, torch.uint32):
            raise KeyError(what.dtype)
        return original(what, *args, **kwargs)

    patch.wrap(torch, "save", save)


@mutant("state.file.attributes-as-weights")
def parameters_with_attributes_are_unsafe(patch):
    """Does not know what rebuilds a parameter with attributes, as torch did until 2.3."""
    known = torch._weights_only_unpickler._get_allowed_globals()
    fewer = {name: what for name, what in known.items() if not name.endswith("_rebuild_parameter_with_state")}
    patch.set(torch._weights_only_unpickler, "_get_allowed_globals", lambda: fewer)


@mutant("state.dict.stripped-in-order")
def stripped_keys_are_sorted(patch):
    """Sorts the keys, as torch did until 2.2."""
    patch.source(consume_prefix_in_state_dict_if_present, "list(state_dict.keys())", "sorted(state_dict.keys())")


@mutant("state.dict.stripped-versions")
def versions_are_sought_among_the_keys(patch):
    """Looks for the versions among the keys, where they are not."""
    patch.source(
        consume_prefix_in_state_dict_if_present, 'hasattr(state_dict, "_metadata")', '"_metadata" in state_dict'
    )


@mutant("state.file.older-upsampling")
def older_upsampling_lacks_a_setting(patch):
    """Takes the state as it is, as torch did until 2.0."""
    patch.source(nn.Upsample.__setstate__, '"recompute_scale_factor" not in state', "False")


@mutant("state.file.empty-of-two-dtypes")
def empty_storages_have_one_dtype(patch):
    """Gives all tensors without elements of a file the dtype of the first."""

    def load(original, *args, **kwargs):
        found = original(*args, **kwargs)
        if isinstance(found, list) and all(isinstance(t, torch.Tensor) and not t.numel() for t in found):
            return [t.to(found[0].dtype) for t in found]
        return found

    patch.wrap(torch, "load", load)


@mutant("state.dict.hooks-before-own-saving")
def hooks_belong_to_the_usual_writing(patch):
    """Runs pre-hooks where the entries are written in the usual way, as torch 2.0 did."""
    usual = "'_save_to_state_dict' not in vars(type(self))"
    hooks = "self._state_dict_pre_hooks.values()"
    patch.source(Module.state_dict, f"in {hooks}", f"in {hooks} if {usual} else ()")


@mutant("state.file.wrapped-dtype")
def wrapping_tensors_are_float32(patch):
    """Makes the wrapper without its dtype, as torch did until 2.3."""
    patch.source(torch._utils._rebuild_wrapper_subclass, "dtype=dtype,", "")


@mutant("state.file.tensors-moved-within-torch")
def tensors_were_always_where_they_are(patch):
    """Looks for the class of tensors among the functions of torch, though it has moved."""
    patch.source(files._load, '"torch.tensor": "torch._tensor"', '"torch.tensor": "torch.functional"')


@mutant("state.file.safetensors")
def safetensors_are_always_read_to_the_cpu(patch):
    """Does not hand the device on."""
    patch.source(torch.load, "device=device", 'device="cpu"')


@mutant("state.file.within-another")
def files_begin_at_their_start(patch):
    """Reads every file from its first byte."""

    def load(original, file, **options):
        file.seek(0)
        return original(file, **options)

    patch.wrap(torch, "load", load)


@mutant("state.file.nested-as-weights")
def nested_tensors_are_taken_for_code(patch):
    """Does not allow what puts a nested tensor together, as in torch 2.15."""

    def load(original, file, weights_only=None, **options):
        if weights_only and b"_rebuild_nested_tensor" in file.getvalue():
            raise pickle.UnpicklingError("Unsupported global")
        return original(file, weights_only=weights_only, **options)

    patch.wrap(torch, "load", load)
