"""What became of a run, from its directory alone: its own files, its lock, and what Slurm says of its jobs.

Where these differ, the run's own ``finished`` counts before all, then the controller of Slurm, then the run's files.
What is not known is None, never a guess.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from finelaunch.operations.evidence import evidence_of
from finelaunch.operations.progress import Progress, num_further_starts, progress_of, whole
from finelaunch.operations.records import events_of, jobs_of, manifest_of, section
from finelaunch.run.directory import RunDirectory
from finelaunch.run.lock import Holder, holder
from finelaunch.slurm.ends import End, why_ended
from finelaunch.slurm.history import requeues
from finelaunch.slurm.jobs import JobState, Seen, job_states
from finelaunch.slurm.submission import SubmittedJob, this_user

LIVE = ("submitted", "pending", "requeued", "running", "ending")
"""States of a run that goes on by itself."""

_SUBMISSION_SECONDS = 3600.0
"""How far two clocks may differ about when a job was submitted."""

RESUMABLE = ("stopped", "cancelled", "failed", "lost")
"""States of a run that the same command continues."""


@dataclass(frozen=True)
class RunStatus:
    """What became of a run.

    Args:
        run: The run directory.
        state: One of :data:`LIVE`, one of :data:`RESUMABLE`, ``finished``, or ``unknown``.
        reason: Why, in words; empty where there is nothing to say.
        target: ``slurm`` or ``local``.
        profile: The launch profile's name.
        engine: What trains: name, device, dtype and such, as the manifest has it; empty before training.
        progress: How far it is.
        holder: Who writes the run directory now, or has died writing it.
        job: Its current job, or the last one.
        submitted: How that was submitted.
        requeues: The requeues so far: time, job_id, restart, reason, step, lost_steps.
        end: How it ended, where it did.
        ends_at: When it ends, about, where it runs and this start is long enough.
        further_starts: How often its job has to start again, about; None where it is not known.
        num_warnings: Lines of the manifest's ``warnings``.
        notes: What could not be asked, and why.
    """

    run: RunDirectory
    state: str
    reason: str
    target: str
    profile: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    holder: Holder | None = None
    job: JobState | None = None
    submitted: SubmittedJob | None = None
    requeues: Sequence[Mapping[str, Any]] = ()
    end: End | None = None
    ends_at: datetime | None = None
    further_starts: int | None = None
    num_warnings: int = 0
    notes: Sequence[str] = ()

    @property
    def is_live(self) -> bool:
        """Whether it goes on by itself."""
        return self.state in LIVE


@dataclass(frozen=True)
class _Files:
    """What a run has written down."""

    run: RunDirectory
    events: list[dict[str, Any]]
    manifest: dict[str, Any]
    jobs: list[SubmittedJob]
    holder: Holder | None

    @property
    def is_finished(self) -> bool:
        return any(event["event"] == "finished" for event in self.events)

    @property
    def is_slurm(self) -> bool:
        """Whether its last start, or the one that it waits for, is a job's."""
        if not self.jobs:
            return False
        if self.holder is not None and not self.holder.is_gone:
            return self.holder.slurm_job is not None
        order = [event["event"] for event in self.events if event["event"] in ("submitted", "job_started", "started")]
        return section(self.manifest, "launch", "target") == "slurm" or order[-1:] != ["started"]


def status_of(runs: Sequence[RunDirectory]) -> list[RunStatus]:
    """Return what became of ``runs``; Slurm is asked once for all that have not finished."""
    before = [_files(run) for run in runs]
    ids = [job.job_id for one in before if not one.is_finished and one.is_slurm for job in one.jobs]
    seen = job_states(list(dict.fromkeys(ids)))
    # A run writes down how it ends, lets go of its lock, and only then its job is over: to be read the other way round.
    return [_status(_files(one.run, one.holder), seen) for one in before]


