"""What a process does about signals, in real processes that get real ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from finelaunch.run import signals

BEGIN = """
import os, sys, time
from finelaunch.errors import Interrupted
from finelaunch.run import signals
signals.listen()
signals.before_end(lambda why: print("last words", flush=True))
def wait(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
"""
RAISES = """
try:
    print("ready", flush=True)
    wait(60)
except Interrupted as stop:
    print("raised", stop, flush=True)
    wait(1.5)
print("requested", signals.requested(), flush=True)
sys.exit(75)
"""
NOTES = """
signals.note_only(60)
print("ready", flush=True)
while signals.requested() is None:
    time.sleep(0.02)
print("noted", signals.requested(), flush=True)
wait(1.5)
print("saved", flush=True)
sys.exit(75)
"""
DEAF = """
import ctypes
signals.DEAF_SECONDS = 1.0
signals.hold()
mutex = ctypes.create_string_buffer(64)
lock = ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
print("ready", flush=True)
lock(mutex)
"""
"""Waits for ever outside of Python, as in a collective: handlers do not run."""
NEVER_SAVES = """
signals.note_only(1.0)
print("ready", flush=True)
wait(300)
"""
BUSY_SAVING = """
signals.note_only(60)
print("ready", flush=True)
wait(300)
"""
IGNORES = """
signals.listen()
signals.ignore()
print("ready", flush=True)
wait(1.5)
print("done", flush=True)
"""
TIMED = """
signals.note_only(60)
signals.stop_after(2.0)
print("ready", flush=True)
while signals.requested() is None:
    time.sleep(0.02)
print("noted", signals.requested(), flush=True)
"""
FORKS = """
if os.fork() == 0:
    signals.listen()
    signals.note_only(60)
    os.kill(os.getpid(), 15)
    print("child", signals.requested(), flush=True)
    os._exit(0)
os.wait()
print("parent", signals.requested(), flush=True)
"""


class Process:
    """A Python process that says when it is ready."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", BEGIN + code], stdout=subprocess.PIPE, text=True)
        self.output: IO[str] = self.process.stdout  # type: ignore[assignment]

    def until(self, line: str) -> None:
        while (said := self.output.readline().strip()) != line:
            assert said, self.process.wait()

    def send(self, *numbers: int, pause: float = 0.1) -> None:
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(pause)

    def end(self) -> tuple[int, list[str]]:
        said = self.output.read().splitlines()
        return self.process.wait(timeout=60), said


@pytest.fixture
def start() -> Iterator[Any]:
    begun: list[Process] = []

    def make(code: str) -> Process:
        begun.append(Process(code))
        return begun[-1]

    yield make
    for one in begun:
        one.process.kill()
        one.process.wait()
        one.output.close()


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_before_training_the_first_signal_is_raised_and_the_others_absorbed(number: signal.Signals, start: Any) -> None:
    process = start(RAISES)
    process.until("ready")
    process.send(number, signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    assert process.end() == (75, [f"raised {number.name}", f"requested {number.name}"])


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_in_training_signals_are_noted_and_repeated_ones_absorbed(number: signal.Signals, start: Any) -> None:
    process = start(NOTES)
    process.until("ready")
    process.send(number, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, number, signal.SIGINT)
    assert process.end() == (75, [f"noted {number.name}", "saved"])


def test_a_second_ctrl_c_ends_at_once_and_a_double_press_does_not(start: Any) -> None:
    process = start(BUSY_SAVING)
    process.until("ready")
    process.send(signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    time.sleep(1.0)
    assert process.process.poll() is None
    time.sleep(signals.SECOND_PRESS_SECONDS)
    process.send(signal.SIGTERM, signal.SIGUSR2)
    assert process.process.poll() is None, "only Ctrl-C means it"
    process.send(signal.SIGINT)
    assert process.end() == (75, ["last words"])


@pytest.mark.parametrize("code", [DEAF, NEVER_SAVES])
def test_who_cannot_act_on_a_signal_is_ended_with_its_last_words(code: str, start: Any) -> None:
    process = start(code)
    process.until("ready")
    process.send(signal.SIGTERM)
    assert process.end() == (75, ["last words"])


def test_a_finished_process_ignores_them(start: Any) -> None:
    process = start(IGNORES)
    process.until("ready")
    process.send(*signals.STOP_SIGNALS)
    assert process.end() == (0, ["done"])


def test_time_that_is_up_is_named_and_counted_from_the_start_of_the_process(start: Any) -> None:
    process = start(TIMED)
    process.until("ready")
    assert process.end() == (0, ["noted max_run_seconds"])


def test_a_forked_child_hears_for_itself(start: Any) -> None:
    assert start(FORKS).end() == (0, ["child SIGTERM", "parent None"])


def test_the_command_hears_from_its_first_line_on(tmp_path: Path) -> None:
    """A signal within the imports is a stop, not a death."""
    for delay in (0.15, 0.4, 3.0):
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "finelaunch",
                "train",
                "imdb/smoke",
                "--on",
                "cpu",
                "--run-dir",
                str(tmp_path / "r"),
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        time.sleep(delay)
        os.kill(process.pid, signal.SIGUSR2)
        _, said = process.communicate(timeout=120)
        assert process.returncode in (75, -signal.SIGUSR2), said
        if delay > 1.0:  # before it is the interpreter that starts
            assert process.returncode == 75
        assert b"Traceback" not in said
