"""Runs with a time budget: what the manifest says gives their steps and learning rates, stopped or not.

Where two runs are compared the clock ticks once a look, so that both measure the same.
"""

import json
import shutil
from itertools import islice
from unittest import mock

import pytest
from integration.runs import curve, heard, log_of, run_recipe, signalled, weights_hash
from integration.test_resume import stop_in_the_last_evaluation

from finelaunch.data.sampler import GlobalBatchSampler
from finelaunch.errors import BadInput, Stopped
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.training import pacing
from finelaunch.training.budget import Costs, Recurring, num_steps_within, places_after, plans_in

pytestmark = pytest.mark.integration

STEPS_AN_EPOCH, AT_MOST = 6, 48
WORDS = (
    "data.train.max_samples=50",
    "data.test.max_samples=16",
    "training.num_train_epochs=8",
    "training.logging_steps=1",
    "training.save_strategy=steps",
    "training.save_steps=4",
    "evaluation.base=false",
)
BUDGET = "training.time_budget_minutes=0.9"
BEFORE_THE_PLAN, AFTER_THE_PLAN = 6, 15


class Ticks:
    """A clock that is a second on whenever it is looked at."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self):
        self.seconds += 1.0
        return self.seconds


def paced(folder, *words, **others):
    with mock.patch.object(pacing, "time", Ticks()):
        return run_recipe("imdb/smoke", folder, *WORDS, *words, **others)


def plan_of(run):
    (plan,) = plans_in(run.read_manifest()["time_budget"])
    return plan


def assert_learns_by(run, plan, until=None):
    """Every learning rate is that of the linear schedule of all steps, and from the plan on of those it has."""
    rows = read_lines(run.train_log)[:until]
    assert [row["step"] for row in rows] == list(range(1, (until or plan.num_steps) + 1))
    for row in rows:
        done = row["step"] - 1
        steps = plan.num_steps if done >= plan.at_step else plan.at_most_steps
        assert row["learning_rate"] == pytest.approx(1e-3 * (1 - done / steps), rel=1e-12), row["step"]


def recomputed(run, plan, split_rows):
    """Return the number of steps by the numbers that the manifest states."""
    sampler = GlobalBatchSampler(split_rows, 8, 8, 42)
    assert plan.measured_places == sum(islice(places_after(sampler, 2), 8))
    rate = plan.measured_seconds / plan.measured_places
    recurring = Recurring(plan.evaluation_seconds, STEPS_AN_EPOCH), Recurring(plan.checkpoint_seconds, 4)
    assert plan.answers_seconds == 0
    costs = Costs(rate, recurring)
    left = 60 * plan.minutes - plan.elapsed_seconds - plan.earlier_seconds
    return num_steps_within(left, plan.at_step, plan.at_most_steps, places_after(sampler, plan.at_step), costs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing stopped, dropout on."""
    return paced(tmp_path_factory.mktemp("whole") / "run", BUDGET)


def test_a_run_ends_by_its_plan(whole):
    plan = plan_of(whole)
    assert plan.at_step == 10
    assert AFTER_THE_PLAN < plan.num_steps < AT_MOST
    assert plan.num_steps % STEPS_AN_EPOCH, "it ends within an epoch, where the Trainer would do more"
    assert_learns_by(whole, plan)
    events = read_lines(whole.events)
    assert [event["steps"] for event in events if event["event"] == "planned"] == [plan.num_steps]
    evaluated = [event["step"] for event in events if event["event"] == "evaluated"]
    assert evaluated == [*range(STEPS_AN_EPOCH, plan.num_steps, STEPS_AN_EPOCH), plan.num_steps]
    assert (whole.checkpoints / f"checkpoint-{plan.num_steps}").is_dir()
    assert json.loads(whole.metrics.read_text())["train"]["steps"] == plan.num_steps
    assert [row["step"] for row in read_lines(whole.samples)] == list(range(1, plan.num_steps + 1))


