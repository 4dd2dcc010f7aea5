"""Summaries against SPEC's tables of shapes, and torch's own count on the module twins."""

from collections import Counter

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from funcnets import Layer, LayerError, models, sequential, summary
from funcnets.layers import linear
from funcnets.testing import twins

# Side of the input, what parts give for one image, and the parameters of the whole.
TABLES = {
    "alexnet": (
        224,
        {
            "conv1": (96, 54, 54),
            "pool1": (96, 26, 26),
            "conv2": (256, 26, 26),
            "pool2": (256, 12, 12),
            "conv3": (384, 12, 12),
            "conv4": (384, 12, 12),
            "conv5": (256, 12, 12),
            "pool5": (256, 5, 5),
            "flatten": (6400,),
            "fc6": (4096,),
            "fc7": (4096,),
            "fc8": (10,),
        },
        46_764_746,
    ),
    "vgg11": (
        224,
        {
            "block1": (64, 112, 112),
            "block2": (128, 56, 56),
            "block3": (256, 28, 28),
            "block4": (512, 14, 14),
            "block5": (512, 7, 7),
            "flatten": (25088,),
            "fc1": (4096,),
            "fc2": (4096,),
            "fc3": (10,),
        },
        128_806_154,
    ),
    "nin": (
        224,
        {
            "block1": (96, 54, 54),
            "pool1": (96, 26, 26),
            "block2": (256, 26, 26),
            "pool2": (256, 12, 12),
            "block3": (384, 12, 12),
            "pool3": (384, 5, 5),
            "dropout": (384, 5, 5),
            "block4": (10, 5, 5),
            "pool4": (10, 1, 1),
            "flatten": (10,),
        },
        1_992_166,
    ),
    "googlenet": (
        96,
        {
            "stem.pool1": (64, 24, 24),
            "stem": (192, 12, 12),
            "stage3": (480, 6, 6),
            "stage4": (832, 4, 4),
            "stage5": (1024,),
            "fc": (10,),
        },
        2_938_298,
    ),
    "lenet_bn": (28, {"flatten": (256,), "fc1": (120,), "fc2": (84,), "fc3": (10,)}, 44_878),
    "lenet_bn_scratch": (28, {"flatten": (256,), "fc3": (10,)}, 44_878),
    "resnet18": (
        224,
        {
            "stem": (64, 56, 56),
            "stage1": (64, 56, 56),
            "stage2": (128, 28, 28),
            "stage3": (256, 14, 14),
            "stage4": (512, 7, 7),
            "pool": (512, 1, 1),
            "flatten": (512,),
            "fc": (10,),
        },
        11_178_378,
    ),
    "densenet": (
        96,
        {
            "stem": (64, 24, 24),
            "dense1": (192, 24, 24),
            "transition1": (96, 12, 12),
            "dense2": (224, 12, 12),
            "transition2": (112, 6, 6),
            "dense3": (240, 6, 6),
            "transition3": (120, 3, 3),
            "dense4": (248, 3, 3),
            "flatten": (248,),
            "fc": (10,),
        },
        758_226,
    ),
}

BLOCKS = [
    (lambda: models.residual_block(3), (4, 3, 6, 6), (4, 3, 6, 6)),
    (lambda: models.residual_block(6, 2), (4, 3, 6, 6), (4, 6, 3, 3)),
    (lambda: models.dense_block(2, 10), (4, 3, 8, 8), (4, 23, 8, 8)),
    (lambda: models.transition_block(10), (4, 23, 8, 8), (4, 10, 4, 4)),
]


def by_name(rows):
    return {row.name: row for row in rows}


@pytest.mark.parametrize("name", TABLES)
def test_shapes_and_parameters_are_those_of_the_tables(name):
    side, shapes, parameters = TABLES[name]
    rows = summary.summarize(models.get(name)[0], (1, 1, side, side))
    found = by_name(rows)
    assert {part: found[part].shape for part in shapes} == {
        part: (1, *shape) for part, shape in shapes.items()
    }
    assert rows[-1].name == ""
    assert rows[-1].parameters == parameters


@pytest.mark.parametrize(("build", "given", "expected"), BLOCKS)
def test_blocks_alone_have_the_shapes_of_the_tables(build, given, expected):
    assert summary.summarize(build(), given)[-1].shape == expected


