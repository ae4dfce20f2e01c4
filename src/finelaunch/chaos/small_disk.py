"""A disk that fills up: the run directory on a small file system in memory, then on the same one made larger.

Mounting asks for no rights in a user and mount namespace of one's own, which ends with its last process and takes the
file system along. This module, run as ``python -m finelaunch.chaos.small_disk``, makes all the trials of the kind
inside of one.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finelaunch.chaos.attempt import TRACEBACK, Attempt, Bench, NotRun, attempt_trial, last_line
from finelaunch.chaos.evidence import checkpoints, fault_of, stored_bytes
from finelaunch.chaos.starts import Starts
from finelaunch.chaos.trials import Trial, step_at
from finelaunch.errors import EXIT_DONE, EXIT_FAILURE, EXIT_REQUIREMENT, FinelaunchError
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import write_json

BLOCK_BYTES = 4096
SPARE_BYTES = 64 << 20
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
NUM_REMOUNTS = 20
NUM_SIZES = 4
"""How often to begin again with less room where the run came to its end."""


class SmallDisk:
    """A disk that is too small from the beginning, in turns with one that fills up while the run goes on."""

    def run(self, attempt: Attempt) -> None:
        """Let the disk be full, hold the answer against what is promised, make room, and start again."""
        trial, most = attempt.trial, attempt.facts.peak_bytes
        when = trial.one_of("when", ("begin", "later"))
        fill = _too_small if when == "begin" else _filled_up
        size, num_before = fill(attempt, 0), 0
        while attempt.ended() == EXIT_DONE:
            if num_before == NUM_SIZES:
                raise NotRun(f"the run came to its end on {size:,} bytes")
            num_before += 1
            size = fill(attempt, num_before)
        attempt.about.append(f"full at {size:,} bytes, after step {attempt.mark()}")
        attempt.notes |= {"when": when, "limit_bytes": size, "exit_code": attempt.process.code}
        _expect_answer(attempt)
        _call("mount", "-o", f"remount,size={4 * most + SPARE_BYTES}", str(attempt.run.path))
        attempt.finish()


def _too_small(attempt: Attempt, num_before: int) -> int:
    """Start on a disk between the size at which training begins and nearly the largest; return its size.

    Args:
        attempt: The trial.
        num_before: How often the run came to its end before, which asks for a smaller disk.
    """
    least, most = attempt.facts.begin_bytes, attempt.facts.peak_bytes
    share = attempt.trial.moment(among=2) / 4**num_before
    size = _mount(attempt.run.path, least + (most - least) * (0.02 + 0.93 * share))
    attempt.start()
    return size


def _filled_up(attempt: Attempt, num_before: int) -> int:
    """Start on a large disk, and leave it room for less than a checkpoint at some step; return its size then.

    Args:
        attempt: The trial.
        num_before: How often the run came to its end before, which asks for less room, earlier.

    Raises:
        NotRun: The run ended before.
    """
    facts, path = attempt.facts, attempt.run.path
    _mount(path, 4 * facts.peak_bytes + SPARE_BYTES)
    attempt.start()
    last = facts.saves[-1] if facts.saves else facts.num_steps
    step = step_at(attempt.trial.moment(among=2), 1, max(last - 1, 1), facts.num_epochs)
    if not attempt.wait_until(max(step >> num_before, 1)):
        raise NotRun("the run ended before the disk was filled")
    reference = RunDirectory(attempt.bench.reference)
    saved = checkpoints(reference) or {0: reference.model}
    room = int(stored_bytes(saved[max(saved)]) * 0.9 * attempt.trial.random("room").random() / 4**num_before)
    for _ in range(NUM_REMOUNTS):
        size = (stored_bytes(path) + room) // BLOCK_BYTES * BLOCK_BYTES
        with contextlib.suppress(FinelaunchError):  # it has grown beyond that size meanwhile
            _call("mount", "-o", f"remount,size={size}", str(path))
            return size
    raise NotRun("the disk could not be made as small as what it holds")


def _expect_answer(attempt: Attempt) -> None:
    """Hold the end of a run on a full disk against what is promised."""
    said, code = attempt.said(), attempt.process.code
    answers = (EXIT_FAILURE, EXIT_REQUIREMENT)
    attempt.expect(code in answers, f"answered {code} on a full disk, not 1 or 3: {last_line(said)}")
    attempt.expect(TRACEBACK not in said, "a full disk gave a traceback")
    names = any(str(attempt.run.path) in line and re.search(r"\d ?bytes", line) for line in said.splitlines())
    attempt.expect(names, f"no line names a path and how many bytes: {last_line(said)}")
    if saved := attempt.run_events("saved"):
        faults = [fault_of(path) for path in checkpoints(attempt.run).values()]
        attempt.expect(None in faults, f"none is left whole of {len(saved)} checkpoints: {faults[-1:]}")


def small_disk_rows(bench: Bench, trials: Sequence[Trial], folder: Path, forks: bool) -> Iterator[dict[str, Any]]:
    """Make the trials in a namespace of their own, and yield their rows; each says why it was not run, if it was not.

    Args:
        bench: What all trials share.
        trials: Which ones.
        folder: Where the folders of trials go.
        forks: Fork starts instead of starting interpreters.

    Raises:
        FinelaunchError: The process that makes them died.
    """
    job = folder / "small_disk.json"
    write_json(job, {"bench": bench.as_values(), "forks": forks, "trials": [[one.index, one.seed] for one in trials]})
    log = folder / "small_disk.txt"
    words = [*NAMESPACE, sys.executable, "-m", "finelaunch.chaos.small_disk", str(job)]
    try:
        with log.open("wb") as errors:
            driver = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
    except OSError as error:
        yield from (_not_run(trial, f"{NAMESPACE[0]}: {error.strerror}") for trial in trials)
        return
    try:
        assert driver.stdout is not None
        lines = map(json.loads, driver.stdout)
        first = next(lines, None)
        said = log.read_text(encoding="utf-8", errors="replace")
        if first is None and TRACEBACK in said:
            raise FinelaunchError(f"chaos: the process that fills disks has failed; see {log}")
        if first is None or "not_run" in first:
            why = last_line(said) if first is None else first["not_run"]
            yield from (_not_run(trial, why) for trial in trials)
            return
        for _ in trials:
            row = next(lines, None)
            if row is None:
                raise FinelaunchError(f"chaos: the process that fills disks has ended; see {log}")
            yield row
    finally:
        for end in (driver.stdin, driver.stdout):  # it ends with its input
            if end is not None:
                end.close()
        driver.wait()


def main() -> None:
    """Make the trials of a job, a line of output for each, after one that says whether a file system can be mounted."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    job = Path(sys.argv[1])
    content = json.loads(job.read_text(encoding="utf-8"))
    bench = Bench.from_values(content["bench"])
    probe = job.parent / "small_disk"
    try:
        _mount(probe, 1 << 20)
        _unmount(probe)
    except (OSError, FinelaunchError) as error:
        print(json.dumps({"not_run": str(error)}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    with Starts(job.with_suffix(".txt"), content["forks"]) as starts:
        for index, seed in content["trials"]:
            trial = Trial("disk", index, seed)
            folder = job.parent / trial.name
            row = attempt_trial(bench, trial, SmallDisk(), folder, starts)
            if row["folder"]:
                shutil.copytree(folder / "run", folder / "kept", dirs_exist_ok=True)
            _unmount(folder / "run")
            if not row["folder"]:
                shutil.rmtree(folder, ignore_errors=True)
            print(json.dumps(row), flush=True)


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(EXIT_FAILURE)


def _mount(folder: Path, limit_bytes: float) -> int:
    """Put a new file system of that size at ``folder``, in place of one that is there, and return its size."""
    size = max(round(limit_bytes / BLOCK_BYTES), 1) * BLOCK_BYTES
    _unmount(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder))
    return size


def _unmount(folder: Path) -> None:
    if folder.is_mount():
        _call("umount", str(folder))
    with contextlib.suppress(OSError):
        folder.rmdir()


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FinelaunchError(f"{words[0]} answered {done.returncode}: {last_line(done.stderr)}")


def _not_run(trial: Trial, why: str) -> dict[str, Any]:
    row = {"kind": trial.kind, "index": trial.index, "seed": trial.seed, "about": "", "recovered": None}
    return {**row, "steps_lost": None, "seconds": 0.0, "problems": [], "not_run": why, "folder": None}


if __name__ == "__main__":
    main()
