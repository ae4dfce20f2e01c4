"""Classification figures against their definitions, counted one example at a time."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.metrics.classification import classification_metrics

NAMES = ["bad", "fair", "good", "unused"]
pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(pairs)
def test_figures_follow_from_counting(rows: list[tuple[int, int]]) -> None:
    labels, predictions = map(list, zip(*rows, strict=True))
    figures = classification_metrics(labels, predictions, NAMES)
    f1 = []
    for index, name in enumerate(NAMES):
        right = rows.count((index, index))
        guesses, support = predictions.count(index), labels.count(index)
        own = figures["per_class"][name]
        assert own["precision"] == (right / guesses if guesses else 0.0)
        assert own["recall"] == (right / support if support else 0.0)
        both = own["precision"] + own["recall"]
        assert own["f1"] == pytest.approx(2 * own["precision"] * own["recall"] / both if both else 0.0)
        assert own["support"] == support
        assert figures["confusion_matrix"][index] == [rows.count((index, other)) for other in range(4)]
        if guesses or support:
            f1.append(own["f1"])
    assert figures["accuracy"] == figures["f1_micro"] == pytest.approx(np.mean([a == b for a, b in rows]))
    assert figures["f1_macro"] == pytest.approx(np.mean(f1))


@given(pairs, st.permutations(range(4)))
def test_renaming_classes_moves_their_figures_and_no_others(rows: list[tuple[int, int]], order: list[int]) -> None:
    labels, predictions = np.array(rows).T
    before = classification_metrics(labels, predictions, NAMES)
    moved = [NAMES[order.index(index)] for index in range(4)]
    after = classification_metrics(np.array(order)[labels], np.array(order)[predictions], moved)
    assert after["per_class"] == before["per_class"]
    assert after["f1_macro"] == pytest.approx(before["f1_macro"])


def test_figures_computed_by_hand() -> None:
    figures = classification_metrics([0, 0, 0, 1, 1], [0, 0, 1, 1, 0], ["negative", "positive"])
    assert figures["confusion_matrix"] == [[2, 1], [1, 1]]
    assert figures["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert figures["accuracy"] == 0.6
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize(
    ("labels", "predictions", "names", "said"),
    [
        ([], [], NAMES, "at least one"),
        ([0, 1], [0], NAMES, "as many predictions"),
        ([0], [4], NAMES, "do not lie within the 4"),
        ([-100], [0], NAMES, "classes -100"),
        ([0.0], [0], NAMES, "float64"),
        ([[0]], [[0]], NAMES, r"\[1, 1\]"),
        ([0], [0], ["same", "same"], "twice"),
    ],
)
def test_labels_that_cannot_be_counted_are_refused(labels: Any, predictions: Any, names: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        classification_metrics(labels, predictions, names)
