"""What became of runs, for a reader: one run in detail, several as a table, either as JSON."""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from finelaunch.operations.progress import Progress
from finelaunch.operations.status import LIVE, RESUMABLE, RunStatus, num_lost_steps
from finelaunch.slurm.ends import clock

_FIGURES = ("accuracy", "exact_match", "f1", "perplexity", "loss")
"""What is shown of an evaluation, in this order, as far as it is there."""


def details(status: RunStatus) -> list[str]:
    """Return the lines about one run; what its files do not say is said to be unknown."""
    progress = status.progress
    rows = {
        "state": in_words(status),
        "job": _job(status),
        "time": _time(status),
        "engine": _engine(status),
        "step": _step(progress),
        "early end": progress.ended_early or "",
        "loss": _loss(progress),
        "validation": _validation(progress),
        "checkpoint": progress.checkpoint or "none yet",
        "end": _end(status),
        "requeues": _requeues(status),
        "process": _process(status),
        "warnings": f"{status.num_warnings} in the manifest" if status.num_warnings else "",
        "goes on": "the same command continues it" if status.state in RESUMABLE else "",
    }
    lines = [f"{name:<10}  {plain(text)}" for name, text in rows.items() if text]
    return [
        plain(str(status.run.path)),
        *(f"  {line}" for line in lines),
        *(f"  {plain(note)}" for note in status.notes),
    ]


