"""An ensemble's step by `vmap` equals its members' own steps, one after another."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import funcnets
from funcnets import core, data, layers, losses, metrics, optim, random, train, tree
from funcnets.compiler import TraceError
from funcnets.testing import assert_close, strategies
from funcnets.transforms import ensemble, vmap_cost

NET = funcnets.sequential(
    conv=layers.conv2d(3, 3, bias=False),  # before batch norm its gradient is rounding alone
    bn=layers.batch_norm(),
    tanh=layers.tanh(),
    conv2=layers.conv2d(4, 2),
    dropout=layers.dropout(0.25),
    flatten=layers.flatten(),
    fc=layers.linear(3),
)
IMAGES = random.normal(random.key(8), (23, 1, 5, 5), torch.float64)
LABELS = torch.arange(23) % 3
BATCH = (IMAGES[:7], LABELS[:7])
KEYS = random.split(random.key(1), 3)
RATES = torch.tensor([0.02, 0.1, 0.5], dtype=torch.float64)
RATED = ensemble.rated(partial(optim.sgd, momentum=0.5), 0.1)


def start(net=NET, optimizer=RATED, rates=RATES, x=IMAGES):
    """A member's step, and the stacked states of three."""
    return train.make_train_step(net, optimizer), ensemble.create(net, optimizer, KEYS, x, rates)


def assert_steps_alike(step, mapped, members, batch, batches, steps=3):
    """After each step members and measurements are those of a loop over members and `batches`."""
    each = ensemble.unstack(tree.map(torch.clone, members))
    for _ in range(steps):
        members, measured = mapped(members, batch)
        alone = [step(member, own) for member, own in zip(each, batches, strict=True)]
        assert_close((members, measured), ensemble.stack(alone))
        each = [member for member, _ in alone]


def classifier(body, x):
    """A drawn network with a head of three classes."""
    shape = core.eval_shape(body, *body.init(KEYS[0], x), x).shape
    flat = {"flatten": layers.flatten()} if len(shape) == 4 else {}
    return funcnets.sequential(body=body, **flat, head=layers.linear(3))


@pytest.mark.parametrize("by", [None, "vmap", "loop"])
@given(drawn=strategies.layers(), seed=strategies.seeds, shared=st.booleans())
@settings(max_examples=2)
def test_random_members_train_as_they_do_alone(by, drawn, seed, shared):
    shape = drawn.shape
    x = random.normal(random.key(seed), (3, max(shape[0], 4), *shape[1:]), torch.float64)
    step, members = start(classifier(drawn.layer(), x[0]), x=x[0])
    mapped = ensemble.make_ensemble_step(step, shared_batch=shared)
    if by:
        how = {"by": by, "shared_batch": shared, "donate_argnums": 0, "backend": "graph"}
        mapped = ensemble.jit_step(step, **how)
    each = [(images, LABELS[: len(images)]) for images in x]
    batches = [each[0]] * 3 if shared else each
    assert_steps_alike(step, mapped, members, each[0] if shared else ensemble.stack(each), batches)


@pytest.mark.parametrize("donated", [True, False])
def test_a_loop_writes_into_the_stacked_state_if_it_is_donated(donated):
    step, members = start()
    donate_argnums = 0 if donated else ()
    jitted = ensemble.jit_step(step, by="loop", donate_argnums=donate_argnums, backend="graph")
    before = tree.map(torch.clone, members)
    places = [leaf.data_ptr() for leaf in tree.leaves(members)]
    after, measured = jitted(members, BATCH)
    assert ([leaf.data_ptr() for leaf in tree.leaves(after)] == places) is donated
    if not donated:
        assert_close(members, before)
    assert_close((after, measured), ensemble.make_ensemble_step(step)(before, BATCH))


def choice(net, members, images, shared=True, backend="graph"):
    """The way that is chosen for so many members of a named network, and so many images each."""
    net, _ = funcnets.models.get(net)
    optimizer = optim.sgd(0.1)
    x = torch.empty(images, 1, 28, 28)
    batch = (x, torch.zeros(images, dtype=torch.int64))
    keys = random.split(KEYS[0], members)
    state = ensemble.create(net, optimizer, keys, x.to("meta"))
    batch = batch if shared else ensemble.stack([batch] * members)
    step = train.make_train_step(net, optimizer)
    return ensemble.choose_strategy(step, state, batch, shared_batch=shared, backend=backend)


