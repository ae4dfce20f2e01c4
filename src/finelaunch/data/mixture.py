"""Several sources of one split: how many rows each gives, which, and the labels that they agree on.

A mixture has as many rows an epoch as its sources have together. So weights change what is seen, not how much of it,
and a run with weights is as long as one without.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from finelaunch.data.order import shuffled
from finelaunch.data.section import Source
from finelaunch.errors import BadInput, Problem
from finelaunch.section.document import Document

Row = dict[str, Any]


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Return how many of ``total`` rows each weight gives: its share, rounded so that the sum is ``total``.

    Every number is its exact share rounded down, and the largest remainders get the rows that are left, of equal ones
    the first. Computed in fractions, so the result is the same on every machine.

    Args:
        total: Rows to give, at least 0.
        weights: Finite numbers above 0.

    Source: the method of the largest remainder (Hamilton).
    """
    whole = sum(map(Fraction, weights))
    shares = [total * Fraction(weight) / whole for weight in weights]
    counts = [share.numerator // share.denominator for share in shares]
    most = sorted(range(len(shares)), key=lambda index: counts[index] - shares[index])
    for index in most[: total - sum(counts)]:
        counts[index] += 1
    return counts


def rows_taken(num_rows: int, num_taken: int, seed: int, position: int) -> list[int]:
    """Return the rows of a source that an epoch has: every row as often as it fits, and the rest drawn.

    Args:
        num_rows: Rows of the source, at least 1.
        num_taken: Rows to take.
        seed: ``data.seed``.
        position: Of the source in its list, so that equal sources are drawn from differently. Not its name, which may
            follow from a path: the same rows are drawn wherever a file lies.

    Returns:
        Whole passes one after the other, then rows drawn without replacement; each ascending.
    """
    num_passes, num_further = divmod(num_taken, num_rows)
    further = sorted(shuffled(num_rows, "mix", seed, position)[:num_further].tolist())
    return [*range(num_rows)] * num_passes + further


def seen_text(num_rows: int, num_taken: int) -> str:
    """Return in words how often an epoch sees the rows of a source, of which it takes ``num_taken``."""
    num_passes, num_further = divmod(num_taken, num_rows)
    if num_passes == 0:
        return f"{num_rows - num_taken:,} of its {num_rows:,} rows are never seen"
    times = "once" if num_passes == 1 else f"{num_passes:,} times"
    more = f", {num_further:,} of them once more" if num_further else ""
    return f"each of its {num_rows:,} rows is seen {times} an epoch{more}"


@dataclass(frozen=True)
class Labels:
    """The labels of one source.

    Args:
        key: The source's dotted key.
        origin: Where it stands in the recipe.
        names: Its label names in the order of their numbers.
        are_numbers: Its rows hold the numbers, and only the source knows their names.
    """

    key: str
    origin: str
    names: list[str]
    are_numbers: bool = False


def agreed_labels(found: Sequence[Labels]) -> list[str]:
    """Return the label names of all sources: those of the source with the most; the others may lack some.

    Raises:
        BadInput: A source has a label that the one with the most does not have, or numbers them in another order.
    """
    widest = max(found, key=lambda labels: len(labels.names))
    problems = []
    for labels in found:
        others = [name for name in labels.names if name not in widest.names]
        if others:
            what = f"its labels are {_listed(labels.names)}, and those of {widest.key} {_listed(widest.names)}"
        elif labels.are_numbers and labels.names != widest.names[: len(labels.names)]:
            what = f"it numbers its labels {_listed(labels.names)}, and {widest.key} has {_listed(widest.names)}"
        else:
            continue
        remedy = "give all sources the same names, or list all in task.label_names"
        problems.append(Problem(labels.origin, labels.key, what, "", remedy))
    if problems:
        raise BadInput(problems)
    return widest.names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


@dataclass
class Part:
    """What one source gives to its split, and what is reported of it."""

    source: Source
    examples: list[Row]
    about: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def of_source(source: Source, examples: list[Row]) -> list[Row]:
    """Return the examples of one source of a list with its name, which tells their ids from those of the others."""
    if source.name is None:
        return examples
    return [{**example, "id": f"{source.name}/{example['id']}", "source": source.name} for example in examples]


def split_report(parts: Sequence[Part]) -> dict[str, Any]:
    """Return what is reported of a split: of a list of sources, of each and of all together."""
    if parts[0].source.name is None:
        return {**parts[0].about, "notes": parts[0].notes}
    joined = {
        key: "; ".join(f"{part.source.name}: {part.about[key]}" for part in parts if part.about[key]) or None
        for key in ("source", "licence", "citation")
    }
    sources = {str(part.source.name): {**part.about, "num_taken": len(part.examples)} for part in parts}
    return {
        "path": ", ".join(part.about["path"] for part in parts),
        **joined,
        "num_rows": sum(part.about["num_rows"] for part in parts),
        "sources": sources,
        "notes": [note for part in parts for note in part.notes],
    }


def report_held_out(report: dict[str, dict[str, Any]], held_out: Sequence[Row]) -> None:
    """Write into the report how much of each source is held out, where there are several."""
    train = report["train"].get("sources")
    if train is None:
        return
    counts = Counter(example["source"] for example in held_out)
    for name, about in train.items():
        about |= {"num_held_out": counts[name], "num_taken": about["num_taken"] - counts[name]}
    report["validation"]["sources"] = {
        name: {"path": about["path"], "num_rows": counts[name], "num_taken": counts[name]}
        for name, about in train.items()
    }
    none = [
        f"no row of {name} is held out: it has too few rows, or too few groups of them"
        for name in train
        if not counts[name]
    ]
    report["validation"]["notes"] += none


def mixed_examples(
    examples: list[Row], parts: Sequence[Part], report: dict[str, Any], seed: int, document: Document
) -> list[Row]:
    """Return the training examples of an epoch, and write into the report what is taken of each source.

    Raises:
        BadInput: Nothing is left of a source to be mixed.
    """
    weighted = [(part.source, part.source.weight) for part in parts if part.source.weight is not None]
    if not weighted:
        return examples
    rows_of: dict[str | None, list[Row]] = {source.name: [] for source, _ in weighted}
    for example in examples:
        rows_of[example["source"]].append(example)
    empty = [source for source, _ in weighted if not rows_of[source.name]]
    if empty:
        what = "nothing is left to train on: all its rows form groups with rows that are held out"
        remedy = "give data.validation.path, or leave the source out"
        raise BadInput(Problem(document.origin(one.place), one.key, what, "", remedy) for one in empty)
    mixed: list[Row] = []
    whole = sum(weight for _, weight in weighted)
    counts = apportion(len(examples), [weight for _, weight in weighted])
    for position, ((source, weight), num_taken) in enumerate(zip(weighted, counts, strict=True)):
        rows = rows_of[source.name]
        mixed += [rows[index] for index in rows_taken(len(rows), num_taken, seed, position)]
        report["sources"][source.name] |= {"weight": weight, "share": weight / whole, "num_taken": num_taken}
        of_all = f"{num_taken:,} of the {len(examples):,} rows of an epoch (weight {weight:g})"
        report["notes"].append(f"{source.name}: {of_all}; {seen_text(len(rows), num_taken)}")
    return mixed
