"""Gradient clipping: by the common norm, which is returned, or element by element."""

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parameters_to_vector, vector_to_parameters

from specs.reference import clipping as reference
from test_optim.stepping import give_gradients, parameters_of
from torch_conformance.axes import FLOATING, PRECISE, REDUCED
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

SHAPES = [(7,), (3, 5), (1,), (33,)]
SIZE = 7 + 15 + 1 + 33
NORMS = [1.0, 1.5, 2.0, 3.0, math.inf]
foreach = pytest.mark.parametrize("foreach", [None, False, True])


def clip(case, function, *args, foreach=None, **kwargs):
    if foreach is not None and "foreach" not in inspect.signature(function).parameters:
        raise case.unsupported(f"{function.__name__} of torch {torch.__version__} knows no foreach")
    if case.via == "vmap":
        raise case.unsupported("via vmap: gradients are attributes of tensors, of which it maps the values alone")
    return case.function(function)(*args, **kwargs, **({} if foreach is None else {"foreach": foreach}))


def with_gradients(case, shapes=SHAPES):
    parameters = parameters_of(case, shapes)
    give_gradients(case, parameters)
    parameters[1].grad = parameters[1].grad.t().contiguous().t()
    return parameters, [array(p.grad).copy() for p in parameters]


@claim("clipping.norm.law")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("p", NORMS)
def test_gradients_are_scaled_to_the_norm(case, foreach, p):
    parameters, gradients = with_gradients(case)
    norm = reference.total_norm(gradients, p)
    found = clip(case, clip_grad_norm_, parameters, norm / 3, norm_type=p, foreach=foreach)
    # in sums of powers each of the terms rounds once for the power and once for the sum, and roots shrink errors;
    # a term is at most the sum, so that tensors of up to 33 elements and four norms leave 2 (33 + 4) roundings, which
    # below float32 are made in float32; there each tensor's norm and that of all, and in old releases the sums before
    # their roots, are rounded by half an eps each
    k = 2 * (33 + 4) * min(1.0, torch.finfo(torch.float32).eps / torch.finfo(case.dtype).eps) + 2
    case.close(found, norm, k=k)
    for q, g in zip(parameters, gradients, strict=True):
        case.close(q.grad, g * reference.coefficient(norm, norm / 3), k=k + 4)


@claim("clipping.norm.law")
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(("p", "norm"), [(1.0, 7.0), (2.0, 5.0), (math.inf, 4.0)])
def test_the_norm_reaches_the_end_of_a_long_gradient(case, foreach, p, norm):
    parameters = parameters_of(case, [(70_001,), (1,)])
    for parameter, last in zip(parameters, (4.0, 3.0), strict=True):
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad[-1] = last
    case.close(clip(case, clip_grad_norm_, parameters, 0.5, norm_type=p, foreach=foreach), norm, k=2)
    for parameter, last in zip(parameters, (4.0, 3.0), strict=True):
        case.close(parameter.grad[-1], last * reference.coefficient(norm, 0.5), k=4)


@claim("clipping.norm.law")
@axes(dtype=REDUCED)
@foreach
def test_the_norm_counts_every_one_of_many_in_low_precision(case, foreach):
    parameters = parameters_of(case, [(4096,)] * 16 + [(1,)])
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    case.close(clip(case, clip_grad_norm_, parameters, 64.0, foreach=foreach), 256.0, k=2)
    for parameter in parameters:
        case.close(parameter.grad, np.full(parameter.shape, 0.25), k=3)


@claim("clipping.norm.counts-nonzeros")
def test_the_norm_of_order_zero_counts_by_tensors(case):
    parameters, _ = with_gradients(case)
    parameters[0].grad[2:4] = 0
    case.same(clip(case, clip_grad_norm_, parameters, 1e9, norm_type=0.0).double(), torch.tensor(4.0).double())


@claim("clipping.norm.never-enlarges")
@axes(dtype=("float32", "bfloat16"))
@foreach
def test_small_gradients_stay_bit_by_bit(case, foreach):
    parameters, gradients = with_gradients(case)
    before = [p.grad.clone() for p in parameters]
    clip(case, clip_grad_norm_, parameters, 2 * reference.total_norm(gradients), foreach=foreach)
    for p, g in zip(parameters, before, strict=True):
        case.same(p.grad, g)


@claim("clipping.norm.eps")
@axes(dtype=PRECISE)
@foreach
def test_a_millionth_is_added_to_the_norm(case, foreach):
    p = case.tensor(5, requires_grad=True)
    p.grad = torch.full_like(p, 2.0**-20)
    norm = reference.total_norm([array(p.grad)])
    clip(case, clip_grad_norm_, [p], 1e-7, foreach=foreach)
    case.close(
        p.grad, np.full(5, 2.0**-20 * reference.coefficient(norm, 1e-7)), k=2 * 5 + 6
    )  # five squares, and the scaling