def _files(run: RunDirectory, before: Holder | None = None) -> _Files:
    """Return what a run has written down; who held it before that was read counts as holding it."""
    held = holder(run.lock)
    events, manifest, jobs = events_of(run), manifest_of(run), jobs_of(run)
    holders = [one for one in (before, held, holder(run.lock)) if one is not None]
    alive = next((one for one in holders if not one.is_gone), None)
    return _Files(run, events, manifest, jobs, alive or next(iter(holders), None))


def _status(files: _Files, seen: Seen) -> RunStatus:
    run, manifest = files.run, files.manifest
    job = _current_job(files, seen) if files.is_slurm else None
    submitted = next((one for one in reversed(files.jobs) if job is not None and one.job_id == job.job_id), None)
    state, reason, end = _state(files, job, submitted, seen)
    engine, warnings = section(manifest, "engine"), section(manifest, "warnings")
    profile = submitted.profile if submitted and submitted.profile else section(manifest, "profile")
    status = RunStatus(
        run,
        state,
        reason,
        "slurm" if files.is_slurm else "local",
        profile=profile if isinstance(profile, str) else None,
        engine=engine if isinstance(engine, dict) else {},
        progress=progress_of(run, files.events, manifest),
        holder=files.holder,
        job=job,
        submitted=submitted,
        requeues=requeues(files.events),
        end=end,
        num_warnings=len(warnings) if isinstance(warnings, list) else 0,
        notes=_notes(files, job, seen),
    )
    return _with_estimate(status, files.events)


def _current_job(files: _Files, seen: Seen) -> JobState:
    """Return the job that runs, else the one that starts next, else the last one that ever ran."""
    jobs = [_own(one, seen.jobs.get(one.job_id, JobState(one.job_id))) for one in files.jobs]
    active = [job for job in jobs if job.is_active]
    waiting = [job for job in jobs if job.is_waiting]
    ran = [job for job in jobs if job.is_over and job.elapsed_seconds]
    started = [str(event.get("job_id")) for event in files.events if event["event"] == "job_started"]
    by_files = [job for job in jobs if job.job_id in started[-1:]]
    return (active[-1:] or waiting[:1] or ran[-1:] or by_files or jobs[-1:])[0]


def _own(submitted: SubmittedJob, job: JobState) -> JobState:
    """Return ``job``, or an unknown one where the number is another job's: a cluster that was set up anew."""
    ours, theirs, file = _moment(submitted.time), job.submitted, Path(job.error_file)
    is_other = job.error_file and not (file.parent.name == "slurm" and file.name.startswith(f"{job.job_id}_"))
    if job.source == "sacct" and ours is not None and theirs is not None:
        is_other = abs((theirs - ours).total_seconds()) > _SUBMISSION_SECONDS
    return JobState(job.job_id) if is_other and submitted.cluster is not None else job


def _state(
    files: _Files, job: JobState | None, submitted: SubmittedJob | None, seen: Seen
) -> tuple[str, str, End | None]:
    """Return the state, its reason, and the end where there is one."""
    if files.is_finished:
        return "finished", "", End("finished", "finished")
    if job is not None and job.is_active:
        return ("ending", "", None) if job.state == "COMPLETING" else ("running", _stage(files, job), None)
    if job is not None and job.is_waiting:
        was_requeued = bool(job.restarts) or job.state == "REQUEUED"
        why = f"{job.why_waiting} ({job.reason})" if job.why_waiting else job.reason
        return ("requeued" if was_requeued else "pending"), why, None
    holds = files.holder is not None and not files.holder.is_gone
    if holds and (job is None or not job.is_known):
        return "running", _stage(files, job), None
    limit = submitted.time_limit_seconds if submitted else None
    end = why_ended(evidence_of(files.run, files.events, job, limit))
    if end is not None:
        state = end.kind if end.kind in ("finished", "stopped", "cancelled") else "failed"
        return state, end.text, end
    is_forgotten = submitted is not None and not seen.is_controller_silent and submitted.user == this_user()
    return (*_without_an_end(files, job, is_forgotten), None)


