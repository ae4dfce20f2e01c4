"""Several labels a text: how they are given, their loss, their figures, and what is held out of them."""

from typing import Any

import numpy as np
import pytest
import torch

from finelaunch.data.features import Features
from finelaunch.data.files import label_names
from finelaunch.data.sampler import TrainingRows
from finelaunch.data.sources import Rows
from finelaunch.data.splits import STRATUM_SEPARATOR, hold_out, pooled
from finelaunch.errors import BadInput
from finelaunch.section.base import build
from finelaunch.section.document import Document
from finelaunch.tasks import TextClassificationSection, task_for
from finelaunch.tasks.base import IGNORED
from finelaunch.training.trainer import loss_rule


def task(**settings: Any) -> Any:
    return task_for(TextClassificationSection(**{"name": "text_classification", "multi_label": True, **settings}))


def rows(*labels: Any, column: str = "label", class_names: tuple[str, ...] | None = None) -> Rows:
    texts = [{"text": f"text {number}", column: label} for number, label in enumerate(labels)]
    return Rows(texts, "data.train", "rows.jsonl", class_names=class_names)


def labelled(data: Rows, given: dict[str, str], **settings: Any) -> tuple[list[str], list[list[int]]]:
    own = task(**settings)
    facts = own.facts(data, given)
    return facts["label_names"], [example["labels"] for example in own.read(data, given, facts)]


@pytest.mark.parametrize(
    ("data", "given", "settings", "names", "hot"),
    [
        (rows(["b", "a"], [], ["c"]), {}, {}, ["a", "b", "c"], [[1, 1, 0], [0, 0, 0], [0, 0, 1]]),
        (rows([2, 10], [9]), {}, {}, ["2", "9", "10"], [[1, 0, 1], [0, 1, 0]]),
        (rows([1], [0, 1], class_names=("x", "y")), {}, {}, ["x", "y"], [[0, 1], [1, 1]]),
        (rows("b; a", "", "a"), {}, {"label_separator": ";"}, ["a", "b"], [[1, 1], [0, 0], [1, 0]]),
        (rows("b a", ["a"]), {}, {"label_separator": " "}, ["a", "b"], [[1, 1], [1, 0]]),
        (rows(["a"], ["b"], column="labels"), {}, {}, ["a", "b"], [[1, 0], [0, 1]]),
        (rows(["a"], ["b"], column="tags"), {"label": "tags"}, {}, ["a", "b"], [[1, 0], [0, 1]]),
        (rows(["a"], ["b"], column="tags"), {"labels": "tags"}, {}, ["a", "b"], [[1, 0], [0, 1]]),
        (rows([0], [], ["p"]), {}, {"label_names": ["q", "p"]}, ["q", "p"], [[1, 0], [0, 0], [0, 1]]),
    ],
)
def test_labels(data: Rows, given: dict[str, str], settings: dict[str, Any], names: list[str], hot: Any) -> None:
    assert labelled(data, given, **settings) == (names, hot)


@pytest.mark.parametrize(
    ("settings", "label", "said"),
    [
        ({}, "a", r"is one label: 'a'; a list of names.*set task\.label_separator.*set task\.multi_label: false"),
        ({}, 1, r"is one label: 1; .*multi_label: false"),
        ({}, None, r"label: is missing; a list of names or numbers, empty for a text without label"),
        ({"label_separator": ";"}, "a;x", r"'x' is not a label; one of a, b, or 0 to 1; .*task\.label_names"),
        ({}, ["a", "a"], r"names a label twice"),
        ({}, [0, 1, 0], r"names a label twice; .*not a 0 or 1 for every label"),
        ({}, [["a"]], r"\['a'\] is not a label"),
        ({}, {"a": 1}, r"is one label: \{'a': 1\}; a list"),
    ],
)
def test_what_is_no_list_of_labels_names_the_setting(settings: dict[str, Any], label: Any, said: str) -> None:
    own = task(label_names=["a", "b"], **settings)
    data = rows(["a"], label)
    with pytest.raises(BadInput, match=said):
        own.read(data, {}, own.facts(data, {}))


def test_a_list_where_each_text_has_one_label_names_the_setting() -> None:
    own = task_for(TextClassificationSection(name="text_classification"))
    data = rows(["a"], "b")
    with pytest.raises(BadInput, match=r"is a list: \['a'\]; one label a text; set task\.multi_label: true"):
        own.read(data, {}, own.facts(data, {}))


