"""``launch`` on Slurm: nothing is changed before everything is checked, and one launch at a time."""

import grp
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from unit.slurm.told import commands

from finelaunch.cli import app
from finelaunch.cli.submitting import _share
from finelaunch.errors import EXIT_DONE, BadInput
from finelaunch.launch.cluster import Cluster
from finelaunch.run.directory import RunDirectory
from finelaunch.run.lock import RunLock
from finelaunch.section.document import Document, read_document
from finelaunch.slurm.submission import read_jobs

pytest.importorskip("submitit")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Give this process its umask back."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Give a run that was begun and has not trained."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "recipe.yaml").write_text("{}")
    (path / "mine").touch()
    return RunDirectory(path)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: RunDirectory) -> None:
    """Let Slurm take every job, and keep the lock as it is at that moment."""
    keep = f"cp {run.lock} {tmp_path}/lock.json"
    found = commands(tmp_path / "bin", sbatch=f"{keep}; echo Submitted batch job 7", srun="exit 9")
    monkeypatch.setenv("PATH", f"{found}:/usr/bin:/bin")


def launched(run: Path, *words: str) -> str:
    """Launch and return what is complained about, or nothing."""
    given = ["launch", "imdb/smoke", *words, "--on", "slurm_cpu_2x2", "--cluster", "local", "--run-dir", str(run)]
    done = CliRunner().invoke(app, given)
    if isinstance(done.exception, BadInput):
        return str(done.exception)
    assert done.exit_code == EXIT_DONE, done.output + repr(done.exception)
    return ""


@pytest.mark.usefixtures("slurm")
def test_fresh_sets_the_old_run_aside_and_the_job_stands_in_the_new(run: RunDirectory, tmp_path: Path) -> None:
    assert launched(run.path, "--fresh") == ""
    assert (tmp_path / "run.1" / "mine").exists()
    assert not (tmp_path / "run.1" / "lock.json").exists()
    assert [job.job_id for job in read_jobs(run)] == ["7"]
    assert not run.lock.exists()
    assert (tmp_path / "lock.json").exists(), "a job that starts at once waits until it is written down"


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster.group=nobody of that name"], "cluster.group: there is no group 'nobody of that name'"),
        (["cluster.time_limit=00:01:00"], "cluster.time_limit: 00:01:00 leaves no time for progress"),
        (["cluster.shared_folder=/proj"], "does not lie below /proj"),
    ],
)
def test_what_is_refused_has_renamed_nothing(run: RunDirectory, tmp_path: Path, words: list[str], said: str) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    assert said in launched(run.path, "--fresh", *words)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("slurm")
def test_a_path_that_slurm_takes_for_a_pattern_is_not_renamed(run: RunDirectory, tmp_path: Path) -> None:
    odd = run.path.rename(tmp_path / "run%j")
    assert "mean something to Slurm" in launched(odd, "--fresh")
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "run%j"}


@pytest.mark.usefixtures("slurm")
def test_a_launch_beside_another_submits_nothing(run: RunDirectory) -> None:
    with RunLock(run.lock):
        assert str(run.lock.parent) in launched(run.path)
        assert read_jobs(run) == []
    assert launched(run.path) == ""
    assert len(read_jobs(run)) == 1


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(("words", "seconds"), [([], 20), (["cluster.signal_delay_seconds=null"], 120)])
def test_the_job_knows_the_delay_that_was_asked_for(run: RunDirectory, words: list[str], seconds: int) -> None:
    assert launched(run.path, *words) == ""
    path = run.slurm / "cluster.yaml"
    assert read_document(path.read_text(), str(path)).values["signal_delay_seconds"] == seconds


GROUP = grp.getgrgid(os.getegid()).gr_name


def shared(run: RunDirectory) -> None:
    _share(run, Cluster(group=GROUP), Document({}))


def modes(run: RunDirectory) -> list[Any]:
    return [(folder.stat().st_gid, oct(folder.stat().st_mode & 0o7777)) for folder in (run.path, run.slurm)]


def test_the_folders_of_a_run_are_the_groups(run: RunDirectory) -> None:
    shared(run)
    assert modes(run) == [(os.getegid(), "0o2770")] * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder of somebody else needs root")
def test_a_folder_of_another_member_is_taken_as_it_is_where_it_is_right() -> None:
    other = 1
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        run = RunDirectory(Path(folder, "run"))
        shared(run)
        try:
            os.seteuid(other)  # of the same group, and not the owner
            shared(run)
            os.seteuid(0)
            run.path.chmod(0o750)
            os.seteuid(other)
            with pytest.raises(BadInput, match=f"somebody else's, and not for '{GROUP}'; have its owner do: chgrp"):
                shared(run)
        finally:
            os.seteuid(0)
