"""What is said of a time budget before anything is started: how many steps there are is not known."""

import pytest
from golden_plans import planned

from finelaunch.errors import BadInput

BUDGET = "training.time_budget_minutes=30"
FITS = "unknown until 10 steps are measured: those that fit into 30 minutes (training.time_budget_minutes)"


@pytest.mark.usefixtures("bare_machine")
def test_a_plan_says_that_steps_are_not_known_before_they_are_measured() -> None:
    assert planned("imdb/smoke", [BUDGET], "cpu").steps == {"epoch": None, "total": None, "text": FITS}
    most = planned("imdb/smoke", [BUDGET, "training.max_steps=400"], "cpu").steps
    assert most == {"epoch": None, "total": None, "text": f"at most 400 in all; {FITS}"}


def test_a_plan_knows_the_steps_of_an_epoch_from_the_prepared_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from finelaunch.launch import plan

    report = {"splits": {"train": {"num_features": 270}}, "facts": {}}
    monkeypatch.setattr(plan, "cached_report", lambda *_: report)
    found = planned("imdb/smoke", [BUDGET], "cpu").steps
    assert found == {"epoch": 34, "total": None, "text": f"34 an epoch, at most 68 in all; {FITS}"}


def test_stages_and_a_budget_do_not_go_together() -> None:
    with pytest.raises(BadInput, match=r"time_budget_minutes: the stages of gradual_unfreezing end at shares"):
        planned("imdb/smoke", [BUDGET, "method.name=gradual_unfreezing"], "cpu")
