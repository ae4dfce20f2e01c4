"""The state of jobs, from whichever of Slurm's commands knows them.

The controller (squeue, scontrol) is up to date and forgets a job some minutes after its end; accounting (sacct)
remembers it, its steps and who cancelled it, and lags by seconds. So both are asked, for all jobs at once, and the
controller's word counts where it has one. Any of the commands may be missing here, and none is waited for longer than
its limit.
"""

import pwd
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from finelaunch.slurm.commands import Answer, ask, fields
from finelaunch.slurm.reasons import reason_text

LIMIT_SECONDS = 10.0
"""How long each command may take."""

UNKNOWN = "UNKNOWN"
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
ACTIVE = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "RESIZING", "STAGE_OUT", "SIGNALING", "STOPPED")

_SACCT = "JobID,State,ExitCode,DerivedExitCode,ElapsedRaw,TimelimitRaw,NodeList,Submit,Start,End,Reason,User,Partition"
_SQUEUE = "%i|%T|%r|%N|%M|%l|%S|%e|%V|%u|%P"
_NOTHING = ("", "None", "(null)", "N/A", "Unknown", "None assigned", "n/a")


@dataclass(frozen=True)
class Step:
    """One step of a job, by accounting.

    Args:
        name: ``batch``, or the number that ``srun`` got.
        state: In Slurm's word.
        exit_code: ``code:signal``.
    """

    name: str
    state: str
    exit_code: str


