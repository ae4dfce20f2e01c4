"""Exact measurement of a model on a split: every example once, the loss a mean over targets, for any batch size."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from finelaunch.data.features import Features
from finelaunch.errors import FinelaunchError
from finelaunch.tasks.base import IGNORED, Example, Measured, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Evaluator:
    """Measures models of one task.

    Args:
        task: The task.
        tokenizer: Its tokenizer, for padding.
        facts: What the training rows settled.
        batch_size: Rows of a forward pass.
        precision: ``fp32``, ``bf16`` or ``fp16``: what a forward pass computes in.
    """

    task: Task
    tokenizer: "PreTrainedTokenizerBase"
    facts: Mapping[str, Any]
    batch_size: int = 32
    precision: str = "fp32"

    def measure(
        self,
        model: "PreTrainedModel",
        examples: list[Example],
        features: Features,
        threshold: float | None = None,
    ) -> Measured:
        """Return the figures of ``model`` on a split, ``loss`` among them.

        Args:
            model: On the device to measure on; left in the mode it was in.
            examples: The examples of the split.
            features: Their features.
            threshold: The threshold to apply; None lets a task that needs one choose it on this split.

        Raises:
            FinelaunchError: The loss is not a number.
        """
        results = self.results(model, features)
        if not np.isfinite(results["loss_sum"]).all():
            row = examples[int(features.column("example")[np.flatnonzero(~np.isfinite(results["loss_sum"]))[0]])]
            raise FinelaunchError(
                f"evaluation: the loss is {results['loss_sum'].sum()} (first at example {row.get('id')!r}); "
                "training diverged: lower training.learning_rate, and with fp16 try launch.precision=bf16 or fp32"
            )
        measured = self.task.measure(examples, features, results, self.facts, threshold)
        loss = float(results["loss_sum"].sum() / results["num_targets"].sum())
        return replace(measured, metrics={"loss": loss, **measured.metrics})

    def results(self, model: "PreTrainedModel", features: Features) -> dict[str, np.ndarray]:
        """Return the task's results of every feature in order, with ``loss_sum`` (float64) and ``num_targets`` (int64).

        Rows go through the model from the longest to the shortest, so that batches are hardly padded and a batch that
        does not fit into memory is met first.
        """
        import torch

        order = np.argsort(-features.lengths, kind="stable")
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        found: dict[str, np.ndarray] = {}
        with torch.inference_mode(), _measuring(model), self._autocast(model.device):
            for ids in batches:
                for name, values in self._batch(model, features, ids).items():
                    if name not in found:
                        found[name] = np.zeros((len(features), *values.shape[1:]), values.dtype)
                    found[name][ids] = values
        return found

    def _batch(self, model: "PreTrainedModel", features: Features, ids: np.ndarray) -> dict[str, np.ndarray]:
        batch = self.task.collate([features[index] for index in ids], self.tokenizer)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        outputs = model(**batch)
        counts = (labels != IGNORED).reshape(len(ids), -1).sum(-1)
        return {
            **self.task.results(outputs, features, ids),
            "loss_sum": self.task.row_losses(outputs, labels).double().cpu().numpy(),
            "num_targets": counts.cpu().numpy(),
        }

    def _autocast(self, device: "torch.device") -> Any:
        import torch

        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision])


@contextmanager
def _measuring(model: "PreTrainedModel") -> Iterator[None]:
    """Put ``model`` into evaluation mode and back into the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
