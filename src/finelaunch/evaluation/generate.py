"""Answers of a causal LM to prompts."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finelaunch.run.log import warn
from finelaunch.run.stops import stop_if_asked
from finelaunch.run.watch import alive
from finelaunch.tasks.base import pad_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MIN_TEMPERATURE = 1e-3
"""Below it, probabilities overflow."""


@dataclass(frozen=True)
class Generation:
    """How answers are drawn.

    Args:
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 (below 0.001) takes the likeliest token each time; above, tokens are drawn.
        top_k: Draw from the k likeliest tokens; 0: from all.
        top_p: Draw from the fewest tokens that have this probability together.
        seed: Seed of the draws.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    how: Generation,
    stop_ids: Sequence[int],
    batch_size: int = 8,
) -> list[str]:
    """Return the answer to each prompt; where nothing is drawn, the random states are left alone.

    Args:
        model: The model; left in the mode it was in.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt. Where a prompt and its answer exceed the model's positions, the prompt loses
            its first tokens.
        how: How answers are drawn.
        stop_ids: Tokens that end an answer.
        batch_size: Prompts at a time; they are padded on the left. One at a time where a learned prompt comes first:
            padding would come between it and the text.
    """
    import torch
    from transformers import set_seed

    limit = _positions(model)
    if num_virtual_tokens(model):
        batch_size = 1
    rows = [{"input_ids": np.asarray(prompt)} for prompt in fitted(model, prompts, how.max_new_tokens)]
    draws = how.temperature >= MIN_TEMPERATURE
    drawn = {"do_sample": True, "temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
    greedy = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if draws:
        set_seed(how.seed)
    answers = []
    # Not inference_mode: under ZeRO-3 weights are gathered into tensors that training goes on with.
    with torch.no_grad(), _answering(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")  # without padding they say nothing
        for start in range(0, len(rows), batch_size):
            stop_if_asked()
            alive()
            batch = pad_inputs(rows[start : start + batch_size], tokenizer, left=True)
            batch.pop("token_type_ids", None)
            length = batch["input_ids"].shape[1]
            tokens = model.generate(  # pyright: ignore[reportCallIssue]
                **{name: tensor.to(model.device) for name, tensor in batch.items()},
                max_new_tokens=min(how.max_new_tokens, limit - length) if limit else how.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=list(stop_ids),
                **(drawn if draws else greedy),
            )
            answers += tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    """Put ``model`` into evaluation mode and back into the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def fitted(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Sequence[int]]:
    """Return the prompts that leave the model room for an answer: longer ones lose their first tokens, which is said.

    Args:
        model: The model.
        prompts: Token ids of each prompt.
        max_new_tokens: Longest answer, in tokens.
    """
    limit = _positions(model)
    if limit is None:
        return list(prompts)
    room = max(limit - max_new_tokens, 1)
    if any(len(prompt) > room for prompt in prompts):
        warn(f"prompts of more than {room} tokens lose their beginning: the model has {limit} positions")
    return [prompt[-room:] for prompt in prompts]


def _positions(model: Any) -> int | None:
    """Return how many tokens of text and answer the model has positions for; None where there is no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit and max(limit - num_virtual_tokens(model), 1)


def num_virtual_tokens(model: Any) -> int:
    """Return the positions that a learned prompt of ``model`` takes before the text."""
    config: Any = getattr(model, "active_peft_config", None)
    return config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0
