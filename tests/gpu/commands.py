"""The real commands on real GPUs, for the tests: one launch of a smoke recipe, and what came of it."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from integration.runs import NO_DROPOUT, curve

from finelaunch.launch.devices import num_visible_gpus
from finelaunch.run.directory import RunDirectory

RECIPE = "imdb/smoke"
PROFILES = {"single": "gpu", "ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3", "fsdp2": "fsdp2"}
NUM_STEPS = 20
NUM_GPUS = num_visible_gpus()
NO_GPU = "no CUDA device is visible to the driver (libcuda.so.1, CUDA_VISIBLE_DEVICES)"
SETTINGS = (
    *NO_DROPOUT[RECIPE],
    f"training.max_steps={NUM_STEPS}",
    "training.logging_steps=1",
    "training.save_strategy=no",
    "training.eval_strategy=no",
    "evaluation.base=false",
    "launch.per_device_eval_batch_size=8",  # the peak is then that of training
)
TABLE: list[dict[str, Any]] = []
"""A row for every launch: what it was, and the peak of its first device beside the plan's estimate."""


@dataclass(frozen=True)
class Launched:
    """A finished run.

    Args:
        run: Its directory.
        engine: What the manifest says really ran.
        metrics: The content of ``metrics.json``.
    """

    run: RunDirectory
    engine: dict[str, Any]
    metrics: dict[str, Any]


def command(*words: Any) -> list[str]:
    """Return a finelaunch command for a subprocess."""
    return [sys.executable, "-m", "finelaunch", *map(str, words)]


def finelaunch(*words: Any) -> subprocess.CompletedProcess[str]:
    """Run a finelaunch command to its end."""
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=900, check=False)


@functools.cache
def runs_folder() -> Path:
    """Return where the runs of this session lie; they are kept for a look at what failed."""
    return Path(tempfile.mkdtemp(prefix="finelaunch-gpu-"))


def launch_words(engine: str, precision: str, num_processes: int) -> list[str]:
    """Return what follows ``launch`` and ``plan`` for the smoke recipe on an engine."""
    machine = [f"launch.num_processes_per_node={num_processes}", f"launch.precision={precision}"]
    return [RECIPE, "--on", PROFILES[engine], *SETTINGS, *machine]


def launched(engine: str, precision: str, num_processes: int = 1) -> Launched:
    """Return the finished run of the smoke recipe; it is launched once a session for each combination."""
    run, done = _launch(engine, precision, num_processes)
    assert done.returncode == 0, f"{run.path}\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
    return Launched(run, run.read_manifest()["engine"], json.loads(run.metrics.read_text()))


@functools.cache
def _launch(engine: str, precision: str, num_processes: int) -> tuple[RunDirectory, subprocess.CompletedProcess[str]]:
    """Launch the smoke recipe and add a row to the table."""
    words = launch_words(engine, precision, num_processes)
    run = RunDirectory(runs_folder() / f"{engine}-{precision}-{num_processes}")
    done = finelaunch("launch", *words, "--run-dir", run.path)
    if done.returncode != 0:
        return run, done
    planned = finelaunch("plan", *words, "--json")
    assert planned.returncode == 0, planned.stderr
    TABLE.append(
        {
            "engine": engine,
            "precision": precision,
            "processes": num_processes,
            "peak_device_bytes": json.loads(run.metrics.read_text())["train"]["peak_device_bytes"],
            "planned_bytes": json.loads(planned.stdout)["memory"]["total"],
        }
    )
    return run, done


def evaluated_loss(run: RunDirectory, precision: str) -> float:
    """Return the test loss that ``finelaunch evaluate`` measures on one GPU in ``precision``."""
    profile = runs_folder() / f"evaluate-{precision}.yaml"
    profile.write_text(f"target: inprocess\naccelerate_config: single\ndevice: cuda\nprecision: {precision}\n")
    done = finelaunch("evaluate", run.path, "--on", profile, "--json")
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout)["loss"]


def worst_difference(first: RunDirectory, second: RunDirectory) -> float:
    """Return the largest relative difference of loss and gradient norm at any step."""
    one, other = np.array(curve(first)), np.array(curve(second))
    assert one.shape == other.shape == (NUM_STEPS, 3)
    return float((np.abs(one - other) / np.abs(one)).max())


def table_text() -> str:
    """Return the table as Markdown, for docs/engines.md."""
    mib = 2**20
    lines = ["| engine | precision | processes | peak MiB | planned MiB | peak / planned |", "|---" * 6 + "|"]
    for row in sorted(TABLE, key=lambda row: (row["processes"], [*PROFILES].index(row["engine"]), row["precision"])):
        peak, planned = row["peak_device_bytes"], row["planned_bytes"]
        figures = f"{peak / mib:.1f} | {planned / mib:.1f} | {peak / planned:.2f}"
        lines.append(f"| {row['engine']} | {row['precision']} | {row['processes']} | {figures} |")
    return "\n".join(lines) + "\n"


def write_table() -> None:
    """Write the table to the file that FINELAUNCH_GPU_TABLE names, if it does."""
    if path := os.environ.get("FINELAUNCH_GPU_TABLE"):
        Path(path).write_text(table_text())
