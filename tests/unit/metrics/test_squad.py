"""The answer comparison and the threshold search against a plain sequential reference written here."""

import math
import re
import string
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.metrics.squad import (
    choose_threshold,
    exact_score,
    f1_score,
    normalize_answer,
    run_metrics,
    squad_metrics,
)

ANSWERS = [
    "",
    "the",
    "The cat",
    "a cat.",
    "cat",
    "cat sat",
    "the cat sat on",
    "dog",
    "cat cat",
    "“cat”",
    "...",
    "1,000",
]
SCORES = [-3.0, -0.5, 0.0, 0.25, 1.0, 7.5]

questions = st.lists(
    st.tuples(st.lists(st.sampled_from(ANSWERS), max_size=3), st.sampled_from(ANSWERS), st.sampled_from(SCORES)),
    min_size=1,
    max_size=30,
)
any_questions = st.lists(
    st.tuples(st.lists(st.text(max_size=12), max_size=3), st.text(max_size=12), st.floats(-1e6, 1e6)),
    min_size=1,
    max_size=10,
)


def as_inputs(
    rows: list[tuple[list[str], str, float]],
) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, float]]:
    examples = [{"id": f"q{i}", "answers": {"text": golds}} for i, (golds, _, _) in enumerate(rows)]
    predictions = {f"q{i}": text for i, (_, text, _) in enumerate(rows)}
    return examples, predictions, {f"q{i}": score for i, (_, _, score) in reversed(list(enumerate(rows)))}


def reference_words(text: str) -> list[str]:
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def reference_f1(gold: list[str], predicted: list[str]) -> float:
    if not gold or not predicted:
        return float(not gold and not predicted)
    common, left = 0, list(predicted)
    for word in gold:
        if word in left:
            left.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def reference(examples, predictions, no_answer_scores, threshold) -> dict[str, float]:
    exact, f1, has_answer = {}, {}, {}
    for example in examples:
        name, texts = example["id"], example["answers"]["text"]
        golds = [reference_words(text) for text in texts if reference_words(text)] or [[]]
        predicted = reference_words(predictions[name])
        has_answer[name] = bool(texts)
        exact[name] = max(float(" ".join(gold) == " ".join(predicted)) for gold in golds)
        f1[name] = max(reference_f1(gold, predicted) for gold in golds)
    result: dict[str, float] = {}
    for measure, raw in (("exact", exact), ("f1", f1)):
        kept = {
            name: float(not has_answer[name]) if no_answer_scores[name] > threshold else value
            for name, value in raw.items()
        }
        for prefix, names in (
            ("", list(raw)),
            ("HasAns_", [name for name in raw if has_answer[name]]),
            ("NoAns_", [name for name in raw if not has_answer[name]]),
        ):
            if names:
                key = "exact_match" if prefix + measure == "exact" else prefix + measure
                result[key] = 100.0 * sum(kept[name] for name in names) / len(names)
                result[prefix + "total"] = len(names)
        points = best = float(sum(not value for value in has_answer.values()))
        best_threshold = 0.0
        for name in sorted(no_answer_scores, key=lambda name: no_answer_scores[name]):
            if has_answer[name]:
                points += raw[name]
            elif predictions[name]:
                points -= 1
            if points > best:
                best, best_threshold = points, no_answer_scores[name]
        result[f"best_{measure}"] = 100.0 * best / len(raw)
        result[f"best_{measure}_thresh"] = best_threshold
    return result


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The theatre of an Athenian band", "theatre of athenian band"),
        ("the", ""),
        ("A. An; THE!", ""),
        ("a-b", "ab"),
        ("an-a the", "ana"),
        ("the-cat", "thecat"),
        ("U.S.A.", "usa"),
        ("“the” cat", "“ ” cat"),
        ("the\u2013cat", "\u2013cat"),
        ("\u2018a\u2019", "\u2018 \u2019"),
        ("$1,000.50", "100050"),
        ("3 the 4", "3 4"),
        ("the_cat a_1", "thecat a1"),
        ("\u00a0x\u2003y\t\n z\u3000", "x y z"),
        ("zero\u200bwidth", "zero\u200bwidth"),
        ("ÀN Éa", "àn éa"),
        ("aé a é", "aé é"),
        ("İ", "i\u0307"),
        ("ẞ ß", "ß ß"),
        ("", ""),
        (string.punctuation, ""),
    ],
)
def test_normalisation(text: str, normalised: str) -> None:
    assert normalize_answer(text) == normalised


