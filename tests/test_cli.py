"""The command line as a person or a script meets it."""

import json
import os
import re
import warnings
from pathlib import Path

import pytest
from run_files import SMALL, final_tensors, rows, untimed

import funcnets
from funcnets import data, models
from funcnets.cli import (
    commands,
    network_commands,
    option_kinds,
    options,
    preparation,
    reporters,
    training,
)
from funcnets.cli.compiled_step import CompiledStep
from funcnets.cli.interrupt import Interrupt
from funcnets.compiler import CompileError
from funcnets.compiler.kernels import build
from funcnets.core import sequential
from funcnets.layers import batch_norm, conv2d, flatten, linear
from funcnets.precision import POLICIES
from funcnets.runs import config
from funcnets.train import NonFiniteLoss

pytestmark = pytest.mark.usefixtures("own_directory", "few_test_images")


def test_a_run_leaves_a_record(run):
    code, out, err = run("train", "--epochs", 2, "--run", "first", *SMALL)
    assert (code, err) == (0, "")
    assert out.isascii()
    assert "bundled part" in out.splitlines()[0]
    assert "epoch 2/2" in out
    config = json.loads(Path("first/config.json").read_text())
    assert (config["network"], config["seed"], config["epochs"]) == ("lenet_bn", 0, 2)
    assert {"torch", "python", "device"} <= json.loads(
        Path("first/environment.json").read_text()
    ).keys()
    assert [row["epoch"] for row in rows("first")] == [1, 2]
    assert len(Path("first/metrics.csv").read_text().splitlines()) == 3
    code, out, _ = run("eval", "first", "--json")
    measured = json.loads(out)
    assert code == 0
    assert measured["test_accuracy"] == rows("first")[-1]["test_accuracy"]
    assert measured["test_images"] == 100


def test_json_is_all_that_json_prints(run):
    code, out, _ = run("train", "--epochs", 1, "--json", *SMALL)
    assert code == 0
    printed = [json.loads(line) for line in out.splitlines()]
    assert printed[0]["epoch"] == 1
    assert "test_accuracy" in printed[-1]