@pytest.mark.parametrize(("side", "counted"), [(5, 2 * 4 * 9 * 6 * 27), (1, 0)])
def test_grouped_work_is_what_no_lowering_takes_apart(side, counted):
    """Members, images, pixels, channels out, and channels in times taps; tiny maps are split."""
    x, weight = torch.zeros(2, 4, 3, side, side), torch.zeros(2, 6, 3, 3, 3)
    convolve = partial(torch.nn.functional.conv2d, padding=1 if side == 1 else 0)
    found = vmap_cost.count_cost(torch.func.vmap(convolve), x, weight)
    alone = vmap_cost.count_cost(convolve, x[0], weight[0])
    assert found.multiply_adds == counted
    assert alone == (1, 0)
    assert found.operations > 1


def test_large_grouped_convolutions_are_looped_over():
    assert choice("lenet_bn", 2, 16) == "vmap"
    assert choice("lenet_bn", 2, 256) == "loop"
    assert choice("lenet_bn", 2, 256, backend="inductor") == "vmap"
    assert choice("lenet_bn", 2, 96) == "vmap"
    assert choice("lenet_bn", 2, 96, shared=False) == "loop"  # the first layer is grouped as well


def test_the_strategy_is_chosen_for_each_shape(monkeypatch):
    step, members = start()
    asked = []

    def choose(step, members, batch, **options):
        asked.append(len(batch[1]))
        return "loop" if len(batch[1]) == 7 else "vmap"

    monkeypatch.setattr(ensemble, "choose_strategy", choose)
    seen = []

    def noted(train_state, batch):
        seen.append(torch._C._functorch.maybe_current_level() is not None)
        return step(train_state, batch)

    jitted = ensemble.jit_step(noted, backend="graph")
    for count in (7, 5, 7):
        batch = (IMAGES[:count], LABELS[:count])
        expected = ensemble.make_ensemble_step(step)(members, batch)
        assert_close(jitted(members, batch), expected)
    assert (asked, seen) == ([7, 5], [False, True])


@pytest.mark.parametrize("adaptive", [False, True], ids=["momentum", "adam and a schedule"])
@pytest.mark.parametrize("backend", ["eager", "graph"])
def test_members_train_as_they_do_alone(backend, adaptive):
    """Batch norm, dropout, rates and the optimizer's memory, also under jit with donation."""
    optimizer = RATED
    if adaptive:
        optimizer = ensemble.rated(lambda rate: optim.adam(optim.linear(rate, 5)), 0.1)
    step, members = start(optimizer=optimizer)
    mapped = ensemble.make_ensemble_step(step)
    if backend == "graph":
        mapped = funcnets.jit(mapped, donate_argnums=0, backend="graph")
    assert_steps_alike(step, mapped, members, BATCH, [BATCH] * 3, steps=6)


def test_members_differ_by_key_and_by_rate():
    _, members = start()
    leaves = tree.flatten_named((members.params, members.key))
    for name in ("0.conv.weight", "0.fc.weight", "1"):
        assert len({tuple(row.flatten().tolist()) for row in leaves[name]}) == 3
    step, _ = start()
    same = ensemble.create(NET, RATED, KEYS[:1].expand(3, 2), IMAGES, RATES)
    after, _ = ensemble.make_ensemble_step(step)(same, BATCH)
    moved = (after.params["fc"]["weight"] - same.params["fc"]["weight"]).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved / moved[0], RATES / RATES[0])


def test_create_gives_what_each_member_would_have_alone():
    created = ensemble.unstack(ensemble.create(NET, RATED, KEYS, IMAGES))
    for member, key in zip(created, KEYS, strict=True):
        assert_close(member, train.create(NET, RATED, key, IMAGES))


def test_the_rates_are_data_of_one_graph():
    step, members = start()
    jitted = funcnets.jit(ensemble.make_ensemble_step(step), backend="graph")
    jitted(members, BATCH)
    other = ensemble.create(NET, RATED, KEYS, IMAGES, 10 * RATES)
    expected = ensemble.make_ensemble_step(step)(other, BATCH)
    assert_close(jitted(other, BATCH), expected)
    assert len(jitted._executables) == 1


def test_a_rated_optimizer_is_the_one_that_it_is_made_by():
    for make in (optim.sgd, lambda rate: optim.adamw(optim.cosine(rate, 9))):
        plain, rated = make(0.3), ensemble.rated(make, 0.3)
        params = {"a": torch.arange(3.0, dtype=torch.float64)}
        before, memory = plain.init(params), rated.init(params)
        for _ in range(3):
            expected, before = plain.update(params, before, params)
            actual, memory = rated.update(params, memory, params)
            assert torch.equal(actual["a"], expected["a"])


