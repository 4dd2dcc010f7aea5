"""`jit` as it is called: a decorator, of functions and methods, with arguments that are static."""

import gc
import pydoc
import weakref

import pytest
import torch

import funcnets
from funcnets import layers, random
from funcnets.compiler import TraceError
from funcnets.compiler.arguments import Selection, select

jit = funcnets.jit
X = torch.arange(3.0)


def power(x, exponent=2, /, scale=1.0, *, shift=0.0):
    return x**exponent * scale + shift


def test_help_shows_a_signature_of_one_line():
    _, _, signature, first, *_ = pydoc.plain(pydoc.render_doc(jit)).splitlines()
    assert signature.startswith("jit(function")
    assert "lowerings: 'Lowerings' = 'default', " in signature
    assert len(signature) < 320
    assert first == "    Compile a pure function of trees of tensors to one graph."


def test_it_decorates_with_and_without_options():
    @jit
    def double(x):
        """Double."""
        return x * 2

    @jit(donate_argnums=0, backend="graph")
    def add_one(x):
        return x + 1

    assert (double.__name__, double.__doc__) == ("double", "Double.")
    torch.testing.assert_close(double(X), X * 2)
    x = X.clone()
    assert add_one(x) is x
    torch.testing.assert_close(x, X + 1)


@pytest.mark.parametrize(
    ("options", "args", "kwargs"),
    [
        ({"static_argnums": (1, 2), "static_argnames": "shift"}, (3, 2.0), {"shift": 1}),
        ({"static_argnums": (1, 2), "static_argnames": ("shift",)}, (3,), {"scale": 2.0}),
        ({"static_argnums": 1, "static_argnames": ["scale", "shift"]}, (3, 2.0), {}),
        ({"static_argnames": ["scale"]}, (), {"scale": 2.0}),
        ({}, (), {}),
    ],
)
def test_static_arguments_are_given_by_position_or_by_name(options, args, kwargs):
    jitted = jit(power, backend="graph", **options)
    for _ in range(2):
        torch.testing.assert_close(jitted(X, *args, **kwargs), power(X, *args, **kwargs))
    assert len(jitted._executables) == 1


def test_a_selected_argument_is_selected_by_position_and_by_name():
    assert select(power, 2) == Selection((2,), ("scale",))
    assert select(power, (), "scale") == Selection((2,), ("scale",))
    assert select(power, 1, "shift") == Selection((1,), ("shift",))
    assert select(lambda *args, **kwargs: None, 3, "any") == Selection((3,), ("any",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"static_argnames": "trian"}, "static_argnames has 'trian'; .* are scale, shift"),
        ({"static_argnames": "exponent"}, "static_argnames has 'exponent'"),  # by position alone
        ({"static_argnums": 3}, "no argument 3, .* shift are given by name: use static_argnames"),
        ({"donate_argnums": 2, "static_argnames": "scale"}, r"\[2\] are both donated and static"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        jit(power, **options)


def test_a_mode_that_is_not_static_is_refused_with_the_way_to_make_it_so():
    net = funcnets.sequential(conv=layers.conv2d(4, 3), bn=layers.batch_norm())
    x = random.normal(random.key(1), (2, 1, 8, 8))
    params, state = net.init(random.key(0), x)
    with pytest.raises(TraceError, match=r"argument train is True: .*static_argnames=\"train\""):
        jit(net.apply, backend="graph")(params, state, x, train=True)
    jitted = jit(net.apply, static_argnames="train", backend="graph")
    for train in (True, False):
        actual, expected = (f(params, state, x, train=train) for f in (jitted, net.apply))
        torch.testing.assert_close(actual, expected)


def test_a_number_that_is_not_static_is_refused_with_the_ways_to_make_it_so():
    with pytest.raises(TraceError, match=r"argument 1 is 3: .* by static_argnums=1$"):
        jit(power)(X, 3)
    with pytest.raises(TraceError, match=r'argument 2 is 3: .*=2 or static_argnames="scale"$'):
        jit(power, static_argnums=1)(X, 2, 3)
    with pytest.raises(TraceError, match=r"argument scale\.a is 3: .* an argument of its own"):
        jit(power)(X, scale={"a": 3})


def test_what_is_donated_may_be_given_by_name():
    @jit(donate_argnums=0, backend="graph")
    def step(state, batch):
        return {name: leaf + batch for name, leaf in state.items()}

    state = {"b": torch.ones(3), "a": torch.zeros(3)}
    after = step(batch=X, state=state)
    assert after["a"] is state["a"]
    torch.testing.assert_close(after, {"b": X + 1, "a": X})
    with pytest.raises(ValueError, match="shares its memory"):
        step(batch=state["a"], state=state)


class Model:
    """One whose methods are compiled."""

    def __init__(self, factor):
        self.factor, self.runs = factor, 0

    @jit(backend="graph", static_argnames="power")
    def scaled(self, x, power=1):
        self.runs += 1
        return self.factor * x**power

    @jit(backend="graph", donate_argnums=1)
    def updated(self, state):
        return state + self.factor

    @staticmethod
    @jit(backend="graph")
    def doubled(x):
        return 2 * x

    @classmethod
    @jit(backend="graph")
    def named(cls, x):
        return x + len(cls.__name__)


def test_a_method_is_traced_for_each_instance():
    two, three = Model(2.0), Model(torch.tensor(3.0))
    for _ in range(2):
        torch.testing.assert_close(two.scaled(X), 2 * X)
        torch.testing.assert_close(three.scaled(X, power=2), 3 * X**2)
        torch.testing.assert_close(three.scaled(X, 2), 3 * X**2)
    assert (two.runs, three.runs) == (1, 2)
    assert "aten.mul" in str(two.scaled.trace(X))
    state = X.clone()
    assert two.updated(state) is state
    torch.testing.assert_close(state, X + 2)
    torch.testing.assert_close(Model.doubled(X), two.doubled(X))
    torch.testing.assert_close(Model.named(X), X + 5)


def test_what_an_instance_captures_may_not_change():
    three = Model(torch.tensor(3.0))
    three.scaled(X)
    three.factor.add_(1)
    with pytest.raises(TraceError, match="changed after"):
        three.scaled(X)


def test_graphs_of_an_instance_go_with_it():
    model = Model(torch.tensor(3.0))
    model.scaled(X)
    factor, model_is = weakref.ref(model.factor), weakref.ref(model)
    del model
    gc.collect()
    assert model_is() is None
    assert factor() is None


def test_instances_that_cannot_be_compiled_for_are_named():
    class Slotted:
        __slots__ = ()

        @jit
        def doubled(self, x):
            return 2 * x

        @jit(donate_argnums=0)
        def given_away(self, x):
            return x

    with pytest.raises(TypeError, match=r"a Slotted can't be referenced weakly.*__weakref__"):
        Slotted().doubled(X)
    with pytest.raises(ValueError, match="its instance, which can't be donated"):
        Slotted().given_away(X)
