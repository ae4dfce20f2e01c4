"""Text classification: one label of any number a text; several a text are in ``multi_label.py``."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, Tag, model_validator

from finelaunch.data.checks import RowError, check_rows, column_names, text_in
from finelaunch.data.features import Features
from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput, Problem
from finelaunch.metrics.classification import classification_metrics
from finelaunch.section.base import Section, SettingError, told_apart
from finelaunch.tasks.base import IGNORED, Batch, Encoded, Example, Measured, in_chunks, pad_inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NUMBER = re.compile(r"-?[0-9]{1,9}")
_SHOWN = 20


ClassWeights = Annotated[
    Annotated[Literal["none", "balanced"], Tag("a word")] | Annotated[dict[str, float], Tag("by label")],
    told_apart(
        lambda value: "by label" if isinstance(value, dict) else "a word" if value in ("none", "balanced") else None,
        "'none', 'balanced', or a weight for each label such as {rare: 2.0, common: 1.0}",
    ),
]
"""How much each label counts: a word for all, or a number by label."""


class TextClassificationSection(Section):
    """One label a text, or several."""

    name: Literal["text_classification"] = Field(description="the task")
    max_length: int = Field(
        default=256, ge=8, description="tokens a text; what is longer is cut at the end and counted"
    )
    label_names: list[str] | None = Field(
        default=None, min_length=2, description="names of the labels 0, 1, …; by default from the data"
    )
    multi_label: bool = Field(default=False, description="a text has a list of labels, which may be empty")
    label_separator: str | None = Field(
        default=None, min_length=1, description="multi_label: what stands between labels given as one text, such as ;"
    )
    class_weights: ClassWeights = Field(
        default="none",
        description="how much each label counts in the training loss: all alike, rare ones more, or {label: weight}",
    )

    @model_validator(mode="after")
    def _distinct(self) -> "TextClassificationSection":
        if self.label_names and len(set(self.label_names)) < len(self.label_names):
            raise SettingError("label_names", "a name stands twice")
        return self

    @model_validator(mode="after")
    def _separated(self) -> "TextClassificationSection":
        if self.label_separator is None:
            return self
        if not self.multi_label:
            raise SettingError("label_separator", "has no effect without multi_label", "", "set task.multi_label: true")
        for name in self.label_names or ():
            if self.label_separator in name:
                raise SettingError("label_separator", f"{self.label_separator!r} stands in the label {name!r}")
        return self

    @model_validator(mode="after")
    def _weighted(self) -> "TextClassificationSection":
        if isinstance(self.class_weights, dict):
            for name, weight in self.class_weights.items():
                if not weight > 0:
                    raise SettingError("class_weights", f"{name}: {weight:g}", "a number above 0")
            if self.label_names and (fault := weights_fault(self.class_weights, self.label_names)):
                raise SettingError("class_weights", fault, "one weight for each of task.label_names")
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
            column = self.columns_in(rows, given)["label"]
            self.refuse_other_kind(rows, column)
            found = {name for row in rows.rows for name in self.names_in(row.get(column))}
            numbers = {name for name in found if is_number(name)}
            names = sorted(found, key=lambda name: (int(name), name)) if numbers == found else sorted(found)
        if len(names) < 2:
            what = f"only the label {names[0]!r}" if names else "no labels"
            raise BadInput(Problem(rows.origin, f"{rows.key}", what, "two labels or more"))
        return {"label_names": list(names)}

    def columns_in(self, rows: Rows, given: Mapping[str, str]) -> dict[str, str]:
        """Return the data's columns for ``text`` and ``label``."""
        return column_names(rows, self.columns, given)

    def refuse_other_kind(self, rows: Rows, column: str) -> None:
        """Refuse rows all of whose labels are lists, with the setting that reads them.

        Raises:
            BadInput: They are.
        """
        if all(isinstance(row.get(column), list) for row in rows.rows):
            what = f"all rows hold lists, the first one {rows.rows[0].get(column)!r:.60}"
            remedy = "set task.multi_label: true where a text may have several"
            raise BadInput(Problem(rows.origin, column, what, "one label a text", remedy))

    def names_in(self, value: Any) -> Iterable[str]:
        """Return the names of the labels that a row's ``label`` holds, also those of a list, which is refused later."""
        values = value if isinstance(value, list) else [value]
        return [name for one in values if (name := label_name(one)) is not None]

    def read(self, rows: Rows, given: Mapping[str, str], facts: Mapping[str, Any]) -> list[Example]:
        """Return examples ``{id, text}`` with what :meth:`targets` makes of the label.

        Numbers of a source that numbers the same names otherwise are read by its names, and refused where the recipe
        states its own order of them. Other names in the recipe are new names of the numbers.
        """
        names, known = self.columns_in(rows, given), Labels(facts["label_names"])
        own = rows.class_names or ()
        is_alike = all(known.numbers.get(name, number) == number for number, name in enumerate(own))
        is_stated = self.section.label_names is not None
        if is_alike or (is_stated and set(own) != set(known.numbers)):
            own = ()

        def read(row: Mapping[str, Any]) -> Example:
            given = row.get(names["label"])
            label = _by_name(given, own)
            if is_stated and label != given:
                what = f"{given!r:.60} is {label!r:.80} by the data's own names, and task.label_names has another order"
                raise RowError(
                    names["label"], what, "", "list task.label_names in the order of the data, or leave it out"
                )
            return {"text": text_in(row, names["text"]), **self.targets(label, names["label"], known)}

        return check_rows(rows, read)

    def targets(self, value: Any, column: str, known: "Labels") -> Example:
        """Return ``{label}``, the label's number.

        Raises:
            RowError: The value is no label.
        """
        if isinstance(value, list):
            remedy = "set task.multi_label: true where a text may have several"
            raise RowError(column, f"is a list: {value!r:.60}", "one label a text", remedy)
        return {"label": known.number(value, column)}

    def ask(self, inputs: Mapping[str, Any], identity: str) -> Example:
        """Return an example from ``text``."""
        return {"id": identity, "text": text_in(inputs, "text"), "label": 0}

    def group(self, example: Example) -> tuple[str, str]:
        """Return the text, so that texts that differ in white space only stay together, and the label as stratum."""
        return " ".join(example["text"].split()), str(example["label"])

    def encode(self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase") -> Encoded:
        """Return one feature an example, its target as ``labels``."""
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
        columns["labels"] = [self.target_of(example) for example in examples]
        columns["example"] = list(range(len(examples)))
        share = f"{num_cut:,} of {len(examples):,} texts cut at task.max_length {longest}"
        return Encoded(Features.from_lists(columns), (share,) if num_cut else ())

    def target_of(self, example: Example) -> Any:
        """Return what an example's feature holds as ``labels``."""
        return example["label"]

    def num_per_label(self, features: Features, facts: Mapping[str, Any]) -> dict[str, int]:
        """Return how many rows have each label."""
        counts = np.bincount(features.column("labels"), minlength=len(facts["label_names"]))
        return dict(zip(facts["label_names"], counts.tolist(), strict=True))

    def check_weights(self, facts: Mapping[str, Any], origin: str) -> None:
        """Refuse weights of other labels than the data's.

        Raises:
            BadInput: A label without a weight, or a weight without a label.
        """
        given = self.section.class_weights
        if isinstance(given, dict) and (fault := weights_fault(given, facts["label_names"])):
            allowed = f"one weight for each of {listed(facts['label_names'])}"
            raise BadInput(Problem(origin, "task.class_weights", fault, allowed))

    def label_weights(self, num_per_label: Mapping[str, int], num_rows: int) -> tuple[dict[str, float] | None, str]:
        """Return the weight of each label in the training loss, None where all count alike, and what to say of it.

        Balanced ones are ``num_rows / (labels that occur * rows of the label)``, whose mean over the rows is 1.

        Args:
            num_per_label: Of the rows that are trained on.
            num_rows: How many these are.
        """
        given = self.section.class_weights
        if given == "none":
            return None, ""
        if isinstance(given, dict):
            return {name: float(given[name]) for name in num_per_label}, ""
        return self.balanced(num_per_label, num_rows)

    def balanced(self, num_per_label: Mapping[str, int], num_rows: int) -> tuple[dict[str, float], str]:
        """Return the weights with which rare labels count as much as frequent ones, and what to say of them."""
        occurring = sum(count > 0 for count in num_per_label.values())
        weights = {name: num_rows / (occurring * count) if count else 1.0 for name, count in num_per_label.items()}
        absent = [name for name, count in num_per_label.items() if not count]
        said = "task.class_weights balanced: no row to balance by of the labels "
        return weights, f"{said}{listed(absent)}, which keep the weight 1" if absent else ""

    def model_config(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the label names as the model's config keeps them."""
        names = facts["label_names"]
        return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}

    def prepare(self, model: "PreTrainedModel") -> None:
        """Leave the model as it is."""

    def collate(self, rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> Batch:
        """Return padded inputs and ``labels`` ``[batch]``, of several labels a text ``[batch, labels]``."""
        import torch

        labels = torch.from_numpy(np.array([row["labels"] for row in rows], dtype=np.int64))
        return {**pad_inputs(rows, tokenizer), "labels": labels}

    def row_losses(self, outputs: Mapping[str, "torch.Tensor"], labels: "torch.Tensor") -> "torch.Tensor":
        """Return the loss of each row, where all labels count alike."""
        return self.weighted_losses(outputs, labels, None)

    def weighted_losses(
        self, outputs: Mapping[str, "torch.Tensor"], labels: "torch.Tensor", weights: "torch.Tensor | None"
    ) -> "torch.Tensor":
        """Return the cross-entropy of ``logits`` ``[batch, labels]``, one a row, times the weight of its label."""
        from torch.nn.functional import cross_entropy

        logits = outputs["logits"].float()
        return cross_entropy(logits, labels, weight=weights, ignore_index=IGNORED, reduction="none")

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
                "scores": named_scores(names, scores),
                "reference": names[example["label"]],
            }
            for example, number, scores in zip(examples, predicted, results["scores"], strict=True)
        ]
        return Measured(metrics, predictions, (predicted.tolist(), labels.tolist()))


