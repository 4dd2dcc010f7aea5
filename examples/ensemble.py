"""Train networks of several seeds and learning rates in one step, and join their predictions.

    python examples/ensemble.py --seeds 5 --rates 0.01 0.03 0.1 0.3 1 3

The members of a learning rate differ by their seeds.  The table has the test accuracy of each
rate's median member and of its ensemble, which averages the members' probabilities.
"""

from functools import partial

import arguments
import torch

import funcnets
from funcnets import data, metrics, optim, random, train
from funcnets.transforms import ensemble


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("net", nargs="?", default="lenet_bn", choices=arguments.NETWORKS)
    parser.add_argument("--seeds", type=arguments.positive, default=5, help="members of each rate")
    rates = [0.01, 0.03, 0.1, 0.3, 1, 3]
    parser.add_argument("--rates", type=arguments.above_zero, nargs="+", default=rates)
    parser.add_training(epochs=5)
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    net, recipe = funcnets.models.get(options.net)
    steps = options.epochs * -(-len(dataset.train_labels) // recipe.batch_size)
    optimizer = ensemble.rated(lambda rate: optim.sgd(optim.linear(rate, steps)), 0.1)
    keys = random.split(random.key(0), options.seeds).repeat(len(options.rates), 1)
    rates = torch.tensor(options.rates, dtype=torch.float64).repeat_interleave(options.seeds)
    prepare = partial(data.prepare, side=recipe.side)
    members = ensemble.create(net, optimizer, keys, prepare(dataset.train_images[:1]), rates)
    step = train.make_train_step(net, optimizer, prepare=prepare)
    step = ensemble.jit_step(step, donate_argnums=0, backend=options.backend)
    batch, sizes = (dataset.train_images, dataset.train_labels), {"batch_size": recipe.batch_size}
    for progress in ensemble.fit(step, members, batch, **sizes, epochs=options.epochs):
        members = progress.train_state
    logits_of = partial(ensemble.member_logits, net, members.params, members.state)
    parts = [logits_of(prepare(images)) for images in torch.split(dataset.test_images, 250)]
    print("| rate | median member | ensemble |\n|---|---|---|")
    logits = torch.split(torch.cat(parts, 1), options.seeds)  # for each rate (seeds, N, classes)
    for rate, group in zip(options.rates, logits, strict=True):
        each = torch.stack([metrics.accuracy(one, dataset.test_labels) for one in group])
        joined = metrics.accuracy(ensemble.combine_logits(group), dataset.test_labels)
        print(f"| {rate:g} | {each.median():.3f} | {joined:.3f} |")


if __name__ == "__main__":
    main()
