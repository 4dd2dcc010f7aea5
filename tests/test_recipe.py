"""The recipe of a training by flags or a file: optimizer, augmentation, averages and their like."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from run_files import SMALL, final_tensors, rows, untimed
from safetensors.torch import load_file

from funcnets import augment, data, losses, metrics, models, optim, random, runs, train, tree
from funcnets.cli import preparation
from funcnets.cli.recipe_options import RECIPE_FIELDS
from funcnets.core import sequential
from funcnets.layers import batch_norm, flatten, linear
from funcnets.parallel import Axis, shard_augmentation
from funcnets.runs import Config, SweepConfig, recipe
from funcnets.runs.config import OF_ONE_NETWORK

pytestmark = pytest.mark.usefixtures("few_test_images")
by_vmap = pytest.mark.usefixtures("known_strategy")
NET = sequential(flatten=flatten(), fc1=linear(5), bn=batch_norm(), fc2=linear(3))
EVERYTHING = (
    *("--momentum", 0.9, "--nesterov", "--weight-decay", 5e-4, "--clip-norm", 1.0),
    *("--label-smoothing", 0.1, "--warmup", 1, "--schedule", "cosine", "--ema", 0.9),
    *("--augment", "crop,flip,cutout,mixup", "--accumulate", 32, "--lr", 0.1),
)
OPTIMIZERS = {
    "sgd": ({}, torch.optim.SGD, {}),
    "nesterov": ({"momentum": 0.9, "nesterov": True}, torch.optim.SGD, None),
    "adam": ({"optimizer": "adam"}, torch.optim.Adam, {}),
    "adamw": ({"optimizer": "adamw"}, torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_an_optimizer_is_that_of_torch_with_decay_of_matrices_alone(name, clip_norm):
    fields, kind, more = OPTIMIZERS[name]
    more = fields if more is None else more
    config = Config.from_recipe(**fields, weight_decay=0.1, clip_norm=clip_norm)
    optimizer = recipe.make_optimizer(replace(config, schedule="constant"), 10, 0.01)
    params, _ = NET.init(random.key(0), torch.zeros(2, 1, 2, 2, dtype=torch.float64))
    named = {k: v.clone().requires_grad_() for k, v in tree.flatten_named(params).items()}
    groups = [
        {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    theirs, opt_state = kind(groups, lr=0.01, **more), optimizer.init(params)
    for seed in range(3):
        key = random.key(seed)
        grads = tree.map(lambda p, key=key: random.normal(key, p.shape, dtype=p.dtype), params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optim.apply_updates(params, updates)
        for path, grad in tree.flatten_named(grads).items():
            named[path].grad = grad.clone()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(named.values(), clip_norm)
        theirs.step()
    for path, value in tree.flatten_named(params).items():
        torch.testing.assert_close(value, named[path].detach())


def rates(steps, **fields):
    """The learning rate at each step, read off updates."""
    config = Config.from_recipe(epochs=10, **fields)
    optimizer = recipe.make_optimizer(config, steps, 1.0)
    params = {"bias": torch.zeros((), dtype=torch.float64)}
    opt_state, found = optimizer.init(params), []
    for _ in range(steps):
        updates, opt_state = optimizer.update(tree.map(torch.ones_like, params), opt_state, params)
        found.append(-float(updates["bias"]))
    return found


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warmup_comes_before_the_schedule(schedule):
    warmed = rates(20, schedule=schedule, warmup=2)
    assert warmed[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    course = runs.SCHEDULES[schedule](1.0, 16)
    expected = [
        float(course(torch.tensor(step))) if callable(course) else 1.0 for step in range(16)
    ]
    assert warmed[4:] == pytest.approx(expected)


def batch(count=6):
    images = torch.arange(count * 64).remainder(251).to(torch.uint8).reshape(count, 1, 8, 8)
    return images, torch.arange(count) % 3


def test_augmentation_is_inside_the_step_and_keyed_by_it():
    images, labels = batch()
    prepare, augmentation = partial(data.prepare, side=8), augment.by_name("crop,flip,mixup", 3, 8)
    optimizer = optim.sgd(0.1)
    train_state = train.create(NET, optimizer, random.key(3), prepare(images))
    step = train.make_train_step(NET, optimizer, prepare=prepare, augment=augmentation)
    plain = train.make_train_step(NET, optimizer)
    for _ in range(2):
        key = random.fold_in(train_state.key, train.steps.AUGMENTATION)
        key = random.fold_in(key, train_state.step)
        expected = plain(train_state, augmentation(key, prepare(images), labels))
        train_state, measured = step(train_state, (images, labels))
        assert tree.flatten_named(measured).keys() == {"loss", "correct"}
        assert float(measured["loss"]) == float(expected[1]["loss"])
    other = step(train_state, (images, labels))[1]["loss"]
    assert float(other) != float(
        step(train_state._replace(step=train_state.step + 1), batch())[1]["loss"]
    )


@pytest.mark.parametrize("names", ["crop", "flip", "cutout", "crop,flip,cutout"])
@pytest.mark.parametrize("count", [7, 8, 1])
def test_shards_are_augmented_as_the_whole_batch(names, count):
    images, labels = batch(count)
    whole, augmentation = data.prepare(images, 8), augment.by_name(names, 3, 8)
    expected, _ = augmentation(random.key(5), whole, labels)
    for rank in range(3):
        axis = Axis(size=3, rank=rank, group="none")
        shard = shard_augmentation(axis, augmentation)
        found, targets = shard(random.key(5), axis.shard(whole), axis.shard(labels))
        assert torch.equal(found, axis.shard(expected))
        assert torch.equal(targets, axis.shard(labels))


def test_a_step_has_all_that_the_configuration_says():
    config = Config.from_recipe(
        label_smoothing=0.2,
        ema=0.5,
        side=8,
        accumulate=2,
        augment="flip",
        class_names=("a", "b", "c"),
        device="cpu",
    )
    net, optimizer = NET, recipe.make_optimizer(config, 10, 0.1)
    train_state = train.create(net, optimizer, random.key(0), torch.zeros(1, 1, 8, 8))
    images, labels = batch()
    average = recipe.make_average(config)
    with_average = runs.restore.with_average(train_state, average)
    after, measured = runs.make_step(config, net, optimizer)(with_average, (images, labels))
    key = random.fold_in(random.fold_in(train_state.key, train.steps.AUGMENTATION), 0)
    x, _ = augment.by_name("flip", 3, 8)(key, data.prepare(images, 8), labels)
    logits, _ = net.apply(train_state.params, train_state.state, x, train=True)
    expected = losses.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(measured["loss"], expected)
    params, _ = runs.evaluated(after)
    torch.testing.assert_close(params, after.params)  # the first average is of one value
    assert params["fc1"]["weight"].dtype == torch.float32


def test_everything_at_once_is_resumed_to_the_same_bits(run):
    code, out, err = run("train", "--epochs", 2, "--run", "whole", *EVERYTHING, *SMALL)
    assert (code, err) == (0, "")
    assert "momentum 0.9, nesterov, weight decay 0.0005, clip norm 1.0" in out
    assert "biases and parameters of batch norm have no weight decay" in out
    shutil.copytree("whole", "parts")
    shutil.rmtree("parts/checkpoints/step-00000006")
    kept = Path("parts/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("parts/metrics.jsonl").write_text(kept[0])
    assert run("train", "--run", "parts", "--resume")[::2] == (0, "")
    assert untimed("parts") == untimed("whole")
    assert final_tensors("parts") == final_tensors("whole")


def test_the_average_is_what_is_evaluated_and_loaded(run):
    assert run("train", "--epochs", 2, "--run", "first", "--ema", 0.5, *SMALL)[0] == 0
    trained = runs.load("first")
    tensors = load_file(trained.checkpoint / "tensors.safetensors")
    average = next(v for k, v in tensors.items() if "average" in k and k.endswith("conv1.weight"))
    assert torch.equal(trained.params["conv1"]["weight"], average)
    dataset = data.load("bundled")
    x = trained.prepare(dataset.test_images[:100])
    accuracy = metrics.accuracy(
        trained.net.apply(trained.params, trained.state, x)[0], dataset.test_labels[:100]
    )
    assert float(accuracy) == pytest.approx(rows("first")[-1]["test_accuracy"])


def test_dropout_of_a_network_that_has_one():
    config = Config.from_recipe("nin", dropout=0.0)
    assert not runs.build_network(config).stochastic
    assert runs.build_network(replace(config, dropout=0.2)).stochastic


@by_vmap
def test_a_sweep_takes_the_recipe(run):
    flags = [each for each in EVERYTHING if each not in ("--ema", 0.9, "--accumulate", 32)]
    flags[flags.index("--momentum")] = "--momentum=0.9"
    options = ("--seeds", 2, "--epochs", 2, "--run", "first", *SMALL)
    code, out, err = run("sweep", *flags, *options)
    assert (code, err) == (0, "")
    assert "momentum 0.9, nesterov" in out
    assert len({row["train_loss"] for row in rows("first")[:2]}) == 2


CHANGED = {
    "optimizer": "adam",
    "momentum": 0.5,
    "nesterov": True,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
    "label_smoothing": 0.1,
    "warmup": 0.5,
    "dropout": 0.1,
    "augment": "flip",
    "ema": 0.9,
    "accumulate": 8,
    "freeze": "block1.*",
    "normalize": True,
}


def test_a_compiled_step_is_saved_under_another_name_for_another_recipe():
    config = Config.from_recipe("nin", "reference", momentum=0.9)
    dataset = SimpleNamespace(train_labels=[0] * 9)
    directory = runs.RunDirectory("runs/mine")
    setup = preparation.Setup(config, directory, dataset, dataset, None, None, None)
    assert {*RECIPE_FIELDS, "normalize"} == {*CHANGED}
    names = {setup.step_name}
    for field, value in CHANGED.items():
        momentum = {"momentum": 0.0} if field == "optimizer" else {}
        facts = {"mean": (0.1,), "deviation": (0.2,)} if field == "normalize" else {}
        config = replace(setup.config, **{**momentum, **facts, field: value})
        names.add(replace(setup, config=config).step_name)
    assert len(names) == len(CHANGED) + 1


RECIPES = [(name, recipe) for name, entry in models.INDEX.items() for recipe in entry.recipes]


@pytest.mark.parametrize(("network", "recipe"), RECIPES)
def test_another_kind_of_optimizer_has_a_rate_of_its_own(network, recipe):
    own = models.get(network, recipe)[1]
    published = models.get(network, "reference")[1]
    configure = partial(Config.from_recipe, network, recipe, epochs=1)
    assert configure().learning_rate == own.learning_rate
    assert configure().optimizer == own.optimizer
    for optimizer, rate in (("sgd", published.learning_rate), ("adam", 1e-3), ("adamw", 1e-3)):
        is_same = (optimizer == "sgd") == (own.optimizer == "sgd")
        expected = own.learning_rate if is_same else rate
        assert configure(optimizer=optimizer).learning_rate == expected
        sweep = SweepConfig.from_recipe(network, recipe, optimizer=optimizer, seeds=2, epochs=1)
        assert sweep.rates == (expected,)
        assert configure(optimizer=optimizer, learning_rate=0.3).learning_rate == 0.3


def test_flags_win_over_a_file_which_wins_over_defaults(run):
    Path("mine.toml").write_text(
        'network = "lenet_bn"\nmomentum = 0.5\nepochs = 1\nbatch_size = 16\n'
    )
    code, _, err = run(
        "train", "--config", "mine.toml", "--momentum", 0.9, "--run", "first", *SMALL
    )
    assert (code, err) == (0, "")
    config = json.loads(Path("first/config.json").read_text())
    fields = ("momentum", "epochs", "batch_size", "schedule")
    assert [config[field] for field in fields] == [0.9, 1, 64, "linear"]
    code, _, err = run("train", "--config", "first/config.json", "--run", "again")
    assert (code, err) == (0, "")
    assert json.loads(Path("again/config.json").read_text()) == config
    assert final_tensors("again") == final_tensors("first")


@by_vmap
def test_the_configuration_of_a_sweep_is_a_file_too(run):
    options = ("--seeds", 2, "--epochs", 1, "--lr", "0.1,0.2", *SMALL)
    run("sweep", "--run", "first", *options)
    assert run("sweep", "--config", "first/config.json", "--run", "again")[::2] == (0, "")
    assert final_tensors("again") == final_tensors("first")
    Path("rate.toml").write_text("learning_rate = 0.3\nseed = 4")
    run("sweep", "--config", "rate.toml", "--seeds", 1, "--epochs", 1, "--run", "rate", *SMALL)
    assert json.loads(Path("rate/config.json").read_text())["rates"] == [0.3]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "momentun = 0.9", "no field is called 'momentun': did you mean 'momentum'?"),
        ("a.toml", "xyz = 1", "no field is called 'xyz': known are network, recipe"),
        ("a.toml", 'momentum = "much"', 'momentum is "much"; expected a number'),
        ("a.toml", "momentum = 2.0", "--momentum is 2.0; expected a number from 0"),
        ("a.toml", "epochs", "isn't TOML, such as epochs = 20"),
        ("a.json", "{", "isn't JSON"),
        ("a.json", "[]", "holds no object of JSON"),
        ("a.toml", None, "can't be read (No such file"),
    ],
)
def test_a_bad_file_is_one_line(run, name, text, message):
    if text is not None:
        Path(name).write_text(text)
    code, _, err = run("train", "--config", name)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "adm"], "--optimizer is 'adm'; expected one of sgd, adam, adamw"),
        (["--momentum", "1"], "--momentum is 1.0; expected a number from 0 to below 1"),
        (["--momentum", "0.9", "--optimizer", "adam"], "--momentum is 0.9; the optimizer is adam"),
        (["--nesterov"], "--nesterov is on; it needs a momentum"),
        (["--weight-decay", "-1"], "--weight-decay is -1.0; expected a finite number, 0 or more"),
        (["--clip-norm", "0"], "--clip-norm is 0.0; expected a finite number above 0"),
        (["--label-smoothing", "1"], "--label-smoothing is 1.0"),
        (["--warmup", "10"], "--warmup is 10 epochs; expected fewer than the 10"),
        (["--warmup", "nan"], "--warmup is nan"),
        (["--ema", "1"], "--ema is 1.0"),
        (["--dropout", "0.1"], "--dropout is 0.1; lenet_bn has no dropout"),
        (["--augment", "crop,flop"], "--augment is 'crop,flop': 'flop' is no augmentation"),
        (["--accumulate", "0"], "--accumulate is 0; expected a whole number above 0"),
        (["--steps-per-call", "0"], "--steps-per-call is 0; expected a whole number above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_recipe_is_one_line(run, arguments, message):
    code, _, err = run("train", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


def test_steps_of_one_call_are_those_of_several(run):
    """To the same bits where nothing is compiled, also after a resume within what was a call."""
    small = ("train", *SMALL, "--batch-size", 24, "--epochs", 2, "--check", "--ema", 0.9)
    code, _, err = run(*small, "--run-dir", "one")
    assert not code, err
    code, _, err = run(*small, "--run-dir", "three", "--steps-per-call", 3, "--save-every", 2)
    assert not code, err
    assert final_tensors("three") == final_tensors("one")
    assert untimed("three") == untimed("one")
    saved = sorted(path.name for path in Path("three/checkpoints").iterdir())
    assert "step-00000014" in saved, saved  # after 3, 6 and 8 steps of each epoch
    shutil.rmtree("three/checkpoints/step-00000016")
    code, _, err = run("train", "--run-dir", "three", "--resume", "--steps-per-call", 2)
    assert code == 2
    assert "--steps-per-call is 2, but the run was started with 3" in err
    assert run("train", "--run-dir", "three", "--resume", "--check")[::2] == (0, "")
    assert final_tensors("three") == final_tensors("one")


@pytest.mark.parametrize("field", OF_ONE_NETWORK)
def test_a_sweep_refuses_what_it_cannot_have(run, field):
    values = {"accumulate": 1, "recalibrate": "true", "init_from": '"first"', "steps_per_call": 2}
    Path("a.toml").write_text(f"{field} = {values.get(field, 0.5)}")
    code, _, err = run("sweep", "--config", "a.toml")
    assert code == 2
    assert "a sweep can't have it" in err
