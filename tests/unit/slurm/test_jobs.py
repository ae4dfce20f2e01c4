"""The state of a job from what Slurm's commands have really said, whichever of them are there."""

import pytest
from unit.slurm.told import SACCT, SCONTROL, SQUEUE, commands, says

from finelaunch.slurm.jobs import JobState, job_states, read_sacct, read_scontrol, read_squeue
from finelaunch.slurm.reasons import reason_text

UNKNOWN_JOB = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"


def path(monkeypatch, folder, **scripts):
    """Let nothing but ``scripts`` be found, and cat."""
    monkeypatch.setenv("PATH", str(commands(folder, cat='exec /bin/cat "$@"', **scripts)))


def test_accounting_knows_state_steps_times_and_who_cancelled():
    done, failed, cancelled = (read_sacct(SACCT[name]) for name in ("done", "raise", "cancel"))
    job = done["2"]
    assert (job.state, job.nodes, job.elapsed_seconds, job.limit_seconds) == ("COMPLETED", "node[1-2]", 1, 300)
    assert (job.ended - job.started).total_seconds() == 1
    assert job.is_over
    assert not job.reason
    assert [(step.name, step.state) for step in failed["3"].steps] == [("batch", "FAILED"), ("0", "CANCELLED")]
    assert (cancelled["7"].state, cancelled["7"].cancelled_by) == ("CANCELLED", "root")
    assert read_sacct(SACCT["done"].replace("COMPLETED|0:0|0:0", "CANCELLED by 4000000|0:0|0:0"))["2"].cancelled_by == (
        "user 4000000"
    )
    never = read_sacct(SACCT["never started"])["9"]
    assert (never.started, never.nodes, never.elapsed_seconds) == (None, "", 0)


def test_accounting_counts_the_starts_of_a_requeued_job_and_keeps_the_last():
    at_once, waiting, done = (read_sacct(SACCT[f"requeue, {name}"])["8"] for name in ("at once", "waiting", "done"))
    assert (at_once.state, at_once.is_waiting, at_once.is_over) == ("REQUEUED", True, False)
    assert (waiting.state, waiting.restarts, waiting.steps) == ("PENDING", 1, ())
    assert at_once.submitted == waiting.submitted == done.submitted
    reused = read_sacct(SACCT["requeue, done"] + SACCT["done"].replace("2|", "8|", 1))["8"]  # of a cluster set up anew
    assert (reused.restarts, reused.submitted) == (0, read_sacct(SACCT["done"])["2"].submitted)
    assert (done.state, done.restarts, [step.state for step in done.steps]) == (
        "COMPLETED",
        1,
        ["COMPLETED", "COMPLETED"],
    )


def test_the_queue_says_why_a_job_waits_and_when_it_is_to_start():
    jobs = read_squeue(SQUEUE)
    assert jobs["8"].expected_start is not None
    assert (jobs["8"].started, jobs["8"].elapsed_seconds, jobs["8"].limit_seconds) == (None, None, 300)
    assert jobs["10"].expected_start is None
    assert (jobs["6"].is_active, jobs["6"].elapsed_seconds, jobs["6"].reason) == (True, 35, "")
    assert jobs["3"].is_over
    words = {one: jobs[one].why_waiting for one in ("8", "9", "10", "11", "12", "13")}
    assert "free" in words["8"]
    assert "never start" in words["9"]
    assert "another job" in words["10"]
    assert "time to begin" in words["11"]
    assert "scontrol release" in words["12"]
    assert "priority" in words["13"]
    assert not jobs["6"].why_waiting


def test_the_controller_knows_restarts_and_where_errors_go():
    at_once, waiting, done = (read_scontrol(SCONTROL[f"requeue, {name}"]) for name in ("at once", "waiting", "done"))
    assert at_once is not None
    assert waiting is not None
    assert done is not None
    assert (at_once.state, at_once.is_active, at_once.restarts, at_once.ended) == ("COMPLETING", True, 1, None)
    assert (waiting.why_waiting, waiting.nodes) == ("Slurm lets a requeued job wait a moment", "")
    assert (done.elapsed_seconds, done.error_file) == (1, "/runs/a b/slurm/8_0_log.err")
    drained = read_scontrol(SCONTROL["drained"])
    assert drained is not None
    assert "down, drained" in drained.why_waiting
    assert read_scontrol("") is None


