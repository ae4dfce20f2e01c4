"""What a training run writes down and shows while it runs: train_log.jsonl, a progress bar or plain lines.

Every rank keeps count, so that all of them log, evaluate and save at the same steps; the first one writes.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, set_seed

from finelaunch.data.sampler import GlobalBatchSampler, padding_fraction
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import append_line, cut_lines, read_lines, write_lines
from finelaunch.run.log import console, say
from finelaunch.run.ranks import gather

SHOWN = ("accuracy", "exact_match", "f1", "perplexity", "loss")
"""Figures on the validation split that are shown after the one that steps are compared by, where they are measured."""


class Start(TrainerCallback):
    """Calls back once the engine has prepared the model and before the first step.

    Args:
        call: Is given the trainer.
    """

    def __init__(self, call: Callable[[Any], None]) -> None:
        self.call = call
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Call back."""
        self.call(self.trainer)


class Dropout(TrainerCallback):
    """Gives every rank its own random masks; a resumed run restores its states after this.

    Args:
        seed: The seed of the run.
        rank: This rank.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self.seed = seed + 1000 * (1 + rank)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the random states."""
        set_seed(self.seed)


class Losses(TrainerCallback):
    """The loss of every step since the last log line, so that an interval that a stop has cut has the mean of all.

    Args:
        before: The losses of the interval's steps that another process has done, of all ranks.
    """

    def __init__(self, before: Sequence[float] = ()) -> None:
        self.before = list(before)
        self._steps: list[torch.Tensor] = []
        self._step: torch.Tensor | None = None

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of a micro-batch, a scalar: its part of the step's, times the number of ranks."""
        loss = loss.detach().float()
        self._step = loss if self._step is None else self._step + loss

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the step."""
        if self._step is not None:
            self._steps.append(self._step)
            self._step = None

    def of_interval(self) -> list[float]:
        """Return the loss of each step since the last log line; every rank calls this."""
        if not self._steps:
            return self.before
        of_ranks = gather([step.item() for step in self._steps])
        return self.before + [sum(step) / len(step) for step in zip(*of_ranks, strict=True)]

    def take_mean(self) -> float:
        """Return the mean over the interval, and begin the next one; every rank calls this."""
        losses = self.of_interval()
        self.before, self._steps = [], []
        return sum(losses) / len(losses)


class Journal(TrainerCallback):
    """Writes down the rows of every step, and a line an interval.

    Args:
        run: The run directory.
        sampler: The sampler of the run, which knows the rows of every step.
        losses: Those of an interval that goes on tell how long it is already.
        checkpoint_seconds: Gives what checkpoints have taken since it was last asked.
        num_steps: Steps of the whole training.
        metric: The figure on the validation split that steps are compared by.
    """

    def __init__(
        self,
        run: RunDirectory,
        sampler: GlobalBatchSampler,
        losses: Losses,
        checkpoint_seconds: Callable[[], dict[str, float]],
        num_steps: int,
        metric: str,
    ) -> None:
        self.num_steps = num_steps
        self.metric = metric
        self.run = run
        self.sampler = sampler
        self.losses = losses
        self.checkpoint_seconds = checkpoint_seconds
        self.total_rows = self.total_tokens = 0
        self.total_seconds = 0.0
        self.evaluated_step: int | None = None
        self.left_out: list[float] = []
        """Seconds of what was done between steps besides evaluations and checkpoints."""
        self.progress: Progress | None = None
        self._epoch: int | None = None
        self._batches: list[Any] = []
        self._steps: list[tuple[int, int]] = []
        self._rows = self._tokens = 0
        self._seconds = 0.0
        self._since = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop lines of steps that will be done again, and start the bar on a terminal."""
        if self.run.writes:
            logged_step = state.global_step - len(self.losses.before)
            cut_lines(self.run.samples, lambda row: row["step"] <= state.global_step)
            cut_lines(self.run.train_log, lambda row: row["step"] <= logged_step)
        for step in range(state.global_step - len(self.losses.before), state.global_step):
            self._steps.append(self.sampler.tokens(self._batch(step)[1]))
        self._since = time.perf_counter()
        if self.run.writes and sys.stderr.isatty():
            self.progress = _bar()
            self.progress.add_task("train", total=self.num_steps, completed=state.global_step, figures="")
            self.progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the step that was just done; the last one ends an interval, however short."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        epoch, batch = self._batch(state.global_step - 1)
        rows = batch[batch >= 0].tolist()
        self._steps.append(self.sampler.tokens(batch))
        self._rows += len(rows)
        self._tokens += self._steps[-1][0]
        if self.run.writes:
            append_line(self.run.samples, {"step": state.global_step, "epoch": epoch, "rows": rows})
        self._lap(count=True)
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write the interval down."""
        logs = logs or {}
        if "loss" not in logs:
            return
        seconds = max(self._seconds, 1e-9)
        row = {
            "step": state.global_step,
            "epoch": round(float(state.epoch or 0.0), 4),
            "loss": logs["loss"],
            "grad_norm": _finite(logs.get("grad_norm")),
            "learning_rate": logs.get("learning_rate"),
            "tokens_per_second": round(self._tokens / seconds, 1),
            "samples_per_second": round(self._rows / seconds, 3),
            "padding_fraction": round(padding_fraction(self._steps), 5),
            **self.checkpoint_seconds(),
        }
        if self.run.writes:
            append_line(self.run.train_log, row)
        self.total_rows += self._rows
        self.total_tokens += self._tokens
        self.total_seconds += self._seconds
        seconds_per_step = self._seconds / max(len(self._steps), 1)
        self._steps, self._rows, self._tokens, self._seconds = [], 0, 0, 0.0
        self._show(row, seconds_per_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **_: Any) -> None:
        """Record the figures on the validation split and show the main ones; its time is not training time."""
        figures = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
        self.evaluated_step = state.global_step
        self.run.record("evaluated", step=state.global_step, validation=figures)
        shown = dict.fromkeys((self.metric, *SHOWN))
        text = "  ".join(f"{name} {figures[name]:.4g}" for name in shown if name in figures)
        say(f"step {state.global_step}: validation {text}")
        self._lap(count=False)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the time of a save out: it is not training time."""
        self._lap(count=False)

    def leave_out(self) -> None:
        """Leave the time since the last step out: it is not training time."""
        self.left_out.append(self._lap(count=False))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away, however training ended."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def end_after(self, num_steps: int) -> None:
        """Show that the whole training has ``num_steps`` steps."""
        self.num_steps = num_steps
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], total=num_steps)

    def complete(self) -> None:
        """Add to the last line what checkpoints have taken after it."""
        late, rows = self.checkpoint_seconds(), read_lines(self.run.train_log) if self.run.writes else []
        if rows and any(late.values()):
            rows[-1] |= {name: round(rows[-1].get(name, 0.0) + value, 3) for name, value in late.items()}
            write_lines(self.run.train_log, rows)

    def _batch(self, step: int) -> tuple[int, Any]:
        """Return the epoch and the rows of the step after ``step`` steps."""
        epoch, place = divmod(step, self.sampler.num_global_batches)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self.sampler.global_batches(epoch)
        return epoch, self._batches[place]

    def _lap(self, count: bool) -> float:
        before, self._since = self._since, time.perf_counter()
        elapsed = self._since - before
        if count:
            self._seconds += elapsed
        return elapsed

    def _show(self, row: dict[str, Any], seconds_per_step: float) -> None:
        figures = f"loss {row['loss']:.4f}  {row['tokens_per_second']:,.0f} tokens/s"
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], figures=figures)
            return
        remaining = (self.num_steps - row["step"]) * seconds_per_step
        rate = f"learning rate {row['learning_rate']:.3g}"
        clock = f"{int(remaining // 60)}:{int(remaining % 60):02d} left"
        say(f"step {row['step']}/{self.num_steps}  epoch {row['epoch']:.2f}  {figures}  {rate}  {clock}")


def _finite(number: float | None) -> float | None:
    """Return ``number``, or None where it is none that JSON can write: fp16 skips a step whose gradient overflows."""
    return number if number is not None and math.isfinite(number) else None


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
