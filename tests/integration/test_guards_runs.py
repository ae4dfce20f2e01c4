"""A loss, a gradient or a weight that is not finite ends a real run, and what it leaves computes the step again."""

import json
import math
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from integration.runs import run_recipe, weights_hash
from typer.testing import CliRunner

from finelaunch.cli import app
from finelaunch.errors import BadInput, FinelaunchError
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.training import recorder
from finelaunch.training import replay as replay_module
from finelaunch.training.guards import Guard
from finelaunch.training.placement import Placement
from finelaunch.training.replay import as_text, read_record, replay

pytestmark = pytest.mark.integration

WORDS = (
    "data.train.max_samples=50",
    "training.logging_steps=1",
    "training.save_strategy=steps",
    "training.save_steps=2",
    "training.eval_strategy=no",
    "training.max_steps=6",
    "evaluation.base=false",
    "launch.per_device_batch_size=4",
)
HERE = Placement("cpu", "fp32", 1, 1)
STEP = 4
"""The step that fails, with checkpoint-2 before it."""


def poisoned(guard, row):
    """Make NaN of the embedding of a token that ``row`` alone of its global batch holds."""
    batch = guard.sampler.global_batches(0)[STEP - 1]
    others = {
        int(token)
        for other in batch
        if other not in (row, ~row)
        for token in guard.features.at("input_ids", max(other, ~other))
    }
    token = next(token for token in guard.features.at("input_ids", row).tolist() if token not in others)
    with torch.no_grad():
        guard.trainer.model.get_input_embeddings().weight[token] = math.nan


@contextmanager
def before_step(step, act):
    """Call ``act`` with the guard before a step."""
    original = Guard.on_step_begin

    def on_step_begin(self, args, state, control, **others):
        original(self, args, state, control, **others)
        if state.global_step == step - 1:
            act(self)

    with mock.patch.object(Guard, "on_step_begin", on_step_begin):
        yield


def failed(folder, step, act, *words):
    with before_step(step, act), pytest.raises(FinelaunchError) as caught:
        run_recipe("imdb/smoke", folder, *WORDS, *words)
    assert type(caught.value) is FinelaunchError
    return str(caught.value)


def in_second_micro_batch(guard):
    """Return a row of the second micro-batch of the step that fails."""
    return int(guard.sampler.micro_batches(guard.sampler.global_batches(0)[STEP - 1])[1][2])


@pytest.fixture(scope="module")
def nan_loss(tmp_path_factory):
    """A run whose fourth step meets NaN in one row: its folder, its last sentence, and that row."""
    folder, rows = tmp_path_factory.mktemp("nan") / "run", []

    def act(guard):
        rows.append(in_second_micro_batch(guard))
        poisoned(guard, rows[0])

    return folder, failed(folder, STEP, act), rows[0]


def test_a_loss_that_is_no_number_names_step_examples_and_checkpoint(nan_loss):
    folder, said, row = nan_loss
    facts = json.loads((folder / "replay" / "step-4-rank-0.json").read_text())
    (batch,) = facts["micro_batches"]
    assert batch["loss"] == "nan"
    assert batch["micro_step"] == 2
    assert row == batch["rows"][2]
    ids = batch["example_ids"]
    assert said.startswith(
        f"training: step 4: the loss is nan (micro-batch 2 of 2, examples {', '.join(map(repr, ids))})"
    )
    assert "the newest good checkpoint is checkpoint-2" in said
    assert "training.learning_rate" in said
    assert f"--replay {folder / 'replay' / 'step-4-rank-0.json'}" in said
    assert "fp16" not in said
    assert [event["step"] for event in read_lines(folder / "events.jsonl") if event["event"] == "saved"] == [2]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["checkpoint-2"]
    assert not (folder / "model").exists()


def test_the_replay_names_row_and_module_and_changes_nothing(nan_loss):
    folder, _, row = nan_loss
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    file = folder / "replay" / "step-4-rank-0.json"
    done = CliRunner().invoke(app, ["train", "--replay", str(file), "--json"])
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert report["same_again"] is True
    assert report["inexact_because"] == []
    assert report["weights_not_finite"] == {"count": 1, "first": ["bert.embeddings.word_embeddings.weight"]}
    (batch,) = report["micro_batches"]
    assert batch["loss"] == {"recorded": "nan", "computed": "nan", "same": True}
    assert batch["first_module_not_finite"] == "bert.embeddings.word_embeddings (Embedding)"
    assert [one["row"] for one in report["rows"] if not one["finite"]] == [row]
    assert len(report["rows"]) == 4
    assert "<- not finite" in as_text(report)


