"""Every engine that a CPU can run, with real ranks: what ran, the loss curve, the saved model.

All three tasks of an engine share one launch, since every process pays seconds of imports.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from distributed.launches import ENGINES, LIMIT, TASKS, curve_jobs, difference, fixed, run_jobs
from integration.runs import run_recipe

from finelaunch.run.directory import RunDirectory

pytestmark = pytest.mark.distributed

EXPECTED = {
    "DDP": ("ddp", None, "MULTI_CPU", "DistributedDataParallel", "AdamW"),
    "ZeRO-1": ("zero1", 1, "DEEPSPEED", "DeepSpeedEngine", "DeepSpeedZeroOptimizer"),
    "ZeRO-2": ("zero2", 2, "DEEPSPEED", "DeepSpeedEngine", "DeepSpeedZeroOptimizer"),
    "ZeRO-3": ("zero3", 3, "DEEPSPEED", "DeepSpeedEngine", "DeepSpeedZeroOptimizer_Stage3"),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with the whole global batch at once, every task."""
    folder = tmp_path_factory.mktemp("alone")
    for recipe in TASKS:
        run_recipe(recipe, folder / recipe.split("/")[0], *fixed(recipe))
    return folder


@pytest.fixture(scope="module", params=ENGINES)
def launched(request, tmp_path_factory):
    """The name of an engine and the folder of its runs, all made in one launch."""
    folder = tmp_path_factory.mktemp(request.param)
    jobs = curve_jobs(ENGINES[request.param], folder)
    for said in run_jobs(folder, jobs):
        assert [one["error"] for one in said] == [None, None]
    return request.param, folder


@pytest.mark.parametrize("recipe", TASKS)
@pytest.mark.parametrize("per_device", [4, 2])
def test_loss_and_gradient_norm_are_those_of_one_process(alone, launched, recipe, per_device):
    task = recipe.split("/")[0]
    features = json.loads((alone / task / "data" / "data_report.json").read_text())["splits"]["train"]["num_features"]
    assert features % 8, "the last global batch must not be full"
    assert max(difference(alone / task, launched[1] / f"{task}-{per_device}")) <= LIMIT


