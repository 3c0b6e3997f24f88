"""torch.save and torch.load: what comes back from a file."""

import copy
import gzip
import inspect
import io
import mmap
import pickle
import struct
import sys
import tarfile
import types
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from torch_conformance.axes import COMPLEX, FLOATING
from torch_conformance.marks import axes, claim, since

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
    y, part = through_a_file([x, x[None, 1:]])
    case.same(y, x)
    case.same(part, x[None, 1:])
    assert y.stride() == x.stride()
    assert y.storage_offset() == x.storage_offset()
    assert y.device == x.device


@claim("state.file.round-trip")
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5, 3), (70_001,)], ids=str)
def test_whole_numbers_and_odd_shapes_come_back(case, dtype, shape):
    x = case.tensor_of(case.rng.integers(-128, 127, shape), dtype=getattr(torch, dtype))
    case.same(through_a_file(x), x)


@claim("state.file.coalesced")
@pytest.mark.parametrize("coalesced", [True, False])
def test_a_sparse_tensor_comes_back_as_coalesced_as_it_was(case, coalesced):
    x = torch.sparse_coo_tensor([[0, 1, 1], [2, 0, 0]], case.tensor(3), (2, 3))
    x = x.coalesce() if coalesced else x
    y = through_a_file(x)
    assert y.is_coalesced() is coalesced
    case.same(y._values(), x._values())


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
@pytest.mark.parametrize("name", ["x.mdl", "x.pt", "x.pth", "x.bin", "x", "é.pt"])
def test_the_name_of_a_file_is_free(case, tmp_path, name):
    x, path = case.tensor(3), tmp_path / name
    torch.save(x, str(path))
    case.same(torch.load(Path(path)), x)
    torch.save(x, path)
    with path.open("rb") as file:
        case.same(torch.load(file), x)


