"""Replacements: arguments are handed on by name, and each wrong layer is red by the claim that it breaks."""

import json
import os
import subprocess
import sys

import pytest
import torch

from torch_conformance.errors import UsageError
from torch_conformance.replacements import NotTaken, Replacement, parse
from torch_conformance.settings import ROOT

LAYERS = """
import torch

class Dropout(torch.nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        return x * torch.empty_like(x).bernoulli_(1 - self.p) / (1 - self.p) if self.training else x

class Unscaled(Dropout):
    def forward(self, x):
        return x * torch.empty_like(x).bernoulli_(1 - self.p) if self.training else x

def dropout(input, p=0.5, training=True, inplace=False):
    return torch.nn.functional.dropout(input, p, training, inplace)
"""


def own(size, eps=1e-5):
    return size, eps


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((7,), {}, (7, 1e-5)),
        ((7, 0.1), {}, (7, 0.1)),
        ((7,), {"eps": 0.1, "elementwise_affine": True}, (7, 0.1)),
        ((), {"normalized_shape": 7}, (7, 1e-5)),
    ],
)
def test_arguments_go_by_name(args, kwargs, expected):
    assert Replacement("torch.nn.LayerNorm", torch.nn.LayerNorm, own)(*args, **kwargs) == expected


def test_arguments_of_a_builtin_go_by_the_names_in_its_docstring():
    def linear(input, weight):
        return input, weight

    replacement = Replacement("torch.nn.functional.linear", torch.nn.functional.linear, linear)
    assert replacement(1, 2, None) == (1, 2)
    with pytest.raises(NotTaken, match="takes no bias=3"):
        replacement(1, 2, bias=3)


def test_an_argument_that_it_lacks_is_named():
    with pytest.raises(NotTaken, match="takes no elementwise_affine=False"):
        Replacement("torch.nn.LayerNorm", torch.nn.LayerNorm, own)(7, elementwise_affine=False)


@pytest.mark.parametrize(
    "text", ["torch.nn.LayerNorm", "torch.nn.Absent=os:path", "torch.nn.LayerNorm=absent:X", "a=b"]
)
def test_bad_input_is_one_line(text):
    with pytest.raises(UsageError, match="--replace") as caught:
        parse(text)
    assert "\n" not in str(caught.value)


NORMS = """
import torch
from torch import nn

class Right(nn.Module):
    def __init__(self, normalized_shape, eps=None, elementwise_affine=True):
        super().__init__()
        self.shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
        self.weight = nn.Parameter(torch.ones(self.shape)) if elementwise_affine else None
        self.eps = torch.finfo(torch.float32).eps if eps is None else eps

    def forward(self, x):
        if list(x.shape[-len(self.shape):]) != self.shape:
            raise RuntimeError(f"normalized_shape={self.shape}")
        axes = tuple(range(-len(self.shape), 0))
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        y = y * torch.rsqrt(y.square().mean(axes, keepdim=True) + self.eps)
        return (y if self.weight is None else y * self.weight.to(y.dtype)).to(x.dtype)

class Biased(nn.BatchNorm1d):
    def forward(self, x):
        if self.training and self.running_var is not None and len(x):
            n = x.numel() // x.shape[1]
            with torch.no_grad():
                before = self.running_var.clone()
            y = super().forward(x)
            self.running_var.data = before + (self.running_var - before) * (1 - 1 / n)
            return y
        return super().forward(x)
"""


def test_a_planted_fault_is_red_by_its_claim_and_a_right_layer_is_not(tmp_path):
    (tmp_path / "planted.py").write_text(NORMS)
    path = tmp_path / "out.jsonl"
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--device", "cpu", f"--results={path}"]
    words += ["--claim", "norms.rmsnorm.[!d]*", "--claim", "batchnorm.running.*"]
    words += ["--replace=torch.nn.RMSNorm=planted:Right", "--replace=torch.nn.BatchNorm1d=planted:Biased"]
    words += ["test_norms/test_rmsnorm.py", "test_norms/test_batchnorm.py"]
    here = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, env=here, check=False, capture_output=True)
    cases = [r for r in map(json.loads, path.read_text().splitlines()) if r["kind"] == "case"]
    violated = {c["claim"] for c in cases if c["outcome"] == "violated"}
    assert "batchnorm.running.variance-unbiased" in violated
    assert not any(name.startswith("norms.") for name in violated)
    assert {c["claim"].partition(".")[0] for c in cases if c["outcome"] == "holds"} == {"norms", "batchnorm"}


TESTS = """
    import torch.nn.functional as F

    @claim("house.topic.holds")
    def test_scale(case):
        y = case.module(nn.Dropout, p=0.75)(torch.ones(99))
        assert set(y.tolist()) == {0.0, 4.0}

    @claim("house.topic.holds")
    def test_function(case):
        assert set(case.function(F.dropout)(torch.ones(99), 0.75).tolist()) == {0.0, 4.0}

    @claim("house.topic.holds")
    def test_inplace(case):
        case.module(nn.Dropout, p=0.5, inplace=True)
"""


@pytest.mark.parametrize(
    ("replace", "counts"),
    [
        ("torch.nn.Dropout=layers:Dropout", {"passed": 1, "unsupported": 1, "unconcerned": 1}),
        ("torch.nn.Dropout=layers:Unscaled", {"failed": 1, "unsupported": 1, "unconcerned": 1}),
        ("torch.nn.functional.dropout=layers:dropout", {"passed": 1, "unconcerned": 2}),
    ],
)
def test_only_tests_about_the_replaced_judge(house, pytester, replace, counts):
    pytester.makepyfile(layers=LAYERS)
    pytester.syspathinsert()
    assert house(TESTS, "--replace", replace).parseoutcomes() == counts


LISTED = """
[[deviation]]
claim = "house.topic.holds"
shows = "anything"
reason = "As torch has it."
observed = "Nothing."
expires = "2999-01-01"
"""


def test_a_replacement_need_not_have_the_faults_that_are_listed_of_torch(house, pytester):
    pytester.makepyfile(layers=LAYERS)
    pytester.syspathinsert()
    result = house(TESTS, "--replace", "torch.nn.Dropout=layers:Dropout", deviations=LISTED)
    assert result.parseoutcomes() == {"passed": 1, "unsupported": 1, "unconcerned": 1}


def test_what_no_test_asks_for_is_no_pass(house):
    result = house(TESTS, "--replace", "torch.nn.LayerNorm=torch.nn:LayerNorm")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["no test that ran asks its case for torch.nn.LayerNorm"])
