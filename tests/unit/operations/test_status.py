"""What became of a run, from its directory alone and from what Slurm has said of its jobs."""

import json
import os

import pytest
from unit.operations.written import TRAINING, submitted, write_run
from unit.slurm.told import ERRORS, SACCT, SCONTROL, SQUEUE, says

from finelaunch.operations import show
from finelaunch.operations.progress import num_further_starts
from finelaunch.operations.records import all_runs, find_run
from finelaunch.operations.status import status_of
from finelaunch.run.directory import RunDirectory
from finelaunch.run.lock import RunLock

GONE = {"host": "node9", "machine": "another", "pid": 2**22 + 1, "started": 0.0, "slurm_job": None, "token": "x"}


def state(run):
    status = status_of([run])[0]
    return status.state, status.reason


@pytest.mark.parametrize(
    ("events", "expected", "reason"),
    [
        (["started", TRAINING, "finished"], "finished", ""),
        (["started", TRAINING, ("stopped", {"signal": "SIGTERM"})], "stopped", "stopped by SIGTERM"),
        (["started", ("failed", {"error": "ValueError: x"})], "failed", "ValueError: x"),
        (["started", TRAINING], "lost", "its process is gone without a word"),
        (["started", ("failed", {"error": "x"}), "started", "finished"], "finished", ""),
        (["started", ("stopped", {"signal": "SIGTERM"}), "started", TRAINING], "lost", "gone without a word"),
    ],
)
def test_a_local_run_that_nobody_holds(tmp_path, slurm, events, expected, reason):
    found, why = state(write_run(tmp_path / "run", *events))
    assert found == expected
    assert reason in why
    assert bool(reason) == bool(why)


def test_a_run_that_is_held_is_running_and_one_whose_holder_is_gone_is_lost(tmp_path, slurm):
    run = write_run(tmp_path / "run", "started")
    with RunLock(run.lock):
        assert state(run) == ("running", "before its first step")
        run.record("training", from_step=0, steps=100)
        status = status_of([run])[0]
        assert (status.state, status.holder.pid, status.holder.is_here) == ("running", os.getpid(), True)
    run.lock.write_text(json.dumps(GONE))
    os.utime(run.lock, (0, 0))
    found, why = state(run)
    assert found == "lost"
    assert f"process {GONE['pid']} on node9" in why


def test_another_machines_holder_is_known_by_its_sign_of_life(tmp_path, slurm):
    run = write_run(tmp_path / "run", "started", TRAINING, holder=GONE)
    assert state(run) == ("running", "")
    assert not status_of([run])[0].holder.is_here


def test_progress_is_what_the_files_say_and_nothing_else(tmp_path, slurm):
    run = write_run(tmp_path / "run", "started", TRAINING, num_logged=4)
    run.record("evaluated", step=20, validation={"loss": 0.5, "accuracy": 0.75, "confusion_matrix": [[1]]})
    progress = status_of([run])[0].progress
    assert (progress.step, progress.steps, progress.loss_step, progress.tokens_per_second) == (20, 100, 20, 1000.0)
    assert (progress.step_seconds, progress.remaining_seconds) == (0.5, 40.0)
    assert progress.validation == {"loss": 0.5, "accuracy": 0.75}
    assert (progress.checkpoint, progress.checkpoint_step) == (None, None)
    bare = status_of([write_run(tmp_path / "bare", "started", engine=False)])[0]
    assert (bare.progress.step, bare.progress.steps, bare.progress.remaining_seconds) == (None, None, None)
    old = write_run(tmp_path / "old", "started", ("training", {"from_step": 0}), num_logged=1)
    assert "5 of an unknown number" in "\n".join(show.details(status_of([old])[0]))


