"""Train by a step and a loop of your own: gradients, momentum and batches, without `train`.

python examples/own_loop.py --epochs 3
"""

from typing import Any

import arguments
import torch
from torch import Tensor

import funcnets
from funcnets import data, losses, metrics, random, tree

net = funcnets.models.lenet_bn()


def step(params: Any, state: Any, momentum: Any, x: Tensor, labels: Tensor) -> tuple[Any, ...]:
    """Return new parameters, statistics and momenta, and the loss."""

    def loss_of(params: Any) -> tuple[Tensor, Any]:
        logits, new_state = net.apply(params, state, x, train=True)
        return losses.cross_entropy(logits, labels), new_state

    (loss, state), gradients = funcnets.value_and_grad(loss_of, has_aux=True)(params)
    momentum = tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
    params = tree.map(lambda p, m: p - 0.1 * m, params, momentum)
    return params, state, momentum, loss


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_training(epochs=3)
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    images, test = (
        data.prepare(part, side=28) for part in (dataset.train_images, dataset.test_images)
    )
    init_key, order_key = random.split(random.key(0))
    params, state = net.init(init_key, images)
    momentum = tree.map(torch.zeros_like, params)
    fast_step = funcnets.jit(step, donate_argnums=(0, 1, 2), backend=options.backend)
    for epoch in range(options.epochs):
        order = random.permutation(random.fold_in(order_key, epoch), len(images))
        for batch in data.batches(order, batch_size=64):
            params, state, momentum, loss = fast_step(
                params, state, momentum, images[batch], dataset.train_labels[batch]
            )
        logits, _ = net.apply(params, state, test)
        accuracy = metrics.accuracy(logits, dataset.test_labels)
        print(f"epoch {epoch + 1}: last loss {loss:.3f}, test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
