"""Prepared data, kept by content: the same files, sections and tokenizer are never encoded twice.

An entry is a folder that appears whole or not at all: it is written under another name and renamed. Two processes that
prepare the same entry both finish, the later one's work is dropped, and a killed one leaves no lock.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa


def cache_root() -> Path:
    """Return the cache folder: FINELAUNCH_CACHE, else finelaunch below XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("FINELAUNCH_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "finelaunch"


def content_key(parts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of ``parts`` as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def entry(kind: str, key: str, write: Callable[[Path], None]) -> tuple[Path, bool]:
    """Return the folder of ``key``, written by ``write`` where it is not there yet, and whether it was there.

    Args:
        kind: A folder of the cache, such as ``prepared``.
        key: What the content depends on, from :func:`content_key`.
        write: Fills an empty folder.

    Raises:
        OSError: The cache cannot be written.
    """
    folder = cache_root() / kind / key[:32]
    if folder.is_dir():
        return folder, True
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{key[:8]}-", dir=folder.parent))
    try:
        write(draft)
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder, False


def write_table(table: pa.Table, path: Path) -> None:
    """Write an Arrow file that :func:`read_table` can map."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """Return the table of an Arrow file, mapped rather than read."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
