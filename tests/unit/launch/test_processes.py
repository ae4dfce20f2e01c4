"""Ranks as real processes: bare interpreters that run a few lines each."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from finelaunch.errors import EXIT_STOPPED, FinelaunchError
from finelaunch.launch import processes
from finelaunch.launch.processes import STOP_SIGNALS, Ending, RankProcess, run_ranks, tail
from finelaunch.run.signals import SECOND_PRESS_SECONDS

PATIENCE_SECONDS = 30.0

SLEEP = "import time; time.sleep(300)"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(300)"
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
SAVE = """
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", sys.argv[1]])
def save(number, frame):
    time.sleep(SECONDS)
    assert worker.poll() is None, "the worker was ended before its rank had saved"
    (folder / f"saved-{rank}").touch()
    sys.exit(CODE)
signal.signal(signal.SIGTERM, save)
ready()
while True:
    time.sleep(0.05)
"""
PRELUDE = """
import os, signal, subprocess, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[2]), os.environ["RANK"]
def ready():
    (folder / f"ready-{rank}").touch()
def wait(*names):
    while not all((folder / name).exists() for name in names):
        time.sleep(0.01)
"""
LAUNCHER = """
import dataclasses, json, signal, sys
from pathlib import Path
from finelaunch.launch.processes import RankProcess, run_ranks
from finelaunch.run import log
log.set_up()
given = json.loads(Path(sys.argv[1]).read_text())
signal.signal(signal.SIGHUP, signal.SIG_IGN if given["nohup"] else signal.SIG_DFL)
ranks = [RankProcess(one["rank"], tuple(one["argv"]), one["environment"], Path(one["log"])) for one in given["ranks"]]
ending = run_ranks(ranks, **given["limits"])
Path(sys.argv[2]).write_text(json.dumps(dataclasses.asdict(ending)))
sys.exit(ending.exit_code)
"""


def saving(seconds: float = 0.2, code: int = EXIT_STOPPED) -> str:
    """Return the code of a rank with a worker of its own that takes ``seconds`` to save after SIGTERM."""
    return SAVE.replace("SECONDS", str(seconds)).replace("CODE", str(code))


def until(condition: Callable[[], Any], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up, f"waited for {what}"
        time.sleep(0.02)


class Scene:
    """A folder, and a marker in the command of every process started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = uuid.uuid4().hex

    def ranks(self, *codes: str, first: int = 0) -> list[RankProcess]:
        return [
            RankProcess(
                rank,
                (sys.executable, "-c", PRELUDE + code, self.marker, str(self.folder)),
                {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(len(codes))},
                self.folder / "logs" / f"rank-{rank}.log",
            )
            for rank, code in enumerate(codes, first)
        ]

    def survivors(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self.marker in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def all_gone(self) -> None:
        """Wait for the children of ranks, which others than we have killed or reaped."""
        give_up = time.monotonic() + 5.0
        while left := self.survivors():
            assert time.monotonic() < give_up, f"left running: {[(one.pid, one.cmdline()[2]) for one in left]}"
            time.sleep(0.05)

    def there(self, kind: str, *ranks: int) -> bool:
        return all((self.folder / f"{kind}-{rank}").exists() for rank in ranks)


class Launcher:
    """A launcher in a process of its own, the leader of the foreground group as on a terminal."""

    def __init__(self, scene: Scene, codes: Sequence[str], nohup: bool = False, **limits: float) -> None:
        self.scene, self.num_ranks = scene, len(codes)
        self.result = scene.folder / "ending.json"
        ranks = [
            {"rank": one.rank, "argv": one.argv, "environment": one.environment, "log": str(one.log)}
            for one in scene.ranks(*codes)
        ]
        plan = scene.folder / "plan.json"
        plan.write_text(json.dumps({"ranks": ranks, "limits": limits, "nohup": nohup}), encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(plan), str(self.result)],
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self.stderr = self.process.stderr
        until(lambda: scene.there("ready", *range(self.num_ranks)), "the ranks")

    def send(self, number: int) -> None:
        """Send a signal as a terminal does: to all of the launcher's group."""
        os.killpg(self.process.pid, number)

    def until_stopping(self) -> None:
        assert b"second Ctrl-C" in self.stderr.readline()

    def ending(self) -> Ending:
        code = self.process.wait(PATIENCE_SECONDS)
        ending = Ending(**json.loads(self.result.read_text(encoding="utf-8")))
        assert code == ending.exit_code
        self.scene.all_gone()
        return ending


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    for process in scene.survivors():
        process.kill()


@pytest.fixture
def launch(scene: Scene) -> Iterator[Callable[..., Launcher]]:
    started: list[Launcher] = []

    def start(*codes: str, **limits: float) -> Launcher:
        started.append(Launcher(scene, codes, **limits))
        return started[-1]

    yield start
    for launcher in started:
        launcher.process.kill()
        launcher.process.wait()
        launcher.stderr.close()


# Ends without a stop


def test_all_end_well_and_each_has_its_environment_and_log(scene: Scene) -> None:
    say = "print(rank, os.environ['WORLD_SIZE'], sys.stdin.read() == '', os.getpgid(0) == os.getpid())"
    for _ in range(2):
        ending = run_ranks(scene.ranks(say, f"{say}; print('oh', file=sys.stderr)"), stop_grace_seconds=5)
        assert ending == Ending(0, None, "all ranks ended well", 0.0)
    assert tail(scene.folder / "logs/rank-0.log") == ["0 2 True True"] * 2
    assert sorted(tail(scene.folder / "logs/rank-1.log")) == ["1 2 True True"] * 2 + ["oh"] * 2


def test_rank_without_a_log_writes_to_the_terminal(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    (rank,) = scene.ranks("print('here')")
    run_ranks([RankProcess(0, rank.argv, rank.environment, None)], stop_grace_seconds=5)
    assert capfd.readouterr().out == "here\n"


def test_the_environment_is_the_whole_one(scene: Scene) -> None:
    code = "import os; print(sorted(os.environ))"
    rank = RankProcess(0, (sys.executable, "-c", code), {"ONLY": "1", "LC_CTYPE": "C.UTF-8"}, scene.folder / "log")
    run_ranks([rank], stop_grace_seconds=5)
    assert tail(scene.folder / "log") == ["['LC_CTYPE', 'ONLY']"]


def test_a_rank_that_ends_well_early_is_no_reason_to_end_the_others(scene: Scene) -> None:
    late = "time.sleep(1); (folder / 'late').touch()"
    assert run_ranks(scene.ranks("", late, ""), stop_grace_seconds=5).exit_code == 0
    assert (scene.folder / "late").exists()


def test_the_children_of_a_rank_end_with_it(scene: Scene) -> None:
    spawn = f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}, sys.argv[1]])"
    assert run_ranks(scene.ranks(spawn, spawn), stop_grace_seconds=5).exit_code == 0
    scene.all_gone()


