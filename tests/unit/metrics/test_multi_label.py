"""Figures of texts with several labels, counted pair by pair, and the chosen threshold against all others."""

import json
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finelaunch.metrics.multi_label import choose_label_threshold, multi_label_metrics

NAMES = ["a", "b", "c"]
SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, Any]:
    shape = (draw(st.integers(1, 8)), 3)
    return draw(arrays(bool, shape)), draw(arrays(np.float32, shape, elements=SCORES))


def f1_of(pairs: list[tuple[bool, bool]]) -> float:
    right, wanted, said = (
        sum(both) for both in ((a and b for a, b in pairs), (a for a, _ in pairs), (b for _, b in pairs))
    )
    precision, recall = right / said if said else 0.0, right / wanted if wanted else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(cases(), st.floats(0, 1))
def test_figures_follow_from_counting(case: tuple[Any, Any], threshold: float) -> None:
    true, scores = case
    said = [[float(score) >= threshold for score in row] for row in scores]
    figures = multi_label_metrics(true, scores, NAMES, threshold)
    cells = list(product(range(len(true)), range(3)))
    pairs = [(bool(true[at]), said[at[0]][at[1]]) for at in cells]
    by_label = [[pairs[row * 3 + label] for row in range(len(true))] for label in range(3)]
    by_row = [pairs[row * 3 : row * 3 + 3] for row in range(len(true))]
    assert figures["accuracy"] == pytest.approx(np.mean([all(a == b for a, b in row) for row in by_row]))
    assert figures["hamming_loss"] == pytest.approx(np.mean([a != b for a, b in pairs]))
    assert figures["f1_micro"] == pytest.approx(f1_of(pairs))
    assert figures["f1_macro"] == pytest.approx(np.mean([f1_of(one) for one in by_label]))
    assert figures["f1_samples"] == pytest.approx(np.mean([f1_of(one) for one in by_row]))
    at_half = [(bool(true[at]), float(scores[at]) >= 0.5) for at in cells]
    assert figures["f1_micro_at_half"] == pytest.approx(f1_of(at_half))
    for name, own in zip(NAMES, by_label, strict=True):
        about = figures["per_class"][name]
        right = sum(a and b for a, b in own)
        assert about["support"] == sum(a for a, _ in own)
        assert about["recall"] == (right / about["support"] if about["support"] else 0.0)
        assert about["precision"] == (right / sum(b for _, b in own) if any(b for _, b in own) else 0.0)
        assert about["f1"] == pytest.approx(f1_of(own))
    assert json.loads(json.dumps(figures)) == figures


@given(cases())
def test_no_threshold_is_better_and_none_as_good_tells_more_pairs_apart(case: tuple[Any, Any]) -> None:
    true, scores = case
    chosen = choose_label_threshold(true, scores)
    assert 0.0 <= chosen <= 1.0
    if not true.any():
        assert chosen == 0.5
        return
    levels = [0.0, *np.unique(scores).astype(float)]
    tried = [(low + high) / 2 for low, high in pairwise(levels)]
    reached = {one: multi_label_metrics(true, scores, NAMES, one)["f1_micro"] for one in tried}
    best = max(reached.values())
    assert multi_label_metrics(true, scores, NAMES, chosen)["f1_micro"] == best
    said = {one: int((scores >= one).sum()) for one in tried}
    assert int((scores >= chosen).sum()) == max(said[one] for one in tried if reached[one] == best)


def test_the_threshold_lies_between_two_scores() -> None:
    true = [[True, False], [True, False]]
    assert choose_label_threshold(true, [[0.4, 0.2], [0.3, 0.1]]) == pytest.approx(0.25)
    near = np.nextafter(np.float32(0.3), np.float32(1))
    chosen = choose_label_threshold([[True, False]], np.array([[near, np.float32(0.3)]]))
    assert float(np.float32(0.3)) < chosen < float(near)


@pytest.mark.parametrize(
    ("labels", "scores", "names", "said"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3)), NAMES, "examples, labels"),
        ([[1, 0, 0]], [[0.1, 0.2]], NAMES, "examples, labels"),
        ([[1, 0, 0]], [[0.1, 0.2, float("nan")]], NAMES, "within 0 and 1"),
        ([[1, 0, 0]], [[0.1, 0.2, 1.5]], NAMES, "within 0 and 1"),
        ([[1, 0, 0]], [[0.1, 0.2, 0.3]], ["a", "b"], "one name for each"),
        ([[1, 0, 0]], [[0.1, 0.2, 0.3]], ["a", "b", "a"], "one name for each"),
    ],
)
def test_what_makes_no_sense_is_refused(labels: Any, scores: Any, names: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        multi_label_metrics(labels, scores, names, 0.5)
