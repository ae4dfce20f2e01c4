"""F1, exact match and Hamming loss of texts with any number of labels, and the threshold from which on one is given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finelaunch.metrics.classification import per_class, ratio

HALF = 0.5
"""The threshold of those who choose none."""


def choose_label_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the lowest threshold with the best ``f1_micro``; one for all labels.

    It lies halfway between the two neighbouring scores that it tells apart, so that rounding moves no answer.

    Args:
        labels: bool [examples, labels], which labels each example has.
        scores: float [examples, labels], probabilities.

    Returns:
        A number between 0 and 1; 0.5 where no example has a label.

    Raises:
        ValueError: No examples, shapes that differ, or a score outside 0 to 1.
    """
    true, given = _pair(labels, scores)
    if not true.any():
        return HALF
    order = np.argsort(given, axis=None, kind="stable")
    ascending, hits = given.ravel()[order], true.ravel()[order]
    right = np.cumsum(hits[::-1])[::-1]
    f1 = 2 * right / (len(hits) - np.arange(len(hits)) + hits.sum())
    below = np.concatenate([[0.0], ascending[:-1]])
    is_gap = ascending > below
    is_gap[0] = True
    first = int(np.argmax(np.where(is_gap, f1, -1.0)))
    return float((below[first] + ascending[first]) / 2)


def multi_label_metrics(
    labels: ArrayLike, scores: ArrayLike, label_names: Sequence[str], threshold: float
) -> dict[str, Any]:
    """Return the figures of a classifier as fractions, in plain numbers that JSON takes.

    A division by zero gives 0.0, as in scikit-learn's defaults: an example without a label that is given none counts 0
    in ``f1_samples``, and a label that occurs nowhere counts 0 in ``f1_macro``.

    Args:
        labels: bool [examples, labels], which labels each example has.
        scores: float [examples, labels], probabilities; a label is given where its score reaches the threshold.
        label_names: Name of every label.
        threshold: Between 0 and 1.

    Returns:
        ``accuracy`` (share of examples of which every label is right), ``f1_micro`` (over all pairs of example and
        label), ``f1_macro`` (mean over the labels), ``f1_samples`` (mean over the examples), ``hamming_loss`` (share of
        wrong pairs), ``threshold``, ``f1_micro_at_half`` (at the threshold 0.5) and ``per_class`` (name: ``precision``,
        ``recall``, ``f1``, ``support``).

    Raises:
        ValueError: No examples, shapes that differ, a score outside 0 to 1, or not one name a label.
    """
    true, given = _pair(labels, scores)
    names = list(label_names)
    if true.shape[1] != len(names) or len(set(names)) != len(names):
        raise ValueError(f"expected one name for each of {true.shape[1]} labels, got {names}")
    predicted = given >= threshold
    right = true & predicted
    support, guesses, hits = true.sum(axis=0), predicted.sum(axis=0), right.sum(axis=0)
    precision, recall, f1 = ratio(hits, guesses), ratio(hits, support), ratio(2 * hits, support + guesses)
    return {
        "accuracy": float((true == predicted).all(axis=1).mean()),
        "f1_macro": float(f1.mean()),
        "f1_micro": _f1_micro(true, predicted),
        "f1_samples": float(ratio(2 * right.sum(axis=1), true.sum(axis=1) + predicted.sum(axis=1)).mean()),
        "hamming_loss": float((true != predicted).mean()),
        "threshold": float(threshold),
        "f1_micro_at_half": _f1_micro(true, given >= HALF),
        "per_class": per_class(names, precision, recall, f1, support),
    }


def _pair(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    true, given = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    if true.ndim != 2 or true.shape != given.shape or not true.size:
        raise ValueError(f"expected two [examples, labels] arrays, got {list(true.shape)} and {list(given.shape)}")
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError("scores must lie within 0 and 1")
    return true, given


def _f1_micro(true: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    whole = int(true.sum() + predicted.sum())
    return 2 * int((true & predicted).sum()) / whole if whole else 0.0