class Named:
    """A path of another class than pathlib's, which reads otherwise than it is called."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)

    def __str__(self):
        return f"{self.path} by name"


@claim("state.file.path-like")
def test_any_path_like_object_names_a_file(case, tmp_path):
    x, path = case.tensor(3), tmp_path / "x.pt"
    torch.save(x, path)
    case.same(torch.load(Named(path)), x)
    torch.save(x + 1, Named(path))
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]
    case.same(torch.load(path), x + 1)


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
@pytest.mark.parametrize("name", [str, Path])
def test_files_may_be_mapped(case, tmp_path, name):
    x, path = case.tensor(33, 5), tmp_path / "x.pt"
    torch.save({"x": x}, path)
    case.same(torch.load(name(path), mmap=True)["x"], x)
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
    x = case.tensor(5)
    forms = {"string": "meta", "device": torch.device("meta"), "dict": {str(x.device): "meta"}}
    try:
        y = through_a_file({"x": x}, map_location=forms[form])["x"]
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


@claim("state.file.weights-only-values")
@pytest.mark.parametrize("kind", ["float", "int", "complex", "bytes", "str", "bool"])
def test_weights_only_loads_python_values(case, kind):
    number, place = float(case.rng.standard_normal()), int(case.rng.integers(40))
    value = {
        "float": number,
        "int": [-(2**place), 2 ** (place + 40), -(3 ** (place + 400))],
        "complex": complex(number, place),
        "bytes": bytes(range(place + 200)),
        "str": "é" * (place + 250),
        "bool": (True, False, None),
    }[kind]
    found = through_a_file({"value": value}, weights_only=True)["value"]
    assert (type(found), found) == (type(value), value)


@claim("state.file.attributes-as-weights")
def test_weights_only_keeps_attributes_of_parameters(case):
    p = nn.Parameter(case.tensor(3), requires_grad=False)
    p.note = "text"
    q = through_a_file(p, weights_only=True)
    assert (type(q), q.note, q.requires_grad) == (nn.Parameter, "text", False)
    case.same(q, p)


@claim("state.file.lazy-as-weights")
def test_weights_only_reads_what_has_no_shape_yet(case):
    loaded = through_a_file(nn.LazyLinear(2, device=case.device).state_dict(), weights_only=True)
    assert isinstance(loaded["weight"], nn.parameter.UninitializedParameter)


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
def test_classes_may_be_allowed(case, tmp_path):
    model, path, unsafe = nn.Identity(), tmp_path / "x.pt", torch.serialization.get_unsafe_globals_in_checkpoint
    torch.save(model, path)
    for file in (str(path), path, saved(model)):
        assert "torch.nn.modules.linear.Identity" in unsafe(file)
    with case.raises(ValueError, "checkpoint returned by torch.save"):
        unsafe(saved(model, _use_new_zipfile_serialization=False))
    file.seek(0)
    with torch.serialization.safe_globals([nn.Identity, set, OrderedDict]):
        assert unsafe(path) == []
        assert isinstance(torch.load(file, weights_only=True), nn.Identity)
    file.seek(0)
    with case.raises(pickle.UnpicklingError, "weights.only"):
        torch.load(file, weights_only=True)


class Records(dict):
    pass


class Sequence(list):
    pass


@claim("state.file.allowed-dicts")
@pytest.mark.parametrize("kind", [Records, defaultdict])
def test_dicts_of_an_allowed_class_are_read(case, kind):
    held = kind(int) if kind is defaultdict else kind()
    held.update(a=1, b=2)
    with torch.serialization.safe_globals([kind, int]):
        found = through_a_file(held, weights_only=True)
    assert (type(found), dict(found)) == (kind, {"a": 1, "b": 2})


@claim("state.file.allowed-lists")
def test_lists_of_an_allowed_class_are_read(case):
    with torch.serialization.safe_globals([Sequence]):
        found = through_a_file(Sequence([1, 2]), weights_only=True)
    assert (type(found), list(found)) == (Sequence, [1, 2])


@claim("state.file.added-safe-globals")
def test_allowed_classes_stay_allowed_until_cleared(case):
    files, needed = torch.serialization, [nn.Identity, set, OrderedDict]
    before = files.get_safe_globals()
    try:
        files.clear_safe_globals()
        files.add_safe_globals(needed[:1])
        files.add_safe_globals(needed[1:])
        assert set(files.get_safe_globals()) == set(needed)
        assert isinstance(torch.load(saved(nn.Identity()), weights_only=True), nn.Identity)
        files.clear_safe_globals()
        assert files.get_safe_globals() == []
        with case.raises(pickle.UnpicklingError, "weights.only"):
            torch.load(saved(nn.Identity()), weights_only=True)
    finally:
        files.add_safe_globals(before)


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
    rng = case.backend().get_rng_state()
    file = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng})
    train(model, optimizer, batches[2:])
    resumed = network(case)
    other = torch.optim.Adam(resumed.parameters(), lr=0.1)
    checkpoint = torch.load(file)
    resumed.load_state_dict(checkpoint["model"])
    if with_optimizer:
        other.load_state_dict(checkpoint["optimizer"])
    case.backend().set_rng_state(checkpoint["rng"])
    train(resumed, other, copy.copy(batches[2:]))
    pairs = zip(resumed.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) is with_optimizer


def train(model, optimizer, batches):
    for x, target in batches:
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()


# -- formats of older releases, and what a caller may choose ---------------------------------------------------------


class Stored:
    """Stands in a pickle for a storage that lies elsewhere in the file."""

    def __init__(self, *address):
        self.address = address


class Rebuilt:
    """Pickles as the call that makes a tensor of a storage."""

    def __init__(self, stored, size, stride, offset=0):
        self.call = torch._utils._rebuild_tensor_v2, (stored, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return self.call


class Addressing(pickle.Pickler):
    def persistent_id(self, what):
        return what.address if isinstance(what, Stored) else None


def addressed(what):
    file = io.BytesIO()
    Addressing(file, protocol=2).dump(what)
    return file.getvalue()


def counted(values):
    """A storage as files hold it: how many elements, then these."""
    return struct.pack("<q", len(values)) + np.asarray(values, dtype="<f4").tobytes()


def record(what, *storages, magic=0x1950A86A20F9469CFC6C, protocol=1001):
    """A file of the releases before 1.6; each storage has a key and its values."""
    parts = [pickle.dumps(each, protocol=2) for each in (magic, protocol, {"little_endian": True})]
    keys = pickle.dumps([key for key, _ in storages], protocol=2)
    return io.BytesIO(b"".join([*parts, addressed(what), keys, *(counted(values) for _, values in storages)]))


def unrestricted(file, **options):
    return torch.load(file, **options, **({"weights_only": False} if takes_weights_only() else {}))


@claim("state.file.older-records")
def test_records_of_older_releases_load(case):
    values, kind = [1.0, 2.0, 3.0, 4.0, 5.0], torch.FloatStorage
    whole = Rebuilt(Stored("storage", kind, "7", "cpu", 5, None), (2, 2), (2, 1), 1)
    views = [Rebuilt(Stored("storage", kind, "7", "cpu", 5, ("8", 2, 3)), (3,), (1,)) for _ in range(2)]
    tensor, part, again = unrestricted(record([whole, *views], ("7", values)))
    case.same(tensor, torch.tensor([[2.0, 3.0], [4.0, 5.0]]))
    case.same(part, torch.tensor([3.0, 4.0, 5.0]))
    tensor[0, 1] = 9.0
    assert part[0] == again[0] == 9.0
    assert bytes_behind(part) == 12
    of_python_2 = Rebuilt(Stored(b"storage", kind, "7", b"cpu", 5, None), (3,), (1,), 1)
    case.same(unrestricted(record(of_python_2, ("7", values)), encoding="bytes"), torch.tensor([2.0, 3.0, 4.0]))
    for file, words in (
        (record(1, magic=5), "Invalid magic number"),
        (record(1, protocol=7), "Invalid protocol version: 7"),
        (record(Stored("thing", 1)), "Unknown saved id type: thing"),
    ):
        with case.raises(RuntimeError, words):
            unrestricted(file)


@claim("state.file.changed-source")
def test_a_module_whose_source_has_changed_is_loaded_with_a_warning(case):
    kind = nn.ChannelShuffle  # of a short file, which is read whole for its source
    source, now = inspect.getsourcefile(kind), inspect.getsource(kind)
    warning = torch.serialization.SourceChangeWarning
    for address, warns in ((("module", kind, source, now), 0), (("module", kind, source, "class Other:"), 1),
                           (("module", kind, None, None), 0)):  # fmt: skip
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert unrestricted(record(Stored(*address))) is kind
        caught = [each for each in caught if each.category is warning]
        assert len(caught) == warns, f"{address[2:]} warns {len(caught)} times"
        assert all("source code of class" in str(each.message) for each in caught)
    file = io.BytesIO()
    torch.save(kind(2), file, _use_new_zipfile_serialization=False)
    assert now.encode() in file.getvalue()


@claim("state.file.older-archives")
def test_archives_of_the_first_releases_load(case, tmp_path):
    storages = [pickle.dumps(1, 2), pickle.dumps((5, "cpu", torch.FloatStorage), 2), counted([1.0, 2.0, 3.0, 4.0])]
    storages.append(pickle.dumps([(6, 5, 1, 3)], 2))
    tensors = [pickle.dumps(2, 2)]
    for key, storage, size, stride, offset in ((1, 5, (2, 2), (1, 2), 0), (2, 6, (2,), (1,), 1)):
        tensors.append(pickle.dumps((key, storage, torch.FloatTensor), 2))
        tensors.append(struct.pack(f"<i4x{2 * len(size) + 1}q", len(size), *size, *stride, offset))
    parts = {"storages": storages, "tensors": tensors, "pickle": [Numbered.dump({"a": Numbered(1), "b": Numbered(2)})]}
    path = tmp_path / "old.pt"
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as tar:
        for name, content in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(b"".join(content))
            tar.addfile(info, io.BytesIO(b"".join(content)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loaded = unrestricted(path)
        case.same(loaded["a"], torch.tensor([[1.0, 3.0], [2.0, 4.0]]).float())
        case.same(loaded["b"], torch.tensor([3.0, 4.0]))
        assert loaded["a"].stride() == (1, 2)
        if takes_weights_only() and hasattr(torch.serialization, "safe_globals"):
            with case.raises((RuntimeError, pickle.UnpicklingError), "legacy .tar format|weights_only"):
                torch.load(path, weights_only=True)


class Numbered:
    """Stands in a pickle for a tensor of that number."""

    def __init__(self, number):
        self.number = number

    @staticmethod
    def dump(what):
        file = io.BytesIO()
        pickler = type("Numbering", (pickle.Pickler,), {"persistent_id": lambda _, w: getattr(w, "number", None)})
        pickler(file, protocol=2).dump(what)
        return file.getvalue()


@claim("state.file.absent-device")
@pytest.mark.parametrize("place", ["cuda:0", "cuda"])
def test_a_file_from_an_absent_device_says_how_to_load_it(case, place):
    device = getattr(torch, place.partition(":")[0], None)
    if device is None or device.is_available():
        raise case.unsupported(f"{place} is no absent device here")
    x = Rebuilt(Stored("storage", torch.FloatStorage, "7", place, 2, None), (2,), (1,))
    file = record(x, ("7", [1.0, 2.0]))
    for to in (None, {"cpu": "cpu"}, lambda storage, there: None):
        file.seek(0)
        with case.raises(RuntimeError, r"CUDA.*is_available\(\) is False.*map_location=torch.device"):
            unrestricted(file, map_location=to)
    for to in ("cpu", torch.device("cpu"), {place: "cpu"}, lambda storage, there: storage if there == place else None):
        file.seek(0)
        case.same(unrestricted(file, map_location=to), torch.tensor([1.0, 2.0]))


def with_mark(file, mark):
    """The same file with another mark of its byte order, or with none."""
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            if not name.endswith("byteorder"):
                new.writestr(name, old.read(name))
            elif mark:
                new.writestr(name, mark)
    copy.seek(0)
    return copy


@claim("state.file.byte-order-mark")
def test_a_file_is_marked_with_its_byte_order(case):
    with zipfile.ZipFile(saved(case.tensor(2))) as file:
        (mark,) = (name for name in file.namelist() if name.endswith("byteorder"))
        assert file.read(mark).decode() == sys.byteorder


@claim("state.file.byte-order")
def test_the_byte_order_of_a_file_without_a_mark_may_be_told(case):
    files, x = torch.serialization, torch.tensor([1.5, -2.25])
    swapped = torch.from_numpy(x.numpy().byteswap())
    orders, big = files.LoadEndianness, sys.byteorder == "big"
    as_little, as_big = (swapped, x) if big else (x, swapped)
    try:
        for order, mark, wanted in (
            (orders.LITTLE, None, as_little), (orders.BIG, None, as_big), (orders.NATIVE, None, x),
            (None, None, as_little), (orders.BIG, b"little", as_little), (None, b"big", as_big),
        ):  # fmt: skip
            files.set_default_load_endianness(order)
            found = torch.load(with_mark(saved(x), mark))
            assert torch.equal(found, wanted), f"default {order}, mark {mark}: {found.tolist()}"
        with case.raises(ValueError, "Unknown endianness type: middle"):
            torch.load(with_mark(saved(x), b"middle"))
    finally:
        files.set_default_load_endianness(None)


@claim("state.file.mapped-memory")
def test_a_mapped_file_is_private_unless_shared(case, tmp_path):
    path, files = tmp_path / "x.pt", torch.serialization
    tensors = [torch.arange(n, dtype=torch.float32) for n in (5, 0, 1000, 33)]
    torch.save(tensors, path)
    for how, weights, kept in (
        (mmap.MAP_PRIVATE, True, 1.0), (mmap.MAP_SHARED, True, 9.0), (mmap.MAP_SHARED, False, 5.0)
    ):  # fmt: skip
        with files.set_default_mmap_options(how):
            torch.load(path, mmap=True, weights_only=weights)[0][1] = 9.0 if weights else 5.0
        assert torch.load(path)[0][1] == kept, f"after a write into a map of kind {how}"
    torch.save(tensors[2], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with case.raises(RuntimeError, r"mmap can only be used.*old\.pt, _use_new"):
        torch.load(str(tmp_path / "old.pt"), mmap=True)
    with case.raises(ValueError, "must be a file path"):
        torch.load(saved(1), mmap=True)


@claim("state.file.offsets")
def test_a_file_loaded_to_meta_knows_where_its_storages_lie(case, tmp_path):
    from torch.utils.serialization import config

    path, content = tmp_path / "x.pt", [torch.arange(n, dtype=torch.float32) for n in (5, 1, 1000, 33)]
    content.append(content[2][3:7])
    for alignment in (4096, 64):
        config.save.storage_alignment = alignment
        try:
            torch.save(content, path)
        finally:
            config.save.storage_alignment = 64
        raw = path.read_bytes()
        for x, there in zip([*content[:4], content[2]], torch.load(path, map_location="meta"), strict=True):
            start = there.untyped_storage()._checkpoint_offset
            assert start % alignment == 0, f"{start} is no multiple of {alignment}"
            assert raw[start : start + there.untyped_storage().nbytes()] == x.numpy().tobytes()
    for reckoned in (True, False):
        before, config.load.calculate_storage_offsets = config.load.calculate_storage_offsets, reckoned
        try:
            for x, y in zip(content, torch.load(path, mmap=True), strict=True):
                case.same(y, x)
        finally:
            config.load.calculate_storage_offsets = before
    config.load.mmap = True
    try:
        with case.raises(ValueError, "must be a file path"):
            torch.load(io.BytesIO(raw))
        case.same(torch.load(io.BytesIO(raw), mmap=False)[0], content[0])
    finally:
        config.load.mmap = False


@claim("state.file.skip-data")
def test_skip_data_keeps_room_for_the_values(case):
    x, skip = case.tensor(33).cpu(), torch.serialization.skip_data
    full = saved(x)
    with skip():
        empty = saved(x)
        with case.raises(RuntimeError, "skip_data"):
            saved(x, _use_new_zipfile_serialization=False)
        if since("2.7"):
            assert torch.load(full).shape == x.shape
        else:
            with case.raises(RuntimeError, "not supported yet"):
                torch.load(full)
    assert len(empty.getvalue()) == len(full.getvalue())
    assert torch.load(empty).shape == x.shape
    assert x.numpy().tobytes() not in empty.getvalue()
    case.same(through_a_file(x), x)


class Counting:
    """A pickle module of one's own, which counts what it is asked for."""

    __name__ = "counting"
    calls: ClassVar[list] = []

    class Pickler(pickle._Pickler):
        def __init__(self, file, protocol=None):
            Counting.calls.append(("write", protocol))
            super().__init__(file, protocol=protocol)

    class Unpickler(pickle._Unpickler):
        def __init__(self, file, **options):
            Counting.calls.append(("read", options))
            super().__init__(file, **options)

    @staticmethod
    def dump(what, file, protocol=None):
        pickle.dump(what, file, protocol=protocol)

    @staticmethod
    def load(file, **options):
        return pickle.load(file, **options)


