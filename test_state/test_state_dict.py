"""state_dict and load_state_dict: what a checkpoint holds, and what loading one changes."""

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from torch_conformance.axes import FLOATING
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

pytestmark = axes(via="eager")


class Host(nn.Module):
    """One of everything: parameter and None, buffers of all three kinds, children before and after."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 5), nn.Dropout())
        self.register_buffer("mean", torch.zeros(5))
        self.weight = nn.Parameter(torch.zeros(3, 5))
        self.register_parameter("bias", None)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("absent", None)
        self.norm = nn.BatchNorm1d(5)
        self.gone = nn.ReLU()
        self.gone = None

    def forward(self, x):
        return (self.norm(self.layers(x)) - self.mean) @ self.weight.t()


KEYS = ["weight", "mean", "layers.0.weight", "layers.0.bias", "norm.weight", "norm.bias", "norm.running_mean"]
KEYS += ["norm.running_var", "norm.num_batches_tracked"]


class Prefixed(nn.Module):
    """Children whose names begin alike."""

    def __init__(self):
        super().__init__()
        self.a, self.ab, self.b = nn.Linear(2, 3), nn.Linear(2, 3), nn.PReLU()


def same_state(case, actual, expected):
    assert list(actual) == list(expected)
    for key in expected:
        case.same(actual[key], expected[key])


def linear_pair(case):
    return case.module(nn.Linear, 5, 3), case.module(nn.Linear, 5, 3)


@claim("state.dict.content")
def test_state_dict_holds_parameters_and_persistent_buffers(case):
    model = case.module(Host)
    held = model.state_dict()
    assert list(held) == KEYS
    everything = dict([*model.named_parameters(), *model.named_buffers()])
    assert {*everything} - {*held} == {"scratch"}
    for key in KEYS:
        case.same(held[key], everything[key])
    model.mean, model.scratch = case.tensor(5), case.tensor(2)
    assert list(model.state_dict()) == KEYS  # each buffer remains of its kind


@claim("state.dict.prefix-and-destination")
def test_prefix_and_destination(case):
    model, given = case.module(Host), OrderedDict(first=case.tensor(1))
    assert list(model.state_dict(prefix="net.")) == [f"net.{key}" for key in KEYS]
    names = list(model.state_dict(prefix="net.")._metadata)
    assert names == [
        "net",
        "net.layers",
        "net.layers.0",
        "net.layers.1",
        "net.norm",
    ]
    assert model.state_dict(destination=given, prefix="x.") is given
    assert list(given) == ["first", *(f"x.{key}" for key in KEYS)]


@claim("state.dict.snapshot")
def test_a_state_dict_is_no_snapshot(case):
    model, x = case.module(Host), case.tensor(4, 5)
    held, frozen = model.state_dict(), copy.deepcopy(model.state_dict())
    model(x).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    same_state(case, held, model.state_dict())
    assert all(not torch.equal(frozen[key], held[key]) for key in ("weight", "layers.0.weight", "norm.running_mean"))
    assert all(held[key].data_ptr() == tensor.data_ptr() for key, tensor in model.named_parameters())


@claim("state.dict.detached")
@pytest.mark.parametrize("keep_vars", [False, True])
def test_entries_are_detached_unless_kept(case, keep_vars):
    model = case.module(Host)
    held = model.state_dict(keep_vars=True) if keep_vars else model.state_dict()
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if key in held:
            assert (held[key] is tensor) is keep_vars
            assert held[key].requires_grad is (keep_vars and isinstance(tensor, nn.Parameter))
            assert held[key].data_ptr() == tensor.data_ptr()


@claim("state.dict.versions")
def test_metadata_holds_the_version_of_every_module(case):
    metadata = Host().state_dict()._metadata
    names = ["", "layers", "layers.0", "layers.1", "norm"]
    assert list(metadata.items()) == [(name, {"version": 2 if name == "norm" else 1}) for name in names]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight


@claim("state.dict.tied")
def test_tied_parameters_appear_under_each_name(case):
    model, target = case.module(Tied), case.module(Tied)
    held = model.state_dict()
    assert list(held) == ["first.weight", "first.bias", "second.weight"]
    assert len(list(model.parameters())) == 2
    target.load_state_dict(held)
    assert target.second.weight is target.first.weight
    case.same(target.second.weight, model.first.weight)


@claim("state.dict.tied")
def test_a_child_of_two_names_appears_under_each(case):
    layer = case.module(nn.Linear, 2, 2)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    held = model.state_dict()
    assert list(held) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    with case.raises(RuntimeError, r'missing key.*"2.weight", "2.bias"'):
        model.load_state_dict({key: held[key] for key in ("0.weight", "0.bias")})


@claim("state.dict.weights-alone")
def test_loading_changes_values_alone(case):
    source, target = case.module(Host), case.module(Host).eval()
    source.weight.requires_grad_(False)
    target.norm.requires_grad_(False)
    target.layers.train()
    target.layers.register_forward_hook(lambda *_: None)
    source(case.tensor(4, 5)).sum().backward()
    target(case.tensor(4, 5)).sum().backward()
    with case.unchanged(target, but=KEYS):
        target.load_state_dict(source.state_dict())


class Extra(nn.Linear):
    def __init__(self, note):
        super().__init__(2, 3)
        self.register_buffer("last", torch.ones(1))
        self.note = note

    def get_extra_state(self):
        return self.note

    def set_extra_state(self, state):
        self.note = state


@claim("state.dict.extra-state")
def test_extra_state_travels(case):
    model = nn.Sequential(Extra({"steps": 7}), nn.Linear(3, 1))
    held, target = model.state_dict(), nn.Sequential(Extra(None), nn.Linear(3, 1))
    keys = ["0.weight", "0.bias", "0.last", "0._extra_state", "1.weight", "1.bias"]
    assert list(held) == keys
    assert held["0._extra_state"] is model[0].note
    target.load_state_dict(held)
    assert target[0].note is model[0].note
    plain = nn.Linear(2, 3)
    with case.raises(RuntimeError, r"unexpected key.*_extra_state"):
        plain.load_state_dict({**plain.state_dict(), "_extra_state": 1})
    with case.raises(RuntimeError, r"missing key.*0\._extra_state"):
        target.load_state_dict({key: value for key, value in held.items() if key != "0._extra_state"})
    assert target.load_state_dict({}, strict=False).missing_keys == keys


# -- Which keys --------------------------------------------------------------------------------------------------------


def off_by_some(case):
    model = case.module(Prefixed)
    given = dict(case.module(Prefixed).state_dict())
    for key in ("a.bias", "b.weight"):
        del given[key]
    given.update({key: case.tensor(1) for key in ("other", "ab.other", "b.x.y")})
    return model, given


MISSING, UNEXPECTED = ["a.bias", "b.weight"], ["other", "ab.other", "b.x.y"]


@claim("state.load.strict")
def test_keys_must_match(case):
    model, given = off_by_some(case)
    listed = ".*".join(["Prefixed", "missing key", *MISSING, "unexpected key", *UNEXPECTED])
    with case.raises(RuntimeError, listed):
        model.load_state_dict(given)
    result = model.load_state_dict(case.module(Prefixed).state_dict())
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert "match" in str(result)


@claim("state.load.not-strict")
def test_keys_in_common_are_loaded(case):
    model, given = off_by_some(case)
    with case.unchanged(model, but={"a.weight", "ab.weight", "ab.bias"}):
        result = model.load_state_dict(given, strict=False)
    assert result.missing_keys == MISSING
    assert sorted(result.unexpected_keys) == sorted(UNEXPECTED)
    for key in ("a.weight", "ab.weight", "ab.bias"):
        case.same(model.state_dict()[key], given[key])


@claim("state.load.size-mismatch")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (3, 1), (1, 5), (3, 5, 1), (15,)], ids=str)
def test_shapes_must_match(case, shape, strict):
    model, other = linear_pair(case)
    given = {**other.state_dict(), "weight": case.tensor(*shape)}
    with case.unchanged(model, but={"bias"}), case.raises(RuntimeError, "size mismatch for weight"):
        model.load_state_dict(given, strict=strict)


@claim("state.load.one-element-for-scalar")
def test_a_scalar_takes_one_element(case):
    model = nn.Module()
    model.scale = nn.Parameter(case.tensor())
    model.load_state_dict({"scale": case.tensor_of([2.5])})
    case.same(model.scale.detach(), case.tensor_of(2.5))


@claim("state.load.no-more-than-one-for-scalar")
def test_a_scalar_takes_no_vector(case):
    model = nn.Module()
    model.scale = nn.Parameter(case.tensor())
    with case.unchanged(model), case.raises(RuntimeError, "size mismatch for scale"):
        model.load_state_dict({"scale": case.tensor(2)})


@claim("state.load.below-a-parameter")
def test_nothing_lies_below_a_parameter(case):
    model = case.module(Prefixed)
    with case.raises(RuntimeError, r"unexpected key.*a\.weight\.deep"):
        model.load_state_dict({**model.state_dict(), "a.weight.deep": case.tensor(1)})


@claim("state.load.bad-input")
def test_only_mappings_of_tensors_load(case):
    model = case.module(nn.Linear, 5, 3)
    with case.unchanged(model), case.raises(TypeError, "dict-like.*list"):
        model.load_state_dict(list(model.state_dict().items()))
    with case.raises(RuntimeError, '"weight".*expected torch.Tensor.*received.*list'):
        model.load_state_dict({**model.state_dict(), "weight": [[1.0]]})


@claim("state.load.none-is-unexpected")
@pytest.mark.parametrize("name", ["bias", "absent", "scratch"])
def test_keys_of_nothing_are_unexpected(case, name):
    model = case.module(Host)
    with case.raises(RuntimeError, f'unexpected key.*"{name}"'):
        model.load_state_dict({**model.state_dict(), name: case.tensor(2)})


@claim("state.load.below-none")
def test_nothing_lies_below_a_child_that_is_none(case):
    model = case.module(nn.Linear, 5, 3)
    model.register_module("child", None)
    with case.raises(RuntimeError, r"unexpected key.*child\.weight"):
        model.load_state_dict({**model.state_dict(), "child.weight": case.tensor(1)})


# -- What loading does -------------------------------------------------------------------------------------------------


@claim("state.load.in-place")
def test_values_are_copied_in_place(case):
    source, target = linear_pair(case)
    weight, place, optimizer = target.weight, target.weight.data_ptr(), torch.optim.SGD(target.parameters(), lr=0.5)
    target(case.tensor(2, 5)).sum().backward()
    with case.unchanged(target, but={"weight", "bias"}), case.unchanged(source):
        target.load_state_dict(source.state_dict())
    assert target.weight is weight
    assert weight.data_ptr() == place
    assert weight.grad_fn is None
    same_state(case, target.state_dict(), source.state_dict())
    optimizer.step()
    case.close(target.bias, array(source.bias) - 1.0, k=1)  # the gradient of each bias is 2, the rate 0.5


@claim("state.load.casts")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("given", ["float64", "float32", "bfloat16"])
def test_values_are_cast_to_the_module(case, given):
    model = case.module(nn.BatchNorm1d, 33)
    held = {key: v.to(getattr(torch, given)) for key, v in case.module(nn.BatchNorm1d, 33).state_dict().items()}
    kept = {key: v.clone() for key, v in held.items()}
    model.load_state_dict(held)
    assert model.num_batches_tracked.dtype == torch.int64
    assert model.weight.dtype == case.dtype
    same_state(case, held, kept)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            case.close(value, array(held[key]), k=0.65)  # half an eps for one rounding to nearest
    assert int(model.num_batches_tracked) == int(held["num_batches_tracked"])


@claim("state.load.casts")
@axes(dtype="bfloat16")
@pytest.mark.parametrize(
    "formats",
    [(torch.channels_last, torch.contiguous_format), (torch.contiguous_format, torch.channels_last)],
    ids=["to", "from"],
)
def test_values_are_cast_whatever_the_layout(case, formats):
    model = case.module(nn.Conv2d, 3, 5, 2).to(memory_format=formats[0])
    weight = case.tensor(5, 3, 2, 2, dtype=torch.float32).contiguous(memory_format=formats[1])
    held = {"weight": weight, "bias": case.tensor(5, dtype=torch.float32)}
    model.load_state_dict(held)
    assert model.weight.is_contiguous(memory_format=formats[0])
    for key, value in model.state_dict().items():
        case.close(value, array(held[key]), k=0.65)  # as above


@claim("state.load.not-atomic")
def test_loading_is_not_atomic(case):
    model, source = case.module(Prefixed), case.module(Prefixed)
    given = {**source.state_dict(), "ab.weight": case.tensor(9)}
    copied = {"a.weight", "a.bias", "ab.bias", "b.weight"}
    with case.unchanged(model, but=copied), case.raises(RuntimeError, "size mismatch for ab.weight"):
        model.load_state_dict(given)
    case.same(model.b.weight.detach(), source.b.weight.detach())


@claim("state.load.assign")
def test_assign_takes_the_tensors_over(case):
    source, target = case.module(Host).double(), case.module(Host).half()
    target.weight.requires_grad_(False)
    before = dict(target.named_parameters())
    held = source.state_dict()
    target.load_state_dict(held, assign=True)
    for key, tensor in [*target.named_parameters(), *target.named_buffers()]:
        if key in held:
            assert tensor.data_ptr() == held[key].data_ptr()
            assert tensor.dtype == held[key].dtype
    for key, parameter in target.named_parameters():
        assert isinstance(parameter, nn.Parameter)
        assert parameter is not before[key]
        assert parameter.requires_grad is (key != "weight")
    assert type(target.mean) is torch.Tensor
    assert target.scratch.dtype == torch.float16


@claim("state.load.into-meta-warns")
def test_what_is_loaded_into_meta_is_lost(case):
    held = case.module(nn.Linear, 3, 2).state_dict()
    with pytest.warns(UserWarning, match="for weight: copying from a non-meta parameter.*no-op"):
        nn.Linear(3, 2, device="meta").load_state_dict(held)
    layer = nn.Linear(3, 2, device="meta")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.load_state_dict(held, assign=True)
        nn.Linear(3, 2, device="meta").load_state_dict(nn.Linear(3, 2, device="meta").state_dict())
    case.same(layer.weight.detach(), held["weight"])


@claim("state.load.assign-keeps-ties")
def test_assign_leaves_tied_parameters_tied(case):
    source, target = (case.module(nn.Sequential, nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    for model in (source, target):
        model[1].weight = model[0].weight
    target.load_state_dict(source.state_dict(), assign=True)
    assert target[1].weight is target[0].weight, "two parameters where there was one"


@claim("state.load.assign")
def test_assign_needs_matching_shapes(case):
    model = case.module(nn.Linear, 5, 3)
    with case.raises(RuntimeError, "size mismatch for weight"):
        model.load_state_dict({**model.state_dict(), "weight": case.tensor(3, 1)}, assign=True)
    assert model.weight.shape == (3, 5)


@claim("state.load.assign")
def test_assign_takes_parameters_over_as_they_are(case):
    source, target = linear_pair(case)
    target.weight.requires_grad_(False)
    target.load_state_dict(source.state_dict(keep_vars=True), assign=True)
    assert target.weight is source.weight
    assert not source.weight.requires_grad
    assert source.bias.requires_grad


@claim("state.load.given-dict-untouched")
@pytest.mark.parametrize("assign", [False, True])
def test_the_given_mapping_stays_as_it_was(case, assign):
    if assign and "assign" not in nn.Module.load_state_dict.__code__.co_varnames:
        raise case.unsupported("load_state_dict has no assign before torch 2.1")
    source, target = linear_pair(case)
    held = source.state_dict()
    metadata, keys = copy.deepcopy(held._metadata), list(held)
    target.load_state_dict(held, **({"assign": True} if assign else {}))
    assert list(held) == keys
    assert held._metadata == metadata


@claim("state.load.hooks")
def test_pre_hooks_edit_what_is_loaded(case):
    source, target = linear_pair(case)
    model, seen = nn.Sequential(target, nn.Linear(3, 1)), []

    def rename(state_dict, prefix, local_metadata, strict, *lists):
        seen.append((prefix, local_metadata.get("version"), lists))
        state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel")

    handle = target._register_load_state_dict_pre_hook(rename)
    held = {**model.state_dict(), "0.kernel": source.weight}
    del held["0.weight"]
    keys = list(held)
    model.load_state_dict(held)
    case.same(target.weight, source.weight)
    assert seen == [("0.", None, ([], [], []))]
    assert list(held) == keys
    handle.remove()
    with case.raises(RuntimeError, r"missing key.*0\.weight"):
        model.load_state_dict(held)


@claim("state.load.hooks-told-strict")
@pytest.mark.parametrize("strict", [True, False])
def test_pre_hooks_are_told_whether_loading_is_strict(case, strict):
    layer, seen = case.module(nn.Linear, 3, 2), []
    layer._register_load_state_dict_pre_hook(lambda state, prefix, metadata, strict, *lists: seen.append(strict))
    layer.load_state_dict(layer.state_dict(), strict=strict)
    assert seen == [strict], f"a load with strict={strict} told its hook {seen}"


@claim("state.load.hooks")
def test_post_hooks_edit_the_lists(case):
    model, seen = nn.Sequential(case.module(nn.Linear, 5, 3), nn.Linear(3, 1)), []

    def forgive(module, incompatible):
        seen.append((module, list(incompatible.missing_keys), list(incompatible.unexpected_keys)))
        incompatible.missing_keys.clear()
        incompatible.unexpected_keys.clear()

    model[0].register_load_state_dict_post_hook(forgive)
    handle = model.register_load_state_dict_post_hook(forgive)
    given = {"0.weight": model[0].weight, "1.weight": model[1].weight, "2.x": model[1].bias}
    model.load_state_dict(given)
    assert seen == [(model[0], ["0.bias"], ["2.x"]), (model, ["1.bias"], [])]
    handle.remove()
    with case.raises(RuntimeError, r"missing key.*1\.bias"):
        model.load_state_dict(given)
    model.register_load_state_dict_post_hook(lambda module, keys: keys)
    with case.raises(AssertionError, "expected to return new values"):
        model.load_state_dict(model.state_dict())


@claim("state.dict.hooks")
def test_state_dict_hooks_run_module_by_module(case):
    model, seen, handles = nn.Sequential(nn.Linear(2, 3), nn.PReLU()), [], []

    def before(module, prefix, keep_vars):
        seen.append((module, prefix, keep_vars))

    def after(module, held, prefix, metadata):
        seen.append((module, prefix, list(held)))

    for module in (model, model[0]):
        handles.append(module.register_state_dict_pre_hook(before))
        handles.append(module.register_state_dict_post_hook(after))
    every = ["p.0.weight", "p.0.bias", "p.1.weight"]
    model.state_dict(prefix="p.", keep_vars=True)
    first, rest = [(model, "p.", True), (model[0], "p.0.", True)], [(model[0], "p.0.", every[:2]), (model, "p.", every)]
    assert seen == first + rest
    for handle in handles:
        handle.remove()
    model.state_dict()
    assert len(seen) == 4


@claim("state.dict.hooks")
def test_state_dict_post_hooks_edit_the_mapping(case):
    model = nn.Sequential(nn.Linear(2, 3), nn.PReLU())

    def add(module, held, prefix, meta):
        held[f"{prefix}note"] = meta["version"]

    model[0].register_state_dict_post_hook(add)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "0.note", "1.weight"]
    model.register_state_dict_post_hook(lambda module, held, prefix, meta: dict(held))
    with case.raises(RuntimeError, "must return None"):
        model.state_dict()


@claim("state.load.old-batchnorm")
def test_an_old_batchnorm_has_no_counter(case):
    source, target = case.module(nn.BatchNorm1d, 5), case.module(nn.BatchNorm1d, 5)
    held = source.state_dict()
    del held["num_batches_tracked"]
    with case.raises(RuntimeError, "missing key.*num_batches_tracked"):
        target.load_state_dict(held)
    for old in ({"": {"version": 1}}, {"": {}}):
        held._metadata = old
        target.load_state_dict(held)
        case.same(target.running_var, source.running_var)


@claim("state.load.old-batchnorm-counter")
def test_an_old_batchnorm_leaves_the_counter(case):
    source, target = case.module(nn.BatchNorm1d, 5), case.module(nn.BatchNorm1d, 5)
    target.num_batches_tracked.fill_(7)
    held = source.state_dict()
    del held["num_batches_tracked"]
    held._metadata = {"": {"version": 1}}
    target.load_state_dict(held)
    assert int(target.num_batches_tracked) == 7


@claim("state.load.statistics-travel")
@axes(dtype=FLOATING)
def test_running_statistics_travel(case):
    source, target, x = case.module(Host).eval(), case.module(Host).eval(), case.tensor(7, 5)
    target.load_state_dict(source.state_dict())
    case.same(target(x), source(x))
    case.same(target.norm.running_var, source.norm.running_var)


@claim("state.dict.stripped-in-order")
def test_a_prefix_is_stripped_in_order(case):
    state = OrderedDict({"module.b": 1, "module.a": 2})
    consume_prefix_in_state_dict_if_present(state, "module.")
    assert list(state) == ["b", "a"]


@claim("state.dict.stripped-versions")
def test_a_prefix_is_stripped_of_the_versions(case):
    state = nn.ModuleDict({"module": case.module(nn.BatchNorm1d, 3)}).state_dict()
    consume_prefix_in_state_dict_if_present(state, "module.")
    assert state._metadata[""] == case.module(nn.BatchNorm1d, 3).state_dict()._metadata[""]


class OwnWriter(nn.Linear):
    """Writes one entry, and none of its parameters."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[f"{prefix}own"] = self.weight.detach()


@claim("state.dict.hooks-before-own-saving")
def test_pre_hooks_run_before_a_module_writes_in_its_own_way(case):
    layer, seen = case.module(OwnWriter, 2, 3), []
    layer.register_state_dict_pre_hook(lambda module, *rest: seen.append(module))
    assert list(layer.state_dict()) == ["own"]
    assert seen == [layer]
