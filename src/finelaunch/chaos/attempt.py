"""One trial: the command started, struck, started again until the run is finished, and compared with the whole run."""

import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from finelaunch.chaos.evidence import compare, published
from finelaunch.chaos.starts import Started, Starts
from finelaunch.chaos.trials import Trial
from finelaunch.chaos.watch import Watch
from finelaunch.errors import EXIT_DONE
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

POLL_SECONDS = 0.001
TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Facts:
    """What is known of the whole run.

    Args:
        num_steps: Optimizer steps in all.
        num_epochs: Passes over the data in all.
        seen_steps: Steps that are written down, by the log or the journal of rows.
        saves: Steps with a checkpoint.
        evaluations: Steps after which the validation split is measured.
        start_seconds: From the start of the run to the start of training.
        step_seconds: Of a step, with all that comes between steps.
        save_seconds: From the folder of a checkpoint to its being whole, the shortest time seen.
        evaluate_seconds: Of a measurement during training.
        end_seconds: From the last step to the end.
        whole_seconds: From the start of the command to its end.
        begin_bytes: Size of the run directory when training begins.
        peak_bytes: Its largest size.
    """

    num_steps: int
    num_epochs: float
    seen_steps: tuple[int, ...]
    saves: tuple[int, ...]
    evaluations: tuple[int, ...]
    start_seconds: float
    step_seconds: float
    save_seconds: float
    evaluate_seconds: float
    end_seconds: float
    whole_seconds: float
    begin_bytes: int
    peak_bytes: int

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Facts":
        """Return the facts that ``asdict`` and JSON have made of them."""
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})

    @property
    def limit_seconds(self) -> float:
        """How long a start may take until it counts as hung: the machine may be slower by then."""
        return 180.0 + 10.0 * self.whole_seconds


@dataclass(frozen=True)
class Bench:
    """What all trials share.

    Args:
        words: The command behind ``finelaunch``, without its run directory.
        reference: The run that nothing stopped.
        facts: What is known of it.
        num_ranks: Processes of the run; 1: the command itself.
    """

    words: tuple[str, ...]
    reference: Path
    facts: Facts
    num_ranks: int

    def as_values(self) -> dict[str, Any]:
        """Return what JSON can write."""
        return {**asdict(self), "reference": str(self.reference)}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Bench":
        """Return the bench that :meth:`as_values` has written."""
        facts, words = Facts.from_values(values["facts"]), tuple(values["words"])
        return cls(words, Path(values["reference"]), facts, values["num_ranks"])


class NotRun(Exception):
    """The fault could not be made here, which says nothing of the run."""


class NotAsExpected(Exception):
    """The trial cannot go on: the run hangs, or does not start again."""


class Fault(Protocol):
    """A kind of fault."""

    def run(self, attempt: "Attempt") -> None:
        """Bring the run to its end through the fault, and say what was not as it should be.

        Raises:
            NotRun: The fault could not be made.
            NotAsExpected: The run did not come to its end.
        """
        ...


