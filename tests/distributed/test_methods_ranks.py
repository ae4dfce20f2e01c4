"""Every method on real ranks: the course of one process, stopped and continued exactly, saved whole, equal on ranks.

All runs of an engine share one launch. ZeRO-3 cuts every tensor, which it does not do with small ones by itself.
"""

import json
from unittest import mock

import pytest
import torch
from distributed.launches import LIMIT, run_jobs
from integration.runs import NO_DROPOUT, curve, log_of, run_recipe
from safetensors.torch import load_file

from finelaunch.evaluation.again import evaluate_again
from finelaunch.evaluation.evaluate import Evaluator
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.training.placement import Placement

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

FEW = (
    "data.train.max_samples=40",
    "data.test.max_samples=16",
    "training.max_steps=8",
    "training.logging_steps=1",
    "training.eval_strategy=no",
    "training.save_strategy=no",
    "evaluation.base=false",
)
LORA = ("imdb/smoke", "method.name=lora", "method.target_modules=all-linear")
WORDS = ("domain_assistant/smoke", "evaluation.num_generations=0")
STILL = ("imdb/smoke", *NO_DROPOUT["imdb/smoke"])
METHODS = {
    "lora": (*LORA, "method.dropout=0", *NO_DROPOUT["imdb/smoke"]),
    "lora with dropout": LORA,
    "qlora": (*STILL, "method.name=qlora", "method.dropout=0"),
    "feature_extraction": ("imdb/smoke", "method.name=feature_extraction"),
    "gradual_unfreezing": (*STILL, "method.name=gradual_unfreezing"),
    "prefix_tuning": (*WORDS, *NO_DROPOUT["domain_assistant/smoke"], "method.name=prefix_tuning"),
    "prompt_tuning": (*WORDS, *NO_DROPOUT["domain_assistant/smoke"], "method.name=prompt_tuning"),
}
INSIDE, AT_THE_END_OF_A_STAGE = 3, 4
STOPS = {
    "cpu_ddp": {
        "lora": [],
        "lora with dropout": [INSIDE],
        "qlora": [INSIDE],
        "feature_extraction": [],
        "gradual_unfreezing": [INSIDE, AT_THE_END_OF_A_STAGE],
        "prefix_tuning": [INSIDE],
        "prompt_tuning": [INSIDE],
    },
    "cpu_zero2": {
        "lora": [],
        "lora with dropout": [INSIDE],
        "qlora": [INSIDE],
        "feature_extraction": [INSIDE],
        "gradual_unfreezing": [INSIDE, AT_THE_END_OF_A_STAGE],
        "prefix_tuning": [INSIDE],
        "prompt_tuning": [INSIDE],
    },
    "cpu_zero3": {"lora": [], "lora with dropout": [INSIDE], "qlora": [INSIDE], "feature_extraction": []},
}
CHECKPOINTED = "lora with activation checkpointing"
PARTED = "gradual unfreezing with other weights on one rank"


