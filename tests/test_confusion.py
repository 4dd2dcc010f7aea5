"""What `funcnets eval --confusion` tells: by class, of calibration, and of the worst mistakes."""

import json

import pytest
import torch
from run_files import SMALL

from funcnets import metrics, random
from funcnets.cli import confusion, terminal


def drawn(count=200, classes=4):
    """Probabilities and labels, with each class among the labels but the last."""
    logits = 2 * random.normal(random.key(0), (count, classes), dtype=torch.float64)
    return logits.softmax(1), torch.arange(count) % (classes - 1)


def test_a_confusion_matrix_counts_pairs():
    probabilities, labels = drawn()
    matrix = metrics.confusion(probabilities, labels)
    predicted = probabilities.argmax(1)
    for label in range(4):
        for other in range(4):
            expected = sum(
                a == label and b == other
                for a, b in zip(labels.tolist(), predicted.tolist(), strict=True)
            )
            assert matrix[label, other] == expected
    with pytest.raises(ValueError, match="labels are probabilities"):
        metrics.confusion(probabilities, probabilities)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_a_calibration_error_is_that_of_the_definition(bins):
    probabilities, labels = drawn()
    confidence, predicted = probabilities.max(1)
    expected = 0.0
    for index in range(bins):
        inside = (confidence > index / bins) & (confidence <= (index + 1) / bins)
        if inside.any():
            accuracy = (predicted == labels)[inside].double().mean()
            gap = abs(accuracy - confidence[inside].mean())
            expected += float(inside.double().mean() * gap)
    assert metrics.calibration_error(probabilities, labels, bins=bins) == pytest.approx(expected)


def test_a_report_names_classes_and_the_worst_mistakes():
    probabilities, labels = drawn()
    found = confusion.described(probabilities, labels, ("ant", "bee", "cat", "dog"))
    assert found.class_accuracies[3] is None
    right = (probabilities.argmax(1) == labels)[labels == 1].double().mean()
    assert found.class_accuracies[1] == pytest.approx(float(right))
    surest, predicted = probabilities.max(1)
    wrong = [i for i in range(200) if predicted[i] != labels[i]]
    worst = sorted(wrong, key=lambda i: -float(surest[i]))[:5]
    assert [mistake["image"] for mistake in found.mistakes] == worst
    first = found.mistakes[0]
    assert first["class"] == found.class_names[labels[worst[0]]]
    assert first["predicted"] == found.class_names[predicted[worst[0]]]


@pytest.mark.parametrize("command", [("train",), ("sweep", "--seeds", 2)], ids=str)
def test_an_evaluation_shows_it(run, known_strategy, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run(*command, "--epochs", 1, "--run", "first", *SMALL)
    code, out, err = run("eval", "first", "--confusion", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    matrix = torch.tensor(found["matrix"])
    assert matrix.sum(1).tolist() == [200] * 10
    assert float(matrix.diagonal().sum()) / 2000 == pytest.approx(found["test_accuracy"])
    assert len(found["mistakes"]) == 5
    code, out, _ = run("eval", "first", "--confusion")
    assert code == 0
    assert "9 Ankle boot" in out
    assert "calibration error" in out
    assert max(map(len, out.splitlines())) <= 80


def test_many_classes_are_shown_by_what_they_are_taken_for():
    names = tuple(f"class{number}" for number in range(20))
    labels = torch.arange(200) % 20
    probabilities = torch.eye(20)[(labels + (torch.arange(200) > 100).long()) % 20]
    found = confusion.described(probabilities, labels, names)
    table = confusion.table(found)
    assert [str(column.header) for column in table.columns][-1] == "mostly taken for"
    assert [*table.columns[-1].cells][3] == "class4 5"


def test_names_of_classes_are_shown_as_they_are(capsys):
    names = ("[bold]cat", "[/x]", ":dog:", "K\u00e4se")
    terminal.show(confusion.table(confusion.described(torch.eye(4), torch.arange(4), names)))
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
