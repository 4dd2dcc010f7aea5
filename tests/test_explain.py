"""`jit(f).explain(…)`: what tracing and each pass made of a graph."""

import pytest
import torch

import funcnets
from funcnets.compiler import pipeline
from funcnets.compiler.errors import TraceError


def rows(x, w):
    return torch.relu(x @ w + 1) * 2, {"unused": None}


X, W = torch.ones(4, 3), torch.ones(3, 2)


@pytest.mark.parametrize("backend", list(pipeline.BACKEND_PASSES))
def test_every_pass_of_the_back_end_has_a_row(backend):
    passes = (*pipeline.CLEANING, *pipeline.FUSION, *pipeline.BACKEND_PASSES[backend])
    explanation = funcnets.jit(rows, backend=backend).explain(X, W)
    names = [each.name for each in explanation.passes]
    assert names == ["record", *(each.__name__ for each in passes)]


def test_each_pass_finds_what_the_one_before_left():
    passes = funcnets.jit(rows, backend="graph").explain(X, W).passes
    assert (passes[0].before, passes[0].after) == (0, 4)
    assert [each.before for each in passes[1:]] == [each.after for each in passes[:-1]]


def test_what_fired_is_what_the_trace_says():
    lowering = funcnets.Lowering(
        "doubled", torch.ops.aten.mul.Tensor, lambda x, y: y == 2, lambda x, y: x + x
    )
    jitted = funcnets.jit(rows, backend="graph", lowerings=(lowering,))
    explanation = jitted.explain(X, W)
    assert explanation.passes[0].fired == {"doubled": 1}
    assert jitted.trace(X, W).fired == {"doubled": 1}
    assert all(each.fired == {} for each in explanation.passes[1:])
    assert "doubled 1" in str(explanation).splitlines()[1]


def test_a_changed_argument_of_an_operation_counts_as_a_change():
    passes = funcnets.jit(rows, backend="graph").explain(X, W).passes
    last = passes[-1]
    assert last.is_changed == (last.code != passes[-2].code)
    assert last.is_changed
    assert last.row == ("reuse_memory", "4", "4", *last.row[3:5], "edited")


def test_nothing_is_computed_and_donated_arguments_stay():
    x = X.clone()
    jitted = funcnets.jit(lambda x: x + 1, donate_argnums=0, backend="graph")
    explanation = jitted.explain(x)
    assert torch.equal(x, X)
    assert "copy_" in next(p for p in explanation.passes if p.name == "donate").code


def test_an_impure_function_is_refused():
    with pytest.raises(TraceError, match="needs a tensor's value"):
        funcnets.jit(lambda x: x if x.sum() > 0 else -x).explain(X)


def test_bytes_are_those_of_operands_and_results():
    def f(x, y):
        return (x.t() + 1, torch.stack([x, x]), y.expand(4, 3) * x)

    recorded, *_ = funcnets.jit(f, backend="graph").explain(X, torch.ones(1, 3)).passes
    x, y, twice = 4 * 3 * 4, 3 * 4, 2 * 4 * 3 * 4
    # Views cost nothing, and what is given twice, or expanded, is read once.
    assert recorded.written == x + twice + x
    assert recorded.read == x + x + (y + x)


def test_a_donated_value_that_is_copied_is_read_once_and_written_once():
    def f(x):
        return x.flip(0)

    passes = funcnets.jit(f, donate_argnums=0, backend="graph").explain(X.clone()).passes
    by_name = {each.name: each for each in passes}
    before, after = by_name["remove_dead_code"], by_name["donate"]
    size = X.numel() * X.element_size()
    assert (after.read - before.read, after.written - before.written) == (size, size)


def halves(x, y):
    """True if the second operand is a half."""
    return y == 0.5


def test_it_says_which_lowering_was_used_where_and_why_others_were_not():
    mul = torch.ops.aten.mul.Tensor
    lowerings = (
        funcnets.Lowering("halved", mul, halves, lambda x, y: x / 2),
        funcnets.Lowering("doubled", mul, lambda x, y: y == 2, lambda x, y: torch.mul(x, y)),
    )

    def f(x):
        return x * 2 * 0.5 * 3 + x * 2

    explanation = funcnets.jit(f, backend="graph", lowerings=lowerings).explain(X)
    found = [(call.taken, call.refused) for call in explanation.calls]
    both = ("halved", "doubled")
    assert found == [
        ("doubled", ("halved",)),
        ("halved", ()),
        (None, both),
        ("doubled", ("halved",)),
    ]
    assert explanation.calls[0][:2] == ("aten.mul", ((4, 3),))
    assert explanation.conditions["halved"] == "the second operand is a half"
    text = str(explanation)
    assert "aten.mul   4x3         2  doubled" in text
    assert "1. the second operand is a half (halved)" in text


def test_it_says_where_fusions_took_part():
    explanation = funcnets.jit(lambda x, y: x * 1 + y * 3, backend="graph").explain(X, X)
    (fused,) = (each for each in explanation.passes if each.name == "fuse_operations")
    assert fused.fired == {name: len(at) for name, at in fused.places.items()} != {}
    assert all(node in explanation.passes[0].code for at in fused.places.values() for node in at)


def reasons(explanation):
    return {rule: why for each in explanation.passes for rule, why in each.refused}


def test_it_says_why_candidates_were_not_fused():
    def f(x, y):
        product = x * y
        return product + 1, product.sum(), torch.relu(x) @ y.t()

    explanation = funcnets.jit(f, backend="native").explain(X, X)
    why = "no operand is a product that the sum alone reads"
    assert reasons(explanation)["fusion.multiply_add"] == why
    (fused,) = (each for each in explanation.passes if each.name == "fuse_operations")
    assert fused.refused["fusion.multiply_add", why] == ("add",)
    assert fused.fired == {}
    assert "fusion.rectified: its operand is not a Winograd" in str(explanation)


@pytest.mark.parametrize(("size", "why"), [(0, "it has no elements"), (4, "no small operations")])
def test_it_says_why_an_operation_is_no_loop(size, why):
    explanation = funcnets.jit(torch.relu, backend="native").explain(torch.ones(size))
    assert reasons(explanation)["loop"].startswith(why)


def test_many_candidates_of_one_reason_are_counted():
    def f(*xs):
        return sum(xs[1:], start=xs[0])

    explanation = funcnets.jit(f, backend="graph").explain(*[X] * 11)
    (line,) = (x for x in str(explanation).splitlines() if x.startswith("fusion.multiply_add"))
    assert line.endswith("add, add_1, add_2, add_3, add_4, add_5, add_6, add_7 and 2 more")
