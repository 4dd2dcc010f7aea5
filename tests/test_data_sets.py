"""Data sets other than Fashion-MNIST: by name, of any IDX files, of image files and of tensors."""

import gzip
import hashlib
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import arrays, idx, picture, write_folder, write_idx, write_image
from PIL import Image
from torchvision import datasets
from torchvision.io import decode_image
from torchvision.transforms import v2

import funcnets
from funcnets import data
from funcnets.data import idx as idx_files
from funcnets.data import images, memory
from funcnets.data.named import KMNIST, NAMED

NAMES = idx_files.FILES


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    assert "--" not in message  # options belong to the command line
    return message


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("FUNCNETS_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("form", ["packed", "-idx", ".idx"])
def test_four_files_of_any_content_packed_or_not(tmp_path, form):
    write_idx(tmp_path / "mine", form)
    found = data.load(tmp_path / "mine")
    train, labels, test, _ = arrays()
    assert np.array_equal(found.train_images[:, 0].numpy(), train)
    assert np.array_equal(found.test_images[:, 0].numpy(), test)
    assert found.train_labels.tolist() == labels.tolist()
    assert (found.classes, found.channels, found.sides) == (4, 1, (5, 5))
    assert found.class_names == ("0", "1", "2", "3")
    assert found.name == "idx"
    assert "Fashion" not in found.source
    assert data.fingerprint(found) == data.fingerprint(data.load("mine", dataset="idx"))


def test_a_name_insists_on_the_hashes(tmp_path):
    write_idx(tmp_path)
    for name in ("fashion-mnist", "mnist", "kmnist"):
        with pytest.raises(data.DataError, match=r"not the (packed )?file of .*MD5") as error:
            data.load(tmp_path, dataset=name)
        assert str(tmp_path / NAMES[0]) in one_line(error)
    with pytest.raises(data.DataError, match=r"'mnsit': did you mean 'mnist'\?"):
        data.load(tmp_path, dataset="mnsit")


def test_mnist_is_read_as_by_torchvision(tmp_path, monkeypatch):
    raw = tmp_path / "data/MNIST/raw"
    written = write_idx(raw)
    for name, content in written.items():
        monkeypatch.setitem(NAMED["mnist"].contents, name, (md5(gzip.decompress(content)),))
        (raw / name).with_suffix("").write_bytes(gzip.decompress(content))
    found = data.load(dataset="mnist")
    theirs = datasets.MNIST(tmp_path / "data")
    assert torch.equal(found.train_images[:, 0], theirs.data)
    assert torch.equal(found.train_labels, theirs.targets)
    assert (found.name, found.classes) == ("mnist", 10)


def test_a_packed_file_is_known_by_its_own_hash(tmp_path, monkeypatch):
    written = write_idx(tmp_path)
    for name, content in written.items():
        monkeypatch.setitem(KMNIST.packed, name, md5(content))
    assert data.load(tmp_path, dataset="kmnist").class_names[1] == "ki"
    (tmp_path / NAMES[1]).write_bytes(gzip.compress(gzip.decompress(written[NAMES[1]]), mtime=1))
    with pytest.raises(data.DataError, match="not the packed file of KMNIST"):
        data.load(tmp_path, dataset="kmnist")


def test_a_set_that_is_nowhere_says_where_it_was_looked_for():
    with pytest.raises(data.DataError, match="CIFAR-10 is in none of data/cifar") as error:
        data.load(dataset="cifar10")
    one_line(error)
    with pytest.raises(data.DataError, match="bundled part is of Fashion-MNIST, not MNIST"):
        data.load("bundled", dataset="mnist")


def test_a_download_never_replaces_other_data(tmp_path):
    written = write_idx(tmp_path)
    with pytest.raises(data.DataError, match="not the file of Fashion-MNIST"):
        data.load(tmp_path, download=True)
    assert {name: (tmp_path / name).read_bytes() for name in NAMES} == written


@pytest.fixture
def emnist(tmp_path, monkeypatch):
    """The archive of EMNIST, with small letters."""
    path = tmp_path / "data/EMNIST/raw/gzip.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in zip(NAMES, arrays(), strict=True):
            values = values + 1 if values.ndim == 1 else values
            member = f"gzip/emnist-letters-{name.replace('t10k', 'test')}"
            archive.writestr(member, gzip.compress(idx(values)))
    known = replace(NAMED["emnist-letters"], md5=md5(path.read_bytes()))
    monkeypatch.setitem(NAMED, "emnist-letters", known)
    return path


def test_emnist_is_read_upright_from_its_archive(emnist):
    found = data.load(dataset="emnist-letters")
    train, labels, *_ = arrays()
    assert np.array_equal(found.train_images[:, 0].numpy(), train.transpose(0, 2, 1))
    assert found.train_labels.tolist() == labels.tolist()
    assert (found.classes, found.class_names[0]) == (26, "a")


def test_another_archive_than_that_of_emnist_is_refused(emnist):
    content = bytearray(emnist.read_bytes())
    content[40] ^= 1
    emnist.write_bytes(content)
    with pytest.raises(data.DataError, match="not the archive of EMNIST: its MD5 is") as error:
        data.load(dataset="emnist-letters")
    one_line(error)


@pytest.mark.parametrize("name", NAMED)
def test_class_names_are_those_of_torchvision(name):
    if name.startswith("emnist"):
        theirs = datasets.EMNIST.classes_split_dict[name.removeprefix("emnist-")]
        assert list(NAMED[name].class_names) == [each for each in theirs if each != "N/A"]
    elif not name.startswith("cifar"):
        theirs = getattr(datasets, NAMED[name].torchvision).classes
        assert [each.split(" - ")[0] for each in theirs] == list(NAMED[name].class_names)


def write_cifar(place, monkeypatch, kind, label_key):
    """A small CIFAR whose hashes are known."""
    place.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def write(name, content):
        (place / name).write_bytes(pickle.dumps(content))
        return [name, md5((place / name).read_bytes())]

    def batch():
        pixels = generator.integers(0, 256, (6, 3 * 32 * 32), np.uint8)
        return {"data": pixels, label_key: [0, 1, 2, 0, 1, 2]}

    monkeypatch.setattr(kind, "train_list", [write("one", batch()), write("two", batch())])
    monkeypatch.setattr(kind, "test_list", [write("test", batch())])
    name, checksum = write("meta", {kind.meta["key"]: ["ant", "bee", "cat"]})
    monkeypatch.setattr(kind, "meta", kind.meta | {"filename": name, "md5": checksum})


@pytest.mark.parametrize(
    ("name", "kind", "label_key"),
    [("cifar10", datasets.CIFAR10, "labels"), ("cifar100", datasets.CIFAR100, "fine_labels")],
)
def test_cifar_is_read_as_by_torchvision(tmp_path, monkeypatch, name, kind, label_key):
    place = tmp_path / "data" / kind.base_folder
    write_cifar(place, monkeypatch, kind, label_key)
    found = data.load(dataset=name)
    theirs = kind("data")
    assert np.array_equal(found.train_images.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert found.train_labels.tolist() == theirs.targets
    assert found.class_names == ("ant", "bee", "cat")
    assert (found.channels, found.sides, len(found.test_images)) == (3, (32, 32), 6)
    place.rename(tmp_path / "renamed")
    again = data.load("renamed", dataset=name)
    assert data.fingerprint(again) == data.fingerprint(found)


class Exploit:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize("file", ["two", "test", "meta"])
def test_cifar_with_another_hash_is_never_unpickled(tmp_path, monkeypatch, file):
    place = tmp_path / datasets.CIFAR10.base_folder
    write_cifar(place, monkeypatch, datasets.CIFAR10, "labels")
    (place / file).write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(data.DataError, match=f"{file}: not the file of CIFAR-10") as error:
        data.load(tmp_path, dataset="cifar10")
    one_line(error)
    assert not Path("unpickled").exists()


def test_folders_for_training_and_validation():
    write_folder(Path("set/train"), {"cat": 3, "ant": 2})
    write_folder(Path("set/val"), {"cat": 1, "ant": 1})
    Path("set/train/cat/notes.txt").write_text("no image")
    Path("set/train/cat/.hidden.png").write_text("no image")
    found = data.load(dataset="folder:set")
    assert found.class_names == ("ant", "cat")
    assert found.train_labels.tolist() == [0, 0, 1, 1, 1]
    assert found.test_labels.tolist() == [0, 1]
    assert (found.channels, found.sides) == (3, (9, 9))
    assert torch.equal(found.train_images[3], picture(1)[:, 1:10])
    assert data.load(dataset="folder:set", side=4).sides == (4, 4)


def test_one_folder_is_split_by_key_in_each_class():
    write_folder(Path("set"), {"a": 30, "b": 5, "c": 1}, (1, 4, 4))
    found = data.load(dataset="folder:set")
    assert torch.bincount(found.train_labels).tolist() == [27, 4, 1]
    assert torch.bincount(found.test_labels).tolist() == [3, 1]
    assert found.channels == 1
    again = data.load(dataset="folder:set")
    assert torch.equal(found.test_images, again.test_images)
    everything = torch.cat([found.train_images[:27], found.test_images[:3]])
    assert len(everything.unique(dim=0)) == 30


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16", "1"])
def test_headers_of_png_files_tell_grey_from_colour(tmp_path, mode):
    grey = Image.fromarray(picture(0, (7, 5)).numpy())
    wide = Image.fromarray(picture(0, (7, 5)).numpy().astype(np.uint16) * 257)
    (wide if mode == "I;16" else grey.convert(mode)).save(tmp_path / "image.png")
    expected = 3 if mode in ("P", "RGB", "RGBA") else 1
    assert images.read_header(tmp_path / "image.png") == (expected, 7, 5)
    read = data.read_image(tmp_path / "image.png", 1, 5)
    if mode in ("L", "I;16"):
        assert torch.equal(read, picture(0, (7, 5))[None, 1:6])
    assert data.read_image(tmp_path / "image.png", 3, 6).shape == (3, 6, 6)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"\xff\xc0" * 9}])
