"""No secret of the environment is written anywhere: not by a run, not by a plan, compressed or not."""

import gzip
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import canary
import pytest

pytestmark = pytest.mark.integration


def finelaunch(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **canary.ENVIRONMENT, "FINELAUNCH_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-m", "finelaunch", *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=folder,
        env=environment,
    )


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"x{canary.VALUE}x")
    with gzip.open(tmp_path / "b.gz", "wb") as file:
        file.write(canary.VALUE.encode())
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", canary.VALUE)
    (tmp_path / "d").write_text("nothing")
    assert len(canary.found_in(tmp_path)) == 3


def test_a_run_and_its_failure_leave_no_secret(tmp_path: Path) -> None:
    done = finelaunch("train", "imdb/smoke", "training.max_steps=4", "--on", "cpu", "--run-dir", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    bad = finelaunch("train", "imdb/smoke", "data.train.path=nowhere.jsonl", "--run-dir", "bad", folder=tmp_path)
    assert bad.returncode == 2
    (tmp_path / "said.txt").write_text(done.stdout + done.stderr + bad.stdout + bad.stderr)
    assert (tmp_path / "run" / "manifest.json").exists()
    assert canary.found_in(tmp_path) == []


def test_a_plan_shows_no_secret(tmp_path: Path) -> None:
    for on in (["--on", "cpu_ddp"], ["--on", "slurm_cpu_2x2", "--cluster", "local"]):
        for form in ([], ["--json"]):
            done = finelaunch("plan", "imdb/smoke", *on, *form, folder=tmp_path)
            assert done.returncode == 0, done.stderr
            assert canary.VALUE not in done.stdout + done.stderr
