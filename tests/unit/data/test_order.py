"""Random orders: permutations, the same everywhere, and never changed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.data.order import shuffled


@given(st.integers(0, 300), st.lists(st.integers() | st.text(max_size=5), max_size=3))
def test_an_order_is_a_permutation_that_depends_on_its_words(num_items: int, words: list[object]) -> None:
    order = shuffled(num_items, *words)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_items))
    assert np.array_equal(order, shuffled(num_items, *words))
    if num_items > 20:
        assert not np.array_equal(order, shuffled(num_items, *words, "more"))


GOLDEN = [9, 0, 2, 1, 5, 3, 4, 6, 7, 8]


def test_orders_have_not_changed() -> None:
    assert shuffled(10, 42, 0).tolist() == GOLDEN
    assert shuffled(10, "42", np.int64(0)).tolist() == GOLDEN


def test_every_place_is_as_likely() -> None:
    first = np.bincount([shuffled(5, seed)[0] for seed in range(2000)], minlength=5)
    assert first.min() > 330
    assert first.max() < 470


def test_any_text_is_a_word() -> None:
    assert sorted(shuffled(3, "\ud800").tolist()) == [0, 1, 2]
