"""The best step of a training: saved as soon as it is known, and loaded at the end; and the end that comes early.

What is best, and whether it is time to end, follows from the run's records alone (``selection.py``); the first rank
reads them and tells the others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from finelaunch.data.sampler import GlobalBatchSampler
from finelaunch.errors import BadInput, FinelaunchError, Problem
from finelaunch.metrics.selection import is_selectable
from finelaunch.models.weights import is_adapted
from finelaunch.run.directory import RunDirectory, versions
from finelaunch.run.files import read_lines
from finelaunch.run.log import say, warn
from finelaunch.run.ranks import Ranks, on_first
from finelaunch.training.checkpoints import EXACT_ONLY_WITH, NOT_EXACT, Continued, verified
from finelaunch.training.journal import Losses
from finelaunch.training.manifest import Checkpoint
from finelaunch.training.placement import Placement
from finelaunch.training.saving import Saving
from finelaunch.training.section import TrainingSection
from finelaunch.training.selection import (
    Best,
    course,
    late_patience,
    lost_weights,
    overfitting,
    overfitting_advice,
    patience_ends,
    ranking,
    stopped_text,
)
from finelaunch.training.verify import verify_equal

LOSS_TOLERANCE = {"fp32": 1e-4}
"""By which share the loss of weights that were loaded may differ from the one that was recorded of them, where the
machine does not repeat itself bit for bit, by precision."""

_LOSS_TOLERANCE_OF_OTHERS = 1e-2


class Selection(TrainerCallback):
    """Has the best step saved, ends a training that gets no better, and brings the best weights back at its end.

    It comes after the journal, which records what was measured, and before what saves and stops.

    Args:
        run: The run directory.
        ranks: This process among all.
        section: The recipe's ``training`` section.
        sampler: Yields no more rows once training has ended.
        losses: Those of an interval that is cut short are still logged.
        saving: Knows what is saved.
        chosen: What training goes on from.
    """

    def __init__(
        self,
        run: RunDirectory,
        ranks: Ranks,
        section: TrainingSection,
        sampler: GlobalBatchSampler,
        losses: Losses,
        saving: Saving,
        chosen: Continued,
    ) -> None:
        self.run = run
        self.ranks = ranks
        self.section = section
        self.sampler = sampler
        self.losses = losses
        self.saving = saving
        self.chosen = chosen
        self.trainer: Any = None
        self.has_stopped = False
        """Whether training has ended before its last step, for want of a better figure."""

    def announce(self, num_steps: int) -> None:
        """Say what of the settings will not do what it seems to; every rank calls this.

        Args:
            num_steps: Steps of the whole training.
        """
        since_step = on_first(self.ranks, lambda: self.chosen.since_step(self.run))
        late = late_patience(self.section, num_steps, self.sampler.num_global_batches, since_step)
        for text in (late, lost_weights(self.section)):
            if text and self.run.warn(text):
                warn(text)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have the step saved where it is the best so far, and end training where patience has run out."""
        best, end = on_first(self.ranks, self._look)
        is_unsaved = self.saving.saved_step != state.global_step
        if self.section.load_best_model_at_end and best.step == state.global_step and is_unsaved:
            control.should_save = True
        self._end(end)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave out a second checkpoint of the same step."""
        if self.saving.saved_step == state.global_step:
            control.should_save = False

    def end_if_due(self) -> None:
        """End a run that had ended before and goes on, before its first step; every rank calls this."""
        self._end(on_first(self.ranks, lambda: self._why_ended(read_lines(self.run.events))))

    def _end(self, text: str | None) -> None:
        """End training where there is a reason to, in words; every rank calls this."""
        if text is None:
            return
        state, control = self.trainer.state, self.trainer.control
        self.has_stopped = True
        self.sampler.end_after(state.global_step)
        control.should_training_stop = True
        if self.section.save_strategy != "no" and self.saving.saved_step != state.global_step:
            control.should_save = True
        if self.losses.of_interval():
            self.trainer.log({"loss": 0.0, "learning_rate": self._last_rate(state.global_step)})
        say(text)

    def best(self) -> Best | None:
        """Return the best evaluation of the run, if there is one; every rank calls this."""
        metric = self.section.metric_for_best_model
        return on_first(self.ranks, lambda: next(iter(ranking(course(read_lines(self.run.events)), metric)), None))

    def figures(self, kept_step: int) -> dict[str, Any]:
        """Return what the selection came to, for ``metrics.json``; every rank calls this.

        Args:
            kept_step: Whose weights the model has.
        """
        best = self.best()
        return {"best_step": best.step if best else None, "kept_step": kept_step, "stopped_early": self.has_stopped}

    def keep(self, placement: Placement, evaluator: Callable[[Any], dict[str, Any]], in_stages: bool) -> int:
        """Let the model have the weights that are to be kept, and return the step of which they are.

        The last step is saved first, so that the run can be stopped and continued while all is measured.

        Args:
            placement: A settled placement.
            evaluator: Measures a model on the validation split.
            in_stages: The training had several stages, with an optimizer each.

        Raises:
            FinelaunchError: The best step's checkpoint is not whole, or its weights do not give its figures.
        """
        trainer, last = self.trainer, self.trainer.state.global_step
        if not self.section.load_best_model_at_end:
            return last
        trainer.save_last_step()
        best = self.best()
        if best is None or best.step == last:
            return last
        path = self.run.checkpoints / f"checkpoint-{best.step}"
        found = verified(path, self.section.verify, self.ranks)
        if isinstance(found, str):
            raise FinelaunchError(
                f"the best step is {best.step} ({best}), and {path} cannot be loaded: {found}; put a whole copy in its "
                "place, or keep the weights of the last step: the same command with "
                "training.load_best_model_at_end=false --allow-change training.load_best_model_at_end"
            )
        load_weights(trainer, found, in_stages)
        verify_equal(trainer.model, placement)
        figures = evaluator(trainer.measured_model)
        on_first(self.ranks, lambda: self._prove(found, best, figures, placement))
        return best.step

    def _look(self) -> tuple[Best, str | None]:
        """Return the best evaluation up to now and why training ends here, if it does; say where the model overfits.

        Raises:
            BadInput: The figure to compare by was not measured: the validation split does not allow for it.
        """
        events = read_lines(self.run.events)
        measured, metric = course(events), self.section.metric_for_best_model
        figures = measured[self.trainer.state.global_step]
        if metric not in figures:
            what = f"{metric} cannot be measured on this data.validation"
            allowed = f"one of {', '.join(name for name in figures if is_selectable(name))}"
            raise BadInput(Problem("recipe", "training.metric_for_best_model", what, allowed))
        seen = overfitting(measured, read_lines(self.run.train_log))
        if seen:
            text = f"{seen}; {overfitting_advice(self.section)}"
            if self.run.warn(text):
                warn(text)
        return ranking(measured, metric)[0], self._why_ended(events)

    def _why_ended(self, events: Sequence[Mapping[str, Any]]) -> str | None:
        """Return why training ends before its last step, if it does, once it stands in the run's events.

        Args:
            events: Those of the run.
        """
        step, patience = self.trainer.state.global_step, self.section.early_stopping_patience
        if patience is None or self.has_stopped or step >= self.trainer.state.max_steps:
            return None
        measured, metric = course(events), self.section.metric_for_best_model
        if patience_ends(measured, metric, patience, self.section.early_stopping_threshold) is None:
            return None
        best = ranking(measured, metric)[0]
        known = [event["step"] for event in events if event.get("event") == "stopped_early"]
        text = stopped_text(step, self.section, best)
        if step not in known:
            facts = {"metric": metric, "patience": patience, "best_step": best.step, "best": best.value}
            self.run.record("stopped_early", step=step, **facts, reason=text)
        return text

    def _last_rate(self, step: int) -> float:
        """Return the learning rate of the step that was done last, by the schedule alone."""
        scheduler = getattr(self.trainer.lr_scheduler, "scheduler", self.trainer.lr_scheduler)
        return scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step - 1)

    def _prove(self, found: Checkpoint, best: Best, figures: Mapping[str, Any], placement: Placement) -> None:
        """Hold what the loaded weights give against what was recorded of them.

        Raises:
            FinelaunchError: They differ.
        """
        events = read_lines(self.run.events)
        recorded = course(events)[best.step]
        differing = [name for name, value in recorded.items() if figures.get(name) != value]
        say(f"the weights of step {best.step} are kept, the best one by {self.section.metric_for_best_model}: {best}")
        if not differing:
            say("measured again, they give the very figures that were recorded of them")
            return
        off = abs(figures["loss"] - recorded["loss"]) / max(abs(recorded["loss"]), 1e-12)
        limit = LOSS_TOLERANCE.get(placement.precision, _LOSS_TOLERANCE_OF_OTHERS)
        if any("launch.precision" in event.get("keys", ()) for event in events):
            limit = _LOSS_TOLERANCE_OF_OTHERS
        name = differing[0]
        text = f"{found.path}: measured again, its weights give {name} {figures.get(name)!r}, not {recorded[name]!r}"
        if off > limit or self._is_exact(found, placement, events):
            raise FinelaunchError(f"{text}: they are not what was measured at step {best.step}, and nothing was kept")
        text += f"; the loss differs by {off:.1e} of it, which may be {limit:g} where a machine does not repeat itself"
        if self.run.warn(text):
            warn(text)

    def _is_exact(self, found: Checkpoint, placement: Placement, events: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether this process must come to the very figures of the one that wrote ``found``."""
        wrote, here = found.content, versions()
        hosts = {event["host"] for event in events if event.get("event") == "started" and "host" in event}
        if len(hosts) > 1 or any(event.get("event") == "changed" for event in events):
            return False
        if any(NOT_EXACT in text for text in self.run.read_manifest().get("warnings", [])):
            return False
        return (
            placement.device == "cpu"
            and (wrote["world_size"], wrote["engine"]) == (placement.num_processes, placement.engine.name)
            and wrote["num_threads"] == torch.get_num_threads()
            and all(wrote["versions"].get(name) == here.get(name) for name in EXACT_ONLY_WITH)
        )


def load_weights(trainer: Any, checkpoint: Checkpoint, in_stages: bool) -> None:
    """Load the weights of a verified checkpoint into a model that was trained, as a run that goes on from it does.

    Args:
        trainer: The trainer, after its last step.
        checkpoint: A checkpoint of its run.
        in_stages: What the checkpoint holds of the optimizer may be another stage's.
    """
    path = str(checkpoint.path)
    if not trainer.is_deepspeed_enabled:
        trainer._load_from_checkpoint(path, trainer.model_wrapped if trainer.is_fsdp_enabled else None)
    elif in_stages:
        type(trainer.model_wrapped).load_checkpoint(trainer.model_wrapped, path, load_module_only=True)
    else:
        from transformers.integrations.deepspeed import deepspeed_load_checkpoint

        deepspeed_load_checkpoint(trainer.model_wrapped, path, load_module_strict=not is_adapted(trainer.model))
