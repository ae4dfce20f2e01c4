"""The figures that steps are compared by are among those that are measured, under the same names."""

import pytest

from finelaunch.metrics.classification import classification_metrics
from finelaunch.metrics.language_modelling import perplexity_metrics
from finelaunch.metrics.multi_label import multi_label_metrics
from finelaunch.metrics.selection import LOWER_IS_BETTER, MULTI_LABEL, SELECTABLE, gain, is_selectable
from finelaunch.metrics.squad import run_metrics

EXAMPLES = [{"id": "1", "answers": {"text": ["a cat"]}}, {"id": "2", "answers": {"text": []}}]
MEASURED = {
    "question_answering": run_metrics(EXAMPLES, {"1": "a cat", "2": "a dog"}, {"1": -1.0, "2": 1.0}, 0.0),
    "text_classification": classification_metrics([0, 1], [0, 0], ["no", "yes"]),
    MULTI_LABEL: multi_label_metrics([[True, False], [False, True]], [[0.9, 0.2], [0.4, 0.3]], ["a", "b"], 0.5),
    "causal_lm": perplexity_metrics([1.0, 2.0], [3, 4]),
}


@pytest.mark.parametrize("task", SELECTABLE)
def test_every_figure_to_select_by_is_a_number_that_is_measured(task: str) -> None:
    measured = {"loss": 0.5, **MEASURED[task]}
    assert all(isinstance(measured[name], float) for name in SELECTABLE[task])
    left = {name for name, value in measured.items() if isinstance(value, int | float)} - set(SELECTABLE[task])
    counts = {"total", "HasAns_total", "NoAns_total", "num_target_tokens"}
    assert left <= counts | {"threshold", "best_exact_thresh", "best_f1_thresh", "always_no_answer"}
    assert all(is_selectable(name) for name in SELECTABLE[task])
    assert not any(is_selectable(name) for name in left)


def test_a_perfect_model_gains_over_another_one_by_every_figure() -> None:
    right = run_metrics(EXAMPLES, {"1": "a cat", "2": "a dog"}, {"1": -1.0, "2": 1.0}, 0.0)
    wrong = run_metrics(EXAMPLES, {"1": "a pig", "2": "a dog"}, {"1": 1.0, "2": -1.0}, 0.0)
    for name in set(SELECTABLE["question_answering"]) - {"loss"}:
        assert gain(name, right[name] or 0.0, wrong[name] or 0.0) > 0, name
    labels = [[True, False], [False, True]]
    good = multi_label_metrics(labels, [[0.9, 0.1], [0.1, 0.9]], ["a", "b"], 0.5)
    bad = multi_label_metrics(labels, [[0.1, 0.9], [0.9, 0.1]], ["a", "b"], 0.5)
    for name in set(SELECTABLE[MULTI_LABEL]) - {"loss"}:
        assert gain(name, good[name], bad[name]) > 0, name
    assert {"loss", "perplexity", "hamming_loss"} == set(LOWER_IS_BETTER)
