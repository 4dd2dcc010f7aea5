"""Write a trained network for other programs by `torch.export`, read it back, and compare.

    python examples/export.py --file lenet.pt2

The file needs PyTorch alone, and takes batches of any size.  `funcnets export RUN --to onnx` writes
ONNX, or a package of AOTInductor, from a run directory of the command line.
"""

import arguments
import torch

import funcnets
from funcnets import data, interop, optim, random, train


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--file", type=arguments.new_file, default="lenet.pt2")
    parser.add_training(epochs=2)
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    net, optimizer = funcnets.models.lenet_bn(), optim.adam(0.003)
    batch = (data.prepare(dataset.train_images, side=28), dataset.train_labels)
    train_state = train.create(net, optimizer, random.key(0), batch[0])
    step = funcnets.jit(train.make_train_step(net, optimizer), backend=options.backend)
    for progress in train.fit(step, train_state, batch, batch_size=64, epochs=options.epochs):
        train_state = progress.train_state
    module = interop.to_module(net, train_state.params, train_state.state).eval()
    sizes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(module, (batch[0][:2],), dynamic_shapes=sizes)
    torch.export.save(program, options.file)
    images = data.prepare(dataset.test_images[:100], side=28)
    expected, _ = net.apply(train_state.params, train_state.state, images)
    found = torch.export.load(options.file).module()(images)
    print(f"{options.file}: logits differ by at most {(found - expected).abs().max():.0e}")


if __name__ == "__main__":
    main()
