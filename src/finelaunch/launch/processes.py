"""The ranks of a training as processes of this machine: started together, ended together, one exit code for all.

Nothing that is started here outlives :func:`run_ranks`; the first rank that dies is named; a stop leaves time to save.
"""

import contextlib
import ctypes
import functools
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finelaunch import errors
from finelaunch.run import log
from finelaunch.run import signals as stops
from finelaunch.run.files import read_end

STOP_SIGNALS = (*stops.STOP_SIGNALS, signal.SIGHUP)
"""What asks for a stop: what a rank hears, and a terminal that was closed."""

KILL_SECONDS = 4.0
"""How long to wait for a killed rank: one that hangs in a driver or a file system may never go."""

_TAIL_BYTES = 64 * 1024
_PR_SET_PDEATHSIG = 1
_ALL_WELL = "all ranks ended well"

_prctl = ctypes.PyDLL(None).prctl if sys.platform == "linux" else None
if _prctl is not None:
    _prctl.argtypes = (ctypes.c_int, ctypes.c_ulong)


@dataclass(frozen=True)
class RankProcess:
    """One rank to start.

    Args:
        rank: Its number.
        argv: Its command.
        environment: Its whole environment.
        log: The file to which its output is appended; None: the launcher's own terminal.
    """

    rank: int
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path | None


@dataclass(frozen=True)
class Ending:
    """How the ranks ended.

    Args:
        exit_code: What the launcher is to answer: 0, 75 where they were stopped, 2 or 3 of the rank named, else 1.
        rank: The rank that failed first or had to be killed; None where all ended well or stopped as asked.
        reason: Such as ``killed by SIGKILL``, ``exit code 1`` or ``stopped by SIGTERM``.
        seconds_to_end: From the first death or the stop to the end of the last rank; 0 where all ended by themselves.
    """

    exit_code: int
    rank: int | None
    reason: str
    seconds_to_end: float


def run_ranks(
    ranks: Sequence[RankProcess],
    *,
    stop_grace_seconds: float,
    end_seconds: float = 10.0,
    stop_seconds: float | None = None,
) -> Ending:
    """Run ``ranks`` to their end, in the main thread; none of them, nor of their children, is left running.

    The first rank that fails ends the others: SIGTERM, and SIGKILL after ``end_seconds``. A signal of
    :data:`STOP_SIGNALS`, or a rank that exits with 75 by itself, stops all: SIGTERM, and SIGKILL after
    ``stop_grace_seconds``. A second Ctrl-C kills at once.

    Args:
        ranks: What to start.
        stop_grace_seconds: The time that stopped ranks have to save.
        end_seconds: The time that the peers of a failed rank have to end.
        stop_seconds: After this time the ranks are stopped; None: never.

    Raises:
        FinelaunchError: A rank could not be started; those before it were ended.
    """
    stop_at = math.inf if stop_seconds is None else time.monotonic() + stop_seconds
    with _noted_signals() as signals, _Processes() as processes:
        for rank in ranks:
            processes.start(rank)
        while processes.running:
            signals.sleep(stop_at)
            ended, now = processes.look(), time.monotonic()
            # A stop comes before a death: whoever stops the launcher may have signalled the ranks, too.
            if signals.received:
                number, moment = signals.received[0]
                return _end_all(processes, signals, _End(f"stopped by {_name(number)}", moment, stop_grace_seconds))
            if now >= stop_at:
                reason = f"stopped after {stop_seconds:g} s, in time for launch.max_run_seconds"
                return _end_all(processes, signals, _End(reason, now, stop_grace_seconds))
            if failure := _first_failure(ended):
                return _end_all(processes, signals, _End(_how(failure[1]), now, end_seconds, failure))
            if stopped := [rank for rank, code in ended.items() if code == errors.EXIT_STOPPED]:
                reason = f"rank {stopped[0]} stopped by itself"
                return _end_all(processes, signals, _End(reason, now, stop_grace_seconds))
    return Ending(errors.EXIT_DONE, None, _ALL_WELL, 0.0)


def tail(log_file: Path, num_lines: int = 20) -> list[str]:
    r"""Return the last lines of a log, at most 64 KiB of it, as a terminal shows them.

    Of a line that was overwritten by ``\r``, as progress bars do, only the last state is given. No file gives no lines.
    """
    try:
        end, is_whole = read_end(log_file, _TAIL_BYTES)
    except FileNotFoundError:
        return []
    lines = end.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if not is_whole and len(lines) > 1:  # the first one is cut
        del lines[0]
    shown = [line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace") for line in lines]
    return shown[max(len(shown) - num_lines, 0) :]


@dataclass(frozen=True)
class _End:
    """Why and since when all ranks are ended, their time for it, and the rank that failed with its code, if one did."""

    reason: str
    since: float
    patience_seconds: float
    failure: tuple[int, int] | None = None


@dataclass
class _Signals:
    """The stop signals that came, and a sleep that they and the end of a child cut short."""

    reading: int
    received: list[tuple[int, float]] = field(default_factory=list)

    def note(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self.received.append((number, time.monotonic()))

    def sleep(self, until: float) -> None:
        poll = select.poll()
        poll.register(self.reading, select.POLLIN)
        # At most a second, so that a wake-up that is lost for whatever reason delays and does not hang.
        if poll.poll(1000 * min(max(until - time.monotonic(), 0.0), 1.0)):
            os.read(self.reading, 4096)

    def second_interrupt(self) -> bool:
        presses = [moment for number, moment in self.received if number == signal.SIGINT]
        return len(presses) > 1 and presses[-1] - presses[0] >= stops.SECOND_PRESS_SECONDS


@contextlib.contextmanager
def _noted_signals() -> Iterator[_Signals]:
    """Note signals instead of being interrupted by them, so that no exception comes between a start and its record."""
    with contextlib.ExitStack() as undo:
        reading, writing = os.pipe()
        for end in (reading, writing):
            undo.callback(os.close, end)
            os.set_blocking(end, False)
        signals = _Signals(reading)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:  # nohup: the run is to outlive its terminal
                continue
            undo.callback(signal.signal, number, signal.SIG_DFL if before is None else before)
            signal.signal(number, signals.note)
        undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False))
        yield signals


