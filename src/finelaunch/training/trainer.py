"""The one subclass of the transformers Trainer: our order of the rows, our loss rule, our evaluation.

Only public methods are overridden.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from finelaunch.data.sampler import GlobalBatchSampler, TrainingRows

RowLosses = Callable[[Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor]


class EpochLoader(DataLoader):
    """A loader that hands the epoch on to its batch sampler.

    Without ``set_epoch`` every epoch of a fresh run would have the order of the first one, and a resumed run another.
    """

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def loss_rule(row_losses: RowLosses) -> Callable[..., torch.Tensor]:
    """Return the loss of every task: the sum over targets divided by their number in the whole global batch.

    So neither the cut of a batch nor its padding enters the loss or the gradient. A global batch without any target
    gives 0 instead of dividing by it.

    Args:
        row_losses: The task's loss of each row, summed over its targets.
    """

    def compute_loss(
        outputs: Mapping[str, torch.Tensor], labels: torch.Tensor, num_items_in_batch: torch.Tensor
    ) -> torch.Tensor:
        return row_losses(outputs, labels).sum() / num_items_in_batch.clamp(min=1)

    return compute_loss


class FinelaunchTrainer(Trainer):
    """Trainer with finelaunch's sampler and evaluation.

    Args:
        sampler: The order of the rows.
        evaluator: Measures the model at hand on the validation split and returns its figures.
        measures_wrapped: Hand the engine's own object to the evaluator, where no device holds the whole model.
        **others: As for ``Trainer``; ``train_dataset`` is a :class:`TrainingRows`.
    """

    def __init__(
        self,
        *,
        sampler: GlobalBatchSampler,
        evaluator: Callable[[Any], dict[str, Any]],
        measures_wrapped: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.sampler = sampler
        self.evaluator = evaluator
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
            generator=torch.Generator(),
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return and log the figures on the validation split, under the names of the metric keys with the prefix."""
        figures = self.evaluator(self.measured_model)
        numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        metrics: dict[str, float] = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
