"""A batch as the model will see it, and the lengths of its split: what ``finelaunch data show`` tells.

The batch comes from the sampler that training uses, or from the order that evaluation measures in, and from the task's
own collation. Everything is plain values, which ``batch_text.py`` words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finelaunch.data.features import Features
from finelaunch.data.sampler import GlobalBatchSampler, TrainingRows, padding_fraction
from finelaunch.errors import BadInput, Problem
from finelaunch.preparation import Prepared
from finelaunch.recipe.schema import Recipe
from finelaunch.tasks import task_for
from finelaunch.tasks.base import IGNORED
from finelaunch.tasks.conversations import is_text
from finelaunch.tasks.packing import LENGTHS, examples_of, is_packed
from finelaunch.training.placement import Placement, batch_arithmetic
from finelaunch.training.train import num_steps

UNCUT = 1 << 30
"""A ``task.max_length`` that cuts nothing."""
NUM_BINS = 12


@dataclass(frozen=True)
class Chosen:
    """The rows of one batch.

    Args:
        rows: Row numbers; ``~index`` stands for row ``index`` without targets, which fills up the last batch.
        place: Which batch it is, in words.
        padding_fraction: Share of padding in all batches of its epoch.
    """

    rows: list[int]
    place: str
    padding_fraction: float


@dataclass(frozen=True)
class ShownSplit:
    """A split whose batches are shown.

    Args:
        recipe: The recipe.
        prepared: Its prepared data.
        placement: How it would be trained: what cuts a global batch.
        name: ``train``, ``validation`` or ``test``.
    """

    recipe: Recipe
    prepared: Prepared
    placement: Placement
    name: str

    @property
    def features(self) -> Features:
        """The encoded rows."""
        return self.prepared.splits[self.name].features

    def batch(self, number: int) -> dict[str, Any]:
        """Return the split in figures, and a batch of it row by row.

        Args:
            number: From 1: of the training split the optimizer step, of which the first micro-batch of the first rank
                is shown; of the others the forward pass.

        Raises:
            BadInput: There is no such batch.
        """
        chosen = self._of_training(number) if self.name == "train" else self._of_evaluation(number)
        dataset = TrainingRows(self.features, IGNORED)
        collated = task_for(self.recipe.task).collate([dataset[row] for row in chosen.rows], self.prepared.tokenizer)
        batch = {key: values.numpy() for key, values in collated.items()}
        lengths = self._uncut_lengths(chosen.rows)
        rows = []
        for place, row in enumerate(chosen.rows):
            one = {key: values[place] for key, values in batch.items()}
            index = ~row if row < 0 else row
            rows.append({**self._origin(index, lengths), "is_filler": row < 0, **self._content(index, one)})
        places = batch["input_ids"].size
        return {
            "task": self.recipe.task.name,
            "split": self.name,
            **self.figures(),
            "padding_fraction": chosen.padding_fraction,
            "batch": {
                "number": number,
                "place": chosen.place,
                "shapes": {key: list(values.shape) for key, values in batch.items()},
                "padding_fraction": 1.0 - sum(len(row["ids"]) for row in rows) / places,
                "rows": rows,
            },
        }

    def figures(self) -> dict[str, Any]:
        """Return how long the rows of the split are, what was cut, and how many of its tokens are targets."""
        report, lengths = self.prepared.report["splits"][self.name], self.features.lengths
        longest = self.recipe.task.max_length
        figures = {
            "num_examples": report["num_examples"],
            "num_rows": len(lengths),
            "num_tokens": int(lengths.sum()),
            "tokens_per_row": report["tokens_per_feature"],
            "max_length": longest,
            "num_of_max_length": int((lengths >= longest).sum()),
            "histogram": histogram(lengths),
            "notes": [*([report["packing"]] if "packing" in report else []), *report["notes"]],
        }
        if self.recipe.task.name == "causal_lm":
            figures["target_fraction"] = float((self.features.column("labels") != IGNORED).mean())
        for key in ("num_per_label", "class_weights"):
            if key in report:
                figures[key] = report[key]
        return figures

    def _of_training(self, number: int) -> Chosen:
        section, placement = self.recipe.training, self.placement
        size, ranks = placement.per_device_batch_size, placement.num_processes
        window = section.length_window_batches
        sampler = GlobalBatchSampler(
            self.features.lengths, section.global_batch_size, size, section.seed, window, world_size=ranks
        )
        if number > (total := num_steps(sampler, section)):
            what = f"there is no step {number:,}: the training has {total:,}"
            raise BadInput(Problem("command line", "--batch", what, f"1 to {total:,}"))
        epoch, step = divmod(number - 1, sampler.num_global_batches)
        batches = sampler.global_batches(epoch)
        rows = sampler.micro_batches(batches[step])[0][::ranks].tolist()
        place = f"optimizer step {number:,}: step {step + 1:,} of {len(batches):,} of epoch {epoch + 1}"
        if len(rows) < section.global_batch_size:
            cut = batch_arithmetic(size, ranks, placement.gradient_accumulation_steps)
            place += f", the first micro-batch of the first process ({cut})"
        return Chosen(rows, place, padding_fraction([sampler.tokens(batch) for batch in batches]))

    def _of_evaluation(self, number: int) -> Chosen:
        size, lengths = self.placement.per_device_eval_batch_size, self.features.lengths
        order = np.argsort(-lengths, kind="stable")
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        if number > len(batches):
            what = f"there is no batch {number:,}: data.{self.name} has {len(batches):,} of up to {size} rows"
            raise BadInput(Problem("command line", "--batch", what, f"1 to {len(batches):,}"))
        tokens = [(int(lengths[rows].sum()), len(rows) * int(lengths[rows].max())) for rows in batches]
        place = f"forward pass {number:,} of {len(batches):,}, the longest rows first"
        return Chosen(batches[number - 1].tolist(), place, padding_fraction(tokens))

    def _uncut_lengths(self, rows: Sequence[int]) -> dict[int, int]:
        """Return how many tokens the examples of ``rows`` have before they are cut; of windows over them nothing."""
        if self.recipe.task.name == "question_answering":
            return {}
        section = self.recipe.task.model_copy(update={"max_length": UNCUT})
        numbers = sorted({number for row in rows for number in self._examples(~row if row < 0 else row)})
        examples = [self.prepared.splits[self.name].examples[number] for number in numbers]
        whole = task_for(section).encode(examples, self.prepared.tokenizer).features
        return {numbers[place]: int(whole.lengths[row]) for row, place in enumerate(whole.column("example"))}

    def _examples(self, row: int) -> list[int]:
        return examples_of(self.features, row)

    def _origin(self, row: int, uncut: dict[int, int]) -> dict[str, Any]:
        """Return which examples stand in a row, which part of each, and how many of its tokens do not."""
        features = self.features
        lengths = features.at(LENGTHS, row).tolist() if is_packed(features) else [int(features.lengths[row])]
        documents = []
        for number, length in zip(self._examples(row), lengths, strict=True):
            example = self.prepared.splits[self.name].examples[number]
            document: dict[str, Any] = {"id": example["id"], "num_tokens": length}
            parts = [] if is_packed(features) else np.flatnonzero(features.column("example") == number).tolist()
            if len(parts) > 1:
                document |= {"part": parts.index(row) + 1, "num_parts": len(parts)}
            missing = max(uncut.get(number, length) - length, 0)
            document["num_elsewhere" if is_text(example.get("messages", ())) else "num_cut"] = missing
            documents.append(document)
        return {"row": row, "documents": documents}

    def _content(self, row: int, one: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the real tokens of a row, its labels, and what in it is a target."""
        tokenizer, task = self.prepared.tokenizer, self.recipe.task.name
        length = int(self.features.lengths[row])
        ids, labels = one["input_ids"][:length], one["labels"]
        content: dict[str, Any] = {
            "tokens": tokenizer.convert_ids_to_tokens(ids.tolist()),
            "ids": ids.tolist(),
            "labels": labels.tolist(),
            "num_padding": int(one["input_ids"].size - length),
        }
        content |= {key: values.tolist() for key, values in one.items() if key not in ("input_ids", "labels")}
        is_target = np.zeros(length, dtype=bool)
        if task == "causal_lm":
            is_target = labels[:length] != IGNORED
        elif task == "question_answering":
            start, end = labels.tolist()
            has_answer = start != IGNORED and start != self.features.at("null_position", row)
            is_target[start : end + 1] = has_answer
            content["answer"] = tokenizer.decode(ids[start : end + 1].tolist()) if has_answer else None
        else:
            names = self.prepared.facts["label_names"]
            chosen = [int(labels)] if labels.ndim == 0 else np.flatnonzero(labels == 1).tolist()
            content["label_names"] = [names[number] for number in chosen if number != IGNORED]
        runs = np.split(np.arange(length), np.flatnonzero(np.diff(is_target)) + 1)
        text = [[tokenizer.decode(ids[run].tolist()), bool(is_target[run[0]])] for run in runs if len(run)]
        return {**content, "is_target": is_target.tolist(), "text": text}


def histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Return how many rows have ``first`` to ``last`` tokens, in at most twelve bins of one width."""
    least = int(lengths.min())
    width = -(-(int(lengths.max()) - least + 1) // NUM_BINS)
    counts = np.bincount((lengths - least) // width)
    return [
        {
            "first": least + place * width,
            "last": min(least + (place + 1) * width - 1, int(lengths.max())),
            "num_rows": int(count),
        }
        for place, count in enumerate(counts)
    ]
