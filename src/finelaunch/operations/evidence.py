"""What a run's files tell of its end."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finelaunch.operations.records import last_lines
from finelaunch.run.directory import RunDirectory
from finelaunch.slurm.ends import Evidence, blamed_ranks, complaint, lines_of_last_start
from finelaunch.slurm.jobs import JobState

_TAIL_BYTES = 1 << 18
_MAX_RANKS = 16


def evidence_of(
    run: RunDirectory,
    events: Sequence[Mapping[str, Any]],
    job: JobState | None = None,
    limit_seconds: int | None = None,
) -> Evidence:
    """Return all that may tell how ``run``, or the last start of its job, has ended."""
    lines: list[str] = []
    if job is not None:
        lines = lines_of_last_start(last_lines(task_log(run, job.job_id, 0, "err"), _TAIL_BYTES))
    failed = [event.get("rank") for event in events if event.get("event") == "failed"]
    ranks = dict.fromkeys([*blamed_ranks(lines), *(rank for rank in failed if type(rank) is int)])
    errors = {rank: _complaint(run, job, rank, lines) for rank in list(ranks)[:_MAX_RANKS]}
    return Evidence(events, job, lines, {rank: text for rank, text in errors.items() if text}, limit_seconds)


def task_log(run: RunDirectory, job_id: str, rank: int, stream: str) -> Path:
    """Return what Slurm writes a task's ``out`` or ``err`` to; srun's own words stand in that of the first."""
    return run.slurm / f"{job_id}_{rank}_log.{stream}"


def _complaint(run: RunDirectory, job: JobState | None, rank: int, lines: Sequence[str]) -> str:
    """Return the last thing that a rank has complained of, in whichever of its files was written last."""
    if job is not None and rank == 0:
        return complaint(lines)
    paths = [run.log_of(rank)] + ([task_log(run, job.job_id, rank, "err")] if job is not None else [])
    newest = sorted((path for path in paths if os.path.isfile(path)), key=lambda path: path.stat().st_mtime)
    said = (complaint(last_lines(path, _TAIL_BYTES)) for path in reversed(newest))
    return next(filter(None, said), "")
