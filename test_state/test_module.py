"""nn.Module: what is registered, what it is called, how it is cast, copied, contained and parametrised."""

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from specs.reference import parametrizations as reference
from torch_conformance.axes import FLOATING
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim, since

pytestmark = axes(via="eager")


class Leaf(nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.register_buffer("seen", torch.zeros(size))
        self.weight = nn.Parameter(torch.zeros(size))


class Tree(nn.Module):
    """Children before the module's own, one child under two names, one parameter shared, and names without content."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(Leaf(), Leaf())
        self.scale = nn.Parameter(torch.zeros(3))
        self.register_parameter("nothing", None)
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))
        self.register_buffer("absent", None)
        self.again = self.first[1]
        self.last = Leaf()
        self.last.weight = self.scale
        self.gone = nn.ReLU()
        self.gone = None
        self.bias = nn.Parameter(torch.zeros(3))


def kinds(module, name):
    """In which registers the name stands."""
    registers = {"parameter": module._parameters, "buffer": module._buffers, "module": module._modules}
    return [kind for kind, register in registers.items() if name in register] + ["plain"] * (name in vars(module))


def named(pairs):
    return [name for name, _ in pairs]


# -- Registration --------------------------------------------------------------------------------------------------


@claim("module.register.by-assignment")
def test_assignment_registers(case):
    model, tensor, parameter, child = nn.Module(), case.tensor(3), nn.Parameter(case.tensor(3)), nn.ReLU()
    model.z, model.a, model.tensor = parameter, child, tensor
    model.register_buffer("buffer", case.tensor(2))
    model.register_parameter("b", nn.Parameter(case.tensor(1)))
    model.add_module("y", nn.Tanh())
    assert model.z is parameter
    assert model.a is child
    assert model.tensor is tensor
    assert named(model.named_parameters()) == ["z", "b"]
    assert named(model.named_children()) == ["a", "y"]
    assert named(model.named_buffers()) == ["buffer"]
    assert kinds(model, "tensor") == ["plain"]
    assert {"z", "a", "buffer", "tensor"} <= {*dir(model)}


@claim("module.register.reassignment")
@pytest.mark.parametrize("new", ["parameter", "module"])
@pytest.mark.parametrize("old", ["plain", "buffer", "scratch", "same", "module"])
def test_a_name_is_one_thing_only(case, old, new):
    model = nn.Module()
    values = {"plain": 1, "parameter": nn.Parameter(case.tensor(1)), "module": nn.ReLU()}
    if old in ("plain", "module", "same"):
        model.x = values[new if old == "same" else old]
    else:
        model.register_buffer("x", case.tensor(1), persistent=old == "buffer")
    model.x = values[new]
    assert kinds(model, "x") == [new]
    assert model.x is values[new]
    assert list(model.state_dict()) == ["x"] * (new == "parameter")
    del model.x
    model.register_buffer("x", case.tensor(1))
    assert list(model.state_dict()) == ["x"]


@claim("module.register.none")
def test_none_keeps_the_name(case):
    model = Tree()
    model.scale = model.counter = model.last = None
    assert kinds(model, "scale") == ["parameter"]
    assert kinds(model, "counter") == ["buffer"]
    assert kinds(model, "last") == ["module"]
    assert model.last is model.scale is model.counter is None
    model.counter, model.scale, model.nothing = (
        case.tensor(2),
        nn.Parameter(case.tensor(1)),
        nn.Parameter(case.tensor(1)),
    )
    assert named(model.named_buffers(recurse=False)) == ["counter"]
    assert named(model.named_parameters(recurse=False)) == ["scale", "nothing", "bias"]


@claim("module.register.deletion")
def test_del_takes_off(case):
    model = Tree()
    model.register_buffer("scratch", case.tensor(1), persistent=False)
    model.plain = 1
    for name in ("scale", "counter", "last", "scratch", "plain"):
        delattr(model, name)
        assert kinds(model, name) == []
        with case.raises(AttributeError, f"'?Tree.*{name}"):
            getattr(model, name)
        with case.raises(AttributeError, name):
            delattr(model, name)
    model.register_buffer("scratch", case.tensor(1))
    assert "scratch" in model.state_dict()


@claim("module.register.wrong-kind")
@pytest.mark.parametrize("name", ["scale", "nothing", "last", "counter"])
def test_names_hold_one_kind(case, name):
    model = Tree()
    wrong = {"counter": "text", "last": case.tensor(1)}.get(name, case.tensor(3))
    with case.unchanged(model), case.raises(TypeError, f"cannot assign.*'{name}'"):
        setattr(model, name, wrong)
    assert kinds(model, name) == [{"counter": "buffer", "last": "module"}.get(name, "parameter")]


def registrations(case, model):
    return {
        "parameter": lambda name: model.register_parameter(name, nn.Parameter(case.tensor(1))),
        "buffer": lambda name: model.register_buffer(name, case.tensor(1)),
        "module": lambda name: model.add_module(name, nn.ReLU()),
    }


@claim("module.register.bad-names")
@pytest.mark.parametrize("kind", ["parameter", "buffer", "module"])
def test_names_must_be_good(case, kind):
    model = Tree()
    model.plain = 1
    register = registrations(case, model)[kind]
    taken = {"parameter": "counter", "buffer": "scale", "module": "scale"}[kind]
    for name, words in {"": "empty", "a.b": r"contain .*\.", "plain": "exists", taken: "exists"}.items():
        with case.unchanged(model), case.raises(KeyError, words):
            register(name)
    with case.raises(TypeError, "string"):
        register(3)
    register("free")
    assert kinds(model, "free") == [kind]


@claim("module.register.bad-values")
def test_values_must_be_good(case):
    model = Tree()
    with case.unchanged(model):
        with case.raises(TypeError, "Parameter or None"):
            model.register_parameter("x", case.tensor(1))
        with case.raises(ValueError, "non-leaf|graph leaf"):
            model.register_parameter("x", non_leaf(case))
        with case.raises(TypeError, "Tensor.*or None"):
            model.register_buffer("x", [1.0])
        with case.raises(TypeError, "not a Module"):
            model.add_module("x", torch.tanh)
    assert kinds(model, "x") == []


def non_leaf(case):
    return nn.Parameter(case.tensor(1)).double().mul(2).as_subclass(nn.Parameter)


class Wish:
    def __init__(self, *given, **named):
        self.given, self.named = given, named


@claim("module.register.init-takes-nothing")
def test_the_constructor_takes_nothing(case):
    class Plain(nn.Module):
        pass

    for cls in (nn.Module, Plain):
        with case.raises(TypeError, "unexpected keyword argument 'size'"):
            cls(size=3)
        with case.raises(TypeError, "1 positional argument but 3 were given"):
            cls(3, 4)


@claim("module.register.call-super-init")
def test_the_next_constructor_is_called_where_asked_for(case):
    class Calls(nn.Module, Wish):
        call_super_init = True

    class Ends(nn.Module, Wish):
        pass

    model = Calls(3, size=4)
    assert (model.given, model.named) == ((3,), {"size": 4})
    assert not hasattr(Ends(), "given")


@claim("module.register.before-init")
@pytest.mark.parametrize("kind", ["parameter", "buffer", "module", "assigned parameter", "assigned module"])
def test_nothing_registers_before_init(case, kind):
    class Hasty(nn.Module):
        def __init__(self):
            if kind.startswith("assigned"):
                self.x = nn.ReLU() if kind.endswith("module") else nn.Parameter(case.tensor(1))
            else:
                registrations(case, self)[kind]("x")

    with case.raises(AttributeError, "before Module.__init__|has no attribute '_modules'"):
        Hasty()


@claim("module.register.buffer-class")
def test_buffers_by_assignment(case):
    model = nn.Module()
    model.kept = nn.Buffer(case.tensor(2))
    model.scratch = nn.Buffer(case.tensor(2), persistent=False)
    assert named(model.named_buffers()) == ["kept", "scratch"]
    assert list(model.state_dict()) == ["kept"]
    model.kept = case.tensor(3)
    assert kinds(model, "kept") == ["buffer"]
    model.kept, model.scratch = nn.Buffer(case.tensor(3), persistent=False), nn.Buffer(case.tensor(3))
    assert list(model.state_dict()) == ["scratch"]
    assert not list(model.parameters())
    assert nn.Buffer().shape == nn.Parameter().shape == (0,)
    assert nn.Buffer(case.tensor(2)).persistent is True
    assert not isinstance(case.tensor(2), nn.Buffer)


class Marked(torch.Tensor):
    pass


@claim("module.register.tensor-subclass")
def test_a_parameter_keeps_the_class_of_its_tensor(case):
    model, given = nn.Module(), case.tensor(2).as_subclass(Marked)
    model.x = nn.Parameter(given)
    assert type(model.x) is Marked
    assert isinstance(model.x, nn.Parameter)
    assert model.x.requires_grad
    assert not nn.Parameter(given, requires_grad=False).requires_grad
    assert not isinstance(given, nn.Parameter)
    assert named(model.named_parameters()) == ["x"]


@claim("module.register.uninitialized")
@pytest.mark.parametrize("cls", [nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer])
def test_what_has_no_shape_yet_gets_one(case, cls):
    lazy = cls(device="meta", dtype=torch.float64)
    kind = nn.Parameter if cls is nn.UninitializedParameter else torch.Tensor
    assert lazy.requires_grad is (kind is nn.Parameter)
    for use in (lambda: lazy.shape, lazy.share_memory_, lambda: lazy + 1):
        with case.raises((RuntimeError, ValueError), "uninitialized"):
            use()
    assert nn.parameter.is_lazy(lazy)
    lazy.materialize((2, 3))
    assert (type(lazy), lazy.shape, lazy.device.type, lazy.dtype) == (kind, (2, 3), "meta", torch.float64)
    assert not nn.parameter.is_lazy(lazy)
    other = cls(device="meta")
    other.materialize((4,), dtype=torch.float16)
    assert (other.shape, other.device.type, other.dtype) == ((4,), "meta", torch.float16)


@claim("module.register.uninitialized")
def test_a_copy_has_no_shape_either(case):
    lazy = nn.UninitializedParameter(requires_grad=False, dtype=torch.float16)
    once, again = copy.deepcopy([lazy, lazy])
    assert once is again is not lazy
    assert type(once) is type(lazy)
    assert (once.requires_grad, once.dtype) == (False, torch.float16)


# -- Names ---------------------------------------------------------------------------------------------------------

PARAMETERS = ["scale", "bias", "first.0.weight", "first.1.weight"]
BUFFERS = ["counter", "first.0.seen", "first.1.seen", "last.seen"]


@claim("module.names.order")
def test_names_come_in_order(case):
    model = Tree()
    assert named(model.named_parameters()) == PARAMETERS
    assert named(model.named_buffers()) == BUFFERS
    assert named(model.named_parameters(recurse=False)) == ["scale", "bias"]
    assert named(model.named_buffers(recurse=False)) == ["counter"]
    assert named(model.named_parameters("net")) == [f"net.{name}" for name in PARAMETERS]
    assert named(model.named_buffers(prefix="net", recurse=False)) == ["net.counter"]
    for plain, pairs in [
        (model.parameters(), model.named_parameters()),
        (model.buffers(), model.named_buffers()),
        (model.parameters(recurse=False), model.named_parameters(recurse=False)),
        (model.buffers(recurse=False), model.named_buffers(recurse=False)),
    ]:
        assert [id(x) for x in plain] == [id(x) for _, x in pairs]


@claim("module.names.shared-once")
def test_what_is_shared_comes_once(case):
    model = Tree()
    assert named(model.named_parameters()) == PARAMETERS
    assert named(model.named_buffers()) == BUFFERS
    if "remove_duplicate" not in nn.Module.named_parameters.__code__.co_varnames:
        raise case.unsupported("named_parameters has no remove_duplicate before torch 2.0")
    twice = [*PARAMETERS, "again.weight", "last.weight"]
    assert named(model.named_parameters(remove_duplicate=False)) == twice
    every = [*BUFFERS[:3], "again.seen", "last.seen"]
    assert named(model.named_buffers(remove_duplicate=False)) == every
    names = named(model.named_modules(remove_duplicate=False))
    assert names == ["", "first", "first.0", "first.1", "again", "last"]


@claim("module.names.modules")
def test_modules_come_parent_first(case):
    model = Tree()
    assert named(model.named_modules()) == ["", "first", "first.0", "first.1", "last"]
    assert named(model.named_modules(prefix="net"))[:3] == ["net", "net.first", "net.first.0"]
    assert named(model.named_children()) == ["first", "again", "last"]
    assert list(model.children()) == [model.first, model.again, model.last]
    assert list(model.modules()) == [model, model.first, *model.first, model.last]
    model.once_more = model.first
    assert named(model.named_children()) == ["first", "again", "last"]


@claim("module.names.get")
def test_names_are_found(case):
    model = Tree()
    model.plain = 1
    assert model.get_submodule("") is model
    assert model.get_submodule("first.1") is model.again
    assert model.get_parameter("first.0.weight") is model.first[0].weight
    assert model.get_parameter("bias") is model.bias
    assert model.get_buffer("last.seen") is model.last.seen
    for get, name in [
        (model.get_submodule, "first.2"),
        (model.get_submodule, "first.0.weight"),
        (model.get_submodule, "plain"),
        (model.get_parameter, "first.0.seen"),
        (model.get_parameter, "nowhere.weight"),
        (model.get_parameter, "first.0.nothing"),
        (model.get_buffer, "first.0.weight"),
        (model.get_buffer, "nowhere"),
    ]:
        with case.raises(AttributeError, name.rpartition(".")[2] if "nowhere" not in name else "nowhere"):
            get(name)


@claim("module.names.set-submodule")
def test_submodules_are_set_by_name(case):
    model, new = Tree(), nn.ReLU()
    model.set_submodule("first.1", new)
    assert model.first[1] is new
    assert model.again is not new
    with case.raises(AttributeError, "nowhere"):
        model.set_submodule("nowhere.1", new)
    with case.raises(ValueError, "target name|empty"):
        model.set_submodule("", new)


@claim("module.apply.children-first")
def test_apply_goes_from_the_leaves_up(case):
    model, seen = Tree(), []
    assert model.apply(seen.append) is model
    assert seen == [model.first[0], model.first[1], model.first, model.again, model.last, model]


# -- Casts ---------------------------------------------------------------------------------------------------------

CASTS = {
    "half": (lambda m: m.half(), torch.float16),
    "bfloat16": (lambda m: m.bfloat16(), torch.bfloat16),
    "float": (lambda m: m.float(), torch.float32),
    "double": (lambda m: m.double(), torch.float64),
    "to": (lambda m: m.to(torch.bfloat16), torch.bfloat16),
    "to-tensor": (lambda m: m.to(torch.zeros(1, dtype=torch.float64, device=m.bias.device)), torch.float64),
}


@claim("module.cast.floating-alone")
@axes(dtype=("float32", "float64"), via="eager")
@pytest.mark.parametrize("how", CASTS)
def test_casts_touch_floating_values_alone(case, how):
    model = case.module(Tree)
    before = {name: array(x).copy() for name, x in [*model.named_parameters(), *model.named_buffers()]}
    cast, dtype = CASTS[how]
    assert cast(model) is model
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        assert x.dtype == (torch.int64 if name == "counter" else dtype)
        if x.is_floating_point():
            case.close(x, before[name], k=0.65)  # half an eps for rounding to nearest
    assert int(model.counter) == before["counter"]
    assert model.last.weight is model.scale


@claim("module.cast.type-casts-everything")
def test_type_casts_integers_too(case):
    model = case.module(Tree)
    assert model.type(torch.float64) is model
    assert {x.dtype for x in [*model.parameters(), *model.buffers()]} == {torch.float64}


@claim("module.cast.integer-refused")
def test_modules_hold_no_integers(case):
    model = case.module(Tree)
    with case.unchanged(model), case.raises(TypeError, "floating point or complex.*int64"):
        model.to(torch.int64)
    assert model.scale.dtype == case.dtype


@claim("module.cast.parameters-kept")
@pytest.mark.parametrize("how", [name for name in CASTS if name != "float"])
def test_parameters_stay_the_same_objects(case, how):
    model = case.module(Tree)
    for p in model.parameters():
        p.grad = case.tensor(*p.shape)
    model.bias.requires_grad_(False)
    parameters, seen = list(model.parameters()), model.last.seen
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    dtype = CASTS[how][0](model).scale.dtype
    assert all(p is old and p.is_leaf for p, old in zip(model.parameters(), parameters, strict=True))
    assert {p.grad.dtype for p in parameters} == {dtype}
    assert model.last.seen is not seen
    assert model.scale.requires_grad
    assert not model.bias.requires_grad
    before = model.scale.detach().clone()
    optimizer.step()
    assert not torch.equal(model.scale, before)


@claim("module.cast.memory-format")
def test_memory_format_is_for_four_dimensions(case):
    model = case.module(nn.Sequential, nn.Conv2d(3, 4, 2), nn.Conv1d(3, 4, 2), nn.Linear(3, 2))
    before = model[0].weight.detach().clone()
    assert model.to(memory_format=torch.channels_last) is model
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    assert model[1].weight.is_contiguous()
    case.same(model[0].weight.detach(), before)


@claim("module.cast.memory-format")
def test_a_dtype_beside_the_memory_format(case):
    layer = nn.Conv2d(3, 4, 2, device=case.device)
    layer.register_buffer("seen", torch.ones(2, 3, 4, 5, dtype=torch.int64, device=case.device))
    layer.to(torch.bfloat16, memory_format=torch.channels_last)
    assert (layer.weight.dtype, layer.bias.dtype, layer.seen.dtype) == (torch.bfloat16, torch.bfloat16, torch.int64)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.seen.is_contiguous(memory_format=torch.channels_last)


@claim("module.cast.to-empty")
def test_to_empty_comes_without_values(case):
    model = case.module(Tree)
    model.bias.requires_grad_(False)
    meta = copy.deepcopy(model).to("meta")
    assert {x.device.type for x in [*meta.parameters(), *meta.buffers()]} == {"meta"}
    assert meta.to_empty(device=case.device) is meta
    tensors = [*model.named_parameters(), *model.named_buffers()]
    held = dict([*meta.named_parameters(), *meta.named_buffers()])
    for name, x in tensors:
        assert (held[name].shape, held[name].dtype, held[name].device) == (x.shape, x.dtype, x.device)
        assert held[name].requires_grad is x.requires_grad
        assert type(held[name]) is type(x)


@claim("module.cast.ties")
@pytest.mark.parametrize("how", ["cast", "emptied", "moved to meta", "emptied from meta"])
def test_ties_stay_but_not_by_way_of_meta(case, how):
    model = nn.Sequential(*(nn.Linear(3, 3, device="meta" if "from meta" in how else case.device) for _ in range(2)))
    model[1].weight = model[0].weight
    if "emptied" in how:
        model.to_empty(device=case.device)
    else:
        model.to(torch.float64 if how == "cast" else "meta")
    assert (model[1].weight is model[0].weight) == (how in ("cast", "emptied"))


# -- Gradients -----------------------------------------------------------------------------------------------------


@claim("module.freeze.requires-grad")
def test_requires_grad_freezes_and_thaws(case):
    model = case.module(nn.Sequential, nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with case.unchanged(model, but={"1.weight.requires_grad", "1.bias.requires_grad"}):
        model.get_submodule("1").requires_grad_(False)
    model[2].requires_grad_(requires_grad=False)
    model(case.tensor(3, 5)).sum().backward()
    assert [p.grad is not None for p in model.parameters()] == [True] * 2 + [False] * 4
    assert not model[1].running_mean.requires_grad
    assert model[0].weight.grad.any()
    assert model.requires_grad_() is model
    assert all(p.requires_grad for p in model.parameters())


def with_gradients(case):
    model = case.module(Tree)
    for p in model.parameters():
        p.grad = case.tensor(*p.shape)
    model.bias.requires_grad_(False)
    return model


@claim("module.zero-grad.scope")
@pytest.mark.parametrize("options", [{}, {"set_to_none": True}, {"set_to_none": False}], ids=str)
def test_zero_grad_clears_the_whole_module(case, options):
    model, other = with_gradients(case), with_gradients(case)
    other.scale = model.bias
    with case.unchanged(other.first), case.unchanged(model, but={f"{name}.grad" for name in PARAMETERS}):
        model.zero_grad(**options)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    with case.unchanged(model, but=()), case.unchanged(other, but={"first.0.weight.grad"}):
        other.first[0].zero_grad()


@claim("module.zero-grad.none-or-zeros")
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_sets_none_or_zeros(case, set_to_none):
    model = with_gradients(case)
    x = case.tensor(3, requires_grad=True)
    (grad,) = torch.autograd.grad((x * model.scale).pow(2).sum(), model.scale, create_graph=True)
    model.scale.grad = grad
    held = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=set_to_none)
    for name, p in model.named_parameters():
        assert (p.grad is None) is set_to_none
        if not set_to_none:
            assert not p.grad.any()
            assert p.grad.grad_fn is None
            assert p.grad is held[name]


@claim("module.zero-grad.default-none", "module.zero-grad.default-zeros")
def test_zero_grad_by_default(case):
    model = with_gradients(case)
    model.zero_grad()
    none = since("2.0")
    assert all((p.grad is None) is none for p in model.parameters())
    assert none or not any(p.grad.any() for p in model.parameters())


# -- Containers ----------------------------------------------------------------------------------------------------


def layers(count):
    return [nn.Linear(i + 1, i + 2) for i in range(count)]


@claim("module.containers.sequential")
def test_sequential_chains(case):
    a, b, c, d = layers(4)
    model, x = nn.Sequential(OrderedDict(x=a, y=b)).to(case.device, case.dtype), case.tensor(3, 1)
    case.same(model(x), b(a(x)))
    assert model.x is a
    assert list(nn.Sequential(a, b, c)) == [a, b, c]
    model = nn.Sequential(a, b)
    assert model.append(c) is model
    assert model.insert(1, d) is model
    assert model.extend([d]) is model
    assert list(model) == [a, d, b, c, d]
    assert list(model._modules) == list("01234")
    assert len(model) == 5
    assert model[-1] is d
    assert model[1] is d
    assert list(model[1:3]) == [d, b]
    assert type(model[::2]) is nn.Sequential
    assert list(model[::2]) == [a, b, d]
    model[-2] = a
    del model[1]
    assert list(model) == [a, b, a, d]
    assert list(model._modules) == list("0123")
    assert model[-4] is a
    for index in (4, -5):
        with case.raises(IndexError, "out of range"):
            model[index]
        with case.raises((IndexError, AssertionError), "out of range"):
            model.insert(index + index // 4, a)
    model.insert(-4, c).insert(5, b).insert(0, d)
    assert list(model) == [d, c, a, b, a, d, b]
    with case.raises((TypeError, AssertionError), "module"):
        model.insert(0, case.tensor(1))


@claim("module.containers.sequential")
def test_sequential_slices_can_go(case):
    a, b, c, d = layers(4)
    model = nn.Sequential(a, b, c, d)
    del model[1:3]
    assert list(model) == [a, d]
    assert list(model._modules) == ["0", "1"]
    if hasattr(model, "pop"):
        assert model.pop(0) is a
        assert list(model._modules) == ["0"]
        assert model[0] is d
    case.same(nn.Sequential()(x := case.tensor(2)), x)


@claim("module.containers.sequential-sum")
def test_sequentials_add_and_multiply(case):
    a, b, c = layers(3)
    first, second = nn.Sequential(a, b), nn.Sequential(c)
    assert list(first + second) == [a, b, c]
    assert list(first) == [a, b]
    assert list(second * 3) == [c, c, c]
    assert list(second * 1) == [c]
    assert list(2 * first) == [a, b, a, b]
    assert list((second * 3)._modules) == list("012")
    assert len(second) == 1
    first += second
    assert list(first) == [a, b, c]
    first *= 3
    assert list(first) == [a, b, c] * 3
    assert list(first._modules) == list("012345678")
    for factor, error in ((0, ValueError), (1.5, TypeError)):
        with case.raises(error, "non-positive|unsupported operand"):
            first * factor
        with case.raises(error, "non-positive|unsupported operand"):
            first *= factor
    for add in (first.__add__, first.__iadd__):
        with case.raises((TypeError, ValueError), "Sequential|unsupported operand"):
            add([a])


@claim("module.containers.sequential-with-gaps")
def test_append_replaces_nothing_where_names_have_gaps(case):
    first, second, third = layers(3)
    model = nn.Sequential(OrderedDict([("0", first), ("2", second)]))
    assert list(model.append(third)) == [first, second, third]


@claim("module.containers.sequential-by-itself")
@pytest.mark.parametrize("how", ["extend", "__iadd__"])
def test_a_sequential_can_be_extended_by_itself(case, how):
    first, second = layers(2)
    model = nn.Sequential(first, second)
    assert list(getattr(model, how)(model)) == [first, second, first, second]


@claim("module.containers.module-list")
def test_module_list_is_a_list(case):
    a, b, c, d = layers(4)
    model = nn.ModuleList([a, b])
    assert model.append(c) is model
    assert model.extend([d]) is model
    model.insert(1, d)
    assert list(model) == [a, d, b, c, d]
    assert list(model._modules) == list("01234")
    assert model[-1] is d
    assert type(model[1:3]) is nn.ModuleList
    assert list(model[1:3]) == [d, b]
    assert model.pop(1) is d
    assert len(model) == 4
    model[-1] = a
    del model[1:2]
    assert list(model) == [a, c, a]
    assert list(model._modules) == list("012")
    assert a in model
    if hasattr(nn.ModuleList, "__add__"):
        assert [*model, b] == [a, c, a, b]
        assert len(model) == 3
    model += [b]
    assert list(model) == [a, c, a, b]
    assert named(model.named_children()) == ["0", "1", "3"]
    with case.raises(IndexError, "out of range"):
        model[4]
    with case.raises(NotImplementedError, "forward"):
        model(case.tensor(1))
    with case.raises(TypeError, "iterable"):
        model.extend(3)


@claim("module.containers.module-dict")
def test_module_dict_is_a_dict(case):
    a, b, c, d, e = layers(5)
    model = nn.ModuleDict({"z": a, "b": b})
    model["a"] = c
    assert list(model) == list(model.keys()) == named(model.named_children()) == ["z", "b", "a"]
    assert list(model.values()) == [a, b, c]
    assert next(iter(model.items())) == ("z", a)
    model.update([("y", d), ("z", d)])
    model.update({"x": a, "c": e})
    assert list(model.items()) == [("z", d), ("b", b), ("a", c), ("y", d), ("x", a), ("c", e)]
    assert "a" in model
    assert model.pop("a") is c
    assert "a" not in model
    assert len(model) == 5
    del model["z"]
    assert named(nn.ModuleDict(model).named_children()) == ["b", "y", "x", "c"]
    model.clear()
    assert len(model) == 0
    with case.raises(KeyError, "nowhere"):
        model["nowhere"]
    refuses_bad_updates(case, model)


def refuses_bad_updates(case, model):
    for bad, error, words in ((3, TypeError, "iterable.*int"), ([3], TypeError, "#0.*int"),
                              ([("k",)], ValueError, "#0 has length 1")):  # fmt: skip
        with case.raises(error, words):
            model.update(bad)


@claim("module.containers.parameter-list")
def test_parameter_list_is_a_list(case):
    p, q = nn.Parameter(case.tensor(2)), nn.Parameter(case.tensor(3))
    model = nn.ParameterList([p, case.tensor(4)])
    assert model.append(q) is model
    assert model.extend(["text", case.tensor(1)]) is model
    assert named(model.named_parameters()) == ["0", "1", "2", "4"]
    assert len(model) == 5
    assert model[0] is p
    assert model[-3] is q
    assert model[3] == "text"
    assert isinstance(model[1], nn.Parameter)
    model[1] = q
    assert model[1] is q
    assert [x is y for x, y in zip(model[:2], [p, q], strict=True)] == [True, True]
    model += [p]
    assert model[5] is p
    assert list(model.state_dict()) == ["0", "1", "2", "4", "5"]
    assert model[-6] is p
    for index in (6, -7):
        with case.raises(IndexError, "out of range"):
            model[index]
    with case.raises(TypeError, "ParameterList|iterable"):
        model.extend(3)


@claim("module.containers.parameter-dict")
def test_parameter_dict_is_a_dict(case):
    p = nn.Parameter(case.tensor(2))
    model = nn.ParameterDict({"z": p, "b": case.tensor(3), "a": case.tensor(1)})
    assert list(model.keys()) == ["a", "b", "z"]
    assert model["z"] is p
    assert isinstance(model["b"], nn.Parameter)
    model = nn.ParameterDict(OrderedDict(z=p, b=case.tensor(3)))
    model["a"], model["note"] = case.tensor(1), "text"
    assert list(model) == ["z", "b", "a", "note"]
    assert named(model.named_parameters()) == ["z", "b", "a"]
    assert "b" in model
    assert model.pop("b").shape == (3,)
    assert "b" not in model
    assert len(model) == 3
    del model["note"]
    assert model.setdefault("z", 1) is p
    assert model.get("nowhere") is None
    assert model.get("z") is p
    assert [k for k, _ in model.items()] == ["z", "a"]
    assert next(iter(model.values())) is p
    model.update({"y": case.tensor(1), "c": case.tensor(1)})
    assert list(model) == ["z", "a", "c", "y"]
    model.update([("x", q := nn.Parameter(case.tensor(1))), ["c", q]])
    assert list(model) == ["z", "a", "c", "y", "x"]
    assert model["c"] is model["x"] is q
    refuses_bad_updates(case, model)
    assert list(reversed(model)) == ["x", "y", "c", "a", "z"]
    assert list(model.copy()) == list(model)
    both = model | nn.ParameterDict({"new": q, "z": q})
    assert list(both) == [*model, "new"]
    assert both["z"] is q
    assert model["z"] is p
    both |= nn.ParameterDict({"newer": p})
    assert list(both) == [*model, "new", "newer"]
    assert (nn.ParameterDict({"z": q}) | model)["z"] is p
    assert ({"z": q} | model)["z"] is p
    count, (key, value) = len(both), both.popitem()
    assert (key, value is p, len(both), key in both) == ("newer", True, count - 1, False)
    assert list(model.fromkeys(["u", "v"], p).values()) == [p, p]
    with case.raises(RuntimeError, "not be called"):
        model(1)
    model.clear()
    assert len(model) == 0
    assert not list(model.parameters())


@claim("module.copy.deep")
def test_deep_copies_share_nothing(case):
    model = with_gradients(case)
    model.last.eval()
    twin = copy.deepcopy(model)
    assert twin.last.weight is twin.scale
    assert twin.again is twin.first[1]
    assert not twin.last.training
    pairs = zip([*model.parameters(), *model.buffers()], [*twin.parameters(), *twin.buffers()], strict=True)
    for old, new in pairs:
        assert old is not new
        assert old.data_ptr() != new.data_ptr()
        assert old.requires_grad is new.requires_grad
        case.same(new, old)
    fast = nn.Parameter(case.tensor(2, 3, 4, 5).to(memory_format=torch.channels_last))
    assert copy.deepcopy(fast).stride() == fast.stride()
    with case.unchanged(model), torch.no_grad():
        twin.scale.add_(1)
        twin.register_parameter("new", None)


# -- functional_call -----------------------------------------------------------------------------------------------


def functional_call(*args, **kwargs):
    return torch.func.functional_call(*args, **kwargs)


def small(case):
    return case.module(nn.Sequential, nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))


@claim("module.functional-call.replaces")
def test_functional_call_replaces_for_one_call(case):
    model, other, x = small(case).eval(), small(case).eval(), case.tensor(3, 5)
    given = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters() if name != "0.bias"}
    with case.unchanged(model):
        y = functional_call(model, {**given, **dict(other.named_buffers())}, (x,))
    with torch.no_grad():
        other[0].bias.copy_(model[0].bias)
    case.same(y, other(x))
    y.sum().backward()
    assert all(p.grad is not None for p in given.values())
    assert model[0].bias.grad.any()
    assert model[0].weight.grad is None


@claim("module.functional-call.replaces")
def test_functional_call_restores_after_an_error(case):
    model = small(case)
    parameters = [id(p) for p in model.parameters()]
    with case.unchanged(model), case.raises(RuntimeError, "shape|size"):
        functional_call(model, {"0.weight": case.tensor(4, 5)}, case.tensor(3, 7))
    assert [id(p) for p in model.parameters()] == parameters
    assert functional_call(model.eval(), {}, args=case.tensor(3, 5)).shape == (3, 2)
    with case.raises(ValueError, "distinct|two|multiple|appear"):
        functional_call(model, ({"0.bias": case.tensor(4)}, {"0.bias": case.tensor(4)}), case.tensor(3, 5))


@claim("module.functional-call.buffers")
def test_functional_call_updates_the_given_buffers(case):
    model, x = small(case), case.tensor(3, 5)
    given = {name: b.clone() for name, b in model.named_buffers()}
    with case.unchanged(model):
        functional_call(model, given, (x,))
    model(x)
    for name, b in model.named_buffers():
        case.same(given[name], b)


class TiedPair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3))
        self.b = self.a

    def forward(self, x, shift=0.0):
        return x + self.a + 2 * self.b + shift


@claim("module.functional-call.tied")
def test_functional_call_respects_ties(case):
    model, x, new = case.module(TiedPair), case.tensor(3), case.tensor(3)
    for name in ("a", "b"):
        case.same(functional_call(model, {name: new}, x), x + new + 2 * new)
    case.same(functional_call(model, {"b": new}, x, tie_weights=False), x + model.a + 2 * new)
    case.same(functional_call(model, {"a": new, "b": new}, x, kwargs={"shift": 1.5}), x + new + 2 * new + 1.5)
    with case.raises(ValueError, "tied"):
        functional_call(model, {"a": new, "b": new.clone()}, x)


@claim("module.functional-call.strict")
def test_functional_call_may_be_strict(case):
    model, x = small(case).eval(), case.tensor(3, 5)
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    case.same(functional_call(model, everything, x, strict=True), model(x))
    missing = {name: t for name, t in everything.items() if name != "0.bias"}
    case.same(functional_call(model, missing, x), model(x))
    with case.unchanged(model):
        with case.raises(RuntimeError, r"missing.*0\.bias"):
            functional_call(model, missing, x, strict=True)
        with case.raises(RuntimeError, "unexpected.*extra"):
            functional_call(model, {**everything, "extra": case.tensor(1)}, x, strict=True)


# -- Parametrizations ----------------------------------------------------------------------------------------------


class Exp(nn.Module):
    """Counts its calls, for the cache."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x.exp()

    def right_inverse(self, y):
        return y.log()


class Shift(nn.Module):
    def forward(self, x):
        return x * 3 + 1


class Halve(nn.Module):
    def forward(self, x):
        return x / 2

    def right_inverse(self, y):
        return y * 2


def linear(case, *parts):
    layer = case.module(nn.Linear, 5, 3)
    for part in parts:
        parametrize.register_parametrization(layer, "weight", part)
    return layer


@claim("module.parametrize.computed")
def test_a_parametrised_tensor_is_computed(case):
    layer = linear(case)
    weight = layer.weight
    parametrize.register_parametrization(layer, "weight", Shift())
    original = layer.parametrizations.weight.original
    assert original is weight
    assert "weight" not in dict(layer.named_parameters())
    case.same(layer.weight, original * 3 + 1)
    assert list(layer.state_dict()) == ["bias", "parametrizations.weight.original"]
    assert parametrize.is_parametrized(layer)
    assert parametrize.is_parametrized(layer, "weight")
    assert not parametrize.is_parametrized(layer, "bias")
    assert not parametrize.is_parametrized(nn.Linear(2, 2))
    gradient, x = case.tensor(3, 5), case.tensor(2, 5)
    layer.weight.backward(gradient)
    case.same(original.grad, gradient * 3)
    case.same(layer(x), nn.functional.linear(x, original * 3 + 1, layer.bias))
    with case.raises(KeyError, "already exists|parametriz"):
        layer.register_parameter("weight", nn.Parameter(gradient))


@claim("module.parametrize.computed")
def test_buffers_can_be_parametrised(case):
    layer = case.module(Leaf)
    before = layer.seen.clone()
    parametrize.register_parametrization(layer, "seen", Shift())
    case.same(layer.seen, before * 3 + 1)
    assert named(layer.named_buffers()) == ["parametrizations.seen.original"]


@claim("module.parametrize.chain")
def test_parametrizations_chain(case):
    layer = linear(case, Shift(), Halve())
    original = layer.parametrizations.weight.original
    case.same(layer.weight, (original * 3 + 1) / 2)
    assert len(layer.parametrizations.weight) == 2


@claim("module.parametrize.assignment")
def test_assignment_goes_through_the_right_inverse(case):
    layer, wanted = linear(case, Exp(), Halve()), case.tensor_of(case.rng.uniform(0.5, 2, (3, 5)))
    layer.weight = wanted
    original = layer.parametrizations.weight.original
    case.close(original, np.log(2 * array(wanted)), k=2, scale=1)  # the logarithm of at most 4
    assert isinstance(original, nn.Parameter)
    assert original.requires_grad
    with case.raises((RuntimeError, NotImplementedError), "right_inverse"):
        linear(case, Shift()).weight = wanted


@claim("module.parametrize.cached")
def test_the_cache_holds_within_its_block(case):
    part = Exp()
    layer = linear(case, part)
    part.calls = 0
    assert layer.weight is not layer.weight
    assert part.calls == 2
    with parametrize.cached():
        first = layer.weight
        with parametrize.cached():
            assert layer.weight is first
        assert layer.weight is first
        assert part.calls == 3
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(1)
    with parametrize.cached():
        assert not torch.equal(layer.weight, first)
        assert part.calls == 4
    assert layer.weight is not layer.weight


@claim("module.parametrize.removal")
@pytest.mark.parametrize("leave", [True, False])
def test_removal_leaves_a_plain_parameter(case, leave):
    layer = linear(case, Shift())
    original, computed = layer.parametrizations.weight.original.detach().clone(), layer.weight.detach().clone()
    assert parametrize.remove_parametrizations(layer, "weight", leave_parametrized=leave) is layer
    assert type(layer) is nn.Linear
    assert type(layer.weight) is nn.Parameter
    assert layer.weight.requires_grad
    case.same(layer.weight.detach(), computed if leave else original)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert not hasattr(layer, "parametrizations")
    with case.raises(ValueError, "parametriz"):
        parametrize.remove_parametrizations(layer, "weight")


class Wider(nn.Module):
    def forward(self, x):
        return torch.cat([x, x])


class Upcast(nn.Module):
    def forward(self, x):
        return x.to(torch.complex64)


@claim("module.parametrize.checked")
def test_parametrizations_are_checked(case):
    layer = case.module(nn.Linear, 5, 3)
    for part, words in [(Wider(), "shape"), (Upcast(), "dtype")]:
        with case.raises(ValueError, words):
            parametrize.register_parametrization(layer, "weight", part)
        assert layer.weight.shape == (3, 5)
        assert layer(case.tensor(2, 5)).shape == (2, 3)
    with case.raises(ValueError, "nowhere.*does not have a parameter, a buffer|nowhere"):
        parametrize.register_parametrization(layer, "nowhere", Shift())
    parametrize.register_parametrization(layer, "bias", Wider(), unsafe=True)
    assert layer.bias.shape == (6,)


@claim("module.parametrize.mode-of-host")
@pytest.mark.parametrize("mode", [True, False])
def test_parametrizations_take_the_mode_of_their_host(case, mode):
    layer = case.module(nn.Linear, 5, 3).train(mode)
    parametrize.register_parametrization(layer, "weight", part := Shift().train(not mode))
    assert part.training is mode
    layer.train(not mode)
    assert part.training is not mode


DIRECTIONS = {0: (1, 2), 1: (0, 2), 2: (0, 1), None: (0, 1, 2)}


def weight_normed(case, dim):
    layer = case.module(nn.Conv1d, 3, 5, 4)
    weight = layer.weight.detach().clone()
    parametrizations.weight_norm(layer, dim=dim)
    return layer, weight, layer.parametrizations.weight.original0, layer.parametrizations.weight.original1


@claim("module.weight-norm.formula")
@axes(dtype=FLOATING, via="eager")
@pytest.mark.parametrize("dim", DIRECTIONS)
def test_weight_norm_splits_length_and_direction(case, dim):
    layer, weight, g, v = weight_normed(case, dim)
    terms = weight.numel() // g.numel()
    lengths = tuple(size if axis == dim else 1 for axis, size in enumerate(weight.shape))
    assert g.shape == (lengths if dim is not None else ())
    case.close(layer.weight, array(weight), k=terms / 2 + 3)  # the sum of squares under a root, root, quotient, product
    with torch.no_grad():
        g.copy_(case.tensor(*g.shape))
    case.close(layer.weight, reference.weight_norm(array(g), array(v), DIRECTIONS[dim]), k=terms / 2 + 3)


@claim("module.weight-norm.gradient")
@axes(dtype=("float32", "float64"), via="eager")
@pytest.mark.parametrize("dim", DIRECTIONS)
def test_weight_norm_gradients(case, dim):
    layer, _, g, v = weight_normed(case, dim)
    gradient = case.tensor(*v.shape)
    layer.weight.backward(gradient)
    wanted = reference.weight_norm_gradients(array(gradient), array(g), array(v), DIRECTIONS[dim])
    sizes = reference.weight_norm_gradients(abs(array(gradient)), abs(array(g)), abs(array(v)), DIRECTIONS[dim])
    terms = v.numel() // g.numel()
    case.close(
        g.grad, wanted[0].reshape(g.shape), k=1.5 * terms + 3, scale=sizes[0].reshape(g.shape)
    )  # the sum of products, and that of the norm
    length = np.sqrt((array(v) ** 2).sum(DIRECTIONS[dim], keepdims=True))
    scale = abs(array(g)) / length * (abs(array(gradient)) + abs(array(v)) / length * sizes[0])
    case.close(v.grad, wanted[1], k=2.5 * terms + 8, scale=scale)  # that sum, and the norm to the third power


@claim("module.weight-norm.last-dimension")
def test_weight_norm_takes_the_last_dimension(case):
    layer = parametrizations.weight_norm(nn.Linear(3, 5), dim=-1)
    assert layer.parametrizations.weight.original0.shape == (1, 3)


@claim("module.containers.parameter-dict-missing")
@pytest.mark.parametrize("key", ["absent", "training"])
def test_a_parameter_dict_does_not_know_other_keys(case, key):
    model = nn.ParameterDict({"a": case.tensor(1)})
    assert key not in model
    with case.raises(KeyError, key):
        model[key]


@claim("module.list.insert-negative")
def test_a_module_list_inserts_before_a_negative_index(case):
    first, second, new = nn.ReLU(), nn.Tanh(), nn.Sigmoid()
    modules = nn.ModuleList([first, second])
    modules.insert(-1, new)
    assert list(modules) == [first, new, second]


@claim("module.list.insert-beyond")
def test_a_module_list_inserts_beyond_its_end(case):
    first, second, new = nn.ReLU(), nn.Tanh(), nn.Sigmoid()
    modules = nn.ModuleList([first, second])
    modules.insert(7, new)
    assert modules[2] is new, "no third module"
    assert list(modules._modules) == ["0", "1", "2"]


@claim("module.list.extended-by-itself")
def test_a_module_list_can_be_extended_by_itself(case):
    first, second = nn.ReLU(), nn.Tanh()
    modules = nn.ModuleList([first, second])
    modules.extend(modules)
    assert list(modules) == [first, second, first, second]


def spectral_normed(case, iterations=1, mode=False):
    layer = parametrizations.spectral_norm(case.module(nn.Linear, 5, 3), n_power_iterations=iterations).train(mode)
    part = layer.parametrizations.weight[0]
    with torch.no_grad():
        part._v.copy_(nn.functional.normalize(case.tensor(5), dim=0))
        part._u.copy_(nn.functional.normalize(array_product(layer, part), dim=0))
    return layer, part, layer.parametrizations.weight.original


def array_product(layer, part):
    return layer.parametrizations.weight.original @ part._v


@claim("module.spectral-norm.formula")
@axes(dtype=("float32", "float64"), via="eager")
def test_spectral_norm_divides_by_the_estimate(case):
    layer, part, original = spectral_normed(case)
    w, u, v = array(original), array(part._u), array(part._v)
    sizes = abs(u) @ abs(w) @ abs(v) / (u @ w @ v)
    case.close(
        layer.weight, reference.spectral_norm(w, u, v), k=10, scale=abs(w) / (u @ w @ v) * sizes
    )  # sums of 5 and 3


@claim("module.spectral-norm.iterates-in-training")
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("grad", [True, False])
def test_spectral_norm_iterates_in_training(case, iterations, grad):
    layer, part, original = spectral_normed(case, iterations, mode=True)
    u, v = reference.power_iteration(array(original), array(part._v), iterations)
    with torch.set_grad_enabled(grad):
        layer(case.tensor(2, 5))
    gap = np.linalg.norm(array(original), 2) / np.linalg.norm(array(original) @ v)
    case.close(part._u, u, k=20 * iterations, scale=gap**2)  # two normalised sums of 5 terms an iteration
    case.close(part._v, v, k=20 * iterations, scale=gap**2)
    with torch.set_grad_enabled(grad), case.unchanged(layer.eval()):
        layer(case.tensor(2, 5))


@claim("module.spectral-norm.gradient")
@axes(dtype=("float32", "float64"), via="eager")
def test_spectral_norm_gradient(case):
    layer, part, original = spectral_normed(case)
    gradient = case.tensor(3, 5)
    layer.weight.backward(gradient)
    w, u, v, given = array(original), array(part._u), array(part._v), array(gradient)
    sigma = u @ w @ v
    sizes = abs(u) @ abs(w) @ abs(v) / sigma
    scale = (abs(given) + (abs(given) * abs(w)).sum() / sigma * abs(np.outer(u, v))) / sigma * sizes
    case.close(
        original.grad, reference.spectral_norm_gradient(given, w, u, v), k=40, scale=scale
    )  # 15 terms, twice sigma


# -- settings ----------------------------------------------------------------------------------------------------------

INPLACE = {"inplace": (False, True)}
MEAN = {"reduction": ("mean", "sum")}
RUNNING = {"eps": (1e-5, 0.1), "momentum": (0.1, 0.3), "affine": (True, False), "track_running_stats": (True, False)}
INSTANCE = RUNNING | {"affine": (False, True), "track_running_stats": (False, True)}
LAYERS = {
    "num_layers": (1, 2), "bias": (True, False), "batch_first": (False, True), "dropout": (0.0, 0.3),
    "bidirectional": (False, True),
}  # fmt: skip
BIAS = {"bias": (True, False)}
SIZES = {"input_size": 5, "hidden_size": 4}
# what must be given, and each option with its default and something else
SETTINGS = {
    "Linear": ({"in_features": 5, "out_features": 3}, BIAS),
    "Bilinear": ({"in1_features": 5, "in2_features": 4, "out_features": 3}, BIAS),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"), ({"num_features": 4}, RUNNING)),
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), ({"num_features": 4}, INSTANCE)),
    "GroupNorm": ({"num_groups": 2, "num_channels": 4}, {"eps": (1e-5, 0.1), "affine": (True, False)}),
    "LayerNorm": ({"normalized_shape": (4,)}, {"eps": (1e-5, 0.1), "elementwise_affine": (True, False)}),
    "RMSNorm": ({"normalized_shape": (4,)}, {"eps": (None, 0.1), "elementwise_affine": (True, False)}),
    "LocalResponseNorm": ({"size": 3}, {"alpha": (1e-4, 0.2), "beta": (0.75, 0.3), "k": (1.0, 2.0)}),
    "CrossMapLRN2d": ({"size": 3}, {"alpha": (1e-4, 0.2), "beta": (0.75, 0.3), "k": (1, 2)}),
    **dict.fromkeys(
        ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"),
        ({}, {"p": (0.5, 0.3)} | INPLACE),
    ),
    "RNN": (SIZES, LAYERS | {"nonlinearity": ("tanh", "relu")}),
    "LSTM": (SIZES, LAYERS | {"proj_size": (0, 2)}),
    "GRU": (SIZES, LAYERS),
    "RNNCell": (SIZES, BIAS | {"nonlinearity": ("tanh", "relu")}),
    "LSTMCell": (SIZES, BIAS),
    "GRUCell": (SIZES, BIAS),
    "MultiheadAttention": ({"embed_dim": 6, "num_heads": 3}, {"dropout": (0.0, 0.3), "batch_first": (False, True)}),
    **dict.fromkeys(("ReLU", "ReLU6", "SELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid"), ({}, INPLACE)),
    **dict.fromkeys(("ELU", "CELU"), ({}, {"alpha": (1.0, 0.7)} | INPLACE)),
    "LeakyReLU": ({}, {"negative_slope": (0.01, 0.2)} | INPLACE),
    "RReLU": ({}, {"lower": (1 / 8, 0.2), "upper": (1 / 3, 0.7)} | INPLACE),
    "Threshold": ({"threshold": 0.5, "value": 2.0}, INPLACE),
    "Hardtanh": ({}, {"min_val": (-1.0, -2.0), "max_val": (1.0, 3.0)} | INPLACE),
    **dict.fromkeys(("Hardshrink", "Softshrink"), ({}, {"lambd": (0.5, 0.2)})),
    "Softplus": ({}, {"beta": (1, 2.0), "threshold": (20, 3.0)}),
    "GELU": ({}, {"approximate": ("none", "tanh")}),
    "GLU": ({}, {"dim": (-1, 1)}),
    "PReLU": ({}, {"num_parameters": (1, 3)}),
    **dict.fromkeys(("Softmin", "Softmax", "LogSoftmax"), ({}, {"dim": (None, 1)})),
    "Flatten": ({}, {"start_dim": (1, 0), "end_dim": (-1, 2)}),
    "CosineSimilarity": ({}, {"dim": (1, 0), "eps": (1e-8, 0.1)}),
    **dict.fromkeys(
        ("L1Loss", "MSELoss", "BCELoss", "BCEWithLogitsLoss", "SoftMarginLoss", "MultiLabelMarginLoss",
         "MultiLabelSoftMarginLoss"), ({}, MEAN)),
    "SmoothL1Loss": ({}, MEAN | {"beta": (1.0, 0.3)}),
    "HuberLoss": ({}, MEAN | {"delta": (1.0, 0.3)}),
    "NLLLoss": ({}, MEAN | {"ignore_index": (-100, 1)}),
    "CrossEntropyLoss": ({}, MEAN | {"ignore_index": (-100, 1), "label_smoothing": (0.0, 0.3)}),
    "PoissonNLLLoss": ({}, MEAN | {"log_input": (True, False), "full": (False, True), "eps": (1e-8, 0.1)}),
    "GaussianNLLLoss": ({}, MEAN | {"full": (False, True), "eps": (1e-6, 0.1)}),
    "KLDivLoss": ({}, MEAN | {"log_target": (False, True)}),
    "HingeEmbeddingLoss": ({}, MEAN | {"margin": (1.0, 0.3)}),
    **dict.fromkeys(("CosineEmbeddingLoss", "MarginRankingLoss"), ({}, MEAN | {"margin": (0.0, 0.3)})),
    "MultiMarginLoss": ({}, MEAN | {"p": (1, 2), "margin": (1.0, 0.3)}),
    "TripletMarginLoss": (
        {}, MEAN | {"margin": (1.0, 0.3), "p": (2.0, 3.0), "eps": (1e-6, 0.1), "swap": (False, True)}),
    "TripletMarginWithDistanceLoss": ({}, MEAN | {"margin": (1.0, 0.3), "swap": (False, True)}),
    "CTCLoss": ({}, MEAN | {"blank": (0, 1), "zero_infinity": (False, True)}),
}  # fmt: skip


