"""Text classification: one label of any number a text."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from finelaunch.data.checks import RowError, check_rows, column_names, text_in
from finelaunch.data.features import Features
from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput, Problem
from finelaunch.metrics.classification import classification_metrics
from finelaunch.section.base import Section, SettingError
from finelaunch.tasks.base import IGNORED, Batch, Encoded, Example, Measured, in_chunks, pad_inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NUMBER = re.compile(r"-?[0-9]{1,9}")


class TextClassificationSection(Section):
    """One label a text."""

    name: Literal["text_classification"] = Field(description="the task")
    max_length: int = Field(
        default=256, ge=8, description="tokens a text; what is longer is cut at the end and counted"
    )
    label_names: list[str] | None = Field(
        default=None, min_length=2, description="names of the labels 0, 1, …; by default from the data"
    )

    @model_validator(mode="after")
    def _distinct(self) -> "TextClassificationSection":
        if self.label_names and len(set(self.label_names)) < len(self.label_names):
            raise SettingError("label_names", "a name stands twice")
        return self


class TextClassification:
    """Texts into one of N labels."""

    columns: ClassVar[Mapping[str, str]] = {"text": "the text", "label": "a label's name, or its number from 0"}
    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, section: TextClassificationSection) -> None:
        self.section = section

    def facts(self, rows: Rows, given: Mapping[str, str]) -> dict[str, Any]:
        """Return ``label_names``: those of the recipe, of the source, or of the labels found, sorted.

        Labels that are numbers are their own names, in the order of the numbers; true and false are named so.
        """
        names = self.section.label_names or rows.class_names
        if names is None:
            column = column_names(rows, self.columns, given)["label"]
            found = {name for row in rows.rows if (name := _name(row.get(column))) is not None}
            numbers = {name for name in found if _is_number(name)}
            names = sorted(found, key=lambda name: (int(name), name)) if numbers == found else sorted(found)
        if len(names) < 2:
            what = f"only the label {names[0]!r}" if names else "no labels"
            raise BadInput(Problem(rows.origin, f"{rows.key}", what, "two labels or more"))
        return {"label_names": list(names)}

    def read(self, rows: Rows, given: Mapping[str, str], facts: Mapping[str, Any]) -> list[Example]:
        """Return examples ``{id, text, label}`` with the label as its number."""
        names = column_names(rows, self.columns, given)
        numbers = {name: number for number, name in enumerate(facts["label_names"])}
        by_number = not any(map(_is_number, numbers))
        allowed = f"one of {', '.join(list(numbers)[:20])}{', …' if len(numbers) > 20 else ''}"
        allowed += f", or 0 to {len(numbers) - 1}" if by_number else ""

        def read(row: Mapping[str, Any]) -> Example:
            label = row.get(names["label"])
            name = _name(label)
            number = None if name is None else numbers.get(name)
            if number is None and name is not None and by_number and _is_number(name):
                number = int(name)
            if number is None or not 0 <= number < len(numbers):
                what = "is missing" if label is None else f"{label!r:.60} is not a label"
                raise RowError(names["label"], what, allowed, "correct the row, or list all in task.label_names")
            return {"text": text_in(row, names["text"]), "label": number}

        return check_rows(rows, read)

    def ask(self, inputs: Mapping[str, Any], identity: str) -> Example:
        """Return an example from ``text``."""
        return {"id": identity, "text": text_in(inputs, "text"), "label": 0}

    def group(self, example: Example) -> tuple[str, str]:
        """Return the text, so that texts that differ in white space only stay together, and the label as stratum."""
        return " ".join(example["text"].split()), str(example["label"])

    def encode(self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase") -> Encoded:
        """Return one feature an example, its label as ``labels``."""
        columns: dict[str, list[Any]] = defaultdict(list)
        num_cut, longest = 0, self.section.max_length

        def encode(chunk: Sequence[Example]) -> None:
            nonlocal num_cut
            texts = [example["text"] for example in chunk]
            encoded = tokenizer(texts, truncation=True, max_length=longest, return_attention_mask=False)
            full = (one for one in encoded.encodings or () if len(one) == longest)
            num_cut += sum(bool(encoding.overflowing) for encoding in full)
            for name, rows in encoded.items():
                columns[name].extend(np.array(row, dtype=np.int32) for row in rows)

        in_chunks(examples, encode)
        columns["labels"] = [example["label"] for example in examples]
        columns["example"] = list(range(len(examples)))
        share = f"{num_cut:,} of {len(examples):,} texts cut at task.max_length {longest}"
        return Encoded(Features.from_lists(columns), (share,) if num_cut else ())

    def model_config(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the label names as the model's config keeps them."""
        names = facts["label_names"]
        return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}

    def prepare(self, model: "PreTrainedModel") -> None:
        """Leave the model as it is."""

    def collate(self, rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> Batch:
        """Return padded inputs and ``labels`` ``[batch]``."""
        import torch

        labels = torch.tensor([int(row["labels"]) for row in rows], dtype=torch.int64)
        return {**pad_inputs(rows, tokenizer), "labels": labels}

    def row_losses(self, outputs: Mapping[str, "torch.Tensor"], labels: "torch.Tensor") -> "torch.Tensor":
        """Return the cross-entropy of ``logits`` ``[batch, labels]``, one a row."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs["logits"].float(), labels, ignore_index=IGNORED, reduction="none")

    def results(
        self, outputs: Mapping[str, "torch.Tensor"], features: Features, ids: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the probabilities, float32 ``[batch, labels]``."""
        return {"scores": outputs["logits"].float().softmax(-1).cpu().numpy()}

    def measure(
        self,
        examples: Sequence[Example],
        features: Features,
        results: Mapping[str, np.ndarray],
        facts: Mapping[str, Any],
        threshold: float | None,
    ) -> Measured:
        """Return accuracy, F1 and the confusion matrix; predictions with the probability of every label."""
        names = facts["label_names"]
        labels = np.array([example["label"] for example in examples])
        predicted = results["scores"].argmax(-1)
        metrics = classification_metrics(labels, predicted, names)
        predictions = [
            {
                "id": example["id"],
                "prediction": names[number],
                "scores": {name: round(float(score), 6) for name, score in zip(names, scores, strict=True)},
                "reference": names[example["label"]],
            }
            for example, number, scores in zip(examples, predicted, results["scores"], strict=True)
        ]
        return Measured(metrics, predictions, (predicted.tolist(), labels.tolist()))


def _name(label: Any) -> str | None:
    """Return the name that a label goes by, or None where it is neither a text nor an integer."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label) if isinstance(label, int) or (isinstance(label, str) and label.strip()) else None


def _is_number(name: str) -> bool:
    return _NUMBER.fullmatch(name) is not None