def table(statuses: Sequence[RunStatus]) -> list[str]:
    """Return a line for each run, below a line of headings."""
    rows = [("run", "state", "step", "loss", "tokens/s", "job", "remark"), *map(_row, statuses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    notes = dict.fromkeys(note for status in statuses for note in status.notes if "job" not in note)
    return [line.rstrip() for line in lines] + [plain(note) for note in notes]


def as_json(status: RunStatus) -> dict[str, Any]:
    """Return all that is known of a run; what is not known is null."""
    job, submitted, holder, end = status.job, status.submitted, status.holder, status.end
    return {
        "run": str(status.run.path),
        "state": status.state,
        "reason": status.reason,
        "is_live": status.is_live,
        "is_resumable": status.state in RESUMABLE,
        "target": status.target,
        "profile": status.profile,
        "engine": dict(status.engine),
        **dataclasses.asdict(status.progress),
        "remaining_seconds": status.progress.remaining_seconds,
        "ends_at": _iso(status.ends_at),
        "further_starts": status.further_starts,
        "job": {**_plain_values(dataclasses.asdict(job)), "why_waiting": job.why_waiting} if job else None,
        "submitted": dataclasses.asdict(submitted) if submitted else None,
        "requeues": [dict(one) for one in status.requeues],
        "lost_steps": num_lost_steps(status),
        "end": dataclasses.asdict(end) if end else None,
        "holder": dataclasses.asdict(holder) if holder else None,
        "num_warnings": status.num_warnings,
        "notes": list(status.notes),
    }


def in_words(status: RunStatus) -> str:
    """Return state and reason, the state once where the reason says it too."""
    if status.reason.startswith(status.state):
        return plain(status.reason)
    return plain(f"{status.state}: {status.reason}" if status.reason else status.state)


def plain(text: str) -> str:
    """Return ``text`` in one line that cannot steer a terminal, whatever wrote it."""
    line = " ".join(text.split("\n"))
    return "".join("�" if unicodedata.category(one) in ("Cc", "Cs") and one != "\t" else one for one in line)


def _job(status: RunStatus) -> str:
    job, submitted = status.job, status.submitted
    if job is None:
        return ""
    where = [f"cluster {submitted.cluster}"] if submitted and submitted.cluster else []
    where += [f"partition {job.partition}"] if job.partition else []
    nodes = [f"on {job.nodes}"] if job.nodes else []
    if not nodes and submitted and submitted.num_nodes:
        nodes = [f"{submitted.num_nodes} nodes"] if submitted.num_nodes != 1 else ["1 node"]
    by = [f"by {job.source}"] if job.source else []
    state = job.state if job.is_known else "" if status.state == "finished" else "unknown to Slurm"
    return ", ".join([f"{job.job_id} {state}".rstrip(), *nodes, *where, *by])


def _time(status: RunStatus) -> str:
    job = status.job
    if job is None or not job.is_known:
        return ""
    limit = job.limit_seconds or (status.submitted.time_limit_seconds if status.submitted else None)
    of_limit = f" of {clock(limit)}" if limit else ""
    if job.is_waiting:
        expected = f", expected to start at {_local(job.expected_start)}" if job.expected_start else ""
        since = f"submitted at {_local(job.submitted)}" if job.submitted else "submitted at an unknown time"
        return f"{since}{expected}{f', limit {clock(limit)}' if limit else ''}"
    return f"{clock(job.elapsed_seconds)}{of_limit}" if job.elapsed_seconds is not None else ""


def _engine(status: RunStatus) -> str:
    engine, submitted = status.engine, status.submitted
    if not engine:
        ranks = f", {submitted.num_tasks} processes" if submitted and submitted.num_tasks else ""
        return f"profile {status.profile}{ranks}" if status.profile else "unknown: training has not begun"
    count = engine.get("world_size")
    parts = [engine.get("name"), f"{count} process{'es' * (count != 1)}", engine.get("device"), engine.get("dtype")]
    profile = f" (profile {status.profile})" if status.profile else ""
    return ", ".join(str(part) for part in parts if part) + profile


def _step(progress: Progress) -> str:
    if progress.step is None:
        return "unknown: training has not begun"
    if not progress.steps:
        return f"{progress.step} of an unknown number"
    return f"{progress.step} of {progress.steps} ({100 * progress.step / progress.steps:.0f} %)"


def _loss(progress: Progress) -> str:
    if progress.loss is None:
        return "not logged yet"
    rate = f"; {progress.tokens_per_second:,.0f} tokens/s" if progress.tokens_per_second is not None else ""
    return f"{progress.loss:.4g} at step {progress.loss_step}{rate}"


def _validation(progress: Progress) -> str:
    if not progress.validation:
        return ""
    shown = [name for name in _FIGURES if name in progress.validation]
    figures = "  ".join(f"{name} {progress.validation[name]:.4g}" for name in shown)
    return f"{figures} at step {progress.validation_step}"


def _end(status: RunStatus) -> str:
    remaining, starts = status.progress.remaining_seconds, status.further_starts
    if status.state not in LIVE:
        return ""
    if remaining is None:
        return "unknown until some steps are logged"
    beside = "evaluations and checkpoints come on top"
    if starts:
        count = "1 more start" if starts == 1 else f"{starts} more starts"
        return f"needs about {clock(remaining)} and {count}; {beside}"
    if status.ends_at is not None:
        return f"in about {clock(remaining)}, at {_local(status.ends_at)}; {beside}"
    return f"needs about {clock(remaining)} once it runs; {beside}"


def _requeues(status: RunStatus) -> str:
    if not status.requeues:
        return ""
    parts = []
    for one in status.requeues:
        step, lost = one.get("step"), one.get("lost_steps")
        at = f" at step {step}" if step is not None else ""
        parts.append(f"{one.get('reason', 'no reason is known')}{at}{f', {lost} steps lost' if lost else ''}")
    return f"{len(parts)}: {'; '.join(parts[-5:])}"


def _process(status: RunStatus) -> str:
    one = status.holder
    if one is None or status.state == "finished":
        return ""
    who = f"{one.pid} on {one.host}" if one.pid else f"on {one.host}"
    return f"{who}, last sign of life {clock(one.silence_seconds)} ago{' (gone)' if one.is_gone else ''}"


def _row(status: RunStatus) -> tuple[str, ...]:
    progress, job = status.progress, status.job
    step = "" if progress.step is None else f"{progress.step}/{progress.steps or '?'}"
    remaining = progress.remaining_seconds
    left = f"about {clock(remaining)} left" if status.is_live and remaining is not None else ""
    starts = f"{status.further_starts} more starts" if status.further_starts else ""
    remark = ", ".join(filter(None, (status.reason, left, starts)))
    loss = "" if progress.loss is None else f"{progress.loss:.4g}"
    rate = "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f}"
    return tuple(map(plain, (status.run.path.name, status.state, step, loss, rate, job.job_id if job else "", remark)))


def _local(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else "unknown"


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None


def _plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _iso(value) if isinstance(value, datetime) else value for name, value in values.items()}