def test_a_killed_rank_ends_the_others_and_is_named(scene: Scene) -> None:
    ending = run_ranks(scene.ranks(SLEEP, f"wait(); {KILLED}", SLEEP), stop_grace_seconds=300)
    assert (ending.exit_code, ending.rank, ending.reason) == (1, 1, "killed by SIGKILL")
    assert 0 < ending.seconds_to_end < 15
    scene.all_gone()


def test_peers_that_ignore_sigterm_are_killed(scene: Scene) -> None:
    ranks = scene.ranks(DEAF, f"wait('ready-0', 'ready-2'); {KILLED}", DEAF)
    ending = run_ranks(ranks, stop_grace_seconds=300, end_seconds=1)
    assert (ending.exit_code, ending.rank, ending.reason) == (1, 1, "killed by SIGKILL")
    assert 1 <= ending.seconds_to_end < 15
    scene.all_gone()


@pytest.mark.parametrize(("code", "answer"), [(1, 1), (2, 2), (3, 3), (17, 1)])
def test_the_exit_code_of_the_first_rank_that_failed(scene: Scene, code: int, answer: int) -> None:
    ending = run_ranks(scene.ranks(SLEEP, f"sys.exit({code})"), stop_grace_seconds=300)
    assert (ending.exit_code, ending.rank, ending.reason) == (answer, 1, f"exit code {code}")
    scene.all_gone()


def test_what_the_peers_do_afterwards_changes_nothing(scene: Scene) -> None:
    ending = run_ranks(scene.ranks(saving(0.2, 3), "wait('ready-0'); sys.exit(2)"), stop_grace_seconds=300)
    assert (ending.exit_code, ending.rank, ending.reason) == (2, 1, "exit code 2")


