"""The stack of every thread in the log of a rank that has shown no life for most of the collective time-out.

A collective that hangs ends the ranks that wait in it with a time-out, and says nothing of the one that they wait for.
Here every rank, the late one too, writes down where it stands before that happens. The timer is Python's own
:mod:`faulthandler`, a thread that needs no lock of the interpreter: it writes while the main thread is stuck in C.
"""

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SHARE = 0.9
"""After which share of the time-out the stacks are written."""
REST_SECONDS = 1.0
"""The timer is set anew at most once in this time: it costs a thread."""


@dataclass
class _Watch:
    file: IO[Any]
    after_seconds: float
    since: float = 0.0


_watch: _Watch | None = None


@contextmanager
def watching(log: Path, timeout_seconds: float) -> Iterator[None]:
    """Have the stacks of this process written to ``log`` whenever :func:`alive` was not called for so long.

    Args:
        log: The log file of this rank.
        timeout_seconds: The time-out of the collectives; the stacks come after nine tenths of it.
    """
    global _watch
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as file:
        _watch = _Watch(file, SHARE * timeout_seconds)
        try:
            alive()
            yield
        finally:
            _watch = None
            faulthandler.cancel_dump_traceback_later()


def alive() -> None:
    """Say that this process goes on; costs next to nothing, and is nothing where nobody watches."""
    if _watch is None:
        return
    now = time.monotonic()
    if now - _watch.since >= min(REST_SECONDS, 0.1 * _watch.after_seconds):
        _watch.since = now
        faulthandler.dump_traceback_later(_watch.after_seconds, repeat=False, exit=False, file=_watch.file)
