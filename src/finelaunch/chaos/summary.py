"""What trials came to, in a line each and in one table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finelaunch.chaos.attempt import Bench
from finelaunch.chaos.kinds import KINDS
from finelaunch.errors import EXIT_DONE, EXIT_FAILURE, EXIT_REQUIREMENT


def sentence(row: Mapping[str, Any]) -> str:
    """Return a trial in one line."""
    about = f"{row['kind']} {row['index']}: {row['about']}".removesuffix(": ")
    if row.get("not_run"):
        return f"{about}: not run: {row['not_run']}"
    if row["problems"]:
        return f"{about}: NOT recovered: {'; '.join(row['problems'])}; kept in {row['folder']}"
    return f"{about}: recovered, same weights and log, {row['steps_lost']} steps lost, {row['seconds']:.1f} s"


def summary(rows: Sequence[Mapping[str, Any]], bench: Bench, folder: Path, weights: str | None) -> dict[str, Any]:
    """Return what the rows come to, per kind and in all.

    Args:
        rows: Of all trials that were asked for.
        bench: What they share.
        folder: Where they were made.
        weights: The SHA-256 of the weights that all must end in.
    """
    kinds = {}
    for kind in KINDS:
        if of_kind := [row for row in rows if row["kind"] == kind]:
            made = [row for row in of_kind if row["recovered"] is not None]
            kinds[kind] = {
                "trials": len(of_kind),
                "run": len(made),
                "recovered": sum(row["recovered"] for row in made),
                "weights_equal": sum(row.get("weights_equal", False) for row in made),
                "log_equal": sum(row.get("log_equal", False) for row in made),
                "max_steps_lost": max((row["steps_lost"] for row in made), default=None),
                "seconds": round(sum(row["seconds"] for row in of_kind), 1),
                "not_run": sorted({row["not_run"] for row in of_kind if row.get("not_run")}),
            }
            if any("samples_equal" in row for row in made):
                kinds[kind]["samples_equal"] = sum(row.get("samples_equal", False) for row in made)
    return {
        "command": ["finelaunch", *bench.words],
        "folder": str(folder),
        "reference": {"weights_sha256": weights, "steps": bench.facts.num_steps, "epochs": bench.facts.num_epochs},
        "recovered": exit_code_of(rows) == EXIT_DONE,
        "kinds": kinds,
        "trials": list(rows),
    }


def exit_code_of(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return 0 where every trial that was run recovered, 1 where one did not, 3 where none was run."""
    made = [row["recovered"] for row in rows if row["recovered"] is not None]
    if not made:
        return EXIT_REQUIREMENT
    return EXIT_DONE if all(made) else EXIT_FAILURE


def print_summary(summed: Mapping[str, Any]) -> None:
    """Print the table of the kinds, and below it what did not recover and what was not run."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("fault", "trials", "same weights", "same log", "same rows", "most steps lost", "seconds"):
        table.add_column(column, justify="left" if column == "fault" else "right", no_wrap=column == "fault")
    for kind, figures in summed["kinds"].items():
        run = figures["run"]
        shares = (f"{figures[key]}/{run}" if key in figures else "-" for key in _EQUAL)
        lost = "-" if figures["max_steps_lost"] is None else str(figures["max_steps_lost"])
        number = str(run) if run == figures["trials"] else f"{run} of {figures['trials']}"
        table.add_row(kind, number, *shares, lost, f"{figures['seconds']:.1f}")
    Console().print(table)
    for kind, figures in summed["kinds"].items():
        for why in figures["not_run"]:
            print(f"{kind}: not run: {why}")
    for row in summed["trials"]:
        if row["problems"]:
            print(sentence(row))
    print(f"trials: {summed['folder']}")


_EQUAL = ("weights_equal", "log_equal", "samples_equal")
