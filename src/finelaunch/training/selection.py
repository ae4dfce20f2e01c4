"""Which step of a training was the best, whether it is time to stop, and whether it overfits: from the run's records.

Nothing is kept in memory or in checkpoints: all of it follows from the ``evaluated`` events of the course that the run
is on, so a run that was stopped anywhere and goes on comes to the same answers. Nothing here needs torch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finelaunch.metrics.selection import MULTI_LABEL, SELECTABLE, gain
from finelaunch.section.base import SettingError, nearest
from finelaunch.training.section import TrainingSection

Course = Mapping[int, Mapping[str, float]]
"""The figures on data.validation by step, in the order of the steps."""

RISES = 2
"""How many evaluations in a row must be worse before overfitting is spoken of."""


@dataclass(frozen=True)
class Best:
    """The best evaluation.

    Args:
        step: After which it was made.
        metric: By which it is the best.
        value: Of that figure.
    """

    step: int
    metric: str
    value: float

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.metric} {self.value:.6g} at step {self.step}"


def course(events: Iterable[Mapping[str, Any]]) -> Course:
    """Return what was measured on the course that the run is on.

    What was measured after a step that a later start went back behind is of a course that was given up, as is all that
    was measured before a start from the checkpoint of another run, or on other validation rows.
    """
    made: dict[int, Mapping[str, float]] = {}
    for event in events:
        if event.get("event") == "evaluated":
            made[event["step"]] = event["validation"]
        elif event.get("event") == "training":
            reached = -1 if event.get("foreign") else event["from_step"]
            made = {step: figures for step, figures in made.items() if step <= reached}
        elif event.get("event") == "validation_changed":
            made = {}
    return dict(sorted(made.items()))


def ranking(measured: Course, metric: str) -> list[Best]:
    """Return the evaluations from the best to the worst; of equal ones the earlier is the better."""
    found = [Best(step, metric, figures[metric]) for step, figures in measured.items() if metric in figures]
    return sorted(found, key=lambda one: -gain(metric, one.value, 0.0))


def patience_ends(measured: Course, metric: str, patience: int, threshold: float) -> int | None:
    """Return the step of the evaluation at which ``patience`` has run out, if it has.

    An evaluation counts as better where it beats all before it by more than ``threshold``, as in transformers'
    ``EarlyStoppingCallback``. One without the figure does not count: the rows were others then.
    """
    best, waited = None, 0
    for step, figures in measured.items():
        if (value := figures.get(metric)) is None:
            continue
        waited = 0 if best is None or gain(metric, value, best) > threshold else waited + 1
        if best is None or gain(metric, value, best) > 0:
            best = value
        if waited >= patience:
            return step
    return None


def patience_text(section: TrainingSection) -> str:
    """Return for want of what training ends early: no better figure for so many evaluations."""
    times = section.early_stopping_patience
    more = f" by more than {section.early_stopping_threshold:g}" if section.early_stopping_threshold else ""
    return f"no better {section.metric_for_best_model}{more} for {times} evaluation{'s' * (times != 1)}"


def stopped_text(step: int, section: TrainingSection, best: Best) -> str:
    """Return why a training has ended at ``step``."""
    return f"stopped early at step {step}: {patience_text(section)} (best {best.value:.6g} at step {best.step})"


def overfitting(measured: Course, log: Iterable[Mapping[str, Any]]) -> str | None:
    """Return what is seen where the validation loss has first risen :data:`RISES` times as the training loss fell.

    The training loss is the mean of the log lines between two evaluations; of intervals without one nothing is said.

    Args:
        measured: The evaluations.
        log: The lines of the train log, ``step`` and ``loss``.
    """
    rows = [(row["step"], row["loss"]) for row in log]
    steps = [step for step, figures in measured.items() if "loss" in figures]
    losses = [measured[step]["loss"] for step in steps]
    spans = zip([0, *steps], steps, strict=False)
    trained = [_mean([loss for at, loss in rows if before < at <= step]) for before, step in spans]
    for last in range(RISES, len(steps)):
        first = last - RISES
        if all(losses[at] < losses[at + 1] for at in range(first, last)) and trained[last] < trained[first]:
            return (
                f"overfitting: the validation loss rose from {losses[first]:.4g} at step {steps[first]} to "
                f"{losses[last]:.4g} at step {steps[last]}, {RISES} evaluations in a row, while the training loss fell "
                f"from {trained[first]:.4g} to {trained[last]:.4g}"
            )
    return None


def overfitting_advice(section: TrainingSection) -> str:
    """Return what to try against overfitting, without what the recipe does already."""
    ways = []
    if not section.load_best_model_at_end:
        ways.append("keep the best step's weights (training.load_best_model_at_end: true)")
    if section.early_stopping_patience is None:
        ways.append("stop early (training.early_stopping_patience: 2)")
    ways += ["train for fewer epochs", "more training rows"]
    ways.append("a higher training.weight_decay" if section.weight_decay else "training.weight_decay: 0.01")
    return f"try: {', '.join(ways)}, or train less of the model (method.name: lora)"


def late_patience(section: TrainingSection, num_steps: int, steps_an_epoch: int, since_step: int) -> str | None:
    """Return what is to be said where ``early_stopping_patience`` cannot end a training before its last step.

    Args:
        section: The recipe's ``training`` section.
        num_steps: Steps of the whole training.
        steps_an_epoch: Steps between two evaluations where there is one an epoch.
        since_step: Evaluations after this step count.
    """
    if section.early_stopping_patience is None:
        return None
    every = (section.eval_steps if section.eval_strategy == "steps" else steps_an_epoch) or 1
    count = math.ceil(num_steps / every) - since_step // every
    if section.early_stopping_patience + 1 < count:
        return None
    return (
        f"training.early_stopping_patience {section.early_stopping_patience} cannot end this training before its last "
        f"step: there are {count} evaluations in {num_steps - since_step} steps; lower it, or evaluate more often "
        "(training.eval_strategy: steps)"
    )


def lost_weights(section: TrainingSection) -> str | None:
    """Return what is to be said where training stops early and keeps weights that are not the best."""
    if section.early_stopping_patience is None or section.load_best_model_at_end:
        return None
    return (
        "training.early_stopping_patience without load_best_model_at_end keeps the weights of the step at which "
        "training stops, which are not the best ones; set training.load_best_model_at_end: true for those"
    )


def selection_faults(task: str, multi_label: bool, method: str, section: TrainingSection) -> Iterator[SettingError]:
    """Yield what of the selection does not fit the task or the method, under keys of the recipe.

    Args:
        task: Name of the task.
        multi_label: Its rows have several labels.
        method: Name of the method.
        section: The recipe's ``training`` section.
    """
    known = SELECTABLE[MULTI_LABEL if multi_label else task]
    name = section.metric_for_best_model
    if name not in known:
        bare = name.removeprefix("eval_")
        near = bare if bare in known else nearest(bare, known)
        remedy = f"did you mean {near!r}?" if near else ""
        what = f"{name!r:.80} is no figure of {task} on data.validation that says how good a model is"
        yield SettingError("training.metric_for_best_model", what, f"one of {', '.join(known)}", remedy)
    if method == "gradual_unfreezing" and section.early_stopping_patience is not None:
        what = "ends gradual_unfreezing before its later stages, whose weights have not been trained by then"
        remedy = "leave it out; training.load_best_model_at_end: true keeps the best step of all stages"
        yield SettingError("training.early_stopping_patience", what, "", remedy)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
