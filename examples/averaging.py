"""Train LeNet at a constant learning rate, and evaluate it and its moving average.

    python examples/averaging.py --epochs 10

At a constant learning rate of 1 the test accuracy swings from epoch to epoch; that of the
exponential moving average of parameters and running statistics doesn't.
"""

import arguments
import torch

import funcnets
from funcnets import data, optim, random, train, transforms


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--epochs", type=arguments.positive, default=10)
    parser.add_argument("--decay", type=arguments.fraction, default=0.99)
    parser.add_argument("--rate", type=arguments.non_negative, default=1.0, help="learning rate")
    parser.add_argument("--batch-size", type=arguments.positive, default=128)
    parser.add_limit()
    parser.add_data()
    parser.add_backend()
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    images, tested = (
        data.prepare(part, side=28) for part in (dataset.train_images, dataset.test_images)
    )
    net, optimizer = funcnets.models.lenet_bn(), optim.sgd(options.rate)
    average = optim.exponential_moving_average(options.decay, debias=True)
    step = funcnets.jit(
        transforms.averaged(train.make_train_step(net, optimizer), average),
        donate_argnums=0,
        backend=options.backend,
    )
    eval_step = funcnets.jit(train.make_eval_step(net), backend=options.backend)
    created = train.create(net, optimizer, random.key(0), torch.empty(1, 1, 28, 28, device="meta"))
    print("| epoch | train loss | test accuracy | of the average |\n|---|---|---|---|")
    for progress in train.fit(
        step,
        transforms.with_average(created, average),
        (images, dataset.train_labels),
        batch_size=options.batch_size,
        epochs=options.epochs,
    ):
        if progress.batch < progress.batches:
            continue
        now = progress.train_state
        last, averaged = (
            train.evaluate(eval_step, params, state, (tested, dataset.test_labels)).accuracy
            for params, state in ((now.params, now.state), transforms.averages(now))
        )
        loss = progress.running.loss
        print(f"| {progress.epoch + 1} | {loss:.3f} | {last:.4f} | {averaged:.4f} |", flush=True)


if __name__ == "__main__":
    main()