class Attempt:
    """A trial while it is made.

    Args:
        bench: What all trials share.
        trial: What is drawn from.
        folder: Its own folder, new and empty.
        starts: Starts the command.
    """

    def __init__(self, bench: Bench, trial: Trial, folder: Path, starts: Starts) -> None:
        self.bench, self.facts, self.trial = bench, bench.facts, trial
        self.run = RunDirectory(folder / "run")
        self.output = folder / "output.txt"
        self.problems: list[str] = []
        self.about: list[str] = []
        self.notes: dict[str, Any] = {}
        self.process: Started
        self.watch = Watch(self.run)
        self._starts = starts
        self._struck: list[tuple[int, int]] = []
        self._said_before = 0

    def start(self) -> None:
        """Start the command, the same each time."""
        self.watch = Watch(self.run)
        self._said_before = self.output.stat().st_size if self.output.exists() else 0
        self.process = self._starts.start([*self.bench.words, "--run-dir", str(self.run.path)], self.output)

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until ``condition`` holds; return False where the command ended before.

        Raises:
            NotAsExpected: It hangs.
        """
        until = time.monotonic() + self.facts.limit_seconds
        while not condition():
            if self.process.wait(POLL_SECONDS) is not None:
                return False
            self._refuse_hanging(until)
        return True

    def wait_until(self, step: int, fraction: float = 0.0) -> bool:
        """Wait until ``step`` is done, and a fraction of the next; return False where the command ended before.

        Steps between two that are written down are waited for by the clock.
        """
        seen = max((known for known in self.facts.seen_steps if known <= step), default=0)
        if not self.wait_for(lambda: bool(self.watch.events("training")) and self.watch.step() >= seen):
            return False
        base = seen if seen > self.watch.step_before else self.watch.events("training")[0].get("from_step", 0)
        return self.wait(max(step - base + fraction, 0.0) * self.facts.step_seconds)

    def wait(self, seconds: float, unless: Callable[[], bool] = lambda: False) -> bool:
        """Wait for so long, less where ``unless`` holds before; return False where the command ended before."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until and not unless():
            if self.process.wait(min(POLL_SECONDS, until - now)) is not None:
                return False
        return self.process.wait() is None

    def strike(self, number: signal.Signals, whom: str) -> int:
        """Send a signal, and return the last step that was written down before it."""
        phase, step = self.phase(), self.mark()
        rank = self.trial.random("rank").randrange(self.bench.num_ranks)
        self.process.strike(number, whom, rank)
        self.about.append(f"{number.name} to {f'rank {rank}' if whom == 'rank' else whom} {phase}, after step {step}")
        return step

    def mark(self) -> int:
        """Note where the run stands when a fault comes, and return the last step that was written down."""
        step = self.watch.step()
        self._struck.append((step, len(self.run_events("training"))))
        return step

    def phase(self) -> str:
        """Return what the run is at, in words, by what it has written down."""
        if not self.watch.events("training"):
            return "before training"
        step = self.watch.step()
        measured = {event.get("step") for event in self.run_events("evaluated")}
        if step in self.facts.evaluations and step not in measured:
            return "during an evaluation"
        return "while training" if step < self.facts.num_steps else "after training"

    def ended(self) -> int:
        """Wait for the end of the command and return its exit code.

        Raises:
            NotAsExpected: It hangs.
        """
        until = time.monotonic() + self.facts.limit_seconds
        while (code := self.process.wait(0.1)) is None:
            self._refuse_hanging(until)
        self.process.end()
        return code

    def said(self) -> str:
        """Return what the last start has said."""
        return self.output.read_bytes()[self._said_before :].decode(errors="replace")

    def expect(self, holds: bool, otherwise: str) -> None:
        """Write down a problem where something does not hold."""
        if not holds:
            self.problems.append(otherwise)

    def finish(self) -> None:
        """Start the command once more, which is to finish the run.

        Raises:
            NotAsExpected: It does not.
        """
        self.start()
        code = self.ended()
        self.expect(TRACEBACK not in self.said(), "starting again gave a traceback")
        if code != EXIT_DONE:
            raise NotAsExpected(f"starting again answered {code}: {last_line(self.said())}")

    def steps_lost(self) -> int:
        """Return the largest number of steps that a fault has cost: those done again."""
        starts = [event.get("from_step", 0) for event in self.run_events("training")]
        lost = [step - starts[seen] for step, seen in self._struck if seen < len(starts)]
        return max([0, *lost])

    def run_events(self, name: str) -> list[dict[str, Any]]:
        """Return all events of the run of that name."""
        return [event for event in read_lines(self.run.events) if event.get("event") == name]

    def _refuse_hanging(self, until: float) -> None:
        if time.monotonic() > until:
            self.process.end()
            raise NotAsExpected(f"did not end within {self.facts.limit_seconds:.0f} s: {last_line(self.said())}")


def attempt_trial(bench: Bench, trial: Trial, fault: Fault, folder: Path, starts: Starts) -> dict[str, Any]:
    """Make a trial in ``folder``, which is deleted where all was well, and return its row.

    The row's ``recovered`` is true where the run ended as the whole one did and all that the fault asks of it held,
    false where not, and null where the fault could not be made.
    """
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    attempt = Attempt(bench, trial, folder, starts)
    row: dict[str, Any] = {"kind": trial.kind, "index": trial.index, "seed": trial.seed}
    differing: dict[str, str | None] | None = None
    not_run = None
    try:
        fault.run(attempt)
        differing = compare(attempt.run, RunDirectory(bench.reference))
    except NotRun as reason:
        not_run = str(reason)
    except NotAsExpected as reason:
        attempt.problems.append(str(reason))
    problems = [*attempt.problems, *(f"{name}: {text}" for name, text in (differing or {}).items() if text)]
    recovered = None if not_run else not problems
    row |= {
        "about": "; ".join(attempt.about),
        "recovered": recovered,
        **({} if differing is None else {f"{name}_equal": text is None for name, text in differing.items()}),
        "steps_lost": None if not_run else attempt.steps_lost(),
        "seconds": round(time.monotonic() - began, 2),
        "problems": problems,
        **({"not_run": not_run} if not_run else {}),
        **attempt.notes,
        "folder": str(folder) if problems else None,
    }
    if not problems:
        shutil.rmtree(folder, ignore_errors=True)
    return row


def expect_stop(attempt: Attempt, step: int, answers: Sequence[int]) -> None:
    """Hold the end of a command that was asked to stop against what is promised.

    Args:
        attempt: The trial; its command has ended.
        step: The last step that was written down when it was asked.
        answers: The exit codes that are fine.
    """
    code = attempt.process.code
    attempt.expect(
        code in answers, f"answered {code}, not {' or '.join(map(str, answers))}: {last_line(attempt.said())}"
    )
    attempt.expect(TRACEBACK not in attempt.said(), "the stop gave a traceback")
    if code != EXIT_DONE and step:
        newest = max(published(attempt.run), default=0)
        attempt.expect(newest >= step, f"stopped after step {step}, and the newest checkpoint is of step {newest}")


def last_line(text: str) -> str:
    """Return the last line that says something."""
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "nothing was said")