class _Processes:
    """The processes of the ranks; leaving the ``with`` kills what is still running.

    Each has a session, thus a process group, of its own: Ctrl-C on the terminal reaches the launcher alone, and the
    group ends a rank's children, such as the workers of its data loader, with it.
    """

    def __init__(self) -> None:
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.codes: dict[int, int] = {}
        """Of the ranks that ended, negative for signals; without those that had to be killed."""
        self.killed: list[int] = []

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, rank: RankProcess) -> None:
        try:
            if rank.log is not None:
                rank.log.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.nullcontext() if rank.log is None else rank.log.open("ab") as output:
                self.running[rank.rank] = subprocess.Popen(
                    rank.argv,
                    env=dict(rank.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=functools.partial(_end_with_launcher, os.getpid()),
                )
        except OSError as error:
            raise errors.FinelaunchError(f"rank {rank.rank} could not be started: {error}") from error

    def look(self) -> dict[int, int]:
        """Return the codes of the ranks that ended since the last look."""
        ended = {rank: code for rank, process in self.running.items() if (code := process.poll()) is not None}
        for rank in ended:
            _kill_group(self.running.pop(rank))  # the children that it left
        self.codes |= ended
        return ended

    def terminate(self) -> None:
        """Send SIGTERM to the ranks alone: to save, a rank may need its children."""
        for process in self.running.values():
            process.terminate()

    def kill(self) -> None:
        """Kill what is still running, children included."""
        give_up = time.monotonic() + KILL_SECONDS
        for process in self.running.values():
            _kill_group(process)
        for rank, process in self.running.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(give_up - time.monotonic(), 0.0))
            if process.returncode is None:
                _tell(f"rank {rank}: process {process.pid} was killed and has not ended; the system holds it")
            if process.returncode in (None, -signal.SIGKILL):
                self.killed.append(rank)
            else:
                self.codes[rank] = process.returncode
        self.running.clear()


def _end_with_launcher(launcher: int) -> None:
    """Have the kernel send SIGTERM to this process when the launcher dies, even by SIGKILL.

    It runs between fork and exec, where a lock that another thread held may stay shut for ever. It takes none: Python
    forks with its own locks held and renews them, the C library does so with malloc's, and the functions called here
    were looked up before. A wrapper process that does this and then becomes the rank would cost the start of an
    interpreter and the error of a command that is missing.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:  # it died before it was watched
            os._exit(errors.EXIT_FAILURE)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # The number of a rank that was reaped stays taken while one of its group lives; it was free for a moment at most.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _end_all(processes: _Processes, signals: _Signals, end: _End) -> Ending:
    """End the ranks that still run, with the time that ``end`` leaves them."""
    processes.terminate()
    if processes.running and end.failure:
        _tell(f"rank {end.failure[0]}: {end.reason}; ending the other ranks")
    elif processes.running:
        _tell(f"{end.reason}; the ranks have {end.patience_seconds:g} s to end, a second Ctrl-C ends them at once")
    if_killed = f"did not stop within {end.patience_seconds:g} s and was killed"
    while processes.running:
        if signals.second_interrupt():
            if_killed = "killed by a second Ctrl-C"
            processes.kill()
        elif time.monotonic() >= end.since + end.patience_seconds:
            processes.kill()
        else:
            signals.sleep(end.since + end.patience_seconds)
            processes.look()
    return Ending(*_answer(processes, end, if_killed), time.monotonic() - end.since)


def _answer(processes: _Processes, end: _End, if_killed: str) -> tuple[int, int | None, str]:
    """Return exit code, rank and reason of ranks that were ended because of ``end``."""
    codes = processes.codes
    if failure := end.failure or _first_failure(codes, forgiven=tuple(-number for number in stops.STOP_SIGNALS)):
        rank, code = failure
        passed_on = code in (errors.EXIT_BAD_INPUT, errors.EXIT_REQUIREMENT)
        reason = end.reason if end.failure else f"{_how(code)} ({end.reason})"
        return code if passed_on else errors.EXIT_FAILURE, rank, reason
    if processes.killed:
        return errors.EXIT_FAILURE, processes.killed[0], if_killed
    if not any(codes.values()):
        return errors.EXIT_DONE, None, _ALL_WELL
    if errors.EXIT_STOPPED not in codes.values():
        return errors.EXIT_FAILURE, None, f"{end.reason}, and no rank said by exit code 75 that it saved"
    return errors.EXIT_STOPPED, None, end.reason


def _first_failure(codes: Mapping[int, int], forgiven: tuple[int, ...] = ()) -> tuple[int, int] | None:
    """Return the rank to blame and its code: one that a signal killed, as its peers soon fail for want of it."""
    fine = (errors.EXIT_DONE, errors.EXIT_STOPPED, *forgiven)
    return min((one for one in codes.items() if one[1] not in fine), key=lambda one: one[1] > 0, default=None)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {_name(-code)}"


def _name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


def _tell(text: str) -> None:
    # A terminal that was closed must not cost the ranks the time to save; rich exits where it is a broken pipe.
    with contextlib.suppress(OSError, SystemExit):
        log.say(text)
