"""Every example runs, at a size that takes seconds, and prints what it promises."""

import importlib.util
import re
from functools import partial
from pathlib import Path

import pytest
from example_scripts import EXAMPLES, load

import funcnets
from funcnets import runs


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_tested(path):
    files = Path(__file__).parent.glob("test_*.py")
    assert any(f'load("{path.stem}")' in file.read_text() for file in files)


SHARED = ("arguments", "drawing")  # modules that examples import
COMMANDS = [path.stem for path in sorted(EXAMPLES.glob("*.py")) if path.stem not in SHARED]
WITH_DATA = ["export", "fine_tune", "grad_cam", "own_loop", "own_network", "per_example_gradients"]
# The first section of examples/README.md; the scripts of the second may be longer.
SHORT = ["train_and_evaluate", "ensemble", "sharpness", "accumulation", "averaging", *WITH_DATA]


@pytest.mark.parametrize("name", SHORT)
def test_short_examples_have_less_than_sixty_lines(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_has_its_command_in_its_docstring(name):
    assert f"python examples/{name}.py" in load(name).__doc__


FIXED = ("accumulation", "train_and_evaluate")  # without `--backend`
NEED_NO_DATA = (
    *(
        "train_and_evaluate",
        "accumulation",
        "call_overhead",
        "ensemble_speed",
        "reference_table",
        "remat_memory",
    ),
    *("rounding_speed", "scaling"),
)


NEED_NO_BACKEND = ("rounding_speed", "scaling")


def refusal(name, arguments, capsys):
    """The one line that ends the example."""
    with pytest.raises(SystemExit) as ended:
        load(name).main(arguments.split())
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        *(
            (name, "--limit-train 0", "argument --limit-train: '0'; expected a whole number")
            for name in ("against_twin", "averaging", "ensemble", "full_set", "laplace", *WITH_DATA)
        ),
        *(
            (name, "--backend fast", "argument --backend: invalid choice: 'fast' (choose from")
            for name in COMMANDS
            if name
            not in (
                "train_and_evaluate",
                "accumulation",
                "call_overhead",
                "reference_table",
                *NEED_NO_BACKEND,
            )
        ),
        *(
            (name, "--data /nowhere", "data directory /nowhere: no such directory")
            for name in COMMANDS
            if name not in NEED_NO_DATA
        ),
        *(
            (name, "renset", "argument net: invalid choice")
            for name in ("ensemble", "against_twin")
        ),
        ("averaging", "--limit-train 10001 --data bundled", "limit of 10001 training images"),
        ("averaging", "--decay 1", "argument --decay: '1'; expected a number in [0, 1)"),
        ("averaging", "--rate fast", "argument --rate: 'fast'; expected a number, 0 or more"),
        ("accumulation", "--batch-size 20000", "argument --batch-size: there are 10000 images"),
        ("ensemble", "--rates 0.1 0", "argument --rates: '0'; expected a number above 0"),
        ("ensemble_speed", "--side 2", "argument --side: 2; conv1"),
        ("ensemble_speed", "--width 8", "argument --width: it is for resnet18, not for lenet_bn"),
        ("full_set", "--recipes worst", "argument --recipes: invalid choice: 'worst'"),
        ("full_set", "--nets nin --recipes best", "nin has tuned, reference alone"),
        ("grad_cam", "--layer stage9", "argument --layer: invalid choice"),
        ("export", "--file /nowhere/a.pt2", "argument --file: '/nowhere/a.pt2'; expected a file"),
        ("per_example_gradients", "--count 10001", "argument --count: there are 10000 images"),
        ("laplace", "--limit-train 9999", "--held-out: there are 10000 images"),
        ("fine_tune_torchvision", "--weights /nowhere", "argument --weights: '/nowhere'; there is"),
        (
            "fine_tune_torchvision",
            f"--weights {__file__} --few 1 --side 32",
            "not weights of torch",
        ),
        ("private_training", "--picture /nowhere/x.png", "'/nowhere/x.png'; expected a file in a"),
        ("private_training", "--limit-train 256 --batch-size 512", "512; expected 256 or less"),
        ("reference_table", "", "the following arguments are required: RUN"),
        ("reference_table", "/nowhere", "/nowhere: no run is here"),
        ("remat_memory", "--side 1", "argument --side: 1; pool"),
        ("scaling", "alexnet --side 9", "argument --side: 9; pool1"),
        ("scaling", "renset18", "argument NET: invalid choice: 'renset18'"),
    ],
)
def test_wrong_arguments_end_an_example_with_one_line(name, arguments, message, capsys):
    assert message in refusal(name, arguments, capsys)