def job(profile, folder, name, *overrides, **others):
    recipe, *own = METHODS[name]
    words = {"recipe": recipe, "profile": profile, "overrides": [*FEW, *own, *overrides]}
    return {**words, "folder": str(folder), "faults": ["cut everything"], **others}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The runs of one process, by name, each made when it is asked for."""
    folder, made = tmp_path_factory.mktemp("alone"), {}

    def run(name):
        if name not in made:
            recipe, *own = METHODS[name]
            made[name] = run_recipe(recipe, folder / name, *FEW, *own)
        return made[name]

    return run


@pytest.fixture(scope="module", params=STOPS)
def launched(request, tmp_path_factory):
    """A profile, the folder of its runs, and what the ranks said of each."""
    profile, folder = request.param, tmp_path_factory.mktemp(request.param)
    jobs = {}
    for name, steps in STOPS[profile].items():
        jobs[name] = job(profile, folder / name, name)
        for step in steps:
            jobs[f"stop {name} {step}"] = job(profile, folder / f"{name} {step}", name, stop=step)
            jobs[f"{name} {step}"] = job(profile, folder / f"{name} {step}", name)
    if profile == "cpu_ddp":
        saving = "launch.activation_checkpointing=true"
        jobs[CHECKPOINTED] = job(profile, folder / CHECKPOINTED, "lora with dropout", saving)
        parted = job(profile, folder / PARTED, "gradual_unfreezing")
        jobs[PARTED] = {**parted, "faults": ["other weights on rank 1"]}
    said = dict(zip(jobs, run_jobs(folder, list(jobs.values())), strict=True))
    return profile, folder, said


def weights_of(folder):
    (file,) = (folder / "model").glob("*.safetensors")
    return load_file(file)


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_what_was_stopped_stopped_and_all_else_ended(launched):
    _, _, said = launched
    for name, of_ranks in said.items():
        if name.startswith("stop "):
            assert [one["exit_code"] for one in of_ranks] == [75, 75], (name, of_ranks)
        elif name != PARTED:
            assert [one["error"] for one in of_ranks] == [None, None], (name, of_ranks)


def test_the_course_is_that_of_one_process(launched, alone):
    profile, folder, _ = launched
    for name in STOPS[profile]:
        if name == "lora with dropout" or name == "feature_extraction":
            continue  # every rank has its own masks
        rows, expected = curve(RunDirectory(folder / name)), curve(alone(name))
        assert len(rows) == 8
        for row, of_one in zip(rows, expected, strict=True):
            assert row == pytest.approx(of_one, rel=LIMIT), name
        rates = [[row["learning_rate"] for row in log_of(run)] for run in (RunDirectory(folder / name), alone(name))]
        assert rates[0] == rates[1], name


def test_a_stopped_run_ends_in_the_same_weights_and_the_same_log(launched):
    profile, folder, _ = launched
    for name, steps in STOPS[profile].items():
        for step in steps:
            run, whole = folder / f"{name} {step}", folder / name
            assert_same_weights(weights_of(run), weights_of(whole))
            assert log_of(RunDirectory(run)) == log_of(RunDirectory(whole)), name
            starts = [row["from_step"] for row in read_lines(run / "events.jsonl") if row["event"] == "training"]
            assert starts == [0, step]


def test_what_was_saved_is_whole_and_gives_the_live_predictions(launched):
    profile, folder, _ = launched
    for name in STOPS[profile]:
        run = RunDirectory(folder / name)
        tensors = weights_of(run.path)
        assert all(tensor.numel() and tensor.isfinite().all() for tensor in tensors.values())
        counted = json.loads(run.manifest.read_text())["parameters"]
        if (run.model / "adapter_config.json").exists():
            assert sum(tensor.numel() for tensor in tensors.values()) == counted["trainable"] < counted["total"]
        kept, measure = [], Evaluator.measure

        def keeping(*given, kept=kept, measure=measure, **named):
            kept.append(measure(*given, **named))
            return kept[-1]

        with mock.patch.object(Evaluator, "measure", keeping):
            evaluate_again(run.model, None, Placement("cpu", "fp32", 1, 1))
        live = json.loads(run.metrics.read_text())["eval"]
        assert kept[0].metrics["loss"] == pytest.approx(live["loss"], rel=LIMIT), name
        for row, again in zip(read_lines(run.predictions), kept[0].predictions, strict=True):
            assert row.keys() == again.keys()
            assert row.get("scores", {}) == pytest.approx(again.get("scores", {}), rel=1e-5), name


def test_what_is_held_is_the_drawn_base_bit_for_bit(launched, alone):
    _, folder, _ = launched
    base = load_file(alone("lora").model / "base" / "model.safetensors")
    tuned = weights_of(folder / "feature_extraction")
    moved = {name.rpartition(".")[0] for name in tuned if not torch.equal(tuned[name], base[name])}
    assert moved == {"classifier", "bert.pooler.dense"}
    drawn = load_file(folder / "lora" / "model" / "base" / "model.safetensors")
    assert_same_weights(drawn, base)


def test_activation_checkpointing_changes_no_weight(launched):
    profile, folder, _ = launched
    if profile == "cpu_ddp":
        assert_same_weights(weights_of(folder / CHECKPOINTED), weights_of(folder / "lora with dropout"))


def test_ranks_with_other_weights_end_the_run(launched):
    profile, _, said = launched
    if profile == "cpu_ddp":
        for of_rank in said[PARTED]:
            assert of_rank["exit_code"] == 1
            assert "after the last step the ranks hold different weights" in of_rank["error"]
            assert "tensors, classifier.bias among them" in of_rank["error"]
