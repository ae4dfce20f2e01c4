"""What a run leaves behind, compared with what the whole run left: weights, log, rows, checkpoints."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

TIMES = ("tokens_per_second", "samples_per_second")
"""Columns of the log that follow the clock, beside all that end in ``_seconds``."""

MANIFEST = "manifest.json"


def weights_digest(model: Path) -> str | None:
    """Return the SHA-256 of the final weights, over all their files where there are several; None without any."""
    digests = [(path.name, _sha256(path)) for path in sorted(model.glob("*.safetensors"))]
    if len(digests) < 2:
        return digests[0][1] if digests else None
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a log without the columns that follow the clock."""
    return [
        {key: value for key, value in row.items() if key not in TIMES and not key.endswith("_seconds")} for row in rows
    ]


def first_difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str | None:
    """Return where two logs differ first, in words; None where they are the same but for times."""
    one, other = without_times(one), without_times(other)
    for number, (row, expected) in enumerate(zip(one, other, strict=False), 1):
        if row != expected:
            keys = sorted(key for key in {*row, *expected} if row.get(key) != expected.get(key))
            values = ", ".join(f"{key} {row.get(key)!r} for {expected.get(key)!r}" for key in keys[:3])
            return f"line {number}: {values:.200}"
    return None if len(one) == len(other) else f"{len(one)} lines for {len(other)}"


def compare(run: RunDirectory, reference: RunDirectory) -> dict[str, str | None]:
    """Return what differs between two finished runs: per thing compared a sentence, or None where it is the same.

    Rows are compared where the reference has written them.
    """
    found = {
        "weights": None,
        "log": first_difference(read_lines(run.train_log), read_lines(reference.train_log)),
    }
    ours, theirs = weights_digest(run.model), weights_digest(reference.model)
    if ours is None or ours != theirs:
        found["weights"] = f"SHA-256 {ours or 'of nothing'} for {theirs}"
    if reference.samples.exists():
        found["samples"] = first_difference(read_lines(run.samples), read_lines(reference.samples))
    return found


def checkpoints(run: RunDirectory) -> dict[int, Path]:
    """Return the folders of checkpoints by step, whole or not, the oldest first."""
    found = {}
    for path in run.checkpoints.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdecimal() and path.is_dir():
            found[int(number)] = path
    return dict(sorted(found.items()))


def published(run: RunDirectory) -> list[int]:
    """Return the steps of the checkpoints that have a manifest, the oldest first."""
    return [step for step, path in checkpoints(run).items() if (path / MANIFEST).exists()]


def fault_of(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint by its own manifest, or None where every byte is as it says."""
    manifest = read_object(checkpoint / MANIFEST)
    files: Mapping[str, Any] = manifest.get("files") or {}
    if not files:
        return f"{checkpoint.name} has no manifest that names files"
    for name, said in files.items():
        try:
            size, digest = (checkpoint / name).stat().st_size, _sha256(checkpoint / name)
        except OSError as error:
            return f"{checkpoint.name}/{name}: {error.strerror}"
        if (size, digest) != (said.get("bytes"), said.get("sha256")):
            return f"{checkpoint.name}/{name} is not what its manifest says"
    return None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``, empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def stored_bytes(folder: Path, block_bytes: int = 4096) -> int:
    """Return what the files below ``folder`` take on a file system with such blocks; files that just go count not."""
    total, waiting = 0, [folder]
    while waiting:
        try:
            for path in waiting.pop().iterdir():
                if path.is_dir() and not path.is_symlink():
                    waiting.append(path)
                else:
                    total += -(-path.lstat().st_size // block_bytes) * block_bytes
        except OSError:
            continue
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
