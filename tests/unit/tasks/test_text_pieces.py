"""Plain text is learnt whole: every token a target once, in pieces where it is long, and measured as one."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tokenizers import processors

from finelaunch.data.sources import Rows
from finelaunch.tasks import CausalLM, CausalLMSection
from finelaunch.tasks.base import IGNORED
from finelaunch.tasks.conversations import TEXT

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
LONG = "The queue is long, naïvely counted 映. " * 30


@pytest.fixture
def tokenizer(bpe: Any) -> Any:
    import copy

    return copy.deepcopy(bpe)


def task(**settings: Any) -> CausalLM:
    return CausalLM(CausalLMSection(name="causal_lm", **settings))


def text(content: str, identity: str = "a") -> dict[str, Any]:
    return {"id": identity, "messages": [{"role": TEXT, "content": content}], "topic": ""}


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("max_length", [16, 17, 64, 4096])
def test_every_token_but_the_first_is_a_target_once(
    tokenizer: Any, template: str | None, begins: bool, max_length: int
) -> None:
    tokenizer.chat_template = template
    if begins:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            "[BOS] $A", "[BOS] $A [BOS] $B", [("[BOS]", tokenizer.bos_token_id)]
        )
    bos = [tokenizer.bos_token_id] if begins else []
    whole = [*bos, *tokenizer(LONG, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    encoded = task(max_length=max_length).encode([text("Hi"), text(LONG, "b")], tokenizer)
    pieces = [encoded.features[row] for row in np.flatnonzero(encoded.features.column("example") == 1)]
    assert [label for piece in pieces for label in piece["labels"] if label != IGNORED] == whole[1:]
    for piece, following in pairwise(pieces):
        assert len(piece["input_ids"]) == max_length
        assert following["input_ids"][0] == piece["input_ids"][-1]
    for piece in pieces:
        assert piece["labels"][0] == IGNORED
        assert (piece["labels"][1:] == piece["input_ids"][1:]).all()
    said = f"1 of 2 rows are texts of more than task.max_length {max_length} tokens, which were cut into {len(pieces)} "
    assert encoded.notes == ((said + "pieces; nothing of them is lost",) if len(pieces) > 1 else ())


def test_texts_and_conversations_stand_beside_each_other(tokenizer: Any) -> None:
    asked = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    rows = [text("It rains."), {"id": "b", "messages": asked, "topic": ""}]
    features = task().encode(rows, tokenizer).features
    assert tokenizer.decode(features[0]["input_ids"]) == "It rains.[EOS]"
    assert tokenizer.decode(features[1]["input_ids"]) == "Input: Hi\nOutput: Yes.[EOS]"


def test_a_shape_that_has_no_effect_is_said(tokenizer: Any) -> None:
    assert task(shape="chat").encode([text("It rains.")], tokenizer).notes == (
        "task.shape chat has no effect on plain text",
    )
    assert task(shape="chat").stop_ids(tokenizer) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_model_goes_on_after_the_tokens_that_it_has_learnt(
    tokenizer: Any, sample: Callable[[str], Rows], template: str | None
) -> None:
    tokenizer.chat_template = template
    lm = task(max_length=4096)
    examples = lm.read(sample("domain_assistant/handbook_test.jsonl"), {}, {"plain_text": True})
    features = lm.encode(examples, tokenizer).features
    results = {"loss_sum": np.ones(len(features)), "num_targets": np.full(len(features), 2)}
    for row, prediction in enumerate(lm.measure(examples, features, results, {}, None).predictions):
        (beginning,) = prediction["prompt"]
        assert beginning["content"] + prediction["reference"] == examples[row]["messages"][0]["content"]
        prompt = lm.prompt_ids(prediction["prompt"], tokenizer)
        assert features.at("input_ids", row)[: len(prompt)].tolist() == prompt
        asked = lm.go_on({"text": beginning["content"]}, "1")["messages"]
        assert lm.prompt_ids(asked, tokenizer) == prompt


def test_the_pieces_of_a_text_are_measured_together(tokenizer: Any) -> None:
    lm = task(max_length=64)
    rows = [text(LONG), text("Hi there.", "b")]
    features = lm.encode(rows, tokenizer).features
    counts = np.array([(features.at("labels", row) != IGNORED).sum() for row in range(len(features))])
    losses = counts * np.arange(1.0, len(features) + 1)
    measured = lm.measure(rows, features, {"loss_sum": losses, "num_targets": counts}, {}, None)
    whole = lm.encode(rows[:1], tokenizer).features
    first = len(whole)
    assert [row["id"] for row in measured.predictions] == ["a", "b"]
    assert measured.predictions[0]["num_target_tokens"] == counts[:first].sum()
    assert measured.predictions[0]["loss"] == pytest.approx(losses[:first].sum() / counts[:first].sum(), abs=1e-6)
    assert measured.metrics["num_target_tokens"] == counts.sum()


def test_one_text_is_one_group() -> None:
    lm = task()
    assert lm.group(text("It  rains.\n")) == lm.group(text("It rains."))
    assert lm.group({**text("It rains."), "topic": "weather"})[0] == "weather"
