"""Measure what rematerialisation saves and costs: peak memory and time of one training step.

    python examples/remat_memory.py --backend graph

The networks are a stack of blocks of convolutions, batch norms and ReLUs, and the same with each
block under `remat`.  The peak is the memory that torch allocates during a step, beyond what was
allocated before it.  The steps are timed in turns; only the ratio of their times means anything.
"""

from collections.abc import Callable

import arguments
import torch
from torch import Tensor

import funcnets
from funcnets import optim, random, timing, train
from funcnets.compiler.backends.select import Backend
from funcnets.core import Layer, rewrite, sequential
from funcnets.layers import batch_norm, conv2d, flatten, global_avg_pool, linear, max_pool, relu
from funcnets.transforms import remat

Step = Callable[[], object]


def block(channels: int) -> Layer:
    """Return two convolutions, each with batch norm and ReLU."""
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
    """Return a network of so many blocks."""
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
    """Return the peak of the memory that a step allocates, in MiB."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def training_step(net: Layer, images: Tensor, labels: Tensor, backend: Backend | None) -> Step:
    """Return a function that takes one training step at each call, uncompiled without back end."""
    optimizer = optim.sgd(0.05)
    train_state = train.create(net, optimizer, random.key(0), images)
    step = train.make_train_step(net, optimizer)
    if backend is not None:
        step = funcnets.jit(step, backend=backend)
    return lambda: step(train_state, (images, labels))


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--blocks", type=arguments.positive, default=6)
    parser.add_argument("--channels", type=arguments.positive, default=32)
    parser.add_argument("--batch-size", type=arguments.positive, default=64)
    parser.add_argument("--side", type=arguments.positive, default=28)
    parser.add_argument("--rounds", type=arguments.positive, default=5)
    parser.add_backend("eager", default="graph")
    options = parser.parse(argv)
    images = random.uniform(random.key(1), (options.batch_size, 1, options.side, options.side))
    labels = torch.arange(options.batch_size) % 10
    net = network(options.blocks, options.channels)
    parser.check_side(net, options.side)
    blocks = {f"block{i + 1}" for i in range(options.blocks)}
    recomputed = rewrite(net, lambda name, part: remat(part) if name in blocks else part)
    backend = None if options.backend == "eager" else options.backend
    steps = {
        name: training_step(each, images, labels, backend)
        for name, each in {"plain": net, "remat": recomputed}.items()
    }
    for step in steps.values():
        step()  # the first call compiles
    seconds = timing.medians(timing.interleave(steps, options.rounds))
    before, after = map(peak, steps.values())
    print(f"{options.backend}, {options.blocks} blocks, batch {options.batch_size}:")
    print(f"peak {before:.1f} MiB, with remat {after:.1f} MiB: {after / before:.2f} times as much")
    print(f"time with remat: {seconds['remat'] / seconds['plain']:.2f} times as long")


if __name__ == "__main__":
    main()
