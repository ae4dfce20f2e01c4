"""The copyable CI workflows, their commands run as they stand in a repository with a recipe and rows of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from finelaunch.data.sources import resolve

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).parents[2] / "docs" / "ci"
OWN = """\
base: support_tickets/smoke
task: {class_weights: none}
data:
  train: {path: data/train.csv}
  test: {path: data/test.csv}
training: {num_train_epochs: 6}
"""


def github() -> tuple[dict[str, Any], list[str]]:
    """Return the environment and the shell commands of the GitHub workflow."""
    job = yaml.safe_load((FOLDER / "github_workflow.yml").read_text())["jobs"]["smoke"]
    assert job["timeout-minutes"] <= 15
    upload = job["steps"][-1]
    assert (upload["if"], upload["with"]["path"]) == ("failure()", "runs/ci")
    return job["env"], [step["run"] for step in job["steps"] if "run" in step]


def gitlab() -> tuple[dict[str, Any], list[str]]:
    """Return the environment and the shell commands of the GitLab pipeline."""
    job = yaml.safe_load((FOLDER / "gitlab_ci.yml").read_text())["smoke"]
    assert (job["artifacts"]["when"], job["artifacts"]["paths"]) == ("on_failure", ["runs/ci"])
    return job["variables"], ["\n".join(job["before_script"]), *job["script"]]


def test_both_do_the_same_with_the_same_settings():
    (one, first), (other, second) = github(), gitlab()
    shared = ("RECIPE", "TORCH", "HF_HUB_OFFLINE")
    assert [one[name] for name in shared] == [other[name] for name in shared]
    assert first[1:] == second[1:]
    for install in (first[0], second[0]):
        assert 'pip install --extra-index-url "$TORCH_CPU_INDEX" --constraint' in install


def test_the_commands_run_in_a_repository_of_ones_own(tmp_path):
    environment, (_, *commands) = github()
    sample = resolve("package:finelaunch/data/samples/support_tickets", "", "")
    shutil.copytree(sample, tmp_path / "data")
    recipe = tmp_path / environment["RECIPE"]
    recipe.parent.mkdir()
    recipe.write_text(OWN)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    stated = {name: environment[name] for name in ("RECIPE", "HF_HUB_OFFLINE")}
    known = {**os.environ, **stated, "PATH": path, "FINELAUNCH_CACHE": str(tmp_path / ".cache"), "OMP_NUM_THREADS": "1"}
    assert [command.split()[:2] for command in commands] == [
        ["finelaunch", "validate"],
        ["finelaunch", "train"],
        ["python", "-c"],
        ["finelaunch", "predict"],
    ]
    said = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, env=known, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, command + done.stdout[-2000:] + done.stderr[-2000:]
        said.append(done.stdout)
    assert "train 218 rows; test 58 rows; validation 24 rows" in said[0]
    assert " -> " in said[2]
    assert said[3].splitlines()[-1] in ("access", "billing", "bug", "cancellation", "request")
    broken = (tmp_path / "data" / "train.csv").read_text().replace(",billing,", ",biling,", 1)
    (tmp_path / "data" / "train.csv").write_text(broken)
    done = subprocess.run(
        ["bash", "-ec", commands[0]], cwd=tmp_path, env=known, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "'biling' is not a label" in done.stderr + done.stdout