@given(st.text())
def test_normalisation_agrees_with_the_reference_and_keeps_no_punctuation(text: str) -> None:
    assert normalize_answer(text).split() == reference_words(text)
    assert not set(normalize_answer(text)) & set(string.punctuation)


@given(st.lists(st.sampled_from(["the", "a", "an", "cat", "sat", ".", ",", "é"]), max_size=8).map(" ".join))
def test_normalising_twice_is_normalising_once_where_words_stand_apart(text: str) -> None:
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@pytest.mark.parametrize(
    ("gold", "predicted", "exact", "f1"),
    [
        ("the cat", "Cat!", 1.0, 1.0),
        ("cat sat", "cat", 0.0, 2 / 3),
        ("cat cat dog", "cat", 0.0, 1 / 2),
        ("cat", "cat cat cat", 0.0, 1 / 2),
        ("a b c d", "b x", 0.0, 2 / 5),
        ("", "", 1.0, 1.0),
        ("", "the", 1.0, 1.0),
        ("", "cat", 0.0, 0.0),
        ("cat", "", 0.0, 0.0),
        ("cat", "dog", 0.0, 0.0),
        ("1,000", "1000", 1.0, 1.0),
        ("1 000", "1000", 0.0, 0.0),
    ],
)
def test_answer_scores_computed_by_hand(gold: str, predicted: str, exact: float, f1: float) -> None:
    assert exact_score(gold, predicted) == exact
    assert f1_score(gold, predicted) == pytest.approx(f1, abs=1e-15)


@given(st.text(max_size=20), st.text(max_size=20))
def test_f1_is_symmetric_bounded_and_one_for_an_exact_match(left: str, right: str) -> None:
    assert f1_score(left, right) == pytest.approx(f1_score(right, left))
    assert 0.0 <= exact_score(left, right) <= f1_score(left, right) <= 1.0
    bags_equal = Counter(reference_words(left)) == Counter(reference_words(right))
    assert (f1_score(left, right) == pytest.approx(1.0)) == bags_equal


def test_figures_computed_by_hand() -> None:
    rows = [
        (["cat", "the black cat"], "black cat", -2.0),
        (["cat sat"], "cat", -1.0),
        ([], "dog", 1.0),
        ([], "", 3.0),
        (["...", "fish"], "...", 4.0),
    ]
    figures = squad_metrics(*as_inputs(rows), threshold=0.0)
    assert figures == pytest.approx(
        {
            "exact_match": 60.0,
            "f1": 100 * (1 + 2 / 3 + 1 + 1 + 0) / 5,
            "total": 5,
            "HasAns_exact": 100 / 3,
            "HasAns_f1": 100 * (1 + 2 / 3) / 3,
            "HasAns_total": 3,
            "NoAns_exact": 100.0,
            "NoAns_f1": 100.0,
            "NoAns_total": 2,
            "best_exact": 60.0,
            "best_exact_thresh": -2.0,
            "best_f1": 100 * (2 + 1 + 2 / 3) / 5,
            "best_f1_thresh": -1.0,
        }
    )
    assert list(figures)[:4] == ["exact_match", "f1", "total", "HasAns_exact"]
    assert squad_metrics(*as_inputs(rows)[:2])["exact_match"] == 40.0


@given(st.one_of(questions, any_questions), st.sampled_from([*SCORES, -0.1, 100.0, -100.0, math.inf]))
def test_figures_and_search_equal_the_sequential_reference(rows: Any, threshold: float) -> None:
    inputs = as_inputs(rows)
    assert squad_metrics(*inputs, threshold=threshold) == reference(*inputs, threshold)


@given(questions)
def test_equal_scores_are_visited_in_the_order_of_the_score_file(rows: Any) -> None:
    examples, predictions, scores = as_inputs(rows)
    forwards = dict(sorted(scores.items()))
    for listed in (scores, forwards):
        assert squad_metrics(examples, predictions, listed, 0.0) == reference(examples, predictions, listed, 0.0)


@given(questions)
def test_no_threshold_gives_a_higher_f1_than_the_chosen_one(rows: Any) -> None:
    examples, predictions, scores = as_inputs(rows)
    chosen = choose_threshold(examples, predictions, scores)
    attained = squad_metrics(examples, predictions, scores, chosen)["f1"]
    every = [*scores.values(), -1e9, chosen]
    figures = {other: squad_metrics(examples, predictions, scores, other)["f1"] for other in every}
    assert attained >= max(figures.values()) - 1e-9
    assert not [other for other, f1 in figures.items() if f1 > attained - 1e-9 and -1e9 < other < chosen]


