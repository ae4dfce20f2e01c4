"""What becomes of a run's checkpoints: which is gone on from, which is kept, and what is never deleted."""

import os
import shutil
import signal

import pytest
from integration.runs import heard, log_of, run_recipe, scalars_of, signalled, weights_hash

from finelaunch import pipeline
from finelaunch.errors import BadInput, FinelaunchError, Stopped
from finelaunch.run import signals
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.training.manifest import NAME

pytestmark = pytest.mark.integration

RHYTHM = ("data.train.max_samples=50", "training.logging_steps=1", "evaluation.base=false")
EVERY_TWO = (*RHYTHM, "training.save_strategy=steps", "training.save_steps=2", "training.eval_strategy=no")


def run(folder, *overrides, allow_change=()):
    return run_recipe("imdb/smoke", folder, *overrides, allow_change=allow_change)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def steps_of(one):
    return [row["step"] for row in read_lines(one.train_log)]


def starts_of(folder):
    return [row["from_step"] for row in read_lines(folder / "events.jsonl") if row["event"] == "training"]


def stop_in_the_last_evaluation(folder, *overrides):
    original = pipeline.measure_split

    def measure(evaluator, model, prepared, name, *others):
        if name == "test" and signals.notes_only():
            os.kill(os.getpid(), signal.SIGTERM)
        return original(evaluator, model, prepared, name, *others)

    with heard(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "measure_split", measure)
        with pytest.raises(Stopped):
            run(folder, *overrides)


