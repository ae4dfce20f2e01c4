"""The figures of a run row by row, from its predictions: their intervals, and what lies between two runs.

Rows of one group, such as questions on one passage, are drawn together; rows of two runs are paired where both runs
name the same rows in the same order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finelaunch.metrics.intervals import Interval, bootstrap_interval, by_group, paired_difference, wilson_interval
from finelaunch.metrics.squad import exact_score, f1_score, normalize_answer
from finelaunch.run.files import read_lines

MAIN = {"text_classification": ("accuracy",), "question_answering": ("exact_match", "f1"), "causal_lm": ("loss",)}
"""The figures that have an interval, by task."""
SHARES = {"accuracy": 1.0, "exact_match": 100.0}
"""Those of them that are shares of right answers, with what they are when all are right."""
FEW_GROUPS = 20
"""Of fewer groups a bootstrap is too narrow."""

_AGREES = 1e-4
"""How far a figure from the predictions may be from the one in metrics.json, relative: predictions are rounded."""

Rows = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Sums and weights of a figure, row by row: the figure is the one sum over the other."""


@dataclass(frozen=True)
class MeasuredRows:
    """The rows of data.test, as a run's predictions have them.

    Args:
        figures: Figures by row.
        ids: The id of each row.
        groups: What each row belongs to; None where the predictions do not say.
    """

    figures: Mapping[str, Rows] = field(default_factory=dict)
    ids: Sequence[str] = ()
    groups: Sequence[str] | None = None

    def intervals(self) -> dict[str, Interval]:
        """Return the interval of each figure.

        By bootstrap of whole groups where there are several; of rows without groups Wilson's for shares of right
        answers, by bootstrap for means.
        """
        if self.groups is not None and len(set(self.groups)) < 2:
            return {}
        return {key: self._interval(key) for key in self.figures}

    def drawn(self, figure: str) -> tuple[Any, Any]:
        """Return the sums and weights of what is drawn at once: of groups, or of rows."""
        rows = self.figures[figure]
        return rows if self.groups is None else by_group(*rows, self.groups)

    def _interval(self, figure: str) -> Interval:
        if self.groups is not None or figure not in SHARES:
            return bootstrap_interval(*self.drawn(figure))
        sums, weights = self.figures[figure]
        low, high = wilson_interval(round(sums.sum() / SHARES[figure]), len(weights))
        return SHARES[figure] * low, SHARES[figure] * high


def read_rows(task: str, predictions: Path, tuned: Mapping[str, Any]) -> tuple[MeasuredRows, list[str]]:
    """Return the rows of a run, with the main figures that come to what ``metrics.json`` says.

    Args:
        task: The run's task.
        predictions: Its ``predictions.jsonl``.
        tuned: The figures of the tuned model.

    Returns:
        The rows, and what is to be said of them.
    """
    ids: list[str] = []
    groups: list[str] | None = None
    try:
        lines = read_lines(predictions)
        found = _ROWS[task](lines)
        ids = [str(line["id"]) for line in lines]
        if lines and all("group" in line for line in lines):
            groups = [str(line["group"]) for line in lines]
    except (LookupError, TypeError, AttributeError, ValueError):
        found = {}
    figures = {
        key: own
        for key, own in found.items()
        if len(own[0]) and np.isclose(own[0].sum() / own[1].sum(), tuned[key], rtol=_AGREES, atol=1e-9)
    }
    if missing := [key for key in MAIN[task] if key not in figures]:
        what = f"{predictions} is missing, damaged or does not come to what metrics.json says"
        return MeasuredRows(figures, ids, groups), [f"has no interval of {' and '.join(missing)}: {what}"]
    return MeasuredRows(figures, ids, groups), _about_groups(task, groups)


def _about_groups(task: str, groups: Sequence[str] | None) -> list[str]:
    if groups is None:
        if task != "question_answering":
            return []
        older = "was evaluated by an older version, which did not write down which questions share a passage"
        return [f"{older}: all count as independent, and its intervals are too narrow where several do"]
    if (count := len(set(groups))) < 2:
        return ["has no interval: all questions are on one passage"]
    return [f"has test rows on {count} passages only: its intervals are too narrow"] if count < FEW_GROUPS else []


def differences(first: MeasuredRows, second: MeasuredRows) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return by how much the figures of ``second`` are above those of ``first``, and why some are not compared.

    Returns:
        By figure its ``value`` and its ``interval``; None as interval where there is one group alone.
    """
    both = [key for key in first.figures if key in second.figures]
    if both and list(first.ids) != list(second.ids):
        return {}, ["have predictions of other rows, or in another order: their ids differ, and nothing is subtracted"]
    found: dict[str, dict[str, Any]] = {}
    why = []
    groups = first.groups if first.groups is not None else second.groups
    for key in both:
        if key == "loss" and not np.array_equal(first.figures[key][1], second.figures[key][1]):
            why.append("cut the test rows into other tokens, so their losses per token are not of one unit")
            continue
        one, other = (MeasuredRows(rows.figures, rows.ids, groups).drawn(key) for rows in (first, second))
        value, interval = paired_difference(one, other)
        is_alone = groups is not None and len(set(groups)) < 2
        found[key] = {"value": value, "interval": None if is_alone else interval}
    return found, why


def _classification_rows(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    right = np.array([float(row["prediction"] == row["reference"]) for row in predictions])
    return {"accuracy": (right, np.ones_like(right))}


def _answer_rows(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    exact, f1 = [], []
    for row in predictions:
        golds = [gold for gold in row["reference"] if normalize_answer(gold)] or [""]
        exact.append(100 * max(exact_score(gold, row["prediction"]) for gold in golds))
        f1.append(100 * max(f1_score(gold, row["prediction"]) for gold in golds))
    ones = np.ones(len(exact))
    return {"exact_match": (np.array(exact), ones), "f1": (np.array(f1), ones)}


def _token_rows(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    counts = np.array([float(row["num_target_tokens"]) for row in predictions])
    losses = np.array([float(row["loss"]) for row in predictions])
    return {"loss": (losses * counts, counts)}


_ROWS: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], dict[str, Rows]]] = {
    "text_classification": _classification_rows,
    "question_answering": _answer_rows,
    "causal_lm": _token_rows,
}
