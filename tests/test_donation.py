"""Results of `jit` own their memory, but for that of donated arguments, whose reuse is found."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import funcnets
from funcnets import layers, optim, random, sequential, train, transforms, tree
from funcnets._torch import storage_id
from funcnets.compiler import DonatedError

NET = sequential(
    conv=layers.conv2d(4, 3),
    bn=layers.batch_norm(),
    flatten=layers.flatten(),
    drop=layers.dropout(0.5),
    fc=layers.linear(5),
)
OPTIMIZER = optim.sgd(0.1, 0.9)
X = random.normal(random.key(1), (8, 1, 6, 6))
Y = torch.arange(8) % 5
CAPTURED = torch.arange(6.0).view(2, 3)
BACKENDS = ("graph", "native")


def created():
    return train.create(NET, OPTIMIZER, random.key(0), X)


def training(net):
    return train.make_train_step(net, OPTIMIZER), lambda: (created(), (X, Y))


def ensemble():
    keys = random.split(random.key(0), 2)
    state = transforms.ensemble.create(NET, OPTIMIZER, keys, X)
    return state, (X, Y)


def passed_on(x, y):
    return {
        "itself": x,
        "twice": (x, x),
        "view": y.view(-1),
        "row": y[0],
        "slice": y[:, 1:],
        "transposed": y.T,
        "expanded": y[0].expand(3, 3),
        "part": x.split(1)[1],
        "detached": y.detach(),
        "contiguous": x.contiguous(),
        "same type": x.to(torch.float32),
        "captured": CAPTURED,
        "captured view": CAPTURED[1:],
        "reshaped": F.dropout(x, 0.5, training=False).reshape(3, 2),
        "new": x * 2 + y,
    }


def matrices():
    return torch.ones(2, 3), torch.full((2, 3), 2.0)


# The kinds of steps: a function, and what makes its arguments.
STEPS = {
    "train": training(NET),
    "frozen statistics": training(transforms.frozen_statistics(NET)),
    "evaluate": (
        lambda state, x: NET.apply(state.params, state.state, x),
        lambda: (created(), X),
    ),
    "ensemble": (
        transforms.ensemble.make_ensemble_step(train.make_train_step(NET, OPTIMIZER)),
        ensemble,
    ),
    "passed on": (passed_on, matrices),
    "identity": (lambda x, y: (y, x), matrices),
}


def storages(values):
    return {storage_id(leaf) for leaf in tree.leaves(values) if leaf.numel()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", STEPS)
def test_results_share_no_memory_with_arguments_that_are_not_donated(name, backend):
    function, make = STEPS[name]
    arguments = make()
    results = funcnets.jit(function, backend=backend)(*arguments)
    assert not storages(results) & (storages(arguments) | {storage_id(CAPTURED)})
    torch.testing.assert_close(
        tree.leaves(results), tree.leaves(function(*arguments)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", STEPS)
def test_results_take_memory_of_the_donated_argument_alone(name, backend):
    function, make = STEPS[name]
    donated, kept = make()
    before = tree.map(torch.clone, kept)
    results = funcnets.jit(function, donate_argnums=0, backend=backend)(donated, kept)
    assert not storages(results) & (storages(kept) | {storage_id(CAPTURED)})
    for leaf in tree.leaves(results):
        leaf.zero_()
    torch.testing.assert_close(kept, before, rtol=0, atol=0)
    assert CAPTURED.any()


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_a_step_of_an_ensemble_leaves_what_it_was_not_donated(strategy):
    members, batch = ensemble()
    before = tree.map(torch.clone, members)
    step = train.make_train_step(transforms.frozen_statistics(NET), OPTIMIZER)
    results, _ = transforms.ensemble.jit_step(step, by=strategy, backend="graph")(members, batch)
    for leaf in tree.leaves(results):
        leaf.zero_()
    torch.testing.assert_close(members, before, rtol=0, atol=0)


def test_a_state_before_a_donated_step_stays():
    """The first step passes the statistics on, and the second one is donated its result."""
    first = created()
    before = tree.map(torch.clone, first)
    warm_up = funcnets.jit(STEPS["frozen statistics"][0], backend="graph")
    main = funcnets.jit(STEPS["train"][0], donate_argnums=0, backend="graph")
    second, _ = warm_up(first, (X, Y))
    main(second, (X, Y))
    torch.testing.assert_close(first, before, rtol=0, atol=0)


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setenv("FUNCNETS_DEBUG", "verify,donation")


USES = {
    "attribute": lambda x: x.shape,
    "operation": lambda x: x + 1,
    "function": torch.sin,
    "method": lambda x: x.sum(),
    "write": lambda x: x.add_(1),
    "list": lambda x: x.tolist(),
    "index": lambda x: x[0],
    "operand": lambda x: torch.ones(2, 3) * x,
    "stack": lambda x: torch.stack([torch.ones(2, 3), x]),
    "checkpoint": lambda x: torch.save(x, "/dev/null"),
    "jit": funcnets.jit(lambda x: x * 2, backend="graph"),
    "step": lambda x: funcnets.jit(passed_on, donate_argnums=0, backend="graph")(x, x),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.nn.Parameter])
def test_a_donated_tensor_that_is_used_again_is_found(use, kind, found):
    step = funcnets.jit(lambda x: x * 2, donate_argnums=0, backend="graph")
    old = kind(torch.ones(2, 3))
    new = step(old)
    assert new is not old
    assert new.tolist() == [[2, 2, 2], [2, 2, 2]]
    with pytest.raises(DonatedError, match=r"was donated to `jit`.*clone the argument before"):
        use(old)
    assert "donated" in repr(old)
    assert step(new).tolist() == [[4, 4, 4], [4, 4, 4]]


@pytest.mark.parametrize("transform", ["grad", "grad_and_value", "vjp"])
@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.nn.Parameter])
def test_transforms_that_read_past_the_class_raise_too(transform, kind, found):
    """By an error of PyTorch: it calls nothing of ours where it takes the argument."""
    old = kind(torch.ones(2, 3))
    funcnets.jit(lambda x: x * 2, donate_argnums=0, backend="graph")(old)

    def loss(x):
        return x.square().sum()

    function = getattr(torch.func, transform)
    use = partial(function, loss) if transform == "vjp" else function(loss)
    with pytest.raises(RuntimeError, match="only Tensors of floating point dtype can require"):
        use(old)


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_goes_on_while_reuse_is_found(found, backend):
    step = funcnets.jit(STEPS["train"][0], donate_argnums=0, backend=backend)
    first = created()
    second, _ = step(first, (X, Y))
    step(second, (X, Y))
    for used in (first, second):
        with pytest.raises(DonatedError):
            step(used, (X, Y))
        with pytest.raises(DonatedError):
            tree.map(torch.clone, used)


def test_without_it_returned_tensors_are_the_donated_objects():
    step = funcnets.jit(lambda x: x * 2, donate_argnums=0, backend="graph")
    x = torch.ones(3)
    assert step(x) is x
