"""Distributed training: two processes on one machine, started once, and what each of them saw.

The two ranks run the scenarios below one after the other and send home what they saw as arrays; the tests hold that
against what one process computes on all samples.
"""

import contextlib
import dataclasses
import importlib
import os
import tempfile

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

pytestmark = axes(via="eager")
RANKS, SHARD = 2, 3
SAMPLES = np.random.default_rng(1).standard_normal((RANKS, SHARD, 4)).astype(np.float32)


def linear(rank, cls=nn.Linear):
    """The layer that the rank begins with; no two ranks begin alike."""
    with torch.random.fork_rng():
        torch.manual_seed(rank)
        return cls(4, 2)


def gradients(model):
    return [p.grad.numpy().copy() for p in model.parameters()]


def construction(rank, x):
    mine = [p.detach().numpy().copy() for p in linear(rank).parameters()]
    return mine, [p.detach().numpy().copy() for p in DDP(linear(rank)).parameters()]


def mean_loss(rank, x):
    model = DDP(linear(rank))
    model(x).square().mean().backward()
    return gradients(model)


def sum_loss(rank, x):
    model = DDP(linear(rank))
    model(x).square().sum().backward()
    return gradients(model)


def no_sync(rank, x):
    model = DDP(linear(rank))
    with model.no_sync():
        model(x).square().mean().backward()
    alone = gradients(model)
    model(2 * x).square().mean().backward()
    return alone, gradients(model)


def own_gradients(rank, x):
    model = DDP(linear(rank))
    found = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    return [g.numpy() for g in found], all(p.grad is None for p in model.parameters())


def buffers(rank, x):
    model, seen = DDP(nn.BatchNorm1d(4, momentum=0.3)), []
    for training in (True, False, False):
        model.train(training)(x)
        seen.append(model.module.running_mean.numpy().copy())
    return seen


class Half(nn.Module):
    """Uses one of its two layers, or both."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x, both=False):
        return self.used(x) + self.unused(x) if both else self.used(x)


def no_sync_unused(rank, x):
    model = DDP(Half(), find_unused_parameters=True)
    with model.no_sync():
        model(x, both=True).sum().backward()
    model(x).sum().backward()
    return gradients(model.module.unused)


def no_sync_static(rank, x):
    model = DDP(linear(rank), static_graph=True)
    try:
        for _ in range(2):
            with model.no_sync():
                model(x).square().mean().backward()
            model(x).square().mean().backward()
    except RuntimeError as error:
        return str(error)
    return gradients(model)


def unused(rank, x, **kwargs):
    model = DDP(Half(), **kwargs)
    try:
        for _ in range(2):
            model(x).sum().backward()
    except RuntimeError as error:
        return str(error)
    return "" if model.module.unused.weight.grad is None else "the unused layer has a gradient"


def unused_found(rank, x):
    return unused(rank, x, find_unused_parameters=True)


def unused_output(rank, x):
    class Both(Half):
        def forward(self, x):
            return self.used(x), self.unused(x)

    model = DDP(Both(), static_graph=True)
    try:
        for _ in range(3):
            model(x)[0].sum().backward()
    except RuntimeError as error:
        return str(error)
    return "" if model.module.unused.weight.grad is None else "the unused layer has a gradient"


def sync_batch_norm(rank, x):
    with contextlib.suppress(ValueError):
        nn.SyncBatchNorm(4)(x)
        return "no error"
    return "refused"


SCENARIOS = (
    construction, mean_loss, sum_loss, no_sync, no_sync_unused, no_sync_static, own_gradients, buffers, unused,
    unused_found, unused_output, sync_batch_norm,
)  # fmt: skip


def work(rank, address, home):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=RANKS)
    x = torch.from_numpy(SAMPLES[rank])
    try:
        home.put((rank, {scenario.__name__: scenario(rank, x) for scenario in SCENARIOS}))
    except Exception as error:  # or the others would be waited for in vain
        home.put((rank, error))
    home.close()
    home.join_thread()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen():
    """Scenario to what rank 0 and rank 1 saw."""
    if not dist.is_available() or not dist.is_gloo_available():
        return None
    if not hasattr(os, "fork") or torch.cuda.is_initialized():
        return None
    if hasattr(torch, "compile"):
        importlib.import_module("torch._dynamo")  # DDP imports it: once before the fork, not once in each process
    context = mp.get_context("fork")  # a spawned process would import torch once more
    with tempfile.TemporaryDirectory() as folder:
        home = context.Queue()
        ranks = [context.Process(target=work, args=(r, f"{folder}/meet", home), daemon=True) for r in range(RANKS)]
        for process in ranks:
            process.start()
        try:
            found = {}
            for _ in ranks:
                rank, found[rank] = home.get(timeout=120)
                if isinstance(found[rank], Exception):
                    raise found[rank]
        finally:
            for process in ranks:
                process.join(timeout=20)
                process.kill()
    return {name: (found[0][name], found[1][name]) for name in found[0]}


@pytest.fixture
def ranks(case, request):
    if case.device != "cpu":
        pytest.skip("both ranks compute on the CPU")
    if (found := request.getfixturevalue("seen")) is None:
        pytest.skip("needs torch.distributed with gloo, and fork before CUDA is in use")
    return found


def whole_batch(samples, *, reduction, scale=1.0):
    """Gradients of the squared outputs of rank 0's layer, by the formula, and the sums of their absolute terms."""
    layer = linear(0)
    w, b, x = array(layer.weight), array(layer.bias), scale * samples.astype(float)
    y = x @ w.T + b
    factor = 2 / y.size if reduction == "mean" else 2
    size = abs(x) @ abs(w).T + abs(b)
    return [(factor * y.T @ x, factor * size.T @ abs(x)), (factor * y.sum(0), factor * size.sum(0))]


