"""Sequential, ModuleList, ModuleDict, ParameterList, ParameterDict: they register what they hold."""

from collections import OrderedDict

import pytest
from torch import nn

from torch_conformance.marks import claim


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


@claim("module.containers.sequential-names-kept")
def test_a_deletion_leaves_names_as_they_are(case):
    a, b, c = layers(3)
    model = nn.Sequential(OrderedDict(x=a, y=b, z=c))
    del model[1]
    assert dict(model.named_children()) == {"x": a, "z": c}


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
    assert list(dict(model.named_children())) == ["0", "1", "3"]
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
    assert list(model) == list(model.keys()) == list(dict(model.named_children())) == ["z", "b", "a"]
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
    assert list(dict(nn.ModuleDict(model).named_children())) == ["b", "y", "x", "c"]
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
    assert list(dict(model.named_parameters())) == ["0", "1", "2", "4"]
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
    assert list(dict(model.named_parameters())) == ["z", "b", "a"]
    assert "b" in model
    assert model.pop("b").shape == (3,)
    assert "b" not in model
    assert len(model) == 3
    del model["note"]
    assert model.setdefault("z", 1) is p
    assert model.get("nowhere") is None
    assert model.get("nowhere", "else") == "else"
    assert model.get("z", "else") is p
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


@claim("module.containers.sequential-insert-among-names")
def test_inserting_among_names_of_ones_own(case):
    model = nn.Sequential(OrderedDict(first=nn.ReLU(), second=nn.Tanh()))
    model.insert(1, nn.Sigmoid())
    assert [type(module) for module in model] == [nn.ReLU, nn.Sigmoid, nn.Tanh]
