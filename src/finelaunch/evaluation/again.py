"""``finelaunch evaluate``: a finished model on its own test split, or on a file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from finelaunch.data.section import DataSection, SplitSection
from finelaunch.data.sources import read_rows
from finelaunch.data.splits import draw
from finelaunch.errors import BadInput, Problem
from finelaunch.evaluation.finished import load_finished
from finelaunch.run.log import quiet_libraries, say, warn
from finelaunch.run.ranks import ALONE, Ranks
from finelaunch.section.base import Section, build
from finelaunch.section.document import Document, read_document
from finelaunch.training.placement import Placement, move


class _Data(Section):
    """What is read of a run's recipe."""

    data: DataSection


def evaluate_again(
    folder: Path, file: Path | None, placement: Placement, ranks: Ranks = ALONE
) -> tuple[dict[str, Any], str]:
    """Return the figures of the model in ``folder`` and the name of what they were measured on.

    Args:
        folder: The model folder of a run.
        file: Rows to measure on; None: the run's data.test, or its data.validation where it named one.
        placement: A settled placement.
        ranks: This process among those that measure together; all of them call this.

    Raises:
        BadInput: The data is not here; ``--data`` names it.
    """
    quiet_libraries()
    split, name, seed = _split(folder, file)
    try:
        rows = read_rows(split, name, "--data" if file else str(folder.parent / "recipe.yaml"))
    except BadInput as error:
        remedy = "give --data FILE"
        raise BadInput(
            replace(problem, remedy=problem.remedy if file else remedy) for problem in error.problems
        ) from None
    finished = load_finished(folder)
    examples = finished.task.read(rows, split.columns, finished.facts)
    examples = [examples[index] for index in draw(len(examples), split.max_samples, seed)]
    encoded = finished.task.encode(examples, finished.tokenizer)
    for note in (*rows.dropped, *encoded.notes):
        warn(note)
    say(f"{len(examples):,} examples from {rows.origin}")
    move(finished.model, placement)
    evaluator = finished.evaluator(placement.per_device_eval_batch_size, placement.precision, ranks)
    measured = evaluator.measure(finished.model, examples, encoded.features, finished.threshold)
    return {"task": finished.task_name, **measured.metrics}, rows.origin


def _split(folder: Path, file: Path | None) -> tuple[SplitSection, str, int]:
    """Return what to measure on, its name in the recipe and the seed of its draw."""
    recipe = folder.parent / "recipe.yaml"
    data = None
    if recipe.exists():
        document = read_document(recipe.read_text(encoding="utf-8", errors="replace"), str(recipe))
        data = build(_Data, Document({"data": document.values.get("data")}, name=str(recipe))).data
    stated = (data.test or data.validation) if data else None
    if file is not None:
        columns = (stated or data.train).columns if data else {}
        return SplitSection(path=str(file), columns=columns), "test", 0
    if stated is None or data is None:
        what = "the run names no data.test" if data else f"there is no recipe beside {folder}"
        raise BadInput(Problem("command line", "--data", what, "a file of rows", "give --data FILE"))
    return stated, "test" if data.test else "validation", data.seed