@claim("clipping.norm.returns-the-norm-before")
@foreach
def test_what_is_returned_is_the_norm_before(case, foreach):
    (p,) = parameters_of(case, [(2,)])
    p.grad = case.tensor_of([3.0, 4.0])
    found = clip(case, clip_grad_norm_, p, 1.0, foreach=foreach)
    case.same(found, torch.tensor(5.0, dtype=case.dtype))
    assert not found.requires_grad


@claim("clipping.norm.in-place")
@foreach
def test_gradients_are_scaled_in_place(case, foreach):
    parameters, _ = with_gradients(case)
    tensors, silent = [p.grad for p in parameters], case.tensor(3, requires_grad=True)
    named = {f"p{i}": p for i, p in enumerate(parameters)} | {"silent": silent}
    with case.unchanged(**named, but={f"p{i}.grad" for i in range(len(parameters))}):
        clip(case, clip_grad_norm_, [*parameters, silent], 0.1, foreach=foreach)
    assert all(p.grad is tensor for p, tensor in zip(parameters, tensors, strict=True))


@claim("clipping.norm.any-iterable")
def test_a_tensor_a_list_or_a_generator_is_taken(case):
    layer = case.module(nn.Linear, 3, 2)
    results = []
    for parameters in (list(layer.parameters()), layer.parameters(), tuple(layer.parameters())):
        layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), torch.ones_like(layer.bias)
        case.same(clip_grad_norm_(parameters, 1.0), case.tensor_of(8.0).sqrt())
        results.append(layer.weight.grad.clone())
    case.same(results[0], results[1])
    case.same(results[0], results[2])
    assert (results[0] < 0.4).all()


@claim("clipping.norm.nothing-to-clip")
def test_without_gradients_the_norm_is_zero(case):
    case.same(clip_grad_norm_([case.tensor(3, requires_grad=True)], 1.0), torch.tensor(0.0))


@claim("clipping.norm.nonfinite")
@foreach
@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_nonfinite_norm_spoils_all_gradients_in_silence(case, foreach, bad, p):
    parameters, _ = with_gradients(case)
    parameters[1].grad[0, 0] = bad
    found = clip(case, clip_grad_norm_, parameters, 1.0, norm_type=p, foreach=foreach)
    assert not torch.isfinite(found)
    for p in parameters:
        assert p.grad.isnan().all() if math.isnan(bad) else (p.grad.isnan() | (p.grad == 0)).all()


@claim("clipping.norm.error-if-nonfinite")
@foreach
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_nonfinite_norm_is_an_error_when_asked(case, foreach, bad):
    parameters, _ = with_gradients(case)
    parameters[1].grad[0, 0] = bad
    before = [p.grad.clone() for p in parameters]
    with case.raises(RuntimeError, "non-finite"):
        clip(case, clip_grad_norm_, parameters, 1.0, error_if_nonfinite=True, foreach=foreach)
    for p, g in zip(parameters, before, strict=True):
        case.same(p.grad, g)
    parameters[1].grad.zero_()
    assert clip(case, clip_grad_norm_, parameters, 1.0, error_if_nonfinite=True, foreach=foreach).isfinite()


@claim("clipping.norm.several-dtypes")
@foreach
def test_gradients_of_several_dtypes_share_one_norm(case, foreach):
    parameters = [case.tensor(9, dtype=d, requires_grad=True) for d in (torch.float32, torch.float64, torch.float32)]
    for p in parameters:
        p.grad = torch.full_like(p, 2.0)
    found = clip(case, clip_grad_norm_, parameters, 1.0, foreach=foreach)
    case.close(found.float(), math.sqrt(27 * 4), k=2 * 12)  # nine squares and three norms
    for p in parameters:
        case.close(p.grad.float(), np.full(9, 2 / (math.sqrt(108) + 1e-6)), k=2 * 12 + 4)


@claim("clipping.norm.in-two-halves")
@axes(dtype=PRECISE)
@foreach
def test_norm_and_scaling_may_be_had_apart(case, foreach):
    parameters, _ = with_gradients(case)
    others = [p.detach().clone().requires_grad_() for p in parameters]
    for p, q in zip(parameters, others, strict=True):
        q.grad = p.grad.clone()
    whole = clip_grad_norm_(parameters, 1.5, norm_type=3.0, foreach=foreach)
    norm = nn.utils.get_total_norm([q.grad for q in others], norm_type=3.0, foreach=foreach)
    nn.utils.clip_grads_with_norm_(others, 1.5, norm, foreach=foreach)
    case.same(norm, whole)
    for p, q in zip(parameters, others, strict=True):
        case.same(p.grad, q.grad)


