"""The arithmetic of a mixture: shares add up, rows are repeated evenly, labels agree or are refused."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.data.mixture import Labels, agreed_labels, apportion, rows_taken, seen_text
from finelaunch.errors import BadInput

weights = st.lists(st.floats(min_value=1e-6, max_value=1e6), min_size=1, max_size=8)


@given(st.integers(0, 100_000), weights)
def test_shares_add_up_and_are_off_by_less_than_a_row(total: int, given_weights: list[float]) -> None:
    counts = apportion(total, given_weights)
    whole = sum(map(Fraction, given_weights))
    assert sum(counts) == total
    for count, weight in zip(counts, given_weights, strict=True):
        assert abs(count - total * Fraction(weight) / whole) < 1


@given(st.integers(0, 100_000), weights, st.sampled_from([0.25, 2.0, 1024.0]))
def test_only_the_ratio_of_weights_matters(total: int, given_weights: list[float], factor: float) -> None:
    assert apportion(total, given_weights) == apportion(total, [weight * factor for weight in given_weights])


def test_the_largest_remainder_gets_the_row_that_is_left_and_of_equal_ones_the_first() -> None:
    assert apportion(10, [0.7, 0.3]) == [7, 3]
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(7, [0.5, 0.3, 0.2]) == [4, 2, 1]
    assert apportion(3, [1000, 1, 1]) == [3, 0, 0]


@given(st.integers(1, 300), st.integers(0, 1000), st.integers(0, 5))
def test_rows_are_repeated_evenly_and_none_is_repeated_before_all_are_seen(rows: int, taken: int, seed: int) -> None:
    found = rows_taken(rows, taken, seed, 0)
    times = Counter(found)
    assert len(found) == taken
    assert set(times) <= set(range(rows))
    assert max((times[row] for row in range(rows)), default=0) - min(times[row] for row in range(rows)) <= 1
    assert found == rows_taken(rows, taken, seed, 0)


def test_seed_and_place_in_the_list_decide_which_rows_are_drawn() -> None:
    drawn = {tuple(rows_taken(100, 30, seed, position)) for seed in (0, 1) for position in (0, 1)}
    assert len(drawn) == 4


@pytest.mark.parametrize(
    ("rows", "taken", "said"),
    [
        (10, 4, "6 of its 10 rows are never seen"),
        (10, 0, "10 of its 10 rows are never seen"),
        (10, 10, "each of its 10 rows is seen once an epoch"),
        (10, 13, "each of its 10 rows is seen once an epoch, 3 of them once more"),
        (1000, 3000, "each of its 1,000 rows is seen 3 times an epoch"),
    ],
)
def test_how_often_rows_are_seen_is_said(rows: int, taken: int, said: str) -> None:
    assert seen_text(rows, taken) == said


def labels(*sources: list[str], numbered: tuple[int, ...] = ()) -> list[Labels]:
    return [Labels(f"data.train[{n}]", f"r.yaml:{n}", names, n in numbered) for n, names in enumerate(sources)]


def test_a_source_may_lack_labels_and_names_come_in_any_order() -> None:
    assert agreed_labels(labels(["a", "c"], ["a", "b", "c"])) == ["a", "b", "c"]
    assert agreed_labels(labels(["b", "a"], ["a", "b"], numbered=(0,))) == ["b", "a"]
    assert agreed_labels(labels(["a", "b"], ["a", "b", "c"], numbered=(0, 1))) == ["a", "b", "c"]


def test_labels_that_differ_are_refused_with_the_source_that_differs() -> None:
    with pytest.raises(BadInput) as caught:
        agreed_labels(labels(["neg", "pos"], ["negative", "positive", "neutral"], ["neutral", "positive"]))
    assert [str(problem) for problem in caught.value.problems] == [
        "r.yaml:0: data.train[0]: its labels are neg, pos, and those of data.train[1] negative, positive, neutral; "
        "give all sources the same names, or list all in task.label_names"
    ]


def test_numbers_that_mean_other_names_are_refused() -> None:
    with pytest.raises(BadInput, match=r"data\.train\[1\]: it numbers its labels b, a, and data\.train\[0\] has a, b"):
        agreed_labels(labels(["a", "b"], ["b", "a"], numbered=(0, 1)))
