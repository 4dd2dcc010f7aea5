"""Time a call of a jitted step that computes nothing: the quick way, and the long way around it.

    python examples/call_overhead.py --nets lenet_bn densenet --rounds 2000

A call like one before it is taken apart by code made for its structure.  An argument by name makes
a call go the long way, which looks at the whole tree.
"""

from collections.abc import Callable

import arguments
import torch

import funcnets
from funcnets import optim, random, timing, train, tree
from funcnets.train import TrainState


def step(train_state: TrainState, batch: train.Batch) -> tuple[TrainState, torch.Tensor]:
    """Return the state as it is, and a number, as a training step does."""
    return train_state, batch[1].sum()


def calls(name: str) -> tuple[int, dict[str, Callable[[], object]]]:
    """Return the number of tensors in a network's train state, and the two ways of a call."""
    net, recipe = funcnets.models.get(name)
    example = torch.empty(2, 1, recipe.side, recipe.side, device="meta")
    train_state = train.create(net, optim.sgd(0.1), random.key(0), example)
    batch = (torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    jitted = funcnets.jit(step, donate_argnums=0, backend="graph")
    ways = {
        "quick": lambda: jitted(train_state, batch),
        "long": lambda: jitted(train_state, batch=batch),
    }
    return len(tree.leaves(train_state)), ways


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--rounds", type=arguments.positive, default=2000)
    names = arguments.NETWORKS
    parser.add_argument("--nets", nargs="+", default=["lenet_bn", "densenet"], choices=names)
    options = parser.parse_args(argv)
    print("| network | tensors | quick, median ms | best | long, median ms | best | ratio | best |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.nets:
        count, ways = calls(name)
        for call in ways.values():
            call()
        taken = timing.interleave(ways, options.rounds)
        quick, long = timing.medians(taken).values()
        best, best_long = (min(seconds) for seconds in taken.values())
        times = " | ".join(f"{1e3 * value:.3f}" for value in (quick, best, long, best_long))
        print(f"| {name} | {count} | {times} | {long / quick:.1f} | {best_long / best:.1f} |")


if __name__ == "__main__":
    main()
