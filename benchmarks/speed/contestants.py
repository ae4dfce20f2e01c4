"""Who is measured, how each is called, and what one process of it has shown.

Every contestant runs in a process of its own, in a session of its own, with the probe on its PYTHONPATH, caches that
are its own, and as many threads as the others. What it prints goes to a log that stands in every error.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rows import Work

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONTESTANTS = ("ours", "plain", "tuned")
AGAIN = "ours again"
"""Ours a second time: what differs between the two is noise."""


class Crash(Exception):
    """A contestant that did not end well; says where its log is."""


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


@dataclass
class Seen:
    """What a process has shown.

    Args:
        began: When it was started, on the clock that all processes share.
        seconds: From its start to its end.
        peak_bytes: The most memory it held.
        probe: What the probe wrote.
        out: Its output folder.
        metrics: Its figures.
    """

    began: float
    seconds: float
    peak_bytes: int
    probe: dict[str, Any]
    out: Path
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def to_first_step(self) -> float:
        """Seconds from the start of the process to the end of its first step."""
        return self.probe["steps"][0] - self.began

    def lap(self, name: str) -> float | None:
        """Return the seconds of a lap, where there was one."""
        return self.probe["laps"].get(name, {}).get("seconds")


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


def run(work: Work, call: Call, out: Path, caches: Path, timeout: float, threads: int) -> Seen:
    """Run a contestant to its end.

    Raises:
        Crash: It did not end well, or not in time.
    """
    line = words(work, call, out)
    own = environment(caches, call.device, threads) | ({"BENCH_LOSSES": "1"} if call.check else {})
    return run_line(line, own, out, timeout, call.contestant)


def run_line(
    line: list[str], own: dict[str, str], out: Path, timeout: float, name: str, cwd: Path | None = None
) -> Seen:
    """Run a command line under the probe.

    Raises:
        Crash: It did not end well, or not in time.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    log, probe = out.with_name(f"{out.name}.log"), out.with_name(f"{out.name}.probe.json")
    own = {**own, "BENCH_PROBE": str(probe)}
    with log.open("wb") as file:
        began = time.monotonic()
        process = subprocess.Popen(
            line,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            env=own,
            cwd=cwd or out.parent,
            start_new_session=True,
        )
        timer = threading.Timer(timeout, _end, [process.pid])
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            _end(process.pid)
            process.wait()
            raise
        finally:
            timer.cancel()
    seconds = time.monotonic() - began
    if process.returncode or not probe.exists():
        lines = [text for text in log.read_text(errors="replace").splitlines() if text.strip()]
        how = (
            f"answered {process.returncode}"
            if process.returncode >= 0
            else f"was ended by signal {-process.returncode}"
        )
        how += f" after {seconds:.0f} s" if seconds >= timeout else ""
        raise Crash(f"{name} {how}: {lines[-1] if lines else 'it said nothing'} (all it said: {log})")
    metrics = out / "metrics.json"
    figures = json.loads(metrics.read_text()) if metrics.exists() else {}
    figures = figures.get("validation") or figures
    shown = json.loads(probe.read_text())
    return Seen(began, seconds, shown["peak_bytes"] or usage.ru_maxrss * 1024, shown, out, figures)


def _end(pid: int) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
