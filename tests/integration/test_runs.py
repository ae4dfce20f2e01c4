"""Whole runs of the three tasks: what the run directory holds, and that it can be used elsewhere."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from integration.runs import curve, run_recipe

from finelaunch.evaluation.again import evaluate_again
from finelaunch.evaluation.generate import Generation
from finelaunch.evaluation.predict import predict_inputs, read_inputs
from finelaunch.run.files import read_lines
from finelaunch.training.placement import Placement

pytestmark = pytest.mark.integration

CPU = Placement(device="cpu", precision="fp32", per_device_batch_size=1, gradient_accumulation_steps=1)
SMALL_BATCHES = Placement("cpu", "fp32", 1, 1, per_device_eval_batch_size=3)
FILES = [
    "recipe.yaml",
    "manifest.json",
    "events.jsonl",
    "train_log.jsonl",
    "data/data_report.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/README.md",
    "model/finelaunch.json",
    "predictions.jsonl",
    "metrics.json",
    "logs/rank_0.log",
]
RECIPES = ("imdb/smoke", "squad_v2/smoke", "domain_assistant/smoke")
ROW_KEYS = {
    "imdb/smoke": {"id", "prediction", "scores", "reference"},
    "squad_v2/smoke": {"id", "prediction", "best_span", "no_answer_score", "reference", "group"},
    "domain_assistant/smoke": {"id", "prediction", "prompt", "reference", "loss", "num_target_tokens"},
}
FIGURES = {
    "imdb/smoke": {"accuracy", "f1_macro", "f1_micro", "per_class", "confusion_matrix"},
    "squad_v2/smoke": {
        *(
            [
                "exact_match",
                "f1",
                "total",
                "HasAns_exact",
                "HasAns_f1",
                "HasAns_total",
                "NoAns_exact",
                "NoAns_f1",
                "NoAns_total",
            ]
        ),
        *(["best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh", "exact_match_at_zero", "f1_at_zero"]),
        *(["threshold", "no_answer_auc", "always_no_answer"]),
    },
    "domain_assistant/smoke": {"loss", "perplexity", "num_target_tokens"},
}
TRAIN = {
    "loss",
    "steps",
    "samples_per_second",
    "tokens_per_second",
    "peak_host_bytes",
    "peak_device_bytes",
    "best_step",
    "kept_step",
    "stopped_early",
    "model_bytes",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {name: run_recipe(name, tmp_path_factory.mktemp("runs") / "run") for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_leaves_what_the_contract_names(name, runs):
    run = runs[name]
    for file in FILES:
        assert (run.path / file).stat().st_size > 0, file
    assert list(run.tensorboard.glob("events.*"))
    assert not run.lock.exists()
    metrics = json.loads(run.metrics.read_text())
    assert set(metrics) == {"task", "base", "validation", "eval", "train", "seconds"}
    for part in ("base", "validation", "eval"):
        assert set(metrics[part]) >= FIGURES[name] | {"loss"}
    assert set(metrics["train"]) == TRAIN
    assert list(metrics["seconds"]) == ["prepare", "load", "base", "set_up", "train", "evaluate"]
    manifest = json.loads(run.manifest.read_text())
    engine = manifest["engine"]
    assert (engine["name"], engine["world_size"], engine["device"], engine["dtype"]) == ("single", 1, "cpu", "float32")
    assert engine["global_batch_size"] == 8
    assert manifest["parameters"]["total"] == manifest["parameters"]["trainable"] > 10_000
    assert manifest["data"]["train"]["licence"] == "Apache-2.0"
    log = read_lines(run.train_log)
    assert set(log[0]) == {
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "samples_per_second",
        "padding_fraction",
        "checkpoint_blocked_seconds",
        "checkpoint_total_seconds",
    }
    saved = [event for event in read_lines(run.events) if event["event"] == "saved"]
    for key in ("blocked_seconds", "total_seconds"):
        assert sum(row[f"checkpoint_{key}"] for row in log) == pytest.approx(sum(one[key] for one in saved), abs=0.01)
    assert log[-1]["step"] <= metrics["train"]["steps"]
    rows = read_lines(run.predictions)
    assert len({row["id"] for row in rows}) == len(rows) == manifest["data"]["test"]["num_examples"]
    assert all(set(row) == ROW_KEYS[name] for row in rows)


@pytest.mark.parametrize("name", RECIPES)
def test_training_lowers_the_loss(name, runs):
    losses = [row["loss"] for row in read_lines(runs[name].train_log)]
    assert min(losses[1:]) < losses[0]
    if name != "imdb/smoke":  # reviews need more than a few steps of a tiny model
        metrics = json.loads(runs[name].metrics.read_text())
        assert metrics["eval"]["loss"] < metrics["base"]["loss"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_evaluates_the_same_elsewhere_and_for_any_batch_size(name, runs, tmp_path):
    """The run alone is copied, as to another machine."""
    copy = tmp_path / "copied"
    shutil.copytree(runs[name].path, copy, ignore=shutil.ignore_patterns("checkpoints"))
    expected = json.loads(runs[name].metrics.read_text())["eval"]
    for placement in (CPU, SMALL_BATCHES):
        figures, _ = evaluate_again(copy / "model", None, placement)
        assert figures.pop("task")
        assert set(figures) == set(expected)
        for key, value in expected.items():
            assert figures[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key


def test_predictions_of_single_inputs(runs):
    how = Generation(max_new_tokens=5)
    row = predict_inputs(runs["imdb/smoke"].model, read_inputs({"text": "Dull."}, None), how, CPU)[0]
    assert row["prediction"] in ("negative", "positive")
    assert sum(row["scores"].values()) == pytest.approx(1.0, abs=1e-5)
    asked = {"question": "Who runs?", "context": "A fox runs. " * 60}
    row = predict_inputs(runs["squad_v2/smoke"].model, read_inputs(asked, None), how, CPU)[0]
    assert row["prediction"] == "" or row["prediction"] in asked["context"]
    assert row["best_span"] in asked["context"]
    row = predict_inputs(runs["domain_assistant/smoke"].model, read_inputs({"text": "Why?"}, None), how, CPU)[0]
    assert isinstance(row["prediction"], str)


def test_predict_gives_what_the_run_gave_for_the_same_rows(runs, tmp_path):
    run = runs["imdb/smoke"]
    from finelaunch.data.sources import resolve

    test_file = resolve("package:finelaunch/data/samples/imdb/test.jsonl", "", "")
    inputs = tmp_path / "inputs.jsonl"
    inputs.write_text(test_file.read_text(encoding="utf-8"), encoding="utf-8")
    rows = predict_inputs(run.model, read_inputs({}, inputs), Generation(), SMALL_BATCHES)
    expected = read_lines(run.predictions)
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    for row, before in zip(rows, expected, strict=True):
        assert row["scores"] == pytest.approx(before["scores"], abs=2e-6)


def test_generation_is_greedy_by_default_reproducible_by_seed_and_independent_of_the_batch(runs):
    model = runs["domain_assistant/smoke"].model
    texts = ["How do I cancel a job?", "Why?", "My job is pending for two days and nobody answers, what can I do?"]
    inputs = [{"text": text, "__place__": "test"} for text in texts]

    def answers(placement=CPU, asked=inputs, **how):
        return [
            row["prediction"] for row in predict_inputs(model, asked, Generation(max_new_tokens=8, **how), placement)
        ]

    alone = [answers(asked=[row])[0] for row in inputs]
    assert answers(SMALL_BATCHES) == alone, "left padding must not change an answer"
    drawn = answers(temperature=1.5, seed=1)
    assert drawn == answers(temperature=1.5, seed=1)
    assert drawn != answers(temperature=1.5, seed=2)
    assert answers(temperature=1.5, top_k=1, seed=3) == alone


METRIC = """
import datasets
import evaluate


