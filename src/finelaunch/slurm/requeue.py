"""How a stopped job goes on: its first rank requeues it, unless Slurm does so itself or somebody wants it to end.

At a time limit and at most preemptions the job is RUNNING still when its ranks have saved; rank 0 then puts it back
into the queue. A job that is being cancelled or requeued by an operator is COMPLETING at that moment and must be left
alone: ``scontrol requeue`` of a job being cancelled succeeds, and brings it back.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelaunch.errors import FinelaunchError, LostPeer
from finelaunch.launch.cluster import Cluster, is_time, time_seconds
from finelaunch.run import signals
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.run.log import say
from finelaunch.run.ranks import Ranks, is_lost_peer
from finelaunch.slurm.commands import Answer, ask, fields
from finelaunch.slurm.submission import add_job, read_cluster, read_jobs, this_job
from finelaunch.training.manifest import newest_checkpoint

PATIENCE_SECONDS = 300.0
"""How long a rank waits for the end that its job is about to be given."""

EARLY_SECONDS = 120
"""Slurm sends the signal before a time limit up to a minute early; one that comes earlier than this is not Slurm's."""

LONGEST_DELAY_SECONDS = 300
"""Taken where the cluster profile does not say how long before the time limit the signal was asked for."""

UNKNOWN_END = "ended without a word: its node failed, or it was killed before it could save"
_ENDS = ("requeued", "not_requeued", "cancelled", "failed", "finished")


@dataclass(frozen=True)
class Decision:
    """What the first rank of a stopped job does.

    Args:
        requeue: Put the job back into the queue.
        goes_on: The run goes on by itself: requeued by this or by Slurm, or taken over by a successor.
        reason: Why the job was stopped, in words; where it does not go on, why not.
        preempt_time: When Slurm preempted it, as Slurm writes it; None where it did not.
    """

    requeue: bool
    goes_on: bool
    reason: str
    preempt_time: str | None = None


def requeue_at_stop(run_dir: str | Path) -> None:
    """Have this rank do what a stop in a Slurm job asks for, as the last act of its process."""
    signals.at_stop(lambda why: _end(RunDirectory(Path(run_dir)), why))


def decide(
    answer: Answer, asked_by: str, restart: int, cluster: Cluster, successor: str | None, num_without_progress: int
) -> Decision:
    """Return what becomes of a job that was stopped.

    Args:
        answer: What ``scontrol show job -o`` of the job said.
        asked_by: The signal, or why a rank had to be ended.
        restart: How often the job was restarted before.
        cluster: How jobs go on there, and how often without progress.
        successor: The job that waits for this one, if one does.
        num_without_progress: How many stops in a row have left the same newest checkpoint, this one included.
    """
    known = fields(answer.text.strip()) if answer.ok else {}
    state = known.get("JobState", "")
    preempted = known.get("PreemptTime", "None")
    preempt_time = None if preempted in ("None", "Unknown", "") else preempted
    if state and state != "RUNNING":
        if int(known.get("Restarts", "0")) > restart:
            return Decision(False, True, "requeued by Slurm or an operator", preempt_time)
        return Decision(False, False, f"the job is {state}: cancelled, or ended by Slurm", preempt_time)
    if state and not preempt_time and asked_by == "SIGTERM":
        why = "a SIGTERM that is neither a preemption nor a time limit: another rank has ended, or somebody sent it"
        return Decision(False, False, why)
    reason = "preempted" if preempt_time else _reason(asked_by, known, cluster)
    if num_without_progress > cluster.max_restarts_without_progress:
        why = f"{reason}, and {cluster.max_restarts_without_progress} restarts have brought no newer checkpoint"
        remedy = "raise cluster.time_limit, or save more often (training.save_steps)"
        return Decision(False, False, f"{why}; {remedy}", preempt_time)
    if cluster.requeue == "successors":
        if successor is None:
            why = f"{reason}, and no job is left to take over; launch the same again, or raise cluster.successors"
            return Decision(False, False, why, preempt_time)
        return Decision(False, True, f"{reason}; job {successor} takes over", preempt_time)
    if not state:
        why = f"{reason}, and scontrol does not answer here: {answer.why}"
        return Decision(False, False, f"{why}; use cluster.requeue=successors", preempt_time)
    return Decision(True, True, reason, preempt_time)


