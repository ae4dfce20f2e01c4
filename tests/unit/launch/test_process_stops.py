"""Ranks that are stopped, by a signal to their launcher or by its clock: real processes, and time to save."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from unit.launch.scene import DEAF, PATIENCE_SECONDS, SLEEP, Scene, saving, until

from finelaunch.launch.processes import STOP_SIGNALS, Ending, run_ranks
from finelaunch.run.signals import SECOND_PRESS_SECONDS

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
