"""What batch scripts do when bash runs them: what they remove, what they answer, and what the one by hand refuses."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from unit.launch.test_sbatch import cluster_of, script_of

from finelaunch.section.lookup import shipped

SRUN = """
srun() {
  while [[ $1 == --* ]]; do shift; [[ $1 == /* ]] && shift; done
  if [[ $1 == python ]]; then touch "$TMPDIR/left"; return "$CODE"; fi
  "$@"
}
export SLURM_JOB_ID=7
"""
"""One node for all steps, and a rank that leaves a file and ends with a code."""


def ran(script: str, code: int) -> int:
    done = subprocess.run(
        ["bash", "-c", SRUN + script], env={"PATH": "/usr/bin:/bin", "CODE": str(code)}, stderr=2, check=False
    )
    return done.returncode


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("setup", [[], ["set -eu"]])
@pytest.mark.parametrize("code", [0, 75])
@pytest.mark.parametrize("stage", [False, True])
def test_a_job_takes_its_temporary_files_with_it_and_keeps_the_code(
    tmp_path: Path, code: int, stage: bool, setup: list[str]
) -> None:
    scratch = tmp_path / "a b" / "7"
    for name in ("hub-1", ".hub-1-draft", "tmp-8", "mine"):
        (scratch / name).mkdir(parents=True)
    (scratch / ".hub-1.lock").touch()
    cluster = cluster_of(scratch=f"{tmp_path}/a b/$SLURM_JOB_ID", stage=stage, setup=setup)
    assert ran(script_of(cluster, python="python"), code) == code
    staged = set() if stage else {"hub-1", ".hub-1-draft", ".hub-1.lock"}
    assert names_in(scratch) == {"tmp-8", "mine"} | staged


def test_a_scratch_that_jobs_share_keeps_what_others_may_use(tmp_path: Path) -> None:
    for name in ("hub-1", "tmp-8"):
        (tmp_path / name).mkdir()
    assert ran(script_of(cluster_of(scratch=str(tmp_path), stage=True), python="python"), 0) == 0
    assert names_in(tmp_path) == {"hub-1", "tmp-8"}


def by_hand(folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """Run the script by hand, edited for a site with another scratch and without modules."""
    text = (shipped("slurm") / "train.sbatch").read_text(encoding="utf-8")
    assert "FINELAUNCH_SCRATCH=/scratch/" in text
    text = text.replace("FINELAUNCH_SCRATCH=/scratch/", "FINELAUNCH_SCRATCH=scratch/").replace("module load", ":")
    variables: dict[str, Any] = {"PATH": "/usr/bin:/bin", "CODE": "75", "SLURM_NNODES": "1", "SLURM_JOB_USER": "me"}
    return subprocess.run(
        ["bash", "-c", SRUN + text],
        env={**variables, "SLURM_CPUS_PER_TASK": "1", **given},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


ALL = {"RECIPE": "imdb/smoke", "PROFILE": "slurm_2x4", "RUN": "run"}


def test_the_script_by_hand_takes_its_temporary_files_with_it_and_keeps_the_code(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = by_hand(tmp_path, **{**ALL, "RUN": str(run)})
    assert (done.returncode, done.stderr) == (75, "")
    assert names_in(run / "slurm") == {"7_0_log.out", "7_0_log.err"}
    assert (run / "slurm" / "7_0_log.err").read_text() == ""
    assert names_in(tmp_path / "scratch" / "me" / "7") == set()


@pytest.mark.parametrize("missing", ALL)
def test_the_script_by_hand_guesses_nothing(tmp_path: Path, missing: str) -> None:
    done = by_hand(tmp_path, **{name: value for name, value in ALL.items() if name != missing})
    assert done.returncode != 0
    assert f"{missing}: set {missing}=" in done.stderr
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("run", ["a%j", "a\\b"])
def test_the_script_by_hand_refuses_a_run_that_slurm_takes_for_a_pattern(tmp_path: Path, run: str) -> None:
    done = by_hand(tmp_path, **{**ALL, "RUN": run})
    assert done.returncode == 2
    assert f"RUN: {run} holds % or \\, which mean something to Slurm" in done.stderr
    assert names_in(tmp_path) == set()