def test_the_run_goes_on_from_its_checkpoint_as_if_nothing_had_been(nan_loss, tmp_path):
    folder = nan_loss[0]
    run, whole = (run_recipe("imdb/smoke", path, *WORDS) for path in (folder, tmp_path / "whole"))
    assert weights_hash(run) == weights_hash(whole)


def infinite(guard):
    """Make Inf of one number of a gradient, the losses being as they are."""
    weight = guard.trainer.model.classifier.weight
    weight.register_hook(lambda gradient: gradient.index_fill(1, torch.tensor([0]), math.inf))


def too_long(guard):
    """Make a gradient of numbers that are finite and whose norm is not: clipping makes 0 of all of them."""
    guard.trainer.model.classifier.weight.register_hook(lambda gradient: torch.full_like(gradient, 1e30))


@pytest.mark.parametrize(("act", "norm"), [(infinite, "inf"), (too_long, "inf")])
def test_a_gradient_ends_the_run_before_its_step_and_is_computed_again_bit_for_bit(act, norm, tmp_path, monkeypatch):
    """Dropout is on, so the losses are the same only with the random states of each micro-batch."""
    folder = tmp_path / "run"
    said = failed(folder, STEP, act)
    assert said.startswith(
        f"training: step 4: the norm of the gradient is {norm}, with losses that are numbers (examples"
    )
    assert "and 4 more" in said
    recorded = read_record(folder / "replay" / "step-4-rank-0.json")
    report = replay(recorded, HERE)
    assert report["same_again"] is True
    assert [batch["micro_step"] for batch in report["micro_batches"]] == [1, 2]
    assert all(isinstance(batch["gradient_norm"], float) for batch in report["micro_batches"])
    assert all(row["finite"] for row in report["rows"])
    monkeypatch.setattr(replay_module, "restore_random_states", lambda states, device: None)
    assert replay(recorded, HERE)["same_again"] is False


def test_without_room_for_the_weights_the_replay_takes_those_of_the_checkpoint_and_says_so(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "SPARE_BYTES", 1 << 60)
        said = failed(folder, STEP, lambda guard: poisoned(guard, in_second_micro_batch(guard)))
    assert "(not exactly, its weights are not kept: they need" in said
    assert [path.name for path in (folder / "replay").iterdir()] == ["step-4-rank-0.json"]
    file = folder / "replay" / "step-4-rank-0.json"
    report = replay(read_record(file), HERE)
    assert report["same_again"] is False
    assert "those of checkpoint-2 are taken" in report["inexact_because"][0]
    assert report["weights"].endswith("checkpoints/checkpoint-2/model.safetensors")
    facts = json.loads(file.read_text())
    for key, value, match in (
        ("checkpoint", None, r"weights .*none.* cannot be loaded"),
        ("data", {"train": "other rows"}, r"data\.train\.path: the rows have changed"),
        (
            "recipe",
            {**facts["recipe"], "task": {"name": "text_classification", "max_length": "x"}},
            r"task\.max_length",
        ),
        ("micro_batches", [{"rows": "x"}], r"--replay: does not say what a failed step does"),
        ("micro_batches", [{**facts["micro_batches"][0], "rows": [10**9]}], r"--replay: does not say what"),
        ("format", 2, r"was not left by a failed step"),
    ):
        file.write_text(json.dumps({**facts, key: value}))
        with pytest.raises(BadInput, match=match):
            replay(read_record(file), HERE)


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    folder = tmp_path / "run"

    def spoil(self, args, state, control, **_):
        if state.global_step == 4:
            with torch.no_grad():
                self.trainer.model.classifier.bias[0] = math.inf

    with mock.patch.object(Guard, "on_step_end", spoil), pytest.raises(FinelaunchError) as caught:
        run_recipe("imdb/smoke", folder, *WORDS)
    said = "training: after step 4: 1 weights are not finite, classifier.bias among them; they are not saved; "
    assert str(caught.value).startswith(f"{said}the newest good checkpoint is checkpoint-2")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["checkpoint-2"]


