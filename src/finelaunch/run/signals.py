"""What asks a process to stop, and what it does about it.

Until training begins there is nothing to lose: the first signal is raised as an exception in the main thread, or where
libraries in C++ are at work (:func:`held`), which an exception may abort, as soon as they are done. From then on
(:func:`note_only`) it is only noted, and whoever is at a place where all ranks can stop asks for it. Whatever comes
after the first signal is absorbed, but for a second Ctrl-C that is no double press.

A rank that waits for others inside a library hears no signal in Python until the wait is over, which may be many
minutes. The signal's number is then still written to a pipe, which a thread reads; it ends the process where the main
thread does not.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finelaunch.errors import EXIT_STOPPED, Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, a scheduler, and what Slurm can be asked to send before a limit."""

DEAF_SECONDS = 10.0
"""How long a process may go on after a signal before training, until it is ended from outside of the main thread."""

SECOND_PRESS_SECONDS = 3.0
"""From this time on after the first Ctrl-C another one means it; wrappers pass on what the terminal sent already."""


@dataclass
class _State:
    owner: int = 0
    """The process that listens; a forked child has to begin anew, since threads do not survive a fork."""
    requested: str | None = None
    holding: bool = False
    noting: bool = False
    has_run: bool = False
    """A run of this process has begun before."""
    grace_seconds: float = DEAF_SECONDS
    timer_is_up: bool = False
    leaving: bool = False
    """The last act has begun, in whatever thread."""
    first: float | None = None
    """When the first signal came, and the first Ctrl-C, by the monotonic clock."""
    first_press: float | None = None


_state = _State()
_last_words: list[Callable[[str], None]] = []
_last_act: list[Callable[[str], None]] = []
_acting = threading.Lock()


def listen() -> None:
    """Begin to hear :data:`STOP_SIGNALS`, or hear them again where somebody else has taken them over since."""
    if _state.owner != os.getpid():
        vars(_state).update(vars(_State(owner=os.getpid())))
        _last_words.clear()
        _last_act.clear()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()
    for number in STOP_SIGNALS:
        signal.signal(number, _hear)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Raise nothing within, and after it what came meanwhile."""
    before, _state.holding = _state.holding, True
    try:
        yield
    finally:
        _state.holding = before
    if not before:
        check()


def hold() -> None:
    """Raise nothing from now on but where :func:`check` is called."""
    _state.holding = True


def check() -> None:
    """Raise what came, where signals are held; nothing where they are only noted.

    Raises:
        Interrupted: A signal came.
    """
    if _state.requested is not None and not _state.noting:
        raise Interrupted(_state.requested)


def note_only(grace_seconds: float) -> None:
    """Only note signals from now on: somebody asks :func:`requested` and has that many seconds to act on it."""
    _state.grace_seconds = grace_seconds
    _state.noting = True


def notes_only() -> bool:
    """Return whether signals are only noted."""
    return _state.noting


def raise_again() -> None:
    """Raise signals as they come, as before any training; a process may make several runs.

    What came before the first of them is raised again: an exception in a callback of the interpreter's own, such as
    that of a weak reference, does not get out of it.

    Raises:
        Interrupted: A signal came before the first run.
    """
    _state.holding = _state.noting = False
    if not _state.has_run:
        _state.has_run = True
        check()
    _state.requested = _state.first = _state.first_press = None


def requested() -> str | None:
    """Return what asked for a stop, such as ``SIGTERM``, or None.

    What a rank meets after it may come from peers that end as well.
    """
    return _state.requested


def ignore() -> None:
    """Ignore all further signals: the work is done, and the interpreter's end takes a moment."""
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def before_end(call: Callable[[str], None]) -> None:
    """Have ``call`` made, with the reason, before this process is ended from outside of its main thread.

    Each call replaces the one before.
    """
    _last_words[:] = [call]


def at_stop(call: Callable[[str], None]) -> None:
    """Have ``call`` made, with the reason, as the last act of a process that was asked to stop; it need not return.

    Each call replaces the one before.
    """
    _last_act[:] = [call]


def stays_at_stop() -> bool:
    """Return whether a rank of this run that is stopped stays until it is ended, so that none is lost by a stop."""
    return bool(_last_act) or _state.leaving


def leave(why: str) -> None:
    """Do the last act of a process that was asked to stop, once; whoever calls while another thread does it, waits."""
    _state.leaving = True
    with _acting:
        acts, _last_act[:] = list(_last_act), []
        for act in acts:
            act(why)


def stop_after(seconds: float | None) -> None:
    """Ask this process to stop when it is ``seconds`` old."""
    if seconds is None:
        return
    import psutil  # not above: a task of Slurm is to hear signals before anything that takes time

    age = time.time() - psutil.Process().create_time()
    timer = threading.Timer(max(seconds - age, 0.0), _time_is_up)
    timer.daemon = True
    timer.start()


def _time_is_up() -> None:
    _state.timer_is_up = True
    os.kill(os.getpid(), signal.SIGTERM)


def _hear(number: int, frame: object) -> None:
    if _state.requested is None:
        _state.requested = "max_run_seconds" if _state.timer_is_up else signal.Signals(number).name
        if not _state.holding:
            check()


def _watch(reading: int) -> None:
    """Read the numbers of signals from the pipe, and end the process where waiting for it makes no sense."""
    while True:
        if select.select([reading], [], [], None if _state.first is None else 0.5)[0]:
            numbers, moment = os.read(reading, 64), time.monotonic()
            if any(number in STOP_SIGNALS for number in numbers):
                _state.first = _state.first or moment
            if signal.SIGINT in numbers:
                _state.first_press = _state.first_press or moment
                if moment - _state.first_press >= SECOND_PRESS_SECONDS:
                    _end("ended at once by a second Ctrl-C")
        if _state.first is None or _state.leaving:
            continue
        waited = time.monotonic() - _state.first
        if not _state.noting and waited > DEAF_SECONDS:
            _end("stopped")
        if _state.noting and waited > _state.grace_seconds:
            _end(f"came to no place to save within {_state.grace_seconds:g} s (launch.stop_grace_seconds)")


def _end(why: str) -> None:
    """End the process where its main thread cannot."""
    print(why, file=sys.stderr, flush=True)
    with contextlib.suppress(Exception):
        for call in _last_words:
            call(why)
    with contextlib.suppress(Exception):
        leave(why)
    os._exit(EXIT_STOPPED)
