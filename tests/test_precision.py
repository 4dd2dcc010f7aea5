"""Precision: what stays float32, how near bfloat16 is, what `auto` chooses, what a run keeps."""

import json
from itertools import count
from pathlib import Path

import pytest
import torch

import funcnets
from funcnets import core, models, optim, precision, random, timing, train, tree
from funcnets.cli.fastest_precision import fastest_precision
from funcnets.precision import POLICIES, Policy
from funcnets.testing import random_like

X = random.uniform(random.key(1), (32, 1, 28, 28))
BATCH = (X, torch.arange(32) % 10)
OPTIMIZER = optim.sgd(0.1, momentum=0.9)
NAMES = precision.available("cpu")


def start(name="lenet_bn"):
    net, _ = models.get(name)
    return net, train.create(net, OPTIMIZER, random.key(0), X)


def stepped(policy, steps=1, transform=lambda step: step):
    net, train_state = start()
    step = transform(train.make_train_step(net, OPTIMIZER, policy=policy))
    for _ in range(steps):
        train_state, measured = step(train_state, BATCH)
    return train_state, measured


def dtypes(values):
    return {leaf.dtype for leaf in tree.leaves(values) if leaf.is_floating_point()}


def distance(values, others):
    """How far apart two trees are as vectors, as a part of the second."""
    pairs = zip(tree.leaves(values), tree.leaves(others), strict=True)
    return optim.global_norm([a - b for a, b in pairs]) / optim.global_norm(tree.leaves(others))


def test_master_weights_statistics_optimizer_and_loss_stay_float32():
    train_state, measured = stepped(POLICIES["bfloat16"], steps=2)
    assert dtypes(train_state) == {torch.float32}
    assert measured["loss"].dtype == torch.float32


def test_gradients_are_float32_and_finite_and_the_forward_is_in_bfloat16():
    net, train_state = start()
    seen = []

    def noted(name, layer):
        def around(inner):
            def apply(params, state, x, **options):
                seen.append((x.dtype, dtypes(params) or {x.dtype}, dtypes(state)))
                return inner(params, state, x, **options)

            return apply

        return core.wrap(layer, around) if name and not layer.parts else layer

    net = precision.cast(core.rewrite(net, noted), POLICIES["bfloat16"])

    def loss(params):
        logits = net.apply(params, train_state.state, X, train=True)[0]
        assert logits.dtype == torch.float32
        return funcnets.losses.cross_entropy(logits, BATCH[1])

    gradients = torch.func.grad(loss)(train_state.params)
    assert dtypes(gradients) == {torch.float32}
    assert all(leaf.isfinite().all() for leaf in tree.leaves(gradients))
    assert len(seen) == 16
    assert {(x, *leaves) for x, leaves, _ in seen} == {(torch.bfloat16, torch.bfloat16)}
    assert {dtype for *_, state in seen for dtype in state} == {torch.float32}


def test_a_bfloat16_step_is_a_float32_step_but_for_rounding():
    exact, in_float32 = stepped(POLICIES["float32"])
    near, in_bfloat16 = stepped(POLICIES["bfloat16"])
    # bfloat16 rounds by up to 2**-9, again at each of some ten layers.
    assert float(in_bfloat16["loss"]) == pytest.approx(float(in_float32["loss"]), rel=2**-7)
    before = start()[1].params
    update, exact_update = (tree.map(torch.sub, state.params, before) for state in (near, exact))
    assert 0 < distance(update, exact_update) < 2**-4
    assert distance(near.state, exact.state) < 2**-7


