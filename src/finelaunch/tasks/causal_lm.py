"""Causal LM: answers to prompts, with the loss on the answers only, and plain text, with the loss on all of it.

A row of whatever shape becomes messages (``conversations.py``), and messages become tokens (``chat.py``). What is too
long is cut at its end; a text goes on in further pieces instead, so that nothing of it is lost.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from finelaunch.data.checks import check_rows, text_in
from finelaunch.data.features import Features
from finelaunch.data.sources import Rows
from finelaunch.errors import BadInput, Problem
from finelaunch.metrics.language_modelling import perplexity_metrics
from finelaunch.section.base import Section
from finelaunch.tasks.base import IGNORED, Batch, Encoded, Example, Measured, pad, pad_inputs
from finelaunch.tasks.chat import Wording
from finelaunch.tasks.conversations import (
    COLUMNS,
    TEXT,
    Message,
    begun,
    checked_messages,
    is_text,
    messages_of,
    shape_of,
)
from finelaunch.tasks.packing import LENGTHS, collate_packs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 1000
"""Rows that are encoded in one call."""


class CausalLMSection(Section):
    """Answers to prompts, or plain text."""

    name: Literal["causal_lm"] = Field(description="the task")
    max_length: int = Field(
        default=512,
        ge=16,
        description="tokens a row; what is longer is cut at the end and counted, plain text into pieces",
    )
    shape: Literal["auto", "chat", "plain"] = Field(
        default="auto", description="auto: the tokenizer's chat template where it has one, else plain"
    )
    packing: bool = Field(
        default=False,
        description="put several training rows, which do not see each other, into one of at most max_length tokens",
    )


class CausalLM:
    """Prompts and answers, messages, or plain text, into sequences of tokens."""

    columns: ClassVar[Mapping[str, str]] = COLUMNS
    auto_class = "AutoModelForCausalLM"

    def __init__(self, section: CausalLMSection) -> None:
        self.section = section

    def facts(self, rows: Rows, given: Mapping[str, str]) -> dict[str, Any]:
        """Return ``plain_text`` where the rows are such: the model is asked to go on with a text, not to answer."""
        try:
            return {"plain_text": True} if "text" in shape_of(rows, given) else {}
        except BadInput:
            return {}  # read() says what is wrong, with all else that is

    def read(self, rows: Rows, given: Mapping[str, str], facts: Mapping[str, Any]) -> list[Example]:
        """Return examples ``{id, messages, topic}`` that end in an assistant's message, or are one message of text."""
        names = shape_of(rows, given)

        def read(row: Mapping[str, Any]) -> Example:
            return {"messages": messages_of(row, names), "topic": str(row.get("topic") or "")}

        return check_rows(rows, read)

    def ask(self, inputs: Mapping[str, Any], identity: str) -> Example:
        """Return an example from ``text``, or from ``messages`` that end with the user's."""
        messages = inputs.get("messages") or [{"role": "user", "content": text_in(inputs, "text")}]
        asked = checked_messages({"messages": messages}, "messages", answered=False)
        return {"id": identity, "messages": asked, "topic": ""}

    def go_on(self, inputs: Mapping[str, Any], identity: str) -> Example:
        """Return an example from ``text``, which is the beginning of a text that a model of plain text goes on with."""
        return {"id": identity, "messages": [{"role": TEXT, "content": text_in(inputs, "text")}], "topic": ""}

    def group(self, example: Example) -> tuple[str, str]:
        """Return the topic where there is one, else the text or first question, so that a conversation stays whole."""
        messages = example["messages"]
        first = next((message for message in messages if message["role"] == "user"), messages[-1])
        return example["topic"] or " ".join(first["content"].split()), ""

    def encode(self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase") -> Encoded:
        """Return features with ``labels`` as long as ``input_ids`` and -100 outside the answers.

        A conversation is one feature, a text as many as its pieces.

        Raises:
            BadInput: A row that the chat template refuses, or no row with anything to train on.
        """
        columns: dict[str, list[Any]] = defaultdict(list)
        counts: Counter[str] = Counter()
        longest, wording = self.section.max_length, Wording(self.section.shape, tokenizer)
        ends = set(wording.special_tokens.values())
        for start in range(0, len(examples), CHUNK):
            rows = wording.encoded(examples[start : start + CHUNK])
            for index, (ids, labels) in enumerate(rows, start):
                is_plain = is_text(examples[index]["messages"])
                counts["unlearnt"] += not is_plain and not any(labels != IGNORED)
                counts["endless"] += any(labels != IGNORED) and int(labels[labels != IGNORED][-1]) not in ends
                counts["cut"] += not is_plain and len(ids) > longest
                pieces = _pieces(ids, labels, longest) if is_plain else [(ids[:longest], labels[:longest])]
                pieces = [piece for piece in pieces if any(piece[1] != IGNORED)]
                counts["dropped"] += not pieces
                counts["long_texts"] += len(pieces) > 1
                counts["pieces"] += len(pieces) if len(pieces) > 1 else 0
                for piece_ids, piece_labels in pieces:
                    columns["input_ids"].append(piece_ids)
                    columns["labels"].append(piece_labels)
                    columns["example"].append(index)
        if not columns["example"]:
            what = f"no row has an answer within task.max_length {longest}"
            if counts["unlearnt"] == len(examples):
                what = "the chat template leaves no row an answer to learn"
            raise BadInput(Problem("data", "task", what, "", "raise task.max_length or set task.shape to plain"))
        return Encoded(Features.from_lists(columns), tuple(self._notes(examples, counts)))

    def _notes(self, examples: Sequence[Example], counts: Mapping[str, int]) -> Iterator[str]:
        """Yield what is to be said of encoded rows, from what was counted."""
        length, longest = f"of {len(examples):,} rows", self.section.max_length
        notes = {
            "cut": f"{length} cut at task.max_length {longest}",
            "dropped": f"{length} left out: no token of an answer within task.max_length {longest}",
            "unlearnt": f"{length} have no answer to learn: the chat template writes it otherwise once it is given",
            "long_texts": f"{length} are texts of more than task.max_length {longest} tokens, which were cut into "
            f"{counts['pieces']:,} pieces; nothing of them is lost",
            "endless": f"{length} end without an end token, so that the model does not learn to stop",
        }
        yield from (f"{counts[name]:,} {note}" for name, note in notes.items() if counts[name])
        if self.section.shape != "auto" and all(is_text(example["messages"]) for example in examples):
            yield f"task.shape {self.section.shape} has no effect on plain text"

    def prompt_ids(self, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the tokens after which the model is to answer, exactly those that it was trained after.

        Raises:
            BadInput: The chat template refuses the messages.
        """
        return Wording(self.section.shape, tokenizer).prompt_ids(messages)

    def stop_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the tokens that end an answer: EOS, and what the chat template ends a turn with."""
        return Wording(self.section.shape, tokenizer).stop_ids()

    def model_config(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def prepare(self, model: "PreTrainedModel") -> None:
        """Leave the model as it is; of packs it may keep no cache, beside which the documents would see each other."""
        if self.section.packing:
            model.config.use_cache = False

    def collate(self, rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> Batch:
        """Return padded inputs and ``labels`` ``[batch, sequence]``, -100 where padded, whatever the pad token is."""
        if LENGTHS in rows[0]:
            return collate_packs(rows, tokenizer)
        return {**pad_inputs(rows, tokenizer), "labels": pad(rows, "labels", IGNORED)}

    def row_losses(self, outputs: Mapping[str, "torch.Tensor"], labels: "torch.Tensor") -> "torch.Tensor":
        """Return the cross-entropy of the next tokens summed over each row's targets.

        Where most places are no targets, the logits at targets alone are taken up: prompts and padding then cost no
        softmax over the vocabulary. Where most are, a copy of them would cost more than it saves. Both give the same.
        """
        from torch.nn.functional import cross_entropy, pad

        targets = pad(labels[:, 1:], (0, 1), value=IGNORED)
        is_target = targets != IGNORED
        if 2 * int(is_target.sum()) > targets.numel():
            every = outputs["logits"].flatten(0, 1).float()
            losses = cross_entropy(every, targets.flatten(), ignore_index=IGNORED, reduction="none")
            return losses.view(targets.shape).sum(-1)
        logits = outputs["logits"][is_target].float()
        losses = logits.new_zeros(targets.shape)
        losses[is_target] = cross_entropy(logits, targets[is_target], reduction="none")
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
        """Return loss and perplexity per target token; each example's own in its prediction, to be answered later.

        The pieces of a text count together; of a text its beginning is the prompt.
        """
        metrics = perplexity_metrics(results["loss_sum"], results["num_targets"])
        numbers, first, place = np.unique(features.column("example"), return_index=True, return_inverse=True)
        sums = np.bincount(place, weights=results["loss_sum"])
        counts = np.bincount(place, weights=results["num_targets"]).astype(np.int64)
        predictions = []
        for row in np.argsort(first):
            example = examples[int(numbers[row])]
            prompt, reference = asked_of(example["messages"])
            predictions.append(
                {
                    "id": example["id"],
                    "prediction": None,
                    "prompt": prompt,
                    "reference": reference,
                    "loss": round(float(sums[row] / counts[row]), 6),
                    "num_target_tokens": int(counts[row]),
                }
            )
        return Measured(metrics, predictions)


def asked_of(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """Return what a model is asked to show what it has learnt of a row, and what stands there."""
    if not is_text(messages):
        return list(messages[:-1]), messages[-1]["content"]
    beginning, rest = begun(messages[-1]["content"])
    return [{"role": TEXT, "content": beginning}], rest


def _pieces(ids: np.ndarray, labels: np.ndarray, longest: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return a text's ids and labels in pieces of at most ``longest`` tokens, each token a target exactly once.

    A piece begins with the last token of the one before, which is no target there: so it has something to be predicted
    from, and no token is left out.
    """
    step = longest - 1
    pieces = []
    for start in range(0, max(len(ids) - 1, 1), step):
        piece = labels[start : start + longest].copy()
        piece[0] = IGNORED
        pieces.append((ids[start : start + longest], piece))
    return pieces