@claim("module.settings.kept")
def test_layers_keep_what_they_were_made_with(case):
    for name in SETTINGS.keys() & vars(nn).keys():
        required, options = SETTINGS[name]
        for chosen in (0, 1):
            wanted = {option: values[chosen] for option, values in options.items()}
            layer = getattr(nn, name)(*required.values(), **(wanted if chosen else {}))
            for option, value in {**required, **wanted}.items():
                found = getattr(layer, option, "missing")
                if isinstance(found, nn.Parameter) or (option == "bias" and found is None):
                    found = found is not None
                assert found == value, f"{name}: {option} is {found!r}, not {value!r}"


ACTIVATIONS = {
    "ReLU": {}, "ReLU6": {}, "SiLU": {}, "Mish": {}, "ELU": {"alpha": 0.7}, "CELU": {"alpha": 0.7}, "SELU": {},
    "LeakyReLU": {"negative_slope": 0.3}, "Threshold": {"threshold": 0.2, "value": 0.5}, "Hardtanh": {"min_val": -0.4},
    "RReLU": {"lower": 0.2, "upper": 0.2}, "Hardsigmoid": {}, "Hardswish": {},
}  # fmt: skip


@claim("module.activation.in-place")
def test_activations_in_place_change_their_input(case):
    for name, options in ACTIVATIONS.items():
        cls, x = getattr(nn, name), case.tensor(33)
        before, wanted = x.clone(), cls(**options)(x)
        case.same(x, before)
        y = cls(**options, inplace=True)(x)
        assert y is x, f"{name} makes a new tensor"
        case.same(y, wanted)
        assert not torch.equal(wanted, before), name


