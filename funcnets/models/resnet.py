"""ResNet: He et al., Deep residual learning for image recognition, 2015."""

from collections.abc import Callable, Sequence
from functools import partial

from funcnets.core import Layer, residual, sequential
from funcnets.layers import batch_norm, conv2d, flatten, global_avg_pool, linear, max_pool, relu


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
    """Two 3×3 convolutions with batch norm, added to their input.

    The shortcut is the identity, or a 1×1 convolution where `project` says so (None: where the
    stride isn't 1).  `bias=False, norm_shortcut=True` is torchvision's form.
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
    """1×1, 3×3 and 1×1 convolutions with batch norm, added to their input; `expansion` times wider.

    The stride is the 3×3 convolution's, as in torchvision ("ResNet 1.5").
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
    """ResNet with `depths[i]` blocks of `channels[i]` in stage i, (N, C, H, W) -> (N, num_classes).

    The first block of each stage after the first halves the sides; that of the first stage
    has a projection as well if `project_first` says so (bottlenecks need it: they widen).
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


resnet18 = partial(resnet, (2, 2, 2, 2))
