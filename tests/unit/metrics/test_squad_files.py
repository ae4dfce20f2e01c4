"""The files of `finelaunch score`: the official formats, and every fault named."""

import json
from pathlib import Path
from typing import Any

import pytest

from finelaunch.errors import BadInput
from finelaunch.metrics.squad import squad_metrics
from finelaunch.metrics.squad_files import read_squad, score_files

PREDICTIONS = {"x": "The cat", "y": "dog", "z": ""}
VALUES = {"x": 0.1, "y": 0.8, "z": 0.9}


def question(name: str, *texts: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "question": "?", "answers": [{"text": text, "answer_start": 0} for text in texts], **more}


def nested(*questions: Any) -> dict[str, Any]:
    half = len(questions) // 2
    paragraphs = [{"context": "c", "qas": list(part)} for part in (questions[:half], questions[half:])]
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}


DATA = nested(
    question("x", "cat", "a black cat", is_impossible=False),
    question("y", is_impossible=True, plausible_answers=[{"text": "dog", "answer_start": 0}]),
    question("z", is_impossible=True),
)


def write(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    contents = {"predictions": PREDICTIONS, "data": DATA, "values": VALUES}
    return {name: write(tmp_path / f"{name}.json", content) for name, content in contents.items()}


def score(files: dict[str, Path], threshold: float | None = None) -> Any:
    return score_files(files["predictions"], files["data"], files.get("values"), threshold)


def test_the_figures_are_those_of_the_contents(files: dict[str, Path]) -> None:
    examples = [{"id": name, "answers": {"text": texts}} for name, texts in (("x", ["cat", "a black cat"]), ("y", []))]
    examples.append({"id": "z", "answers": {"text": []}})
    assert read_squad(files["data"]) == examples
    assert score(files) == (squad_metrics(examples, PREDICTIONS, VALUES, 1.0), [])
    assert score(files, 0.5) == (squad_metrics(examples, PREDICTIONS, VALUES, 0.5), [])
    assert score_files(str(files["predictions"]), str(files["data"])) == (squad_metrics(examples, PREDICTIONS), [])
    json.dumps(score(files).metrics)


def test_a_byte_order_mark_and_a_file_without_is_impossible_are_read(files: dict[str, Path]) -> None:
    data = nested(question("x", "cat"), question("y", "dog"), question("z"))
    write(files["data"], b"\xef\xbb\xbf" + json.dumps(data).encode())
    assert score(files).metrics["HasAns_total"] == 2


def test_ids_that_the_data_does_not_have_change_nothing_but_are_named(files: dict[str, Path]) -> None:
    before = score(files).metrics
    write(files["predictions"], PREDICTIONS | {"u": "cat", "v": "dog"})
    write(files["values"], {"u": -9.0} | VALUES)
    after, warnings = score(files)
    assert after == before
    assert [warning.split(": ", 1)[1] for warning in warnings] == [
        "2 ids are not in the data and are ignored: u, v",
        "1 ids are not in the data and are ignored: u",
    ]


def test_values_that_cannot_be_meant_are_warned_of(files: dict[str, Path]) -> None:
    write(files["values"], dict.fromkeys(PREDICTIONS, 0))
    assert "every value is 0.0" in score(files).warnings[0]
    write(files["values"], {"x": -3.0, "y": 2.0, "z": 5})
    assert "2 values are above the official default threshold 1.0" in score(files).warnings[0]
    assert score(files, 0.0).warnings == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("predictions", b"{", "is not usable JSON"),
        ("predictions", b'{"x": "\xff"}', "is not usable JSON"),
        ("predictions", b'{"x": "a", "x": "b", "y": "", "z": ""}', "given twice in one object: x"),
        ("predictions", b'{"id": "x"}\n{"id": "y"}\n', "one JSON object"),
        ("predictions", b"[" * 100_000, "is not usable JSON"),
        ("predictions", [], "is of type list; one JSON object"),
        ("predictions", {}, "is an empty object"),
        ("predictions", PREDICTIONS | {"y": None}, "y: 1 answers are not text, that of y null"),
        ("predictions", PREDICTIONS | {"y": ["dog"]}, "of type list"),
        ("predictions", {"x": "cat"}, "2 of 3 questions have no prediction: y, z"),
        ("values", b'{"x": NaN, "y": 0, "z": 0}', "x: 1 values are not finite numbers, that of x is nan"),
        ("values", b'{"x": 1e999, "y": 0, "z": 0}', "that of x is inf"),
        ("values", {"x": True, "y": 0, "z": "0.5"}, "2 values are not finite numbers, that of x is True"),
        ("values", {"x": 10**400, "y": 0, "z": 0}, "1 values are not finite numbers"),
        ("values", {"x": 0.5}, "2 of 3 questions have no value: y, z"),
        ("data", [], "is of type list; an object"),
        ("data", {}, "data: is missing; a list"),
        ("data", {"data": []}, "data: holds no question"),
        ("data", {"data": {"paragraphs": []}}, "data: is of type dict; a list"),
        ("data", {"data": [{"paragraphs": [{"context": ""}]}]}, "data[0].paragraphs[0].qas: is missing"),
        ("data", nested("x"), "data[0].paragraphs[1].qas[0]: is of type str; an object"),
        ("data", nested({"id": 7, "answers": []}), "qas[0].id: is of type int; a string"),
        ("data", nested({"id": "x", "answers": None}), "qas[0].answers: is null; a list"),
        ("data", nested({"id": "x", "answers": [{"answer_start": 0}]}), "qas[0].answers[0].text: is missing; a string"),
        ("data", nested(question("x", "cat", is_impossible=True)), "is true for question x with 1 answers"),
        ("data", nested(question("x", is_impossible=False)), "is false for question x with 0 answers"),
        ("data", nested(question("x", is_impossible="no")), "is of type str; true or false"),
        ("data", nested(question("x"), question("x")), "id: 1 ids occur twice: x"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(files: dict[str, Path], name: str, content: Any, said: str) -> None:
    write(files[name], content)
    with pytest.raises(BadInput) as caught:
        score(files)
    (problem,) = caught.value.problems
    assert problem.origin == str(files[name])
    assert said in str(problem)
    assert problem.allowed or problem.remedy or "no question" in problem.what


def test_a_missing_file_and_a_folder_are_bad_input(files: dict[str, Path], tmp_path: Path) -> None:
    for name in files:
        for path in (tmp_path / "nowhere.json", tmp_path):
            with pytest.raises(BadInput, match="cannot be read"):
                score(files | {name: path})


def test_all_files_are_judged_at_once(files: dict[str, Path], tmp_path: Path) -> None:
    write(files["values"], {"x": "high"})
    write(files["data"], [])
    with pytest.raises(BadInput) as caught:
        score(files | {"predictions": tmp_path / "nowhere.json"}, float("nan"))
    assert len(caught.value.problems) == 4


def test_a_threshold_without_values_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match=r"threshold: 0\.5 is given without no-answer values"):
        score_files(files["predictions"], files["data"], threshold=0.5)
