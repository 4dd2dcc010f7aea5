"""Time an epoch of a small network by the number of steps that are compiled into one call.

    python examples/steps_per_call.py --batch-size 64 --rounds 11

The steps are the same; Python is paid once a call.  The loops take turns.
"""

from collections.abc import Callable
from functools import partial

import arguments
import torch

import funcnets
from funcnets import data, optim, random, timing, train, tree


def epoch(
    name: str, dataset: data.Dataset, batch_size: int, count: int, backend: str | None
) -> Callable[[], None]:
    """Return a function that trains for an epoch, by `count` steps a call."""
    net, recipe = funcnets.models.get(name)
    prepare, optimizer = partial(data.prepare, side=recipe.side), optim.sgd(0.1)
    step = train.make_train_step(net, optimizer, prepare=prepare)
    if count > 1:
        step = train.make_multi_step(step, batch_size)
    jitted = funcnets.jit(step, donate_argnums=0, backend=backend)  # type: ignore[arg-type]
    example = torch.empty(1, 1, recipe.side, recipe.side, device="meta")
    start = train.create(net, optimizer, random.key(0), example)
    batch = (dataset.train_images, dataset.train_labels)
    sizes = {"batch_size": batch_size, "epochs": 1, "steps_per_call": count}

    def run() -> None:
        *_, last = train.fit(jitted, tree.map(torch.clone, start), batch, **sizes)
        assert last.running.count == len(batch[1])

    return run


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--net", default="lenet_bn", choices=arguments.NETWORKS)
    parser.add_argument("--batch-size", type=arguments.positive, default=64)
    parser.add_argument("--counts", nargs="+", type=arguments.positive, default=[1, 4, 8])
    parser.add_argument("--rounds", type=arguments.positive, default=5)
    parser.add_data()
    parser.add_limit(4096)
    parser.add_backend()
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    how = (options.net, dataset, options.batch_size)
    epochs = {count: epoch(*how, count, options.backend) for count in options.counts}
    for run in epochs.values():
        run()  # compiles
    taken = timing.interleave(epochs, options.rounds)
    medians, first = timing.medians(taken), options.counts[0]
    print("| steps a call | epoch, median s | best s | times as fast, median | best |")
    print("|---|---|---|---|---|")
    for count, seconds in medians.items():
        ratio, best = medians[first] / seconds, min(taken[first]) / min(taken[count])
        print(f"| {count} | {seconds:.2f} | {min(taken[count]):.2f} | {ratio:.2f} | {best:.2f} |")


if __name__ == "__main__":
    main()
