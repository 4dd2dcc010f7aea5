"""Measure the largest eigenvalue of the loss's Hessian while LeNet trains by gradient descent.

    python examples/sharpness.py --rates 1 0.3 --picture sharpness.png

The largest one comes down to one to three times 2 / rate, and stays there (Cohen et al., 2021).
"""

from functools import partial
from typing import Any

import arguments
import drawing
from torch import Tensor

import funcnets
from funcnets import data, losses, optim, random, train
from funcnets.transforms import curvature

net = funcnets.models.lenet_bn()


def product(params: Any, state: Any, batch: tuple[Tensor, Tensor], vector: Any) -> Any:
    """Return the Hessian of the loss at `params`, batch norm in training mode, times `vector`."""

    def loss(params: Any) -> Tensor:
        return losses.cross_entropy(net.apply(params, state, batch[0], train=True)[0], batch[1])

    return curvature.hessian_product(loss, params, vector)


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--steps", type=arguments.positive, default=60)
    parser.add_argument("--rates", type=arguments.above_zero, nargs="+", default=[1.0, 0.3])
    parser.add_inputs(limit=100)
    parser.add_picture("sharpness.png")
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    batch = (data.prepare(dataset.train_images, side=28), dataset.train_labels)
    jit = partial(funcnets.jit, backend=options.backend)
    fast_product, found = jit(product), {rate: {} for rate in options.rates}
    for rate in found:
        train_state = train.create(net, optim.sgd(rate), random.key(0), batch[0])
        step = jit(train.make_train_step(net, optim.sgd(rate)))
        for number in range(options.steps + 1):
            after, measured = step(train_state, batch)
            if number % 6 == 0:  # measured every sixth step
                params, key = train_state.params, random.fold_in(random.key(1), number)
                along = partial(fast_product, params, train_state.state, batch)
                largest = curvature.largest_eigenvalue(along, params, key, iterations=8)
                found[rate][number] = float(largest.value)
                shown = f"loss {measured['loss']:.4f}, largest eigenvalue {largest.value:.3f}"
                print(f"rate {rate:g}, step {number:3}: {shown}", flush=True)
            train_state = after
    drawing.draw_sharpness(found, options.picture)


if __name__ == "__main__":
    main()
