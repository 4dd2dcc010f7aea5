"""Find the images that pull hardest at a trained network, by the gradient of each example.

    python examples/per_example_gradients.py --count 256

The images with the largest gradients are those that the network finds hard, or that have a wrong
label.  Without statistics of the batch, the mean of the gradients is the gradient of the batch.
"""

import arguments
import torch

import funcnets
from funcnets import data, losses, optim, random, train, transforms, tree


def main(argv: list[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--count", type=arguments.positive, default=256, help="images to compare")
    parser.add_training(epochs=2)
    options = parser.parse(argv)
    dataset = parser.load_data(options.data, options.limit_train)
    if options.count > len(dataset.train_labels):
        parser.error(f"argument --count: there are {len(dataset.train_labels)} images")
    net, optimizer = funcnets.models.lenet_bn(), optim.adam(0.003)
    batch = (data.prepare(dataset.train_images, side=28), dataset.train_labels)
    train_state = train.create(net, optimizer, random.key(0), batch[0])
    step = funcnets.jit(train.make_train_step(net, optimizer), backend=options.backend)
    for progress in train.fit(step, train_state, batch, batch_size=64, epochs=options.epochs):
        train_state = progress.train_state
    params, state = train_state.params, train_state.state
    x, labels = batch[0][: options.count], batch[1][: options.count]
    each = transforms.per_example_gradients(net, params, state, (x, labels), statistics="frozen")
    rows = torch.cat([leaf.flatten(1) for leaf in tree.leaves(each.gradients)], 1)  # (N, P)

    def loss_of(params: object) -> torch.Tensor:
        return losses.cross_entropy(net.apply(params, state, x)[0], labels)

    whole = torch.cat([leaf.flatten() for leaf in tree.leaves(funcnets.grad(loss_of)(params))])
    distance = (rows.mean(0) - whole).norm() / whole.norm()
    print(f"mean of the gradients, relative distance from the batch's: {distance:.0e}")
    print("| image | label | prediction | norm of its gradient |\n|---|---|---|---|")
    norms = rows.norm(dim=1)
    for number in norms.argsort(descending=True)[:5].tolist():
        label, guess = int(labels[number]), int(each.logits[number].argmax())
        names = f"{dataset.class_names[label]} | {dataset.class_names[guess]}"
        print(f"| {number} | {names} | {norms[number]:.1f} |")
    print(f"median of all {options.count}: {norms.median():.2f}")


if __name__ == "__main__":
    main()
