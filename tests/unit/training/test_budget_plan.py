"""The plan of a time budget: exact on known costs, never less with more time, and its learning rates by step alone."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from finelaunch.data.sampler import GlobalBatchSampler
from finelaunch.run.directory import RunDirectory
from finelaunch.run.ranks import ALONE
from finelaunch.training.budget import (
    UNCOUNTED_STEPS,
    Costs,
    Measured,
    Plan,
    Recurring,
    make_plan,
    num_steps_within,
    places_after,
    places_of_epoch,
    plans_in,
    stated,
    steps_by,
)
from finelaunch.training.checkpoints import Continued
from finelaunch.training.manifest import Checkpoint
from finelaunch.training.section import BUDGET_STEPS, TrainingSection


def section(**values):
    return TrainingSection(**{"global_batch_size": 8, "learning_rate": 1e-3, "time_budget_minutes": 10.0, **values})


def sampler(rows=100, world_size=1, per_device=4):
    lengths = np.random.default_rng(7).integers(5, 60, rows)
    return GlobalBatchSampler(lengths, 8, per_device, 42, 5, 0, world_size)


@pytest.mark.parametrize(("world_size", "per_device"), [(1, 8), (1, 2), (2, 4), (2, 2)])
def test_places_are_those_that_the_sampler_counts_batch_by_batch(world_size, per_device):
    one = sampler(101, world_size, per_device)
    for epoch in (0, 3):
        counted = [one.tokens(batch)[1] for batch in one.global_batches(epoch)]
        assert places_of_epoch(one, epoch).tolist() == counted
    counted = [one.tokens(batch)[1] for epoch in range(3) for batch in one.global_batches(epoch)]
    assert list(islice(places_after(one, 10), 20)) == counted[10:30]


def test_as_many_steps_as_fit_and_not_one_more():
    costs = Costs(0.5)
    assert num_steps_within(10.0, 10, 100, [2] * 90, costs) == (20, 10.0)
    assert num_steps_within(9.99, 10, 100, [2] * 90, costs) == (19, 9.0)
    assert num_steps_within(1e9, 10, 100, [2] * 90, costs) == (100, 90.0)
    assert num_steps_within(-1.0, 10, 100, [2] * 90, costs) == (10, 0.0)


def test_evaluations_and_checkpoints_count_where_they_fall_due_and_at_the_end():
    costs = Costs(1.0, (Recurring(3.0, 4), Recurring(5.0, 10), Recurring(7.0, None)))
    # after 10: 5 as due; 11; 12: 3 as due; 13; at the end 3 + 5
    assert num_steps_within(5 + 1 + 1 + 3 + 1 + 8, 10, 100, [1] * 90, costs) == (13, 19.0)
    assert num_steps_within(5 + 1 + 1 + 3 + 1 + 7.9, 10, 100, [1] * 90, costs)[0] == 12
    assert num_steps_within(8.0, 10, 10, [], costs) == (10, 8.0)


plans = st.fixed_dictionaries(
    {
        "at_step": st.integers(1, 20),
        "more": st.integers(0, 80),
        "rate": st.floats(1e-6, 1e3),
        "evaluation": st.floats(0, 1e3),
        "checkpoint": st.floats(0, 1e3),
        "evaluations": st.none() | st.integers(1, 30),
        "checkpoints": st.none() | st.integers(1, 30),
        "seconds": st.floats(-1e3, 1e6),
        "longer": st.floats(0, 1e5),
        "seed": st.integers(0, 2**20),
    }
)


@settings(max_examples=300, deadline=None)
@given(plans)
def test_a_plan_lies_within_its_bounds_fits_is_the_largest_and_grows_with_the_time(given_plan):
    one = given_plan
    at_step, most = one["at_step"], one["at_step"] + one["more"]
    places = np.random.default_rng(one["seed"]).integers(1, 500, one["more"]).tolist()
    recurring = Recurring(one["evaluation"], one["evaluations"]), Recurring(one["checkpoint"], one["checkpoints"])
    costs = Costs(one["rate"], recurring)

    def needed(last):
        seconds = sum(places[: last - at_step]) * one["rate"]
        for every, cost in ((one["evaluations"], one["evaluation"]), (one["checkpoints"], one["checkpoint"])):
            if every:
                seconds += cost * (1 + sum(step % every == 0 for step in range(at_step, last)))
        return seconds

    number, estimated = num_steps_within(one["seconds"], at_step, most, places, costs)
    assert at_step <= number <= most
    assert estimated == pytest.approx(needed(number))
    slack = 1e-9 * max(1.0, abs(one["seconds"]), estimated)
    assert number == at_step or estimated <= one["seconds"]
    assert number == most or needed(number + 1) > one["seconds"] - slack
    assert num_steps_within(one["seconds"] + one["longer"], at_step, most, places, costs)[0] >= number


def plan_of(measured_seconds, **values):
    measured = Measured(measured_seconds, 1.25 * measured_seconds, (2.0, "there"), (1.0, "here"), (0.0, ""))
    return make_plan(section(**values), sampler(), 400, 0, 0, measured)


@pytest.mark.parametrize("seconds_per_place", [0.006, 0.02, 0.11])
def test_a_measured_rate_gives_the_steps_of_that_rate(seconds_per_place):
    places = [one for one, _ in zip(places_after(sampler(), 0), range(400), strict=False)]
    counted = places[UNCOUNTED_STEPS:BUDGET_STEPS]
    plan = plan_of(sum(counted) * seconds_per_place, eval_strategy="no", save_strategy="no")
    assert plan.seconds_per_place == pytest.approx(seconds_per_place)
    ends = plan.elapsed_seconds + np.cumsum([0, *places[BUDGET_STEPS:]]) * seconds_per_place
    assert BUDGET_STEPS < plan.num_steps < 400
    assert plan.num_steps == BUDGET_STEPS + np.searchsorted(ends, 600.0, "right") - 1
    assert plan.estimated_seconds == pytest.approx(ends[plan.num_steps - BUDGET_STEPS])
    assert plan.planned_places == sum(places[BUDGET_STEPS : plan.num_steps])


def test_what_a_plan_says():
    assert plan_of(1e-6).text().startswith("all 400 steps fit")
    short = plan_of(30.0, eval_strategy="no", save_strategy="no")
    assert (short.num_steps < 400, short.is_met) == (True, True)
    assert f"{short.num_steps:,} of 400 steps fit" in short.text()
    none = plan_of(900.0)
    assert (none.num_steps, none.is_met) == (BUDGET_STEPS, False)
    assert "the first 10 steps alone take" in none.text()


def test_steps_of_an_earlier_process_are_counted_by_their_places():
    measured = Measured(1.0, 2.0, (0.5, ""), (0.25, ""), (8.0, ""))
    one = sampler()
    plan = make_plan(section(eval_strategy="steps", eval_steps=2), one, 400, 0, 6, measured)
    assert plan.at_step == 16
    before = sum(islice(places_after(one, 0), 6))
    assert plan.earlier_seconds == pytest.approx(before * plan.seconds_per_place + 3 * 0.5)
    foreign = make_plan(section(), one, 400, 6, 6, measured)
    assert (foreign.earlier_seconds, foreign.at_step) == (0.0, 16)


def test_the_manifest_gives_plans_back_with_those_before():
    first = plan_of(30.0)
    second = replace(first, minutes=12.0, from_step=20, at_step=30, num_steps=90)
    assert plans_in(json.loads(json.dumps(stated([first])))) == (first,)
    assert plans_in(json.loads(json.dumps(stated([first, second])))) == (first, second)
    assert "earlier" not in stated([first])
    assert plans_in(None) == plans_in(stated([])) == ()


def test_which_schedule_gives_the_rate_of_a_step():
    first = replace(plan_of(30.0), num_steps=50)
    second = replace(first, at_most_steps=300, from_step=20, at_step=30, num_steps=90)
    steps = [0, 9, 10, 19, 20, 29, 30, 89]
    assert [steps_by([first], 400, None, step) for step in steps] == [400, 400, 50, 50, 50, 50, 50, 50]
    assert [steps_by([first, second], 300, None, step) for step in steps] == [400, 400, 50, 50, 300, 300, 90, 90]
    assert [steps_by([first], 300, 20, step) for step in steps] == [400, 400, 50, 50, 300, 300, 300, 300]


def test_few_steps_are_refused_and_no_minutes_too():
    with pytest.raises(ValidationError, match="greater than 0"):
        section(time_budget_minutes=0)
    with pytest.raises(ValidationError, match="10 steps are measured first"):
        section(max_steps=BUDGET_STEPS)
    assert section(max_steps=BUDGET_STEPS + 1).time_budget_minutes == 10


@pytest.fixture
def run(tmp_path):
    made = RunDirectory(tmp_path / "run")
    made.begin({"task": {}}, {}, [])
    return made


def course(run, step=0, is_foreign=False, at_most_steps=400, **values):
    """Return what paces a training that goes on at ``step``."""
    from finelaunch.training.pacing import pace_of

    checkpoint = Checkpoint(run.path, {"step": step}) if step else None
    chosen = Continued(checkpoint, is_foreign, ())
    return pace_of(section(**values), sampler(), run, ALONE, at_most_steps, chosen, None)


def planned(run, plan: Plan):
    run.note(time_budget=stated([plan]))
    run.record("training", from_step=plan.since_step)
    return plan


def test_a_plan_is_kept_wherever_its_run_goes_on(run):
    plan = planned(run, plan_of(30.0))
    for step in (0, 6, 10, 30):
        pace = course(run, step)
        assert (pace.is_planned, pace.is_measuring, pace.num_steps) == (True, False, plan.num_steps)
    assert run.read_manifest()["time_budget"] == plan.facts()


def test_another_budget_or_more_steps_are_planned_anew_from_where_the_run_stands(run):
    plan = planned(run, plan_of(30.0))
    for changed in ({"time_budget_minutes": 20.0}, {"at_most_steps": 500}):
        pace = course(run, 30, **changed)
        assert (pace.is_planned, pace.is_measuring, pace.since_step, pace.from_step) == (False, True, 0, 30)
        assert (pace.num_steps, pace.plans) == (changed.get("at_most_steps", 400), (plan,))


@pytest.mark.parametrize(
    "words",
    [{"resume": "never"}, {"step": 5, "is_foreign": True}, {"time_budget_minutes": None}],
    ids=["never", "a checkpoint of another run", "no budget"],
)
def test_a_plan_of_another_course_is_forgotten(run, words):
    planned(run, plan_of(30.0))
    pace = course(run, **words)
    assert run.read_manifest()["time_budget"] is None
    if "time_budget_minutes" in words:
        assert pace is None
    else:
        step = words.get("step", 0)
        assert (pace.is_measuring, pace.plans, pace.since_step, pace.from_step) == (True, (), step, step)


def test_a_plan_from_a_checkpoint_of_another_run_is_kept_there_and_nowhere_before(run):
    plan = planned(run, replace(plan_of(30.0), since_step=40, from_step=40, at_step=50))
    assert course(run, 40, is_foreign=True).plans == (plan,)
    assert course(run, 60).is_planned
    assert course(run, 0).plans == ()


def test_what_was_stopped_before_its_plan_counts_from_the_first_step_of_the_run(run):
    run.record("training", from_step=0)
    assert (course(run, 6).since_step, course(run, 6).is_measuring) == (0, True)
    run.record("training", from_step=4, foreign=True)
    run.record("training", from_step=6)
    assert course(run, 8).since_step == 4, "what the run made before it began from another one is of another course"


def test_answers_of_an_earlier_start_count_where_none_were_asked_since(run):
    from types import SimpleNamespace

    pace = course(run, 6)
    pace.join(None, SimpleNamespace(left_out=[]), print)
    assert pace._answers()[0] == 0
    run.record("answered", step=0, seconds=1.5)
    assert pace._answers() == (1.5, "measured by an earlier start")
    pace.join(None, SimpleNamespace(left_out=[4.0, 2.0]), print)
    assert pace._answers()[0] == 2


def test_with_the_best_step_kept_every_evaluation_counts_as_saved():
    measured = Measured(8.0, 10.0, (0.0, ""), (3.0, ""), (0.0, ""))
    rhythm = {"eval_strategy": "steps", "eval_steps": 5, "time_budget_minutes": 1.0}
    plans = [
        make_plan(section(load_best_model_at_end=best, **rhythm), sampler(), 400, 0, 0, measured)
        for best in (False, True)
    ]
    assert plans[1].num_steps < plans[0].num_steps


def test_too_few_steps_are_all_made_and_it_is_said_once(run, caplog):
    for _ in range(2):
        pace = course(run, 395)
        assert (pace.is_measuring, pace.num_steps) == (False, 400)
        pace.announce()
    (warning,) = run.read_manifest()["warnings"]
    assert "has no effect" in warning
    assert caplog.text.count("has no effect") == 1


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup", "inverse_sqrt", "cosine_with_restarts"])
def test_the_learning_rate_of_a_step_follows_from_the_plan_alone(kind, run, tmp_path):
    import torch
    from transformers import TrainingArguments, get_scheduler

    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, lr_scheduler_type=kind, warmup_steps=0.1, learning_rate=1e-3
    )

    def alone(num_steps):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        return optimizer, get_scheduler(kind, optimizer, arguments.get_warmup_steps(num_steps), num_steps)

    def rates(scheduler, optimizer, number):
        found = []
        for _ in range(number):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    plan = planned(run, replace(plan_of(30.0), num_steps=40))
    optimizer, scheduler = alone(400)
    course(run).follow(scheduler, arguments)
    found = rates(scheduler, optimizer, 25)
    expected = [rates(*reversed(alone(number)), 40) for number in (400, 40)]
    assert found == expected[0][:10] + expected[1][10:25]

    kept, resumed = scheduler.state_dict(), alone(40)
    assert kept["lr_lambdas"] == [None]
    course(run, 25).follow(resumed[1], arguments)
    resumed[1].load_state_dict(kept)
    resumed[0].load_state_dict(optimizer.state_dict())
    assert rates(resumed[1], resumed[0], 15) == expected[1][25:]
    assert plan.num_steps == 40
