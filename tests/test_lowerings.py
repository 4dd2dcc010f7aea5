"""Every lowering gives what ATen gives, where its rule is true; the table is lowering_cases.py."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_cases import ROWS
from lowering_rows import ALL, derivative
from tensors import FORMATS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap

import funcnets
from funcnets import optim, tree
from funcnets.compiler import DEFAULT
from funcnets.compiler.kernels import build
from funcnets.compiler.lowerings import bfloat16

aten = torch.ops.aten
VARIANTS = [
    pytest.param(row, variant, id=f"{name}, {kind}")
    for name, row in ROWS.items()
    for kind, variant in row.variants.items()
]
EXACT_DTYPES = (torch.float64, torch.float32, torch.bfloat16)
masks = st.tuples(st.booleans(), st.booleans(), st.booleans())


@pytest.fixture(autouse=True)
def processor(request, monkeypatch):
    """The processor that the rules of a test's row are tested for."""
    if "row" in request.fixturenames:
        for module, name, answer in request.getfixturevalue("row").processor:
            monkeypatch.setattr(module, name, lambda answer=answer: answer)


def calls_of(row, call):
    """The lowerings of a row, each with its call."""
    derivatives = [derivative(row, call)] if row.backward else []
    return zip(row.lowerings, [call, *derivatives], strict=True)


def check(row, lowering, call, dtype):
    """The results are as near to those of exact arithmetic as the row says."""
    exact = call.to(torch.float64)
    expected, sizes = exact.of(lowering.operation), exact.magnitude().of(lowering.operation)
    results = call.of(lowering.rewrite)
    for actual, value, size in zip(results, expected, sizes, strict=True):
        if value is None:
            assert actual is None or lowering in bfloat16.LOWERINGS  # ATen gives it in float32
            continue
        assert actual.dtype == (dtype if value.is_floating_point() else value.dtype)
        error = (actual.double() - value.double()).abs().max()
        assert error <= row.bound(dtype) * size.abs().max()
    if lowering in row.same_bits:
        assert all(map(torch.equal, results, call.of(lowering.operation)))
    if row.rounds_once and dtype is torch.bfloat16:
        pairs = zip(results[:2], call.to(torch.float32).of(lowering.rewrite)[:2], strict=True)
        assert all(a is b is None or torch.equal(a, b.bfloat16()) for a, b in pairs)
    return results


