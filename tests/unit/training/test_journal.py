"""What the journal shows where no run is needed; what it writes is held by whole runs in tests/integration."""

from types import SimpleNamespace

import pytest

from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.training import journal as journal_module
from finelaunch.training.journal import Journal, Losses

FIGURES = {"eval_loss": 0.5, "eval_accuracy": 0.75, "eval_f1_macro": 0.625, "eval_f1_micro": 0.7}


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("f1_macro", "f1_macro 0.625  accuracy 0.75  loss 0.5"),
        ("loss", "loss 0.5  accuracy 0.75"),
        ("perplexity", "accuracy 0.75  loss 0.5"),
    ],
)
def test_an_evaluation_is_shown_with_the_figure_that_steps_are_compared_by_first(metric, said, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(journal_module, "say", lines.append)
    run = RunDirectory(tmp_path)
    journal = Journal(run, None, Losses(), dict, 10, metric)  # type: ignore[arg-type]
    journal.on_evaluate(None, SimpleNamespace(global_step=5), None, FIGURES)
    assert lines == [f"step 5: validation {said}"]
    (event,) = read_lines(run.events)
    assert event["validation"] == {name.removeprefix("eval_"): value for name, value in FIGURES.items()}
