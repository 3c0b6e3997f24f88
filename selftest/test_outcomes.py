"""Outcomes: what torch says it lacks is excused in low precision and on other devices, and nowhere else."""

import pytest

from torch_conformance.axes import Point
from torch_conformance.outcomes import judge

LACKING = {
    "a dtype of a kernel": "\"LayerNormKernelImpl\" not implemented for 'Half'",
    "an operator of a device": "Could not run 'aten::_foo' with arguments from the 'Bar' backend.",
    "an operator, in a device's words": "The operator 'aten::_foo' is not currently implemented for the MPS device.",
    "a sort of tensor": "the raw Tensor object is already associated to a python object of type FakeTensor",
    "collectives": "No backend type associated with device type bar",
    "float64": "the MPS framework doesn't support float64",
    "a dtype, by those it takes": "one of the following scalar types: Float, Double; but got CPUBFloat16Type instead",
}


def outcome(message: str, device: str = "cpu", dtype: str = "bfloat16", via: str = "eager") -> str:
    return judge(RuntimeError(message), Point(device, dtype, via=via)).name


@pytest.mark.parametrize("message", LACKING.values(), ids=LACKING)
def test_what_torch_says_it_lacks_is_unsupported_in_low_precision(message):
    assert outcome(message) == "unsupported"


@pytest.mark.parametrize("message", LACKING.values(), ids=LACKING)
def test_another_device_may_lack_it_in_any_dtype(message):
    assert outcome(message, device="bar", dtype="float32") == "unsupported"


@pytest.mark.parametrize("message", LACKING.values(), ids=LACKING)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_of_the_cpu_nothing_may_be_lacking_in_full_precision(message, dtype):
    assert outcome(message, dtype=dtype) == "violated"


@pytest.mark.parametrize("message", ["mat1 and mat2 shapes cannot be multiplied", "got Half", "not implemented"])
def test_any_other_error_violates(message):
    assert outcome(message) == "violated"


def test_another_error_than_the_claimed_one_excuses_if_it_names_a_lack():
    error = AssertionError("ValueError was claimed")
    error.__cause__ = RuntimeError(LACKING["a dtype of a kernel"])
    assert judge(error, Point("cpu", "float16")).name == "unsupported"
    assert judge(error, Point("cpu", "float32")).name == "violated"


@pytest.mark.parametrize(("via", "expected"), [("vmap", "unsupported"), ("eager", "violated")])
def test_what_a_via_lacks_is_no_fault_of_another(via, expected):
    assert outcome("Batching rule not implemented for aten::foo", dtype="float32", via=via) == expected
