"""``finelaunch evaluate``: a finished model on its own test split, or on a file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from finelaunch.data.mixture import of_source
from finelaunch.data.section import DataSection, Source, SplitSection, split_sources
from finelaunch.data.sources import Rows, read_rows
from finelaunch.data.splits import draw
from finelaunch.errors import BadInput, Problem
from finelaunch.evaluation.finished import load_finished
from finelaunch.run.log import quiet_libraries, say, warn
from finelaunch.run.ranks import ALONE, Ranks
from finelaunch.section.base import Section, build
from finelaunch.section.document import Document, read_document
from finelaunch.tasks.base import Example
from finelaunch.training.placement import Placement, move


class _Data(Section):
    """What is read of a run's recipe."""

    data: DataSection


def evaluate_again(
    folder: Path, file: Path | None, placement: Placement, ranks: Ranks = ALONE, base: Path | None = None
) -> tuple[dict[str, Any], str]:
    """Return the figures of the model in ``folder`` and the name of what they were measured on.

    Args:
        folder: The model folder of a run.
        file: Rows to measure on; None: the run's data.test, or its data.validation where it named one; of several
            sources all, and each on its own.
        placement: A settled placement.
        ranks: This process among those that measure together; all of them call this.
        base: A copy of an adapter's base; None: where it was when it was trained.

    Raises:
        BadInput: The data is not here; ``--data`` names it.
    """
    quiet_libraries()
    sources, seed = _sources(folder, file)
    read = [(source, _rows(source, folder, file)) for source in sources]
    finished = load_finished(folder, base)
    examples: list[Example] = []
    for source, rows in read:
        columns = source.section.columns
        if file is not None and not set(columns.values()) & set(rows.rows[0]):
            columns = {}  # the run's own rows had other names for them
        checked = finished.task.read(rows, columns, finished.facts)
        drawn = [checked[index] for index in draw(len(checked), source.section.max_samples, seed)]
        examples += of_source(source, drawn)
    encoded = finished.task.encode(examples, finished.tokenizer)
    for note in (*(note for _, rows in read for note in rows.dropped), *encoded.notes):
        warn(note)
    origin = ", ".join(rows.origin for _, rows in read)
    say(f"{len(examples):,} examples from {origin}")
    move(finished.model, placement)
    evaluator = finished.evaluator(placement.per_device_eval_batch_size, placement.precision, ranks)
    measured = evaluator.measure(finished.model, examples, encoded.features, finished.threshold)
    return {"task": finished.task_name, **measured.metrics}, origin


def _rows(source: Source, folder: Path, file: Path | None) -> Rows:
    try:
        origin = "--data" if file else str(folder.parent / "recipe.yaml")
        return read_rows(source.section, source.split, origin, source.key)
    except BadInput as error:
        raise BadInput(
            replace(problem, remedy=problem.remedy if file else "give --data FILE") for problem in error.problems
        ) from None


def _sources(folder: Path, file: Path | None) -> tuple[list[Source], int]:
    """Return what to measure on, and the seed of its draw."""
    recipe = folder.parent / "recipe.yaml"
    data = None
    if recipe.exists():
        document = read_document(recipe.read_text(encoding="utf-8", errors="replace"), str(recipe))
        data = build(_Data, Document({"data": document.values.get("data")}, name=str(recipe))).data
    stated = (split_sources(data, "test") or split_sources(data, "validation")) if data else []
    if file is not None:
        columns = (stated or split_sources(data, "train"))[0].section.columns if data else {}
        return [Source("test", SplitSection(path=str(file), columns=columns), None, ("data", "test"))], 0
    if not stated or data is None:
        what = "the run names no data.test" if data else f"there is no recipe beside {folder}"
        raise BadInput(Problem("command line", "--data", what, "a file of rows", "give --data FILE"))
    return stated, data.seed
