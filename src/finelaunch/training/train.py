"""The one training path: every task, method and engine goes through :func:`train`; the objects passed in differ."""

import math
import resource
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finelaunch.data.sampler import GlobalBatchSampler, TrainingRows
from finelaunch.methods.base import Method, Stage
from finelaunch.models.weights import num_bytes_of, parameters_of
from finelaunch.preparation import Split
from finelaunch.run.directory import RunDirectory, versions
from finelaunch.run.files import is_full_disk, read_lines
from finelaunch.run.log import say, warn
from finelaunch.run.ranks import Ranks, gather, on_first
from finelaunch.tasks.base import IGNORED, Task, training_losses
from finelaunch.tasks.packing import documents_per_row, is_packed, refuse_mixing
from finelaunch.training.checkpoints import (
    Continued,
    Identity,
    check_foreign,
    choose_checkpoint,
    refuse_fewer_steps,
    set_newer_aside,
)
from finelaunch.training.faults import check_room, checkpoint_bytes
from finelaunch.training.manifest import newest_checkpoint
from finelaunch.training.placement import Placement
from finelaunch.training.recorder import whole_weights
from finelaunch.training.section import TrainingSection
from finelaunch.training.selection import course
from finelaunch.training.verify import verify, verify_equal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

    from finelaunch.training.epochs import EpochEnd
    from finelaunch.training.trainer import FinelaunchTrainer


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Args:
        model: The plain model; its parameters are empty where the engine keeps them in parts.
        measured: What to evaluate: the plain model, or what the engine made of it.
        weights: All weights, whole, on the first rank, where the model's own are parts.
        figures: loss (of the last interval), steps, rates, memory and size, under the metric keys of ``train``.
        is_measured: The validation split was last measured with these very weights.
        save: Writes a checkpoint of the last step unless there is one, for what may yet be stopped; all ranks call it.
        check: Ends the run where a weight is no number; all ranks call it.
    """

    model: Any
    measured: Any
    weights: dict[str, Any] | None
    figures: dict[str, Any]
    is_measured: bool
    save: Callable[[], None]
    check: Callable[[], None]


def train(
    section: TrainingSection,
    arguments: "TrainingArguments",
    placement: Placement,
    ranks: Ranks,
    task: Task,
    method: Method,
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    split: Split,
    evaluator: Callable[[Any], dict[str, Any]],
    on_begin: Callable[[Any, bool], None],
    epoch_end: "EpochEnd | None",
    run: RunDirectory,
    identity: Identity,
    permitted: Collection[str] = (),
    grace_seconds: float = 120.0,
) -> Trained:
    """Train ``model`` on ``split``, from the newest checkpoint of the run that verifies where there is one.

    Args:
        section: The recipe's ``training`` section.
        arguments: What :func:`training_arguments` made of it.
        placement: A settled placement.
        ranks: This process among all.
        task: Gives batches and losses.
        method: Says what is trained, and when.
        model: The model, prepared by task and method.
        tokenizer: Its tokenizer, saved with every checkpoint.
        split: The training rows.
        evaluator: Measures a model on the validation split.
        on_begin: Called with the prepared model before the first step, and with whether it is untrained.
        epoch_end: Called with the untuned model and after each epoch.
        run: Where checkpoints and logs go.
        identity: What the checkpoints state of the run.
        permitted: Keys in which a checkpoint of another run may differ.
        grace_seconds: How long a stop may wait for a place to save.

    Raises:
        BadInput: ``training.resume`` names no checkpoint, or one that this run or engine cannot continue.
        RequirementMissing: The disk has no room for checkpoints.
        FinelaunchError: What runs is not what was asked, or a loss or gradient is no number.
        Interrupted: All ranks have agreed to stop, and what was trained is saved.
    """
    import torch
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PrinterCallback
    from transformers.integrations.integration_utils import TensorBoardCallback

    from finelaunch.training.arguments import layer_classes, training_arguments
    from finelaunch.training.best import Selection
    from finelaunch.training.buckets import settle_buckets
    from finelaunch.training.epochs import Epochs
    from finelaunch.training.guards import Guard
    from finelaunch.training.journal import Dropout, Journal, Losses, Start
    from finelaunch.training.pacing import pace_of
    from finelaunch.training.preemption import Preemption
    from finelaunch.training.saving import Saving
    from finelaunch.training.stages import held, part_with
    from finelaunch.training.trainer import FinelaunchTrainer, loss_rule

    features = split.features
    sampler = GlobalBatchSampler(
        features.lengths,
        section.global_batch_size,
        placement.per_device_batch_size,
        section.seed,
        section.length_window_batches,
        ranks.rank,
        ranks.world_size,
    )
    at_most_steps = num_steps(sampler, section)
    chosen = choose_checkpoint(section.resume, section.verify, run, placement, identity, ranks, permitted)
    checkpoint = chosen.checkpoint
    step = checkpoint.step if checkpoint else 0
    if checkpoint is not None:
        if chosen.is_foreign:
            check_foreign(checkpoint, model, at_most_steps)
        else:
            refuse_fewer_steps(checkpoint, at_most_steps)
    pace = pace_of(section, sampler, run, ranks, at_most_steps, chosen, placement)
    steps = pace.num_steps if pace else at_most_steps
    stages = method.stages(model, steps)
    aside = set_newer_aside(chosen, run) if ranks.is_first else []

    def on_start(trainer: Any) -> None:
        engine = verify(trainer, placement)
        settle_buckets(trainer.model_wrapped, run)
        if is_packed(features):
            is_whole = not trainer.measures_wrapped
            refuse_mixing(
                trainer.measured_model, tokenizer, placement.per_device_batch_size, placement.precision, is_whole
            )
        parameters = parameters_of(trainer.model)
        run.note(engine=engine, parameters=parameters)
        num_bytes = checkpoint_bytes(trainer.model, section, placement)
        on_first(ranks, lambda: check_room(run, num_bytes))
        if trainer.stage.name:
            about = {"name": trainer.stage.name, "end_step": trainer.stage.end_step, **parameters}
            run.record("stage", from_step=trainer.state.global_step, **about)
        say(trained_share(parameters, trainer.stage.name))
        if begun:
            return
        begun.append(True)
        name, lost = checkpoint.path.name if checkpoint else None, num_lost_steps(run, step)
        foreign = {"foreign": True} if chosen.is_foreign else {}
        run.record("training", from_step=step, steps=steps, checkpoint=name, lost_steps=lost, **foreign)
        on_begin(trainer.measured_model, checkpoint is None)

    def before_first_step() -> None:
        ends = {stage.end_step for stage in stages}
        if gather(is_evaluation_due(step, ends, sampler, section, run, chosen) if ranks.is_first else None)[0]:
            guard.trainer.evaluate()
        selection.end_if_due()

    def newest() -> str | None:
        saving.finish()  # what was just written may be the newest
        found = newest_checkpoint(run.checkpoints) if ranks.is_first else None
        return gather(found.path.name if found else None)[0]

    stated = {
        "world_size": placement.num_processes,
        "engine": placement.engine.name,
        "versions": versions(),
        "num_threads": torch.get_num_threads(),
        "fingerprint": identity.fingerprint,
        "recipe": dict(identity.recipe),
        "data": dict(identity.data),
        "base": identity.base,
    }
    begun: list[bool] = []
    losses = Losses(checkpoint.content["losses"] if checkpoint else ())
    saved_step = None if chosen.is_foreign else step or None
    metric = section.metric_for_best_model
    saving = Saving(run, ranks, stated, losses.of_interval, section.save_total_limit, metric, saved_step, aside)
    selection = Selection(run, ranks, section, sampler, losses, saving, chosen)
    preemption = Preemption(saving, grace_seconds, before_first_step)
    journal = Journal(run, sampler, losses, saving.seconds, steps, metric)
    guard = Guard(run, sampler, features, lambda: split.examples, ranks, placement, newest)

    def trainer_of(stage: Stage, begins_at: int | None, arguments: "TrainingArguments") -> FinelaunchTrainer:
        if placement.engine.name == "fsdp2":
            plugin: Any = arguments.fsdp_plugin_args
            plugin.setdefault("transformer_cls_names_to_wrap", layer_classes(model))
        start = Start(on_start)
        writer = SummaryWriter(str(run.tensorboard), purge_step=(begins_at or step) + 1) if run.writes else None
        trainer = FinelaunchTrainer(
            sampler=sampler,
            guard=guard,
            losses=losses,
            saving=saving,
            preemption=preemption,
            evaluator=evaluator,
            stage=stage,
            num_steps=steps,
            pace=pace,
            begins_at=begins_at,
            measures_wrapped=placement.engine.shards_weights,
            model=model,
            args=arguments,
            train_dataset=TrainingRows(features, IGNORED),
            eval_dataset=features,
            data_collator=lambda rows: task.collate(rows, tokenizer),
            compute_loss_func=loss_rule(training_losses(task, split.class_weights)),
            processing_class=tokenizer,
            callbacks=([pace] if pace else [])
            + [start, Dropout(section.seed, ranks.rank), guard, losses, journal]
            + ([TensorBoardCallback(writer)] if writer else [])
            + [selection, saving, preemption],
        )
        start.trainer = guard.trainer = selection.trainer = trainer
        if epoch_end is not None:
            epochs = Epochs(epoch_end, trainer, stages, preemption, journal, writer)
            trainer.add_callback(epochs)
        if pace is not None:
            pace.join(trainer, journal, selection.announce)
        trainer.remove_callback(PrinterCallback)
        return trainer

    _announce(sampler, placement, steps, chosen, documents_per_row(features))
    if pace is not None:
        pace.announce()
    _warn_of_filling(sampler, run)
    _warn_of_paging(section, placement, run)
    selection.announce(steps)
    try:
        path, reached, done = checkpoint.path if checkpoint else None, step, 0
        for stage in stages:
            begins_at = done if 0 < done == reached else None
            done = stage.end_step
            if reached >= done and stage is not stages[-1]:
                continue
            sampler.end_after(done)
            if len(stages) > 1 or steps < at_most_steps:
                arguments = training_arguments(section, placement, run.checkpoints, done)
            with held(model, stage):
                current = trainer_of(stage, begins_at, arguments)
                current.train(resume_from_checkpoint=str(path) if path else None)
                if stage is not stages[-1] and preemption.stop is None:
                    verify_equal(current.model, placement)
                    current.save_last_step()
                    path, reached = run.checkpoints / f"checkpoint-{done}", done
                    part_with(current)
            if preemption.stop is not None:
                break
        saving.finish()
        saving.wait_for_rotation()
        journal.complete()
        if preemption.stop is not None:
            raise preemption.stop
        trainer: FinelaunchTrainer = guard.trainer
        verify_equal(trainer.model, placement)
        kept_step = selection.keep(placement, evaluator, in_stages=len(stages) > 1)
    except BaseException as error:
        if ranks.world_size == 1 and isinstance(error, Exception) and not is_full_disk(error):
            with suppress(Exception):
                saving.finish()  # a checkpoint that was written before is as good as it was
        saving.abandon()
        raise
    finally:
        journal.close()
    last_step, is_last = trainer.state.global_step, kept_step == trainer.state.global_step
    figures = {**_figures(trainer, journal), **selection.figures(kept_step)}
    weights = _whole_weights(trainer)
    return Trained(
        trainer.model,
        trainer.measured_model,
        weights,
        figures,
        not is_last or journal.evaluated_step == last_step,
        trainer.save_last_step,
        guard.check_weights,
    )


def is_evaluation_due(
    step: int,
    ends: Collection[int],
    sampler: GlobalBatchSampler,
    section: TrainingSection,
    run: RunDirectory,
    chosen: Continued,
) -> bool:
    """Return whether the run was stopped between a step and the evaluation that belongs after it."""
    if chosen.checkpoint is None or chosen.is_foreign:
        return False
    is_end = step % sampler.num_global_batches == 0 or step in ends
    is_due = {"no": False, "epoch": is_end, "steps": step % (section.eval_steps or 1) == 0 or step in ends}
    return is_due[section.eval_strategy] and step not in course(read_lines(run.events))


def num_lost_steps(run: RunDirectory, from_step: int) -> int:
    """Return how many steps beyond ``from_step`` an earlier start of the run has made, to be made again."""
    last = max((row["step"] for row in read_lines(run.samples) if "step" in row), default=from_step)
    return max(last - from_step, 0)


def num_steps(sampler: GlobalBatchSampler, section: TrainingSection) -> int:
    """Return the optimizer steps of the whole training."""
    return (
        section.max_steps if section.max_steps > 0 else math.ceil(section.num_train_epochs * sampler.num_global_batches)
    )


def trained_share(parameters: dict[str, int], stage: str) -> str:
    """Return how many parameters are trained, as a sentence."""
    trained, total = parameters["trainable"], parameters["total"]
    what = f" ({stage})" if stage else ""
    return f"trained are {trained:,} of {total:,} parameters, {trained / total:.3%}{what}"


def _whole_weights(trainer: "FinelaunchTrainer") -> dict[str, Any] | None:
    """Return the whole model's weights on the first rank where they are cut; to be called by all ranks."""
    if not trainer.measures_wrapped:
        return None
    weights = whole_weights(trainer)
    return weights if trainer.is_world_process_zero() else None


