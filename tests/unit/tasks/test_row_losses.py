"""The loss of a row is a property of the row: of no neighbour, no padding, no cut of the batch."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    set_seed,
)

from finelaunch.tasks import (
    CausalLM,
    CausalLMSection,
    QuestionAnswering,
    QuestionAnsweringSection,
    TextClassification,
    TextClassificationSection,
)
from finelaunch.tasks.base import IGNORED, pad, pad_inputs

QA = QuestionAnswering(QuestionAnsweringSection(name="question_answering"))
CLASSES = TextClassification(TextClassificationSection(name="text_classification"))
LM = CausalLM(CausalLMSection(name="causal_lm"))
LENGTHS = (5, 23, 11, 2, 17, 8)
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SHAPE |= {"vocab_size": 600, "max_position_embeddings": 64, "attn_implementation": "eager"}


def rows(name: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(7, 600, (length,), generator=generator).tolist()
        row: dict[str, Any] = {"input_ids": ids, "token_type_ids": [0] * length}
        if name == "lm":
            row = {"input_ids": ids, "labels": [IGNORED] * (length // 2) + ids[length // 2 :]}
            row["labels"][0] = IGNORED
        elif name == "qa":
            row["labels"] = [length // 2, length - 1]
        else:
            row["labels"] = number % 3
        made.append(row)
    return made


def case(name: str) -> tuple[Any, Any]:
    set_seed(3)
    if name == "qa":
        return QA, AutoModelForQuestionAnswering.from_config(AutoConfig.for_model("bert", **SHAPE)).eval()
    if name == "classes":
        config = AutoConfig.for_model("bert", **SHAPE, id2label={0: "a", 1: "b", 2: "c"})
        return CLASSES, AutoModelForSequenceClassification.from_config(config).eval()
    if name == "decoder":
        shape = {**SHAPE, "pad_token_id": 0, "id2label": {0: "a", 1: "b", 2: "c"}}
        return CLASSES, AutoModelForSequenceClassification.from_config(AutoConfig.for_model("llama", **shape)).eval()
    return LM, AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE)).eval()


def losses(task: Any, model: Any, some: list[dict[str, Any]], tokenizer: Any, left: bool = False) -> torch.Tensor:
    batch = task.collate(some, tokenizer)
    if left:
        batch = {**pad_inputs(some, tokenizer, left=True), "labels": pad(some, "labels", IGNORED, left=True)}
    labels = batch.pop("labels")
    if "token_type_ids" in batch and model.config.model_type != "bert":
        del batch["token_type_ids"]
    return task.row_losses(model(**batch), labels)


@pytest.mark.parametrize("name", ["qa", "classes", "lm", "decoder"])
def test_a_loss_does_not_depend_on_the_rows_beside_it(bpe: Any, name: str) -> None:
    task, model = case(name)
    task.prepare(model)
    data = rows(name)
    with torch.no_grad():
        alone = torch.cat([losses(task, model, [row], bpe) for row in data])
        for some in ([0, 1, 2, 3, 4, 5], [5, 3], [2, 0, 4], [1, 3]):
            together = losses(task, model, [data[index] for index in some], bpe)
            torch.testing.assert_close(together, alone[some], rtol=1e-5, atol=1e-5)
    assert alone.min() > 0


def test_without_the_mask_a_question_does_depend_on_them(bpe: Any) -> None:
    task, model = case("qa")
    data = rows("qa")
    with torch.no_grad():
        alone, together = losses(task, model, data[:1], bpe), losses(task, model, data, bpe)[:1]
    assert abs(float(alone - together)) > 0.1


def test_the_mask_bears_a_model_called_without_one(bpe: Any) -> None:
    task, model = case("qa")
    task.prepare(model)
    ids = torch.tensor([rows("qa")[0]["input_ids"]])
    assert model(input_ids=ids)["start_logits"].isfinite().all()


def test_padding_on_the_left_gives_the_same_loss_of_a_language_model(bpe: Any) -> None:
    task, model = case("lm")
    data = rows("lm")
    batch = pad_inputs(data, bpe, left=True)
    assert batch["attention_mask"].sum(-1).tolist() == list(LENGTHS)
    assert [int(mask[-1]) for mask in batch["attention_mask"]] == [1] * len(data)
    with torch.no_grad():
        left, right = losses(task, model, data, bpe, left=True), losses(task, model, data, bpe)
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["qa", "classes", "lm"])
def test_each_loss_is_the_cross_entropy_of_its_targets(bpe: Any, name: str) -> None:
    task, model = case(name)
    data = rows(name)
    batch = task.collate(data, bpe)
    labels = batch.pop("labels")
    with torch.no_grad():
        outputs = model(**batch)
    for index, loss in enumerate(task.row_losses(outputs, labels)):
        if name == "qa":
            pairs = [
                (outputs["start_logits"][index], labels[index, 0]),
                (outputs["end_logits"][index], labels[index, 1]),
            ]
        elif name == "classes":
            pairs = [(outputs["logits"][index], labels[index])]
        else:
            logits, targets = outputs["logits"][index, :-1], labels[index, 1:]
            pairs = [(logits[at], target) for at, target in enumerate(targets) if target != IGNORED]
            whole = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
            torch.testing.assert_close(loss, whole)
        wanted = sum(-logits.double().log_softmax(-1)[target] for logits, target in pairs)
        assert float(loss) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("name", ["qa", "classes", "lm"])
def test_rows_without_targets_give_nothing_and_no_gradient(bpe: Any, name: str) -> None:
    task, model = case(name)
    data = rows(name)
    ignored = [{**row, "labels": [IGNORED] * len(row["labels"]) if name != "classes" else IGNORED} for row in data]
    loss = losses(task, model, ignored[:3], bpe)
    assert loss.tolist() == [0.0, 0.0, 0.0]
    loss.sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())

    def gradient(some: list[dict[str, Any]]) -> list[torch.Tensor]:
        model.zero_grad()
        task_losses = losses(task, model, some, bpe)
        task_losses.sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    if name == "qa":
        task.prepare(model)
    with_ignored, without = gradient([data[0], ignored[3], data[2]]), gradient([data[0], data[2]])
    for one, other in zip(with_ignored, without, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_half_precision_logits_give_a_loss_in_fp32(bpe: Any) -> None:
    task, model = case("lm")
    batch = task.collate(rows("lm"), bpe)
    labels = batch.pop("labels")
    loss = task.row_losses({"logits": model(**batch)["logits"].bfloat16()}, labels)
    assert loss.dtype == torch.float32
    loss.sum().backward()
