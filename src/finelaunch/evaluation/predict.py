"""``finelaunch predict``: a finished model on new inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finelaunch.data.checks import RowError
from finelaunch.data.files import jsonl_rows
from finelaunch.errors import BadInput, Problem
from finelaunch.evaluation.finished import FinishedModel, load_finished
from finelaunch.evaluation.generate import Generation, generate
from finelaunch.evaluation.switching import load_beside, read_adapters
from finelaunch.run.log import quiet_libraries
from finelaunch.tasks.base import Example
from finelaunch.tasks.causal_lm import CausalLM
from finelaunch.training.placement import Placement, move

Input = dict[str, Any]


def read_inputs(given: Mapping[str, str], file: Path | None) -> list[Input]:
    """Return what is asked: the words of the command line as one input, or a row a line of ``file``.

    Raises:
        BadInput: Both or neither are given, or the file is not JSONL.
    """
    if bool(given) == (file is not None):
        what = "an input is needed" if file is None else "inputs are given twice"
        allowed = "--question and --context, --text, or --file"
        raise BadInput(Problem("command line", "", what, allowed))
    if file is None:
        return [{"__place__": "command line", **given}]
    try:
        inputs = [{**row, "__place__": f"{file}:{row['__place__']}"} for row in jsonl_rows(file)]
    except OSError as error:
        raise BadInput(Problem(str(file), "", f"cannot be read: {error.strerror or error}")) from None
    if not inputs:
        raise BadInput(Problem(str(file), "", "holds no inputs"))
    return inputs


def predict_inputs(
    folder: Path, inputs: Sequence[Input], how: Generation, placement: Placement, base: Path | None = None
) -> list[dict[str, Any]]:
    """Return ``{id, prediction, …}`` for every input, in their order.

    Args:
        folder: The model folder of a run, or an adapter.
        inputs: From :func:`read_inputs`.
        how: How a causal LM's answers are drawn.
        placement: A settled placement.
        base: A copy of the adapter's base; None: where it was when it was trained.

    Raises:
        BadInput: An input lacks what the task needs, or the model cannot be loaded.
    """
    quiet_libraries()
    finished = load_finished(folder, base)
    examples = _asked(finished, inputs)
    move(finished.model, placement)
    return _answers(finished, inputs, examples, how, placement)


def predict_adapters(
    folders: Mapping[str, Path], inputs: Sequence[Input], how: Generation, placement: Placement, base: Path | None
) -> list[dict[str, Any]]:
    """Return ``{id, adapter, prediction, …}`` for every input under every adapter, over one base.

    Args:
        folders: Adapters by the names that their rows carry.
        inputs: From :func:`read_inputs`.
        how: How a causal LM's answers are drawn.
        placement: A settled placement.
        base: A copy of their base; None: where it was when they were trained.

    Raises:
        BadInput: They do not share a base and a task, one cannot be loaded, or an input lacks what the task needs.
    """
    quiet_libraries()
    adapters = read_adapters(folders)
    first = next(iter(adapters.values()))
    finished = load_finished(first.folder, base)
    examples = _asked(finished, inputs)
    switched = load_beside(finished, adapters)
    move(finished.model, placement)
    answered = [
        [{"adapter": name, **row} for row in _answers(chosen, inputs, examples, how, placement)]
        for name, chosen in switched
    ]
    return [{"id": row["id"], **row} for rows in zip(*answered, strict=True) for row in rows]


def _asked(finished: FinishedModel, inputs: Sequence[Input]) -> list[Example]:
    """Return the inputs as examples; a model of plain text goes on with what it is given.

    Raises:
        BadInput: One lacks what the task needs.
    """
    examples, problems = [], []
    ask = finished.task.ask
    if isinstance(finished.task, CausalLM) and finished.facts.get("plain_text"):
        ask = finished.task.go_on
    for number, row in enumerate(inputs):
        try:
            examples.append(ask(row, str(number)))
        except RowError as error:
            problems.append(Problem(row["__place__"], error.column, error.what, error.allowed, error.remedy))
    if problems:
        raise BadInput(problems)
    return examples


def _answers(
    finished: FinishedModel,
    inputs: Sequence[Input],
    examples: Sequence[Example],
    how: Generation,
    placement: Placement,
) -> list[dict[str, Any]]:
    """Return a row for each of ``inputs``, which are ``examples``, by a model on its device."""
    model = finished.model
    if isinstance(finished.task, CausalLM):
        prompts = [finished.task.prompt_ids(example["messages"], finished.tokenizer) for example in examples]
        answers = generate(
            model,
            finished.tokenizer,
            prompts,
            how,
            finished.task.stop_ids(finished.tokenizer),
            placement.per_device_eval_batch_size,
        )
        rows = [{"prediction": answer} for answer in answers]
    else:
        evaluator = finished.evaluator(placement.per_device_eval_batch_size, placement.precision)
        features = finished.task.encode(examples, finished.tokenizer).features
        measured = evaluator.measure(model, list(examples), features, finished.threshold)
        hidden = ("id", "reference", "group")
        rows = [{key: row[key] for key in row if key not in hidden} for row in measured.predictions]
    return [
        {"id": str(given.get("id", number)), **row}
        for number, (given, row) in enumerate(zip(inputs, rows, strict=True))
    ]
