"""The best step, the end that comes early and overfitting, from records alone; and which settings are refused."""

import math
import operator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finelaunch.errors import BadInput
from finelaunch.metrics.selection import LOWER_IS_BETTER, SELECTABLE, gain
from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.run.directory import RunDirectory
from finelaunch.run.ranks import ALONE
from finelaunch.training.checkpoints import Continued
from finelaunch.training.manifest import Checkpoint
from finelaunch.training.section import TrainingSection
from finelaunch.training.selection import (
    Best,
    course,
    late_patience,
    lost_weights,
    overfitting,
    overfitting_advice,
    patience_ends,
    patience_text,
    ranking,
    stopped_text,
)


def section(**values: Any) -> TrainingSection:
    return TrainingSection(global_batch_size=8, learning_rate=1e-3, **values)


def measured(*losses: float, every: int = 10) -> dict[int, dict[str, float]]:
    return {every * number: {"loss": loss, "f1": 1 - loss} for number, loss in enumerate(losses, 1)}


def evaluated(step: int, loss: float) -> dict[str, Any]:
    return {"event": "evaluated", "step": step, "validation": {"loss": loss}}


def training(step: int) -> dict[str, Any]:
    return {"event": "training", "from_step": step}


def test_what_was_measured_beyond_the_step_that_a_start_goes_back_to_does_not_count() -> None:
    first = [training(0), evaluated(2, 0.5), evaluated(4, 0.1), {"event": "stopped"}]
    assert list(course(first)) == [2, 4]
    assert list(course([*first, training(4)])) == [2, 4]
    assert list(course([*first, training(3)])) == [2]
    again = course([*first, training(3), evaluated(4, 0.7), evaluated(6, 0.6)])
    assert {step: figures["loss"] for step, figures in again.items()} == {2: 0.5, 4: 0.7, 6: 0.6}
    assert course([*first, training(0)]) == {}


def test_only_what_was_measured_since_a_start_from_another_run_counts() -> None:
    before = [training(0), evaluated(2, 0.5), evaluated(4, 0.1)]
    foreign = [*before, {**training(4), "foreign": True}]
    assert course(foreign) == {}
    assert list(course([*foreign, evaluated(6, 0.3), training(6), evaluated(8, 0.2)])) == [6, 8]
    assert list(course([*before, {"event": "validation_changed"}, training(4), evaluated(4, 0.3)])) == [4]


def test_an_evaluation_without_the_figure_does_not_count_for_patience() -> None:
    found = {5: {"loss": 0.1}, **measured(0.2, 0.3)}
    assert patience_ends(found, "f1", 1, 0.0) == 20
    assert patience_ends({5: {"loss": 0.1}}, "f1", 1, 0.0) is None


@pytest.mark.parametrize("metric", ["loss", "f1"])
def test_the_best_is_by_the_direction_of_the_figure_and_the_earlier_of_equal_ones(metric: str) -> None:
    found = ranking(measured(0.5, 0.25, 0.75, 0.25), metric)
    assert [best.step for best in found] == [20, 40, 10, 30]
    assert ranking({3: {"loss": 1.0}}, "f1") == []


def test_figures_that_are_better_lower_are_those_that_say_so() -> None:
    known = {name for names in SELECTABLE.values() for name in names}
    assert {name for name in known if "loss" in name or name == "perplexity"} == set(LOWER_IS_BETTER)
    assert gain("perplexity", 3.0, 5.0) == 2.0 == gain("exact_match", 5.0, 3.0)
    assert gain("perplexity", math.inf, 5.0) < 0


