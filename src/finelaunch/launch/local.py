"""Launching on this machine: a plan's processes started, watched, and answered for."""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from finelaunch.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_REQUIREMENT, EXIT_STOPPED
from finelaunch.launch.environment import without_launchers
from finelaunch.launch.plan import PORT, PYTHON, RANK, RUN, THREADS, LaunchPlan, rank_command
from finelaunch.launch.processes import Ending, RankProcess, run_ranks, tail
from finelaunch.launch.profile import Profile
from finelaunch.run.directory import RunDirectory, now
from finelaunch.run.files import read_lines
from finelaunch.run.log import say


def launch(plan: LaunchPlan, profile: Profile, run: RunDirectory, port: int) -> int:
    """Run the processes of ``plan`` to their end and return the exit code for them all.

    The first rank has the terminal, the others a log file each.

    Args:
        plan: What to do, with a number of processes.
        profile: For its times.
        run: The run directory.
        port: Where the ranks meet.
    """
    assert plan.num_processes is not None
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // plan.num_processes))
    symbols = {PYTHON: sys.executable, RUN: str(run.path), PORT: str(port), THREADS: threads}
    kept = without_launchers(os.environ)  # what a rank is to know of its own stands in the plan
    ranks = []
    for rank in range(plan.num_processes):
        argv, own = rank_command(plan, {**symbols, RANK: str(rank)})
        ranks.append(RankProcess(rank, argv, {**kept, **own}, run.log_of(rank) if rank else None))
    began = now()
    ending = run_ranks(ranks, stop_grace_seconds=profile.stop_grace_seconds, stop_seconds=profile.seconds_until_stop)
    if ending.exit_code == EXIT_STOPPED and run.finished():
        say(f"{ending.reason} when the run had finished: {run.path}")
        return EXIT_DONE
    _tell(ending, run, began)
    return ending.exit_code


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tell(ending: Ending, run: RunDirectory, began: str) -> None:
    """Say how a launch ended, with all that a user needs to find out why, and record the rank that failed."""
    if ending.exit_code == EXIT_DONE:
        return
    events = read_lines(run.events)
    known = {event["event"] for event in events if event["time"] >= began}
    if ending.exit_code == EXIT_STOPPED:
        if run.exists() and "stopped" not in known:
            run.record("stopped", signal=ending.reason)
        say(f"{ending.reason}; the same command continues in {run.path}")
        return
    if ending.rank is None:
        say(ending.reason)
        return
    if run.exists() and (ending.rank or "failed" not in known):  # the first rank knows only that it was stopped
        run.record("failed", rank=ending.rank, host=socket.gethostname(), error=ending.reason)
    if ending.rank == 0 and ending.exit_code in (EXIT_BAD_INPUT, EXIT_REQUIREMENT):
        return  # it has said it all
    who = f"rank {ending.rank} on {socket.gethostname()}"
    end = f"all ranks had ended {ending.seconds_to_end:.1f} s later"
    say(f"{who}: {ending.reason}{_after(run, events, 'training' in known)}; {end}")
    log_file = run.log_of(ending.rank)
    if ending.rank and (lines := tail(log_file)):
        say(f"the end of {log_file}:")
        for line in lines:
            say(f"  {line}")
    elif log_file.exists():
        say(f"its log: {log_file}")


def _after(run: RunDirectory, events: Sequence[Mapping[str, Any]], has_trained: bool) -> str:
    """Return the last step that was logged in this launch, and the newest checkpoint."""
    saved = [event["step"] for event in events if event.get("event") == "saved"]
    newest = f"; the newest checkpoint is of step {saved[-1]}" if saved else ", without a checkpoint"
    rows = read_lines(run.train_log)
    step = f" after step {rows[-1]['step']}" if has_trained and rows else " before the first logged step"
    return f"{step}{newest}"