def test_what_was_asked_is_what_ran(launched):
    engine, folder = launched
    name, stage, distributed_type, model_class, optimizer_class = EXPECTED[engine]
    for run in folder.iterdir():
        if not run.is_dir():
            continue
        ran = json.loads((run / "manifest.json").read_text())["engine"]
        assert (ran["name"], ran["zero_stage"], ran["distributed_type"]) == (name, stage, distributed_type)
        assert (ran["model_class"], ran["optimizer_class"]) == (model_class, optimizer_class)
        assert (ran["world_size"], ran["backend"], ran["dtype"], ran["precision"]) == (2, "gloo", "float32", "fp32")
        size = int(run.name.rsplit("-", 1)[1])
        cut = ran["per_device_batch_size"], ran["gradient_accumulation_steps"], ran["global_batch_size"]
        assert cut == (size, 8 // size // 2, 8)
        assert len(ran["devices"]) == 2


def test_the_saved_model_is_the_live_one(alone, launched):
    """The figures of a run come from the live engine; those of ``evaluate`` from the files, by plain transformers."""
    from safetensors import safe_open

    from finelaunch.evaluation.again import evaluate_again
    from finelaunch.training.placement import Placement

    for recipe in TASKS:
        task = recipe.split("/")[0]
        run, reference = launched[1] / f"{task}-4", alone / task
        live = json.loads((run / "metrics.json").read_text())["eval"]
        saved, _ = evaluate_again(run / "model", None, Placement("cpu", "fp32", 1, 1))
        assert saved["loss"] == pytest.approx(live["loss"], rel=LIMIT)
        assert [saved[key] for key in live if key != "loss" and isinstance(live[key], int)] == [
            value for key, value in live.items() if key != "loss" and isinstance(value, int)
        ]
        shapes = []
        for path in (run, reference):
            with safe_open(path / "model" / "model.safetensors", "numpy") as file:
                shapes.append({key: file.get_slice(key).get_shape() for key in file.keys()})  # noqa: SIM118
        assert shapes[0] == shapes[1]
        assert all(0 not in shape for shape in shapes[0].values())


def test_every_rank_has_its_log_and_only_the_first_writes(launched):
    _, folder = launched
    run = RunDirectory(folder / "imdb-4")
    assert run.log_of(1).exists()
    steps = [json.loads(line)["step"] for line in run.train_log.read_text().splitlines()]
    assert steps == sorted(set(steps)), "a line a step"
    events = [json.loads(line)["event"] for line in run.events.read_text().splitlines()]
    assert events.count("training") == events.count("finished") == 1


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_does_not_depend_on_the_number_of_processes(alone, world_size, tmp_path):
    from finelaunch.evaluation.again import evaluate_again
    from finelaunch.training.placement import Placement

    profile = "cpu_ddp"
    processes = f"launch.num_processes_per_node={world_size}"
    folders = [alone / recipe.split("/")[0] for recipe in TASKS]
    jobs = [{"evaluate": str(folder), "profile": profile, "overrides": [processes]} for folder in folders]
    for folder, said in zip(folders, run_jobs(tmp_path, jobs, world_size), strict=True):
        one, _ = evaluate_again(folder / "model", None, Placement("cpu", "fp32", 1, 1))
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for of_rank in said:
            figures = of_rank["figures"]
            assert figures["loss"] == pytest.approx(one["loss"], rel=LIMIT)
            counted = {key: value for key, value in one.items() if key not in ("loss", "perplexity")}
            assert {key: figures[key] for key in counted} == json.loads(json.dumps(counted))
            assert [row["id"] for row in of_rank["predictions"]] == [row["id"] for row in rows]
            if "causal" not in figures["task"]:
                assert [row["prediction"] for row in of_rank["predictions"]] == [row["prediction"] for row in rows]


LIES = {
    "DeepSpeed with use_cpu": ("cpu_zero2", ["use_cpu", "group of cpus"], "asked for name zero2, but name ddp ran"),
    "another stage": ("cpu_zero3", ["stage 2"], "asked for name zero3, but name zero2 ran"),
    "bf16 from somewhere": ("cpu_ddp", ["bf16"], "asked for precision fp32, but precision bf16 ran"),
    "weights in 16 bit": ("cpu_ddp", ["half weights"], "asked for dtype float32, but dtype bfloat16 ran"),
    "another global batch": ("cpu_ddp", ["double accumulation"], "global_batch_size 8, but global_batch_size 16 ran"),
    "several processes that each train alone": (
        "cpu_ddp",
        ["no use_cpu", "group without cpu"],
        "asked for name ddp, but name single ran",
    ),
}


def test_what_silently_runs_something_else_is_stopped(tmp_path):
    """Each takes one guard away, so that the stack runs what it runs without saying so."""
    jobs = [
        {
            "recipe": "imdb/smoke",
            "profile": profile,
            "folder": str(tmp_path / f"lie-{number}"),
            "overrides": ["training.max_steps=1", "evaluation.base=false", *fixed("imdb/smoke")],
            "faults": faults,
        }
        for number, (profile, faults, _) in enumerate(LIES.values())
    ]
    # DeepSpeed's group cannot be made after another one of the process, so the two kinds take a launch each.
    said = []
    for kind in ("cpu_ddp", "cpu_zero"):
        chosen = [number for number, job in enumerate(jobs) if job["profile"].startswith(kind)]
        outcomes = run_jobs(tmp_path / kind, [jobs[number] for number in chosen])
        said += zip(chosen, outcomes, strict=True)
    for number, outcome in said:
        lie, (_, _, sentence) = list(LIES.items())[number]
        for of_rank in outcome:
            assert of_rank["error"] is not None, lie
            assert of_rank["error"].startswith("engine: asked for"), (lie, of_rank)
            assert sentence in of_rank["error"], (lie, of_rank)
            assert of_rank["exit_code"] == 1
        assert "finished" not in Path(jobs[number]["folder"], "events.jsonl").read_text()


def test_counting_only_a_ranks_own_targets_would_change_the_gradient(alone, tmp_path):
    """average_tokens_across_devices=False: equal counts hide it, answers of different lengths do not."""
    recipe = "domain_assistant/smoke"
    job = {"recipe": recipe, "profile": "cpu_ddp", "folder": str(tmp_path / "run"), "overrides": fixed(recipe)}
    ((first, _),) = run_jobs(tmp_path, [{**job, "faults": ["own tokens only"]}])
    assert first["error"] is None
    loss, gradient = difference(alone / "domain_assistant", tmp_path / "run")
    assert np.isfinite(loss)
    assert gradient > 1e-3
