"""From a recipe's data to encoded splits: read, checked, split, encoded, and kept by content.

The key of the cache is made of file hashes, the tokenizer's hash and the data and task sections, so that it is known
before torch is loaded, and a second run with the same data encodes nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from finelaunch.data.cache import cached, content_key, entry, read_table, write_table
from finelaunch.data.checks import given_ids
from finelaunch.data.features import Features
from finelaunch.data.mixture import (
    Labels,
    Part,
    agreed_labels,
    mixed_examples,
    of_source,
    report_held_out,
    split_report,
)
from finelaunch.data.section import SPLITS, DataSection, Source, given_sources, label_column, split_sources
from finelaunch.data.sources import Rows, fingerprint, read_rows
from finelaunch.data.splits import draw, hold_out, pooled
from finelaunch.errors import BadInput, Problem
from finelaunch.models.load import load_tokenizer, tokenizer_hash, train_tokenizer
from finelaunch.models.section import ModelSection
from finelaunch.run.files import write_json
from finelaunch.section.document import Document
from finelaunch.tasks.base import Example, Labelled, TaskData, label_report
from finelaunch.tasks.packing import packed, packs_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENCODING_VERSION = 3
"""Raised whenever the same rows are encoded otherwise than before."""


@dataclass(frozen=True)
class Split:
    """One encoded split.

    Args:
        name: ``train``, ``validation`` or ``test``.
        features: The encoded rows.
        folder: Where the cache keeps it.
        class_weights: Of ``train``, how much each label counts in the training loss; None: all alike.
    """

    name: str
    features: Features
    folder: Path
    class_weights: Mapping[str, float] | None = None

    @cached_property
    def examples(self) -> list[Example]:
        """The checked examples, read when they are first asked for."""
        return read_table(self.folder / f"{self.name}.examples.arrow").to_pylist()


@dataclass(frozen=True)
class Prepared:
    """All splits of a recipe.

    Args:
        splits: By name; ``train`` and ``validation`` always, ``test`` where the recipe has one.
        facts: What the training rows settled, such as the label names.
        tokenizer: The tokenizer they were encoded with.
        report: Counts, lengths and warnings of every split, for ``data_report.json``.
        from_cache: Whether nothing had to be encoded.
    """

    splits: dict[str, Split]
    facts: dict[str, Any]
    tokenizer: "PreTrainedTokenizerBase"
    report: dict[str, Any]
    from_cache: bool


@dataclass(frozen=True)
class ReadSplits:
    """The checked examples of a recipe before encoding.

    Args:
        examples: By split.
        facts: What the training rows settled.
        report: For each split its source, its counts and its notes.
    """

    examples: dict[str, list[Example]]
    facts: dict[str, Any]
    report: dict[str, dict[str, Any]]


def read_splits(data: DataSection, task: TaskData, document: Document) -> ReadSplits:
    """Read and check all rows, draw ``max_samples``, and hold out a validation split where none is named; no torch.

    Args:
        data: The data section.
        task: The task that reads its rows.
        document: The recipe's document, for origins.

    Raises:
        BadInput: With the faults of all splits.
        RequirementMissing: A hub data set that is neither cached nor reachable.
    """
    parts: dict[str, list[Part]] = {}
    facts: dict[str, Any] | None = None
    problems: list[Problem] = []
    for name in SPLITS:
        read: list[tuple[Source, Rows]] = []
        for source in split_sources(data, name):
            try:
                origin = document.origin((*source.place, "path"))
                read.append((source, read_rows(source.section, name, origin, source.key)))
            except BadInput as error:
                problems.extend(error.problems)
        try:
            if name == "train" and not problems:
                facts = _facts(read, task, document)
                if isinstance(task, Labelled):
                    task.check_weights(facts, document.origin(("task", "class_weights")))
            if facts is None:
                continue  # without the facts of the training rows nothing more can be said of these
        except BadInput as error:
            problems.extend(error.problems)
            continue
        for source, rows in read:
            try:
                parts.setdefault(name, []).append(_part(source, rows, task, facts, data.seed))
            except BadInput as error:
                problems.extend(error.problems)
    if problems or facts is None:
        raise BadInput(problems)
    examples = {name: [example for part in those for example in part.examples] for name, those in parts.items()}
    report = {name: split_report(those) for name, those in parts.items()}
    if "validation" not in examples:
        examples["train"], examples["validation"] = _held_out(examples["train"], data, task, document)
        about = f"{data.validation_fraction:g} of data.train held out (data.validation_fraction)"
        report["validation"] = {"path": about, "num_rows": len(examples["validation"]), "notes": []}
        report_held_out(report, examples["validation"])
    keys = {name: [_identity(example) for example in split] for name, split in examples.items()}
    examples["train"] = mixed_examples(examples["train"], parts["train"], report["train"], data.seed, document)
    known = set(keys["train"])
    for name, those in keys.items():
        report[name] |= {"num_examples": len(those), "num_repeated": len(those) - len(set(those))}
        if name != "train":
            report[name]["num_also_in_train"] = sum(key in known for key in those)
    return ReadSplits(examples, facts, {name: report[name] for name in SPLITS if name in report})


def _facts(read: Sequence[tuple[Source, Rows]], task: TaskData, document: Document) -> dict[str, Any]:
    """Return what the training rows of all sources settle together.

    Raises:
        BadInput: They do not agree; with the source that differs.
    """
    found = []
    for source, rows in read:
        try:
            found.append(task.facts(rows, source.section.columns))
        except BadInput as error:
            if source.name is None:
                raise
            remedy = "list all labels in task.label_names"
            raise BadInput(replace(problem, remedy=problem.remedy or remedy) for problem in error.problems) from None
    if "label_names" not in found[0]:
        return {key: value for key, value in found[0].items() if all(facts.get(key) == value for facts in found)}
    labels = []
    for (source, rows), facts in zip(read, found, strict=True):
        column = label_column(source.section.columns, rows.rows[0])
        first = next((label for row in rows.rows if (label := row.get(column)) != []), None)
        are_numbers = rows.class_names is not None and isinstance(first[0] if isinstance(first, list) else first, int)
        labels.append(Labels(source.key, document.origin(source.place), facts["label_names"], are_numbers))
    return {**found[0], "label_names": agreed_labels(labels)}


def _part(source: Source, rows: Rows, task: TaskData, facts: Mapping[str, Any], seed: int) -> Part:
    """Return the checked examples of a source, ``max_samples`` of them; those of a list know their source.

    Raises:
        BadInput: With the faults of the rows.
    """
    split, name = source.section, source.name
    checked = task.read(rows, split.columns, facts)
    examples = [checked[index] for index in draw(len(checked), split.max_samples, seed)]
    notes = list(rows.dropped)
    if split.max_samples is not None and split.max_samples > len(checked):
        notes.append(f"max_samples {split.max_samples:,} is more than the {len(checked):,} rows there are")
    if num_repeated := len(rows.rows) - len(set(given_ids(rows))):
        notes.append(f"{num_repeated:,} ids stand for another row before; they are told apart as ID#2, ID#3, …")
    about = split.model_dump(include={"path", "subset", "split", "revision", "source", "licence", "citation"})
    columns = sorted(key for key in rows.rows[0] if key != "__place__")
    about |= {"columns": columns, "num_rows": len(checked)}
    if name is not None:
        notes = [f"{name}: {note}" for note in notes]
    return Part(source, of_source(source, examples), about, notes)


def _held_out(
    examples: Sequence[Example], data: DataSection, task: TaskData, document: Document
) -> tuple[list[Example], list[Example]]:
    groups, strata = [], []
    positions = {source.name: index for index, source in enumerate(split_sources(data, "train"))}
    for example in examples:
        group, stratum = task.group(example)
        groups.append(group)
        strata.append(f"{positions[example['source']]}/{stratum}" if "source" in example else stratum)
    try:
        stay, out = hold_out(groups, pooled(strata, data.validation_fraction), data.validation_fraction, data.seed)
    except ValueError:
        what = f"{len(examples)} rows form one group (article, topic or text) and cannot be split"
        remedy = "give data.validation.path, or more rows"
        raise BadInput(Problem(document.origin(("data",)), "data.validation", what, "", remedy)) from None
    return [examples[index] for index in stay], [examples[index] for index in out]


def _identity(example: Example) -> str:
    """Return what two examples must share to be the same input, whatever their targets."""
    messages = example.get("messages", ())
    messages = [message["content"] for message in messages[:-1] or messages]
    parts = [*messages, example.get("text", ""), example.get("question", ""), example.get("context", "")]
    return "\0".join(" ".join(part.split()) for part in parts)


def prepare(
    data: DataSection, model: ModelSection, task: TaskData, task_values: Mapping[str, Any], document: Document
) -> Prepared:
    """Return the encoded splits, from the cache where they are there.

    Args:
        data: The data section.
        model: The model section, for its tokenizer.
        task: The task that reads and encodes.
        task_values: The task section's values, part of the key.
        document: The recipe's document, for origins.

    Raises:
        BadInput: Something is wrong with the data or the tokenizer.
        RequirementMissing: Something is to come from a hub that is out of reach.
    """
    try:
        prints = _fingerprints(data, document)
    except BadInput:
        read_splits(data, task, document)  # raises too, with all that is wrong instead of the first
        raise
    tokenizer: PreTrainedTokenizerBase | None = None

    def write(folder: Path) -> None:
        nonlocal tokenizer
        read = read_splits(data, task, document)
        if model.tokenizer is not None:
            texts = (text for example in read.examples["train"] for text in _texts(example))
            train_tokenizer(texts, model, folder / "tokenizer")
        tokenizer = load_tokenizer(model, folder / "tokenizer" if model.tokenizer else None)
        for source in given_sources(data):
            if source.name is not None:
                read.report[source.split]["sources"][source.name]["fingerprint"] = prints[source.key]
        for name, examples in read.examples.items():
            encoded = task.encode(examples, tokenizer)
            if name == "train" and task_values.get("packing"):
                encoded = packed(encoded, task_values["max_length"])
                read.report[name]["packing"] = packs_text(encoded.features, task_values["max_length"])
            read.report[name]["notes"].extend(encoded.notes)
            read.report[name] |= {"fingerprint": _rows_fingerprint(data, name, read.report[name], prints)}
            read.report[name] |= _lengths(encoded.features)
            read.report[name] |= label_report(task, name, encoded.features, read.facts)
            write_table(encoded.features.table, folder / f"{name}.features.arrow")
            write_table(pa.Table.from_pylist(examples), folder / f"{name}.examples.arrow")
        write_json(
            folder / "report.json", {"splits": read.report, "facts": read.facts, "warnings": _warnings(read.report)}
        )

    folder, from_cache = entry("prepared", _key(data, model, task_values, prints), write)
    kept = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    splits = {
        name: Split(name, Features(read_table(folder / f"{name}.features.arrow")), folder, about.get("class_weights"))
        for name, about in kept["splits"].items()
    }
    tokenizer = tokenizer or load_tokenizer(model, folder / "tokenizer" if model.tokenizer else None)
    return Prepared(splits, kept["facts"], tokenizer, kept, from_cache)


def cached_report(
    data: DataSection, model: ModelSection, task_values: Mapping[str, Any], document: Document
) -> dict[str, Any] | None:
    """Return what is known of the prepared data, where it is prepared already; no torch.

    Raises:
        BadInput: Something is wrong with the data or the tokenizer.
        RequirementMissing: Something is to come from a hub that is out of reach.
    """
    report = prepared_folder(data, model, task_values, document) / "report.json"
    return json.loads(report.read_text(encoding="utf-8")) if report.exists() else None


def prepared_folder(data: DataSection, model: ModelSection, task_values: Mapping[str, Any], document: Document) -> Path:
    """Return the folder in which :func:`prepare` keeps its result, which exists where it is there; no torch.

    Raises:
        BadInput: Something is wrong with the data or the tokenizer.
        RequirementMissing: Something is to come from a hub that is out of reach.
    """
    return cached("prepared", _key(data, model, task_values, _fingerprints(data, document)))


def _fingerprints(data: DataSection, document: Document) -> dict[str, str]:
    """Return the hash of the files of each source, by its dotted key."""
    return {
        source.key: fingerprint(source.section, source.split, document.origin((*source.place, "path")), source.key)
        for source in given_sources(data)
    }


def _rows_fingerprint(data: DataSection, name: str, report: Mapping[str, Any], prints: Mapping[str, str]) -> str | None:
    """Return what tells the rows of a split from others: the hash of its files; None of one that was held out.

    Of a list of sources it covers their order, what each is called, its weight, and how many rows it gives, too: names
    and numbers need not stand in a recipe.
    """
    sources = split_sources(data, name)
    if not sources:
        return None
    if sources[0].name is None:
        return prints[sources[0].key]
    parts = [(source, report["sources"][source.name]) for source in sources]
    return content_key(
        {"sources": [[prints[one.key], one.name, one.weight, about["num_taken"]] for one, about in parts]}
    )


def _key(data: DataSection, model: ModelSection, task_values: Mapping[str, Any], prints: Mapping[str, str]) -> str:
    """Return the key of the cache: all that the encoded rows depend on."""
    parts = {
        "version": ENCODING_VERSION,
        "tokenizers": version("tokenizers"),
        "transformers": version("transformers"),
        "data": data.model_dump(),
        "task": dict(task_values),
        "tokenizer": tokenizer_hash(model),
        "files": dict(prints),
    }
    return content_key(parts)


def _texts(example: Example) -> list[str]:
    """Return the texts that a tokenizer is trained on."""
    messages = [message["content"] for message in example.get("messages", ())]
    return messages + [example[name] for name in ("text", "question", "context") if name in example]


def _lengths(features: Features) -> dict[str, Any]:
    """Return how many features and tokens there are, and how long the features are."""
    lengths = features.lengths
    quantiles = {f"p{share}": int(np.percentile(lengths, share)) for share in (5, 50, 95)}
    spread = {
        "min": int(lengths.min()),
        **quantiles,
        "max": int(lengths.max()),
        "mean": round(float(lengths.mean()), 1),
    }
    return {"num_features": len(features), "num_tokens": int(lengths.sum()), "tokens_per_feature": spread}


def _warnings(report: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what a user should know of the data, a sentence each."""
    found = []
    for name, split in report.items():
        found += [f"data.{name}: {note}" for note in split["notes"]]
        if split["num_repeated"]:
            found.append(f"data.{name}: {split['num_repeated']:,} examples repeat an earlier one")
        if absent := [label for label, number in split.get("num_per_label", {}).items() if not number]:
            found.append(f"data.{name}: no example of the labels {', '.join(absent)}")
        found += split.get("weight_notes", ())
        if split.get("num_also_in_train"):
            found.append(f"data.{name}: {split['num_also_in_train']:,} examples stand in data.train too")
    return found
