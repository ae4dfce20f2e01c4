"""status, logs and cancel as a user types them, on real runs of this machine."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from finelaunch.run.files import read_lines

pytestmark = pytest.mark.integration

LONG = (
    "training.max_steps=1000000",
    "training.logging_steps=5",
    "training.eval_strategy=no",
    "training.save_strategy=steps",
    "training.save_steps=20",
)


def command(*words):
    return [sys.executable, "-m", "finelaunch", *map(str, words)]


def finelaunch(*words, cwd):
    return subprocess.run(command(*words), capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def start(*words, cwd):
    return subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, start_new_session=True
    )


def status(folder):
    done = finelaunch("status", "run", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wait_until(folder, condition):
    """Return the status of the run as soon as it is as wanted."""
    give_up = time.monotonic() + 240
    while not (os.path.exists(folder / "runs" / "run" / "events.jsonl") and condition(seen := status(folder))):
        assert time.monotonic() < give_up
        time.sleep(0.5)
    return seen


@pytest.fixture
def long_run(tmp_path):
    """A run that trains, and its process, which is ended in any case."""
    process = start("train", "imdb/smoke", "--on", "cpu", "--name", "run", *LONG, cwd=tmp_path)
    yield process, tmp_path
    process.kill()
    process.communicate()


def test_a_run_is_watched_stopped_and_goes_on(long_run):
    process, folder = long_run
    seen = wait_until(folder, lambda now: (now["checkpoint_step"] or 0) >= 20)
    assert (seen["state"], seen["target"], seen["steps"], seen["profile"]) == ("running", "local", 1_000_000, "cpu")
    assert seen["step"] >= seen["loss_step"] >= 20
    assert (seen["engine"]["name"], seen["engine"]["world_size"]) == ("single", 1)
    assert seen["remaining_seconds"] > 0
    assert seen["ends_at"] is not None
    assert (seen["holder"]["pid"], seen["holder"]["is_gone"]) == (process.pid, False)

    detail, table = finelaunch("status", "run", cwd=folder), finelaunch("status", cwd=folder)
    for text in ("running", "of 1000000", "tokens/s", "checkpoint-", "single, 1 process, cpu", str(process.pid)):
        assert text in detail.stdout, detail.stdout
    assert [line.split()[:2] for line in table.stdout.splitlines()] == [["run", "state"], ["run", "running"]]

    last = finelaunch("logs", "run", "--lines", 3, cwd=folder)
    assert last.returncode == 0
    assert len(last.stdout.splitlines()) == 3
    assert "step " in last.stdout
    follower = start("logs", "run", "-f", "--lines", 1, cwd=folder)
    looker = start("logs", "run", "-f", cwd=folder)
    assert looker.stdout.readline()
    looker.send_signal(signal.SIGINT)
    _, said = looker.communicate(timeout=60)
    assert (looker.returncode, said) == (0, "")
    seen_lines = [follower.stdout.readline() for _ in range(3)]
    assert len(set(seen_lines)) == 3

    cancelled = finelaunch("cancel", "run", "--wait", 120, cwd=folder)
    assert cancelled.returncode == 0, cancelled.stderr
    assert f"process {process.pid} was asked to stop" in cancelled.stdout
    assert "is saved, and the same command continues it" in cancelled.stdout
    assert process.wait(60) == 75
    _, said = follower.communicate(timeout=60)
    assert follower.returncode == 75
    assert "stopped by SIGTERM" in said

    after = status(folder)
    assert (after["state"], after["reason"], after["is_resumable"]) == ("stopped", "stopped by SIGTERM", True)
    assert after["checkpoint_step"] == after["step"] == int(cancelled.stdout.split("step ")[1].split()[0])
    again = finelaunch("cancel", "run", cwd=folder)
    assert (again.returncode, "nothing to cancel; stopped by SIGTERM" in again.stdout) == (0, True)


def test_a_run_that_was_killed_is_lost(long_run):
    process, folder = long_run
    wait_until(folder, lambda now: now["step"])
    process.kill()
    process.wait()
    seen = status(folder)
    assert seen["state"] == "lost"
    assert f"process {process.pid} on" in seen["reason"]
    followed = finelaunch("logs", "run", "-f", cwd=folder)
    assert followed.returncode == 1
    assert "gone without a word" in followed.stderr


def test_a_run_that_fails_says_why(tmp_path):
    done = finelaunch("train", "imdb/smoke", "--on", "cpu", "--name", "run", "data.train.path=none.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    (tmp_path / "bad.jsonl").write_text('{"text": "x", "label": "pos"}\n{"text": "y"}\n')
    done = finelaunch("train", "imdb/smoke", "--on", "cpu", "--name", "run", "data.train.path=bad.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    seen = status(tmp_path)
    assert seen["state"] == "failed"
    assert "bad.jsonl" in seen["reason"]


def test_a_finished_run(tmp_path):
    done = finelaunch("train", "imdb/smoke", "--on", "cpu", "--name", "run", "training.max_steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen = status(tmp_path)
    assert (seen["state"], seen["step"], seen["steps"], seen["checkpoint_step"]) == ("finished", 3, 3, 3)
    followed = finelaunch("logs", "run", "-f", cwd=tmp_path)
    assert (followed.returncode, "runs/run: finished" in followed.stderr) == (0, True)
    assert "nothing to cancel; finished" in finelaunch("cancel", "run", cwd=tmp_path).stdout
    assert "no rank 1" in finelaunch("logs", "run", "--rank", 1, cwd=tmp_path).stderr


def test_what_is_no_run_is_one_sentence_and_exit_code_2(tmp_path):
    (tmp_path / "folder").mkdir()
    for words in (["status", "none"], ["status", "folder"], ["logs", "none"], ["cancel", "folder"]):
        done = finelaunch(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
    assert finelaunch("status", "run", "--all", cwd=tmp_path).returncode == 2
    assert finelaunch("status", cwd=tmp_path).stdout == "there are no runs below runs/\n"
    assert json.loads(finelaunch("status", "--all", "--json", cwd=tmp_path).stdout) == {"runs": []}


@pytest.mark.distributed
def test_of_several_ranks_the_one_that_was_killed_is_named(tmp_path):
    """Its victim, the first rank, says only that it lost a peer."""
    launcher = start("launch", "imdb/smoke", "--on", "cpu_ddp", "--name", "run", *LONG, cwd=tmp_path)
    try:
        seen = wait_until(tmp_path, lambda now: now["step"])
        assert (seen["state"], seen["engine"]["world_size"]) == ("running", 2)
        ranks = [child.pid for child in psutil.Process(launcher.pid).children()]
        assert len(ranks) == 2
        os.kill(next(pid for pid in ranks if pid != seen["holder"]["pid"]), signal.SIGKILL)
        assert launcher.wait(120) == 1
    finally:
        launcher.kill()
        launcher.communicate()
    seen = status(tmp_path)
    assert (seen["state"], seen["end"]["rank"], seen["end"]["kind"]) == ("failed", 1, "killed")
    assert "rank 1 on" in seen["reason"]
    assert "SIGKILL" in seen["reason"]
    assert [event["event"] for event in read_lines(tmp_path / "runs" / "run" / "events.jsonl")][-1] == "failed"
    assert finelaunch("logs", "run", "--rank", 1, cwd=tmp_path).stdout
