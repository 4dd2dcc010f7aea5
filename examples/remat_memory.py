"""Measure what rematerialisation saves and costs: peak memory and time of one training step.

    python examples/remat_memory.py --backend graph

The networks are a plain stack of convolutions, batch norms and ReLUs in blocks, and the same with
each block under `remat`.  The compiler (`--backend inductor`) leaves the saving as it is.  The peak
is of all that torch allocates during a step, beyond what was there before it; steps take turns, and
only the ratio of their times means anything.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import funcnets
from funcnets import optim, random, train
from funcnets.core import Layer, rewrite, sequential
from funcnets.layers import batch_norm, conv2d, flatten, global_avg_pool, linear, max_pool, relu
from funcnets.transforms import remat

Step = Callable[[], object]


def block(channels: int) -> Layer:
    names = ("1", "2")
    parts = [
        part
        for name in names
        for part in (
            (f"conv{name}", conv2d(channels, 3, padding=1)),
            (f"bn{name}", batch_norm()),
            (f"relu{name}", relu()),
        )
    ]
    return sequential(**dict(parts))


def network(blocks: int, channels: int) -> Layer:
    stack = {f"block{i + 1}": block(channels) for i in range(blocks)}
    return sequential(
        conv=conv2d(channels, 3, padding=1),
        pool=max_pool(2),
        **stack,
        mean=global_avg_pool(),
        flatten=flatten(),
        fc=linear(10),
    )


def peak(step: Step) -> float:
    """The most MiB that a step has allocated at one time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def training_step(net: Layer, images: Tensor, labels: Tensor, backend: str) -> Step:
    optimizer = optim.sgd(0.05)
    train_state = train.create(net, optimizer, random.key(0), images)
    step = train.make_train_step(net, optimizer)
    if backend != "eager":
        step = funcnets.jit(step, backend=backend)
    return lambda: step(train_state, (images, labels))


def seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backend", default="graph", help="graph, inductor, or eager for no jit")
    options = parser.parse_args(argv)
    images = random.uniform(random.key(1), (options.batch_size, 1, options.side, options.side))
    labels = torch.arange(options.batch_size) % 10
    net = network(options.blocks, options.channels)
    blocks = {f"block{i + 1}" for i in range(options.blocks)}
    recomputed = rewrite(net, lambda name, part: remat(part) if name in blocks else part)
    steps = [training_step(each, images, labels, options.backend) for each in (net, recomputed)]
    times: list[list[float]] = [[seconds(step)] for step in steps]
    for _ in range(options.rounds):
        for step, taken in zip(steps, times, strict=True):
            taken.append(seconds(step))
    before, after = map(peak, steps)
    plain, twice = (statistics.median(taken[1:]) for taken in times)
    print(f"{options.backend}, {options.blocks} blocks, batch {options.batch_size}:")
    print(f"peak {before:.1f} MiB, with remat {after:.1f} MiB: {after / before:.2f} times as much")
    print(f"time with remat: {twice / plain:.2f} times as long")


if __name__ == "__main__":
    main()
