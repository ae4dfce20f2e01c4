"""The sampler: each row once an epoch, the same global batches for every cut, hardly any padding."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finelaunch.data.features import Features
from finelaunch.data.sampler import GlobalBatchSampler, TrainingRows, padding_fraction

lengths_of_rows = st.lists(st.integers(1, 50), min_size=1, max_size=120).map(np.array)
cuts = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
"""Rows per device, ranks, accumulated passes."""
windows = st.sampled_from([1, 2, 7, 50])
seeds = st.integers(0, 2**32 - 1)


def sampler(
    lengths: Any, cut: tuple[int, int, int], seed: int = 0, window: int = 50, rank: int = 0
) -> GlobalBatchSampler:
    per_device, world_size, accumulated = cut
    return GlobalBatchSampler(
        lengths, per_device * world_size * accumulated, per_device, seed, window, rank, world_size
    )


def rows_of(batches: list[np.ndarray]) -> list[int]:
    return np.concatenate(batches).tolist()


@given(lengths_of_rows, cuts, seeds, windows, st.integers(0, 5))
@settings(deadline=None)
def test_each_row_comes_once_an_epoch(
    lengths: np.ndarray, cut: tuple[int, int, int], seed: int, window: int, epoch: int
) -> None:
    made = sampler(lengths, cut, seed, window)
    batches = made.global_batches(epoch)
    assert len(batches) == made.num_global_batches
    assert {len(batch) for batch in batches} == {made.global_batch_size}
    rows = rows_of(batches)
    assert sorted(row for row in rows if row >= 0) == list(range(len(lengths)))
    padding = [row for row in rows if row < 0]
    assert len(padding) == made.num_padding_rows < made.global_batch_size
    assert padding == [row for row in batches[-1].tolist() if row < 0]
    assert all(0 <= ~row < len(lengths) for row in padding)
    real = batches[-1][batches[-1] >= 0]
    assert all(lengths[~row] == lengths[real].min() for row in padding)


@given(lengths_of_rows, cuts, cuts, seeds, windows)
@settings(deadline=None)
def test_the_global_batches_are_the_same_for_every_cut(
    lengths: np.ndarray, one: tuple[int, int, int], other: tuple[int, int, int], seed: int, window: int
) -> None:
    size = int(np.lcm(np.prod(one), np.prod(other)))
    batches = [
        [
            sorted(row for rank in range(world_size) for micro in ranks[rank] for row in micro)
            for ranks in _by_global_batch(lengths, size, per_device, world_size, seed, window)
        ]
        for per_device, world_size, _ in (one, other)
    ]
    assert batches[0] == batches[1]


def _by_global_batch(
    lengths: np.ndarray, size: int, per_device: int, world_size: int, seed: int, window: int
) -> list[list[list[list[int]]]]:
    """Return for each global batch and rank the micro-batches that were yielded."""
    num_micro_steps = size // (per_device * world_size)
    yielded = []
    for rank in range(world_size):
        made = GlobalBatchSampler(lengths, size, per_device, seed, window, rank, world_size)
        made.set_epoch(1)
        yielded.append(list(made))
        assert len(yielded[-1]) == len(made) == made.num_global_batches * num_micro_steps
        assert {len(micro) for micro in yielded[-1]} == {per_device}
    starts = range(0, len(yielded[0]), num_micro_steps)
    return [[micros[start : start + num_micro_steps] for micros in yielded] for start in starts]


@given(lengths_of_rows, cuts, seeds)
@settings(deadline=None)
def test_the_micro_batches_of_the_ranks_partition_each_global_batch(
    lengths: np.ndarray, cut: tuple[int, int, int], seed: int
) -> None:
    per_device, world_size, accumulated = cut
    whole = sampler(lengths, cut, seed)
    yielded = _by_global_batch(lengths, whole.global_batch_size, per_device, world_size, seed, 50)
    for batch, ranks in zip(whole.global_batches(1), yielded, strict=True):
        together = sorted(row for micros in ranks for micro in micros for row in micro)
        assert together == sorted(batch.tolist())
        for step in range(accumulated):
            micro_step = sorted(row for micros in ranks for row in micros[step])
            assert micro_step == sorted(whole.micro_batches(batch)[step].tolist())


@given(lengths_of_rows, cuts, seeds, windows)
@settings(deadline=None)
def test_tokens_are_those_of_the_padded_micro_batches(
    lengths: np.ndarray, cut: tuple[int, int, int], seed: int, window: int
) -> None:
    whole = sampler(lengths, cut, seed, window)
    ranks = [list(sampler(lengths, cut, seed, window, rank)) for rank in range(cut[1])]
    places = sum(
        len(micro) * max(int(lengths[row if row >= 0 else ~row]) for row in micro)
        for micros in ranks
        for micro in micros
    )
    counted = [whole.tokens(batch) for batch in whole.global_batches(0)]
    assert sum(real for real, _ in counted) == int(lengths.sum())
    assert sum(places for _, places in counted) == places
    assert padding_fraction(counted) == pytest.approx(1 - lengths.sum() / places)


def test_epochs_and_seeds_differ_and_both_repeat() -> None:
    lengths = np.arange(1, 201) % 37 + 1
    orders = {
        (seed, epoch): rows_of(sampler(lengths, (4, 2, 1), seed).global_batches(epoch))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len({tuple(order) for order in orders.values()}) == len(orders)
    again = sampler(lengths, (4, 2, 1), 1)
    again.set_epoch(2)
    assert [row for micro in again for row in micro] == [
        row for batch in again.global_batches(2) for micro in again.micro_batches(batch) for row in micro[::2].tolist()
    ]
    assert rows_of(again.global_batches(2)) == orders[1, 2]


GOLDEN = [[[5, 1, 9, 10], [2, 4, 0, 3], [6, 8, 7, -7]], [[7, 5, 9, 10], [2, 4, 8, 0], [6, 3, 1, -7]]]
"""The global batches of two epochs; who changes them changes what every seed gives, and says so in CHANGELOG.md."""


def test_the_order_has_not_changed() -> None:
    lengths = np.array([5, 9, 1, 7, 3, 8, 2, 6, 4, 10, 11])
    made = GlobalBatchSampler(lengths, 4, 2, seed=42, window_batches=2)
    assert [batch.tolist() for batch in made.global_batches(0)] == GOLDEN[0]
    assert [batch.tolist() for batch in made.global_batches(1)] == GOLDEN[1]


def realistic_lengths() -> np.ndarray:
    """Lengths as of reviews: log-normal, a median of 180 tokens, cut at 512."""
    return np.clip(np.random.default_rng(0).lognormal(np.log(180), 0.6, 20_000), 8, 512).astype(np.int64)


def padding(lengths: np.ndarray, window: int) -> float:
    made = GlobalBatchSampler(lengths, 32, 8, seed=1, window_batches=window)
    return padding_fraction([made.tokens(batch) for batch in made.global_batches(0)])


def test_grouping_by_length_leaves_little_padding() -> None:
    lengths = realistic_lengths()
    to_the_longest = 1 - lengths.mean() / 512
    grouped, ungrouped = padding(lengths, 50), padding(lengths, 1)
    assert grouped < 0.1 * to_the_longest
    assert grouped < 0.2 * ungrouped
    assert ungrouped < to_the_longest


def test_grouping_leaves_the_batches_random() -> None:
    lengths = realistic_lengths()
    made = GlobalBatchSampler(lengths, 32, 8, seed=1)
    means = np.array([lengths[batch].mean() for batch in made.global_batches(0)])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.1
    early, late = means[: len(means) // 2].mean(), means[len(means) // 2 :].mean()
    assert abs(early - late) < 0.1 * means.mean()
    neighbours = {frozenset(batch.tolist()) for epoch in (0, 1) for batch in made.global_batches(epoch)}
    assert len(neighbours) == 2 * made.num_global_batches


@pytest.mark.parametrize("cut", [(10, 3, 1), (10, 4, 1), (4, 3, 2)])
def test_what_cannot_be_cut_is_refused(cut: tuple[int, int, int]) -> None:
    size, per_device, world_size = cut
    with pytest.raises(ValueError, match="cannot be cut"):
        GlobalBatchSampler(np.ones(5), size, per_device, 0, world_size=world_size)
    with pytest.raises(ValueError, match="0 rows"):
        GlobalBatchSampler(np.ones(0), 4, 2, 0)


def test_a_row_of_padding_carries_no_target() -> None:
    columns = {"input_ids": [[1, 2, 3], [4]], "labels": [[1, 2, 3], [4]], "start": [7, 8]}
    rows = TrainingRows(Features.from_lists(columns), -100)
    assert len(rows) == 2
    for index in range(2):
        real, padded = rows[index], rows[~index]
        assert padded["labels"].tolist() == [-100] * len(real["labels"])
        assert padded["labels"].dtype == real["labels"].dtype
        assert padded["input_ids"].tolist() == real["input_ids"].tolist()
        assert rows[index]["labels"].tolist() == columns["labels"][index]


def test_a_single_label_can_be_ignored() -> None:
    rows = TrainingRows(Features.from_lists({"input_ids": [[1], [2]], "labels": [0, 1]}), -100)
    assert (int(rows[1]["labels"]), int(rows[~1]["labels"])) == (1, -100)


def test_no_batches_hold_no_padding() -> None:
    assert padding_fraction([]) == 0.0
    assert all(a < b for a, b in pairwise([padding_fraction([(n, 10)]) for n in (10, 5, 0)]))
