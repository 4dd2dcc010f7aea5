"""Every layer, block and network once, with an input for it: what the generic tests run over."""

from dataclasses import dataclass

from funcnets import layers, models
from funcnets.core import Layer, concat, dense, residual, sequential
from funcnets.testing import Network


@dataclass(frozen=True, eq=False)
class Entry:
    """A layer and an example input's shape.

    `shifted_away` matches the biases whose gradient is zero in training, because the batch norm
    that follows subtracts what they add.
    """

    layer: Layer
    shape: tuple[int, ...]
    shifted_away: str = r"(?!)"  # matches nothing
    any_rank: bool = False


NETWORKS = {
    network.name: network
    for network in (
        Network("alexnet", {"channels": (4, 6, 8, 8, 6), "hidden": 16}, (3, 1, 65, 65)),
        Network("vgg11", {"arch": ((1, 4), (1, 4), (2, 6)), "hidden": 16}, (4, 1, 12, 12)),
        Network("nin", {"channels": (4, 6, 8)}, (3, 1, 67, 67)),
        # Nine Inceptions say no more than three.
        Network("googlenet", {"divisor": 8, "depths": (1, 1, 1)}, (4, 1, 24, 24)),
        Network("lenet_bn", {}, (4, 1, 20, 20)),
        Network("lenet_bn_scratch", {}, (4, 1, 20, 20)),
        Network("resnet18", {"depths": (2, 2), "channels": (4, 6)}, (4, 1, 20, 20)),
        Network("densenet", {"layers": (2, 2), "growth": 4, "stem_channels": 6}, (4, 1, 20, 20)),
    )
}

_SHIFTED_AWAY = {
    "lenet_bn": r"(conv\d|fc1|fc2)\.bias",
    "lenet_bn_scratch": r"(conv\d|fc1|fc2)\.bias",
    "resnet18": r"(stem\.conv|.*conv\d)\.bias",
    # Dense blocks join every convolution's output to what the next batch norms read.
    "densenet": r".*conv\.bias",
}

IMAGES = (3, 4, 7, 7)
ROWS = (5, 4)

LAYERS = {
    "conv2d": Entry(layers.conv2d(3, 3), IMAGES),
    "conv2d_strided": Entry(layers.conv2d(3, 3, 2, 1), IMAGES),
    "conv2d_oblong": Entry(layers.conv2d(3, (3, 2), (1, 2), (0, 1)), IMAGES),
    "conv2d_dilated": Entry(layers.conv2d(3, 3, padding=2, dilation=2), IMAGES),
    "conv2d_grouped": Entry(layers.conv2d(6, 3, groups=2), IMAGES),
    "conv2d_depthwise": Entry(layers.conv2d(4, 3, groups=4), IMAGES),
    "conv2d_without_bias": Entry(layers.conv2d(3, 1, bias=False), IMAGES),
    "linear": Entry(layers.linear(3), ROWS),
    "linear_without_bias": Entry(layers.linear(3, bias=False), ROWS),
    "batch_norm_images": Entry(layers.batch_norm(), IMAGES),
    "batch_norm_rows": Entry(layers.batch_norm(), ROWS),
    "batch_norm_options": Entry(layers.batch_norm(0.3, 1e-3), IMAGES),
    "batch_norm_biased_images": Entry(layers.batch_norm(unbiased=False), IMAGES),
    "batch_norm_biased_rows": Entry(layers.batch_norm(unbiased=False), ROWS),
    "dropout_images": Entry(layers.dropout(0.4), IMAGES, any_rank=True),
    "dropout_rows": Entry(layers.dropout(0.4), ROWS, any_rank=True),
    "max_pool": Entry(layers.max_pool(2), IMAGES),
    "max_pool_options": Entry(layers.max_pool(3, 2, 1, ceil_mode=True), IMAGES),
    "avg_pool": Entry(layers.avg_pool(2), IMAGES),
    "avg_pool_options": Entry(layers.avg_pool((3, 2), 2, 1, ceil_mode=True), IMAGES),
    "adaptive_avg_pool": Entry(layers.adaptive_avg_pool((2, 3)), IMAGES),
    "adaptive_avg_pool_to_one": Entry(layers.adaptive_avg_pool(1), IMAGES),
    "global_avg_pool": Entry(layers.global_avg_pool(), IMAGES),
    "flatten": Entry(layers.flatten(), IMAGES),
    "relu": Entry(layers.relu(), IMAGES, any_rank=True),
    "sigmoid": Entry(layers.sigmoid(), IMAGES, any_rank=True),
    "tanh": Entry(layers.tanh(), ROWS, any_rank=True),
    "gelu": Entry(layers.gelu(), IMAGES, any_rank=True),
    "gelu_tanh": Entry(layers.gelu(tanh=True), ROWS, any_rank=True),
    "silu": Entry(layers.silu(), ROWS, any_rank=True),
    "leaky_relu": Entry(layers.leaky_relu(0.2), IMAGES, any_rank=True),
    "elu": Entry(layers.elu(0.5), ROWS, any_rank=True),
    "softmax_rows": Entry(layers.softmax(), ROWS),
    "softmax_images": Entry(layers.softmax(), IMAGES),
    "layer_norm_rows": Entry(layers.layer_norm(), ROWS),
    "layer_norm_images": Entry(layers.layer_norm(1e-3), IMAGES),
    "group_norm_rows": Entry(layers.group_norm(2), ROWS),
    "group_norm_images": Entry(layers.group_norm(2, 1e-3), IMAGES),
    "group_norm_plain": Entry(layers.group_norm(4, affine=False), IMAGES),
    "instance_norm": Entry(layers.instance_norm(), IMAGES),
    "instance_norm_affine": Entry(layers.instance_norm(1e-3, affine=True), IMAGES),
    "conv_transpose2d": Entry(layers.conv_transpose2d(3, 3), IMAGES),
    "conv_transpose2d_options": Entry(
        layers.conv_transpose2d(
            6, (3, 2), 2, 1, output_padding=(1, 0), dilation=(1, 2), groups=2, bias=False
        ),
        IMAGES,
    ),
    "upsample": Entry(layers.upsample(), IMAGES),
    "upsample_bilinear": Entry(layers.upsample((2, 3), "bilinear"), IMAGES),
    "squeeze_excite": Entry(layers.squeeze_excite(4, 3), IMAGES),
    "stochastic_depth": Entry(layers.stochastic_depth(0.4), IMAGES, any_rank=True),
    "stochastic_depth_batch": Entry(layers.stochastic_depth(0.4, "batch"), ROWS, any_rank=True),
}

