"""Why a run or its job ended, in words, from all that was left behind.

The exit code of a job says nothing: ``srun --kill-on-bad-exit`` makes it 143 for almost every cause. What tells causes
apart are the run's own events, the states of steps, and the lines that srun and its daemons have written into the first
task's error file. The rank that is named is the one that died first; those that only lost their peer are its victims.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from finelaunch.errors import EXIT_BAD_INPUT, EXIT_REQUIREMENT, EXIT_STOPPED
from finelaunch.run.ranks import LOST_PEER
from finelaunch.slurm.jobs import JobState

Kind = Literal[
    "finished",
    "stopped",
    "cancelled",
    "error",
    "killed",
    "out_of_memory",
    "time_limit",
    "node_failure",
    "preempted",
    "bad_input",
    "requirement",
    "unknown",
]

_STARTS = ("submitted", "job_started", "started")
_REFUSALS: Mapping[int, Kind] = {EXIT_BAD_INPUT: "bad_input", EXIT_REQUIREMENT: "requirement"}
_TASK = re.compile(r"srun: error: (?P<host>[^\s:]+): tasks? (?P<ranks>[\d,\-]+): (?P<how>.+)")
_DUE = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+(?: DUE TO (?P<why>[^*,]+?))?(?:,[^*]*)? \*\*\*")
_FROM_SLURM = ("srun:", "slurmstepd", "slurmd[")
_EXITED = "Exited with exit code "
_OUT_OF_MEMORY = ("oom-kill event", "oom_kill event", ": Out Of Memory")
_SIGNALS = {
    "Killed": "killed by SIGKILL, as a system does that runs out of memory",
    "Segmentation fault": "a segmentation fault",
    "Bus error": "a bus error, as with a /dev/shm that is full",
    "Aborted": "aborted by a library (SIGABRT)",
    "Floating point exception": "a floating point exception of a library",
    "Illegal instruction": "an illegal instruction: a library was built for another processor",
    "User defined signal 1": "killed by SIGUSR1, to which it did not listen",
    "User defined signal 2": "killed by SIGUSR2, to which it did not listen",
    "Terminated": "killed by SIGTERM",
}
"""What srun says of a task that a signal ended, and what it means."""

_LAST_ERROR = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt|Warning): .+")


@dataclass(frozen=True)
class Evidence:
    """All that may tell how a run ended.

    Args:
        events: Of the run, in order.
        job: Its last job, as Slurm knows it; None for a run that is not Slurm's.
        lines: Of the first task's error file, those of the last start.
        errors: The last thing that ranks have complained of, by rank.
        limit_seconds: The time limit that was asked for.
    """

    events: Sequence[Mapping[str, Any]]
    job: JobState | None = None
    lines: Sequence[str] = ()
    errors: Mapping[int, str] = field(default_factory=dict)
    limit_seconds: int | None = None


@dataclass(frozen=True)
class End:
    """How a run ended.

    Args:
        kind: What kind of end it is.
        text: In words, without the run's name.
        rank: The rank to blame.
        host: Its machine.
    """

    kind: Kind
    text: str
    rank: int | None = None
    host: str = ""


@dataclass(frozen=True)
class _Death:
    rank: int
    host: str
    how: str

    @property
    def code(self) -> int | None:
        code = self.how.removeprefix(_EXITED)
        return int(code) if code != self.how and code.isdecimal() else None


def why_ended(evidence: Evidence) -> End | None:
    """Return why a run ended; None where it goes on, waits, or nothing tells that it has ended."""
    events, job = evidence.events, evidence.job
    if any(event.get("event") == "finished" for event in events):
        return End("finished", "finished")
    if job is not None and (job.is_waiting or job.is_active):
        return None
    mine = _of_last_start(events)
    by_slurm = _by_slurm(evidence, mine)
    if by_slurm is not None:
        return by_slurm
    culprit = _culprit(evidence, mine)
    if culprit is not None:
        return culprit
    ended = [event for event in mine if event.get("event") in ("stopped", "not_requeued", "requeued", "cancelled")]
    if ended and ended[-1]["event"] != "requeued":
        return _stop(ended)
    if job is not None and job.is_over:
        return End("unknown", f"Slurm says {job.state}, and nothing that was left says why{_where(job)}")
    return None


def lines_of_last_start(lines: Sequence[str]) -> list[str]:
    """Return what was written since the last start: a requeued job appends to the files of the start before."""
    begins = 0
    for place, line in enumerate(lines):
        if line.startswith("run ") and " on " in line:
            begins = place
        elif "DUE TO JOB REQUEUE" in line:
            begins = place + 1
            while begins < len(lines) and lines[begins].startswith(_FROM_SLURM):
                begins += 1
    return list(lines[begins:])


def blamed_ranks(lines: Sequence[str]) -> list[int]:
    """Return the ranks that srun has named as dead, those that died first before the others."""
    return [death.rank for death in _deaths(lines)]


def complaint(lines: Sequence[str]) -> str:
    """Return the last thing that a log complains of: the end of a traceback, else its last line that is not Slurm's."""
    own = [line.strip() for line in lines if line.strip() and not line.startswith((*_FROM_SLURM, "submitit "))]
    errors = [line for line in own if _LAST_ERROR.match(line)]
    return (errors or own or [""])[-1][:500]


