"""Ending a run on request: what Slurm refuses, what is no more there, what belongs to another machine."""

import json

import pytest
from unit.operations.test_status import GONE
from unit.operations.written import TRAINING, submitted, write_run
from unit.slurm.told import SACCT, SQUEUE, says

from finelaunch.errors import FinelaunchError, RequirementMissing
from finelaunch.operations import cancel
from finelaunch.operations.cancel import cancel_run
from finelaunch.run.files import read_lines

# As an ordinary user was answered for a job of root's.
DENIED = "scancel: error: Kill job error on job id 6: Access/permission denied"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(cancel, "AGAIN_SECONDS", 1.0)


def row(job_id, state):
    return SQUEUE.splitlines()[-1].replace("6|RUNNING", f"{job_id}|{state}") + "\n"


def test_a_job_and_its_successors_are_cancelled_the_last_first(tmp_path, slurm, capsys):
    run = submitted(write_run(tmp_path / "run", "job_started", "started", TRAINING, target="slurm"), "3", "6", "10")
    alive, over = says(SACCT["raise"] + ""), says("".join(row(one, "CANCELLED") for one in ("6", "10")))
    kept = tmp_path / "bin" / "scancelled"
    slurm(
        scancel=f'echo "$@" >> {kept}',
        squeue=f"if [ -e {kept} ]; then\n{over}\nelse\n{says(SQUEUE)}\nfi",
        sacct=alive,
    )
    cancel_run(run, 30.0)
    assert kept.read_text() == "10 6\n"
    events = [event for event in read_lines(run.events) if event["event"] == "cancelled"]
    assert [event["job_id"] for event in events] == ["6", "10"]
    assert all(event["by"] for event in events)
    said = capsys.readouterr().out
    assert "jobs 6, 10 gone" in said
    assert "nothing was saved yet" in said


def test_a_job_that_a_requeue_brings_back_is_cancelled_again(tmp_path, slurm, capsys):
    run = submitted(write_run(tmp_path / "run", "job_started", target="slurm"), "6")
    kept = tmp_path / "bin" / "scancelled"
    pending, over = says(row("6", "PENDING")), says(row("6", "CANCELLED"))
    slurm(
        scancel=f'echo "$@" >> {kept}',
        squeue=f"if [ ! -e {kept} ] || [ $(/usr/bin/wc -l < {kept}) = 1 ]; then\n{pending}\nelse\n{over}\nfi",
    )
    cancel_run(run, 60.0)
    assert kept.read_text() == "6\n6\n"
    assert "job 6 is PENDING, as after a requeue" in capsys.readouterr().out


def test_a_job_that_does_not_end_is_not_waited_for_for_ever(tmp_path, slurm, capsys):
    run = submitted(write_run(tmp_path / "run", "job_started", target="slurm"), "6")
    slurm(scancel="exit 0", squeue=says(row("6", "COMPLETING")))
    cancel_run(run, 1.5)
    assert "within 1.5 s Slurm has not said" in capsys.readouterr().out


def test_what_slurm_refuses_is_said_in_words(tmp_path, slurm):
    run = submitted(write_run(tmp_path / "run", "job_started", target="slurm"), "6")
    slurm(scancel=f"echo '{DENIED}' >&2; exit 210", squeue=says(SQUEUE))
    with pytest.raises(FinelaunchError, match=r"job 6 is root's, and Slurm lets .* not cancel it") as caught:
        cancel_run(run, 5.0)
    assert caught.value.exit_code == 1
    assert not [event for event in read_lines(run.events) if event["event"] == "cancelled"]
    slurm(scancel="echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1", squeue=says(SQUEUE))
    with pytest.raises(FinelaunchError, match="Unable to contact"):
        cancel_run(run, 5.0)


def test_nothing_to_cancel_is_said(tmp_path, slurm, capsys):
    cancel_run(write_run(tmp_path / "done", "started", "finished"), 5.0)
    assert "nothing to cancel; finished" in capsys.readouterr().out
    slurm(sacct=says(SACCT["raise"]), squeue="exit 0", scancel="exit 1")
    cancel_run(submitted(write_run(tmp_path / "over", "job_started", target="slurm"), "3"), 5.0)
    assert "nothing to cancel; failed" in capsys.readouterr().out


def test_where_slurm_cannot_be_asked_nothing_is_claimed(tmp_path, slurm, monkeypatch):
    run = submitted(write_run(tmp_path / "run", target="slurm"), "6")
    with pytest.raises(RequirementMissing, match="scancel 6"):
        cancel_run(run, 5.0)
    slurm(squeue="echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(FinelaunchError, match=r"no answer .*Unable to contact"):
        cancel_run(run, 5.0)


def test_a_process_of_another_machine_is_named(tmp_path, slurm):
    run = write_run(tmp_path / "run", "started", TRAINING, holder=GONE)
    with pytest.raises(FinelaunchError, match=f"process {GONE['pid']} on node9: cancel it there"):
        cancel_run(run, 5.0)
    run.lock.write_text(json.dumps({}))
    with pytest.raises(FinelaunchError, match="just being started"):
        cancel_run(run, 5.0)