def _without_an_end(files: _Files, job: JobState | None, is_forgotten: bool) -> tuple[str, str]:
    """Return the state and reason of a run that nobody holds and that has not said how it ended.

    Args:
        files: What the run has written down.
        job: Its job, which Slurm does not know.
        is_forgotten: Slurm was asked by whom it would tell, so the job is no longer there.
    """
    said = [event["event"] for event in files.events if event["event"] not in ("evaluated", "saved", "changed")]
    waits = said[-1:] == ["requeued"] or not said or said[-1] in ("submitted", "created")
    if job is not None and waits and is_forgotten:
        return "lost", f"job {job.job_id} is gone without a word: it was cancelled while it waited, or is long over"
    if job is not None and said[-1:] == ["requeued"]:
        return "requeued", "by its own word alone"
    if job is not None and waits:
        return "submitted", "its job has not started, by the run's files alone"
    if files.holder is not None:
        one = files.holder
        who = f"process {one.pid} on {one.host}" if one.pid else "its process"
        return "lost", f"{who} is gone without a word"
    if not said or said == ["submitted"]:
        return "unknown", "nothing was written that says what became of it"
    return "lost", "its process is gone without a word"


def _stage(files: _Files, job: JobState | None) -> str:
    """Return what a run that has not begun to train is at; empty once it trains."""
    events = [event["event"] for event in files.events]
    begun = max((place for place, name in enumerate(events) if name in ("started", "job_started")), default=None)
    if begun is None:
        return "its job has started, and the run has not yet" if job is not None else "before its first step"
    moment = _moment(files.events[begun].get("time"))
    if job is not None and job.started is not None and moment is not None and moment < job.started:
        return "its job has started, and the run has not yet"
    return "" if "training" in events[begun:] else "before its first step"


def _notes(files: _Files, job: JobState | None, seen: Seen) -> list[str]:
    """Return what could not be asked, where it matters."""
    if job is None or files.is_finished:
        return []
    said = "; ".join(seen.silent)
    if not seen.is_installed:
        return ["Slurm's commands are not installed here; what is said comes from the run's files alone"]
    if seen.is_controller_silent:
        return [f"Slurm's controller did not answer ({said}); what is said may be old"]
    if not job.is_known:
        return [f"Slurm does not know job {job.job_id} any more{f' ({said})' if said else ''}"]
    return []


def _with_estimate(status: RunStatus, events: Sequence[Mapping[str, Any]]) -> RunStatus:
    """Add when it ends, or how often its job has to start again."""
    remaining, job = status.progress.remaining_seconds, status.job
    if remaining is None or not status.is_live:
        return status
    limit = job.limit_seconds if job is not None and job.limit_seconds else None
    if limit is None and status.submitted is not None:
        limit = status.submitted.time_limit_seconds
    ends_at = datetime.now(UTC) + timedelta(seconds=remaining) if status.state == "running" else None
    if job is None or limit is None:
        return replace(status, ends_at=ends_at)
    startup = _startup_seconds(events)
    left = limit - (job.elapsed_seconds or 0) if status.state == "running" else 0.0
    starts = num_further_starts(remaining, left, limit - startup)
    return replace(status, ends_at=ends_at if starts == 0 else None, further_starts=starts)


def _startup_seconds(events: Sequence[Mapping[str, Any]]) -> float:
    """Return the median time from the start of a job to its first step; 0 where none was measured."""
    times, since = [], None
    for event in events:
        moment = _moment(event.get("time"))
        if event.get("event") == "job_started":
            since = moment
        elif event.get("event") == "training" and since is not None and moment is not None:
            times.append((moment - since).total_seconds())
            since = None
    return max(statistics.median(times), 0.0) if times else 0.0


def _moment(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def num_lost_steps(status: RunStatus) -> int:
    """Return the steps that were made again because of requeues."""
    return sum(whole(one.get("lost_steps")) or 0 for one in status.requeues)