def test_predictions_are_the_members_and_their_mean_probability():
    _, members = start()
    logits = ensemble.member_logits(NET, members.params, members.state, IMAGES)
    each = [NET.apply(m.params, m.state, IMAGES)[0] for m in ensemble.unstack(members)]
    torch.testing.assert_close(logits, torch.stack(each), rtol=1e-9, atol=1e-9)
    combined = ensemble.combine_logits(logits)
    mean = torch.stack([one.softmax(1) for one in each]).mean(0)
    torch.testing.assert_close(combined.softmax(1), mean, rtol=1e-9, atol=1e-9)
    loss = losses.cross_entropy(combined, LABELS)
    torch.testing.assert_close(loss, -mean.log()[range(23), LABELS].mean(), rtol=1e-9, atol=1e-9)
    assert metrics.correct(combined, LABELS) == (mean.argmax(1) == LABELS).sum()


def fit(step, members, count=23):
    batch = (IMAGES[:count], LABELS[:count])
    return list(ensemble.fit(step, members, batch, batch_size=5, epochs=2))


def test_fit_measures_each_member_as_alone_on_the_same_batches():
    step, members = start()
    members = members._replace(key=members.key[:1].expand(3, 2))  # so that orders are the same
    *_, last = fit(ensemble.make_ensemble_step(step), members)
    assert (last.epoch, last.batch, last.batches) == (1, 5, 5)
    alone = [
        [*train.fit(step, member, (IMAGES, LABELS), batch_size=5, epochs=2)][-1]
        for member in ensemble.unstack(members)
    ]
    assert_close(last.train_state, ensemble.stack([one.train_state for one in alone]))
    for running, one in zip(last.running, alone, strict=True):
        assert running.loss == pytest.approx(one.running.loss, rel=1e-9)
        assert running[1:] == one.running[1:]


def test_a_member_that_diverges_leaves_the_others_alone():
    step, members = start()
    huge = torch.tensor([0.02, 1e200, 0.5], dtype=torch.float64)
    mapped = ensemble.make_ensemble_step(step)
    for wrap in (lambda f: f, partial(funcnets.jit, backend="graph", donate_argnums=0)):
        broken = ensemble.create(NET, RATED, KEYS, IMAGES, huge)
        *_, bad = fit(wrap(mapped), broken, 20)
        *_, good = fit(mapped, members, 20)
        finite = [torch.tensor(one.loss_sum).isfinite().item() for one in bad.running]
        assert finite == [True, False, True]
        for index in (0, 2):
            pair = (ensemble.unstack(run.train_state)[index] for run in (bad, good))
            assert_close(*pair)


def test_fit_stops_where_no_member_is_finite():
    step, _ = start()
    members = ensemble.create(NET, RATED, KEYS, IMAGES, RATES * 1e200)
    with pytest.raises(train.NonFiniteLoss, match="no member has a finite loss after epoch 1"):
        fit(ensemble.make_ensemble_step(step), members)


@given(st.integers(1, 4), strategies.seeds)
@settings(max_examples=10)
def test_unstack_is_the_inverse_of_stack(count, seed):
    members = [
        {"a": random.normal(key, (2,)), "b": (key, {"c": random.uniform(key)})}
        for key in random.split(random.key(seed), count)
    ]
    for member, again in zip(members, ensemble.unstack(ensemble.stack(members)), strict=True):
        assert_close(again, member)


