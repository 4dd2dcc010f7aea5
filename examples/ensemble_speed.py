"""Time a step of an ensemble by both strategies, `vmap` and `loop`, and show which is chosen.

    python examples/ensemble_speed.py lenet_bn --members 4 8 --batch-size 16 256
    python examples/ensemble_speed.py resnet18 --width 8

`ensemble.jit_step` chooses by a rule on shapes: `vmap` runs each operation once for all members,
but its convolutions are grouped, which are slow if they are large.  The two are timed in turns in
one process, so that a machine whose speed drifts treats them alike; only ratios mean anything.
"""

from collections.abc import Callable

import arguments
import torch

import funcnets
from funcnets import optim, random, timing, train, tree
from funcnets.compiler.backends.select import Backend
from funcnets.core import Layer
from funcnets.train import Batch, TrainState
from funcnets.transforms import ensemble


def build(name: str, width: int | None) -> Layer:
    """Return the network; with `width`, a ResNet with as many channels in its first stage."""
    if width is None:
        return funcnets.models.get(name)[0]
    return funcnets.models.get(name, channels=[width << stage for stage in range(4)])[0]


def repeat(step: train.TrainStep, members: TrainState, batch: Batch) -> Callable[[], None]:
    """Return a function that trains one more step at each call, from a copy of `members` on."""
    members = tree.map(torch.clone, members)

    def run() -> None:
        nonlocal members
        members, _ = step(members, batch)

    return run


def measure(
    net: Layer, count: int, batch: Batch, backend: Backend | None, rounds: int
) -> tuple[dict[str, list[float]], str]:
    """Return the seconds of steps of `count` members by strategy, and the strategy chosen."""
    optimizer = ensemble.rated(optim.sgd, 0.05)
    step = train.make_train_step(net, optimizer)
    members = ensemble.create(net, optimizer, random.split(random.key(0), count), batch[0])
    steps = {
        by: repeat(
            ensemble.jit_step(step, by=by, donate_argnums=0, backend=backend), members, batch
        )
        for by in ("vmap", "loop")
    }
    for _ in range(2):  # the first compiles
        for run in steps.values():
            run()
    chosen = ensemble.choose_strategy(step, members, batch, backend=backend)
    return timing.interleave(steps, rounds), chosen


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("net", nargs="?", default="lenet_bn", choices=arguments.NETWORKS)
    parser.add_argument("--width", type=arguments.positive, help="channels of resnet18's stage 1")
    parser.add_argument("--members", type=arguments.positive, nargs="+", default=[4, 8])
    parser.add_argument("--batch-size", type=arguments.positive, nargs="+", default=[16, 256])
    parser.add_argument("--side", type=arguments.positive, default=28)
    parser.add_argument("--rounds", type=arguments.positive, default=15)
    parser.add_backend()
    options = parser.parse(argv)
    if options.width and options.net != "resnet18":
        parser.error(f"argument --width: it is for resnet18, not for {options.net}")
    net = build(options.net, options.width)
    parser.check_side(net, options.side)
    print(
        f"{options.net}, {options.rounds} rounds, {torch.get_num_threads()} threads; "
        "ms per step of all members"
    )
    print("| members | batch | by | median | best | times the loop's speed | auto |")
    print("|---|---|---|---|---|---|---|")
    for count in options.members:
        for size in options.batch_size:
            images = random.uniform(random.key(1), (size, 1, options.side, options.side))
            batch = (images, torch.arange(size) % 10)
            taken, chosen = measure(net, count, batch, options.backend, options.rounds)
            medians = timing.medians(taken)
            for by, median in medians.items():
                print(
                    f"| {count} | {size} | {by} | {median * 1e3:.1f} | {min(taken[by]) * 1e3:.1f} "
                    f"| {medians['loop'] / median:.2f} | {'chosen' if by == chosen else ''} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
