"""Intervals against published values, against the normal approximation, and against how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.metrics.intervals import bootstrap_interval, by_group, paired_difference, wilson_interval


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_values(successes: int, total: int, low: float, high: float) -> None:
    """Newcombe, Two-sided confidence intervals for the single proportion (1998), table I, method 3."""
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_holds_the_proportion_and_mirrors(counted: tuple[int, int]) -> None:
    successes, total = counted
    low, high = wilson_interval(successes, total)
    assert 0 <= low <= successes / total <= high <= 1
    assert low < high
    assert wilson_interval(total - successes, total) == pytest.approx((1 - high, 1 - low))


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(10, 2, 400)
    low, high = bootstrap_interval(values, np.ones(400))
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_bootstrap_weighs_rows_and_is_the_same_each_time() -> None:
    sums, weights = np.array([10.0, 2.0, 3.0, 8.0]), np.array([5.0, 1.0, 3.0, 2.0])
    interval = bootstrap_interval(sums, weights)
    assert interval == bootstrap_interval(sums, weights)
    assert interval[0] < sums.sum() / weights.sum() < interval[1]
    assert bootstrap_interval(2 * weights, weights) == pytest.approx((2, 2))
    assert bootstrap_interval([7.0], [2.0]) == (3.5, 3.5)
    values, ones = np.random.default_rng(4).normal(size=50), np.ones(50)
    assert bootstrap_interval(values, ones) != bootstrap_interval(values, ones, seed=1)


def test_a_mean_lies_in_its_interval_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        values = np.random.default_rng(1000 + seed).exponential(1.0, 80)
        low, high = bootstrap_interval(values, np.ones(80), draws=300, seed=seed)
        held += low <= 1.0 <= high
    assert 170 <= held <= 198


def test_a_paired_difference_is_narrower_than_the_two_apart() -> None:
    random = np.random.default_rng(5)
    hard, ones = random.normal(0, 5, 300), np.ones(300)
    first, second = hard + random.normal(0, 0.1, 300), hard + 0.5 + random.normal(0, 0.1, 300)
    value, (low, high) = paired_difference((first, ones), (second, ones))
    assert value == pytest.approx(second.mean() - first.mean())
    assert low < value < high
    assert low > 0
    alone = bootstrap_interval(second, ones)
    assert high - low < (alone[1] - alone[0]) / 10
    back, (lower, upper) = paired_difference((second, ones), (first, ones))
    assert (back, lower, upper) == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize("arguments", [(1, 0), (-1, 3), (4, 3), (0, 0)])
def test_no_proportion_is_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(*arguments)


@pytest.mark.parametrize(
    ("sums", "weights", "said"),
    [
        ([], [], "at least one row"),
        ([1.0], [1.0, 2.0], "two"),
        ([math.nan], [1.0], "finite"),
        ([1.0, 2.0], [1.0, 0.0], "positive"),
    ],
)
def test_rows_without_a_mean_are_refused(sums: list[float], weights: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bootstrap_interval(sums, weights)
    with pytest.raises(ValueError, match=said):
        paired_difference((sums, weights), (sums, weights))


def test_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="the same rows"):
        paired_difference(([1.0], [1.0]), ([1.0, 2.0], [1.0, 1.0]))


def test_groups_are_drawn_whole_and_rows_that_share_one_widen_the_interval():
    sums, weights = by_group([1, 2, 3, 4], [1, 1, 2, 1], ["a", "b", "a", "b"])
    assert (list(sums), list(weights)) == ([4, 6], [3, 2])
    generator = np.random.default_rng(1)
    values, groups = np.repeat(generator.random(40), 10), np.repeat(np.arange(40), 10).tolist()
    ones = np.ones(400)
    low, high = bootstrap_interval(values, ones)
    lower, upper = bootstrap_interval(*by_group(values, ones, groups))
    # Ten equal rows are one: the deviation of the mean is that of 40 rows, the square root of ten times that of 400.
    assert 2.6 < (upper - lower) / (high - low) < 3.8
    alone = bootstrap_interval(*by_group(values, ones, list(range(400))))
    assert alone == (low, high)


def test_an_interval_of_groups_holds_the_truth_as_often_as_it_says():
    held = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        sizes = generator.integers(1, 9, size=60)
        values = np.repeat(generator.normal(size=60), sizes) + 0.3 * generator.normal(size=sizes.sum())
        groups = np.repeat(np.arange(60), sizes).tolist()
        low, high = bootstrap_interval(*by_group(values, np.ones(len(values)), groups), draws=300, seed=seed)
        held += low <= 0 <= high
    assert 0.88 <= held / 200 <= 0.98


def test_groups_of_another_number_than_rows_are_refused():
    with pytest.raises(ValueError, match="a group for each of 2 rows, got 1"):
        by_group([1.0, 2.0], [1.0, 1.0], ["a"])
