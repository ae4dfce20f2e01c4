"""A stopped run, every damage to the files of its newest checkpoint, and what becomes of each.

The corruption matrix of the benchmarks and its short versions in the tests are made of these. One process runs in
this one; several are started as a user starts them.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from integration.runs import log_of, run_recipe, signalled, weights_hash

from finelaunch.chaos.damage import DAMAGE, files_to_damage
from finelaunch.errors import EXIT_DONE, EXIT_STOPPED, FinelaunchError, Stopped
from finelaunch.launch.place import place
from finelaunch.launch.profile import load_profile
from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.run.ranks import ALONE
from finelaunch.training.checkpoints import Continued, Identity, choose_checkpoint
from finelaunch.training.manifest import NAME, Checkpoint, Verification, checkpoints_in, read_checkpoint
from finelaunch.training.placement import Placement

PROFILES = {"single": "cpu", "ddp": "cpu_ddp", "zero2": "cpu_zero2", "zero3": "cpu_zero3"}
RECIPE = "imdb/smoke"
RHYTHM = (
    "data.train.max_samples=50",
    "data.test.max_samples=8",
    "training.max_steps=40",
    "training.logging_steps=3",
    "training.save_strategy=steps",
    "training.save_steps=4",
    "training.save_total_limit=3",
    "training.eval_strategy=no",
    "evaluation.base=false",
)
"""Dropout is on; the log's intervals are cut by the checkpoints."""


