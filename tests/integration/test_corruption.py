"""A damaged checkpoint is never trained from: every file, every damage; and the check of it can fail."""

import importlib.util
import sys
from pathlib import Path

import pytest
from integration.damages import Command, choices, resumed

from finelaunch.chaos.damage import DAMAGE
from finelaunch.training.manifest import NAME

pytestmark = pytest.mark.integration

FILES = {
    "config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The command of a run that was stopped after step 9, with the checkpoints of steps 4, 8 and 9."""
    command = Command("single", tmp_path_factory.mktemp("stopped") / "run")
    command.stop()
    return command


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing stopped."""
    return Command("single", tmp_path_factory.mktemp("whole") / "run").finish()


def test_every_damage_to_every_file_is_named_and_the_next_older_checkpoint_taken(stopped):
    cells = list(choices(stopped))
    assert {cell.file for cell in cells} == FILES
    assert len(cells) == len(FILES) * len(DAMAGE)
    assert [str(cell) for cell in cells if not cell.is_good] == []


@pytest.mark.parametrize(("file", "kind"), [("optimizer.pt", "cut to 99 %"), (NAME, "removed")])
def test_a_run_with_a_damaged_checkpoint_ends_in_the_same_weights_and_the_same_log(
    file, kind, stopped, whole, tmp_path
):
    cell = resumed(Command("single", tmp_path / "run"), stopped.folder, file, kind, whole)
    assert cell.is_good, str(cell)


def test_a_check_that_is_blind_to_a_damage_is_told_from_one_that_sees_it(stopped, whole, tmp_path):
    unseen = [cell for cell in choices(stopped, "size") if not cell.is_good]
    assert {(cell.file, cell.kind) for cell in unseen} == {(file, "one bit flipped") for file in FILES - {NAME}}
    assert not any(cell.noticed or cell.fell_back for cell in unseen)
    blind = Command("single", tmp_path / "run", ("training.verify=size",))
    cell = resumed(blind, stopped.folder, "model.safetensors", "one bit flipped", whole)
    assert not cell.noticed
    assert not cell.fell_back
    assert "other weights" in cell.differs


def test_the_benchmark_lists_what_failed_and_says_so(monkeypatch, capsys):
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    spec = importlib.util.spec_from_file_location("corruption", folder / "corruption.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--engines", "single", "--resume", "none", "--verify", "size"]) == 1
    said = capsys.readouterr().out
    assert "| one process | 9 | 54 | 46 | 46 | - | - |" in said
    assert "failed: single: optimizer.pt, one bit flipped: not noticed, did not fall back" in said
    assert said.count("failed: ") == 8