def note_start(run: RunDirectory, profile_name: str) -> None:
    """Write down that a job has started this run or continues it; to be called by the first rank, with the lock held.

    Args:
        run: The run directory.
        profile_name: The launch profile, for a job that nobody has written down.

    Raises:
        FinelaunchError: This start makes no sense: the job before has failed, or too many have made no progress.
    """
    job = this_job(profile_name)
    if all(known.job_id != job.job_id for known in read_jobs(run)):
        add_job(run, job)
    events, restart = read_lines(run.events), _restart()
    cluster = read_cluster(run)
    mine = next(known for known in read_jobs(run) if known.job_id == job.job_id)
    last = _last_start(events)
    ends = [event for event in events[last + 1 :] if event.get("event") in _ENDS] if last is not None else []
    if last is not None and not ends and not run.finished():
        before = events[last]
        run.record(
            "requeued",
            job_id=before.get("job_id"),
            restart=restart,
            reason=_how_it_ended(str(before.get("job_id")), before.get("restart", 0)),
            preempt_time=None,
            step=_newest_step(run),
        )
    run.record("job_started", job_id=job.job_id, restart=restart, nodes=os.environ.get("SLURM_JOB_NODELIST"))
    state_requeues(run)
    if mine.after is not None and any(event["event"] in ("failed", "cancelled") for event in ends):
        how = ends[-1]
        raise FinelaunchError(
            f"job {mine.after}, before this one, was {how['event']}{': ' + how['error'] if 'error' in how else ''}; "
            "a successor only goes on with what was stopped"
        )
    stops = _num_without_progress(run)
    if stops > cluster.max_restarts_without_progress and not run.finished():
        raise FinelaunchError(
            f"{cluster.max_restarts_without_progress} restarts have brought no newer checkpoint; see "
            "docs/troubleshooting.md: raise cluster.time_limit, or save more often (training.save_steps)"
        )


def note_failure(run: RunDirectory, ranks: Ranks, error: BaseException) -> None:
    """Write down which rank failed, and whether only because another one did; the first one has its own record."""
    if ranks.is_first:
        return
    victim = isinstance(error, LostPeer) or is_lost_peer(error)
    text = str(error) if isinstance(error, FinelaunchError) else f"{type(error).__name__}: {error}"
    with suppress(OSError):
        RunDirectory(run.path).record(
            "failed", rank=ranks.rank, host=socket.gethostname(), victim=victim, error=text[:2000]
        )


def state_requeues(run: RunDirectory) -> None:
    """Bring the manifest's ``slurm`` section up to date with the run's events."""
    if not (run.writes and run.manifest.exists()):
        return
    jobs = read_jobs(run)
    cluster = next((job.cluster for job in jobs if job.cluster), None)
    run.note(
        slurm={"cluster": cluster, "jobs": [job.job_id for job in jobs], "requeues": requeues(read_lines(run.events))}
    )


