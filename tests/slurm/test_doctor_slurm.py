"""The doctor on a real cluster: a first profile of it, its commands, and what its nodes find."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from slurm.cluster import ask, finelaunch, wait_for_state, wait_until, with_settings

from finelaunch.launch.cluster import load_cluster

pytestmark = pytest.mark.slurm

CLOSED = {"HF_ENDPOINT": "http://127.0.0.1:9"}
"""A hub that nobody reaches: what a node does not reach is looked for without leaving the machine."""
RECIPE = ("imdb/smoke", "--on", "slurm_cpu_2x2", "--cluster", "local", "--json")


def doctor(*words, cwd, **environment):
    """Return the exit code and the checks by name, those of one name together."""
    done = finelaunch("doctor", *words, cwd=cwd, **CLOSED, **environment)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    found = {}
    for check in json.loads(done.stdout)["checks"]:
        found.setdefault(check["name"], []).append(check)
    return done.returncode, found


def not_ok(found):
    return {name: [one for one in checks if one["state"] != "ok"] for name, checks in found.items()}


def test_a_first_profile_is_one_that_runs(tmp_path):
    done = finelaunch("doctor", "--cluster", "mine", "--write", cwd=tmp_path, **CLOSED)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "slurm" / "clusters" / "mine.yaml"
    cluster = load_cluster(str(path))[0]
    assert (cluster.partition, cluster.gpus, cluster.time_limit) == ("debug", "gres", "04:00:00")
    again = finelaunch("doctor", "--cluster", "mine", "--write", cwd=tmp_path, **CLOSED)
    assert again.returncode == 2
    assert "--force" in again.stderr
    code, found = doctor("imdb/smoke", "--on", "slurm_cpu_2x2", "--cluster", "mine", "--nodes", "--json", cwd=tmp_path)
    wrong = {name: checks for name, checks in not_ok(found).items() if checks}
    assert (code, set(wrong)) == (0, {"run time"}), wrong
    assert wrong["run time"][0]["state"] == "not checked", "no step was measured yet"
    assert len(found["shared folder"]) == 3
    assert found["script"][0]["text"] == "sbatch --test-only takes it"
    assert [one.name for one in tmp_path.iterdir()] == ["slurm"], "tokens are removed"


def test_what_a_job_cannot_have_is_said(tmp_path):
    code, found = doctor(*RECIPE, "cluster.partition=nope", "--nodes", cwd=tmp_path)
    assert code == 3
    assert found["partition"][0]["text"] == "there is no nope"
    assert "Invalid partition name" in found["script"][0]["text"]
    assert "invalid partition" in found["nodes"][-1]["text"].lower()
    code, found = doctor(*RECIPE, "launch.num_processes_per_node=5", "training.global_batch_size=80", cwd=tmp_path)
    assert code == 3
    assert found["nodes"][0]["state"] == "failed"
    assert found["script"][0]["state"] == "failed"


def test_nodes_without_gpus_are_no_place_for_a_gpu_profile(tmp_path):
    """Those of this cluster claim to have some: devices that do nothing."""
    words = ["imdb/smoke", "launch.num_processes_per_node=2", "--on", "slurm_1x4", "--cluster", "local", "--json"]
    code, found = doctor(*words, "--nodes", cwd=tmp_path)
    assert code == 3
    assert found["nodes"][-1]["text"].startswith("a job ran on node")
    assert {one["state"] for one in found["gpu"]} == {"failed"}
    assert "nvidia-smi shows none on node" in found["gpu"][0]["text"]


def test_it_does_not_wait_for_ever(tmp_path):
    words = ["-N2", "--ntasks-per-node=4", "--mem=10", "-t", "5", "-o", "/dev/null", "--wrap", "sleep 200"]
    job = ask("sbatch", "--parsable", *words).strip()
    try:
        wait_for_state(job, ["RUNNING"])
        code, found = doctor(*RECIPE, "--nodes", "--wait", "3", cwd=tmp_path)
        last = found["nodes"][-1]
        assert (code, last["state"], last["text"]) == (0, "not checked", "still waiting for 2 nodes after 3 s")
        waiting = ["squeue", "-h", "-n", "finelaunch-doctor", "-o", "%i"]
        wait_until("its job is gone", lambda: not ask(*waiting).strip(), seconds=30)
    finally:
        subprocess.run(["scancel", job], timeout=30, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_python_that_nodes_do_not_have(tmp_path):
    code, found = doctor(*RECIPE, "cluster.python=/no/such/python", "--nodes", cwd=tmp_path)
    assert code == 3
    assert "/no/such/python" in found["nodes"][-1]["text"]


def test_setup_lines_that_print_do_no_harm(tmp_path):
    setup = 'cluster.setup=["echo loading", "export DOCTOR_SETUP=1"]'
    code, found = doctor(*RECIPE, setup, "--nodes", cwd=tmp_path)
    assert code == 0, not_ok(found)
    assert found["packages there"][0]["state"] == "ok"


def test_a_folder_that_this_machine_alone_sees(tmp_path):
    """A file system that is mounted for one process is on no node."""
    alone = tmp_path / "alone"
    alone.mkdir()
    words = [sys.executable, "-m", "finelaunch", "doctor", *RECIPE, "--nodes"]
    line = f"mount -t tmpfs none {alone} && cd {alone} && {shlex.join(words)}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", line],
        env={**os.environ, **CLOSED},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if not done.stdout:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 3, done.stdout
    checks = json.loads(done.stdout)["checks"]
    (lost,) = [one for one in checks if one["name"] == "shared folder" and one["state"] == "failed"]
    assert lost["text"] == f"the run's {alone} is not seen from node1, node2"
    assert [one["state"] for one in checks if one["name"] == "network"] == ["ok"], "they meet in another folder"


@pytest.mark.slurm_full
@with_settings(PRIVATE_TMP=1)
def test_folders_that_nodes_do_not_see(tmp_path, shared_path):
    seen = {"FINELAUNCH_CACHE": str(shared_path / "cache"), "HF_HOME": str(shared_path / "hub")}
    code, found = doctor(*RECIPE, "--nodes", cwd=tmp_path, **seen)
    assert code == 3
    states = {one["text"].split(" /")[0]: one["state"] for one in found["shared folder"]}
    assert states == {"the run's": "failed", "the hub's": "ok", "the cache": "ok"}
    assert "is not seen from node1, node2" in found["shared folder"][0]["text"]
    code, found = doctor(*RECIPE, "--run-dir", shared_path / "run", "--nodes", cwd=shared_path, **seen)
    assert code == 0, not_ok(found)


@pytest.mark.slurm_full
@with_settings(FORBID_SCONTROL=1)
def test_nodes_where_scontrol_is_forbidden(tmp_path):
    code, found = doctor(*RECIPE, "--nodes", cwd=tmp_path)
    assert code == 3
    assert "requeue=successors" in found["scontrol there"][0]["remedy"]
    words = ["cluster.requeue=successors", "cluster.successors=2"]
    code, found = doctor(*RECIPE, *words, "--nodes", cwd=tmp_path)
    assert code == 0, not_ok(found)


@pytest.mark.slurm_full
@with_settings(ACCT=0)
def test_a_cluster_without_accounting(tmp_path):
    done = finelaunch("doctor", "--cluster", "mine", "--write", cwd=tmp_path, **CLOSED)
    assert done.returncode == 0, done.stderr
    assert "# account: not known" in (tmp_path / "slurm" / "clusters" / "mine.yaml").read_text()
    code, found = doctor(*RECIPE, cwd=tmp_path)
    assert (code, found["sacct"][0]["state"]) == (0, "warning")


@pytest.mark.slurm_full
def test_the_run_time_is_that_of_the_run(tmp_path):
    done = finelaunch("train", "imdb/smoke", "--on", "cpu", "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    code, found = doctor(*RECIPE, "--run-dir", tmp_path / "run", "training.num_train_epochs=400", cwd=tmp_path)
    assert code == 0
    assert "take about" in found["run time"][0]["text"], found["run time"]