@claim("state.file.pickle-module")
@pytest.mark.parametrize("zipped", [True, False])
def test_the_pickle_module_and_its_options_are_the_callers(case, zipped):
    Counting.calls.clear()
    x = case.tensor(3)
    file = saved({"x": x}, pickle_module=Counting, pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    case.same(unrestricted(file, pickle_module=Counting, encoding="latin-1")["x"], x)
    assert Counting.calls == [("write", 4), ("read", {"encoding": "latin-1"})]
    file.seek(0)
    case.same(unrestricted(file, pickle_module=Counting)["x"], x)
    assert Counting.calls[2:] == [("read", {"encoding": "utf-8"})]
    file.seek(0)
    if takes_weights_only():
        with case.raises(RuntimeError, "explicit pickle_module"):
            torch.load(file, weights_only=True, pickle_module=Counting)


@claim("state.file.environment")
def test_the_environment_may_force_or_lift_weights_only(case, monkeypatch):
    force, lift = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    monkeypatch.delenv(force, raising=False), monkeypatch.delenv(lift, raising=False)
    for yes in ("1", "y", "yes", "true"):
        with monkeypatch.context() as there:
            there.setenv(force, yes)
            with case.raises(pickle.UnpicklingError, "weights.only"):
                torch.load(saved(Bomb()), weights_only=False)
    with monkeypatch.context() as there:
        there.setenv(force, "0"), there.setenv(lift, "no")
        torch.load(saved(Bomb()), weights_only=False)
        there.setenv(lift, "1")
        with pytest.warns(UserWarning, match=lift):
            torch.load(saved(Bomb()))
        with case.raises(pickle.UnpicklingError, "weights.only"):
            torch.load(saved(Bomb()), weights_only=True)
        there.setenv(force, "1")
        with case.raises(RuntimeError, "Only one of"):
            torch.load(saved(1))


@claim("state.file.file-like")
def test_a_file_is_whatever_reads_writes_and_seeks(case, tmp_path):
    x = case.tensor(33)
    with gzip.open(tmp_path / "x.gz", "wb") as file:
        torch.save(x, file, _use_new_zipfile_serialization=False)
    with gzip.open(tmp_path / "x.gz") as file:
        case.same(torch.load(file), x)
    path = tmp_path / "x.pt"
    with path.open("wb") as file:
        file.write(b"before")
        for each in (x, x + 1):
            torch.save(each, file, _use_new_zipfile_serialization=False)
    with path.open("rb") as file:
        file.seek(6)
        case.same(torch.load(file), x)
        case.same(torch.load(file), x + 1)
    nothing = type("Nothing", (), {})()
    with case.raises(AttributeError, "'write' attribute"):
        torch.save(x, nothing)
    with case.raises(AttributeError, "(seek|tell).*You can only torch.load from a file that is seekable"):
        torch.load(nothing)
    unseekable = type("Unseekable", (io.BytesIO,), {"seek": refuse, "tell": refuse})(saved(x).getvalue())
    with case.raises(io.UnsupportedOperation, "seek.*You can only torch.load from a file that is seekable"):
        torch.load(unseekable)
    with case.raises(AttributeError, "tell.*You can only torch.load from a file that is seekable"):
        torch.load(type("Untold", (), {"seek": refuse})())


def refuse(*_):
    raise io.UnsupportedOperation("seek")


@claim("state.file.flushed")
@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_can_be_read_before_it_is_closed(case, tmp_path, zipped):
    x, path = case.tensor(33), tmp_path / "x.pt"
    with path.open("wb", buffering=1 << 20) as file:
        torch.save(x, file, _use_new_zipfile_serialization=zipped)
        case.same(torch.load(path), x)


@claim("state.file.versions-of-modules")
def test_versions_of_modules_are_compared_number_by_number(case):
    meets = torch.serialization.check_module_version_greater_or_equal

    def module(version):
        return types.SimpleNamespace(__name__="some", __version__=version)

    for version, met in (("1.2.3", True), ("1.2.4", True), ("1.10.0", True), ("1.2.2", False), ("0.9.9", False)):
        assert meets(module(version), (1, 2, 3)) is met, version
    with case.raises(RuntimeError, "malformed"):
        meets(module("one"), (1, 2, 3))
    with pytest.warns(UserWarning, match="malformed"):
        assert meets(module("one"), (1, 2, 3), error_if_malformed=False)
    dill = types.SimpleNamespace(__name__="dill", __version__="0.3.0")
    with case.raises(ValueError, "supports dill >= 0.3.1"):
        torch.save(1, io.BytesIO(), pickle_module=dill)
    with case.raises(ValueError, "supports dill >= 0.3.1"):
        unrestricted(saved(1), pickle_module=dill)


@claim("state.file.torchscript")
def test_a_torchscript_archive_is_handed_to_torch_jit(case):
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Identity()), file)
    file.seek(0)
    with case.raises(RuntimeError, "TorchScript archives"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load(file, weights_only=True)
    file.seek(0)
    with pytest.warns(UserWarning, match="TorchScript archive"):
        loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, torch.jit.ScriptModule)
    if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        file.seek(0)
        with case.raises(ValueError, "torchscript checkpoint"):
            torch.serialization.get_unsafe_globals_in_checkpoint(file)


