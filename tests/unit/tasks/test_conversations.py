"""Rows of every shape become messages, and what fits no shape, or several, is said with the columns to name."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput
from finelaunch.tasks import CausalLM, CausalLMSection
from finelaunch.tasks.conversations import COLUMNS, SHAPES, TEXT, begun

LM = CausalLM(CausalLMSection(name="causal_lm"))
QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = [QUESTION, ANSWER]


def rows_of(*rows: dict[str, Any]) -> Rows:
    return Rows(list(rows), "data.train", "rows.jsonl")


def read(row: dict[str, Any], columns: dict[str, str] | None = None) -> list[dict[str, str]]:
    return LM.read(rows_of(row), columns or {}, {})[0]["messages"]


def said(columns: dict[str, str], *rows: dict[str, Any]) -> str:
    with pytest.raises(BadInput) as raised:
        LM.read(rows_of(*rows), columns, {})
    return str(raised.value)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a", "topic": "t"},
        {"input": "q", "output": "a"},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "input": None, "output": "a"},
        {"messages": PAIR, "prompt": "something else"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
        {"conversations": PAIR},
        {"conversations": [{**one, "from": None, "value": None} for one in PAIR]},
        {"__place__": "line 1", "prompt": "q", "completion": "a", "input": "left aside"},
    ],
)
def test_every_shape_is_found_without_a_word(row: dict[str, Any]) -> None:
    assert read(row) == PAIR


def test_the_input_of_an_instruction_follows_it() -> None:
    row = {"instruction": "Sum up.", "input": "It was\nlong.", "output": "Long."}
    assert read(row)[0] == {"role": "user", "content": "Sum up.\n\nIt was\nlong."}


def test_a_system_message_and_several_turns_are_kept() -> None:
    turns = [("system", "s"), ("human", "1"), ("gpt", "2"), ("human", "3"), ("gpt", "4")]
    messages = read({"conversations": [{"from": role, "value": text} for role, text in turns]})
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert "".join(message["content"] for message in messages) == "s1234"


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"prompt": "question", "completion": "answer"}, {"question": "q", "answer": "a"}),
        ({"completion": "answer"}, {"prompt": "q", "answer": "a"}),
        ({"instruction": "task", "output": "reply"}, {"task": "q", "reply": "a"}),
        ({"input": "question", "output": "reply"}, {"question": "q", "reply": "a"}),
        ({"input": "instruction", "output": "output"}, {"instruction": "q", "output": "a"}),
        ({"messages": "turns"}, {"turns": PAIR}),
        ({"conversations": "turns"}, {"turns": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
        ({"prompt": "prompt"}, {"prompt": "q", "completion": "a", "text": "q a"}),
        ({"instruction": "instruction"}, {"instruction": "q", "output": "a", "text": "q a"}),
    ],
)
def test_columns_are_mapped_in_every_shape(columns: dict[str, str], row: dict[str, Any]) -> None:
    assert read(row, columns) == PAIR


def test_a_mapped_input_of_an_instruction_is_read() -> None:
    row = {"instruction": "q", "about": "it", "output": "a"}
    assert read(row, {"input": "about", "instruction": "instruction"})[0]["content"] == "q\n\nit"


@pytest.mark.parametrize("columns", [{}, {"instruction": "instruction", "input": "about"}])
def test_an_input_that_only_later_rows_have_is_read(columns: dict[str, str]) -> None:
    name = columns.get("input", "input")
    rows = rows_of({"instruction": "q", "output": "a"}, {"instruction": "q", name: "it", "output": "a"})
    asked = [example["messages"][0]["content"] for example in LM.read(rows, columns, {})]
    assert asked == ["q", "q\n\nit"]


def test_text_is_one_message_and_a_fact() -> None:
    assert read({"text": " It rains. "}) == [{"role": TEXT, "content": " It rains. "}]
    assert read({"body": "It rains."}, {"text": "body"})[0]["role"] == TEXT
    assert LM.facts(rows_of({"text": "a"}), {}) == {"plain_text": True}
    assert LM.facts(rows_of({"prompt": "q", "completion": "a"}), {}) == {}
    assert LM.facts(rows_of({"neither": "q"}), {}) == {}


def test_several_shapes_are_refused_with_the_words_that_choose() -> None:
    text = said({}, {"instruction": "q", "input": "", "output": "a", "text": "q a"})
    assert "rows.jsonl: data.train.columns: the columns instruction, input, output, text have several shapes" in text
    assert "instruction + output + [input]; text" in text
    assert "data.train.columns='{instruction: instruction, output: output}'" in text
    assert "several shapes: prompt + completion; messages" in said(
        {}, {"messages": PAIR, "prompt": "q", "completion": "a"}
    )


def test_no_shape_is_said_with_all_there_are() -> None:
    text = said({}, {"question": "q", "reply": "a"})
    assert "the columns question, reply are no shape of rows that the task knows" in text
    assert "; ".join(map(str, SHAPES)) in text
    assert "data.train.columns='{prompt: COLUMN, completion: COLUMN}'" in text


def test_the_shape_that_is_nearest_says_what_it_lacks() -> None:
    text = said({}, {"instruction": "q", "outputs": "a"})
    assert "there is no column 'output' (the answer); columns: instruction, outputs" in text
    assert "perhaps data.train.columns.output=outputs" in text
    assert "there is no column 'answer' (the answer)" in said({"completion": "answer"}, {"prompt": "q", "reply": "a"})
    assert "there is no column 'about'" in said(
        {"instruction": "instruction", "input": "about"}, {"instruction": "q", "output": "a"}
    )


def test_mappings_that_no_shape_has_are_refused() -> None:
    text = said({"promt": "q"}, {"q": "q", "completion": "a"})
    assert "the task has no column 'promt'" in text
    assert "did you mean 'prompt'?" in text
    text = said({"prompt": "q", "output": "a"}, {"q": "q", "a": "a"})
    assert "no shape of rows has prompt and output together" in text


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"instruction": "", "output": "a"}, "instruction: is empty"),
        ({"instruction": "q", "output": None}, "output: is missing"),
        ({"instruction": "q", "input": 7, "output": "a"}, "input: is 7; a text, or nothing"),
    ],
)
def test_faults_of_instructions(row: dict[str, Any], what: str) -> None:
    assert (text := said({}, {"instruction": "q", "input": "", "output": "a"}, row)).startswith("rows.jsonl:row 2: ")
    assert what in text


@pytest.mark.parametrize(
    ("turns", "what"),
    [
        ([("human", "q"), ("tool", "a")], "has the role 'tool'; one of system, user, assistant; or human or gpt"),
        ([("human", "q"), ("gpt", " ")], "a message of gpt has no text"),
        ([("human", "q"), ("gpt", "a"), ("human", "q")], "does not end with an assistant's message"),
        ([("gpt", "a"), ("gpt", "a")], "the last answer follows a message of assistant"),
        ([("text", "q"), ("gpt", "a")], "has the role 'text'"),
        ([], "is []; a list of messages"),
    ],
)
def test_faults_of_conversations(turns: list[tuple[str, str]], what: str) -> None:
    good = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    text = said({}, {"conversations": good}, row)
    assert text.startswith("rows.jsonl:row 2: conversations: ")
    assert what in text


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*COLUMNS, "x", "y"]), unique=True, max_size=6),
    st.dictionaries(st.sampled_from([*COLUMNS, "z"]), st.sampled_from([*COLUMNS, "x", "y"]), max_size=3),
)
def test_any_columns_are_read_or_refused(present: list[str], columns: dict[str, str]) -> None:
    values = {"messages": PAIR, "conversations": PAIR}
    row = {name: values.get(name, f"in {name}") for name in present}
    with suppress(BadInput):
        assert read(row, columns)[-1]["role"] in ("assistant", TEXT)
        assert set(columns) <= set(COLUMNS)


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1).filter(str.strip))
def test_a_text_is_its_beginning_and_its_rest(text: str) -> None:
    beginning, rest = begun(text)
    assert beginning + rest == text
    assert beginning
    assert len(beginning) <= 200
