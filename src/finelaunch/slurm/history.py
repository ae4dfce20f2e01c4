"""What the starts of a run's jobs have left: requeues with their reasons, failures, and whether another makes sense.

The first rank writes the run's events; every other rank has a file of its own for its failure, since appending from
several machines to one file of a network file system may lose lines.
"""

import os
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from finelaunch.errors import BadInput, FinelaunchError, LostPeer
from finelaunch.launch.cluster import Cluster
from finelaunch.launch.runs import longest_save
from finelaunch.run.directory import RunDirectory, now
from finelaunch.run.files import append_line, read_end, read_lines
from finelaunch.run.log import warn
from finelaunch.run.ranks import Ranks, is_lost_peer
from finelaunch.slurm.commands import ask
from finelaunch.slurm.submission import add_job, read_cluster, read_jobs, this_job
from finelaunch.training.manifest import newest_checkpoint

BY_SLURM = "requeued by Slurm or an operator"
UNKNOWN_END = "ended without a word: its node failed, or it was killed before it could save"
PREEMPTED = "preempted"

_ENDS = ("requeued", "not_requeued", "cancelled", "failed", "finished")
_FINAL = ("not_requeued", "cancelled", "failed")
_NOBODYS_FAULT = (PREEMPTED, BY_SLURM, "node failure")
"""Reasons that say nothing of whether the job's time is enough."""

_PREEMPTION = re.compile(r"CANCELLED AT (\S+) DUE TO PREEMPTION")
_TAIL_BYTES = 1 << 16


def note_start(run: RunDirectory, profile_name: str) -> None:
    """Write down that a job has started this run or continues it; to be called by the first rank, with the lock held.

    Args:
        run: The run directory.
        profile_name: The launch profile, for a job that nobody has written down.

    Raises:
        FinelaunchError: This start makes no sense: the job before has failed, or too many have made no progress.
    """
    job, cluster = this_job(profile_name), read_cluster(run)
    if all(known.job_id != job.job_id for known in read_jobs(run)):
        add_job(run, job)
        run.record("submitted", job_id=job.job_id, by="hand")
    mine = next(known for known in read_jobs(run) if known.job_id == job.job_id)
    events = events_of(run)
    place = _last_start(events)
    ends = [event for event in events[place + 1 :] if event["event"] in _ENDS] if place is not None else []
    if place is not None and not run.finished():
        _complete_the_end(run, events[place], ends, continues=(job.job_id, mine.after))
    restart = restart_count()
    run.record("job_started", job_id=job.job_id, restart=restart, nodes=os.environ.get("SLURM_JOB_NODELIST"))
    state_requeues(run)
    if mine.after is not None:
        _refuse_to_take_over(mine.after, ends)
    if num_without_progress(run) > cluster.max_restarts_without_progress and not run.finished():
        raise FinelaunchError(without_progress(cluster))
    _warn_of_later(run, cluster)


def note_failure(run: RunDirectory, ranks: Ranks, error: BaseException) -> None:
    """Write down which rank has failed, and whether only because another one did."""
    victim = isinstance(error, LostPeer) or is_lost_peer(error)
    text = str(error) if isinstance(error, FinelaunchError) else f"{type(error).__name__}: {error}"
    row = {"time": now(), "event": "failed", "rank": ranks.rank, "host": socket.gethostname(), "victim": victim}
    with suppress(OSError):
        if not ranks.is_first:
            run.log.parent.mkdir(parents=True, exist_ok=True)
            append_line(_failures(run, ranks.rank), {**row, "error": text[:2000]})
        elif not isinstance(error, BadInput) and _last_event(run) != "failed":  # a run that another holds is not ours
            append_line(run.events, {**row, "error": text[:2000]})


def events_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the events of a run, and the failures of its other ranks where their times put them."""
    events = [row for row in read_lines(run.events) if isinstance(row.get("event"), str)]
    for path in sorted(run.log.parent.glob("rank_*.failed.jsonl")):
        for failure in read_lines(path):
            place = len(events)
            while place and str(events[place - 1].get("time")) > str(failure.get("time")):
                place -= 1
            events.insert(place, failure)
    return events


def requeues(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the requeues among ``events``, each with the steps that were lost by it once that is known."""
    found: list[dict[str, Any]] = []
    for event in events:
        kind = event.get("event")
        if kind == "requeued":
            if found and found[-1]["lost_steps"] is None:
                found[-1]["lost_steps"] = 0  # no training came between
            found.append({**{key: value for key, value in event.items() if key != "event"}, "lost_steps": None})
        elif kind == "preempted" and found:
            found[-1] |= {"reason": PREEMPTED, "preempt_time": event.get("preempt_time")}
        elif kind == "training" and found and found[-1]["lost_steps"] is None:
            found[-1]["lost_steps"] = event.get("lost_steps")
    return found