def test_the_scratch_net_shows_what_bn1_learned(run):
    code, out, _ = run("train", "lenet_bn_scratch", "--epochs", 1, *SMALL)
    assert code == 0
    assert "bn1" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "renset18"], "did you mean 'resnet18'"),
        (["train", "--recipe", "tuend"], "did you mean 'tuned'"),
        (["train", "--epochs", "0"], "--epochs is 0"),
        (["train", "--lr", "-1"], "--lr is -1"),
        (["train", "--lr", "nan"], "--lr is nan"),
        (["train", "--batch-size", "0"], "--batch-size is 0"),
        (["train", "--limit-train", "0"], "--limit-train is 0"),
        (["train", "--device", "nowhere"], "--device is 'nowhere'"),
        (["train", "--backend", "fast"], "--backend is 'fast'"),
        (["train", "--init-from"], "Option '--init-from' requires an argument."),
        (["train", "--bogus"], "no option is called '--bogus'; see --help"),
        (["train", "--epoch", "3"], "no option is called '--epoch': did you mean '--epochs'?"),
        (["sweep", "--ema", "0.9"], "no option is called '--ema' in sweep: funcnets train has it"),
        (["eval", "--devise", "3"], "no option is called '--devise': did you mean '--device'?"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "alexnet", "--side", "30"], r"the smallest --side that works is 65"),
        (["train", "--limit-train", "129"], "the last batch has one image, from which bn3 has no"),
        (["train", "--limit-train", "1"], "a batch has one image, from which bn3 has no"),
        (["train", "--lr", "abc"], "'abc'"),
        (["train", "--limit-train", "20000"], "--limit-train is 20000; expected 1 to 10000"),
        (["train", "--run", ""], "'--run': given was ''; expected the name of a directory"),
        (["eval", ""], "'RUN': given was ''; expected the name of a directory"),
        (["train", "--resume"], "no run is here"),
        (["train", "--run", "/proc/nowhere"], "/proc/nowhere: can't be written"),
        (["eval", "nowhere"], "no run is here"),
        (["summary", "lenet"], "did you mean 'lenet_bn'"),
        (["summary", "nin", "--input", "1,1"], "--input is '1,1'"),
        (["summary", "nin", "--input", "1,1,8,8"], "block1.conv1"),
        (["summary", "nin", "--depth", "-1"], "--depth is -1; expected 0 or more"),
        (["frobnicate"], "frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("runs").exists()


def test_the_smallest_side_for_batches_of_one_image_is_named(run, monkeypatch):
    """Batch norm has no variance of one value a channel, which stride 4 leaves of 4 pixels."""
    net = sequential(conv=conv2d(2, 1, stride=4), bn=batch_norm(), flatten=flatten(), fc=linear(10))
    entry = models.Entry(lambda: net, {"tuned": models.Recipe(0.1, 1, side=4)})
    monkeypatch.setitem(models.INDEX, "tiny", entry)
    code, _, err = run("train", "tiny")
    assert code == 2
    assert err == (
        "funcnets: tiny can't be trained on 10,000 images in batches of 1: a batch has one image, "
        "from which bn has no variance; choose another --limit-train or --batch-size; the smallest "
        "--side that works is 5\n"
    )


def test_a_run_is_not_overwritten(run):
    run("train", "--epochs", 1, "--run", "first", *SMALL)
    before = final_tensors("first")
    code, _, err = run("train", "--epochs", 1, "--run", "first", *SMALL)
    assert code == 2
    assert "--resume" in err
    assert final_tensors("first") == before


def test_a_finished_run_says_so_and_a_contradicting_flag_is_named(run):
    run("train", "--epochs", 1, "--run", "first", *SMALL)
    code, _, err = run("train", "--run", "first", "--resume")
    assert code == 2
    assert "finished" in err
    code, _, err = run("train", "--run", "first", "--resume", "--lr", 0.5)
    assert code == 2
    assert "--lr is 0.5, but the run was started with 1.0" in err


def test_a_longer_constant_run_goes_on_to_the_same_bits(run):
    options = ("--schedule", "constant", *SMALL)
    run("train", "--epochs", 3, "--run", "whole", *options)
    run("train", "--epochs", 1, "--run", "parts", *options)
    code, _, err = run("train", "--epochs", 3, "--run", "parts", "--resume")
    assert (code, err) == (0, "")
    assert untimed("parts") == untimed("whole")
    assert final_tensors("parts") == final_tensors("whole")


def test_divergence_is_exit_code_1_and_where_nothing_was_saved_it_says_so(run):
    code, _, err = run("train", "--epochs", 3, "--lr", 1e30, "--run", "wild", *SMALL)
    assert code == 1
    assert err.endswith("try a smaller learning rate; nothing is saved\n")
    assert len(err.splitlines()) == 1


def test_divergence_keeps_the_last_good_checkpoint(run, two_epochs, monkeypatch):
    def diverged(self, step):
        raise NonFiniteLoss("try a smaller learning rate")

    monkeypatch.setattr(training.Training, "check_train_state", diverged)
    code, _, err = run(*RESUME, two_epochs)
    assert code == 1
    assert err.endswith("what was saved before is kept in first/checkpoints\n")


def test_a_kernel_that_fails_ends_it_as_graph_has_the_same(capsys):
    def failing(function, **options):
        def call(*arguments):
            raise CompileError("no kernel")

        return call

    step = CompiledStep("a step", len, failing, 1, "native", reporters.Reporter(), Interrupt())
    with pytest.raises(CompileError, match="no kernel"):
        step(([0], [0]))
    assert "going on" not in capsys.readouterr().err


def test_a_warning_is_one_line_that_names_no_file(monkeypatch, capsys):
    def warn(*_, **__):
        warnings.warn("funcnets: a\nb", stacklevel=1)

    monkeypatch.setattr(commands, "app", warn)
    with warnings.catch_warnings(action="always"), pytest.raises(SystemExit, match="0"):
        commands.main()
    assert capsys.readouterr().err == "funcnets: warning: a b\n"


def test_without_a_compiler_it_warns_and_goes_on(run, monkeypatch):
    def fail(*_, **options):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("torch._inductor.standalone_compile", fail)
    options = [option if option != "graph" else "inductor" for option in SMALL]
    code, out, err = run("train", "--epochs", 1, *options)
    assert code == 0
    assert "--backend graph" in err
    assert "epoch 1/1" in out
    assert " 1 epoch, " in out
    assert funcnets.jit is not None


def test_without_a_compiler_for_loops_it_says_so(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "is_available", lambda: False)
    monkeypatch.setattr(build, "reason_unavailable", lambda: "no g++ was found")
    options = [option if option != "graph" else "native" for option in SMALL]
    code, out, err = run("train", "--epochs", 1, *options)
    assert code == 0
    assert "C++ can't be compiled here: no g++ was found" in err
    assert "epoch 1/1" in out


def test_a_damaged_checkpoint_is_one_line(run):
    run("train", "--epochs", 1, "--run", "first", *SMALL)
    (file,) = Path("first/checkpoints").glob("*/tensors.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, _, err = run("eval", "first")
    assert code == 2
    assert len(err.splitlines()) == 1


@pytest.fixture
def two_epochs(run):
    """The directory of a run with two checkpoints, which can go on."""
    run("train", "--epochs", 2, "--run", "first", "--schedule", "constant", *SMALL)
    return Path("first")


RESUME = ("train", "--epochs", 3, "--resume", "--run")


@pytest.mark.parametrize("command", [("eval",), RESUME], ids=lambda command: command[0])
def test_a_damaged_newest_checkpoint_is_told_of_where_the_one_before_is_used(
    run, two_epochs, command
):
    os.truncate(two_epochs / "checkpoints/step-00000006/tensors.safetensors", 100)
    code, out, err = run(*command, two_epochs)
    assert code == 0
    assert "step 3" in out
    assert re.match(r"funcnets: warning: .*step-00000006 .*damaged.* step-00000003", err)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", [("eval",), RESUME], ids=lambda command: command[0])
def test_where_every_checkpoint_is_damaged_it_says_so(run, two_epochs, command):
    for manifest in two_epochs.glob("checkpoints/*/manifest.json"):
        manifest.write_text("[]")
    code, _, err = run(*command, two_epochs)
    assert code == 2
    assert "every checkpoint is damaged (step-00000006, step-00000003)" in err
    assert len(err.splitlines()) == 1


CONFIG = {
    "network": "lenet_bn",
    "recipe": "tuned",
    "schedule": "constant",
    "learning_rate": 1,
    "batch_size": 64,
    "side": 28,
    "epochs": 3,
    "seed": 0,
    "data": "bundled",
    "limit_train": 192,
    "device": "cpu",
    "backend": "graph",
}


@pytest.mark.parametrize(
    ("edited", "message"),
    [
        ({"side": "28"}, 'side is "28"; expected an integer'),
        ({"seed": 0.5}, "seed is 0.5; expected an integer"),
        ({"seed": True}, "seed is true; expected an integer"),
        ({"network": ["a"]}, 'network is ["a"]; expected a string'),
        ({"network": "lenet"}, "network is 'lenet'; expected one of alexnet"),
        ({"limit_train": 1e3}, "limit_train is 1000.0; expected an integer or null"),
        ({"learning_rate": None}, "learning_rate is null; expected a number"),
        ({"epochs": 0}, "epochs is 0; expected a whole number above 0"),
        ({"backend": "fast"}, 'backend is "fast"; expected one of native'),
        ({"precision": "half"}, "precision is 'half'; expected one of float32"),
        ("{}", "network is missing; expected a string"),
        ("[1]", "holds [1]; expected an object of JSON"),
        ("{", "isn't JSON"),
        ("\udcff", "isn't text"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", [("eval",), RESUME], ids=lambda command: command[0])
def test_a_damaged_config_is_one_line_with_the_field(run, command, edited, message):
    text = edited if isinstance(edited, str) else json.dumps(CONFIG | edited)
    Path("first").mkdir()
    Path("first/config.json").write_text(text, errors="surrogateescape")
    code, _, err = run(*command, "first")
    assert code == 2
    assert f"first/config.json: {message}" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("environment.json", "null", "holds null; expected an object of JSON"),
        ("environment.json", "{", "isn't JSON"),
        ("metrics.jsonl", "{}", "line 1: epoch is missing; expected an integer"),
        ("metrics.jsonl", '{"epoch": "1"}', "line 1: step is missing"),
        ("metrics.jsonl", "\udcff", "isn't text"),
    ],
)
def test_a_damaged_record_stops_a_resume_with_one_line(run, file, content, message, monkeypatch):
    Path("first").mkdir()
    Path("first/config.json").write_text(json.dumps(CONFIG))
    Path("first", file).write_text(content, errors="surrogateescape")
    ready = preparation.begin(CONFIG | {"learning_rate": 1.0}, Path("other"))
    monkeypatch.setattr(preparation, "restore", lambda *arguments, **options: ready)
    code, _, err = run(*RESUME, "first")
    assert code == 2
    assert message in err
    assert f"first/{file}: " in err
    assert len(err.splitlines()) == 1


@pytest.fixture
def few_networks(monkeypatch):
    """The index has three networks."""
    index = {name: models.INDEX[name] for name in ("alexnet", "vgg11", "lenet_bn")}
    monkeypatch.setattr(models, "INDEX", index)


SLOW = [name for name in models.INDEX if name not in ("alexnet", "vgg11", "lenet_bn")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in models.INDEX]
)
def test_the_numbers_of_parameters_that_are_listed_are_right(name):
    side = models.INDEX[name].recipes["tuned"].side
    found = network_commands.count_parameters(name, side)
    assert network_commands.PARAMETERS[name] == found


@pytest.mark.usefixtures("few_networks")
def test_summary_and_list(run):
    code, out, _ = run("summary", "lenet_bn", "--json", "--depth", 1)
    assert code == 0
    total = json.loads(out.splitlines()[-1])
    assert total["parameters"] == 44_878
    code, out, _ = run("list", "--json")
    listed = [json.loads(line) for line in out.splitlines()]
    assert {row["network"] for row in listed} == {*models.INDEX}
    code, out, _ = run("list")
    shown = [line.split()[1] for line in out.splitlines() if line.startswith("│")]
    assert shown == [*models.INDEX]  # a line each


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("list",), {"46,764,746", "128,806,154", "adam", "0.0003", "reference", "256"}),
        (("summary", "vgg11", "--depth", 1), {"block1", "128,806,154", "7,547,232,256"}),
    ],
)
@pytest.mark.usefixtures("few_networks")
def test_a_narrow_terminal_cuts_no_table(run, monkeypatch, command, words):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = run(*command)
    assert "…" not in out
    assert not words - {*out.replace("│", " ").split()}