def test_misuse_gets_the_cure():
    step, members = start()
    with pytest.raises(ValueError, match=r"keys have shape \(2,\).*random.split\(key, members\)"):
        ensemble.create(NET, RATED, random.key(0), IMAGES)
    with pytest.raises(ValueError, match=r"rates are .* of shape \(2,\), .* of shape \(3,\)"):
        ensemble.create(NET, RATED, KEYS, IMAGES, RATES[:2])
    with pytest.raises(ValueError, match=r"make it rated\(optim.sgd, 0.1\)"):
        ensemble.create(NET, optim.sgd(0.1), KEYS, IMAGES, RATES)
    with pytest.raises(ValueError, match="at least one"):
        ensemble.stack([])
    with pytest.raises(ValueError, match=r"ensemble.create or ensemble.stack"):
        ensemble.make_ensemble_step(step)(ensemble.unstack(members)[0], BATCH)
    with pytest.raises(ValueError, match=r"first axis has length 7, expected 3, .*shared_batch"):
        ensemble.make_ensemble_step(step, shared_batch=False)(members, BATCH)
    with pytest.raises(ValueError, match=r"keys have the type list, .*random.split"):
        ensemble.create(NET, RATED, [*KEYS], IMAGES)
    with pytest.raises(TypeError, match=r"rated: got an optimizer, .*optim.sgd"):
        ensemble.rated(optim.sgd(0.1), 0.1)
    plain = ensemble.create(NET, optim.sgd(0.1), KEYS, IMAGES)
    with pytest.raises(ValueError, match=r"is rated and its state is tuple, .*create the members"):
        ensemble.make_ensemble_step(step)(plain, BATCH)
    for wrong in (members.params, [members]):
        with pytest.raises(ValueError, match=r"the state is of type (dict|list), expected a Train"):
            ensemble.make_ensemble_step(step)(wrong, BATCH)
        with pytest.raises(ValueError, match=r"the state is of type (dict|list), expected a Train"):
            ensemble.jit_step(step, backend="graph")(wrong, BATCH)
    expanded = members._replace(
        params=tree.map(lambda leaf: leaf[:1].expand_as(leaf), members.params)
    )
    with pytest.raises(
        ValueError, match=r"share the memory of params\.\w+\.\w+, .*, which is donated"
    ):
        ensemble.jit_step(step, by="loop", donate_argnums=0, backend="graph")(expanded, BATCH)
    one = ensemble.unstack(members)[0]
    with pytest.raises(
        ValueError, match=r"leaves have first axes of different lengths: .* ensemble.stack"
    ):
        ensemble.member_logits(NET, one.params, one.state, IMAGES)
    with pytest.raises(
        ValueError, match=r"logits have shape \(23, 3\), expected \(members, N, K\)"
    ):
        ensemble.combine_logits(NET.apply(one.params, one.state, IMAGES)[0])
    with pytest.raises(ValueError, match="by is 'pmap'; expected auto, vmap or loop"):
        ensemble.jit_step(step, by="pmap")
    with pytest.raises(ValueError, match=r"donate_argnums is \(0, 1\); expected 0"):
        ensemble.jit_step(step, donate_argnums=(0, 1))
    for by in ("auto", "vmap", "loop"):
        with pytest.raises(ValueError, match=r"ensemble.create or ensemble.stack"):
            ensemble.jit_step(step, by=by, backend="graph")(ensemble.unstack(members)[0], BATCH)


@pytest.mark.parametrize("by", ["auto", "vmap", "loop"])
def test_a_step_that_branches_on_a_value_is_refused(by):
    def loss(logits, labels):
        value = losses.cross_entropy(logits, labels)
        return value if value > 1 else 2 * value

    step = train.make_train_step(NET, RATED, loss=loss)
    with pytest.raises(TraceError, match=r"return value if value > 1 .*torch.where"):
        ensemble.jit_step(step, by=by, backend="graph")(start()[1], BATCH)


def test_members_of_another_network_are_named_by_leaf():
    params, _ = NET.init(KEYS[0], IMAGES)
    wider, _ = NET.init(KEYS[0], IMAGES.expand(-1, 2, -1, -1))
    with pytest.raises(ValueError, match=r"^conv.weight: .* \(3, 2, 3, 3\) on cpu in member 1"):
        ensemble.stack([params, wider])
    with pytest.raises(ValueError, match=r"^bn.bias: missing in member 1"):
        ensemble.stack([params, {name: part for name, part in params.items() if name != "bn"}])
    with pytest.raises(ValueError, match=r"^fc.bias: .*float32"):
        ensemble.stack([params, params | {"fc": tree.map(torch.Tensor.float, params["fc"])}])


def test_dropout_without_a_key_is_named_under_vmap():
    _, members = start()
    with pytest.raises(funcnets.LayerError, match=r"^dropout: .*needs a key in training"):
        torch.func.vmap(lambda params, state: NET.apply(params, state, IMAGES, train=True)[0])(
            members.params, members.state
        )


def test_lenets_learn_together_from_real_images():
    dataset = data.load("bundled")
    net, _ = funcnets.models.get("lenet_bn")
    optimizer = ensemble.rated(optim.sgd, 0.5)
    example = torch.empty(1, 1, 28, 28, device="meta")
    members = ensemble.create(net, optimizer, KEYS[:2], example, torch.tensor([0.01, 0.5]))
    step = train.make_train_step(net, optimizer, prepare=partial(data.prepare, side=28))
    step = funcnets.jit(ensemble.make_ensemble_step(step), backend="graph", donate_argnums=0)
    batch = (dataset.train_images[:1280], dataset.train_labels[:1280])
    *_, last = ensemble.fit(step, members, batch, batch_size=64, epochs=2)
    assert last.running[1].loss < 0.7 * last.running[0].loss
