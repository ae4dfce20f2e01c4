"""status, logs and cancel of real jobs, with all of Slurm's commands and with some of them hidden."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from slurm.cluster import (
    ask,
    events,
    finelaunch,
    job,
    submit,
    wait_for_end,
    wait_for_event,
    wait_for_state,
    wait_for_step,
    wait_until,
)

pytestmark = pytest.mark.slurm

HERE = ((), ("squeue",), ("scontrol",), ("sacct",), ("squeue", "scontrol"), ("squeue", "scontrol", "sacct", "scancel"))
"""Commands of Slurm that a machine may have."""


def status(run, **environment):
    done = finelaunch("status", run, "--json", timeout=60, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def only(folder, commands):
    """Return an environment in which nothing but these commands is found."""
    folder = folder / ("-".join(commands) or "none")
    folder.mkdir()
    for name in commands:
        (folder / name).symlink_to(shutil.which(name))
    return {"PATH": str(folder)}


def follow(run, *words):
    words = [sys.executable, "-m", "finelaunch", "logs", str(run), "-f", *words]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_is_watched_over_a_requeue_to_its_end(tmp_path, copied):
    run = tmp_path / "run"
    copied.order(pace_seconds=0.3)
    number = submit(run, **copied.environment)
    follower = follow(run, "--lines", "0")
    wait_for_step(run, 12)
    seen = status(run)
    assert (seen["state"], seen["target"], seen["job"]["job_id"]) == ("running", "slurm", number)
    assert (seen["job"]["nodes"], seen["job"]["limit_seconds"], seen["further_starts"]) == ("node[1-2]", 600, 0)
    assert (seen["engine"]["world_size"], seen["profile"]) == (4, "slurm_cpu_2x2")
    assert seen["step"] >= 12
    assert seen["steps"] > 90
    assert seen["ends_at"] is not None
    for commands in HERE:
        partly = status(run, **only(tmp_path, commands))
        assert partly["state"] == "running", (commands, partly)
        assert (partly["job"]["source"] == "") == (not commands), (commands, partly)
        assert bool(partly["notes"]) == (not {"squeue", "scontrol"} & set(commands)), (commands, partly)

    ask("scontrol", "requeue", number)
    wait_for_event(run, "requeued")
    waiting = wait_until("it waits", lambda: (now := status(run))["state"] in ("requeued", "running") and now)
    assert waiting["job"]["restarts"] == 1
    copied.order()
    wait_for_end(number)
    lines, said = follower.communicate(timeout=60)
    assert follower.returncode == 0, said
    assert "finished" in said.splitlines()[-1]
    assert lines.count("the code of the submission") == 2
    assert "DUE TO JOB REQUEUE" in lines
    seen = status(run)
    assert (seen["state"], len(seen["requeues"]), seen["lost_steps"]) == ("finished", 1, 0)
    assert finelaunch("status", run).stdout.count("requeued by Slurm or an operator") == 1
    assert "nothing to cancel; finished" in finelaunch("cancel", run).stdout


def test_a_killed_rank_is_named_whatever_can_be_asked(tmp_path, copied):
    run = tmp_path / "run"
    copied.order(ends="kill", rank=2, step=8)
    number = submit(run, **copied.environment)
    follower = follow(run)
    wait_for_end(number, "FAILED")
    lines, said = follower.communicate(timeout=60)
    assert follower.returncode == 1
    assert "rank 2 on node2" in said.splitlines()[-1]
    assert "task 2: Killed" in lines
    wait_until("accounting knows it", lambda: "FAILED" in ask("sacct", "-n", "-P", "-X", "-j", number, "-o", "State"))
    for commands in HERE:
        seen = status(run, **only(tmp_path, commands))
        assert (seen["state"], seen["end"]["kind"]) == ("failed", "killed"), (commands, seen)
        assert (seen["end"]["rank"], seen["end"]["host"]) == (2, "node2"), (commands, seen)
        assert "SIGKILL" in seen["reason"]


def test_a_job_that_is_requeued_while_it_is_cancelled_stays_cancelled(tmp_path, copied):
    run = tmp_path / "run"
    copied.order(pace_seconds=0.3)
    number = submit(run, **copied.environment)
    wait_for_step(run, 3)
    process = subprocess.Popen(
        [sys.executable, "-m", "finelaunch", "cancel", str(run)], stdout=subprocess.PIPE, text=True
    )
    wait_for_event(run, "cancelled")
    ask("scontrol", "requeue", number)  # what a rank does that has asked in the moment before
    assert job(number)["Requeue"] == "1"
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert f"job {number} gone" in said
    wait_for_state(number, ["CANCELLED"])
    time.sleep(10)  # longer than a requeued job waits
    assert job(number)["JobState"] == "CANCELLED"
    assert status(run)["state"] == "cancelled"
    assert [event["job_id"] for event in events(run, "cancelled")] == [number]
    assert os.path.exists(run / "slurm" / f"{number}_0_log.err")


def test_a_job_that_waits_says_why_and_is_cancelled(tmp_path):
    run = tmp_path / "run"
    number = submit(run, "cluster.sbatch_args=[--begin=now+1hour]")
    seen = status(run)
    assert (seen["state"], seen["job"]["reason"]) == ("pending", "BeginTime")
    assert "its time to begin has not come" in seen["reason"]
    assert seen["job"]["expected_start"] is not None
    said = finelaunch("logs", run).stderr
    assert "rank 0 has said nothing yet" in said
    cancelled = finelaunch("cancel", run, timeout=120)
    assert f"job {number} gone" in cancelled.stdout, cancelled.stdout + cancelled.stderr
    assert status(run)["state"] == "cancelled"
