"""Every fault of a row is said with its place, its column and what to do."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finelaunch.data.checks import MAX_PROBLEMS
from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput
from finelaunch.tasks import (
    CausalLM,
    CausalLMSection,
    QuestionAnswering,
    QuestionAnsweringSection,
    Task,
    TextClassification,
    TextClassificationSection,
)

QA = QuestionAnswering(QuestionAnsweringSection(name="question_answering"))
CLASSES = TextClassification(TextClassificationSection(name="text_classification"))
LM = CausalLM(CausalLMSection(name="causal_lm"))
CONTEXT = "Two cats and one dog."


def qa(text: str = "one dog", start: Any = 13, **more: Any) -> dict[str, Any]:
    return {"context": CONTEXT, "question": "Who?", "answers": {"text": [text], "answer_start": [start]}, **more}


def read(task: Task, rows: list[dict[str, Any]], given: dict[str, str] | None = None) -> list[dict[str, Any]]:
    all_rows = Rows(rows, "data.train", "rows.jsonl")
    return task.read(all_rows, given or {}, task.facts(all_rows, given or {}))


def said(task: Task, rows: list[dict[str, Any]], given: dict[str, str] | None = None) -> str:
    with pytest.raises(BadInput) as raised:
        read(task, rows, given)
    return str(raised.value)


def test_a_column_that_is_not_there_is_named_with_the_nearest_and_with_those_there_are() -> None:
    text = said(CLASSES, [{"texts": "a", "stars": 1}])
    assert (
        "there is no column 'text' (the text); columns: texts, stars; name it, perhaps data.train.columns.text=texts"
        in text
    )
    assert "there is no column 'label'" in text
    assert "with data.train.columns.label=COLUMN" in text


def test_a_mapping_for_an_unknown_column_is_refused() -> None:
    text = said(CLASSES, [{"text": "a", "label": 1}], {"labels": "label"})
    assert "the task has no column 'labels'; its columns are text, label; did you mean 'label'?" in text


def test_mapped_columns_are_read() -> None:
    rows = [{"review": "a", "stars": "bad"}, {"review": "b", "stars": "good"}]
    assert [e["label"] for e in read(CLASSES, rows, {"text": "review", "label": "stars"})] == [0, 1]
    assert read(LM, [{"q": "a", "a": "b"}], {"prompt": "q", "completion": "a"})[0]["messages"][1]["content"] == "b"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (
            qa(start=4),
            "answers: 'one dog' does not stand at character 4, where the context reads 'cats an'; it stands at 13",
        ),
        (qa("one cow"), "it does not stand in the context at all"),
        (qa(start=-7), "does not stand at character -7"),
        (qa(start="13"), "'one dog' at '13'; a text and the character it starts at"),
        (qa(start=True), "at True"),
        (qa(" ", 3), "a text and the character it starts at"),
        (qa(answers={"text": ["one dog"]}), '{"text": [...], "answer_start": [...]} of equal length'),
        (qa(answers="one dog"), "answers: is 'one dog'"),
        (qa(context=None), "context: is missing; a text"),
        (qa(question="  "), "question: is empty"),
        (qa(question=7), "question: is 7; a text"),
    ],
)
def test_faults_of_questions(row: dict[str, Any], what: str) -> None:
    assert (text := said(QA, [qa(), row])).startswith("rows.jsonl:row 2: ")
    assert what in text


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"text": "a", "label": 7}, "label: 7 is not a label; one of bad, good, or 0 to 1; correct the row"),
        ({"text": "a", "label": -1}, "label: -1 is not a label"),
        ({"text": "a", "label": "goood"}, "label: 'goood' is not a label"),
        ({"text": "a", "label": 1.5}, "label: 1.5 is not a label"),
        ({"text": "a", "label": None}, "label: is missing"),
        ({"text": "a"}, "label: is missing"),
        ({"text": "\n ", "label": 1}, "text: is empty; a text; remove the row or fill it in"),
        ({"label": 1}, "text: is missing"),
    ],
)
def test_faults_of_labelled_texts(row: dict[str, Any], what: str) -> None:
    task = TextClassification(TextClassificationSection(name="text_classification", label_names=["bad", "good"]))
    assert (text := said(task, [{"text": "a", "label": 0}, row])).startswith("rows.jsonl:row 2: ")
    assert what in text


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([USER], "a list of messages, at least a user's and an assistant's"),
        ("q", "is 'q'"),
        (None, "is None"),
        ([USER, USER], "does not end with an assistant's message"),
        ([USER, ANSWER, ANSWER], "the last answer follows a message of assistant"),
        ([{"role": "system", "content": "s"}, ANSWER], "the last answer follows a message of system"),
        ([USER, {"role": "bot", "content": "a"}], "has the role 'bot'; one of system, user, assistant"),
        ([USER, {"role": ["assistant"], "content": "a"}], "has the role ['assistant']"),
        ([USER, "a"], "has the role None"),
        ([USER, {"role": "assistant", "content": " "}], "a message of assistant has no text"),
        ([USER, {"role": "assistant", "content": None}], "a message of assistant has no text"),
    ],
)
def test_faults_of_messages(messages: Any, what: str) -> None:
    text = said(LM, [{"messages": [USER, ANSWER]}, {"messages": messages}])
    assert text.startswith("rows.jsonl:row 2: messages: ")
    assert what in text


def test_prompts_without_answers_are_faults() -> None:
    text = said(LM, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}, {"completion": "b"}])
    assert "rows.jsonl:row 2: completion: is empty" in text
    assert "rows.jsonl:row 3: prompt: is missing" in text


@pytest.mark.parametrize(
    ("task", "row"),
    [(QA, qa()), (CLASSES, {"text": "a", "label": 1}), (LM, {"prompt": "a", "completion": "b"})],
)
def test_an_id_given_twice_is_refused_or_told_apart_and_a_missing_one_is_the_number_of_the_row(
    task: Task, row: dict[str, Any]
) -> None:
    facts = {"label_names": ["0", "1"]}
    rows = Rows([{**row, "id": identity} for identity in ("x", 7, None)], "data.train", "rows.jsonl")
    assert [example["id"] for example in task.read(rows, {}, facts)] == ["x", "7", "2"]
    twice = Rows([row | {"id": i} for i in ("x", 7, "7", "7#2", 7)], "data.train", "rows.jsonl")
    if task is not QA:
        assert [example["id"] for example in task.read(twice, {}, facts)] == ["x", "7", "7#3", "7#2", "7#4"]
        return
    with pytest.raises(BadInput, match=r"rows\.jsonl:row 2: id: '7' stands 3 times"):
        task.read(twice, {}, facts)


@pytest.mark.parametrize("num_faults", [1, MAX_PROBLEMS, MAX_PROBLEMS + 1, 1500])
def test_twenty_faults_are_shown_and_the_others_counted(num_faults: int) -> None:
    lines = said(LM, [{"prompt": "a", "completion": "b"}] + [{"prompt": "", "completion": "b"}] * num_faults).split(
        "\n"
    )
    assert len(lines) == min(num_faults, MAX_PROBLEMS) + (num_faults > MAX_PROBLEMS)
    if num_faults > MAX_PROBLEMS:
        assert lines[-1] == f"rows.jsonl: data.train: and {num_faults - MAX_PROBLEMS:,} more rows with faults"


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
VALUES = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "answer_start", "role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
COLUMNS = st.sampled_from(["text", "label", "id", "context", "question", "answers", "messages", "prompt", "completion"])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([QA, CLASSES, LM]), st.lists(st.dictionaries(COLUMNS, VALUES), min_size=1, max_size=4))
def test_no_rows_whatever_raise_anything_else(task: Task, rows: list[dict[str, Any]]) -> None:
    with suppress(BadInput):
        assert len(read(task, rows)) == len(rows)


def test_the_shipped_samples_are_read(sample: Callable[[str], Rows]) -> None:
    for task, folder in ((QA, "squad_v2/{}.json"), (CLASSES, "imdb/{}.jsonl"), (LM, "domain_assistant/{}.jsonl")):
        rows = sample(folder.format("train"))
        facts = task.facts(rows, {})
        for split in ("train", "test"):
            rows = sample(folder.format(split))
            assert len(task.read(rows, {}, facts)) == len(rows.rows)