def _of_last_start(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the events since the run was last started, or all where it never was."""
    starts = [place for place, event in enumerate(events) if event.get("event") in _STARTS]
    return list(events[starts[-1] :] if starts else events)


def _by_slurm(evidence: Evidence, events: Sequence[Mapping[str, Any]]) -> End | None:
    """Return the end that Slurm itself has made, by the states and lines that are no consequence of another cause."""
    job, lines = evidence.job, evidence.lines
    if job is None:
        return None
    state = job.state if job.is_known else _state_by_lines(lines)
    where = _where(job)
    memory = job.derived_exit_code == "0:125" or any(step.state == "OUT_OF_MEMORY" for step in job.steps)
    if memory or state == "OUT_OF_MEMORY" or any(sign in line for line in lines for sign in _OUT_OF_MEMORY):
        death = next((one for one in _deaths(lines) if one.how == "Out Of Memory"), None)
        text = "out of memory: it used more than the job asked for (cluster.memory), and the system killed"
        if death is None:
            return End("out_of_memory", f"{text} one of its processes{where}")
        return End("out_of_memory", f"{text} rank {death.rank} on {death.host}", death.rank, death.host)
    if state == "TIMEOUT":
        limit = job.limit_seconds or evidence.limit_seconds
        text = f"the time limit{f' of {clock(limit)}' if limit else ''} was reached before the job had ended"
        return End("time_limit", f"{text}, and it was not requeued{_refusal(events)}")
    if state in ("NODE_FAIL", "BOOT_FAIL"):
        return End("node_failure", f"a node failed{where}, and the job was not requeued")
    if state == "PREEMPTED":
        return End("preempted", "preempted by a job of higher priority, and not requeued")
    if state == "DEADLINE":
        return End("time_limit", "the job's deadline was reached")
    if state == "CANCELLED":
        by = job.cancelled_by or next((str(one["by"]) for one in events if one.get("by")), "")
        return End("cancelled", f"cancelled by {by}" if by else "cancelled")
    return None


def _state_by_lines(lines: Sequence[str]) -> str:
    """Return the state that a job ended in, by the daemon's own words, where nothing answers for Slurm any more."""
    states = {
        "TIME LIMIT": "TIMEOUT",
        "NODE FAILURE": "NODE_FAIL",
        "PREEMPTION": "PREEMPTED",
        None: "CANCELLED",
    }
    for line in reversed(lines):
        if found := _DUE.search(line):
            return states.get(found["why"], "")
    return ""


def _culprit(evidence: Evidence, events: Sequence[Mapping[str, Any]]) -> End | None:
    """Return the end that a rank has made: the first that died of something else than the death of another."""
    failed = [event for event in events if event.get("event") == "failed"]
    own = [event for event in failed if not _is_victim(event)]
    deaths = _deaths(evidence.lines)
    told = {_rank(event) for event in failed if _is_victim(event)}
    first = next(
        (one for one in deaths if one.rank not in told and not _lost_peer(evidence.errors.get(one.rank))), None
    )
    if first is not None and first.how in _SIGNALS and first.how != "Terminated":
        return End("killed", f"rank {first.rank} on {first.host}: {_SIGNALS[first.how]}", first.rank, first.host)
    if own:
        event = own[0]
        rank, host, said = _rank(event), str(event.get("host") or ""), str(event.get("error", ""))
        if said.startswith("exit code ") and (message := evidence.errors.get(rank)):
            said = message
        kind: Kind = "killed" if said.startswith("killed by ") else "error"
        codes = {one.rank: one.code for one in deaths}
        code = codes.get(rank)
        return End(_REFUSALS.get(code or 0, kind), f"{_who(rank, host, event)}{said}", rank, host)
    if first is not None and first.code == EXIT_STOPPED:
        return None
    if first is not None and first.how != "Terminated":
        message = evidence.errors.get(first.rank) or first.how.lower()
        kind = _REFUSALS.get(first.code or 0, "error")
        return End(kind, f"rank {first.rank} on {first.host}: {message}", first.rank, first.host)
    if failed:
        event = failed[0]
        return End("error", f"{_who(_rank(event), str(event.get('host') or ''), event)}{event.get('error', '')}")
    return None


def _stop(events: Sequence[Mapping[str, Any]]) -> End:
    """Return the end of a run that was asked to stop."""
    last = {str(event["event"]): event for event in events}
    if "cancelled" in last:
        by = last["cancelled"].get("by")
        return End("cancelled", f"cancelled by {by}" if by else "cancelled")
    if "not_requeued" in last:
        return End("stopped", f"stopped and not requeued: {last['not_requeued'].get('why', 'no reason is known')}")
    return End("stopped", f"stopped by {last['stopped'].get('signal', 'a signal')}")


def _refusal(events: Sequence[Mapping[str, Any]]) -> str:
    why = [event.get("why") for event in events if event.get("event") == "not_requeued"]
    return f": {why[-1]}" if why else ""


def _deaths(lines: Sequence[str]) -> list[_Death]:
    found = []
    for line in lines:
        if match := _TASK.match(line):
            first = re.split(r"[,-]", match["ranks"])[0]
            found.append(_Death(int(first), match["host"], match["how"].strip()))
    return found


def _is_victim(event: Mapping[str, Any]) -> bool:
    return bool(event.get("victim")) or _lost_peer(str(event.get("error", "")))


def _lost_peer(text: str | None) -> bool:
    """Return whether a rank complains only of the end of another one."""
    return text is not None and any(
        sign in text for sign in (*LOST_PEER, "the first rank has ended", "another rank has ended")
    )


def _rank(event: Mapping[str, Any]) -> int:
    rank = event.get("rank")
    return rank if type(rank) is int else 0


def _who(rank: int, host: str, event: Mapping[str, Any]) -> str:
    """Return whom an event is about; a run of one process has only one, and does not name it."""
    return f"rank {rank}{f' on {host}' if host else ''}: " if event.get("rank") is not None else ""


def _where(job: JobState) -> str:
    return f" ({job.nodes})" if job.nodes else ""


def clock(seconds: float) -> str:
    """Return a time as ``D-HH:MM:SS``, ``H:MM:SS`` or ``M:SS``."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}-{hours:02d}:{minutes:02d}:{left:02d}"
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
