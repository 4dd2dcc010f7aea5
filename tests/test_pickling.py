"""Networks in other processes: made there again, or refused in words."""

import copy
import multiprocessing
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from types import FunctionType, ModuleType

import pytest
import torch

from funcnets import core, models, random, sequential
from funcnets.layers import flatten, linear, relu

X = torch.linspace(0, 1, 2 * 28 * 28).view(2, 1, 28, 28)


def own(width=3):
    return sequential(flatten=flatten(), fc=linear(width))


def logits(net):
    params, state = net.init(random.key(0), X)
    return net.apply(params, state, X)[0]


def test_networks_are_sent_to_spawned_workers():
    nets = [models.get("lenet_bn", num_classes=3)[0], models.picklable(own, width=5)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        for net, theirs in zip(nets, pool.map(logits, nets), strict=True):
            torch.testing.assert_close(theirs, logits(net), rtol=0, atol=0)


def test_a_network_that_was_read_can_be_sent_again():
    net = models.picklable(own, width=5)
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(net))))
    torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=0)


def changed(net):
    return core.rewrite(net, lambda name, layer: relu() if name == "fc" else layer)


@pytest.mark.parametrize(
    "net",
    [
        own(),
        linear(3),
        changed(models.picklable(own)),
        core.wrap(models.picklable(own), lambda a: lambda *x, **y: a(*x, **y)),
    ],
)
def test_others_are_refused_in_words(net):
    with pytest.raises(TypeError, match=r"consists of functions.*expected.*models\.picklable"):
        pickle.dumps(net)


def test_what_makes_a_network_is_checked():
    with pytest.raises(TypeError, match="the network: got None, expected a Layer"):
        models.picklable(lambda: None)


class ByValue(pickle.Pickler):
    """Pickler that takes functions as they are, as cloudpickle's does."""

    def reducer_override(self, value):
        return (print, ()) if isinstance(value, FunctionType) else NotImplemented


def test_a_package_that_pickles_functions_is_left_to_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "other.cloudpickle", ModuleType("cloudpickle"))
    with (tmp_path / "net").open("wb") as file:
        ByValue(file).dump(own())
    assert b"funcnets.core" in (tmp_path / "net").read_bytes()


def test_copies_are_the_network_itself():
    net = own()
    assert copy.deepcopy(net) is net
    assert copy.deepcopy({"net": net}) == {"net": net}