@claim("module.activation.softmax-dim")
def test_softmax_chooses_its_dimension_with_a_warning(case):
    for shape, dim in (((), 0), ((3,), 0), ((3, 4), 1), ((3, 4, 5), 0), ((2, 3, 4, 5), 1)):
        x = case.tensor(*shape)
        for name in ("Softmax", "LogSoftmax", "Softmin"):
            made = getattr(nn, name)()
            old = type(made).__new__(type(made))
            old.__setstate__({key: value for key, value in vars(made).items() if key != "dim"})
            for each in (made, old):
                with pytest.warns(UserWarning, match="Implicit dimension choice"):
                    y = each(x)
                assert torch.equal(y, getattr(nn, name)(dim)(x)), f"{name} of {shape}"
    for shape in ((3, 4, 5), (2, 3, 4, 5)):
        x = case.tensor(*shape)
        case.same(nn.Softmax2d()(x), x.softmax(-3))
    for shape in ((3, 4), (1, 2, 3, 4, 5)):
        with case.raises((ValueError, AssertionError), "3D or 4D|2D or 3D|expected input"):
            nn.Softmax2d()(case.tensor(*shape))


@claim("module.register.own-parameter-class")
def test_a_parameter_is_of_no_class_that_it_was_not_made_of(case):
    class Own(nn.Parameter):
        pass

    parameter = nn.Parameter(case.tensor(2).as_subclass(type("Other", (torch.Tensor,), {})))
    assert isinstance(parameter, nn.Parameter)
    assert not isinstance(parameter, Own)
    assert isinstance(Own(case.tensor(2)), Own)