@pytest.mark.parametrize("channels", [1, 3])
def test_headers_of_jpeg_files(tmp_path, channels, options):
    shape = (16, 8, 3) if channels == 3 else (16, 8)
    Image.fromarray(picture(1, shape).numpy()).save(tmp_path / "image.jpg", **options)
    assert images.read_header(tmp_path / "image.jpg") == (channels, 16, 8)
    whole = decode_image(str(tmp_path / "image.jpg"))
    assert torch.equal(data.read_image(tmp_path / "image.jpg", channels, 8), whole[:, 4:12])


def test_images_are_resized_as_by_torchvision(tmp_path):
    write_image(tmp_path / "image.jpg", picture(2, (3, 40, 30)))
    whole = decode_image(str(tmp_path / "image.jpg"))
    expected = v2.Resize((20, 20), antialias=True)(whole[:, 5:35])
    read = data.read_image(tmp_path / "image.jpg", 3, 20)
    assert (read.int() - expected.int()).abs().max() <= 1


def test_orientation_is_that_of_the_camera(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(picture(1, (8, 8)).numpy()).save(tmp_path / "image.jpg", exif=exif)
    upright = decode_image(str(tmp_path / "image.jpg"))
    assert torch.equal(data.read_image(tmp_path / "image.jpg", 1, 8), upright.flip(1, 2))


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBB", 13, b"IHDR", width, height, 8, 2)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "neither a whole PNG nor JPEG image"),
        (b"\xff\xd8\xff\xe0", "neither a whole PNG nor JPEG"),
        (b"\x89PNG\r\n\x1a\n", "neither a whole PNG nor JPEG"),
        (png_header(2**20, 2**20), "an image of 1048576 x 1048576 pixels; expected at most"),
        (png_header(4, 4), "can't be decoded"),
    ],
)
def test_damaged_images_are_named(content, says):
    write_folder(Path("set"), {"a": 2, "b": 2})
    Path("set/a/broken.jpg").write_bytes(content)
    with pytest.raises(data.DataError, match=f"set/a/broken.jpg: {says}") as error:
        data.load(dataset="folder:set")
    one_line(error)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        ([], "set: can't be read"),
        (["a"], "set: has 1 subdirectory; expected one for each class"),
        (["a", "b"], "set/a: has no images; expected files that end in .png"),
        (["train/a", "train/b"], "has a directory train, but neither val nor test"),
        (["train/a", "train/b", "val/a", "val/c"], "has classes that aren't in set/train: c"),
        (["train/a", "train/b", "val/c"], "has classes that aren't in set/train: c"),
        (["a", "b\x1b[31m"], r"set: the class 'b\\x1b\[31m' has a character .* can't be shown"),
        (["a", "b\nc"], r"set: the class 'b\\nc' has a character in its name"),
        (["a", "b\udcff"], r"set: the class 'b\\udcff' has a character in its name"),
    ],
)
def test_folders_that_are_no_data_set(make, says):
    for name in make:
        Path("set", name).mkdir(parents=True)
    with pytest.raises(data.DataError, match=says) as error:
        data.load(dataset="folder:set")
    one_line(error)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dataset": "folder:"}, "names no directory"),
        ({"dataset": "folder:a", "directory": "b"}, "are two places"),
        ({"dataset": "folder:a", "download": True}, "nothing to download"),
    ],
)
def test_folders_that_are_named_wrongly(arguments, says):
    with pytest.raises(data.DataError, match=says):
        data.load(**arguments)


