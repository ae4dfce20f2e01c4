"""A time budget on real ranks: the first one measures, all of them end by its plan, stopped or not."""

import pytest
from distributed.launches import LIMIT, difference, run_jobs
from integration.runs import NO_DROPOUT, log_of, weights_hash
from integration.test_budget import AFTER_THE_PLAN, assert_learns_by, plan_of

from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

PROFILES = ("cpu_ddp", "cpu_zero2")
WORDS = (
    "data.train.max_samples=50",
    "data.test.max_samples=16",
    "training.num_train_epochs=8",
    "training.logging_steps=1",
    "training.save_strategy=no",
    "training.time_budget_minutes=0.9",
    "evaluation.base=false",
    *NO_DROPOUT["imdb/smoke"],
)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder of all runs, and what the ranks said of each."""
    folder = tmp_path_factory.mktemp("budget")
    jobs = {}
    for profile in PROFILES:
        words = {"recipe": "imdb/smoke", "profile": profile, "overrides": WORDS, "faults": ["ticking clock"]}
        jobs[f"{profile} whole"] = {**words, "folder": str(folder / f"{profile} whole")}
        again = {**words, "folder": str(folder / f"{profile} stopped")}
        jobs[f"{profile} stop"] = {**again, "stop": AFTER_THE_PLAN}
        jobs[f"{profile} again"] = again
    return folder, dict(zip(jobs, run_jobs(folder, list(jobs.values())), strict=True))


@pytest.mark.parametrize("profile", PROFILES)
def test_all_ranks_end_by_the_plan_of_the_first(profile, launched):
    folder, said = launched
    assert [of_rank["error"] for of_rank in said[f"{profile} whole"] + said[f"{profile} again"]] == [None] * 4
    assert [of_rank["exit_code"] for of_rank in said[f"{profile} stop"]] == [75, 75]
    whole, stopped = (RunDirectory(folder / f"{profile} {name}") for name in ("whole", "stopped"))
    plan = plan_of(whole)
    assert AFTER_THE_PLAN < plan.num_steps < plan.at_most_steps
    assert_learns_by(whole, plan)
    starts = [event for event in read_lines(stopped.events) if event["event"] == "training"]
    assert [(event["from_step"], event["steps"]) for event in starts] == [(0, 48), (AFTER_THE_PLAN, plan.num_steps)]
    assert plan_of(stopped) == plan
    assert log_of(stopped) == log_of(whole)
    assert weights_hash(stopped) == weights_hash(whole)


def test_engines_that_measure_the_same_take_the_same_course(launched):
    folder, _ = launched
    one, other = (folder / f"{profile} whole" for profile in PROFILES)
    assert plan_of(RunDirectory(one)) == plan_of(RunDirectory(other))
    loss, gradient_norm = difference(one, other)
    assert loss < LIMIT
    assert gradient_norm < 10 * LIMIT  # what the engines round otherwise grows with the steps
