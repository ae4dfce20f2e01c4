"""Handing a run to Slurm: a job that Slurm has is written down, whatever comes meanwhile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from unit.slurm.told import commands

from finelaunch.errors import FinelaunchError
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.slurm.submission import Submission, read_jobs, submit

pytest.importorskip("submitit")

SUBMITS = "echo Submitted batch job 7"


def path(monkeypatch: pytest.MonkeyPatch, folder: Path, sbatch: str, **others: str) -> None:
    """Let Slurm's commands be ``sbatch``, an srun that is never called, and ``others``."""
    found = commands(folder, sbatch=sbatch, srun="exit 9", **others)
    monkeypatch.setenv("PATH", f"{found}:/usr/bin:/bin")


def submission(run: Path) -> Submission:
    return Submission(
        run=RunDirectory(run),
        recipe={},
        profile={},
        cluster={"partition": "debug"},
        profile_name="slurm_cpu_2x2",
        cluster_name="local",
        time_limit_seconds=600,
        num_nodes=2,
        num_tasks=4,
        argv=["train", "x"],
        scripts=["#!/bin/bash\n"],
        environment=dict(os.environ),
    )


IN_A_PROCESS = """
import sys
from pathlib import Path
from finelaunch.errors import Interrupted
from finelaunch.run import signals
from unit.slurm.test_submission import submission
from finelaunch.slurm.submission import submit
signals.listen()
try:
    submit(submission(Path(sys.argv[1])))
except Interrupted as stop:
    print(f"interrupted by {stop}")
"""


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_signal_while_slurm_takes_the_job_is_heard_once_the_job_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Ctrl-C goes to sbatch too, which is a process of the same terminal."""
    to_itself = "kill -INT $$;" if name == "INT" else ""
    path(monkeypatch, tmp_path / "bin", "")
    sbatch = tmp_path / "bin" / "sbatch"  # dash, as sh may be, would take away what keeps Ctrl-C from a command
    sbatch.write_text(f"#!/bin/bash\nkill -{name} $PPID; {to_itself} sleep 0.2; {SUBMITS}\n")
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, tmp_path / "run"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"interrupted by SIG{name}\n"), done.stderr
    run = RunDirectory(tmp_path / "run")
    assert [job.job_id for job in read_jobs(run)] == ["7"]
    assert [event["event"] for event in read_lines(run.events)] == ["submitted"]


def test_a_user_without_a_name_submits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path(monkeypatch, tmp_path / "bin", SUBMITS)
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)
    (job,) = submit(submission(tmp_path / "run"))
    assert (job.job_id, job.user) == ("7", str(2**31 - 9))


def test_a_job_that_cannot_be_written_down_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, asked = tmp_path / "run" / "slurm" / "jobs.jsonl", tmp_path / "asked"
    path(monkeypatch, tmp_path / "bin", f"mkdir {jobs}; {SUBMITS}", scancel=f'echo "$@" > {asked}')
    with pytest.raises(FinelaunchError, match=r"job 7 is submitted, but cannot be written down: .*; it is cancelled"):
        submit(submission(tmp_path / "run"))
    assert asked.read_text() == "7\n"


def test_what_the_job_reads_is_there_when_slurm_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    path(monkeypatch, tmp_path / "bin", f"cp -r {tmp_path}/run/slurm {kept}; {SUBMITS}")
    submit(submission(tmp_path / "run"))
    names = {file.name for file in kept.iterdir()}
    assert {"recipe.yaml", "profile.yaml", "cluster.yaml", "command.json"} <= names
    assert json.loads((kept / "command.json").read_text()) == {"argv": ["train", "x"]}