@claim("module.register.buffer-over-attribute")
def test_a_buffer_takes_the_place_of_an_attribute(case):
    module = nn.Module()
    module.table = None
    module.table = nn.Buffer(case.tensor(3))
    assert list(module.state_dict()) == ["table"]


@claim("module.register.uninitialized-complex")
@pytest.mark.filterwarnings("ignore:Complex modules", "ignore:Lazy modules")
def test_a_lazy_layer_of_complex_numbers_is_cast(case):
    assert nn.LazyLinear(3, dtype=torch.complex64).to(torch.complex128).weight.dtype == torch.complex128


@claim("module.register.uninitialized-pickled")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_is_pickled_with_its_dtype(case):
    assert pickle.loads(pickle.dumps(nn.LazyLinear(3, dtype=torch.float64))).weight.dtype == torch.float64


@claim("module.names.set-submodule-modules-alone")
def test_what_is_no_module_is_not_put_among_them(case):
    model = nn.Sequential(nn.ReLU())
    with case.raises((ValueError, TypeError), "not an nn.Module"):
        model.set_submodule("scale", 5)
    assert not hasattr(model, "scale")


@claim("module.containers.sequential-insert-among-names")
def test_inserting_among_names_of_ones_own(case):
    model = nn.Sequential(OrderedDict(first=nn.ReLU(), second=nn.Tanh()))
    model.insert(1, nn.Sigmoid())
    assert [type(module) for module in model] == [nn.ReLU, nn.Sigmoid, nn.Tanh]


