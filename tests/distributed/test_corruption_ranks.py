"""Damaged, copied, foreign and unfitting checkpoints of several ranks: what is taken, what is refused, what is said.

One stopped ZeRO-2 run serves all; what continues from it shares one launch.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
from distributed.launches import run_jobs
from integration.damages import (
    RECIPE,
    RHYTHM,
    Command,
    choices,
    damage,
    differences,
    files_to_damage,
    warnings_of,
)
from integration.runs import log_of, run_recipe, weights_hash

from finelaunch.chaos.damage import DAMAGE
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.training.manifest import ASIDE, NAME, Checkpoint, checkpoints_in, read_checkpoint

pytestmark = pytest.mark.distributed

FOREIGN = "checkpoint-40"
SHARD = "zero_pp_rank_1_mp_rank_00_optim_states.pt"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The command of a ZeRO-2 run that was stopped, with three checkpoints; nothing changes it."""
    command = Command("zero2", tmp_path_factory.mktemp("stopped") / "run")
    assert len(checkpoints_in(command.stop().checkpoints)) == 3
    return command


@pytest.fixture(scope="module")
def continued(stopped, tmp_path_factory):
    """The folder of three runs from it: all checkpoints damaged; the newest beside others; a copy of the newest."""
    folder = tmp_path_factory.mktemp("continued")
    for name in ("all damaged", "among others"):
        shutil.copytree(stopped.folder, folder / name)
    newest, older, oldest = checkpoints_in(folder / "all damaged" / "checkpoints")
    damage(newest / f"global_{newest.name.replace('checkpoint-', 'step')}" / SHARD, "one bit flipped")
    damage(older / NAME, "cut to 50 %")
    damage(oldest / "rng_state_1.pth", "removed")

    newest, *_ = checkpoints_in(folder / "among others" / "checkpoints")
    foreign = Command("single", folder / "other job", ("training.seed=7",)).finish()
    shutil.copytree(foreign.checkpoints / FOREIGN, newest.with_name(FOREIGN))
    shutil.copytree(newest, newest.with_name("checkpoint-900"))
    damage(newest.with_name("checkpoint-900") / NAME, "removed")
    damage(newest / "rng_state_1.pth", "cut to 99 %")

    subprocess.run(["cp", "-r", checkpoints_in(stopped.run.checkpoints)[0], folder / "a copy"], check=True)
    copied = ["training.verify=size", f"training.resume={folder / 'a copy'}"]
    further = {"all damaged": [], "among others": [], "from a copy": copied}
    jobs = [
        {"recipe": RECIPE, "profile": "cpu_zero2", "folder": str(folder / name), "overrides": [*RHYTHM, *words]}
        for name, words in further.items()
    ]
    for said in run_jobs(folder / "launch", jobs):
        assert [one["error"] for one in said] == [None, None]
    return folder


def from_steps(run):
    return [event["from_step"] for event in read_lines(run.events) if event["event"] == "training"]


def passed_over(run, checkpoint):
    """Return the reasons for which a checkpoint was, in the run's warnings."""
    said = [text.partition(f"{run.checkpoints / checkpoint} is passed over: ") for text in warnings_of(run)]
    return [reason for _, found, reason in said if found]


def test_every_damage_to_every_file_is_named_and_the_next_older_checkpoint_taken(stopped):
    cells = list(choices(stopped))
    files = {cell.file for cell in cells}
    assert {file.rpartition("/")[2] for file in files} >= {NAME, SHARD, "mp_rank_00_model_states.pt", "rng_state_1.pth"}
    assert len(cells) == len(files) * len(DAMAGE)
    assert [str(cell) for cell in cells if not cell.is_good] == []


def test_every_file_has_a_plain_mode_and_none_holds_the_arguments(stopped):
    umask = os.umask(0)
    os.umask(umask)
    for checkpoint in checkpoints_in(stopped.run.checkpoints):
        files = files_to_damage(checkpoint)
        assert {file: oct((checkpoint / file).stat().st_mode & 0o777) for file in files} == dict.fromkeys(
            files, oct(0o666 & ~umask)
        )
        assert not list(checkpoint.rglob("training_args.bin"))


