"""The end of a run on request: its jobs are cancelled, or its process is asked to stop; what is saved stays."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence

from finelaunch.errors import FinelaunchError, RequirementMissing
from finelaunch.operations.records import jobs_of
from finelaunch.operations.show import in_words
from finelaunch.operations.status import RunStatus, status_of
from finelaunch.run.directory import RunDirectory
from finelaunch.run.lock import Holder, holder
from finelaunch.slurm.commands import ask
from finelaunch.slurm.jobs import Seen, job_states
from finelaunch.slurm.submission import this_user

AGAIN_SECONDS = 5.0
"""How long a job has to stay away until it counts as gone: a requeue in the moment of its end brings it back."""

_LOOK_SECONDS = 1.0
_REPEAT_SECONDS = 3.0
_DENIED = ("permission denied", "Access/permission", "Invalid user id")


def cancel_run(run: RunDirectory, wait_seconds: float) -> None:
    """End ``run`` and say what came of it; there may be nothing to end.

    Args:
        run: The run directory.
        wait_seconds: How long to wait until it is gone.

    Raises:
        FinelaunchError: It cannot be ended from here, or by this user.
        RequirementMissing: Slurm's commands are not here.
    """
    ids = [job.job_id for job in jobs_of(run)]
    seen = job_states(ids)
    alive = [job_id for job_id in ids if not seen.jobs[job_id].is_over and seen.jobs[job_id].is_known]
    held = holder(run.lock)
    if alive:
        _cancel_jobs(run, alive, seen, wait_seconds)
    elif held is not None and not held.is_gone and held.slurm_job not in ids:
        _stop_process(run, held, wait_seconds)
    else:
        _refuse_the_unknown(run, ids, seen, held)
        status = status_of([run])[0]
        print(f"{run.path}: nothing to cancel; {in_words(status)}")


def _refuse_the_unknown(run: RunDirectory, ids: Sequence[str], seen: Seen, held: Holder | None) -> None:
    """Refuse to say that there is nothing to cancel where Slurm could not be asked about jobs that may be alive.

    Raises:
        FinelaunchError: That is so.
    """
    if not ids or not seen.is_controller_silent or not status_of([run])[0].is_live:
        return
    job = held.slurm_job if held is not None and held.slurm_job in ids else ids[-1]
    if not seen.is_installed:
        raise RequirementMissing(
            f"{run.path} may still run as job {job}, and Slurm's commands are not here; on a login node: scancel {job}"
        )
    raise FinelaunchError(f"{run.path}: Slurm's controller gave no answer ({'; '.join(seen.silent)}); try again")


def _cancel_jobs(run: RunDirectory, ids: Sequence[str], seen: Seen, wait_seconds: float) -> None:
    """Cancel jobs, those that wait for others before these, and look again: one may just have been requeued.

    Raises:
        FinelaunchError: Slurm refuses.
    """
    _scancel(ids, seen)
    by = this_user()
    for job_id in ids:
        with contextlib.suppress(OSError):
            run.record("cancelled", job_id=job_id, by=by)
    names = f"job{'s' * (len(ids) > 1)} {', '.join(ids)}"
    print(f"{run.path}: {names} cancelled; waiting until Slurm says that it is so", flush=True)
    give_up, repeat_at = time.monotonic() + wait_seconds, time.monotonic() + _REPEAT_SECONDS
    gone_since: float | None = None
    while time.monotonic() < give_up:
        time.sleep(_LOOK_SECONDS)
        seen = job_states(ids)
        back = [one for one in ids if seen.jobs[one].is_waiting or seen.jobs[one].state == "RUNNING"]
        ends = [one for one in ids if seen.jobs[one].is_active]
        now = time.monotonic()
        if back and now >= repeat_at:
            states = ", ".join(f"{one} is {seen.jobs[one].state}" for one in back)
            print(f"job {states}, as after a requeue in the same moment; cancelled again", flush=True)
            _scancel(back, seen)
            repeat_at = now + _REPEAT_SECONDS
        if back or ends or seen.is_controller_silent:
            gone_since = None
            continue
        gone_since = now if gone_since is None else gone_since
        if now - gone_since >= AGAIN_SECONDS:
            print(f"{run.path}: {names} gone; {_continues(status_of([run])[0])}")
            return
    left = f"within {wait_seconds:g} s Slurm has not said that {names} stay away"
    print(f"{run.path}: {left}; finelaunch status {run.path} tells")


def _scancel(ids: Sequence[str], seen: Seen) -> None:
    """Have Slurm cancel jobs.

    Raises:
        FinelaunchError: It refuses, or gives no answer.
        RequirementMissing: The command is not here.
    """
    answer = ask(["scancel", *reversed(ids)])
    if answer.ok or "Invalid job id" in answer.why or "already completing" in answer.why:
        return
    if answer.is_missing:
        raise RequirementMissing(f"scancel is not installed here; on a login node: scancel {' '.join(ids)}")
    if any(sign in answer.why for sign in _DENIED):
        users = ", ".join(sorted({job.user for one in ids if (job := seen.jobs[one]).user}))
        raise FinelaunchError(
            f"job {', '.join(ids)} is {users or 'another user'}'s, and Slurm lets {this_user()} not cancel it "
            f"({answer.why}); ask them to"
        )
    raise FinelaunchError(f"job {', '.join(ids)} is not cancelled: {answer.why}")


def _stop_process(run: RunDirectory, held: Holder, wait_seconds: float) -> None:
    """Ask the process that holds the run to stop, which it does once it has saved.

    Raises:
        FinelaunchError: It is another machine's or another user's.
    """
    if held.pid is None:
        raise FinelaunchError(f"{run.path} is just being started; try again")
    if not held.is_here:
        raise FinelaunchError(
            f"{run.path} is being written by process {held.pid} on {held.host}: cancel it there (or send it SIGTERM)"
        )
    try:
        os.kill(held.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise FinelaunchError(f"{run.path}: process {held.pid} is another user's; ask them to stop it") from None
    print(f"{run.path}: process {held.pid} was asked to stop; it saves first", flush=True)
    give_up = time.monotonic() + wait_seconds
    while time.monotonic() < give_up:
        time.sleep(min(_LOOK_SECONDS, 0.2))
        now = holder(run.lock)
        if now is None or now.is_gone or now.pid != held.pid:
            print(f"{run.path}: {_continues(status_of([run])[0])}")
            return
    print(f"{run.path}: has not ended within {wait_seconds:g} s; finelaunch status {run.path} tells")


def _continues(status: RunStatus) -> str:
    """Say what is left of a run that has just ended."""
    if status.state == "finished":
        return "it had finished before"
    step = status.progress.checkpoint_step
    saved = "nothing was saved yet" if step is None else f"step {step} is saved"
    return f"{in_words(status)}; {saved}, and the same command continues it"
