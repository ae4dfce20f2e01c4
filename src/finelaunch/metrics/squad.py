"""SQuAD 2.0 scores with the meaning of the official evaluation, each question scored once.

Exact match and F1 per question do not depend on a threshold, so they are computed once and every threshold, the
official search for the best one included, is an operation on arrays. Scores that stand for "no answer" may be
probabilities or raw differences (null score minus best span score, any sign): the higher, the less answerable.

Source: Rajpurkar, Jia and Liang, "Know What You Don't Know: Unanswerable Questions for SQuAD" (2018), and the
evaluation script 2.0 published with it.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)

Example = Mapping[str, Any]
Floats = NDArray[np.float64]


TIE_POINTS = 1e-9
"""Sums of F1 that differ by less are equal: they were added up in another order."""


def normalize_answer(text: str) -> str:
    """Return an answer as it is compared: lower case, no punctuation, no English articles, single blanks.

    The order matters and is the official one: punctuation goes before articles, so ``"a-b"`` becomes ``"ab"``. Only
    ASCII punctuation goes; typographic quotes and dashes stay.

    Args:
        text: An answer as it stands in the context.

    Returns:
        The normalised answer, empty for ``"The."``.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_score(gold: str, predicted: str) -> float:
    """Return 1.0 if the two answers are equal once normalised, else 0.0.

    Args:
        gold: One accepted answer.
        predicted: The answer given.
    """
    return float(normalize_answer(gold) == normalize_answer(predicted))


def f1_score(gold: str, predicted: str) -> float:
    """Return the F1 of the two answers as bags of normalised words, a fraction.

    Args:
        gold: One accepted answer.
        predicted: The answer given.

    Returns:
        The harmonic mean of precision and recall. Where either side has no words: 1.0 if both have none, else 0.0.
    """
    return _word_f1(normalize_answer(gold).split(), normalize_answer(predicted).split())


def _word_f1(gold: list[str], predicted: list[str]) -> float:
    if not gold or not predicted:
        return float(gold == predicted)
    num_common = sum((Counter(gold) & Counter(predicted)).values())
    if num_common == 0:
        return 0.0
    precision = num_common / len(predicted)
    recall = num_common / len(gold)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class _Scored:
    """All questions scored before any threshold: arrays of shape [questions] in the order of the examples."""

    ids: list[str]
    has_answer: NDArray[np.bool_]
    exact: Floats
    f1: Floats
    nothing_is_right: NDArray[np.bool_]
    answered: NDArray[np.bool_]


def _score(examples: Sequence[Example], predictions: Mapping[str, str]) -> _Scored:
    ids = [example["id"] for example in examples]
    if not ids:
        raise ValueError("there are no questions to score")
    if len(set(ids)) != len(ids):
        raise ValueError(f"question ids occur twice: {sample(i for i, n in Counter(ids).items() if n > 1)}")
    _require_all(ids, predictions, "prediction")
    exact, f1, nothing_is_right = [], [], []
    for example in examples:
        words = normalize_answer(predictions[example["id"]]).split()
        golds = [gold for text in example["answers"]["text"] if (gold := normalize_answer(text).split())] or [[]]
        exact.append(float(words in golds))
        f1.append(max(_word_f1(gold, words) for gold in golds))
        nothing_is_right.append(golds == [[]])
    return _Scored(
        ids=ids,
        has_answer=np.array([len(example["answers"]["text"]) > 0 for example in examples]),
        exact=np.array(exact),
        f1=np.array(f1),
        nothing_is_right=np.array(nothing_is_right),
        answered=np.array([predictions[name] != "" for name in ids]),
    )


def sample(names: Iterable[object]) -> str:
    """Return up to three of the names, sorted, with how many more there are.

    Args:
        names: Ids, in any order.
    """
    ordered = sorted(map(str, names))
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more


def _require_all(ids: list[str], given: Mapping[str, Any], noun: str) -> None:
    if missing := [name for name in ids if name not in given]:
        raise ValueError(f"{len(missing)} of {len(ids)} questions have no {noun}: {sample(missing)}")


@dataclass(frozen=True)
class _NoAnswer:
    """No-answer scores [questions] in the order of the examples, and the order in which the search visits them."""

    scores: Floats
    ascending: NDArray[np.intp]