@pytest.mark.parametrize(
    ("settings", "labels", "said"),
    [
        ({"multi_label": False}, (["a"], ["b"]), r"label: all rows hold lists, .*; set task\.multi_label: true"),
        ({}, ("a;b", "c"), r"label: no row holds a list of labels, the first one 'a;b'; set task\.label_separator"),
        ({"label_separator": ";"}, (1, 2), r"no row holds a list of labels, the first one 1; .*multi_label: false"),
    ],
)
def test_a_file_of_the_other_kind_is_answered_once(settings: dict[str, Any], labels: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        task(**settings).facts(rows(*labels), {})
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label_separator": ";"}, r"label_separator: has no effect without multi_label.*task\.multi_label: true"),
        ({"multi_label": True, "label_separator": ";", "label_names": ["a;b", "c"]}, r"';' stands in the label 'a;b'"),
        ({"label_names": ["a", "b"], "class_weights": {"a": 1.0}}, r"class_weights: no weight for b"),
        (
            {"label_names": ["a", "b"], "class_weights": {"a": 1, "b": 1, "c": 1}},
            r"class_weights: a weight for c, which is no label",
        ),
        ({"class_weights": {"a": 0.0, "b": 1.0}}, r"class_weights: a: 0; a number above 0"),
        ({"class_weights": "balance"}, r"class_weights"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        build(TextClassificationSection, Document({"name": "text_classification", **settings}, {}, "r"))


def outputs_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 3, generator=generator) * 3, (torch.rand(6, 3, generator=generator) < 0.4).long()


def test_the_loss_is_the_binary_cross_entropy_of_every_pair() -> None:
    logits, labels = outputs_and_labels()
    losses = task().row_losses({"logits": logits.bfloat16()}, labels)
    chance = logits.bfloat16().double().sigmoid()
    wanted = -(labels * chance.log() + (1 - labels) * (1 - chance).log())
    torch.testing.assert_close(losses.double(), wanted.sum(-1), rtol=1e-5, atol=1e-6)
    mean = loss_rule(task().row_losses)({"logits": logits.bfloat16()}, labels, (labels != IGNORED).sum())
    torch.testing.assert_close(mean.double(), wanted.mean(), rtol=1e-5, atol=1e-6)
    weights = torch.tensor([2.0, 0.5, 7.0])
    weighted = task().weighted_losses({"logits": logits.bfloat16()}, labels, weights)
    wanted = -(labels * weights * chance.log() + (1 - labels) * (1 - chance).log())
    torch.testing.assert_close(weighted.double(), wanted.sum(-1), rtol=1e-5, atol=1e-6)


def test_rows_that_fill_a_batch_have_no_target_even_where_the_model_gives_no_number(minilm: Any) -> None:
    examples = [{"text": "one two", "labels": [1, 0, 1]}, {"text": "three", "labels": [0, 0, 0]}]
    features = task().encode(examples, minilm).features
    data = TrainingRows(features, IGNORED)
    batch = task().collate([data[0], data[1], data[~0], data[~1]], minilm)
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0], [IGNORED] * 3, [IGNORED] * 3]
    logits = torch.zeros(4, 3)
    logits[2] = float("nan")
    logits.requires_grad_()
    losses = task().row_losses({"logits": logits}, batch["labels"])
    assert losses[:2].tolist() == pytest.approx([3 * np.log(2)] * 2)
    assert losses[2:].tolist() == [0.0, 0.0]
    losses[[0, 1, 3]].sum().backward()
    assert logits.grad is not None
    assert logits.grad[3].tolist() == [0.0] * 3


def test_what_is_asked_has_no_labels_and_takes_any_number(minilm: Any) -> None:
    own = task()
    examples = [own.ask({"text": "one"}, "0"), own.ask({"text": "two"}, "1")]
    features = own.encode(examples, minilm).features
    batch = own.collate([features[0], features[1]], minilm)
    assert own.row_losses({"logits": torch.zeros(2, 5)}, batch["labels"]).isfinite().all()
    scores = np.array([[0.9, 0.2, 0.3, 0.6, 0.1], [0.0, 0.1, 0.2, 0.1, 0.0]], dtype=np.float32)
    measured = own.measure(examples, features, {"scores": scores}, {"label_names": list("abcde")}, 0.6)
    assert [row["prediction"] for row in measured.predictions] == [["a", "d"], []]


def test_a_threshold_is_chosen_once_and_applied_to_other_rows() -> None:
    own, facts = task(), {"label_names": ["a", "b"]}
    examples = [{"id": str(n), "text": "t", "labels": labels} for n, labels in enumerate(([1, 0], [1, 1], [0, 0]))]
    scores = np.array([[0.4, 0.1], [0.3, 0.35], [0.2, 0.05]], dtype=np.float32)
    chosen = own.measure(examples, None, {"scores": scores}, facts, None)
    assert chosen.metrics["threshold"] == pytest.approx(0.25)
    assert (chosen.metrics["f1_micro"], chosen.metrics["f1_micro_at_half"]) == (1.0, 0.0)
    assert [row["prediction"] for row in chosen.predictions] == [["a"], ["a", "b"], []]
    assert chosen.predictions[1]["reference"] == ["a", "b"]
    given = own.measure(examples, None, {"scores": scores}, facts, 0.38)
    assert [row["prediction"] for row in given.predictions] == [["a"], [], []]
    assert given.metrics["threshold"] == 0.38
    assert own.model_config(facts)["problem_type"] == "multi_label_classification"


