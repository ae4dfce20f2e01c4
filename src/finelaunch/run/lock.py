"""A lock that keeps two writers out of one run directory, on shared file systems too.

The lock is a file that is created exclusively and whose time of change is its owner's heartbeat. It is broken when the
owner is gone: its process, where that is a process of this machine, else its heartbeat. A lock is only ever removed by
whoever holds the claim on that very owner, so that of many that find it stale one breaks it and none breaks its
successor.
"""

import contextlib
import hashlib
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from finelaunch.errors import BadInput, FinelaunchError, Problem
from finelaunch.run.files import full_disk_text, is_full_disk, room_for
from finelaunch.run.log import say

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
PATIENCE_SECONDS = 2.0
"""How long to wait for others that take, break or release the lock at this moment."""


class RunLock:
    """Held from ``__enter__`` to ``__exit__``.

    Args:
        path: The lock file; its folder is made where it is missing.
        waits: Wait for a silent owner until its silence means that it is gone, instead of refusing at once: a job that
            Slurm has put on another node comes back before that of the start before is known.
    """

    def __init__(self, path: Path, waits: bool = False) -> None:
        self.path = path
        self.waits = waits
        self._owner: dict[str, Any] = {}
        self._waited_for: Any = None
        self._silent_until = 0.0
        self._released = threading.Event()

    def __enter__(self) -> "RunLock":
        """Take the lock.

        Raises:
            BadInput: Another process that is alive holds it, or the folder cannot be written.
            FinelaunchError: The disk is full.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._take()
        except OSError as error:
            if is_full_disk(error):
                raise FinelaunchError(full_disk_text(error)) from None
            what = f"cannot be a run directory: {error.strerror}"
            raise BadInput(Problem(str(self.path.parent), "", what, "", "choose another --run-dir")) from None
        self._released = threading.Event()
        threading.Thread(target=self._beat, name="run-lock", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back, unless it was taken from this process."""
        if self._owner.get("pid") == os.getpid():
            self._released.set()
            with contextlib.suppress(OSError):  # the end of this process frees it anyway
                self._remove(self._owner)

    def _take(self) -> None:
        owner = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "token": uuid.uuid4().hex,
        }
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self._write(json.dumps(owner))
                self._owner = owner
                return
            except FileExistsError:
                other, silence = self._read(), self._seconds_unchanged(self.path)
            gone = _is_gone(other, silence)
            if gone:
                self._remove(other)
            if self.waits and other and not gone and self._is_silent(other, silence):
                give_up = time.monotonic() + PATIENCE_SECONDS
                continue
            if (other and not gone) or time.monotonic() > give_up:
                raise BadInput(_held(self.path, other, silence))
            time.sleep(0.02)

    def _is_silent(self, owner: dict[str, Any], silence: float) -> bool:
        """Return whether ``owner`` gives no sign of life for longer than it could; waits a moment where that is so."""
        if owner.get("machine") == _machine() or silence > STALE_SECONDS:
            return False
        if self._waited_for != owner.get("token"):
            self._waited_for, self._silent_until = owner.get("token"), time.monotonic() + 2 * HEARTBEAT_SECONDS
            say(f"{self.path}: waiting for {owner.get('host')} to give a sign of life, or to have been silent for long")
        if silence < HEARTBEAT_SECONDS and time.monotonic() > self._silent_until:
            return False  # it is alive
        time.sleep(1.0)
        return True

    def _write(self, text: str) -> None:
        """Create the lock, or leave none: one without an owner, on a disk that is full, would keep everybody out."""
        file = self.path.open("x", encoding="utf-8")
        try:
            with room_for(self.path, len(text)), file:
                file.write(text)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise

    def _read(self) -> dict[str, Any]:
        """Return who holds the lock; empty where nobody does or it is just being written."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def _seconds_unchanged(self, path: Path) -> float:
        """Return the age of ``path`` by the clock of the file system, which all hosts share; 0 where it is gone."""
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent) as now:
                return os.stat(now.name).st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _beat(self) -> None:
        released, owner = self._released, self._owner
        while not released.wait(HEARTBEAT_SECONDS):
            try:
                if self._read() == owner:
                    os.utime(self.path)
            except OSError:  # a file system that is away for a moment
                continue

    def _claim(self, owner: dict[str, Any]) -> Path:
        """Return the file that whoever removes the lock of ``owner`` creates first."""
        digest = hashlib.sha256(json.dumps(owner, sort_keys=True).encode()).hexdigest()
        return self.path.with_name(f".{self.path.name}.{digest[:16]}")

    def _remove(self, owner: dict[str, Any]) -> None:
        """Remove the lock of ``owner`` and of nobody else; do nothing while another process removes it."""
        claim = self._claim(owner)
        try:
            claim.touch(exist_ok=False)
        except FileNotFoundError:  # the whole folder was set aside
            return
        except FileExistsError:
            if self._seconds_unchanged(claim) > STALE_SECONDS:
                claim.unlink(missing_ok=True)
            return
        try:
            # An empty lock may be one that its owner is just writing.
            if self._read() == owner and (owner or _is_gone(owner, self._seconds_unchanged(self.path))):
                self.path.unlink()
        finally:
            claim.unlink(missing_ok=True)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Args:
        host: The name of its machine.
        pid: Its process there; None where the lock is just being written.
        slurm_job: The job it belongs to.
        is_here: Whether it is a process of this machine.
        is_gone: Whether it has ended without giving the lock back.
        silence_seconds: Since its last sign of life.
    """

    host: str
    pid: int | None
    slurm_job: str | None
    is_here: bool
    is_gone: bool
    silence_seconds: float


def holder(path: Path) -> Holder | None:
    """Return who holds the lock at ``path``, or None where nobody does; nothing is changed by it."""
    lock = RunLock(path)
    owner = lock._read()
    try:
        silence = lock._seconds_unchanged(path)
    except OSError:  # a folder that may only be read; the clocks of two machines may differ
        try:
            silence = time.time() - path.stat().st_mtime
        except OSError:
            return None
    if not os.path.isfile(path):
        return None
    pid, job = owner.get("pid"), owner.get("slurm_job")
    return Holder(
        str(owner.get("host", "an unknown machine")),
        pid if type(pid) is int and pid > 0 else None,
        str(job) if job else None,
        owner.get("machine") == _machine(),
        _is_gone(owner, silence),
        max(silence, 0.0),
    )


def _held(path: Path, owner: dict[str, Any], silence: float) -> Problem:
    who = f"process {owner['pid']} on {owner.get('host')}" if "pid" in owner else "another process"
    job = f" (Slurm job {owner['slurm_job']})" if owner.get("slurm_job") else ""
    sign = f", whose last sign of life is {max(silence, 0):.0f} s old" if owner.get("machine") != _machine() else ""
    allowed = f"after {STALE_SECONDS:.0f} s without one it counts as gone" if sign else ""
    remedy = "wait for it, stop it, or choose another --name"
    return Problem(str(path), "", f"the run is being written by {who}{job}{sign}", allowed, remedy)


def _is_gone(owner: dict[str, Any], silence: float) -> bool:
    """Return whether ``owner`` has ended: certain for a process of this machine, by its silence for any other."""
    pid = owner.get("pid")
    if owner.get("machine") == _machine() and type(pid) is int and pid > 0:
        try:
            if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
            if abs(psutil.Process(pid).create_time() - owner["started"]) < 1.0:
                return False
        except (psutil.Error, KeyError, TypeError, OverflowError):  # a process that may not be looked at
            pass
    return silence > STALE_SECONDS


def _machine() -> str:
    """Return what names the space of process ids: two containers may share a host's name and not its processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