@dataclass(frozen=True)
class JobState:
    """What Slurm knows of a job now.

    Args:
        job_id: Its number.
        state: In Slurm's word, ``UNKNOWN`` where nothing that answered knows it.
        source: The command that said so; empty where none did.
        reason: Why it waits, in Slurm's word.
        nodes: Its nodes, short as Slurm writes them.
        elapsed_seconds: Since its last start.
        limit_seconds: Its time limit; None where there is none.
        restarts: How often it was requeued.
        exit_code: Of the job, ``code:signal``; often the same whatever happened.
        derived_exit_code: The highest of its steps.
        submitted: When it was submitted; by the controller, when it was last requeued.
        started: When it last started.
        ended: When it ended.
        expected_start: When Slurm thinks that it will start.
        user: Whose it is.
        cancelled_by: Who cancelled it, where accounting says so.
        partition: Where it runs.
        error_file: Where its script's errors go.
        steps: Of its last start.
    """

    job_id: str
    state: str = UNKNOWN
    source: str = ""
    reason: str = ""
    nodes: str = ""
    elapsed_seconds: int | None = None
    limit_seconds: int | None = None
    restarts: int | None = None
    exit_code: str = ""
    derived_exit_code: str = ""
    submitted: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    expected_start: datetime | None = None
    user: str = ""
    cancelled_by: str = ""
    partition: str = ""
    error_file: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether anything that answered knows it."""
        return self.state != UNKNOWN

    @property
    def is_waiting(self) -> bool:
        """Whether it is still to start, or to start again."""
        return self.state in WAITING

    @property
    def is_active(self) -> bool:
        """Whether it runs, begins or ends at this moment."""
        return self.state in ACTIVE

    @property
    def is_over(self) -> bool:
        """Whether it has ended and does not come back by itself."""
        return self.is_known and not (self.is_waiting or self.is_active)

    @property
    def why_waiting(self) -> str:
        """Why it waits, in words where the reason is a common one; empty where it does not wait."""
        return reason_text(self.reason, bool(self.restarts)) if self.is_waiting else ""


@dataclass(frozen=True)
class Seen:
    """What Slurm said of several jobs.

    Args:
        jobs: The state of each that was asked for.
        silent: A sentence for each command that is missing or gave no answer.
        is_controller_silent: Whether what is said may be old, or nothing, because the controller gave no answer.
        is_installed: Whether any of Slurm's commands is here.
    """

    jobs: dict[str, JobState]
    silent: tuple[str, ...] = ()
    is_controller_silent: bool = False
    is_installed: bool = True


def job_states(job_ids: Sequence[str], limit_seconds: float = LIMIT_SECONDS) -> Seen:
    """Return what Slurm knows of ``job_ids`` now; a word that is no number of a job is unknown to it."""
    asked = list(dict.fromkeys(one for one in job_ids if one.isdecimal()))
    if not asked:
        return Seen({one: JobState(one) for one in job_ids})
    sacct = ask(["sacct", "-n", "-P", "-D", "-j", ",".join(asked), "-o", _SACCT], limit_seconds)
    remembered = read_sacct(sacct.text) if sacct.ok else {}
    squeue = ask(["squeue", "-h", "-t", "all", "-j", ",".join(asked), "-o", _SQUEUE], limit_seconds)
    current = read_squeue(squeue.text) if squeue.ok else {}
    answers, hears = [sacct, squeue], squeue.ok or _is_unknown(squeue)
    if squeue.ok or squeue.is_missing or _is_unknown(squeue):
        over = {one for one, job in remembered.items() if job.is_over}
        for one in current if squeue.ok else [one for one in asked if one not in over]:
            scontrol = ask(["scontrol", "show", "job", "-o", "-d", one], limit_seconds)
            if scontrol.ok and (detailed := read_scontrol(scontrol.text)):
                current[one] = detailed
            answers.append(scontrol)
            if not (scontrol.ok or _is_unknown(scontrol)):
                break
            hears = True
    return Seen(
        {one: _together(remembered.get(one), current.get(one)) or JobState(one) for one in job_ids},
        tuple(answer.why for answer in answers if not answer.ok and not _is_unknown(answer)),
        not hears,
        not all(answer.is_missing for answer in answers),
    )


def read_sacct(text: str) -> dict[str, JobState]:
    """Return the jobs in the output of sacct with ``-D``: every start is a row, and the last one counts."""
    jobs: dict[str, JobState] = {}
    for line in text.splitlines():
        row = line.split("|")
        if len(row) != len(_SACCT.split(",")):
            continue
        name, state, exit_code, derived, elapsed, limit, nodes, submitted, started, ended, reason, user, partition = row
        job_id, _, step = name.partition(".")
        word, _, by = state.partition(" by ")
        word = word.split(" ")[0].rstrip("+")
        if step:
            if job_id in jobs:
                steps = (*jobs[job_id].steps, Step(step, word, exit_code))
                jobs[job_id] = replace(jobs[job_id], steps=steps)
            continue
        minutes, before = _whole(limit), jobs.get(job_id)
        is_restart = before is not None and before.state == "REQUEUED"
        jobs[job_id] = JobState(
            job_id,
            word or UNKNOWN,
            "sacct",
            reason=_text(reason),
            nodes=_text(nodes),
            elapsed_seconds=_whole(elapsed),
            limit_seconds=None if minutes is None else 60 * minutes,
            restarts=(before.restarts or 0) + 1 if before is not None and is_restart else 0,
            exit_code=exit_code,
            derived_exit_code=derived,
            submitted=before.submitted if before is not None and is_restart else _moment(submitted),
            started=_moment(started),
            ended=_moment(ended),
            user=user,
            cancelled_by=_user(by.strip()) if by.strip() else "",
            partition=partition,
        )
    return jobs


def read_squeue(text: str) -> dict[str, JobState]:
    """Return the jobs in the output of squeue."""
    jobs: dict[str, JobState] = {}
    for line in text.splitlines():
        row = line.split("|")
        if len(row) != len(_SQUEUE.split("|")):
            continue
        job_id, state, reason, nodes, elapsed, limit, start, end, submitted, user, partition = row
        has_started = state not in WAITING
        jobs[job_id] = JobState(
            job_id,
            state,
            "squeue",
            reason=_text(reason),
            nodes=_text(nodes),
            elapsed_seconds=_seconds(elapsed) if has_started else None,
            limit_seconds=_seconds(limit),
            submitted=_moment(submitted),
            started=_moment(start) if has_started else None,
            ended=_moment(end) if has_started and state not in ACTIVE else None,
            expected_start=None if has_started else _moment(start),
            user=user,
            partition=partition,
        )
    return jobs


def read_scontrol(line: str) -> JobState | None:
    """Return the job in a line of ``scontrol show job -o -d``, or None where there is none."""
    said = fields(line.strip())
    if "JobId" not in said or "JobState" not in said:
        return None
    state = said["JobState"].split(" ")[0]
    has_started = state not in WAITING
    return JobState(
        said["JobId"],
        state,
        "scontrol",
        reason=_text(said.get("Reason", "").replace("_", " ")),
        nodes=_text(said.get("NodeList", "")),
        elapsed_seconds=_seconds(said.get("RunTime", "")) if has_started else None,
        limit_seconds=_seconds(said.get("TimeLimit", "")),
        restarts=_whole(said.get("Restarts", "")),
        exit_code=said.get("ExitCode", ""),
        derived_exit_code=said.get("DerivedExitCode", ""),
        submitted=_moment(said.get("SubmitTime", "")),
        started=_moment(said.get("StartTime", "")) if has_started else None,
        ended=_moment(said.get("EndTime", "")) if has_started and state not in ACTIVE else None,
        expected_start=None if has_started else _moment(said.get("StartTime", "")),
        user=said.get("UserId", "").partition("(")[0],
        partition=said.get("Partition", ""),
        error_file=_text(said.get("StdErr", "")),
    )


def _together(remembered: JobState | None, current: JobState | None) -> JobState | None:
    """Return the controller's word, with what only accounting knows of that same start."""
    if remembered is None or current is None:
        return current or remembered
    is_same = remembered.state == current.state or (remembered.is_over and current.is_over)
    return replace(
        current,
        restarts=max(remembered.restarts or 0, current.restarts or 0),
        cancelled_by=remembered.cancelled_by if is_same else "",
        steps=remembered.steps if is_same else (),
    )


def _is_unknown(answer: Answer) -> bool:
    """Return whether a command of the controller said that it knows none of the jobs, which is an answer."""
    return "Invalid job id" in answer.why


def _user(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError, OverflowError):
        return f"user {uid}" if uid.isdecimal() else uid


def _text(word: str) -> str:
    return "" if word in _NOTHING else word


def _whole(word: str) -> int | None:
    return int(word) if word.isdecimal() else None


def _moment(word: str) -> datetime | None:
    """Return a time of Slurm, which is this machine's local time, with its zone."""
    try:
        return datetime.fromisoformat(word).astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def _seconds(word: str) -> int | None:
    """Return ``[[D-]HH:]MM:SS`` in seconds; None for a word such as UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?((?:\d+:)*\d+)", word)
    if found is None:
        return None
    total = 0
    for part in found[2].split(":"):
        total = 60 * total + int(part)
    return 86400 * int(found[1] or 0) + total
