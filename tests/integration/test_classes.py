"""Runs with several labels a text and with class weights: one curve for every cut, unweighted figures, every verb."""

import json

import numpy as np
import pytest
from integration.runs import curve, run_recipe, signalled, weights_hash
from typer.testing import CliRunner

from finelaunch.cli import app
from finelaunch.errors import Stopped
from finelaunch.evaluation.again import evaluate_again
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.training.placement import Placement

pytestmark = pytest.mark.integration

RECIPE = "support_tickets/smoke"
TAGS = (
    "task.multi_label=true",
    "task.label_separator=;",
    "task.label_names=null",
    "data.train.columns={label: tags}",
    "data.test.columns={label: tags}",
)
WEIGHTS = "task.class_weights={access: 1.5, billing: 0.5, bug: 0.7, cancellation: 4, request: 2}"
NO_DROPOUT = ("model.config.hidden_dropout_prob=0.0", "model.config.attention_probs_dropout_prob=0.0")
EVERY_STEP = (
    *NO_DROPOUT,
    "data.train.max_samples=52",
    "training.logging_steps=1",
    "training.save_strategy=no",
    "training.eval_strategy=no",
    "training.max_grad_norm=0.5",
)
LIMIT = 1e-6
CPU = Placement("cpu", "fp32", 1, 1)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A run with several labels a text, balanced."""
    return run_recipe(RECIPE, tmp_path_factory.mktemp("tagged") / "run", *EVERY_STEP, *TAGS)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A run with one label a text and weights of its own."""
    return run_recipe(RECIPE, tmp_path_factory.mktemp("single") / "run", *EVERY_STEP, WEIGHTS)


@pytest.mark.parametrize("kind", ["tagged", "single"])
def test_the_weighted_loss_does_not_depend_on_the_cut(kind, request, tmp_path):
    whole = request.getfixturevalue(kind)
    own = TAGS if kind == "tagged" else (WEIGHTS,)
    cut = run_recipe(RECIPE, tmp_path / "cut", *EVERY_STEP, *own, "launch.per_device_batch_size=2")
    engine = json.loads(cut.manifest.read_text())["engine"]
    assert engine["gradient_accumulation_steps"] == 4
    assert json.loads(cut.data_report.read_text())["splits"]["train"]["num_features"] % 8
    one, other = (np.array([row[1:] for row in curve(run)]) for run in (whole, cut))
    assert len(one) >= 10
    assert one[:, 0].max() > 1.02 * one[:, 0].min()
    assert (np.abs(one - other) / np.abs(one)).max() <= LIMIT


def test_weights_enter_the_training_loss_and_no_figure(single, tmp_path):
    plain = run_recipe(RECIPE, tmp_path / "plain", *EVERY_STEP, "task.class_weights=none")
    weighted, alike = (json.loads(run.metrics.read_text()) for run in (single, plain))
    assert weighted["base"] == alike["base"]
    assert weighted["eval"]["loss"] != alike["eval"]["loss"]
    assert curve(single)[0][1] != pytest.approx(curve(plain)[0][1], rel=1e-3)
    rows = read_lines(single.predictions)
    measured = -np.mean([np.log(row["scores"][row["reference"]]) for row in rows])
    assert weighted["eval"]["loss"] == pytest.approx(measured, rel=1e-4)
    stated = [json.loads(run.manifest.read_text())["data"] for run in (single, plain)]
    assert stated[0]["train"]["class_weights"]["cancellation"] == 4.0
    assert "class_weights" not in stated[1]["train"]
    assert "class_weights" not in stated[0]["test"]


def test_a_stopped_run_with_weights_ends_in_the_same_weights(tmp_path):
    words = (
        "data.train.max_samples=52",
        "training.save_strategy=steps",
        "training.save_steps=4",
        "evaluation.base=false",
    )
    whole = run_recipe(RECIPE, tmp_path / "whole", *words, *TAGS)
    with signalled(5), pytest.raises(Stopped):
        run_recipe(RECIPE, tmp_path / "stopped", *words, *TAGS)
    stopped = RunDirectory(tmp_path / "stopped")
    assert not stopped.finished()
    stopped = run_recipe(RECIPE, stopped.path, *words, *TAGS)
    assert weights_hash(stopped) == weights_hash(whole)
    assert json.loads(stopped.metrics.read_text())["eval"] == json.loads(whole.metrics.read_text())["eval"]


def test_a_run_with_several_labels_is_measured_and_used_by_every_verb(tagged, single):
    from transformers import AutoConfig

    metrics = json.loads(tagged.metrics.read_text())
    figures, chosen = metrics["eval"], metrics["validation"]["threshold"]
    assert figures["threshold"] == chosen
    assert json.loads(tagged.model_facts.read_text())["threshold"] == chosen
    assert sorted(figures["per_class"]) == ["data", "integration", "mobile", "refund", "team", "urgent"]
    rows = read_lines(tagged.predictions)
    right = {
        name: [row["scores"][name] if name in row["reference"] else 1 - row["scores"][name] for row in rows]
        for name in figures["per_class"]
    }
    assert figures["loss"] == pytest.approx(-np.mean(np.log(list(right.values()))), rel=1e-4)
    assert figures["accuracy"] == pytest.approx(np.mean([row["prediction"] == row["reference"] for row in rows]))
    assert all(row["prediction"] == [name for name, score in row["scores"].items() if score >= chosen] for row in rows)
    report = json.loads(tagged.data_report.read_text())["splits"]
    assert report["test"]["num_per_label"] == {name: one["support"] for name, one in figures["per_class"].items()}
    train = json.loads(tagged.manifest.read_text())["data"]["train"]
    counts, num_rows = report["train"]["num_per_label"], train["num_examples"]
    assert train["class_weights"] == {name: (num_rows - n) / n if n else 1.0 for name, n in counts.items()}
    assert AutoConfig.from_pretrained(tagged.model).problem_type == "multi_label_classification"

    again, _ = evaluate_again(tagged.model, None, CPU)
    assert again.pop("loss") == pytest.approx(figures["loss"], rel=1e-6)
    assert again == {"task": metrics["task"], **{name: value for name, value in figures.items() if name != "loss"}}
    said = CliRunner().invoke(app, ["predict", str(tagged.path), "--text", "The app on my phone", "--on", "cpu"])
    assert said.exit_code == 0, said.output
    asked = ["predict", str(tagged.path), "--text", "The app on my phone", "--on", "cpu", "--json"]
    row = json.loads(CliRunner().invoke(app, asked).output.splitlines()[-1])
    named = [name for name, score in row["scores"].items() if score >= chosen]
    assert row["prediction"] == named
    assert said.output.splitlines()[-1] == (", ".join(named) or "(no label)")
    card = (tagged.model / "README.md").read_text()
    assert "| f1_samples |" in card
    assert "| hamming_loss |" in card
    compared = CliRunner().invoke(app, ["compare", str(tagged.path), str(single.path)])
    assert compared.exit_code == 0, compared.output
    assert "hamming_loss" in compared.output
    assert "task.multi_label" in compared.output
