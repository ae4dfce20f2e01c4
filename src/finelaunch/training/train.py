"""The one training path: every task, method and engine goes through :func:`train`; the objects passed in differ."""

import math
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.data.features import Features
from finelaunch.data.sampler import GlobalBatchSampler, TrainingRows
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.run.log import say, warn
from finelaunch.run.ranks import Ranks, gather
from finelaunch.tasks.base import IGNORED, Task
from finelaunch.training.checkpoints import check_engine, check_foreign, checkpoint_to_resume, step_of
from finelaunch.training.placement import Placement
from finelaunch.training.section import TrainingSection
from finelaunch.training.verify import verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

    from finelaunch.training.trainer import FinelaunchTrainer


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Args:
        model: The plain model; its parameters are empty where the engine keeps them in parts.
        measured: What to evaluate: the plain model, or what the engine made of it.
        weights: All weights, whole, on the first rank, where the model's own are parts.
        figures: loss (of the last interval), steps, rates, memory and size, under the metric keys of ``train``.
        evaluated_step: The step after which the validation split was last measured, if it was.
    """

    model: Any
    measured: Any
    weights: dict[str, Any] | None
    figures: dict[str, Any]
    evaluated_step: int | None


def train(
    section: TrainingSection,
    arguments: "TrainingArguments",
    placement: Placement,
    ranks: Ranks,
    task: Task,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    features: Features,
    evaluator: Callable[[Any], dict[str, Any]],
    on_untrained: Callable[[Any], None] | None,
    run: RunDirectory,
) -> Trained:
    """Train ``model`` on ``features``, from the newest checkpoint of the run where there is one.

    Args:
        section: The recipe's ``training`` section.
        arguments: What :func:`training_arguments` made of it.
        placement: A settled placement.
        ranks: This process among all.
        task: Gives batches and losses.
        model: The model, prepared by task and method.
        tokenizer: Its tokenizer, saved with every checkpoint.
        features: The training rows.
        evaluator: Measures a model on the validation split.
        on_untrained: Called with the prepared model before the first step of a training that begins.
        run: Where checkpoints and logs go.

    Raises:
        BadInput: ``training.resume`` names no checkpoint, or one that this engine cannot continue.
        FinelaunchError: What runs is not what was asked.
    """
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PrinterCallback
    from transformers.integrations.integration_utils import TensorBoardCallback

    from finelaunch.training.arguments import layer_classes
    from finelaunch.training.journal import Dropout, Journal, Start
    from finelaunch.training.trainer import FinelaunchTrainer, loss_rule

    sampler = GlobalBatchSampler(
        features.lengths,
        section.global_batch_size,
        placement.per_device_batch_size,
        section.seed,
        section.length_window_batches,
        ranks.rank,
        ranks.world_size,
    )
    checkpoint = gather(_checkpoint(section, placement, run) if ranks.is_first else None)[0]
    step = step_of(checkpoint) or 0 if checkpoint else 0
    steps = num_steps(sampler, section)
    sampler.end_after(steps)
    if checkpoint is not None and checkpoint.parent != run.checkpoints:
        check_foreign(checkpoint, model, steps)

    def on_start(trainer: Any) -> None:
        engine = verify(trainer, placement)
        run.note(engine=engine, parameters=parameters_of(trainer.model))
        run.record("training", from_step=step, checkpoint=checkpoint.name if checkpoint else None)
        if checkpoint is None and on_untrained is not None:
            on_untrained(trainer.measured_model)

    if placement.engine.name == "fsdp2":
        plugin: Any = arguments.fsdp_plugin_args
        plugin.setdefault("transformer_cls_names_to_wrap", layer_classes(model))
    journal = Journal(run, sampler)
    start = Start(on_start)
    writer = SummaryWriter(str(run.tensorboard), purge_step=step + 1) if run.writes else None
    trainer = FinelaunchTrainer(
        sampler=sampler,
        evaluator=evaluator,
        measures_wrapped=placement.engine.shards_weights,
        model=model,
        args=arguments,
        train_dataset=TrainingRows(features, IGNORED),
        eval_dataset=features,
        data_collator=lambda rows: task.collate(rows, tokenizer),
        compute_loss_func=loss_rule(task.row_losses),
        processing_class=tokenizer,
        callbacks=[start, Dropout(section.seed, ranks.rank), journal]
        + ([TensorBoardCallback(writer)] if writer else []),
    )
    start.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    _announce(sampler, placement, steps, checkpoint)
    _warn_of_filling(sampler, run)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        journal.close()
    figures, weights = _figures(trainer, journal), _whole_weights(trainer)
    return Trained(trainer.model, trainer.measured_model, weights, figures, journal.evaluated_step)


def _checkpoint(section: TrainingSection, placement: Placement, run: RunDirectory) -> Path | None:
    """Return the checkpoint to continue from, one that this engine can; the first rank decides it for all."""
    checkpoint = checkpoint_to_resume(section.resume, run)
    if checkpoint is not None:
        check_engine(checkpoint, placement)
        saved = len(list(checkpoint.glob("rng_state*.pth")))
        if saved != placement.num_processes:
            text = f"{checkpoint} holds the random states of {saved} processes, and {placement.num_processes} go on"
            if run.warn(text):
                warn(f"{text}: dropout draws other masks than the run would have drawn, order and data are the same")
    return checkpoint


def num_steps(sampler: GlobalBatchSampler, section: TrainingSection) -> int:
    """Return the optimizer steps of the whole training."""
    return (
        section.max_steps if section.max_steps > 0 else math.ceil(section.num_train_epochs * sampler.num_global_batches)
    )


def parameters_of(model: "PreTrainedModel") -> dict[str, int]:
    """Return how many parameters there are, and how many are trained."""
    sizes = [(num_elements(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return {"total": sum(size for size, _ in sizes), "trainable": sum(size for size, trained in sizes if trained)}


def _whole_weights(trainer: "FinelaunchTrainer") -> dict[str, Any] | None:
    """Return the whole model's weights on the first rank where they are cut; to be called by all ranks."""
    if not trainer.measures_wrapped:
        return None
    weights: Any = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights if trainer.is_world_process_zero() else None


def num_elements(parameter: Any) -> int:
    """Return the elements of a whole parameter; ZeRO-3 leaves an empty one in its place and keeps the number."""
    return getattr(parameter, "ds_numel", parameter.numel())


def _announce(sampler: GlobalBatchSampler, placement: Placement, steps: int, checkpoint: Path | None) -> None:
    filled = f" ({sampler.num_padding_rows} rows without target fill the last batch)" * (sampler.num_padding_rows > 0)
    say(f"{placement.arithmetic()}; {sampler.num_global_batches} steps an epoch{filled}; {steps} steps in all")
    if checkpoint is not None:
        say(f"continuing from {checkpoint}")


def _warn_of_filling(sampler: GlobalBatchSampler, run: RunDirectory) -> None:
    """Say where more rows without target than with one go through the model."""
    rows = len(sampler.lengths)
    if sampler.num_padding_rows > rows:
        text = f"training.global_batch_size {sampler.global_batch_size} is more than twice the {rows} training rows"
        if run.warn(text):
            warn(f"{text}; the rest of every batch is filled with rows without target")


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
        "model_bytes": sum(num_elements(one) * one.element_size() for one in model.parameters()),
    }
