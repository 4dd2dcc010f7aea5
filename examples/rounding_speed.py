"""Time a training step whose loops round each operation, and one whose loops contract a·b + c.

    python examples/rounding_speed.py --nets lenet_bn resnet18 --batch-size 64 --rounds 200

The loops of `jit` round each operation as PyTorch does, so that a·b - a·b is 0.  A compiler that
may contract them makes a rounding error of it, whose square root can be NaN.  Both steps run in one
process, in turns, on one thread, and are timed by the processor time of this thread.
"""

import time
from collections.abc import Callable

import arguments
import torch

import funcnets
from funcnets import optim, random, timing, train
from funcnets.compiler.kernels import build

CHOICES = {"each rounds": build.ROUND_EACH, "contracted": ("-ffp-contract=fast",)}


def steps(name: str, batch_size: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Return compiled training steps of a network, one for each choice of the compiler."""
    net, recipe = funcnets.models.get(name)
    optimizer = optim.sgd(0.01)
    x = random.normal(random.key(1), (batch_size, 1, recipe.side, recipe.side))
    batch = (x, torch.arange(batch_size) % 10)
    train_state = train.create(net, optimizer, random.key(0), x)
    made = {}
    for choice, flags in CHOICES.items():
        build.ROUND_EACH = flags
        step = funcnets.jit(
            train.make_train_step(net, optimizer), donate_argnums=0, backend="native"
        )
        made[choice] = timing.repeat(step, train_state, batch)
        made[choice]()
    build.ROUND_EACH = CHOICES["each rounds"]
    return made


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--nets", nargs="+", default=["lenet_bn"], choices=arguments.NETWORKS)
    parser.add_argument("--batch-size", type=arguments.positive, default=64)
    parser.add_argument("--rounds", type=arguments.positive, default=200)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(
        "| network | each rounds, median ms | best | contracted, median ms | best | ratio | best |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in options.nets:
        taken = timing.interleave(
            steps(name, options.batch_size), options.rounds, clock=time.thread_time
        )
        each, contracted = timing.medians(taken).values()
        best, best_contracted = (min(seconds) for seconds in taken.values())
        times = [f"{1e3 * value:.2f}" for value in (each, best, contracted, best_contracted)]
        ratios = [f"{each / contracted:.2f}", f"{best / best_contracted:.2f}"]
        print(f"| {' | '.join([name, *times, *ratios])} |")


if __name__ == "__main__":
    main()
