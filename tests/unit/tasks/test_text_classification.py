"""Labels of every kind, their order, and the figures of their predictions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput
from finelaunch.section.base import build
from finelaunch.section.document import Document
from finelaunch.tasks.text_classification import TextClassification, TextClassificationSection


def task(**settings: Any) -> TextClassification:
    return TextClassification(TextClassificationSection(name="text_classification", **settings))


def rows(*labels: Any, class_names: tuple[str, ...] | None = None) -> Rows:
    texts = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    return Rows(texts, "data.train", "rows.jsonl", class_names=class_names)


def labelled(data: Rows, **settings: Any) -> tuple[list[str], list[int]]:
    """Return the names of the labels and the number of each row's."""
    own = task(**settings)
    facts = own.facts(data, {})
    return facts["label_names"], [example["label"] for example in own.read(data, {}, facts)]


@pytest.mark.parametrize(
    ("data", "settings", "names", "numbers"),
    [
        (rows("pos", "neg", "pos"), {}, ["neg", "pos"], [1, 0, 1]),
        (rows(1, 0, 2), {}, ["0", "1", "2"], [1, 0, 2]),
        (rows("10", "9", "2"), {}, ["2", "9", "10"], [2, 1, 0]),
        (rows(5, 1, 3), {}, ["1", "3", "5"], [2, 0, 1]),
        (rows(-1, 1, 0), {}, ["-1", "0", "1"], [0, 2, 1]),
        (rows(True, False), {}, ["false", "true"], [1, 0]),
        (rows(1, 0, class_names=("bad", "good")), {}, ["bad", "good"], [1, 0]),
        (rows("good", "bad", class_names=("bad", "good")), {}, ["bad", "good"], [1, 0]),
        (rows(1, "good", 0), {"label_names": ["good", "bad"]}, ["good", "bad"], [1, 0, 0]),
        (rows("1", "0"), {"label_names": ["good", "bad"]}, ["good", "bad"], [1, 0]),
        (rows("x", "y", class_names=("x", "y")), {"label_names": ["y", "x"]}, ["y", "x"], [1, 0]),
        (rows("A", 0, class_names=("x", "y")), {"label_names": ["B", "A"]}, ["B", "A"], [1, 0]),
        (rows(*range(500)), {}, [str(number) for number in range(500)], list(range(500))),
    ],
)
def test_labels(data: Rows, settings: dict[str, Any], names: list[str], numbers: list[int]) -> None:
    assert labelled(data, **settings) == (names, numbers)


def test_numbers_that_the_recipe_orders_otherwise_than_the_data_are_refused() -> None:
    with pytest.raises(BadInput, match=r"0 is 'x' by the data's own names, and task\.label_names has another order"):
        labelled(rows("x", 0, class_names=("x", "y")), label_names=["y", "x"])


def test_the_order_of_labels_is_not_that_of_the_rows() -> None:
    names = ["c", "a", "b", "d"] * 3
    for shift in range(4):
        assert labelled(rows(*names[shift:]))[0] == ["a", "b", "c", "d"]


def test_the_training_rows_settle_the_labels_of_the_others() -> None:
    own = task()
    facts = own.facts(rows("a", "c", "b"), {})
    assert [e["label"] for e in own.read(rows("c", "c"), {}, facts)] == [2, 2]
    with pytest.raises(BadInput, match=r"'d' is not a label; one of a, b, c, or 0 to 2; .*task\.label_names"):
        own.read(rows("d"), {}, facts)
    numbers = own.facts(rows(1, 2, 5), {})
    with pytest.raises(BadInput, match="0 is not a label; one of 1, 2, 5; "):
        own.read(rows(0), {}, numbers)


def test_numbers_of_a_source_that_numbers_the_labels_otherwise_are_read_by_its_names() -> None:
    own = task()
    facts = own.facts(rows(0, 1, class_names=("bad", "good")), {})

    def read(*labels: Any, class_names: tuple[str, ...]) -> list[int]:
        return [example["label"] for example in own.read(rows(*labels, class_names=class_names), {}, facts)]

    assert read(0, 1, "good", class_names=("good", "bad")) == [1, 0, 1]
    assert read(0, 1, class_names=("bad", "good", "mixed")) == [0, 1]
    assert read(0, 1, class_names=("neg", "pos")) == [0, 1]
    with pytest.raises(BadInput, match="'mixed' is not a label; one of bad, good"):
        read(2, 0, class_names=("mixed", "good", "bad"))
    with pytest.raises(BadInput, match="-1 is not a label"):
        read(0, -1, class_names=("good", "bad"))


@pytest.mark.parametrize(
    ("labels", "said"), [(["a", "a"], "only the label 'a'"), ([None, 1.5], "no labels"), ([""], "no labels")]
)
def test_fewer_than_two_labels_are_refused(labels: list[Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        task().facts(rows(*labels), {})


def test_a_label_name_given_twice_is_refused() -> None:
    with pytest.raises(BadInput, match=r"task\.label_names|label_names: a name stands twice"):
        build(TextClassificationSection, Document({"name": "text_classification", "label_names": ["a", "a"]}, {}, "r"))


@pytest.mark.parametrize("name", ["minilm", "bpe"])
def test_texts_are_cut_and_counted(request: pytest.FixtureRequest, sample: Callable[[str], Rows], name: str) -> None:
    tokenizer = request.getfixturevalue(name)
    own = task(max_length=32)
    data = sample("imdb/train.jsonl")
    examples = own.read(data, {}, own.facts(data, {}))
    encoded = own.encode(examples, tokenizer)
    lengths = [len(tokenizer(example["text"], verbose=False)["input_ids"]) for example in examples]
    assert encoded.features.lengths.tolist() == [min(length, 32) for length in lengths]
    num_cut = sum(length > 32 for length in lengths)
    assert encoded.notes == (f"{num_cut} of {len(examples)} texts cut at task.max_length 32",)
    assert encoded.features.column("labels").tolist() == [example["label"] for example in examples]
    assert encoded.features.column("example").tolist() == list(range(len(examples)))
    whole = [example for example, length in zip(examples, lengths, strict=True) if length <= 32]
    assert not whole or own.encode(whole, tokenizer).notes == ()


def test_figures_and_predictions() -> None:
    own = task()
    facts = {"label_names": ["neg", "pos"]}
    examples = [{"id": str(i), "text": "a", "label": label} for i, label in enumerate((0, 1, 1))]
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], dtype=np.float32)
    measured = own.measure(examples, None, {"scores": scores}, facts, None)  # type: ignore[arg-type]
    assert measured.metrics["accuracy"] == pytest.approx(2 / 3)
    assert [row["prediction"] for row in measured.predictions] == ["neg", "pos", "neg"]
    assert measured.predictions[2]["scores"] == {"neg": 0.6, "pos": 0.4}
    assert own.model_config(facts) == {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}


def test_texts_that_differ_in_white_space_stay_together_under_their_label() -> None:
    own = task()
    one, other = ({"text": text, "label": 1} for text in ("a  b\n", "a b"))
    assert own.group(one) == own.group(other) == ("a b", "1")