def test_check_names_the_layer_where_the_first_value_is_not_finite(run):
    arguments = ("--epochs", 3, "--lr", 1e30, "--schedule", "constant", "--run", "wild", "--check")
    code, _, err = run("train", *arguments, *SMALL)
    assert code == 1
    assert re.match(r"funcnets: (bn|conv|fc)\d: .* of shape .* values that aren't finite", err)
    assert "nothing is saved" in err
    assert err.count("\n") == 1


def test_check_changes_nothing_else(run):
    assert run("train", "--epochs", 1, "--run", "plain", *SMALL)[0] == 0
    assert run("train", "--epochs", 1, "--run", "checked", "--check", *SMALL)[0] == 0
    plain, checked = (
        {name: value for name, value in untimed(run)[0].items() if value is not None}
        for run in ("plain", "checked")
    )
    assert plain == pytest.approx(checked, rel=1e-4)


@pytest.mark.parametrize("field", [*option_kinds.CHOICES])
def test_the_choices_in_help_are_those_of_configurations(field):
    known = {
        **config.KNOWN_VALUES,
        "recipe": models.INDEX["lenet_bn"].recipes,
        "precision": (*POLICIES, "auto"),
    }
    assert {*option_kinds.CHOICES[field]} == {*known[field]}
    assert {*option_kinds.DATASETS} == {*data.NAMED}
    assert tuple(models.INDEX) == option_kinds.NETWORKS


