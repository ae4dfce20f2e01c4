"""The vectorised span search against trying every span, and the merge of features against loops."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finelaunch.metrics.spans import best_spans, merge_features

shapes = st.tuples(st.integers(1, 4), st.integers(1, 40))
few_values = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0])
# 2**24 swallows small addends, so that unequal end logits give equal sums.
rounding_values = st.sampled_from([2.0**24, 2.0**24 + 2, 0.0, 0.25, 1.0, -1.0])
extreme_values = st.sampled_from([-math.inf, -3.4e38, 3.4e38, 0.0, 1.0])
any_values = st.floats(-1e4, 1e4, width=32)


def every_span(starts: Any, ends: Any, answerable: Any, limit: int) -> list[tuple[int, int, Any]]:
    found = []
    for row in range(len(starts)):
        best: tuple[int, int, Any] | None = None
        for start in range(starts.shape[1]):
            for end in range(start, min(start + limit, starts.shape[1])):
                if answerable[row, start] and answerable[row, end]:
                    with np.errstate(over="ignore"):
                        score = starts[row, start] + ends[row, end]
                    if best is None or score > best[2]:
                        best = (start, end, score)
        found.append(best or (0, 0, starts.dtype.type(-np.inf)))
    return found


@st.composite
def searches(draw: st.DrawFn) -> tuple[Any, Any, Any, int]:
    shape = draw(shapes)
    values = draw(st.sampled_from([few_values, rounding_values, extreme_values, any_values]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    starts, ends = (draw(arrays(np.float64, shape, elements=values)).astype(dtype) for _ in range(2))
    mask = draw(st.one_of(arrays(bool, shape), st.just(np.ones(shape, bool)), st.just(np.zeros(shape, bool))))
    return starts, ends, mask, draw(st.integers(1, 30))


@given(searches())
def test_the_search_equals_trying_every_span(search: tuple[Any, Any, Any, int]) -> None:
    found = best_spans(*search)
    assert found.score.dtype == search[0].dtype
    assert [tuple(row) for row in zip(*found, strict=True)] == every_span(*search)


@given(searches(), st.integers(0, 3))
def test_a_row_does_not_depend_on_its_batch_or_on_padding(search: tuple[Any, Any, Any, int], padding: int) -> None:
    starts, ends, mask, limit = search
    whole = best_spans(*search)
    for row in range(len(starts)):
        padded = [np.pad(part[row : row + 1], ((0, 0), (0, padding))) for part in (starts, ends, mask)]
        alone = best_spans(padded[0] + 0, padded[1], padded[2], limit)
        assert [tuple(part) for part in alone] == [(part[row],) for part in whole]


@pytest.mark.parametrize("limit", [1, 2, 3, 29, 30, 383, 384, 10_000])
def test_long_rows_at_the_edges_of_the_limit(limit: int) -> None:
    random = np.random.default_rng(limit)
    starts, ends = random.integers(-3, 4, (2, 2, 384)).astype(np.float32)
    mask = np.zeros((2, 384), bool)
    mask[0, 20:], mask[1, 50:60] = True, True
    assert [tuple(row) for row in zip(*best_spans(starts, ends, mask, limit), strict=True)] == every_span(
        starts, ends, mask, limit
    )


def test_logits_that_do_not_count_may_be_infinite() -> None:
    logits = np.array([[np.inf, 1.0, -np.inf]], np.float32)
    mask = np.array([[False, True, False]])
    assert [part.tolist() for part in best_spans(logits, logits, mask, 3)] == [[1], [1], [2.0]]


def test_half_precision_is_widened_and_inputs_stay_as_they_are() -> None:
    logits = np.array([[2048.0, 1.0, 2.0]], np.float16)
    kept, mask = logits.copy(), np.ones((1, 3), bool)
    assert best_spans(logits, logits, mask, 2).score.tolist() == [4096.0]
    assert best_spans(logits[:, 1:], logits[:, 1:], mask[:, 1:], 2).score.dtype == np.float32
    assert (logits == kept).all()


def test_an_empty_batch_has_no_spans() -> None:
    empty = np.zeros((0, 5), np.float32)
    assert [len(part) for part in best_spans(empty, empty, empty.astype(bool), 3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"start_logits": np.full((1, 2), np.nan)}, "NaN"),
        ({"end_logits": np.array([[0.0, np.nan]]), "answerable": np.array([[True, False]])}, "NaN"),
        ({"end_logits": np.array([[0.0, np.inf]])}, r"\+inf"),
        ({"max_answer_length": 0}, "below 1"),
        ({"answerable": np.ones((1, 2), int)}, "not bool"),
        ({"end_logits": np.zeros((2, 2))}, "expected three"),
        (dict.fromkeys(("start_logits", "end_logits", "answerable"), np.zeros((1, 0), bool)), "expected three"),
    ],
)
def test_unusable_logits_are_refused(change: dict[str, Any], said: str) -> None:
    inputs: dict[str, Any] = {
        "start_logits": np.zeros((1, 2)),
        "end_logits": np.zeros((1, 2)),
        "answerable": np.ones((1, 2), bool),
        "max_answer_length": 2,
    }
    with pytest.raises(ValueError, match=said):
        best_spans(**(inputs | change))


def peak_bytes(num_features: int, batch: int, length: int = 384, limit: int = 30) -> int:
    random = np.random.default_rng(0)
    batches = []
    tracemalloc.start()
    highest = 0
    for _ in range(num_features // batch):
        starts, ends = random.standard_normal((2, batch, length), dtype=np.float32)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        batches.append(best_spans(starts, ends, np.ones((batch, length), bool), limit))
        highest = max(highest, tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    return highest


def test_memory_is_a_few_batches_however_many_features_and_however_long_the_answers() -> None:
    batch, length = 32, 384
    logits_bytes = batch * length * 4
    few, many = peak_bytes(64, batch), peak_bytes(640, batch)
    assert many <= few * 1.1
    assert many <= 8 * logits_bytes
    assert peak_bytes(64, batch, limit=length) <= 16 * logits_bytes


@st.composite
def features(draw: st.DrawFn) -> tuple[list[int], Any, Any, int]:
    num_examples = draw(st.integers(1, 6))
    index = draw(st.permutations([*range(num_examples), *draw(st.lists(st.integers(0, num_examples - 1), max_size=8))]))
    scores = st.sampled_from([-math.inf, -1.5, 0.0, 0.5, 2.0])
    nulls = st.sampled_from([-1.0, 0.0, 3.0])
    num = len(index)
    return index, draw(st.tuples(*[scores] * num)), draw(st.tuples(*[nulls] * num)), num_examples


@given(features())
def test_merging_takes_the_first_best_span_and_the_lowest_null(case: tuple[list[int], Any, Any, int]) -> None:
    index, scores, nulls, num_examples = case
    merged = merge_features(*case)
    for example in range(num_examples):
        own = [feature for feature, owner in enumerate(index) if owner == example]
        best = max(own, key=lambda feature: scores[feature])
        null = min(nulls[feature] for feature in own)
        expected = (best, scores[best], null, null - scores[best])
        assert tuple(part[example] for part in merged) == expected


def test_merging_nothing_gives_nothing() -> None:
    assert [len(part) for part in merge_features([], [], [], 0)] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([0, 2], [0.0, 0.0], [0.0, 0.0], 3), "example 1 has no feature"),
        (([0, 3], [0.0, 0.0], [0.0, 0.0], 3), "do not lie within 3"),
        (([-1], [0.0], [0.0], 1), "do not lie within 1"),
        (([0], [math.nan], [0.0], 1), "NaN"),
        (([0], [math.inf], [0.0], 1), r"\+inf"),
        (([0], [0.0], [-math.inf], 1), "not finite"),
        (([0], [0.0, 1.0], [0.0], 1), "expected three"),
    ],
)
def test_features_that_cannot_be_merged_are_refused(arguments: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        merge_features(*arguments)
