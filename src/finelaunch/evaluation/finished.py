"""A finished run's model: saved with all that evaluation and prediction need, loaded on any machine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.errors import BadInput, Problem
from finelaunch.evaluation.evaluate import Evaluator
from finelaunch.models.load import load_model, load_tokenizer
from finelaunch.models.section import ModelSection
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import write_json
from finelaunch.section.base import Section, build
from finelaunch.section.document import Document
from finelaunch.tasks import TaskSection, task_for
from finelaunch.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class _Facts(Section):
    """What ``model/finelaunch.json`` holds of the task."""

    task: TaskSection


@dataclass(frozen=True)
class FinishedModel:
    """A trained model ready to be used.

    Args:
        task_name: Its task's name.
        task: The task itself.
        model: On the CPU, in evaluation mode.
        tokenizer: Its tokenizer.
        facts: What the training rows settled, such as the label names.
        threshold: The threshold that was chosen, for tasks that have one.
    """

    task_name: str
    task: Task
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    facts: dict[str, Any]
    threshold: float | None

    def evaluator(self, batch_size: int, precision: str) -> Evaluator:
        """Return what measures this model."""
        return Evaluator(self.task, self.tokenizer, self.facts, batch_size, precision)


def save_model(
    run: RunDirectory,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    task_values: Mapping[str, Any],
    facts: Mapping[str, Any],
    base: Mapping[str, Any],
    threshold: float | None,
) -> None:
    """Write ``model/``: weights as safetensors, tokenizer, and ``finelaunch.json`` last, which makes it complete."""
    run.model_facts.unlink(missing_ok=True)
    model.save_pretrained(run.model)
    tokenizer.save_pretrained(run.model)
    content = {"task": dict(task_values), "facts": dict(facts), "threshold": threshold, "base": dict(base)}
    write_json(run.model_facts, content)


def find_model(name: str) -> Path:
    """Return the model folder of a run directory, of a run's name below ``runs/``, or ``name`` itself if it is one.

    Raises:
        BadInput: There is no finished run.
    """
    for folder in (Path(name), Path("runs", name)):
        for model in (folder / "model", folder):
            if (model / "finelaunch.json").exists():
                return model
        if RunDirectory(folder).exists():
            what = f"the run in {folder} has no model yet"
            raise BadInput(
                Problem("command line", "RUN", what, "", "let its training end: the same command continues it")
            )
    known = sorted(str(path.parent.parent) for path in Path("runs").glob("*/model/finelaunch.json"))
    remedy = f"finished runs here: {', '.join(known)}" if known else "train one first: finelaunch train RECIPE"
    raise BadInput(Problem("command line", "RUN", f"there is no run {name!r}", "", remedy))


def load_finished(folder: Path) -> FinishedModel:
    """Return the model in ``folder``, which :func:`save_model` wrote.

    Raises:
        BadInput: Its files are damaged.
    """
    facts_file = folder / "finelaunch.json"
    try:
        content = json.loads(facts_file.read_text(encoding="utf-8"))
        document = Document({"task": content["task"]}, name=str(facts_file))
        facts, threshold = dict(content["facts"]), content["threshold"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BadInput(Problem(str(facts_file), "", f"is damaged: {error!r}", "", "copy the run again")) from None
    task_section = build(_Facts, document).task
    task = task_for(task_section)
    section = ModelSection(name_or_path=str(folder.resolve()))
    try:
        tokenizer = load_tokenizer(section)
        loaded = load_model(section, task.auto_class, {}, tokenizer, 1, seed=0)
    except BadInput as error:
        problems = [
            replace(problem, origin=str(folder), key="", remedy="copy the run again") for problem in error.problems
        ]
        raise BadInput(problems) from None
    if loaded.newly_initialised:
        names = ", ".join(loaded.newly_initialised[:3])
        raise BadInput(Problem(str(folder), "", f"weights are missing: {names}", "", "copy the run again"))
    task.prepare(loaded.model)
    return FinishedModel(task_section.name, task, loaded.model.eval(), tokenizer, facts, threshold)