def holds(case, actual, expected, *, k):
    for ours, (wanted, size) in zip(actual, expected, strict=True):
        case.close(torch.from_numpy(ours), wanted, k=k, scale=size)


def averaged(first, second):
    return [((a + b) / 2, (p + q) / 2) for (a, p), (b, q) in zip(first, second, strict=True)]


@claim("distributed.ddp.broadcasts-at-construction")
def test_construction_gives_every_rank_the_parameters_of_rank_0(case, ranks):
    (mine, first), (other, second) = ranks["construction"]
    for own, foreign, a, b in zip(mine, other, first, second, strict=True):
        assert (own != foreign).any()
        assert (a == own).all()
        assert (b == own).all()


@claim("distributed.ddp.averages-gradients")
def test_gradients_are_those_of_the_whole_batch(case, ranks):
    expected = whole_batch(SAMPLES.reshape(-1, 4), reduction="mean")
    for found in ranks["mean_loss"]:
        holds(case, found, expected, k=16)  # 5 roundings in y, 6 samples, factor, square, average


@claim("distributed.ddp.sum-loss")
def test_a_summed_loss_is_divided_by_the_number_of_ranks(case, ranks):
    expected = whole_batch(SAMPLES.reshape(-1, 4), reduction="sum")
    for found in ranks["sum_loss"]:
        holds(case, [RANKS * g for g in found], expected, k=16)  # as above


@claim("distributed.ddp.no-sync")
def test_no_sync_accumulates_alone(case, ranks):
    for rank, (alone, _) in enumerate(ranks["no_sync"]):
        holds(case, alone, whole_batch(SAMPLES[rank], reduction="mean"), k=16)
    parts = [whole_batch(SAMPLES[r], reduction="mean", scale=s) for s in (1.0, 2.0) for r in range(RANKS)]
    first, second = averaged(parts[0], parts[1]), averaged(parts[2], parts[3])
    expected = [(a + b, p + q) for (a, p), (b, q) in zip(first, second, strict=True)]
    for _, synchronised in ranks["no_sync"]:
        holds(case, synchronised, expected, k=20)


@claim("distributed.ddp.no-sync-of-the-unused")
def test_what_was_used_inside_no_sync_alone_is_averaged_too(case, ranks):
    sums, sizes = (values.astype(float).sum(1).mean(0) for values in (SAMPLES, abs(SAMPLES)))
    expected = [(np.stack([sums] * 2), np.stack([sizes] * 2)), (np.full(2, SHARD), SHARD)]
    for found in ranks["no_sync_unused"]:
        holds(case, found, expected, k=4)  # three terms, two ranks


@claim("distributed.ddp.no-sync-static-graph")
def test_a_static_graph_may_begin_inside_no_sync(case, ranks):
    once = averaged(*(whole_batch(SAMPLES[r], reduction="mean") for r in range(RANKS)))
    for found in ranks["no_sync_static"]:
        assert not isinstance(found, str), found
        holds(case, found, [(4 * wanted, 4 * size) for wanted, size in once], k=24)


@claim("distributed.ddp.autograd-grad-not-synchronised")
def test_autograd_grad_stays_at_home(case, ranks):
    for rank, (found, none_stored) in enumerate(ranks["own_gradients"]):
        holds(case, found, whole_batch(SAMPLES[rank], reduction="mean"), k=16)
        assert none_stored


@claim("distributed.ddp.buffers-of-rank-zero")
def test_buffers_come_from_rank_0_at_the_next_forward(case, ranks):
    (first, later, last), (other, other_later, other_last) = ranks["buffers"]
    for rank, own in enumerate((first, other)):
        x = SAMPLES[rank].astype(float)
        case.close(torch.from_numpy(own), 0.3 * x.mean(0), k=6, scale=0.3 * abs(x).mean(0))  # 3 terms, 3 roundings
    for after in (later, last, other_later, other_last):
        assert (after == first).all()