def _no_answer(scored: _Scored, no_answer_scores: Mapping[str, float]) -> _NoAnswer:
    _require_all(scored.ids, no_answer_scores, "no-answer score")
    scores = np.array([no_answer_scores[name] for name in scored.ids], dtype=np.float64)
    if unusable := [scored.ids[i] for i in np.flatnonzero(np.isnan(scores) | np.isneginf(scores))]:
        raise ValueError(f"{len(unusable)} no-answer scores are NaN or -inf: {sample(unusable)}")
    position = {name: i for i, name in enumerate(scored.ids)}
    # The official search sorts the score file, so equal scores keep that file's order, not the order of the data.
    listed = np.array([position[name] for name in no_answer_scores if name in position], dtype=np.intp)
    return _NoAnswer(scores, listed[np.argsort(scores[listed], kind="stable")])


def _averages(scored: _Scored, no_answer: _NoAnswer | None, threshold: float | None) -> dict[str, float]:
    """Return the exact match and F1 keys, the answers above the threshold replaced by none."""
    exact, f1 = scored.exact, scored.f1
    if threshold is not None:
        if no_answer is None or math.isnan(threshold):
            raise ValueError(f"threshold {threshold} needs no-answer scores and must not be NaN")
        silenced = no_answer.scores > threshold
        exact = np.where(silenced, ~scored.has_answer, exact)
        f1 = np.where(silenced, ~scored.has_answer, f1)
    everything = np.ones_like(scored.has_answer)
    metrics: dict[str, float] = {}
    for names, rows in (
        (("exact_match", "f1", "total"), everything),
        (("HasAns_exact", "HasAns_f1", "HasAns_total"), scored.has_answer),
        (("NoAns_exact", "NoAns_f1", "NoAns_total"), ~scored.has_answer),
    ):
        if total := int(rows.sum()):
            figures = (100.0 * sum(exact[rows].tolist()) / total, 100.0 * sum(f1[rows].tolist()) / total, total)
            metrics |= dict(zip(names, figures, strict=True))
    return metrics


def _official_search(scored: _Scored, no_answer: _NoAnswer) -> dict[str, float]:
    """Return the ``best_*`` keys.

    The search starts from "answer nothing" (as many points as there are unanswerable questions, at threshold 0.0) and
    answers one question after the other by ascending score; the first maximum of the running points is the best. Any
    non-empty answer to an unanswerable question costs a point, even one that normalises to nothing.
    """
    metrics: dict[str, float] = {}
    for name, values in (("exact", scored.exact), ("f1", scored.f1)):
        gained = np.where(scored.has_answer, values, np.where(scored.answered, -1.0, 0.0))[no_answer.ascending]
        points = np.cumsum(np.concatenate(([float((~scored.has_answer).sum())], gained)))
        best = int(points.argmax())
        metrics[f"best_{name}"] = 100.0 * float(points[best]) / len(scored.ids)
        metrics[f"best_{name}_thresh"] = 0.0 if best == 0 else float(no_answer.scores[no_answer.ascending[best - 1]])
    return metrics


def squad_metrics(
    examples: Sequence[Example],
    predictions: Mapping[str, str],
    no_answer_scores: Mapping[str, float] | None = None,
    threshold: float | None = None,
) -> dict[str, float]:
    """Return the official SQuAD 2.0 figures, in percent.

    Golds that normalise to nothing are dropped; a question without golds accepts only the empty answer; of several
    golds the best counts. A question is a HasAns one if its list of answers is not empty, as in the official script.
    The official script skips a question without prediction and averages over the others; here it is an error.

    Args:
        examples: Rows with ``id`` and ``answers: {"text": [...]}``, an empty list for an unanswerable question.
        predictions: Answer per id, "" for none. Ids that are not in the examples are ignored.
        no_answer_scores: Score per id, the higher the less answerable; with it the ``best_*`` keys are returned.
            The order of its items decides between equal scores in the official search.
        threshold: Answers whose score is greater count as "" in all but the ``best_*`` keys; None applies none.

    Returns:
        exact_match, f1, total, then HasAns_* and NoAns_* where there are such questions, then best_exact,
        best_exact_thresh, best_f1, best_f1_thresh where scores were given. Totals are counts, the ``*_thresh`` have
        the unit of the scores. Within equal scores, and for "answer nothing" where scores are not positive, the
        official search names a figure that its threshold does not reach; :func:`choose_threshold` does not.

    Raises:
        ValueError: No examples, an id twice, a question without prediction or without score, a score that is NaN or
            -inf, a threshold without scores or NaN.
    """
    scored = _score(examples, predictions)
    no_answer = None if no_answer_scores is None else _no_answer(scored, no_answer_scores)
    searched = {} if no_answer is None else _official_search(scored, no_answer)
    return _averages(scored, no_answer, threshold) | searched


