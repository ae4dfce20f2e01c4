"""A lock that keeps two writers out of one run directory, on shared file systems too.

The owner renews a heartbeat; a lock is broken when its owner is gone: its process on this host, or its heartbeat where it
is on another.
"""

import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from finelaunch.errors import BadInput, Problem

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class RunLock:
    """Held from ``__enter__`` to ``__exit__``.

    Args:
        path: The lock file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._released = threading.Event()
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        }

    def __enter__(self) -> "RunLock":
        """Take the lock.

        Raises:
            BadInput: Another process that is alive holds it.
        """
        for _ in range(10):
            try:
                with self.path.open("x", encoding="utf-8") as file:
                    json.dump(self._content(), file)
            except FileExistsError:
                self._break_if_stale()
            else:
                threading.Thread(target=self._beat, name="run-lock", daemon=True).start()
                return self
        raise BadInput(
            Problem(str(self.path), "", "cannot be taken: others take it at the same moment", "", "try again")
        )

    def __exit__(self, *_: object) -> None:
        """Give the lock back."""
        self._released.set()
        if self._read().get("pid") == self._owner["pid"]:
            self.path.unlink(missing_ok=True)

    def _content(self) -> dict[str, Any]:
        return {**self._owner, "heartbeat": time.time()}

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}
        return content if isinstance(content, dict) else {}

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            os.utime(self.path) if self.path.exists() else None

    def _break_if_stale(self) -> None:
        owner = self._read()
        if owner.get("host") == self._owner["host"]:
            gone = not _alive(owner)
        else:
            gone = self._seconds_since_heartbeat() > STALE_SECONDS
        if not gone:
            who = f"process {owner.get('pid')} on {owner.get('host')}"
            job = f" (Slurm job {owner['slurm_job']})" if owner.get("slurm_job") else ""
            what = f"the run is being written by {who}{job}"
            raise BadInput(Problem(str(self.path), "", what, "", "wait for it, stop it, or choose another --name"))
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        aside.unlink()

    def _seconds_since_heartbeat(self) -> float:
        """Return the age of the lock by the clock of the file system, which all hosts share."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.path.parent) as now:
                return os.stat(now.name).st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0


def _alive(owner: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(int(owner["pid"]))
        return abs(process.create_time() - float(owner["started"])) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except (KeyError, ValueError, TypeError, psutil.Error):
        return False
