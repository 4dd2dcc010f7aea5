"""ResNet: He et al., Deep residual learning for image recognition, 2015."""

from collections.abc import Callable, Sequence
from typing import Any

from funcnets.core import Layer, residual, sequential
from funcnets.layers import batch_norm, conv2d, flatten, global_avg_pool, linear, max_pool, relu
from funcnets.models._variants import variant


def _shortcut(channels: int, stride: int, bias: bool, norm: bool) -> Layer:
    conv = conv2d(channels, 1, stride, bias=bias)
    return sequential(conv=conv, bn=batch_norm()) if norm else conv


def residual_block(
    channels: int,
    stride: int = 1,
    *,
    project: bool | None = None,
    bias: bool = True,
    norm_shortcut: bool = False,
) -> Layer:
    """Return two 3×3 convolutions with batch norm, added to a shortcut.

    `bias=False, norm_shortcut=True` is torchvision's form.

    Args:
        channels: number of output channels.
        stride: stride of the first convolution.
        project: True for a 1×1 convolution as the shortcut, False for the identity, None for a
            convolution if the stride isn't 1.
        bias: True if convolutions have a bias.
        norm_shortcut: True for a batch norm after the convolution of the shortcut.
    """
    main = sequential(
        conv1=conv2d(channels, 3, stride, padding=1, bias=bias),
        bn1=batch_norm(),
        relu1=relu(),
        conv2=conv2d(channels, 3, padding=1, bias=bias),
        bn2=batch_norm(),
    )
    project = stride != 1 if project is None else project
    shortcut = _shortcut(channels, stride, bias, norm_shortcut) if project else None
    return sequential(residual(main, shortcut), relu=relu())


def bottleneck_block(
    channels: int,
    stride: int = 1,
    *,
    project: bool | None = None,
    bias: bool = True,
    norm_shortcut: bool = False,
    expansion: int = 4,
) -> Layer:
    """Return 1×1, 3×3 and 1×1 convolutions with batch norm, added to a shortcut.

    The first two have `channels` output channels, the last `channels * expansion`.  The stride is
    that of the 3×3 convolution, as in torchvision ("ResNet 1.5").  Other arguments are as in
    `residual_block`.
    """
    main = sequential(
        conv1=conv2d(channels, 1, bias=bias),
        bn1=batch_norm(),
        relu1=relu(),
        conv2=conv2d(channels, 3, stride, padding=1, bias=bias),
        bn2=batch_norm(),
        relu2=relu(),
        conv3=conv2d(channels * expansion, 1, bias=bias),
        bn3=batch_norm(),
    )
    project = stride != 1 if project is None else project
    shortcut = _shortcut(channels * expansion, stride, bias, norm_shortcut) if project else None
    return sequential(residual(main, shortcut), relu=relu())


def resnet(
    depths: Sequence[int],
    num_classes: int = 10,
    *,
    channels: Sequence[int] = (64, 128, 256, 512),
    block: Callable[..., Layer] = residual_block,
    stem_bias: bool = True,
    project_first: bool = False,
) -> Layer:
    """Return ResNet, (N, C, H, W) -> (N, num_classes).

    Args:
        depths: number of blocks in each stage; the first block of a later stage halves H and W.
        num_classes: number of logits.
        channels: channels of each stage, as the block's argument.
        block: `residual_block`, `bottleneck_block` or a function with the same arguments.
        stem_bias: True if the first convolution has a bias.
        project_first: True for a projection in the first block of the first stage, which
            bottlenecks need as their output is wider.
    """

    def stage(index: int, depth: int, width: int) -> Layer:
        first = block(width, project=project_first) if index == 0 else block(width, 2)
        rest = {f"block{i}": block(width) for i in range(2, depth + 1)}
        return sequential(block1=first, **rest)

    stages = {
        f"stage{i + 1}": stage(i, depth, width)
        for i, (depth, width) in enumerate(zip(depths, channels, strict=True))
    }
    return sequential(
        stem=sequential(
            conv=conv2d(channels[0], 7, stride=2, padding=3, bias=stem_bias),
            bn=batch_norm(),
            relu=relu(),
            pool=max_pool(3, 2, 1),
        ),
        **stages,
        pool=global_avg_pool(),
        flatten=flatten(),
        fc=linear(num_classes),
    )


def _variant(depth: int, *args: Any, **options: Any) -> Callable[..., Layer]:
    doc = f"Return ResNet-{depth}, (N, C, H, W) -> (N, num_classes); arguments as in `resnet`."
    return variant(f"resnet{depth}", doc, resnet, *args, **options)


resnet18 = _variant(18, (2, 2, 2, 2))
resnet34 = _variant(34, (3, 4, 6, 3))
resnet50 = _variant(50, (3, 4, 6, 3), block=bottleneck_block, project_first=True)