@pytest.mark.parametrize("rhythm", ["training.max_steps=4", "training.num_train_epochs=1.5"])
def test_a_step_that_is_saved_is_not_written_again_and_not_measured_twice(rhythm, tmp_path):
    words = (*RHYTHM, "training.save_strategy=epoch", "training.eval_strategy=epoch", rhythm)
    words += ("training.save_total_limit=1",)
    whole = run(tmp_path / "whole", *words)
    stop_in_the_last_evaluation(tmp_path / "run", *words)
    newest = next(path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.endswith(("-4", "-9")))
    written = (newest / NAME).stat()
    stop_in_the_last_evaluation(tmp_path / "run", *words)
    one = run(tmp_path / "run", *words)
    assert ((newest / NAME).stat().st_ino, (newest / NAME).stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert weights_hash(one) == weights_hash(whole)
    assert scalars_of(one) == scalars_of(whole)
    evaluated = [row["step"] for row in read_lines(one.events) if row["event"] == "evaluated"]
    assert evaluated == [row["step"] for row in read_lines(whole.events) if row["event"] == "evaluated"]


def test_never_sets_aside_what_it_does_not_go_on_from_so_that_no_log_is_mixed(tmp_path):
    folder = tmp_path / "run"
    with signalled(5), pytest.raises(Stopped):
        run(folder, *EVERY_TWO)
    assert names(folder) == ["checkpoint-4", "checkpoint-5"]
    with signalled(0, hook="on_train_begin"), pytest.raises(Stopped):
        run(folder, *EVERY_TWO, "training.resume=never")
    assert names(folder) == ["old-checkpoint-4", "old-checkpoint-5"]
    with signalled(1), pytest.raises(Stopped):
        run(folder, *EVERY_TWO)
    assert names(folder) == ["checkpoint-1"], "what was set aside goes once a newer one is whole"
    one = run(folder, *EVERY_TWO)
    assert starts_of(folder)[-2:] == [0, 1]
    assert steps_of(one) == list(range(1, 13))
    assert one.read_manifest()["warnings"] == [] or "worse" in one.read_manifest()["warnings"][-1]


def test_a_path_within_the_run_goes_back_to_it(tmp_path):
    folder = tmp_path / "run"
    with signalled(5), pytest.raises(Stopped):
        run(folder, *EVERY_TWO)
    with signalled(6), pytest.raises(Stopped):
        run(folder, *EVERY_TWO, f"training.resume={folder / 'checkpoints' / 'checkpoint-4'}")
    assert starts_of(folder) == [0, 4]
    assert "aside-checkpoint-5" in names(folder), "nobody has called it damaged"
    whole = run(tmp_path / "whole", *EVERY_TWO)
    one = run(folder, *EVERY_TWO)
    assert log_of(one) == log_of(whole)
    assert weights_hash(one) == weights_hash(whole)


def test_a_path_elsewhere_is_named_where_it_is_not_used(tmp_path):
    with signalled(3), pytest.raises(Stopped):
        run(tmp_path / "one", *EVERY_TWO)
    shutil.copytree(tmp_path / "one" / "checkpoints" / "checkpoint-2", tmp_path / "kept" / "checkpoint-2")
    words = (*EVERY_TWO, f"training.resume={tmp_path / 'kept' / 'checkpoint-2'}")
    one = run(tmp_path / "one", *words)
    assert starts_of(tmp_path / "one") == [0, 3]
    assert [text for text in one.read_manifest()["warnings"] if "goes on from its own checkpoint-3" in text]
    two = run(tmp_path / "two", *words)
    assert starts_of(tmp_path / "two") == [2]
    assert weights_hash(one) == weights_hash(two)


def test_what_cannot_be_read_for_now_ends_the_start_and_costs_nothing(tmp_path):
    folder = tmp_path / "run"
    with signalled(5), pytest.raises(Stopped):
        run(folder, *EVERY_TWO)
    manifest = folder / "checkpoints" / "checkpoint-5" / NAME
    manifest.rename(tmp_path / "kept")
    manifest.mkdir()
    with pytest.raises(FinelaunchError, match="nothing was changed"):
        run(folder, *EVERY_TWO)
    manifest.rmdir()
    (tmp_path / "kept").rename(manifest)
    run(folder, *EVERY_TWO)
    assert starts_of(folder) == [0, 5]


def test_an_allowed_change_of_the_rhythm_is_made_and_said(tmp_path):
    folder = tmp_path / "run"
    with signalled(3), pytest.raises(Stopped):
        run(folder, *EVERY_TWO)
    changed = (*EVERY_TWO[:-2], "training.save_steps=3", "training.eval_strategy=no", "training.logging_steps=5")
    changed = tuple(word for word in changed if word != "training.logging_steps=1")
    with pytest.raises(BadInput, match=r"training\.logging_steps"):
        run(folder, *changed)
    one = run(folder, *changed, allow_change=["training"])
    assert [row["step"] for row in read_lines(one.events) if row["event"] == "saved"] == [2, 3, 6, 9, 12]
    assert steps_of(one) == [1, 2, 3, 5, 10, 12]
    assert [text for text in one.read_manifest()["warnings"] if "training.logging_steps" in text]
    fewer = (*EVERY_TWO, "training.max_steps=4")
    with signalled(6), pytest.raises(Stopped):
        run(tmp_path / "other", *EVERY_TWO)
    with pytest.raises(BadInput, match="stands at step 6, and 4 steps are asked for"):
        run(tmp_path / "other", *fewer, allow_change=["training"])


def test_the_newest_and_the_best_are_kept_and_free_settings_may_change(tmp_path):
    words = (*RHYTHM, "training.save_strategy=steps", "training.save_steps=2", "training.eval_strategy=steps")
    words += ("training.eval_steps=2",)
    folder = tmp_path / "run"
    with signalled(3), pytest.raises(Stopped):
        run(folder, *words, "training.save_total_limit=1")
    one = run(folder, *words, "training.save_total_limit=2", "training.verify=size", "launch.stop_grace_seconds=60")
    losses = {row["step"]: row["validation"]["loss"] for row in read_lines(one.events) if row["event"] == "evaluated"}
    best = min(losses, key=lambda step: losses[step])
    assert set(names(folder)) == {"checkpoint-12", "checkpoint-10", f"checkpoint-{best}"}
    assert one.stated()["training"]["verify"] == "size"
    assert one.stated()["launch"]["stop_grace_seconds"] == 60
    assert [text for text in one.read_manifest()["warnings"] if "only the sizes of its files were checked" in text]
    assert RunDirectory(folder).finished()
