"""Folders of rows: text files, by class or not, and data sets that ``datasets`` saved to disk."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finelaunch.data.files import Content, arrow_table, content_of, read_text
from finelaunch.errors import BadInput, Problem

UNLABELLED = "unsup"
"""The folder of aclImdb whose texts have no label."""
SPLITS_FILE = "dataset_dict.json"
"""What lists the splits of a ``DatasetDict`` that was saved to disk."""
_STATE = "state.json"
"""What lists the files of one split that was saved to disk."""


@dataclass(frozen=True)
class Folder:
    """The files of a folder that hold rows.

    Args:
        files: Those files, in the order of their rows.
        kind: ``saved``, ``classes`` or ``texts``.
        classes: The names of the class folders.
        dropped: What is left out on purpose, a sentence each.
    """

    files: list[Path]
    kind: str
    classes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = field(default=())


def saved_split(path: Path, wanted: str, key: str) -> Path:
    """Return the folder of the split ``wanted`` below ``path``, where ``datasets`` saved several splits.

    Raises:
        BadInput: There is no such split, or the list of splits is damaged.
    """
    splits = _parsed_file(path / SPLITS_FILE).get("splits")
    if not isinstance(splits, list) or wanted not in splits:
        what, allowed = f"{path} holds no split {wanted!r}", f"its splits are {', '.join(map(str, splits or []))}"
        raise BadInput(Problem(str(path), f"{key}.split", what, allowed, f"name one with {key}.split=SPLIT"))
    return path / wanted


def look_into(path: Path, key: str) -> Folder:
    """Return which files of the folder ``path`` hold rows.

    Raises:
        BadInput: None do, or a saved data set is damaged.
    """
    if (path / _STATE).exists():
        return Folder(_saved_files(path), "saved")
    children = sorted(path.iterdir())
    unlabelled = path / UNLABELLED
    classes = [one for one in children if one.is_dir() and one != unlabelled and any(one.glob("*.txt"))]
    if classes:
        dropped = (f"{unlabelled}: left out, it holds texts without a label",) if unlabelled.is_dir() else ()
        files = [file for folder in classes for file in sorted(folder.glob("*.txt"))]
        return Folder(files, "classes", tuple(folder.name for folder in classes), dropped)
    if texts := [one for one in children if one.suffix.lower() == ".txt" and one.is_file()]:
        return Folder(texts, "texts")
    allowed = "text files, a sub-folder of them per class, or what datasets' save_to_disk writes"
    raise BadInput(Problem(str(path), key, "a folder without CLASS/*.txt or *.txt", allowed))


def read_folder(folder: Folder, path: Path) -> Content:
    """Return the rows of a folder; those of text files know their file.

    Raises:
        BadInput: A file cannot be read, or is damaged.
    """
    if folder.kind == "saved":
        return content_of([_table(file) for file in folder.files], path)
    rows = []
    for file in folder.files:
        try:
            text = read_text(file)
        except OSError as error:
            raise BadInput(Problem(str(file), "", f"cannot be read: {error.strerror or error}")) from None
        place = str(file.relative_to(path).as_posix())
        row: dict[str, Any] = {"id": place.removesuffix(".txt"), "text": text, "__place__": place}
        rows.append(row | ({"label": file.parent.name} if folder.classes else {}))
    return Content(rows)


def _table(file: Path) -> Any:
    try:
        return arrow_table(file)
    except OSError as error:
        raise BadInput(Problem(str(file), "", f"cannot be read: {error.strerror or error}")) from None


def _saved_files(path: Path) -> list[Path]:
    state = _parsed_file(path / _STATE)
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
        files = [path / name for name in names if Path(name).name == name]
        if len(files) < len(names):
            raise ValueError("it names a file outside of its folder")
    except (LookupError, TypeError, ValueError) as error:
        raise BadInput(Problem(str(path / _STATE), "", f"is damaged: {error!s:.100}", "", "save it again")) from None
    if state.get("_indices_data_files"):
        what = "was saved by an old version of datasets, with its rows in another order than its files"
        raise BadInput(Problem(str(path), "", what, "", "load it and save it to disk again"))
    return files


def _parsed_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(Problem(str(path), "", f"is damaged: {error!s:.100}", "", "save it again")) from None
    if not isinstance(content, dict):
        raise BadInput(Problem(str(path), "", "is damaged: no JSON object", "", "save it again"))
    return content
