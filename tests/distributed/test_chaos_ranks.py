"""The verb on two ranks: one of them killed or signalled, and the run ends as if nothing had happened."""

import json
import os
import subprocess
import sys

import pytest

from finelaunch.run.files import read_lines

pytestmark = pytest.mark.distributed

WORDS = (
    "imdb/smoke",
    "data.train.max_samples=50",
    "training.logging_steps=1",
    "training.save_strategy=steps",
    "training.save_steps=2",
    "training.eval_strategy=no",
    "evaluation.base=false",
)


def test_a_killed_rank_and_a_signal_lose_nothing(tmp_path):
    folder = tmp_path / "chaos"
    words = ["chaos", *WORDS, "--on", "cpu_ddp", "--fault", "kill", "--fault", "signal", "--count", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "finelaunch", *words, "--run-dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads(done.stdout)["trials"]
    assert [row["kind"] for row in rows] == ["kill", "signal"]
    assert all(row["weights_equal"] and row["log_equal"] for row in rows)
    assert rows == read_lines(folder / "trials.jsonl")
    assert json.loads((folder / "reference" / "manifest.json").read_text())["engine"]["world_size"] == 2
