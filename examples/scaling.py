"""Work out how a data-parallel training step scales to more GPUs, from published link speeds.

    python examples/scaling.py resnet18 vgg11

Nothing is measured here.  The computation is that of `funcnets summary` at the given rate, or the
given time of a step; the messages are those that `funcnets bench --processes` counts.  Each row has
the efficiency at a fixed number of images a GPU, and the speed-up where that batch is divided.
"""

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import arguments
import torch

from funcnets import models, random, summary, tree

GPUS_PER_MACHINE = 8
BYTES = 4  # of a float32
OPERATIONS_PER_MULTIPLY_ADD = 3 * 2  # two, in the forward pass and for both gradients

# Bytes a second in one direction.
NVLINK = 450e9  # of a GPU: H100 SXM, NVLink 4, 900 GB/s in both directions
NETWORKS = {
    "InfiniBand": 8 * 50e9,  # of a machine: DGX H100, eight ports of 400 Gb/s
    "Ethernet": 12.5e9,  # of a machine: one port of 100 Gb/s
}
# Seconds, as NCCL's own model has them for small messages in a tree (src/graph/tuning.cc).
BASE_LATENCY, NVLINK_LATENCY, NETWORK_LATENCY = 6.8e-6, 0.6e-6, 5.0e-6


class Step(NamedTuple):
    """A training step of one GPU: what it computes, and what it sends."""

    seconds: float
    gradients: int  # bytes
    norms: int  # batch norms
    channels: int  # of all batch norms


class Communication(NamedTuple):
    """Seconds that a step spends on collectives."""

    gradients: float
    norms: float


def step_of(name: str, shape: tuple[int, ...], rate: float, seconds: float | None = None) -> Step:
    """Return the step of a network on images of a shape, which takes `seconds`.

    By default these are those of its operations, at `rate` operations a second.
    """
    net, _ = models.get(name, "reference")
    if seconds is None:
        multiply_adds = summary.summarize(net, shape, depth=0)[-1].multiply_adds
        seconds = OPERATIONS_PER_MULTIPLY_ADD * multiply_adds / rate
    key, x = random.key(0, device="meta"), torch.empty(shape, device="meta")
    params, state = net.init(key, x)
    means = [leaf for path, leaf in tree.flatten_named(state).items() if path.endswith("mean")]
    numbers = sum(leaf.numel() for leaf in tree.leaves(params)) + 3  # loss, correct, examples
    channels = sum(leaf.numel() for leaf in means)
    return Step(seconds, BYTES * numbers, len(means), channels)


def communication(step: Step, gpus: int, network: float) -> Communication:
    """Return the times of the collectives of a step on `gpus` GPUs, one after another."""
    machines = math.ceil(gpus / GPUS_PER_MACHINE)
    local = min(gpus, GPUS_PER_MACHINE) - 1
    latency = 2 * (local * NVLINK_LATENCY + math.log2(machines) * NETWORK_LATENCY) + BASE_LATENCY
    speed = min(NVLINK, network) if machines > 1 else NVLINK
    seconds_per_byte = 2 * (gpus - 1) / gpus / speed
    # Forward and back, a mean, a variance and a count of each channel, for each process.
    statistics = 2 * 3 * step.channels * gpus * BYTES
    return Communication(
        latency + step.gradients * seconds_per_byte,
        2 * step.norms * latency + statistics * seconds_per_byte,
    )


def rows(name: str, step: Step) -> list[str]:
    """Return the rows of a step: 8 GPUs of one machine, and 64 of eight, by each network."""
    found = []
    links = [(8, "NVLink", NVLINK), *((64, link, speed) for link, speed in NETWORKS.items())]
    for gpus, link, speed in links:
        taken = communication(step, gpus, speed)
        together = step.seconds + sum(taken)
        hidden = min(taken.gradients, step.seconds) / together
        divided = step.seconds / (step.seconds / gpus + sum(taken))
        cells = (name, f"{1e3 * step.seconds:.2f}", gpus, link, f"{1e3 * taken.gradients:.2f}")
        more = (f"{1e3 * taken.norms:.2f}", f"{step.seconds / together:.0%}", f"{hidden:.0%}")
        found.append(f"| {' | '.join(map(str, (*cells, *more, f'{divided:.2f}')))} |")
    return found


HEADINGS = (
    *("network", "computation ms", "GPUs", "link", "gradients ms", "batch norms ms"),
    *("efficiency", "overlap, at most", "speed-up of one batch"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table in Markdown."""
    parser = arguments.Parser(__doc__)
    parser.add_argument("networks", nargs="+", choices=arguments.NETWORKS, metavar="NET")
    parser.add_argument("--images", type=arguments.positive, default=256, help="images a GPU")
    parser.add_argument(
        "--tflops", type=arguments.above_zero, default=200.0, help="10^12 operations a second"
    )
    parser.add_argument("--side", type=arguments.positive, help="pixels, by default the recipe's")
    parser.add_argument(
        "--milliseconds", type=arguments.above_zero, help="of the computation, instead"
    )
    given: argparse.Namespace = parser.parse_args(argv)
    print(f"| {' | '.join(HEADINGS)} |")
    print(f"|{'---|' * len(HEADINGS)}")
    for name in given.networks:
        side = given.side or models.get(name, "reference")[1].side
        parser.check_side(models.get(name)[0], side)
        seconds = None if given.milliseconds is None else given.milliseconds / 1e3
        step = step_of(name, (given.images, 1, side, side), 1e12 * given.tflops, seconds)
        print(*rows(name, step), sep="\n")


if __name__ == "__main__":
    main()