COMBINATORS = {
    "sequential": Entry(
        sequential(
            layers.conv2d(3, 3),
            layers.relu(),
            dropout=layers.dropout(),
            inner=sequential(layers.flatten(), fc=layers.linear(4)),
        ),
        IMAGES,
    ),
    "residual": Entry(residual(layers.conv2d(4, 3, padding=1)), IMAGES),
    "residual_with_shortcut": Entry(
        residual(sequential(conv=layers.conv2d(3, 3)), layers.conv2d(3, 3)), IMAGES
    ),
    "concat": Entry(concat(a=layers.conv2d(3, 1), b=layers.dropout(), c=layers.tanh()), IMAGES),
    "dense": Entry(dense(a=layers.conv2d(3, 1), b=layers.dropout()), IMAGES),
}

BLOCKS = {
    "vgg_block": Entry(models.vgg_block(2, 5), IMAGES),
    "nin_block": Entry(models.nin_block(5, 3, 2, 1), IMAGES),
    "inception_reference": Entry(models.inception(2, (3, 2), (2, 4), 3), IMAGES),
    "inception_paper": Entry(models.inception(2, (3, 2), (2, 4), 3, "paper"), IMAGES),
    "residual_block": Entry(models.residual_block(4), IMAGES, r"conv\d\.bias"),
    "residual_block_strided": Entry(models.residual_block(6, 2), IMAGES, r"conv\d\.bias"),
    "residual_block_torchvision": Entry(
        models.residual_block(6, 2, bias=False, norm_shortcut=True), IMAGES
    ),
    "bottleneck_block": Entry(
        models.bottleneck_block(2, project=True, expansion=3), IMAGES, r"conv\d\.bias"
    ),
    "bottleneck_block_torchvision": Entry(
        models.bottleneck_block(2, 2, bias=False, norm_shortcut=True), IMAGES
    ),
    "dense_block": Entry(models.dense_block(2, 3), IMAGES),
    "transition_block": Entry(models.transition_block(3), IMAGES),
}

ENTRIES = {
    **LAYERS,
    **COMBINATORS,
    **BLOCKS,
    **{
        name: Entry(network.layer(), network.shape, _SHIFTED_AWAY.get(name, r"(?!)"))
        for name, network in NETWORKS.items()
    },
}
