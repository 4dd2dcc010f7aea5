"""The twins are an oracle, so they are held against a second writing of SPEC's tables."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from funcnets.testing import twins

TOTALS = {
    "alexnet": 46_764_746,
    "vgg11": 128_806_154,
    "nin": 1_992_166,
    "googlenet": 2_938_298,
    "lenet_bn": 44_878,
    "lenet_bn_scratch": 44_878,
    "resnet18": 11_178_378,
    "densenet": 758_226,
}
NAMES = list(TOTALS)
NARROW = {
    "alexnet": {"channels": (2, 3, 4, 5, 6), "hidden": 7, "side": 96},
    "vgg11": {"arch": ((1, 2), (2, 3)), "hidden": 7, "side": 8},
    "nin": {"channels": (2, 3, 4)},
    "googlenet": {"divisor": 8, "variant": "paper"},
    "lenet_bn": {"channels": (2, 3), "hidden": (7, 5), "side": 20},
    "lenet_bn_scratch": {"channels": (2, 3), "hidden": (7, 5), "side": 20},
    "resnet18": {"depths": (1, 2), "channels": (4, 6)},
    "densenet": {"stem_channels": 4, "growth": 3, "layers": (1, 2)},
}


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return twins.get(name, **options)


def shapes_after(net: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Output shape, without the batch, of each part by its dotted name."""
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> None:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            shapes[name] = tuple(output.shape[1:])

        net.get_submodule(name).register_forward_hook(hook)

    for name, _ in net.named_modules():
        record(name)
    net(torch.empty(shape, device="meta"))
    return shapes


def leaf_names(net: nn.Module) -> list[str]:
    return [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]


def written(module: nn.Module) -> str:
    """One layer in SPEC's notation."""
    match module:
        case nn.Conv2d():
            assert module.bias is not None
            assert module.groups == module.dilation[0] == module.dilation[1] == 1
            sizes = (module.kernel_size, module.stride, module.padding)
            assert all(size[0] == size[1] for size in sizes)
            numbers = ",".join(str(size[0]) for size in sizes)
            return f"conv({module.out_channels},{numbers})"
        case nn.MaxPool2d():
            return f"max({module.kernel_size},{module.stride},{module.padding})"
        case nn.AvgPool2d():
            assert module.padding == 0
            return f"avg({module.kernel_size},{module.stride})"
        case nn.AdaptiveAvgPool2d(output_size=1):
            return "global"
        case nn.Linear():
            return f"fc({module.out_features})"
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            assert (module.eps, module.momentum, module.affine) == (1e-5, 0.1, True)
            return "bn"
        case twins.ScratchBatchNorm():
            assert (module.eps, module.momentum) == (1e-5, 0.9)
            return "scratch"
        case twins.MaskedDropout():
            return f"dropout({module.p})"
        case nn.ReLU() | nn.Sigmoid() | nn.Flatten() | nn.Identity():
            return type(module).__name__.lower()
    raise AssertionError(f"no notation for {module}")


def inception(c1: int, branch2: tuple[int, int], branch3: tuple[int, int], c4: int) -> str:
    (r2, c2), (r3, c3) = branch2, branch3
    return (
        f"conv({c1},1,1,0) relu conv({r2},1,1,0) relu conv({c2},1,1,0) relu conv({r3},1,1,0) relu "
        f"conv({c3},3,1,1) relu max(3,1,1) conv({c4},1,1,0) relu "
    )


def residual(c: int, stride: int, shortcut: str) -> str:
    return f"conv({c},3,{stride},1) bn conv({c},3,1,1) bn {shortcut} "


def nin_block(c: int, k: int, s: int, p: int) -> str:
    return f"conv({c},{k},{s},{p}) relu conv({c},1,1,0) relu conv({c},1,1,0) relu "


