"""Verbs for runs that are under way, or were: what became of them, what they say, what they cost, and their end."""

import json
import shutil
import sys
from typing import Annotated

import typer

from finelaunch.cli.app import AsJson, app
from finelaunch.errors import BadInput, Interrupted, Problem

AnyRun = Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or a run's name below runs/.")]


@app.command()
def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run directory, or a run's name below runs/; else all.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All runs below runs/, as without RUN.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what became of a run, here or on Slurm: state and why, step, loss, when it ends."""
    from finelaunch.operations import show
    from finelaunch.operations.records import all_runs, find_run
    from finelaunch.operations.status import status_of

    if run is not None and every:
        raise BadInput(Problem("command line", "--all", "has no effect with RUN", "", "give one of them"))
    if run is not None:
        one = status_of([find_run(run)])[0]
        print(json.dumps(show.as_json(one)) if as_json else "\n".join(show.details(one)))
        return
    statuses = status_of(all_runs())
    if as_json:
        print(json.dumps({"runs": [show.as_json(one) for one in statuses]}))
    elif statuses:
        print("\n".join(show.table(statuses)))
    else:
        print("there are no runs below runs/")


@app.command()
def logs(
    run: AnyRun,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends; its exit code.")] = False,
    rank: Annotated[int, typer.Option("--rank", min=0, help="Of which process.")] = 0,
    lines: Annotated[int, typer.Option("--lines", min=0, help="How many of the last lines; 0: all.")] = 50,
) -> None:
    """Print what a run says, here or on Slurm; -f follows it over requeues to its end."""
    from finelaunch.operations.logs import print_log
    from finelaunch.operations.records import find_run

    found = find_run(run)
    try:
        code = print_log(found, rank, lines, follow)
    except Interrupted:  # to stop looking is no stop of the run
        code = 0
    sys.exit(code)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="Finished runs of one task.")],
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a table in Markdown.")] = False,
) -> None:
    """Print what finished runs cost beside how good they are: parameters, quality, speed, memory, bytes."""
    from finelaunch.operations.records import find_run
    from finelaunch.operations.show import plain
    from finelaunch.reporting.compare import compare as compare_runs
    from finelaunch.reporting.compare_table import markdown_lines, terminal_lines

    if as_json and as_markdown:
        raise BadInput(Problem("command line", "--markdown", "has no effect with --json", "", "give one of them"))
    found = compare_runs([find_run(run) for run in runs])
    if as_json:
        print(json.dumps(found.as_json()))
        return
    width = shutil.get_terminal_size((100, 24)).columns
    lines = markdown_lines(found) if as_markdown else terminal_lines(found, width)
    print("\n".join(map(plain, lines)))


@app.command()
def cancel(
    run: AnyRun,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the end.")] = 60.0,
) -> None:
    """End a run, here or on Slurm; what is saved stays, and the same command as before continues it."""
    from finelaunch.operations.cancel import cancel_run
    from finelaunch.operations.records import find_run

    cancel_run(find_run(run), wait)
