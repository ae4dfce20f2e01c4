"""``finelaunch evaluate``: a finished model on its own test split, or on a file."""

from pathlib import Path
from typing import Any

import yaml

from finelaunch.data.section import DataSection, SplitSection
from finelaunch.data.sources import read_rows
from finelaunch.data.splits import draw
from finelaunch.errors import BadInput, Problem
from finelaunch.evaluation.finished import load_finished
from finelaunch.run.log import quiet_libraries, say, warn
from finelaunch.section.base import build
from finelaunch.section.document import Document
from finelaunch.training.placement import Placement, move


def evaluate_again(folder: Path, file: Path | None, placement: Placement) -> tuple[dict[str, Any], str]:
    """Return the figures of the model in ``folder`` and the name of what they were measured on.

    Args:
        folder: The model folder of a run.
        file: Rows to measure on; None: the run's data.test, or its data.validation where it named one.
        placement: A settled placement.

    Raises:
        BadInput: The data is not here; ``--data`` names it.
    """
    quiet_libraries()
    split, name, seed = _split(folder, file)
    rows = read_rows(split, name, "--data" if file else str(folder.parent / "recipe.yaml"))
    finished = load_finished(folder)
    examples = finished.task.read(rows, split.columns, finished.facts)
    examples = [examples[index] for index in draw(len(examples), split.max_samples, seed)]
    encoded = finished.task.encode(examples, finished.tokenizer)
    for note in (*rows.dropped, *encoded.notes):
        warn(note)
    say(f"{len(examples):,} examples from {rows.origin}")
    move(finished.model, placement.device)
    evaluator = finished.evaluator(placement.per_device_eval_batch_size, placement.precision)
    measured = evaluator.measure(finished.model, examples, encoded.features, finished.threshold)
    return {"task": finished.task_name, **measured.metrics}, rows.origin


def _split(folder: Path, file: Path | None) -> tuple[SplitSection, str, int]:
    """Return what to measure on, its name in the recipe and the seed of its draw."""
    recipe = folder.parent / "recipe.yaml"
    data = None
    if recipe.exists():
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"]
        data = build(DataSection, Document(values, name=str(recipe)))
    stated = (data.test or data.validation) if data else None
    if file is not None:
        columns = stated.columns if stated else {}
        return SplitSection(path=str(file), columns=columns), "test", 0
    if stated is None or data is None:
        what = "the run names no data.test" if data else f"there is no recipe beside {folder}"
        raise BadInput(Problem("command line", "--data", what, "a file of rows", "give --data FILE"))
    return stated, "test" if data.test else "validation", data.seed
