"""Images as a network takes them, limits of a data set, and the order of its batches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision import transforms
from torchvision.transforms import v2

from funcnets import data, random


def test_limit(bundled):
    part = data.limit(bundled, 100)
    assert torch.equal(part.train_images, bundled.train_images[:100])
    assert torch.equal(part.train_labels, bundled.train_labels[:100])
    assert part.test_images is bundled.test_images
    assert part.source.startswith("the first 100 training images of Fashion-MNIST, the bundled")
    assert len(bundled.train_images) == 10_000
    assert len(data.limit(bundled, 10_000).train_images) == 10_000
    for count in (0, -1, 10_001):
        with pytest.raises(data.DataError, match=f"limit of {count} .*; expected 1 to 10000"):
            data.limit(bundled, count)


def resized_by_torchvision(images, side):
    """By each of torchvision's ways to resize an 8-bit image, as (B, 1, side, side) grey levels."""
    yield transforms.Resize((side, side))(images)
    yield v2.Resize((side, side))(images)
    for resize in (transforms.Resize((side, side)), v2.Resize((side, side))):
        pictures = [resize(Image.fromarray(image[0].numpy())) for image in images]
        yield torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])[:, None]


@pytest.mark.parametrize("side", [14, 28, 33, 96, 224])
def test_prepare_agrees_with_torchvision(bundled, side):
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 1, 28, 28), np.uint8))
    images = torch.cat([bundled.train_images[:30], noise, 255 * (noise // 128)])
    before = images.clone()
    prepared = data.prepare(images, side, torch.float64)
    assert torch.equal(images, before)
    assert prepared.shape == (70, 1, side, side)
    assert prepared.dtype == torch.float64
    assert prepared.min() == 0
    assert prepared.max() <= 1
    for expected in resized_by_torchvision(images, side):
        difference = (prepared * 255 - expected.double()).abs()
        assert difference.max() <= 1 + 1e-9
        assert difference.mean() < 0.2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_prepare_is_the_same_image_in_every_dtype(bundled, dtype):
    for side in (28, 20):
        prepared = data.prepare(bundled.test_images[:8], side, dtype)
        assert prepared.dtype == dtype
        exact = data.prepare(bundled.test_images[:8], side, torch.float64)
        assert torch.equal(prepared, exact.to(dtype))


@pytest.mark.parametrize("tracing_mode", ["real", "fake"])
@pytest.mark.parametrize("side", [28, 40])
def test_prepare_is_traceable(bundled, tracing_mode, side):
    def prepare(images):
        return data.prepare(images, side)

    traced = make_fx(prepare, tracing_mode=tracing_mode)(bundled.train_images[:4])
    images = bundled.test_images[:4]
    assert torch.equal(traced(images), prepare(images))


def test_prepare_refuses_what_is_not_images():
    images = torch.zeros(2, 1, 28, 28)
    with pytest.raises(data.DataError, match=r"torch\.float32 of shape \(2, 1, 28, 28\)"):
        data.prepare(images, 28)
    with pytest.raises(data.DataError, match=r"torch\.uint8 of shape \(1, 28, 28\); expected"):
        data.prepare(images[0].byte(), 28)
    with pytest.raises(data.DataError, match="side is 0"):
        data.prepare(images.byte(), 0)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 1000),
    count=st.integers(1, 300),
    batch_size=st.integers(1, 320),
    share=st.floats(0, 1),
)
def test_every_index_once_an_epoch(seed, epoch, count, batch_size, share):
    key = random.key(seed)
    order = data.shuffle(key, epoch, count)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(count))
    batches = data.batches(order, batch_size)
    assert torch.equal(torch.cat(batches), order)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch_size
    start = round(share * len(batches))
    resumed = data.batches(data.shuffle(random.key(seed), epoch, count), batch_size, start=start)
    assert len(resumed) == len(batches) - start
    assert all(torch.equal(*pair) for pair in zip(resumed, batches[start:], strict=True))


def test_epochs_and_keys_differ():
    orders = [
        tuple(data.shuffle(random.key(seed), epoch, 1000).tolist())
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len({*orders, tuple(range(1000))}) == 10


def test_batches_of_the_full_set():
    for batch_size, count, last in ((128, 469, 96), (256, 235, 96)):
        batches = data.batches(torch.arange(60_000), batch_size)
        assert (len(batches), len(batches[-1])) == (count, last)
    assert data.batches(torch.arange(0), 4) == []


def test_batches_refuse_what_is_no_epoch():
    indices = torch.arange(10)
    with pytest.raises(data.DataError, match="batch size is 0"):
        data.batches(indices, 0)
    for start in (-1, math.ceil(10 / 4) + 1):
        with pytest.raises(data.DataError, match=f"batch {start}; expected 0 to 3"):
            data.batches(indices, 4, start=start)
