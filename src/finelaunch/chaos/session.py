"""All trials of a recipe: begun, gone on with where they were interrupted, and summed up."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finelaunch import __version__
from finelaunch.chaos.attempt import Bench, Facts, attempt_trial
from finelaunch.chaos.evidence import read_object, weights_digest
from finelaunch.chaos.kinds import KINDS
from finelaunch.chaos.reference import make_reference
from finelaunch.chaos.small_disk import small_disk_rows
from finelaunch.chaos.starts import Starts
from finelaunch.chaos.summary import exit_code_of, print_summary, sentence, summary
from finelaunch.chaos.trials import Trial
from finelaunch.errors import BadInput, Interrupted, Problem, RequirementMissing, Stopped
from finelaunch.launch.check import check
from finelaunch.launch.devices import default_on, on_this_machine
from finelaunch.launch.local import num_cores
from finelaunch.launch.profile import load_profile
from finelaunch.launch.runs import run_directory
from finelaunch.recipe.load import flatten, read_overrides
from finelaunch.run import log
from finelaunch.run.directory import versions
from finelaunch.run.files import append_line, read_lines, write_json
from finelaunch.run.lock import RunLock
from finelaunch.section.base import nearest
from finelaunch.section.lookup import COMMAND_LINE, find

STATE = "chaos.json"
ROWS = "trials.jsonl"


def prove(
    recipe: str,
    overrides: Sequence[str],
    on: str | None,
    count: int,
    seed: int,
    kinds: Sequence[str],
    run_dir: Path | None,
    as_json: bool,
) -> int:
    """Make ``count`` trials of each kind of fault, go on with those of an interrupted command, and say what came of it.

    Args:
        recipe: As for ``train``.
        overrides: As for ``train``.
        on: The launch profile, by default one process on the device that is there.
        count: Trials of each kind.
        seed: All draws follow from it.
        kinds: Some of :data:`KINDS`; none: all.
        run_dir: Where all of it goes, by default ``runs/<recipe>-chaos``.
        as_json: Print one JSON object instead of a table.

    Returns:
        The exit code: 0 where every trial recovered, 1 where one did not, 3 where none could be made.

    Raises:
        BadInput: The recipe, the profile, a kind, or a folder of other trials.
        RequirementMissing: A device or a package is missing, or this is no Linux.
        Stopped: A signal; the same command goes on.
    """
    log.set_up()
    if not hasattr(os, "pidfd_open"):
        raise RequirementMissing("chaos: processes can be watched so on Linux only (pidfd_open)")
    chosen = _chosen(kinds)
    given = read_overrides(overrides)
    loaded, _ = check(recipe, given, on)
    if loaded.training.resume == "never":
        what = "never begins a stopped run again instead of continuing it"
        raise BadInput(Problem("recipe", "training.resume", what, "auto or a path", "leave it out"))
    if loaded.training.time_budget_minutes is not None:
        what = "has every trial plan its own number of steps, so that their weights differ"
        raise BadInput(Problem("recipe", "training.time_budget_minutes", what, "", "use training.max_steps for chaos"))
    profile_name = on or default_on()
    profile, document, _ = load_profile(profile_name, given["launch"])
    if profile.target == "slurm":
        what = f"{profile_name} is one of Slurm, and chaos stops processes of this machine"
        remedy = "use --on cpu_ddp and the like; docs/slurm.md has what was tried on Slurm"
        raise BadInput(Problem("command line", "--on", what, "", remedy))
    profile = on_this_machine(profile, document)
    file = find(recipe, "recipes")
    name = None if run_dir else f"{file.resolve().parent.name}-{file.stem}-chaos"
    folder = run_directory(name, run_dir, file).path.absolute()
    alone = profile.target == "inprocess"
    words = ("train" if alone else "launch", recipe, *overrides, "--on", profile_name)
    asked = {**loaded.model_dump(mode="json"), "launch": profile.model_dump(mode="json"), "bits": _bits()}
    trials = [Trial(kind, index, seed) for index in range(count) for kind in chosen]
    _refuse_other_trials(folder, asked)
    with RunLock(folder / "lock.json"):
        try:
            bench = _bench(folder, asked, words, profile.num_processes or 1, alone and profile.device == "cpu")
            _make(bench, folder, trials, forks=alone and profile.device == "cpu")
        except (Interrupted, KeyboardInterrupt):
            raise Stopped(f"stopped; the same command goes on with the trials in {folder}") from None
    rows = [row for trial, row in _rows(folder).items() if trial in trials]
    summed = summary(rows, bench, folder, weights_digest(bench.reference / "model"))
    print(json.dumps(summed) if as_json else "", end="\n" * as_json)
    if not as_json:
        print_summary(summed)
    return exit_code_of(rows)


def _chosen(kinds: Sequence[str]) -> list[str]:
    """Return the kinds in the order of the table.

    Raises:
        BadInput: One is unknown.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        known = list(KINDS)
        near = nearest(unknown[0], known)
        remedy = f"did you mean {near!r}?" if near else f"one of {', '.join(known)}"
        raise BadInput(Problem(COMMAND_LINE, "--fault", f"there is no fault {unknown[0]!r:.200}", "", remedy))
    return [kind for kind in KINDS if kind in kinds or not kinds]


