"""How the messages of a row are worded for a tokenizer: by its chat template, or in the plain shape.

A row becomes segments of text, prompt and answer in turn, each encoded on its own, so that a prompt has the same tokens
in training as when the model is asked. Plain text is one segment, all of it learnt, whatever the template.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from finelaunch.data.checks import MAX_PROBLEMS, RowError
from finelaunch.errors import BadInput, Problem
from finelaunch.tasks.base import IGNORED, Example
from finelaunch.tasks.conversations import Message, is_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Segment = tuple[str, bool]
"""A text and whether it is an answer."""

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\b")


class Wording:
    """How messages are worded for one tokenizer.

    Args:
        shape: ``task.shape``.
        tokenizer: The tokenizer.
    """

    def __init__(self, shape: Literal["auto", "chat", "plain"], tokenizer: "PreTrainedTokenizerBase") -> None:
        self.shape = shape
        self.tokenizer = tokenizer

    @cached_property
    def template(self) -> str | None:
        """The chat template in use, or None for the plain shape.

        Raises:
            BadInput: ``shape: chat`` for a tokenizer without one, or several templates of which none is the default.
        """
        if self.shape == "plain" or (self.shape == "auto" and not self.tokenizer.chat_template):
            return None
        try:
            return self.tokenizer.get_chat_template()
        except ValueError as error:
            allowed = f"no usable chat template: {str(error).splitlines()[0]:.160}"
            raise BadInput(Problem("recipe", "task.shape", allowed, "plain, or a tokenizer with a template")) from None

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens by text, those that were added as such included."""
        tokenizer = self.tokenizer
        named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        return named | added

    def encoded(self, examples: Sequence[Example]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield input ids and labels of each example, int32 ``[length]``; all texts are encoded in one call.

        Raises:
            BadInput: Rows that the chat template refuses.
        """
        rows, problems = [], []
        for example in examples:
            try:
                rows.append(self.segments(example["messages"]))
            except RowError as error:
                problems.append(Problem(f"data:row {example['id']!r}", error.column, error.what, "", error.remedy))
        if problems:
            num_more = len(problems) - MAX_PROBLEMS
            more = [Problem("data", "", f"and {num_more:,} more such rows")] if num_more > 0 else []
            raise BadInput(problems[:MAX_PROBLEMS] + more)
        encoded = iter(self._token_ids([text for segments in rows for text, _ in segments]))
        for example, segments in zip(examples, rows, strict=True):
            ids = self._beginning(example["messages"])
            labels = [IGNORED] * len(ids)
            for _, is_answer in segments:
                tokens = next(encoded)
                ids.extend(tokens)
                labels.extend(tokens if is_answer else [IGNORED] * len(tokens))
            # The first token is no target: nothing comes before it that could predict it.
            yield np.array(ids, dtype=np.int32), np.array([IGNORED, *labels[1:]], dtype=np.int32)

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Return the texts of a row in order, up to its last answer.

        A template that marks its answers (``{% generation %}``) says itself what they are. Otherwise the answer of a
        turn is what the rendering up to it adds to the rendered prompt, the end of the turn included but not the white
        space after it. A turn whose prompt is not the beginning of its rendering gets no loss (templates that rewrite
        earlier turns).

        Raises:
            RowError: The chat template refuses the messages.
        """
        if is_text(messages):
            return [(f"{messages[-1]['content']}{self.tokenizer.eos_token or ''}", True)]
        if self.template is None:
            return self._plain_segments(messages)
        if _GENERATION_MARKER.search(self.template):
            return self._marked_segments(messages, self.template)
        done, segments, ends = "", [], tuple(self.special_tokens)
        for turn, message in enumerate(messages):
            if message["role"] != "assistant" or turn == 0:
                continue
            prompt, full = self._rendered(messages[:turn], True), self._rendered(messages[: turn + 1])
            if not (full.startswith(prompt) and prompt.startswith(done)):
                continue
            answer = full[len(prompt) :]
            answer = answer.rstrip() if answer.rstrip().endswith(ends) else answer
            segments += [(prompt[len(done) :], False), (answer, True)]
            done = prompt + answer
        return [segment for segment in segments if segment[0]]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens after which the model is to answer, exactly those that it was trained after.

        Plain text it is to go on with, so its end token is not among them.

        Raises:
            BadInput: The chat template refuses the messages.
        """
        if is_text(messages):
            return self._beginning(messages) + self._token_ids([messages[-1]["content"]])[0]
        last_answer = max((turn for turn, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        try:
            segments = self.segments(messages[: last_answer + 1]) if last_answer >= 0 else []
            prompt = self._prompt(messages)
        except RowError as error:
            raise BadInput(Problem("", error.column, error.what, error.allowed, error.remedy)) from None
        said = "".join(text for text, _ in segments)
        texts = [text for text, _ in segments] + [prompt[len(said) :]] if prompt.startswith(said) else [prompt]
        return self._beginning(messages) + list(chain.from_iterable(self._token_ids(texts)))

    def stop_ids(self) -> list[int]:
        """Return the tokens that end an answer: EOS, and what the chat template ends a turn with, if it can be told."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            answers = [text for text, is_answer in self.segments(turns) if is_answer]
        except (RowError, BadInput):  # of a model of plain text, which is never worded by the template
            answers = []
        last = self._token_ids(answers)[0][-1:] if answers else []
        special = set(self.special_tokens.values())
        ends = [token for token in (self.tokenizer.eos_token_id, *last) if token in special]
        return list(dict.fromkeys(int(token) for token in ends))

    def _beginning(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens that the tokenizer puts before any text; a chat template writes its own."""
        if self.tokenizer.bos_token_id is None or not (is_text(messages) or self.template is None):
            return []
        return list(self._first_token)

    @cached_property
    def _first_token(self) -> list[int]:
        """The BOS token where the tokenizer begins every text with it."""
        first = self.tokenizer("a")["input_ids"][:1]
        return first if first == [self.tokenizer.bos_token_id] else []

    def _prompt(self, messages: Sequence[Message]) -> str:
        """Return the text after which the model is to answer the last of ``messages``.

        Raises:
            RowError: The chat template refuses the messages.
        """
        if self.template is None:
            return "".join(text for text, _ in self._plain_segments(messages))
        return self._rendered(messages, True)

    def _plain_segments(self, messages: Sequence[Message]) -> list[Segment]:
        end = self.tokenizer.eos_token or ""
        segments: list[Segment] = []
        for message in messages:
            if message["role"] == "assistant":
                segments.append((f" {message['content'].strip()}{end}", True))
            elif message["role"] == "system":
                segments.append((f"{message['content'].strip()}\n", False))
            else:
                segments.append((f"Input: {message['content'].strip()}\nOutput:", False))
        return segments

    def _marked_segments(self, messages: Sequence[Message], template: str) -> list[Segment]:
        """Return the segments of a template that marks its answers."""
        from transformers.utils.chat_template_utils import render_jinja_template

        words: dict[str, Any] = self.tokenizer.special_tokens_map
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

    def _rendered(self, messages: Sequence[Message], prompt: bool = False) -> str:
        with _template_faults():
            worded = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
            return str(worded)

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        call = self.tokenizer
        return call(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


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
