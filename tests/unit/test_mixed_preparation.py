"""Several sources of a split through the preparation: held out before repeated, counted, named, and kept apart."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finelaunch.data.section import DataSection, SourceSection, SplitSection
from finelaunch.errors import BadInput
from finelaunch.models.section import ModelSection, TokenizerSection
from finelaunch.preparation import Prepared, ReadSplits, prepare, read_splits
from finelaunch.section.base import Section
from finelaunch.section.document import Document
from finelaunch.tasks import CausalLMSection, QuestionAnsweringSection, TextClassificationSection, task_for

CLASSES = TextClassificationSection(name="text_classification", max_length=64)
SCRATCH = ModelSection(init="scratch", config={"model_type": "bert"}, tokenizer=TokenizerSection(vocab_size=300))
DOCUMENT = Document({}, {}, "recipe.yaml")
PLACE = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINELAUNCH_CACHE", str(tmp_path / "cache"))


def texts(word: str, count: int, labels: str = "ab") -> list[dict[str, Any]]:
    return [{"text": f"{word} number {n}", "label": labels[n % len(labels)]} for n in range(count)]


@pytest.fixture
def source(tmp_path: Path) -> Any:
    def write(name: str, rows: list[dict[str, Any]], **more: Any) -> SourceSection:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SourceSection(path=str(path), **more)

    return write


def read(task: Section = CLASSES, **splits: Any) -> ReadSplits:
    return read_splits(DataSection(**splits), task_for(task), DOCUMENT)  # type: ignore[arg-type]


def run(**splits: Any) -> Prepared:
    return prepare(DataSection(**splits), SCRATCH, task_for(CLASSES), CLASSES.model_dump(), DOCUMENT)


def test_a_list_without_weights_is_the_rows_one_after_the_other(source: Any) -> None:
    found = read(train=[source("a", texts("a", 30)), source("b", texts("b", 10))], test=source("t", texts("t", 4)))
    ids = [example["id"] for name in PLACE[:2] for example in found.examples[name]]
    assert sorted(ids) == sorted([f"a/{n}" for n in range(30)] + [f"b/{n}" for n in range(10)])
    assert Counter(example["source"] for example in found.examples["validation"]) == {"a": 3, "b": 1}
    sources = found.report["train"]["sources"]
    assert {
        name: (about["num_rows"], about["num_held_out"], about["num_taken"]) for name, about in sources.items()
    } == {
        "a": (30, 3, 27),
        "b": (10, 1, 9),
    }
    assert found.report["train"]["notes"] == []
    assert "weight" not in sources["a"]
    assert "source" not in found.examples["test"][0]


def test_weights_decide_how_much_is_seen_and_it_is_said(source: Any) -> None:
    train = [source("big", texts("big", 100), weight=1), source("small", texts("small", 20), weight=3, licence="CC0")]
    found = read(train=train, test=source("t", texts("t", 4)))
    counts = Counter(example["id"] for example in found.examples["train"])
    by_source = Counter(example["source"] for example in found.examples["train"])
    assert by_source == {"big": 27, "small": 81}  # 108 rows stay, a quarter and three of them
    assert {counts[key] for key in counts if key.startswith("small/")} == {4, 5}
    assert max(counts[key] for key in counts if key.startswith("big/")) == 1
    assert found.report["train"]["notes"] == [
        "big: 27 of the 108 rows of an epoch (weight 1); 63 of its 90 rows are never seen",
        "small: 81 of the 108 rows of an epoch (weight 3); each of its 18 rows is seen 4 times an epoch, 9 of them "
        "once more",
    ]
    small = found.report["train"]["sources"]["small"]
    assert (small["weight"], small["share"], small["num_taken"]) == (3, 0.75, 81)
    assert found.report["train"]["licence"] == "small: CC0"
    assert found.report["train"]["num_repeated"] == 0
    assert found.report["train"]["num_examples"] == len(found.examples["train"]) == 108


def test_what_is_repeated_by_its_weight_is_never_held_out(source: Any) -> None:
    rows = [{**row, "text": row["text"] + " " * (n % 3)} for n, row in enumerate(texts("a", 40) * 2)]
    train = [source("a", rows, weight=0.01), source("b", texts("b", 30) + texts("a", 12), weight=0.99)]
    task = task_for(CLASSES)
    for fraction in (0.05, 0.3):
        found = read_splits(DataSection(train=train, validation_fraction=fraction), task, DOCUMENT)
        groups = {name: {task.group(e)[0] for e in found.examples[name]} for name in PLACE[:2]}
        assert groups["validation"]
        assert not groups["train"] & groups["validation"]
        assert found.report["validation"]["num_also_in_train"] == 0
        ids = [example["id"] for example in found.examples["validation"]]
        assert len(ids) == len(set(ids))
        assert {example["source"] for example in found.examples["validation"]} == {"a", "b"}


def test_articles_and_topics_stay_whole_across_sources(source: Any) -> None:
    def rows(word: str) -> list[dict[str, str]]:
        return [{"prompt": f"{word} {n}?", "completion": "So.", "topic": f"topic {n % 6}"} for n in range(30)]

    task = CausalLMSection(name="causal_lm", max_length=64)
    found = read(task, train=[source("a", rows("a"), weight=1), source("b", rows("b"), weight=2)])
    topics = {name: {example["topic"] for example in found.examples[name]} for name in PLACE[:2]}
    assert topics["validation"]
    assert not topics["train"] & topics["validation"]


def test_questions_of_two_sources_with_the_same_ids_stay_apart(source: Any) -> None:
    row = {"context": "It is red.", "question": "What?", "answers": {"text": ["red"], "answer_start": [6]}}
    rows = [{**row, "id": str(n), "title": f"t{n}"} for n in range(4)]
    task = QuestionAnsweringSection(name="question_answering", max_length=64, stride=8, max_question_length=8)
    found = read(task, train=source("t", rows), test=[source("a", rows), source("b", rows)])
    assert [example["id"] for example in found.examples["test"]] == [f"{s}/{n}" for s in "ab" for n in range(4)]


def test_max_samples_is_per_source(source: Any) -> None:
    train = [source("a", texts("a", 50), max_samples=20), source("b", texts("b", 9), max_samples=12)]
    found = read(train=train, validation=source("v", texts("v", 4)))
    assert Counter(example["source"] for example in found.examples["train"]) == {"a": 20, "b": 9}
    assert found.report["train"]["notes"] == ["b: max_samples 12 is more than the 9 rows there are"]
    assert found.report["train"]["num_rows"] == 59


def test_columns_are_per_source(source: Any) -> None:
    other = [{"review": row["text"], "stars": row["label"]} for row in texts("b", 10)]
    train = [source("a", texts("a", 10)), source("b", other, columns={"text": "review", "label": "stars"})]
    assert {example["label"] for example in read(train=train).examples["train"]} == {0, 1}
    with pytest.raises(BadInput, match=r"b\.jsonl: data\.train\[1\]\.columns: there is no column 'text'"):
        read(train=[train[0], source("b", other)])


def test_labels_of_all_training_sources_must_agree(source: Any) -> None:
    a, b = source("a", texts("a", 12)), source("b", texts("b", 12, "abc"))
    assert read(train=[a, b]).facts == {"label_names": ["a", "b", "c"]}
    other, one = source("o", texts("o", 12, "xyz")), source("one", texts("one", 12, "a"))
    with pytest.raises(
        BadInput, match=r"recipe\.yaml: data\.train\[0\]: its labels are a, b, and those of data\.train\[1"
    ):
        read(train=[a, other])
    with pytest.raises(BadInput, match=r"data\.train\[1\]: only the label 'a'; two labels or more; list all labels in"):
        read(train=[a, one])
    stated = TextClassificationSection(name="text_classification", label_names=["b", "a"])
    assert read(stated, train=[a, one]).facts == {"label_names": ["b", "a"]}
    with pytest.raises(BadInput, match="'x' is not a label"):
        read(stated, train=[a, other])


def test_the_faults_of_all_sources_are_said_at_once(source: Any, tmp_path: Path) -> None:
    bad = [*texts("b", 3), {"text": "", "label": "a"}]
    train = [source("a", texts("a", 9)), source("b", bad)]
    test = [SourceSection(path=str(tmp_path / "none.jsonl")), source("c", [{"text": "x", "label": "z"}])]
    with pytest.raises(BadInput) as caught:
        run(train=train, test=test)
    assert [problem.key for problem in caught.value.problems] == ["text", "data.test[0].path", "label"]


def test_a_source_all_of_which_is_held_out_cannot_be_mixed(source: Any) -> None:
    shared = [{"prompt": f"{n}?", "completion": "a", "topic": "shared"} for n in range(2)]
    large = [{"prompt": f"{n}!", "completion": "a", "topic": f"large {n // 40}"} for n in range(80)]
    task = CausalLMSection(name="causal_lm", max_length=64)
    train = [source("a", [*shared, *large], weight=1), source("b", shared, weight=1)]
    with pytest.raises(BadInput, match=r"data\.train\[1\]: nothing is left to train on"):
        read(task, train=train, validation_fraction=0.04)


def test_the_cache_knows_weights_names_and_files_and_reports_what_it_reported(source: Any, tmp_path: Path) -> None:
    a, b = source("a", texts("a", 20), weight=1), source("b", texts("b", 20), weight=2)
    test = [source("t", texts("t", 4)), source("u", texts("u", 4))]
    first = run(train=[a, b], test=test)
    again = run(train=[a, b], test=test)
    assert (first.from_cache, again.from_cache) == (False, True)
    assert first.report == again.report
    sources = first.report["splits"]["train"]["sources"]
    assert {len(about["fingerprint"]) for about in sources.values()} == {64}
    assert first.report["splits"]["train"]["fingerprint"] not in {about["fingerprint"] for about in sources.values()}
    assert [example["id"] for example in first.splits["test"].examples][::4] == ["t/0", "u/0"]
    seen = {first.splits["train"].folder}
    for train in (
        [a, b.model_copy(update={"weight": 3.0})],
        [a.model_copy(update={"name": "c"}), b],
        [b, a],
        [a.model_copy(update={"weight": None}), b.model_copy(update={"weight": None})],
    ):
        other = run(train=train, test=test)
        assert other.splits["train"].folder not in seen
        seen.add(other.splits["train"].folder)
    source("b", texts("changed", 20))
    changed = run(train=[a, b], test=test)
    assert changed.splits["train"].folder not in seen
    prints = changed.report["splits"]["train"]["fingerprint"]
    assert prints != first.report["splits"]["train"]["fingerprint"]


def test_the_same_rows_are_drawn_each_time_and_others_with_another_seed(source: Any) -> None:
    train = [source("a", texts("a", 60), weight=1), source("b", texts("b", 60), weight=4)]

    def ids(seed: int) -> list[str]:
        data = DataSection(train=train, validation=SplitSection(path=train[0].path), seed=seed)
        return [example["id"] for example in read_splits(data, task_for(CLASSES), DOCUMENT).examples["train"]]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)
    assert len(ids(0)) == len(ids(1)) == 120


def test_a_file_of_another_name_gives_the_same_rows_and_is_another_training(source: Any) -> None:
    def prepared(*names: str, weights: tuple[float, float] = (1, 4)) -> Prepared:
        words, both = ("one", "two"), zip(names, weights, strict=True)
        train = [source(name, texts(word, 60), weight=weight) for word, (name, weight) in zip(words, both, strict=True)]
        return run(train=train, test=[source("t", texts("t", 4)), source("u", texts("u", 4))])

    first, renamed, longer = prepared("a", "b"), prepared("z", "y"), prepared("a", "b", weights=(1, 5))
    for split in PLACE:
        found, other = ([example["text"] for example in one.splits[split].examples] for one in (first, renamed))
        assert found == other
    assert renamed.splits["train"].examples[0]["id"].startswith("z/")
    prints = [one.report["splits"]["train"]["fingerprint"] for one in (first, renamed, longer)]
    assert len(set(prints)) == 3
    tests = [one.report["splits"]["test"]["fingerprint"] for one in (first, renamed, longer)]
    assert len(set(tests)) == 1
    sources = [one.report["splits"]["train"]["sources"] for one in (first, renamed)]
    assert [about["fingerprint"] for about in sources[0].values()] == [
        about["fingerprint"] for about in sources[1].values()
    ]
