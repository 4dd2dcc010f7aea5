"""Run directories as a library: configurations, and the network that a run has trained."""

import os
import pickle
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from funcnets import random, runs, train, tree
from funcnets.core import sequential
from funcnets.layers import batch_norm, conv2d, flatten, linear
from funcnets.models import INDEX, Entry, Recipe
from funcnets.runs import Config, ConfigError, RunDirectory, RunError, SweepConfig

NET = sequential(conv=conv2d(2, 3, stride=2), bn=batch_norm(), flatten=flatten(), fc=linear(3))
ENTRY = Entry(lambda: NET, {"tuned": Recipe(0.5, 4, side=6, schedule="linear")})
BATCH = torch.rand(4, 1, 6, 6), torch.arange(4) % 3


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(INDEX, "tiny", ENTRY)


def saved(directory, config, steps=1):
    """A run directory with a checkpoint of each of `steps` steps, and the last train state."""
    run = RunDirectory.create(config, directory)
    net, optimizer = runs.build(config, steps)
    train_state = runs.create_train_state(config, net, optimizer)
    step = train.make_train_step(net, optimizer)
    for done in range(1, steps + 1):
        if isinstance(config, SweepConfig):
            train_state = torch.func.vmap(lambda state: step(state, BATCH)[0])(train_state)
        else:
            train_state, _ = step(train_state, BATCH)
        run.save(done, train_state, {"epoch": 0})
    return run, train_state


@pytest.mark.parametrize("schedule", runs.SCHEDULES)
def test_a_run_is_loaded(tmp_path, schedule):
    config = Config.from_recipe("tiny", schedule=schedule, device="cpu", seed=3)
    run, train_state = saved(tmp_path / "run", config, steps=2)
    loaded = runs.load(str(run.path))
    assert (loaded.config, loaded.step) == (config, 2)
    assert loaded.checkpoint == run.path / "checkpoints/step-00000002"
    torch.testing.assert_close(loaded.params, train_state.params, rtol=0, atol=0)
    torch.testing.assert_close(loaded.state, train_state.state, rtol=0, atol=0)
    expected, _ = NET.apply(train_state.params, train_state.state, BATCH[0])
    actual, _ = loaded.net.apply(loaded.params, loaded.state, BATCH[0])
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_sweep_is_loaded_with_an_axis_of_members(tmp_path):
    config = SweepConfig.from_recipe("tiny", device="cpu", seeds=2, rates=[0.1, 0.2, 0.3])
    run, train_state = saved(tmp_path / "sweep", config)
    loaded = runs.load(run.path)
    assert loaded.config == config
    assert loaded.params["fc"]["weight"].shape[0] == 6
    torch.testing.assert_close(loaded.params, train_state.params, rtol=0, atol=0)
    assert train_state.opt_state.rate.tolist() == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]
    alone = train.create(NET, runs.build(config, 1)[1], random.key(1), BATCH[0])
    first = runs.create_train_state(config, *runs.build(config, 1))
    torch.testing.assert_close(tree.map(lambda leaf: leaf[5], first.params), alone.params)


def test_a_newer_damaged_checkpoint_is_warned_of(tmp_path):
    run, _ = saved(tmp_path / "run", Config.from_recipe("tiny", device="cpu"), steps=2)
    os.truncate(run.checkpoints / "step-00000002/tensors.safetensors", 9)
    with pytest.warns(UserWarning, match="step-00000002 can't be used.*using step-00000001"):
        assert runs.load(run.path).step == 1


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(RunError, match="nowhere: no run is here"):
        runs.load(tmp_path / "nowhere")
    run = RunDirectory.create(Config.from_recipe("tiny", device="cpu"), tmp_path / "run")
    with pytest.raises(RunError, match="run: it has no checkpoint yet"):
        runs.load(run.path)


def test_the_newest_two_checkpoints_are_kept(tmp_path):
    run, _ = saved(tmp_path / "run", Config.from_recipe("tiny", device="cpu"), steps=4)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "step-00000003",
        "step-00000004",
    ]


def test_a_directory_holds_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config.from_recipe("tiny", device="cpu", seed=7)
    paths = [str(RunDirectory.create(config).path) for _ in range(3)]
    assert paths == [f"runs/tiny-tuned-seed7{end}" for end in ("", "-2", "-3")]
    assert str(RunDirectory.newest(config).path) == "runs/tiny-tuned-seed7-3"
    with pytest.raises(RunError, match="holds a run already"):
        RunDirectory.create(config, "runs/tiny-tuned-seed7")
    with pytest.raises(RunError, match="runs: holds other files"):
        RunDirectory.create(config, "runs")


