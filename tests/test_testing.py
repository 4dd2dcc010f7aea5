"""Messages of `funcnets.testing`, and what it refuses; `test_mutants.py` has what it catches."""

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from funcnets import interop, layers, random, sequential, testing
from funcnets.testing import strategies


def differs(message):
    return pytest.raises(testing.Difference, match=message)


def test_a_difference_says_what_where_and_how_to_repeat_it():
    with pytest.raises(testing.Difference) as caught:
        testing.assert_equivalent(layers.batch_norm(eps=1e-3), nn.BatchNorm2d(3), (4, 3, 6, 6))
    error = caught.value
    assert error.quantity == "output in training"
    assert error.apart > error.allowed
    assert "differs by" in str(error)
    assert "layer 1.5" in str(error)
    assert "(1, 3, 1, 2), the smallest of those below (4, 3, 6, 6)" in str(error)
    with differs("output in training"):
        testing.assert_equivalent(  # as the message says
            layers.batch_norm(eps=1e-3),
            nn.BatchNorm2d(3),
            (1, 3, 1, 2),
            seed=0,
            modes=(True,),
            batch_sizes=(1,),
            memory_formats=("contiguous",),
        )


def test_the_leaf_that_differs_is_named():
    with pytest.raises(
        testing.Difference, match=r"^`a\.b` differs by 1\.0e\+00 at \[1\]: actual 2"
    ):
        testing.assert_close({"a": {"b": torch.arange(1, 3)}}, {"a": {"b": torch.ones(2).long()}})
    with differs(r"^sizes: `x` has shape \(2,\), expected \(3,\)"):
        testing.assert_close({"x": torch.ones(2)}, {"x": torch.ones(3)}, quantity="sizes")
    with differs(r"has dtype torch\.float32, expected torch\.float64"):
        testing.assert_close({"x": torch.ones(2)}, {"x": torch.ones(2).double()})
    with differs(r"lack \['y'\] and have besides \['x'\]"):
        testing.assert_close({"x": torch.ones(2)}, {"y": torch.ones(2)})
    with differs("differs by nan"):
        testing.assert_close({"x": torch.tensor([1.0, torch.nan])}, {"x": torch.ones(2)})


def test_integers_are_equal_and_give_floats_no_tolerance():
    values = {"key": torch.tensor([2**31 - 1, 7], dtype=torch.int32), "x": torch.ones(2)}
    with differs("`x` differs"):
        testing.assert_close({**values, "x": torch.tensor([1.0, 1.5])}, values)
    for other in ([-1, 7], [2**31 - 1, 8]):
        with differs("`key` differs"):
            testing.assert_close({**values, "key": torch.tensor(other, dtype=torch.int32)}, values)
    large = torch.tensor([2**60])
    with differs("differs"):
        testing.assert_close({"": large + 1}, {"": large}, 0.0)


def test_names_are_compared_first_and_can_be_mapped():
    layer, module = sequential(conv=layers.conv2d(4, 3)), nn.Sequential(nn.Conv2d(2, 4, 3))
    with pytest.raises(
        testing.Difference, match=r"names and shapes of parameters: .*missing: conv"
    ):
        testing.assert_equivalent(layer, module, (2, 2, 5, 5))
    testing.assert_equivalent(layer, module, (2, 2, 5, 5), rename={"0": "conv"})


@pytest.mark.parametrize("names", [("drop1", "drop2"), ("other", "drop1")])
def test_dropouts_are_paired_by_name_or_by_order(names):
    rates = (0.25, 0.5)
    layer = sequential(drop1=layers.dropout(0.25), tanh=layers.tanh(), drop2=layers.dropout(0.5))
    module = nn.Sequential()
    for name, rate in zip(names, rates, strict=True):
        module.add_module(name, nn.Dropout(rate))
        module.add_module(f"tanh{name}", nn.Tanh())
    del module[-1]
    testing.assert_equivalent(layer, module, (4, 6))


def test_draws_of_a_module_that_can_not_be_repeated_are_refused():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) if self.training else x

    before = torch.get_rng_state()
    layer = layers.function_layer("identity()", torch.clone)
    with differs(r"draws random numbers.*modes=\(False,\)"):
        testing.assert_equivalent(layer, Noisy(), (2, 3))
    testing.assert_equivalent(layer, Noisy(), (2, 3), modes=(False,))
    assert torch.equal(torch.get_rng_state(), before)


def test_shapes_may_be_drawn():
    shapes = st.tuples(st.integers(2, 4), st.just(3))
    testing.assert_equivalent(layers.linear(2), nn.Linear(3, 2), shapes, examples=5)
    with differs("differs"):
        testing.assert_equivalent(
            layers.function_layer("f", torch.sigmoid), nn.Tanh(), shapes, examples=5
        )


def test_the_module_is_left_alone():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    before = {name: leaf.clone() for name, leaf in module.state_dict().items()}
    layer = sequential(bn=layers.batch_norm(), drop=layers.dropout(0.5))
    options = {"rename": {"0": "bn", "1": "drop"}, "values": "module"}
    testing.assert_equivalent(layer, module, (4, 3), **options)
    testing.assert_trains_alike(layer, module, (4, 3), **options)
    testing.assert_close(dict(module.state_dict()), before, 0.0)
    assert not module.training


def test_a_lifted_module_keeps_all_promises_but_those_of_errors():
    net = interop.lift(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Dropout(0.25)))
    testing.check_layer(net, (5, 4), skip=testing.ERRORS)


def test_images_of_one_channel_have_a_memory_format_too():
    """Strides of one channel fit both formats, and a convolution computes by them."""
    testing.check_layer(layers.conv2d(3, 3), (4, 1, 9, 9))


def test_unknown_checks_are_refused():
    with pytest.raises(ValueError, match="skip: 'speed' is not one of declared_output, "):
        testing.check_layer(layers.relu(), (2, 3), skip=["speed"])
    with pytest.raises(ValueError, match="checks: 'speed' is not one of jit, vmap"):
        testing.assert_transforms_agree(torch.tanh, torch.ones(2), checks=["speed"])
    with pytest.raises(ValueError, match="no network is called 'resnet'"):
        strategies.networks("resnet")


def test_transforms_agree_on_a_pure_function():
    x = random.normal(random.key(0), (3,), torch.float64)
    testing.assert_transforms_agree(torch.tanh, x)
    with differs(r"^jvp: "):
        testing.assert_transforms_agree(lambda x: x * x.detach(), x)
