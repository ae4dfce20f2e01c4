"""How many steps fit into ``training.time_budget_minutes``: computed once from the first steps, and kept from then on.

The sampler knows the places (tokens and padding) of every batch to come, so the time of a step is the measured time of
a place times its places. What was computed, and from which numbers, stands in the manifest under ``time_budget``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any

import numpy as np

from finelaunch.data.sampler import GlobalBatchSampler
from finelaunch.training.section import BUDGET_STEPS, TrainingSection

UNCOUNTED_STEPS = 2
"""How many of the measured steps do not count: allocators and kernels warm up in them."""

FORWARD_SHARE = 1 / 3
"""The time of a forward pass as a share of a whole step, where no evaluation was measured yet."""

WRITTEN_BYTES_PER_SECOND = 2e8
"""How fast a checkpoint is written, where none was measured yet: a plain local disk."""


@dataclass(frozen=True)
class Recurring:
    """What is done between steps now and then, and after the last one in any case: evaluations and the like.

    Args:
        seconds: What it takes each time.
        every: After so many steps; None: never, not even at the end.
    """

    seconds: float
    every: int | None

    def between(self, after: int, until: int) -> float:
        """Return the seconds that fall due from step ``after`` + 1 to step ``until``."""
        return (until // self.every - after // self.every) * self.seconds if self.every else 0.0

    def at_end(self) -> float:
        """Return the seconds after the last step."""
        return self.seconds if self.every else 0.0


@dataclass(frozen=True)
class Costs:
    """What the parts of a training take.

    Args:
        seconds_per_place: Of a place of a batch, over all ranks together.
        recurring: What is done between steps.
    """

    seconds_per_place: float
    recurring: tuple[Recurring, ...] = ()

    def between(self, after: int, until: int) -> float:
        """Return the seconds of all that falls due from step ``after`` + 1 to step ``until``."""
        return sum(one.between(after, until) for one in self.recurring)

    def at_end(self) -> float:
        """Return the seconds of all that the last step brings."""
        return sum(one.at_end() for one in self.recurring)


def num_steps_within(
    seconds: float, at_step: int, at_most_steps: int, places: Iterable[int], costs: Costs
) -> tuple[int, float]:
    """Return how many steps a training has that ends within ``seconds``, and the seconds that are estimated for it.

    Args:
        seconds: What is left after ``at_step`` steps were computed; what is due after the last of them comes on top.
        at_step: The fewest steps.
        at_most_steps: The most steps.
        places: Of every step after ``at_step``.
        costs: What everything takes.
    """
    num_steps, estimated = at_step, costs.at_end()
    computed = 0.0
    for step, count in zip(range(at_step + 1, at_most_steps + 1), places, strict=False):
        computed += count * costs.seconds_per_place
        needed = computed + costs.between(at_step - 1, step - 1) + costs.at_end()
        if needed > seconds:
            break
        num_steps, estimated = step, needed
    return num_steps, estimated


@dataclass(frozen=True)
class Plan:
    """The number of steps, and all numbers that it was computed from.

    Args:
        minutes: ``training.time_budget_minutes``.
        num_steps: Steps of the whole training.
        at_most_steps: Steps that the recipe asks for.
        at_step: The step after which it was made; learning rates from the next step on are those of ``num_steps``.
        since_step: The step from which on minutes count; more than 0 after another run's checkpoint.
        from_step: The step from which on this process has measured.
        measured_steps: Steps whose time counts.
        measured_places: Their places, padding included.
        measured_seconds: Their time.
        seconds_per_place: The quotient.
        elapsed_seconds: From the first measured step to the plan, evaluations and checkpoints included.
        earlier_seconds: Estimated for the steps before ``from_step``, which another process has made.
        evaluation_seconds: Of an evaluation.
        evaluation_from: Where this number comes from.
        checkpoint_seconds: Of a checkpoint.
        checkpoint_from: Where this number comes from.
        answers_seconds: Of the answers to sample prompts after an epoch.
        answers_from: Where this number comes from.
        planned_places: Places of the steps to come.
        estimated_seconds: Of the whole training, from ``since_step`` to its end.
    """

    minutes: float
    num_steps: int
    at_most_steps: int
    at_step: int
    since_step: int
    from_step: int
    measured_steps: int
    measured_places: int
    measured_seconds: float
    seconds_per_place: float
    elapsed_seconds: float
    earlier_seconds: float
    evaluation_seconds: float
    evaluation_from: str
    checkpoint_seconds: float
    checkpoint_from: str
    answers_seconds: float
    answers_from: str
    planned_places: int
    estimated_seconds: float

    def facts(self) -> dict[str, Any]:
        """Return all of it for the manifest."""
        return asdict(self)

    @property
    def is_met(self) -> bool:
        """Whether the estimate lies within the minutes."""
        return self.estimated_seconds <= 60 * self.minutes

    def text(self) -> str:
        """Return the plan as a sentence."""
        minutes = f"about {self.estimated_seconds / 60:.3g} of {self.minutes:g} minutes"
        if not self.is_met:
            return f"the first {self.at_step} steps alone take {minutes}: training ends after them"
        if self.num_steps == self.at_most_steps:
            return f"all {self.num_steps:,} steps fit, {minutes}"
        return f"{self.num_steps:,} of {self.at_most_steps:,} steps fit, {minutes}"


def plans_in(section: Mapping[str, Any] | None) -> tuple[Plan, ...]:
    """Return the plans that the manifest's ``time_budget`` holds, the one that counts last."""
    if not section:
        return ()
    names = {field.name for field in fields(Plan)}
    stated = [*section.get("earlier", ()), section]
    return tuple(Plan(**{name: value for name, value in one.items() if name in names}) for one in stated)