@claim("state.file.sparse-keeps-requires-grad")
def test_a_sparse_leaf_comes_back_as_one_that_requires_grad(case):
    x = torch.sparse_coo_tensor([[0, 1], [2, 0]], case.tensor(2), (2, 3)).requires_grad_()
    assert through_a_file(x).requires_grad


@claim("state.file.shared-without-memory")
@pytest.mark.parametrize("where", ["empty", "meta"])
def test_tensors_share_a_storage_that_has_no_memory(case, where):
    x = torch.empty(0) if where == "empty" else torch.ones(4)
    file = io.BytesIO()
    torch.save([x, x.view(-1, 1)], file)
    file.seek(0)
    a, b = torch.load(file, map_location="meta" if where == "meta" else None)
    assert a.untyped_storage()._cdata == b.untyped_storage()._cdata, "each has a storage of its own"


@claim("state.file.negated")
def test_a_negated_view_comes_back_as_its_values(case):
    z = torch.complex(case.tensor(3), case.tensor(3)).conj().imag
    case.same(through_a_file(z).resolve_neg(), z.resolve_neg())


@claim("state.file.every-dtype")
@pytest.mark.parametrize("dtype", ["complex32", "float8_e5m2", "float8_e4m3fn", "uint16", "uint32", "uint64"])
def test_rare_dtypes_come_back(case, dtype):
    if not hasattr(torch, dtype):
        raise case.unsupported(f"torch {torch.__version__} has no {dtype}")
    x = torch.zeros(3, dtype=getattr(torch, dtype))
    assert through_a_file(x, weights_only=True).dtype == x.dtype


