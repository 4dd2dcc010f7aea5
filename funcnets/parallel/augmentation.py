"""Augmentation of a batch whose examples are divided among processes."""

from torch import Tensor

from funcnets.augment import Augmentation
from funcnets.parallel.axis import Axis


def shard_augmentation(axis: Axis, augmentation: Augmentation) -> Augmentation:
    """Return the augmentation of this process's shard: its examples are changed as in one process.

    The draws of an example depend on the key and its global index.  So each process draws, and
    computes, for as many examples as the whole batch has, and keeps its own.  An augmentation that
    mixes examples, such as `augment.mixup`, would mix in zeros: don't give one.
    """
    if axis.size == 1:
        return augmentation

    def augment(key: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        count = len(targets)
        if not count:
            return images, targets
        rows = axis.rows(count, images.device)

        def placed(part: Tensor) -> Tensor:
            whole = part.new_zeros((count * axis.size, *part.shape[1:]))
            return whole.index_copy(0, rows, part)

        images, targets = augmentation(key, placed(images), placed(targets))
        return images[rows], targets[rows]

    return augment
