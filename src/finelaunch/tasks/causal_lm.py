"""Causal-LM assistant: answers to prompts, loss on the answers only.

A row becomes segments of text, prompt and answer in turn, each encoded on its own, so that a prompt has the same tokens in
training as when the model is asked. The segments come from the tokenizer's chat template where there is one, else from
the plain shape ``Input: … / Output: …``.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from finelaunch.data.checks import RowError, check_rows, column_names, text_in
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

    columns = {
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

        def read(index: int, row: Mapping[str, Any]) -> Example:
            if "messages" in names:
                messages = _messages(row, names["messages"])
            else:
                prompt, answer = text_in(row, names["prompt"]), text_in(row, names["completion"])
                messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            return {"id": str(row.get("id", index)), "messages": messages, "topic": str(row.get("topic") or "")}

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
        return example["topic"] or example["messages"][-2]["content"], ""

    def encode(self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase") -> Encoded:
        """Return one feature an example, ``labels`` as long as ``input_ids`` and -100 outside the answers."""
        columns: dict[str, list[Any]] = defaultdict(list)
        counts: Counter[str] = Counter()
        for index, example in enumerate(examples):
            ids, labels = self._row(example["messages"], tokenizer)
            counts["cut"] += len(ids) > self.section.max_length
            ids, labels = ids[: self.section.max_length], labels[: self.section.max_length]
            if all(label == IGNORED for label in labels):
                counts["dropped"] += 1
                continue
            columns["input_ids"].append(ids)
            columns["labels"].append(labels)
            columns["example"].append(index)
        length = f"of {len(examples):,} rows"
        notes = {
            "cut": f"{counts['cut']:,} {length} cut at task.max_length {self.section.max_length}",
            "dropped": f"{counts['dropped']:,} {length} left out: no token of the answer is left after the cut",
        }
        if not columns["example"]:
            what = f"no row has an answer within task.max_length {self.section.max_length}"
            raise BadInput(Problem("data", "task.max_length", what, "", "raise it"))
        return Encoded(Features.from_lists(columns), tuple(notes[name] for name in notes if counts[name]))

    def _row(self, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
        template = self.template(tokenizer)
        if template and _GENERATION_MARKER.search(template):
            encoded = tokenizer.apply_chat_template(
                list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            mask = encoded["assistant_masks"]
            ids = list(encoded["input_ids"])
            return ids, _first_ignored([i if m else IGNORED for i, m in zip(ids, mask, strict=True)])
        ids = self._beginning(tokenizer)
        labels = [IGNORED] * len(ids)
        for text, is_answer in self.segments(messages, tokenizer):
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids.extend(tokens)
            labels.extend(tokens if is_answer else [IGNORED] * len(tokens))
        return ids, _first_ignored(labels)

    def template(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:
        """Return the chat template in use, or None for the plain shape.

        Raises:
            BadInput: ``shape: chat`` for a tokenizer without one.
        """
        template = getattr(tokenizer, "chat_template", None)
        if self.section.shape == "chat" and not template:
            what = "the tokenizer has no chat template"
            raise BadInput(Problem("recipe", "task.shape", f"'chat' is not possible: {what}", "auto or plain"))
        return None if self.section.shape == "plain" else template

    def segments(self, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> list[Segment]:
        """Return the texts of a row in order; together they are what the template makes of the messages.

        The answer of a turn is what the rendering up to it adds to the rendered prompt, the end-of-turn included. A turn
        whose prompt is not the beginning of its rendering gets no loss (templates that rewrite earlier turns).
        """
        if self.template(tokenizer) is None:
            return _plain_segments(messages, tokenizer.eos_token or "")
        done, segments = "", []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.prompt(messages[:turn], tokenizer)
            full = str(tokenizer.apply_chat_template(list(messages[: turn + 1]), tokenize=False))
            if not (full.startswith(prompt) and prompt.startswith(done)):
                continue
            segments += [(prompt[len(done) :], False), (full[len(prompt) :], True)]
            done = full
        return [segment for segment in segments if segment[0]]

    def _beginning(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the tokens that the tokenizer puts before any text; a chat template writes its own."""
        if self.template(tokenizer) is not None or tokenizer.bos_token_id is None:
            return []
        return [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []

    def prompt_ids(self, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the tokens after which the model is to answer, exactly those that it was trained after."""
        last_answer = max((turn for turn, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        segments = self.segments(messages[: last_answer + 1], tokenizer)
        said = "".join(text for text, _ in segments)
        prompt = self.prompt(messages, tokenizer)
        texts = [text for text, _ in segments] + [prompt[len(said) :]] if prompt.startswith(said) else [prompt]
        ids = self._beginning(tokenizer)
        for text in texts:
            ids.extend(tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids

    def prompt(self, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the text after which the model is to answer the last of ``messages``."""
        if self.template(tokenizer) is None:
            return "".join(text for text, _ in _plain_segments(messages, tokenizer.eos_token or ""))
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

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


def _plain_segments(messages: Sequence[Message], end: str) -> list[Segment]:
    segments: list[Segment] = []
    for message in messages:
        if message["role"] == "assistant":
            segments.append((f" {message['content'].strip()}{end}", True))
        elif message["role"] == "system":
            segments.append((f"{message['content'].strip()}\n", False))
        else:
            segments.append((f"Input: {message['content'].strip()}\nOutput:", False))
    return segments


def _first_ignored(labels: list[int]) -> list[int]:
    """Return ``labels`` with the first one ignored: no token comes before it that could predict it."""
    return [IGNORED, *labels[1:]]


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
    if answered and messages[-2]["role"] == "assistant":
        raise RowError(column, "ends with two assistant's messages", "a user's message before the last")
    return [{"role": message["role"], "content": message["content"]} for message in messages]
