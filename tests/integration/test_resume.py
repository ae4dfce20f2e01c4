"""A stopped run continues as if nothing had happened; the guards that make it so; and the run directory's answers."""

import os
import signal
import subprocess
import sys
import time

import pytest
from integration.runs import curve, run_recipe, weights_hash
from torch.utils.data import DataLoader

from finelaunch.errors import BadInput, Stopped
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.training import arguments, journal
from finelaunch.training import trainer as trainer_module

pytestmark = pytest.mark.integration

RHYTHM = (
    "data.train.max_samples=50",
    "training.logging_steps=1",
    "training.save_strategy=steps",
    "training.save_steps=2",
    "training.eval_strategy=no",
    "evaluation.base=false",
)
STEPS_AN_EPOCH = 6
FIRST_EPOCH, SECOND_EPOCH = 3, 9


def stop_after(step, monkeypatch):
    """Press Ctrl-C after ``step``."""
    original = journal.Journal.on_step_end

    def on_step_end(self, args, state, control, **others):
        original(self, args, state, control, **others)
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(journal.Journal, "on_step_end", on_step_end)


def stopped_and_continued(folder, step, monkeypatch, *overrides):
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        with pytest.raises(Stopped):
            run_recipe("imdb/smoke", folder, *RHYTHM, *overrides)
    assert not RunDirectory(folder).finished()
    return run_recipe("imdb/smoke", folder, *RHYTHM, *overrides)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing stopped, dropout on."""
    run = run_recipe("imdb/smoke", tmp_path_factory.mktemp("whole") / "run", *RHYTHM)
    assert len(curve(run)) == 2 * STEPS_AN_EPOCH
    return run


@pytest.mark.parametrize("step", [FIRST_EPOCH, STEPS_AN_EPOCH, SECOND_EPOCH])
def test_a_stopped_run_ends_in_the_same_weights_and_the_same_log(step, whole, tmp_path, monkeypatch):
    run = stopped_and_continued(tmp_path / "run", step, monkeypatch)
    assert weights_hash(run) == weights_hash(whole)
    assert curve(run) == curve(whole)
    starts = [event for event in read_lines(run.events) if event["event"] == "training"]
    assert [event["from_step"] for event in starts] == [0, (step - 1) // 2 * 2]


def test_loader_workers_change_nothing(whole, tmp_path, monkeypatch):
    run = stopped_and_continued(tmp_path / "run", SECOND_EPOCH, monkeypatch, "launch.dataloader_num_workers=2")
    assert weights_hash(run) == weights_hash(whole)


def test_another_cut_may_continue_where_it_is_allowed(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(SECOND_EPOCH, patch)
        with pytest.raises(Stopped):
            run_recipe("imdb/smoke", tmp_path / "run", *RHYTHM)
    changed = (*RHYTHM, "launch.per_device_batch_size=4")
    with pytest.raises(BadInput, match=r"launch\.per_device_batch_size"):
        run_recipe("imdb/smoke", tmp_path / "run", *changed)
    run = run_recipe("imdb/smoke", tmp_path / "run", *changed, allow_change=["launch.per_device_batch_size"])
    assert run.finished()
    assert curve(run)[:8] == curve(whole)[:8]


def test_without_set_epoch_the_second_epoch_would_repeat_the_first(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "EpochLoader", DataLoader)
    fresh = run_recipe("imdb/smoke", tmp_path / "fresh", *RHYTHM)
    continued = stopped_and_continued(tmp_path / "run", SECOND_EPOCH, monkeypatch)
    assert weights_hash(fresh) != weights_hash(whole)
    assert weights_hash(continued) != weights_hash(fresh)


def test_without_skipping_data_a_resumed_run_would_repeat_rows(whole, tmp_path, monkeypatch):
    original = arguments.TrainingArguments
    monkeypatch.setattr(arguments, "TrainingArguments", lambda **given: original(**{**given, "ignore_data_skip": True}))
    run = stopped_and_continued(tmp_path / "run", SECOND_EPOCH, monkeypatch)
    assert weights_hash(run) != weights_hash(whole)


def test_a_finished_run_says_so_and_a_differing_one_is_refused(whole):
    before = whole.metrics.stat().st_mtime_ns
    run_recipe("imdb/smoke", whole.path, *RHYTHM)
    assert whole.metrics.stat().st_mtime_ns == before
    with pytest.raises(BadInput) as caught:
        run_recipe("imdb/smoke", whole.path, *RHYTHM, "training.seed=7", "task.max_length=32")
    assert [problem.key for problem in caught.value.problems] == ["task.max_length", "training.seed"]


def command(folder):
    return [sys.executable, "-m", "finelaunch", "train", "imdb/smoke", "--on", "cpu", "--run-dir", str(folder), *RHYTHM]


def start_and_signal(folder, number):
    """Start the real command, signal it once it has saved a checkpoint, and return its exit code."""
    process = subprocess.Popen(
        [*command(folder), "training.num_train_epochs=200"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 180
    last = max((row["step"] for row in read_lines(folder / "train_log.jsonl")), default=0)
    while not any(row["step"] > last + 4 for row in read_lines(folder / "train_log.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    return process.wait(timeout=60)


def test_ctrl_c_answers_75_and_a_killed_run_leaves_no_lock_behind(tmp_path):
    folder = tmp_path / "run"
    assert start_and_signal(folder, signal.SIGINT) == 75
    assert not (folder / "lock.json").exists()
    assert start_and_signal(folder, signal.SIGKILL) == -signal.SIGKILL
    assert (folder / "lock.json").exists()
    done = subprocess.run(
        [*command(folder), "training.num_train_epochs=200", "training.max_steps=60", "--allow-change", "training"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert RunDirectory(folder).finished()
    assert [row["step"] for row in read_lines(folder / "train_log.jsonl")][-1] >= 60