@pytest.mark.parametrize(
    ("losses", "patience", "threshold", "step"),
    [
        ((0.9, 0.8, 0.7, 0.6), 1, 0.0, None),
        ((0.9, 0.8, 0.8), 1, 0.0, 30),
        ((0.9, 0.8, 0.85, 0.82), 2, 0.0, 40),
        ((0.9, 0.8, 0.85, 0.79, 0.85, 0.86), 2, 0.0, 60),
        ((0.9, 0.8, 0.85, 0.79, 0.85), 2, 0.0, None),
        ((0.9, 0.85, 0.8, 0.75), 2, 0.1, 30),
        ((0.9, 0.7, 0.65, 0.5), 2, 0.1, None),
        ((math.inf, math.inf, 0.5), 1, 0.0, 20),
    ],
)
def test_patience_ends_after_so_many_evaluations_without_a_better_figure(
    losses: tuple[float, ...], patience: int, threshold: float, step: int | None
) -> None:
    assert patience_ends(measured(*losses), "loss", patience, threshold) == step
    if math.isfinite(losses[0]):
        assert patience_ends(measured(*losses), "f1", patience, threshold) == step


def test_patience_is_that_of_the_callback_of_transformers() -> None:
    """On courses drawn at random, for both directions, with and without a threshold."""
    import numpy as np
    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

    numbers = np.random.default_rng(0)
    args = TrainingArguments(output_dir="unused", use_cpu=True, report_to=[])
    ended = 0
    for _ in range(200):
        losses = numbers.integers(0, 12, 8) / 16
        patience, threshold = int(numbers.integers(1, 4)), float(numbers.choice([0.0, 0.125]))
        for metric, better in (("loss", operator.lt), ("f1", operator.gt)):
            callback, state = EarlyStoppingCallback(patience, threshold), TrainerState()
            args.metric_for_best_model, args.greater_is_better = metric, better is operator.gt
            expected = None
            for step, figures in measured(*losses).items():
                control = TrainerControl()
                value = figures[metric]
                callback.on_evaluate(args, state, control, {f"eval_{metric}": value})
                if control.should_training_stop:
                    expected = step
                    break
                if state.best_metric is None or better(value, state.best_metric):
                    state.best_metric = value
            assert patience_ends(measured(*losses), metric, patience, threshold) == expected
            ended += expected is not None
    assert 50 < ended < 400


def test_the_end_is_said_with_the_best_step() -> None:
    best = Best(20, "f1", 0.75)
    said = stopped_text(40, section(early_stopping_patience=2, metric_for_best_model="f1"), best)
    assert said == "stopped early at step 40: no better f1 for 2 evaluations (best 0.75 at step 20)"
    said = patience_text(section(early_stopping_patience=1, early_stopping_threshold=0.01))
    assert said == "no better loss by more than 0.01 for 1 evaluation"


def log(*losses: float, every: int = 5) -> list[dict[str, float]]:
    return [{"step": every * number, "loss": loss} for number, loss in enumerate(losses, 1)]


FALLING = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


def test_overfitting_is_seen_where_validation_rises_twice_as_training_falls() -> None:
    said = overfitting(measured(0.5, 0.6, 0.7), log(*FALLING))
    assert said == (
        "overfitting: the validation loss rose from 0.5 at step 10 to 0.7 at step 30, 2 evaluations in a row, while "
        "the training loss fell from 0.85 to 0.45"
    )
    first = overfitting(measured(0.5, 0.6, 0.7, 0.8), log(*FALLING))
    assert first == said, "the note is that of the first time, so it is made once"


@pytest.mark.parametrize(
    ("losses", "lines"),
    [
        ((0.5, 0.6), FALLING),
        ((0.5, 0.6, 0.55, 0.6), FALLING),
        ((0.5, 0.6, 0.6), FALLING),
        ((0.7, 0.6, 0.5), FALLING),
        ((0.5, 0.6, 0.7), FALLING[::-1]),
        ((0.5, 0.6, 0.7), FALLING[:4]),
        ((0.5, 0.6, 0.7), ()),
    ],
)
def test_anything_else_is_not_called_overfitting(losses: tuple[float, ...], lines: tuple[float, ...]) -> None:
    assert overfitting(measured(*losses), log(*lines)) is None


