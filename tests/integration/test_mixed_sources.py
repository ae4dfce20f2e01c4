"""Whole runs on several sources: figures of each add up to those of all, and what is forgotten is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from integration.runs import run_recipe

from finelaunch.evaluation.again import evaluate_again
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.training.placement import Placement

pytestmark = pytest.mark.integration

CPU = Placement(device="cpu", precision="fp32", per_device_batch_size=1, gradient_accumulation_steps=1)
FEW = ("training.max_steps=3", "training.logging_steps=1")
SAMPLES = Path(__file__).parents[2] / "src/finelaunch/data/samples"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINELAUNCH_CACHE", str(tmp_path / "cache"))


def halves(folder: Path, name: str) -> list[str]:
    """Write the odd and the even rows of a bundled sample into two files."""
    rows = (SAMPLES / name).read_text().splitlines(keepends=True)
    stem = name.replace("/", "_").removesuffix(".jsonl")
    paths = [folder / f"{stem}_{part}.jsonl" for part in ("odd", "even")]
    paths[0].write_text("".join(rows[1:60:2]))
    paths[1].write_text("".join(rows[0:20:2]))
    return [str(path) for path in paths]


def listed(paths: list[str], *weights: float) -> str:
    names = ("old", "new")
    sources: list[dict[str, Any]] = [{"path": path, "name": name} for path, name in zip(paths, names, strict=True)]
    for source, weight in zip(sources, weights, strict=False):
        source["weight"] = weight
    return json.dumps(sources)


def figures(run: RunDirectory) -> dict[str, Any]:
    return json.loads(run.metrics.read_text())


@pytest.mark.usefixtures("cache")
def test_classification_on_two_sources_from_training_to_evaluation(tmp_path: Path) -> None:
    train, test = halves(tmp_path, "imdb/train.jsonl"), halves(tmp_path, "imdb/test.jsonl")
    words = (f"data.train={listed(train, 1, 3)}", f"data.test={listed(test)}")
    run = run_recipe("imdb/smoke", tmp_path / "run", *words, *FEW)
    found, manifest = figures(run), run.read_manifest()

    assert set(found) == {"task", "base", "validation", "eval", "train", "seconds", "forgotten"}
    for part in ("base", "validation", "eval"):
        by_source = found[part]["by_source"]
        assert list(by_source) == ["old", "new"]
        counts = {name: sum(map(sum, one["confusion_matrix"])) for name, one in by_source.items()}
        total = sum(counts.values())
        for name in ("accuracy", "loss"):
            mean = sum(by_source[source][name] * count for source, count in counts.items()) / total
            assert mean == pytest.approx(found[part][name])
        both = [one["confusion_matrix"] for one in by_source.values()]
        summed = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(*both, strict=True)]
        assert summed == found[part]["confusion_matrix"]
        if part != "validation":
            assert counts == {"old": 30, "new": 10}
    for name, lost in found["forgotten"].items():
        assert lost["eval"] < lost["base"] == found["base"]["by_source"][name]["accuracy"]

    about = manifest["data"]["train"]["sources"]
    assert (about["old"]["weight"], about["new"]["weight"]) == (1, 3)
    assert about["old"]["num_taken"] + about["new"]["num_taken"] == manifest["data"]["train"]["num_examples"]
    assert (about["old"]["num_taken"], about["new"]["num_taken"]) == (9, 27)
    seen = "data.train: new: 27 of the 36 rows of an epoch (weight 3); each of its 9 rows is seen 3 times an epoch"
    assert seen in manifest["warnings"]
    assert {row["id"].split("/")[0] for row in read_lines(run.predictions)} == {"old", "new"}
    assert "| new: accuracy |" in (run.model / "README.md").read_text()

    again, source = evaluate_again(run.model, None, CPU)
    assert {**again, "task": None} == {**found["eval"], "task": None}
    assert source == ", ".join(test)
    alone, _ = evaluate_again(run.model, Path(test[1]), CPU)
    assert "by_source" not in alone
    assert alone["accuracy"] == found["eval"]["by_source"]["new"]["accuracy"]


@pytest.mark.usefixtures("cache")
def test_answers_to_questions_of_two_sources_share_one_threshold(tmp_path: Path) -> None:
    path = "package:finelaunch/data/samples/squad_v2/test.json"
    test = [{"path": path, "name": "a", "max_samples": 5}, {"path": path, "name": "b", "max_samples": 7}]
    words = ("data.train.max_samples=17", f"data.test={json.dumps(test)}")
    found = figures(run_recipe("squad_v2/smoke", tmp_path / "run", *words, *FEW))
    by_source = found["eval"]["by_source"]
    assert {name: one["total"] for name, one in by_source.items()} == {"a": 5, "b": 7}
    for name in ("exact_match", "f1"):
        mean = sum(by_source[source][name] * by_source[source]["total"] for source in "ab") / 12
        assert mean == pytest.approx(found["eval"][name])
    assert {one["threshold"] for one in by_source.values()} == {found["validation"]["threshold"]}
    assert "by_source" not in found["validation"]


@pytest.mark.usefixtures("cache")
def test_the_loss_of_answers_of_two_sources_is_that_of_all_their_tokens(tmp_path: Path) -> None:
    path = "package:finelaunch/data/samples/domain_assistant/test.jsonl"
    test = [{"path": path, "name": "a", "max_samples": 3}, {"path": path, "name": "b", "max_samples": 6}]
    words = ("data.train.max_samples=17", f"data.test={json.dumps(test)}", "evaluation.num_generations=2")
    run = run_recipe("domain_assistant/smoke", tmp_path / "run", *words, *FEW)
    found = figures(run)["eval"]
    parts = found["by_source"].values()
    assert found["num_target_tokens"] == sum(one["num_target_tokens"] for one in parts)
    whole = sum(one["loss"] * one["num_target_tokens"] for one in parts)
    assert whole / found["num_target_tokens"] == pytest.approx(found["loss"])
    for name, one in found["by_source"].items():
        rows = [row for row in read_lines(run.predictions) if row["id"].startswith(f"{name}/")]
        assert sum(row["num_target_tokens"] for row in rows) == one["num_target_tokens"]


@pytest.mark.usefixtures("cache")
def test_an_earlier_runs_test_rows_are_asked_for_and_what_they_lose_is_measured(tmp_path: Path) -> None:
    train, test = halves(tmp_path, "imdb/train.jsonl"), halves(tmp_path, "imdb/test.jsonl")

    def words(part: int) -> tuple[str, ...]:
        return (f"data.train.path={train[part]}", f"data.test.path={test[part]}", *FEW)

    first = run_recipe("imdb/smoke", tmp_path / "first", *words(0))
    begin = ("model.init=pretrained", f"model.name_or_path={first.path}", "model.config={}", "model.tokenizer=null")
    second = run_recipe("imdb/smoke", tmp_path / "second", *words(1), *begin)
    warnings = [text for text in second.read_manifest()["warnings"] if "forgotten" in text]
    asked = json.dumps([{"path": test[1]}, {"path": test[0]}])
    assert warnings == [
        f"what is forgotten of {first.path} is not measured: its data.test ({test[0]}) is not among data.test; "
        f"to measure it: data.test='{asked}'"
    ]
    assert "forgotten" not in figures(second)

    third = run_recipe("imdb/smoke", tmp_path / "third", words(1)[0], f"data.test={asked}", *FEW, *begin)
    assert not [text for text in third.read_manifest()["warnings"] if "not measured" in text]
    found = figures(third)
    old = Path(test[0]).stem
    assert found["base"]["by_source"][old]["accuracy"] == figures(first)["eval"]["accuracy"]
    worse = {
        name
        for name, one in found["eval"]["by_source"].items()
        if one["accuracy"] < found["base"]["by_source"][name]["accuracy"]
    }
    assert set(found["forgotten"]) == worse
