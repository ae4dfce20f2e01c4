"""The last act of a process that was asked to stop: done once and to its end, whichever thread comes to it first."""

import subprocess
import sys

PROGRAM = """
import os, signal, sys, time
from finelaunch.errors import Interrupted
from finelaunch.run import signals

signals.DEAF_SECONDS = 0.5
signals.listen()

def act(why):
    print("begins", why, flush=True)
    time.sleep(2.5)
    print("ends", flush=True)

signals.at_stop(act)
try:
    if sys.argv[1] == "main":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    with signals.held():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.5)  # a library at work; the watching thread has begun the act meanwhile
except Interrupted as stop:
    signals.leave(str(stop))
    assert signals.stays_at_stop()
    print("left", flush=True)
    os._exit(3)
"""


def run(mode: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr in ("", "stopped\n")
    return done.returncode, done.stdout.splitlines()


def test_the_act_of_the_main_thread_is_not_cut_off() -> None:
    assert run("main") == (3, ["begins SIGTERM", "ends", "left"])


def test_the_main_thread_waits_for_the_act_of_the_other() -> None:
    code, lines = run("held")
    assert lines[:2] == ["begins stopped", "ends"]
    assert code in (3, 75), "whichever thread comes first after it"