def test_a_set_that_does_not_fit_is_refused_with_its_size(tmp_path, monkeypatch):
    write_idx(tmp_path / "idx", train=40, side=50)
    write_folder(tmp_path / "set", {"a": 2, "b": 2})
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    says = r"its images take 0.1 MB, and 0.0 MB of memory are free on cpu; take fewer"
    with pytest.raises(data.DataError, match=says):
        data.load(tmp_path / "idx")
    with pytest.raises(data.DataError, match=says):
        data.load(dataset="folder:set", side=100)
    assert data.load(dataset="folder:set", side=4).sides == (4, 4)


def test_memory_that_is_free_is_the_least_of_the_limits(tmp_path, monkeypatch):
    free = memory.available()
    assert 2**20 < free < 2**50
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert memory.available() > 2**20
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 250\ninactive_file 150\n")
    assert memory.available() == 750


def test_tensors_of_ones_own():
    labels = torch.tensor([0, 2, 1], dtype=torch.int32)
    dataset = data.from_tensors(picture(0, (3, 8, 6)), labels, picture(1, (2, 8, 6)), labels[:2])
    assert dataset.train_images.shape == (3, 1, 8, 6)
    assert dataset.train_labels.dtype == torch.int64
    assert (dataset.classes, dataset.class_names, dataset.sides) == (3, ("0", "1", "2"), (8, 6))
    named = data.from_tensors(
        picture(0, (3, 8, 6)), labels, picture(1, (2, 8, 6)), labels[:2], class_names="abcd"
    )
    assert named.class_names == ("a", "b", "c", "d")
    assert data.limit(named, 1).classes == 4