class Labels:
    """The labels of a task, to look up what a row gives.

    Args:
        names: Their names in the order of their numbers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.numbers = {name: number for number, name in enumerate(names)}
        self.by_number = not any(map(is_number, names))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.numbers)

    def number(self, value: Any, column: str) -> int:
        """Return the number of the label that ``value`` names, or is the number of.

        Raises:
            RowError: It is none.
        """
        name = label_name(value)
        number = None if name is None else self.numbers.get(name)
        if number is None and name is not None and self.by_number and is_number(name):
            number = int(name)
        if number is None or not 0 <= number < len(self):
            allowed = f"one of {listed(self.numbers)}" + (f", or 0 to {len(self) - 1}" if self.by_number else "")
            what = "is missing" if value is None else f"{value!r:.60} is not a label"
            raise RowError(column, what, allowed, "correct the row, or list all in task.label_names")
        return number


def label_name(label: Any) -> str | None:
    """Return the name that a label goes by, or None where it is neither a text nor an integer."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label) if isinstance(label, int) or (isinstance(label, str) and label.strip()) else None


def _by_name(label: Any, names: Sequence[str]) -> Any:
    """Return ``label``, the numbers in it as those of ``names`` that they stand for."""
    if isinstance(label, list):
        return [_by_name(one, names) for one in label]
    is_one = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names)
    return names[label] if is_one else label


def is_number(name: str) -> bool:
    """Return whether a name is that of a whole number."""
    return _NUMBER.fullmatch(name) is not None


def listed(names: Iterable[str]) -> str:
    """Return the first 20 names, and whether there are more."""
    every = list(names)
    return f"{', '.join(every[:_SHOWN])}{', …' if len(every) > _SHOWN else ''}"


def named_scores(names: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """Return the score of every label by its name, as predictions state it."""
    return {name: round(float(score), 6) for name, score in zip(names, scores, strict=True)}


def weights_fault(weights: Mapping[str, float], names: Sequence[str]) -> str | None:
    """Return in words which labels have no weight, or which weights no label."""
    missing, others = [name for name in names if name not in weights], [name for name in weights if name not in names]
    said = [f"no weight for {listed(missing)}"] * bool(missing)
    said += [f"a weight for {listed(others)}, which is no label"] * bool(others)
    return ", and ".join(said) or None