@pytest.mark.parametrize(
    ("reason", "says_so"),
    [
        ("QOSMaxJobsPerUserLimit", "QOS allows"),
        ("QOSMaxWallDurationPerJobLimit", "time limit"),
        ("QOSGrpGRES", "all its users"),
        ("AssocGrpCPUMinutesLimit", "account"),
        ("AssocMaxJobsLimit", "account"),
        ("ReqNodeNotAvail, UnavailableNodes:node[3,7]", "drained"),
        ("PartitionTimeLimit", "partition"),
        ("JobHoldMaxRequeue", "as often"),
        ("SomethingNew", ""),
        ("", ""),
    ],
)
def test_reasons_are_said_in_words(reason, says_so):
    assert says_so in reason_text(reason)
    assert bool(reason_text(reason)) == bool(says_so)


def test_the_controller_counts_where_accounting_lags(monkeypatch, tmp_path):
    path(
        monkeypatch,
        tmp_path,
        sacct=says(SACCT["requeue, at once"]),
        squeue=says(SQUEUE),
        scontrol=f'if [ "$5" = 8 ]; then\n{says(SCONTROL["requeue, waiting"])}\nelse\n{UNKNOWN_JOB}\nfi',
    )
    seen = job_states(["8", "6", "77"])
    assert (seen.silent, seen.is_controller_silent, seen.is_installed) == ((), False, True)
    job = seen.jobs["8"]
    assert (job.state, job.source, job.restarts, job.reason) == ("PENDING", "scontrol", 1, "BeginTime")
    assert job.steps == ()  # those are of the start before
    assert (seen.jobs["6"].source, seen.jobs["6"].state) == ("squeue", "RUNNING")
    assert seen.jobs["77"] == JobState("77")


def test_what_the_controller_has_forgotten_accounting_remembers(monkeypatch, tmp_path):
    path(monkeypatch, tmp_path, sacct=says(SACCT["cancel"]), squeue=UNKNOWN_JOB, scontrol=UNKNOWN_JOB)
    seen = job_states(["7"])
    assert (seen.jobs["7"].state, seen.jobs["7"].source) == ("CANCELLED", "sacct")
    assert (seen.silent, seen.is_controller_silent) == ((), False)


def test_each_command_alone_is_enough_and_what_is_missing_is_said(monkeypatch, tmp_path):
    path(monkeypatch, tmp_path / "one", sacct=says(SACCT["raise"]))
    seen = job_states(["3"])
    assert (seen.jobs["3"].state, seen.is_controller_silent, seen.is_installed) == ("FAILED", True, True)
    assert any("squeue is not installed" in why for why in seen.silent)
    path(monkeypatch, tmp_path / "two", squeue=says(SQUEUE))
    assert job_states(["3"]).jobs["3"].source == "squeue"
    path(monkeypatch, tmp_path / "three", scontrol=says(SCONTROL["requeue, done"]))
    seen = job_states(["8"])
    assert (seen.jobs["8"].source, seen.is_controller_silent, seen.is_installed) == ("scontrol", False, True)
    path(monkeypatch, tmp_path / "none")
    seen = job_states(["8"])
    assert not seen.is_installed
    assert not seen.jobs["8"].is_known


def test_a_controller_that_does_not_answer_is_not_waited_for(monkeypatch, tmp_path):
    never = "exec /bin/sleep 60"
    path(monkeypatch, tmp_path, sacct=says(SACCT["raise"]), squeue=never, scontrol="echo called >> $0.called")
    seen = job_states(["3"], limit_seconds=0.3)
    assert seen.is_controller_silent
    assert seen.silent == ("squeue gave no answer within 0.3 s",)
    assert seen.jobs["3"].state == "FAILED"
    assert not (tmp_path / "scontrol.called").exists()


def test_accounting_that_is_switched_off_is_no_hindrance(monkeypatch, tmp_path):
    off = "echo 'Slurm accounting storage is disabled' >&2; exit 1"
    path(monkeypatch, tmp_path, sacct=off, squeue=says(SQUEUE), scontrol=UNKNOWN_JOB)
    seen = job_states(["6"])
    assert (seen.jobs["6"].state, seen.silent) == ("RUNNING", ("Slurm accounting storage is disabled",))
    assert not seen.is_controller_silent


def test_nothing_is_asked_about_what_is_no_job(monkeypatch, tmp_path):
    path(monkeypatch, tmp_path, sacct="echo $@ >> $0.called", squeue="echo $@ >> $0.called")
    seen = job_states(["; rm -rf x", "--help", ""])
    assert not any(job.is_known for job in seen.jobs.values())
    assert not list(tmp_path.glob("*.called"))
