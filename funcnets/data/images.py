"""PNG and JPEG files: their headers, which are read first, and their pixels."""

import os
import re
import struct
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from funcnets import _files
from funcnets.data.dataset import DataError
from funcnets.data.idx import reading

SUFFIXES = (".png", ".jpg", ".jpeg")
MOST_PIXELS = 100_000_000  # of an image; one that unpacks to more is refused before it is decoded

_PNG = b"\x89PNG\r\n\x1a\n"
_GREY_PNG = (0, 4)  # colour types without and with transparency
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


class Header(NamedTuple):
    """Description of an image at the start of its file."""

    channels: int  # 1 for grey, otherwise 3; transparency is left out
    height: int
    width: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return channels, height and width of a PNG or JPEG file; its pixels aren't decoded.

    Raises DataError if it can't be read, is neither, or has too many pixels.
    """
    return _header(_read(path), path)


def _read(path: str | os.PathLike[str]) -> bytes:
    with reading(path), _files.open_regular(path) as file:
        return file.read()


def _header(content: bytes, path: str | os.PathLike[str]) -> Header:
    try:
        header = _png_header(content) if content.startswith(_PNG) else _jpeg_header(content)
    except (struct.error, IndexError):
        header = None
    if header is None or header.height * header.width == 0:
        raise DataError(f"{path}: neither a whole PNG nor JPEG image; replace or remove it")
    if header.height * header.width > MOST_PIXELS:
        raise DataError(
            f"{path}: an image of {header.height} x {header.width} pixels; expected at most "
            f"{MOST_PIXELS:,} pixels"
        )
    return header


def _png_header(content: bytes) -> Header:
    width, height, _, colour = struct.unpack_from(">IIBB", content, 16)
    return Header(1 if colour in _GREY_PNG else 3, height, width)


def _jpeg_header(content: bytes) -> Header | None:
    """Return the header in the first frame of a JPEG file; None if there isn't one."""
    at = 2
    if content[:2] != b"\xff\xd8":
        return None
    while content[at] == 0xFF:
        marker = content[at + 1]
        if marker in _START_OF_FRAME:
            height, width, components = struct.unpack_from(">HHB", content, at + 5)
            return Header(1 if components == 1 else 3, height, width)
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
        else:
            at += 2 + int(struct.unpack_from(">H", content, at + 2)[0])
    return None


def read_image(path: str | os.PathLike[str], channels: int, side: int) -> Tensor:
    """Return a PNG or JPEG file as uint8 (channels, side, side), by torchvision's decoder.

    It is made grey or coloured, turned as its EXIF orientation says, resized to `side` pixels along
    its shorter side, and cut to its middle square.

    Raises DataError if it can't be read or decoded.
    """
    # Imported here: torchvision takes seconds to import.
    from torchvision.io import ImageReadMode, decode_image  # type: ignore[import-untyped]

    content = _read(path)
    _header(content, path)
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    try:
        image: Tensor = decode_image(
            torch.frombuffer(bytearray(content), dtype=torch.uint8),
            mode,
            apply_exif_orientation=True,
        )
    except RuntimeError as error:
        reason = re.sub(r"^.*\.cpp:\d+, ", "", str(error).splitlines()[0])  # no place in C++
        raise DataError(f"{path}: can't be decoded ({reason}); replace or remove it") from error
    if image.dtype == torch.uint16:
        image = (image.int() // 257).to(torch.uint8)
    return square(image, side)


def square(image: Tensor, side: int) -> Tensor:
    """Return the middle square of an image uint8 (C, H, W), resized to (C, side, side).

    It is resized as `prepare` does, bilinearly and with antialiasing.

    >>> import torch
    >>> from funcnets.data import images
    >>> images.square(torch.zeros(3, 40, 60, dtype=torch.uint8), 20).shape
    torch.Size([3, 20, 20])
    """
    height, width = image.shape[1:]
    shorter = min(height, width)
    top, left = (height - shorter) // 2, (width - shorter) // 2
    image = image[:, top : top + shorter, left : left + shorter]
    if shorter == side:
        return image.contiguous()
    levels = functional.interpolate(
        image[None].float(), (side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return levels[0].round().clamp(0, 255).to(torch.uint8)
