"""Function transforms and compilers: what they make of modes, buffers, random numbers and gradients."""

import importlib
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_conformance.axes import PRECISE
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim, since

pytestmark = axes(via="eager")  # transforms are the subject here, so no other way of executing is laid upon them
func = getattr(torch, "func", None)  # since torch 2.0


def fresh(case, layer):
    """Other values for each of its parameters and buffers."""
    other = {k: case.tensor(*v.shape) for k, v in layer.named_parameters()}
    return other | {k: torch.full_like(v, 2) for k, v in layer.named_buffers()}


@claim("transforms.functional-call.stateless")
@pytest.mark.parametrize("training", [True, False])
def test_functional_call_uses_what_it_is_given(case, training):
    layer, x = case.module(nn.BatchNorm1d, 3, eps=0.1).train(training), case.tensor(5, 3)
    given = fresh(case, layer)
    values = {k: v.clone() for k, v in given.items()}
    with case.unchanged(layer, x=x):
        y = func.functional_call(layer, given, (x,))
    stats = values["running_mean"], values["running_var"]
    case.same(y, F.batch_norm(x, *stats, values["weight"], values["bias"], training, eps=0.1))


@claim("transforms.functional-call.buffers-updated-in-the-dict")
def test_buffers_are_updated_in_the_dict(case):
    layer, x = case.module(nn.BatchNorm1d, 3, momentum=0.3), case.tensor(5, 3)
    given = fresh(case, layer)
    changed = {"mean": given["running_mean"], "var": given["running_var"], "count": given["num_batches_tracked"]}
    with case.unchanged(layer, x=x, **changed, but=set(changed)):
        func.functional_call(layer, given, x)
    wanted = 0.7 * 2 + 0.3 * array(x).mean(0)
    case.close(given["running_mean"], wanted, k=10, scale=2 + abs(array(x)).mean(0))  # 5 terms and 4 roundings more
    assert given["num_batches_tracked"] == 3


@claim("transforms.functional-call.gradients-reach-the-dict")
def test_gradients_reach_what_is_given(case):
    layer, x = case.module(nn.Linear, 4, 3), case.tensor(5, 4)
    weight = case.tensor(3, 4, requires_grad=True)
    y = func.functional_call(layer, {"weight": weight}, x)
    case.same(y, F.linear(x, weight, layer.bias))
    y.backward(seed := case.tensor(5, 3))
    case.close(weight.grad, array(seed).T @ array(x), k=5, scale=abs(array(seed)).T @ abs(array(x)))  # 5 terms
    assert layer.weight.grad is None
    case.close(layer.bias.grad, array(seed).sum(0), k=5, scale=abs(array(seed)).sum(0))


@claim("transforms.functional-call.gradients-reach-the-dict")
def test_shared_tensors_are_replaced_together(case):
    layer = case.module(nn.Sequential, nn.Linear(3, 3), nn.Linear(3, 3))
    layer[1].weight = layer[0].weight
    x, weight = case.tensor(2, 3), case.tensor(3, 3)
    y = func.functional_call(layer, {"0.weight": weight}, x)
    case.same(y, F.linear(F.linear(x, weight, layer[0].bias), weight, layer[1].bias))
    with case.raises(RuntimeError, "unexpected|missing|keys|not in"):
        func.functional_call(layer, {"0.wieght": weight}, x, strict=True)
    bias = case.tensor(3)
    case.same(func.functional_call(layer, ({"0.weight": weight}, {"0.bias": bias}), x), func.functional_call(
        layer, {"0.weight": weight, "0.bias": bias}, x))  # fmt: skip
    with case.raises(ValueError, "0.weight.*multiple"):
        func.functional_call(layer, [{"0.weight": weight}, {"0.weight": weight}], x)
    for bad in (3, [{"0.weight": weight}, 3]):
        with case.raises(ValueError, "dict"):
            func.functional_call(layer, bad, x)


@claim("transforms.functional-call.ties")
def test_ties_may_be_left_out_of_account(case):
    layer = case.module(nn.Sequential, nn.Linear(3, 3), nn.Linear(3, 3))
    layer[1].weight = layer[0].weight
    x, weight, other = case.tensor(2, 3), case.tensor(3, 3), case.tensor(3, 3)
    for given, second in (({}, layer[1].weight), ({"1.weight": other}, other)):
        y = func.functional_call(layer, {"0.weight": weight, **given}, x, tie_weights=False)
        case.same(y, F.linear(F.linear(x, weight, layer[0].bias), second, layer[1].bias))
    with case.raises(ValueError, "multiple values|tied"):
        func.functional_call(layer, {"0.weight": weight, "1.weight": other}, x)