def _bits() -> dict[str, Any]:
    """Return what the last bits of the weights hang on beside recipe and profile: versions, and threads on a CPU."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(num_cores())
    return {"finelaunch": __version__, **versions(), "threads": threads}


def _refuse_other_trials(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something else, or trials of another recipe or machine.

    Raises:
        BadInput: It does; with the keys that differ.
    """
    if not folder.exists() or not (names := sorted(path.name for path in folder.iterdir() if path.name[0] != ".")):
        return
    remedy = "choose another --run-dir"
    state = read_object(folder / STATE)
    if not state:
        if names == ["lock.json"]:
            return
        what = f"holds no trials, but {', '.join(names[:3])}{' …' if names[3:] else ''}"
        raise BadInput(Problem(str(folder), "", what, "an empty or a new folder", remedy))
    before, after = dict(flatten(state["asked"])), dict(flatten(asked))
    differing = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    if differing:
        raise BadInput(
            Problem(
                str(folder),
                key,
                f"the trials were begun with {before.get(key)!r}, asked for is {after.get(key)!r}",
                "",
                f"{remedy}, or delete this one",
            )
            for key in differing
        )


def _bench(folder: Path, asked: Mapping[str, Any], words: tuple[str, ...], num_ranks: int, forks: bool) -> Bench:
    """Return what all trials share, the reference made where it is not there yet."""
    state = read_object(folder / STATE)
    if not state:
        write_json(folder / STATE, {"asked": asked, "facts": None})
    if not state.get("facts"):
        log.say(f"chaos in {folder}: the run that nothing stops, twice")
        (folder / "trials").mkdir(exist_ok=True)
        with Starts(folder / "starts.txt", forks) as starts:
            facts = make_reference(folder, words, starts)
        state = {"asked": asked, "facts": asdict(facts)}
        write_json(folder / STATE, state)
    facts = Facts.from_values(state["facts"])
    saves = f"checkpoints at {len(facts.saves)} of them, written in {facts.save_seconds:.2f} s"
    log.say(f"{facts.num_steps} steps, {facts.num_epochs:g} epochs, {saves}; {facts.whole_seconds:.1f} s in all")
    return Bench(words, folder / "reference", facts, num_ranks)


def _make(bench: Bench, folder: Path, trials: Sequence[Trial], forks: bool) -> None:
    """Make the trials that were not made yet, and write each down at its end."""
    done = [trial for trial, row in _rows(folder).items() if row["recovered"] is not None]
    waiting = [trial for trial in trials if trial not in done]
    if len(waiting) < len(trials):
        log.say(f"{len(trials) - len(waiting)} of {len(trials)} trials were made before")
    place = folder / "trials"
    place.mkdir(exist_ok=True)
    for row in _made(bench, place, waiting, forks):
        append_line(folder / ROWS, row)
        (log.warn if row["problems"] else log.say)(sentence(row))
    shutil.rmtree(place, ignore_errors=True) if not any(path.is_dir() for path in place.iterdir()) else None


def _made(bench: Bench, place: Path, trials: Sequence[Trial], forks: bool) -> Iterator[dict[str, Any]]:
    on_small_disks = [trial for trial in trials if trial.kind == "disk"]
    others = [trial for trial in trials if trial.kind != "disk"]
    if others:
        with Starts(place.parent / "starts.txt", forks) as starts:
            for trial in others:
                yield attempt_trial(bench, trial, KINDS[trial.kind], place / trial.name, starts)
    if on_small_disks:
        yield from small_disk_rows(bench, on_small_disks, place, forks)


def _rows(folder: Path) -> dict[Trial, dict[str, Any]]:
    """Return the rows that are written down, by their trial; of a trial that was tried again the last one."""
    return {Trial(row["kind"], row["index"], row["seed"]): row for row in read_lines(folder / ROWS)}