@dataclass(frozen=True)
class Command:
    """The command that trains on an engine, the same for every start.

    Args:
        engine: A key of :data:`PROFILES`.
        folder: The run directory.
        words: Further overrides.
    """

    engine: str
    folder: Path
    words: tuple[str, ...] = ()

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.folder)

    @cached_property
    def placement(self) -> Placement:
        given = read_overrides([*RHYTHM, *self.words])
        profile, document, _ = load_profile(PROFILES[self.engine], given["launch"])
        return place(load_recipe(RECIPE, given["recipe"])[0], profile, document)

    def start(self) -> subprocess.Popen:
        words = ["launch", RECIPE, *RHYTHM, *self.words, "--on", PROFILES[self.engine], "--run-dir", str(self.folder)]
        return subprocess.Popen(
            [sys.executable, "-m", "finelaunch", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def finish(self) -> RunDirectory:
        """Begin or continue, to the end.

        Raises:
            FinelaunchError: It does not come to it.
        """
        if self.engine == "single":
            return run_recipe(RECIPE, self.folder, *RHYTHM, *self.words)
        process = self.start()
        said = process.communicate(timeout=600)[0]
        if process.returncode != EXIT_DONE:
            raise FinelaunchError(f"exit code {process.returncode}: {said[-4000:]}")
        return self.run

    def stop(self) -> RunDirectory:
        """Begin, and stop by a signal to the command once two checkpoints count."""
        if self.engine == "single":
            with signalled(9), pytest.raises(Stopped):
                run_recipe(RECIPE, self.folder, *RHYTHM, *self.words)
            return self.run
        process = self.start()
        deadline = time.monotonic() + 300
        while sum(event["event"] == "saved" for event in read_lines(self.run.events)) < 2:
            assert process.poll() is None, process.communicate()[0][-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == EXIT_STOPPED, said[-4000:]
        return self.run


@dataclass(frozen=True)
class Cell:
    """What became of one damage.

    Args:
        file: The damaged file of the checkpoint.
        kind: What was done to it.
        noticed: A warning of the run names the checkpoint and the file.
        fell_back: The newest of the others was chosen.
        differs: After a resume to the end, what is not as in the uninterrupted run; None: nothing was resumed.
    """

    file: str
    kind: str
    noticed: bool
    fell_back: bool
    differs: tuple[str, ...] | None = None

    @property
    def is_good(self) -> bool:
        return self.noticed and self.fell_back and not self.differs

    def __str__(self) -> str:
        faults = ["not noticed"] * (not self.noticed) + ["did not fall back"] * (not self.fell_back)
        return f"{self.file}, {self.kind}: {', '.join([*faults, *(self.differs or ())]) or 'good'}"


def kinds_in_turn(files: Sequence[str]) -> list[tuple[str, str]]:
    """Return every file with one kind of damage, the kinds in turn."""
    kinds = list(DAMAGE)
    return [(file, kinds[number % len(kinds)]) for number, file in enumerate(files)]


def damage(path: Path, kind: str) -> None:
    """Do to a file what ``kind`` says, the same in every session."""
    DAMAGE[kind](path, random.Random(f"{path.name} {kind}"))


def choose(command: Command, how: Verification = "sha256") -> Continued:
    """Return what the command would continue from, as it decides it itself."""
    run = command.run
    sound = next(one for one in map(read_checkpoint, checkpoints_in(run.checkpoints)) if isinstance(one, Checkpoint))
    identity = Identity(sound.content["recipe"], sound.content["data"], sound.content["base"])
    return choose_checkpoint("auto", how, run, command.placement, identity, ALONE, ())


def choices(command: Command, how: Verification = "sha256") -> Iterator[Cell]:
    """Yield every file of the newest checkpoint in every damage: which checkpoint is chosen, and what is said."""
    newest, older, *_ = checkpoints_in(command.run.checkpoints)
    for file in files_to_damage(newest):
        for kind in DAMAGE:
            with _restored(newest / file, command.run.manifest):
                damage(newest / file, kind)
                chosen = choose(command, how)
                passed_over = [path for path, _ in chosen.newer]
                noticed = newest in passed_over and _names(command.run, newest, file)
                yield Cell(file, kind, noticed, chosen.checkpoint is not None and chosen.checkpoint.path == older)
    whole = choose(command, how)
    assert whole.checkpoint is not None
    assert (whole.checkpoint.path, whole.newer) == (newest, ()), "a whole one is taken"


def resumed(command: Command, stopped: Path, file: str, kind: str, whole: RunDirectory) -> Cell:
    """Damage a copy of the ``stopped`` run, continue it by its own command, and compare it with the ``whole`` one."""
    shutil.rmtree(command.folder, ignore_errors=True)
    shutil.copytree(stopped, command.folder)
    newest, older, *_ = checkpoints_in(command.run.checkpoints)
    damage(newest / file, kind)
    try:
        run = command.finish()
    except Exception as error:  # whatever a damaged file that was not noticed makes of it
        return Cell(file, kind, _names(command.run, newest, file), False, (f"{type(error).__name__}: {error}",))
    taken = [event["checkpoint"] for event in read_lines(run.events) if event["event"] == "training"][-1]
    return Cell(file, kind, _names(run, newest, file), taken == older.name, tuple(differences(run, whole)))


def differences(run: RunDirectory, whole: RunDirectory) -> Iterator[str]:
    """Yield what of a finished run is not as in the one that nothing stopped."""
    if weights_hash(run) != weights_hash(whole):
        yield "other weights"
    if log_of(run) != log_of(whole):
        yield "another train log"
    if read_lines(run.samples) != read_lines(whole.samples):
        yield "other rows"


def warnings_of(run: RunDirectory) -> list[str]:
    return json.loads(run.manifest.read_text(encoding="utf-8"))["warnings"]


def _names(run: RunDirectory, checkpoint: Path, file: str) -> bool:
    """Return whether a warning says that ``checkpoint`` is passed over for ``file``."""
    said = [text.partition(f"{checkpoint} is passed over: ")[2] for text in warnings_of(run)]
    if file == NAME:
        return any("manifest" in reason for reason in said)
    return any(reason.startswith(f"{file} ") for reason in said)


@contextmanager
def _restored(*paths: Path) -> Iterator[None]:
    before = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)
