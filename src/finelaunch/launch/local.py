"""Launching on this machine: a plan's processes started, watched, and answered for."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from finelaunch.errors import EXIT_DONE, EXIT_STOPPED
from finelaunch.launch.plan import PORT, PYTHON, RANK, RUN, THREADS, LaunchPlan, rank_command
from finelaunch.launch.processes import Ending, RankProcess, run_ranks, tail
from finelaunch.launch.profile import Profile
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

OTHERS = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "SLURM_")
"""Variables of another launcher; what a rank is to know of its own stands in the plan."""


def launch(plan: LaunchPlan, profile: Profile, run: RunDirectory, port: int) -> Ending:
    """Run the processes of ``plan`` to their end; the first rank has the terminal, the others a log file each.

    Args:
        plan: What to do, with a number of processes.
        profile: For its times.
        run: The run directory.
        port: Where the ranks meet.
    """
    assert plan.num_processes is not None
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // plan.num_processes))
    symbols = {PYTHON: sys.executable, RUN: str(run.path), PORT: str(port), THREADS: threads}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    ranks = []
    for rank in range(plan.num_processes):
        argv, own = rank_command(plan, {**symbols, RANK: str(rank)})
        ranks.append(RankProcess(rank, argv, {**kept, **own}, run.log_of(rank) if rank else None))
    return run_ranks(ranks, stop_grace_seconds=profile.stop_grace_seconds, max_run_seconds=profile.max_run_seconds)


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tell(ending: Ending, run: RunDirectory, say: Callable[[str], None]) -> None:
    """Say how a launch ended, with all that a user needs to find out why."""
    if ending.exit_code == EXIT_DONE:
        return
    if ending.exit_code == EXIT_STOPPED:
        say(f"{ending.reason}; the same command continues in {run.path}")
        return
    if ending.rank is None:
        say(ending.reason)
        return
    who = f"rank {ending.rank} on {socket.gethostname()}"
    say(f"{who}: {ending.reason}{_after(run)}; all ranks had ended {ending.seconds_to_end:.1f} s later")
    log = run.log_of(ending.rank)
    if ending.rank and (lines := tail(log)):
        say(f"the end of {log}:")
        for line in lines:
            say(f"  {line}")
    elif Path(log).exists():
        say(f"its log: {log}")


def _after(run: RunDirectory) -> str:
    """Return the last step that was logged, and the newest checkpoint."""
    rows = read_lines(run.train_log)
    saved = [event["step"] for event in read_lines(run.events) if event.get("event") == "saved"]
    if not rows:
        return " before the first logged step"
    newest = f"; the newest checkpoint is of step {saved[-1]}" if saved else ", without a checkpoint"
    return f" after step {rows[-1]['step']}{newest}"
