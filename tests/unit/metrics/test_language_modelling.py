"""Loss and perplexity: independent of order and batching, defined at the edges."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.metrics.language_modelling import perplexity_metrics

rows = st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 5000)), min_size=1).filter(lambda r: any(n for _, n in r))


@given(rows, st.randoms())
def test_the_loss_is_the_exact_mean_in_any_order(values: list[tuple[float, int]], random: Any) -> None:
    figures = perplexity_metrics(*map(list, zip(*values, strict=True)))
    total = sum(n for _, n in values)
    assert figures["loss"] == float(sum(Fraction(loss) for loss, _ in values)) / total
    assert figures["num_target_tokens"] == total
    random.shuffle(values)
    assert perplexity_metrics(*map(list, zip(*values, strict=True))) == figures


def test_figures_computed_by_hand() -> None:
    sums = np.array([math.log(2) * 4, math.log(8) * 4])
    figures = perplexity_metrics(sums, np.array([4, 4]))
    assert figures["perplexity"] == pytest.approx(4.0, rel=1e-15)
    assert figures == {"loss": pytest.approx(math.log(4)), "perplexity": pytest.approx(4.0), "num_target_tokens": 8}


def test_small_losses_are_not_lost_beside_large_ones() -> None:
    assert perplexity_metrics([1e16, 1.0, 1.0], [1, 1, 0])["loss"] == (1e16 + 2) / 2


@pytest.mark.parametrize("loss", [710.0, 1e300, math.inf])
def test_a_perplexity_beyond_float64_is_infinite(loss: float) -> None:
    figures = perplexity_metrics([loss], [1])
    assert (figures["loss"], figures["perplexity"]) == (loss, math.inf)


@pytest.mark.parametrize(
    ("sums", "counts", "said"),
    [
        ([], [], "no target tokens"),
        ([0.0, 0.0], [0, 0], "no target tokens"),
        ([1.0], [1, 2], "expected two"),
        ([[1.0]], [[1]], "expected two"),
        ([1.0, 1.0], [3, -1], "integers from 0"),
        ([1.0], [1.5], "integers from 0"),
        ([math.nan, 1.0], [1, 1], "1 of 2 losses are NaN"),
        ([-math.inf], [1], "NaN or -inf"),
    ],
)
def test_sums_without_a_mean_are_refused(sums: Any, counts: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        perplexity_metrics(sums, counts)
