"""Pictures of runs: the drawing functions, and `funcnets plot`."""

import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from funcnets import plots
from funcnets.cli import messages, pictures, plot_command, run_results, terminal
from funcnets.cli.run_results import Predictions
from funcnets.plots import style
from funcnets.runs import EpochRow, MemberRow, RunDirectory, SweepConfig

pytestmark = pytest.mark.usefixtures("few_test_images")
CURVE = plots.Curve("a_$1", [1, 2], [2.0, None], [0.4, 0.6], [1.9, 1.2], [0.45, 0.7])


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch):
    """Files are small, and written in less time."""
    monkeypatch.setattr(style, "PIXELS_PER_INCH", 20)


def texts(figure):
    """All texts of a figure."""
    return [each.get_text() for each in figure.findobj(lambda part: hasattr(part, "get_text"))]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_curves_have_a_line_for_each_training(count):
    curves = [replace(CURVE, label=f"run {i} $", rates=[(0, 1.0), (2, 0.1)]) for i in range(count)]
    losses, accuracies, rates = plots.draw_curves(curves).axes
    assert [len(axes.lines) for axes in (losses, accuracies, rates)] == [2 * count] * 2 + [count]
    assert accuracies.lines[1].get_ydata().tolist() == [0.45, 0.7]
    assert losses.lines[0].get_linestyle() != losses.lines[1].get_linestyle()


def test_learning_rates_of_several_sizes_are_all_seen():
    def drawn(*highest, spread=None):
        curves = [replace(CURVE, rates=[(0, rate), (2, 0.0)], spread=spread) for rate in highest]
        return plots.draw_curves(curves)

    assert drawn(0.1, 0.5).axes[2].get_yscale() == "linear"
    assert drawn(0.1, 30.0).axes[2].get_yscale() == "log"
    low, high = drawn(0.1, 30.0).axes[2].get_ylim()
    assert low == pytest.approx(0.01)
    assert 0 < low < 0.1
    assert high > 30
    assert "lowest to highest seed" not in texts(drawn(0.1).legends[0])
    assert "lowest to highest seed" in texts(drawn(0.1, spread=([0.4], [0.5])).legends[0])


def test_a_sweep_shows_each_seed_the_median_and_what_diverged():
    figure = plots.draw_sweep({0.1: [0.5, 0.7, 0.6], 1.0: [None, 0.3], 9.0: [None]}, {0.1: 0.8})
    shown = texts(figure)
    assert {"0.1\n0.600", "1\n0.300\n1 of 2\ndiverged", "ensemble"} <= set(shown)
    assert "9\nnone\n1 of 1\ndiverged" in shown


def test_one_epoch_and_one_seed_are_seen():
    once = replace(CURVE, epochs=[1], train_accuracy=[0.4], accuracy=[0.6], rates=[(0, 1.0)])
    once = replace(once, train_loss=[2.0], loss=[1.9])
    losses, accuracies, _ = plots.draw_curves([once]).axes
    assert [line.get_marker() for line in losses.lines] == ["o", "o"]
    assert list(accuracies.get_xticks()) == [1]
    assert "spread of seeds" not in texts(plots.draw_sweep({0.1: [0.5]}))


def test_names_and_colours_of_many_runs_differ():
    curves = [replace(CURVE, label=f"{'a long name of runs ' * 3}{i}") for i in range(8)]
    (legend,) = plots.draw_curves(curves).legends
    lines = legend.get_lines()[:8]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 8
    assert len({text.get_text() for text in legend.get_texts()[:8]}) == 8


def test_rates_show_the_lowest_loss_and_those_above_the_first():
    figure = plots.draw_rates({0.1: 2.0, 1.0: 0.5, 10.0: 99.0, 100.0: None}, first_loss=2.3)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert axes.lines[1].get_ydata().tolist() == [2.0, 0.5]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["first step", "higher, or diverged", "lowest, at 1"]
    assert axes.collections[0].get_offsets()[:, 0].tolist() == [10, 100]
    plots.draw_rates({0.1: None}, first_loss=2.3)


def test_the_confusion_matrix_has_counts_names_and_shares():
    counts = torch.tensor([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    figure = plots.draw_confusion(counts, ("cat", "dog$", "an animal with a long name"))
    shown = texts(figure)
    assert {"8", "2", "1", "9", "80%", "90%", "cat", r"dog\$"} <= set(shown)
    assert "85.0% of 20 images are classified correctly" in shown
    with pytest.raises(ValueError, match="there are 2 names"):
        plots.draw_confusion(counts, ("cat", "dog"))


def test_long_names_of_few_classes_are_drawn_whole():
    figure = plots.draw_confusion(torch.eye(2), ("W" * 30, "m" * 30))
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) >= 0


def test_mistakes_come_worst_first():
    labels = torch.tensor([0, 1, 1, 0])
    logits = torch.tensor([[0.0, 1.0], [5.0, 0.0], [0.0, 1.0], [0.0, 9.0]])
    images = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1)
    predictions = Predictions(images, labels, logits, ("cat", "dog"))
    worst = predictions.worst(2)
    assert [(m.number, m.true, m.predicted) for m in worst] == [
        (3, "cat", "dog"),
        (1, "dog", "cat"),
    ]
    assert predictions.confusion.tolist() == [[0, 2], [1, 1]]
    assert predictions.accuracy == 0.25
    assert any(text.startswith("says dog 100%") for text in texts(plots.draw_mistakes(worst)))
    assert "no mistakes" in texts(plots.draw_mistakes([]))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_filters_and_feature_maps_take_any_number_of_channels(channels, tmp_path):
    weight = torch.linspace(-1, 1, 7 * channels * 4).reshape(7, channels, 2, 2)
    filters = plots.draw_filters(weight, "conv1")
    assert any(text.startswith("conv1: 7 filters of 2 x 2") for text in texts(filters))
    maps = plots.draw_feature_maps(torch.rand(channels, 4, 4), {"conv1": torch.rand(20, 3, 3)})
    assert "conv1\n20 maps of 3 x 3" in texts(maps)
    for figure in (filters, maps):
        plots.save(figure, tmp_path / "figure.png")