@given(st.lists(st.tuples(st.lists(st.sampled_from(["cat", "cat sat"]), max_size=1), st.sampled_from(["cat", "dog"]))))
def test_the_chosen_threshold_is_the_official_one_where_that_can_be_applied(pairs: Any) -> None:
    # The best-scored row is answered rightly, so answering something beats answering nothing.
    rows = [(["cat"], "cat", -5.0), *((golds, text, i / 7 - 2) for i, (golds, text) in enumerate(pairs))]
    inputs = as_inputs(rows)
    chosen, official = choose_threshold(*inputs), squad_metrics(*inputs)["best_f1_thresh"]
    reached = [squad_metrics(*inputs, threshold=threshold)["f1"] for threshold in (chosen, official)]
    assert chosen == official or abs(reached[0] - reached[1]) < 1e-9, "they may differ where sums tie"


def test_answering_nothing_is_a_threshold_below_all_scores() -> None:
    inputs = as_inputs([([], "dog", -4.0), ([], "cat", -3.0), (["cat"], "fish", -2.0)])
    assert squad_metrics(*inputs)["best_f1_thresh"] == 0.0
    assert squad_metrics(*inputs, threshold=0.0)["f1"] == 0.0
    chosen = choose_threshold(*inputs)
    assert chosen < -4.0
    assert run_metrics(*inputs, chosen)["f1"] == pytest.approx(200 / 3)


@given(questions, st.sampled_from(SCORES))
def test_run_metrics_hold_the_official_figures_and_their_meaning(rows: Any, threshold: float) -> None:
    examples, predictions, scores = as_inputs(rows)
    figures = run_metrics(examples, predictions, scores, threshold)
    official = squad_metrics(examples, predictions, scores, threshold)
    assert official.items() <= figures.items()
    at_zero = squad_metrics(examples, predictions, scores, 0.0)
    assert (figures["exact_match_at_zero"], figures["f1_at_zero"]) == (at_zero["exact_match"], at_zero["f1"])
    silent = squad_metrics(examples, dict.fromkeys(predictions, ""))
    assert figures["always_no_answer"] == pytest.approx(silent["exact_match"])
    assert figures["threshold"] == threshold
    positive = [scores[e["id"]] for e in examples if not e["answers"]["text"]]
    negative = [scores[e["id"]] for e in examples if e["answers"]["text"]]
    if positive and negative:
        wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
        assert figures["no_answer_auc"] == pytest.approx(wins / (len(positive) * len(negative)))
    else:
        assert figures["no_answer_auc"] is None
    assert len(figures) == len(official) + 5


@given(questions)
def test_the_order_of_examples_changes_no_average(rows: Any) -> None:
    examples, predictions, scores = as_inputs(rows)
    assert squad_metrics(examples[::-1], predictions, scores, 0.0) == pytest.approx(
        squad_metrics(examples, predictions, scores, 0.0)
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"examples": []}, "no questions"),
        ({"examples": [{"id": "x", "answers": {"text": []}}] * 2}, "twice: x"),
        ({"predictions": {"x": "cat"}}, "1 of 2 questions have no prediction: y"),
        ({"no_answer_scores": {"y": 1.0}}, "1 of 2 questions have no no-answer score: x"),
        ({"no_answer_scores": {"x": 1.0, "y": math.nan}}, "NaN or -inf: y"),
        ({"no_answer_scores": {"x": -math.inf, "y": 0.0}}, "NaN or -inf: x"),
        ({"no_answer_scores": None, "threshold": 0.5}, "needs no-answer scores"),
        ({"threshold": math.nan}, "must not be NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused(change: dict[str, Any], said: str) -> None:
    inputs: dict[str, Any] = {
        "examples": [{"id": name, "answers": {"text": ["cat"]}} for name in "xy"],
        "predictions": {"x": "cat", "y": "dog"},
        "no_answer_scores": {"x": 0.0, "y": 1.0},
    }
    with pytest.raises(ValueError, match=said):
        squad_metrics(**(inputs | change))


def test_a_question_without_a_span_may_have_an_infinite_score() -> None:
    inputs = as_inputs([(["cat"], "cat", -1.0), ([], "", math.inf), (["dog"], "", math.inf)])
    figures = squad_metrics(*inputs, threshold=choose_threshold(*inputs))
    assert figures["exact_match"] == pytest.approx(200 / 3)


def test_metrics_load_no_heavy_library() -> None:
    names = ["squad", "squad_files", "spans", "classification", "language_modelling"]
    loads = "; ".join(f"import finelaunch.metrics.{name}" for name in names)
    heavy = "{'torch', 'transformers', 'datasets', 'evaluate', 'pyarrow'}"
    code = f"import sys; {loads}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
