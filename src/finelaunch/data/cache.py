"""Prepared data, kept by content: the same files, sections and tokenizer are never encoded twice.

An entry is a folder that appears whole or not at all: it is written under another name and renamed. Two processes that
prepare the same entry both finish, the later one's work is dropped, and a killed one leaves no lock.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from finelaunch.errors import RequirementMissing

ABANDONED_SECONDS = 86_400.0


def cache_root() -> Path:
    """Return the cache folder: FINELAUNCH_CACHE, else finelaunch below XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("FINELAUNCH_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "finelaunch"


def content_key(parts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of ``parts`` as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def cached(kind: str, key: str) -> Path:
    """Return the folder of ``key``, which exists where the entry is there."""
    return cache_root() / kind / key[:32]


def entry(kind: str, key: str, write: Callable[[Path], None]) -> tuple[Path, bool]:
    """Return the folder of ``key``, written by ``write`` where it is not there yet, and whether it was there.

    Args:
        kind: A folder of the cache, such as ``prepared``.
        key: What the content depends on, from :func:`content_key`.
        write: Fills an empty folder.

    Raises:
        RequirementMissing: The cache cannot be written.
    """
    folder = cached(kind, key)
    if folder.is_dir():
        return folder, True
    draft = folder.with_name(f".{key[:8]}-{uuid.uuid4().hex}")
    try:
        _remove_abandoned(folder.parent)
        draft.mkdir(parents=True)
        write(draft)
        _flush(draft)
        draft.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            if error.errno not in _UNWRITABLE and folder.parent.is_dir():
                raise
            reason = f"the cache {folder.parent} cannot be written: {error.strerror}"
            raise RequirementMissing(f"{reason}; make room there, or set FINELAUNCH_CACHE to another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder, False


_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left unfinished; nothing that is being written goes without a change for a day."""
    for draft in folder.glob(".*-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - max(path.stat().st_mtime for path in (draft, *draft.rglob("*"))) > ABANDONED_SECONDS:
                shutil.rmtree(draft, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bring every file in ``folder`` to disk, so that a power cut leaves no entry with half its content."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def write_table(table: pa.Table, path: Path) -> None:
    """Write an Arrow file that :func:`read_table` can map."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """Return the table of an Arrow file, mapped rather than read."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