@pytest.mark.parametrize("name", ["grad_cam", "laplace", "sharpness"])
def test_an_example_that_draws_says_at_once_that_matplotlib_is_missing(name, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    assert "pip install matplotlib" in refusal(name, "", capsys)


def test_arguments_are_taken_as_they_are(tmp_path):
    arguments = load("arguments")
    assert arguments.positive("12") == 12
    assert arguments.fraction("0.5") == 0.5
    assert arguments.new_file("picture.png") == "picture.png"
    assert arguments.new_file(str(tmp_path / "a.png")) == str(tmp_path / "a.png")


def test_averaging_evaluates_both(capsys):
    arguments = (
        "--epochs 2 --limit-train 256 --batch-size 64 --decay 0.5 --rate 0.1 --backend graph"
    )
    load("averaging").main(arguments.split())
    *_, first, second = capsys.readouterr().out.splitlines()
    rows = [[float(cell) for cell in row.strip("| ").split("|")] for row in (first, second)]
    assert [row[0] for row in rows] == [1, 2]
    assert rows[0][1] > rows[1][1]
    assert all(0 < accuracy < 1 for row in rows for accuracy in row[2:])


def test_accumulation_is_exact_in_the_exact_form_alone(capsys):
    load("accumulation").main(["--batch-size", "24", "--micro-batch-size", "8", "--rounds", "1"])
    *_, whole, exact, cheap = capsys.readouterr().out.splitlines()
    gradients = [float(row.split("|")[2]) for row in (whole, exact, cheap)]
    statistics = [float(row.split("|")[3]) for row in (whole, exact, cheap)]
    assert gradients[0] == statistics[0] == 0
    assert max(gradients[1], statistics[1]) < 1e-9
    assert min(gradients[2], statistics[2]) > 1e-3


def lines_of(example, arguments, capsys):
    """Train by the example on few images, and return the lines that it prints."""
    small = () if "--limit-train" in arguments else ("--limit-train", "200")
    example.main([*arguments.split(), *small, "--backend", "graph"])
    return capsys.readouterr().out.splitlines()


def test_train_and_evaluate_prints_the_accuracy(capsys, monkeypatch):
    monkeypatch.setattr("funcnets.jit", partial(funcnets.jit, backend="graph"))
    load("train_and_evaluate").main(128)
    assert re.fullmatch(r"test accuracy after 2 epochs: 0\.\d{3}\n", capsys.readouterr().out)


def test_own_network_is_proven_and_trained(capsys):
    proof, *epochs = lines_of(load("own_network"), "--epochs 2", capsys)
    assert proof == "outputs, gradients and statistics are the module's"
    accuracies = [float(line.rpartition(" ")[2]) for line in epochs]
    assert 0 < accuracies[0] < accuracies[1] < 1


def test_own_loop_prints_a_line_an_epoch(capsys):
    rows = lines_of(load("own_loop"), "--epochs 2", capsys)
    losses = [float(re.findall(r"loss ([\d.]+)", row)[0]) for row in rows]
    assert losses[1] < losses[0] < 3


def test_ensemble_prints_a_row_for_each_rate(capsys):
    *_, first, second = lines_of(load("ensemble"), "--seeds 2 --rates 0.1 1 --epochs 1", capsys)
    rows = [row.strip("| ").split(" | ") for row in (first, second)]
    assert [row[0] for row in rows] == ["0.1", "1"]
    assert all(0 < float(cell) < 1 for row in rows for cell in row[1:])


def test_per_example_gradients_have_the_gradient_of_the_batch_as_their_mean(capsys):
    example = load("per_example_gradients")
    distance, *_, median = lines_of(example, "--count 32 --epochs 1", capsys)
    assert float(distance.rpartition(" ")[2]) < 1e-4
    assert float(median.rpartition(" ")[2]) > 0


@pytest.mark.slow
def test_sharpness_prints_the_largest_eigenvalue_and_draws(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.png"
    out = lines_of(
        load("sharpness"), f"--rates 0.5 --steps 1 --limit-train 20 --picture {path}", capsys
    )
    assert re.fullmatch(r"rate 0.5, step   0: loss [\d.]+, largest eigenvalue [\d.]+", out[0])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_fine_tune_changes_the_head_alone(capsys):
    taken, changed, *rows = lines_of(load("fine_tune"), "--steps 2 --epochs 1", capsys)
    assert taken == "taken: 24 leaves; new: fc3.bias, fc3.weight"
    assert changed == "leaves that changed: 2"
    assert [row.partition(":")[0] for row in rows] == ["new head", "trained", "from scratch"]


@pytest.mark.slow
def test_grad_cam_draws_what_the_network_looks_at(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.png"
    out = lines_of(load("grad_cam"), f"--epochs 1 --picture {path}", capsys)
    assert out[0].startswith("accuracy on 200 test images: 0.")
    assert load("drawing").__doc__
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_export_reads_back_what_it_wrote(capsys, tmp_path):
    (line,) = lines_of(load("export"), f"--epochs 1 --file {tmp_path / 'a.pt2'}", capsys)
    assert float(line.rpartition(" ")[2]) < 1e-5


def test_call_overhead_prints_both_ways(capsys):
    load("call_overhead").main(["--nets", "lenet_bn", "--rounds", "20"])
    row = capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]
    assert row[:2] == [" lenet_bn ", " 28 "]
    assert float(row[6]) > 1.2, row


@pytest.mark.slow
def test_rounding_speed_prints_both_choices(capsys, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    load("rounding_speed").main(["--batch-size", "2", "--rounds", "1"])
    row = capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]
    assert (row[0], len(row)) == (" lenet_bn ", 7)


def made_run(path, losses, kind=runs.Config, **values):
    directory = runs.RunDirectory.create(kind.from_recipe(**values), path)
    directory.release()
    directory.write_rows(
        [
            runs.EpochRow(epoch, epoch, loss, 0.9, loss, 0.8 + loss / 10, None, 1.0)
            for epoch, loss in enumerate(losses, 1)
        ]
    )
    return str(path)


def test_reference_table_has_a_row_for_seeds_and_the_published_results(tmp_path, capsys):
    google = {"network": "googlenet", "recipe": "reference", "epochs": 2, "data": "/idx"}
    paths = [
        made_run(tmp_path / "0", [0.9, 0.1], **google, seed=0),
        made_run(tmp_path / "1", [0.9, 0.3], **google, seed=1),
        made_run(tmp_path / "2", [0.9, 0.2], **google, seed=2),
        made_run(tmp_path / "3", [0.9], **google, seed=3),
        made_run(tmp_path / "4", [0.9], **google, seed=4, momentum=0.9),
        made_run(tmp_path / "5", [0.9], network="lenet_bn_scratch", epochs=1),
    ]
    load("reference_table").main([*paths, paths[0]])
    head, rule, *lines = capsys.readouterr().out.splitlines()
    lines = lines[: lines.index("")]
    assert {line.count("|") for line in (head, rule, *lines)} == {15}
    article = "0.301 | 0.885 | 0.875 | 0.854 to 0.902 |"
    assert lines == [
        "| googlenet | function | reference | float32 | 2 | 0 1 2 | 0.200 | 0.900 | 0.820 | "
        f"0.810 to 0.830 | {article}",
        "| googlenet | function | reference | float32 | 1 of 2 | 3 | 0.900 | 0.900 | 0.890 | "
        f"0.890 to 0.890 | {article}",
        "| googlenet | function | reference, momentum 0.9 | float32 | 1 of 2 | 4 | 0.900 | 0.900 | "
        f"0.890 | 0.890 to 0.890 | {article}",
        "| lenet_bn_scratch | function | tuned, bundled images | float32 | 1 | 0 | 0.900 | 0.900 | "
        "0.890 | 0.890 to 0.890 |  |  |  |  |",
    ]


def test_reference_table_takes_a_directory_and_says_what_is_missing(tmp_path, capsys):
    ten = {"recipe": "reference", "data": "/idx"}
    made_run(tmp_path / "0", [0.9] * 10, network="nin", **ten)
    module = made_run(tmp_path / "1", [0.8] * 10, network="nin", **ten)
    (Path(module) / "environment.json").write_text('{"trained_by": "module"}')
    made_run(tmp_path / "2", [0.9] * 10, network="vgg11")
    empty = made_run(tmp_path / "3", [], network="alexnet", **ten)
    load("reference_table").main([str(tmp_path)])
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines[:3]] == [
        *(["| vgg11", "function"], ["| nin", "function"], ["| nin", "module"])
    ]
    functions, modules, left_out = lines[4::2]
    others = "alexnet, vgg11, googlenet, lenet_bn, lenet_bn_scratch, resnet18, densenet"
    assert functions.endswith(f"full set, function: {others}")
    assert modules.endswith(f"full set, module: {others}")
    assert left_out.startswith(f"Left out: {empty}: no epoch is tested yet")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (runs.Config, {}, "no epoch is tested yet"),
        (runs.SweepConfig, {"seeds": 2}, "a sweep; expected runs of"),
    ],
)
def test_reference_table_refuses_what_has_no_row(tmp_path, kind, values, message, capsys):
    path = made_run(tmp_path / "run", [], kind, **values)
    assert f"{path}: {message}" in refusal("reference_table", path, capsys)
