"""Keeping to ``training.time_budget_minutes``: measures the first steps, has the plan made, and ends training by it.

The first rank measures and decides, all of them follow. A plan that the manifest holds is kept and nothing measured, so
that a run that was stopped ends in the same step with the same learning rates as one that was not.
"""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainingArguments, get_scheduler

from finelaunch.data.sampler import GlobalBatchSampler
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.run.log import say, warn
from finelaunch.run.ranks import Ranks, on_first
from finelaunch.training.budget import (
    FORWARD_SHARE,
    UNCOUNTED_STEPS,
    WRITTEN_BYTES_PER_SECOND,
    Measured,
    Plan,
    make_plan,
    measured_places,
    plans_in,
    stated,
    steps_by,
)
from finelaunch.training.checkpoints import Continued
from finelaunch.training.faults import checkpoint_bytes
from finelaunch.training.placement import Placement
from finelaunch.training.section import BUDGET_STEPS, TrainingSection

if TYPE_CHECKING:
    from finelaunch.training.journal import Journal
    from finelaunch.training.trainer import FinelaunchTrainer


class Pace(TrainerCallback):
    """Ends training where its minutes do; see :func:`pace_of`.

    Args:
        section: The recipe's ``training`` section, with a budget.
        sampler: The order of the rows.
        run: The run directory, whose manifest keeps plans.
        ranks: This process among all.
        at_most_steps: Steps that the recipe asks for.
        from_step: The step that training goes on from.
        since_step: The step from which on minutes count.
        plans: What the manifest holds of this course, the plan that counts last.
        placement: A settled placement.
    """

    def __init__(
        self,
        section: TrainingSection,
        sampler: GlobalBatchSampler,
        run: RunDirectory,
        ranks: Ranks,
        at_most_steps: int,
        from_step: int,
        since_step: int,
        plans: tuple[Plan, ...],
        placement: Placement,
    ) -> None:
        self.section = section
        self.sampler = sampler
        self.run = run
        self.ranks = ranks
        self.at_most_steps = at_most_steps
        self.from_step = from_step
        self.since_step = since_step
        self.plans = plans
        self.placement = placement
        self.trainer: Any = None
        self.journal: Any = None
        self.tell: Callable[[int], None] | None = None
        asked = (section.time_budget_minutes, at_most_steps)
        self.is_planned = bool(plans) and asked == (plans[-1].minutes, plans[-1].at_most_steps)
        self.is_measuring = not self.is_planned and from_step + BUDGET_STEPS < at_most_steps
        self._begun: float | None = None
        self._since = self._seconds = self._step_seconds = self._left_out = 0.0
        self._evaluations: list[float] = []
        self._checkpoints: list[float] = []

    @property
    def num_steps(self) -> int:
        """Steps of the whole training, as far as is known: all that the recipe asks for, until there is a plan."""
        return self.plans[-1].num_steps if self.is_planned else self.at_most_steps

    def join(self, trainer: "FinelaunchTrainer", journal: "Journal", tell: Callable[[int], None]) -> None:
        """Know what to measure and whom to tell.

        Args:
            trainer: The trainer.
            journal: Knows what else is done between steps.
            tell: Is given the steps of the whole training once they are planned, on every rank.
        """
        self.trainer, self.journal, self.tell = trainer, journal, tell

    def announce(self) -> None:
        """Say what is to be expected."""
        minutes = f"training.time_budget_minutes {self.section.time_budget_minutes:g}"
        if self.is_planned:
            say(f"{minutes}: planned after step {self.plans[-1].at_step}: {self.plans[-1].text()}")
        elif self.is_measuring:
            say(f"{minutes}: how many of these steps fit is known after step {self.from_step + BUDGET_STEPS}")
        else:
            left = self.at_most_steps - self.from_step
            text = f"{minutes} has no effect: no more than {BUDGET_STEPS} steps, which are measured, are left ({left})"
            warn(text) if self.run.warn(text) else None

    def follow(self, scheduler: Any, args: TrainingArguments) -> None:
        """Let ``scheduler`` give the learning rates of the plan, from the step after which it was made.

        Args:
            scheduler: Of torch's ``LambdaLR``.
            args: Say the shape and the warm-up, of which a share is one of the planned steps.
        """
        rules: dict[int, Callable[[int], float]] = {}

        def rate(step: int) -> float:
            measuring_from = None if self.is_planned else self.from_step
            num_steps = steps_by(self.plans, self.at_most_steps, measuring_from, step)
            if num_steps not in rules:
                rules[num_steps] = learning_rate_rule(args, num_steps)
            return rules[num_steps](step)

        scheduler.lr_lambdas = [rate] * len(scheduler.lr_lambdas)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock before the first batch."""
        if self._begun is None:
            self._begun = self._since = time.perf_counter()
            self._left_out = sum(self.journal.left_out)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure the step, and make the plan after the last one that is measured, before its end is dealt with."""
        if not self.is_measuring:
            return
        seconds = self._step_seconds + self._lap()
        self._step_seconds = 0.0
        step = state.global_step + 1
        if step > self.from_step + UNCOUNTED_STEPS:
            self._seconds += seconds
        if step < self.from_step + BUDGET_STEPS:
            return
        plan: Plan = on_first(self.ranks, self._plan)
        self.plans = (*self.plans, plan)
        self.is_planned, self.is_measuring = True, False
        state.max_steps = plan.num_steps
        self.sampler.end_after(plan.num_steps)
        assert self.tell is not None, "nothing has joined"
        self.trainer.num_steps = plan.num_steps
        self.journal.end_after(plan.num_steps)
        self.tell(plan.num_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the rest of the step; what follows before the next one is none of it."""
        self._step_seconds = self._lap()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note how long an evaluation has taken; one before the first step is not of this measurement."""
        if self._begun is not None:
            self._evaluations.append(self._lap())

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note for how long a checkpoint has kept training waiting."""
        self._checkpoints.append(self._lap())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say what a training that was not stopped has taken."""
        if self._begun is not None and self.from_step == self.since_step and state.global_step >= state.max_steps:
            minutes = (time.perf_counter() - self._begun) / 60
            say(f"{state.global_step:,} steps took {minutes:.3g} of {self.section.time_budget_minutes:g} minutes")

    def _lap(self) -> float:
        """Return the time since the last call, without what the journal leaves out."""
        before, self._since = self._since, time.perf_counter()
        left_out, self._left_out = sum(self.journal.left_out) - self._left_out, sum(self.journal.left_out)
        return self._since - before - left_out

    def _plan(self) -> Plan:
        """Make the plan, write it down and say it."""
        assert self._begun is not None
        elapsed = time.perf_counter() - self._begun
        measured = Measured(self._seconds, elapsed, self._evaluation(), self._checkpoint(), self._answers())
        plan = make_plan(self.section, self.sampler, self.at_most_steps, self.since_step, self.from_step, measured)
        self.run.note(time_budget=stated((*self.plans, plan)))
        self.run.record("planned", step=plan.at_step, steps=plan.num_steps)
        text = f"training.time_budget_minutes: {plan.text()}"
        if plan.is_met:
            say(text)
        elif self.run.warn(text):
            warn(text)
        if self.section.warmup_steps >= 1 and plan.num_steps <= self.section.warmup_steps:
            text = f"training.warmup_steps {self.section.warmup_steps:g} is not less than the planned {plan.num_steps}"
            warn(f"{text} steps: the peak is never reached") if self.run.warn(text) else None
        return plan

    def _evaluation(self) -> tuple[float, str]:
        if self.section.eval_strategy == "no":
            return 0.0, "there is none"
        if self._evaluations:
            return sum(self._evaluations) / len(self._evaluations), "measured in training"
        before = self.run.read_manifest().get("base_validation_seconds")
        if before is not None:
            return before, "measured before training"
        splits = json.loads(self.run.data_report.read_text(encoding="utf-8"))["splits"]
        num_tokens = splits["validation"]["num_tokens"]
        seconds = self._seconds / measured_places(self.sampler, self.from_step) * num_tokens * FORWARD_SHARE
        return seconds, f"{num_tokens:,} tokens at the share of a forward pass"

    def _checkpoint(self) -> tuple[float, str]:
        if self.section.save_strategy == "no" and not self.section.load_best_model_at_end:
            return 0.0, "there is none"
        if self._checkpoints:
            return sum(self._checkpoints) / len(self._checkpoints), "measured in training"
        num_bytes = checkpoint_bytes(self.trainer.model, self.section, self.placement)
        return num_bytes / WRITTEN_BYTES_PER_SECOND, f"{num_bytes:,} bytes at {WRITTEN_BYTES_PER_SECOND / 1e6:g} MB/s"

    def _answers(self) -> tuple[float, str]:
        if self.journal.left_out:
            return self.journal.left_out[-1], "measured with the model as it was"
        before = [event["seconds"] for event in read_lines(self.run.events) if event.get("event") == "answered"]
        return (before[-1], "measured by an earlier start") if before else (0.0, "none were measured")


def pace_of(
    section: TrainingSection,
    sampler: GlobalBatchSampler,
    run: RunDirectory,
    ranks: Ranks,
    at_most_steps: int,
    chosen: Continued,
    placement: Placement,
) -> Pace | None:
    """Return what keeps a training to its minutes, with the plan that the run has made already; None without a budget.

    A plan is of one course: where training begins anew, or from the checkpoint of another run, there is none yet, and
    where the budget or the steps that the recipe asks for were allowed to change another one is made.

    Args:
        section: The recipe's ``training`` section.
        sampler: The order of the rows.
        run: The run directory.
        ranks: This process among all; every one calls this.
        at_most_steps: Steps that the recipe asks for.
        chosen: What training goes on from.
        placement: A settled placement.
    """
    step = chosen.checkpoint.step if chosen.checkpoint else 0
    plans, since_step = on_first(ranks, lambda: _course(section, run, chosen, step))
    if section.time_budget_minutes is None:
        return None
    return Pace(section, sampler, run, ranks, at_most_steps, step, since_step, plans, placement)


def _course(section: TrainingSection, run: RunDirectory, chosen: Continued, step: int) -> tuple[tuple[Plan, ...], int]:
    """Return the plans of the course that goes on at ``step``, and where it began; the manifest forgets all others."""
    kept = run.read_manifest().get("time_budget")
    plans = plans_in(kept)
    is_of_another = bool(plans) and (plans[0].since_step > step or (chosen.is_foreign and plans[0].since_step != step))
    if section.time_budget_minutes is None or section.resume == "never" or is_of_another:
        plans = ()
    if kept and not plans:
        run.note(time_budget=None)
    return plans, plans[0].since_step if plans else chosen.since_step(run)


def learning_rate_rule(args: TrainingArguments, num_steps: int) -> Callable[[int], float]:
    """Return the share of the learning rate by the number of steps done, in a training of ``num_steps`` steps."""
    unused = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    get: Any = get_scheduler
    scheduler = get(
        args.lr_scheduler_type,
        optimizer=unused,
        num_warmup_steps=args.get_warmup_steps(num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    return scheduler.lr_lambdas[0]