def test_float32_is_what_a_float32_network_does_without_a_policy():
    plain, cast = stepped(None), stepped(POLICIES["float32"])
    pairs = zip(tree.leaves(plain), tree.leaves(cast), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_same_numbers_again_and_traced():
    first = stepped(POLICIES["bfloat16"], 2)
    again = stepped(POLICIES["bfloat16"], 2)
    pairs = zip(tree.leaves(first), tree.leaves(again), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    traced, _ = stepped(
        POLICIES["bfloat16"], 2, lambda step: funcnets.jit(step, donate_argnums=0, backend="graph")
    )
    assert distance(traced.params, first[0].params) < 1e-2


def test_dropout_drops_the_same_in_every_precision():
    net = funcnets.sequential(dropout=funcnets.layers.dropout(0.5))
    masks = [
        precision.cast(net, policy).apply({}, {}, X, train=True, key=random.key(3))[0] == 0
        for policy in map(POLICIES.get, NAMES)
    ]
    assert torch.equal(*masks)


def test_init_gives_the_types_of_the_policy_with_the_same_names():
    net, train_state = start()
    policy = Policy(torch.float64, torch.float32, torch.float64)
    wide = precision.cast(net, policy)
    params, state = wide.init(random.key(0), X)
    assert dtypes(params) == {torch.float64}
    assert tree.names(params) == tree.names(train_state.params)
    assert wide.apply(params, state, X)[0].dtype == torch.float64
    assert wide.children.keys() == net.children.keys()


def test_evaluation_is_in_the_precision_of_its_policy():
    net, train_state = start()
    params = tree.map(
        lambda leaf, noise: leaf + noise / 8, train_state.params, random_like(train_state.params, 0)
    )
    exact, near = (
        train.make_eval_step(net, policy=policy)(params, train_state.state, BATCH)
        for policy in map(POLICIES.get, NAMES)
    )
    assert near["loss"].dtype == torch.float32
    assert near["loss"] != exact["loss"]
    assert float(near["loss"]) == pytest.approx(float(exact["loss"]), rel=2**-5)


class Clock:
    """A clock that only the steps move, each by its own number of seconds."""

    def __init__(self, **seconds):
        self.now, self.seconds, self.calls = 0.0, seconds, []

    def __call__(self):
        return self.now

    def step(self, name):
        def run():
            self.calls.append(name)
            self.now += next(self.seconds[name])

        return run


@pytest.mark.parametrize(("other", "chosen"), [(1.5, "bfloat16"), (2.5, "float32"), (2, "float32")])
def test_auto_chooses_by_the_median_time_in_turns(other, chosen):
    # The first call compiles, and one in the middle is disturbed: neither decides.
    usual = iter([0.0, 2.0, 2.0, 0.1, 2.0])
    clock = Clock(float32=usual, bfloat16=iter([90.0, other, other, 90.0, other]))
    steps = {name: clock.step(name) for name in NAMES}
    name, why = fastest_precision(steps, clock=clock)
    assert name == chosen
    assert why == (
        f"precision {chosen}, chosen by the median step: "
        f"float32 2000.0 ms, bfloat16 {1000 * other:.1f} ms"
    )
    rounds = [clock.calls[i : i + 2] for i in (4, 6, 8)]
    assert [sorted(each) for each in rounds] == [["bfloat16", "float32"]] * 3


def test_rounds_have_different_orders_the_same_each_time():
    called: list[str] = []
    steps = {name: (lambda name=name: called.append(name)) for name in "abc"}
    orders = []
    for _ in range(2):
        called.clear()
        timing.interleave(steps, 20)
        orders.append(["".join(called[i : i + 3]) for i in range(0, 60, 3)])
    assert orders[0] == orders[1]
    assert {"".join(sorted(order)) for order in orders[0]} == {"abc"}
    assert len(set(orders[0])) == 6


def test_turns_end_with_the_seconds_but_not_before_the_first_round():
    clock = Clock(a=count(1), b=count(1))
    steps = {name: clock.step(name) for name in "ab"}
    assert timing.interleave(steps, 9, seconds=0, clock=clock) == {"a": [1], "b": [1]}
    taken = timing.interleave(steps, 9, seconds=5, clock=clock)
    assert taken == {"a": [2, 3], "b": [2, 3]}
    with pytest.raises(ValueError, match="rounds is 0"):
        timing.interleave(steps, 0)


SMALL = ["--limit-train", "96", "--batch-size", "32", "--backend", "graph", "--data", "bundled"]


def recorded(name):
    return json.loads(Path(name, "config.json").read_text())["precision"]


def untimed(name):
    lines = Path(name, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "sec" not in k} for line in lines]


def test_a_resumed_run_keeps_its_precision_to_the_same_bits(run):
    options = ("--schedule", "constant", "--precision", "bfloat16", *SMALL)
    assert run("train", "--run", "whole", "--epochs", 2, *options)[0] == 0
    assert run("train", "--run", "parts", "--epochs", 1, *options)[0] == 0
    again = ("train", "--run", "parts", "--resume", "--epochs", 2)
    code, _, err = run(*again, "--precision", "float32")
    assert code == 2
    assert "--precision is float32, but the run was started with bfloat16" in err
    assert run(*again, "--precision", "auto")[0] == 0
    assert untimed("parts") == untimed("whole")
    assert recorded("parts") == "bfloat16"
    measured = json.loads(run("eval", "parts", "--json")[1])
    assert measured["test_loss"] == untimed("whole")[-1]["test_loss"]


def test_auto_says_what_it_chose_and_trains_as_if_it_had_been_told(run, monkeypatch):
    fastest = "bfloat16"  # not what is trained without a choice

    def medians(taken):
        return {name: 1.0 + (name != fastest) for name in taken}

    monkeypatch.setattr(timing, "medians", medians)
    run("train", "--run", "told", "--epochs", 1, "--precision", fastest, *SMALL)
    code, out, _ = run("train", "--run", "chosen", "--epochs", 1, "--precision", "auto", *SMALL)
    assert code == 0
    assert sum(f"precision {fastest}, chosen by" in line for line in out.splitlines()) == 1
    assert recorded("chosen") == fastest
    assert untimed("chosen") == untimed("told")


def test_a_run_from_before_there_was_a_choice_is_float32(run):
    run("train", "--run", "old", "--epochs", 1, *SMALL)
    path = Path("old/config.json")
    config = json.loads(path.read_text())
    assert config.pop("precision") == "float32"
    path.write_text(json.dumps(config))
    before = run("eval", "old")
    assert before[0] == 0
    path.write_text(json.dumps(config | {"precision": "bfloat16"}))
    code, _, err = run("eval", "old")
    assert (code, "precision" in err) == (2, True)  # another one than the checkpoint's


def test_an_unknown_precision_is_one_line(run):
    code, _, err = run("train", "--precision", "half", *SMALL)
    assert code == 2
    assert "--precision is 'half'; expected one of float32, tf32, bfloat16, auto" in err


def test_a_timed_step_is_waited_for():
    """As a GPU goes on to compute after it was told to."""
    waited = []

    class Loss:
        def __float__(self):
            waited.append(1)
            return 1.0

    fastest_precision({"float32": Loss, "bfloat16": Loss}, rounds=3)
    assert len(waited) == 2 * (2 + 3)