def test_a_job_that_waits_says_why_and_one_that_was_requeued_that_too(tmp_path, slurm):
    run = submitted(RunDirectory(tmp_path / "run"), "13")
    slurm(squeue=says(SQUEUE))
    found, why = state(run)
    assert found == "pending"
    assert why == "jobs of higher priority come first (Priority)"
    text = "\n".join(show.details(status_of([run])[0]))
    assert "expected to start at 2026-11-22" in text
    requeued = submitted(write_run(tmp_path / "again", "started", target="slurm"), "8")
    scontrol = SCONTROL["requeue, waiting"]
    slurm(sacct=says(SACCT["requeue, waiting"]), squeue=says(SQUEUE), scontrol=says(scontrol))
    assert state(requeued) == ("requeued", "Slurm lets a requeued job wait a moment (BeginTime)")


def test_a_job_that_runs_says_how_often_it_has_to_start_again(tmp_path, slurm):
    run = submitted(write_run(tmp_path / "run", target="slurm", num_logged=2), "6", time_limit_seconds=60)
    for event in ("job_started", "started", "training"):
        run.record(event, job_id="6", from_step=0, steps=400)
    slurm(squeue=says(SQUEUE))
    status = status_of([run])[0]
    assert (status.state, status.job.elapsed_seconds, status.job.limit_seconds) == ("running", 35, 60)
    assert status.progress.remaining_seconds == 195.0
    assert (status.further_starts, status.ends_at) == (3, None)  # 25 s are left of this one
    assert "needs about 3:15 and 3 more starts" in "\n".join(show.details(status))


def test_further_starts():
    assert num_further_starts(100, 100, 50) == 0
    assert num_further_starts(101, 100, 50) == 1
    assert num_further_starts(200, -5, 50) == 4
    assert num_further_starts(200, 0, 0) is None


def test_a_job_that_slurm_ended_says_why(tmp_path, slurm):
    run = submitted(write_run(tmp_path / "run", "job_started", "started", TRAINING, target="slurm"), "6")
    (run.slurm / "6_0_log.err").write_text(ERRORS["timeout"])
    slurm(sacct=says(SACCT["timeout"]))
    status = status_of([run])[0]
    assert (status.state, status.end.kind) == ("failed", "time_limit")
    assert "time limit of 1:00" in status.reason
    assert any("gave no answer" in note or "did not answer" in note for note in status.notes)


def test_the_culprits_own_log_is_quoted(tmp_path, slurm):
    run = submitted(write_run(tmp_path / "run", "job_started", "started", target="slurm"), "3")
    (run.slurm / "3_0_log.err").write_text(ERRORS["raise"])
    run.log_of(3).parent.mkdir()
    run.log_of(3).write_text("Traceback (most recent call last):\nValueError: row 7 has no label\n")
    slurm(sacct=says(SACCT["raise"]))
    assert state(run) == ("failed", "rank 3 on node2: ValueError: row 7 has no label")


def test_without_slurm_the_files_speak_and_that_is_said(tmp_path, slurm):
    waiting = submitted(RunDirectory(tmp_path / "waiting"), "3")
    assert state(waiting)[0] == "submitted"
    started = submitted(write_run(tmp_path / "started", target="slurm"), "3")
    started.record("job_started", job_id="3")
    started.lock.write_text(json.dumps({**GONE, "slurm_job": "3"}))
    assert state(started)[0] == "running"
    started.lock.unlink()
    (started.slurm / "3_0_log.err").write_text(ERRORS["cancel"])
    assert state(started) == ("cancelled", "cancelled")
    again = submitted(write_run(tmp_path / "again", "started", ("failed", {"error": "x"}), target="slurm"), "3")
    assert state(again)[0] == "submitted"
    requeued = submitted(write_run(tmp_path / "requeued", target="slurm"), "3")
    for event in ("job_started", "stopped", "requeued"):
        requeued.record(event, job_id="3")
    assert state(requeued)[0] == "requeued"
    for run in (waiting, started, requeued):
        assert "not installed here" in status_of([run])[0].notes[0]