@claim("transforms.functional-call.deprecated-name")
def test_the_old_name_warns_and_does_the_same(case):
    layer = case.module(nn.Bilinear, 3, 3, 3)
    layer.register_parameter("again", layer.bias)
    x, y, bias = case.tensor(2, 3), case.tensor(2, 3), case.tensor(3)

    def old(given, **options):
        with pytest.warns((FutureWarning, UserWarning), match="deprecated"):
            return nn.utils.stateless.functional_call(layer, given, (x,), {"input2": y}, **options)

    case.same(old({"again": bias}), F.bilinear(x, y, layer.weight, bias))
    case.same(old({"again": bias}, tie_weights=False), layer(x, y))
    with case.raises(RuntimeError, "(?i)missing key"):
        old({"bias": bias}, strict=True)


@claim("transforms.functional-call.parametrized")
@pytest.mark.parametrize(("name", "share"), [("weight", 1.0), ("parametrizations.weight.original", 0.5)])
def test_a_parametrized_weight_is_given_as_it_is_or_before(case, name, share):
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    layer, x, weight = case.module(nn.Linear, 4, 3), case.tensor(5, 4), case.tensor(3, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", Half())
    case.same(func.functional_call(layer, {name: weight}, x), F.linear(x, share * weight, layer.bias))


class Twice(nn.Module):
    """A layer that is reached by two names."""

    def __init__(self, layer):
        super().__init__()
        self.first = self.second = layer

    def forward(self, x):
        return self.second(self.first(x))


@claim("transforms.functional-call.shared-modules")
def test_a_module_of_two_names_keeps_its_own_parameters(case):
    model, x = case.module(lambda: Twice(nn.Linear(3, 3))), case.tensor(2, 3)
    weight, bias = case.tensor(3, 3), case.tensor(3)
    held = dict(model.first.named_parameters())
    y = func.functional_call(model, {"first.weight": weight, "first.bias": bias}, x)
    case.same(y, F.linear(F.linear(x, weight, bias), weight, bias))
    assert all(getattr(model.first, name) is own for name, own in held.items()), "the module has other parameters now"


@claim("transforms.vmap.randomness")
@pytest.mark.parametrize("how", ["error", "same", "different"])
def test_randomness_under_vmap(case, how):
    layer, x = case.module(nn.Dropout, 0.4), case.tensor_of(np.ones((4, 63)))
    kwargs = {} if how == "error" else {"randomness": how}
    if how == "error":
        with case.raises(RuntimeError, "randomness|random operation"):
            func.vmap(layer)(x)
        case.same(func.vmap(layer.eval())(x), x)
        return
    dropped = func.vmap(layer, **kwargs)(x) == 0
    for other in dropped[1:]:
        assert torch.equal(dropped[0], other) == (how == "same")
    case.binomial(dropped[0].sum(), 63, 0.4)
    if how == "different":
        case.binomial((dropped[0::2] & dropped[1::2]).sum(), 126, 0.16)


@claim("transforms.vmap.equals-loop")
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_vmap_equals_the_loop(case, chunk):
    if chunk and not hasattr(torch, "compiler"):
        raise case.unsupported("chunk_size came with torch 2.1")
    layer, x = case.module(nn.Linear, 4, 3), case.tensor(4, 5)
    kwargs = {"chunk_size": chunk} if chunk else {}
    y = func.vmap(layer, in_dims=1, out_dims=1, **kwargs)(x)
    assert y.shape == (3, 5)
    wanted = array(layer.weight) @ array(x) + array(layer.bias)[:, None]
    size = abs(array(layer.weight)) @ abs(array(x)) + abs(array(layer.bias))[:, None]
    case.close(y, wanted, k=5, scale=size)  # four products and the bias
    added = func.vmap(lambda a, b: (a + b, a), in_dims=(0, None), out_dims=(0, 1))(x, x[0])
    case.same(added[0], x + x[0])
    case.same(added[1], x.T.contiguous())


@claim("transforms.vmap.chunk-size")
def test_no_more_entries_at_once_than_chunk_size(case):
    x, sizes = case.tensor(3, 5), []

    def entry(column):
        sizes.append(torch._C._functorch.get_unwrapped(column).shape[1])
        return 2 * column

    case.same(func.vmap(entry, in_dims=1, out_dims=1, chunk_size=2)(x), 2 * x)
    assert sizes == [2, 2, 1]


@claim("transforms.vmap.shared-by-chunks")
def test_chunks_hand_a_common_output_out_once(case):
    x, common = case.tensor(5, 3), case.tensor(2)
    doubled, found = func.vmap(lambda x: (2 * x, common), out_dims=(0, None), chunk_size=2)(x)
    case.same(doubled, 2 * x)
    case.same(found, common)


@claim("transforms.vmap.equals-loop")
def test_vmap_takes_dimensions_from_either_end(case):
    x = case.tensor(2, 3, 4)
    for dim in range(3):
        case.same(func.vmap(torch.sum, in_dims=dim - 3)(x), func.vmap(torch.sum, in_dims=dim)(x))
    case.same(func.vmap(lambda x: x, in_dims=1, out_dims=-1)(x), x.movedim(1, -1).contiguous())
    a, b = func.vmap(lambda d, k: (d["a"] * k, d["b"]), in_dims=({"a": 1, "b": None}, None), out_dims=(1, None))(
        {"a": x, "b": 5}, 3.0)  # fmt: skip
    case.same(a, x * 3)
    assert b == 5
    for bad, words in ((3, "in_dim=3"), (-4, "in_dim=-4"), ((0, 0), "structure"), ("text", "expected `in_dims`|int"),
                       ({0: 1}, "expected `in_dims`|structure"), ((None,), "at least one")):  # fmt: skip
        with case.raises(ValueError, words):
            func.vmap(torch.sum, in_dims=bad)(x)
    with case.raises(ValueError, "same size"):
        func.vmap(torch.add)(x, x[:1])
    with case.raises(ValueError, "no inputs"):
        func.vmap(lambda: x)()
    with case.raises(ValueError, "only return.*Tensors|must only return"):
        func.vmap(lambda x: "text")(x)
    with case.raises(ValueError, "out_dims"):
        func.vmap(lambda x: (x, x), out_dims=(0, 0, 0))(x)
    for bad in ((0, 0), "text", 0.5, {0: 1}):
        with case.raises(ValueError, "out_dims"):
            func.vmap(lambda x: x, out_dims=bad)(x)
    with case.raises(ValueError, "out_dims"):
        func.vmap(lambda x: (x, x), out_dims=(0, "text"))(x)
    for bad in (0, -1):
        with case.raises(ValueError, "chunk_size"):
            func.vmap(torch.sin, chunk_size=bad)(x)
    with case.raises(RuntimeError, "randomness"):
        func.vmap(torch.sin, randomness="some")(x)


@claim("transforms.vmap.randomness")
@pytest.mark.parametrize("how", ["same", "different"])
def test_randomness_of_chunks(case, how):
    drawn = func.vmap(lambda x: torch.rand_like(x), randomness=how, chunk_size=2)(case.tensor(6, 3))
    assert all(torch.equal(row, drawn[0]) == (how == "same") for row in drawn[1:])


@claim("transforms.vmap.promotes-as-the-loop")
@pytest.mark.parametrize("name", ["add", "mul", "maximum", "where", "clamp"])
def test_vmap_promotes_as_the_loop(case, name):
    x, low = case.tensor(4), case.tensor(3).half()

    def function(x):
        if name == "where":
            return torch.where(x > 0, x, low)
        return torch.clamp(low, x) if name == "clamp" else getattr(torch, name)(x, low)

    assert function(x[0]).dtype == torch.float16
    assert func.vmap(function)(x).dtype == torch.float16


NORMS = {
    "LayerNorm": lambda: nn.LayerNorm(5),
    "GroupNorm": lambda: nn.GroupNorm(2, 6),
    "BatchNorm1d": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(6, affine=True),
}


@claim("transforms.vmap.mixed-dtypes")
@axes(dtype="bfloat16")
@pytest.mark.parametrize("name", NORMS)
def test_norms_of_reduced_inputs_keep_the_dtype_under_vmap(case, name):
    layer, x = case.module(NORMS[name]).float(), case.tensor(3, 4, 6, 5)
    y, wanted = func.vmap(layer)(x), torch.stack([layer(sample) for sample in x])
    assert y.dtype == wanted.dtype == case.dtype
    case.close(y, array(wanted), k=1, scale=abs(array(wanted)).max())  # float32 within, so one rounding each


@claim("transforms.vmap.mixed-dtypes")
@axes(dtype="bfloat16", via="eager")
@pytest.mark.parametrize("name", NORMS)
def test_gradients_of_norms_of_reduced_inputs_under_vmap(case, name):
    layer, x, g = case.module(NORMS[name]).float(), case.tensor(3, 4, 6, 5), case.tensor(4, 6, 5)
    slope = func.grad(lambda x: (layer(x) * g).float().sum())
    found, wanted = func.vmap(slope)(x), torch.stack([slope(sample) for sample in x])
    assert found.dtype == wanted.dtype == case.dtype
    case.close(found, array(wanted), k=2, scale=abs(array(wanted)).max())  # two roundings each


@claim("transforms.vmap.tables-of-their-own")
@pytest.mark.parametrize("outside", [6, -1])
def test_no_sample_reads_the_table_of_another(case, outside):
    if case.device.type != "cpu":
        raise case.unsupported("an accelerator reports a bad index by a failed assertion that ends its context")
    tables, ids = case.tensor(3, 6, 2), torch.tensor([[1, 5], [0, 1], [2, 0]])
    look_up = func.vmap(lambda table, ids: F.embedding(ids, table))
    case.same(look_up(tables, ids), torch.stack([table[i] for table, i in zip(tables, ids, strict=True)]))
    ids[1, 0] = outside
    with case.raises(IndexError, "out of range"):
        look_up(tables, ids)


@claim("transforms.vmap.in-chunks")
def test_chunks_map_as_the_whole_does(case):
    place = getattr(torch._functorch, "apis", None) or torch._functorch.vmap  # the former since 2.1
    chunked, x, sizes = place.chunk_vmap, case.tensor(3, 5), []

    def entry(d, k, *, add=0.0):
        sizes.append(torch._C._functorch.get_unwrapped(d["a"]).shape[1])
        return d["a"] * k + add, d["a"].sum()

    for options, seen in (({}, [3, 2]), ({"chunks": 1}, [5]), ({"chunks": 3}, [2, 2, 1])):
        sizes.clear()
        mapped = chunked(entry, in_dims=({"a": 1}, None), out_dims=(1, 0), **options)
        product, total = mapped({"a": x}, 3.0, add=2.0)
        case.same(product, x * 3 + 2)
        case.same(total, func.vmap(torch.sum, in_dims=1)(x))
        assert sizes == seen, f"{options}: chunks of {sizes}"
    case.same(chunked(torch.neg)(x), -x)
    for chunks in (1, 2):
        rows = chunked(torch.rand_like, randomness="same", chunks=chunks)(x[:1].expand(2, 5))
        assert torch.equal(rows[0], rows[1]) or chunks == 2
        with case.raises(RuntimeError, "randomness"):
            chunked(torch.rand_like, chunks=chunks)(x)
        with case.raises(RuntimeError, "Only allowed values for randomness"):
            chunked(torch.neg, randomness="some", chunks=chunks)


@claim("transforms.vmap.batchnorm-buffers")
def test_batchnorm_under_vmap(case):
    layer, x = case.module(nn.BatchNorm1d, 3), case.tensor(4, 5, 3)
    with case.raises(RuntimeError, "running_mean|in-?place"):
        func.vmap(layer)(x)
    loop = torch.stack([layer.eval()(one) for one in x])
    size = (abs(array(x)) + abs(array(layer.running_mean))) * abs(array(layer.weight)) + abs(array(layer.bias))
    deviation = np.sqrt(array(layer.running_var) + layer.eps)
    case.close(func.vmap(layer)(x), array(loop), k=12, scale=size / np.minimum(deviation, 1))  # two ways, 6 roundings
    patched = func.replace_all_batch_norm_modules_(nn.Sequential(layer.train()))[0]
    assert patched.running_mean is None
    assert patched.running_var is None
    assert patched.track_running_stats is False
    y, own = func.vmap(patched)(x), torch.stack([patched(one) for one in x])
    case.close(y, array(own), k=64, scale=abs(array(own)) + 2)  # n + 10 roundings twice over, conditioned by |x| / sd


def loss_of(layer, parameters, x, t):
    return F.cross_entropy(func.functional_call(layer, parameters, x[None]), t[None])


@claim("transforms.vmap.per-sample-gradients")
@axes(dtype=PRECISE, via="eager")
def test_per_sample_gradients_equal_the_loop(case):
    layer, x = case.module(nn.Sequential, nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), case.tensor(6, 4)
    t = torch.as_tensor(case.rng.integers(0, 3, 6)).to(case.device)
    named = {k: v.detach() for k, v in layer.named_parameters()}
    with case.unchanged(layer, x=x):
        each = func.vmap(func.grad(lambda p, x, t: loss_of(layer, p, x, t)), in_dims=(None, 0, 0))(named, x, t)
    sums = {k: np.zeros(v.shape) for k, v in named.items()}
    sizes = dict.fromkeys(named, 1.0)  # each path of at most 5 weights of order 1: gradients are sums of that size
    for i in range(6):
        layer.zero_grad()
        F.cross_entropy(layer(x[i : i + 1]), t[i : i + 1]).backward()
        for k, p in layer.named_parameters():
            size = max(sizes[k], float(p.grad.abs().max()))
            case.close(each[k][i], array(p.grad), k=32, scale=size)  # two ways round, 16 roundings a path each
            sums[k] += array(p.grad)
    layer.zero_grad()
    F.cross_entropy(layer(x), t, reduction="sum").backward()
    for k, p in layer.named_parameters():
        case.close(p.grad, sums[k], k=64, scale=6.0)


@claim("transforms.vmap.ensembles")
def test_several_modules_run_as_one(case):
    models, x = [case.module(nn.Linear, 4, 3) for _ in range(3)], case.tensor(5, 4)
    parameters, buffers = func.stack_module_state(models)
    assert all(p.is_leaf and p.requires_grad and p.shape[0] == 3 for p in parameters.values())
    assert buffers == {}
    y = func.vmap(lambda p: func.functional_call(models[0], p, x))(parameters)
    for i, model in enumerate(models):
        size = abs(array(x)) @ abs(array(model.weight)).T + abs(array(model.bias))
        case.close(y[i], array(x) @ array(model.weight).T + array(model.bias), k=5, scale=size)
    with torch.no_grad():
        parameters["weight"].zero_()
    assert (models[0].weight != 0).any()
    norms = [nn.BatchNorm1d(3).requires_grad_(False) for _ in range(2)]
    parameters, buffers = func.stack_module_state(norms)
    assert not any(t.requires_grad for t in [*parameters.values(), *buffers.values()])
    assert {name: tuple(t.shape) for name, t in buffers.items()} == {
        "running_mean": (2, 3), "running_var": (2, 3), "num_batches_tracked": (2,)}  # fmt: skip
    norms[0].requires_grad_()
    with case.raises(RuntimeError, "same .requires_grad"):
        func.stack_module_state(norms)
    with case.raises(RuntimeError, "same class"):
        func.stack_module_state([norms[0], models[0]])
    with case.raises(RuntimeError, "train/eval mode|same training"):
        func.stack_module_state([models[0], nn.Linear(4, 3).eval()])
    assert list(func.stack_module_state([nn.Linear(4, 3).eval() for _ in range(2)])[0]) == ["weight", "bias"]
    with case.raises(RuntimeError, "at least one model"):
        func.stack_module_state([])


@claim("transforms.grad.leaves-grad-alone")
def test_func_grad_returns_and_does_not_store(case):
    x, y = case.tensor(5, requires_grad=True), case.tensor(5, requires_grad=True)
    with case.unchanged(x=x, y=y):
        first = func.grad(lambda x, y: (x * y * y).sum())(x, y)
        both = func.grad(lambda x, y: (x * y * y).sum(), argnums=(0, 1))(x, y)
        aside, aux = func.grad(lambda x: ((x * y).sum(), y), has_aux=True)(x)
    case.same(first, y * y)
    case.same(both[0], y * y)
    case.close(both[1], 2 * array(x) * array(y), k=3)  # two products and a sum
    again, value = func.grad_and_value(lambda x, y: (x * y * y).sum(), argnums=(0, 1))(x, y)
    assert all(torch.equal(g, h) for g, h in zip(again, both, strict=True))
    case.same(value.detach(), (x * y * y).sum().detach())
    case.same(aside, y)
    case.same(aux, y)
    assert func.grad_and_value(lambda x: x.sum())(x)[1] == x.sum()
    (g, (value, more)) = func.grad_and_value(lambda x: ((x * y).sum(), y), has_aux=True)(x)
    assert not g.requires_grad or value.requires_grad
    case.same(g, y)
    case.same(more, y)
    case.same(func.grad(lambda x, y: (x * y * y).sum(), argnums=-2)(x, y), first)
    for bad in (2, -3, (0, 2)):
        with case.raises(RuntimeError, "argnum"):
            func.grad(lambda x, y: x.sum(), argnums=bad)(x, y)
    with case.raises(RuntimeError, "scalar|single|0-?dim"):
        func.grad(lambda x: x * y)(x)
    with case.raises(RuntimeError, "Tensor"):
        func.grad(lambda x: 3.0)(x)
    with case.raises(RuntimeError, "tuple|output.*aux"):
        func.grad(lambda x: x.sum(), has_aux=True)(x)


@claim("transforms.grad.nested")
def test_gradients_nest(case):
    x = case.tensor()
    second = func.grad(func.grad(lambda x: x**3))(x)
    case.close(second, 6 * array(x), k=4)  # the power, two factors, a product
    case.close(func.vmap(func.grad(func.grad(torch.sin)))(case.tensor(7, loc=0.7, spread=0)), -np.sin(np.full(7, float(
        torch.tensor(0.7, dtype=case.dtype)))), k=4)  # fmt: skip


@claim("transforms.grad.inner-no-grad")
def test_func_grad_and_no_grad(case):
    x = case.tensor(5)

    def inner(x):
        with torch.no_grad():
            c = x * x
        return (x * c).sum()

    case.same(func.grad(inner)(x), x * x)
    with torch.no_grad():
        case.close(func.grad(lambda x: (x * x).sum())(x), 2 * array(x), k=1)
        assert not torch.is_grad_enabled()


@claim("transforms.grad.within-inference-mode")
def test_grad_works_within_inference_mode(case):
    x = case.tensor(3)
    with torch.inference_mode():
        found = torch.func.grad(lambda x: x.square().sum())(x)
    case.close(found, 2 * array(x), k=1)


@claim("transforms.jacobian.within-inference-mode")
@pytest.mark.parametrize("name", ["vjp", "jacrev"])
def test_products_and_jacobians_within_inference_mode(case, name):
    x = case.tensor(3)
    with torch.inference_mode():
        if name == "vjp":
            (found,) = func.vjp(torch.square, x)[1](torch.ones_like(x))
        else:
            found = func.jacrev(torch.square)(x).sum(0)
    case.close(found, 2 * array(x), k=1)


@claim("transforms.jacobian.forward-and-reverse")
@axes(dtype=PRECISE, via="eager")
def test_jacobians(case):
    a, x, v, u = case.tensor(3, 4), case.tensor(4), case.tensor(4), case.tensor(3)

    def function(x):
        return torch.tanh(a @ x)

    t = np.tanh(array(a) @ array(x))
    wanted = (1 - t**2)[:, None] * array(a)
    # the argument errs by 4 eps of its terms, tanh' by twice that, and three roundings more
    size = (1 + abs(array(a)) @ abs(array(x)))[:, None] * abs(array(a))
    for jacobian in (func.jacrev, func.jacfwd):
        case.close(jacobian(function)(x), wanted, k=12, scale=size)
    y, along = func.jvp(function, (x,), (v,))
    case.close(y, t, k=6, scale=1 + abs(array(a)) @ abs(array(x)))
    case.close(along, wanted @ array(v), k=16, scale=size @ abs(array(v)))
    y, back = func.vjp(function, x)
    case.close(back(u)[0], array(u) @ wanted, k=16, scale=abs(array(u)) @ size)
    b = case.tensor(4, 4)
    hessian = func.hessian(lambda x: x @ b @ x)(x)
    case.close(hessian, array(b) + array(b).T, k=2, scale=abs(array(b)) + abs(array(b)).T)  # a product with 1, a sum
    case.same(func.hessian(lambda v, x: v.sum() + x @ b @ x, argnums=1)(v, x), hessian)
    assert func.jacrev(lambda x: a[:, :, None] * x)(x).shape == (3, 4, 4, 4)
    if hasattr(func, "linearize"):
        y, product = func.linearize(function, x)
        case.close(y, t, k=6, scale=1 + abs(array(a)) @ abs(array(x)))
        case.close(product(v), wanted @ array(v), k=16, scale=size @ abs(array(v)))
        for chunk in (1, 2):
            case.close(func.jacrev(function, chunk_size=chunk)(x), wanted, k=12, scale=size)
        with case.raises(ValueError, "chunk_size"):
            func.jacrev(function, chunk_size=0)(x)
    for transform in (func.jacrev, func.jacfwd):
        jacobians, aux = transform(lambda x, u: (u * (a @ x), v), argnums=(0, 1), has_aux=True)(x, u)
        case.same(aux, v)
        assert [j.shape for j in jacobians] == [(3, 4), (3, 3)]
        case.close(jacobians[0], array(u)[:, None] * array(a), k=2)
    case.same(func.vjp(lambda x: (x * 2, v), x, has_aux=True)[2], v)
    case.same(func.jvp(lambda x: (x * 2, v), (x,), (v,), has_aux=True)[2], v)
    for nothing in (None, ()):
        with case.raises(RuntimeError, "non-empty"):
            func.vjp(lambda x, nothing=nothing: nothing, x)
    for bad in (x, (x, x)):
        with case.raises((RuntimeError, AssertionError, TypeError), "tangents|primals|tuple|Expected"):
            func.jvp(function, (x,), bad)


@claim("transforms.jacobian.randomness")
@pytest.mark.parametrize("how", [None, "error", "same", "different"])
def test_randomness_under_jacfwd(case, how):
    options = {} if how is None else {"randomness": how}
    jacobian, x = func.jacfwd(lambda x: x.sum() * torch.rand_like(x), **options), case.tensor(5)
    if how in (None, "error"):
        with case.raises(RuntimeError, "randomness|random operation"):
            jacobian(x)
        return
    columns = jacobian(x).T  # each is what was drawn for it
    for other in columns[1:]:
        assert torch.equal(columns[0], other) == (how == "same")


# -- compilers -------------------------------------------------------------------------------------------------------


def network(case):
    return case.module(nn.Sequential, nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.4))


