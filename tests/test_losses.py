"""Losses and metrics against their formulas, under transforms, and on bad input."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from funcnets import losses, metrics, random

batches = st.tuples(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 12))
examples = settings(deadline=None, max_examples=40)


def batch(seed: int, number: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(number, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (number,), generator=generator)


@examples
@given(batches, st.just(0.0) | st.floats(0.0, 1.0))
def test_cross_entropy_is_its_formula(drawn, smoothing):
    logits, labels = batch(*drawn)
    classes = logits.shape[1]
    target = (
        torch.nn.functional.one_hot(labels, classes).double() * (1 - smoothing)
        + smoothing / classes
    )
    log_likelihood = logits - logits.exp().sum(1, keepdim=True).log()
    expected = -(target * log_likelihood).sum(1)
    for reduction, value in {
        "mean": expected.mean(),
        "sum": expected.sum(),
        "none": expected,
    }.items():
        actual = losses.cross_entropy(
            logits, labels, label_smoothing=smoothing, reduction=reduction
        )
        torch.testing.assert_close(actual, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_taken_in_float32(dtype):
    logits, labels = batch(0, 64, 10)
    low = logits.to(dtype)
    actual = losses.cross_entropy(low, labels)
    assert actual.dtype == torch.float32
    assert actual.item() == losses.cross_entropy(low.float(), labels).item()
    assert torch.func.grad(losses.cross_entropy)(low, labels).dtype == dtype


def test_float64_stays_float64():
    assert losses.cross_entropy(*batch(0, 4, 3)).dtype == torch.float64


def test_large_logits_dont_overflow():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert losses.cross_entropy(logits, torch.tensor([0, 0])).item() == 5000


def test_vmap_trace_and_gradient_agree_with_eager():
    stacked = [
        torch.stack(parts) for parts in zip(*(batch(s, 5, 4) for s in range(3)), strict=True)
    ]
    function = torch.func.grad_and_value(losses.cross_entropy)
    expected = [torch.stack(parts) for parts in zip(*map(function, *stacked), strict=True)]

    def vmapped(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.vmap(function)(logits, labels)

    traced = make_fx(vmapped, tracing_mode="fake")(*stacked)
    for actual in (vmapped(*stacked), traced(*stacked)):
        torch.testing.assert_close(list(actual), expected, rtol=1e-12, atol=1e-12)
    counts = torch.func.vmap(metrics.correct)(*stacked)
    assert counts.tolist() == [metrics.correct(*pair).item() for pair in zip(*stacked, strict=True)]


@examples
@given(batches)
def test_correct_and_accuracy_count_the_maxima(drawn):
    logits, labels = batch(*drawn)
    pairs = zip(logits.tolist(), labels.tolist(), strict=True)
    expected = sum(row.index(max(row)) == label for row, label in pairs)
    count, fraction = metrics.correct(logits, labels), metrics.accuracy(logits, labels)
    assert (count.item(), count.dtype, count.shape) == (expected, torch.int64, ())
    assert (fraction.dtype, fraction.shape) == (torch.float32, ())
    assert fraction.item() == pytest.approx(expected / len(labels))


@pytest.mark.parametrize("function", [losses.cross_entropy, metrics.correct, metrics.accuracy])
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.ones(3), torch.tensor([0]), r"logits are float32 of shape \(3,\); expected"),
        (torch.ones(2, 3, 1, 1), torch.tensor([0, 1]), r"shape \(2, 3, 1, 1\)"),
        (torch.ones(2, 3, dtype=torch.int64), torch.tensor([0, 1]), "logits are int64"),
        (torch.ones(2, 3), torch.tensor([0]), r"labels are int64 of shape \(1,\); .* \(2,\)"),
        (torch.ones(2, 3), torch.tensor([[0], [1]]), r"shape \(2, 1\)"),
        (torch.ones(2, 3), torch.ones(2, dtype=torch.uint8), r"labels are uint8 .*int64"),
        (torch.ones(2, 3), torch.ones(2), "labels are float32"),
        (torch.ones(2, 3), torch.ones(2, 2), r"\(2, 2\); .* floating of shape \(2, 3\), a prob"),
    ],
)
def test_wrong_ranks_and_dtypes_are_refused(function, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        function(logits, labels)


def test_wrong_options_are_refused():
    logits, labels = batch(0, 2, 3)
    with pytest.raises(ValueError, match="reduction is 'average'; expected one of mean, sum, none"):
        losses.cross_entropy(logits, labels, reduction="average")
    with pytest.raises(ValueError, match=r"label_smoothing is 1.5; expected a number in \[0, 1\]"):
        losses.cross_entropy(logits, labels, label_smoothing=1.5)


@pytest.mark.parametrize("label", [-100, -1, 3])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_label_out_of_range_is_told_what_is_in_range(label, mapped):
    """-100 as well, which torch would leave out."""
    logits, labels = batch(0, 2, 3)
    labels[1] = label
    function = losses.cross_entropy
    if mapped:
        function, logits, labels = torch.func.vmap(function), logits[:, None], labels[:, None]
    with pytest.raises(ValueError, match=r"out of range .*expected 0 to 2 for .* as many classes"):
        function(logits, labels)


@examples
@given(st.lists(st.tuples(st.floats(0, 1e3), st.integers(1, 300)), min_size=1), st.data())
def test_running_averages_weigh_by_batch_size_and_survive_json(drawn, data):
    running, losses_seen, correct_seen = metrics.Running(), [], 0
    for loss, count in drawn:
        correct = data.draw(st.integers(0, count))
        running = running.add(torch.tensor(loss, dtype=torch.float64), torch.tensor(correct), count)
        losses_seen += [loss] * count
        correct_seen += correct
    assert running.loss == pytest.approx(math.fsum(losses_seen) / len(losses_seen), abs=1e-12)
    assert running.accuracy == correct_seen / len(losses_seen)
    assert metrics.Running(**json.loads(json.dumps(running._asdict()))) == running
    assert [type(value) for value in running] == [float, int, int]


def test_running_averages_of_nothing_are_nan():
    assert math.isnan(metrics.Running().loss)
    assert math.isnan(metrics.Running().accuracy)


@given(rows=st.integers(1, 5), classes=st.integers(1, 6), smoothing=st.floats(0, 1))
@settings(max_examples=30)
def test_cross_entropy_of_probabilities_is_torchs(rows, classes, smoothing):
    logits = random.normal(random.key(rows), (rows, classes), torch.float64)
    chances = random.uniform(random.key(classes), (rows, classes), torch.float64).softmax(1)
    for reduction in losses.REDUCTIONS:
        options = {"label_smoothing": smoothing, "reduction": reduction}
        actual = losses.cross_entropy(logits, chances, **options)
        assert torch.equal(actual, torch.nn.functional.cross_entropy(logits, chances, **options))
    numbers = chances.argmax(1)
    assert metrics.correct(logits, chances) == metrics.correct(logits, numbers)
    hard = torch.nn.functional.one_hot(numbers, classes).to(torch.float32)
    torch.testing.assert_close(
        losses.cross_entropy(logits, hard, label_smoothing=smoothing),
        losses.cross_entropy(logits, numbers, label_smoothing=smoothing),
    )
