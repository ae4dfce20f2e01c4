"""Two runs are the same or they are not; a checkpoint is whole or it is not."""

import json
import random

import pytest

from finelaunch.chaos.damage import DAMAGE, files_to_damage
from finelaunch.chaos.evidence import (
    checkpoints,
    compare,
    fault_of,
    first_difference,
    published,
    stored_bytes,
    weights_digest,
)
from finelaunch.run.directory import RunDirectory
from finelaunch.training.manifest import describe_files, publish

LOG = [
    {"step": 1, "loss": 0.5, "tokens_per_second": 10.0, "samples_per_second": 1.0, "checkpoint_blocked_seconds": 0.1},
    {"step": 2, "loss": 0.25, "tokens_per_second": 11.0, "samples_per_second": 1.5, "checkpoint_blocked_seconds": 0.0},
]


def finished(folder, log=LOG, samples=None, weights=b"weights", name="model.safetensors"):
    run = RunDirectory(folder)
    run.model.mkdir(parents=True)
    (run.model / name).write_bytes(weights)
    run.train_log.write_text("".join(json.dumps(row) + "\n" for row in log))
    if samples is not None:
        run.samples.write_text("".join(json.dumps(row) + "\n" for row in samples))
    return run


def test_the_clock_may_differ_and_nothing_else():
    slower = [{**row, "tokens_per_second": 1.0, "checkpoint_blocked_seconds": 9.9, "step_seconds": 3} for row in LOG]
    assert first_difference(slower, LOG) is None
    assert first_difference([LOG[0], {**LOG[1], "loss": 0.2500001}], LOG) == "line 2: loss 0.2500001 for 0.25"
    assert first_difference([{**LOG[0], "seconds": 1}, LOG[1]], LOG) == "line 1: seconds 1 for None"
    assert first_difference(LOG[:1], LOG) == "1 lines for 2"
    assert first_difference([*LOG, LOG[1]], LOG) == "3 lines for 2"


def test_runs_are_compared_by_weights_log_and_rows(tmp_path):
    rows = [{"step": 1, "rows": [4, 2]}, {"step": 2, "rows": [1]}]
    whole = finished(tmp_path / "whole", samples=rows)
    same = finished(tmp_path / "same", samples=rows)
    assert compare(same, whole) == {"weights": None, "log": None, "samples": None}
    other = compare(finished(tmp_path / "other", LOG[:1], rows[:1], b"weighty"), whole)
    assert all(other.values())
    assert "SHA-256" in str(other["weights"])
    bare = finished(tmp_path / "bare")
    assert set(compare(bare, finished(tmp_path / "bare too"))) == {"weights", "log"}
    assert compare(bare, whole)["samples"] == "0 lines for 2"


def test_all_files_of_the_weights_count(tmp_path):
    one = finished(tmp_path / "one").model
    assert weights_digest(one) == weights_digest(finished(tmp_path / "named", name="adapter_model.safetensors").model)
    whole = weights_digest(one)
    (one / "model-2.safetensors").write_bytes(b"more")
    two = weights_digest(one)
    (one / "model-2.safetensors").write_bytes(b"else")
    assert len({whole, two, weights_digest(one)}) == 3
    assert weights_digest(tmp_path) is None
    nothing = finished(tmp_path / "nothing", name="model.bin")
    assert "SHA-256 of nothing" in str(compare(nothing, finished(tmp_path / "a"))["weights"])
    assert compare(nothing, nothing)["weights"] is not None


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    for step in (2, 10):
        folder = run.checkpoints / f"checkpoint-{step}"
        (folder / "global_step2").mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt", "global_step2/part"):
            (folder / name).write_bytes(random.Random(name).randbytes(300))
        publish(folder, {"step": step}, describe_files(folder, 0))
    return run


def test_checkpoints_are_those_with_a_number_and_count_with_a_manifest(run):
    (run.checkpoints / "checkpoint-4").mkdir()
    (run.checkpoints / "checkpoint-final").mkdir()
    (run.checkpoints / "checkpoint-12").touch()
    assert list(checkpoints(run)) == [2, 4, 10]
    assert published(run) == [2, 10]


def test_a_whole_checkpoint_has_no_fault_and_every_damage_is_one(run):
    folder = run.checkpoints / "checkpoint-10"
    assert fault_of(folder) is None
    assert len(files_to_damage(folder)) == 4
    for name in files_to_damage(folder):
        content = (folder / name).read_bytes()
        for how, harm in DAMAGE.items():
            if (name, how) == ("manifest.json", "one bit flipped"):
                continue  # may stand where only the program's own seal sees it
            harm(folder / name, random.Random(0))
            assert fault_of(folder) is not None, f"{name} {how}"
            (folder / name).write_bytes(content)
    assert fault_of(folder) is None
    assert fault_of(run.checkpoints) is not None


def test_sizes_are_counted_in_blocks(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "one").write_bytes(b"x")
    (tmp_path / "two").write_bytes(b"x" * 4097)
    (tmp_path / "nothing").touch()
    (tmp_path / "link").symlink_to("below")
    assert stored_bytes(tmp_path) == 4096 + 2 * 4096 + 4096
    assert stored_bytes(tmp_path / "absent") == 0
