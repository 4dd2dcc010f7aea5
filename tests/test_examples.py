"""Every example runs, at a size that takes seconds, and prints what it promises."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from funcnets import models, runs

FULL_SET = [
    *("--nets", "lenet_bn", "--recipes", "tuned", "best", "--seeds", "0", "1", "--epochs", "1"),
    *("--limit-train", "300", "--data", "bundled", "--backend", "graph"),
]
EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.append(str(EXAMPLES))  # as Python does for a script there


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_full_set_prints_a_row_a_seed_and_a_table(capsys):
    load("full_set").main(FULL_SET)
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert [row["seed"] for row in rows] == [0, 1, 0, 1]
    assert all(0 < row["test"] < 1 and row["loss"] > 0 for row in rows)
    assert len({row["loss"] for row in rows}) == 4
    assert lines[-2].startswith("| lenet_bn | tuned | 2 |")
    assert lines[-1].startswith("| lenet_bn | best | 2 |")


def test_full_set_reports_a_seed_that_diverged():
    rows = [
        {"net": "nin", "recipe": "reference", "seed": 0, "loss": 0.3, "train": 0.9, "test": 0.8},
        {"net": "nin", "recipe": "reference", "seed": 1, "diverged": "the loss is nan"},
    ]
    assert "| 2, 1 diverged |" in load("full_set").table(rows)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_tested(path):
    assert f'load("{path.stem}")' in Path(__file__).read_text()


COMMANDS = [path.stem for path in sorted(EXAMPLES.glob("*.py")) if path.stem != "arguments"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_has_its_command_in_its_docstring(name):
    assert f"    python examples/{name}.py" in load(name).__doc__


NEED_NO_DATA = (
    *("accumulation", "call_overhead", "ensemble_speed", "reference_table", "remat_memory"),
    "scaling",
)


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
            for name in ("against_twin", "averaging", "ensemble", "full_set", "grad_cam", "laplace")
        ),
        *(
            (name, "--backend fast", "argument --backend: invalid choice: 'fast' (choose from")
            for name in COMMANDS
            if name not in ("accumulation", "call_overhead", "reference_table", "scaling")
        ),
        *(
            (name, "--data /nowhere", "data directory /nowhere: no train-images")
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
        ("grad_cam", "--layer stage9", "argument --layer: "),
        ("grad_cam", "--layer fc", "argument --layer: 'fc'; expected one part with feature maps"),
        ("laplace", "--limit-train 9999", "--held-out: there are 10000 images"),
        ("fine_tune", "--classes 11", "argument --classes: invalid choice: 11"),
        ("fine_tune", "--classes 0 0", "argument --classes: [0, 0]; expected each once"),
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
        ("sharpness", "--samples 1", "argument --samples: 1; expected 2 or more"),
    ],
)
def test_wrong_arguments_end_an_example_with_one_line(name, arguments, message, capsys):
    assert message in refusal(name, arguments, capsys)


@pytest.mark.parametrize("name", ["ensemble", "grad_cam", "laplace", "sharpness"])
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
    assert arguments.picture("picture.png") == "picture.png"
    assert arguments.picture(str(tmp_path / "a.png")) == str(tmp_path / "a.png")


def test_against_twin_trains_both_alike(capsys):
    arguments = "lenet_bn --steps 4 --every 2 --limit-train 512 --batch-size 128"
    load("against_twin").main([*arguments.split(), "--data", "bundled", "--backend", "graph"])
    *_, line, _, _, row = capsys.readouterr().out.splitlines()
    assert "step 4:" in line
    assert row.startswith("| lenet_bn | 28 | 128 | 0 | 1–2 | 2.")
    assert "| 3–4 |" in row
    numbers = re.findall(r"(?:loss|accuracy|twin) ([\d.]+)", line)
    ours, theirs, accuracy, twin = map(float, numbers)
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert accuracy == pytest.approx(twin, abs=0.02)


def test_private_training_loses_by_its_noise(capsys):
    arguments = "--noise 0 20 --epochs 2 --limit-train 500 --batch-size 50 --backend graph"
    load("private_training").main(arguments.split())
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[-2:]]
    assert [noise for noise, _ in rows] == ["0", "20"]
    exact, noisy = (float(accuracy) for _, accuracy in rows)
    assert exact > noisy + 0.1


def test_private_training_draws_its_curves(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "private.png"
    load("private_training").draw({0.0: [0.5, 0.7], 1.0: [0.4, 0.5]}, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


def printed(example: ModuleType, arguments: str, path: Path, capsys: pytest.CaptureFixture) -> str:
    """What the example prints; it must leave a picture at `path`."""
    pytest.importorskip("matplotlib")
    options = [*arguments.split(), "--data", "bundled", "--backend", "graph"]
    example.main([*options, "--picture", str(path)])
    assert path.read_bytes()[:4] == b"\x89PNG"
    return capsys.readouterr().out


def test_grad_cam_draws_what_the_network_looks_at(tmp_path, capsys):
    out = printed(load("grad_cam"), "--epochs 1 --limit-train 128", tmp_path / "a.png", capsys)
    assert "accuracy on 500 test images: 0." in out


def test_sharpness_prints_the_curvature_along_training(tmp_path, capsys):
    arguments = "--rates 0.5 --steps 1 --every 1 --iterations 2 --samples 2 --limit-train 32"
    out = printed(load("sharpness"), arguments, tmp_path / "a.png", capsys)
    assert len(re.findall(r"largest eigenvalue -?[\d.]+, trace -?[\d.]+ ± [\d.]+", out)) == 2


def test_laplace_prints_the_calibration_of_each_prediction(tmp_path, capsys):
    arguments = "--epochs 1 --limit-train 50 --held-out 20 --limit-test 50"
    out = printed(load("laplace"), arguments, tmp_path / "a.png", capsys)
    assert len(re.findall(r"\| [\d.]+ \| [\d.]+ \| [\d.]+ \|", out)) == 5


def test_fine_tune_leaves_the_frozen_part_as_it_was(capsys):
    arguments = "--few 10 --limit-train 64 --epochs 1 --steps 2 --seeds 2 --backend graph"
    load("fine_tune").main(arguments.split())
    out = capsys.readouterr().out
    assert "new: fc3.bias, fc3.weight" in out
    assert "frozen leaves unchanged: True" in out


def test_fine_tune_torchvision_trains_a_head_on_its_weights(capsys, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = torchvision.models.resnet18(weights=None)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):  # 0 where nothing was trained
            buffer.fill_(0.1)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    arguments = f"--weights {tmp_path / 'weights.pth'} --few 2 --side 32 --steps 5 --limit-test 100"
    arguments += " --backend graph"
    load("fine_tune_torchvision").main(arguments.split())
    out = capsys.readouterr().out
    (difference,) = re.findall(r"from torchvision's by at most ([\d.e+-]+)", out)
    assert float(difference) < 1e-4
    assert "taken from torchvision: 100 leaves; new: fc.bias, fc.weight" in out
    assert "frozen leaves unchanged: True" in out
    accuracies = [float(row.split("|")[2]) for row in out.splitlines()[-2:]]
    assert accuracies[0] < accuracies[1]


def test_fine_tune_torchvision_says_where_it_has_no_weights(capsys):
    pytest.importorskip("torchvision")
    load("fine_tune_torchvision").convert(None, torch.zeros(1, 3, 32, 32))
    assert "trained on nothing" in capsys.readouterr().out


def test_remat_memory_shows_a_saving(capsys):
    arguments = "--blocks 4 --channels 8 --batch-size 8 --rounds 1"
    load("remat_memory").main(arguments.split())
    out = capsys.readouterr().out
    (ratio,) = re.findall(r"MiB: ([\d.]+) times as much", out)
    assert float(ratio) < 0.9


def test_ensemble_speed_compares_vmap_and_the_loop(capsys):
    example = load("ensemble_speed")
    assert "stage4" in example.build("resnet18", 2).children
    arguments = "lenet_bn --members 2 --batch-size 4 --rounds 1 --backend graph"
    example.main(arguments.split())
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[3:]]
    assert [(row[3], row[7]) for row in rows] == [("vmap", "chosen"), ("loop", "")]
    assert rows[1][6] == "1.00"


def test_ensemble_draws_accuracy_and_calibration(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "ensemble.png"
    load("ensemble").main(
        [
            *("--seeds", "2", "--rates", "0.1", "1", "--epochs", "1", "--limit-train", "256"),
            *("--backend", "graph", "--picture", str(picture)),
        ]
    )
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
    assert [row[1].strip() for row in rows[1:]] == ["0.1", "1"]
    for row in rows[1:]:
        assert float(row[5]) > 0
        assert 0 <= float(row[3]) <= 1
    assert picture.stat().st_size > 10_000


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    logits = torch.tensor([[0.9, 0.1]] * 10).log()
    error = load("ensemble").calibration_error
    assert error(logits, torch.tensor([0] * 9 + [1])) == pytest.approx(0, abs=1e-6)
    assert error(logits, torch.tensor([0] * 5 + [1] * 5)) == pytest.approx(0.4, abs=1e-6)


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


def rows_of(out):
    return [json.loads(line) for line in out.splitlines()]


def test_a_gpu_run_prints_a_row_for_each_thing_that_it_tries(capsys):
    options = ["--device", "cpu", "--quick", "--nets", "lenet_bn"]
    load("on_a_gpu").main([*options, "--phases", "ceilings", "steps"])
    environment, *ceilings, step = rows_of(capsys.readouterr().out)
    assert environment["device"] == "cpu"
    assert [row["what"] for row in ceilings] == ["product float32", "product bfloat16", "copy"]
    assert (step["network"], step["column"]) == ("lenet_bn", "graph")
    assert step["median"] > 0


def test_a_gpu_run_goes_on_after_a_row_that_fails_and_stops_in_time(capsys, monkeypatch):
    script = load("on_a_gpu")

    def fail(options, clock):
        raise OSError("the device\nis gone")

    monkeypatch.setattr(script, "keys_are_those_of_a_cpu", lambda device: fail(None, None))
    clock = script.Clock(100.0)
    script.attempt("proofs", "keys", clock, lambda: script.keys_are_those_of_a_cpu("cpu"))
    script.attempt("proofs", "late", script.Clock(0.0), dict)
    failed, late = rows_of(capsys.readouterr().out)
    assert failed["failed"] == "OSError: the device"
    assert late["left out"] == "the time is up"


@pytest.mark.slow
def test_a_gpu_run_has_all_its_phases_on_a_cpu(capsys):
    load("on_a_gpu").main(["--device", "cpu", "--quick"])
    rows = rows_of(capsys.readouterr().out)
    assert {row["phase"] for row in rows} == {
        *("environment", "ceilings", "proofs", "steps", "trainings")
    }
    assert not [row for row in rows if "failed" in row or "left out" in row]
    assert all(row["ok"] for row in rows if row["phase"] == "proofs")
    assert {row["network"] for row in rows if row["phase"] == "steps"} == {
        name for name, entry in models.INDEX.items() if entry.is_benchmarked
    }


def test_learning_curves_compare_functions_and_modules(capsys):
    sizes = ["--epochs", "1", "--limit-train", "512", "--precision", "float32"]
    options = ["--seeds", "0", "1", "--data", "bundled", "--backend", "graph"]
    load("learning_curves").main(["--nets", "lenet_bn", *sizes, *options])
    *rows, heading, _, function, module = capsys.readouterr().out.splitlines()
    rows = [json.loads(row) for row in rows]
    assert [(row["way"], row["seed"]) for row in rows] == [
        *(("function", 0), ("module", 0), ("function", 1), ("module", 1))
    ]
    assert all(0 < row["test"] < 1 and 0 < row["train"] < 1 < row["loss"] < 3 for row in rows)
    assert "plateau" in heading
    assert function.startswith("| lenet_bn | function | 2 |")
    assert module.startswith("| lenet_bn | module | 2 |")


def test_scaling_prints_what_each_link_leaves(capsys):
    load("scaling").main(["resnet18", "--milliseconds", "50", "--images", "256"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2:4] for row in rows] == [["8", "NVLink"], ["64", "InfiniBand"], ["64", "Ethernet"]]
    assert {row[1] for row in rows} == {"50.00"}
    efficiencies = [int(row[6].rstrip("%")) for row in rows]
    assert 100 > efficiencies[0] > efficiencies[1] > efficiencies[2] > 50
    # A ring of 64 sends twice the 44.7 MB of gradients, by 12.5 GB/s, with a latency of 45 us.
    seconds = 2 * 63 / 64 * 44.71e6 / 12.5e9 + 45e-6
    assert float(rows[2][4]) == pytest.approx(1e3 * seconds, abs=0.01)


def test_scaling_sends_what_the_bench_counts():
    scaling = load("scaling")
    step = scaling.step_of("lenet_bn", (4, 1, 28, 28), 1e12)
    # As `funcnets bench lenet_bn --processes 2` counts: 9 collectives, 0.179524 of 0.190372 MB.
    assert step.gradients == 179524
    assert 2 * step.norms + 1 == 9
    assert step.gradients + 2 * 3 * step.channels * 2 * 4 == 190372


def test_call_overhead_prints_both_ways(capsys):
    load("call_overhead").main(["--nets", "lenet_bn", "--rounds", "20"])
    row = capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]
    assert row[:2] == [" lenet_bn ", " 28 "]
    assert float(row[6]) > 1.2, row


def test_steps_per_call_prints_a_row_for_each_count(capsys):
    sizes = ["--limit-train", "100", "--batch-size", "16", "--counts", "1", "3", "--rounds", "1"]
    load("steps_per_call").main([*sizes, "--data", "bundled", "--backend", "graph"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["1", "3"]
    assert rows[0].split("|")[4].strip() == "1.00"


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
    google = {"network": "googlenet", "recipe": "reference", "epochs": 2}
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
    assert {line.count("|") for line in (head, rule, *lines)} == {14}
    article = "0.301 | 0.885 | 0.875 | 0.854 to 0.902 |"
    assert lines == [
        "| googlenet | reference | float32 | 2 | 0 1 2 | 0.200 | 0.900 | 0.820 | 0.810 to 0.830 | "
        f"{article}",
        "| googlenet | reference | float32 | 1 of 2 | 3 | 0.900 | 0.900 | 0.890 | 0.890 to 0.890 | "
        f"{article}",
        "| googlenet | reference, momentum 0.9 | float32 | 1 of 2 | 4 | 0.900 | 0.900 | 0.890 | "
        f"0.890 to 0.890 | {article}",
        "| lenet_bn_scratch | tuned | float32 | 1 | 0 | 0.900 | 0.900 | 0.890 | 0.890 to 0.890 |  "
        "|  |  |  |",
    ]


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
