"""Ctrl-C and SIGTERM: an exception where Python can raise one, an end where it cannot.

A rank that waits for others inside a library (at the start, in a collective) hears no signal in Python until the wait
is over, which may be many minutes. The signal's number is then still written to a pipe, which a thread reads.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

from finelaunch.errors import EXIT_STOPPED, Interrupted

DEAF_SECONDS = 10.0
"""How long a signal may go unheard before the process is ended from outside of the main thread."""

_heard = threading.Event()
_last_words: list[Callable[[], None]] = []


def listen() -> None:
    """Raise :class:`Interrupted` in the main thread at SIGINT and SIGTERM, or end the process where it is deaf."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()


def before_end(call: Callable[[], None]) -> None:
    """Have ``call`` made before this process is ended where it is deaf; each call replaces the one before."""
    _last_words[:] = [call]


def stopping() -> bool:
    """Return whether a signal has asked for the end: what a rank meets after it comes from peers that end as well."""
    return _heard.is_set()


def stop_after(seconds: int | None) -> None:
    """Stop this process as a signal does, after ``seconds``."""
    if seconds is not None:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()


def _interrupt(number: int, frame: object) -> None:
    _heard.set()
    raise Interrupted(signal.Signals(number).name)


def _watch(reading: int) -> None:
    while True:
        number = os.read(reading, 1)
        if number and number[0] in (signal.SIGINT, signal.SIGTERM) and not _heard.wait(DEAF_SECONDS):
            print("stopped while waiting for other processes", file=sys.stderr, flush=True)
            with contextlib.suppress(Exception):
                for call in _last_words:
                    call()
            os._exit(EXIT_STOPPED)
