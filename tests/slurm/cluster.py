"""The real cluster of slurm/local_cluster for tests, and runs on it. Everything has a time limit: nothing hangs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "slurm" / "local_cluster"
CANNOT = 3
"""What start.sh answers where a machine lacks something."""
START_SECONDS = 300
RUN_SECONDS = 600.0
"""For what should be done in some 30 s on 2 cores."""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL")

WORDS = (
    "training.num_train_epochs=3",
    "training.logging_steps=10",
    "training.eval_strategy=no",
    "training.save_strategy=steps",
    "training.save_steps=25",
    "evaluation.base=false",
    "data.test.max_samples=8",
)
"""What all runs here train: about 100 steps, a few seconds of work."""


class CannotRunHere(Exception):
    """The machine lacks what a setting of the cluster needs; the sentence says what."""


def start(**settings: Any) -> None:
    """Have the cluster run with the defaults and ``settings``, knobs of settings.sh without their prefix.

    Raises:
        CannotRunHere: The machine lacks something.
    """
    bare = {name: value for name, value in os.environ.items() if not name.startswith("LSL_")}
    kept = {name: value for name, value in os.environ.items() if name in ("LSL_DIR", "LSL_INSTALL")}
    knobs = {f"LSL_{name}": str(value) for name, value in settings.items()}
    words = [str(SCRIPTS / "start.sh"), "--restart"]
    done = subprocess.run(
        words, env={**bare, **kept, **knobs}, capture_output=True, text=True, timeout=START_SECONDS, check=False
    )
    if done.returncode == CANNOT:
        raise CannotRunHere(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr


def with_settings(**settings: Any) -> Callable[[Any], Any]:
    """Have a test run on a cluster with these settings instead of the defaults."""

    def decorate(test: Any) -> Any:
        test.settings = settings
        return test

    return decorate


def stop() -> None:
    """Stop the cluster if it runs."""
    if running_settings() is None:
        return
    subprocess.run([str(SCRIPTS / "stop.sh")], capture_output=True, timeout=120, check=True)


def running_settings() -> dict[str, str] | None:
    """Return the settings of the cluster that runs, as :func:`start` takes them; None where none runs."""
    folder = Path(os.environ.get("LSL_DIR", "/var/lib/localslurm")) / "run"
    try:
        pid = (folder / "slurmctld.pid").read_text().split()[0]
        lines = (folder / "settings").read_text().splitlines()
    except (OSError, IndexError):
        return None
    if not Path("/proc", pid).exists():
        return None
    return dict(line.removeprefix("LSL_").split("=", 1) for line in lines)


def ask(*words: Any, **environment: str) -> str:
    """Return what a command of Slurm prints; it must end well."""
    given = {**os.environ, **environment}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=30, check=False, env=given)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"
    return done.stdout


def finelaunch(
    *words: Any, cwd: Path | None = None, timeout: float = RUN_SECONDS, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command and return how it ended."""
    return subprocess.run(
        [sys.executable, "-m", "finelaunch", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=timeout,
        check=False,
    )


def submission(run: Path, *words: Any) -> list[Any]:
    """Return the words that launch the recipe of these tests on 2 nodes x 2 processes."""
    on = ["--on", "slurm_cpu_2x2", "--cluster", "local", "--run-dir", run]
    return ["launch", "imdb/smoke", *WORDS, *words, *on]


def submit(run: Path, *words: Any, **environment: str) -> str:
    """Launch the recipe of these tests on 2 nodes x 2 processes and return the number of its newest job."""
    done = finelaunch(*submission(run, *words), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return job_ids(run)[-1]


def job_ids(run: Path) -> list[str]:
    """Return the numbers of all jobs of a run."""
    return [row["job_id"] for row in read_lines(run / "slurm" / "jobs.jsonl")]


def job(job_id: str) -> dict[str, str]:
    """Return what scontrol shows of a job, by key."""
    text = ask("scontrol", "show", "job", "-o", job_id)
    return {key: value for key, _, value in (word.partition("=") for word in text.split())}


def wait_until(what: str, holds: Callable[[], Any], seconds: float = RUN_SECONDS) -> Any:
    """Return the first true value of ``holds``."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return value


def wait_for_state(job_id: str, states: Collection[str], seconds: float = RUN_SECONDS) -> str:
    """Return the state of a job once it is one of ``states``; another end than these fails at once."""

    def state() -> str | None:
        now = job(job_id)["JobState"]
        assert now in states or now not in OVER, f"job {job_id} ended as {now}, expected was {states}"
        return now if now in states else None

    return wait_until(f"job {job_id} is {' or '.join(states)}", state, seconds)


def wait_for_end(job_id: str, state: str = "COMPLETED", seconds: float = RUN_SECONDS) -> None:
    """Wait until a job has ended as ``state``."""
    wait_for_state(job_id, [state], seconds)


def wait_for_event(run: Path, name: str, count: int = 1, seconds: float = RUN_SECONDS) -> dict[str, Any]:
    """Return the ``count``-th event of a name in a run."""

    def found() -> dict[str, Any] | None:
        rows = events(run, name)
        return rows[count - 1] if len(rows) >= count else None

    return wait_until(f"event {name} no. {count} of {run}", found, seconds)


def wait_for_step(run: Path, step: int, seconds: float = RUN_SECONDS) -> None:
    """Wait until a run has made ``step`` optimizer steps."""
    path = run / "samples.jsonl"
    wait_until(f"step {step} of {run}", lambda: any(row["step"] >= step for row in read_lines(path)), seconds)


def events(run: Path, name: str) -> list[dict[str, Any]]:
    """Return the events of a name in a run."""
    return [row for row in read_lines(run / "events.jsonl") if row["event"] == name]


def manifest(run: Path) -> dict[str, Any]:
    """Return the manifest of a run."""
    return RunDirectory(run).read_manifest()


def requeues(run: Path) -> list[dict[str, Any]]:
    """Return the requeues that the manifest of a run states."""
    return manifest(run)["slurm"]["requeues"]


def told(folder: Path) -> Iterator[str]:
    """Yield all that is known of the runs below a folder, for somebody who looks for what went wrong."""
    for jobs in sorted(folder.rglob("slurm/jobs.jsonl")):
        run = jobs.parents[1]
        for path in [run / "events.jsonl", *sorted(run.glob("slurm/*_log.*")), *sorted(run.glob("logs/*.log"))]:
            if path.exists():
                yield f"---- {path}\n{path.read_text(errors='replace')[-3000:]}"
        for job_id in job_ids(run):
            said = subprocess.run(
                ["scontrol", "show", "job", "-d", job_id], capture_output=True, text=True, timeout=30, check=False
            )
            yield f"---- scontrol show job -d {job_id}\n{said.stdout}{said.stderr}"


def cancel_jobs(folder: Path) -> None:
    """Cancel what is left of the jobs of all runs below a folder, and wait for their end."""
    ids = [job_id for jobs in folder.rglob("slurm/jobs.jsonl") for job_id in job_ids(jobs.parents[1])]
    if not ids:
        return
    subprocess.run(["scancel", "--quiet", *ids], timeout=30, check=False)
    queue = ["squeue", "-h", "-j", ",".join(ids), "-t", "PD,R,CG"]
    deadline = time.monotonic() + 60
    while subprocess.run(queue, capture_output=True, text=True, timeout=30, check=False).stdout.strip():
        assert time.monotonic() < deadline, f"jobs {ids} do not end"
        time.sleep(0.2)


def note_scenario(
    name: str, run: Path, end: str = "COMPLETED", same_weights: bool | None = True, asked: str | None = None
) -> None:
    """Add a line to the file that FINELAUNCH_SCENARIOS names: what a scenario ended in, with times from its events.

    Args:
        name: What was done to the run.
        run: The run directory.
        end: How the job ended.
        same_weights: The weights are those of the run that nobody stopped; None where there are none.
        asked: When somebody stopped the run; None where nobody did, or Slurm.
    """
    if not (path := os.environ.get("FINELAUNCH_SCENARIOS")):
        return
    rows = read_lines(run / "events.jsonl")
    facts: dict[str, Any] = {"scenario": name, "end": end, "same_weights": same_weights}
    facts["seconds"] = (_time(rows[-1]) - _time(rows[0])).total_seconds()
    starts = [_time(row) for row in rows if row["event"] == "job_started"]
    if len(starts) > 1:
        facts["lost_steps"] = next(row["lost_steps"] for row in rows[::-1] if row["event"] == "training")
        saves = [_time(row) for row in rows if row["event"] == "saved" and _time(row) < starts[1]]
        since = datetime.fromisoformat(asked) if asked else max(saves, default=None)
        if asked and (after := [saved for saved in saves if saved > datetime.fromisoformat(asked)]):
            facts["to_saved_seconds"] = (after[-1] - datetime.fromisoformat(asked)).total_seconds()
        if since is not None:
            facts["to_running_seconds"] = (starts[1] - since).total_seconds()
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def _time(row: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(row["time"])
