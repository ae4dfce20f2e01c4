"""What a run says, in one stream: the last lines, and what comes until it ends, over requeues and successors."""

import io
import os
import sys
import threading
import time

import pytest
from unit.operations.written import TRAINING, submitted, write_run
from unit.slurm.told import ERRORS, SACCT, says

from finelaunch.errors import BadInput
from finelaunch.operations.logs import print_log, sources
from finelaunch.run.directory import RunDirectory
from finelaunch.run.lock import RunLock


def write(path, *lines, at=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    if at is not None:
        os.utime(path, (at, at))


def printed(run, capsys, num_lines=3, rank=0):
    code = print_log(run, rank, num_lines, follows=False)
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_the_last_lines_of_a_local_run(tmp_path, slurm, capsys):
    run = write_run(tmp_path / "run", "started", TRAINING, "finished")
    write(run.log, *(f"line {number}" for number in range(10)))
    write(run.log_of(1), "of the other rank")
    assert printed(run, capsys) == (0, ["line 7", "line 8", "line 9"], "")
    assert len(printed(run, capsys, num_lines=0)[1]) == 10
    assert len(printed(run, capsys, num_lines=99)[1]) == 10
    assert printed(run, capsys, rank=1)[1] == ["of the other rank"]


@pytest.mark.parametrize("num_lines", [1, 2, 1000, 5000])
def test_the_last_lines_of_a_long_log(num_lines, tmp_path, slurm, capsys):
    run = write_run(tmp_path / "run", "started")
    lines = [f"{number} " + "x" * (number % 100) for number in range(5000)]
    write(run.log, *lines)
    assert printed(run, capsys, num_lines)[1] == lines[-num_lines:]
    run.log.write_text("a\n\nno end of line")
    assert printed(run, capsys, 2)[1] == [""]


def test_a_job_has_srun_and_rank_0_in_one_stream_and_successors_go_on_in_it(tmp_path, slurm, capsys):
    run = submitted(RunDirectory(tmp_path / "run"), "3", "4")
    write(run.slurm / "3_0_log.err", "first start", at=100)
    write(run.slurm / "3_0_log.out", "module loaded", at=50)
    write(run.slurm / "4_0_log.err", "second start", at=200)
    write(run.log, "the same with times", at=300)
    assert printed(run, capsys, 0)[1] == ["module loaded", "first start", "second start"]
    assert printed(run, capsys, 2)[1] == ["first start", "second start"]
    assert print_log(run, 0, 0, follows=False, since_job="4") == 0
    assert capsys.readouterr().out == "second start\n"
    write(run.slurm / "3_2_log.err", "before its log was open", at=10)
    write(run.log_of(2), "and then", at=20)
    assert printed(run, capsys, 0, rank=2)[1] == ["before its log was open", "and then"]


def test_a_job_that_was_submitted_by_hand_has_its_log(tmp_path, slurm, capsys):
    run = submitted(write_run(tmp_path / "run", "job_started"), "3", cluster=None)
    write(run.log, "by hand")
    assert sources(run, 0) == [run.log]
    assert printed(run, capsys)[1] == ["by hand"]


def test_of_a_progress_bar_the_last_state_is_shown(tmp_path, slurm, capsys):
    run = write_run(tmp_path / "run", "started", "finished")
    run.log.parent.mkdir()
    run.log.write_bytes(b"10%\r50%\r100%\r\n\xff\xfe\n")
    assert printed(run, capsys)[1] == ["100%", "��"]


def test_nothing_said_yet_is_said_and_a_rank_too_many_refused(tmp_path, slurm, capsys):
    run = submitted(RunDirectory(tmp_path / "run"), "3")
    code, lines, said = printed(run, capsys)
    assert (code, lines) == (0, [])
    assert "rank 0 has said nothing yet" in said
    with pytest.raises(BadInput, match="0 to 3"):
        print_log(run, 4, 1, follows=False)


class Follower:
    """``logs -f`` in a thread, with what it has printed so far."""

    def __init__(self, run, num_lines, monkeypatch):
        self.out, self.err, self.code = io.StringIO(), io.StringIO(), None
        monkeypatch.setattr(sys, "stdout", self.out)
        monkeypatch.setattr(sys, "stderr", self.err)
        self.thread = threading.Thread(target=self.follow, args=(run, num_lines))
        self.thread.start()

    def follow(self, run, num_lines):
        self.code = print_log(run, 0, num_lines, follows=True)

    def wait_for(self, text):
        give_up = time.monotonic() + 30
        while text not in self.out.getvalue():
            assert time.monotonic() < give_up, f"{text!r} was not printed: {self.out.getvalue()}"
            time.sleep(0.02)

    def end(self):
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.code, self.out.getvalue().splitlines(), self.err.getvalue().splitlines()


@pytest.mark.parametrize(
    ("event", "facts", "code"),
    [
        ("finished", {}, 0),
        ("stopped", {"signal": "SIGTERM"}, 75),
        ("failed", {"error": "ValueError: x"}, 1),
    ],
)
def test_following_ends_by_itself_with_the_runs_exit_code(event, facts, code, tmp_path, slurm, monkeypatch):
    run = write_run(tmp_path / "run", "started", TRAINING)
    write(run.log, "old", "before")
    with RunLock(run.lock):
        follower = Follower(run, 1, monkeypatch)
        follower.wait_for("before")
        for number in range(3):
            write(run.log, f"new {number}")
            follower.wait_for(f"new {number}")
        run.log.write_text("cut off\n")
        follower.wait_for("cut off")
        run.record(event, **facts)
    with run.log.open("a") as file:
        file.write("the last words, without an end")
    found, lines, said = follower.end()
    assert found == code
    assert lines == ["before", "new 0", "new 1", "new 2", "cut off", "the last words, without an end"]
    assert said[-1].startswith(f"{run.path}: {event}")


def test_following_goes_over_requeues_and_to_the_successor(tmp_path, slurm, monkeypatch):
    """A requeue appends to the job's file, a successor brings one of its own, and srun's last words are not missed."""
    running = SACCT["raise"].replace("FAILED|15:0|0:15|2|", "RUNNING|0:0|0:0|2|", 1)
    run = submitted(write_run(tmp_path / "run", "job_started", "started", target="slurm"), "3")
    slurm(sacct=says(running), squeue="exit 0")
    write(run.slurm / "3_0_log.err", "first start")
    follower = Follower(run, 0, monkeypatch)
    follower.wait_for("first start")
    write(run.slurm / "3_0_log.err", "after a requeue")
    follower.wait_for("after a requeue")
    submitted(run, "4")
    write(run.slurm / "4_0_log.err", "the successor")
    follower.wait_for("the successor")
    slurm(sacct=says(SACCT["raise"].replace("3|", "4|", 1).replace("3.", "4.")), squeue="exit 0")
    write(run.slurm / "4_0_log.err", *ERRORS["raise"].splitlines())
    run.record("job_started", job_id="4")
    code, lines, said = follower.end()
    assert code == 1
    assert lines[:3] == ["first start", "after a requeue", "the successor"]
    assert lines[3:] == ERRORS["raise"].splitlines()
    assert "rank 3 on node2" in said[-1]
