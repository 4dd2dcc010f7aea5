"""A whole epoch, data included, relative to the usual training loop over a DataLoader."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from funcnets import data, models, optim, random, timing, train, tree
from funcnets.bench.cases import LEARNING_RATE, Case
from funcnets.bench.table import Unit
from funcnets.compiler import jit, keep_memory
from funcnets.compiler.backends.select import Backend
from funcnets.data import Dataset
from funcnets.precision import POLICIES
from funcnets.testing import twins

USUAL_LOOP = "DataLoader"

EpochPass = Callable[[Dataset], None]  # trains once on all training images


class Epoch(NamedTuple):
    """The time of one pass over the training images."""

    network: str
    batch_size: int
    side: Annotated[int, Unit("pixels")]
    images: int
    rounds: int
    precision: str
    loop: str
    seconds: Annotated[float, Unit("s", "epoch")]  # median
    examples_per_second: Annotated[float, Unit("examples/s", "speed")]
    ratio: float  # of speeds, to the usual loop in float32


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images as from `torchvision.datasets.FashionMNIST`: one at a time, each transformed."""

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


def functional_pass(case: Case, precision: str, backend: Backend) -> EpochPass:
    """Return the loop of `funcnets train`: images in memory as uint8, prepared in the step."""
    net, _ = models.get(case.network)
    optimizer = optim.sgd(LEARNING_RATE)
    prepare = partial(data.prepare, side=case.side)
    example = torch.empty(1, 1, case.side, case.side, device="meta")
    initial = train.create(net, optimizer, random.key(0, case.device), example)
    policy = POLICIES[precision]
    function = train.make_train_step(net, optimizer, prepare=prepare, policy=policy)
    keep_memory()  # as the command line does
    step = jit(function, donate_argnums=0, backend=backend, tf32=policy.tf32)

    def run(dataset: Dataset) -> None:
        batch = (dataset.train_images, dataset.train_labels)
        train_state = tree.map(torch.clone, initial)
        for _ in train.fit(step, train_state, batch, batch_size=case.batch_size, epochs=1):
            pass

    return run


def usual_pass(case: Case, workers: int) -> EpochPass:
    """Return the usual loop: an eager float32 module, and torchvision's Resize in a DataLoader."""
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
            torch.autograd.backward(loss)
            optimizer.step()
            loss_sum += float(loss.detach()) * len(labels)
            correct += int((logits.argmax(1) == labels).sum())

    return run


def time_epochs(
    case: Case,
    precisions: Sequence[str],
    dataset: Dataset,
    *,
    rounds: int,
    workers: int,
    backend: Backend,
) -> list[Epoch]:
    """Time epochs over the training images of `dataset`, the loops in turns."""
    passes: dict[tuple[str, str], EpochPass] = {("float32", USUAL_LOOP): usual_pass(case, workers)}
    for precision in precisions:
        passes[precision, "funcnets"] = functional_pass(case, precision, backend)
    count = len(dataset.train_labels)
    # Compile first: a step of the full batch size, and one of the size of the last batch.
    small = data.limit(dataset, min(count, case.batch_size + count % case.batch_size))
    for each in passes.values():
        each(small)
    turns = {key: partial(each, dataset) for key, each in passes.items()}
    taken = timing.interleave(turns, rounds)
    seconds = timing.medians(taken)
    usual = seconds["float32", USUAL_LOOP]
    return [
        Epoch(*case[:3], count, len(taken[key]), *key, value, count / value, usual / value)
        for key, value in seconds.items()
    ]
