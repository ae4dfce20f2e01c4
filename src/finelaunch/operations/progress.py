"""How far a run is, how fast, and when it ends: from its own files, and nothing where they do not say."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finelaunch.operations.records import last_rows, number, section
from finelaunch.run.directory import RunDirectory
from finelaunch.training.manifest import newest_checkpoint

_NUM_INTERVALS = 10
"""How many of the last intervals of the log tell the speed."""


@dataclass(frozen=True)
class Progress:
    """How far a run is; None where its files do not say.

    Args:
        step: Optimizer steps that are done.
        steps: Of the whole training.
        loss: The last one that was logged, with its step.
        loss_step: The step of it.
        tokens_per_second: Of the last interval.
        step_seconds: Of one step, without evaluations and checkpoints; the median of the last intervals.
        validation: The figures of the last evaluation.
        validation_step: The step of it.
        checkpoint: The newest one that is whole.
        checkpoint_step: The step of it.
        ended_early: Why training has ended before its last step, if it has.
    """

    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    loss_step: int | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    validation: Mapping[str, float] | None = None
    validation_step: int | None = None
    checkpoint: str | None = None
    checkpoint_step: int | None = None
    ended_early: str | None = None

    @property
    def remaining_seconds(self) -> float | None:
        """The time that the steps that are left take, about; evaluations and checkpoints come on top."""
        if self.ended_early:
            return 0.0
        if self.step is None or self.steps is None or self.step_seconds is None:
            return None
        return max(self.steps - self.step, 0) * self.step_seconds


def progress_of(run: RunDirectory, events: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> Progress:
    """Return how far ``run`` is."""
    log = last_rows(run.train_log, _NUM_INTERVALS)
    newest = log[-1] if log else {}
    training = [event for event in events if event.get("event") == "training"]
    evaluated = [event for event in events if event.get("event") == "evaluated"]
    measured = evaluated[-1] if evaluated else {}
    figures = measured.get("validation")
    checkpoint = _newest(run)
    done = [whole(row.get("step")) for row in (*last_rows(run.samples), newest)]
    begun = whole(training[-1].get("from_step")) if training else None
    known = [step for step in (*done, begun) if step is not None]
    reached = max(known, default=None)
    counted = [event for event in events if event.get("event") in ("training", "planned")]
    ended = [event for event in events if event.get("event") == "stopped_early" and whole(event.get("step")) == reached]
    return Progress(
        step=reached,
        steps=whole(counted[-1].get("steps")) if counted else None,
        loss=number(newest.get("loss")),
        loss_step=whole(newest.get("step")),
        tokens_per_second=number(newest.get("tokens_per_second")),
        step_seconds=_step_seconds(log, number(section(manifest, "engine", "global_batch_size"))),
        validation=_numbers(figures) if isinstance(figures, dict) else None,
        validation_step=whole(measured.get("step")),
        checkpoint=checkpoint[0] if checkpoint else None,
        checkpoint_step=checkpoint[1] if checkpoint else None,
        ended_early=str(ended[-1].get("reason")) if ended and reached is not None else None,
    )


def num_further_starts(remaining_seconds: float, left_seconds: float, usable_seconds: float) -> int | None:
    """Return how often a job has to start again to end its work; None where a start is too short for any.

    Args:
        remaining_seconds: What is still to be done.
        left_seconds: What is left of this start for it.
        usable_seconds: What every further start gives to it.
    """
    if remaining_seconds <= left_seconds:
        return 0
    return math.ceil((remaining_seconds - max(left_seconds, 0.0)) / usable_seconds) if usable_seconds > 0 else None


def whole(value: Any) -> int | None:
    """Return ``value`` where it is a whole number that is not negative."""
    return value if type(value) is int and value >= 0 else None


def _step_seconds(log: Sequence[Mapping[str, Any]], global_batch_size: float | None) -> float | None:
    """Return the time of a step by the samples per second of the log, which leave evaluations and saves out."""
    if not global_batch_size:
        return None
    rates = [rate for row in log if (rate := number(row.get("samples_per_second"))) and rate > 0]
    return global_batch_size / statistics.median(rates) if rates else None


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): value for name, said in figures.items() if (value := number(said)) is not None}


def _newest(run: RunDirectory) -> tuple[str, int] | None:
    """Return name and step of the newest checkpoint; what is damaged on purpose or cannot be read is none."""
    try:
        found = newest_checkpoint(run.checkpoints)
        return (found.path.name, found.step) if found and whole(found.step) is not None else None
    except (OSError, KeyError, TypeError, RecursionError):
        return None
