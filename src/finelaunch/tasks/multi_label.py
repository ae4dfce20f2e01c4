"""Text classification with any number of labels a text: a yes or no for every label.

Every pair of text and label is a target, so the shared loss rule makes the mean binary cross-entropy of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from finelaunch.data.checks import RowError, column_names, text_in
from finelaunch.data.features import Features
from finelaunch.data.section import label_column
from finelaunch.data.sources import Rows
from finelaunch.data.splits import STRATUM_SEPARATOR
from finelaunch.errors import BadInput, Problem
from finelaunch.metrics.multi_label import choose_label_threshold, multi_label_metrics
from finelaunch.tasks.base import IGNORED, Example, Measured
from finelaunch.tasks.text_classification import Labels, TextClassification, label_name, listed, named_scores

if TYPE_CHECKING:
    import torch

_SEPARATED = "set task.label_separator where labels stand in one text, such as a;b"
_SINGLE = "set task.multi_label: false where every text has one label"


class MultiLabelClassification(TextClassification):
    """Texts, each with those of N labels that fit it, be it none."""

    columns: ClassVar[Mapping[str, str]] = {
        "text": "the text",
        "label": "a list of labels, each a name or a number from 0; a column named labels does as well",
    }

    def columns_in(self, rows: Rows, given: Mapping[str, str]) -> dict[str, str]:
        """Return the data's columns for ``text`` and ``label``, which may be called ``labels``."""
        others = {name: column for name, column in given.items() if name != "labels" or "label" in given}
        return column_names(rows, self.columns, {**others, "label": label_column(given, rows.rows[0])})

    def refuse_other_kind(self, rows: Rows, column: str) -> None:
        """Refuse rows none of whose labels is a list or can be read as one, with the setting that reads them.

        Raises:
            BadInput: They are not.
        """
        values = [value for row in rows.rows if (value := row.get(column)) is not None]
        kinds = (list, str) if self.section.label_separator else list
        if values and not any(isinstance(value, kinds) for value in values):
            what = f"no row holds a list of labels, the first one {values[0]!r:.60}"
            raise BadInput(Problem(rows.origin, column, what, "", f"{_SEPARATED}; {_SINGLE}"))

    def names_in(self, value: Any) -> Iterable[str]:
        """Return the names of the labels that a row's ``label`` holds, also a single one's, which is refused later."""
        if isinstance(value, str) and self.section.label_separator:
            return self._parts(value)
        return super().names_in(value)

    def _parts(self, text: str) -> list[str]:
        return [part.strip() for part in text.split(self.section.label_separator) if part.strip()]

    def targets(self, value: Any, column: str, known: Labels) -> Example:
        """Return ``{labels}``: for every label 1 or 0.

        Raises:
            RowError: The value is no list of labels, or names one twice.
        """
        if isinstance(value, str) and self.section.label_separator:
            value = self._parts(value)
        if not isinstance(value, list):
            what = "is missing" if value is None else f"is one label: {value!r:.60}"
            allowed = "a list of names or numbers, empty for a text without label"
            raise RowError(
                column, what, allowed, _SEPARATED if label_name(value) is None else f"{_SEPARATED}; {_SINGLE}"
            )
        numbers = [known.number(one, column) for one in value]
        if len(set(numbers)) < len(numbers):
            what = f"{value!r:.60} names a label twice"
            raise RowError(column, what, "the labels of the text", "give their names, not a 0 or 1 for every label")
        hot = [0] * len(known)
        for number in numbers:
            hot[number] = 1
        return {"labels": hot}

    def ask(self, inputs: Mapping[str, Any], identity: str) -> Example:
        """Return an example from ``text``; its one 0 stands for any number of labels."""
        return {"id": identity, "text": text_in(inputs, "text"), "labels": [0]}

    def group(self, example: Example) -> tuple[str, str]:
        """Return the text, as for one label, and all labels as stratum."""
        numbers = (str(number) for number, has in enumerate(example["labels"]) if has)
        return " ".join(example["text"].split()), STRATUM_SEPARATOR.join(numbers)

    def target_of(self, example: Example) -> Any:
        """Return the 1 or 0 of every label."""
        return example["labels"]

    def num_per_label(self, features: Features, facts: Mapping[str, Any]) -> dict[str, int]:
        """Return how many rows have each label."""
        names = facts["label_names"]
        counts = features.column("labels").reshape(len(features), len(names)).sum(axis=0)
        return dict(zip(names, counts.tolist(), strict=True))

    def balanced(self, num_per_label: Mapping[str, int], num_rows: int) -> tuple[dict[str, float], str]:
        """Return the weight of a label where a text has it, rows without it / rows with it, and what to say of them."""
        weights = {
            name: (num_rows - count) / count if 0 < count < num_rows else 1.0 for name, count in num_per_label.items()
        }
        alone = [name for name, count in num_per_label.items() if not 0 < count < num_rows]
        said = "task.class_weights balanced: all rows or none have the labels "
        return weights, f"{said}{listed(alone)}, which keep the weight 1" if alone else ""

    def model_config(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the label names, and that each has a yes or no of its own."""
        return {**super().model_config(facts), "problem_type": "multi_label_classification"}

    def weighted_losses(
        self, outputs: Mapping[str, "torch.Tensor"], labels: "torch.Tensor", weights: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Return the binary cross-entropy of ``logits`` ``[batch, labels]``, summed over the labels of a row.

        The weight of a label counts where a row has it.
        """
        from torch.nn.functional import binary_cross_entropy_with_logits

        logits = outputs["logits"].float()
        wanted = labels.expand_as(logits)
        losses = binary_cross_entropy_with_logits(
            logits, wanted.clamp(min=0).to(logits.dtype), pos_weight=weights, reduction="none"
        )
        return losses.masked_fill(wanted == IGNORED, 0.0).sum(-1)

    def results(
        self, outputs: Mapping[str, "torch.Tensor"], features: Features, ids: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the probability of every label, float32 ``[batch, labels]``; they do not add up to 1."""
        return {"scores": outputs["logits"].float().sigmoid().cpu().numpy()}

    def measure(
        self,
        examples: Sequence[Example],
        features: Features,
        results: Mapping[str, np.ndarray],
        facts: Mapping[str, Any],
        threshold: float | None,
    ) -> Measured:
        """Return the figures of several labels a text; predictions are lists of names.

        Without a ``threshold`` the one with the best ``f1_micro`` on these very examples is chosen.
        """
        names, scores = facts["label_names"], results["scores"]
        labels = np.zeros(scores.shape, dtype=bool)
        for row, example in zip(labels, examples, strict=True):
            row[:] = example["labels"]
        chosen = choose_label_threshold(labels, scores) if threshold is None else threshold
        given = scores.astype(np.float64) >= chosen
        predictions = [
            {
                "id": example["id"],
                "prediction": _chosen(names, given[index]),
                "scores": named_scores(names, scores[index]),
                "reference": _chosen(names, labels[index]),
            }
            for index, example in enumerate(examples)
        ]
        references = (given.astype(int).tolist(), labels.astype(int).tolist())
        return Measured(multi_label_metrics(labels, scores, names, chosen), predictions, references)


def _chosen(names: Sequence[str], has: np.ndarray) -> list[str]:
    return [name for name, one in zip(names, has, strict=True) if one]
