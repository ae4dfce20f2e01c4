"""Accuracy, F1 and the confusion matrix of single-label classification."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def classification_metrics(labels: ArrayLike, predictions: ArrayLike, label_names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a classifier as fractions, in plain numbers that JSON takes.

    A division by zero gives 0.0. As in scikit-learn's defaults, f1_macro is the mean over the classes that occur in
    the labels or in the predictions; the others stand in per_class and confusion_matrix with zeros.

    Args:
        labels: int [examples], the true classes, from 0.
        predictions: int [examples], the predicted classes.
        label_names: Name of every class, in the order of the indexes.

    Returns:
        ``accuracy``, ``f1_macro``, ``f1_micro`` (equal to the accuracy, as every example has one class), ``per_class``
        (name: ``precision``, ``recall``, ``f1``, and ``support``, the number of true examples) and
        ``confusion_matrix``, counts with a row per true and a column per predicted class.

    Raises:
        ValueError: No examples, shapes differ, an entry is no index of ``label_names``, a name twice.
    """
    names = list(label_names)
    true, predicted = _class_indexes(labels, len(names)), _class_indexes(predictions, len(names))
    if len(set(names)) != len(names):
        raise ValueError(f"label names occur twice: {names}")
    if len(true) == 0 or true.shape != predicted.shape:
        raise ValueError(f"expected as many predictions as labels, at least one, got {len(predicted)} and {len(true)}")
    confusion = np.bincount(true * len(names) + predicted, minlength=len(names) ** 2).reshape(len(names), len(names))
    right, support, guesses = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1 = ratio(right, guesses), ratio(right, support), ratio(2 * right, support + guesses)
    accuracy = float(right.sum() / len(true))
    return {
        "accuracy": accuracy,
        "f1_macro": float(f1[support + guesses > 0].mean()),
        "f1_micro": accuracy,
        "per_class": per_class(names, precision, recall, f1, support),
        "confusion_matrix": confusion.tolist(),
    }


def _class_indexes(values: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    indexes = np.asarray(values)
    if indexes.ndim != 1 or (indexes.size and not np.issubdtype(indexes.dtype, np.integer)):
        raise ValueError(f"expected int [examples], got {indexes.dtype} {list(indexes.shape)}")
    if indexes.size and not 0 <= indexes.min() <= indexes.max() < num_classes:
        raise ValueError(f"classes {indexes.min()} to {indexes.max()} do not lie within the {num_classes} label names")
    return indexes.astype(np.int64)


def per_class(
    names: Sequence[str],
    precision: NDArray[np.float64],
    recall: NDArray[np.float64],
    f1: NDArray[np.float64],
    support: NDArray[np.int64],
) -> dict[str, dict[str, float | int]]:
    """Return the figures of each class by its name, from those of all classes ``[classes]``."""
    return {
        name: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(support[i]),
        }
        for i, name in enumerate(names)
    }


def ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return ``part / whole``, 0 where ``whole`` is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
