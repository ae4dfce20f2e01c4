"""Ranks as bare interpreters that run a few lines each, and what is left of them."""

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from finelaunch.errors import EXIT_STOPPED
from finelaunch.launch.processes import RankProcess

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
