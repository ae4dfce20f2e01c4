"""The one training path: every task and method goes through :func:`train`, they differ by the objects passed in."""

import math
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.data.features import Features
from finelaunch.data.sampler import GlobalBatchSampler, TrainingRows
from finelaunch.errors import FinelaunchError
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.run.log import say, warn
from finelaunch.tasks.base import IGNORED, Task
from finelaunch.training.checkpoints import check_foreign, checkpoint_to_resume, step_of
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
    from safetensors.torch import load_model
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PrinterCallback, TrainerState
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
    step = step_of(checkpoint) or 0 if checkpoint else 0
    steps = num_steps(sampler, section)
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
    if checkpoint is not None and checkpoint.parent != run.checkpoints:
        check_foreign(checkpoint, model, steps)
    run.note(engine=engine, parameters=parameters_of(model))
    _announce(sampler, placement, steps, checkpoint)
    _warn_of_filling(sampler, run)
    run.record("training", from_step=step, checkpoint=checkpoint.name if checkpoint else None)
    try:
        if checkpoint is None or step < steps:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        else:  # within an epoch the Trainer would do one step more before it sees that all are done
            load_model(model, checkpoint / "model.safetensors")
            trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    finally:
        journal.close()
    return Trained(model, _figures(trainer, model, journal), engine, journal.evaluated_step)


def num_steps(sampler: GlobalBatchSampler, section: TrainingSection) -> int:
    """Return the optimizer steps of the whole training."""
    return (
        section.max_steps if section.max_steps > 0 else math.ceil(section.num_train_epochs * sampler.num_global_batches)
    )


def engine_of(trainer: "Trainer", model: "PreTrainedModel", placement: Placement) -> dict[str, Any]:
    """Return what really runs, read from the live objects.

    Raises:
        FinelaunchError: It is not one process on one device as was asked.
    """
    accelerator = trainer.accelerator
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    ran = (accelerator.distributed_type.value, accelerator.num_processes, accelerator.device.type, precision)
    if ran != ("NO", 1, placement.device, placement.precision) or trainer.args.n_gpu > 1:
        raise FinelaunchError(
            f"engine: asked for one process on {placement.device} in {placement.precision}, but accelerate runs "
            f"{accelerator.num_processes} ({ran[0]}) on {accelerator.device} in {precision} with {trainer.args.n_gpu} "
            "GPUs; accelerate takes this from the environment: unset ACCELERATE_*, RANK and WORLD_SIZE"
        )
    return {
        "name": "single",
        "distributed_type": accelerator.distributed_type.value,
        "world_size": accelerator.num_processes,
        "zero_stage": None,
        "backend": None,
        "device": str(accelerator.device),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "precision": precision,
        "global_batch_size": placement.global_batch_size,
        "per_device_batch_size": trainer.args.per_device_train_batch_size,
        "gradient_accumulation_steps": trainer.args.gradient_accumulation_steps,
    }


def parameters_of(model: "PreTrainedModel") -> dict[str, int]:
    """Return how many parameters there are, and how many are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {"total": sum(size for size, _ in sizes), "trainable": sum(size for size, trained in sizes if trained)}


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


def _figures(trainer: "Trainer", model: "PreTrainedModel", journal: Any) -> dict[str, Any]:
    import torch

    seconds = max(journal.total_seconds, 1e-9)
    on_gpu = trainer.args.device.type == "cuda"
    lines = read_lines(journal.run.train_log)
    return {
        "loss": lines[-1]["loss"] if lines else None,
        "steps": trainer.state.global_step,
        "samples_per_second": round(journal.total_rows / seconds, 3) if journal.total_rows else None,
        "tokens_per_second": round(journal.total_tokens / seconds, 1) if journal.total_rows else None,
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "model_bytes": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
    }