@claim("clipping.value.law")
@axes(dtype=FLOATING)
@foreach
def test_every_element_is_clamped(case, foreach):
    parameters, gradients = with_gradients(case)
    parameters[0].grad[3], gradients[0][3] = math.nan, math.nan
    clip(case, clip_grad_value_, parameters, 0.75, foreach=foreach)
    for p, g in zip(parameters, gradients, strict=True):
        case.close(p.grad, np.clip(g, -0.75, 0.75), k=0)


@claim("clipping.value.in-place")
@foreach
def test_elements_are_clamped_in_place(case, foreach):
    parameters, _ = with_gradients(case)
    tensors, silent = [p.grad for p in parameters], case.tensor(3, requires_grad=True)
    named = {f"p{i}": p for i, p in enumerate(parameters)} | {"silent": silent}
    with case.unchanged(**named, but={f"p{i}.grad" for i in range(len(parameters))}):
        clip(case, clip_grad_value_, [*parameters, silent], 0.1, foreach=foreach)
    assert all(p.grad is tensor for p, tensor in zip(parameters, tensors, strict=True))


@claim("clipping.value.not-recorded")
@foreach
def test_clamping_is_not_recorded(case, foreach):
    (p,), w = parameters_of(case, [(7,)]), case.tensor(7, requires_grad=True)
    p.grad = recorded = w * 4
    node = recorded.grad_fn
    clip(case, clip_grad_value_, [p], 0.1, foreach=foreach)
    case.same(p.grad.detach(), (w.detach() * 4).clamp(-0.1, 0.1))
    assert p.grad.grad_fn is node


@claim("clipping.value.nothing-to-clip")
@foreach
@pytest.mark.parametrize("count", [0, 2])
def test_without_gradients_no_value_is_clamped(case, foreach, count):
    parameters = parameters_of(case, [(3,)] * count)
    with case.unchanged(**{f"p{i}": p for i, p in enumerate(parameters)}):
        clip(case, clip_grad_value_, parameters, 0.5, foreach=foreach)


@claim("clipping.vector.round-trip")
@axes(dtype=FLOATING)
def test_parameters_become_one_vector_and_back(case):
    parameters = parameters_of(case, [(3, 2), (4,), (2, 1, 3)])
    vector = parameters_to_vector(parameters)
    case.same(vector.detach(), torch.cat([p.detach().reshape(-1) for p in parameters]))
    target = parameters_of(case, [(3, 2), (4,), (2, 1, 3)])
    vector_to_parameters(vector.detach(), target)
    for p, q in zip(parameters, target, strict=True):
        case.same(q.detach(), p.detach())
        assert q.is_leaf


@claim("clipping.vector.layouts")
@axes(via="eager")
@pytest.mark.parametrize(("shape", "order"), [((2, 3), (1, 0)), ((2, 3, 2, 2), (0, 3, 1, 2))])
def test_the_vector_goes_by_index(case, shape, order):
    p = case.tensor(*shape).permute(order)
    case.same(parameters_to_vector([p]), p.reshape(-1))


@claim("clipping.vector.differentiable")
def test_the_vector_is_part_of_the_graph(case):
    parameters, weights = parameters_of(case, [(3, 2), (4,)]), case.tensor(10)
    (parameters_to_vector(parameters) * weights).sum().backward()
    case.same(torch.cat([p.grad.reshape(-1) for p in parameters]), weights)


@claim("clipping.vector.wants-a-vector")
def test_only_a_tensor_is_taken_apart(case):
    with case.raises(TypeError, "torch.Tensor"):
        vector_to_parameters([1.0, 2.0], parameters_of(case, [(2,)]))


# -- what is taken and what is refused ---------------------------------------------------------------------------------


@claim("clipping.norm.order-as-text")
def test_the_order_may_be_given_as_text(case):
    parameters, gradients = with_gradients(case)
    case.close(clip_grad_norm_(parameters, 1e9, norm_type="inf"), reference.total_norm(gradients, math.inf), k=0)
    case.close(clip_grad_norm_(parameters, "1e9"), reference.total_norm(gradients), k=2 * (33 + 4))  # as in the law


