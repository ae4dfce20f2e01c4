"""A signal at any moment: what was trained is saved, and the run that continues is the run that was never stopped."""

import inspect
import os
import signal
import subprocess
import sys
import time

import pytest
from integration.runs import heard, log_of, run_recipe, scalars_of, signalled, weights_hash
from transformers import Trainer

from finelaunch import pipeline
from finelaunch.errors import Stopped
from finelaunch.evaluation.evaluate import Evaluator
from finelaunch.run import signals
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.training.manifest import newest_checkpoint
from finelaunch.training.trainer import PRIVATE

pytestmark = pytest.mark.integration

RHYTHM = (
    "data.train.max_samples=50",
    "training.logging_steps=4",
    "training.save_strategy=no",
    "training.eval_strategy=steps",
    "training.eval_steps=3",
)
"""12 steps, 6 an epoch: stops cut the intervals of the log, nothing is saved but what a stop saves."""


def run(folder, *overrides):
    return run_recipe("imdb/smoke", folder, *RHYTHM, *overrides)


def evaluated(one):
    return [(row["step"], row["validation"]) for row in read_lines(one.events) if row["event"] == "evaluated"]


def same(one, whole):
    """Hold that a run was never stopped, by all that it has written."""
    assert weights_hash(one) == weights_hash(whole)
    assert log_of(one) == log_of(whole)
    assert read_lines(one.samples) == read_lines(whole.samples)
    assert evaluated(one) == evaluated(whole)
    assert scalars_of(one) == scalars_of(whole)
    return True


def saved_step(folder):
    newest = newest_checkpoint(RunDirectory(folder).checkpoints)
    return newest.step if newest else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    one = run(tmp_path_factory.mktemp("whole") / "run")
    assert [row["step"] for row in log_of(one)] == [4, 8, 12]
    assert [step for step, _ in evaluated(one)] == [3, 6, 9, 12]
    assert [row["step"] for row in read_lines(one.samples)] == list(range(1, 13))
    assert [step for step, _ in scalars_of(one)["train/loss"]] == [4, 8, 12]
    return one


def test_a_chain_of_ten_stops_ends_in_the_same_weights_and_the_same_log(whole, tmp_path):
    folder = tmp_path / "run"
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    for step in range(1, 11):
        with signalled(step, numbers[step % 4]), pytest.raises(Stopped, match=f"step {step} is saved"):
            run(folder)
        assert saved_step(folder) == step
    assert same(run(folder), whole)
    stops = [row["signal"] for row in read_lines(folder / "events.jsonl") if row["event"] == "stopped"]
    assert stops == [signal.Signals(numbers[step % 4]).name for step in range(1, 11)]


def test_a_stop_after_the_last_step_of_an_epoch_and_of_training(whole, tmp_path):
    for step in (6, 12):
        with signalled(step), pytest.raises(Stopped, match=f"step {step} is saved"):
            run(tmp_path / "run")
    assert same(run(tmp_path / "run"), whole)


def test_before_the_first_step_nothing_is_lost(whole, tmp_path):
    with signalled(0, hook="on_train_begin"), pytest.raises(Stopped, match="before anything was trained"):
        run(tmp_path / "run")
    assert saved_step(tmp_path / "run") is None
    with heard(), pytest.MonkeyPatch.context() as patch:
        original = pipeline.settle
        patch.setattr(pipeline, "settle", lambda *given: os.kill(os.getpid(), signal.SIGUSR2) or original(*given))
        with pytest.raises(Stopped, match="SIGUSR2 before anything was trained"):
            run(tmp_path / "run")
    assert same(run(tmp_path / "run"), whole)


def in_batch(number_of_batch, number):
    """Send a signal in the batch of that number of all evaluations."""
    original, seen = Evaluator._batch, []

    def batch(self, *others):
        seen.append(None)
        if len(seen) == number_of_batch:
            os.kill(os.getpid(), number)
        return original(self, *others)

    return pytest.MonkeyPatch.context(), batch


@pytest.mark.parametrize(("batch", "step"), [(6, 3), (10, 6)])
def test_an_evaluation_is_left_and_made_again(batch, step, whole, tmp_path):
    """Two rows a batch: the base figures take five batches, and every validation three."""
    small = ("launch.per_device_eval_batch_size=2", "data.test.max_samples=4")
    reference = run(tmp_path / "whole", *small)
    context, send = in_batch(batch, signal.SIGTERM)
    with heard(), context as patch:
        patch.setattr(Evaluator, "_batch", send)
        with pytest.raises(Stopped, match=r"step \d+ is saved"):
            run(tmp_path / "run", *small)
    assert saved_step(tmp_path / "run") == step
    assert step not in [one for one, _ in evaluated(RunDirectory(tmp_path / "run"))]
    assert same(run(tmp_path / "run", *small), reference)
    assert weights_hash(reference) == weights_hash(whole)


def test_a_stop_in_the_last_evaluation_keeps_what_was_trained(whole, tmp_path, monkeypatch):
    original = pipeline.measure_split

    def measure(evaluator, model, prepared, name, *others):
        if name == "test" and signals.notes_only():
            os.kill(os.getpid(), signal.SIGTERM)
        return original(evaluator, model, prepared, name, *others)

    with heard(), monkeypatch.context() as patch:
        patch.setattr(pipeline, "measure_split", measure)
        with pytest.raises(Stopped, match="step 12 is saved"):
            run(tmp_path / "run")
    again = run(tmp_path / "run")
    starts = [row["from_step"] for row in read_lines(again.events) if row["event"] == "training"]
    assert starts == [0, 12]
    assert same(again, whole)


def test_a_signal_when_all_is_measured_fails_nothing(whole, tmp_path, monkeypatch):
    original = pipeline._write_card

    def write(*others):
        os.kill(os.getpid(), signal.SIGTERM)
        original(*others)

    monkeypatch.setattr(pipeline, "_write_card", write)
    with heard():
        assert same(run(tmp_path / "run"), whole)


def test_the_private_methods_of_the_trainer_are_as_they_were():
    for name, parameters in PRIVATE.items():
        assert tuple(inspect.signature(getattr(Trainer, name)).parameters) == parameters


def test_loader_workers_outlive_a_signal_to_the_whole_process_group(tmp_path):
    folder = tmp_path / "run"
    words = [*RHYTHM[:-2], "training.eval_strategy=no", "training.num_train_epochs=400", "evaluation.base=false"]
    words.append("launch.dataloader_num_workers=2")
    command = [sys.executable, "-m", "finelaunch", "train", "imdb/smoke", "--on", "cpu", "--run-dir", str(folder)]
    for number in (signal.SIGTERM, signal.SIGUSR2):
        before = saved_step(folder) or 0
        with (tmp_path / "said").open("w+") as said:
            process = subprocess.Popen([*command, *words], stderr=said, stdout=said, start_new_session=True)
            deadline = time.monotonic() + 180
            while not [row for row in read_lines(folder / "samples.jsonl") if row["step"] > before + 3]:
                assert process.poll() is None, (tmp_path / "said").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            last = read_lines(folder / "samples.jsonl")[-1]["step"]
            for _ in range(3):
                os.killpg(process.pid, number)
            assert process.wait(timeout=120) == 75, (tmp_path / "said").read_text()
        assert (saved_step(folder) or 0) >= last
        assert "Traceback" not in (tmp_path / "said").read_text()
