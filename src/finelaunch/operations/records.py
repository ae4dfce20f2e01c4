"""Reading a run directory that may be half written, damaged or not readable: what cannot be read is not there."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finelaunch.errors import BadInput, Problem
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_end
from finelaunch.slurm import history
from finelaunch.slurm.submission import SubmittedJob, read_jobs

RUNS = Path("runs")

_KINDS = {"num_nodes": int, "num_tasks": int, "time_limit_seconds": int}
_TAIL_BYTES = 1 << 16
_LONGEST_TAIL_BYTES = 1 << 24


def find_run(name: str) -> RunDirectory:
    """Return the run directory ``name``, or the run of that name below ``runs/``.

    Raises:
        BadInput: There is none.
    """
    for path in (Path(name), RUNS / name):
        if is_run(path):
            return RunDirectory(path)
    folder = next((one for one in (name, str(RUNS / name)) if name and os.path.isdir(one)), None)
    if folder is not None and not os.access(folder, os.R_OK | os.X_OK):
        what, remedy = f"{folder} may not be read by you", "ask its owner, or set cluster.group for a lab"
    elif folder is not None:
        what, remedy = f"{folder} is a folder, and no run", "name a run directory or a run below runs/"
    else:
        known = [run.path.name for run in all_runs()]
        what = f"there is no run {name!r:.200}"
        remedy = f"runs here: {', '.join(known)}" if known else "start one first: finelaunch launch RECIPE"
    raise BadInput(Problem("command line", "RUN", what, "", remedy))


def all_runs() -> list[RunDirectory]:
    """Return every run below ``runs/``, by name."""
    try:
        folders = sorted(RUNS.iterdir())
    except OSError:
        return []
    return [RunDirectory(path) for path in folders if is_run(path)]


def is_run(path: Path) -> bool:
    """Return whether something of a run is in ``path``; one that was only submitted has no recipe of its own yet."""
    run = RunDirectory(path)
    signs = (run.manifest, run.events, run.lock, run.slurm / "jobs.jsonl")  # RUN/slurm holds a recipe, and is no run
    try:
        return any(os.path.isfile(sign) for sign in signs)
    except ValueError:  # a name with a NUL
        return False


def events_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the events of a run, the failures of all its ranks among them."""
    try:
        return history.events_of(run)
    except OSError:
        return []


def jobs_of(run: RunDirectory) -> list[SubmittedJob]:
    """Return the jobs that a run was given, in the order of their submission; a fact of another kind is not there."""
    try:
        jobs = read_jobs(run)
    except (OSError, TypeError, ValueError):
        return []
    wrong = [
        {name: None for name, value in asdict(job).items() if not isinstance(value, _KINDS.get(name, str))}
        for job in jobs
    ]
    return [replace(job, **facts) for job, facts in zip(jobs, wrong, strict=True) if isinstance(job.time, str)]


def manifest_of(run: RunDirectory) -> dict[str, Any]:
    """Return the manifest; empty where it is missing or damaged."""
    try:
        content = json.loads(run.manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def section(values: Any, *keys: str) -> Any:
    """Return what stands under ``keys`` in nested objects, or None where one of them is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def number(value: Any) -> float | None:
    """Return ``value`` where it is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < float("inf") else None


def last_rows(path: Path, count: int = 1) -> list[dict[str, Any]]:
    """Return the last ``count`` rows of a file of any length; only its end is read."""
    num_bytes = _TAIL_BYTES
    while True:
        lines, is_whole = _tail(path, num_bytes)
        found = [row for line in lines if (row := _row(line)) is not None]
        if len(found) >= count or is_whole or num_bytes >= _LONGEST_TAIL_BYTES:
            return found[-count:]
        num_bytes *= 16


def last_lines(path: Path, num_bytes: int) -> list[str]:
    """Return the lines in the last ``num_bytes`` of a file."""
    return [line.decode(errors="replace").rstrip("\r") for line in _tail(path, num_bytes)[0]]


def _tail(path: Path, num_bytes: int) -> tuple[Sequence[bytes], bool]:
    """Return the whole lines in the end of a file, and whether that is all of it."""
    try:
        end, is_whole = read_end(path, num_bytes)
    except OSError:
        return [], True
    lines = end.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return (lines if is_whole else lines[1:]), is_whole


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