@claim("module.activation.softmax-dim-is-a-number")
@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Softmin"])
def test_a_dimension_that_is_no_number_is_refused(case, name):
    with case.raises(TypeError, "dim"):
        getattr(nn, name)(dim="1")


@claim("module.functional-call.keywords-alone")
def test_a_module_may_be_called_with_keywords_alone(case):
    layer, x = case.module(nn.Linear, 3, 2), case.tensor(1, 3)
    found = torch.func.functional_call(layer, {"bias": 2 * layer.bias}, None, {"input": x})
    case.same(found, nn.functional.linear(x, layer.weight, 2 * layer.bias))


@claim("module.vector.length")
def test_a_vector_longer_than_the_parameters_is_refused(case):
    layer = case.module(nn.Linear, 2, 3)
    with case.raises((ValueError, RuntimeError), "size|length|elements|numel"):
        nn.utils.vector_to_parameters(case.tensor(10), layer.parameters())


@claim("module.lazy.buffers-copied")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_with_buffers_is_copied(case):
    layer = copy.deepcopy(nn.LazyBatchNorm1d(device=case.device))
    layer(case.tensor(3, 4))
    assert layer.running_mean.shape == (4,)


@claim("module.lazy.cast")
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("dtype", ["half", "bfloat16", "float", "double"])
def test_a_lazy_layer_is_cast_by_every_method(case, dtype):
    wanted = torch.float16 if dtype == "half" else getattr(torch, dtype)
    assert getattr(nn.LazyLinear(3), dtype)().weight.dtype == wanted


