"""A stopped run continues as if nothing had happened; the guards that make it so; and the run directory's answers."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from integration.runs import NO_DROPOUT, curve, heard, log_of, run_recipe, scalars_of, signalled, weights_hash
from torch.utils.data import DataLoader

from finelaunch import pipeline
from finelaunch.errors import BadInput, FinelaunchError, Stopped
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.training import arguments
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


def stopped_and_continued(folder, step, *overrides):
    with signalled(step), pytest.raises(Stopped):
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
def test_a_stopped_run_ends_in_the_same_weights_and_the_same_log(step, whole, tmp_path):
    run = stopped_and_continued(tmp_path / "run", step)
    assert weights_hash(run) == weights_hash(whole)
    assert log_of(run) == log_of(whole)
    assert read_lines(run.samples) == read_lines(whole.samples)
    starts = [event for event in read_lines(run.events) if event["event"] == "training"]
    assert [event["from_step"] for event in starts] == [0, step]


def test_loader_workers_change_nothing(whole, tmp_path, monkeypatch):
    original, seen = trainer_module.FinelaunchTrainer.get_train_dataloader, []

    def watched(self):
        seen.append(original(self))
        return seen[-1]

    monkeypatch.setattr(trainer_module.FinelaunchTrainer, "get_train_dataloader", watched)
    run = stopped_and_continued(tmp_path / "run", SECOND_EPOCH, "launch.dataloader_num_workers=2")
    assert {loader.num_workers for loader in seen} == {2}
    assert weights_hash(run) == weights_hash(whole)


@pytest.mark.parametrize("recipe", ["imdb/smoke", "domain_assistant/smoke"])
def test_a_run_stopped_after_its_last_step_trains_no_further(recipe, tmp_path, monkeypatch):
    """The last step lies within an epoch, where the Trainer would do one more."""
    rhythm = (*RHYTHM, "training.max_steps=4")
    whole = run_recipe(recipe, tmp_path / "whole", *rhythm)
    with heard(), monkeypatch.context() as patch:
        stop_in_the_last_evaluation(patch)
        with pytest.raises(Stopped):
            run_recipe(recipe, tmp_path / "run", *rhythm)
    run = run_recipe(recipe, tmp_path / "run", *rhythm)
    assert weights_hash(run) == weights_hash(whole)
    assert curve(run) == curve(whole)
    figures = [json.loads(each.metrics.read_text()) for each in (run, whole)]
    assert figures[0]["eval"] == figures[1]["eval"]
    assert figures[0]["train"]["steps"] == figures[1]["train"]["steps"] == 4
    assert figures[0]["train"]["loss"] == figures[1]["train"]["loss"]


def stop_in_the_last_evaluation(patch):
    original = pipeline.measure_split

    def measure(evaluator, model, prepared, name, *others):
        if name == "test":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(evaluator, model, prepared, name, *others)

    patch.setattr(pipeline, "measure_split", measure)


def test_changed_rows_are_refused_and_an_allowed_change_is_written_down(tmp_path):
    rows = [{"text": f"{'good' if n % 2 else 'bad'} film number {n}", "label": n % 2} for n in range(60)]
    data = tmp_path / "train.jsonl"

    def write(part):
        data.write_text("".join(json.dumps(row) + "\n" for row in part))

    words = (*RHYTHM[1:-1], f"data.train.path={data}", "training.max_steps=6")
    write(rows)
    with signalled(3), pytest.raises(Stopped):
        run_recipe("imdb/smoke", tmp_path / "run", *words)
    write(rows[:50])
    with pytest.raises(BadInput, match=r"data\.train\.path"):
        run_recipe("imdb/smoke", tmp_path / "run", *words)
    write(rows)
    smaller = (*words, "data.test.max_samples=20")
    run = run_recipe("imdb/smoke", tmp_path / "run", *smaller, allow_change=["data.test"])
    assert run.stated()["data"]["test"]["max_samples"] == 20
    changed = [event["keys"] for event in read_lines(run.events) if event["event"] == "changed"]
    assert changed == [["data.test.max_samples"]]
    metrics = json.loads(run.metrics.read_text())
    for part in ("base", "eval"):
        assert sum(map(sum, metrics[part]["confusion_matrix"])) == 20
    with pytest.raises(BadInput, match=r"data\.test\.max_samples"):
        run_recipe("imdb/smoke", run.path, *words, allow_change=["data.test"])


def test_a_checkpoint_of_another_run_is_taken_only_where_it_fits(whole, tmp_path):
    newest = whole.checkpoints / f"checkpoint-{2 * STEPS_AN_EPOCH}"
    with pytest.raises(BadInput, match=r"stands at step 12"):
        run_recipe("imdb/smoke", tmp_path / "run", *RHYTHM, f"training.resume={newest}")
    with pytest.raises(BadInput, match=r"checkpoint-12: task\.name: was written with 'text_classification'"):
        run_recipe("squad_v2/smoke", tmp_path / "other", *RHYTHM[1:], f"training.resume={newest}")
    larger = (*RHYTHM, "model.config.hidden_size=96", f"training.resume={newest}")
    with pytest.raises(BadInput, match=r"checkpoint-12: model\.config\.hidden_size: was written with 64"):
        run_recipe("imdb/smoke", tmp_path / "larger", *larger)
    with pytest.raises(BadInput, match=r"is of another model: hidden_size 64, not 96"):
        run_recipe("imdb/smoke", tmp_path / "larger", *larger, allow_change=["model"])
    older = whole.checkpoints / f"checkpoint-{2 * STEPS_AN_EPOCH - 2}"
    run = run_recipe("imdb/smoke", tmp_path / "third", *RHYTHM, f"training.resume={older}")
    assert weights_hash(run) == weights_hash(whole)


def test_a_diverged_run_stops_before_it_ends(tmp_path):
    with pytest.raises(FinelaunchError, match=r"training\.learning_rate"):
        run_recipe("imdb/smoke", tmp_path / "run", *RHYTHM, "training.learning_rate=1e30", "training.max_grad_norm=0")


def test_another_number_of_threads_goes_on_and_says_that_it_is_not_exact(tmp_path):
    import torch

    threads = torch.get_num_threads()
    with signalled(3), pytest.raises(Stopped):
        run_recipe("imdb/smoke", tmp_path / "run", *RHYTHM)
    try:
        torch.set_num_threads(threads + 1)
        run = run_recipe("imdb/smoke", tmp_path / "run", *RHYTHM)
    finally:
        torch.set_num_threads(threads)
    warnings = run.read_manifest()["warnings"]
    said = f"was computed by {threads} threads a process, and {threads + 1} go on"
    assert [text for text in warnings if said in text and "not bit for bit" in text]


def test_another_cut_may_continue_where_it_is_allowed(tmp_path):
    with signalled(SECOND_EPOCH), pytest.raises(Stopped):
        run_recipe("imdb/smoke", tmp_path / "run", *RHYTHM, *NO_DROPOUT["imdb/smoke"])
    changed = (*RHYTHM, *NO_DROPOUT["imdb/smoke"], "launch.per_device_batch_size=4")
    with pytest.raises(BadInput, match=r"launch\.per_device_batch_size"):
        run_recipe("imdb/smoke", tmp_path / "run", *changed)
    run = run_recipe("imdb/smoke", tmp_path / "run", *changed, allow_change=["launch.per_device_batch_size"])
    uncut = curve(run_recipe("imdb/smoke", tmp_path / "uncut", *RHYTHM, *NO_DROPOUT["imdb/smoke"]))
    assert [row[0] for row in curve(run)] == [row[0] for row in uncut]
    for row, expected in zip(curve(run), uncut, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


def test_without_set_epoch_the_second_epoch_would_repeat_the_first(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "EpochLoader", DataLoader)
    fresh = run_recipe("imdb/smoke", tmp_path / "fresh", *RHYTHM)
    continued = stopped_and_continued(tmp_path / "run", SECOND_EPOCH)
    assert weights_hash(fresh) != weights_hash(whole)
    assert weights_hash(continued) != weights_hash(fresh)


def test_without_skipping_data_a_resumed_run_would_repeat_rows(whole, tmp_path, monkeypatch):
    original = arguments.TrainingArguments
    monkeypatch.setattr(arguments, "TrainingArguments", lambda **given: original(**{**given, "ignore_data_skip": True}))
    run = stopped_and_continued(tmp_path / "run", SECOND_EPOCH)
    assert weights_hash(run) != weights_hash(whole)


def test_a_finished_run_says_so_and_a_differing_one_is_refused(whole):
    before = whole.metrics.stat().st_mtime_ns
    run_recipe("imdb/smoke", whole.path, *RHYTHM)
    run_recipe("imdb/smoke", whole.path, *RHYTHM, "launch.stop_grace_seconds=60")
    assert whole.metrics.stat().st_mtime_ns == before
    assert read_lines(whole.events)[-1]["event"] == "finished"
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
    for number in (signal.SIGINT, signal.SIGTERM):
        assert start_and_signal(folder, number) == 75
        assert not (folder / "lock.json").exists()
    stops = [event["signal"] for event in read_lines(folder / "events.jsonl") if event["event"] == "stopped"]
    assert stops == ["SIGINT", "SIGTERM"]
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
    steps = [row["step"] for row in read_lines(folder / "train_log.jsonl")]
    assert steps == list(range(1, steps[-1] + 1))
    assert steps[-1] >= 60
    assert [row["step"] for row in read_lines(folder / "samples.jsonl")] == steps
    assert [step for step, _ in scalars_of(RunDirectory(folder))["train/loss"]] == steps


def test_a_run_that_may_last_only_so_long_stops_and_can_go_on(tmp_path):
    words = [
        *command(tmp_path / "run"),
        "training.num_train_epochs=2000",
        "launch.max_run_seconds=25",
        "launch.stop_grace_seconds=10",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 75, done.stderr
    assert "the same command continues" in done.stderr
    assert not RunDirectory(tmp_path / "run").finished()
