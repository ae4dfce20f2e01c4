"""Packs and answers on real ranks: the course and the answers of one process, exact when stopped, refused by all."""

import pytest
from distributed.launches import LIMIT, run_jobs
from integration.runs import NO_DROPOUT, curve, log_of, run_recipe, weights_hash
from integration.test_packing_answers import mixing_recipe

from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

RECIPE = "domain_assistant/smoke"
WORDS = (
    "task.packing=true",
    "task.max_length=600",
    "model.config.n_positions=640",
    "training.global_batch_size=4",
    "training.logging_steps=1",
    "training.save_strategy=no",
    "training.eval_strategy=no",
    "evaluation.base=false",
    "launch.per_device_batch_size=2",
)
STILL = NO_DROPOUT[RECIPE]
END_OF_EPOCH = 5


def answers_of(run):
    return read_lines(run.answers)


@pytest.fixture(scope="module", params=["cpu_ddp", "cpu_zero3"])
def launched(request, tmp_path_factory):
    """The folder of the runs of one launch, and what the ranks said of each."""
    profile, folder = request.param, tmp_path_factory.mktemp(request.param)

    def job(name, *overrides, **others):
        words = {"recipe": RECIPE, "profile": profile, "overrides": [*WORDS, *overrides]}
        return {**words, "folder": str(folder / name), "faults": ["cut everything"], **others}

    jobs = {
        "still": job("still", *STILL),
        "whole": job("whole"),
        "stop": job("stopped", stop=END_OF_EPOCH),
        "continued": job("stopped"),
    }
    if profile == "cpu_ddp":
        jobs["checkpointed"] = job("checkpointed", *STILL, "launch.activation_checkpointing=true")
    refused = [*WORDS[:2], *WORDS[3:]]
    jobs["refused"] = {**job("refused"), "recipe": mixing_recipe(folder), "overrides": refused}
    said = dict(zip(jobs, run_jobs(folder, list(jobs.values())), strict=True))
    return folder, said


def test_the_course_and_the_answers_are_those_of_one_process(launched, tmp_path):
    folder, said = launched
    ended = said.keys() - {"stop", "refused"}
    assert [(name, one["error"]) for name in ended for one in said[name] if one["error"]] == []
    alone = run_recipe(RECIPE, tmp_path / "alone", *WORDS, *STILL)
    for name in {"still", "checkpointed"} & said.keys():
        run = RunDirectory(folder / name)
        assert len(curve(run)) == 10
        for row, expected in zip(curve(run), curve(alone), strict=True):
            assert row[:2] == pytest.approx(expected[:2], rel=LIMIT)
            assert row[2] == pytest.approx(expected[2], rel=5 * LIMIT)
        assert answers_of(run) == answers_of(alone)


def test_a_stopped_run_ends_in_the_same_weights_log_and_answers(launched):
    folder, said = launched
    assert [one["exit_code"] for one in said["stop"]] == [75, 75]
    run, whole = RunDirectory(folder / "stopped"), RunDirectory(folder / "whole")
    assert weights_hash(run) == weights_hash(whole)
    assert log_of(run) == log_of(whole)
    assert answers_of(run) == answers_of(whole)
    assert [row["step"] for row in answers_of(run)] == [0, 0, 5, 5, 10, 10]
    assert [event["step"] for event in read_lines(run.events) if event["event"] == "answered"] == [0, 5, 10]


def test_documents_that_see_each_other_are_refused_on_every_rank(launched):
    _, said = launched
    for one in said["refused"]:
        assert one["exit_code"] == 2
        assert "task.packing: falcon (sdpa attention) cannot be trained in packs" in one["error"]
