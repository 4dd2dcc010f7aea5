"""On a GPU the same numbers as on a CPU.  Last run on an H200, with torch 2.11."""

from functools import partial

import pytest
import torch

import funcnets
from funcnets import models, optim, random, train, tree
from funcnets.compiler.backends import cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on(device, values):
    return tree.map(lambda leaf: leaf.to(device), values)


@pytest.mark.parametrize(
    "draw", [random.uniform, random.normal, partial(random.bernoulli, p=0.3), random.bits]
)
def test_draws_are_those_of_a_cpu(draw):
    drawn = [draw(random.key(3, device), shape=(1000,)) for device in ("cpu", "cuda")]
    torch.testing.assert_close(drawn[1].cpu(), drawn[0])


@pytest.mark.parametrize("backend", ["graph", "inductor", None])
@pytest.mark.parametrize(("name", "side"), [("lenet_bn", 28), ("resnet18", 28), ("nin", 96)])
def test_a_training_step_is_that_of_a_cpu(name, side, backend):
    net, _ = models.get(name)
    optimizer = optim.sgd(0.01, momentum=0.9)
    x = random.normal(random.key(1), (4, 1, side, side), torch.float64)
    batch = (x, torch.arange(4))
    start = train.create(net, optimizer, random.key(0), x)
    step = train.make_train_step(net, optimizer)
    jitted = funcnets.jit(step, donate_argnums=0, backend=backend)
    expected, actual = start, on("cuda", start)
    for _ in range(2):
        expected, loss = step(expected, batch)
        actual, cuda_loss = jitted(actual, on("cuda", batch))
        torch.testing.assert_close(on("cpu", cuda_loss), loss, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(tree.leaves(on("cpu", actual)), tree.leaves(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["graph", None])
def test_a_loop_is_replayed_and_gives_the_same(backend, monkeypatch):
    replays = []
    capture = cuda.Capturer.__call__

    def noted(self, function):
        replay, results = capture(self, function)
        return lambda: replays.append(replay()), results

    monkeypatch.setattr(cuda.Capturer, "__call__", noted)
    net, _ = models.get("lenet_bn")
    optimizer = optim.sgd(0.1, momentum=0.9)
    x = random.normal(random.key(1), (6, 8, 1, 28, 28), torch.float64)
    start = train.create(net, optimizer, random.key(0), x[0])
    step = train.make_train_step(net, optimizer)
    jitted = funcnets.jit(step, donate_argnums=0, backend=backend)
    expected, actual = start, on("cuda", start)
    for images in x:
        batch = (images, torch.arange(8))
        expected, loss = step(expected, batch)
        actual, cuda_loss = jitted(actual, on("cuda", batch))
        torch.testing.assert_close(on("cpu", cuda_loss), loss, rtol=1e-9, atol=1e-9)
    assert len(replays) == 5


@pytest.mark.parametrize(("tf32", "least", "most"), [(False, 0, 1e-5), (True, 1e-5, 1e-2)])
def test_products_are_rounded_where_that_is_asked_for(tf32, least, most):
    """On GPUs that have TF32, whatever is set for the process."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs TF32")
    x = random.normal(random.key(0), (512, 512))
    jitted = funcnets.jit(lambda x: x @ x, backend="graph", tf32=tf32)
    exact = x.double() @ x.double()
    error = (jitted(x.cuda()).cpu().double() - exact).abs().max() / exact.abs().max()
    assert least <= error <= most
