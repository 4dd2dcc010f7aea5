import gzip
import hashlib
import math
import os
import re
import shutil
import struct
import threading
import tracemalloc
import zlib
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import datasets

from funcnets import data
from funcnets.data import idx as idx_files
from funcnets.data import places
from funcnets.data.named import FASHION_MNIST

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NAMES = idx_files.FILES
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES


def idx(values, shape=None):
    """The content of an IDX file, unpacked, with a header that may lie about the shape."""
    shape = values.shape if shape is None else shape
    return b"\0\0\x08" + struct.pack(f">B{len(shape)}I", len(shape), *shape) + values.tobytes()


def write_gzip(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, compresslevel=1))
    return path


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    assert "--" not in message  # options belong to the command line
    return message


def small_set(place, train=6, test=3, train_labels=None):
    """Four small files at `place`, and the checksums under which they are Fashion-MNIST's."""
    generator = np.random.default_rng(train)
    counts = (train, train if train_labels is None else train_labels, test, test)
    checksums = {}
    for name, count in zip(NAMES, counts, strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        content = idx(generator.integers(0, 10, shape, dtype=np.uint8))
        write_gzip(place / name, content)
        checksums[name] = (md5(content), "no bundled part")
    return checksums


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine with no data but the bundled part: the home and current directory are empty."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("FUNCNETS_DATA", raising=False)
    monkeypatch.chdir(here)
    debian = tmp_path / "debian"
    monkeypatch.setitem(places.SYSTEM_DIRECTORIES, "Fashion-MNIST", debian)
    return tmp_path


def accept_checksums(monkeypatch, checksums):
    for name, known in checksums.items():
        monkeypatch.setitem(FASHION_MNIST.contents, name, known)


@pytest.fixture
def accept(monkeypatch):
    """Make a small set of a given size, and accept it as Fashion-MNIST's."""

    def make(place, **sizes):
        accept_checksums(monkeypatch, small_set(place, **sizes))

    return make


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@settings(deadline=None)
@given(shape=shapes, seed=st.integers(0, 99))
def test_idx_round_trip(tmp_path_factory, shape, seed):
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = write_gzip(tmp_path_factory.mktemp("idx") / "values.gz", idx(values))
    read = data.read_idx(path)
    assert read.dtype == torch.uint8
    assert np.array_equal(read.numpy(), values)
    read.zero_()  # writable, and its own memory
    assert np.array_equal(data.read_idx(path).numpy(), values)


@settings(deadline=None)
@given(
    content=st.binary(max_size=40)
    | st.binary(max_size=40).map(b"\0\0\x08".__add__)
    | st.binary(min_size=4, max_size=6).map(b"\0\0\x08\1\0\0\0\5".__add__)
)
def test_any_content_is_read_whole_or_refused(tmp_path_factory, content):
    path = write_gzip(tmp_path_factory.mktemp("idx") / "any.gz", content)
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = struct.unpack_from(f">{rank}I", content.ljust(4 + 4 * rank), 4)
    if rank and len(content) == 4 + 4 * rank + math.prod(shape) and math.prod(shape):
        read = data.read_idx(path)
        assert read.shape == shape
        assert content.endswith(read.numpy().tobytes())
    else:
        with pytest.raises(data.DataError, match=re.escape(str(path))):
            data.read_idx(path)


@settings(deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_truncated_gzip_is_an_error(tmp_path_factory, cut):
    values = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    path = write_gzip(tmp_path_factory.mktemp("idx") / "cut.gz", idx(values))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(data.DataError, match=r"cut\.gz"):
        data.read_idx(path)


@settings(deadline=None)
@given(at=st.integers(10, 80), flip=st.integers(1, 255))
def test_corrupt_gzip_never_gives_other_values(tmp_path_factory, at, flip):
    values = np.random.default_rng(0).integers(0, 256, (10, 10), dtype=np.uint8)
    path = write_gzip(tmp_path_factory.mktemp("idx") / "corrupt.gz", idx(values))
    packed = bytearray(path.read_bytes())
    packed[at] ^= flip
    path.write_bytes(packed)
    try:
        same = gzip.decompress(packed) == idx(values)  # as where a bit fell into padding
    except (EOFError, OSError, zlib.error):
        same = False
    if same:
        assert np.array_equal(data.read_idx(path).numpy(), values)
    else:
        with pytest.raises(data.DataError, match=r"corrupt\.gz"):
            data.read_idx(path)


VALUES = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"begins with the bytes \[\]"),
        (b"\0\0\x0d\x01" + idx(VALUES)[4:], r"begins with the bytes \[00 00 0d 01\]"),
        (b"\0\0\x08\0", "rank, 1 or more"),
        (idx(VALUES)[:7], "7 bytes decompressed; rank 2 needs 12 or more"),
        (idx(VALUES)[:-1], "23 bytes decompressed; its header says 24, for the shape 3x4"),
        (idx(VALUES) + b"\0", "more than 24 bytes decompressed; its header says 24"),
        (idx(VALUES, (4, 4)), "24 bytes decompressed; its header says 28, for the shape 4x4"),
        (idx(VALUES[:0]), "it is empty; its header gives the shape 0x4"),
        (idx(VALUES[:0], (0, *[2**32 - 1] * 3)), "it is empty"),
    ],
)
def test_wrong_content_is_named(tmp_path, content, says):
    path = write_gzip(tmp_path / "wrong.gz", content)
    with pytest.raises(data.DataError, match=says) as error:
        data.read_idx(path)
    assert one_line(error).startswith(f"{path}: ")