def test_a_config_is_read_as_it_was_written(tmp_path):
    for config in (
        Config.from_recipe("tiny", limit_train=5, learning_rate=1),
        SweepConfig.from_recipe("tiny", seeds=3, rates=(0.1, 1)),
    ):
        run = RunDirectory.create(config, tmp_path / type(config).__name__)
        assert run.read_config() == config
        assert type(run.read_config()) is type(config)


def test_a_file_from_before_a_field_was_added_is_read(tmp_path):
    config = Config.from_recipe("tiny", device="cpu", precision="float32")
    run = RunDirectory.create(config, tmp_path / "run")
    path = run.path / "config.json"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "precision" not in line).replace(",\n}", "}"))
    assert "precision" not in path.read_text()
    assert run.read_config() == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected a whole number above 0"),
        ({"epochs": 1.5}, "epochs is 1.5; expected a whole number above 0"),
        ({"batch_size": None}, "batch_size is None; expected a whole number above 0"),
        ({"limit_train": 0}, "limit_train is 0; expected a whole number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected a finite number above 0"),
        ({"learning_rate": "1"}, "learning_rate is '1'; expected a finite number above 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808; expected an integer of 64 bits"),
        ({"schedule": "step"}, "schedule is 'step'; expected one of constant, linear, cosine, on"),
        ({"precision": "half"}, "precision is 'half'; expected one of float32, tf32, bfloat16, a"),
    ],
    ids=str,
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(values, message):
    config = Config.from_recipe("tiny")
    for make in (lambda: Config.from_recipe("tiny", **values), lambda: replace(config, **values)):
        with pytest.raises(ConfigError) as error:
            make()
        assert str(error.value).startswith(message)
        assert error.value.field == next(iter(values))
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "seeds is 0; expected a whole number above 0"),
        ({"rates": (0.1, -1)}, "rates is -1; expected a finite number above 0"),
        ({"rates": (0.1, 0.1)}, "rates is 0.1, 0.1; expected different learning rates"),
    ],
    ids=str,
)
def test_a_bad_value_of_a_sweep_is_refused(values, message):
    with pytest.raises(ConfigError) as error:
        SweepConfig.from_recipe("tiny", **{"seeds": 1, **values})
    assert str(error.value) == message


def test_rates_in_a_file_are_checked_one_by_one(tmp_path):
    config = SweepConfig.from_recipe("tiny", device="cpu", seeds=1, rates=(0.1,))
    run = RunDirectory.create(config, tmp_path / "sweep")
    path = run.path / "config.json"
    path.write_text(path.read_text().replace("  0.1", '  "0.1"'))
    with pytest.raises(RunError, match=r'rates is \["0.1"\]; expected a list, each a number'):
        run.read_config()


def test_a_recipe_gives_what_is_left_out():
    config = Config.from_recipe("tiny", epochs=3)
    recipe = ENTRY.recipes["tuned"]
    assert asdict(config).items() >= (asdict(recipe) | {"epochs": 3, "seed": 0}).items()
    sweep = SweepConfig.from_recipe("tiny", seeds=2)
    assert (sweep.rates, sweep.learning_rate) == ((0.5,), 0.5)
    assert sweep.members == [(0.5, 0), (0.5, 1)]
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        Config.from_recipe("tini")
    with pytest.raises(TypeError, match="epoch"):
        Config.from_recipe("tiny", epoch=3)


def test_the_best_recipe_is_more_than_a_rate():
    config = Config.from_recipe("lenet_bn", "best", device="cpu")
    recipe = INDEX["lenet_bn"].recipes["best"]
    assert asdict(config).items() >= asdict(recipe).items()
    assert (config.nesterov, config.schedule, config.augment) == (True, "one-cycle", "flip")
    with_adam = Config.from_recipe("lenet_bn", "best", optimizer="adam")
    assert (with_adam.momentum, with_adam.nesterov, with_adam.learning_rate) == (0, False, 0.001)
    assert not Config.from_recipe("lenet_bn", "best", momentum=0.0).nesterov
    assert SweepConfig.from_recipe("lenet_bn", "best", seeds=2).ema is None
    with pytest.raises(ValueError, match="no recipe is called 'best': known are tuned, reference"):
        Config.from_recipe("nin", "best")


def test_a_moved_run_is_loaded(tmp_path):
    run, _ = saved(tmp_path / "run", Config.from_recipe("tiny", device="cpu"))
    moved = shutil.move(run.path, tmp_path / "moved")
    assert runs.load(moved).checkpoint.is_relative_to(moved)