def choose_threshold(
    examples: Sequence[Example], predictions: Mapping[str, str], no_answer_scores: Mapping[str, float]
) -> float:
    """Return the threshold with the highest F1 when it is applied, the lowest such one.

    This is ``best_f1_thresh`` except where applying that does not give ``best_f1``: it never cuts between equal
    scores; "answer nothing" is the number just below the lowest score instead of 0.0, which raw scores fall below;
    and an answer that normalises to nothing counts as none.

    Args:
        examples: As for :func:`squad_metrics`.
        predictions: As for :func:`squad_metrics`; the best span of every question, also where null scores higher.
        no_answer_scores: As for :func:`squad_metrics`.

    Returns:
        A threshold in the unit of the scores; answers whose score is greater are to be withheld.

    Raises:
        ValueError: As for :func:`squad_metrics`.
    """
    scored = _score(examples, predictions)
    no_answer = _no_answer(scored, no_answer_scores)
    scores = no_answer.scores[no_answer.ascending]
    gained = np.where(scored.has_answer, scored.f1, scored.f1 - 1.0)[no_answer.ascending]
    points = np.cumsum(np.concatenate(([float((~scored.has_answer).sum())], gained)))
    last_of_equals = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    reached = points[last_of_equals + 1]
    best = last_of_equals[(reached > reached.max() - TIE_POINTS).argmax()]
    return float(scores[best] if points[best + 1] > points[0] else np.nextafter(scores[0], -np.inf))


def _area_under_curve(unanswerable: Floats, answerable: Floats) -> float | None:
    if not len(unanswerable) or not len(answerable):
        return None
    ordered = np.sort(answerable)
    below = np.searchsorted(ordered, unanswerable, side="left").sum()
    not_above = np.searchsorted(ordered, unanswerable, side="right").sum()
    return float(below + not_above) / (2 * len(unanswerable) * len(answerable))


def run_metrics(
    examples: Sequence[Example],
    predictions: Mapping[str, str],
    no_answer_scores: Mapping[str, float],
    threshold: float,
) -> dict[str, float | None]:
    """Return what a run reports for question answering: the official figures at its threshold, and what they mean.

    Args:
        examples: As for :func:`squad_metrics`.
        predictions: As for :func:`squad_metrics`; the best span of every question, also where null scores higher.
        no_answer_scores: As for :func:`squad_metrics`.
        threshold: The threshold chosen on other data, see :func:`choose_threshold`.

    Returns:
        All keys of :func:`squad_metrics` at the threshold, and exact_match_at_zero, f1_at_zero (percent, at threshold
        0.0), threshold, no_answer_auc (fraction: the chance that an unanswerable question has a higher score than an
        answerable one, equal scores counting half; None without questions of both kinds), always_no_answer (percent:
        the exact match of answering "" to everything).

    Raises:
        ValueError: As for :func:`squad_metrics`.
    """
    scored = _score(examples, predictions)
    no_answer = _no_answer(scored, no_answer_scores)
    at_zero = _averages(scored, no_answer, 0.0)
    unanswerable = ~scored.has_answer
    return {
        **_averages(scored, no_answer, threshold),
        **_official_search(scored, no_answer),
        "exact_match_at_zero": at_zero["exact_match"],
        "f1_at_zero": at_zero["f1"],
        "threshold": float(threshold),
        "no_answer_auc": _area_under_curve(no_answer.scores[unanswerable], no_answer.scores[scored.has_answer]),
        "always_no_answer": 100.0 * float(scored.nothing_is_right.mean()),
    }
