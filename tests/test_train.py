"""The training step and the loop: what they count, keep, repeat and refuse."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import same

import funcnets
from funcnets import (
    data,
    layers,
    losses,
    metrics,
    optim,
    precision,
    random,
    train,
    transforms,
    tree,
)

NET = funcnets.sequential(
    conv=layers.conv2d(2, 3),
    bn=layers.batch_norm(),
    tanh=layers.tanh(),
    dropout=layers.dropout(0.25),
    flatten=layers.flatten(),
    fc=layers.linear(3),
)
IMAGES = random.normal(random.key(8), (23, 1, 5, 5), torch.float64)
LABELS = torch.arange(23) % 3


def start(rate=0.1, seed=0):
    optimizer = optim.sgd(rate, momentum=0.5)
    return train.make_train_step(NET, optimizer), train.create(
        NET, optimizer, random.key(seed), IMAGES
    )


def fit(step, train_state, batch_size=5, epochs=2, **options):
    batch = (IMAGES, LABELS)
    return train.fit(step, train_state, batch, batch_size=batch_size, epochs=epochs, **options)


def test_the_step_changes_nothing_that_it_is_given():
    step, train_state = start()
    before = tree.map(torch.clone, (train_state, IMAGES, LABELS))
    step(train_state, (IMAGES, LABELS))
    assert same(before, (train_state, IMAGES, LABELS))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_norm_of_all_gradients_is_measured_where_asked(compiled):
    clipped = optim.chain(optim.clip_by_global_norm(1e-3), optim.sgd(0.5, momentum=0.5))
    step = train.make_train_step(NET, clipped, gradient_norm=True)
    step = funcnets.jit(step, backend="graph") if compiled else step
    train_state = train.create(NET, optim.sgd(1.0), random.key(0), IMAGES)
    after, measured = train.make_train_step(NET, optim.sgd(1.0))(train_state, (IMAGES, LABELS))
    assert "gradient_norm" not in measured
    moved = tree.map(torch.sub, train_state.params, after.params)  # the gradients, at rate 1
    norm = torch.cat([leaf.flatten() for leaf in tree.leaves(moved)]).norm()
    train_state = train.create(NET, clipped, random.key(0), IMAGES)
    _, measured = step(train_state, (IMAGES, LABELS))
    torch.testing.assert_close(measured["gradient_norm"], norm, rtol=1e-6, atol=0)


def test_the_same_key_gives_the_same_numbers_and_each_step_its_own_mask():
    step, train_state = start()
    first, again = (step(train_state, (IMAGES, LABELS)) for _ in range(2))
    assert same(first, again)
    later = step(train_state._replace(step=train_state.step + 1), (IMAGES, LABELS))
    assert later[1]["loss"] != first[1]["loss"]


@given(batch_size=st.integers(2, 23))
@settings(max_examples=10)
def test_every_image_is_seen_once_an_epoch(batch_size):
    if len(LABELS) % batch_size == 1:
        batch_size += 1
    seen: list[int] = []

    def step(train_state, batch):
        seen.extend(batch[0].long().tolist())
        return train_state._replace(step=train_state.step + 1), {
            "loss": torch.zeros(()),
            "correct": torch.zeros(()),
        }

    train_state = start()[1]
    numbers = (torch.arange(23.0), LABELS)
    done = list(train.fit(step, train_state, numbers, batch_size=batch_size, epochs=2))
    assert sorted(seen[:23]) == sorted(seen[23:]) == list(range(23))
    assert seen[:23] != seen[23:]
    assert [progress.batches for progress in done] == [-(-23 // batch_size)] * len(done)
    assert len(done) == 2 * done[0].batches


def test_averages_are_over_the_epoch_and_count_the_short_batch_by_its_size():
    step, train_state = start()
    measured = []

    def noted(train_state, batch):
        result = step(train_state, batch)
        measured.append((result[1], len(batch[1])))
        return result

    progress = [*fit(noted, train_state, epochs=1)][-1]
    assert [count for _, count in measured] == [5, 5, 5, 5, 3]
    loss = sum(float(m["loss"]) * count for m, count in measured) / 23
    assert progress.running.loss == pytest.approx(loss, rel=1e-12)
    assert progress.running.correct == sum(int(m["correct"]) for m, _ in measured)


def test_a_state_that_is_donated_trains_to_the_same_bits():
    step, train_state = start()
    eager = [*fit(step, train_state)][-1]
    # Lowerings round otherwise than the operations that they replace.
    donated = funcnets.jit(step, donate_argnums=0, backend="graph", lowerings=None)
    last = [*fit(donated, tree.map(torch.clone, train_state))][-1]
    assert last.running == eager.running
    assert same(last.train_state, eager.train_state)


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_going_on_from_the_middle_gives_the_same_bits(stop):
    step, train_state = start()
    whole = list(fit(step, train_state))
    half = whole[stop - 1]
    rest = list(fit(step, half.train_state, running=half.running))
    assert len(rest) == len(whole) - stop
    assert same(rest[-1].train_state, whole[-1].train_state)
    assert rest[-1].running == whole[-1].running


def test_a_loss_that_is_no_number_stops_the_training_at_its_step():
    step, train_state = start()

    def broken(train_state, batch):
        after, measured = step(train_state, batch)
        bad = train_state.step == 3
        return after, measured | {"loss": torch.where(bad, torch.nan, measured["loss"])}

    steps = fit(broken, train_state)
    good = [next(steps) for _ in range(4)]
    assert good[2].running.loss > 0
    for _ in range(2):
        with pytest.raises(train.NonFiniteLoss, match="nan at step 4"):
            _ = good[3].running
    # The end of the epoch reads the loss anyway.
    with pytest.raises(train.NonFiniteLoss, match="nan at step 4"):
        next(steps)


@pytest.mark.parametrize("read", [(), (3,), range(1, 31)])
def test_measurements_are_read_every_few_steps_and_give_the_same(read, monkeypatch):
    step, train_state = start()
    expected = [*fit(step, train_state, epochs=6, batch_size=4)][-1].running
    reads = []
    taken = metrics._read
    monkeypatch.setattr(metrics, "_read", lambda values: reads.append(len(values)) or taken(values))
    monkeypatch.setattr("funcnets.train.loop.READ_EVERY", 4)
    for done, progress in enumerate(fit(step, train_state, epochs=6, batch_size=4), 1):
        if done in read:
            assert progress.running.count == progress.examples
    assert progress.running == expected
    assert sum(reads) == 2 * 36
    if not read:
        assert [count for count in reads if count] == [8, 4] * 6


@pytest.mark.parametrize("steps_per_call", [2, 3, 7, 50])
@pytest.mark.parametrize("stop", [0, 3])
def test_many_steps_a_call_give_the_same_bits(steps_per_call, stop):
    step, train_state = start()
    expected = [*fit(step, train_state, epochs=3)]
    before = expected[stop - 1] if stop else None
    many = train.make_multi_step(step, 5)
    progress = [
        *fit(
            many,
            before.train_state if before else train_state,
            epochs=3,
            running=before and before.running,
            steps_per_call=steps_per_call,
        )
    ]
    assert same(progress[-1].train_state, expected[-1].train_state)
    at = {each.step: each for each in expected}
    for each in progress:
        assert each.running == at[each.step].running
        assert each[2:] == at[each.step][2:]
    assert len(progress) < len(expected) - stop


def test_many_steps_a_call_compiled_are_those_of_one_and_name_a_bad_one():
    step, train_state = start()
    many = funcnets.jit(train.make_multi_step(step, 5), donate_argnums=0, backend="graph")
    expected = [*fit(step, train_state)][-1]
    last = [*fit(many, tree.map(torch.clone, train_state), steps_per_call=4)][-1]
    for ours, theirs in zip(tree.leaves(last[0]), tree.leaves(expected[0]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    def broken(train_state, batch):
        after, measured = step(train_state, batch)
        bad = train_state.step == 2
        return after, measured | {"loss": torch.where(bad, torch.inf, measured["loss"])}

    with pytest.raises(train.NonFiniteLoss, match=r"inf at step 3 \(epoch 1, batch 3\)"):
        [*fit(train.make_multi_step(broken, 5), train_state, steps_per_call=4)]


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_evaluation_is_over_all_images(batch_size):
    _, train_state = start()
    step = train.make_eval_step(NET)
    params, state = train_state.params, train_state.state
    actual = train.evaluate(step, params, state, (IMAGES, LABELS), batch_size=batch_size)
    logits, _ = NET.apply(params, state, IMAGES)
    assert actual.count == 23
    assert actual.correct == int(metrics.correct(logits, LABELS))
    assert actual.loss == pytest.approx(float(losses.cross_entropy(logits, LABELS)), rel=1e-12)


def test_images_can_be_prepared_inside_the_step():
    net, _ = funcnets.models.get("lenet_bn")
    optimizer, prepare = optim.sgd(0.1), partial(data.prepare, side=28)
    images = (torch.arange(8 * 28 * 28) % 256).to(torch.uint8).view(8, 1, 28, 28)
    train_state = train.create(net, optimizer, random.key(0), prepare(images))
    inside = train.make_train_step(net, optimizer, prepare=prepare)
    outside = train.make_train_step(net, optimizer)
    labels = torch.arange(8)
    assert same(
        inside(train_state, (images, labels)), outside(train_state, (prepare(images), labels))
    )


@pytest.mark.parametrize("gradient", [transforms.accumulate, transforms.per_example, None])
def test_a_gradient_that_was_not_called_is_told_to_be(gradient):
    with pytest.raises(
        TypeError, match=r"the gradient is .* function that makes one, as in gradient="
    ):
        train.make_train_step(layers.linear(2), optim.sgd(0.1), gradient=gradient)


@pytest.mark.parametrize(
    "make", [partial(train.make_train_step, optimizer=optim.sgd(0.1)), train.make_eval_step]
)
def test_a_loss_that_is_no_function_is_refused(make):
    with pytest.raises(TypeError, match=r"the loss is 'cross_entropy', expected a function"):
        make(layers.linear(2), loss="cross_entropy")


def test_networks_and_optimizers_that_were_not_called_are_told_to_be():
    x = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"the network: got <function linear.*call its const"):
        train.make_train_step(layers.linear, optim.sgd(0.1))
    with pytest.raises(TypeError, match=r"the network: got <function linear"):
        train.create(layers.linear, optim.sgd(0.1), random.key(0), x)
    with pytest.raises(TypeError, match=r"the network: got <function linear"):
        transforms.check_finite(layers.linear)
    for make in (partial(train.make_train_step, layers.linear(2)), create_of(x)):
        with pytest.raises(TypeError, match=r"the optimizer is <function sgd.*optim.sgd\(0.1\)"):
            make(optim.sgd)


def create_of(x):
    return lambda optimizer: train.create(layers.linear(2), optimizer, random.key(0), x)


@pytest.mark.parametrize(
    "gradient", [train.batch_gradient, transforms.accumulate(2), transforms.per_example("batch")]
)
@pytest.mark.parametrize(("images", "labels"), [(4, 3), (0, 0)])
def test_a_batch_without_images_and_a_label_for_each_is_refused(gradient, images, labels):
    net, optimizer, x = layers.linear(2), optim.sgd(0.1), torch.zeros(images, 3)
    batch = (x, torch.arange(labels) % 2)
    train_state = train.create(net, optimizer, random.key(0), x)
    step = train.make_train_step(net, optimizer, gradient=gradient)
    message = rf"images of shape \({images}, 3\) and labels of shape \({labels},\); .* N ≥ 1"
    with pytest.raises(ValueError, match=message):
        step(train_state, batch)
    with pytest.raises(ValueError, match=message):
        train.make_eval_step(net)(train_state.params, train_state.state, batch)


@pytest.mark.parametrize("label", [-100, -1, 2])
@pytest.mark.parametrize(
    "gradient", [train.batch_gradient, transforms.accumulate(3), transforms.per_example("frozen")]
)
def test_every_gradient_refuses_a_label_out_of_range(gradient, label):
    net, x, labels = layers.linear(2), torch.ones(4, 3), torch.tensor([0, 1, 1, label])
    params, state = net.init(random.key(0), x)
    with pytest.raises(ValueError, match=r"a label is out of range .*expected 0 to 1"):
        gradient(net, losses.cross_entropy, params, state, (x, labels))


def test_lenet_learns_from_real_images():
    dataset = data.load("bundled")
    net, recipe = funcnets.models.get("lenet_bn")
    optimizer, prepare = optim.sgd(recipe.learning_rate), partial(data.prepare, side=28)
    example = torch.empty(1, 1, 28, 28, device="meta")
    train_state = train.create(net, optimizer, random.key(0), example)
    step = funcnets.jit(train.make_train_step(net, optimizer, prepare=prepare), backend="graph")
    batch = (dataset.train_images[:2560], dataset.train_labels[:2560])
    epochs = [
        progress.running
        for progress in train.fit(step, train_state, batch, batch_size=128, epochs=3)
        if progress.batch == progress.batches
    ]
    assert epochs[-1].loss < 0.6 * epochs[0].loss
    assert epochs[-1].accuracy > 0.6


@pytest.mark.parametrize("policy", [None, *precision.POLICIES.values()])
def test_bytes_are_not_taken_for_pixels(policy):
    net = funcnets.sequential(flatten=layers.flatten(), fc=layers.linear(5))
    images, labels = torch.full((8, 1, 4, 4), 9, dtype=torch.uint8), torch.zeros(8).long()
    optimizer = optim.sgd(0.1)
    state = train.create(net, optimizer, random.key(0), images.float())
    for step in (
        partial(train.make_train_step(net, optimizer, policy=policy), state),
        partial(train.make_eval_step(net, policy=policy), state.params, state.state),
    ):
        with pytest.raises(ValueError, match=r"input is torch\.uint8; .*prepare=partial\("):
            step((images, labels))
    prepared = train.make_train_step(net, optimizer, policy=policy, prepare=lambda x: x / 255)
    assert prepared(state, (images, labels))[1]["loss"].isfinite()


@pytest.mark.parametrize("batch", [{"image": 1, "label": 2}, (1, 2), [torch.zeros(2, 3)]])
def test_a_batch_that_is_no_pair_of_tensors_is_refused(batch):
    net, optimizer = layers.linear(5), optim.sgd(0.1)
    state = train.create(net, optimizer, random.key(0), torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"expected two tensors, \(images, labels\)"):
        train.make_train_step(net, optimizer)(state, batch)


def test_an_empty_batch_is_a_step_of_noise_alone_in_private_training():
    images = random.normal(random.key(1), (8, 1, 5, 5))
    batch_of_none = (images[:0], LABELS[:0])
    private = optim.private(1.0, 1.1, 8, random.key(1))
    optimizer = optim.chain(private, optim.sgd(0.1))
    step = train.make_train_step(NET, optimizer, gradient=transforms.per_example("frozen"))
    before = train.create(NET, optimizer, random.key(0), images)
    after, measured = step(before, batch_of_none)
    assert (float(measured["loss"]), int(measured["correct"])) == (0.0, 0)
    assert same(after.state, before.state)
    assert int(after.step) == 1
    none = tree.map(lambda leaf: leaf.new_zeros(0, *leaf.shape), before.params)
    noise, _ = private.update(none, private.init(before.params), before.params)
    expected = tree.map(lambda leaf, drawn: leaf - 0.1 * drawn, before.params, noise)
    for actual, wanted in zip(tree.leaves(after.params), tree.leaves(expected), strict=True):
        torch.testing.assert_close(actual, wanted)
    compiled = funcnets.jit(step, backend="graph", lowerings=None)(before, batch_of_none)
    for actual, wanted in zip(tree.leaves(compiled), tree.leaves((after, measured)), strict=True):
        torch.testing.assert_close(actual, wanted)


GRADIENTS = [
    train.batch_gradient,
    transforms.accumulate(4),
    transforms.accumulate(4, statistics="micro_batch"),
    transforms.per_example("batch"),
]


def measured_by(gradient, labels, loss=losses.cross_entropy):
    params, state = NET.init(random.key(0), IMAGES)
    return gradient(NET, loss, params, state, (IMAGES, labels), key=random.key(1))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_probabilities_of_one_class_are_its_number(gradient):
    soft = torch.nn.functional.one_hot(LABELS, 3).double()
    (grads, _, hard), (same_grads, _, same_measured) = (
        measured_by(gradient, labels) for labels in (LABELS, soft)
    )
    assert same_measured["correct"] == hard["correct"]
    pairs = ((grads, same_grads), (hard["loss"], same_measured["loss"]))
    for expected, actual in pairs:
        for one, other in zip(tree.leaves(expected), tree.leaves(actual), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


def squared_error(outputs, targets):
    return (outputs - targets[:, None]).square().mean()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_regression_has_a_loss_and_nothing_that_is_correct(gradient):
    measured = measured_by(gradient, IMAGES.mean((1, 2, 3)), squared_error)[2]
    assert measured.keys() == {"loss"}


def test_fit_and_evaluate_take_targets_of_a_regression():
    net, optimizer = funcnets.sequential(layers.flatten(), fc=layers.linear(1)), optim.sgd(0.05)
    batch = (IMAGES, IMAGES[:, 0, 2, 2] + 1)
    train_state = train.create(net, optimizer, random.key(0), IMAGES)
    step = train.make_train_step(net, optimizer, loss=squared_error)
    eval_step = train.make_eval_step(net, loss=squared_error)
    before = train.evaluate(eval_step, train_state.params, train_state.state, batch)
    *_, last = train.fit(step, train_state, batch, batch_size=5, epochs=20)
    after = train.evaluate(eval_step, last.train_state.params, {}, batch, batch_size=4)
    assert after.loss < 0.1 * before.loss
    for running in (last.running, after):
        assert running.correct is None
        assert math.isnan(running.accuracy)


def test_the_last_batch_is_dropped_where_it_is_short():
    sizes = []

    def step(train_state, batch):
        sizes.append(len(batch[1]))
        return train_state._replace(step=train_state.step + 1), {"loss": torch.zeros(())}

    done = [*fit(step, start()[1], batch_size=11, drop_last=True)]
    assert sizes == [11] * 4
    assert [(progress.epoch, progress.batch, progress.batches) for progress in done] == [
        (0, 1, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2),
    ]  # fmt: skip
    assert len([*fit(step, done[2].train_state, batch_size=11, drop_last=True)]) == 1


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {"batch_size": 4}, r"images of shape \(0, 1, 5, 5\) .* N ≥ 1"),
        (5, {"batch_size": 0}, "batch_size is 0; expected a whole number, 1 or more"),
        (5, {"batch_size": 2.5}, "batch_size is 2.5; expected a whole number"),
        (5, {"batch_size": 6, "drop_last": True}, "drop_last leaves no batch: 5 examples"),
    ],
)
def test_a_training_without_batches_is_refused(count, options, message):
    step, train_state = start()
    with pytest.raises(ValueError, match=message):
        next(train.fit(step, train_state, (IMAGES[:count], LABELS[:count]), epochs=1, **options))


def test_an_evaluation_without_examples_is_refused():
    step, train_state = train.make_eval_step(NET), start()[1]
    nothing = (IMAGES[:0], LABELS[:0])
    with pytest.raises(ValueError, match="N ≥ 1"):
        train.evaluate(step, train_state.params, train_state.state, nothing)
