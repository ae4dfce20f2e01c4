"""Verbs about data."""

import json
import shutil
from typing import Annotated

import typer

from finelaunch.cli.app import AsJson, On, Overrides, RecipeName, app
from finelaunch.data.section import SPLITS
from finelaunch.errors import BadInput, Problem

data_app = typer.Typer(help="Look at data as the model will see it.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


@data_app.command()
def show(
    recipe: RecipeName,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "train",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Of train the step, else the forward pass.")] = 1,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of the batch to write out.")] = 3,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Show a batch as the model will see it: tokens, what carries loss, padding, what was cut; and all lengths."""
    from finelaunch.launch.check import check
    from finelaunch.launch.devices import default_on
    from finelaunch.launch.place import on_processes
    from finelaunch.launch.profile import load_profile
    from finelaunch.provision.locked import pinned
    from finelaunch.recipe.load import read_overrides

    if split not in SPLITS:
        raise BadInput(Problem("command line", "--split", f"{split!r} is no split", ", ".join(SPLITS)))
    given = read_overrides(overrides or ())
    loaded, document = pinned(*check(recipe, given, on))
    if split == "test" and loaded.data.test is None:
        raise BadInput(Problem("command line", "--split", "the recipe names no data.test", "train or validation"))
    name = on or default_on()
    profile, profile_document, _ = load_profile(name, given["launch"])
    placement = on_processes(loaded.training.global_batch_size, profile, profile_document)
    from finelaunch.preparation import prepare
    from finelaunch.reporting.batch import ShownSplit
    from finelaunch.reporting.batch_text import batch_text
    from finelaunch.run import log
    from finelaunch.tasks import task_for

    log.set_up()
    log.quiet_libraries()
    task = task_for(loaded.task)
    prepared = prepare(loaded.data, loaded.model, task, loaded.task.model_dump(mode="json"), document)
    machine = name if profile.num_processes else f"{name}, where one process stands for all visible GPUs"
    shown = {"recipe": recipe, "profile": machine, **ShownSplit(loaded, prepared, placement, split).batch(batch)}
    if as_json:
        print(json.dumps(shown, ensure_ascii=False))
        return
    print(batch_text(shown, rows, shutil.get_terminal_size((100, 24)).columns))
