"""Looking at a run from outside while it runs: its events, its step, its checkpoints, its size."""

import json
import os
from pathlib import Path
from typing import Any

from finelaunch.chaos.evidence import MANIFEST, checkpoints, stored_bytes
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

TAIL_BYTES = 64 * 1024
SIZE_EVERY_SECONDS = 0.05


class Watch:
    """What happens in a run directory from now on.

    Args:
        run: The run; need not exist.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._steps: dict[Path, tuple[Any, int]] = {}
        self._events: tuple[Any, list[dict[str, Any]]] = (None, [])
        self._num_before = len(read_lines(run.events))
        self.step_before = self.step()

    def step(self) -> int:
        """Return the last step that was written down, in this start or before it; 0 without any."""
        return max(self._last_step(path) for path in (self.run.train_log, self.run.samples))

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of that name since the beginning of the watch."""
        state = _state(self.run.events)
        if state != self._events[0]:
            self._events = (state, read_lines(self.run.events)[self._num_before :])
        return [event for event in self._events[1] if event.get("event") == name]

    def _last_step(self, path: Path) -> int:
        state = _state(path)
        known = self._steps.get(path)
        if known is None or known[0] != state:
            known = self._steps[path] = (state, last_step(path))
        return known[1]


class Trace:
    """The times of a run that nothing stops, by looking at it again and again.

    Args:
        run: The run; need not exist.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.watch = Watch(run)
        self.started = self.trained = 0.0
        self.steps: dict[int, float] = {}
        self.evaluated: dict[int, float] = {}
        self.appeared: dict[int, float] = {}
        self.saved: dict[int, float] = {}
        self.begin_bytes = self.peak_bytes = 0
        self._sized = self._last = 0.0

    def look(self, now: float) -> None:
        """Write down what is new at the moment ``now``, in seconds."""
        self._last = now
        if not self.started and self.watch.events("started"):
            self.started = now
        if not self.trained and self.watch.events("training"):
            self.trained = now
        if step := self.watch.step():
            self.steps.setdefault(step, now)
        for name, times in (("evaluated", self.evaluated), ("saved", self.saved)):
            for event in self.watch.events(name):
                times.setdefault(event["step"], now)
        for step in checkpoints(self.watch.run):
            self.appeared.setdefault(step, now)
        if now - self._sized > SIZE_EVERY_SECONDS:
            self._sized = now
            size = stored_bytes(self.watch.run.path)
            self.peak_bytes = max(self.peak_bytes, size)
            if not self.steps:
                self.begin_bytes = max(self.begin_bytes, size)

    def save_seconds(self) -> float:
        """Return how long a checkpoint is in the making, the shortest time seen."""
        return min([self.saved[step] - self.appeared[step] for step in self.saved if step in self.appeared], default=0)

    def evaluate_seconds(self) -> float:
        """Return how long an evaluation takes from the step before it, half of them longer."""
        return _middle([now - self.steps[step] for step, now in self.evaluated.items() if step in self.steps])

    def step_seconds(self) -> float:
        """Return how long a step takes, with all that comes between steps."""
        if not self.steps:
            return 0.0
        last = max(self.steps)
        return max(self.steps[last] - self.trained, 0.0) / last

    def seconds_after(self, step: int) -> float:
        """Return how long the run was looked at after a step."""
        return self._last - self.steps.get(step, self._last)


def last_step(path: Path) -> int:
    """Return the step of the last whole line of a log; 0 without any."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError):
            continue
    return max((row.get("step", 0) for row in read_lines(path)), default=0) if len(lines) > 1 else 0


def is_partial(checkpoint: Path) -> bool:
    """Return whether a checkpoint is in the making, or was left so."""
    return checkpoint.is_dir() and not (checkpoint / MANIFEST).exists()


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _middle(seconds: list[float]) -> float:
    ordered = sorted(max(one, 0.0) for one in seconds)
    return ordered[len(ordered) // 2] if ordered else 0.0
