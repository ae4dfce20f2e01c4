"""Four ranks of DDP that go on from a checkpoint end in the bits of those that nobody stopped."""

import os
import subprocess
import sys

import pytest
from integration.runs import weights_hash

from finelaunch.run.directory import RunDirectory

pytestmark = pytest.mark.distributed

WORDS = ("training.max_steps=9", "training.save_strategy=steps", "training.save_steps=4", "training.eval_strategy=no")
FEW = (
    "data.train.max_samples=80",
    "data.test.max_samples=8",
    "evaluation.base=false",
    "training.save_total_limit=null",
)


def test_more_than_two_ranks_resume_to_the_same_bits(tmp_path):
    """Two ranks would not tell: a sum of two is the same in any order."""
    launch = [sys.executable, "-m", "finelaunch", "launch", "imdb/smoke", *WORDS, *FEW, "--on", "cpu_ddp"]
    launch += ["launch.num_processes_per_node=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    resume = f"training.resume={tmp_path / 'whole' / 'checkpoints' / 'checkpoint-4'}"
    for words in (["--run-dir", tmp_path / "whole"], ["--run-dir", tmp_path / "resumed", resume]):
        command = [*launch, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
    runs = [RunDirectory(tmp_path / name) for name in ("whole", "resumed")]
    assert weights_hash(runs[0]) == weights_hash(runs[1])
