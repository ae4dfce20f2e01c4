"""The official SQuAD 2.0 files, read strictly and scored: what `finelaunch score` prints.

A figure from a wrong file is worse than none, so whatever would change a figure silently (a question without
prediction, an id given twice, a probability that is no number) is an error, and all the faults of all the files are
said at once. What the official script ignores without effect on a figure is ignored too, and named in a warning.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from finelaunch.errors import BadInput, Problem
from finelaunch.metrics.squad import sample, squad_metrics

_OFFICIAL_THRESHOLD = 1.0

T = TypeVar("T")


class ScoredFiles(NamedTuple):
    """Figures and what should be known about them.

    Args:
        metrics: As returned by :func:`finelaunch.metrics.squad.squad_metrics`.
        warnings: Complete sentences, each naming its file; empty where there is nothing to say.
    """

    metrics: dict[str, float]
    warnings: list[str]


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"names given twice in one object: {sample(twice)}")
    return result


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_no_name_twice)
    except OSError as error:
        problem = Problem(str(path), "", f"cannot be read ({error.strerror})", "", "give the path of an existing file")
    except (ValueError, RecursionError) as error:
        problem = Problem(str(path), "", f"is not usable JSON ({error})", "one JSON object in UTF-8")
    raise BadInput(problem)


_ALLOWED = {list: "a list", str: "a string", dict: "an object", bool: "true or false"}


def _part(parent: Any, name: str, kind: type, place: str) -> Any:
    """Return ``parent[name]``, which must be of this kind; ``place`` is where the parent stands in the file."""
    where = f"{place}.{name}".lstrip(".")
    if not isinstance(parent, dict):
        raise _wrong_shape(place, f"is {_kind(parent)}", "an object")
    if name not in parent:
        raise _wrong_shape(where, "is missing", _ALLOWED[kind])
    if not isinstance(parent[name], kind):
        raise _wrong_shape(where, f"is {_kind(parent[name])}", _ALLOWED[kind])
    return parent[name]


def _wrong_shape(place: str, what: str, allowed: str) -> BadInput:
    return BadInput(Problem("", place, what, allowed, "give a file in the SQuAD format"))


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


class SquadQuestion(NamedTuple):
    """One question of a nested file.

    Args:
        place: Where it stands in the file: ``data[0].paragraphs[2].qas[1]``.
        article: The object it stands in, with ``title``.
        paragraph: The object it stands in, with ``context``.
        question: The question itself.
        answers: Its answers, each an object with a ``text``; empty exactly where it is impossible.
    """

    place: str
    article: dict[str, Any]
    paragraph: dict[str, Any]
    question: dict[str, Any]
    answers: list[dict[str, Any]]


def squad_questions(root: Any) -> Iterator[SquadQuestion]:
    """Yield the questions of a parsed file in the nested SQuAD format, in its order.

    Raises:
        BadInput: With the place in the file and no origin: a part is missing or of another kind, or ``is_impossible``
            and the answers disagree.
    """
    for i, article in enumerate(_part(root, "data", list, "")):
        for j, paragraph in enumerate(_part(article, "paragraphs", list, f"data[{i}]")):
            for k, question in enumerate(_part(paragraph, "qas", list, f"data[{i}].paragraphs[{j}]")):
                place = f"data[{i}].paragraphs[{j}].qas[{k}]"
                yield SquadQuestion(place, article, paragraph, question, _answers(question, place))


def _answers(question: Any, place: str) -> list[dict[str, Any]]:
    name = _part(question, "id", str, place)
    answers = _part(question, "answers", list, place)
    for i, answer in enumerate(answers):
        _part(answer, "text", str, f"{place}.answers[{i}]")
    if "is_impossible" in question and _part(question, "is_impossible", bool, place) == bool(answers):
        found = f"is {str(bool(answers)).lower()} for question {name} with {len(answers)} answers"
        raise _wrong_shape(f"{place}.is_impossible", found, "true exactly where there are no answers")
    return answers


def read_squad(path: str | Path) -> list[dict[str, Any]]:
    """Return the questions of a data file in the official nested SQuAD format (1.1 or 2.0).

    Args:
        path: A JSON file of ``data[].paragraphs[].qas[]`` with ``id``, ``answers[].text`` and, in 2.0,
            ``is_impossible``, which must agree with the answers.

    Returns:
        Per question ``{"id", "answers": {"text": [...]}}`` in the order of the file; no texts where unanswerable.

    Raises:
        BadInput: The file cannot be read, is not JSON, departs from the format, holds no question or an id twice.
    """
    path = Path(path)
    root = _read_json(path)
    try:
        examples = [
            {"id": found.question["id"], "answers": {"text": [answer["text"] for answer in found.answers]}}
            for found in squad_questions(root)
        ]
    except BadInput as error:
        raise BadInput(replace(problem, origin=str(path)) for problem in error.problems) from None
    if not examples:
        raise BadInput(Problem(str(path), "data", "holds no question"))
    if twice := [name for name, count in Counter(row["id"] for row in examples).items() if count > 1]:
        raise BadInput(Problem(str(path), "id", f"{len(twice)} ids occur twice: {sample(twice)}", "unique ids"))
    return examples


def _read_flat(path: Path, value: str) -> dict[str, Any]:
    content = _read_json(path)
    if not isinstance(content, dict) or not content:
        found = "is an empty object" if content == {} else f"is {_kind(content)}"
        raise BadInput(Problem(str(path), "", found, f"one JSON object of question id and {value}"))
    return content


def _is_probability(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _read_predictions(path: Path) -> dict[str, str]:
    predictions = _read_flat(path, "answer text")
    if wrong := [name for name, text in predictions.items() if not isinstance(text, str)]:
        what = f"{len(wrong)} answers are not text, that of {wrong[0]} {_kind(predictions[wrong[0]])}"
        raise BadInput(Problem(str(path), wrong[0], what, 'a string per question, "" for no answer'))
    return predictions


def _read_probabilities(path: Path) -> dict[str, float]:
    probabilities = _read_flat(path, "number")
    if wrong := [name for name, number in probabilities.items() if not _is_probability(number)]:
        what = f"{len(wrong)} values are not finite numbers, that of {wrong[0]} is {str(probabilities[wrong[0]])[:40]}"
        raise BadInput(Problem(str(path), wrong[0], what, "a finite number per question, high for no answer"))
    return {name: float(number) for name, number in probabilities.items()}


def score_files(
    predictions_path: str | Path,
    data_path: str | Path,
    no_answer_path: str | Path | None = None,
    threshold: float | None = None,
) -> ScoredFiles:
    """Return the official figures for prediction files in the official formats.

    The official script skips a question without prediction and averages over the rest; here it is an error. Ids that
    the data does not have are ignored as there, with a warning.

    Args:
        predictions_path: JSON object of question id and answer, "" for none.
        data_path: The questions, see :func:`read_squad`.
        no_answer_path: JSON object of question id and the probability (or any finite score) of no answer.
        threshold: Answers whose value is greater count as none; None stands for the official 1.0 where values are
            given, which withholds no answer as long as they are probabilities.

    Returns:
        The figures of :func:`finelaunch.metrics.squad.squad_metrics`, ``best_*`` only with ``no_answer_path``, and
        the warnings.

    Raises:
        BadInput: With every fault of every file: missing, not JSON, wrong shape, an id twice, questions without
            prediction or value, values that are not finite numbers, a threshold without values or not finite.
    """
    problems: list[Problem] = []
    warnings: list[str] = []
    examples = _read(read_squad, data_path, problems) or []
    predictions = _read(_read_predictions, predictions_path, problems) or {}
    values = _read(_read_probabilities, no_answer_path, problems) if no_answer_path is not None else None
    if threshold is not None and (no_answer_path is None or not math.isfinite(threshold)):
        what = f"{threshold} is given without no-answer values" if no_answer_path is None else f"is {threshold}"
        problems.append(Problem("threshold", "", what, "a finite number together with a file of values"))
    ids = {example["id"] for example in examples}
    for path, content, noun in ((predictions_path, predictions, "prediction"), (no_answer_path, values, "value")):
        if ids and path and content:
            warnings += _compare_ids(Path(path), content, ids, noun, problems)
    if problems:
        raise BadInput(problems)
    if values is not None:
        warnings += _doubts(Path(str(no_answer_path)), [values[name] for name in ids], threshold)
        threshold = _OFFICIAL_THRESHOLD if threshold is None else threshold
    return ScoredFiles(squad_metrics(examples, predictions, values, threshold), warnings)


def _read(reader: Callable[[Path], T], path: str | Path, problems: list[Problem]) -> T | None:
    """Return what the reader gives, or None with its problems added to the list."""
    try:
        return reader(Path(path))
    except BadInput as error:
        problems.extend(error.problems)
        return None


def _compare_ids(path: Path, given: Iterable[str], known: set[str], noun: str, problems: list[Problem]) -> list[str]:
    """Return the warnings on unknown ids, and add a problem where known ones are missing."""
    given = set(given)
    if missing := known - given:
        what = f"{len(missing)} of {len(known)} questions have no {noun}: {sample(missing)}"
        remedy = "give one for every question, or the data that the file was made for"
        problems.append(Problem(str(path), "", what, "", remedy))
    if unknown := given - known:
        return [f"{path}: {len(unknown)} ids are not in the data and are ignored: {sample(unknown)}"]
    return []


def _doubts(path: Path, values: list[float], threshold: float | None) -> list[str]:
    """Return the warnings on values that are usable but hardly meant."""
    warnings: list[str] = []
    if len(values) > 1 and min(values) == max(values):
        warnings.append(f"{path}: every value is {values[0]}, so best_exact and best_f1 can tell no questions apart")
    if threshold is None and max(values) > _OFFICIAL_THRESHOLD:
        num_above = sum(value > _OFFICIAL_THRESHOLD for value in values)
        warnings.append(
            f"{path}: {num_above} values are above the official default threshold {_OFFICIAL_THRESHOLD} and count as "
            "no answer; give a threshold if these are scores rather than probabilities"
        )
    return warnings