def test_of_several_dead_the_killed_one_is_named(scene: Scene) -> None:
    class Slow(list[RankProcess]):
        """Ranks of which the last is given when the others are dead, so that one look finds them all."""

        def __iter__(self) -> Iterator[RankProcess]:
            yield from self[:-1]
            until(lambda: not scene.survivors(), "the deaths")
            yield self[-1]

    ending = run_ranks(Slow(scene.ranks("sys.exit(1)", "sys.exit(75)", KILLED, SLEEP)), stop_grace_seconds=300)
    assert (ending.exit_code, ending.rank, ending.reason) == (1, 2, "killed by SIGKILL")


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="there are no such signals")
def test_signals_without_a_name(scene: Scene) -> None:
    ending = run_ranks(scene.ranks(f"os.kill(os.getpid(), {signal.SIGRTMIN + 3})"), stop_grace_seconds=5)
    assert (ending.exit_code, ending.reason) == (1, f"killed by signal {signal.SIGRTMIN + 3}")


def test_a_rank_that_stops_by_itself_stops_all(scene: Scene) -> None:
    ending = run_ranks(scene.ranks(saving(), "wait('ready-0'); sys.exit(75)", saving(0, 0)), stop_grace_seconds=20)
    assert (ending.exit_code, ending.rank, ending.reason) == (75, None, "rank 1 stopped by itself")
    assert scene.there("saved", 0)
    scene.all_gone()


def test_a_rank_that_cannot_be_started_ends_those_before_it(scene: Scene) -> None:
    ranks = scene.ranks(SLEEP, SLEEP)
    ranks.append(RankProcess(2, ("/nowhere/python",), {}, None))
    with pytest.raises(FinelaunchError, match=r"rank 2 could not be started: .*No such file.*'/nowhere/python'"):
        run_ranks(ranks, stop_grace_seconds=300)
    scene.all_gone()


def test_a_fault_of_ours_leaves_nothing_running(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "_first_failure", fail)
    with pytest.raises(KeyboardInterrupt):
        run_ranks(scene.ranks(DEAF, "wait('ready-0')"), stop_grace_seconds=300)
    scene.all_gone()


