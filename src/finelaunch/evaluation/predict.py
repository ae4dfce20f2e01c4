"""``finelaunch predict``: a finished model on new inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finelaunch.data.checks import RowError
from finelaunch.data.sources import jsonl_rows
from finelaunch.errors import BadInput, Problem
from finelaunch.evaluation.finished import load_finished
from finelaunch.evaluation.generate import Generation, generate
from finelaunch.run.log import quiet_libraries
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
    folder: Path, inputs: Sequence[Input], how: Generation, placement: Placement
) -> list[dict[str, Any]]:
    """Return ``{id, prediction, …}`` for every input, in their order.

    Args:
        folder: The model folder of a run.
        inputs: From :func:`read_inputs`.
        how: How a causal LM's answers are drawn.
        placement: A settled placement.

    Raises:
        BadInput: An input lacks what the task needs.
    """
    quiet_libraries()
    finished = load_finished(folder)
    examples, problems = [], []
    for number, row in enumerate(inputs):
        try:
            example = finished.task.ask(row, str(number))
            examples.append(example)
        except RowError as error:
            problems.append(Problem(row["__place__"], error.column, error.what, error.allowed, error.remedy))
    if problems:
        raise BadInput(problems)
    model = finished.model
    move(model, placement)
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
        measured = evaluator.measure(model, examples, features, finished.threshold)
        hidden = ("id", "reference")
        rows = [{key: row[key] for key in row if key not in hidden} for row in measured.predictions]
    return [
        {"id": str(given.get("id", number)), **row}
        for number, (given, row) in enumerate(zip(inputs, rows, strict=True))
    ]