def _announce(
    sampler: GlobalBatchSampler, placement: Placement, steps: int, chosen: Continued, documents: float
) -> None:
    filled = f" ({sampler.num_padding_rows} rows without target fill the last batch)" * (sampler.num_padding_rows > 0)
    say(f"{placement.arithmetic()}; {sampler.num_global_batches} steps an epoch{filled}; {steps} steps in all")
    if documents > 1:
        seen = documents * sampler.global_batch_size
        say(f"a row is a pack of {documents:.3g} examples: a step sees {seen:,.0f} of them (task.packing)")
    if chosen.checkpoint is not None:
        say(f"continuing from {chosen.checkpoint.path}")
    elif chosen.newer:
        say("training begins at its first step")


def _warn_of_filling(sampler: GlobalBatchSampler, run: RunDirectory) -> None:
    """Say where more rows without target than with one go through the model."""
    rows = len(sampler.lengths)
    if sampler.num_padding_rows > rows:
        text = f"training.global_batch_size {sampler.global_batch_size} is more than twice the {rows} training rows"
        if run.warn(text):
            warn(f"{text}; the rest of every batch is filled with rows without target")


def _warn_of_paging(section: TrainingSection, placement: Placement, run: RunDirectory) -> None:
    """Say where an optimizer that pages has nowhere to page to; bitsandbytes says it in a warning of Python's."""
    if section.optim.startswith("paged") and placement.device == "cpu":
        text = f"training.optim {section.optim}: nothing is paged on a CPU, its state stays in memory"
        if run.warn(text):
            warn(text)


def _figures(trainer: "Trainer", journal: Any) -> dict[str, Any]:
    import torch

    seconds = max(journal.total_seconds, 1e-9)
    on_gpu = trainer.args.device.type == "cuda"
    lines = read_lines(journal.run.train_log)
    model: Any = trainer.model
    return {
        "loss": lines[-1]["loss"] if lines else None,
        "steps": trainer.state.global_step,
        "samples_per_second": round(journal.total_rows / seconds, 3) if journal.total_rows else None,
        "tokens_per_second": round(journal.total_tokens / seconds, 1) if journal.total_rows else None,
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "model_bytes": num_bytes_of(model),
    }
