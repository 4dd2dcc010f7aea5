"""Augmentation against slow definitions, pixel by pixel."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

import funcnets
from funcnets import augment, random

AUGMENTATIONS = {
    "flip": augment.flip(),
    "crop": augment.crop(2),
    "cutout": augment.cutout(3),
    "mixup": augment.mixup(4),
    "chain": augment.chain(augment.crop(1), augment.flip()),
}
SIZES = st.tuples(*(st.integers(1, 6),) * 4)


def a_batch(sizes, seed):
    key = random.key(seed)
    images = random.uniform(key, sizes, torch.float64) + 0.1  # no pixel is 0
    return key, images, torch.arange(sizes[0]) % 4


@given(SIZES, st.integers(0, 2**32 - 1))
def test_flip(sizes, seed):
    key, images, labels = a_batch(sizes, seed)
    flipped, targets = augment.flip()(key, images, labels)
    assert targets is labels
    for before, after, mirrored in zip(
        images, flipped, random.bernoulli(key, 0.5, sizes[:1]), strict=True
    ):
        expected = [[row[::-1] for row in plane] for plane in before.tolist()]
        assert after.tolist() == (expected if mirrored else before.tolist())


@given(SIZES, st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_crop(sizes, seed, padding):
    key, images, labels = a_batch(sizes, seed)
    cropped, _ = augment.crop(padding)(key, images, labels)
    count, _, height, width = sizes
    drawn = (random.uniform(key, (count, 2)) * (2 * padding + 1)).long()
    expected = torch.zeros(sizes, dtype=torch.float64)
    for n in range(count):
        for y in range(height):
            for x in range(width):
                from_y, from_x = (y + drawn[n, 0] - padding, x + drawn[n, 1] - padding)
                if 0 <= from_y < height and 0 <= from_x < width:
                    expected[n, :, y, x] = images[n, :, from_y, from_x]
    assert torch.equal(cropped, expected)


@given(SIZES, st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_cutout(sizes, seed, side):
    key, images, labels = a_batch(sizes, seed)
    cut, _ = augment.cutout(side)(key, images, labels)
    count, _, height, width = sizes
    drawn = random.uniform(key, (count, 2)) * torch.tensor([height, width])
    expected = images.clone()
    for n in range(count):
        top, left = (int(each) - side // 2 for each in drawn[n])
        for y in range(max(top, 0), min(top + side, height)):
            for x in range(max(left, 0), min(left + side, width)):
                expected[n, :, y, x] = 0
    assert torch.equal(cut, expected)


@given(SIZES, st.integers(0, 2**32 - 1))
def test_mixup(sizes, seed):
    key, images, labels = a_batch(sizes, seed)
    mixed, targets = augment.mixup(4)(key, images, labels)
    weight_key, order_key = random.split(key)
    weight = random.uniform(weight_key).double()
    for n, other in enumerate(random.permutation(order_key, sizes[0])):
        torch.testing.assert_close(mixed[n], weight * images[n] + (1 - weight) * images[other])
        expected = torch.zeros(4, dtype=torch.float64)
        expected[labels[n]] += weight
        expected[labels[other]] += 1 - weight
        torch.testing.assert_close(targets[n], expected)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_it_is_pure_and_the_same_compiled_and_mapped(name):
    augmentation = AUGMENTATIONS[name]
    key, images, labels = a_batch((5, 2, 6, 4), 3)
    before = images.clone()
    expected = augmentation(key, images, labels)
    assert torch.equal(images, before)
    compiled = funcnets.jit(augmentation, backend="graph")(key, images, labels)
    for one, other in zip(compiled, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-15, atol=1e-15)
    keys = torch.stack([key, random.key(4)])
    mapped = vmap(lambda key: augmentation(key, images, labels)[0])(keys)
    torch.testing.assert_close(mapped[0], expected[0], rtol=1e-15, atol=1e-15)
    assert any(
        not torch.equal(augmentation(random.key(seed), images, labels)[0], expected[0])
        for seed in range(4)
    )


@pytest.mark.parametrize("name", ["flip", "crop", "cutout"])
def test_a_larger_batch_begins_with_the_same_draws(name):
    key, images, labels = a_batch((6, 1, 5, 5), 7)
    whole, _ = AUGMENTATIONS[name](key, images, labels)
    part, _ = AUGMENTATIONS[name](key, images[:4], labels[:4])
    assert torch.equal(whole[:4], part)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: augment.flip(1.5), "flip: the probability is 1.5"),
        (lambda: augment.crop(0), "crop: the padding is 0"),
        (lambda: augment.cutout(0), "cutout: the side is 0"),
        (lambda: augment.mixup(0), "mixup: num_classes is 0"),
        (lambda: augment.by_name("crop,rotate", 10), "'rotate' is no augmentation; expected"),
    ],
)
def test_bad_options_are_refused(make, problem):
    with pytest.raises(ValueError, match=problem):
        make()


def test_bad_images_are_refused():
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"flip: the images have shape \(2, 5, 5\)"):
        augment.flip()(random.key(0), torch.zeros(2, 5, 5), labels)
    with pytest.raises(ValueError, match=r"mixup: the images are torch\.uint8"):
        augment.mixup(3)(random.key(0), torch.zeros(2, 1, 5, 5, dtype=torch.uint8), labels)


def test_names_make_a_chain():
    key, images, labels = a_batch((3, 1, 8, 8), 1)
    chained = augment.chain(augment.crop(), augment.flip(), augment.cutout(), augment.mixup(4))
    for ours, theirs in zip(
        augment.by_name("crop, flip,cutout,mixup", 4)(key, images, labels),
        chained(key, images, labels),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