@claim("clipping.norm.empty-generator")
def test_an_empty_generator_warns(case):
    with pytest.warns(UserWarning, match="empty generator"):
        clip_grad_norm_((p for p in []), 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip_grad_norm_([], 1.0)
        clip_grad_norm_((p for p in parameters_of(case, [(2,)])), 1.0)


@claim("clipping.norm.sparse")
def test_sparse_gradients_are_scaled_or_refused(case):
    layer, bound = case.module(nn.Embedding, 4, 3, sparse=True), 0.5
    layer(torch.tensor([1, 1, 3], device=case.device)).sum().backward()
    gradient = np.array([0, 2, 0, 1])[:, None] * np.ones(3)
    try:
        norm = clip_grad_norm_(layer.parameters(), bound)
    except NotImplementedError:
        return
    law = reference.total_norm([gradient], 2.0)
    case.close(norm, law, k=8)  # six squares, their sum and its root
    coefficient = reference.coefficient(law, bound)
    case.close(layer.weight.grad.to_dense(), gradient * coefficient, k=12)  # the norm, a sum, a quotient, a product


@claim("clipping.norm.no-elements")
def test_gradients_without_elements_do_not_count(case):
    empty, full = nn.Parameter(case.tensor(0)), nn.Parameter(case.tensor(3))
    empty.grad, full.grad = case.tensor(0), case.tensor_of([3.0, -4.0, 0.0])
    assert float(clip_grad_norm_([empty, full], 10.0)) == 5.0
    assert float(clip_grad_norm_([empty, full], 10.0, norm_type=math.inf)) == 4.0


@claim("clipping.norm.deprecated-name")
def test_the_name_without_underscore_is_deprecated(case):
    parameters, gradients = with_gradients(case)
    with pytest.warns((FutureWarning, UserWarning), match="deprecated"):
        found = nn.utils.clip_grad_norm(parameters, 0.5)
    case.close(found, reference.total_norm(gradients), k=2 * (33 + 4))  # as in the law
    case.close(nn.utils.get_total_norm([p.grad for p in parameters]), np.array(0.5), k=4 * (33 + 4))
    greatest = max(p.grad.abs().max() for p in parameters)
    with pytest.warns((FutureWarning, UserWarning)):
        case.same(nn.utils.clip_grad_norm(parameters, 0.5, norm_type=math.inf), greatest)
    parameters[0].grad[0] = math.inf
    with pytest.warns((FutureWarning, UserWarning)):
        assert torch.isinf(nn.utils.clip_grad_norm(parameters, 0.5)), "refused a non-finite norm unasked"
    with pytest.warns((FutureWarning, UserWarning)), case.raises(RuntimeError, "non-finite"):
        nn.utils.clip_grad_norm(parameters, 0.5, error_if_nonfinite=True)
    assert torch.isinf(nn.utils.get_total_norm([torch.tensor([math.inf])]))


@claim("clipping.norm.in-two-halves")
def test_the_halves_take_one_tensor_too(case):
    (p,) = parameters = parameters_of(case, [(7,)])
    give_gradients(case, parameters)
    before = array(p.grad).copy()
    norm = nn.utils.get_total_norm(p.grad)
    case.close(norm, np.sqrt((before**2).sum()), k=7)  # seven squares and sums, halved by the root
    nn.utils.clip_grads_with_norm_(p, "0.5", norm)
    case.close(p.grad, before * 0.5 / (array(norm) + 1e-6), k=4)  # sum, quotient, product
    assert nn.utils.clip_grads_with_norm_((q for q in [case.tensor(3)]), 0.5, norm) is None
    case.same(nn.utils.get_total_norm([]), torch.tensor(0.0))


@claim("clipping.foreach.devices")
def test_foreach_is_refused_where_no_kernel_is(case):
    p = torch.zeros(3, device="meta", requires_grad=True)
    p.grad = torch.zeros(3, device="meta")
    norm = torch.zeros((), device="meta")
    for clips in (
        lambda foreach: nn.utils.get_total_norm([p.grad], foreach=foreach),
        lambda foreach: nn.utils.clip_grads_with_norm_([p], 1.0, norm, foreach=foreach),
        lambda foreach: clip_grad_value_([p], 1.0, foreach=foreach),
    ):
        with case.raises(RuntimeError, "can't use the foreach API on meta"):
            clips(True)
        for foreach in (None, False):
            clips(foreach)


@claim("clipping.value.one-tensor")
def test_values_are_clamped_of_one_tensor_or_of_many(case):
    (p,) = parameters = parameters_of(case, [(7,)])
    for given in (p, parameters, iter(parameters)):
        p.grad = torch.full_like(p, -3.0)
        clip_grad_value_(given, "0.5")
        case.same(p.grad, torch.full_like(p, -0.5))