IMAGES, LABELS = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({0: IMAGES.float()}, r"train_images are torch.float32 .* make \(255"),
        ({2: IMAGES[:0]}, r"test_images are torch.uint8 of shape \(0, 1, 4, 4\)"),
        ({2: IMAGES[:, :, 1:]}, "expected the same channels, height and width"),
        ({1: LABELS[:2]}, r"train_labels are torch.int64 of shape \(2,\).* for 3 images"),
        ({1: LABELS.float()}, "train_labels are torch.float32"),
        ({3: LABELS - 1}, "the lowest -1,"),
        ({3: LABELS + 10**6}, "a label is 1000002; expected class numbers below 100,000"),
    ],
)
def test_tensors_that_are_no_data_set(changed, says):
    parts = [changed.get(i, part) for i, part in enumerate((IMAGES, LABELS, IMAGES, LABELS))]
    with pytest.raises(data.DataError, match=says):
        data.from_tensors(*parts)


def test_a_label_without_a_name_is_refused():
    with pytest.raises(data.DataError, match="a label is 2, but there are names for 2 classes"):
        data.from_tensors(IMAGES, LABELS, IMAGES, LABELS, class_names=["a", "b"])


def test_a_fingerprint_changes_with_every_part():
    dataset = data.from_tensors(IMAGES, LABELS, IMAGES, LABELS)
    other = LABELS.flip(0)
    changed = [
        data.from_tensors(IMAGES + 1, LABELS, IMAGES, LABELS),
        data.from_tensors(IMAGES, other, IMAGES, LABELS),
        data.from_tensors(IMAGES, LABELS, IMAGES + 1, LABELS),
        data.from_tensors(IMAGES, LABELS, IMAGES, other),
        data.from_tensors(*(IMAGES.reshape(3, 1, 2, 8), LABELS) * 2),
    ]
    assert len({data.fingerprint(each) for each in (dataset, *changed)}) == 6


def test_moments_and_normalization_are_those_of_the_definition():
    pixels = picture(3, (2500, 3, 6, 5))
    pixels[:, 2] = 7
    mean, deviation = data.moments(pixels)
    values = pixels.double() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-12)
    expected = values.std((0, 2, 3), correction=0).tolist()
    assert deviation == pytest.approx([*expected[:2], 1.0], abs=1e-12)
    normalized = data.prepare(pixels[:9], 5, torch.float64, mean=mean, deviation=deviation)
    plain = data.prepare(pixels[:9], 5, torch.float64)
    assert torch.allclose(normalized, v2.functional.normalize(plain, mean, deviation))


def test_normalization_is_compiled():
    def prepare(pixels):
        return data.prepare(pixels, 4, mean=(0.2, 0.3, 0.4), deviation=(0.5, 0.6, 0.7))

    pixels = picture(4, (2, 3, 5, 5))
    assert torch.equal(funcnets.jit(prepare, backend="graph")(pixels), prepare(pixels))


def test_normalization_needs_a_number_for_each_channel():
    with pytest.raises(data.DataError, match="1 means and 1 deviations for images of 3 channels"):
        data.prepare(picture(4, (2, 3, 5, 5)), 4, mean=(0.2,), deviation=(0.5,))
