"""A model of plain text: trained on pieces, measured by text, and asked to go on with a text wherever it is used."""

import json
from pathlib import Path

import pytest
from integration.runs import run_recipe

from finelaunch.evaluation.again import evaluate_again
from finelaunch.evaluation.generate import Generation
from finelaunch.evaluation.predict import predict_inputs, read_inputs
from finelaunch.reporting.compare_rows import read_rows
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.tasks.conversations import begun
from finelaunch.training.placement import Placement

pytestmark = pytest.mark.integration

CPU = Placement("cpu", "fp32", 1, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("texts")
    steps = ("training.max_steps=6", "training.warmup_steps=0", "evaluation.max_new_tokens=6")
    return run_recipe("domain_assistant/domain_adaptation", folder / "run", *steps)


def test_every_text_is_measured_once_by_all_its_pieces(run: RunDirectory) -> None:
    metrics = json.loads(run.metrics.read_text())
    assert metrics["eval"]["loss"] < metrics["base"]["loss"]
    rows = read_lines(run.predictions)
    assert len(rows) == run.read_manifest()["data"]["test"]["num_examples"] == 4
    tokens = sum(row["num_target_tokens"] for row in rows)
    assert tokens == metrics["eval"]["num_target_tokens"] > 4 * 128
    assert sum(row["loss"] * row["num_target_tokens"] for row in rows) / tokens == pytest.approx(
        metrics["eval"]["loss"], rel=1e-5
    )
    assert read_rows("causal_lm", run.predictions, metrics["eval"])[1] == []
    assert any("pieces; nothing of them is lost" in warning for warning in run.read_manifest()["warnings"])


def test_what_the_run_has_generated_is_what_predict_goes_on_with(run: RunDirectory, tmp_path: Path) -> None:
    answered = [row for row in read_lines(run.predictions) if row["prediction"] is not None]
    assert len(answered) == 2
    file = tmp_path / "inputs.jsonl"
    file.write_text("".join(json.dumps({"text": row["prompt"][0]["content"]}) + "\n" for row in answered))
    asked = predict_inputs(run.model, read_inputs({}, file), Generation(max_new_tokens=6), CPU)
    assert [row["prediction"] for row in asked] == [row["prediction"] for row in answered]
    text = answered[0]["prompt"][0]["content"] + answered[0]["reference"]
    assert begun(text) == (answered[0]["prompt"][0]["content"], answered[0]["reference"])


def test_a_run_evaluates_the_same_elsewhere(run: RunDirectory, tmp_path: Path) -> None:
    expected = json.loads(run.metrics.read_text())["eval"]
    figures, _ = evaluate_again(run.model, None, CPU)
    assert figures == {"task": "causal_lm"} | {key: pytest.approx(value, rel=1e-5) for key, value in expected.items()}
    chapter = tmp_path / "chapter.txt"
    chapter.write_text("A job waits in the queue. " * 40)
    figures, _ = evaluate_again(run.model, chapter, CPU)
    assert figures["num_target_tokens"] > 300
