"""Draws follow from seed, kind and index alone, and cover what there is to cover."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from finelaunch.chaos.trials import Trial, step_at

seeds, indices = st.integers(0, 2**31), st.integers(0, 500)


@given(seeds, indices)
def test_a_trial_is_the_same_whenever_and_in_whatever_order_it_is_drawn(seed, index):
    def drawn():
        trial = Trial("kill", index, seed)
        return trial.random("delay").random(), trial.one_of("whom", "abc"), trial.moment(), trial.moment(2)

    first = drawn()
    Trial("kill", index + 1, seed).one_of("whom", "abc")
    assert drawn() == first


def test_purposes_kinds_and_seeds_are_drawn_apart():
    draws = {
        Trial(kind, 0, seed).random(purpose).random()
        for kind in ("kill", "chain")
        for seed in (0, 1)
        for purpose in ("delay", "moment")
    }
    assert len(draws) == 8


@given(seeds, st.integers(0, 20), st.integers(1, 6))
def test_every_block_of_trials_has_every_option_once(seed, block, count):
    options = list(range(count))
    found = [Trial("signal", block * count + place, seed).one_of("phase", options) for place in options]
    assert sorted(found) == options


@given(seeds, st.integers(1, 5))
def test_moments_fill_halves_then_quarters_then_eighths(seed, level):
    parts = 2**level
    moments = [Trial("kill", parts - 2 + place, seed).moment() for place in range(parts)]
    assert sorted(int(moment * parts) for moment in moments) == list(range(parts))


@given(seeds, st.integers(1, 4))
def test_each_side_of_an_alternation_is_spread_by_itself(seed, among):
    sides = [[Trial("kill", among * place + side, seed).moment(among) for place in range(2)] for side in range(among)]
    assert all(first >= 0.5 > second for first, second in sides)


@given(st.floats(0, 1, exclude_max=True), st.integers(2, 10_000), st.floats(1.05, 50))
def test_the_second_half_of_the_moments_lies_in_later_epochs(moment, num_steps, num_epochs):
    last = num_steps - 1
    step = step_at(moment, 1, last, num_epochs)
    assert 1 <= step <= last
    if moment >= 0.5:
        assert step >= min(int(last / num_epochs), last)


def test_moments_reach_the_first_and_the_last_step():
    steps = Counter(step_at(Trial("kill", index, 0).moment(), 1, 11, 2.0) for index in range(200))
    assert set(steps) == set(range(1, 12))
    assert max(steps.values()) < 3 * min(steps.values())
