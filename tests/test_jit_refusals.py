"""What `jit` refuses, with what words, and that nothing is left broken."""

import pytest
import torch
from torch.func import grad, jvp, vmap

from funcnets import jit
from funcnets.compiler import TraceError


def branch(x):
    return x if x.sum() > 0 else -x


NEEDS_A_VALUE = {
    "branch": branch,
    "item": lambda x: x * x.sum().item(),
    "float": lambda x: x * float(x.sum()),
    "list": lambda x: x * x.tolist()[0],
    "numpy": lambda x: x * x.numpy()[0],
    "mask": lambda x: x[x > 0],
    "unique": lambda x: torch.unique(x),
    "item under vmap": vmap(lambda x: x * x.item()),
    "branch under grad": grad(lambda x: branch(x).sum()),
    "branch under vmap of grad": vmap(grad(branch)),
    "branch under jvp of grad": lambda x: jvp(grad(lambda y: branch(y).sum()), (x,), (x,)),
}
WRITES = {
    "argument": lambda x: x.add_(1),
    "view of an argument": lambda x: x.view(-1)[1:].mul_(2),
    "out": lambda x: torch.add(x, 1, out=x),
    "list": lambda x: [torch._foreach_add_([x], 1.0), x * 2][1],
    "under vmap": vmap(lambda x: x.add_(1)),
}
DRAWS = {
    "rand_like": torch.rand_like,
    "randn": lambda x: x + torch.randn(3),
    "permutation": lambda x: x[torch.randperm(3)],
    "bernoulli": lambda x: torch.bernoulli(0.5 * x),
    "in place": lambda x: x.clone().normal_(),
    "dropout": torch.nn.functional.dropout,
    "under vmap": vmap(lambda x: x + torch.rand(()), randomness="different"),
}


def named(functions):
    return pytest.mark.parametrize("function", functions.values(), ids=functions.keys())


def assert_refused(function, message):
    """A TraceError with this message, after which transforms work as before."""
    with pytest.raises(TraceError, match=message):
        jit(function, backend="graph")(torch.ones(3))
    x = torch.arange(3.0)
    assert torch.equal(vmap(grad(torch.square))(x), 2 * x)
    assert torch.equal(jvp(torch.square, (x,), (torch.ones(3),))[1], 2 * x)


@named(NEEDS_A_VALUE)
def test_a_function_that_needs_a_value_is_refused(function):
    assert_refused(function, r"needs a tensor's value.*use torch\.where.*keep \.item\(\) outside")


def test_the_line_that_needs_a_value_is_shown():
    assert_refused(branch, r"test_jit_refusals\.py:\d+: return x if x\.sum\(\) > 0")


@named(WRITES)
def test_a_function_that_writes_to_its_argument_is_refused(function):
    assert_refused(function, "writes to an argument.*donate_argnums")


def test_a_function_that_writes_to_what_it_captured_is_refused():
    total = torch.zeros(3)
    assert_refused(lambda x: total.add_(x), "captured: return the new value")
    assert_refused(lambda x: total.view(-1)[:1].add_(x.sum()), "captured: return the new value")


def test_a_function_may_write_to_what_it_made():
    def function(x):
        total = torch.tensor(0.0)
        total += x.sum()
        return total, x.clone().mul_(2)

    total, double = jit(function, backend="graph")(torch.ones(3))
    assert total == 3
    assert (double == 2).all()


@named(DRAWS)
def test_a_function_that_draws_from_the_hidden_generator_is_refused(function):
    assert_refused(function, r"hidden generator: take a key and draw with funcnets\.random")


def test_a_result_that_is_no_tensor_is_refused_by_name():
    assert_refused(lambda x: {"a": {"b": 1.5}, "c": x}, r"leaf `a\.b` is 1\.5, expected a tensor")
    assert_refused(lambda x: "s", r"the result is 's', expected a tensor")


def test_an_error_of_the_function_comes_through():
    def wrong(x):
        raise KeyError("weight")

    with pytest.raises(KeyError, match="weight"):
        jit(vmap(grad(wrong)), backend="graph")(torch.ones(3))
    assert torch.equal(grad(torch.square)(torch.tensor(3.0)), torch.tensor(6.0))


def test_numbers_are_refused_by_name():
    with pytest.raises(TraceError, match=r"argument 0\.rate is 0\.5.*static_argnums"):
        jit(lambda options: options["x"], backend="graph")({"x": torch.ones(2), "rate": 0.5})
    with pytest.raises(TraceError, match=r'argument rate is 2: .*static_argnames="rate"'):
        jit(lambda x, rate: x * rate, backend="graph")(torch.ones(2), rate=2)
    with pytest.raises(TraceError, match=r"argument 0 is .{,40}: pass a tensor"):
        jit(lambda x: x, backend="graph")(torch.ones(1000).numpy())


def test_a_captured_tensor_that_changes_is_noticed():
    captured = torch.ones(3)
    jitted = jit(lambda x: x * captured, backend="graph")
    torch.testing.assert_close(jitted(torch.ones(3)), torch.ones(3))
    captured.add_(1)
    with pytest.raises(TraceError, match="pass it as an argument"):
        jitted(torch.ones(3))


def test_a_number_read_out_of_a_captured_tensor_stays():
    captured = torch.tensor(2.0)
    jitted = jit(lambda x: x * captured.item(), backend="graph")
    assert jitted(torch.tensor(1.0)) == 2
    captured.add_(1)
    assert jitted(torch.tensor(1.0)) == 2


def test_a_number_that_the_function_wrote_is_known_until_it_depends_on_an_argument():
    def known(x):
        three = torch.tensor(2.0)
        three += 1
        return x * (three * 2).item()

    def unknown(x):
        total = torch.tensor(1.0)
        total += x.sum()
        return x * total.item()

    assert (jit(known, backend="graph")(torch.ones(3)) == 6).all()
    assert_refused(unknown, "needs a tensor's value")


def test_in_inference_mode_a_tensor_can_be_captured():
    with torch.inference_mode():
        captured = torch.ones(3)
        assert (jit(lambda x: x + captured, backend="graph")(captured) == 2).all()


def test_a_failure_inside_transforms_leaves_the_process_healthy():
    def branches(x):
        return jvp(vmap(grad(lambda y: y if y > 0 else -y)), (x,), (x,))

    assert_refused(branches, "torch.where")
    x = torch.arange(3.0)
    assert torch.equal(grad(lambda y: (y**2).sum())(x), 2 * x)
    assert torch.equal(vmap(grad(lambda y: y**2))(x), 2 * x)
    assert torch.equal(jvp(torch.square, (x,), (torch.ones(3),))[1], 2 * x)
    assert torch.equal(jit(torch.square, backend="graph")(x), x**2)


@pytest.mark.parametrize("backend", ["graph", "native"])
def test_a_value_that_was_kept_from_a_trace_is_refused(backend):
    """It has no numbers, so that all that is computed of it would have none either."""
    kept = []

    def keep(x):
        kept.append(x * 2)
        return x * 3

    jit(keep, backend=backend)(torch.ones(4))
    double = jit(lambda x: x * 2, backend=backend)
    for _ in range(3):  # before it is traced for such a tensor, and after
        with pytest.raises(TraceError, match=r"^jit: argument 0 is a value of an earlier trace"):
            double(kept[0])
        assert double(torch.ones(4)).tolist() == [2.0] * 4
    with pytest.raises(ValueError, match=r"function captures is a value of an earlier trace"):
        jit(lambda x: x + kept[0], backend=backend)(torch.ones(4))
