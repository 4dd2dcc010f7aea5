"""GoogLeNet: Szegedy et al., Going deeper with convolutions, 2014; `STAGES` is its table 1."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from funcnets.core import Layer, concat, sequential
from funcnets.layers import conv2d, dropout, flatten, global_avg_pool, linear, max_pool, relu
from funcnets.models._variants import variant

Branches = tuple[int, tuple[int, int], tuple[int, int], int]  # c1, (r2, c2), (r3, c3), c4
Variant = Literal["reference", "paper"]

STAGES: dict[str, dict[str, Branches]] = {
    "stage3": {
        "inception3a": (64, (96, 128), (16, 32), 32),
        "inception3b": (128, (128, 192), (32, 96), 64),
    },
    "stage4": {
        "inception4a": (192, (96, 208), (16, 48), 64),
        "inception4b": (160, (112, 224), (24, 64), 64),
        "inception4c": (128, (128, 256), (24, 64), 64),
        "inception4d": (112, (144, 288), (32, 64), 64),
        "inception4e": (256, (160, 320), (32, 128), 128),
    },
    "stage5": {
        "inception5a": (256, (160, 320), (32, 128), 128),
        "inception5b": (384, (192, 384), (48, 128), 128),
    },
}
KERNELS: dict[Variant, tuple[int, int]] = {"reference": (1, 3), "paper": (3, 5)}


def inception(
    c1: int,
    c2: tuple[int, int],
    c3: tuple[int, int],
    c4: int,
    variant: Variant | tuple[int, int] = "reference",
    *,
    convolution: Callable[..., Layer] = conv2d,
) -> Layer:
    """Return an Inception block: four branches joined on channels.

    Args:
        c1: channels of branch 1, a 1×1 convolution.
        c2: channels of the 1×1 convolution and of the wide convolution of branch 2.
        c3: the same of branch 3.
        c4: channels of branch 4, a max pool and a 1×1 convolution.
        variant: sizes of the two wide kernels: `reference` for (1, 3), `paper` for (3, 5), or two
            numbers.
        convolution: `convolution(channels, kernel, padding=...)` makes the layer before each ReLU.

    Raises ValueError for an unknown variant.
    """
    if not isinstance(variant, tuple) and variant not in KERNELS:
        raise ValueError(f"inception: got variant {variant!r}, expected one of {[*KERNELS]}")
    kernels = variant if isinstance(variant, tuple) else KERNELS[variant]

    def single(channels: int) -> Layer:
        return sequential(conv=convolution(channels, 1), relu=relu())

    def reduced(channels: tuple[int, int], kernel: int) -> Layer:
        return sequential(
            reduce=convolution(channels[0], 1),
            relu1=relu(),
            conv=convolution(channels[1], kernel, padding=kernel // 2),
            relu2=relu(),
        )

    return concat(
        branch1=single(c1),
        branch2=reduced(c2, kernels[0]),
        branch3=reduced(c3, kernels[1]),
        branch4=sequential(max_pool(3, 1, 1), single(c4)),
    )


_pool = partial(max_pool, stride=2, padding=1)


def googlenet(
    num_classes: int = 10,
    *,
    variant: Variant | tuple[int, int] = "reference",
    stem: tuple[int, int, int] = (64, 64, 192),
    stages: Mapping[str, Mapping[str, Branches]] = STAGES,
    convolution: Callable[..., Layer] = conv2d,
    pool: Callable[[int], Layer] = _pool,
    rate: float = 0.0,
) -> Layer:
    """Return GoogLeNet without auxiliary classifiers, (N, C, 96, 96) -> (N, num_classes).

    Args:
        num_classes: number of logits.
        variant: kernels of the Inception blocks, as in `inception`.
        stem: channels of the three convolutions before the first stage.
        stages: channels of the Inception blocks, by the names of stage and block.
        convolution: layer before each ReLU, as in `inception`.
        pool: function from a kernel to the max pool between stages.
        rate: probability of dropout before the last layer.
    """
    block = partial(inception, variant=variant, convolution=convolution)
    blocks = {
        stage: sequential(**{name: block(*row) for name, row in rows.items()})
        for stage, rows in stages.items()
    }
    return sequential(
        stem=sequential(
            conv1=convolution(stem[0], 7, stride=2, padding=3),
            relu1=relu(),
            pool1=pool(3),
            conv2=convolution(stem[1], 1),
            relu2=relu(),
            conv3=convolution(stem[2], 3, padding=1),
            relu3=relu(),
            pool3=pool(3),
        ),
        stage3=sequential(blocks["stage3"], pool=pool(3)),
        stage4=sequential(blocks["stage4"], pool=pool(2)),
        stage5=sequential(blocks["stage5"], pool=global_avg_pool(), flatten=flatten()),
        **({"dropout": dropout(rate)} if rate else {}),
        fc=linear(num_classes),
    )


googlenet_paper = variant(
    "googlenet_paper",
    "Return GoogLeNet with the paper's kernels; arguments as in `googlenet`.",
    googlenet,
    variant="paper",
)