def test_batch_norms_show_their_median_and_files_are_the_same_again(tmp_path):
    values = {"bn1": (torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, -1.0, 1.0]))}
    figure = plots.draw_batch_norms(values)
    assert [line.get_segments()[0][0][0] for line in figure.axes[0].collections[1:]] == [2.0]
    plots.save(figure, tmp_path / "a.png")
    plots.save(plots.draw_batch_norms(values), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_names_in_any_script_are_drawn_without_a_warning(tmp_path):
    names = ("Ⓐ", "a\U000ffffd\t", "né")  # in STIX, in no font, and in the usual one
    figure = plots.draw_confusion(torch.eye(3), names)
    assert plots.save(figure, tmp_path / "a.png") == "\t\U000ffffd"
    assert plots.save(figure, tmp_path / "a.svg") == ""
    labels = {text.get_text(): text for text in figure.axes[0].get_xticklabels()}
    assert list(labels) == ["Ⓐ", "a\\U000ffffd\\t", "né"]
    assert labels["Ⓐ"].get_fontfamily()[1:] == ["STIXGeneral"]
    assert labels["né"].get_fontfamily()[1:] == []
    image = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mistakes = plots.draw_mistakes([plots.Mistake(image, *names[:2], 0.5, 3)])
    assert plots.save(mistakes, tmp_path / "b.png") == "\t\U000ffffd"


def test_one_line_names_the_characters_that_no_font_has(run, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda figure, path: "\t😀")
    pictures.save("--plot", Path("a.png"), None)
    pictures.warn_of_missing("")
    assert run("list")[2].startswith("funcnets: warning: no installed font has \\t 😀: pictures")


def test_a_run_is_drawn_whole(run, train, monkeypatch):
    monkeypatch.setattr(plot_command, "MISTAKES", 4)
    assert train("mine", "--epochs", 1)[0] == 0
    code, out, err = run("plot", "mine", "--format", "svg")
    assert (code, err) == (0, "")
    names = ["curves", *plot_command.OF_NETWORK]
    assert out.split() == [f"mine/plots/{name}.svg" for name in names]
    for path in map(Path, out.split()):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    code, out, _ = run("plot", "mine", "mine", "--format", "png", "--kind", "curves,filters")
    assert (code, out.split()) == (
        0,
        [f"plots/{name}.png" for name in ("curves", *["mine-filters"] * 2)],
    )
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in out.split())
    assert run("plot", "mine", "--kind", "sweep")[0] == 2
    assert "--image is 9999" in run("plot", "mine", "--image", 9999, "--kind", "features")[2]
    assert "--kind is 'curve'; expected" in run("plot", "mine", "--kind", "curve")[2]
    assert "no run is here" in run("plot", "nothing")[2]
    monkeypatch.setattr(plot_command, "_batch_norms", lambda setup: None)
    assert run("plot", "mine", "--kind", "batch-norm") == (
        0,
        "",
        "funcnets: warning: mine: its network has nothing to draw for batch-norm\n",
    )


def test_a_curve_of_a_sweep_is_the_median_of_the_seeds_that_did_not_diverge(tmp_path):
    config = SweepConfig.from_recipe("lenet_bn", rates=(0.1, 1.0), seeds=2, epochs=3, device="cpu")
    directory = RunDirectory.create(config, tmp_path / "sweep")
    members = [
        MemberRow(1, 10, 1.0, accuracy, diverged, 1.0, 1.0, rate, seed, 1.0, 0.5)
        for rate, seed, accuracy, diverged in (
            (0.1, 0, 0.5, False),
            (0.1, 1, 0.7, False),
            (1.0, 0, 0.1, True),
            (1.0, 1, 0.3, False),
        )
    ]
    whole = MemberRow(1, 10, 1.0, 0.8, False, 1.0, 1.0, 0.1)
    directory.write_rows([*members, whole])
    first, second = run_results.curves_of(directory, "s")
    assert (first.label, first.accuracy, first.spread) == ("s, rate 0.1", [0.6], ([0.5], [0.7]))
    assert second.accuracy == [0.3]
    assert first.rates[0] == (0.0, 0.1)
    assert first.rates[-1][1] == pytest.approx(0.1 * (1 - 9 / 30))
    seeds, ensembles = run_results.accuracies_by_rate(config, directory.read_rows(MemberRow))
    assert (seeds, ensembles) == ({0.1: [0.5, 0.7], 1.0: [None, 0.3]}, {0.1: 0.8})
    directory.release()


def test_without_matplotlib_a_line_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = run("plot", "mine")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "pip install 'funcnets[plots]'" in err


def test_the_accuracy_of_all_epochs_is_one_line():
    rows = [EpochRow(i, i, 1.0, 0.5, 1.0, i / 10, 1.0, 1.0) for i in range(1, 4)]
    assert list(messages.course(rows)) == ["accuracy by epoch: _~#  0.100 to 0.300"]
    assert list(messages.course(rows[:1])) == []
    assert len(terminal.sparkline([0.1] * 500)) == terminal.SPARKLINE_WIDTH
