"""Launches of real ranks for the tests: torchrun with this folder's worker, and the curves that come of it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from integration.runs import NO_DROPOUT, curve

from finelaunch.run.directory import RunDirectory

WORKER = Path(__file__).parent / "worker.py"
LIMIT = 1e-6
"""Largest relative difference of loss and gradient norm at any step, against one process."""

ENGINES = {"DDP": "cpu_ddp", "ZeRO-1": "cpu_zero1", "ZeRO-2": "cpu_zero2", "ZeRO-3": "cpu_zero3"}
TASKS = {"imdb/smoke": "classification", "squad_v2/smoke": "question answering", "domain_assistant/smoke": "causal LM"}
RAGGED = {
    "imdb/smoke": "data.train.max_samples=50",
    "squad_v2/smoke": "data.train.max_samples=45",
    "domain_assistant/smoke": "data.train.max_samples=40",
}
EVERY_STEP = (
    "training.logging_steps=1",
    "training.save_strategy=no",
    "training.eval_strategy=no",
    "training.max_grad_norm=0.5",
)


def fixed(recipe: str) -> list[str]:
    """Return what makes two curves of a recipe comparable: no dropout, every step logged, the last batch ragged."""
    return [*EVERY_STEP, *NO_DROPOUT[recipe], RAGGED[recipe]]


def run_jobs(folder: Path, jobs: Sequence[dict[str, Any]], world_size: int = 2, **environment: str) -> list[list[Any]]:
    """Make all ``jobs`` in one launch and return what every rank says of each."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "jobs.json"
    file.write_text(json.dumps(list(jobs)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    done = subprocess.run(
        [*torchrun, str(WORKER), str(file)],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    said = [json.loads(file.with_suffix(f".{rank}.json").read_text()) for rank in range(world_size)]
    return [list(of_job) for of_job in zip(*said, strict=True)]


def curve_jobs(profile: str, folder: Path, per_device: Sequence[int] = (4, 2)) -> list[dict[str, Any]]:
    """Return the jobs whose curves are compared: every task in every cut."""
    return [
        {
            "recipe": recipe,
            "profile": profile,
            "folder": str(folder / f"{recipe.split('/')[0]}-{size}"),
            "overrides": [*fixed(recipe), f"launch.per_device_batch_size={size}"],
            "faults": ["cut everything"],
        }
        for recipe in TASKS
        for size in per_device
    ]


def difference(first: Path, second: Path) -> tuple[float, float]:
    """Return the largest relative difference of loss and of gradient norm over all steps of two runs."""
    one, other = (curve(RunDirectory(path)) for path in (first, second))
    assert [row[0] for row in one] == [row[0] for row in other], "the runs have other steps"
    assert len(one) >= 10
    numbers = np.array([row[1:] for row in one]), np.array([row[1:] for row in other])
    worst = (np.abs(numbers[0] - numbers[1]) / np.abs(numbers[0])).max(axis=0)
    return float(worst[0]), float(worst[1])
