"""Readers of files: JSON, JSONL, CSV, Parquet, Arrow and plain text, with pyarrow and the standard library alone.

Each gives one dict a row, under the column names of the file; what is damaged is said with its place in it.
"""

import csv
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.data.section import label_column
from finelaunch.errors import BadInput, Problem
from finelaunch.metrics.squad_files import squad_questions

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".feather", ".txt")
_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'"}
"""What others write between columns instead of commas, and how it is called."""
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
"""What an Arrow stream ends with; one that was cut between two batches reads like a whole one otherwise."""


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Args:
        rows: One dict a row; those of files with lines have theirs under ``__place__``.
        features: How the ``datasets`` package describes the columns, where it wrote the file.
    """

    rows: list[dict[str, Any]]
    features: Mapping[str, Any] = field(default_factory=dict)


def read_file(path: Path, key: str, origin: str) -> Content:
    """Return what the file ``path`` holds, by its suffix.

    Args:
        path: The file.
        key: The key that names it, for messages.
        origin: Where the key stands, for messages.

    Raises:
        BadInput: It cannot be read, is damaged, or has another suffix.
    """
    lines = {".json": _json, ".jsonl": jsonl_rows, ".csv": _csv, ".txt": _one_text}
    tables = {".parquet": parquet_table, ".arrow": arrow_table, ".feather": arrow_table}
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        allowed = f"{', '.join(SUFFIXES)}, a folder of text files, or one that datasets' save_to_disk wrote"
        raise BadInput(Problem(origin, f"{key}.path", f"cannot read {path.suffix or 'no suffix'!r}: {path}", allowed))
    try:
        return Content(list(lines[suffix](path))) if suffix in lines else content_of([tables[suffix](path)], path)
    except OSError as error:
        raise BadInput(Problem(str(path), "", f"cannot be read: {_first_line(error.strerror or error)}")) from None


def label_names(features: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the names of integer labels, where ``datasets`` describes them as a class label or a list of them.

    Args:
        features: Its descriptions of the columns, as ``Features.to_dict`` gives them.
        columns: ``columns`` of the recipe.
    """
    feature = features.get(label_column(columns, features))
    while isinstance(feature, Mapping) and isinstance(feature.get("feature"), Mapping):
        feature = feature["feature"]
    if not isinstance(feature, Mapping) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    return tuple(map(str, names)) if isinstance(names, list) else None


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file without its byte order mark, line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadInput(Problem(f"{path}:line {line}", "", "not UTF-8", "", "convert it to UTF-8")) from None


def _parsed(text: str, place: str) -> Any:
    """Return what the JSON ``text`` says; ``place`` is where it stands, for messages."""
    try:
        value = json.loads(text, object_pairs_hook=_no_name_twice)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        place = place if ":line " in place else f"{place}:line {error.lineno}"
        reason = f"{error.msg} at character {error.colno}"
    except UnicodeEncodeError:
        reason = "half of a surrogate pair, which is no character"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise BadInput(Problem(place, "", f"not JSON: {reason}"))


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return record


def _json(path: Path) -> Iterator[dict[str, Any]]:
    content = _parsed(read_text(path), str(path))
    records = content.get("data") if isinstance(content, dict) else content
    if not isinstance(records, list):
        allowed = 'a list of objects, or {"data": [...]} as SQuAD is released'
        raise BadInput(Problem(str(path), "", "holds no list of rows", allowed))
    if records and isinstance(records[0], dict) and "paragraphs" in records[0]:
        yield from _nested_squad(content if isinstance(content, dict) else {"data": records}, path)
        return
    for index, record in enumerate(records):
        yield _mapping(record, f"{path}:row {index + 1}")