@claim("state.file.legacy-every-dtype")
@pytest.mark.parametrize("dtype", ["complex32", "float8_e5m2", "uint16"])
def test_rare_dtypes_come_back_in_the_legacy_format(case, dtype):
    if not hasattr(torch, dtype):
        raise case.unsupported(f"torch {torch.__version__} has no {dtype}")
    x = torch.zeros(3, dtype=getattr(torch, dtype))
    assert torch.load(saved(x, _use_new_zipfile_serialization=False)).dtype == x.dtype


@claim("state.file.within-another")
def test_a_file_begins_where_it_stands(case):
    x, file = case.tensor(3), io.BytesIO()
    file.write(b"other bytes")
    torch.save(x, file)
    file.seek(len(b"other bytes"))
    case.same(torch.load(file), x)


@claim("state.file.memory-format")
def test_a_memory_format_comes_back(case):
    assert through_a_file(torch.channels_last, weights_only=False) is torch.channels_last


@claim("state.file.older-upsampling")
def test_an_older_upsampling_is_completed(case):
    x, old = case.tensor(1, 1, 3), nn.Upsample.__new__(nn.Upsample)
    known = vars(nn.Upsample(scale_factor=3, mode="linear"))
    old.__setstate__({name: value for name, value in known.items() if name != "recompute_scale_factor"})
    case.same(old(x), nn.functional.interpolate(x, size=9, mode="linear"))


