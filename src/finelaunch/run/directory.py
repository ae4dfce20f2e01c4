"""One run: its folder, whether it is new, unfinished or finished, its manifest and its events."""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finelaunch import __version__
from finelaunch.errors import BadInput, Problem
from finelaunch.run.files import append_line, read_lines, write_json, write_text
from finelaunch.run.lock import RunLock
from finelaunch.section.base import nearest
from finelaunch.section.document import read_document, write_document

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
)


class RunDirectory:
    """The files of a run.

    Args:
        path: The run directory; need not exist.
        rank: The process that holds it. Only the first one writes what is shared; on others such calls do nothing.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path = path
        self.writes = rank == 0
        self.recipe = path / "recipe.yaml"
        self.manifest = path / "manifest.json"
        self.events = path / "events.jsonl"
        self.train_log = path / "train_log.jsonl"
        self.samples = path / "samples.jsonl"
        self.answers = path / "answers.jsonl"
        self.lock = path / "lock.json"
        self.data_report = path / "data" / "data_report.json"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.log = self.log_of(rank)
        self.model = path / "model"
        self.model_facts = path / "model" / "finelaunch.json"
        self.predictions = path / "predictions.jsonl"
        self.metrics = path / "metrics.json"
        self.replay = path / "replay"
        self.slurm = path / "slurm"

    def log_of(self, rank: int) -> Path:
        """Return the log file of a rank."""
        return self.path / "logs" / f"rank_{rank}.log"

    def exists(self) -> bool:
        """Return whether a run was begun here."""
        return self.recipe.exists()

    def has_trained(self) -> bool:
        """Return whether training was begun here; a run that failed before it holds nothing to keep."""
        return self.exists() and any(event.get("event") == "training" for event in read_lines(self.events))

    def finished(self) -> bool:
        """Return whether the run came to its end, by its own record."""
        return any(event.get("event") == "finished" for event in read_lines(self.events))

    def record(self, event: str, **facts: Any) -> None:
        """Append an event with its time."""
        if self.writes:
            append_line(self.events, {"time": now(), "event": event, **facts})

    def begin(self, recipe: Mapping[str, Any], launch: Mapping[str, Any], command: list[str]) -> None:
        """Write the resolved recipe and the first manifest of a new run.

        Raises:
            BadInput: The folder holds what is no run's.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.refuse_foreign_files()
        manifest = {
            "name": Path(os.path.abspath(self.path)).name,
            "finelaunch": __version__,
            "commit": _commit(),
            "created": now(),
            "command": command,
            "launch": dict(launch),
            "host": _host(),
            "versions": versions(),
            "warnings": [],
        }
        write_json(self.manifest, manifest)
        write_text(self.recipe, write_document(recipe))
        self.record("created")

    def restate(
        self, recipe: Mapping[str, Any], launch: Mapping[str, Any], keys: Sequence[str], keeps_base: bool
    ) -> None:
        """Write down that the run goes on with other values of ``keys``; base figures may have to be measured again."""
        manifest = self.read_manifest()
        if not keeps_base:
            manifest.pop("base_figures", None)
        write_json(self.manifest, {**manifest, "launch": dict(launch)})
        write_text(self.recipe, write_document(recipe))
        self.record("changed", keys=list(keys))

    def refuse_foreign_files(self) -> None:
        """Refuse a folder that holds something, and no run.

        Raises:
            BadInput: It does.
        """
        if self.exists() or not self.path.is_dir():
            return
        early = {
            self.manifest.name,
            self.events.name,
            self.lock.name,
            self.log.parent.name,
            self.data_report.parent.name,
            self.slurm.name,
        }
        names = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        if foreign := [name for name in names if name not in early]:
            what = f"holds no run, but {', '.join(foreign[:3])}{' …' if foreign[3:] else ''}"
            raise BadInput(Problem(str(self.path), "", what, "an empty or a new folder", "choose another --run-dir"))

    def stated(self) -> dict[str, Any]:
        """Return the recipe and profile that the run was begun with, ``launch`` beside the sections of the recipe.

        Raises:
            BadInput: One of the two files was changed into something else.
        """
        recipe = read_document(self.recipe.read_text(encoding="utf-8", errors="replace"), str(self.recipe)).values
        return {**recipe, "launch": self.read_manifest().get("launch", {})}

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest.

        Raises:
            BadInput: It is missing or was changed into something else.
        """
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            manifest = None
        if not isinstance(manifest, dict):
            remedy = "put it back, or begin anew with --fresh, which keeps the old run"
            raise BadInput(Problem(str(self.manifest), "", "is missing or no JSON object", "", remedy))
        return manifest

    def note(self, **sections: Any) -> None:
        """Set sections of the manifest."""
        if self.writes:
            write_json(self.manifest, {**self.read_manifest(), **sections})

    def warn(self, text: str) -> bool:
        """Add a line to the manifest's warnings; return whether it is new, and this rank's to say."""
        if not self.writes:
            return False
        warnings = self.read_manifest().get("warnings", [])
        if text in warnings:
            return False
        self.note(warnings=[*warnings, text])
        return True

    def begin_anew(self) -> Path:
        """Set the old run aside and return where it is kept.

        Raises:
            BadInput: Another process is writing it, or it is the current folder.
        """
        path = self.path.resolve()
        if path == Path.cwd() or path in Path.cwd().parents:
            what = "the current folder lies in the run, which would be renamed under it"
            raise BadInput(Problem(str(path), "--fresh", what, "", "change to another folder"))
        with RunLock(self.lock):
            aside = self.set_aside()
            (aside / self.lock.name).unlink(missing_ok=True)
        return aside

    def set_aside(self) -> Path:
        """Rename the folder to the first free ``NAME.N`` and return that."""
        path, number = Path(os.path.abspath(self.path)), 1
        while (aside := path.with_name(f"{path.name}.{number}")).exists():
            number += 1
        path.rename(aside)
        return aside


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], allowed: Collection[str]
) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """Return the dotted keys whose values differ, with both values, and apart the keys below an ``allowed`` one.

    Raises:
        BadInput: An ``allowed`` word is no key.
    """
    keys = sorted({*before, *after})
    if unknown := [word for word in allowed if not any(is_permitted(key, [word]) for key in keys)]:
        problems = [
            Problem("command line", "--allow-change", f"{word!r} is no key", "", _known(word, keys)) for word in unknown
        ]
        raise BadInput(problems)
    changed = [key for key in keys if before.get(key) != after.get(key)]
    permitted = [key for key in changed if is_permitted(key, allowed)]
    refused = [key for key in changed if key not in permitted]
    return [(key, before.get(key), after.get(key)) for key in refused], permitted


def is_permitted(key: str, allowed: Collection[str]) -> bool:
    """Return whether the dotted ``key`` is one of the ``allowed`` words or below one."""
    return any(key == word or key.startswith(f"{word}.") for word in allowed)


def _known(word: str, keys: Sequence[str]) -> str:
    near = nearest(word, keys)
    return f"did you mean {near!r}?" if near else "such as training.num_train_epochs"


def refuse_differences(run: RunDirectory, found: list[tuple[str, Any, Any]]) -> None:
    """Raise what a run that was begun otherwise answers.

    Raises:
        BadInput: ``found`` is not empty.
    """
    if found:
        remedy = "--fresh begins anew and keeps the old run, --name names another, --allow-change KEY permits one"
        raise BadInput(
            Problem(str(run.path), key, f"the run was begun with {old!r}, asked for is {new!r}", "", remedy)
            for key, old, new in found
        )


def now() -> str:
    """Return the time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _host() -> dict[str, Any]:
    return {
        "name": socket.gethostname(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "executable": sys.executable,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result may depend on, by name."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Return the commit of the checkout that this package runs from, ``+`` where it has changes, or None."""
    folder = Path(__file__).parent
    call = ["git", "-C", str(folder)]
    try:
        top = subprocess.run(
            [*call, "rev-parse", "--show-toplevel", "HEAD"], capture_output=True, text=True, timeout=10
        )
        if top.returncode or Path(top.stdout.splitlines()[0]) not in folder.parents:
            return None
        if not (Path(top.stdout.splitlines()[0]) / "src" / "finelaunch").exists():
            return None
        dirty = subprocess.run([*call, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return top.stdout.splitlines()[1] + ("+" if dirty.stdout.strip() else "")


class Stopwatch:
    """Seconds of the stages of a run, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> float:
        """Book the time since the last call under ``name`` and return it."""
        elapsed = time.perf_counter() - self._since
        self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed, 3)
        self._since = time.perf_counter()
        return elapsed
