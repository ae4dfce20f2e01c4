"""What makes a checkpoint count: a manifest, written last and at once, that names every file with size and SHA-256.

A checkpoint without one was not written to its end. One whose files differ from it was damaged since. Both are told
without loading anything, so that no pickle is opened that was not found whole. A copy of the folder is as good as the
folder. Nothing here needs torch.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finelaunch.run.files import plain_mode, write_json

NAME = "manifest.json"
FORMAT = 1
Verification = Literal["sha256", "size"]

_NUMBERED = re.compile(r"checkpoint-(\d+)")
ASIDE = "aside-"
"""How the name of a folder begins that no longer counts, and is the user's to delete."""
OLD = "old-"
"""How it begins where the folder goes as soon as a newer checkpoint is whole."""
_LOADED = (".pt", ".pth", ".bin", ".safetensors", ".distcp", ".json", ".pkl", ".pickle")
"""What the Trainer or an engine might load; a note of the user's beside it does no harm."""
UNFIT = ("its manifest has format", "it was written as")
"""How reasons begin that say nothing of the files."""
_CHUNK_BYTES = 1 << 24

_OF_A_RANK = re.compile(r"(?:^|/)(?:rng_state_(\d+)\.pth|(?:bf16_)?zero_pp_rank_(\d+)_.*|__(\d+)_\d+\.distcp)$")
"""Files that each rank writes for itself: random states, DeepSpeed's parts, the parts of FSDP."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a manifest.

    Args:
        path: ``checkpoints/checkpoint-N``.
        content: Of the manifest: format, step, world_size, engine, versions, num_threads, fingerprint, recipe, data,
            losses (of the steps since the last log line), files.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The optimizer steps that were done."""
        return self.content["step"]

    @property
    def num_bytes(self) -> int:
        """The size of all files."""
        return sum(file["bytes"] for file in self.content["files"].values())

    def damage(
        self, how: Verification = "sha256", share: tuple[int, int] = (0, 1), alive: Callable[[], None] = lambda: None
    ) -> list[str]:
        """Return what is wrong with the files, a sentence each.

        Args:
            how: ``sha256`` reads everything; ``size`` does not see a byte that changed.
            share: (i, n): look at every n-th file from the i-th on, the largest first.
            alive: Called now and then.

        Raises:
            OSError: A file cannot be read for now, which says nothing of it.
        """
        files: dict[str, Any] = self.content["files"]
        added = [name for name in _files(self.path) if name not in files and name.endswith(_LOADED)]
        found = [f"{name} was added after it was written" for name in added] if share[0] == 0 else []
        for name in sorted(files, key=lambda name: (-files[name]["bytes"], name))[share[0] :: share[1]]:
            path, said = self.path / name, files[name]
            try:
                size = path.stat().st_size
                if size != said["bytes"]:
                    found.append(f"{name} has {size:,} bytes, not {said['bytes']:,}")
                elif how == "sha256" and _sha256(path, alive) != said["sha256"]:
                    found.append(f"{name} was changed since it was written (its SHA-256 differs)")
            except FileNotFoundError:
                found.append(f"{name} is missing")
        return found


def read_checkpoint(path: Path) -> Checkpoint | str:
    """Return the checkpoint in ``path``, or why it is none.

    Raises:
        OSError: The manifest cannot be read for now.
    """
    try:
        text = (path / NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return "it was not written to its end (it has no manifest)"
    try:
        content = json.loads(text)
        seal = content.pop("sha256")
    except (ValueError, TypeError, KeyError, AttributeError):
        return "its manifest is damaged"
    if seal != _seal(content):
        return "its manifest is damaged"
    if content["format"] != FORMAT:
        return f"{UNFIT[0]} {content['format']}, and this version reads {FORMAT}"
    if path.name != f"checkpoint-{content['step']}" and _NUMBERED.fullmatch(path.name):
        return f"{UNFIT[1]} checkpoint-{content['step']}, and renamed"
    return Checkpoint(path, content)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the folders ``checkpoint-N``, whole or not, the newest first."""
    found = [(path, _NUMBERED.fullmatch(path.name)) for path in folder.glob("checkpoint-*") if path.is_dir()]
    numbered = [(int(match[1]), path) for path, match in found if match]
    return [path for _, path in sorted(numbered, reverse=True)]


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest folder that has a sound manifest; its files are not looked at."""
    found = (read_checkpoint(path) for path in checkpoints_in(folder))
    return next((one for one in found if isinstance(one, Checkpoint)), None)


def describe_files(checkpoint: Path, rank: int) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of the files that ``rank`` has written, which then lie on the disk with a plain mode."""
    described: dict[str, dict[str, Any]] = {}
    for name in _files(checkpoint):
        if writer_of(name) == rank:
            path = checkpoint / name
            plain_mode(path)
            _flush(path)
            described[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return described


def writer_of(file: str) -> int:
    """Return the rank that writes ``file``, a path below a checkpoint: the first, where none is named in it."""
    found = _OF_A_RANK.search(file)
    return int(next(filter(None, found.groups()))) if found else 0


def publish(checkpoint: Path, facts: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Write the manifest, from which moment on the checkpoint counts.

    Raises:
        OSError: One of ``files`` cannot be seen from here, or the disk is full.
    """
    for name, said in files.items():
        if (checkpoint / name).stat().st_size != said["bytes"]:
            raise OSError(errno.EIO, "another size than the rank that wrote it has seen", str(checkpoint / name))
    content = {"format": FORMAT, **facts, "files": dict(sorted(files.items()))}
    for folder in (checkpoint, *(path for path in checkpoint.rglob("*") if path.is_dir())):
        _flush(folder)
    write_json(checkpoint / NAME, {**content, "sha256": _seal(content)})
    _flush(checkpoint)
    _flush(checkpoint.parent)


def set_aside(checkpoint: Path, prefix: str) -> Path:
    """Rename a checkpoint so that it does not count any more, and return where its files are."""
    aside = checkpoint.with_name(f"{prefix}{checkpoint.name}")
    if aside.exists():
        shutil.rmtree(aside)
    checkpoint.rename(aside)
    return aside


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, its manifest first: what is left of one that was half deleted does not count."""
    (checkpoint / NAME).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def surplus(checkpoints: Sequence[Path], limit: int | None, spared: Sequence[Path]) -> list[Path]:
    """Return the checkpoints to delete so that the newest ``limit`` are left, and the ``spared`` ones.

    Args:
        checkpoints: All that count, the newest first.
        limit: How many to keep; None: all.
        spared: Such as the best.
    """
    return [] if limit is None else [path for path in checkpoints[limit:] if path not in spared]


def _files(checkpoint: Path) -> Iterator[str]:
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != NAME and not path.name.startswith(f".{NAME}."):
            yield path.relative_to(checkpoint).as_posix()


def _sha256(path: Path, alive: Callable[[], None] = lambda: None) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            alive()
    return digest.hexdigest()


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
