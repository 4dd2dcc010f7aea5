"""State dicts and modules, both ways: exact, copied, and complained about where they don't fit."""

import copy

import pytest
import torch
from classifiers import problem
from registry import NETWORKS
from tensors import same
from torch import nn

import funcnets
from funcnets import interop, models, optim, random, train, tree
from funcnets.interop import InteropError
from funcnets.testing import twins


@pytest.fixture
def trained():
    """The registry's small lenet_bn, random leaves and a batch."""
    network = NETWORKS["lenet_bn"]
    return problem(network.layer(), network.shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dicts_go_round(name):
    network = NETWORKS[name]
    both = problem(network.layer(), network.shape)
    state_dict = interop.to_state_dict(both.params, both.state)
    params, state = interop.from_state_dict(state_dict, like=(both.params, both.state))
    assert same(params, both.params)
    assert same(state, both.state)
    guessed = interop.from_state_dict(state_dict)
    assert same(guessed[0], both.params)
    assert same(guessed[1], both.state)


def test_a_module_goes_round_and_nothing_is_shared(trained):
    module = interop.to_module(trained.net, trained.params, trained.state)
    params, state = interop.from_module(module)
    assert same(params, trained.params)
    assert same(state, trained.state)
    with torch.no_grad():
        for leaf in module.state_dict().values():
            leaf.add_(1)
    assert same(params, trained.params)
    assert not same(interop.from_module(module)[0], params)


def test_a_twins_values_give_its_logits(trained):
    module = twins.get("lenet_bn").double().eval()
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net, _ = funcnets.models.get("lenet_bn")
    like = net.init(random.key(0), x)
    params, state = interop.from_module(module, like=like)
    torch.testing.assert_close(net.apply(params, state, x)[0], module(x).detach())


def test_a_module_trains_as_the_function_does(trained):
    module = interop.to_module(trained.net, trained.params, trained.state)
    labels = torch.arange(len(trained.batch[0])) % 10
    sgd = torch.optim.SGD(module.parameters(), 0.1)
    optimizer = optim.sgd(0.1)
    step = train.make_train_step(trained.net, optimizer)
    train_state = train.TrainState(
        torch.zeros((), dtype=torch.int64),
        trained.params,
        trained.state,
        optimizer.init(trained.params),
        trained.key,
    )
    for _ in range(3):
        sgd.zero_grad()
        nn.functional.cross_entropy(module(trained.batch[0]), labels).backward()
        sgd.step()
        train_state, _ = step(train_state, (trained.batch[0], labels))
    params, state = interop.from_module(module)
    for ours, theirs in ((params, train_state.params), (state, train_state.state)):
        ours, theirs = tree.flatten_named(ours), tree.flatten_named(theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_module_can_be_exported_compiled_and_copied(trained):
    module = interop.to_module(trained.net, trained.params, trained.state).eval()
    expected = module(trained.batch[0]).detach()
    exported = torch.export.export(module, (trained.batch[0],)).module()
    torch.testing.assert_close(exported(trained.batch[0]).detach(), expected)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(trained.batch[0]).detach(), expected)
    torch.testing.assert_close(copy.deepcopy(module)(trained.batch[0]).detach(), expected)


def test_a_stochastic_module_takes_a_key_or_torchs_seed():
    net = funcnets.sequential(drop=funcnets.layers.dropout(0.5))
    module, x, key = interop.to_module(net, {}, {}), torch.ones(50), random.key(1)
    torch.testing.assert_close(module(x, key), net.apply({}, {}, x, train=True, key=key)[0])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = module(x)
        torch.manual_seed(3)
        assert torch.equal(module(x), first)
        assert not torch.equal(module(x), first)


def test_what_does_not_fit_is_listed(trained):
    state_dict = interop.to_state_dict(trained.params, trained.state)
    wrong = {name: leaf for name, leaf in state_dict.items() if not name.startswith("fc2")}
    wrong["extra.weight"] = torch.zeros(1)
    wrong["fc3.bias"] = torch.zeros(3)
    with pytest.raises(InteropError) as error:
        interop.from_state_dict(wrong, like=(trained.params, trained.state))
    message = str(error.value)
    assert "2 missing: fc2.bias, fc2.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 of the wrong shape: fc3.bias (3,) (expected (10,))" in message
    none = {f"other{i}": torch.zeros(1) for i in range(12)}
    with pytest.raises(InteropError, match="and 2 more"):
        interop.from_state_dict(none, like=(trained.params, trained.state))


def test_names_are_mapped_by_part_or_by_function(trained):
    state_dict = interop.to_state_dict(trained.params, trained.state)
    foreign = {name.replace("conv1.", "features.0."): leaf for name, leaf in state_dict.items()}
    foreign["bn1.num_batches_tracked"] = torch.tensor(3)
    like = (trained.params, trained.state)
    for rename in ({"features.0": "conv1"}, lambda name: name.replace("features.0", "conv1")):
        assert same(interop.from_state_dict(foreign, like=like, rename=rename)[0], like[0])
    with pytest.raises(InteropError, match="one name to several"):
        interop.from_state_dict(state_dict, rename=lambda name: "same.weight")


def test_a_transplant_takes_what_fits_and_lists_the_rest():
    x = torch.rand(2, 1, 20, 20)
    source = models.lenet_bn(num_classes=8).init(random.key(0), x)
    params, state = models.lenet_bn(num_classes=3).init(random.key(1), x)
    after = interop.transplant(source, (params, state))
    assert after.new == after.left == ["fc3.bias", "fc3.weight"]
    taken = tree.flatten_named(after.params) | tree.flatten_named(after.state)
    given = tree.flatten_named(source[0]) | tree.flatten_named(source[1])
    assert set(after.taken) | set(after.new) == set(taken)
    assert all(torch.equal(taken[name], given[name]) for name in after.taken)
    assert torch.equal(after.params["fc3"]["weight"], params["fc3"]["weight"])
    after.params["conv1"]["weight"].zero_()
    assert source[0]["conv1"]["weight"].any(), "the source isn't copied"


def test_a_transplant_renames_and_refuses_what_has_nothing_in_common():
    leaf = {"weight": torch.ones(2), "bias": torch.ones(3)}
    like = ({"ours": {"weight": torch.zeros(2)}}, {})
    after = interop.transplant(({"theirs": leaf}, {}), like, rename={"theirs": "ours"})
    assert after.params["ours"]["weight"].tolist() == [1, 1]
    assert (after.taken, after.new, after.left) == (["ours.weight"], [], ["ours.bias"])
    with pytest.raises(
        interop.InteropError, match=r"it has theirs\.bias, theirs\.weight.*expected some of ours"
    ):
        interop.transplant(({"theirs": leaf}, {}), like)