def test_without_a_whole_checkpoint_the_run_begins_again_and_says_so(stopped, continued):
    run = RunDirectory(continued / "all damaged")
    assert from_steps(run)[-1] == 0
    names = [path.name for path in checkpoints_in(stopped.run.checkpoints)]
    reasons = [passed_over(run, name)[0] for name in names]
    assert re.fullmatch(rf"global_step\d+/{SHARD} was changed since it was written \(.*\)", reasons[0])
    assert reasons[1:] == ["its manifest is damaged", "rng_state_1.pth is missing"]
    assert "training begins at its first step" in run.log.read_text()
    assert [row["step"] for row in read_lines(run.samples)] == list(range(1, 41))


def test_the_newest_of_its_own_is_taken_among_damaged_foreign_and_unfinished_ones(stopped, continued):
    run = RunDirectory(continued / "among others")
    newest, older, _ = (path.name for path in checkpoints_in(stopped.run.checkpoints))
    assert passed_over(run, "checkpoint-900") == ["it was not written to its end (it has no manifest)"]
    (reason,) = passed_over(run, FOREIGN)  # another seed draws another base
    assert re.fullmatch(r"it is of another job: model.name_or_path .*, training.seed 7 instead of 42", reason)
    assert re.fullmatch(r"rng_state_1.pth has [\d,]+ bytes, not [\d,]+", passed_over(run, newest)[0])
    assert [event["checkpoint"] for event in read_lines(run.events) if event["event"] == "training"][-1] == older
    assert not list(run.checkpoints.glob("*checkpoint-900"))
    aside = read_checkpoint(run.checkpoints / f"{ASIDE}{FOREIGN}")
    assert isinstance(aside, Checkpoint)
    assert aside.damage() == [], "what is whole and of another job is not deleted"
    assert list(differences(run, RunDirectory(continued / "all damaged"))) == []


def test_a_copy_of_a_checkpoint_is_as_good_as_the_checkpoint(stopped, continued):
    run, whole = RunDirectory(continued / "from a copy"), RunDirectory(continued / "all damaged")
    step = int(checkpoints_in(stopped.run.checkpoints)[0].name.rpartition("-")[2])
    assert from_steps(run) == [step]
    assert weights_hash(run) == weights_hash(whole)
    assert log_of(run) == [row for row in log_of(whole) if row["step"] > step]
    assert read_lines(run.samples) == [row for row in read_lines(whole.samples) if row["step"] > step]
    assert any("only the sizes of its files were checked (training.verify: size)" in said for said in warnings_of(run))


def test_zero_on_another_number_of_processes_is_refused_with_a_way_to_keep_the_weights(stopped, tmp_path):
    from safetensors.numpy import load_file

    shutil.copytree(stopped.folder, tmp_path / "run")
    newest = checkpoints_in(tmp_path / "run" / "checkpoints")[0]
    four = ["--on", "cpu_zero2", "launch.num_processes_per_node=4", "--run-dir", tmp_path / "run"]
    refused = finelaunch("launch", *four, "--allow-change", "launch")
    assert refused.returncode == 2
    assert f"{newest} was written by 2 processes, and zero2 cannot continue on 4" in refused.stderr
    way = re.search(r"--run-dir DIR (model\.init=pretrained) (model\.name_or_path=\S+)", refused.stderr)
    assert way is not None, refused.stderr
    lost = finelaunch("train", "--on", "cpu", *way.groups(), "--run-dir", tmp_path / "run", "--fresh")
    assert lost.returncode == 2
    assert f"{newest} lies in the run, which --fresh renames" in lost.stderr
    assert not (tmp_path / "run.1").exists()

    still = ("training.max_steps=1", "training.learning_rate=1e-12", "evaluation.base=false")
    run = run_recipe(RECIPE, tmp_path / "anew", *still, *way.groups())
    before, after = load_file(newest / "model.safetensors"), load_file(run.model / "model.safetensors")
    assert before.keys() == after.keys()
    assert max(abs(before[name] - after[name]).max() for name in before) < 1e-6


def test_ddp_may_continue_on_another_number_of_processes_which_is_said(tmp_path):
    command = Command("ddp", tmp_path / "run")
    step = int(checkpoints_in(command.stop().checkpoints)[0].name.rpartition("-")[2])
    run = run_recipe(RECIPE, command.folder, *RHYTHM, allow_change=["launch"])
    assert from_steps(run) == [0, step]
    assert any("holds the random states of 2 processes, and 1 go on" in said for said in warnings_of(run))


def finelaunch(verb, *words):
    command = [sys.executable, "-m", "finelaunch", verb, RECIPE, *RHYTHM, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