@pytest.mark.parametrize("minutes", [1e-6, 0.1, 1e6])
def test_by_the_real_clock_the_numbers_of_the_manifest_give_the_steps(minutes, tmp_path):
    lengths, make = [], GlobalBatchSampler.__init__

    def remember(self, given, *others):
        lengths.append(given)
        make(self, given, *others)

    words = (*WORDS, "training.max_steps=24", f"training.time_budget_minutes={minutes}")
    with mock.patch.object(GlobalBatchSampler, "__init__", remember):
        run = run_recipe("imdb/smoke", tmp_path / "run", *words)
    plan = plan_of(run)
    assert plan.seconds_per_place == plan.measured_seconds / plan.measured_places
    number, estimated = recomputed(run, plan, lengths[0])
    assert number == plan.num_steps
    assert plan.estimated_seconds == pytest.approx(plan.elapsed_seconds + estimated)
    assert_learns_by(run, plan)
    warned = [text for text in run.read_manifest()["warnings"] if "the first 10 steps alone take" in text]
    assert len(warned) == (plan.estimated_seconds > 60 * minutes)
    if minutes != 0.1:
        assert plan.num_steps == (10 if minutes < 1 else 24)


def test_stopped_after_its_plan_it_ends_as_if_nothing_had_happened(whole, tmp_path):
    with signalled(AFTER_THE_PLAN), pytest.raises(Stopped):
        paced(tmp_path / "run", BUDGET)
    shutil.copytree(tmp_path / "run", tmp_path / "raised")
    run = paced(tmp_path / "run", BUDGET)
    assert weights_hash(run) == weights_hash(whole)
    assert log_of(run) == log_of(whole)
    assert plan_of(run) == plan_of(whole)
    starts = [event for event in read_lines(run.events) if event["event"] == "training"]
    assert [(event["from_step"], event["steps"]) for event in starts] == [(0, 48), (15, plan_of(whole).num_steps)]

    longer = "training.time_budget_minutes=1.4"
    with pytest.raises(BadInput, match=r"time_budget_minutes: the run was begun with 0\.9"):
        paced(tmp_path / "raised", longer)
    raised = paced(tmp_path / "raised", longer, allow_change=["training.time_budget_minutes"])
    before, plan = plans_in(raised.read_manifest()["time_budget"])
    assert before == plan_of(whole)
    assert (plan.minutes, plan.since_step, plan.from_step, plan.at_step) == (1.4, 0, 15, 25)
    assert before.num_steps < plan.num_steps
    assert_learns_by(raised, before, until=16)  # the rate of the next step stands in the checkpoint
    rates = {row["step"]: row["learning_rate"] for row in read_lines(raised.train_log)}
    assert rates[17] == pytest.approx(1e-3 * (1 - 16 / AT_MOST))
    assert rates[26] == pytest.approx(1e-3 * (1 - 25 / plan.num_steps))
    assert max(rates) == plan.num_steps


def test_stopped_after_its_last_step_it_trains_no_further(whole, tmp_path, monkeypatch):
    with heard(), monkeypatch.context() as patch:
        stop_in_the_last_evaluation(patch)
        with pytest.raises(Stopped):
            paced(tmp_path / "run", BUDGET)
    run = paced(tmp_path / "run", BUDGET)
    assert weights_hash(run) == weights_hash(whole)
    assert log_of(run) == log_of(whole)


def test_stopped_before_its_plan_it_measures_anew_and_is_the_run_of_that_plan(whole, tmp_path):
    """The other run is given the plan while it stands at its first step."""
    with signalled(BEFORE_THE_PLAN), pytest.raises(Stopped):
        paced(tmp_path / "run", BUDGET)
    assert "time_budget" not in RunDirectory(tmp_path / "run").read_manifest()
    run = paced(tmp_path / "run", BUDGET)
    plan = plan_of(run)
    assert (plan.since_step, plan.from_step, plan.at_step) == (0, BEFORE_THE_PLAN, BEFORE_THE_PLAN + 10)
    assert plan.earlier_seconds > 0
    assert_learns_by(run, plan)

    with signalled(1), pytest.raises(Stopped):
        paced(tmp_path / "other", BUDGET)
    RunDirectory(tmp_path / "other").note(time_budget=run.read_manifest()["time_budget"])
    other = paced(tmp_path / "other", BUDGET)
    assert plan_of(other) == plan
    assert weights_hash(other) == weights_hash(run)
    assert curve(other) == curve(run)
    assert log_of(other) == log_of(run)
