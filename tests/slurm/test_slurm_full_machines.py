"""What machines do to a run: a node dies, memory ends, /tmp is each node's own."""

import os
import signal
import subprocess

import pytest
from integration.runs import weights_hash
from slurm.cluster import (
    events,
    finelaunch,
    job,
    note_scenario,
    requeues,
    submit,
    wait_for_end,
    wait_for_state,
    wait_for_step,
    wait_until,
    with_settings,
)

from finelaunch.run.directory import RunDirectory, now
from slurm import cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slurm_full]


@with_settings(NODE_TIMEOUT=15)
def test_a_run_survives_the_death_of_a_node(tmp_path, copied, uninterrupted):
    """Its cable first, so that no peer hears of it: then every process on it."""
    if cluster.running_settings()["NET"] != "netns":
        pytest.skip("nodes without a network of their own cannot be cut off")
    run = tmp_path / "run"
    copied.order(pace_seconds=0.3)
    number = submit(run, **copied.environment)
    wait_for_step(run, 32)  # the newest checkpoint is of step 25
    asked = now()
    subprocess.run(["ip", "link", "set", "lslv2", "down"], check=True)
    try:
        for pid in subprocess.run(["ip", "netns", "pids", "lsl-node2"], capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        wait_for_state(number, ["PENDING"], seconds=120)
    finally:
        subprocess.run(["ip", "link", "set", "lslv2", "up"], check=True)
    copied.order()
    cluster.start(NODE_TIMEOUT=15)
    wait_for_end(number)
    (requeue,) = requeues(run)
    assert "node" in requeue["reason"]
    assert requeue["step"] == events(run, "training")[1]["from_step"] == 25
    assert requeue["lost_steps"] >= 7
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_ddp")
    note_scenario("a node dies", run, asked=asked)


@with_settings(PROCTRACK="cgroup", LIMIT_MEMORY=1)
def test_a_rank_that_takes_too_much_memory_is_named(tmp_path, copied):
    run = tmp_path / "run"
    copied.order(ends="memory", rank=1, step=8)
    number = submit(run, "cluster.memory=2500M", **copied.environment)
    wait_until("the end", lambda: job(number)["JobState"] in ("FAILED", "OUT_OF_MEMORY"))
    assert job(number)["Restarts"] == "0"
    wait_until("sacct", lambda: "memory" in finelaunch("status", run, timeout=60).stdout, seconds=60)
    text = finelaunch("status", run, timeout=60).stdout
    assert "rank 1" in text, text
    note_scenario("out of memory (cgroup)", run, end=job(number)["JobState"], same_weights=None)


@with_settings(PRIVATE_TMP=1)
def test_a_tmp_of_each_nodes_own(shared_path, uninterrupted):
    run = shared_path / "run"
    number = submit(run, FINELAUNCH_CACHE=str(shared_path / "cache"))
    wait_for_end(number)
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_ddp")
    note_scenario("/tmp of each node's own", run)
