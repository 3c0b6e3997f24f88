"""Devices: the probe, what a backend may state, and that what is lacking is said and counted."""

import json
import subprocess
import sys

import pytest
import torch

from torch_conformance import devices
from torch_conformance.axes import LAYOUTS, Axes, Point
from torch_conformance.case import Case, Unsupported
from torch_conformance.errors import UsageError
from torch_conformance.marks import since
from torch_conformance.settings import ROOT

CPU = torch.device("cpu")


def test_the_cpu_lacks_nothing():
    profile = devices.probe("cpu")
    assert profile.lacks == []
    assert profile.layouts == LAYOUTS


def test_what_a_backend_states_goes_before_the_probe():
    profile = devices.probe("cpu", [{"dtypes": ["float32"], "autograd": False}])
    assert profile.lacks == ["float64", "bfloat16", "float16", "autograd"]
    assert profile.lacking(Point("cpu", "float64")) == "device cpu does not compute in float64"
    assert profile.lacking(Point("cpu", "float32")) is None


def test_a_backend_may_name_whose_kernels_compute_for_it():
    assert devices.probe("cpu").computed_by == "cpu"
    assert devices.probe("cpu", [{"kernels": "other"}]).computed_by == "other"


def test_a_device_without_strides_lacks_the_layouts(monkeypatch):
    answers = iter([torch.ones(2, 3), torch.ones(3, 2).t()])  # of the device, of the host: alike in all values
    monkeypatch.setattr(devices, "lay_out", lambda x, layout: next(answers))
    assert not devices.arranges(CPU, "transposed")


def test_a_statement_that_nobody_knows_is_refused(tmp_path, monkeypatch):
    (tmp_path / "stating.py").write_text("conformance_profile = {'colour': 'red'}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="knows no 'colour'"):
        devices.load_backend("stating")


def test_a_device_that_answers_wrongly_is_found_lacking():
    assert not devices.works(lambda: 1 / 0)
    assert devices.works(devices.differentiates, CPU)
    assert devices.works(devices.repeats, CPU)


@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4, 5), (2, 3, 2, 2, 2), (0, 3)])
def test_a_layout_keeps_the_values(layout, shape):
    x = torch.randn(shape)
    assert torch.equal(devices.lay_out(x, layout), x)


@pytest.mark.parametrize(("layout", "strides"), [("channels_last", (24, 1, 6, 2)), ("transposed", (1, 6, 2, 24))])
def test_a_layout_is_another_order_of_memory(layout, strides):
    laid = devices.lay_out(torch.randn(5, 2, 4, 3), layout)
    assert laid.stride() == strides or not laid.is_contiguous()


def test_a_numbered_device_is_of_the_kind_that_deviations_name():
    assert devices.Profile("cuda:1", "", ()).computed_by == "cuda"
    assert devices.Profile("miniature:0", "", (), kernels="cpu").computed_by == "cpu"


def test_a_dtype_that_makes_no_difference_is_one_that_the_device_has():
    (point,) = Axes().points("cpu", ("float32", "float64"), ("float64", "bfloat16"), ("eager",))
    assert point.dtype == "float64"


def test_a_dtype_that_makes_no_difference_is_the_same_whichever_are_asked_for():
    (point,) = Axes().points("cpu", ("bfloat16",), ("float32", "bfloat16"), ("eager",))
    assert point.dtype == "float32"


def test_dtypes_that_the_device_lacks_are_points_all_the_same():
    points = Axes(dtype=("float32", "float64")).points("cpu", ("float32", "float64"), ("float32",), ("eager",))
    assert [point.dtype for point in points] == ["float32", "float64"]


VERDICTS = {
    "right": set(),
    "biased_variance": {
        f"batchnorm.running.{name}"
        for name in ("update", "variance-unbiased", "many-steps", "first-mean", "momentum-none", "momentum-one")
    },
    "unscaled_dropout": {"dropout.train.survivors-scaled", "dropout.eval.scales-nothing"},
    "overwritten_gradients": {"autograd.accumulate.adds", "autograd.accumulate.adds-to-what-is-there"},
}


@pytest.mark.skipif(not since("2.11"), reason="a device in pure Python needs torch 2.11")
@pytest.mark.parametrize("name", VERDICTS)
def test_the_miniatures_are_told_apart(tmp_path, name):
    claims = ["dropout.train.survivors-scaled", "dropout.eval.*", "batchnorm.running.*", "autograd.accumulate.adds*"]
    chosen = [word for claim in claims for word in ("--claim", claim)]
    backend = ["--backend", f"selftest.miniature.{name}", "--device", "miniature", "--dtype", "float32"]
    files = ["test_modes/test_dropout.py", "test_norms/test_batchnorm.py", "test_autograd/test_accumulation.py"]
    path = tmp_path / "out.jsonl"
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", *backend, *chosen, f"--results={path}", *files]
    subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, check=False, capture_output=True)
    cases = [r for r in map(json.loads, path.read_text().splitlines()) if r["kind"] == "case"]
    assert {c["claim"] for c in cases if c["outcome"] == "violated"} == VERDICTS[name]
    assert "broken" not in {c["outcome"] for c in cases}
    assert "holds" in {c["outcome"] for c in cases}


class Offering:
    """A backend that brings a generator of its own, and whose device torch itself knows nothing of."""

    drawn = 0

    def manual_seed(self, number):
        self.drawn = number

    def get_rng_state(self):
        return self.drawn


def test_a_backend_seeds_what_torch_does_not_know(monkeypatch):
    device, backend = torch.device("vulkan"), Offering()
    assert not hasattr(torch, "vulkan")
    assert devices.rng_state(device) is None
    monkeypatch.setattr(devices, "BACKENDS", [backend])
    devices.seed(device, 7)
    assert backend.drawn == 7
    assert int(devices.rng_state(device)) == 7
    devices.seed(CPU, 9)
    assert backend.drawn == 7


def test_a_generator_that_nobody_can_see_is_not_judged(monkeypatch):
    case = Case(Point("cpu", "float32"), "name", 0)
    case.device = torch.device("vulkan")
    with pytest.raises(Unsupported, match="the state of vulkan's generator"), case.unchanged(but={"rng"}):
        raise AssertionError("the block must not run")
