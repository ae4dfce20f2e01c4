"""Files of a run: written whole or not at all, lines appended whole."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO


def write_text(path: Path, text: str) -> None:
    """Write ``text`` under a temporary name beside ``path``, flush it to disk and rename it.

    Bytes of file names that are no UTF-8, which Python holds as lone surrogates, are written as JSON escapes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, as :func:`write_text` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, as :func:`write_text` does."""
    write_text(path, "".join(map(_line, rows)))


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object as one line, in one write; a line that was cut off before it is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        file.write((b"\n" if _is_cut_off(file) else b"") + _line(row).encode(errors="backslashreplace"))


def _is_cut_off(file: BinaryIO) -> bool:
    """Return whether the last byte ends no line; where another process is just writing it, an empty line results."""
    size = os.fstat(file.fileno()).st_size
    return size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in ``path``; a line that was cut off is left out, no file gives none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