@claim("distributed.ddp.unused-parameters")
def test_an_unused_parameter_is_an_error_at_the_next_forward(case, ranks):
    for message in ranks["unused"]:
        assert "Expected to have finished reduction in the prior iteration" in message
    assert ranks["unused_found"] == ("", "")


@claim("distributed.ddp.unused-output")
def test_a_static_graph_finds_an_output_without_use(case, ranks):
    for message in ranks["unused_output"]:
        assert not message, message


@claim("distributed.syncbn.needs-an-accelerator")
def test_sync_batch_norm_refuses_the_cpu(case, ranks):
    assert ranks["sync_batch_norm"] == ("refused", "refused")


@claim("distributed.syncbn.equals-full-batch")
def test_sync_batch_norm_with_one_rank_is_batch_norm(case, group):
    if case.device.type == "cpu":
        raise case.unsupported("SyncBatchNorm takes no input on the CPU")
    layer, x = case.module(nn.BatchNorm1d, 4), case.tensor(6, 4)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    wanted = array(x)
    before = array(layer.running_mean)
    synchronised(x)
    size = 0.9 * abs(before) + 0.1 * abs(wanted).mean(0)
    case.close(synchronised.running_mean, 0.9 * before + 0.1 * wanted.mean(0), k=12, scale=size)  # 6 terms, 4 more


KEPT = []  # groups, to the end of the process: the destructor of one waits for threads that may wait for Python's lock


@pytest.fixture
def group():
    """A process group of one."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("needs torch.distributed with gloo")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        KEPT.append(dist.distributed_c10d._get_default_group())
        yield
        dist.destroy_process_group()


@claim("distributed.ddp.state-dict-prefix")
def test_names_in_a_wrapped_model(case, group):
    layer = case.module(nn.BatchNorm1d, 3)
    state = DDP(layer).state_dict()
    assert list(state) == [f"module.{name}" for name in layer.state_dict()]
    consume_prefix_in_state_dict_if_present(state, "module.")
    assert set(state) == set(layer.state_dict())
    case.same(state["weight"], layer.weight.detach())
    plain = {"weight": 1}
    consume_prefix_in_state_dict_if_present(plain, "module.")
    assert plain == {"weight": 1}


@claim("distributed.ddp.one-process")
@pytest.mark.parametrize("training", [True, False])
def test_one_process_is_the_module_itself(case, group, training):
    layer, x = case.module(nn.Sequential, nn.Linear(4, 3), nn.BatchNorm1d(3)), case.tensor(6, 4)
    twin = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(case.device)
    twin.load_state_dict(layer.state_dict())
    model, gradient = DDP(layer).train(training), case.tensor(6, 3)
    assert all(m.training == training for m in layer.modules())
    y = model(x)
    y.backward(gradient)
    wanted = twin.train(training)(x)
    wanted.backward(gradient)
    case.same(y.detach(), wanted.detach())
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        case.same(ours.grad, theirs.grad)
    for ours, theirs in zip(layer.buffers(), twin.buffers(), strict=True):
        case.same(ours, theirs)


class Turn(nn.Module):
    """A product with complex numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1 + 2j, 3j], [0.5, -1j]]))

    def forward(self, x):
        return torch.view_as_real(x.to(torch.complex64) @ self.weight)


@claim("distributed.ddp.complex")
@pytest.mark.parametrize("view", [False, True])
def test_complex_parameters_are_trained(case, group, view):
    (layer, twin), x, gradient = (Turn().to(case.device) for _ in range(2)), case.tensor(5, 2), case.tensor(5, 2, 2)
    DDP(layer, gradient_as_bucket_view=view)(x).backward(gradient)
    twin(x).backward(gradient)
    case.same(torch.view_as_real(layer.weight.grad), torch.view_as_real(twin.weight.grad))


@dataclasses.dataclass
class Answer:
    y: torch.Tensor


class Wrapped(Half):
    def forward(self, x):
        return Answer(super().forward(x))


@claim("distributed.ddp.outputs-in-a-dataclass")
def test_unused_parameters_are_found_behind_a_dataclass(case, group):
    model, x = DDP(Wrapped().to(case.device), find_unused_parameters=True), case.tensor(5, 4)
    for _ in range(2):
        model(x).y.sum().backward()
    assert model.module.used.weight.grad is not None
    assert model.module.unused.weight.grad is None


@claim("distributed.ddp.buffers-of-any-dtype")
@pytest.mark.parametrize("kind", ["bool", "int64", "bfloat16"])
def test_buffers_may_be_of_any_dtype(case, group, kind):
    layer = case.module(nn.Linear, 4, 2)
    layer.register_buffer("extra", torch.tensor([1, 0, 1], dtype=getattr(torch, kind)))
    DDP(layer)(case.tensor(5, 4))
    assert layer.extra.tolist() == [1, 0, 1]
