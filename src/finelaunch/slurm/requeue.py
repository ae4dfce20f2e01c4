"""How a stopped job goes on: its first rank requeues it, unless Slurm does so itself or somebody wants it to end.

At a time limit and at most preemptions the job is RUNNING still when its ranks have saved; rank 0 then puts it back
into the queue. A job that is being cancelled or requeued by an operator is COMPLETING at that moment and must be left
alone: ``scontrol requeue`` of a job being cancelled succeeds, and brings it back.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelaunch.launch.cluster import Cluster, is_time, time_seconds
from finelaunch.run import signals
from finelaunch.run.directory import RunDirectory
from finelaunch.run.log import say
from finelaunch.slurm.commands import Answer, ask, fields
from finelaunch.slurm.history import (
    BY_SLURM,
    PREEMPTED,
    newest_step,
    num_without_progress,
    restart_count,
    state_requeues,
    without_progress,
)
from finelaunch.slurm.submission import read_cluster, read_jobs

PATIENCE_SECONDS = 300.0
"""How long a rank waits for the end that its job is about to be given."""

ASK_SECONDS, ASK_AGAIN_SECONDS = 45.0, 5.0
"""How long a controller that is busy, as when it preempts many jobs at once, is asked again, and how often."""

EARLY_SECONDS = 120
"""Slurm sends the signal before a time limit up to a minute early; one that comes earlier than this is not Slurm's."""

LONGEST_DELAY_SECONDS = 300
"""Taken for a job by hand, of which nobody knows how long before the time limit it asked for the signal."""

ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "COMPLETING",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PENDING",
    "PREEMPTED",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "REVOKED",
    "SPECIAL_EXIT",
    "TIMEOUT",
}
"""States of a job that is not to be requeued any more; others, such as SIGNALING, pass."""

_HOPELESS = ("denied", "invalid job id", "invalid user")


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


def requeue_at_stop(run_dir: str | Path, rank: int) -> None:
    """Have this rank do what a stop in a Slurm job asks for, as the last act of its process."""
    signals.at_stop(lambda why: _end(RunDirectory(Path(run_dir)), rank, why))


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
    if set(state.split(",")) & ENDED:
        if int(known.get("Restarts", "0")) > restart:
            return Decision(False, True, PREEMPTED if preempt_time else BY_SLURM, preempt_time)
        return Decision(False, False, f"the job is {state}: cancelled, or ended by Slurm", preempt_time)
    if state and not preempt_time and asked_by == "SIGTERM":
        why = "a SIGTERM that is neither a preemption nor a time limit: another rank has ended, or somebody sent it"
        return Decision(False, False, why)
    reason = PREEMPTED if preempt_time else _reason(asked_by, known, cluster)
    if not preempt_time and num_without_progress > cluster.max_restarts_without_progress:
        return Decision(False, False, f"{reason}, and {without_progress(cluster)}", preempt_time)
    if cluster.requeue == "successors":
        if successor is None:
            why = f"{reason}, and no job is left to take over; launch the same again, or raise cluster.successors"
            return Decision(False, False, why, preempt_time)
        return Decision(False, True, f"{reason}; job {successor} takes over", preempt_time)
    if not state:
        why = f"{reason}, and scontrol does not answer here: {answer.why}"
        return Decision(False, False, f"{why}; use cluster.requeue=successors", preempt_time)
    return Decision(True, True, reason, preempt_time)


def ask_patiently(argv: Sequence[str], seconds: float = ASK_SECONDS) -> Answer:
    """Ask Slurm, again and again while its controller is busy; not where it has said a word that stays."""
    give_up = time.monotonic() + seconds
    while True:
        answer = ask(argv)
        is_final = answer.ok or answer.is_missing or any(word in answer.why.lower() for word in _HOPELESS)
        if is_final or time.monotonic() + ASK_AGAIN_SECONDS > give_up:
            return answer
        time.sleep(ASK_AGAIN_SECONDS)


def _end(run: RunDirectory, rank: int, why: str) -> None:
    """Do the last act of a rank that was stopped."""
    if rank:
        # One that ended here would have the others ended, the first before it has requeued; and submitit would take
        # a return for the end of the work.
        _wait_to_be_ended(PATIENCE_SECONDS, deaf_seconds=0.0 if signals.notes_only() else signals.DEAF_SECONDS)
        return
    job, restart = os.environ["SLURM_JOB_ID"], restart_count()
    asked_by = why if why.startswith("SIG") else signals.requested() or why
    cluster = read_cluster(run)
    question = ["scontrol", "show", "job", "-o", job]
    answer = ask_patiently(question) if cluster.requeue == "scontrol" else ask(question)
    successor = next((known.job_id for known in read_jobs(run) if known.after == job), None)
    facts: dict[str, Any] = {"job_id": job, "restart": restart, "step": newest_step(run)}
    decision = decide(answer, asked_by, restart, cluster, successor, num_without_progress(run) + 1)
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
    answer = ask_patiently(["scontrol", "requeue", job])
    if not answer.ok and not _was_requeued(question, restart):
        say(f"job {job} is not requeued: {answer.why}")
        _record(run, "not_requeued", why=f"scontrol requeue: {answer.why}", **facts)
        return
    _wait_to_be_ended(PATIENCE_SECONDS)


def _was_requeued(question: Sequence[str], restart: int) -> bool:
    """Return whether a requeue that was answered badly, or not at all, has been done all the same."""
    known = fields(ask(question).text.strip())
    return int(known.get("Restarts", "0")) > restart


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
