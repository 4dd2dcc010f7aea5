"""Dropout and batch norm of the twins against PyTorch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from funcnets.testing import twins


def test_dropout_uses_its_mask_in_training_only() -> None:
    dropout = twins.MaskedDropout(0.75)
    x = torch.tensor([[1.0, -2.0, 3.0]])
    dropout.mask = torch.tensor([[True, False, True]])
    assert dropout(x).tolist() == [[4.0, 0.0, 12.0]]
    assert not dropout.state_dict()
    assert dropout.eval()(x) is x


def test_dropout_without_a_mask_draws_one() -> None:
    torch.manual_seed(0)
    values = twins.MaskedDropout(0.25)(torch.full((10_000,), 3.0))
    assert set(values.tolist()) == {0.0, 4.0}
    assert (values == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)


def test_dropout_refuses_a_mask_that_would_broadcast_and_a_rate_of_one() -> None:
    dropout = twins.MaskedDropout(0.5)
    dropout.mask = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\) and its input \(2, 3\)"):
        dropout(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"^p is 1\.0; expected the fraction"):
        twins.MaskedDropout(1.0)


def scratch(channels: int) -> twins.ScratchBatchNorm:
    return twins.ScratchBatchNorm(channels, eps=1.0).double()


def test_scratch_batch_norm_of_features() -> None:
    # Features 1, 7 and 2, 6: means 4 and 4, biased variances 9 and 4, to which eps adds 1.
    norm = scratch(2)
    x = torch.tensor([[1.0, 2.0], [7.0, 6.0]], dtype=torch.float64)
    row = torch.tensor([3 / 10**0.5, 2 / 5**0.5], dtype=torch.float64)
    torch.testing.assert_close(norm(x), torch.stack([-row, row]))
    assert norm.running_mean.tolist() == pytest.approx([0.4, 0.4])
    assert norm.running_var.tolist() == pytest.approx([1.8, 1.3])
    norm(x)
    assert norm.running_mean.tolist() == pytest.approx([0.76, 0.76])
    assert norm.running_var.tolist() == pytest.approx([2.52, 1.57])


def test_scratch_batch_norm_of_images() -> None:
    # Channel 0 holds 0, 2, 4, 6 over (N, H, W): mean 3, biased variance 5; channel 1 holds 1s.
    norm = scratch(2)
    x = torch.ones(2, 2, 1, 2, dtype=torch.float64)
    x[:, 0, 0, :] = torch.tensor([[0.0, 2.0], [4.0, 6.0]])
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 1.0]))
        norm.bias.copy_(torch.tensor([0.5, -1.0]))
    expected = torch.full_like(x, -1.0)
    expected[:, 0] = 2 * (x[:, 0] - 3) / 6**0.5 + 0.5
    torch.testing.assert_close(norm(x), expected)
    assert norm.running_mean.tolist() == pytest.approx([0.3, 0.1])
    assert norm.running_var.tolist() == pytest.approx([1.4, 0.9])


def test_scratch_batch_norm_evaluates_by_its_running_statistics() -> None:
    norm = scratch(1).eval()
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(8.0)
    x = torch.tensor([[5.0]], dtype=torch.float64)
    assert norm(x).item() == norm(x[..., None, None]).item() == pytest.approx(1.0)
    assert (norm.running_mean.item(), norm.running_var.item()) == (2.0, 8.0)


@given(
    st.integers(0, 2**31 - 1),
    st.integers(2, 5),
    st.integers(1, 4),
    st.sampled_from([(), (1, 1), (2, 3)]),
)
@settings(max_examples=30, deadline=None)
def test_scratch_batch_norm_differs_from_torch_in_the_variance_alone(
    seed: int, batch: int, channels: int, sides: tuple[int, ...]
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, channels, *sides, dtype=torch.float64).requires_grad_()
    ours = twins.ScratchBatchNorm(channels).double()
    torchs = (nn.BatchNorm2d if sides else nn.BatchNorm1d)(channels).double()
    weight = torch.randn_like(x)
    results = [norm(x) for norm in (ours, torchs)]
    gradients = [torch.autograd.grad((result * weight).sum(), x)[0] for result in results]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean, rtol=1e-12, atol=1e-12)
    count = x.numel() // channels
    biased = (torchs.running_var - 0.9) * (count - 1) / count + 0.9
    torch.testing.assert_close(ours.running_var, biased, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_scratch_batch_norm_refuses_one_value_per_channel_in_training(
    shape: tuple[int, ...],
) -> None:
    norm, torchs = twins.ScratchBatchNorm(3), nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    for module in (norm, torchs(3)):
        with pytest.raises(ValueError, match="more than 1 value per channel when training"):
            module(torch.ones(shape))
    assert norm.eval()(torch.ones(shape)).shape == shape


@pytest.mark.parametrize("shape", [(4,), (2, 1), (2, 3, 5), (2, 1, 4, 4)])
def test_scratch_batch_norm_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected an input of shape \(N, 3\)"):
        twins.ScratchBatchNorm(3)(torch.ones(shape))