LENET = (
    "conv(6,5,1,0) bn sigmoid avg(2,2) conv(16,5,1,0) bn sigmoid avg(2,2) flatten "
    "fc(120) bn sigmoid fc(84) bn sigmoid fc(10)"
)
STEM = "conv(64,7,2,3) bn relu max(3,2,1) "
DENSE = "bn relu conv(32,3,1,1) " * 4
TABLES = {
    "alexnet": "conv(96,11,4,1) relu max(3,2,0) conv(256,5,1,2) relu max(3,2,0) conv(384,3,1,1) "
    "relu conv(384,3,1,1) relu conv(256,3,1,1) relu max(3,2,0) flatten fc(4096) relu dropout(0.5) "
    "fc(4096) relu dropout(0.5) fc(10)",
    "vgg11": "conv(64,3,1,1) relu max(2,2,0) conv(128,3,1,1) relu max(2,2,0) "
    + ("conv(256,3,1,1) relu " * 2 + "max(2,2,0) ")
    + ("conv(512,3,1,1) relu " * 2 + "max(2,2,0) ") * 2
    + "flatten fc(4096) relu dropout(0.5) fc(4096) relu dropout(0.5) fc(10)",
    "nin": f"{nin_block(96, 11, 4, 0)}max(3,2,0) {nin_block(256, 5, 1, 2)}max(3,2,0) "
    f"{nin_block(384, 3, 1, 1)}max(3,2,0) dropout(0.5) {nin_block(10, 3, 1, 1)}global flatten",
    "googlenet": "conv(64,7,2,3) relu max(3,2,1) conv(64,1,1,0) relu conv(192,3,1,1) relu "
    "max(3,2,1) "
    + inception(64, (96, 128), (16, 32), 32)
    + inception(128, (128, 192), (32, 96), 64)
    + "max(3,2,1) "
    + inception(192, (96, 208), (16, 48), 64)
    + inception(160, (112, 224), (24, 64), 64)
    + inception(128, (128, 256), (24, 64), 64)
    + inception(112, (144, 288), (32, 64), 64)
    + inception(256, (160, 320), (32, 128), 128)
    + "max(2,2,1) "
    + inception(256, (160, 320), (32, 128), 128)
    + inception(384, (192, 384), (48, 128), 128)
    + "global flatten fc(10)",
    "lenet_bn": LENET,
    "lenet_bn_scratch": LENET.replace("bn", "scratch"),
    "resnet18": STEM
    + residual(64, 1, "identity") * 2
    + "".join(
        residual(c, 2, f"conv({c},1,2,0)") + residual(c, 1, "identity") for c in (128, 256, 512)
    )
    + "global flatten fc(10)",
    "densenet": STEM
    + "".join(f"{DENSE}bn relu conv({c},1,1,0) avg(2,2) " for c in (96, 112, 120))
    + f"{DENSE}bn relu global flatten fc(10)",
}
# The first shape is the input's; what a row calls a layer's output is, with its activation, the
# pool's or the block's where one follows.
SHAPES = {
    "alexnet": (
        (1, 1, 224, 224),
        "conv1 96,54,54 pool1 96,26,26 conv2 256,26,26 pool2 256,12,12 conv3 384,12,12 "
        "conv4 384,12,12 conv5 256,12,12 pool5 256,5,5 flatten 6400 fc6 4096 fc7 4096 fc8 10",
    ),
    "vgg11": (
        (1, 1, 224, 224),
        "block1 64,112,112 block2 128,56,56 block3 256,28,28 block4 512,14,14 block5 512,7,7 "
        "flatten 25088 fc1 4096 fc2 4096 fc3 10",
    ),
    "nin": (
        (1, 1, 224, 224),
        "block1 96,54,54 pool1 96,26,26 block2 256,26,26 pool2 256,12,12 block3 384,12,12 "
        "pool3 384,5,5 dropout 384,5,5 block4 10,5,5 pool4 10,1,1 flatten 10",
    ),
    "googlenet": (
        (1, 1, 96, 96),
        "stem.pool1 64,24,24 stem 192,12,12 stage3 480,6,6 stage4 832,4,4 stage5 1024 fc 10",
    ),
    "lenet_bn": ((2, 1, 28, 28), "flatten 256 fc1 120 fc2 84 fc3 10"),
    "lenet_bn_scratch": ((2, 1, 28, 28), "flatten 256 fc1 120 fc2 84 fc3 10"),
    "resnet18": (
        (1, 1, 224, 224),
        "stem 64,56,56 stage1 64,56,56 stage2 128,28,28 stage3 256,14,14 stage4 512,7,7 "
        "pool 512,1,1 flatten 512 fc 10",
    ),
    "densenet": (
        (1, 1, 96, 96),
        "stem 64,24,24 dense1 192,24,24 transition1 96,12,12 dense2 224,12,12 "
        "transition2 112,6,6 dense3 240,6,6 transition3 120,3,3 dense4 248,3,3 flatten 248 fc 10",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_parameter_total(name: str) -> None:
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == TOTALS[name]


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_those_of_the_table(name: str) -> None:
    layers = [module for module in on_meta(name).modules() if not list(module.children())]
    assert " ".join(map(written, layers)) == TABLES[name]


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_the_table(name: str) -> None:
    shape, rows = SHAPES[name]
    found = shapes_after(on_meta(name), shape)
    parts, expected = rows.split()[::2], rows.split()[1::2]
    assert [",".join(map(str, found[part])) for part in parts] == expected


def with_leaves(parts: str, norms: str = "") -> set[str]:
    """Leaf names of parts with weight and bias, and of norms, which carry statistics too."""
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{part}.{kind}" for part in parts.split() for kind in kinds[:2]} | {
        f"{norm}.{kind}" for norm in norms.split() for kind in kinds
    }


def expected_leaves() -> dict[str, set[str]]:
    branches = "branch1.conv branch2.reduce branch2.conv branch3.reduce branch3.conv branch4.conv"
    inceptions = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    blocks = [f"stage{i}.block{j}" for i in (1, 2, 3, 4) for j in (1, 2)]
    layers = [f"dense{i}.layer{j}" for i in (1, 2, 3, 4) for j in (1, 2, 3, 4)]
    layers += [f"transition{i}" for i in (1, 2, 3)]
    lenet = with_leaves("conv1 conv2 fc1 fc2 fc3", "bn1 bn2 bn3 bn4")
    return {
        "alexnet": with_leaves("conv1 conv2 conv3 conv4 conv5 fc6 fc7 fc8"),
        "vgg11": with_leaves(
            "block1.conv1 block2.conv1 block3.conv1 block3.conv2 block4.conv1 block4.conv2 "
            "block5.conv1 block5.conv2 fc1 fc2 fc3"
        ),
        "nin": with_leaves(" ".join(f"block{i}.conv{j}" for i in (1, 2, 3, 4) for j in (1, 2, 3))),
        "googlenet": with_leaves("stem.conv1 stem.conv2 stem.conv3 fc").union(
            *(
                with_leaves(f"stage{which[0]}.inception{which}.{branch}")
                for which in inceptions
                for branch in branches.split()
            )
        ),
        "lenet_bn": lenet,
        "lenet_bn_scratch": lenet,
        "resnet18": with_leaves(
            "stem.conv stage2.block1.shortcut stage3.block1.shortcut stage4.block1.shortcut fc",
            "stem.bn",
        ).union(*(with_leaves(f"{b}.conv1 {b}.conv2", f"{b}.bn1 {b}.bn2") for b in blocks)),
        "densenet": with_leaves("stem.conv fc", "stem.bn bn").union(
            *(with_leaves(f"{layer}.conv", f"{layer}.bn") for layer in layers)
        ),
    }


@pytest.mark.parametrize("name", NAMES)
def test_leaf_names(name: str) -> None:
    found = leaf_names(on_meta(name))
    assert len(found) == len(set(found))
    assert set(found) == expected_leaves()[name]


@pytest.mark.parametrize("name", NAMES)
def test_narrow_version_trains(name: str) -> None:
    torch.manual_seed(0)
    side = NARROW[name].get("side", 96)
    net = twins.get(name, in_channels=3, num_classes=4, **NARROW[name]).double()
    fresh = {leaf: value.clone() for leaf, value in net.named_buffers()}
    for leaf, value in fresh.items():
        assert torch.all(value == (1 if leaf.endswith("running_var") else 0)), leaf
    images = torch.randn(3, 3, side, side, dtype=torch.float64)
    logits = net(images)
    assert logits.shape == (3, 4)
    logits.logsumexp(1).sum().backward()
    for leaf, parameter in net.named_parameters():
        assert parameter.grad is not None, leaf
        assert parameter.grad.isfinite().all(), leaf
    for leaf, value in net.named_buffers():
        assert not torch.equal(value, fresh[leaf]), leaf


@pytest.mark.parametrize(
    ("block", "given_shape", "shape"),
    [
        (lambda: twins.VGGBlock(3, 2, 5), (2, 3, 8, 8), (2, 5, 4, 4)),
        (lambda: twins.NiNBlock(3, 5, 3, 2, 1), (2, 3, 8, 8), (2, 5, 4, 4)),
        (lambda: twins.Inception(3, 1, (2, 3), (4, 5), 6), (2, 3, 8, 8), (2, 15, 8, 8)),
        (lambda: twins.Inception(3, 1, (2, 3), (4, 5), 6, "paper"), (2, 3, 8, 8), (2, 15, 8, 8)),
        (lambda: twins.ResidualBlock(3, 3, 1), (4, 3, 6, 6), (4, 3, 6, 6)),
        (lambda: twins.ResidualBlock(3, 6, 2), (4, 3, 6, 6), (4, 6, 3, 3)),
        (lambda: twins.DenseBlock(3, 2, 10), (4, 3, 8, 8), (4, 23, 8, 8)),
        (lambda: twins.TransitionBlock(23, 10), (4, 23, 8, 8), (4, 10, 4, 4)),
    ],
)
def test_block_shapes(block, given_shape, shape) -> None:
    with torch.device("meta"):
        assert block()(torch.empty(given_shape)).shape == shape


def batch_norm(x: Tensor) -> Tensor:
    """Training's normalisation, for a module that still has weight 1 and bias 0."""
    return F.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (6, 1), (3, 2), (6, 2)])