def test_files_that_cannot_be_decompressed(tmp_path):
    plain = tmp_path / "plain.gz"
    plain.write_bytes(idx(VALUES))
    with pytest.raises(data.DataError, match=r"plain\.gz: not a whole gzip file \(Not a gzipped"):
        data.read_idx(plain)
    plain.write_bytes(gzip.compress(idx(VALUES)) + b"more")
    with pytest.raises(data.DataError, match=r"plain\.gz: not a whole gzip file"):
        data.read_idx(plain)
    with pytest.raises(data.DataError, match=r"absent\.gz: can't be read \(No such file"):
        data.read_idx(tmp_path / "absent.gz")


def test_no_more_is_decompressed_than_the_header_implies(tmp_path, monkeypatch):
    """A bomb of 1 GB, of which a few bytes are read; and a header that lies."""
    path = tmp_path / TRAIN_LABELS
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(idx(VALUES))
        for _ in range(1024):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(data.DataError, match="more than 24 bytes decompressed"):
        data.read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()
    write_gzip(path, idx(VALUES, (60_000, 2**15)))
    with pytest.raises(data.DataError, match="its header says more than 47,040,016 bytes"):
        FASHION_MNIST.read_file(path, TRAIN_LABELS)


def test_what_cannot_be_seen_is_not_called_missing(nowhere):
    place = nowhere / "named"
    small_set(place)
    (place / TEST_LABELS).unlink()
    (place / TEST_LABELS).symlink_to(TEST_LABELS)  # a circle
    with pytest.raises(data.DataError, match=f"{TEST_LABELS}: can't be read \\(Too many") as error:
        data.load(place)
    one_line(error)


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.gz")
    with pytest.raises(data.DataError, match=r"pipe\.gz: can't be read \(not a regular file"):
        data.read_idx(tmp_path / "pipe.gz")


