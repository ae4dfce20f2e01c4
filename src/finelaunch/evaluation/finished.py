"""A finished run's model: saved with all that evaluation and prediction need, loaded on any machine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.errors import BadInput, FinelaunchError, Problem
from finelaunch.evaluation.adapters import save_adapter
from finelaunch.evaluation.evaluate import Evaluator
from finelaunch.methods.prompts import leave_out_prompt
from finelaunch.models.adapters import COPY_AGAIN, is_adapter, load_base, put_adapter, read_adapter, whole_shape
from finelaunch.models.load import load_model, load_tokenizer
from finelaunch.models.section import ModelSection
from finelaunch.models.stated import hashes_of
from finelaunch.models.weights import is_adapted
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import write_json
from finelaunch.run.ranks import ALONE, Ranks
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
        stated: All that ``finelaunch.json`` states.
    """

    task_name: str
    task: Task
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    facts: dict[str, Any]
    threshold: float | None
    stated: Mapping[str, Any]

    def evaluator(self, batch_size: int, precision: str, ranks: Ranks = ALONE) -> Evaluator:
        """Return what measures this model."""
        return Evaluator(self.task, self.tokenizer, self.facts, batch_size, precision, ranks)


def save_model(
    run: RunDirectory,
    model: "PreTrainedModel",
    weights: dict[str, Any] | None,
    tokenizer: "PreTrainedTokenizerBase",
    task_values: Mapping[str, Any],
    facts: Mapping[str, Any],
    base: Mapping[str, Any],
    threshold: float | None,
    method: Mapping[str, Any],
) -> None:
    """Write ``model/``: weights or adapter, tokenizer, and ``finelaunch.json`` last, which makes it complete.

    Args:
        run: The run directory.
        model: The model; its parameters may be empty where an engine keeps them in parts.
        weights: All of its weights, whole; None: the model's own are.
        tokenizer: Its tokenizer.
        task_values: The task section.
        facts: What the training rows settled.
        base: What was tuned.
        threshold: The threshold that was chosen.
        method: The method section.

    Raises:
        FinelaunchError: A tensor is missing or empty in what was written.
    """
    run.model_facts.unlink(missing_ok=True)
    if is_adapted(model):
        task = task_of({"task": dict(task_values)}, str(run.recipe))
        base = save_adapter(run, model, weights, tokenizer, task, facts, base)
        files = {"files": hashes_of(run.model)}
    else:
        _save_whole(run, model, weights)
        files = {}
    tokenizer.save_pretrained(run.model)
    content = {"task": dict(task_values), "facts": dict(facts), "threshold": threshold}
    write_json(run.model_facts, {**content, "base": dict(base), "method": dict(method), **files})


def _save_whole(run: RunDirectory, model: "PreTrainedModel", weights: dict[str, Any] | None) -> None:
    # Under the names of the model itself: the names of the checkpoint it came from depend on how that was loaded.
    shapes = {name: whole_shape(parameter) for name, parameter in model.named_parameters()}
    if weights is not None:  # gathered, tied weights are there twice
        names = {*shapes, *(name for name, _ in model.named_buffers())}
        weights = {name: tensor for name, tensor in weights.items() if name in names}
    model.save_pretrained(run.model, state_dict=weights, save_original_format=False)
    check_weights(run.model, shapes)
    for path in run.model.glob("*.safetensors"):  # written for their owner alone, unlike all other files
        path.chmod((run.model / "config.json").stat().st_mode)


def check_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a saved model in which a tensor of ``shapes`` is missing, empty or of another shape.

    Raises:
        FinelaunchError: One is.
    """
    from safetensors import safe_open

    saved: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            saved |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    faults = [
        f"{name} is {_found(saved.get(name))}, not {shape}"
        for name, shape in shapes.items()
        if saved.get(name) != shape
    ]
    faults += [f"{name} is empty" for name, shape in saved.items() if 0 in shape and name not in shapes]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise FinelaunchError(f"{folder}: the saved weights are not whole: {faults[0]}{more}; the checkpoints are kept")


def _found(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "empty" if 0 in shape else str(shape)


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
        if is_adapter(folder):
            read_adapter(folder)
    known = sorted(str(path.parent.parent) for path in Path("runs").glob("*/model/finelaunch.json"))
    remedy = f"finished runs here: {', '.join(known)}" if known else "train one first: finelaunch train RECIPE"
    raise BadInput(Problem("command line", "RUN", f"there is no run {name!r}", "", remedy))


def load_finished(folder: Path, base: Path | None = None) -> FinishedModel:
    """Return the model in ``folder``, which :func:`save_model` or an export wrote; an adapter on its base.

    Args:
        folder: The folder of a whole model or of an adapter.
        base: A copy of the adapter's base; None: where it was when it was trained.

    Raises:
        BadInput: Its files are damaged, it is no model of ours, or the adapter's base is another one or not there.
    """
    content = read_facts(folder)
    facts_file = folder / "finelaunch.json"
    try:
        facts, threshold = dict(content["facts"]), content["threshold"]
    except (KeyError, TypeError) as error:
        raise BadInput(Problem(str(facts_file), "", f"is damaged: {error!r}", "", COPY_AGAIN)) from None
    task = task_of(content, str(facts_file))
    if base is not None and not is_adapter(folder):
        what = f"has no effect: {folder} is a whole model and stands on no base"
        raise BadInput(Problem("command line", "--base", what, "", "leave it out"))
    try:
        tokenizer = load_tokenizer(ModelSection(name_or_path=str(folder.resolve())))
        load = _load_adapter if is_adapter(folder) else _load_whole
        model = load(folder, task, tokenizer, base)
    except BadInput as error:
        raise BadInput(
            replace(problem, origin=str(folder), key="", remedy=COPY_AGAIN) if problem.origin == "recipe" else problem
            for problem in error.problems
        ) from None
    return FinishedModel(content["task"]["name"], task, model, tokenizer, facts, threshold, content)


def task_of(stated: Mapping[str, Any], origin: str) -> Task:
    """Return the task that a ``finelaunch.json`` names.

    Raises:
        BadInput: It names none.
    """
    return task_for(build(_Facts, Document({"task": stated.get("task")}, name=origin)).task)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what ``finelaunch.json`` in ``folder`` states.

    Raises:
        BadInput: It is not there, or damaged.
    """
    if is_adapter(folder):
        read_adapter(folder)
    path = folder / "finelaunch.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(Problem(str(path), "", f"is damaged: {error!r}", "", COPY_AGAIN)) from None


def _load_whole(folder: Path, task: Task, tokenizer: Any, _: Path | None) -> Any:
    section = ModelSection(name_or_path=str(folder.resolve()))
    loaded = load_model(section, task.auto_class, {}, tokenizer, 1, seed=0)
    if loaded.newly_initialised:
        names = ", ".join(loaded.newly_initialised[:3])
        raise BadInput(Problem(str(folder), "", f"weights are missing: {names}", "", COPY_AGAIN))
    task.prepare(loaded.model)
    return loaded.model.eval()


def _load_adapter(folder: Path, task: Task, tokenizer: Any, base: Path | None) -> Any:
    adapter = read_adapter(folder)
    loaded = load_base(adapter, tokenizer, base)
    task.prepare(loaded.model)
    model = put_adapter(loaded.model, adapter)
    if adapter.is_prompt:
        leave_out_prompt(model)
    return model
