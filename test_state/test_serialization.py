"""torch.save and torch.load: what comes back from a file."""

import copy
import io
import mmap
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_conformance.axes import COMPLEX, FLOATING
from torch_conformance.marks import axes, claim

pytestmark = axes(via="eager")


def saved(what, **options):
    file = io.BytesIO()
    torch.save(what, file, **options)
    file.seek(0)
    return file


def through_a_file(what, **options):
    return torch.load(saved(what), **options)


def network(case):
    layers = [nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.3), nn.Linear(7, 3)]
    return case.module(nn.Sequential, *layers)


SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-310, 6e-8, 1.5]


@claim("state.file.round-trip")
@axes(dtype=FLOATING + COMPLEX, layout=("contiguous", "transposed", "strided", "expanded"), via="eager")
def test_tensors_come_back_bit_by_bit(case):
    x = case.tensor_of([SPECIAL, SPECIAL[::-1], case.rng.standard_normal(8)])
    y = through_a_file({"x": x})["x"]
    case.same(y, x)
    assert y.stride() == x.stride()
    assert y.storage_offset() == x.storage_offset()
    assert y.device == x.device


@claim("state.file.round-trip")
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5, 3)], ids=str)
def test_whole_numbers_and_odd_shapes_come_back(case, dtype, shape):
    x = case.tensor_of(case.rng.integers(-128, 127, shape), dtype=getattr(torch, dtype))
    case.same(through_a_file(x), x)


@claim("state.file.model-round-trip")
@axes(dtype=FLOATING)
def test_a_model_comes_back_bit_by_bit(case):
    model, other, x = network(case).eval(), network(case).eval(), case.tensor(4, 5)
    other.load_state_dict(through_a_file(model.state_dict()))
    for name, value in model.state_dict().items():
        case.same(other.state_dict()[name], value)
    case.same(other(x), model(x))


@claim("state.file.container-and-metadata")
def test_the_container_comes_back_as_it_was(case):
    model = network(case)
    held = through_a_file(model.state_dict())
    assert type(held) is OrderedDict
    assert list(held) == list(model.state_dict())
    assert held._metadata == model.state_dict()._metadata
    kept = through_a_file([nn.Parameter(case.tensor(2)), case.tensor(2), {"a": (1, "b", 2.5, None, True)}])
    assert [type(part) for part in kept[:2]] == [nn.Parameter, torch.Tensor]
    assert kept[2] == {"a": (1, "b", 2.5, None, True)}
    assert type(kept[2]["a"]) is tuple


@claim("state.file.name-irrelevant")
@pytest.mark.parametrize("name", ["x.mdl", "x.pt", "x.pth", "x.bin", "x"])
def test_the_name_of_a_file_is_free(case, tmp_path, name):
    x, path = case.tensor(3), tmp_path / name
    torch.save(x, str(path))
    case.same(torch.load(Path(path)), x)
    torch.save(x, path)
    with path.open("rb") as file:
        case.same(torch.load(file), x)


@claim("state.file.leaves")
@pytest.mark.parametrize("requires_grad", [True, False])
def test_loaded_tensors_are_leaves(case, requires_grad):
    x = nn.Parameter(case.tensor(3), requires_grad=requires_grad)
    x.grad = case.tensor(3)
    y = case.tensor(3, requires_grad=requires_grad) * 2
    for loaded in through_a_file([x, y]):
        assert loaded.is_leaf
        assert loaded.grad is None
        assert loaded.grad_fn is None
        assert loaded.requires_grad is requires_grad


@claim("state.file.shared-storage")
def test_shared_memory_is_shared_again(case):
    whole = case.tensor(999)
    part, tail = whole[:5], whole[7::2]
    loaded_whole, loaded_part, loaded_tail = through_a_file([whole, part, tail])
    loaded_whole.zero_()
    assert not loaded_part.any()
    assert not loaded_tail.any()
    assert bytes_behind(through_a_file(part)) == 999 * part.element_size()
    assert bytes_behind(through_a_file(part.clone())) == 5 * part.element_size()


def bytes_behind(tensor):
    return getattr(tensor, "untyped_storage", tensor.storage)().nbytes()