def test_an_option_is_known_by_its_flag():
    assert options.FLAGS["learning_rate"] == "--lr"
    assert options.FLAGS["network"] == "NET"
    assert options.FLAGS["sync_batch_norm"] == "--no-sync-bn"
    given = {"side": None, "sync_batch_norm": True, "seed": 0, "json": True}
    assert options.fields(options.TRAIN_FIELDS, given) == {"sync_batch_norm": False, "seed": 0}


@pytest.mark.parametrize("command", [[], ["train"], ["sweep"], ["eval"], ["bench"]])
def test_help_fits_80_columns_without_a_word_cut(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    code, out, _ = run(*command, "-h")
    assert code == 0
    assert out == run(*command, "--help")[1]
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


@pytest.mark.parametrize(("command", "extra"), [("plot", "plots"), ("export", "export")])
def test_help_names_the_extra_that_a_command_needs(run, command, extra):
    assert f"pip install 'funcnets[{extra}]'" in " ".join(run(command, "--help")[1].split())


def test_the_version_is_told(run):
    assert run("--version") == (0, f"funcnets {funcnets.__version__}\n", "")


def test_a_rate_has_a_long_name_too(run):
    code, _, _ = run("train", "--epochs", 1, "--learning-rate", 0.5, "--run", "first", *SMALL)
    assert code == 0
    assert json.loads(Path("first/config.json").read_text())["learning_rate"] == 0.5
