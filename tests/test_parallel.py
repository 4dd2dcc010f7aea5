"""Several processes train the network that one trains, whatever runs the step."""

import functools
import itertools

import processes
import pytest
import torch

import funcnets
from funcnets import (
    core,
    layers,
    losses,
    optim,
    parallel,
    precision,
    random,
    train,
    transforms,
    tree,
)
from funcnets.layers import BatchStatistics
from funcnets.models.resnet import resnet
from funcnets.parallel import Axis

FLOAT64 = torch.float64
STEPS = 20
# Batch sizes in turns: the shards of 2 and 4 processes are unequal, and of 4 some are empty.
SIZES = (9, 9, 2)


def lenet():
    """Batch norm on feature maps and on vectors, and dropout of both."""
    return funcnets.sequential(
        conv1=layers.conv2d(4, 5),
        bn1=layers.batch_norm(),
        sigmoid1=layers.sigmoid(),
        drop1=layers.dropout(0.2),
        pool=layers.avg_pool(2),
        flatten=layers.flatten(),
        fc1=layers.linear(12),
        bn2=layers.batch_norm(),
        sigmoid2=layers.sigmoid(),
        drop2=layers.dropout(0.5),
        fc2=layers.linear(3),
    )


def residual():
    return resnet((1, 1), 3, channels=(4, 8))


close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
TRAINED = {"lenet": lenet, "resnet": residual}


def problem(dtype=FLOAT64):
    x = random.normal(random.key(1), (max(SIZES), 1, 16, 16), dtype)
    return x, torch.arange(len(x)) % 3


def trajectory(axis, name, backend, sizes):
    """Train state, with a moving average, and measurements after each of 20 steps."""
    net, optimizer, (x, labels) = TRAINED[name](), optim.sgd(0.1, momentum=0.9), problem()
    average = optim.exponential_moving_average(0.9)
    step = train.make_train_step(net, optimizer, gradient=parallel.gradient(axis))
    step = transforms.averaged(step, average)
    if backend != "eager":
        step = funcnets.jit(step, donate_argnums=0, backend=backend)
    state = transforms.with_average(train.create(net, optimizer, random.key(0), x), average)
    found = []
    for size in itertools.islice(itertools.cycle(sizes), STEPS):
        given = state
        state, measured = step(state, (axis.shard(x[:size]), axis.shard(labels[:size])))
        is_in_place = state.params["fc2" if name == "lenet" else "fc"]["weight"].data_ptr() == (
            given.params["fc2" if name == "lenet" else "fc"]["weight"].data_ptr()
        )
        assert is_in_place == (backend != "eager")
        found.append(tree.map(torch.clone, tree.flatten_named((state, measured))))
    parallel.check_replicas(axis, state)
    return found


def assert_same_trajectory(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        for value, other in zip(ours.values(), theirs.values(), strict=True):
            assert value.dtype == other.dtype
        off = {
            name: float(((value - theirs[name]).abs() / theirs[name].abs().clamp(min=1)).max())
            for name, value in ours.items()
        }
        assert max(off.values()) < 1e-9, off


@functools.cache
def alone(name, sizes):
    return trajectory(Axis(), name, "eager", sizes)


QUICK = {
    ("lenet", "eager", 4),
    ("lenet", "graph", 2),
    ("lenet", "native", 2),
    ("resnet", "graph", 4),
}
CASES = [
    *itertools.product(TRAINED, ("eager", "graph", "native"), (1, 2, 4)),
    ("lenet", "inductor", 2),  # ResNet's graph takes minutes more
]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "backend", "size"),
    [pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES],
)
def test_any_number_of_processes_trains_the_same_network(name, backend, size):
    # Inductor takes minutes for each shape where the processors are busy; shares of one size have
    # most of their kernels in common.
    seconds, sizes = (1800, (8,)) if backend == "inductor" else (processes.SECONDS, SIZES)
    for found in processes.run(size, trajectory, name, backend, sizes, seconds=seconds):
        assert_same_trajectory(found, alone(name, sizes))


def of_own(axis):
    """A function of each process's own vector that is not linear before and after the sum."""

    def function(x):
        squares = axis.psum({"squares": x**2, "sum": x.sum()})["squares"]
        return (axis.rank + 1.0) * (squares**2).sum() + axis.psum(x)[0] ** 3

    return function


def of_all(xs):
    """The sum over two processes of `of_own`, as a function of the vectors of both."""
    return 3 * ((xs**2).sum(0) ** 2).sum() + 2 * xs.sum(0)[0] ** 3


def vectors(rank, *shape):
    return random.normal(random.key(rank), (*shape, 3), FLOAT64)


