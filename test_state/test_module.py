"""nn.Module: what is registered, what it is called, how it is cast, copied and called with other parameters."""

import copy

import pytest
import torch
from torch import nn

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
    if since("2.11"):
        modules = [model, model.first, *model.first, model.again, model.last]
        assert list(model.modules(remove_duplicate=False)) == modules


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


@claim("module.cast.complex")
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_parameters_are_cast_to_complex(case):
    model = nn.ParameterList([torch.complex(case.tensor(3), case.tensor(3)), case.tensor(3)])
    kept = model[0].detach().clone()
    model.to(torch.complex128)
    assert [p.dtype for p in model] == [torch.complex128] * 2
    assert torch.equal(model[0], kept.to(torch.complex128))


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
    before = layer.weight.detach().clone()
    layer.to(torch.bfloat16, memory_format=torch.channels_last)
    case.same(layer.weight.detach(), before.bfloat16())
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


@claim("module.cast.to-empty-alone")
def test_to_empty_may_leave_the_children(case):
    meta = Tree().to("meta")
    meta.to_empty(device=case.device, recurse=False)
    own = {x.device.type for x in [*meta.parameters(recurse=False), *meta.buffers(recurse=False)]}
    assert own == {case.device.type}
    assert {x.device.type for x in [*meta.first.parameters(), *meta.first.buffers()]} == {"meta"}


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


@claim("module.names.set-submodule-modules-alone")
def test_what_is_no_module_is_not_put_among_them(case):
    model = nn.Sequential(nn.ReLU())
    with case.raises((ValueError, TypeError), "not an nn.Module"):
        model.set_submodule("scale", 5)
    assert not hasattr(model, "scale")


@claim("module.names.set-submodule-strict")
@pytest.mark.parametrize("parent", ["", "first."])
def test_strictly_set_submodules_replace_others(case, parent):
    model, new, newer = Tree(), nn.ReLU(), nn.Tanh()
    with case.raises(AttributeError, "no attribute `added`"), case.unchanged(model):
        model.set_submodule(f"{parent}added", new, strict=True)
    model.set_submodule(f"{parent}added", new)
    assert model.get_submodule(f"{parent}added") is new
    model.set_submodule(f"{parent}added", newer, strict=True)
    assert model.get_submodule(f"{parent}added") is newer
    model.get_submodule(parent[:-1]).number = 5
    for strict in (False, True):
        with case.raises(AttributeError, "`number` is not an nn.Module"):
            model.set_submodule(f"{parent}number", new, strict=strict)


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
