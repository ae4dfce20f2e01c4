"""Rows of a causal LM as messages: which shape they have, and what each row says.

Whatever the shape, a row becomes a list of messages: a conversation that ends in an answer, or, of plain text, one
message of the role ``text``. So sources of different shapes can stand beside each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finelaunch.data.checks import RowError, column_names, text_in
from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput, Problem
from finelaunch.section.base import nearest

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
TEXT = "text"
"""The role of plain text, which stands alone in its row: all of it is learnt."""
_OTHER_ROLES = {"human": "user", "gpt": "assistant"}
"""What ShareGPT calls the roles."""


@dataclass(frozen=True)
class Shape:
    """One shape of rows.

    Args:
        needed: The columns that every row has, and what each is.
        optional: The columns that rows may have besides.
    """

    needed: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, str]:
        """All columns."""
        return {**self.needed, **self.optional}

    def missing(self, present: Sequence[str], given: Mapping[str, str]) -> list[str]:
        """Return the needed columns that are not among those ``present``, under their own or the ``given`` names."""
        return [name for name in self.needed if given.get(name, name) not in present]

    def __str__(self) -> str:
        """Return its columns in words."""
        return " + ".join([*self.needed, *(f"[{name}]" for name in self.optional)])


SHAPES = (
    Shape({"prompt": "what is asked", "completion": "the answer"}),
    Shape({"messages": "a list of {role: system|user|assistant, content: …}"}),
    Shape({"instruction": "what is asked", "output": "the answer"}, {"input": "what the instruction is about"}),
    Shape({"input": "what is asked", "output": "the answer"}),
    Shape({"conversations": "a list of {from: system|human|gpt, value: …}"}),
    Shape({"text": "plain text, all of which is learnt"}),
)
"""The shapes of rows; a mistake is held against the first of those that are equally near."""

COLUMNS = {name: what for shape in SHAPES for name, what in shape.columns.items()}
"""The columns of all shapes, and what each is."""


def shape_of(rows: Rows, given: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of the one shape that ``rows`` have, each with its column in the data.

    Args:
        rows: The rows; those of the first row count as the columns there are.
        given: ``columns`` of the recipe; the shape has all of them.

    Raises:
        BadInput: No shape fits, or several do.
    """
    present = [name for name in rows.rows[0] if name != "__place__"]
    knowing = [shape for shape in SHAPES if set(given) <= set(shape.columns)]
    found = [shape for shape in knowing if not shape.missing(present, given) and _are_apart(shape, given)]
    # An instruction with input and output holds the pair of input and output, too.
    found = [shape for shape in found if not any(set(shape.columns) < set(other.columns) for other in found)]
    if len(found) != 1:
        raise BadInput(_no_shape(rows, present, given, knowing, found))
    shape = found[0]
    # The first row stands for all, but what rows need not have may first come later.
    there = [name for name in shape.optional if any(given.get(name, name) in row for row in rows.rows)]
    stated = {name: what for name, what in shape.optional.items() if name in given and name not in there}
    own = {name: column for name, column in given.items() if name not in there}
    return column_names(rows, {**shape.needed, **stated}, own) | {name: given.get(name, name) for name in there}


def _are_apart(shape: Shape, given: Mapping[str, str]) -> bool:
    """Return whether no two columns of ``shape`` are the same one in the data."""
    columns = [given.get(name, name) for name in shape.columns]
    return len(set(columns)) == len(columns)


def _no_shape(
    rows: Rows, present: Sequence[str], given: Mapping[str, str], knowing: Sequence[Shape], found: Sequence[Shape]
) -> Problem:
    """Return why not exactly one shape fits.

    Raises:
        BadInput: A shape lacks a column; with the nearest one.
    """
    key = f"{rows.key}.columns"
    for name in (name for name in given if name not in COLUMNS):
        near = nearest(name, COLUMNS)
        what, allowed = f"the task has no column {name!r}", f"its columns are {', '.join(COLUMNS)}"
        return Problem(rows.origin, key, what, allowed, f"did you mean {near!r}?" if near else "")
    shapes = "; ".join(map(str, SHAPES))
    if found:
        columns = ", ".join(f"{name}: {given.get(name, name)}" for name in found[0].needed)
        what = f"the columns {', '.join(present)} have several shapes: {'; '.join(map(str, found))}"
        return Problem(rows.origin, key, what, "one of them", f"name the one that is meant, as {key}='{{{columns}}}'")
    if not knowing:
        what = f"no shape of rows has {' and '.join(given)} together"
        return Problem(rows.origin, key, what, shapes, "map the columns of one of them")
    near_shape = max(knowing, key=lambda shape: len(shape.needed) - len(shape.missing(present, given)))
    if given or len(near_shape.missing(present, given)) < len(near_shape.needed):
        stated = {name: near_shape.columns[name] for name in near_shape.optional if name in given}
        column_names(rows, {**near_shape.needed, **stated}, given)
    what = f"the columns {', '.join(present) or '(none)'} are no shape of rows that the task knows"
    return Problem(rows.origin, key, what, shapes, f"name them, as {key}='{{prompt: COLUMN, completion: COLUMN}}'")


