"""Extractive question answering with questions that have no answer (SQuAD 2.0).

A context longer than the window is cut into overlapping windows, each a feature; an answer outside a window trains that
window towards "no answer", position 0. The padded positions are masked out of the start and end logits, because they
would otherwise stand in the softmax and a row's loss would depend on the longest row beside it.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from finelaunch.data.checks import RowError, check_rows, column_names, text_in
from finelaunch.data.features import Features
from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput, FinelaunchError, Problem
from finelaunch.metrics.spans import best_spans, merge_features
from finelaunch.metrics.squad import choose_threshold, run_metrics
from finelaunch.section.base import Section, SettingError
from finelaunch.tasks.base import IGNORED, Batch, Encoded, Example, Measured, in_chunks, pad_inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MIN_CONTEXT_TOKENS = 8
SPECIAL_TOKENS = 4
"""At most so many stand around question and context (RoBERTa: <s> question </s></s> context </s>)."""


class QuestionAnsweringSection(Section):
    """Spans of a context as answers, or none."""

    name: Literal["question_answering"] = Field(description="the task")
    max_length: int = Field(default=384, ge=32, description="tokens a window: question, context and special tokens")
    stride: int = Field(default=128, ge=0, description="tokens that two neighbouring windows of a context share")
    max_question_length: int = Field(default=64, ge=4, description="tokens of a question; what is longer is cut")
    max_answer_length: int = Field(default=30, ge=1, description="tokens of the longest answer that is searched")

    @model_validator(mode="after")
    def _room_for_context(self) -> "QuestionAnsweringSection":
        room = self.max_length - self.max_question_length - SPECIAL_TOKENS
        if room < MIN_CONTEXT_TOKENS:
            allowed = f"at most max_length {self.max_length} - {MIN_CONTEXT_TOKENS + SPECIAL_TOKENS}"
            raise SettingError("max_question_length", f"{self.max_question_length} leaves no room for context", allowed)
        if self.stride >= room:
            what = f"{self.stride} is not less than the {room} context tokens beside the longest question"
            raise SettingError("stride", what, "", "lower it or raise max_length")
        return self


class QuestionAnswering:
    """Questions on a context, answered by a span or by nothing."""

    columns: ClassVar[Mapping[str, str]] = {
        "context": "the passage",
        "question": "the question",
        "answers": '{"text": [...], "answer_start": [...]}, both empty where there is no answer',
    }
    auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, section: QuestionAnsweringSection) -> None:
        self.section = section

    def facts(self, rows: Rows, given: Mapping[str, str]) -> dict[str, Any]:
        """Return nothing: the rows settle nothing."""
        return {}

    def read(self, rows: Rows, given: Mapping[str, str], facts: Mapping[str, Any]) -> list[Example]:
        """Return examples ``{id, title, context, question, answers: {text, answer_start}}``."""
        names = column_names(rows, self.columns, given)

        def read(row: Mapping[str, Any]) -> Example:
            context = text_in(row, names["context"])
            return {
                "title": str(row.get("title") or ""),
                "context": context,
                "question": text_in(row, names["question"]),
                "answers": _answers(row, names["answers"], context),
            }

        return check_rows(rows, read, unique_ids=True)

    def ask(self, inputs: Mapping[str, Any], identity: str) -> Example:
        """Return an example from ``question`` and ``context``."""
        question, context = text_in(inputs, "question"), text_in(inputs, "context")
        none: dict[str, list[Any]] = {"text": [], "answer_start": []}
        return {"id": identity, "title": "", "context": context, "question": question, "answers": none}

    def group(self, example: Example) -> tuple[str, str]:
        """Return the article, or the passage where no title is given."""
        return example["title"] or example["context"], ""

    def encode(self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase") -> Encoded:
        """Return one feature a window.

        Besides ``input_ids`` and ``labels`` ``[2]`` (first and last token of the answer, or the null position twice):
        ``null_position``, ``context_start`` (position of the first context token), and for every context token its
        characters in the context, ``offset_starts`` and ``offset_ends``.
        """
        columns: dict[str, list[Any]] = defaultdict(list)
        counts: Counter[str] = Counter()

        def encode(chunk: Sequence[Example]) -> None:
            self._encode_chunk(chunk, tokenizer, columns, counts)

        in_chunks(examples, encode)
        section, questions = self.section, f"of {len(examples):,} questions"
        notes = {
            "cut": f"{questions} cut at task.max_question_length {section.max_question_length}",
            "long": f"{questions} have an answer longer than task.max_answer_length {section.max_answer_length} "
            "tokens, which cannot be found",
            "lost": f"{questions} have an answer that no window of task.max_length {section.max_length} and "
            f"task.stride {section.stride} holds whole, and are trained as if they had none",
        }
        said = tuple(f"{counts[name]:,} {note}" for name, note in notes.items() if counts[name])
        return Encoded(Features.from_lists(columns), said)

    def _encode_chunk(
        self,
        chunk: Sequence[Example],
        tokenizer: "PreTrainedTokenizerBase",
        columns: dict[str, list[Any]],
        counts: Counter[str],
    ) -> None:
        first = columns["example"][-1] + 1 if columns["example"] else 0
        encoded = tokenizer(
            self._questions(chunk, tokenizer, counts),
            [example["context"] for example in chunk],
            truncation="only_second",
            max_length=self.section.max_length,
            stride=self.section.stride,
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        found, long = set(), set()
        owners = encoded["overflow_to_sample_mapping"]
        for row, (index, encoding) in enumerate(zip(owners, encoded.encodings or (), strict=True)):
            ids = encoded["input_ids"][row]
            context_start, offsets = _context_offsets(encoding, chunk[index]["id"])
            null = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
            span = _token_span(chunk[index]["answers"], offsets[:, 0], offsets[:, 1])
            if span is not None:
                found.add(index)
                if span[1] - span[0] >= self.section.max_answer_length:
                    long.add(index)
            columns["input_ids"].append(np.array(ids, dtype=np.int32))
            if "token_type_ids" in encoded:
                columns["token_type_ids"].append(np.array(encoded["token_type_ids"][row], dtype=np.int32))
            columns["labels"].append([null, null] if span is None else [context_start + token for token in span])
            columns["example"].append(first + index)
            columns["null_position"].append(null)
            columns["context_start"].append(context_start)
            columns["offset_starts"].append(offsets[:, 0])
            columns["offset_ends"].append(offsets[:, 1])
        counts["long"] += len(long)
        counts["lost"] += sum(bool(example["answers"]["text"]) for example in chunk) - len(found)

    def _questions(
        self, chunk: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", counts: Counter[str]
    ) -> list[str]:
        """Return the questions without outer white space, each cut to at most ``max_question_length`` tokens."""
        longest = self.section.max_question_length

        def encode(texts: list[str]) -> Sequence[Any]:
            return tokenizer(texts, add_special_tokens=False, verbose=False).encodings or ()

        def cut(question: str, offsets: list[tuple[int, int]]) -> str:
            # What is left may be encoded otherwise than it was within the whole, so it is counted again.
            for length in range(longest, 0, -1):
                shorter = question[: offsets[length][0]].rstrip()
                if len(encode([shorter])[0]) <= longest:
                    return shorter
            return ""

        questions = [example["question"].strip() for example in chunk]
        for index, encoding in enumerate(encode(questions)):
            if len(encoding) > longest:
                questions[index] = cut(questions[index], encoding.offsets)
                counts["cut"] += 1
        return questions

    def model_config(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return nothing: the head has two outputs in every architecture."""
        return {}

    def prepare(self, model: "PreTrainedModel") -> None:
        """Mask padded positions out of the model's start and end logits, whoever calls it from now on."""
        import torch

        def mask(module: Any, args: Any, kwargs: Mapping[str, Any], outputs: Any) -> Any:
            if kwargs.get("attention_mask") is None:
                return outputs
            padded = kwargs["attention_mask"] == 0
            for name in ("start_logits", "end_logits"):
                outputs[name] = outputs[name].masked_fill(padded, torch.finfo(outputs[name].dtype).min)
            return outputs

        model.register_forward_hook(mask, with_kwargs=True)

    def collate(self, rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> Batch:
        """Return padded inputs and ``labels`` ``[batch, 2]``, first and last position of the answer."""
        import torch

        labels = torch.from_numpy(np.array([row["labels"] for row in rows], dtype=np.int64))
        return {**pad_inputs(rows, tokenizer), "labels": labels}

    def row_losses(self, outputs: Mapping[str, "torch.Tensor"], labels: "torch.Tensor") -> "torch.Tensor":
        """Return the cross-entropy of start plus that of end, one a row; logits are ``[batch, sequence]``."""
        from torch.nn.functional import cross_entropy

        start, end = (
            cross_entropy(outputs[name].float(), labels[:, column], ignore_index=IGNORED, reduction="none")
            for column, name in enumerate(("start_logits", "end_logits"))
        )
        return start + end

    def results(
        self, outputs: Mapping[str, "torch.Tensor"], features: Features, ids: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return each window's best span as characters of the context, its score and the score of "no answer"."""
        starts, ends = (outputs[name].float().cpu().numpy() for name in ("start_logits", "end_logits"))
        if np.isnan(starts).any() or np.isnan(ends).any():
            raise FinelaunchError(
                "evaluation: the model's logits are NaN; its weights are broken, train again from base"
            )
        first = features.column("context_start")[ids]
        lengths = np.array([len(features.at("offset_starts", index)) for index in ids])
        positions = np.arange(starts.shape[1])
        answerable = (positions >= first[:, None]) & (positions < (first + lengths)[:, None])
        spans = best_spans(starts, ends, answerable, self.section.max_answer_length)
        rows, null = np.arange(len(ids)), features.column("null_position")[ids]
        characters = [
            (features.at("offset_starts", index)[start], features.at("offset_ends", index)[end])
            for index, start, end in zip(ids, spans.start - first, spans.end - first, strict=True)
        ]
        return {
            "span": np.array(characters, dtype=np.int64).reshape(-1, 2),
            "score": spans.score,
            "null_score": starts[rows, null] + ends[rows, null],
        }

    def measure(
        self,
        examples: Sequence[Example],
        features: Features,
        results: Mapping[str, np.ndarray],
        facts: Mapping[str, Any],
        threshold: float | None,
    ) -> Measured:
        """Return the SQuAD 2.0 metrics; predictions with ``no_answer_score`` = null score - best span's score.

        ``group`` of a prediction is the same for all questions on one passage.

        Without a ``threshold`` the one with the best F1 on these very examples is chosen.
        """
        merged = merge_features(features.column("example"), results["score"], results["null_score"], len(examples))
        texts, scores = {}, {}
        for example, feature, score in zip(examples, merged.feature, merged.no_answer_score, strict=True):
            start, end = results["span"][feature]
            texts[example["id"]] = example["context"][start:end]
            scores[example["id"]] = float(score)
        chosen = choose_threshold(examples, texts, scores) if threshold is None else threshold
        metrics = run_metrics(examples, texts, scores, chosen)
        predictions = [
            {
                "id": example["id"],
                "prediction": "" if scores[example["id"]] > chosen else texts[example["id"]],
                "best_span": texts[example["id"]],
                "no_answer_score": round(scores[example["id"]], 6),
                "reference": example["answers"]["text"],
                "group": hashlib.sha256(example["context"].encode(errors="surrogatepass")).hexdigest()[:12],
            }
            for example in examples
        ]
        answers = [
            {"id": row["id"], "prediction_text": row["prediction"], "no_answer_probability": 0.0} for row in predictions
        ]
        return Measured(metrics, predictions, (answers, [{"id": e["id"], "answers": e["answers"]} for e in examples]))


def _answers(row: Mapping[str, Any], column: str, context: str) -> dict[str, list[Any]]:
    """Return the checked answers; every text must stand in ``context`` at its offset."""
    answers = row.get(column)
    texts = answers.get("text") if isinstance(answers, dict) else None
    starts = answers.get("answer_start") if isinstance(answers, dict) else None
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        allowed = '{"text": [...], "answer_start": [...]} of equal length'
        raise RowError(column, f"is {answers!r:.80}", allowed)
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip() or isinstance(start, bool) or not isinstance(start, int):
            raise RowError(column, f"{text!r:.60} at {start!r:.20}", "a text and the character it starts at")
        if start < 0 or context[start : start + len(text)] != text:
            found = context.find(text)
            remedy = f"it stands at {found}" if found >= 0 else "it does not stand in the context at all"
            what = f"{text!r:.60} does not stand at character {start}, where the context reads"
            raise RowError(column, f"{what} {context[max(start, 0) : max(start, 0) + len(text)]!r:.60}", "", remedy)
    return {"text": list(texts), "answer_start": list(starts)}


def _context_offsets(encoding: Any, identity: str) -> tuple[int, np.ndarray]:
    """Return the position of the first context token and the characters of all, int32 ``[tokens, 2]``.

    Raises:
        BadInput: The window holds no context.
    """
    parts = encoding.sequence_ids
    num_tokens = parts.count(1)
    if not num_tokens:
        what = f"the context of {identity!r} has no token"
        raise BadInput(Problem("data", "context", what, "", "remove the row"))
    start = parts.index(1)
    flat = chain.from_iterable(encoding.offsets[start : start + num_tokens])
    return start, np.fromiter(flat, np.int32, 2 * num_tokens).reshape(-1, 2)


def _token_span(answers: Mapping[str, Any], starts: np.ndarray, ends: np.ndarray) -> tuple[int, int] | None:
    """Return first and last context token of the first answer, or None where the window does not hold all of it.

    The span is the shortest that covers the answer without its outer white space, to which many tokenizers give no
    token.

    Args:
        answers: Texts and the characters they start at; the first one is trained on.
        starts: First character of each context token, ascending.
        ends: One past the last character of each.
    """
    if not answers["text"]:
        return None
    text = answers["text"][0]
    first = answers["answer_start"][0] + len(text) - len(text.lstrip())
    last = answers["answer_start"][0] + len(text.rstrip())
    if first < starts[0] or last > ends[-1]:
        return None
    start = int(np.searchsorted(ends, first, side="right"))
    end = int(np.searchsorted(starts, last, side="left")) - 1
    return (start, end) if start <= end else None
