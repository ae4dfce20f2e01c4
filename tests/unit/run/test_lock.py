"""The lock of a run directory, between real processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from finelaunch.errors import EXIT_BAD_INPUT, BadInput
from finelaunch.run import lock as lock_module
from finelaunch.run.lock import STALE_SECONDS, RunLock

OWNER = """
import sys, time
from pathlib import Path
from finelaunch.errors import FinelaunchError
from finelaunch.run.lock import RunLock
try:
    with RunLock(Path(sys.argv[1])):
        print("taken", flush=True)
        sys.stdin.readline()
except FinelaunchError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""
RACER = """
import os, sys, time
from pathlib import Path
from finelaunch.errors import FinelaunchError
from finelaunch.run.lock import RunLock
path, log, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def mark(sign):
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{sign} {os.getpid()}\\n".encode())
    os.close(fd)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(rounds):
    try:
        lock = RunLock(path).__enter__()
    except FinelaunchError:
        continue
    mark("+")
    time.sleep(0.001)
    mark("-")
    if os.getpid() % 2:
        lock.__exit__()
    else:
        os._exit(0) if _ == rounds - 1 else lock.__exit__()
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> int:
    process.communicate("\n", timeout=60)
    return process.returncode


def rewrite(path: Path, age: float = 0.0, **facts: Any) -> None:
    """Make the lock one of another owner with a heartbeat ``age`` seconds ago."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "token": "other", **facts}))
    os.utime(path, (time.time() - age, time.time() - age))


def left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "PATIENCE_SECONDS", 0.2)


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A lock file as its owner writes it, of which nobody beats the heart."""
    lock = RunLock(tmp_path / "lock.json")
    lock.__enter__()
    lock._released.set()
    return lock.path


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    first = start(OWNER, tmp_path / "new" / "lock.json")
    assert line_of(first) == "taken"
    second = start(OWNER, tmp_path / "new" / "lock.json")
    said = line_of(second)
    assert f"the run is being written by process {first.pid} on " in said
    assert "wait for it, stop it, or choose another --name" in said
    assert end(second) == EXIT_BAD_INPUT
    with pytest.raises(BadInput, match=f"process {first.pid}"):
        RunLock(tmp_path / "new" / "lock.json").__enter__()
    assert end(first) == 0
    assert left(tmp_path / "new") == []


def test_the_lock_of_a_killed_process_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    owner = start(OWNER, path)
    assert line_of(owner) == "taken"
    owner.send_signal(signal.SIGKILL)
    time.sleep(0.1)
    with RunLock(path):  # the killed one is a zombie still
        assert json.loads(path.read_text())["pid"] == os.getpid()
    end(owner)
    assert left(tmp_path) == []


def test_one_process_does_not_take_it_twice(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "lock.json")
    with lock, pytest.raises(BadInput, match=f"process {os.getpid()}"):
        RunLock(lock.path).__enter__()
    with lock:
        assert lock.path.exists()
    assert left(tmp_path) == []


def test_another_host_that_is_silent_has_lost_it(held: Path) -> None:
    rewrite(held, STALE_SECONDS + 5, host="node7", machine="other")
    with RunLock(held):
        assert json.loads(held.read_text())["token"] != "other"
    assert left(held.parent) == []


def test_another_host_that_beats_keeps_it(held: Path) -> None:
    rewrite(held, STALE_SECONDS - 20, host="node7", machine="other", pid=1, slurm_job="42")
    with pytest.raises(BadInput, match=r"process 1 on node7 \(Slurm job 42\), whose last sign of life is 4\d s old"):
        RunLock(held).__enter__()
    assert json.loads(held.read_text())["token"] == "other"


def test_a_container_with_the_same_name_is_another_machine(held: Path) -> None:
    rewrite(held, 5, machine="another boot", pid=2**22 + 1)
    with pytest.raises(BadInput, match="last sign of life"):
        RunLock(held).__enter__()


def test_a_process_id_used_again_does_not_keep_a_silent_lock(held: Path) -> None:
    rewrite(held, STALE_SECONDS + 5, pid=1, started=0.0)
    with RunLock(held):
        assert left(held.parent) == ["lock.json"]


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00\x00", '{"pid": "x"}', '{"pid": true, "host": 5}', "null"])
def test_a_lock_of_nonsense_is_broken_once_it_is_old(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lock.json"
    path.write_text(content)
    with pytest.raises(BadInput, match="is being written by"):
        RunLock(path).__enter__()
    os.utime(path, (time.time() - STALE_SECONDS - 5,) * 2)
    with RunLock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert left(tmp_path) == []


def test_a_breaker_that_was_killed_blocks_nobody_for_long(held: Path) -> None:
    rewrite(held, STALE_SECONDS + 5, machine="other")
    claim = RunLock(held)._claim(json.loads(held.read_text()))
    claim.touch()
    with pytest.raises(BadInput, match="is being written by"):
        RunLock(held).__enter__()
    os.utime(claim, (time.time() - STALE_SECONDS - 5,) * 2)
    with RunLock(held):
        pass
    assert left(held.parent) == []


def test_leaving_removes_no_lock_of_another(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "lock.json")
    with lock:
        rewrite(lock.path, pid=os.getpid())
    assert left(tmp_path) == ["lock.json"]


def test_leaving_after_the_folder_was_renamed_is_quiet(tmp_path: Path) -> None:
    with RunLock(tmp_path / "r" / "lock.json"):
        (tmp_path / "r").rename(tmp_path / "r.1")
    assert left(tmp_path) == ["r.1"]


def test_a_child_that_was_forked_does_not_give_it_back(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from finelaunch.run.lock import RunLock
path = Path(sys.argv[1])
with RunLock(path):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print(path.exists())
"""
    child = start(code, tmp_path / "lock.json")
    assert line_of(child) == "True"
    assert end(child) == 0