def compiled(layer, backend="eager", **kwargs):
    torch._dynamo.reset()
    return torch.compile(layer, backend=backend, **kwargs)


@claim("transforms.compile.equals-eager")
@axes(via=("aot",))
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_equals_eager(case, backend):
    layer, twin, x = (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(case.device) for _ in range(2)), None, None
    layer, twin = layer
    case.randomise(layer)
    twin.load_state_dict(layer.state_dict())
    x, seed = case.tensor(6, 4), case.tensor(6, 3)
    for model in (compiled(layer, backend), twin):
        model(x).backward(seed)
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        case.close(ours.grad, array(theirs.grad), k=64, scale=1 + float(theirs.grad.abs().max()))  # 6 terms, 2 layers
    for ours, theirs in zip(layer.buffers(), twin.buffers(), strict=True):
        case.same(ours, theirs)


@claim("transforms.compile.modes-and-grad-mode", "transforms.compile.training-attribute")
@axes(via=("aot",))
@pytest.mark.parametrize("switch", ["wrapper", "module"])
def test_compiled_models_follow_modes(case, switch):
    inner = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.4)).to(case.device)
    case.randomise(inner)
    model, x = compiled(inner), case.tensor(31, 4)
    handle = model if switch == "wrapper" else inner
    for training in (True, False, True):
        handle.train(training)
        assert all(m.training == training for m in inner.modules())
        assert model.training == training or not since("2.6")
        buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked", "rng"} if training else set()
        with case.unchanged(inner, x=x, but=buffers):
            y = model(x)
        assert (y == 0).any() == training
        assert y.requires_grad
        with torch.no_grad():
            assert not model(x).requires_grad


