"""Write a network of your own, prove it equal to its module, and train it.

python examples/own_network.py --epochs 3
"""

import arguments
from torch import Tensor, nn

from funcnets import Layer, data, jit, layers, optim, random, residual, sequential, testing, train


def block(channels: int) -> Layer:
    """Return x + relu(batch norm(convolution(x)))."""
    conv = layers.conv2d(channels, 3, padding=1)
    return residual(sequential(conv=conv, bn=layers.batch_norm(), act=layers.relu()))


def network() -> Layer:
    """Return a small residual network, (N, 1, H, W) -> (N, 10)."""
    body = {"stem": layers.conv2d(16, 5, 2), "block1": block(16), "block2": block(16)}
    head = {"pool": layers.global_avg_pool(), "flat": layers.flatten(), "fc": layers.linear(10)}
    return sequential(**body, **head)


class Module(nn.Module):
    """The same network as a module, with the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(1, 16, 5, 2), nn.Linear(16, 10)
        for name in ("block1", "block2"):
            parts = {"conv": nn.Conv2d(16, 16, 3, padding=1), "bn": nn.BatchNorm2d(16)}
            self.add_module(name, nn.ModuleDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(x)
        for part in (self.block1, self.block2):
            x = x + part["bn"](part["conv"](x)).relu()
        return self.fc(x.mean((2, 3)))


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_training(epochs=3)
    options, net = parser.parse(argv), network()
    dataset, optimizer = parser.load_data(options.data, options.limit_train), optim.adam(0.01)
    testing.assert_equivalent(net, Module(), (4, 1, 9, 9))
    print("outputs, gradients and statistics are the module's")
    batch = (data.prepare(dataset.train_images, side=28), dataset.train_labels)
    train_state = train.create(net, optimizer, random.key(0), batch[0])
    step = jit(train.make_train_step(net, optimizer), backend=options.backend)
    for progress in train.fit(step, train_state, batch, batch_size=64, epochs=options.epochs):
        if progress.batch == progress.batches:
            print(f"epoch {progress.epoch + 1}: train accuracy {progress.running.accuracy:.3f}")


if __name__ == "__main__":
    main()
