"""Exact measurement of a model on a split: every example once, the loss a mean over targets, for any batch size."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from finelaunch.data.features import Features
from finelaunch.errors import FinelaunchError
from finelaunch.run.ranks import ALONE, Ranks, gather
from finelaunch.run.stops import stop_if_asked
from finelaunch.run.watch import alive
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
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``: what a forward pass computes in.
        ranks: This process among those that measure together.
    """

    task: Task
    tokenizer: "PreTrainedTokenizerBase"
    facts: Mapping[str, Any]
    batch_size: int = 32
    precision: str = "fp32"
    ranks: Ranks = ALONE

    def measure(
        self,
        model: "PreTrainedModel",
        examples: list[Example],
        features: Features,
        threshold: float | None = None,
    ) -> Measured:
        """Return the figures of ``model`` on a split, ``loss`` among them; of several sources ``by_source``, too.

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
        metrics = {"loss": _mean_loss(results), **measured.metrics}
        if len({example.get("source") for example in examples}) > 1:
            chosen = metrics.get("threshold", threshold)
            metrics["by_source"] = self._by_source(examples, features, results, chosen)
        return replace(measured, metrics=metrics)

    def _by_source(
        self,
        examples: list[Example],
        features: Features,
        results: Mapping[str, np.ndarray],
        threshold: float | None,
    ) -> dict[str, dict[str, Any]]:
        """Return the figures of each source on its own, from results that are there, at one threshold for all.

        A source of which no row could be encoded has no figures.
        """
        found = {}
        numbers = features.column("example")
        names = np.array([example["source"] for example in examples])
        for name in dict.fromkeys(names.tolist()):
            of_source = np.flatnonzero(names == name)
            rows = np.flatnonzero(np.isin(numbers, of_source))
            if not len(rows):
                continue
            part = {key: values[rows] for key, values in results.items()}
            own = features.rows(rows, example=np.searchsorted(of_source, numbers[rows]))
            measured = self.task.measure([examples[index] for index in of_source], own, part, self.facts, threshold)
            found[name] = {"loss": _mean_loss(part), **measured.metrics}
        return found

    def results(self, model: "PreTrainedModel", features: Features) -> dict[str, np.ndarray]:
        """Return the task's results of every feature in order, with ``loss_sum`` (float64) and ``num_targets`` (int64).

        Rows go through the model from the longest to the shortest, so that batches are hardly padded and a batch that
        does not fit into memory is met first. Of several ranks each measures every W-th row, all of them make equally
        many forward passes, and each has the whole result.
        """
        import torch

        own = rows_of_rank(features.lengths, self.ranks)
        batches = [own[start : start + self.batch_size] for start in range(0, len(own), self.batch_size)]
        found: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        # Not inference_mode: under ZeRO-3 weights are gathered into tensors that training goes on with.
        with torch.no_grad(), _measuring(model), self._autocast(model.device):
            for ids in batches:
                stop_if_asked()
                alive()
                found.append((ids, self._batch(model, features, ids)))
        return merged([part for parts in gather(found) for part in parts], len(features))

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

        if self.precision in ("fp32", "tf32"):
            return nullcontext()
        return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision])


def _mean_loss(results: Mapping[str, np.ndarray]) -> float:
    return float(results["loss_sum"].sum() / results["num_targets"].sum())


def rows_of_rank(lengths: np.ndarray, ranks: Ranks) -> np.ndarray:
    """Return the rows that a rank measures, longest first, int64; every rank has the same number.

    Where the rows do not divide, some are measured twice, and counted once by :func:`merged`.
    """
    order = np.argsort(-lengths, kind="stable")
    missing = -len(order) % ranks.world_size
    return np.concatenate([order, np.resize(order, missing)])[ranks.rank :: ranks.world_size]


def merged(parts: list[tuple[np.ndarray, dict[str, np.ndarray]]], num_rows: int) -> dict[str, np.ndarray]:
    """Return the results of all rows in order from those of batches.

    Args:
        parts: Of each batch its rows and its results ``[batch, …]``.
        num_rows: Rows in all.

    Raises:
        FinelaunchError: A row is missing.
    """
    seen = np.zeros(num_rows, dtype=bool)
    whole: dict[str, np.ndarray] = {}
    for ids, results in parts:
        seen[ids] = True
        for name, values in results.items():
            if name not in whole:
                whole[name] = np.zeros((num_rows, *values.shape[1:]), values.dtype)
            whole[name][ids] = values
    if not seen.all():
        raise FinelaunchError(f"evaluation: {int((~seen).sum())} of {num_rows} rows were measured by no rank")
    return whole


@contextmanager
def _measuring(model: "PreTrainedModel") -> Iterator[None]:
    """Put ``model`` into evaluation mode and back into the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
