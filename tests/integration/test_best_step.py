"""Training that ends early and keeps its best step: stopped anywhere around its last evaluation, it ends the same."""

import json
import os
import shutil
import signal

import pytest
from integration.runs import NO_DROPOUT, heard, log_of, run_recipe, scalars_of, signalled, weights_hash
from safetensors.torch import load_file

from finelaunch import pipeline
from finelaunch.errors import BadInput, FinelaunchError, Stopped
from finelaunch.operations import show
from finelaunch.operations.status import status_of
from finelaunch.run.files import read_lines
from finelaunch.training import best
from finelaunch.training.saving import Saving

pytestmark = pytest.mark.integration

WORDS = (
    "data.train.max_samples=50",
    "data.test.max_samples=16",
    "training.learning_rate=1e-2",
    "training.num_train_epochs=8",
    "training.logging_steps=5",
    "training.eval_strategy=steps",
    "training.eval_steps=3",
    "training.save_strategy=no",
    "training.load_best_model_at_end=true",
    "training.early_stopping_patience=3",
    "evaluation.base=false",
)
BEST, LAST = 9, 18
"""The best step of this run, and the one at which it ends; its last log line is of three steps and not of five."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing stopped, dropout on."""
    run = run_recipe("imdb/smoke", tmp_path_factory.mktemp("whole") / "run", *WORDS)
    assert [row["step"] for row in log_of(run)] == [5, 10, 15, LAST]
    return run


def metrics_of(run):
    return json.loads(run.metrics.read_text())


def events_of(run, name):
    return [event for event in read_lines(run.events) if event["event"] == name]


def test_training_ends_early_with_the_weights_of_the_best_step(whole):
    figures = metrics_of(whole)["train"]
    said = {"steps": LAST, "best_step": BEST, "kept_step": BEST, "stopped_early": True}
    assert {key: figures[key] for key in said} == said
    losses = {event["step"]: event["validation"]["loss"] for event in events_of(whole, "evaluated")}
    assert list(losses) == [3, 6, 9, 12, 15, 18]
    assert metrics_of(whole)["validation"]["loss"] == losses[BEST] == min(losses.values())
    (end,) = events_of(whole, "stopped_early")
    assert (end["step"], end["metric"], end["best_step"], end["best"]) == (LAST, "loss", BEST, losses[BEST])
    assert f"stopped early at step {LAST}: no better loss for 3 evaluations (best 0." in whole.log.read_text()
    kept, of_best = load_file(whole.model / "model.safetensors"), whole.checkpoints / f"checkpoint-{BEST}"
    assert all(kept[name].equal(tensor) for name, tensor in load_file(of_best / "model.safetensors").items())
    assert f"of step {BEST}" in (whole.model / "README.md").read_text()
    assert sorted(path.name for path in whole.checkpoints.iterdir()) == [f"checkpoint-{LAST}", f"checkpoint-{BEST}"]


def stop_within(patch, split, call):
    """Send a signal as the ``call``-th measurement of ``split`` begins."""
    original, calls = pipeline.measure_split, []

    def measure(evaluator, model, prepared, name, *others):
        calls.extend([name] if name == split else [])
        if name == split and len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(evaluator, model, prepared, name, *others)

    patch.setattr(pipeline, "measure_split", measure)


def crash_in_the_last_save(patch):
    begin = Saving.begin

    def crash(self, path, check):
        if path.name == f"checkpoint-{LAST}":
            raise RuntimeError("the machine is gone")
        begin(self, path, check)

    patch.setattr(Saving, "begin", crash)


def crash_after_the_last_step(patch):
    def crash(*_, **__):
        raise RuntimeError("the machine is gone")

    patch.setattr(best.Selection, "keep", crash)


def assert_same(run, whole):
    assert weights_hash(run) == weights_hash(whole)
    assert log_of(run) == log_of(whole)
    assert read_lines(run.samples) == read_lines(whole.samples)
    one, other = metrics_of(run), metrics_of(whole)
    assert (one["validation"], one["eval"]) == (other["validation"], other["eval"])
    for key in ("loss", "steps", "best_step", "kept_step", "stopped_early"):
        assert one["train"][key] == other["train"][key]