def messages_of(row: Mapping[str, Any], names: Mapping[str, str]) -> list[Message]:
    """Return the messages of a row.

    Args:
        row: The row.
        names: The columns of its shape, from :func:`shape_of`.

    Raises:
        RowError: Something in it is missing, empty or of another kind.
    """
    for column in ("messages", "conversations"):
        if column in names:
            return checked_messages(row, names[column])
    if "text" in names:
        return [{"role": TEXT, "content": text_in(row, names["text"])}]
    if "instruction" in names:
        asked = text_in(row, names["instruction"])
        about = row.get(names["input"]) if "input" in names else None
        if isinstance(about, str) and about.strip():
            asked = f"{asked}\n\n{about}"
        elif about is not None and not isinstance(about, str):
            raise RowError(names["input"], f"is {about!r:.60}", "a text, or nothing")
    else:
        asked = text_in(row, names["prompt" if "prompt" in names else "input"])
    answer = text_in(row, names["completion" if "completion" in names else "output"])
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def checked_messages(row: Mapping[str, Any], column: str, answered: bool = True) -> list[Message]:
    """Return the messages in ``column``, the last one an answer or, without ``answered``, a question.

    Raises:
        RowError: They are none, one has no text or no role that is known, or the last ones are others.
    """
    messages = row.get(column)
    if not isinstance(messages, list) or len(messages) < 1 + answered:
        raise RowError(column, f"is {messages!r:.60}", "a list of messages, at least a user's and an assistant's")
    checked = [_message(message, column) for message in messages]
    if (checked[-1]["role"] == "assistant") != answered:
        what = "does not end with an assistant's message" if answered else "ends with an assistant's message"
        raise RowError(column, what, "", "leave the last message out" if not answered else "leave the row out")
    if answered and checked[-2]["role"] != "user":
        what = f"the last answer follows a message of {checked[-2]['role']}"
        raise RowError(column, what, "a user's message before the last")
    return checked


def _message(message: Any, column: str) -> Message:
    """Return ``{role, content}`` of a message, which may say ``from`` and ``value`` instead, as ShareGPT does."""
    given: Any = message if isinstance(message, dict) else {}
    words = ("role", "content") if given.get("role") is not None or "from" not in given else ("from", "value")
    role, content = given.get(words[0]), given.get(words[1])
    known = _OTHER_ROLES.get(role, role) if isinstance(role, str) else None
    if known not in ROLES:
        others = f"; or {' or '.join(_OTHER_ROLES)}" if words[0] == "from" else ""
        raise RowError(column, f"has the role {role!r:.40}", f"one of {', '.join(ROLES)}{others}")
    if not isinstance(content, str) or not content.strip():
        raise RowError(column, f"a message of {role} has no text")
    return {"role": known, "content": content}


def is_text(messages: Sequence[Message]) -> bool:
    """Return whether a row is plain text."""
    return bool(messages) and messages[-1]["role"] == TEXT


def begun(text: str) -> tuple[str, str]:
    """Return the beginning of a text, from which a model is asked to go on, and the rest of it.

    The beginning is at most a half of the text and 200 characters, cut before white space where there is any, so that
    it has the tokens that it has in the whole.
    """
    end = min(max(len(text) // 2, 1), 200)
    space = next((place for place in range(end, 0, -1) if text[place : place + 1].isspace()), end)
    return (text[:space], text[space:]) if text[:space].strip() else (text[:end], text[end:])