def test_residual_block_formula(channels: int, stride: int) -> None:
    torch.manual_seed(0)
    block = twins.ResidualBlock(3, channels, stride).double()
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    main = F.conv2d(x, block.conv1.weight, block.conv1.bias, stride, 1)
    main = F.conv2d(batch_norm(main).relu(), block.conv2.weight, block.conv2.bias, 1, 1)
    shortcut = x
    if (channels, stride) != (3, 1):
        shortcut = F.conv2d(x, block.shortcut.weight, block.shortcut.bias, stride)
    torch.testing.assert_close(block(x), (batch_norm(main) + shortcut).relu())


def test_dense_block_formula() -> None:
    torch.manual_seed(0)
    block = twins.DenseBlock(3, 2, 5).double()
    x = joined = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    for layer in (block.layer1, block.layer2):
        conv = layer.conv
        new = F.conv2d(batch_norm(joined).relu(), conv.weight, conv.bias, padding=1)
        joined = torch.cat([joined, new], dim=1)
    torch.testing.assert_close(block(x), joined)


@pytest.mark.parametrize(("variant", "kernels"), [("reference", (1, 3)), ("paper", (3, 5))])
def test_inception_formula(variant: str, kernels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = twins.Inception(3, 1, (2, 3), (4, 5), 6, variant).double()

    def conv(part: nn.Conv2d, x: Tensor, kernel: int = 1) -> Tensor:
        assert part.weight.shape[2:] == (kernel, kernel)
        return F.conv2d(x, part.weight, part.bias, padding=(kernel - 1) // 2).relu()

    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    branches = [
        conv(block.branch1.conv, x),
        conv(block.branch2.conv, conv(block.branch2.reduce, x), kernels[0]),
        conv(block.branch3.conv, conv(block.branch3.reduce, x), kernels[1]),
        conv(block.branch4.conv, F.max_pool2d(x, 3, 1, 1)),
    ]
    torch.testing.assert_close(block(x), torch.cat(branches, dim=1))


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="called 'resnet': expected one of alex"):
        twins.get("resnet")
    with pytest.raises(ValueError, match="variant 'wide': expected one of reference, paper"):
        twins.get("googlenet", variant="wide")
    with pytest.raises(ValueError, match="divisor 3"):
        twins.get("googlenet", divisor=3)
