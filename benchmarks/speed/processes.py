"""The processes of a benchmark: one alone, or several that take a step each in turn, and what each has shown.

Every process has a session of its own and the probe on its PYTHONPATH. What it prints goes to a log that stands in
every error. None is left when the benchmark ends, however it ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Crash(Exception):
    """A process that did not end well; says where its log is."""


@dataclass
class Seen:
    """What a process has shown.

    Args:
        began: When it was started, on the clock that all processes share.
        peak_bytes: The most memory it held.
        probe: What the probe wrote.
        out: Its output folder.
        metrics: Its figures.
    """

    began: float
    peak_bytes: int
    probe: dict[str, Any]
    out: Path
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def to_first_step(self) -> float:
        """Seconds from the start of the process to the end of its first step."""
        return self.probe["steps"][0] - self.began

    def lap(self, name: str) -> float | None:
        """Return the seconds of a lap, where there was one."""
        return self.probe["laps"].get(name, {}).get("seconds")


class Process:
    """A process under the probe.

    Args:
        line: Its command line.
        own: Its environment.
        out: Its output folder; its log and what the probe writes lie beside that.
        timeout: Seconds after which it is ended.
        name: What it is called in errors.
        cwd: Where it runs; by default beside ``out``.
    """

    def __init__(
        self, line: list[str], own: dict[str, str], out: Path, timeout: float, name: str, cwd: Path | None = None
    ) -> None:
        self.line = line
        self.own = own
        self.out = out
        self.timeout = timeout
        self.name = name
        self.cwd = cwd or out.parent
        self.log, self.probe = out.with_name(f"{out.name}.log"), out.with_name(f"{out.name}.probe.json")
        self.running: subprocess.Popen | None = None
        self.went_on = self.stopped = -1
        """The ends of two pipes: to let it go on, and on which it says that it has made a step."""

    def run(self) -> Seen:
        """Run it alone to its end, and return what it has shown.

        Raises:
            Crash: It did not end well, or not in time.
        """
        with self:
            self.start()
            return self.end()

    def start(self, num_in_turn: int = 0) -> None:
        """Start it.

        Args:
            num_in_turn: So many processes take turns, this one among them: it waits before its first step and after
                each one, and may take as much longer; 0: it waits for nobody.
        """
        self.out.parent.mkdir(parents=True, exist_ok=True)
        own, given = {**self.own, "BENCH_PROBE": str(self.probe)}, ()
        if num_in_turn:
            hears, self.went_on = os.pipe()
            self.stopped, says = os.pipe()
            given = hears, says
            own["BENCH_TURNS"] = f"{hears} {says}"
        try:
            with self.log.open("wb") as file:
                self.began = time.monotonic()
                self.running = subprocess.Popen(
                    self.line,
                    stdout=file,
                    stderr=file,
                    stdin=subprocess.DEVNULL,
                    env=own,
                    cwd=self.cwd,
                    start_new_session=True,
                    pass_fds=given,
                )
        finally:  # only the process holds them now: what is read from it ends where it ends
            for one in given:
                os.close(one)
        self.limit = self.timeout * max(num_in_turn, 1)
        self.timer = threading.Timer(self.limit, _kill, [self.running.pid])
        self.timer.start()

    def has_stopped(self) -> bool:
        """Wait until it has made a step, or has ended; return whether it waits for its next turn."""
        return bool(os.read(self.stopped, 1))

    def go_on(self) -> bool:
        """Let it make its next step, and the last one with all that follows; return whether it waits again."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.went_on, b".")
        return self.has_stopped()

    def end(self) -> Seen:
        """Wait for its end, and return what it has shown.

        Raises:
            Crash: It did not end well, or not in time.
        """
        assert self.running is not None
        _, status, usage = os.wait4(self.running.pid, 0)
        code = self.running.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - self.began
        if code or not self.probe.exists():
            lines = [text for text in self.log.read_text(errors="replace").splitlines() if text.strip()]
            how = f"answered {code}" if code >= 0 else f"was ended by signal {-code}"
            how += f" after {seconds:.0f} s" if seconds >= self.limit else ""
            raise Crash(f"{self.name} {how}: {lines[-1] if lines else 'it said nothing'} (all it said: {self.log})")
        metrics = self.out / "metrics.json"
        figures = json.loads(metrics.read_text()) if metrics.exists() else {}
        figures = figures.get("validation") or figures
        shown = json.loads(self.probe.read_text())
        return Seen(self.began, shown["peak_bytes"] or usage.ru_maxrss * 1024, shown, self.out, figures)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing of it running."""
        if self.running is not None:
            self.timer.cancel()
            if self.running.returncode is None:
                _kill(self.running.pid)
                self.running.wait()
        for one in (self.went_on, self.stopped):
            if one >= 0:
                os.close(one)


def in_turn(processes: Sequence[Process]) -> list[Seen | Crash]:
    """Run processes of different names that train, a step each in turn; return what each has shown, or how it failed.

    One works at a time and all others wait: first each gets to its first step, then each makes a step, and so on, so
    that what the machine does beside strikes them alike. What follows the last step is done without a break.
    """
    found: dict[str, Seen | Crash] = {}

    def end(process: Process) -> None:
        try:
            found[process.name] = process.end()
        except Crash as error:
            found[process.name] = error

    with contextlib.ExitStack() as stack:
        running = []
        for process in processes:
            stack.enter_context(process).start(len(processes))
            running.append(process)
            if not process.has_stopped():
                end(running.pop())
        while running:
            for process in list(running):
                if not process.go_on():
                    running.remove(process)
                    end(process)
    return [found[process.name] for process in processes]


def _kill(pid: int) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