def twin_multiply_adds(name, shape):
    """Torch's count on the module: of the whole, and of each submodule."""
    with torch.device("meta"):
        twin = twins.get(name).eval()
        x = torch.empty(shape)
    with FlopCounterMode(display=False, depth=99) as counter:
        twin(x)
    counts = Counter()
    for module, operations in counter.get_flop_counts().items():
        _, _, path = module.partition(".")
        if module != "Global":
            counts[path] = sum(operations.values()) // 2
    return counts, counter.get_total_flops() // 2


@pytest.mark.parametrize("name", TABLES)
def test_multiply_adds_are_the_twins(name):
    side = TABLES[name][0]
    rows = summary.summarize(models.get(name)[0], (2, 1, side, side))
    counts, total = twin_multiply_adds(name, (2, 1, side, side))
    assert rows[-1].multiply_adds == total > 0
    leaves = [row for row in rows if row.kind.startswith(("conv2d", "linear"))]
    assert {row.name: row.multiply_adds for row in leaves} == {
        row.name: counts[row.name] for row in leaves
    }


def test_multiply_adds_of_one_convolution_by_hand():
    rows = by_name(summary.summarize(models.lenet_bn(), (3, 1, 28, 28)))
    assert rows["conv1"].multiply_adds == 3 * 24 * 24 * 6 * 5 * 5
    assert rows["fc3"].multiply_adds == 3 * 84 * 10
    assert rows["bn1"].parameters == 12
    assert rows["bn1"].multiply_adds == 0


def test_a_part_holds_what_its_own_parts_hold():
    rows = by_name(summary.summarize(models.get("googlenet")[0], (1, 1, 96, 96)))
    for name, row in rows.items():
        level = name.count(".") + 1 if name else 0
        parts = [
            part
            for path, part in rows.items()
            if path and path.count(".") == level and (not name or path.startswith(f"{name}."))
        ]
        if parts:
            assert row.parameters == sum(part.parameters for part in parts), name
            assert row.multiply_adds == sum(part.multiply_adds for part in parts), name


def test_parts_come_before_theirs_and_depth_cuts():
    net = models.resnet18()
    every = [row.name for row in summary.summarize(net, (1, 1, 28, 28))]
    assert every[:2] == ["stem", "stem.conv"]
    assert "stage2.block1.shortcut" in every
    shallow = [row.name for row in summary.summarize(net, (1, 1, 28, 28), depth=1)]
    assert shallow == [name for name in every if "." not in name]
    assert shallow[-1] == ""
    assert [row.name for row in summary.summarize(net, (1, 1, 28, 28), depth=0)] == [""]


def test_nothing_is_allocated():
    # A convolution's output for this batch would take 800 GB.
    rows = summary.summarize(models.vgg11(), (100_000, 1, 224, 224), depth=0)
    assert rows[-1].shape == (100_000, 10)


def test_an_input_that_does_not_fit_names_the_layer():
    with pytest.raises(LayerError, match=r"^block1\.conv1: .* 8×8, .* at least 11×11"):
        summary.summarize(models.nin(), (1, 1, 8, 8))


def test_the_table_shows_every_row():
    rows = summary.summarize(models.resnet18(), (1, 1, 28, 28), depth=2)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(summary.render(rows))
    shown = captured.get()
    assert "11,178,378" in shown
    assert f"{rows[-1].multiply_adds:,}" in shown
    for row in rows:
        assert (row.name.split(".")[-1] or "total") in shown


def own(init, apply):
    """A network with a layer of a user's own, which may be careless about devices."""
    return sequential(fc=linear(4), own=Layer("own()", init, apply))


def scaled(params, state, x, *, train=False, key=None):
    return x * params["scale"], state


def branching(params, state, x, *, train=False, key=None):
    return (x if x.sum() > 0 else -x), state


def test_a_layer_may_make_its_values_on_another_device():
    net = own(lambda key, x: ({"scale": torch.ones(x.shape[1])}, {}), scaled)
    assert [row.parameters for row in summary.summarize(net, (2, 3))] == [16, 4, 20]


@pytest.mark.parametrize(
    ("init", "apply"),
    [
        (lambda key, x: ({}, {}), branching),
        (lambda key, x: ({"scale": torch.ones(int(key.sum()))}, {}), scaled),
    ],
)
def test_a_layer_that_needs_values_is_named(init, apply):
    with pytest.raises(
        LayerError, match=r"^own: own\(\): failed on a tensor .*no values.*torch\.where"
    ):
        summary.summarize(own(init, apply), (2, 3))
