"""The best answer span of every feature, searched exactly, and the features of one example merged.

The best end for a start is the maximum of the end logits in a window, and a window maximum takes log2(length) array
operations when windows of doubling length are combined. So all spans up to the limit are considered, with no list of
the 20 best starts and ends, in memory of a few arrays of the size of the logits.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Spans(NamedTuple):
    """The best span of each feature.

    Args:
        start: int64 [batch], first position.
        end: int64 [batch], last position, inclusive.
        score: [batch], start logit plus end logit; -inf where no position is answerable.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    score: NDArray[np.floating[Any]]


def best_spans(start_logits: ArrayLike, end_logits: ArrayLike, answerable: ArrayLike, max_answer_length: int) -> Spans:
    """Return the best of all spans of at most ``max_answer_length`` positions, for every feature.

    A span begins and ends at answerable positions and may pass over others. Of equal scores the smallest start wins,
    then the smallest end. The result is that of trying every span in the arithmetic of the logits' dtype: rounding is
    monotone, so the highest end logit gives the highest sum.

    Args:
        start_logits: float32 [batch, sequence]; float64 is kept, anything narrower is widened to float32.
        end_logits: As ``start_logits``. -inf is a logit like others.
        answerable: bool [batch, sequence], where a span may begin or end. Logits elsewhere only must not be NaN.
        max_answer_length: The most positions of a span, at least 1.

    Returns:
        The spans; a row without answerable position has score -inf and start = end = 0.

    Raises:
        ValueError: Shapes differ or are not [batch, sequence] with a sequence, ``answerable`` is not bool,
            ``max_answer_length`` is below 1, a logit is NaN, or +inf where answerable.
    """
    starts, ends, mask = np.asarray(start_logits), np.asarray(end_logits), np.asarray(answerable)
    if starts.ndim != 2 or starts.shape[1] == 0 or not starts.shape == ends.shape == mask.shape:
        raise ValueError(f"expected three [batch, sequence] arrays, got {starts.shape}, {ends.shape}, {mask.shape}")
    if mask.dtype != np.bool_ or max_answer_length < 1:
        raise ValueError(f"answerable is {mask.dtype}, not bool, or max_answer_length {max_answer_length} is below 1")
    if np.isnan(starts).any() or np.isnan(ends).any():
        raise ValueError("a logit is NaN")
    dtype = np.result_type(starts, ends, np.float32)
    starts = np.where(mask, starts, -np.inf).astype(dtype, copy=False)
    ends = np.where(mask, ends, -np.inf).astype(dtype, copy=False)
    if starts.max(initial=-np.inf) == np.inf or ends.max(initial=-np.inf) == np.inf:
        raise ValueError("a logit is +inf at an answerable position")

    rows = np.arange(len(starts))
    width = min(int(max_answer_length), starts.shape[1])
    with np.errstate(over="ignore"):
        totals = _window_maximum(ends, width)
        totals += starts
        start = totals.argmax(axis=1)
        score = totals[rows, start]
        # Two end logits can give one rounded sum, so the window is searched by sums. Past the edge the last position
        # is repeated, and its first occurrence is the one that is found.
        window = np.minimum(start[:, None] + np.arange(width), starts.shape[1] - 1)
        sums = starts[rows, start][:, None] + np.take_along_axis(ends, window, axis=1)
    end = start + sums.argmax(axis=1)
    nothing = np.isneginf(score)
    first = mask.argmax(axis=1)
    return Spans(np.where(nothing, first, start), np.where(nothing, first, end), score)


def _window_maximum(values: NDArray[Any], width: int) -> NDArray[Any]:
    """Return the maximum of ``values[:, t : t + width]`` at every t, windows being cut at the end."""
    maximum = values.copy()
    reach = 1
    while reach < width:
        shift = min(reach, width - reach)
        # Overlapping input and output: numpy reads as if the input had been copied first.
        np.maximum(maximum[:, :-shift], maximum[:, shift:], out=maximum[:, :-shift])
        reach += shift
    return maximum


class MergedFeatures(NamedTuple):
    """One answer per example.

    Args:
        feature: int64 [examples], the row of the feature whose span is the best; index its positions with it.
        score: float64 [examples], the score of that span.
        null_score: float64 [examples], the lowest null score of the example's features.
        no_answer_score: float64 [examples], ``null_score - score``, +inf where no feature has a span.
    """

    feature: NDArray[np.int64]
    score: NDArray[np.float64]
    null_score: NDArray[np.float64]
    no_answer_score: NDArray[np.float64]


def merge_features(
    example_index: ArrayLike, scores: ArrayLike, null_scores: ArrayLike, num_examples: int
) -> MergedFeatures:
    """Return the best span and the null score of every example over the windows its context was cut into.

    Args:
        example_index: int [features], which example a feature belongs to, in any order.
        scores: float [features], the best span's score per feature; -inf where it has none.
        null_scores: float [features], finite: the score of "no answer" (start plus end logit of the null position).
        num_examples: How many examples there are, each with at least one feature.

    Returns:
        The merged features; of equal scores the first feature's wins.

    Raises:
        ValueError: Shapes differ, an index is out of range, an example has no feature, a score is NaN or +inf, a null
            score is not finite.

    Source:
        Devlin et al., "BERT" (2018), section 4.3: a non-null span counts against the null score; the minimum over
        windows is that of the SQuAD code published with it.
    """
    index = np.asarray(example_index, dtype=np.int64)
    spans, nulls = np.asarray(scores, dtype=np.float64), np.asarray(null_scores, dtype=np.float64)
    if index.ndim != 1 or not index.shape == spans.shape == nulls.shape:
        raise ValueError(f"expected three [features] arrays, got {index.shape}, {spans.shape}, {nulls.shape}")
    if np.isnan(spans).any() or np.isposinf(spans).any() or not np.isfinite(nulls).all():
        raise ValueError("a span score is NaN or +inf, or a null score is not finite")
    if len(index) and not 0 <= index.min() <= index.max() < num_examples:
        raise ValueError(f"example indexes {index.min()} to {index.max()} do not lie within {num_examples} examples")
    if not (features_of := np.bincount(index, minlength=num_examples)).all():
        raise ValueError(f"example {int(features_of.argmin())} has no feature")
    order = np.lexsort((-spans, index))
    feature = order[np.cumsum(features_of) - features_of]
    null = np.full(num_examples, np.inf)
    np.minimum.at(null, index, nulls)
    best = spans[feature]
    return MergedFeatures(feature, best, null, null - best)
