"""Intervals around measured figures: how far another sample of as many rows might have come out.

They speak of the rows that were drawn for the test, not of another seed of the training.
"""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

NORMAL_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, between which and its negative 95 % lie."""

DRAWS = 1000
"""Bootstrap samples; percentiles of fewer are themselves noisy."""

Interval = tuple[float, float]


def wilson_interval(successes: int, total: int) -> Interval:
    """Return the 95 % score interval of a proportion, as fractions.

    Args:
        successes: How many of the rows were right.
        total: How many rows there are.

    Returns:
        The lower and the upper end; within 0 and 1, and of some width also where all or none were right.

    Raises:
        ValueError: There are no rows, or more successes than rows.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (JASA 22, 1927); Brown, Cai
    and DasGupta, "Interval Estimation for a Binomial Proportion" (Statistical Science 16, 2001), section 3.
    """
    if not 0 <= successes <= total or total < 1:
        raise ValueError(f"expected 0 to {total} successes of at least one row, got {successes}")
    rate, square = successes / total, NORMAL_95**2
    centre = (rate + square / (2 * total)) / (1 + square / total)
    spread = NORMAL_95 * math.sqrt(rate * (1 - rate) / total + square / (4 * total**2)) / (1 + square / total)
    low = 0.0 if successes == 0 else centre - spread
    return low, 1.0 if successes == total else centre + spread


def bootstrap_interval(sums: ArrayLike, weights: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return the 95 % percentile bootstrap interval of ``sum(sums) / sum(weights)`` over the rows.

    Args:
        sums: float [rows], such as the loss of each row summed over its tokens.
        weights: float [rows], such as its tokens; ones for a plain mean.
        draws: How many samples of as many rows are drawn, with replacement.
        seed: Of the draws.

    Raises:
        ValueError: No rows, shapes that differ, a value that is no number, or a weight that is not positive.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
    """
    values, counts = _rows(sums, weights)
    return _percentiles(len(values), lambda rows: values[rows].sum() / counts[rows].sum(), draws, seed)


def by_group(sums: ArrayLike, weights: ArrayLike, groups: Sequence[Hashable]) -> tuple[ArrayLike, ArrayLike]:
    """Return sums and weights of whole groups of rows, so that what is drawn of them is drawn group by group.

    Rows of one group, such as questions on one passage, are easy or hard together: drawn one by one as if each were a
    sample of its own, they make an interval too narrow.

    Args:
        sums: float [rows], as for :func:`bootstrap_interval`.
        weights: float [rows].
        groups: What each row belongs to.

    Returns:
        ``sums`` and ``weights`` as float [groups].

    Raises:
        ValueError: As for :func:`bootstrap_interval`, or a different number of groups than rows.

    Source: Davison and Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.
    """
    values, counts = _rows(sums, weights)
    if len(groups) != len(values):
        raise ValueError(f"expected a group for each of {len(values)} rows, got {len(groups)}")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    places = [numbers[group] for group in groups]
    return np.bincount(places, weights=values), np.bincount(places, weights=counts)


def paired_difference(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], draws: int = DRAWS, seed: int = 0
) -> tuple[float, Interval]:
    """Return the figure of the second less that of the first on the same rows, and its 95 % bootstrap interval.

    Rows are drawn together, so what makes a row hard for both does not widen the interval.

    Args:
        first: ``sums`` and ``weights`` of one model, as for :func:`bootstrap_interval`.
        second: Those of the other one, row by row on the same data.
        draws: How many samples of as many rows are drawn.
        seed: Of the draws.

    Raises:
        ValueError: As for :func:`bootstrap_interval`, or a different number of rows.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; for systems compared on the
    same test rows Koehn, "Statistical Significance Tests for Machine Translation Evaluation" (EMNLP 2004).
    """
    (a, of_a), (b, of_b) = _rows(*first), _rows(*second)
    if len(a) != len(b):
        raise ValueError(f"expected the same rows of both, got {len(a)} and {len(b)}")

    def difference(rows: NDArray[np.intp]) -> float:
        return b[rows].sum() / of_b[rows].sum() - a[rows].sum() / of_a[rows].sum()

    return float(difference(np.arange(len(a)))), _percentiles(len(a), difference, draws, seed)


def _rows(sums: ArrayLike, weights: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, counts = np.asarray(sums, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or values.shape != counts.shape or not len(values):
        raise ValueError(f"expected two [rows] arrays of at least one row, got {values.shape} and {counts.shape}")
    if not np.isfinite(values).all() or not np.isfinite(counts).all() or counts.min() <= 0:
        raise ValueError("values must be finite and weights positive")
    return values, counts


def _percentiles(num_rows: int, figure: Callable[[NDArray[np.intp]], float], draws: int, seed: int) -> Interval:
    generator = np.random.default_rng(seed)
    drawn = [figure(generator.integers(num_rows, size=num_rows)) for _ in range(draws)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)