def test_a_job_that_slurm_has_forgotten_while_it_waited_is_lost(tmp_path, slurm, monkeypatch):
    run = submitted(RunDirectory(tmp_path / "run"), "77")
    slurm(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    monkeypatch.setenv("LOGNAME", "root")
    assert state(run) == ("lost", "job 77 is gone without a word: it was cancelled while it waited, or is long over")
    monkeypatch.setenv("LOGNAME", "somebody")  # whom a site may hide the jobs of others from
    assert state(run)[0] == "submitted"


def test_of_several_jobs_the_one_that_matters_is_shown(tmp_path, slurm):
    run = submitted(write_run(tmp_path / "run", "job_started", "started", target="slurm"), "3", "9", "10")
    (run.slurm / "3_0_log.err").write_text(ERRORS["kill"])
    slurm(squeue=says(SQUEUE))
    assert status_of([run])[0].job.job_id == "9"
    over = SACCT["raise"] + SACCT["never started"]
    slurm(sacct=says(over), squeue="exit 0")
    status = status_of([submitted(write_run(tmp_path / "other", "job_started", target="slurm"), "3", "9")])[0]
    assert (status.job.job_id, status.state) == ("3", "failed")


def test_a_number_that_a_new_cluster_gave_to_another_job_is_not_this_runs(tmp_path, slurm):
    run = submitted(write_run(tmp_path / "run", "job_started", "started", target="slurm"), "8")
    other = SCONTROL["requeue, at once"].replace("/runs/a b/slurm/8_0_log.err", "/home/x/other.err")
    slurm(squeue=says(SQUEUE), scontrol=says(other))
    assert not status_of([run])[0].job.is_known
    slurm(squeue=says(SQUEUE), scontrol=says(SCONTROL["requeue, at once"]))
    assert status_of([run])[0].state == "ending"
    slurm(sacct=says(SACCT["requeue, done"].replace("2026-11-22", "2026-11-23")))
    assert not status_of([run])[0].job.is_known
    slurm(sacct=says(SACCT["requeue, done"]))
    assert status_of([run])[0].job.is_known


def test_a_run_that_went_on_here_is_local_whatever_its_old_jobs_are(tmp_path, slurm):
    run = submitted(write_run(tmp_path / "run", target="slurm"), "13")
    run.note(launch={"target": "inprocess"})
    run.record("started")
    slurm(squeue=says(SQUEUE))
    with RunLock(run.lock):
        status = status_of([run])[0]
        assert (status.target, status.state, status.job) == ("local", "running", None)


def test_all_of_it_is_json_and_a_table(tmp_path, slurm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slurm(squeue=says(SQUEUE))
    write_run(tmp_path / "runs" / "a", "started", TRAINING, "finished", num_logged=1)
    submitted(write_run(tmp_path / "runs" / "b", target="slurm"), "6").record("job_started", job_id="6")
    (tmp_path / "runs" / "no run").mkdir()
    statuses = status_of(all_runs())
    rows = [json.loads(json.dumps(show.as_json(one), allow_nan=False)) for one in statuses]
    assert [row["state"] for row in rows] == ["finished", "running"]
    assert (rows[1]["job"]["state"], rows[1]["job"]["started"][:10]) == ("RUNNING", "2026-11-22")
    lines = show.table(statuses)
    assert [line.split()[0] for line in lines] == ["run", "a", "b"]
    assert "5/100" in lines[1]


def test_text_from_a_run_cannot_steer_the_terminal(tmp_path, slurm):
    run = write_run(tmp_path / "run", "started", ("failed", {"error": "x\x1b[2J\nsecond\x07"}))
    lines = show.details(status_of([run])[0])
    assert not any(ord(letter) < 32 for line in lines for letter in line)
    assert any("second" in line for line in lines)


def test_a_run_is_found_by_its_folder_or_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "a", "started")
    assert find_run("a").path == find_run("runs/a").path
    assert find_run(str(tmp_path / "runs" / "a")).exists()