class Share(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"equal": sum(p == r for p, r in zip(predictions, references)) / len(references)}
"""


def test_a_recipe_may_name_a_metric_of_the_evaluate_library(runs, tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    (folder / "share.py").write_text(METRIC)
    named = f"evaluation.metrics=[{folder}]"
    run = run_recipe("imdb/smoke", tmp_path / "run", named, "training.max_steps=2", "evaluation.base=false")
    figures = json.loads(run.metrics.read_text())["eval"]
    assert figures["share.equal"] == figures["accuracy"]


def test_the_model_loads_in_plain_transformers(runs):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(runs["imdb/smoke"].model)
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_a_terminal_gets_a_bar_and_no_wall_of_warnings(tmp_path):
    """The real command under a pseudo-terminal."""
    import pty

    controller, terminal = pty.openpty()
    words = [
        sys.executable,
        "-m",
        "finelaunch",
        "train",
        "imdb/smoke",
        "--on",
        "cpu",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(words, stdout=terminal, stderr=terminal, stdin=terminal)
    os.close(terminal)
    shown = b""
    try:
        while block := os.read(controller, 65536):
            shown += block
    except OSError:
        pass
    assert process.wait(timeout=120) == 0
    text = shown.decode()
    assert "tokens/s" in text
    assert "\x1b[" in text, "a bar moves the cursor"
    for noise in ("FutureWarning", "UserWarning", "Some weights", "it/s]"):
        assert noise not in text


def test_a_deterministic_run_uses_deterministic_kernels_and_dropout_of_its_own(tmp_path):
    import torch

    words = ("training.max_steps=4", "training.logging_steps=1", "evaluation.base=false")
    try:
        curves = [
            curve(run_recipe("imdb/smoke", tmp_path / str(number), *words, "training.deterministic=true"))
            for number in range(2)
        ]
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert curves[0] == curves[1]
