"""Every longer script of examples/ runs, at a size that takes seconds, and prints its table."""

import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from example_scripts import load

from funcnets import models

FULL_SET = [
    *("--nets", "lenet_bn", "--recipes", "tuned", "best", "--seeds", "0", "1", "--epochs", "1"),
    *("--limit-train", "300", "--data", "bundled", "--backend", "graph"),
]


def printed(example: ModuleType, arguments: str, path: Path, capsys: pytest.CaptureFixture) -> str:
    """What the example prints; it must leave a picture at `path`."""
    pytest.importorskip("matplotlib")
    options = [*arguments.split(), "--data", "bundled", "--backend", "graph"]
    example.main([*options, "--picture", str(path)])
    assert path.read_bytes()[:4] == b"\x89PNG"
    return capsys.readouterr().out


def rows_of(out):
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_laplace_prints_the_calibration_of_each_prediction(tmp_path, capsys):
    arguments = "--epochs 1 --limit-train 50 --held-out 20 --limit-test 50"
    out = printed(load("laplace"), arguments, tmp_path / "a.png", capsys)
    assert len(re.findall(r"\| [\d.]+ \| [\d.]+ \| [\d.]+ \|", out)) == 5


@pytest.mark.slow
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


@pytest.mark.slow
def test_remat_memory_shows_a_saving(capsys):
    arguments = "--blocks 4 --channels 8 --batch-size 8 --rounds 1"
    load("remat_memory").main(arguments.split())
    out = capsys.readouterr().out
    (ratio,) = re.findall(r"MiB: ([\d.]+) times as much", out)
    assert float(ratio) < 0.9


@pytest.mark.slow
def test_ensemble_speed_compares_vmap_and_the_loop(capsys):
    example = load("ensemble_speed")
    assert "stage4" in example.build("resnet18", 2).children
    arguments = "lenet_bn --members 2 --batch-size 4 --rounds 1 --backend graph"
    example.main(arguments.split())
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[3:]]
    assert [(row[3], row[7]) for row in rows] == [("vmap", "chosen"), ("loop", "")]
    assert rows[1][6] == "1.00"


@pytest.mark.slow
def test_learning_curves_compare_functions_and_modules(tmp_path, capsys):
    sizes = ["--epochs", "1", "--limit-train", "512", "--precision", "float32"]
    options = ["--seeds", "0", "1", "--data", "bundled", "--backend", "graph"]
    options += ["--runs", str(tmp_path)]
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
    load("reference_table").main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()[2:4]
    cells = [line.strip("| ").split(" | ")[:7] for line in lines]
    few = ["reference, limit_train 512, bundled images", "float32", "1", "0 1"]
    assert [cell[:6] for cell in cells] == [
        ["lenet_bn", way, *few] for way in ("function", "module")
    ]
    middle = [sum(row["loss"] for row in rows if row["way"] == cell[1]) / 2 for cell in cells]
    assert [float(cell[6]) for cell in cells] == pytest.approx(middle, abs=1e-3)


@pytest.mark.slow
def test_learning_curves_train_by_another_side(tmp_path, capsys):
    sizes = ["--epochs", "1", "--limit-train", "128", "--side", "64", "--precision", "float32"]
    options = ["--data", "bundled", "--backend", "graph", "--runs", str(tmp_path)]
    load("learning_curves").main(["--nets", "vgg11", *sizes, *options])
    load("reference_table").main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    recipes = [line.split(" | ")[2] for line in lines if line.startswith("| vgg11 |")][-2:]
    assert recipes == ["reference, side 64, limit_train 128, bundled images"] * 2


@pytest.mark.slow
def test_steps_per_call_prints_a_row_for_each_count(capsys):
    sizes = ["--limit-train", "100", "--batch-size", "16", "--counts", "1", "3", "--rounds", "1"]
    load("steps_per_call").main([*sizes, "--data", "bundled", "--backend", "graph"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["1", "3"]
    assert rows[0].split("|")[4].strip() == "1.00"


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


def test_steps_on_a_gpu_end_in_time_and_go_on_after_a_network_that_fails(capsys, monkeypatch):
    script = load("on_a_gpu")
    clock = SimpleNamespace(left=1.0)

    def rows(case, precision, options):
        if case.network == "resnet18":
            raise MemoryError("too large")
        for column in ("eager", "graph"):
            yield {"network": case.network, "column": column}
            clock.left -= 0.4

    monkeypatch.setattr(script, "step_rows", rows)
    nets = ("resnet18", "lenet_bn", "nin", "vgg11")
    script.steps(
        SimpleNamespace(nets=nets, quick=True, device="cpu", precisions=["float32"]), clock
    )
    found = [tuple(row.values())[1:] for row in rows_of(capsys.readouterr().out)]
    assert found == [
        ("resnet18 float32", "too large"),
        ("lenet_bn", "eager"),
        ("lenet_bn", "graph"),
        ("nin", "eager"),
        ("nin", "graph"),
        ("nin float32", "the time is up"),
        ("vgg11 float32", "the time is up"),
    ]


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
