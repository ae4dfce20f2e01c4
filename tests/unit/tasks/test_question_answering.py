"""Windows over contexts: every character is covered, and an answer is found again where it was labelled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput, FinelaunchError
from finelaunch.section.base import build
from finelaunch.section.document import Document
from finelaunch.tasks.base import Encoded
from finelaunch.tasks.question_answering import QuestionAnswering, QuestionAnsweringSection


def task(**settings: int) -> QuestionAnswering:
    return QuestionAnswering(QuestionAnsweringSection(name="question_answering", **settings))


@pytest.fixture(params=["minilm", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def example(context: str, answer: str | None, question: str = "What is it?", identity: str = "a") -> dict[str, Any]:
    start = [] if answer is None else [context.index(answer)]
    answers = {"text": [] if answer is None else [answer], "answer_start": start}
    return {"id": identity, "title": "", "context": context, "question": question, "answers": answers}


def check_windows(examples: list[dict[str, Any]], encoded: Encoded, tokenizer: Any, max_length: int) -> list[bool]:
    """Assert what must hold of every window; return for each example whether a window has its answer."""
    features = encoded.features
    found = [False] * len(examples)
    owners = features.column("example")
    assert owners.tolist() == sorted(owners)
    for index, given_example in enumerate(examples):
        context, covered = given_example["context"], np.zeros(len(given_example["context"]), dtype=bool)
        windows = np.flatnonzero(owners == index)
        assert len(windows)
        for window in windows:
            row = features[window]
            starts, ends = row["offset_starts"], row["offset_ends"]
            assert len(row["input_ids"]) <= max_length
            assert (np.diff(starts) >= 0).all()
            assert (np.diff(ends) >= 0).all()
            covered[starts[0] : ends[-1]] = True
            null = row["null_position"]
            assert row["input_ids"][null] == tokenizer.cls_token_id
            text = given_example["answers"]["text"][:1]
            first = given_example["answers"]["answer_start"][0] if text else 0
            last = first + len(text[0]) if text else 0
            if not text or first < starts[0] or last > ends[-1]:
                assert row["labels"].tolist() == [null, null]
                continue
            found[index] = True
            start, end = row["labels"] - row["context_start"]
            assert 0 <= start <= end < len(starts)
            whole = context[starts[start] : ends[end]]
            assert text[0].strip() in whole
            # Minimal: without its first or last token something of the answer is missing.
            assert ends[start] > first
            assert starts[end] < last
            assert start == 0 or ends[start - 1] <= first
            assert end + 1 == len(starts) or starts[end + 1] >= last
        assert all(character.isspace() for character, there in zip(context, covered, strict=True) if not there)
    return found


@pytest.mark.parametrize(("max_length", "stride"), [(384, 128), (64, 0), (64, 1), (64, 20), (64, 42), (40, 11)])
def test_windows_cover_all_and_hold_the_answer(
    sample: Callable[[str], Rows], tokenizer: Any, max_length: int, stride: int
) -> None:
    qa = task(max_length=max_length, stride=stride, max_question_length=16)
    examples = qa.read(sample("squad_v2/train.json"), {}, {})
    joined = " ".join(dict.fromkeys(e["context"] for e in examples))
    long = [
        {**e, "context": joined, "answers": moved(e, joined)} for e in examples[::9]
    ]  # many times longer than a window
    both = examples + long
    encoded = qa.encode(both, tokenizer)
    found = check_windows(both, encoded, tokenizer, max_length)
    lost = sum(bool(e["answers"]["text"]) and not there for e, there in zip(both, found, strict=True))
    notes = [note for note in encoded.notes if "holds whole" in note]
    assert [int(note.split()[0]) for note in notes] == ([lost] if lost else [])
    if stride >= 20:
        assert not lost


def moved(e: dict[str, Any], joined: str) -> dict[str, Any]:
    shift = joined.index(e["context"])
    return {"text": e["answers"]["text"], "answer_start": [shift + start for start in e["answers"]["answer_start"]]}


TEXT = st.text(st.sampled_from("ab Zé–😀映ﬁ\u0301\u200b\n\t .,Öß"), min_size=1, max_size=60)


@settings(max_examples=120, deadline=None)
@given(TEXT, st.data(), st.sampled_from([0, 3, 7]), st.sampled_from(["minilm", "bpe"]))
def test_any_answer_in_any_context(
    minilm: Any, bpe: Any, context: str, data: st.DataObject, stride: int, name: str
) -> None:
    tokenizer = {"minilm": minilm, "bpe": bpe}[name]
    first = data.draw(st.integers(0, len(context) - 1))
    last = data.draw(st.integers(first + 1, len(context)))
    row = example(context, None)
    if context[first:last].strip():
        row["answers"] = {"text": [context[first:last]], "answer_start": [first]}
    qa = task(max_length=32, stride=stride, max_question_length=12)
    try:
        encoded = qa.encode([row], tokenizer)
    except BadInput:
        assert not any(tokenizer(context, add_special_tokens=False)["input_ids"])
        return
    starts, ends = (encoded.features.at(column, 0) for column in ("offset_starts", "offset_ends"))
    null = encoded.features.column("null_position")
    labels = np.stack([encoded.features.at("labels", i) for i in range(len(encoded.features))])
    is_labelled = (labels != null[:, None]).any(axis=1)
    if not row["answers"]["text"]:
        assert not is_labelled.any()
        return
    assert is_labelled.any() or "holds whole" in " ".join(encoded.notes)
    for window in np.flatnonzero(is_labelled):
        starts, ends = (encoded.features.at(column, window) for column in ("offset_starts", "offset_ends"))
        start, end = labels[window] - encoded.features.column("context_start")[window]
        # What of the answer is not in the span is in no token at all: white space, accents that WordPiece strips.
        outside = [at for at in range(first, last) if not starts[start] <= at < ends[end]]
        assert not any(
            s <= at < e for at in outside if not context[at].isspace() for s, e in zip(starts, ends, strict=True)
        )
        assert ends[start] > first
        assert starts[end] < last


def test_white_space_around_an_answer_loses_nothing(tokenizer: Any) -> None:
    encoded = task().encode([example("  The cat sat.  ", "  The cat")], tokenizer)
    assert not encoded.notes
    row = encoded.features[0]
    start, end = row["labels"] - row["context_start"]
    assert "  The cat sat.  "[row["offset_starts"][start] : row["offset_ends"][end]] == "The cat"


@pytest.mark.parametrize("question", ["   Who? ", "\n\tWho?", "Who?"])
def test_white_space_around_a_question_changes_nothing(tokenizer: Any, question: str) -> None:
    first, other = (task().encode([example("A cat.", "cat", q)], tokenizer).features[0] for q in ("Who?", question))
    assert all(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("word", ["word ", "😀 ", "😀", "映", "ﷺ ", "ﷺ", "unbelievably "])
def test_questions_are_cut_to_their_tokens_and_counted(tokenizer: Any, word: str) -> None:
    qa = task(max_length=64, stride=40, max_question_length=12)
    question = word * 50
    rows = [example("A cat sat here. " * 30, "cat", question, "a"), example("A cat.", "cat", "Who?", "b")]
    whole = tokenizer(question.strip(), add_special_tokens=False)["input_ids"]
    encoded = qa.encode(rows, tokenizer)
    cut = ("1 of 2 questions cut at task.max_question_length 12",)
    assert encoded.notes == (cut if len(whole) > 12 else ())
    check_windows(rows, encoded, tokenizer, 64)
    kept = encoded.features[0]["input_ids"][1 : encoded.features.at("context_start", 0) - 1].tolist()
    assert 1 <= len(kept) <= 12
    assert kept == whole[: len(kept)]
    assert len(kept) > 12 - 4 or len(whole) <= 12  # a character may be several tokens, and is kept whole


def test_answers_that_cannot_be_found_are_counted_once(tokenizer: Any) -> None:
    words = " ".join(f"w{number}" for number in range(60))
    rows = [example(words, words[:150], identity="long"), example(words, "w3 w4", identity="short")]
    notes = task(max_length=384, stride=128, max_answer_length=10).encode(rows, tokenizer).notes
    assert [note.split(" task.")[0] for note in notes] == ["1 of 2 questions have an answer longer than"]
    notes = task(max_length=40, stride=5, max_question_length=12).encode(rows, tokenizer).notes
    assert [note.split(" of task.")[0] for note in notes] == ["1 of 2 questions have an answer that no window"]


def test_a_context_without_a_token_is_named(minilm: Any) -> None:
    with pytest.raises(BadInput, match=r"the context of 'odd' has no token"):
        task().encode([example("\u200b", None, identity="odd")], minilm)


def test_settings_that_leave_no_room_are_refused() -> None:
    for values in (
        {"max_length": 32, "max_question_length": 30},
        {"max_length": 64, "max_question_length": 20, "stride": 40},
    ):
        with pytest.raises(BadInput, match="context"):
            build(QuestionAnsweringSection, Document({"name": "question_answering", **values}, {}, "r"))


def one_hot(features: Any, at: str) -> dict[str, Any]:
    import torch

    longest = int(features.lengths.max())
    logits = {name: torch.zeros(len(features), longest) for name in ("start_logits", "end_logits")}
    for index in range(len(features)):
        places = features.at("labels", index) if at == "gold" else [features.column("null_position")[index]] * 2
        for name, place in zip(logits, places, strict=True):
            logits[name][index, place] = 10.0
    return logits


@pytest.mark.parametrize(("max_length", "stride"), [(384, 128), (64, 36)])
def test_the_oracle_is_right_on_everything(
    sample: Callable[[str], Rows], tokenizer: Any, max_length: int, stride: int
) -> None:
    qa = task(max_length=max_length, stride=stride, max_question_length=20)
    examples = qa.read(sample("squad_v2/train.json"), {}, {})
    features = qa.encode(examples, tokenizer).features
    results = qa.results(one_hot(features, "gold"), features, np.arange(len(features)))
    measured = qa.measure(examples, features, results, {}, None)
    assert measured.metrics["exact_match"] == 100.0
    assert measured.metrics["f1"] == 100.0
    assert [row["id"] for row in measured.predictions] == [e["id"] for e in examples]
    again = qa.measure(examples, features, results, {}, 0.0)
    assert again.metrics["threshold"] == 0.0
    assert again.metrics["exact_match"] == 100.0
    results = qa.results(one_hot(features, "null"), features, np.arange(len(features)))
    nothing = qa.measure(examples, features, results, {}, 0.0)
    assert nothing.metrics["exact_match"] == pytest.approx(nothing.metrics["always_no_answer"])


def test_results_do_not_depend_on_the_batch(sample: Callable[[str], Rows], minilm: Any) -> None:
    import torch

    qa = task(max_length=64, stride=20, max_question_length=20)
    features = qa.encode(qa.read(sample("squad_v2/test.json"), {}, {}), minilm).features
    shape = (len(features), int(features.lengths.max()))
    generator = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(shape, generator=generator) for name in ("start_logits", "end_logits")}
    whole = qa.results(logits, features, np.arange(len(features)))
    for ids in np.array_split(np.arange(len(features))[::-1].copy(), 7):
        longest = int(features.lengths[ids].max())
        part = qa.results({name: value[ids, :longest] for name, value in logits.items()}, features, ids)
        for name, values in part.items():
            np.testing.assert_array_equal(values, whole[name][ids])
    logits["end_logits"][0, 0] = float("nan")
    with pytest.raises(FinelaunchError, match="NaN"):
        qa.results(logits, features, np.arange(len(features)))


def test_a_question_asked_is_an_example_without_answer() -> None:
    asked = task().ask({"question": "Who?", "context": "A cat."}, "1")
    assert asked["answers"] == {"text": [], "answer_start": []}
    with pytest.raises(ValueError, match="is missing"):
        task().ask({"question": "Who?"}, "1")


def test_the_group_is_the_article_or_the_passage() -> None:
    row = example("A cat.", "cat")
    assert task().group(row)[0] == "A cat."
    assert task().group({**row, "title": "Cats"})[0] == "Cats"