def test_the_heart_beats_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.02)
    path = tmp_path / "lock.json"
    before = threading.active_count()
    with RunLock(path):
        for lost in (False, True):
            if lost:  # as when a file system is away for a moment
                content = path.read_text()
                path.unlink()
                time.sleep(0.1)
                path.write_text(content)
            os.utime(path, (0, 0))
            time.sleep(0.3)
            assert path.stat().st_mtime > time.time() - 5
        rewrite(path, 1000)
        time.sleep(0.3)
        assert path.stat().st_mtime < time.time() - 900
    time.sleep(0.1)
    assert threading.active_count() == before


def test_a_lock_that_was_taken_since_it_was_judged_is_not_broken(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(held, STALE_SECONDS + 5, machine="other")
    judge, faster = lock_module._is_gone, RunLock(held)

    def judge_then_be_late(owner: dict[str, Any], silence: float) -> bool:
        monkeypatch.setattr(lock_module, "_is_gone", judge)
        gone = judge(owner, silence)
        faster.__enter__()
        return gone

    monkeypatch.setattr(lock_module, "_is_gone", judge_then_be_late)
    with pytest.raises(BadInput, match=f"process {os.getpid()}"):
        RunLock(held).__enter__()
    assert json.loads(held.read_text()) == faster._owner
    faster.__exit__()
    assert left(held.parent) == []


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_race_one_owns_it(tmp_path: Path, held: Path, stale: bool) -> None:
    rewrite(held, 500, machine="other") if stale else held.unlink()
    log = tmp_path / "log"
    racers = [start(RACER, held, log, 25) for _ in range(5)]
    assert [line_of(racer) for racer in racers] == ["ready"] * 5
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("\n")
        racer.stdin.flush()
    assert [end(racer) for racer in racers] == [0] * 5
    marks = log.read_text().split("\n")[:-1]
    assert len(marks) >= 2
    for taken, given in zip(marks[::2], marks[1::2], strict=True):
        assert taken[0] == "+"
        assert given == taken.replace("+", "-")


def test_a_job_that_came_back_waits_for_the_silence_of_the_start_before(
    held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node failed: nobody says that it is gone, and after a minute without a heartbeat it is."""
    monkeypatch.setattr(lock_module, "STALE_SECONDS", 3.0)
    rewrite(held, age=0.0, machine="another boot", host="node7")
    with pytest.raises(BadInput, match="node7"), RunLock(held):
        pass
    with RunLock(held, waits=True):
        assert json.loads(held.read_text())["pid"] == os.getpid()


def test_a_job_that_waits_is_refused_where_the_other_one_lives(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 1.5)
    rewrite(held, age=0.0, machine="another boot", host="node7")
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.2):
            os.utime(held)

    threading.Thread(target=beat, daemon=True).start()
    try:
        with pytest.raises(BadInput, match="node7"), RunLock(held, waits=True):
            pass
    finally:
        over.set()