def test_bundled_part_is_balanced(bundled):
    for images, labels, count in (
        (bundled.train_images, bundled.train_labels, 10_000),
        (bundled.test_images, bundled.test_labels, 2_000),
    ):
        assert images.shape == (count, 1, 28, 28)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert torch.bincount(labels).tolist() == [count // 10] * 10
        assert len(images.unique(dim=0)) > 0.99 * count
    assert sum(path.stat().st_size for path in data.BUNDLED.iterdir()) < 6e6
    assert "10,000 training and 2,000 test images" in bundled.source
    assert all(word in bundled.source for word in ("bundled", "download", "FUNCNETS_DATA"))
    assert "--" not in bundled.source
    assert "Zalando SE" in (data.BUNDLED / "LICENSE").read_text(encoding="utf-8")


needs_full_set = pytest.mark.skipif(
    not all((DEBIAN / name).is_file() for name in NAMES), reason="needs dataset-fashion-mnist"
)


@needs_full_set
def test_bundled_part_is_the_beginning_of_the_full_set(bundled):
    full = data.load(DEBIAN)
    assert "60,000 training and 10,000 test images" in full.source
    assert str(DEBIAN) in full.source
    for part, images, labels, size in (
        (bundled.train_images, full.train_images, full.train_labels, 1000),
        (bundled.test_images, full.test_images, full.test_labels, 200),
    ):
        classes = [torch.nonzero(labels == label).flatten()[:size] for label in range(10)]
        assert torch.equal(part, images[torch.cat(classes).sort().values])


@needs_full_set
def test_checksums_are_those_published():
    # Packed as published, each file's header has its name and the time at which it was packed.
    times = (1504176606, 1504176606, 1504176627, 1504176627)
    published = dict(datasets.FashionMNIST.resources)
    for name, packed_at in zip(NAMES, times, strict=True):
        packed = (DEBIAN / name).read_bytes()
        header = b"\x1f\x8b\x08\x08" + struct.pack("<I", packed_at) + packed[8:10]
        original = header + name.removesuffix(".gz").encode() + b"\0" + packed[10:]
        assert md5(original) == published[name]
        assert md5(gzip.decompress(packed)) == FASHION_MNIST.contents[name][0]


def test_explicit_directory_flat_or_in_torchvisions_layout(nowhere, accept):
    for place in (nowhere / "flat", nowhere / "root" / "FashionMNIST" / "raw"):
        accept(place, train=7)
        found = data.load(nowhere / place.relative_to(nowhere).parts[0])
        assert found.train_images.shape == (7, 1, 28, 28)
        assert found.test_images.shape == (3, 1, 28, 28)
        assert torch.equal(found.train_images[:, 0], data.read_idx(place / TRAIN_IMAGES))
        assert torch.equal(found.train_labels, data.read_idx(place / TRAIN_LABELS).long())
        assert torch.equal(found.test_labels, data.read_idx(place / TEST_LABELS).long())
        assert str(place) in found.source


def test_places_are_tried_in_order(nowhere, monkeypatch):
    bundled_checksums = dict(FASHION_MNIST.contents)
    places = [
        nowhere / "explicit",
        nowhere / "named",
        nowhere / "here/data/FashionMNIST/raw",
        nowhere / "home/data/FashionMNIST/raw",
        nowhere / "debian",
    ]
    sets = [small_set(place, train=10 + n) for n, place in enumerate(places)]
    monkeypatch.setenv("FUNCNETS_DATA", str(nowhere / "named"))
    for n, (place, checksums) in enumerate(zip(places, sets, strict=True)):
        accept_checksums(monkeypatch, checksums)
        if n == 2:
            monkeypatch.delenv("FUNCNETS_DATA")
        found = data.load(nowhere / "explicit" if n == 0 else None)
        assert len(found.train_images) == 10 + n
        shutil.rmtree(place)
    accept_checksums(monkeypatch, bundled_checksums)
    assert "bundled" in data.load().source


def test_an_incomplete_searched_directory_is_skipped(nowhere):
    place = nowhere / "here/data/FashionMNIST/raw"
    small_set(place)
    (place / TEST_LABELS).unlink()
    assert "bundled" in data.load().source


def test_a_damaged_searched_directory_is_an_error(nowhere):
    place = nowhere / "home/data/FashionMNIST/raw"
    small_set(place)
    with pytest.raises(data.DataError) as error:
        data.load()
    assert str(place / TRAIN_IMAGES) in one_line(error)


def test_bundled_word_wins_over_every_place(nowhere, accept, monkeypatch):
    small_set(nowhere / "named")
    assert "bundled" in data.load("bundled").source
    monkeypatch.setenv("FUNCNETS_DATA", "bundled")
    assert "bundled" in data.load().source
    with pytest.raises(data.DataError, match="needs no download"):
        data.load(download=True)


@pytest.mark.parametrize("by_environment", [False, True])
def test_named_directory_without_the_files_is_an_error(
    nowhere, accept, monkeypatch, by_environment
):
    accept(nowhere / "debian")
    lacking = nowhere / "lacking"
    shutil.copytree(nowhere / "debian", lacking)
    (lacking / TEST_LABELS).unlink()
    if by_environment:
        monkeypatch.setenv("FUNCNETS_DATA", str(lacking))
    with pytest.raises(data.DataError, match=f"{lacking}.*: no {TEST_LABELS} in it") as error:
        data.load(None if by_environment else lacking)
    message = one_line(error)
    assert ("from FUNCNETS_DATA" in message) == by_environment
    assert TRAIN_LABELS not in message
    with pytest.raises(data.DataError, match="absent: no such directory; give one"):
        data.load(nowhere / "absent")


def test_home_is_expanded_and_environment_may_be_empty(nowhere, accept, monkeypatch):
    accept(nowhere / "home/mine", train=4)
    assert len(data.load("~/mine").train_images) == 4
    monkeypatch.setenv("FUNCNETS_DATA", "~/mine")
    assert len(data.load().train_images) == 4
    accept(nowhere / "debian", train=5)
    monkeypatch.setenv("FUNCNETS_DATA", "")
    assert len(data.load().train_images) == 5


@pytest.mark.parametrize("name", NAMES)
def test_another_set_under_the_known_names_is_an_error(tmp_path, name, accept):
    accept(tmp_path)
    content = bytearray(gzip.decompress((tmp_path / name).read_bytes()))
    content[-1] ^= 1
    write_gzip(tmp_path / name, bytes(content))
    with pytest.raises(data.DataError) as error:
        data.load(tmp_path, dataset="fashion-mnist")
    message = one_line(error)
    assert message.startswith(f"{tmp_path / name}: ")
    assert md5(content) in message
    assert FASHION_MNIST.contents[name][0] in message


def test_images_and_labels_of_two_sets_are_an_error(tmp_path, accept):
    accept(tmp_path, train=6, train_labels=5)
    with pytest.raises(data.DataError, match=r"6 training images, .*, but 5 labels"):
        data.load(tmp_path)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def mirror(nowhere, accept, monkeypatch):
    """A server of a small set, in the place of torchvision's; yields the function to close it."""
    place = nowhere / "server"
    accept(place, train=8)
    server = HTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=place))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    resources = [(name, md5((place / name).read_bytes())) for name in NAMES]
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(
        datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"]
    )
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)

    def close():
        server.shutdown()
        server.server_close()
        thread.join()

    yield close
    close()


