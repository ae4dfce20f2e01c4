"""The one subclass of the transformers Trainer: our order of the rows, our loss rule, our evaluation, our checkpoints.

Public methods are overridden where there is one. The private ones that are touched stand in :data:`PRIVATE`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from finelaunch.data.sampler import GlobalBatchSampler, TrainingRows
from finelaunch.errors import Interrupted
from finelaunch.methods.base import Stage
from finelaunch.tasks.base import RowLosses
from finelaunch.training.journal import Losses
from finelaunch.training.loader import EpochLoader, outlive_signals
from finelaunch.training.preemption import Preemption
from finelaunch.training.saving import Saving
from finelaunch.training.stages import advance, in_groups, load_weights_alone

if TYPE_CHECKING:
    from finelaunch.training.guards import Guard
    from finelaunch.training.pacing import Pace

PRIVATE = {
    "_save_checkpoint": ("self", "model", "trial"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_get_grad_norm": ("self", "model", "grad_norm"),
}
"""Private methods of the Trainer that are called or overridden, and their parameters; a test holds that they are so."""


def loss_rule(row_losses: RowLosses) -> Callable[..., torch.Tensor]:
    """Return the loss of every task: the sum over targets divided by their number in the whole global batch.

    So neither the cut of a batch nor its padding enters the loss or the gradient. A global batch without any target
    gives 0 instead of dividing by it.

    Args:
        row_losses: The task's loss of each row, summed over its targets, each times the weight of its label if any.
    """

    def compute_loss(
        outputs: Mapping[str, torch.Tensor], labels: torch.Tensor, num_items_in_batch: torch.Tensor
    ) -> torch.Tensor:
        return row_losses(outputs, labels).sum() / num_items_in_batch.clamp(min=1)

    return compute_loss


class FinelaunchTrainer(Trainer):
    """Trainer with finelaunch's sampler, evaluation and checkpoints.

    Args:
        sampler: The order of the rows.
        guard: Looks at every loss before the backward pass, and at every gradient before the optimizer.
        losses: Takes the loss of every micro-batch.
        saving: Makes checkpoints count.
        preemption: Knows of stops.
        evaluator: Measures the model at hand on the validation split and returns its figures.
        stage: What is trained, and at which shares of the learning rate.
        num_steps: Steps of the whole training, by which the learning rate runs.
        pace: What may yet change them, and the learning rates from then on.
        begins_at: The steps that the stages before have done, where this one begins: it has an optimizer of its own.
        measures_wrapped: Hand the engine's own object to the evaluator, where no device holds the whole model.
        **others: As for ``Trainer``; ``train_dataset`` is a :class:`TrainingRows`.
    """

    def __init__(
        self,
        *,
        sampler: GlobalBatchSampler,
        guard: "Guard",
        losses: Losses,
        saving: Saving,
        preemption: Preemption,
        evaluator: Callable[[Any], dict[str, Any]],
        stage: Stage,
        num_steps: int,
        pace: "Pace | None" = None,
        begins_at: int | None = None,
        measures_wrapped: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.sampler = sampler
        self.guard = guard
        self.losses = losses
        self.saving = saving
        self.preemption = preemption
        self.evaluator = evaluator
        self.stage = stage
        self.num_steps = num_steps
        self.pace = pace
        self.begins_at = begins_at
        self.measures_wrapped = measures_wrapped

    @property
    def measured_model(self) -> Any:
        """What to evaluate: the plain model, or what the engine made of it where it is cut between devices."""
        return self.model_wrapped if self.measures_wrapped else self.model

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader over the sampler's micro-batches; it is not prepared, which would shard it a second time."""
        assert isinstance(self.train_dataset, TrainingRows)
        return EpochLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
            persistent_workers=self.args.dataloader_num_workers > 0,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the optimizer, with the stage's shares of the learning rate."""
        is_new = self.optimizer is None  # with DeepSpeed it is asked for twice
        optimizer = super().create_optimizer(model)
        if is_new and self.stage.rates:
            in_groups(optimizer, self.model, self.stage)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule of the whole training, at the place where this one begins."""
        scheduler: Any = super().create_scheduler(self.num_steps, optimizer)
        if self.pace is not None:
            self.pace.follow(scheduler, self.args)
        if self.begins_at is not None:
            advance(scheduler, self.begins_at)
            if self.is_deepspeed_enabled:
                prepared: Any = self.accelerator.deepspeed_engine_wrapped
                load_weights_alone(prepared.engine)
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load what a checkpoint holds of them, unless that is of the stage before."""
        if self.begins_at is None:
            super()._load_optimizer_and_scheduler(checkpoint)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a micro-batch, once it is known to be a number on every rank."""
        self.guard.before_forward(num_items_in_batch)
        loss: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.guard.check_loss(loss)
        self.losses.add(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the norm of the gradient, once it is known to be a number; the Trainer asks for it before a step."""
        norm = super()._get_grad_norm(model, grad_norm)
        self.guard.check_gradient(norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures, with the mean loss over the whole interval even where a stop has cut it in two.

        The Trainer's summary of what this process has trained is left out: a run that was stopped would have several.
        """
        if "loss" in logs:
            logs["loss"] = self.losses.take_mean()
        if "train_runtime" not in logs:
            super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights, the first files of a checkpoint; not the arguments, a pickle that may hold a token."""
        folder = Path(output_dir or str(self.args.output_dir))
        self.saving.begin(folder, self.guard.check_weights)
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)

    def save_last_step(self) -> None:
        """Write a checkpoint of the last step, where the rhythm has asked for none; every rank calls this."""
        if self.saving.saved_step != self.state.global_step:
            model: Any = self.model_wrapped
            self._save_checkpoint(model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.saving.finish()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return and log the figures on the validation split, under the names of the metric keys with the prefix.

        A stop is heard between two batches: the step is saved, and the evaluation is left until the run continues.
        """
        try:
            figures = self.evaluator(self.measured_model)
        except Interrupted as stop:
            self.preemption.end(stop, self.state, self.control)
            return {}
        numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        metrics: dict[str, float] = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