@claim("module.lazy.frozen")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_is_frozen_before_its_first_call(case):
    layer = nn.LazyLinear(3, device=case.device).requires_grad_(False)
    layer(case.tensor(2, 5))
    assert not layer.weight.requires_grad


@claim("module.lazy.emptied")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_is_moved_by_to_empty(case):
    layer = nn.LazyLinear(3, device="meta").to_empty(device=case.device)
    layer(case.tensor(2, 5))
    assert layer.weight.shape == (3, 5)


@claim("module.lazy.channels-loaded")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_convolution_reads_its_channels_from_what_it_loads(case):
    layer = nn.LazyConv2d(3, 3, device=case.device)
    layer.load_state_dict(nn.Conv2d(4, 3, 3, device=case.device).state_dict())
    layer(case.tensor(1, 4, 5, 5))
    assert layer.in_channels == 4


@claim("module.activation.elu-near-zero")
@axes(dtype="float32")
@pytest.mark.parametrize("name", ["ELU", "CELU", "SELU"])
def test_small_negative_numbers_keep_their_digits(case, name):
    x = case.tensor_of([-1e-9, -3e-8, -2e-6, -1e-3, -0.5, -5.0])
    factor = {"ELU": 1.0, "CELU": 1.0, "SELU": 1.6732632423543772 * 1.0507009873554805}[name]
    law = factor * np.expm1(array(x))
    case.close(getattr(nn, name)()(x), law, k=4, scale=abs(law))  # expm1 is good to two, and two products follow
