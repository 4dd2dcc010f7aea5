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
    assert last.row == ("reuse_memory", "4", "4", "edited")


def test_nothing_is_computed_and_donated_arguments_stay():
    x = X.clone()
    jitted = funcnets.jit(lambda x: x + 1, donate_argnums=0, backend="graph")
    explanation = jitted.explain(x)
    assert torch.equal(x, X)
    assert "copy_" in next(p for p in explanation.passes if p.name == "donate").code


def test_an_impure_function_is_refused():
    with pytest.raises(TraceError, match="needs a tensor's value"):
        funcnets.jit(lambda x: x if x.sum() > 0 else -x).explain(X)
