"""Layers equal PyTorch's and torchvision's modules, and transforms of them agree."""

import pytest
import torch
from registry import IMAGES, LAYERS, ROWS
from torch import nn
from torchvision import ops

from funcnets import layers, random, testing
from funcnets.core import LayerError

PAIRS = {
    "conv2d": nn.Conv2d(4, 3, 3),
    "conv2d_dilated": nn.Conv2d(4, 3, 3, padding=2, dilation=2),
    "conv2d_grouped": nn.Conv2d(4, 6, 3, groups=2),
    "conv2d_depthwise": nn.Conv2d(4, 4, 3, groups=4),
    "linear": nn.Linear(4, 3),
    "adaptive_avg_pool": nn.AdaptiveAvgPool2d((2, 3)),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "elu": nn.ELU(0.5),
    "softmax_rows": nn.Softmax(1),
    "softmax_images": nn.Softmax(1),
    "layer_norm_rows": nn.LayerNorm(4),
    "layer_norm_images": nn.LayerNorm(IMAGES[1:], 1e-3),
    "group_norm_rows": nn.GroupNorm(2, 4),
    "group_norm_images": nn.GroupNorm(2, 4, 1e-3),
    "group_norm_plain": nn.GroupNorm(4, 4, affine=False),
    "instance_norm": nn.InstanceNorm2d(4),
    "instance_norm_affine": nn.InstanceNorm2d(4, 1e-3, affine=True),
    "conv_transpose2d": nn.ConvTranspose2d(4, 3, 3),
    "conv_transpose2d_options": nn.ConvTranspose2d(
        4, 6, (3, 2), 2, 1, (1, 0), groups=2, bias=False, dilation=(1, 2)
    ),
    "upsample": nn.Upsample(scale_factor=2.0),
    "upsample_bilinear": nn.Upsample(scale_factor=(2.0, 3.0), mode="bilinear"),
    "squeeze_excite": ops.SqueezeExcitation(4, 3),
    "stochastic_depth": ops.StochasticDepth(0.4, "row"),
    "stochastic_depth_batch": ops.StochasticDepth(0.4, "batch"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_layer_equals_its_module(name: str) -> None:
    entry = LAYERS[name]
    testing.assert_equivalent(entry.layer, PAIRS[name], entry.shape, tolerance=1e-11)


# Those whose derivatives PyTorch writes by hand, or that are written here.
@pytest.mark.parametrize(
    "name",
    [
        *("gelu", "elu", "softmax_images", "group_norm_images", "conv_transpose2d_options"),
        *("upsample", "upsample_bilinear", "squeeze_excite", "stochastic_depth"),
    ],
)
def test_transforms_of_a_layer_agree(name: str) -> None:
    layer, shape = LAYERS[name].layer, LAYERS[name].shape
    x = random.normal(random.key(1), shape, torch.float64)
    params, state = testing.random_values(layer, x)
    key = random.key(2)

    def apply(params, x):
        return layer.apply(params, state, x, train=True, key=key)[0]

    testing.assert_transforms_agree(apply, params, x, backends=["native"])


def test_initial_values_of_a_transposed_convolution_have_the_size_of_a_convolutions() -> None:
    x = torch.zeros(1, 8, 5, 5)
    key = random.key(0)
    up, _ = layers.conv_transpose2d(6, 3, groups=2).init(key, x)
    down, _ = layers.conv2d(6, 3, groups=2).init(key, x)
    assert up["weight"].shape == (8, 3, 3, 3)
    for group in range(2):
        expected = down["weight"][3 * group : 3 * group + 3]
        assert torch.equal(up["weight"][4 * group : 4 * group + 4], expected.transpose(0, 1))
    assert torch.equal(up["bias"], down["bias"])


def test_stochastic_depth_drops_whole_examples() -> None:
    x, key = torch.ones(2000, 3), random.key(5)
    y, _ = layers.stochastic_depth(0.25).apply({}, {}, x, train=True, key=key)
    assert torch.equal(y, x * random.bernoulli(key, 0.75, (2000, 1)) / 0.75)
    assert abs(float((y[:, 0] == 0).double().mean()) - 0.25) < 0.05
    y, _ = layers.stochastic_depth(0.25, "batch").apply({}, {}, x, train=True, key=key)
    assert len(y.unique()) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.leaky_relu(-1), r"^leaky_relu\(slope=-1\): slope is -1"),
        (lambda: layers.elu(0), "alpha is 0; expected a positive number"),
        (lambda: layers.group_norm(0), r"^group_norm\(0\): groups is 0"),
        (lambda: layers.layer_norm(-1), "eps is -1"),
        (lambda: layers.instance_norm(float("nan")), "eps is nan"),
        (lambda: layers.conv_transpose2d(4, 3, output_padding=1), "less than stride or dilation"),
        (lambda: layers.conv_transpose2d(3, 3, groups=2), "channels is 3; expected a multiple"),
        (lambda: layers.conv_transpose2d(3, 0), "kernel is 0"),
        (lambda: layers.upsample(0), "scale is 0"),
        (lambda: layers.upsample(2, "cubic"), "mode is 'cubic'; expected nearest or bilinear"),
        (lambda: layers.squeeze_excite(4, 0), "squeeze is 0"),
        (lambda: layers.stochastic_depth(1.0), "rate is 1.0"),
        (lambda: layers.stochastic_depth(0.5, "col"), "mode is 'col'; expected row or batch"),
    ],
)
def test_impossible_options(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (layers.group_norm(3), torch.ones(ROWS), "4 channels can't be divided into 3 groups"),
        (layers.instance_norm(), torch.ones(2, 3, 1, 1), "images of one pixel in training"),
        (layers.conv_transpose2d(3, 1, padding=2), torch.ones(1, 2, 3, 5), "output of -1×1"),
        (layers.squeeze_excite(3, 2), torch.ones(1, 6, 3, 5), "got 6 channels, expected 3"),
        (layers.conv_transpose2d(2, 1, groups=2), torch.ones(1, 3, 3, 5), "multiple of groups"),
    ],
)
def test_impossible_inputs(layer, x, message) -> None:
    with pytest.raises(LayerError, match=message):
        layer.apply(*layer.init(random.key(0), x), x, train=True)