def test_without_the_guard_such_a_run_would_end_well_enough_to_save(tmp_path):
    """What the guard is for: the stack itself goes on with a loss that is no number."""

    def act(guard):
        poisoned(guard, in_second_micro_batch(guard))

    folder, seen = tmp_path / "run", []
    with (
        mock.patch.object(Guard, "check_loss", lambda self, loss: seen.append(loss.item())),
        mock.patch.object(Guard, "check_weights", return_value=None),
        mock.patch.object(Guard, "check_gradient", return_value=None),
        before_step(STEP, act),
        pytest.raises(FinelaunchError, match="evaluation: the loss is nan"),
    ):
        run_recipe("imdb/smoke", folder, *WORDS)
    assert any(map(math.isnan, seen))
    saved = [event["step"] for event in read_lines(folder / "events.jsonl") if event["event"] == "saved"]
    assert 6 in saved


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--replay", "FILE", "imdb/smoke"], "--replay: a recipe"),
        (["--replay", "FILE", "--fresh"], "--replay: a recipe"),
        (["--replay", "nowhere.json"], r"nowhere\.json: --replay: cannot be read"),
        (["--replay", "FILE"], r"--replay: is no JSON"),
        ([], "RECIPE: is missing"),
    ],
)
def test_a_replay_that_cannot_be_is_refused(words, match, tmp_path):
    (tmp_path / "file.json").write_text("{")
    words = [word.replace("FILE", str(tmp_path / "file.json")) for word in words]
    done = CliRunner().invoke(app, ["train", *words])
    assert isinstance(done.exception, BadInput)
    assert re.search(match, str(done.exception))


FILLER = """
import os, sys
from finelaunch.cli import main
from finelaunch.training.guards import Guard

folder, words = sys.argv[1], sys.argv[2:]
original = Guard.on_step_begin

def fill(self, args, state, control, **others):
    original(self, args, state, control, **others)
    if state.global_step == 3 and not os.path.exists(f"{folder}/ballast"):
        free = os.statvfs(folder)
        with open(f"{folder}/ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_bsize - 600 * 1024)

Guard.on_step_begin = fill
sys.argv = ["finelaunch", *words]
main()
"""

FULL = """
call() { "$@" > "$OUT/$NUMBER.out" 2> "$OUT/$NUMBER.err"; echo $? > "$OUT/$NUMBER.rc"; NUMBER=$((NUMBER + 1)); }
NUMBER=1
mount -t tmpfs -o size=12k none "$DISK" || exit 9
call "$PYTHON" -m finelaunch "$@"
mount -o remount,size=400k "$DISK"
call "$PYTHON" -m finelaunch "$@"
mount -o remount,size=60m "$DISK"
call "$PYTHON" "$OUT/filler.py" "$DISK" "$@"
ls "$DISK/run/checkpoints" > "$OUT/checkpoints"
rm "$DISK/ballast"
call "$PYTHON" -m finelaunch "$@"
cp -r "$DISK/run" "$OUT/run"
"""


def test_a_disk_that_is_full_at_any_moment_is_named_and_leaves_nothing_in_the_way(tmp_path):
    """A real one: 12 KiB (no room to begin), 400 KiB (none for checkpoints), then full in the middle of a save."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of one's own to mount a small disk in")
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "filler.py").write_text(FILLER)
    words = ["train", "imdb/smoke", "--on", "cpu", "--run-dir", f"{disk}/run", *WORDS]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL, "sh", *words],
        env={**os.environ, "OUT": str(tmp_path), "DISK": str(disk), "PYTHON": sys.executable},
        timeout=300,
        check=False,
    )
    if done.returncode == 9:
        pytest.skip("no tmpfs may be mounted")
    codes = [int((tmp_path / f"{number}.rc").read_text()) for number in (1, 2, 3, 4)]
    said = [(tmp_path / f"{number}.err").read_text() for number in (1, 2, 3, 4)]
    assert codes == [1, 3, 1, 0], said
    assert not any("Traceback" in text or "Logging error" in text or "Exception ignored" in text for text in said)
    assert re.search(
        rf"{disk}/run/\w+\.\w+: cannot be written: No space left on device: it takes [\d,]+ bytes, and ", said[0]
    )
    assert re.search(r"two checkpoints of [\d,]+ bytes need [\d,]+ bytes, and [\d,]+ are free", said[1])
    assert re.search(
        rf"{disk}/run: cannot be written: .*; [\d,]+ bytes are free now, a checkpoint takes [\d,]+", said[2]
    )
    assert (tmp_path / "checkpoints").read_text() == "checkpoint-2\n", "the checkpoint that was cut is gone"
    run = RunDirectory(tmp_path / "run")
    assert [event["from_step"] for event in read_lines(run.events) if event["event"] == "training"] == [0, 2]
    assert weights_hash(run) == weights_hash(run_recipe("imdb/smoke", tmp_path / "whole", *WORDS))
