"""The kernels that are timed: they compute what they claim, and their byte counts are right by hand."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_conformance.bench import kernels
from torch_conformance.bench.kernels import Kernel, minimal_bytes

SMALL = {norm: (2, 3, 40) if norm in ("layer_norm", "rms_norm") else (2, 64, 3, 5) for norm in kernels.NORMS}


@pytest.fixture
def small(monkeypatch):
    """The size `s`, small enough for a test."""
    monkeypatch.setattr(kernels, "SHAPES", {norm: {"s": shape} for norm, shape in SMALL.items()})


def test_the_default_set_has_sixty_kernels_or_more_and_none_twice():
    found = kernels.catalogue()
    assert len(found) == len(set(found)) == 66
    assert {kernel.norm for kernel in found} == set(kernels.NORMS)


@pytest.mark.parametrize("kernel", kernels.catalogue(), ids=lambda kernel: kernel.name)
def test_a_name_says_everything(kernel):
    assert Kernel.parse(kernel.name) == kernel


@pytest.mark.parametrize("name", ["x/s/float32/backward", "layer_norm/s/float32", "layer_norm/s/float32/backward/a/b"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=r"no such kernel|unpack"):
        Kernel.parse(name)


def layer_norm_bytes(direction, dtype="float32"):
    return minimal_bytes(Kernel("layer_norm", "m", dtype, direction))


def test_bytes_of_layer_norm():
    n, rows, width = 4 * 128 * 768, 4 * 128, 768
    assert layer_norm_bytes("forward-eval") == 4 * (2 * n + 2 * width)  # x, y, weight, bias
    assert layer_norm_bytes("forward-train") == 4 * (2 * n + 2 * width + 2 * rows)  # and mean, rstd of each row
    assert layer_norm_bytes("backward") == 4 * (3 * n + 4 * width + 2 * rows)  # x, dy, dx; parameters; their gradients
    assert layer_norm_bytes("backward", "bfloat16") * 2 == layer_norm_bytes("backward")
    assert layer_norm_bytes("forward-backward") == layer_norm_bytes("forward-train") + layer_norm_bytes("backward")


def test_bytes_of_batch_norm():
    n, c = 4 * 128 * 28 * 28, 128
    assert minimal_bytes(Kernel("batch_norm", "m", "float32", "forward-eval")) == 4 * (2 * n + 2 * c + 2 * c)
    # running statistics are read and written, the batch's are saved
    assert minimal_bytes(Kernel("batch_norm", "m", "float32", "forward-train")) == 4 * (2 * n + 2 * c + 4 * c + 2 * c)
    assert minimal_bytes(Kernel("batch_norm", "m", "float32", "backward")) == 4 * (3 * n + 4 * c + 2 * c)


def test_bytes_of_rms_norm_have_no_bias():
    n, rows, width = 4 * 128 * 768, 4 * 128, 768
    assert minimal_bytes(Kernel("rms_norm", "m", "float32", "forward-eval")) == 4 * (2 * n + width)
    assert minimal_bytes(Kernel("rms_norm", "m", "float32", "backward")) == 4 * (3 * n + 2 * width + rows)


@pytest.mark.parametrize("direction", kernels.PASSES)
@pytest.mark.parametrize("norm", kernels.NORMS)
def test_the_formula_computes_what_the_kernel_does(small, norm, direction):
    kernel = Kernel(norm, "s", "float32", direction)
    try:
        ours, theirs = kernels.build_formula(kernel, seed=3)(), kernels.build(kernel, seed=3)()
    except kernels.Unsupported as missing:
        pytest.skip(str(missing))
    # two float32 evaluations of one law: gradients of weights are sums over 30 to 60 terms of size 1 to 10
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operation", ["copy", "triad"])
def test_slices_cover_the_arrays_once(operation):
    slices = getattr(kernels, f"{operation}_slices")(12_000, 2_400)
    arrays = 2 if operation == "copy" else 3
    assert sum(run().numel() for run in slices) == 12_000 // (4 * arrays)


def test_triad_adds_a_multiple():
    a, b, c = torch.zeros(4), torch.ones(4), torch.full((4,), 2.0)
    assert torch.equal(torch.add(b, c, alpha=1.5, out=a), torch.full((4,), 4.0))


def test_the_worker_answers_in_the_interpreter_of_this_test():
    worker = Path(kernels.__file__).with_name("worker.py")
    requests = [
        {"do": "build", "kernel": "layer_norm/s/float32/forward-eval"},
        {"do": "rough"},
        {"do": "block", "calls": 2, "slowdown": 1.0},
        {"do": "build", "kernel": "copy:4096"},
        {"do": "block", "calls": 1},
        {"do": "build", "kernel": "layer_norm/s/float32/sideways"},
        {"do": "quit"},
    ]
    text = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run([sys.executable, str(worker)], input=text, capture_output=True, text=True, check=True)
    about, _, rough, block, _, copy, unknown = (json.loads(line) for line in io.StringIO(done.stdout))
    assert about["torch"] == torch.__version__
    assert rough["ns"] > 0
    assert block["ns"] > 0
    assert copy["ns"] > 0
    assert unknown["error"] == "ValueError: no such kernel: layer_norm/s/float32/sideways"