def derivatives(axis):
    function, x, tangent = of_own(axis), vectors(axis.rank), vectors(2 + axis.rank)
    grad, leaf = torch.func.grad(function), x.clone().requires_grad_()
    function(leaf).backward()
    return {
        "value": function(x),
        "grad": grad(x),
        "autograd": leaf.grad,
        "jit": funcnets.jit(grad, backend="graph")(x),
        "jvp": torch.func.jvp(function, (x,), (tangent,))[1],
        "hessian": torch.func.jvp(grad, (x,), (tangent,))[1],
        "vmap": torch.func.vmap(function)(vectors(axis.rank, 4)),
        "vmap of grad": torch.func.vmap(grad, 1, 1)(vectors(axis.rank, 4).T),
        "gather": axis.gather(x),
        "whole numbers": axis.gather(torch.tensor([axis.rank, 2**40])),
        "mixed": axis.psum((x, torch.tensor(axis.rank + 1), torch.tensor([2.0]))),
    }


@pytest.mark.processes
def test_psum_is_differentiated_mapped_and_compiled():
    found = processes.run(2, derivatives)
    xs, tangents = (torch.stack([vectors(first), vectors(first + 1)]) for first in (0, 2))
    batches = torch.stack([vectors(0, 4), vectors(1, 4)], dim=1)
    grad = torch.func.grad(of_all)

    def total(name):
        return found[0][name] + found[1][name]

    def both(name):
        return torch.stack([each[name] for each in found])

    close(total("value"), of_all(xs))
    for name in ("grad", "autograd", "jit"):
        close(both(name), grad(xs))
    close(total("jvp"), torch.func.jvp(of_all, (xs,), (tangents,))[1])
    close(both("hessian"), torch.func.jvp(grad, (xs,), (tangents,))[1])
    close(total("vmap"), torch.func.vmap(of_all)(batches))
    close(both("vmap of grad"), torch.func.vmap(grad)(batches).permute(1, 2, 0))
    for each in found:
        assert torch.equal(each["gather"], xs)
        assert each["whole numbers"].tolist() == [[0, 2**40], [1, 2**40]]
        floats, count, others = each["mixed"]
        close(floats, xs.sum(0))
        assert (int(count), float(others)) == (3, 4.0)


def gradients(axis, net, batch, **how):
    """Gradients, statistics and measurements of a network on this process's shard, by name."""
    params, state = net.init(random.key(0), batch[0])
    shard = tuple(axis.shard(part) for part in batch)
    found = parallel.gradient(axis, **how)(
        net, losses.cross_entropy, params, state, shard, key=random.key(5)
    )
    return tree.flatten_named(found)


def compositions(axis):
    batch = problem()
    without_norm = core.rewrite(
        lenet(), lambda name, layer: layers.relu() if layer.tag(BatchStatistics) else layer
    )
    remat = core.rewrite(
        residual(), lambda name, layer: transforms.remat(layer) if name == "stage1" else layer
    )
    parts = transforms.accumulate(2) if axis.size > 1 else transforms.accumulate(4)
    mapped = torch.func.vmap(lambda key: gradients_of_member(axis, key))
    keys = random.split(random.key(3))
    return {
        "accumulated": gradients(axis, without_norm, batch, shard_gradient=parts),
        "rematerialised": gradients(axis, remat, batch),
        "ensemble": tree.flatten_named(mapped(keys)),
        "compiled ensemble": tree.flatten_named(funcnets.jit(mapped, backend="graph")(keys)),
        "own statistics": gradients(axis, lenet(), batch, sync=False),
    }


def gradients_of_member(axis, key):
    net, (x, labels) = lenet(), problem()
    params, state = net.init(key, x)
    shard = (axis.shard(x), axis.shard(labels))
    return parallel.gradient(axis)(net, losses.cross_entropy, params, state, shard, key=key)


def by_own_statistics(batch):
    """The mean over the shards of two processes, each by a network that sees no other one."""
    found = []
    for axis in (Axis(2, 0), Axis(2, 1)):
        rows = axis.rows(len(axis.shard(batch[1])))
        net = layers.noise_of_rows(lenet(), rows, 2 * len(rows))
        params, state = net.init(random.key(0), batch[0])
        shard = tuple(axis.shard(part) for part in batch)
        whole = train.batch_gradient(
            net, losses.cross_entropy, params, state, shard, key=random.key(5)
        )
        found.append((len(rows) / len(batch[1]), tree.flatten_named(whole)))
    means = {name: sum(share * one[name] for share, one in found) for name in found[0][1]}
    return means | {"2.correct": sum(one["2.correct"] for _, one in found)}


@pytest.mark.processes
def test_other_transforms_compose():
    found, expected = processes.run(2, compositions), compositions(Axis())
    synchronised = expected["own statistics"]["0.conv1.weight"]
    expected["own statistics"] = by_own_statistics(problem())
    assert not torch.allclose(synchronised, expected["own statistics"]["0.conv1.weight"])
    for each in found:
        close(each, expected)