@pytest.mark.parametrize("place", ["before the evaluation", "within it", "before its save", "after its save"])
def test_a_run_stopped_around_its_last_evaluation_ends_the_same(place, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    if place == "before its save":
        with monkeypatch.context() as patch:
            crash_in_the_last_save(patch)
            with pytest.raises(RuntimeError):
                run_recipe("imdb/smoke", folder, *WORDS)
    elif place == "within it":
        with heard(), monkeypatch.context() as patch:
            stop_within(patch, "validation", 6)
            with pytest.raises(Stopped):
                run_recipe("imdb/smoke", folder, *WORDS)
    else:
        hook = "on_step_end" if place == "before the evaluation" else "on_save"
        with signalled(LAST, hook=hook), pytest.raises(Stopped):
            run_recipe("imdb/smoke", folder, *WORDS)
    if place == "before the evaluation":
        with monkeypatch.context() as patch:
            crash_after_the_last_step(patch)
            with pytest.raises(RuntimeError):
                run_recipe("imdb/smoke", folder, *WORDS)
    run = run_recipe("imdb/smoke", folder, *WORDS)
    assert_same(run, whole)
    starts = [event["from_step"] for event in events_of(run, "training")]
    expected = {"before the evaluation": [0, LAST, LAST], "before its save": [0, BEST]}
    assert starts == expected.get(place, [0, LAST])
    if place != "before the evaluation":
        assert scalars_of(run) == scalars_of(whole)


def test_what_would_not_be_the_best_weights_ends_the_run_with_a_word(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with heard(), monkeypatch.context() as patch:
        stop_within(patch, "test", 1)
        with pytest.raises(Stopped):
            run_recipe("imdb/smoke", folder, *WORDS)
    checkpoint = folder / "checkpoints" / f"checkpoint-{BEST}"
    weights, copy = checkpoint / "model.safetensors", tmp_path / "copy"
    shutil.copy(weights, copy)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(FinelaunchError, match=rf"best step is {BEST} .*checkpoint-{BEST} cannot be loaded: model\.saf"):
        run_recipe("imdb/smoke", folder, *WORDS)
    shutil.copy(copy, weights)
    with monkeypatch.context() as patch:
        patch.setattr(best, "load_weights", lambda *_: None)
        with pytest.raises(FinelaunchError, match=rf"measured again, .* not what was measured at step {BEST}"):
            run_recipe("imdb/smoke", folder, *WORDS)
    run = run_recipe("imdb/smoke", folder, *WORDS)
    assert_same(run, whole)
    assert [event["from_step"] for event in events_of(run, "training")] == [0, LAST, LAST, LAST]


def test_the_last_weights_are_kept_and_overfitting_is_told_once(tmp_path):
    """The same command again after a stop sees the same rise of the validation loss once more."""
    words = [
        *NO_DROPOUT["imdb/smoke"],
        "data.train.max_samples=60",
        "data.test.max_samples=16",
        "training.learning_rate=3e-3",
        "training.lr_scheduler_type=constant",
        "training.num_train_epochs=12",
        "training.logging_steps=3",
        "training.early_stopping_patience=4",
        "evaluation.base=false",
    ]
    with signalled(33), pytest.raises(Stopped):
        run_recipe("imdb/smoke", tmp_path / "run", *words)
    run = run_recipe("imdb/smoke", tmp_path / "run", *words)
    figures = metrics_of(run)["train"]
    said = {"steps": 42, "best_step": 14, "kept_step": 42, "stopped_early": True}
    assert {key: figures[key] for key in said} == said
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [f"checkpoint-{step}" for step in (14, 35, 42)]
    card, warnings = (run.model / "README.md").read_text(), run.read_manifest()["warnings"]
    (kept,) = [text for text in warnings if "keeps the weights of the step" in text]
    (seen,) = [text for text in warnings if "overfitting" in text]
    assert "rose from 0.7046 at step 14 to 0.729 at step 28" in seen
    assert kept in card
    assert seen in card
    status = show.details(status_of([run])[0])
    assert any(line.startswith("  early end   stopped early at step 42: no better loss for 4") for line in status)


def test_the_events_are_read_once_an_evaluation(tmp_path, monkeypatch):
    reads, of_evaluations, evaluate = [], [], best.Selection.on_evaluate

    def read(path):
        reads.append(path.name)
        return read_lines(path)

    def on_evaluate(self, *args, **others):
        reads.clear()
        evaluate(self, *args, **others)
        of_evaluations.append(reads.count("events.jsonl"))

    monkeypatch.setattr(best, "read_lines", read)
    monkeypatch.setattr(best.Selection, "on_evaluate", on_evaluate)
    run = run_recipe("imdb/smoke", tmp_path / "run", *WORDS)
    assert of_evaluations == [1] * len(events_of(run, "evaluated"))


def test_a_figure_that_the_rows_do_not_give_is_told_at_the_first_evaluation(tmp_path):
    words = ("training.metric_for_best_model=no_answer_auc", "data.train.max_samples=8", "data.validation_fraction=0.2")
    with pytest.raises(BadInput, match=r"best_model: no_answer_auc cannot be measured .* one of loss, exact"):
        run_recipe("squad_v2/smoke", tmp_path / "run", *words, "training.max_steps=1", "evaluation.base=false")
