"""Replacements: arguments are handed on by name, and each wrong layer is red by the claim that it breaks."""

import pytest
import torch

from torch_conformance.errors import UsageError
from torch_conformance.replacements import NotTaken, Replacement, parse

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
