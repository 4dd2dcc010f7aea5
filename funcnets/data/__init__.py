"""Data sets: finding and reading their files, and drawing batches from them.

The whole data set is kept on the device as uint8.  A batch is gathered by shuffled indices, and is
converted to floating point, at the side that a network expects, inside the training step.

>>> from funcnets import data, random
>>> dataset = data.load("bundled")  # a part of Fashion-MNIST; see `load` for others
>>> order = data.shuffle(random.key(0), epoch=0, count=len(dataset.train_images))
>>> indices = data.batches(order, batch_size=128)[0]
>>> x, labels = data.prepare(dataset.train_images[indices], side=28), dataset.train_labels[indices]
>>> x.shape, x.dtype, labels.shape
(torch.Size([128, 1, 28, 28]), torch.float32, torch.Size([128]))

`from_tensors` makes a data set of your own tensors, `load_folder` one of image files.
"""

from funcnets.data.batches import batches, prepare, shuffle
from funcnets.data.dataset import (
    DataError,
    Dataset,
    MissingDataError,
    fingerprint,
    from_tensors,
    hold_out,
    limit,
    moments,
)
from funcnets.data.folder import load_folder
from funcnets.data.idx import read_idx
from funcnets.data.images import read_image
from funcnets.data.named import NAMED
from funcnets.data.places import BUNDLED, find, load

__all__ = [
    "BUNDLED",
    "NAMED",
    "DataError",
    "Dataset",
    "MissingDataError",
    "batches",
    "find",
    "fingerprint",
    "from_tensors",
    "hold_out",
    "limit",
    "load",
    "load_folder",
    "moments",
    "prepare",
    "read_idx",
    "read_image",
    "shuffle",
]
