"""``finelaunch train --replay FILE``: a failed step once more, on one device of this machine."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from finelaunch.errors import BadInput, Problem
from finelaunch.launch.request import settled_machine
from finelaunch.run import log
from finelaunch.run.ranks import Ranks
from finelaunch.section.lookup import COMMAND_LINE
from finelaunch.training.replay import as_text, read_record, replay


def print_again(path: Path | None, on: str | None, as_json: bool, others: Collection[Any]) -> None:
    """Compute the failed step that ``path`` was left by again and print what came of it.

    Args:
        path: Such as ``runs/imdb-smoke/replay/step-7-rank-0.json``; None: the command names neither it nor a recipe.
        on: The launch profile; None: the CPU where the step was computed on one, else ``gpu`` if CUDA is there.
        as_json: Print one JSON object.
        others: The other words of the command line; none may be given.

    Raises:
        BadInput: The file, or another word beside it.
        RequirementMissing: The device is not there.
    """
    if path is None:
        raise BadInput(Problem(COMMAND_LINE, "RECIPE", "is missing", "a path or name", "finelaunch recipes lists them"))
    if any(others):
        what = "a recipe, key=value or an option beside it: all is read from the file, and nothing is trained"
        raise BadInput(Problem(COMMAND_LINE, "--replay", what, "--on PROFILE and --json", "leave the rest out"))
    ranks = Ranks.from_environment()
    if ranks.world_size > 1:
        what = f"started as one of {ranks.world_size} processes, and a replay is one"
        raise BadInput(Problem("environment", "WORLD_SIZE", what, "", "start it without torchrun or accelerate"))
    log.set_up()
    recorded = read_record(path)
    report = replay(recorded, settled_machine(on or ("cpu" if recorded.device == "cpu" else None), ranks))
    print(json.dumps(report, ensure_ascii=False) if as_json else as_text(report))
