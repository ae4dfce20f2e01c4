"""Checks that every task makes on its rows, said with file, row, column and remedy."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput, Problem
from finelaunch.section.base import nearest

MAX_PROBLEMS = 20


def column_names(rows: Rows, wanted: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the data's column for each of the ``wanted`` columns.

    Args:
        rows: The rows; those of the first row count as the columns there are.
        wanted: What the task needs and what each is.
        given: ``columns`` of the recipe.

    Raises:
        BadInput: A column that is not there, or a mapping for a column that the task does not know.
    """
    present = [name for name in rows.rows[0] if name != "__place__"]
    problems = []
    for name in given:
        if name not in wanted:
            near = nearest(name, wanted)
            what, allowed = f"the task has no column {name!r}", f"its columns are {', '.join(wanted)}"
            problems.append(
                Problem(rows.origin, f"{rows.key}.columns", what, allowed, f"did you mean {near!r}?" if near else "")
            )
    names = {name: given.get(name, name) for name in wanted}
    for name, column in names.items():
        if column not in present:
            near = nearest(column, present)
            hint = f", perhaps {rows.key}.columns.{name}={near}" if near else f" with {rows.key}.columns.{name}=COLUMN"
            what = f"there is no column {column!r} ({wanted[name]})"
            problems.append(
                Problem(rows.origin, f"{rows.key}.columns", what, f"columns: {', '.join(present)}", "name it" + hint)
            )
    if problems:
        raise BadInput(problems)
    return names


def check_rows(
    rows: Rows, read: Callable[[Mapping[str, Any]], dict[str, Any]], unique_ids: bool = False
) -> list[dict[str, Any]]:
    """Return ``id`` and ``read(row)`` for every row, and say all that is wrong at once.

    Args:
        rows: The rows; one without ``id`` gets its number, from 0.
        read: Turns a row into an example, or raises :class:`RowError`.
        unique_ids: Whether an id given twice is a fault; otherwise the later rows are told apart as ``ID#2``, ``ID#3``.

    Raises:
        BadInput: With the first 20 faults and the number of the others.
    """
    examples, problems, num_faults = [], [], 0
    ids = given_ids(rows)
    times = Counter(ids)
    for index, (identity, row) in enumerate(zip(ids if unique_ids else _told_apart(ids), rows.rows, strict=True)):
        try:
            if unique_ids and times[identity] > 1:
                raise RowError("id", f"{identity!r:.60} stands {times[identity]} times", "one row an id")
            examples.append({"id": identity, **read(row)})
        except RowError as error:
            num_faults += 1
            if num_faults <= MAX_PROBLEMS:
                problems.append(Problem(rows.place(index), error.column, error.what, error.allowed, error.remedy))
    if num_faults > MAX_PROBLEMS:
        problems.append(Problem(rows.origin, rows.key, f"and {num_faults - MAX_PROBLEMS:,} more rows with faults"))
    if problems:
        raise BadInput(problems)
    return examples


def given_ids(rows: Rows) -> list[str]:
    """Return the id of every row as it is given, or the row's number from 0."""
    return [str(index if row.get("id") is None else row["id"]) for index, row in enumerate(rows.rows)]


def _told_apart(ids: list[str]) -> list[str]:
    taken, times, distinct = set(ids), Counter[str](), []
    for identity in ids:
        times[identity] += 1
        name = identity
        while times[identity] > 1 and name in taken:
            name = f"{identity}#{times[identity]}"
            times[identity] += name in taken
        taken.add(name)
        distinct.append(name)
    return distinct


class RowError(ValueError):
    """A fault in one row.

    Args:
        column: The column it stands in.
        what: What is wrong.
        allowed: What would be accepted.
        remedy: What to do.
    """

    def __init__(self, column: str, what: str, allowed: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.column, self.what, self.allowed, self.remedy = column, what, allowed, remedy


def text_in(row: Mapping[str, Any], column: str) -> str:
    """Return the text in ``column``.

    Raises:
        RowError: It is not a text, or holds nothing but white space.
    """
    value = row.get(column)
    if not isinstance(value, str):
        raise RowError(column, "is missing" if value is None else f"is {value!r:.60}", "a text")
    if not value.strip():
        raise RowError(column, "is empty", "a text", "remove the row or fill it in")
    return value
