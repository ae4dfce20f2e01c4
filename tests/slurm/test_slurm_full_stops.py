"""Further ways to be stopped: preemption, cgroups with loader workers, a signal at the start, no scontrol on nodes."""

import pytest
from integration.runs import weights_hash
from slurm.cluster import (
    ask,
    events,
    job,
    job_ids,
    manifest,
    note_scenario,
    requeues,
    submit,
    wait_for_end,
    wait_for_event,
    wait_for_state,
    wait_for_step,
    with_settings,
)

from finelaunch.run.directory import RunDirectory, now

pytestmark = [pytest.mark.slurm, pytest.mark.slurm_full]


def stopped(name, tmp_path, copied, uninterrupted, stop, *words):
    """Have a run stopped after some steps by ``stop``, hold that nothing was lost, and return its requeue."""
    run = tmp_path / "run"
    copied.order(pace_seconds=0.3)
    number = submit(run, *words, **copied.environment)
    wait_for_step(run, 12)
    asked = now()
    stop(number)
    wait_for_event(run, "requeued", seconds=90)
    copied.order()
    wait_for_end(number)
    assert job(number)["Restarts"] == "1"
    (requeue,) = requeues(run)
    assert requeue["lost_steps"] == 0
    assert requeue["step"] >= 12
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_ddp")
    note_scenario(name, run, asked=asked)
    return requeue


def preempt(_number):
    """Submit a job that takes the nodes for a moment."""
    ask("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")


def test_preempted_with_its_signal(tmp_path, copied, uninterrupted):
    requeue = stopped("preempted, send_user_signal", tmp_path, copied, uninterrupted, preempt)
    assert requeue["reason"] == "preempted"
    assert requeue["preempt_time"]


@with_settings(USER_SIGNAL=0)
def test_preempted_by_sigterm_alone(tmp_path, copied, uninterrupted):
    words = ["launch.dataloader_num_workers=1"]
    requeue = stopped("preempted, SIGTERM only, loader workers", tmp_path, copied, uninterrupted, preempt, *words)
    assert requeue["reason"] == "preempted"
    assert requeue["preempt_time"]


@with_settings(PROCTRACK="cgroup")
def test_requeued_by_an_operator_under_cgroups(tmp_path, copied, uninterrupted):
    def requeue(number):
        ask("scontrol", "requeue", number)

    words = ["launch.dataloader_num_workers=1"]
    stopped("scontrol requeue, proctrack cgroup, loader workers", tmp_path, copied, uninterrupted, requeue, *words)


def test_a_signal_during_start_up_requeues_and_nothing_is_lost(tmp_path, uninterrupted):
    run = tmp_path / "run"
    number = submit(run)
    wait_for_event(run, "job_started")
    asked = now()
    ask("scancel", "--signal=USR2", number)
    requeued = wait_for_event(run, "requeued", seconds=90)
    assert not requeued["step"]
    wait_for_end(number)
    assert job(number)["Restarts"] == "1"
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_ddp")
    note_scenario("SIGUSR2 during start-up", run, asked=asked)


@with_settings(FORBID_SCONTROL=1)
def test_a_successor_takes_over_where_scontrol_is_forbidden(tmp_path, copied, uninterrupted):
    run = tmp_path / "run"
    copied.order(pace_seconds=0.3)
    submit(run, "cluster.requeue=successors", "cluster.successors=1", **copied.environment)
    first, second = job_ids(run)
    assert job(second)["JobState"] == "PENDING"
    wait_for_step(run, 12)
    asked = now()
    ask("scancel", "--signal=USR2", first)
    wait_for_event(run, "job_started", count=2, seconds=90)
    copied.order()
    wait_for_end(second)
    wait_for_state(first, ["COMPLETED", "FAILED"])
    assert job(first)["Restarts"] == "0"
    assert events(run, "training")[1]["from_step"] >= 12
    assert manifest(run)["slurm"]["jobs"] == [first, second]
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_ddp")
    note_scenario("no scontrol on nodes, a successor", run, asked=asked)
