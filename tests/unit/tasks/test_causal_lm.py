"""Loss on the answers and nothing else, whatever the tokenizer writes around them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput
from finelaunch.tasks.base import IGNORED
from finelaunch.tasks.causal_lm import CausalLM, CausalLMSection

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DIALOGPT = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
STRICT = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "[{{ message.role }}] {{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
REWRITING = (  # earlier answers lose their reasoning once another turn follows
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('</t>')[-1] }}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"plain": None, "chatml": CHATML, "marked": MARKED, "dialogpt": DIALOGPT, "strict": STRICT}
ENDS = {"plain": "[EOS]", "chatml": "<|im_end|>", "marked": "<|im_end|>", "dialogpt": "[EOS]", "strict": "[EOS]"}


@pytest.fixture
def tokenizer(bpe: Any) -> Any:
    import copy

    own = copy.deepcopy(bpe)
    own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return own


def task(**settings: Any) -> CausalLM:
    return CausalLM(CausalLMSection(name="causal_lm", **settings))


def conversation(*contents: str, system: str | None = None, identity: str = "a") -> dict[str, Any]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"id": identity, "messages": messages, "topic": ""}


def answers_in(labels: np.ndarray, tokenizer: Any) -> list[str]:
    """Return the texts of the runs of targets."""
    runs: list[list[int]] = [[]]
    for label in labels:
        runs[-1].append(int(label)) if label != IGNORED else runs.append([])
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "row",
    [
        conversation("How many?", "Two cats, naïvely counted."),
        conversation("Hi", "Hello 映.", "And then?", "Then nothing.", "Why?", "Because\nit ended."),
    ],
)
def test_the_targets_are_the_answers_and_their_end(tokenizer: Any, name: str, row: dict[str, Any]) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    encoded = task().encode([row], tokenizer)
    feature = encoded.features[0]
    wanted = [message["content"] + ENDS[name] for message in row["messages"] if message["role"] == "assistant"]
    assert [text.removeprefix(" ") for text in answers_in(feature["labels"], tokenizer)] == wanted
    is_target = feature["labels"] != IGNORED
    assert (feature["labels"][is_target] == feature["input_ids"][is_target]).all()
    assert feature["labels"][0] == IGNORED
    assert not encoded.notes
    assert [tokenizer.decode(feature["input_ids"]).count(m["content"]) for m in row["messages"]] == [1] * len(
        row["messages"]
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_generation_stops_at_what_an_answer_ends_with(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    feature = task().encode([conversation("How many?", "Two cats.")], tokenizer).features[0]
    last = int(feature["labels"][feature["labels"] != IGNORED][-1])
    assert tokenizer.convert_ids_to_tokens(last) == ENDS[name]
    assert set(task().stop_ids(tokenizer)) == {last, tokenizer.eos_token_id}


def test_an_end_of_turn_that_was_only_added_as_special_counts_too(bpe: Any) -> None:
    import copy

    own = copy.deepcopy(bpe)
    own.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    own.chat_template = CHATML
    encoded = task().encode([conversation("How many?", "Two cats.")], own)
    assert answers_in(encoded.features[0]["labels"], own) == ["Two cats.<|im_end|>"]
    assert not encoded.notes
    assert own.convert_tokens_to_ids("<|im_end|>") in task().stop_ids(own)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_beginning_of_its_training_row(
    tokenizer: Any, sample: Callable[[str], Rows], name: str
) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    lm = task(max_length=4096)
    examples = lm.read(sample("domain_assistant/test.jsonl"), {}, {})
    examples.append(conversation("Hi", "Hello.", "Why?", "It is so.", identity="b"))
    if name != "strict":
        examples.append(conversation("Hi", "Hello.", "Why?", "It is so.", system="Be brief.", identity="c"))
    features = lm.encode(examples, tokenizer).features
    assert features.column("example").tolist() == list(range(len(examples)))
    for index, example in enumerate(examples):
        ids, labels = features.at("input_ids", index), features.at("labels", index)
        last_answer = int(np.flatnonzero(labels == IGNORED)[-1]) + 1
        assert lm.prompt_ids(example["messages"][:-1], tokenizer) == ids[:last_answer].tolist()


def test_the_template_makes_the_text_of_a_row(tokenizer: Any) -> None:
    row = conversation("Hi", "Hello.", "Why?", "So.", system="Be brief.")
    for name in ("chatml", "marked", "dialogpt"):
        tokenizer.chat_template = TEMPLATES[name]
        text = tokenizer.decode(task().encode([row], tokenizer).features[0]["input_ids"])
        assert text == tokenizer.apply_chat_template(row["messages"], tokenize=False).rstrip("\n")


def test_the_end_stays_a_target_where_it_is_the_pad_token_too(tokenizer: Any) -> None:
    import torch

    tokenizer.pad_token = tokenizer.eos_token
    lm = task()
    rows = [conversation("Hi", "Yes."), conversation("Hi there, you", "No, and never again.", identity="b")]
    features = lm.encode(rows, tokenizer).features
    batch = lm.collate([features[0], features[1]], tokenizer)
    ends = (batch["labels"] == tokenizer.eos_token_id).sum(-1)
    assert ends.tolist() == [1, 1]
    assert batch["attention_mask"].sum(-1).tolist() == features.lengths.tolist()
    assert torch.equal(batch["input_ids"][0, features.lengths[0] :].unique(), torch.tensor([tokenizer.eos_token_id]))
    assert (batch["labels"][0, features.lengths[0] :] == IGNORED).all()


def test_a_beginning_that_the_tokenizer_adds_stands_once(tokenizer: Any) -> None:
    lm, row = task(), conversation("Hi", "Yes.", "Why?", "So.")
    without = lm.encode([row], tokenizer).features[0]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "[BOS] $A", "[BOS] $A [BOS] $B", [("[BOS]", tokenizer.bos_token_id)]
    )
    feature = lm.encode([row], tokenizer).features[0]
    assert feature["input_ids"].tolist() == [tokenizer.bos_token_id, *without["input_ids"]]
    assert feature["labels"].tolist() == [IGNORED, *without["labels"]]
    assert lm.prompt_ids(row["messages"][:1], tokenizer)[0] == tokenizer.bos_token_id
    tokenizer.chat_template = STRICT
    assert lm.encode([row], tokenizer).features[0]["input_ids"].tolist().count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (conversation("Hi", "Yes.", system="Be brief.", identity="sys"), "System role not supported"),
        (
            {
                "id": "twice",
                "topic": "",
                "messages": conversation("Hi")["messages"] * 2 + conversation("", "a")["messages"][1:],
            },
            "Roles must alternate",
        ),
    ],
)
def test_what_a_template_refuses_is_said_with_the_row(tokenizer: Any, row: dict[str, Any], reason: str) -> None:
    tokenizer.chat_template = STRICT
    good = conversation("Hi", "Yes.", identity="good")
    with pytest.raises(
        BadInput, match=rf"data:row '{row['id']}': messages: refused by .*{reason}; .*task\.shape=plain"
    ):
        task().encode([good, row], tokenizer)
    with pytest.raises(BadInput, match=reason):
        task().prompt_ids(row["messages"][:-1], tokenizer)
    assert len(task(shape="plain").encode([good, row], tokenizer).features) == 2


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}{{ m.content }", "{{ nothing.at.all }}", "{{ messages['x'] + 1 }}"]
)
def test_a_broken_template_is_bad_input(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(BadInput, match="chat template"):
        task().encode([conversation("Hi", "Yes.")], tokenizer)


def test_turns_that_a_template_rewrites_get_no_loss(tokenizer: Any) -> None:
    tokenizer.chat_template = REWRITING
    row = conversation("Hi", "let me see</t>Yes.", "Why?", "I wonder</t>So.")
    encoded = task().encode([row], tokenizer)
    texts = answers_in(encoded.features[0]["labels"], tokenizer)
    assert texts == ["let me see</t>Yes.<|im_end|>"]
    tokenizer.chat_template = "{{ messages | length }}{% if add_generation_prompt %}?{% endif %}"
    with pytest.raises(BadInput, match="leaves no row an answer to learn"):
        task().encode([row], tokenizer)


def test_shapes(tokenizer: Any) -> None:
    row = conversation(" Hi ", " Yes. ", system="Be brief.")
    text = tokenizer.decode(task().encode([row], tokenizer).features[0]["input_ids"])
    assert text == "Be brief.\nInput: Hi\nOutput: Yes.[EOS]"
    with pytest.raises(BadInput, match=r"task\.shape: no usable chat template"):
        task(shape="chat").encode([row], tokenizer)
    tokenizer.chat_template = {"other": CHATML, "default": DIALOGPT}
    assert tokenizer.decode(task(shape="chat").encode([row], tokenizer).features[0]["input_ids"]).endswith(
        " Hi [EOS] Yes. [EOS]"
    )
    tokenizer.chat_template = {"other": CHATML, "another": DIALOGPT}
    with pytest.raises(BadInput, match=r"task\.shape"):
        task().encode([row], tokenizer)


def test_cuts_and_drops_are_counted_and_keep_the_order(tokenizer: Any) -> None:
    lm = task(max_length=32)
    rows = [
        conversation("Hi", "Yes.", identity="0"),
        conversation("word " * 60, "Yes.", identity="1"),
        conversation("Hi", "word " * 60, identity="2"),
        conversation("Hi", "No.", identity="3"),
    ]
    encoded = lm.encode(rows, tokenizer)
    assert encoded.features.column("example").tolist() == [0, 2, 3]
    assert encoded.features.lengths.max() == 32
    assert encoded.notes == (
        "2 of 4 rows cut at task.max_length 32",
        "1 of 4 rows left out: no token of an answer within task.max_length 32",
    )
    with pytest.raises(BadInput, match=r"no row has an answer within task\.max_length 32"):
        lm.encode(rows[1:2], tokenizer)


def test_an_end_that_is_missing_is_said(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    notes = task().encode([conversation("Hi", "Yes.")], tokenizer).notes
    assert notes == ("1 of 1 rows end without an end token, so that the model does not learn to stop",)


def test_many_rows_are_the_rows_one_by_one(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finelaunch.tasks.causal_lm.CHUNK", 3)
    rows = [conversation("Hi" * n, "Yes " * (n + 1), identity=str(n)) for n in range(10)]
    features = task().encode(rows, tokenizer).features
    for index, row in enumerate(rows):
        alone = task().encode([row], tokenizer).features[0]
        assert alone["input_ids"].tolist() == features[index]["input_ids"].tolist()
        assert alone["labels"].tolist() == features[index]["labels"].tolist()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda text: text.strip())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.sampled_from(["plain", "chatml", "marked", "dialogpt"])
)
def test_any_conversation(bpe: Any, turns: list[tuple[str, str]], name: str) -> None:
    import unicodedata

    bpe.chat_template = TEMPLATES[name]
    try:
        lm = task(max_length=4096)
        row = conversation(*(text for turn in turns for text in turn))
        feature = lm.encode([row], bpe).features[0]
        targets = bpe.decode([label for label in feature["labels"] if label != IGNORED])
        for _, answer in turns:
            assert unicodedata.normalize("NFC", answer.strip()) in targets
        prompt = lm.prompt_ids(row["messages"][:-1], bpe)
        assert feature["input_ids"][: len(prompt)].tolist() == prompt
        assert (feature["labels"][len(prompt) :] != IGNORED).all()
    finally:
        bpe.chat_template = None


def test_questions_asked() -> None:
    assert task().ask({"text": "Hi"}, "1")["messages"] == [{"role": "user", "content": "Hi"}]
    messages = conversation("Hi", "Yes.", "Why?")["messages"]
    assert task().ask({"messages": messages}, "1")["messages"] == messages
    with pytest.raises(ValueError, match="ends with an assistant's message"):
        task().ask({"messages": messages[:2]}, "1")


def test_one_question_stays_in_one_group() -> None:
    lm = task()
    rows = [conversation("How  many?\n", "Two."), conversation("How many?", "Three.")]
    assert lm.group(rows[0]) == lm.group(rows[1])
    assert lm.group({**rows[0], "topic": "cats"})[0] == "cats"


def test_figures_are_per_target_token(tokenizer: Any) -> None:
    lm = task()
    rows = [conversation("Hi", "Yes.", identity="x"), conversation("Hi", "No, never.", identity="y")]
    features = lm.encode(rows, tokenizer).features
    results = {"loss_sum": np.array([3.0, 9.0]), "num_targets": np.array([2, 4])}
    measured = lm.measure(rows, features, results, {}, None)
    assert measured.metrics == {"loss": 2.0, "perplexity": pytest.approx(np.exp(2.0)), "num_target_tokens": 6}
    assert [(row["id"], row["loss"]) for row in measured.predictions] == [("x", 1.5), ("y", 2.25)]
    assert [row["reference"] for row in measured.predictions] == ["Yes.", "No, never."]
    assert measured.predictions[0]["prompt"] == rows[0]["messages"][:-1]
