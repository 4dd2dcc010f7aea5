"""Time a step of an ensemble: by `vmap`, with and without split convolutions, and member by member.

    python examples/ensemble_speed.py lenet_bn --members 4 8 --batch-size 128 256
    python examples/ensemble_speed.py resnet18 --width 8

`jit` splits the grouped convolutions that `vmap` makes on tiny maps, which resnets have.  The three
take turns in one process, so that a machine whose speed drifts treats them alike; only ratios mean
anything.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import funcnets
from funcnets import optim, random, train, tree
from funcnets.core import Layer
from funcnets.jit.lowerings import DEFAULT, Lowering
from funcnets.transforms import ensemble

UNSPLIT = tuple(lowering for lowering in DEFAULT if not lowering.name.startswith("grouped."))


def build(name: str, width: int | None) -> Layer:
    """The network, or a residual one of `width` channels in its first stage."""
    if width is None:
        return funcnets.models.get(name)[0]
    return funcnets.models.get(name, channels=[width << stage for stage in range(4)])[0]


def steps(
    net: Layer, members: int, images: Tensor, labels: Tensor, backend: str
) -> dict[str, Callable[[], None]]:
    """The three, each with states of its own to write the next ones into."""
    optimizer = ensemble.rated(optim.sgd, 0.05)
    step = train.make_train_step(net, optimizer)
    keys = random.split(random.key(0), members)
    first = ensemble.create(net, optimizer, keys, images)

    def vmapped(lowerings: tuple[Lowering, ...]) -> Callable[[], None]:
        state = tree.map(torch.clone, first)
        mapped = ensemble.make_ensemble_step(step)
        jitted = funcnets.jit(mapped, donate_argnums=0, backend=backend, lowerings=lowerings)

        def run() -> None:
            nonlocal state
            state, _ = jitted(state, (images, labels))

        return run

    jitted = funcnets.jit(step, donate_argnums=0, backend=backend)
    states = [tree.map(torch.clone, state) for state in ensemble.unstack(first)]

    def loop() -> None:
        states[:] = [jitted(state, (images, labels))[0] for state in states]

    return {"vmap, split": vmapped(DEFAULT), "vmap": vmapped(UNSPLIT), "loop of steps": loop}


def times(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turns, after two steps that compile and warm up."""
    for step in steps.values():
        step()
        step()
    measured: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            measured[name].append(time.perf_counter() - start)
    return measured


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", nargs="?", default="lenet_bn")
    parser.add_argument("--width", type=int, help="channels of a resnet's first stage")
    parser.add_argument("--members", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128])
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backend", default="inductor")
    options = parser.parse_args(argv)
    net = build(options.net, options.width)
    print(
        f"{options.net}, {options.rounds} rounds, {torch.get_num_threads()} threads; "
        "ms a step of all members"
    )
    print(
        "| members | batch | | median | best | times the loop's speed |\n|---|---|---|---|---|---|"
    )
    for members in options.members:
        for count in options.batch_size:
            images = random.uniform(random.key(1), (count, 1, options.side, options.side))
            labels = torch.arange(count) % 10
            measured = times(steps(net, members, images, labels, options.backend), options.rounds)
            *_, loop = map(statistics.median, measured.values())
            for name, seconds in measured.items():
                median = statistics.median(seconds)
                print(
                    f"| {members} | {count} | {name} | {median * 1e3:.1f} | "
                    f"{min(seconds) * 1e3:.1f} | {loop / median:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