def requeues(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the requeues among ``events``, each with the steps that were lost by it once that is known."""
    found: list[dict[str, Any]] = []
    for event in events:
        if event.get("event") == "requeued":
            found.append({**{key: value for key, value in event.items() if key != "event"}, "lost_steps": None})
        elif event.get("event") == "training" and found and found[-1]["lost_steps"] is None:
            found[-1]["lost_steps"] = event.get("lost_steps")
    return found


def _end(run: RunDirectory, why: str) -> None:
    """Do the last act of a rank that was stopped."""
    if os.environ.get("SLURM_PROCID", "0") != "0":
        # One that ended here would have the others ended, the first before it has requeued; and submitit would take
        # a return for the end of the work.
        _wait_to_be_ended(PATIENCE_SECONDS, deaf_seconds=0.0 if signals.notes_only() else signals.DEAF_SECONDS)
        return
    job, restart = os.environ["SLURM_JOB_ID"], _restart()
    answer = ask(["scontrol", "show", "job", "-o", job])
    successor = next((known.job_id for known in read_jobs(run) if known.after == job), None)
    facts: dict[str, Any] = {"job_id": job, "restart": restart, "step": _newest_step(run)}
    stops = _num_without_progress(run) + 1
    decision = decide(answer, signals.requested() or why, restart, read_cluster(run), successor, stops)
    facts["preempt_time"] = decision.preempt_time
    if not decision.goes_on:
        say(f"job {job} is not requeued: {decision.reason}")
        _record(run, "not_requeued", why=decision.reason, **facts)
        return
    _record(run, "requeued", reason=decision.reason, **facts)
    if not decision.requeue:
        say(f"job {job}: {decision.reason}")
        return
    say(f"job {job} requeues itself: {decision.reason}")
    answer = ask(["scontrol", "requeue", job])
    if not answer.ok:
        say(f"job {job} is not requeued: {answer.why}")
        _record(run, "not_requeued", why=f"scontrol requeue: {answer.why}", **facts)
        return
    _wait_to_be_ended(PATIENCE_SECONDS)


def _record(run: RunDirectory, event: str, **facts: Any) -> None:
    with suppress(OSError):  # a disk that is full keeps no job from being requeued
        run.record(event, **facts)
    with suppress(Exception):
        state_requeues(run)


def _wait_to_be_ended(seconds: float, deaf_seconds: float = 0.0) -> None:
    """Wait for the SIGTERM of a requeue; before ``deaf_seconds`` are over it may be the stop's once more."""
    time.sleep(deaf_seconds)
    if threading.current_thread() is threading.main_thread():
        for number in signals.STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    time.sleep(seconds)


def _reason(asked_by: str, known: Mapping[str, str], cluster: Cluster) -> str:
    """Return why a running job was stopped: Slurm sends SIGUSR2 before the time limit, and so may anybody."""
    if asked_by != "SIGUSR2":
        return f"asked by {asked_by}" if asked_by.startswith("SIG") else asked_by
    times = [text for key in ("RunTime", "TimeLimit") if is_time(text := known.get(key, ""))]
    delay = (cluster.signal_delay_seconds or LONGEST_DELAY_SECONDS) + EARLY_SECONDS
    if len(times) == 2 and time_seconds(times[1]) - time_seconds(times[0]) > delay:
        return "asked by SIGUSR2"
    return "time limit"


def _restart() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _newest_step(run: RunDirectory) -> int | None:
    newest = newest_checkpoint(run.checkpoints)
    return newest.step if newest else None


def _last_start(events: Sequence[dict[str, Any]]) -> int | None:
    return next((place for place in reversed(range(len(events))) if events[place].get("event") == "job_started"), None)


def _num_without_progress(run: RunDirectory) -> int:
    """Return how many of the last requeues have left what is the newest checkpoint now."""
    newest, count = _newest_step(run), 0
    for event in reversed(read_lines(run.events)):
        if event.get("event") == "requeued":
            if event.get("step") != newest:
                break
            count += 1
    return count


def _how_it_ended(job: str, restart: int) -> str:
    """Return how Slurm's accounting names the end of a start of a job that said nothing itself."""
    answer = ask(["sacct", "-D", "-n", "-P", "-X", "-j", job, "-o", "State"])
    states = answer.lines if answer.ok else []
    state = states[restart].split()[0] if restart < len(states) else ""
    words = {"NODE_FAIL": "node failure", "PREEMPTED": "preempted, without time to save", "TIMEOUT": "time limit"}
    return words.get(state, UNKNOWN_END)
