"""Verbs that only read: they load neither torch nor transformers."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from finelaunch.cli.app import AsJson, On, Overrides, RecipeName, app
from finelaunch.errors import BadInput, Problem


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Print this recipe's file.")] = None,
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a recipe.")] = False,
) -> None:
    """List the recipes that resolve from here, or print one."""
    from finelaunch.recipe.schema import recipe_json_schema
    from finelaunch.section.lookup import about, find, names, read_file

    if schema:
        print(json.dumps(recipe_json_schema(), indent=2))
        return
    if name is not None:
        path = find(name, "recipes")
        read_file(path)
        print(path.read_text(encoding="utf-8"), end="")
        return
    listed = {recipe: about(find(recipe, "recipes")) for recipe in names("recipes")}
    if as_json:
        print(json.dumps(listed, indent=2))
        return
    width = max(map(len, listed), default=0)
    for recipe, comment in listed.items():
        print(f"{recipe:<{width}}  {comment}")


@app.command()
def validate(
    recipe: RecipeName,
    overrides: Overrides = None,
    on: On = None,
    data: Annotated[bool, typer.Option("--data", help="Read and check all rows, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong with a recipe, at once."""
    from finelaunch.launch.check import check
    from finelaunch.preparation import read_splits
    from finelaunch.recipe.load import read_overrides
    from finelaunch.tasks import task_for

    loaded, document = check(recipe, read_overrides(overrides or ()), on)
    counts: dict[str, int] = {}
    if data:
        counts = {
            name: len(rows) for name, rows in read_splits(loaded.data, task_for(loaded.task), document).examples.items()
        }
    if as_json:
        print(json.dumps({"valid": True, "task": loaded.task.name, "num_examples": counts}))
        return
    rows = "; ".join(f"{name} {count:,} rows" for name, count in counts.items())
    print(f"{recipe}: valid ({loaded.task.name}{'; ' + rows if rows else ''})")


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="JSON: {id: answer}.")],
    data: Annotated[Path, typer.Option("--data", help="The SQuAD 2.0 JSON with the questions.")],
    task: Annotated[str, typer.Option("--task", help="The task; question_answering.")] = "question_answering",
    no_answer_probabilities: Annotated[
        Path | None, typer.Option("--no-answer-probabilities", help="JSON: {id: score}, higher means no answer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a predictions file as the official SQuAD 2.0 evaluation does."""
    from finelaunch.metrics.squad_files import score_files
    from finelaunch.reporting.figures import figure_text

    if task != "question_answering":
        raise BadInput(Problem("command line", "--task", f"{task!r} has no file format", "question_answering"))
    scored = score_files(predictions, data, no_answer_probabilities)
    for warning in scored.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(scored.metrics))
        return
    for key, value in scored.metrics.items():
        print(f"{key:<20} {figure_text(value)}")
