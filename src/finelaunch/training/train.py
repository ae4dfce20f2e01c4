"""The one training path: every task and method goes through :func:`train`, they differ by the objects passed in."""

import json
import math
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.data.features import Features
from finelaunch.data.sampler import GlobalBatchSampler, TrainingRows
from finelaunch.errors import BadInput, FinelaunchError, Problem
from finelaunch.run.directory import RunDirectory
from finelaunch.run.log import say, warn
from finelaunch.tasks.base import IGNORED, Task
from finelaunch.training.placement import Placement
from finelaunch.training.section import TrainingSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Args:
        model: The trained model.
        figures: loss (of the last interval), steps, rates, memory and size, under the metric keys of ``train``.
        engine: What really ran, read from the live objects.
        evaluated_step: The step after which the validation split was last measured, if it was.
    """

    model: "PreTrainedModel"
    figures: dict[str, Any]
    engine: dict[str, Any]
    evaluated_step: int | None


def train(
    section: TrainingSection,
    placement: Placement,
    task: Task,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    features: Features,
    evaluator: Callable[[Any], dict[str, Any]],
    run: RunDirectory,
) -> Trained:
    """Train ``model`` on ``features``, from the newest checkpoint of the run where there is one.

    Args:
        section: The recipe's ``training`` section.
        placement: A settled placement.
        task: Gives batches and losses.
        model: The model, prepared by task and method.
        tokenizer: Its tokenizer, saved with every checkpoint.
        features: The training rows.
        evaluator: Measures a model on the validation split.
        run: Where checkpoints and logs go.

    Raises:
        BadInput: ``training.resume`` names no checkpoint.
        FinelaunchError: What runs is not what was asked.
    """
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PrinterCallback
    from transformers.integrations.integration_utils import TensorBoardCallback

    from finelaunch.training.arguments import training_arguments
    from finelaunch.training.journal import Dropout, Journal
    from finelaunch.training.trainer import FinelaunchTrainer, loss_rule

    sampler = GlobalBatchSampler(
        features.lengths,
        section.global_batch_size,
        placement.per_device_batch_size,
        section.seed,
        section.length_window_batches,
    )
    checkpoint = checkpoint_to_resume(section.resume, run)
    step = (_step(checkpoint) if checkpoint else None) or 0
    journal = Journal(run, sampler)
    trainer = FinelaunchTrainer(
        sampler=sampler,
        evaluator=evaluator,
        model=model,
        args=training_arguments(section, placement, run.checkpoints),
        train_dataset=TrainingRows(features, IGNORED),
        eval_dataset=features,
        data_collator=lambda rows: task.collate(rows, tokenizer),
        compute_loss_func=loss_rule(task.row_losses),
        processing_class=tokenizer,
        callbacks=[
            Dropout(section.seed),
            journal,
            TensorBoardCallback(SummaryWriter(str(run.tensorboard), purge_step=step + 1)),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    engine = engine_of(trainer, model, placement)
    run.note(engine=engine, parameters=parameters_of(model))
    _announce(sampler, placement, section, checkpoint)
    _warn_of_filling(sampler, run)
    run.record("training", from_step=step, checkpoint=checkpoint.name if checkpoint else None)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        journal.close()
    return Trained(model, _figures(trainer, model, journal), engine, journal.evaluated_step)


def checkpoint_to_resume(resume: str, run: RunDirectory) -> Path | None:
    """Return the checkpoint that ``training.resume`` means: the newest of the run for ``auto``, None for ``never``.

    Raises:
        BadInput: It is a path without a checkpoint.
    """
    if resume == "never":
        return None
    if resume == "auto":
        steps = {path: _step(path) for path in run.checkpoints.glob("checkpoint-*")}
        for path in (path for path, step in steps.items() if step is None):
            text = f"{path} is passed over: it was not written to its end"
            if run.warn(text):
                warn(text)
        return max(((step, path) for path, step in steps.items() if step is not None), default=(0, None))[1]
    path = Path(resume)
    if _step(path) is None:
        what = f"there is no whole checkpoint at {resume}"
        raise BadInput(Problem("recipe", "training.resume", what, "auto, never or a checkpoint-N folder"))
    return path


def _step(checkpoint: Path) -> int | None:
    """Return the step of a checkpoint, or None where its state, which the Trainer writes last, is not there."""
    try:
        return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def engine_of(trainer: "Trainer", model: "PreTrainedModel", placement: Placement) -> dict[str, Any]:
    """Return what really runs, read from the live objects.

    Raises:
        FinelaunchError: It is not one process on one device as was asked.
    """
    accelerator = trainer.accelerator
    if accelerator.num_processes != 1 or trainer.args.n_gpu > 1 or accelerator.device.type != placement.device:
        raise FinelaunchError(
            f"engine: asked for one process on {placement.device}, but accelerate runs {accelerator.num_processes} on "
            f"{accelerator.device} with {trainer.args.n_gpu} GPUs; unset ACCELERATE_* and CUDA_VISIBLE_DEVICES"
        )
    return {
        "name": "single",
        "distributed_type": accelerator.distributed_type.value,
        "world_size": accelerator.num_processes,
        "zero_stage": None,
        "backend": None,
        "device": str(accelerator.device),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "precision": placement.precision,
        "global_batch_size": placement.global_batch_size,
        "per_device_batch_size": trainer.args.per_device_train_batch_size,
        "gradient_accumulation_steps": trainer.args.gradient_accumulation_steps,
    }


def parameters_of(model: "PreTrainedModel") -> dict[str, int]:
    """Return how many parameters there are, and how many are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {"total": sum(size for size, _ in sizes), "trainable": sum(size for size, trained in sizes if trained)}


def _announce(
    sampler: GlobalBatchSampler, placement: Placement, section: TrainingSection, checkpoint: Path | None
) -> None:
    steps = section.max_steps if section.max_steps > 0 else None
    steps = steps or math.ceil(section.num_train_epochs * sampler.num_global_batches)
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


def _figures(trainer: "Trainer", model: "PreTrainedModel", journal: Any) -> dict[str, Any]:
    import torch

    seconds = max(journal.total_seconds, 1e-9)
    on_gpu = trainer.args.device.type == "cuda"
    return {
        "loss": journal.last_loss,
        "steps": trainer.state.global_step,
        "samples_per_second": round(journal.total_rows / seconds, 3),
        "tokens_per_second": round(journal.total_tokens / seconds, 1),
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "model_bytes": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
    }