@claim("transforms.compile.state-dict")
@axes(via=("aot",))
def test_names_in_a_compiled_model(case):
    layer = nn.Linear(4, 3)
    model = compiled(layer)
    assert list(model.state_dict()) == ["_orig_mod.weight", "_orig_mod.bias"]
    assert next(model.parameters()) is layer.weight
    layer.compile(backend="eager")
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer(torch.ones(2, 4)).shape == (2, 3)


@claim("transforms.compile.fullgraph")
@axes(via=("aot",))
def test_fullgraph_refuses_a_break(case):
    def broken(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    x = case.tensor(3)
    case.same(compiled(broken)(x), (x + 1) * 2)
    with case.raises(Exception, "graph_break|graph break"):
        compiled(broken, fullgraph=True)(x)


@claim("transforms.compile.inductor-randomness")
@axes(via=("compile",))
@pytest.mark.parametrize("fallback", [False, True])
def test_random_numbers_of_inductor(case, fallback):
    x = torch.ones(512, device=case.device)
    drop, masks = case.function(lambda x: F.dropout(x, 0.4)), []
    with importlib.import_module("torch._inductor.config").patch(fallback_random=fallback):
        for _ in range(2):
            torch.manual_seed(7)
            masks.append(drop(x) == 0)
    torch.manual_seed(7)
    assert torch.equal(*masks)
    assert torch.equal(masks[0], F.dropout(x, 0.4) == 0) == fallback
    case.binomial(masks[0].sum(), 512, 0.4)


@claim("transforms.script.follows-modes")
def test_scripted_modules_follow_modes(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.jit.script(nn.Dropout(0.4))
    ones = case.tensor_of(np.ones(63))
    for training in (True, False, True):
        layer.train(training)
        case.binomial((layer(ones) == 0).sum(), 63, 0.4 if training else 0.0)


@claim("transforms.trace.freezes-the-mode")
@pytest.mark.parametrize("training", [True, False])
def test_tracing_freezes_the_mode(case, training):
    ones = case.tensor_of(np.ones(63))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(nn.Dropout(0.4).train(training), ones, check_trace=False)
    for mode in (True, False):
        traced.train(mode)
        case.binomial((traced(ones) == 0).sum(), 63, 0.4 if training else 0.0)


@claim("transforms.export.freezes-the-mode")
@axes(via=("export",))
@pytest.mark.parametrize("training", [True, False])
def test_export_freezes_the_mode(case, training):
    ones = case.tensor_of(np.ones(63))
    module = torch.export.export(nn.Sequential(nn.Dropout(0.4)).train(training), (ones,)).module()
    case.binomial((module(ones) == 0).sum(), 63, 0.4 if training else 0.0)
    with case.raises(NotImplementedError, "eval"):
        module.eval()


@claim("transforms.vmap.randomness-of-attention")
def test_randomness_of_attention_under_vmap(case):
    q = torch.ones_like(case.tensor(4, 1, 3, 8))

    def attend(q):
        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)

    rows = func.vmap(attend, randomness="same")(q)
    assert all(torch.equal(row, rows[0]) for row in rows[1:]), "entries drew masks of their own"
    with case.raises(RuntimeError, "randomness|random operation"):
        func.vmap(attend)(q)


@claim("transforms.hessian-of-det")
def test_the_hessian_of_a_determinant(case):
    """At the identity: one for two places of the diagonal, minus one for two that face each other across it."""
    found = func.hessian(torch.linalg.det)(case.tensor_of(np.eye(3)))
    one = np.eye(3)
    law = np.einsum("ij,kl->ijkl", one, one) - np.einsum("il,jk->ijkl", one, one)
    case.close(found, law, k=8, scale=np.ones_like(law))


@claim("transforms.vmap.fills-by-entry")
def test_vmap_fills_each_entry_with_its_value(case):
    x, values, at = case.tensor(3), case.tensor(4), torch.tensor([1], device=case.device)
    found = func.vmap(lambda value: x.index_fill(0, at, value))(values)
    case.same(found, torch.stack([x.index_fill(0, at, value) for value in values]))


@claim("transforms.vmap.rolls-numbers")
@pytest.mark.parametrize("move", [lambda x: x.roll(1), lambda x: x.flip(0)], ids=["roll", "flip"])
def test_vmap_leaves_entries_without_axes_in_place(case, move):
    x = case.tensor(3)
    case.same(func.vmap(move)(x), torch.stack([move(entry) for entry in x]))


@claim("transforms.vmap.index-by-entry")
def test_vmap_indexes_by_numbers(case):
    x, i = case.tensor(3, 4), torch.tensor([2, 0, 3], device=case.device)
    case.same(func.vmap(lambda x, i: x[i])(x, i), x.gather(1, i[:, None])[:, 0])


@claim("transforms.vmap.view-as-dtype")
@axes(dtype="float32")
def test_vmap_views_the_bits(case):
    x = case.tensor(3, 4)
    found = func.vmap(lambda x: x.view(torch.int32).sum())(x)
    case.same(found, x.view(torch.int32).sum(1))


@claim("transforms.vmap.circular-padding")
def test_vmap_pads_in_a_circle(case):
    x = case.tensor(1, 4, 3)
    found = func.vmap(lambda x: F.pad(x, (1, 2), mode="circular"), in_dims=2)(x)
    case.same(found, x.permute(2, 0, 1)[..., [3, 0, 1, 2, 3, 0, 1]])


@claim("transforms.vmap.imaginary-part-of-a-conjugate")
def test_vmap_takes_the_imaginary_part_of_a_conjugate(case):
    real, imaginary = case.tensor(3, 4), case.tensor(3, 4)
    found = func.vmap(lambda z: z.conj().imag[0])(torch.complex(real, imaginary))
    case.same(found, -imaginary[:, 0])


@claim("transforms.vmap.searches-for-numbers")
def test_vmap_searches_each_row_for_a_number(case):
    rows, x = case.tensor_of([[0.0, 1.0], [2.0, 3.0]]), case.tensor_of([0.5, 1.0])
    assert func.vmap(torch.searchsorted)(rows, x).tolist() == [1, 0]


@claim("transforms.jacobian.argnums-from-the-end")
@pytest.mark.parametrize("name", ["jacfwd", "jacrev"])
def test_arguments_count_from_the_end(case, name):
    x, y = case.tensor(3), case.tensor(3)
    case.close(getattr(func, name)(lambda x, y: x * y, argnums=-1)(x, y), np.diag(array(x)), k=0)


@claim("transforms.jacobian.linearized-constant")
def test_a_constant_linearized_is_zero(case):
    x, constant = case.tensor(3), case.tensor(2)
    _, tangent = func.linearize(lambda x: constant, x)
    case.same(tangent(case.tensor(3)).detach(), torch.zeros_like(constant))


@claim("transforms.grad.forward-over-reverse")
def test_the_gradient_of_a_mean_squared_error_has_a_tangent(case):
    x, target, v = case.tensor(4), case.tensor(4), case.tensor(4)
    _, found = func.jvp(func.grad(lambda x: F.mse_loss(x, target)), (x,), (v,))
    case.close(found, array(v) / 2, k=2)  # twice the tangent, divided by four


@claim("transforms.grad.of-complex-outputs")
def test_a_complex_output_has_no_gradient(case):
    with case.raises(RuntimeError, "real-valued|complex"):
        func.grad(lambda x: (x * 1j).sum())(case.tensor(3))


@claim("transforms.vmap.attention")
def test_vmap_of_attention_is_the_loop(case):
    q, k, v = (case.tensor(3, 2, 1, n, 5) for n in (4, 6, 6))
    found = func.vmap(F.scaled_dot_product_attention)(q, k, v)
    loop = torch.stack([F.scaled_dot_product_attention(*each) for each in zip(q, k, v, strict=True)])
    # products of five numbers, and weights of six that add up to one: some thirty steps
    case.close(found, array(loop), k=64, scale=abs(array(v)).max())


@claim("transforms.vmap.greatest-of-an-entry")
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_vmap_keeps_every_axis_of_an_entry(case, name):
    x = case.tensor(3, 2, 4)
    found = func.vmap(lambda x: getattr(torch, name)(x, keepdim=True))(x)
    case.same(found, torch.stack([getattr(torch, name)(entry, keepdim=True) for entry in x]))


@claim("transforms.vmap.triangles-of-vectors")
@pytest.mark.parametrize("name", ["triu", "tril"])
def test_vmap_refuses_triangles_of_vectors(case, name):
    with case.raises(RuntimeError, "at least 2 dim"):
        func.vmap(getattr(torch, name))(case.tensor(3, 4))


@claim("transforms.jacobian.distances")
@axes(dtype=PRECISE)
def test_the_jacobian_of_distances(case):
    """From the origin to (3, 4) and (-5, 12), 5 and 13 away."""
    x, y = case.tensor_of([[0.0, 0.0]]), case.tensor_of([[3.0, 4.0], [-5.0, 12.0]])
    found = func.jacrev(lambda x: torch.cdist(x, y))(x)[0, :, 0]
    case.close(found, np.array([[-3 / 5, -4 / 5], [5 / 13, -12 / 13]]), k=4)  # a root, a quotient and a product


@claim("transforms.jacobian.entropy-of-one-twice")
@axes(dtype=PRECISE)
def test_the_second_derivative_of_a_cross_entropy_of_one(case):
    x, target = case.tensor(1), case.tensor_of([0.0])
    found = func.jacfwd(func.jacfwd(lambda x: F.binary_cross_entropy_with_logits(x, target)))(x)
    share = 1 / (1 + np.exp(-array(x)))
    case.close(found, (share * (1 - share))[None], k=16)  # two logistic functions and their product
