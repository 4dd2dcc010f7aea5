"""Time one training step: funcnets under `jit`, its module twin eager, its module twin compiled.

    python examples/step_speed.py resnet18

The three take turns in one process, so that a machine whose speed drifts treats them alike; only
ratios between them mean anything.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import funcnets
from funcnets import optim, random, train, twins


def functional_step(name: str, images: Tensor, labels: Tensor, backend: str) -> Callable[[], None]:
    """The step of `funcnets train`, which is given its own state to write the next one into."""
    net, recipe = funcnets.models.get(name, "reference")
    optimizer = optim.sgd(recipe.learning_rate)
    train_state = train.create(net, optimizer, random.key(0), images)
    step = funcnets.jit(train.make_train_step(net, optimizer), donate_argnums=0, backend=backend)

    def run() -> None:
        nonlocal train_state
        train_state, _ = step(train_state, (images, labels))

    return run


def module_step(name: str, images: Tensor, labels: Tensor, compiled: bool) -> Callable[[], None]:
    """The usual loop's body on the same network as an `nn.Module`."""
    _, recipe = funcnets.models.get(name, "reference")
    module = twins.get(name)
    optimizer = torch.optim.SGD(module.parameters(), lr=recipe.learning_rate)
    forward = torch.compile(module) if compiled else module

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(images), labels).backward()
        optimizer.step()

    return run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", nargs="?", default="resnet18")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's")
    parser.add_argument("--backend", default="inductor", help="of the functional step")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled twin")
    options = parser.parse_args(argv)
    _, recipe = funcnets.models.get(options.net, "reference")
    count = options.batch_size or recipe.batch_size
    images = random.uniform(random.key(1), (count, 1, recipe.side, recipe.side))
    labels = torch.arange(count) % 10
    steps = {
        f"funcnets, {options.backend}": functional_step(
            options.net, images, labels, options.backend
        ),
        "module, eager": module_step(options.net, images, labels, compiled=False),
    }
    if not options.no_compile:
        steps["module, torch.compile"] = module_step(options.net, images, labels, compiled=True)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        print(f"{name}: first step after {time.perf_counter() - start:.1f} s", flush=True)
        step()
    for _ in range(options.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    ours = statistics.median(next(iter(times.values())))
    print(f"{options.net}, batch {count}, {options.rounds} rounds; examples/s")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"{name:24} median {count / median:8.0f}   best {count / min(seconds):8.0f}   "
            f"funcnets is {median / ours:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
