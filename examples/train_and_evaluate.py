"""Train LeNet on the images that come with the package, and evaluate it, in ten lines.

    python examples/train_and_evaluate.py

Further examples have arguments; `--help` gives them.
"""

import funcnets
from funcnets import data, optim, random, train


def main(count: int = 10_000) -> None:
    dataset = data.limit(data.load("bundled"), count)
    x = data.prepare(dataset.train_images, side=28)  # float32 in [0, 1], (N, 1, 28, 28)
    batch = (x, dataset.train_labels)
    net, optimizer = funcnets.models.lenet_bn(), optim.adam(0.003)
    train_state = train.create(net, optimizer, random.key(0), x)
    step = funcnets.jit(train.make_train_step(net, optimizer), donate_argnums=0)
    for progress in train.fit(step, train_state, batch, batch_size=64, epochs=2):
        train_state = progress.train_state
    test = (data.prepare(dataset.test_images, side=28), dataset.test_labels)
    found = train.evaluate(train.make_eval_step(net), train_state.params, train_state.state, test)
    print(f"test accuracy after 2 epochs: {found.accuracy:.3f}")


if __name__ == "__main__":
    main()