def test_handlers_are_as_before(scene: Scene) -> None:
    numbers = (*STOP_SIGNALS, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    run_ranks(scene.ranks(""), stop_grace_seconds=5)
    with pytest.raises(FinelaunchError):
        run_ranks([RankProcess(0, ("/nowhere/python",), {}, None)], stop_grace_seconds=5)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_only_the_main_thread_can_launch(scene: Scene) -> None:
    raised = []

    def run() -> None:
        try:
            run_ranks(scene.ranks(SLEEP), stop_grace_seconds=5)
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert len(raised) == 1
    assert not scene.survivors()


# Stops


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_leaves_time_to_save(scene: Scene, launch: Callable[..., Launcher], number: signal.Signals) -> None:
    launcher = launch(saving(1.0), saving(0.1), stop_grace_seconds=20)
    launcher.send(number)
    ending = launcher.ending()
    assert (ending.exit_code, ending.rank, ending.reason) == (75, None, f"stopped by {number.name}")
    assert 1 <= ending.seconds_to_end < 20
    assert scene.there("saved", 0, 1)


def test_time_that_is_up_is_a_stop(scene: Scene) -> None:
    ending = run_ranks(scene.ranks(saving(), saving()), stop_grace_seconds=20, stop_seconds=4)
    assert (ending.exit_code, ending.rank, ending.reason) == (
        75,
        None,
        "stopped after 4 s, in time for launch.max_run_seconds",
    )
    assert scene.there("saved", 0, 1)
    scene.all_gone()


def test_ranks_that_do_not_stop_are_killed(launch: Callable[..., Launcher]) -> None:
    launcher = launch(saving(), DEAF, stop_grace_seconds=2)
    launcher.send(signal.SIGTERM)
    ending = launcher.ending()
    assert (ending.exit_code, ending.rank, ending.reason) == (1, 1, "did not stop within 2 s and was killed")
    assert 2 <= ending.seconds_to_end < 15


def test_a_second_interrupt_kills_at_once(scene: Scene, launch: Callable[..., Launcher]) -> None:
    launcher = launch(saving(300), DEAF, stop_grace_seconds=300)
    launcher.send(signal.SIGINT)
    launcher.until_stopping()
    time.sleep(SECOND_PRESS_SECONDS + 0.2)
    launcher.send(signal.SIGINT)
    ending = launcher.ending()
    assert (ending.exit_code, ending.rank, ending.reason) == (1, 0, "killed by a second Ctrl-C")
    assert ending.seconds_to_end < 15


def test_an_interrupt_that_a_wrapper_passes_on_again_is_one(scene: Scene, launch: Callable[..., Launcher]) -> None:
    launcher = launch(saving(1.0), saving(1.0), stop_grace_seconds=20)
    for _ in range(3):
        launcher.send(signal.SIGINT)
        time.sleep(0.02)
    assert launcher.ending().exit_code == 75
    assert scene.there("saved", 0, 1)


def test_other_signals_after_a_stop_change_nothing(scene: Scene, launch: Callable[..., Launcher]) -> None:
    launcher = launch(saving(1.5), saving(1.5), stop_grace_seconds=20)
    launcher.send(signal.SIGUSR2)
    launcher.until_stopping()
    time.sleep(0.5)
    launcher.send(signal.SIGTERM)
    assert launcher.ending().reason == "stopped by SIGUSR2"
    assert scene.there("saved", 0, 1)


@pytest.mark.parametrize(
    ("codes", "answer"),
    [
        ((saving(0, 0), saving(0, 0)), (0, None, "all ranks ended well")),
        ((saving(0, 0), saving(0, 75)), (75, None, "stopped by SIGTERM")),
        (("ready(); " + SLEEP, saving()), (75, None, "stopped by SIGTERM")),
        ((saving(), saving(0, 1)), (1, 1, "exit code 1 (stopped by SIGTERM)")),
        ((saving(), DEAF, saving(0, 3)), (3, 2, "exit code 3 (stopped by SIGTERM)")),
        (
            ("ready(); " + SLEEP, "ready(); " + SLEEP),
            (1, None, "stopped by SIGTERM, and no rank said by exit code 75 that it saved"),
        ),
    ],
    ids=["all end well", "one saves", "one without a handler", "one fails", "one fails, one hangs", "no handlers"],
)
def test_the_answer_to_a_stop(
    launch: Callable[..., Launcher], codes: tuple[str, ...], answer: tuple[int, int | None, str]
) -> None:
    launcher = launch(*codes, stop_grace_seconds=2 if DEAF in codes else 20)
    launcher.send(signal.SIGTERM)
    ending = launcher.ending()
    assert (ending.exit_code, ending.rank, ending.reason) == answer


def test_a_closed_terminal_does_not_cost_the_save(scene: Scene, launch: Callable[..., Launcher]) -> None:
    launcher = launch(saving(), saving(), stop_grace_seconds=20)
    launcher.stderr.close()
    launcher.send(signal.SIGHUP)
    assert launcher.ending().exit_code == 75
    assert scene.there("saved", 0, 1)


def test_nohup_outlives_its_terminal(scene: Scene, launch: Callable[..., Launcher]) -> None:
    launcher = launch(saving(), nohup=True, stop_grace_seconds=20)
    launcher.send(signal.SIGHUP)
    launcher.send(signal.SIGTERM)
    assert launcher.ending().reason == "stopped by SIGTERM"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_ranks_of_a_launcher_that_was_killed_stop(scene: Scene, launch: Callable[..., Launcher]) -> None:
    saves_alone = saving().replace("sys.exit", "worker.kill(); sys.exit")
    launcher = launch("ready(); " + SLEEP, saves_alone, stop_grace_seconds=20)
    launcher.process.kill()
    launcher.process.wait()
    until(lambda: scene.there("saved", 1), "the save")
    scene.all_gone()


# Logs


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"one", ["one"]),
        (b"one\ntwo\n\nfour\n", ["two", "", "four"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"10%\r20%\r30%\nend\n", ["30%", "end"]),
        (b"\xff\xfe broken \xe4\n", ["\ufffd\ufffd broken \ufffd"]),
        (b"a\n" * 500_000 + b"last\n", ["a", "a", "last"]),
        (b"x" * 1_000_000, ["x" * 65_536]),
        (b"x" * 1_000_000 + b"\nlast\n", ["last"]),
    ],
    ids=["empty", "no end", "more", "dos", "bar", "broken", "many lines", "one long line", "long line before"],
)
def test_tail(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    (tmp_path / "log").write_bytes(content)
    assert tail(tmp_path / "log", 3) == lines
    assert tail(tmp_path / "log", 0) == []


def test_tail_of_no_file(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == []
