"""What `funcnets bench` tells of rewrites, and the units of its tables."""

from typing import get_args, get_type_hints

import pytest
import torch
from rich.console import Console

import funcnets
from funcnets import bench, layers, models, tree
from funcnets.bench import (
    epoch,
    isolated,
    rewrites,
    rule_timings,
    scaling,
    throughput,
)
from funcnets.bench.cases import Case
from funcnets.bench.table import Unit
from funcnets.models import Entry, Recipe
from funcnets.models.googlenet import inception
from funcnets.models.resnet import residual_block

RECIPES = dict.fromkeys(("tuned", "reference"), Recipe(0.1, 4, 2))


def mixed_net():
    """A network in whose step each kind of rewrite occurs, on 32×32 images."""
    few_channels = funcnets.sequential(
        conv=layers.conv2d(3, 5),
        bn=layers.batch_norm(),
        sigmoid=layers.sigmoid(),
        pool=layers.avg_pool(2),
    )
    many_channels = funcnets.sequential(
        conv1=layers.conv2d(64, 7, padding=1),
        relu1=layers.relu(),
        conv2=layers.conv2d(192, 3, padding=1),
        relu2=layers.relu(),
        pool=layers.max_pool(2),
    )
    return funcnets.sequential(
        stem=funcnets.concat(few=few_channels, many=many_channels),
        inception=inception(16, (8, 16), (16, 16), 16),
        block=residual_block(32, 2),
        pool=layers.max_pool(7),
        tiny=residual_block(32, project=True),
        flatten=layers.flatten(),
        fc1=layers.linear(16),
        bn=layers.batch_norm(),
        sigmoid=layers.sigmoid(),
        fc2=layers.linear(10),
    )


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_what_is_rewritten_gives_the_same(precision, monkeypatch):
    """Each rewrite of a step alone, as an error could go unnoticed in the whole step."""
    monkeypatch.setitem(models.INDEX, "mixed", Entry(mixed_net, RECIPES))
    found = rewrites.find_rewrites(Case("mixed", 4, 32), precision)
    expected = {"moments.var_mean", "loops", "dense.forward", "avg_pool.forward"}
    expected |= {f"fusion.{name}" for name in ("multiply_add", "deviation", "channel_sums")}
    expected |= {"fusion.max_pool", "winograd.forward", "few_channels.backward"}
    assert expected <= {rewrite.name for rewrite, _ in found}
    tolerance = 1e-4 if precision == "float32" else 0.03
    for rewrite, _ in found:
        if rewrite.name == "fusion.deviation":
            continue  # it is given the mean of another argument
        given = zip((rewrite.before, rewrite.after), rule_timings.inputs(rewrite), strict=True)
        before, after = (
            [leaf for leaf in tree.leaves(graph(*tensors)) if leaf is not None]
            for graph, tensors in given
        )
        for expected, actual in zip(before, after, strict=True):
            error = (actual.double() - expected.double()).abs().max()
            assert error <= tolerance * expected.double().abs().max(), rewrite.name


def test_layouts_are_those_of_the_step():
    """Also of what is expanded, whose numbers share their memory."""
    fake = torch.empty(3, 4, device="meta").t()[:, None].expand(4, 2, 3)
    fake = torch.empty_strided(fake.shape, fake.stride())
    filled = rule_timings.filled(fake)
    assert (filled.shape, filled.stride()) == (fake.shape, fake.stride())
    assert torch.equal(filled[:, 0], filled[:, 1])
    assert len(filled[:, 0].unique()) == 12
    assert rule_timings.filled(torch.ones(2, dtype=torch.uint8)).tolist() == [0, 0]


ROWS = [
    *(throughput.Timing, throughput.Mean, isolated.FirstStep, isolated.Memory),
    *(rule_timings.RewriteTiming, epoch.Epoch, scaling.Scaling),
]


@pytest.mark.parametrize("row", ROWS)
def test_every_measurement_but_a_ratio_has_a_unit(row):
    hints = get_type_hints(row, include_extras=True)
    ratios = {"ratio", "geometric_mean", "least"}
    for name, kind in get_type_hints(row).items():
        if kind is float and name not in ratios:
            assert any(isinstance(each, Unit) for each in get_args(hints[name])), name


def test_units_are_in_headings_and_titles():
    row = isolated.FirstStep("lenet_bn", 256, 28, "float32", "jit", 1.5, 0.25)
    timing = epoch.Epoch("lenet_bn", 256, 28, 20, 3, "float32", "funcnets", 1.0, 20.0, 2.0)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(bench.render([row]))
        console.print(bench.render([timing, timing._replace(loop="DataLoader")]))
    text = " ".join(capture.get().split())
    assert "cold (s)" in text
    assert "side 28 pixels, images 20" in text
    assert "epoch (s)" in text
    assert "speed (examples/s)" in text


def test_a_table_tells_once_what_all_rows_share():
    rows = [
        throughput.Mean("float32", "jit", 8, 1.23456, 1234.5),
        throughput.Mean("float32", "graph", 8, 12.0, 0.5),
    ]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(bench.render(rows))
    text = capture.get()
    assert text.splitlines()[0].strip() == "precision float32, networks 8"
    assert "1.23" in text
    assert "1,234" in text
    assert "jit" in text
