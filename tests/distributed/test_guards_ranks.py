"""NaN on one of several real ranks ends all of them with one sentence; a rank that hangs is found in the logs."""

import json
import os
import subprocess
import sys

import pytest
from distributed.launches import run_jobs

from finelaunch.run.files import read_lines
from finelaunch.training.placement import Placement
from finelaunch.training.replay import read_record, replay

pytestmark = pytest.mark.distributed

WORDS = (
    "data.train.max_samples=50",
    "training.logging_steps=1",
    "training.save_strategy=steps",
    "training.save_steps=1",
    "training.eval_strategy=no",
    "training.max_steps=6",
    "evaluation.base=false",
    "launch.per_device_batch_size=2",
)
HERE = Placement("cpu", "fp32", 1, 1)


def jobs(folder, profiles):
    faults = ("nan loss on rank 1", "nan gradient")
    return [
        {
            "recipe": "imdb/smoke",
            "profile": profile,
            "folder": str(folder / f"{profile}-{number}"),
            "overrides": list(WORDS),
            "faults": [name, "cut everything"],
        }
        for profile in profiles
        for number, name in enumerate(faults)
    ]


@pytest.mark.parametrize("profiles", [["cpu_ddp"], ["cpu_zero2", "cpu_zero3"]], ids=["ddp", "zero"])
def test_all_ranks_end_with_one_sentence_that_blames_the_right_one(profiles, tmp_path):
    """DeepSpeed's group cannot be made after another one of the process, so the two kinds take a launch each."""
    outcomes = run_jobs(tmp_path, jobs(tmp_path, profiles))
    for profile, (of_loss, of_gradient) in zip(profiles, zip(outcomes[::2], outcomes[1::2], strict=True), strict=True):
        assert of_loss[0] == of_loss[1], "every rank says the same"
        said, folder = of_loss[0]["error"], tmp_path / f"{profile}-0"
        assert of_loss[0]["exit_code"] == 1
        assert said.startswith(
            "training: step 4: the loss is nan on rank 1 of 2 (rank 1: micro-batch 1 of 2, examples "
        )
        assert "rank 0" not in said.replace("rank-0", "")
        assert "the newest checkpoint, checkpoint-3, holds the very weights that this happened with" in said, said
        assert sorted(path.name for path in (folder / "replay").iterdir()) == [
            "step-4-rank-1.json",
            "step-4.safetensors",
        ]
        report = replay(read_record(folder / "replay" / "step-4-rank-1.json"), HERE)
        assert report["same_again"] is True
        assert report["inexact_because"] == []
        assert report["weights_not_finite"]["count"] == 1
        assert sum(not row["finite"] for row in report["rows"]) == 1
        assert all(row["example_id"] in said for row in report["rows"])

        assert of_gradient[0] == of_gradient[1]
        said, folder = of_gradient[0]["error"], tmp_path / f"{profile}-1"
        assert said.startswith("training: step 4: the norm of the gradient is "), said
        assert "with losses that are numbers (rank 0: examples " in said
        assert "; rank 1: examples " in said
        for rank in (0, 1):
            report = replay(read_record(folder / "replay" / f"step-4-rank-{rank}.json"), HERE)
            assert report["same_again"] is True, (
                "dropout is on: weights, order, targets and masks are those of the rank"
            )
            assert len(report["rows"]) == 4
        for number in (0, 1):
            events = read_lines(tmp_path / f"{profile}-{number}" / "events.jsonl")
            assert max(event["step"] for event in events if event["event"] == "saved") < 4
            assert events[-1]["event"] == "failed"


SLEEPER = '''
"""Loaded by the interpreter before anything else: rank 1 sleeps within its third step, and tells nobody."""

import importlib.abc
import importlib.util
import os
import sys
import time


def oversleep():
    time.sleep(300)  # the sleeping line


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "finelaunch.training.guards":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            before_forward = module.Guard.before_forward

            def sleeping(self, num_items):
                before_forward(self, num_items)
                if self.trainer.state.global_step == 2:
                    oversleep()

            module.Guard.before_forward = sleeping

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("RANK") == "1":
    sys.meta_path.insert(0, Finder())
'''


def test_a_rank_that_hangs_is_found_by_the_stacks_in_the_logs(tmp_path):
    customs = tmp_path / "customs"
    customs.mkdir()
    (customs / "sitecustomize.py").write_text(SLEEPER)
    run = tmp_path / "run"
    words = [
        sys.executable,
        "-m",
        "finelaunch",
        "launch",
        "imdb/smoke",
        *WORDS,
        "--on",
        "cpu_ddp",
        "--run-dir",
        str(run),
    ]
    done = subprocess.run(
        [*words, "launch.collective_timeout_seconds=10"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(customs)},
    )
    assert done.returncode == 1, done.stdout[-1000:] + done.stderr[-4000:]
    assert "did not answer within 10 s (launch.collective_timeout_seconds)" in done.stderr
    logs = [run / "logs" / f"rank_{rank}.log" for rank in (0, 1)]
    assert all(str(log) in done.stderr for log in logs)
    assert "Traceback (most recent call last)" not in done.stderr
    sleeper = next(n for n, line in enumerate(SLEEPER.splitlines(), 1) if "the sleeping line" in line)
    waiting, sleeping = (log.read_text() for log in logs)
    for text in (waiting, sleeping):
        assert "Timeout (0:00:09)!" in text
    assert f'sitecustomize.py", line {sleeper} in oversleep' in sleeping
    assert "in oversleep" not in waiting
    assert "in compute_loss" in waiting  # DDP sends its buffers there
    assert json.loads((run / "events.jsonl").read_text().splitlines()[-1])["event"] == "failed"
