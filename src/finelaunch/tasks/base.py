"""What a task must be able to do: one contract for its data, one for its model.

``pipeline.py`` and ``training/train.py`` know tasks only through these two. Nothing here or at the top of a task's
module imports torch, so that recipes and data can be checked without it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from finelaunch.data.features import Features
from finelaunch.data.sources import Rows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Example = dict[str, Any]
Batch = dict[str, "torch.Tensor"]
RowLosses = Callable[[Mapping[str, "torch.Tensor"], "torch.Tensor"], "torch.Tensor"]

IGNORED = -100
"""The label of a position that is no target."""


@dataclass(frozen=True)
class Encoded:
    """The encoded examples of one split.

    Args:
        features: One or more features an example; the column ``example`` holds the example's index.
        notes: What was cut or dropped on the way, a sentence each, for the manifest.
    """

    features: Features
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What a model reached on a split.

    Args:
        metrics: Figures under the names of the metric keys.
        predictions: One row an example: ``id``, ``prediction`` and what the task adds.
        references: Pairs for metrics of other libraries: the predictions and the references as they take them.
    """

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]] = field(default_factory=list)
    references: tuple[list[Any], list[Any]] = ((), ())  # type: ignore[assignment]


class TaskData(Protocol):
    """From rows to features; no torch."""

    columns: ClassVar[Mapping[str, str]]
    """The columns that a row must have under these or mapped names, and what each is."""

    def facts(self, rows: Rows, given: Mapping[str, str]) -> dict[str, Any]:
        """Return what the training rows settle for all splits, such as the label names; ``given`` are its columns."""
        ...

    def read(self, rows: Rows, given: Mapping[str, str], facts: Mapping[str, Any]) -> list[Example]:
        """Return the checked examples in the order of ``rows``.

        Raises:
            BadInput: With each fault's file, row, column and remedy.
        """
        ...

    def ask(self, inputs: Mapping[str, Any], identity: str) -> Example:
        """Return an example without targets from what a user asks, to be predicted.

        Raises:
            RowError: An input is missing or empty.
        """
        ...

    def group(self, example: Example) -> tuple[str, str]:
        """Return what must not be torn apart by a split (article, text), and the stratum to keep the share of.

        A stratum may be several labels, with :data:`STRATUM_SEPARATOR` of ``data/splits.py`` between them.
        """
        ...

    def encode(self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase") -> Encoded:
        """Return the features of ``examples``: ``input_ids``, ``labels``, ``example`` and what the task needs."""
        ...


class TaskModel(Protocol):
    """From features to figures."""

    auto_class: str
    """Name of the transformers Auto class that builds the model."""

    def model_config(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return values of the model's config that the task settles, such as the label names."""
        ...

    def prepare(self, model: "PreTrainedModel") -> None:
        """Change the plain model before it is trained or measured, such as by a forward hook."""
        ...

    def collate(self, rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> Batch:
        """Return a batch: the model's inputs, padded, and int64 ``labels``."""
        ...

    def row_losses(self, outputs: Mapping[str, "torch.Tensor"], labels: "torch.Tensor") -> "torch.Tensor":
        """Return the loss of each row summed over its targets, float32 ``[batch]``; rows without targets give 0."""
        ...

    def results(
        self, outputs: Mapping[str, "torch.Tensor"], features: Features, ids: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the few numbers a feature that :meth:`measure` needs, ``[batch, …]``; ``ids`` are feature rows."""
        ...

    def measure(
        self,
        examples: Sequence[Example],
        features: Features,
        results: Mapping[str, np.ndarray],
        facts: Mapping[str, Any],
        threshold: float | None,
    ) -> Measured:
        """Return metrics and predictions from the results of all features, in their order.

        ``results`` also has ``loss_sum`` (float64) and ``num_targets`` (int64). A task that chooses a threshold chooses
        it here where ``threshold`` is None and reports it as the metric ``threshold``.
        """
        ...


class Task(TaskData, TaskModel, Protocol):
    """Both sides of a task."""


@runtime_checkable
class Labelled(Protocol):
    """What a task whose rows have labels does beside: it counts them, and lets some count more in the training loss.

    What is measured is never weighted, so that figures of runs with other weights can be compared.
    """

    def num_per_label(self, features: Features, facts: Mapping[str, Any]) -> dict[str, int]:
        """Return how many rows have each label."""
        ...

    def check_weights(self, facts: Mapping[str, Any], origin: str) -> None:
        """Refuse weights that do not fit the labels.

        Raises:
            BadInput: They do not.
        """
        ...

    def label_weights(self, num_per_label: Mapping[str, int], num_rows: int) -> tuple[dict[str, float] | None, str]:
        """Return the weight of each label, None where all count alike, and what to say of it."""
        ...

    def weighted_losses(
        self, outputs: Mapping[str, "torch.Tensor"], labels: "torch.Tensor", weights: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Return the loss of each row as ``row_losses`` does, with the weights ``[labels]`` in it."""
        ...


def label_report(task: TaskData, split: str, features: Features, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a data report says of a split's labels; nothing where the task has none.

    ``num_per_label``, and of the training rows ``class_weights`` and ``weight_notes`` where some labels count more.
    """
    if not isinstance(task, Labelled):
        return {}
    counts = task.num_per_label(features, facts)
    weights, note = task.label_weights(counts, len(features)) if split == "train" else (None, "")
    weighted = {} if weights is None else {"class_weights": weights, "weight_notes": [note] if note else []}
    return {"num_per_label": counts, **weighted}


def training_losses(task: TaskModel, weights: Mapping[str, float] | None) -> RowLosses:
    """Return the loss of each row as training takes it: ``row_losses``, or weighted by the labels' ``weights``."""
    if weights is None:
        return task.row_losses
    import torch

    assert isinstance(task, Labelled)
    weighted, values = task.weighted_losses, torch.tensor(list(weights.values()), dtype=torch.float32)
    return lambda outputs, labels: weighted(outputs, labels, values.to(labels.device))


def pad(rows: Sequence[Mapping[str, Any]], column: str, value: int, left: bool = False) -> "torch.Tensor":
    """Return ``column`` of all rows as int64 ``[batch, longest]``, filled up with ``value`` on the right (or left)."""
    import torch

    longest = max(len(row[column]) for row in rows)
    padded = np.full((len(rows), longest), value, dtype=np.int64)
    for place, row in zip(padded, rows, strict=True):
        length = len(row[column])
        place[longest - length if left else 0 : None if left else length] = row[column]
    return torch.from_numpy(padded)


def pad_inputs(rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase", left: bool = False) -> Batch:
    """Return the model's inputs, each int64 ``[batch, longest]``.

    They are ``input_ids``, ``attention_mask`` and, where the rows have them, ``token_type_ids``. The mask is made from
    the lengths, so that a pad token that is also a real token (EOS) is never masked by its id.
    """
    import torch

    fill: Any = tokenizer.pad_token_id
    batch = {"input_ids": pad(rows, "input_ids", 0 if fill is None else fill, left)}
    ones = [{"mask": np.ones(len(row["input_ids"]), dtype=np.int64)} for row in rows]
    batch["attention_mask"] = pad(ones, "mask", 0, left)
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = pad(rows, "token_type_ids", tokenizer.pad_token_type_id, left)
    return {name: tensor.to(torch.int64) for name, tensor in batch.items()}


def in_chunks(examples: Sequence[Example], call: Callable[[Sequence[Example]], None], size: int = 1000) -> None:
    """Call ``call`` on slices of ``examples``, so that memory does not grow with the whole split."""
    for start in range(0, len(examples), size):
        call(examples[start : start + size])
