"""Early stopping and the best step on real ranks: the end and the weights of one process, on every engine.

All runs share one launch. ZeRO-3 cuts every tensor, which it does not do with small ones by itself.
"""

import json

import pytest
import torch
from distributed.launches import LIMIT, run_jobs
from integration.runs import NO_DROPOUT, curve, log_of, run_recipe
from safetensors.torch import load_file

from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

WORDS = (
    *NO_DROPOUT["imdb/smoke"],
    "data.train.max_samples=50",
    "data.test.max_samples=16",
    "training.learning_rate=1e-2",
    "training.logging_steps=4",
    "training.eval_strategy=steps",
    "training.eval_steps=3",
    "training.save_strategy=no",
    "training.load_best_model_at_end=true",
    "training.metric_for_best_model=accuracy",
    "evaluation.base=false",
)
PATIENCE = ("training.early_stopping_patience=2", "training.max_steps=24")
LORA = ("method.name=lora", "method.target_modules=all-linear", "method.dropout=0")
QLORA = ("method.name=qlora", "method.dropout=0")
STAGES = ("method.name=gradual_unfreezing", "training.max_steps=8")
RUNS = {
    "ddp": ("cpu_ddp", PATIENCE),
    "zero1": ("cpu_zero1", PATIENCE),
    "zero2": ("cpu_zero2", PATIENCE),
    "zero3": ("cpu_zero3", PATIENCE),
    "ddp qlora": ("cpu_ddp", (*QLORA, *PATIENCE)),
    "zero2 lora": ("cpu_zero2", (*LORA, *PATIENCE)),
    "zero3 lora": ("cpu_zero3", (*LORA, *PATIENCE)),
    "ddp stages": ("cpu_ddp", STAGES),
    "zero2 stages": ("cpu_zero2", STAGES),
}
STOPPED = {"ddp": 9, "zero3": 9}
"""Runs that are stopped within the evaluation that ends them, and continued."""


def job(folder, name, **others):
    profile, own = RUNS[name]
    words = {"recipe": "imdb/smoke", "profile": profile, "overrides": [*WORDS, *own]}
    return {**words, "folder": str(folder), "faults": ["cut everything"], **others}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder of the runs, and what the ranks said of each."""
    folder = tmp_path_factory.mktemp("selection")
    jobs = {name: job(folder / name, name) for name in RUNS}
    for name, step in STOPPED.items():
        again = f"{name} again"
        jobs[f"stop {name}"] = job(folder / again, name, stop=step, stop_hook="on_step_end")
        jobs[again] = job(folder / again, name)
    return folder, dict(zip(jobs, run_jobs(folder, list(jobs.values())), strict=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    return run_recipe("imdb/smoke", tmp_path_factory.mktemp("alone") / "run", *WORDS, *PATIENCE)


def trained(run):
    return json.loads(run.metrics.read_text())["train"]


def weights_in(folder):
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def bare(name):
    return name.replace("base_model.model.", "").replace(".default", "")


def test_what_was_stopped_stopped_and_all_else_ended(launched):
    _, said = launched
    for name, of_ranks in said.items():
        if name.startswith("stop "):
            assert [one["exit_code"] for one in of_ranks] == [75, 75], (name, of_ranks)
        else:
            assert [one["error"] for one in of_ranks] == [None, None], (name, of_ranks)


def test_training_ends_and_the_best_step_is_that_of_one_process(launched, alone):
    folder, _ = launched
    expected = trained(alone)
    assert expected["stopped_early"]
    assert expected["best_step"] == expected["kept_step"] < expected["steps"] < 24
    for name in ("ddp", "zero1", "zero2", "zero3"):
        run = RunDirectory(folder / name)
        assert {key: trained(run)[key] for key in ("steps", "best_step", "kept_step", "stopped_early")} == {
            key: expected[key] for key in ("steps", "best_step", "kept_step", "stopped_early")
        }
        for row, of_one in zip(log_of(run), log_of(alone), strict=True):
            assert row["loss"] == pytest.approx(of_one["loss"], rel=LIMIT)
            assert row["learning_rate"] == of_one["learning_rate"]


def test_the_weights_are_those_of_the_best_checkpoint_and_give_its_figures(launched):
    folder, _ = launched
    for name in RUNS:
        run, figures = RunDirectory(folder / name), trained(RunDirectory(folder / name))
        assert figures["kept_step"] == figures["best_step"] < figures["steps"], name
        best, last = (run.checkpoints / f"checkpoint-{figures[key]}" for key in ("best_step", "steps"))
        kept, of_best, of_last = weights_in(run.model), weights_in(best), weights_in(last)
        assert {bare(one) for one in kept} == {bare(one) for one in of_best}, name
        assert all(torch.equal(kept[one], of_best[one]) for one in of_best), name
        assert any(not torch.equal(kept[one], of_last[one]) for one in of_last), name
        recorded = {row["step"]: row["validation"] for row in read_lines(run.events) if row["event"] == "evaluated"}
        validation = json.loads(run.metrics.read_text())["validation"]
        assert {key: validation[key] for key in recorded[figures["best_step"]]} == recorded[figures["best_step"]], name


def test_a_run_stopped_at_its_deciding_evaluation_ends_the_same(launched):
    folder, _ = launched
    for name in STOPPED:
        run, whole = RunDirectory(folder / f"{name} again"), RunDirectory(folder / name)
        assert curve(run) == curve(whole)
        assert log_of(run) == log_of(whole)
        kept = weights_in(run.model), weights_in(whole.model)
        assert all(torch.equal(kept[0][one], kept[1][one]) for one in kept[1])
        metrics = [json.loads(one.metrics.read_text()) for one in (run, whole)]
        for part in ("validation", "eval"):
            assert metrics[0][part] == metrics[1][part]
        starts = [row["from_step"] for row in read_lines(run.events) if row["event"] == "training"]
        assert starts == [0, STOPPED[name]]