@pytest.mark.parametrize(
    ("row", "variant", "dtype"),
    [
        pytest.param(*each.values, dtype, id=f"{each.id}, {dtype}")
        for each in VARIANTS
        for dtype in EXACT_DTYPES
        if dtype in each.values[0].dtypes
    ],
)
def test_results_are_those_of_aten(row, variant, dtype):
    for lowering, call in calls_of(row, variant.example.to(dtype)):
        check(row, lowering, call, dtype)  # which compiles its kernel
    if variant.calls is None:
        return
    share = 5 if dtype is row.dtypes[0] else 20

    @settings(max_examples=settings.default.max_examples // share)
    @given(variant.calls, st.tuples(*[st.sampled_from(list(FORMATS))] * 3), masks)
    def holds(call, formats, mask):
        chosen = itertools.cycle(FORMATS[each] for each in formats)
        call = call.to(dtype).map(lambda x: next(chosen)(x))
        is_convolution = row.forward.operation is aten.convolution.default
        if is_convolution and not mask[2]:
            call = call.replace(2, None)  # no bias
        check(row, row.forward, call, dtype)
        if row.backward is None:
            return
        call = derivative(row, call, mask)
        gradients = check(
            row, row.backward, call.replace(0, next(chosen)(call.arguments[0])), dtype
        )
        weight = call.arguments[2] if is_convolution else None
        if row.keeps_weight_format and mask[1] and weight.is_contiguous():
            assert gradients[1].stride() == torch.empty(weight.shape).stride()

    holds()


@pytest.mark.parametrize(("row", "variant"), VARIANTS)
def test_rules_are_true_for_their_dtypes_on_a_cpu(row, variant):
    for lowering, call in calls_of(row, variant.example):
        for dtype in ALL:
            typed = call.to(dtype)
            assert bool(typed.of(lowering.applies)[0]) == (dtype in row.dtypes)
            assert not typed.map(lambda x: x.to("meta")).of(lowering.applies)[0]


@pytest.mark.parametrize(
    ("row", "call"),
    [
        pytest.param(row, call, id=f"{name}, {reason}")
        for name, row in ROWS.items()
        for reason, call in row.stays.items()
    ],
)
def test_rules_leave_other_calls(row, call):
    for lowering, each in calls_of(row, call.to(row.dtypes[0])):
        assert not each.of(lowering.applies)[0]


CONVOLUTIONS = {
    name: row
    for name, row in ROWS.items()
    if row.backward and row.backward.operation is aten.convolution_backward.default
    if row.forward not in bfloat16.LOWERINGS  # which let ATen raise the error, in float32
}
# Arguments of a convolution, changed so that they don't fit together, or are beyond all rules.
CHANGES = {
    "one stride": {3: lambda stride: [1]},
    "negative padding": {4: lambda padding: [-1, 1]},
    "large kernel": {0: lambda x: x[..., :1, :1], 4: lambda padding: [0, 0]},
    "channels": {0: lambda x: torch.cat([x, x], 1)},
    "rank": {0: lambda x: x[0]},
    "empty batch": {0: lambda x: x[:0]},
    "length of the bias": {2: lambda bias: torch.cat([bias, bias])},
    "dtype of the bias": {2: lambda bias: bias.long()},
    "dtype of the weight": {1: lambda weight: weight.half()},
    "no outputs": {1: lambda weight: weight[:0], 2: lambda bias: None},
    "dilation": {5: lambda dilation: [2, 1], 4: lambda padding: [9, 9]},
    "transposed": {6: lambda transposed: True},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("row", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_rules_leave_operands_that_do_not_fit(row, change):
    """Their error is ATen's."""
    (call, *_) = (variant.example for variant in row.variants.values())
    x, weight, bias, *rest = call.arguments
    arguments = [
        change.get(i, lambda x: x)(each) for i, each in enumerate([x, weight, bias, *rest])
    ]
    assert not row.forward.applies(*arguments)
    x, weight, _, *rest = arguments
    if change.keys() != {2}:
        assert not row.backward.applies(x, x, weight, None, *rest, [True, True, False])


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_without_a_compiler(row, monkeypatch):
    monkeypatch.setattr(build, "is_available", lambda: False)
    for variant in row.variants.values():
        for lowering, call in calls_of(row, variant.example.to(row.dtypes[0])):
            assert bool(call.of(lowering.applies)[0]) is not row.needs_compiler


@pytest.mark.parametrize(("row", "variant"), VARIANTS)
def test_preparation_begins_the_kernels_that_a_rewrite_calls(row, variant, monkeypatch):
    """And rules begin none."""
    begun, library = [], build._library
    monkeypatch.setattr(build, "_library", lambda *key: begun.append(key) or library(*key))
    for dtype in row.dtypes:
        for lowering, call in calls_of(row, variant.example.to(dtype)):
            call.of(lowering.applies)
            assert begun == []
            call.of(lowering.prepare)
            prepared = set(begun)
            begun.clear()
            call.of(lowering.rewrite)
            assert set(begun) <= prepared
            assert bool(begun) or not row.needs_compiler
            begun.clear()


@pytest.mark.parametrize(("row", "variant"), VARIANTS)
def test_results_have_the_layout_of_fake_ones(row, variant):
    mode = FakeTensorMode()
    for in_format in FORMATS.values():
        example = variant.example.to(row.dtypes[0]).map(in_format)
        for lowering, call in calls_of(row, example):
            with mode:
                fakes = call.map(mode.from_tensor).of(lowering.rewrite)
            for actual, fake in zip(call.of(lowering.rewrite), fakes, strict=True):
                if actual is not None:
                    layouts = [(x.shape, x.stride(), x.dtype) for x in (actual, fake)]
                    assert layouts[0] == layouts[1]
        if row.result_format:
            result = example.of(row.forward.rewrite)[0]
            assert result.is_contiguous(memory_format=row.result_format)


def in_all_ways(row, call):
    """A function of a call's tensors: Hessian products, and gradients for each example."""

    def loss(*tensors):
        results = tree.leaves(call.on(row.forward.operation, tensors))
        return sum(x.square().sum() for x in results if x.is_floating_point())

    positions = tuple(range(len(call.tensors)))
    gradient = grad(loss, positions)

    def function(*tensors):
        product = jvp(gradient, tensors, tensors)
        if not row.per_example:
            return product
        others = (None,) * (len(tensors) - 1)
        return product, vmap(gradient, (0, *others))(tensors[0][:, None], *tensors[1:])

    return function


@pytest.mark.parametrize(
    ("row", "backend"),
    [
        pytest.param(row, backend, id=f"{name}, {backend}")
        for name, row in ROWS.items()
        for backend in row.backends
    ],
)
def test_derivatives_and_vmap_in_a_graph(row, backend):
    """The lowerings take part, and the numbers are those of the function as it is."""
    (call, *_) = (variant.example for variant in row.variants.values())
    call = call.to(row.dtypes[0])
    function = in_all_ways(row, call)
    jitted = funcnets.jit(function, backend=backend)
    actual = tree.leaves(jitted(*call.tensors))
    expected = tree.leaves(function(*call.to(torch.float64).tensors))
    distance = optim.global_norm([a.double() - b for a, b in zip(actual, expected, strict=True)])
    assert distance <= 16 * row.bound(row.dtypes[0]) * optim.global_norm(expected)
    fired = jitted.trace(*call.tensors).fired
    assert {lowering.name for lowering in row.lowerings} <= fired.keys()


def test_every_lowering_has_a_row():
    assert {lowering for row in ROWS.values() for lowering in row.lowerings} == set(DEFAULT)


def test_a_lowering_is_named_after_its_file():
    for lowering in DEFAULT:
        module = lowering.rewrite.__module__.rpartition(".")[2]
        assert lowering.name.startswith(f"{module}.")
