"""Which run directory a command means, and whether it may go on in it."""

import os
from collections.abc import Collection
from pathlib import Path

from finelaunch.errors import BadInput, Problem
from finelaunch.launch.profile import Profile
from finelaunch.preparation import Prepared
from finelaunch.recipe.load import flatten
from finelaunch.recipe.schema import Recipe
from finelaunch.run.directory import RunDirectory, differences, is_permitted, refuse_differences
from finelaunch.run.files import read_lines
from finelaunch.run.log import say
from finelaunch.training.checkpoints import BOUND, FREE_KEYS, check_engine
from finelaunch.training.manifest import newest_checkpoint
from finelaunch.training.placement import Placement


def run_directory(name: str | None, run_dir: Path | None, recipe_file: Path, rank: int = 0) -> RunDirectory:
    """Return the run directory: ``run_dir``, else ``runs/NAME``, by default ``runs/<folder>-<stem>`` of the recipe.

    Raises:
        BadInput: Both are given, or the name is a path.
    """
    if run_dir is not None and name is not None:
        raise BadInput(Problem("command line", "--name", "has no effect with --run-dir", "", "give one of them"))
    if name is not None and (not name.strip(". ") or Path(name).name != name):
        raise BadInput(
            Problem("command line", "--name", f"{name!r} is no name of a folder", "", "or use --run-dir DIR")
        )
    if run_dir is not None:
        return RunDirectory(run_dir, rank)
    folder = recipe_file.resolve().parent.name
    return RunDirectory(Path("runs", name or f"{folder}-{recipe_file.stem}"), rank)


def begin_anew(run: RunDirectory, recipe: Recipe) -> None:
    """Set the old run aside, for ``--fresh``, and say where it is kept.

    Raises:
        BadInput: The recipe names something in it, which would lie elsewhere then; or as in the run's own method.
    """
    folder = run.path.resolve()
    within = [
        Problem(
            "recipe", key, f"{value} lies in the run, which --fresh renames", "", "choose another --run-dir or --name"
        )
        for key, value in flatten(recipe.model_dump(mode="json"))
        if isinstance(value, str) and "/" in value and folder in Path(os.path.expanduser(value)).resolve().parents
    ]
    if within:
        raise BadInput(within)
    say(f"the old run is kept in {run.begin_anew()}")


def refuse_another_job(
    run: RunDirectory, recipe: Recipe, profile: Profile, placement: Placement, allow_change: Collection[str]
) -> list[str]:
    """Refuse to continue a run that was begun with another recipe or on another machine.

    What only says how to go on, such as how long, may differ.

    Returns:
        The keys that differ and may, those among them that only say how to go on included.

    Raises:
        BadInput: With the keys that differ and may not (nothing may in a finished run), or the newest checkpoint is one
            that the engine asked for cannot continue.
    """
    if not run.has_trained():
        return []
    asked = {**recipe.model_dump(mode="json"), "launch": profile.model_dump(mode="json")}
    before, after = dict(flatten(run.stated())), dict(flatten(asked))
    refused, permitted = differences(before, after, () if run.finished() else allow_change)
    if bound := [key for key in permitted if key.startswith(BOUND)]:
        what = f"the run was begun with {before.get(bound[0])!r}, and what is trained cannot change within a run"
        remedy = "--fresh begins anew and keeps the old run, --name names another"
        raise BadInput(Problem(str(run.path), bound[0], what, "", remedy))
    free = [key for key, *_ in refused if key in FREE_KEYS]
    refuse_differences(run, [one for one in refused if one[0] not in FREE_KEYS])
    if permitted and recipe.training.resume != "never" and (checkpoint := newest_checkpoint(run.checkpoints)):
        check_engine(checkpoint, placement)
    return permitted + free


def refuse_changed_data(run: RunDirectory, prepared: Prepared, allow_change: Collection[str]) -> None:
    """Refuse to continue on rows that changed since the run was begun.

    Raises:
        BadInput: They did, and it is not allowed.
    """
    if run.has_trained():
        splits = prepared.report["splits"]
        known = {name: split for name, split in run.read_manifest().get("data", {}).items() if name in splits}
        before = {f"data.{name}.path": split.get("fingerprint") for name, split in known.items()}
        after = {f"data.{name}.path": splits[name].get("fingerprint") for name in known}
        changed = [key for key in before if before[key] != after[key] and not is_permitted(key, allow_change)]
        refuse_differences(run, [(key, before[key], after[key]) for key in sorted(changed)])


def refuse_changed_base(run: RunDirectory, fingerprint: str) -> None:
    """Refuse to continue on weights other than those that the run was begun with.

    Raises:
        BadInput: They changed.
    """
    before = run.read_manifest().get("model", {}).get("fingerprint") if run.has_trained() else None
    if before not in (None, fingerprint):
        what = f"the weights are not those that the run in {run.path} began with: {before} then, {fingerprint} now"
        remedy = "put them back, or begin anew with --fresh, which keeps the old run"
        raise BadInput(Problem("recipe", "model.name_or_path", what, "", remedy))


def longest_save(run: RunDirectory) -> float | None:
    """Return the seconds of the longest save that a run has measured; None before the first."""
    saves = [event.get("total_seconds") for event in read_lines(run.events) if event.get("event") == "saved"]
    return max((seconds for seconds in saves if isinstance(seconds, int | float)), default=None)