@claim("state.file.empty-of-two-dtypes")
def test_empty_tensors_of_one_storage_keep_their_dtypes(case):
    x = torch.empty(0)
    assert [t.dtype for t in through_a_file([x, x.view(torch.int32)])] == [torch.float32, torch.int32]


class Wrapping(torch.Tensor):
    """Holds its values in a tensor within."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


@claim("state.file.wrapped-dtype")
def test_a_wrapping_tensor_comes_back_with_its_dtype(case):
    x = torch.ones(3, dtype=torch.float64)
    back = pickle.loads(pickle.dumps(Wrapping(x)))
    assert back.dtype == torch.float64
    case.same(back.inner, x)


@claim("state.file.nested-as-weights")
@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_a_nested_tensor_is_no_code(case):
    parts = [case.tensor(2).cpu(), case.tensor(3).cpu()]
    back = through_a_file(torch.nested.nested_tensor(parts), weights_only=True)
    for part, wanted in zip(back.unbind(), parts, strict=True):
        case.same(part, wanted)


@claim("state.file.later-protocols-as-weights")
@pytest.mark.filterwarnings("ignore:.*pickle protocol")
def test_weights_are_read_whatever_protocol_wrote_them(case):
    x = case.tensor(3).cpu()
    file = saved({"x": x}, pickle_protocol=4)
    case.same(torch.load(file, weights_only=True)["x"], x)


@claim("state.file.tensors-moved-within-torch")
def test_a_file_that_knows_the_class_of_tensors_by_its_first_module_loads(case):
    x, file = case.tensor(3).as_subclass(Marked), io.BytesIO()
    x.note = "text"
    with zipfile.ZipFile(saved(x)) as new, zipfile.ZipFile(file, "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"ctorch._tensor\n", b"ctorch.tensor\n"))
    file.seek(0)
    y = unrestricted(file)
    assert (type(y), y.note) == (Marked, "text")
    assert torch.equal(y, x)


@claim("state.file.safetensors")
def test_a_file_of_safetensors_is_read_by_that_package(case, tmp_path, monkeypatch):
    path, asked = tmp_path / "x.safetensors", []
    package, reader = types.ModuleType("safetensors"), types.ModuleType("safetensors.torch")
    package.torch = reader
    reader.load_file = lambda *given, **options: asked.append((*given, options)) or {"x": 1}
    monkeypatch.setitem(sys.modules, "safetensors", package)
    monkeypatch.setitem(sys.modules, "safetensors.torch", reader)
    for to, place in ((None, "cpu"), ("meta", "meta"), (torch.device("meta"), "meta")):
        assert torch.load(path, map_location=to) == {"x": 1}
        assert asked[-1] == (str(path), {"device": place})
    for to in ({"cpu": "meta"}, lambda storage, place: storage):
        with case.raises(RuntimeError, "map_location is not supported"):
            torch.load(path, map_location=to)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with case.raises(RuntimeError, "safetensors is not installed"):
        torch.load(path)
