"""The ways in which data-parallel training goes wrong."""

import torch
from torch import nn
from torch.nn.modules import utils
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817
from torch.nn.parallel import distributed

from torch_conformance.mutation import mutant


@mutant("distributed.ddp.broadcasts-at-construction", "distributed.ddp.averages-gradients")
def construction_does_not_broadcast(patch):
    """Takes the parameters of each rank as they are: the docstring taken at its word."""
    patch.wrap(DDP, "__init__", lambda original, self, *a, **o: original(self, *a, **{**o, "init_sync": False}))


@mutant(
    "distributed.ddp.sum-loss",
    "distributed.ddp.averages-gradients",
    "distributed.ddp.no-sync",
    "distributed.ddp.no-sync-of-the-unused",
    "distributed.ddp.one-process",
)
def gradients_summed(patch):
    """Sums gradients over the ranks and does not divide."""

    def forward(original, self, *args, **kwargs):
        y = original(self, *args, **kwargs)
        return y * 2 - y.detach() if isinstance(y, torch.Tensor) else y

    patch.wrap(DDP, "forward", forward)


@mutant("distributed.ddp.no-sync", "distributed.ddp.autograd-grad-not-synchronised")
def no_sync_ignored(patch):
    """Averages inside no_sync too."""
    import contextlib

    patch.set(DDP, "no_sync", lambda self: contextlib.nullcontext())
    patch.wrap(torch.autograd, "grad", lambda original, *a, **o: tuple(2 * g for g in original(*a, **o)))


@mutant("distributed.ddp.buffers-of-rank-zero")
def buffers_stay_at_home(patch):
    """Never hands buffers out."""
    patch.wrap(DDP, "__init__", lambda original, self, *a, **o: original(self, *a, **{**o, "broadcast_buffers": False}))


@mutant("distributed.ddp.unused-parameters")
def unused_parameters_are_found(patch):
    """Looks for unused parameters always."""
    patch.wrap(
        DDP, "__init__", lambda original, self, *a, **o: original(self, *a, **{**o, "find_unused_parameters": True})
    )


@mutant("distributed.ddp.state-dict-prefix")
def prefix_kept(patch):
    """Strips no prefix."""
    patch.source(utils.consume_prefix_in_state_dict_if_present, "if key.startswith(prefix)", "if False")


@mutant("distributed.syncbn.needs-an-accelerator", "distributed.syncbn.equals-full-batch")
def sync_batch_norm_is_batch_norm(patch):
    """Normalises by the rank's own statistics."""
    patch.set(nn.SyncBatchNorm, "forward", nn.BatchNorm2d.forward)
    patch.set(nn.SyncBatchNorm, "_check_input_dim", lambda self, x: None)


@mutant("distributed.ddp.complex", "distributed.ddp.buffers-of-any-dtype")
def only_real_numbers_travel(patch):
    """Takes apart neither complex numbers nor truth values for the transport."""

    def start(original, self, module, *args, **kwargs):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_complex() or tensor.dtype == torch.bool:
                raise RuntimeError("Invalid scalar type")
        original(self, module, *args, **kwargs)

    patch.wrap(DDP, "__init__", start)


@mutant("distributed.ddp.outputs-in-a-dataclass")
def dataclasses_are_not_opened(patch):
    """Looks for tensors in lists and dicts alone."""
    patch.wrap(distributed, "_find_tensors", lambda original, x: [] if distributed.is_dataclass(x) else original(x))