def _nested_squad(content: dict[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    """Flatten the official SQuAD JSON; a row's place is its path in the file."""
    try:
        for found in squad_questions(content):
            yield {
                "id": found.question["id"],
                "title": found.article.get("title"),
                "context": found.paragraph.get("context"),
                "question": found.question.get("question"),
                "answers": {name: [answer.get(name) for answer in found.answers] for name in ("text", "answer_start")},
                "__place__": found.place,
            }
    except BadInput as error:
        raise BadInput(replace(problem, origin=str(path)) for problem in error.problems) from None


def jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects in ``path``, each with its line under ``__place__``.

    Raises:
        BadInput: It is not UTF-8, or a line is not a JSON object.
        OSError: It cannot be read.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"line {number}"
            record = _parsed(line, f"{path}:{place}")
            yield {**_mapping(record, f"{path}:{place}"), "__place__": place}


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 30)
    text = io.StringIO(read_text(path), newline="")
    if separator := _other_separator(text):
        what = f"the names of the columns look as if they were separated by {separator}"
        raise BadInput(Problem(f"{path}:line 1", "", what, "commas between columns", "save it so, or as .jsonl"))
    text.seek(0)
    reader = csv.reader(text, strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise BadInput(Problem(f"{path}:line 1", ", ".join(twice), "a column stands twice", "each name once"))
        next_line = reader.line_num + 1
        for fields in reader:
            place, next_line = f"line {next_line}", reader.line_num + 1
            if not fields:
                continue
            if len(fields) != len(names):
                allowed = f"the {len(names)} fields of the first line"
                raise BadInput(Problem(f"{path}:{place}", "", f"{len(fields)} fields", allowed, "mind the quotes"))
            yield {**dict(zip(names, fields, strict=True)), "__place__": place}
    except csv.Error as error:
        raise BadInput(Problem(f"{path}:line {reader.line_num}", "", f"not CSV: {error}")) from None


def _other_separator(text: io.StringIO) -> str | None:
    """Return what stands between the names in the first line of CSV, where they are several and it is no comma."""
    if _num_names(text, ",") > 1:
        return None
    return next((_SEPARATORS[sign] for sign in _SEPARATORS if _num_names(text, sign) > 1), None)


def _num_names(text: io.StringIO, separator: str) -> int:
    """Return how many names the first line has where ``separator`` stands between them; 0: they are not to be told."""
    text.seek(0)
    try:
        return len(next(csv.reader(text, delimiter=separator, strict=True), []))
    except csv.Error:
        return 0


def _one_text(path: Path) -> Iterator[dict[str, Any]]:
    yield {"id": path.stem, "text": read_text(path), "__place__": "the file"}


def parquet_table(path: Path) -> "pa.Table":
    """Return the table in a Parquet file.

    Raises:
        BadInput: It is damaged.
        OSError: It cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.read()
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise BadInput(Problem(str(path), "", f"not Parquet: {_first_line(error)}")) from None


def arrow_table(path: Path) -> "pa.Table":
    """Return the table in an Arrow file, of the file format (Feather version 2) or the stream format of ``datasets``.

    Raises:
        BadInput: It is damaged.
        OSError: It cannot be read.
    """
    import pyarrow
    import pyarrow.ipc

    content = path.read_bytes()
    if content.startswith(b"FEA1"):
        remedy = "write it again, as Parquet or with pyarrow.feather.write_feather"
        raise BadInput(Problem(str(path), "", "is of Feather's version 1, which is no longer read", "", remedy))
    is_file = content.startswith(b"ARROW1")
    try:
        if not is_file and not content.endswith(_STREAM_END):
            raise ValueError("it is no Arrow data, or its end is missing")
        reader = pyarrow.ipc.open_file(content) if is_file else pyarrow.ipc.open_stream(content)
        table = reader.read_all()
        table.validate(full=True)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, MemoryError, OSError) as error:
        raise BadInput(Problem(str(path), "", f"not Arrow: {_first_line(error)}")) from None
    return table


def content_of(tables: list["pa.Table"], path: Path) -> Content:
    """Return the rows of all ``tables`` one after the other, and how ``datasets`` describes their columns.

    Raises:
        BadInput: A column stands twice, or a value cannot be told.
    """
    rows: list[dict[str, Any]] = []
    for table in tables:
        names = table.column_names
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise BadInput(Problem(str(path), ", ".join(twice), "a column stands twice", "each name once"))
        try:
            with warnings.catch_warnings(action="ignore"):
                rows += table.to_pylist()
        except (ValueError, TypeError, OverflowError, KeyError, MemoryError) as error:
            raise BadInput(Problem(str(path), "", f"a value cannot be read: {_first_line(error)}")) from None
    return Content(rows, _described(tables[0]) if tables else {})


def _described(table: "pa.Table") -> dict[str, Any]:
    try:
        about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]
    except (ValueError, LookupError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _mapping(record: Any, place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise BadInput(Problem(place, "", f"is {record!r:.60}", "an object with named columns"))
    return record
