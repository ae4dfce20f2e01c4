"""Starting the command and striking it: a process of one's own, or a launcher with its ranks."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from finelaunch.errors import FinelaunchError

READY_SECONDS = 300.0
"""How long the libraries may take to load."""

END_SECONDS = 30.0
"""How long to wait for a killed process."""


class Starts:
    """Starts the command, one at a time; nothing that is started outlives the ``with``.

    Args:
        log: Takes what the process that starts them says.
        forks: Fork starts from a process that has the libraries loaded, where a start asks for it.
    """

    def __init__(self, log: Path, forks: bool) -> None:
        self.log = log
        self.forks = forks
        self._channel, self._other = socket.socketpair()
        self._received = b""
        self._process: subprocess.Popen[bytes] | None = None
        self._current: Started | None = None
        self._is_ready = False

    def __enter__(self) -> "Starts":
        words = [sys.executable, "-m", "finelaunch.chaos.starter", str(self._other.fileno()), *["load"] * self.forks]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._other.fileno()],
                start_new_session=True,
            )
        self._other.close()
        self.hear("ready", READY_SECONDS)
        self._is_ready = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._current is not None:
            self._current.end()
        self._channel.close()
        if self._process is not None:
            if not self._is_ready:
                self._process.kill()
            try:
                self._process.wait(END_SECONDS)  # it ends what it has started first
            finally:
                self._process.kill()
                self._process.wait()

    def start(self, words: Sequence[str], output: Path, fresh: bool = False) -> "Started":
        """Start ``finelaunch`` with ``words``, all that it says appended to ``output``.

        Args:
            words: The verb and what follows it.
            output: A file.
            fresh: By a new interpreter, also where starts are forked.
        """
        request = {"words": list(words), "output": str(output), "fork": self.forks and not fresh}
        self._channel.sendall(json.dumps(request).encode() + b"\n")
        self._current = Started(self.hear("pid", END_SECONDS), lambda seconds: self.hear("code", seconds, False))
        return self._current

    def hear(self, key: str, seconds: float, required: bool = True) -> Any:
        """Return what comes under ``key`` within ``seconds``, else None.

        Raises:
            FinelaunchError: Nothing came and it was required, or the process that starts the trials is gone.
        """
        until = time.monotonic() + seconds
        while b"\n" not in self._received:
            remaining = max(until - time.monotonic(), 0.0)
            if not select.select([self._channel], [], [], remaining)[0]:
                if required:
                    raise FinelaunchError(f"chaos: no start within {seconds:.0f} s; see {self.log}")
                return None
            if not (part := self._channel.recv(65536)):
                raise FinelaunchError(f"chaos: the process that starts the trials has ended; see {self.log}")
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)[key]


class Started:
    """A command that was started.

    Args:
        pid: Its process, the first of its session and group.
        hear: Gives its exit code within so many seconds, negative for signals, else None.
    """

    def __init__(self, pid: int, hear: Callable[[float], int | None]) -> None:
        self.pid = pid
        self.code: int | None = None
        self._hear = hear

    def wait(self, seconds: float = 0.0) -> int | None:
        """Return the exit code if it has ended within ``seconds``."""
        if self.code is None:
            self.code = self._hear(seconds)
        return self.code

    def ranks(self) -> list[int]:
        """Return the processes of the ranks of a launcher, in the order of their numbers."""
        found = []
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.Error, ValueError, KeyError):
                found.append((int(child.environ()["RANK"]), child.pid))
        return [pid for _, pid in sorted(found)]

    def strike(self, number: int, whom: str, rank: int = 0) -> None:
        """Send a signal.

        Args:
            number: Which one.
            whom: ``process`` (or ``launcher``), its ``group``, one ``rank``, the ``ranks``, or ``all`` of a launch.
            rank: Which one, where one is meant.
        """
        pids = [self.pid] if whom in ("process", "launcher", "group", "all") else []
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if whom == "group":
                os.killpg(self.pid, number)
                return
            if whom in ("rank", "ranks", "all") and (ranks := self.ranks()):
                pids += ranks[rank : rank + 1] if whom == "rank" else ranks
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Kill it and all below it, where it still runs, and what it has left of its group."""
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(self.pid).children(recursive=True) if self.wait() is None else []
            for pid in [*([self.pid] if self.code is None else []), *(process.pid for process in below)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(END_SECONDS)