def test_advice_leaves_out_what_the_recipe_does() -> None:
    assert "load_best_model_at_end: true" in overfitting_advice(section())
    said = overfitting_advice(section(load_best_model_at_end=True, early_stopping_patience=2, weight_decay=0.1))
    assert "load_best" not in said
    assert "early_stopping" not in said
    assert "a higher training.weight_decay" in said


@pytest.mark.parametrize(("patience", "num_steps", "is_late"), [(3, 40, True), (2, 40, False), (3, 41, False)])
def test_a_patience_that_cannot_end_training_is_told(patience: int, num_steps: int, is_late: bool) -> None:
    for values in ({}, {"eval_strategy": "steps", "eval_steps": 10}):
        said = late_patience(section(early_stopping_patience=patience, **values), num_steps, 10, 0)
        assert (said is not None) == is_late
    assert late_patience(section(), num_steps, 10, 0) is None


@pytest.mark.parametrize(("step", "count"), [(0, None), (9, None), (10, 3), (14, 3), (30, 1)])
def test_after_a_start_from_another_run_patience_has_the_evaluations_since(
    step: int, count: int | None, tmp_path: Path
) -> None:
    """On a start from a checkpoint of another run, and on the next one, from a checkpoint of its own."""
    from finelaunch.training.best import Selection

    run = RunDirectory(tmp_path)
    run.begin({"task": {}}, {}, [])
    run.record("training", from_step=0)
    for is_foreign, at in ((True, step), (False, step + 2)):
        chosen = Continued(Checkpoint(tmp_path, {"step": at}), is_foreign and step > 0, ())
        settings = section(early_stopping_patience=2, load_best_model_at_end=True)
        sampler: Any = SimpleNamespace(num_global_batches=10)
        unused: Any = None
        Selection(run, ALONE, settings, sampler, unused, unused, chosen).announce(40)
        run.record("training", from_step=at, **({"foreign": True} if chosen.is_foreign else {}))
    said = [f"there are {count} evaluations in {40 - step} steps"] if count else []
    assert [text for text in said if text in str(run.read_manifest()["warnings"])] == said
    assert len(run.read_manifest()["warnings"]) == len(said), "the second start says the same"


def test_weights_that_are_not_the_best_are_told() -> None:
    assert lost_weights(section()) is None
    assert lost_weights(section(early_stopping_patience=1, load_best_model_at_end=True)) is None
    assert "set training.load_best_model_at_end: true" in str(lost_weights(section(early_stopping_patience=1)))


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("imdb/smoke", ["training.metric_for_best_model=acuracy"], r"one of loss, accuracy, .*did you mean 'accuracy'"),
        ("squad_v2/smoke", ["training.metric_for_best_model=eval_f1"], r"exact_match, f1, .*did you mean 'f1'"),
        ("domain_assistant/smoke", ["training.metric_for_best_model=accuracy"], r"one of loss, perplexity"),
        ("imdb/smoke", ["training.eval_strategy=no", "training.load_best_model_at_end=true"], r"needs evaluations"),
        ("imdb/smoke", ["training.eval_strategy=no", "training.early_stopping_patience=1"], r"needs evaluations"),
        ("imdb/smoke", ["training.eval_strategy=no", "training.metric_for_best_model=f1_macro"], r"needs evaluations"),
        ("imdb/smoke", ["training.early_stopping_threshold=0.1"], r"no effect without early_stopping_patience"),
        ("imdb/smoke", ["training.greater_is_better=true"], r"follows from training\.metric_for_best_model"),
        ("imdb/smoke", ["method.name=gradual_unfreezing", "training.early_stopping_patience=1"], r"its later stages"),
    ],
)
def test_what_cannot_be_selected_by_is_refused_with_the_recipe(recipe: str, words: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        load_recipe(recipe, read_overrides(words)["recipe"])
