"""The command, and the options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from finelaunch import __version__

app = typer.Typer(
    name="finelaunch",
    help="One recipe, every machine: fine-tuning that is verified, resumable and measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's path or name, such as imdb/smoke.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as training.learning_rate=3e-5.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run directory, a run's name below runs/, or its model.")]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="PROFILE", help="Launch profile; by default gpu if CUDA is there, else cpu."),
]
ClusterName = Annotated[
    str | None, typer.Option("--cluster", metavar="NAME", help="Cluster profile; by default FINELAUNCH_CLUSTER.")
]
RunNameOption = Annotated[str | None, typer.Option("--name", help="Name of the run below runs/.")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="The run directory itself.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew; the old run is renamed, never deleted.")]
AllowChange = Annotated[
    list[str] | None, typer.Option("--allow-change", metavar="KEY", help="Continue although this key differs.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"finelaunch {__version__}")
        raise typer.Exit
