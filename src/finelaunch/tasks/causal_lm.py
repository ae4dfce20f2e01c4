"""Causal-LM assistant: answers to prompts, loss on the answers only.

A row becomes segments of text, prompt and answer in turn, each encoded on its own, so that a prompt has the same tokens
in training as when the model is asked. The segments come from the tokenizer's chat template where there is one, else
from the plain shape ``Input: … / Output: …``.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from finelaunch.data.checks import MAX_PROBLEMS, RowError, check_rows, column_names, text_in
from finelaunch.data.features import Features
from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput, Problem
from finelaunch.metrics.language_modelling import perplexity_metrics
from finelaunch.section.base import Section
from finelaunch.tasks.base import IGNORED, Batch, Encoded, Example, Measured, pad, pad_inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Message = dict[str, str]
Segment = tuple[str, bool]
"""A text and whether it is an answer."""

CHUNK = 1000
"""Rows that are encoded in one call."""

ROLES = ("system", "user", "assistant")
PAIRS = (("prompt", "completion"), ("input", "output"))
_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\b")


class CausalLMSection(Section):
    """Answers to prompts."""

    name: Literal["causal_lm"] = Field(description="the task")
    max_length: int = Field(
        default=512, ge=16, description="tokens a row; what is longer is cut at the end and counted"
    )
    shape: Literal["auto", "chat", "plain"] = Field(
        default="auto", description="auto: the tokenizer's chat template where it has one, else plain"
    )


class CausalLM:
    """Prompts and answers, or messages, into one sequence of tokens."""

    columns: ClassVar[Mapping[str, str]] = {
        "prompt": "what is asked (or input)",
        "completion": "the answer (or output)",
        "messages": "instead of the two: a list of {role: system|user|assistant, content: …}",
    }
    auto_class = "AutoModelForCausalLM"

    def __init__(self, section: CausalLMSection) -> None:
        self.section = section

    def facts(self, rows: Rows, given: Mapping[str, str]) -> dict[str, Any]:
        """Return nothing: the rows settle nothing."""
        return {}

    def read(self, rows: Rows, given: Mapping[str, str], facts: Mapping[str, Any]) -> list[Example]:
        """Return examples ``{id, messages, topic}`` that end in an assistant's message."""
        names = self._shape_of(rows, given)

        def read(row: Mapping[str, Any]) -> Example:
            if "messages" in names:
                messages = _messages(row, names["messages"])
            else:
                prompt, answer = text_in(row, names["prompt"]), text_in(row, names["completion"])
                messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            return {"messages": messages, "topic": str(row.get("topic") or "")}

        return check_rows(rows, read)

    def _shape_of(self, rows: Rows, given: Mapping[str, str]) -> dict[str, str]:
        present = set(rows.rows[0])
        if "messages" in given or (not given and "messages" in present):
            return column_names(rows, {"messages": self.columns["messages"]}, given)
        wanted = {name: self.columns[name] for name in ("prompt", "completion")}
        for prompt, completion in PAIRS:
            if not given and {prompt, completion} <= present:
                return {"prompt": prompt, "completion": completion}
        return column_names(rows, wanted, given)

    def ask(self, inputs: Mapping[str, Any], identity: str) -> Example:
        """Return an example from ``text``, or from ``messages`` that end with the user's."""
        messages = inputs.get("messages") or [{"role": "user", "content": text_in(inputs, "text")}]
        return {"id": identity, "messages": _messages({"messages": messages}, "messages", answered=False), "topic": ""}

    def group(self, example: Example) -> tuple[str, str]:
        """Return the topic where there is one, else the prompt, so that one question stays on one side."""
        return example["topic"] or " ".join(example["messages"][-2]["content"].split()), ""

    def encode(self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase") -> Encoded:
        """Return one feature an example, ``labels`` as long as ``input_ids`` and -100 outside the answers.

        Raises:
            BadInput: A row that the chat template refuses, or no row with an answer to train on.
        """
        columns: dict[str, list[Any]] = defaultdict(list)
        counts: Counter[str] = Counter()
        longest, ends = self.section.max_length, set(_special_tokens(tokenizer).values())
        for start in range(0, len(examples), CHUNK):
            rows = self._rows(examples[start : start + CHUNK], tokenizer)
            for index, (ids, labels) in enumerate(rows, start):
                counts["unlearnt"] += not any(labels != IGNORED)
                counts["endless"] += any(labels != IGNORED) and int(labels[labels != IGNORED][-1]) not in ends
                counts["cut"] += len(ids) > longest
                if not any(labels[:longest] != IGNORED):
                    counts["dropped"] += 1
                    continue
                columns["input_ids"].append(ids[:longest])
                columns["labels"].append(labels[:longest])
                columns["example"].append(index)
        if not columns["example"]:
            what = f"no row has an answer within task.max_length {longest}"
            if counts["unlearnt"] == len(examples):
                what = "the chat template leaves no row an answer to learn"
            raise BadInput(Problem("data", "task", what, "", "raise task.max_length or set task.shape to plain"))
        length = f"of {len(examples):,} rows"
        notes = {
            "cut": f"{length} cut at task.max_length {longest}",
            "dropped": f"{length} left out: no token of an answer within task.max_length {longest}",
            "unlearnt": f"{length} have no answer to learn: the chat template writes it otherwise once it is given",
            "endless": f"{length} end without an end token, so that the model does not learn to stop",
        }
        said = tuple(f"{counts[name]:,} {note}" for name, note in notes.items() if counts[name])
        return Encoded(Features.from_lists(columns), said)

    def _rows(
        self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield input ids and labels of each example, int32 ``[length]``; all texts are encoded in one call."""
        rows, problems = [], []
        for example in examples:
            try:
                rows.append(self.segments(example["messages"], tokenizer))
            except RowError as error:
                problems.append(Problem(f"data:row {example['id']!r}", error.column, error.what, "", error.remedy))
        if problems:
            num_more = len(problems) - MAX_PROBLEMS
            more = [Problem("data", "", f"and {num_more:,} more such rows")] if num_more > 0 else []
            raise BadInput(problems[:MAX_PROBLEMS] + more)
        encoded = iter(_token_ids([text for segments in rows for text, _ in segments], tokenizer))
        beginning = self._beginning(tokenizer)
        for segments in rows:
            ids, labels = list(beginning), [IGNORED] * len(beginning)
            for _, is_answer in segments:
                tokens = next(encoded)
                ids.extend(tokens)
                labels.extend(tokens if is_answer else [IGNORED] * len(tokens))
            # The first token is no target: nothing comes before it that could predict it.
            yield np.array(ids, dtype=np.int32), np.array([IGNORED, *labels[1:]], dtype=np.int32)

    def template(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:
        """Return the chat template in use, or None for the plain shape.

        Raises:
            BadInput: ``shape: chat`` for a tokenizer without one, or several templates of which none is the default.
        """
        if self.section.shape == "plain" or (self.section.shape == "auto" and not tokenizer.chat_template):
            return None
        try:
            return tokenizer.get_chat_template()
        except ValueError as error:
            allowed = f"no usable chat template: {str(error).splitlines()[0]:.160}"
            raise BadInput(Problem("recipe", "task.shape", allowed, "plain, or a tokenizer with a template")) from None

    def segments(self, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> list[Segment]:
        """Return the texts of a row in order, up to its last answer.

        A template that marks its answers (``{% generation %}``) says itself what they are. Otherwise the answer of a
        turn is what the rendering up to it adds to the rendered prompt, the end of the turn included but not the white
        space after it. A turn whose prompt is not the beginning of its rendering gets no loss (templates that rewrite
        earlier turns).

        Raises:
            RowError: The chat template refuses the messages.
        """
        template = self.template(tokenizer)
        if template is None:
            return _plain_segments(messages, tokenizer)
        if _GENERATION_MARKER.search(template):
            return _marked_segments(messages, template, tokenizer)
        done, segments, ends = "", [], tuple(_special_tokens(tokenizer))
        for turn, message in enumerate(messages):
            if message["role"] != "assistant" or turn == 0:
                continue
            prompt, full = _rendered(messages[:turn], tokenizer, True), _rendered(messages[: turn + 1], tokenizer)
            if not (full.startswith(prompt) and prompt.startswith(done)):
                continue
            answer = full[len(prompt) :]
            answer = answer.rstrip() if answer.rstrip().endswith(ends) else answer
            segments += [(prompt[len(done) :], False), (answer, True)]
            done = prompt + answer
        return [segment for segment in segments if segment[0]]

    def _beginning(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the tokens that the tokenizer puts before any text; a chat template writes its own."""
        if self.template(tokenizer) is not None or tokenizer.bos_token_id is None:
            return []
        first = tokenizer("a")["input_ids"][:1]
        return first if first == [tokenizer.bos_token_id] else []

    def prompt_ids(self, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the tokens after which the model is to answer, exactly those that it was trained after.

        Raises:
            BadInput: The chat template refuses the messages.
        """
        last_answer = max((turn for turn, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        try:
            segments = self.segments(messages[: last_answer + 1], tokenizer) if last_answer >= 0 else []
            prompt = self.prompt(messages, tokenizer)
        except RowError as error:
            raise BadInput(Problem("", error.column, error.what, error.allowed, error.remedy)) from None
        said = "".join(text for text, _ in segments)
        texts = [text for text, _ in segments] + [prompt[len(said) :]] if prompt.startswith(said) else [prompt]
        return self._beginning(tokenizer) + list(chain.from_iterable(_token_ids(texts, tokenizer)))

    def prompt(self, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the text after which the model is to answer the last of ``messages``.

        Raises:
            RowError: The chat template refuses the messages.
        """
        if self.template(tokenizer) is None:
            return "".join(text for text, _ in _plain_segments(messages, tokenizer))
        return _rendered(messages, tokenizer, True)

    def stop_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the tokens that end an answer: EOS, and what the chat template ends a turn with."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        answers = [text for text, is_answer in self.segments(turns, tokenizer) if is_answer]
        last = _token_ids(answers, tokenizer)[0][-1:] if answers else []
        special = set(_special_tokens(tokenizer).values())
        ends = [token for token in (tokenizer.eos_token_id, *last) if token in special]
        return list(dict.fromkeys(int(token) for token in ends))

    def model_config(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def prepare(self, model: "PreTrainedModel") -> None:
        """Leave the model as it is."""

    def collate(self, rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> Batch:
        """Return padded inputs and ``labels`` ``[batch, sequence]``, -100 where padded, whatever the pad token is."""
        return {**pad_inputs(rows, tokenizer), "labels": pad(rows, "labels", IGNORED)}

    def row_losses(self, outputs: Mapping[str, "torch.Tensor"], labels: "torch.Tensor") -> "torch.Tensor":
        """Return the cross-entropy of the next tokens summed over each row's targets.

        Only the logits at targets are taken up: prompts and padding cost no softmax over the vocabulary.
        """
        from torch.nn.functional import cross_entropy

        targets = labels[:, 1:]
        is_target = targets != IGNORED
        logits = outputs["logits"][:, :-1][is_target]
        losses = logits.new_zeros(targets.shape, dtype=logits.float().dtype)
        losses[is_target] = cross_entropy(logits.float(), targets[is_target], reduction="none")
        return losses.sum(-1)

    def results(
        self, outputs: Mapping[str, "torch.Tensor"], features: Features, ids: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return nothing: loss and count of targets say all."""
        return {}

    def measure(
        self,
        examples: Sequence[Example],
        features: Features,
        results: Mapping[str, np.ndarray],
        facts: Mapping[str, Any],
        threshold: float | None,
    ) -> Measured:
        """Return loss and perplexity per target token; each row's own in its prediction, to be answered later."""
        metrics = perplexity_metrics(results["loss_sum"], results["num_targets"])
        predictions = []
        for feature, index in enumerate(features.column("example")):
            example = examples[index]
            predictions.append(
                {
                    "id": example["id"],
                    "prediction": None,
                    "prompt": example["messages"][:-1],
                    "reference": example["messages"][-1]["content"],
                    "loss": round(float(results["loss_sum"][feature] / results["num_targets"][feature]), 6),
                    "num_target_tokens": int(results["num_targets"][feature]),
                }
            )
        return Measured(metrics, predictions)


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Return the special tokens by text, those that were added as such included."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return named | added


def _plain_segments(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> list[Segment]:
    end = tokenizer.eos_token or ""
    segments: list[Segment] = []
    for message in messages:
        if message["role"] == "assistant":
            segments.append((f" {message['content'].strip()}{end}", True))
        elif message["role"] == "system":
            segments.append((f"{message['content'].strip()}\n", False))
        else:
            segments.append((f"Input: {message['content'].strip()}\nOutput:", False))
    return segments


def _marked_segments(messages: Sequence[Message], template: str, tokenizer: "PreTrainedTokenizerBase") -> list[Segment]:
    """Return the segments of a template that marks its answers."""
    from transformers.utils.chat_template_utils import render_jinja_template

    words: dict[str, Any] = tokenizer.special_tokens_map
    with _template_faults():
        rendered: Any = render_jinja_template(
            [list(messages)], chat_template=template, return_assistant_tokens_mask=True, **words
        )
    (text,), (spans,) = rendered
    done, segments = 0, []
    for start, end in spans:
        segments += [(text[done:start], False), (text[start:end], True)]
        done = end
    return [segment for segment in segments if segment[0]]


def _rendered(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", prompt: bool = False) -> str:
    with _template_faults():
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))


@contextmanager
def _template_faults() -> Iterator[None]:
    """Turn what a template raises (on a system message, on roles that do not alternate) into a fault of the row."""
    from jinja2.exceptions import TemplateError

    try:
        yield
    except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "change the messages, or set task.shape=plain"
        raise RowError("messages", f"refused by the tokenizer's chat template: {reason:.160}", "", remedy) from None


def _token_ids(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _messages(row: Mapping[str, Any], column: str, answered: bool = True) -> list[Message]:
    """Return the checked messages of a row, the last one an answer or, without ``answered``, a question."""
    messages = row.get(column)
    if not isinstance(messages, list) or len(messages) < 1 + answered:
        raise RowError(column, f"is {messages!r:.60}", "a list of messages, at least a user's and an assistant's")
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise RowError(column, f"has the role {role!r:.40}", f"one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise RowError(column, f"a message of {role} has no text")
    if (messages[-1]["role"] == "assistant") != answered:
        what = "does not end with an assistant's message" if answered else "ends with an assistant's message"
        raise RowError(column, what, "", "leave the last message out" if not answered else "leave the row out")
    if answered and messages[-2]["role"] != "user":
        what = f"the last answer follows a message of {messages[-2]['role']}"
        raise RowError(column, what, "a user's message before the last")
    return [{"role": message["role"], "content": message["content"]} for message in messages]
