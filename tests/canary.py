"""Secrets that must appear nowhere: variables with values that are searched for in every file that a run has left."""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

VALUE = "canary-5up3rs3cr3t-9f27"
NAMES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "DATABASE_PASSWORD",
    "MY_PROJECT_TOKEN",
    "MY_API_KEY",
)
ENVIRONMENT = {name: f"{VALUE}-{name}" for name in NAMES}


def found_in(folder: Path) -> list[str]:
    """Return what below ``folder`` holds a secret, also within compressed files; and that files were read at all."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, f"nothing to search in {folder}"
    return [f"{path}: {how}" for path in files for how, content in _contents(path) if VALUE.encode() in content]


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    raw = path.read_bytes()
    yield "plain", raw
    if VALUE.encode() not in raw:
        yield "as UTF-16", raw.decode("utf-16-le", errors="ignore").encode()
    for name, unpack in (("gzip", gzip.decompress), ("bz2", bz2.decompress), ("xz", lzma.decompress)):
        try:
            yield name, unpack(raw)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
            continue
    if zipfile.is_zipfile(path):  # what torch saves
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                yield f"in {member}", archive.read(member)
