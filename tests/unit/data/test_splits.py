"""What is drawn and what is held out: partitions, whole groups, kept shares, the same every time."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finelaunch.data.splits import draw, hold_out

seeds = st.integers(0, 1000)
fractions = st.floats(0.01, 0.99)
groups_of_examples = st.lists(st.integers(0, 15).map(str), min_size=2, max_size=120).filter(lambda one: len({*one}) > 1)


@given(st.integers(0, 300), st.integers(1, 300), seeds)
def test_a_draw_is_a_nested_subset_in_order(num_examples: int, max_samples: int, seed: int) -> None:
    drawn = draw(num_examples, max_samples, seed)
    assert len(drawn) == min(num_examples, max_samples)
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(range(num_examples))
    assert drawn == draw(num_examples, max_samples, seed)
    assert set(drawn) <= set(draw(num_examples, max_samples + 1, seed))
    assert draw(num_examples, None, seed) == list(range(num_examples))


def test_draws_depend_on_the_seed_and_take_from_everywhere() -> None:
    drawn = {seed: draw(1000, 100, seed) for seed in range(20)}
    assert len({tuple(one) for one in drawn.values()}) == 20
    assert 400 < sum(sum(one) for one in drawn.values()) / 2000 < 600


@given(groups_of_examples, st.integers(1, 4), fractions, seeds)
@settings(deadline=None)
def test_the_sides_partition_and_share_no_group(groups: list[str], num_strata: int, fraction: float, seed: int) -> None:
    strata = [str(int(group) % num_strata) for group in groups]
    stay, out = hold_out(groups, strata, fraction, seed)
    assert sorted(stay + out) == list(range(len(groups)))
    assert stay == sorted(stay)
    assert out == sorted(out)
    assert stay
    assert out
    assert not {groups[index] for index in stay} & {groups[index] for index in out}
    assert (stay, out) == hold_out(groups, strata, fraction, seed)


@given(groups_of_examples, st.integers(1, 4), st.floats(0.01, 0.5), seeds)
@settings(deadline=None)
def test_no_stratum_is_held_out_whole(groups: list[str], num_strata: int, fraction: float, seed: int) -> None:
    strata = [str(int(group) % num_strata) for group in groups]
    stay, out = hold_out(groups, strata, fraction, seed)
    lost = set(strata) - {strata[index] for index in stay}
    assert not lost or len({groups[index] for index in out}) == 1


@given(st.lists(st.sampled_from("aaab"), min_size=40, max_size=400), st.floats(0.05, 0.5), seeds)
@settings(deadline=None)
def test_every_label_keeps_its_share(labels: list[str], fraction: float, seed: int) -> None:
    _, out = hold_out([str(index) for index in range(len(labels))], labels, fraction, seed)
    held = Counter(labels[index] for index in out)
    for label, count in Counter(labels).items():
        assert abs(held[label] - fraction * count) <= 1.5
    assert abs(len(out) - fraction * len(labels)) <= 1


@pytest.mark.parametrize("num_each", [2, 3, 4, 7])
def test_many_small_labels_together_give_their_share(num_each: int) -> None:
    labels = [str(index // num_each) for index in range(100 * num_each)]
    stay, out = hold_out([str(index) for index in range(len(labels))], labels, 0.1, 0)
    assert abs(len(out) - 0.1 * len(labels)) <= 1
    assert {labels[index] for index in stay} == set(labels)


@given(st.lists(st.integers(1, 60), min_size=8, max_size=40), st.floats(0.1, 0.4), seeds)
@settings(deadline=None)
def test_articles_of_any_size_give_about_the_share(sizes: list[int], fraction: float, seed: int) -> None:
    groups = [str(article) for article, size in enumerate(sizes) for _ in range(size)]
    _, out = hold_out(groups, [""] * len(groups), fraction, seed)
    assert abs(len(out) - fraction * len(groups)) <= max(sizes)


def test_seeds_hold_out_differently() -> None:
    names = [str(index) for index in range(100)]
    assert len({tuple(hold_out(names, ["x"] * 100, 0.2, seed)[1]) for seed in range(10)}) == 10


def test_one_group_cannot_be_split() -> None:
    for groups in (["a", "a", "a"], ["a"], []):
        with pytest.raises(ValueError, match="one group"):
            hold_out(groups, groups, 0.5, 0)


def test_the_draws_have_not_changed() -> None:
    assert draw(20, 5, 0) == [1, 2, 7, 13, 18]
    names = [str(index) for index in range(20)]
    assert hold_out(names, ["a", "b"] * 10, 0.25, 0)[1] == [0, 6, 9, 10, 15]