def stated(plans: Sequence[Plan]) -> dict[str, Any] | None:
    """Return what the manifest says of ``plans``: the last one, with those that it has taken the place of."""
    earlier = [plan.facts() for plan in plans[:-1]]
    return {**plans[-1].facts(), **({"earlier": earlier} if earlier else {})} if plans else None


def steps_by(plans: Sequence[Plan], at_most_steps: int, measuring_from: int | None, step: int) -> int:
    """Return the steps of the training whose schedule gives the learning rate after ``step`` steps.

    While a plan is being measured these are all that the recipe asks for, from its step on those of the plan.

    Args:
        plans: The one that counts last.
        at_most_steps: Steps that the recipe asks for.
        measuring_from: The step from which on another plan is being measured, if one is.
        step: Steps done.
    """
    if measuring_from is not None and step >= measuring_from:
        return at_most_steps
    for plan in reversed(plans):
        if step >= plan.at_step:
            return plan.num_steps
        if step >= plan.from_step:
            return plan.at_most_steps
    return at_most_steps


@dataclass(frozen=True)
class Measured:
    """What was measured until a plan is made.

    Args:
        seconds: Of the steps that count.
        elapsed_seconds: Since the first step of this process.
        evaluation: Seconds of an evaluation, and where they come from.
        checkpoint: Seconds of a checkpoint, and where they come from.
        answers: Seconds of the answers to sample prompts, and where they come from.
    """

    seconds: float
    elapsed_seconds: float
    evaluation: tuple[float, str]
    checkpoint: tuple[float, str]
    answers: tuple[float, str]


def make_plan(
    section: TrainingSection,
    sampler: GlobalBatchSampler,
    at_most_steps: int,
    since_step: int,
    from_step: int,
    measured: Measured,
) -> Plan:
    """Return the plan of a training, :data:`BUDGET_STEPS` steps after ``from_step``.

    Args:
        section: Its rhythms and its ``time_budget_minutes``.
        sampler: Knows the places of every step.
        at_most_steps: Steps that the recipe asks for.
        since_step: The step from which on minutes count.
        from_step: The step from which on was measured.
        measured: What was.
    """
    assert section.time_budget_minutes is not None
    at_step = from_step + BUDGET_STEPS
    places = measured_places(sampler, from_step)
    epoch = sampler.num_global_batches
    evaluations = {"no": None, "epoch": epoch, "steps": section.eval_steps}[section.eval_strategy]
    checkpoints = {"no": None, "epoch": epoch, "steps": section.save_steps}[section.save_strategy]
    if section.load_best_model_at_end:  # any evaluation may be the best so far, and is saved then
        checkpoints = min(every for every in (checkpoints, evaluations) if every)
    recurring = (
        Recurring(measured.evaluation[0], evaluations),
        Recurring(measured.checkpoint[0], checkpoints),
        Recurring(measured.answers[0], epoch),
    )
    costs = Costs(measured.seconds / places, recurring)
    before = sum(islice(places_after(sampler, since_step), from_step - since_step)) * costs.seconds_per_place
    before += costs.between(since_step, from_step)
    spent = before + measured.elapsed_seconds
    left = 60 * section.time_budget_minutes - spent
    num_steps, estimated = num_steps_within(left, at_step, at_most_steps, places_after(sampler, at_step), costs)
    return Plan(
        minutes=section.time_budget_minutes,
        num_steps=num_steps,
        at_most_steps=at_most_steps,
        at_step=at_step,
        since_step=since_step,
        from_step=from_step,
        measured_steps=BUDGET_STEPS - UNCOUNTED_STEPS,
        measured_places=places,
        measured_seconds=measured.seconds,
        seconds_per_place=costs.seconds_per_place,
        elapsed_seconds=measured.elapsed_seconds,
        earlier_seconds=before,
        evaluation_seconds=measured.evaluation[0],
        evaluation_from=measured.evaluation[1],
        checkpoint_seconds=measured.checkpoint[0],
        checkpoint_from=measured.checkpoint[1],
        answers_seconds=measured.answers[0],
        answers_from=measured.answers[1],
        planned_places=sum(islice(places_after(sampler, at_step), num_steps - at_step)),
        estimated_seconds=spent + estimated,
    )


def measured_places(sampler: GlobalBatchSampler, from_step: int) -> int:
    """Return the places of the steps that count, where ``from_step`` is the step before the first measured one."""
    return sum(islice(places_after(sampler, from_step + UNCOUNTED_STEPS), BUDGET_STEPS - UNCOUNTED_STEPS))


def places_after(sampler: GlobalBatchSampler, step: int) -> Iterator[int]:
    """Yield the places of every global batch after ``step`` steps, without end; an epoch is drawn when it is needed."""
    epoch, done = divmod(step, sampler.num_global_batches)
    while True:
        yield from places_of_epoch(sampler, epoch)[done:].tolist()
        epoch, done = epoch + 1, 0


def places_of_epoch(sampler: GlobalBatchSampler, epoch: int) -> np.ndarray:
    """Return the places of every global batch of an epoch, padding included: int64 ``[batches]``."""
    rows = np.stack(sampler.global_batches(epoch))
    lengths = sampler.lengths[np.where(rows < 0, ~rows, rows)].astype(np.int64)
    per_device = sampler.per_device_batch_size
    of_ranks = lengths.reshape(len(rows), -1, per_device, sampler.world_size)  # every rank takes every W-th row
    return of_ranks.max(axis=2).sum(axis=(1, 2)) * per_device