@claim("state.file.legacy-format")
def test_the_legacy_format_loads_the_same(case):
    model = network(case)
    file = saved(model.state_dict(), _use_new_zipfile_serialization=False)
    assert file.getvalue()[:2] != b"PK"
    assert saved(1).getvalue()[:2] == b"PK"
    for name, value in torch.load(file).items():
        case.same(value, model.state_dict()[name])
    file, whole, other = io.BytesIO(), case.tensor(9), case.tensor(2)
    for what in ([whole, whole[2:4], whole[1::2]], other):
        torch.save(what, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    loaded, part, steps = torch.load(file, map_location=str(case.device))
    case.same(steps, whole[1::2])
    loaded.zero_()
    assert not part.any()
    case.same(torch.load(file), other)


@claim("state.file.memory-mapped")
def test_files_may_be_mapped(case, tmp_path):
    x, path = case.tensor(33, 5), tmp_path / "x.pt"
    torch.save({"x": x}, path)
    case.same(torch.load(str(path), mmap=True)["x"], x)
    with case.raises((ValueError, RuntimeError), "mmap"):
        torch.load(saved(x), mmap=True)


@claim("state.file.map-location")
@pytest.mark.parametrize("form", ["string", "device", "dict", "function", "none"])
def test_map_location_decides_the_place(case, form):
    x, here = case.tensor(5), str(case.device)
    asked = []
    forms = {"string": here, "device": torch.device(here), "dict": {here: here}, "none": None}
    forms["function"] = lambda storage, location: asked.append(location) or storage
    y = through_a_file(x, map_location=forms[form])
    case.same(y.to(case.device), x)
    assert len(asked) == (form == "function")
    assert all(place.startswith(here) for place in asked)


@claim("state.file.map-location")
@pytest.mark.parametrize("form", ["string", "device", "dict"])
def test_map_location_moves(case, form):
    forms = {"string": "meta", "device": torch.device("meta"), "dict": {str(case.device): "meta"}}
    try:
        y = through_a_file({"x": case.tensor(5)}, map_location=forms[form])["x"]
    except RuntimeError as error:
        raise case.unsupported(f"torch {torch.__version__} loads nothing to meta: {error}"[:99]) from None
    assert y.device.type == "meta"
    assert y.shape == (5,)


@claim("state.file.packages")
def test_packages_name_the_place_of_a_storage(case, monkeypatch):
    asked, x, register = [], case.tensor(3), torch.serialization.register_package
    monkeypatch.setattr(torch.serialization, "_package_registry", [*torch.serialization._package_registry])
    before = list(torch.serialization._package_registry)
    register(5, lambda storage: "mine", lambda storage, place: asked.append(place) or storage)
    register(6, lambda storage: "not asked", lambda storage, place: None)
    file = saved(x)
    case.same(torch.load(file), x.cpu())
    assert asked == ["mine"]
    file.seek(0)
    monkeypatch.setattr(torch.serialization, "_package_registry", before)
    with case.raises(RuntimeError, "restore data location.*mine"):
        torch.load(file)


@claim("state.file.settings")
def test_settings_of_files_are_kept(case):
    files = torch.serialization
    assert files.get_crc32_options() is True
    files.set_crc32_options(False)
    assert files.get_crc32_options() is False
    case.same(through_a_file(x := case.tensor(3)), x)
    files.set_crc32_options(True)
    with files.set_default_mmap_options(mmap.MAP_SHARED):
        assert files.get_default_mmap_options() == mmap.MAP_SHARED
    assert files.get_default_mmap_options() == mmap.MAP_PRIVATE
    files.set_default_load_endianness(files.LoadEndianness.LITTLE)
    assert files.get_default_load_endianness() is files.LoadEndianness.LITTLE
    files.set_default_load_endianness(None)
    assert files.get_default_load_endianness() is None
    for change in (files.set_default_load_endianness, files.set_default_mmap_options):
        with case.raises((TypeError, ValueError), "argument type|Expected"):
            change("text")


class Marked(torch.Tensor):
    """A tensor of a class of its own."""


class Restored(torch.Tensor):
    def __setstate__(self, state):
        self.seen = state


@claim("state.file.attributes")
def test_attributes_and_classes_of_tensors_come_back(case):
    for kind in (torch.Tensor, Marked):
        x = case.tensor(3).as_subclass(kind)
        x.note = "text"
        y = pickle.loads(pickle.dumps(x))
        assert (type(y), y.note) == (kind, "text")
        assert torch.equal(y, x)
    x = case.tensor(3).as_subclass(Restored)
    x.note = "text"
    assert pickle.loads(pickle.dumps(x)).seen == {"note": "text"}
    for requires_grad in (True, False):
        p = nn.Parameter(case.tensor(3), requires_grad=requires_grad)
        assert pickle.loads(pickle.dumps(p)).requires_grad is requires_grad
        p.note = "text"
        q = pickle.loads(pickle.dumps(p))
        assert (type(q), q.note, q.requires_grad) == (nn.Parameter, "text", requires_grad)


class Bomb:
    """Counts how often its pickle is run."""

    runs = 0

    def __reduce__(self):
        return explode, ()


def explode():
    Bomb.runs += 1


@claim("state.file.weights-only")
def test_weights_only_refuses_code(case):
    model = network(case)
    kept = through_a_file(OrderedDict(model=model.state_dict(), step=3, names=["a"]), weights_only=True)
    assert kept["step"] == 3
    assert kept["names"] == ["a"]
    case.same(kept["model"]["0.weight"], model[0].weight.detach())
    runs = Bomb.runs
    for what in (model, Bomb()):
        with case.raises(pickle.UnpicklingError, "weights.only|Unsupported"):
            through_a_file(what, weights_only=True)
    assert Bomb.runs == runs


@claim("state.file.conjugates-as-weights")
def test_weights_only_keeps_a_conjugate(case):
    z = torch.complex(case.tensor(3), case.tensor(3)).conj()
    case.same(
        torch.view_as_real(through_a_file(z, weights_only=True).resolve_conj()), torch.view_as_real(z.resolve_conj())
    )


@claim("state.file.weights-only-default")
def test_weights_only_is_the_default(case):
    with case.raises(pickle.UnpicklingError, "weights.only"):
        through_a_file(network(case))
    assert set(through_a_file(network(case).state_dict())) == set(network(case).state_dict())


@claim("state.file.pickles-by-default")
def test_pickles_loaded_by_default(case):
    model = network(case).eval()
    loaded = through_a_file(model)
    assert not loaded.training
    case.same(loaded[0].weight.detach(), model[0].weight.detach())


@claim("state.file.whole-module")
def test_a_whole_module_comes_back(case):
    model, x = network(case).eval(), case.tensor(4, 5)
    model[2].train()
    model[0].note = {"a": 1}
    model.register_forward_hook(doubled)
    loaded = through_a_file(model, weights_only=False) if takes_weights_only() else through_a_file(model)
    assert [m.training for m in loaded.modules()] == [m.training for m in model.modules()]
    assert loaded[0].note == {"a": 1}
    assert type(loaded) is nn.Sequential
    loaded[2].eval(), model[2].eval()
    case.same(loaded(x), model(x))


@claim("state.file.older-modules")
def test_modules_of_older_releases_are_completed(case):
    layer, x = case.module(nn.Linear, 3, 2), case.tensor(4, 3)
    first = ("training", "_parameters", "_buffers", "_modules", "_forward_hooks", "_backward_hooks", "bias")
    old = nn.Linear.__new__(nn.Linear)
    old.__setstate__({name: value for name, value in vars(copy.deepcopy(layer)).items() if name in first})
    seen = []
    for register in (old.register_forward_pre_hook, old.register_forward_hook, old.register_full_backward_hook):
        register(lambda *_: seen.append(1))
    old.load_state_dict(old.state_dict())
    y = old(x)
    case.same(y, layer(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y.sum().backward()
    assert len(seen) == 3
    assert set(vars(layer)) - set(vars(old)) == {"in_features", "out_features"}


def takes_weights_only():
    return "weights_only" in torch.load.__code__.co_varnames


def doubled(module, args, output):
    return output * 2


@claim("state.file.safe-globals")
def test_classes_may_be_allowed(case):
    model = nn.Identity()
    file = saved(model)
    assert "torch.nn.modules.linear.Identity" in torch.serialization.get_unsafe_globals_in_checkpoint(file)
    file.seek(0)
    with torch.serialization.safe_globals([nn.Identity, set, OrderedDict]):
        assert isinstance(torch.load(file, weights_only=True), nn.Identity)
    file.seek(0)
    with case.raises(pickle.UnpicklingError, "weights.only"):
        torch.load(file, weights_only=True)


@claim("state.file.missing-or-foreign")
def test_what_is_no_checkpoint_raises(case, tmp_path):
    with case.raises(FileNotFoundError, "nowhere"):
        torch.load(tmp_path / "nowhere.pt")
    whole = saved(case.tensor(99)).getvalue()
    for content in (b"", b"no checkpoint at all", whole[: len(whole) // 2]):
        with case.raises((RuntimeError, EOFError, pickle.UnpicklingError, ValueError), ""):
            torch.load(io.BytesIO(content))


@claim("state.file.resume")
@pytest.mark.parametrize("with_optimizer", [True, False])
def test_training_resumes_as_if_never_interrupted(case, with_optimizer):
    model, batches = network(case), [(case.tensor(4, 5), case.tensor(4, 3)) for _ in range(4)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    train(model, optimizer, batches[:2])
    file = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()})
    train(model, optimizer, batches[2:])
    resumed = network(case)
    other = torch.optim.Adam(resumed.parameters(), lr=0.1)
    checkpoint = torch.load(file)
    resumed.load_state_dict(checkpoint["model"])
    if with_optimizer:
        other.load_state_dict(checkpoint["optimizer"])
    torch.set_rng_state(checkpoint["rng"])
    train(resumed, other, copy.copy(batches[2:]))
    pairs = zip(resumed.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) is with_optimizer


def train(model, optimizer, batches):
    for x, target in batches:
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
