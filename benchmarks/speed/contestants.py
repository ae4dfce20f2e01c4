"""Who is measured, and how each is called: in a process of its own, with caches of its own and as many threads."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from processes import Process
from rows import Work

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONTESTANTS = ("ours", "plain", "tuned")
AGAIN = "ours again"
"""Ours a second time: what differs between the two is noise."""


@dataclass(frozen=True)
class Call:
    """One process of a contestant.

    Args:
        contestant: ``ours``, ``plain``, ``tuned`` or ``ours again``.
        rows: ``few`` or ``many``.
        max_steps: Steps, where they are not whole epochs.
        start_only: Neither evaluate nor save.
        batch: Rows of a step.
        check: Losses are written down, and answers are searched among real tokens only.
        order: The batches, where they are given.
        device: ``cpu`` or ``cuda``.
        keep_logits: Keep those of the validation rows.
        steps: Steps of an epoch, of which two are made, the second one to be timed; 0: one epoch that is not timed.
    """

    contestant: str
    rows: str = "few"
    max_steps: int = -1
    start_only: bool = False
    batch: int = 8
    check: bool = False
    order: Path | None = None
    device: str = "cpu"
    keep_logits: bool = False
    steps: int = 0


def words(work: Work, call: Call, out: Path) -> list[str]:
    """Return the command line of ``call``."""
    model = work.model_without_dropout if call.rows == "many" else work.model
    validation = work.rows("two" if call.start_only else "validation")
    if call.contestant.startswith("ours"):
        return [sys.executable, "-m", "finelaunch", "train", *_recipe_words(work, call, model, validation, out)]
    given = {
        "model": model,
        "train": work.rows(call.rows),
        "validation": validation,
        "out": out,
        "batch": call.batch,
        "max-length": work.max_length,
        "learning-rate": work.shape.learning_rate,
        "epochs": 2 if call.steps else 1,
        "save-steps": 2 * call.steps,
        "max-steps": call.max_steps,
    }
    line = [sys.executable, str(HERE / "scripts" / work.shape.script)]
    line += [part for name, value in given.items() for part in (f"--{name}", str(value))]
    flags = {
        "tuned": call.contestant == "tuned",
        "start-only": call.start_only,
        "bf16": call.device == "cuda",
        "mask-padding": call.check and work.name == "squad",
        "keep-logits": call.keep_logits and work.name == "squad",
    }
    line += [f"--{name}" for name, given in flags.items() if given]
    return line + (["--order", str(call.order)] if call.order else [])


def _recipe_words(work: Work, call: Call, model: Path, validation: Path, out: Path) -> list[str]:
    task = {**work.shape.task, "max_length": work.max_length}
    if work.name == "squad":
        task |= {"stride": min(128, work.max_length // 3), "max_question_length": min(64, work.max_length // 4)}
    recipe = {
        "task": task,
        "model": {"name_or_path": str(model)},
        "data": {"train": {"path": str(work.rows(call.rows))}, "validation": {"path": str(validation)}},
        "training": {
            "global_batch_size": call.batch,
            "learning_rate": work.shape.learning_rate,
            "num_train_epochs": 2 if call.steps else 1,
            "max_steps": call.max_steps,
            "logging_steps": 1 if call.check else 500,
            "eval_strategy": "no",
            **_saves(call),
        },
        "evaluation": {"base": False},
    }
    if work.name == "medquad":
        recipe["evaluation"]["num_generations"] = 0
    file = out.with_name(f"{out.name}.yaml")
    file.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    precision = ["launch.precision=bf16"] if call.device == "cuda" else []
    profile = ["--on", "gpu" if call.device == "cuda" else "cpu", f"launch.per_device_batch_size={call.batch}"]
    return [str(file), *profile, *precision, "--run-dir", str(out)]


def _saves(call: Call) -> dict:
    """Return when a checkpoint is written: after the last step, so that nothing of it falls into what is timed."""
    if call.start_only:
        return {"save_strategy": "no"}
    return {"save_strategy": "steps", "save_steps": 2 * call.steps} if call.steps else {"save_strategy": "epoch"}


def environment(caches: Path, device: str, threads: int) -> dict[str, str]:
    """Return the environment of a contestant whose caches lie in ``caches``."""
    python = os.pathsep.join([str(HERE / "probe"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    own = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(caches / "datasets"),
        "FINELAUNCH_CACHE": str(caches / "finelaunch"),
        "PYTHONPATH": python.rstrip(os.pathsep),
        "TOKENIZERS_PARALLELISM": "true",
    }
    if device == "cpu":
        own["CUDA_VISIBLE_DEVICES"] = ""
    return {**os.environ, **own}


def process(work: Work, call: Call, out: Path, caches: Path, timeout: float, threads: int) -> Process:
    """Return the process of a contestant, not yet started."""
    own = environment(caches, call.device, threads) | ({"BENCH_LOSSES": "1"} if call.check else {})
    return Process(words(work, call, out), own, out, timeout, call.contestant)