def test_download(nowhere, mirror):
    assert len(data.load(download=True).train_images) == 8
    assert (nowhere / "here/data/FashionMNIST/raw" / TEST_LABELS).is_file()
    chosen = nowhere / "chosen"
    assert str(chosen) in data.load(chosen, download=True).source
    assert (chosen / "FashionMNIST/raw" / TEST_LABELS).is_file()


@pytest.mark.parametrize("place", ["data/FashionMNIST/raw", "chosen", "chosen/FashionMNIST/raw"])
def test_download_replaces_a_damaged_file_alone(nowhere, mirror, monkeypatch, place):
    place = nowhere / "here" / place
    shutil.copytree(nowhere / "server", place)
    (place / TRAIN_LABELS).write_bytes((place / TRAIN_LABELS).read_bytes()[:-9])
    kept = (place / TEST_LABELS).stat().st_mtime_ns
    given = None if "data" in place.parts[-3:] else nowhere / "here/chosen"
    with pytest.raises(data.DataError, match="not a whole gzip file"):
        data.load(given)
    assert len(data.load(given, download=True).train_images) == 8
    assert (place / TEST_LABELS).stat().st_mtime_ns == kept


def test_download_without_network(nowhere, mirror):
    data.load(nowhere / "before", download=True)
    mirror()
    with pytest.raises(data.DataError, match=r"can't be downloaded into data.*refused") as error:
        data.load(download=True)
    assert "give a directory that has it, or use the bundled part" in one_line(error)
    assert "before" in data.load(nowhere / "before", download=True).source  # nothing to get


def test_download_of_something_else(nowhere, mirror):
    write_gzip(nowhere / "server" / TRAIN_LABELS, b"something else")
    with pytest.raises(data.DataError, match=r"can't be downloaded .*corrupted") as error:
        data.load(download=True)
    one_line(error)
