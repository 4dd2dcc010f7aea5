"""A whole epoch, data included, against the usual loop over a DataLoader."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from funcnets import data, models, optim, random, timing, train, tree
from funcnets.bench.cases import LEARNING_RATE, Case
from funcnets.compiler import jit
from funcnets.compiler.backends.select import Backend
from funcnets.data import Dataset
from funcnets.precision import POLICIES
from funcnets.testing import twins

USUAL = "DataLoader"

Pass = Callable[[Dataset], None]  # trains on all training images once


class Epoch(NamedTuple):
    """How long one pass over the training images takes."""

    network: str
    batch_size: int
    side: int
    images: int
    rounds: int
    precision: str
    loop: str
    seconds: float  # median
    examples_per_second: float
    ratio: float  # how many times faster than the usual loop in float32


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images as `torchvision.datasets.FashionMNIST` gives them: one at a time, transformed."""

    def __init__(self, dataset: Dataset, side: int) -> None:
        from torchvision import transforms  # type: ignore[import-untyped]

        self.images, self.labels = dataset.train_images[:, 0].cpu(), dataset.train_labels.cpu()
        self.transform = transforms.Compose([transforms.Resize(side), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        image = Image.fromarray(self.images[index].numpy(), mode="L")
        return self.transform(image), int(self.labels[index])


def functional_pass(case: Case, precision: str, backend: Backend) -> Pass:
    """The loop of `funcnets train`: images resident as bytes, prepared inside the step."""
    net, _ = models.get(case.network)
    optimizer = optim.sgd(LEARNING_RATE)
    prepare = partial(data.prepare, side=case.side)
    example = torch.empty(1, 1, case.side, case.side, device="meta")
    initial = train.create(net, optimizer, random.key(0, case.device), example)
    policy = POLICIES[precision]
    function = train.make_train_step(net, optimizer, prepare=prepare, policy=policy)
    step = jit(function, donate_argnums=0, backend=backend, tf32=policy.tf32)

    def run(dataset: Dataset) -> None:
        batch = (dataset.train_images, dataset.train_labels)
        train_state = tree.map(torch.clone, initial)
        for _ in train.fit(step, train_state, batch, batch_size=case.batch_size, epochs=1):
            pass

    return run


def usual_pass(case: Case, workers: int) -> Pass:
    """The usual loop: a module in float32, eager, and torchvision's Resize in a DataLoader."""
    module = twins.get(case.network).to(case.device)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)

    def run(dataset: Dataset) -> None:
        loss_sum, correct = 0.0, 0
        images = Images(dataset, case.side)
        loader: Any = DataLoader(images, case.batch_size, shuffle=True, num_workers=workers)
        for x, labels in loader:
            x, labels = x.to(case.device), labels.to(case.device)
            optimizer.zero_grad()
            logits = module(x)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            loss_sum += float(loss.detach()) * len(labels)
            correct += int((logits.argmax(1) == labels).sum())

    return run


def measure(
    case: Case,
    precisions: Sequence[str],
    dataset: Dataset,
    *,
    rounds: int,
    workers: int,
    backend: Backend,
) -> list[Epoch]:
    """Time epochs over the training images of `dataset`, the loops in turns."""
    passes: dict[tuple[str, str], Pass] = {("float32", USUAL): usual_pass(case, workers)}
    for precision in precisions:
        passes[precision, "funcnets"] = functional_pass(case, precision, backend)
    count = len(dataset.train_labels)
    # What is slow the first time: a step of the full size, and one of the last batch's.
    few = data.limit(dataset, min(count, case.batch_size + count % case.batch_size))
    for each in passes.values():
        each(few)
    turns = {key: partial(each, dataset) for key, each in passes.items()}
    taken = timing.interleave(turns, rounds)
    seconds = timing.medians(taken)
    usual = seconds["float32", USUAL]
    return [
        Epoch(*case[:3], count, len(taken[key]), *key, value, count / value, usual / value)
        for key, value in seconds.items()
    ]
