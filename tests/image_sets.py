"""Tiny data sets on disk, which tests of the library and the command line make."""

import gzip
import struct

import numpy as np
import torch
from PIL import Image

from funcnets.data.idx import FILES


def idx(values):
    """The content of an IDX file of unsigned bytes."""
    return (
        b"\0\0\x08" + struct.pack(f">B{values.ndim}I", values.ndim, *values.shape) + bytes(values)
    )


def arrays(train=7, test=3, side=5, classes=4):
    """Images and labels to train on and to test: each class in turn."""
    generator = np.random.default_rng(train)
    for count in (train, test):
        yield generator.integers(0, 256, (count, side, side), np.uint8)
        yield (np.arange(count) % classes).astype(np.uint8)


def write_idx(place, form="packed", **sizes):
    """Write four IDX files, and return their contents as they are on disk."""
    place.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, values in zip(FILES, arrays(**sizes), strict=True):
        content, path = idx(values), place / name
        if form == "packed":
            content = gzip.compress(content)
        else:
            path = place / name.removesuffix(".gz").replace("-idx", form)
        path.write_bytes(content)
        written[name] = content
    return written


def picture(seed, shape=(3, 12, 9)):
    """Random bytes, the same for a seed."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def write_image(path, pixels):
    """Write uint8 (C, H, W), of one channel or three, as a file of the kind that its name says."""
    image = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    Image.fromarray(image.numpy()).save(path)


def write_folder(root, counts, shape=(3, 12, 9)):
    """Write a number of PNG images for each class directory."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            write_image(root / name / f"{number:02}.png", picture(number, shape))
