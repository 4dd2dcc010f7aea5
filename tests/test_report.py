"""The HTML page of `funcnets report`."""

import html.parser
import json
import re
from pathlib import Path

import pytest
import torch
from run_files import SMALL
from torchvision.io import decode_png

from funcnets import models
from funcnets.plots import Curve, Mistake, html_charts, html_page
from funcnets.runs.published import NOTEBOOKS, PUBLISHED

pytestmark = pytest.mark.usefixtures("few_test_images")
CURVE = Curve("a <b>", [1, 2], [2.0, None], [0.4, 0.6], [1.9, 1.2], [0.45, 0.7])
VOID = {"meta", "img", "br", "line", "path", "circle"}


class Checker(html.parser.HTMLParser):
    """Parser that notes unclosed tags, and every address that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.values, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        self.values += [json.loads(value) for name, value in attrs if name == "data-values"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert all(address.startswith("data:image/png;base64,") for address in checker.addresses)
    assert not re.search(r"https?:|@import|url\(", page)
    return checker


def test_a_page_holds_everything_and_escapes_names():
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4)
    report = html_page.RunReport(
        "run <i>",
        {"test accuracy": "0.5"},
        {"layers": html_page.Table(("part", "number"), [("  conv<1>", 3)])},
        torch.tensor([[3, 1], [0, 2]]),
        ("cat", "dog & co"),
        [Mistake(image, "cat", "dog & co", 0.9, 7)],
    )
    page = checked(html_page.render_page("runs", [CURVE], [report]))
    shown = " ".join(page.text)
    for text in ("run <i>", "a <b>", "conv<1>", "dog & co", "says dog & co 90%", "#7"):
        assert text in shown
    assert len(page.addresses) == 1
    losses, accuracies = page.values
    assert losses["values"][1] == [["training", 0, "not known"], ["test", 0, "1.2"]]
    assert accuracies["titles"] == ["epoch 1", "epoch 2"]


def test_a_line_is_broken_where_a_value_is_missing():
    line = html_charts.Line("a", [1, 2, 3, 4], [1.0, None, 2.0, 3.0], 0)
    (course,) = re.findall(r' d="(.*?)"', html_charts.chart("loss", [line]))
    assert (course.count("M"), course.count("L")) == (2, 1)
    assert html_charts.chart("loss", [html_charts.Line("a", [1], [None], 0)]) == ""


def test_a_single_epoch_of_the_training_images_is_a_hollow_dot():
    lines = [html_charts.Line("a", [1], [0.5], 0), html_charts.Line("b", [1], [0.4], 0, True)]
    drawn = html_charts.chart("loss", lines)
    assert re.findall(r'circle class="(.*?)" cx="(.*?)"', drawn) == [
        ("c0", "239.0"),
        ("line c0", "239.0"),
    ]


def test_each_line_has_a_value_at_all_places_up_to_its_end():
    lines = [
        html_charts.Line("a", [0, 2, 4], [1.0, 0.5, 0.2], 0),
        html_charts.Line("b", [1, 3], [3.0, 2.0], 1),
    ]
    (values,) = checked(html_charts.chart("rate", lines)).values
    assert values["values"][2] == [["a", 0, "0.5"], ["b", 1, "3"]]
    assert values["values"][4] == [["a", 0, "0.2"]]


def test_a_logarithmic_scale_has_powers_of_ten_and_ends_where_it_is_told():
    line = html_charts.Line("a", [0, 1, 2], [10.0, 1.0, 0.0], 0)
    drawn = html_charts.chart("rate", [line], log_from=0.1)
    heights = [float(y) for _, y in re.findall(r"[ML](\S+?) ([\d.]+)", drawn)]
    top, bottom = html_charts.TOP, html_charts.HEIGHT - html_charts.BOTTOM
    assert heights == [top, (top + bottom) / 2, bottom]
    assert re.findall(r'text-anchor="end">(.*?)<', drawn) == ["0.1", "1", "10"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.1, 0.1), (0.003, 0.9), (1, 10), (5, 900)])
def test_ticks_are_round_and_cover_the_values(low, high):
    ticks = html_charts.nice_ticks(low, high)
    assert ticks[0] <= low
    assert 2 <= len(ticks) <= html_charts.TICKS + 2
    assert high - ticks[-1] < ticks[1] - ticks[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_png(channels):
    image = torch.randint(256, (channels, 5, 7), dtype=torch.uint8)
    content = torch.frombuffer(bytearray(html_page.encode_png(image)), dtype=torch.uint8)
    assert torch.equal(decode_png(content), image)


def test_published_results_are_of_networks_with_a_reference_recipe():
    known = {name for name, entry in models.INDEX.items() if "reference" in entry.recipes}
    assert PUBLISHED
    assert set(PUBLISHED) | set(NOTEBOOKS) <= known


@pytest.mark.usefixtures("known_strategy")
def test_a_run_and_a_sweep_have_a_page(run):
    assert run("train", "--epochs", 2, "--run", "mine", *SMALL)[0] == 0
    code, out, err = run("report", "mine")
    assert (code, out, err) == (0, "mine/report.html\n", "")
    page = checked(Path("mine/report.html").read_text(encoding="utf-8"))
    accuracy = json.loads(run("eval", "mine", "--json")[1])["test_accuracy"]
    shown = [text for text in page.text if text.strip()]
    assert shown[shown.index("test accuracy") + 1] == f"{accuracy:.4f}"
    assert {"conv1", "44,878", "learning rate", "torch", "Ankle boot"} <= set(shown)
    assert (
        run("sweep", "--seeds", 2, "--lr", "0.1,1", "--epochs", 1, "--run", "many", *SMALL)[0] == 0
    )
    assert run("report", "mine", "many", "--out", "pages/both.html")[0] == 0
    page = checked(Path("pages/both.html").read_text(encoding="utf-8"))
    assert {"many, rate 0.1", "many, rate 1", "mine", "many: lenet_bn"} <= set(page.text)