def in_bfloat16(axis):
    """A step of a network that computes in bfloat16, with parameters in float32."""
    net, optimizer, (x, labels) = lenet(), optim.sgd(0.1), problem(torch.float32)
    policy = precision.POLICIES["bfloat16"]
    step = train.make_train_step(net, optimizer, policy=policy, gradient=parallel.gradient(axis))
    state = train.create(net, optimizer, random.key(0), x)
    found = step(state, (axis.shard(x), axis.shard(labels)))
    parallel.check_replicas(axis, found)
    return tree.flatten_named(found)


@pytest.mark.processes
def test_a_precision_policy_composes():
    expected = in_bfloat16(Axis())
    for found in processes.run(2, in_bfloat16):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def diverging(axis):
    values = {"step": torch.tensor(3), "conv": {"weight": torch.ones(3), "bias": torch.zeros(2)}}
    parallel.check_replicas(axis, values)
    values["conv"]["bias"][1] = -0.0 if axis.rank == 2 else 0.0
    with pytest.raises(parallel.DivergenceError) as caught:
        parallel.check_replicas(axis, values)
    return str(caught.value)


@pytest.mark.processes
def test_what_differs_between_processes_is_named():
    expected = "processes hold different values of conv.bias: rank 2 and rank 0 differ"
    for message in processes.run(4, diverging):
        assert message.startswith(expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.index_fill(0, torch.tensor([0]), 2.0),
        lambda x: x.flip(0),
        lambda x: x.roll(1),
        lambda x: torch.where(x == 0, -x, x),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_hash_depends_on_every_bit_and_its_place(change, dtype):
    x = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=dtype)
    assert not torch.equal(parallel.hash_leaves([x]), parallel.hash_leaves([change(x)]))


def test_a_hash_doesnt_depend_on_strides_or_chunks(monkeypatch):
    x = random.normal(random.key(0), (3, 5))
    expected = parallel.hash_leaves([x])
    assert torch.equal(parallel.hash_leaves([x.T.contiguous().T]), expected)
    monkeypatch.setattr("funcnets.parallel.replicas.ELEMENTS_PER_CHUNK", 4)
    assert torch.equal(parallel.hash_leaves([x]), expected)


def test_one_process_sends_nothing():
    axis, x = Axis(), torch.arange(5)
    assert axis.psum({"a": x})["a"] is x
    assert torch.equal(axis.gather(x), x[None])
    assert torch.equal(axis.shard(x), x)
    assert parallel.gradient(axis) is train.batch_gradient
    net = lenet()
    assert parallel.synchronize(net, axis) is net
    parallel.check_replicas(axis, {"a": x})


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_each_example_is_in_one_shard(size):
    axes, x = [Axis(size, rank) for rank in range(size)], torch.arange(9) + 100
    shards = [axis.shard(x) for axis in axes]
    assert sorted(torch.cat(shards).tolist()) == x.tolist()
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    for axis, shard in zip(axes, shards, strict=True):
        assert torch.equal(axis.rows(len(shard)) + 100, shard)


@pytest.mark.parametrize(("size", "rank"), [(0, 0), (2, 2), (2, -1), (2.0, 0), (True, 0)])
def test_an_axis_has_a_rank_within_its_size(size, rank):
    with pytest.raises(ValueError, match=rf"rank {rank} of {size} processes; expected a size of 1"):
        Axis(size, rank)


@pytest.mark.parametrize("leaf", [1.0, None, torch.tensor(True)])
def test_only_numbers_are_summed(leaf):
    with pytest.raises(TypeError, match=r"psum: got .*, expected tensors of numbers"):
        Axis(2).psum({"a": torch.ones(1), "b": leaf})


def step_and_state(net, **how):
    optimizer = optim.sgd(0.1)
    step = train.make_train_step(net, optimizer, gradient=parallel.gradient(Axis(2), **how))
    return step, train.create(net, optimizer, random.key(0), problem()[0])


def test_synchronised_statistics_need_the_shard_in_one_pass():
    step, state = step_and_state(lenet(), shard_gradient=transforms.accumulate(2))
    with pytest.raises(ValueError, match=r"can't be synchronised .* or give sync=False"):
        step(state, problem())


def test_gradients_of_each_example_are_refused():
    net = funcnets.sequential(flatten=layers.flatten(), fc=layers.linear(3))
    step, state = step_and_state(net, shard_gradient=transforms.per_example())
    message = r"gives fc\.bias of shape \(9, 3\), expected \(3,\): gradients of each example"
    with pytest.raises(ValueError, match=message):
        step(state, problem())


def test_a_global_batch_without_examples_is_refused():
    step, state = step_and_state(lenet())
    x, labels = problem()
    with pytest.raises(ValueError, match="rank 0 has no example: the global batch is empty"):
        step(state, (x[:0], labels[:0]))
