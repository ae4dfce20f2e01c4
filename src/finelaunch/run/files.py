"""Files of a run: written whole or not at all, lines appended whole."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_UMASK = os.umask(0)
os.umask(_UMASK)
"""It can only be read by setting it, which is safe before there are threads."""


def write_text(path: Path, text: str) -> None:
    """Write ``text`` under a temporary name beside ``path``, flush it to disk and rename it.

    Bytes of file names that are no UTF-8, which Python holds as lone surrogates, are written as JSON escapes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with room_for(path, len(text)), draft.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def plain_mode(path: Path) -> None:
    """Give ``path`` the mode that any new file gets: safetensors makes its own readable to the owner alone."""
    path.chmod(0o666 & ~_UMASK)


def is_full_disk(error: BaseException) -> bool:
    """Return whether ``error`` says that a disk or a quota is full; libraries in Rust say it in their text alone."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error, Exception) and any(sign in str(error) for sign in _FULL)


_FULL = ("No space left on device", "Disk quota exceeded", "StorageFull")


@contextmanager
def room_for(path: Path, num_bytes: int) -> Iterator[None]:
    """Name the file and the room for it where the disk is full; the system does not."""
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        free = shutil.disk_usage(path.parent).free
        what = f"{os.strerror(error.errno or errno.ENOSPC)}: it takes {num_bytes:,} bytes, and {free:,} are free"
        raise OSError(error.errno, what, str(path)) from None


def full_disk_text(error: BaseException) -> str:
    """Return what a full disk comes to, as a sentence."""
    place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{place}cannot be written: {why}; make room, and give the same command again"


def unreadable_text(what: str) -> str:
    """Return what a file that cannot be read for now comes to, as a sentence."""
    return f"{what}; nothing was changed: try again when the file system answers"


def read_end(path: Path, num_bytes: int) -> tuple[bytes, bool]:
    """Return the last ``num_bytes`` of a file, and whether that is all of it."""
    with path.open("rb") as file:
        start = max(file.seek(0, os.SEEK_END) - num_bytes, 0)
        file.seek(start)
        return file.read(num_bytes), start == 0


def size_of(folder: Path) -> int:
    """Return the bytes of all files below ``folder``; none where it is not there."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, as :func:`write_text` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, as :func:`write_text` does."""
    write_text(path, "".join(map(_line, rows)))


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object as one line, in one write; a line that was cut off before it is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = _line(row).encode(errors="backslashreplace")
    with room_for(path, len(line)), path.open("a+b", buffering=0) as file:
        left = (b"\n" if _is_cut_off(file) else b"") + line
        while left:  # of a disk that is nearly full it takes a part, and refuses only what comes after
            left = left[file.write(left) :]


def _is_cut_off(file: BinaryIO) -> bool:
    """Return whether the last byte ends no line; where another process is just writing it, an empty line results."""
    size = os.fstat(file.fileno()).st_size
    return size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def cut_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Cut ``path`` off before the first line that is not to be kept, or that was itself cut off; lines are in order."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            try:
                if not line.endswith(b"\n") or not keep(json.loads(line)):
                    break
            except ValueError:
                break
            end += len(line)
        file.truncate(end)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in ``path``; a line that was cut off is left out, no file gives none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