def state_requeues(run: RunDirectory) -> None:
    """Bring the manifest's ``slurm`` section up to date with the run's events."""
    if not (run.writes and run.manifest.exists()):
        return
    jobs = read_jobs(run)
    cluster = next((job.cluster for job in jobs if job.cluster), None)
    ids = [job.job_id for job in jobs]
    run.note(slurm={"cluster": cluster, "jobs": ids, "requeues": requeues(read_lines(run.events))})


def num_without_progress(run: RunDirectory) -> int:
    """Return how many requeues since the last submission have left what is the newest checkpoint now.

    Preemptions and failed nodes are not counted: they say nothing of whether the job's time is enough.
    """
    newest, count = newest_step(run), 0
    events = read_lines(run.events)
    submitted = [place for place, event in enumerate(events) if event.get("event") == "submitted"]
    for one in reversed(requeues(events[submitted[-1] if submitted else 0 :])):
        if one.get("step") != newest:
            break
        count += not str(one.get("reason")).startswith(_NOBODYS_FAULT)
    return count


def without_progress(cluster: Cluster) -> str:
    """Return what is said of a run whose restarts come to nothing."""
    return (
        f"{cluster.max_restarts_without_progress} restarts have brought no newer checkpoint; "
        "raise cluster.time_limit, or save more often (training.save_steps), and launch again"
    )


def newest_step(run: RunDirectory) -> int | None:
    """Return the step of the newest checkpoint."""
    newest = newest_checkpoint(run.checkpoints)
    return newest.step if newest else None


def restart_count() -> int:
    """Return how often Slurm has restarted this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _complete_the_end(
    run: RunDirectory,
    start: Mapping[str, Any],
    ends: Sequence[Mapping[str, Any]],
    continues: tuple[str, str | None],
) -> None:
    """Write down how the start before has ended, where it could not, or did not know it yet."""
    job = str(start.get("job_id"))
    preempt_time = _preemption_of(run, job)
    if not ends and job in continues:
        reason = PREEMPTED if preempt_time else _by_accounting(job, start.get("restart", 0))
        facts = {"job_id": job, "restart": start.get("restart", 0), "step": newest_step(run)}
        run.record("requeued", reason=reason, preempt_time=preempt_time, **facts)
    elif ends and ends[-1].get("reason") == BY_SLURM and preempt_time:
        run.record("preempted", job_id=job, preempt_time=preempt_time)


def _refuse_to_take_over(before: str, ends: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to go on with what was not stopped to be gone on with.

    Raises:
        FinelaunchError: The job before has failed, was cancelled, or was to end.
    """
    for event in reversed(ends):
        if event["event"] in _FINAL and not event.get("victim"):
            why = event.get("error") or event.get("why") or "it was cancelled"
            raise FinelaunchError(f"job {before}, before this one, was not stopped to be continued: {why}")


def _warn_of_later(run: RunDirectory, cluster: Cluster) -> None:
    """Say now what would keep the job from being requeued hours later."""
    said = []
    if cluster.requeue == "scontrol" and shutil.which("scontrol") is None:
        what = "scontrol is not there for the ranks (a container?), so this job cannot requeue itself"
        said.append(f"{what}; let the container see it, or use cluster.requeue=successors")
    delay, longest = cluster.signal_delay_seconds, longest_save(run)
    if delay is not None and longest is not None and 2 * longest > delay:
        what = f"a checkpoint has taken {longest:.0f} s, and the signal comes {delay} s before the time limit"
        said.append(f"{what}; finelaunch cancel and launch again, which reckons with it")
    for text in said:
        if run.warn(text):
            warn(text)


def _preemption_of(run: RunDirectory, job: str) -> str | None:
    """Return when Slurm says that it preempted the last start of a job, by its own line in the job's log."""
    try:
        end, _ = read_end(run.slurm / f"{job}_0_log.err", _TAIL_BYTES)
    except OSError:
        return None
    found = _PREEMPTION.findall(end.decode(errors="replace"))
    told = {event.get("preempt_time") for event in read_lines(run.events)}
    return found[-1] if found and found[-1] not in told else None


def _by_accounting(job: str, restart: int) -> str:
    """Return how Slurm's accounting names the end of a start of a job that said nothing itself."""
    answer = ask(["sacct", "-D", "-n", "-P", "-X", "-j", job, "-o", "State"])
    states = answer.lines if answer.ok else []
    state = states[restart].split()[0] if restart < len(states) else ""
    words = {"NODE_FAIL": "node failure", "PREEMPTED": PREEMPTED, "TIMEOUT": "time limit, before it could save"}
    return words.get(state, UNKNOWN_END)


def _failures(run: RunDirectory, rank: int) -> Any:
    return run.log.parent / f"rank_{rank}.failed.jsonl"


def _last_event(run: RunDirectory) -> str | None:
    return next((event.get("event") for event in reversed(read_lines(run.events))), None)


def _last_start(events: Sequence[Mapping[str, Any]]) -> int | None:
    return next((place for place in reversed(range(len(events))) if events[place].get("event") == "job_started"), None)
