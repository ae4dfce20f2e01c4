"""Who submits, and from where: an ordinary user, and somebody within a job."""

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from integration.runs import weights_hash
from slurm.cluster import ROOT, ask, job_ids, manifest, note_scenario, submission, wait_for_end, wait_until

from finelaunch.run.directory import RunDirectory

pytestmark = [pytest.mark.slurm, pytest.mark.slurm_full]

USER = "finelaunch-test"


def test_a_job_submits_another(tmp_path, uninterrupted):
    """What Slurm has set in the outer job must not reach the inner one."""
    run = tmp_path / "run"
    words = shlex.join(map(str, [sys.executable, "-m", "finelaunch", *submission(run)]))
    left = "SLURM_CPU_BIND=quiet,mask_cpu:0x1 SLURM_MEM_PER_CPU=77 SLURM_NTASKS=1 SBATCH_PARTITION=nowhere"
    options = ["--parsable", "-N1", "-n1", "--time=5", f"--output={tmp_path}/outer.out"]
    outer = ask("sbatch", *options, "--wrap", f"env {left} {words}").strip()
    wait_until("the inner job", lambda: job_ids(run) or ended(outer), 90)
    assert job_ids(run), (tmp_path / "outer.out").read_text()
    wait_for_end(job_ids(run)[0])
    assert manifest(run)["engine"]["world_size"] == 4
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_ddp")
    note_scenario("submitted within a job", run)


def ended(number):
    """Return whether a job is over."""
    return not ask("squeue", "-h", "-j", number).strip()


@pytest.fixture
def user(shared_path):
    """Make an ordinary user for a moment."""
    home = shared_path / "home"
    subprocess.run(["useradd", "--create-home", "--home-dir", str(home), USER], check=True, capture_output=True)
    yield pwd.getpwnam(USER)
    subprocess.run(["userdel", USER], check=True, capture_output=True)


def test_an_ordinary_user(shared_path, user, uninterrupted):
    """Nobody else may read what they made."""
    run = Path(user.pw_dir) / "run"
    python, libraries = readable_python(shared_path)
    packages = os.pathsep.join([str(ROOT / "src"), sysconfig.get_path("purelib")])
    variables = {
        "HOME": user.pw_dir,
        "USER": USER,
        "LOGNAME": USER,
        "PATH": os.environ["PATH"],
        "SLURM_CONF": os.environ["SLURM_CONF"],
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": packages,
        "HF_HUB_OFFLINE": "1",
        "LD_LIBRARY_PATH": libraries,
    }
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    done = subprocess.run(
        [*as_user, python, "-m", "finelaunch", *map(str, submission(run))],
        capture_output=True,
        text=True,
        cwd=user.pw_dir,
        env=variables,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for_end(job_ids(run)[0])
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_ddp")
    paths = [run, *run.rglob("*")]
    assert {path.stat().st_uid for path in paths} == {user.pw_uid}
    open_ones = [str(path) for path in paths if path.stat().st_mode & 0o077]
    assert not open_ones
    note_scenario("an ordinary user", run)


def readable_python(folder):
    """Return a python that others may run, and where its libraries are: that of these tests, or else a copy of it."""
    real = Path(sys.executable).resolve()
    if all(parent.stat().st_mode & 0o001 for parent in real.parents):
        return str(real), ""
    copy = folder / "python"
    leave_out = shutil.ignore_patterns("test", "__pycache__", "site-packages")
    shutil.copytree(sys.base_prefix, copy, symlinks=True, ignore=leave_out)
    return str(copy / "bin" / real.name), str(copy / "lib")