def features_of(*labels: Any) -> Features:
    return Features.from_lists({"input_ids": [np.array([1])] * len(labels), "labels": list(labels)})


def test_balanced_weights_have_the_mean_one_and_make_labels_count_alike() -> None:
    own = task_for(TextClassificationSection(name="text_classification", class_weights="balanced"))
    facts = {"label_names": ["a", "b", "c"]}
    labels = [0] * 6 + [1] * 3 + [2]
    counts = own.num_per_label(features_of(*labels), facts)
    weights, note = own.label_weights(counts, len(labels))
    assert (counts, note) == ({"a": 6, "b": 3, "c": 1}, "")
    assert np.mean([weights[facts["label_names"][label]] for label in labels]) == pytest.approx(1)
    assert {round(weights[name] * counts[name], 9) for name in counts} == {round(10 / 3, 9)}
    weights, note = own.label_weights({"a": 6, "b": 0, "c": 2}, 8)
    assert weights == pytest.approx({"a": 8 / 12, "b": 1.0, "c": 2.0})
    assert "no row to balance by of the labels b" in note
    logits = torch.randn(3, 3)
    weighted = own.weighted_losses({"logits": logits}, torch.tensor([0, 2, IGNORED]), torch.tensor([2.0, 1.0, 5.0]))
    alike = own.row_losses({"logits": logits}, torch.tensor([0, 2, IGNORED]))
    torch.testing.assert_close(weighted, alike * torch.tensor([2.0, 5.0, 1.0]))


def test_balanced_weights_of_several_labels_make_yes_count_as_much_as_no() -> None:
    own = task(class_weights="balanced")
    features = features_of([1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0])
    counts = own.num_per_label(features, {"label_names": list("abcd")})
    assert counts == {"a": 4, "b": 1, "c": 1, "d": 0}
    weights, note = own.label_weights(counts, 4)
    assert weights == {"a": 1.0, "b": 3.0, "c": 3.0, "d": 1.0}
    assert note.endswith("all rows or none have the labels a, d, which keep the weight 1")


def test_weights_of_the_recipe_must_be_those_of_the_labels_found() -> None:
    own = task(class_weights={"b": 2.0, "a": 1.0})
    own.check_weights({"label_names": ["a", "b"]}, "r.yaml:3")
    assert own.label_weights({"a": 1, "b": 9}, 10) == ({"a": 1.0, "b": 2.0}, "")
    with pytest.raises(
        BadInput, match=r"r.yaml:3: task\.class_weights: no weight for c; one weight for each of a, b, c"
    ):
        own.check_weights({"label_names": ["a", "b", "c"]}, "r.yaml:3")


def test_a_share_of_every_label_is_held_out_although_most_sets_stand_in_one_row() -> None:
    generator = np.random.default_rng(0)
    hot = generator.random((400, 8)) < np.array([0.5, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.05])
    hot[0, 7] = True
    strata = [STRATUM_SEPARATOR.join(str(n) for n in np.flatnonzero(row)) for row in hot]
    assert len(set(strata)) > 80
    stay, out = hold_out([str(n) for n in range(400)], pooled(strata, 0.1), 0.1, seed=0)
    assert len(out) == pytest.approx(40, abs=2)
    assert np.abs(hot[out].mean(axis=0) - hot.mean(axis=0)).max() < 0.13
    assert hot[stay].any(axis=0).all()
    assert pooled(["1", "2", "1", ""], 0.1) == ["1", "2", "1", ""]


@pytest.mark.parametrize("column", ["label", "labels"])
def test_names_that_a_data_set_gives_a_list_of_classes_are_found(column: str) -> None:
    from datasets import ClassLabel, Features, List

    classes = ClassLabel(names=["x", "y"])
    for feature in (List(classes), [classes], classes):
        assert label_names(Features({column: feature}).to_dict(), {}) == ("x", "y")
    assert label_names(Features({"tags": List(classes)}).to_dict(), {}) is None
    assert label_names(Features({"tags": List(classes)}).to_dict(), {"labels": "tags"}) == ("x", "y")


def test_all_labels_are_the_stratum() -> None:
    own = task(label_names=["a", "b"])
    assert own.group({"text": "a  b", "labels": [1, 1]}) == ("a b", f"0{STRATUM_SEPARATOR}1")
    assert own.group({"text": "a b", "labels": [0, 0]}) == ("a b", "")
