"""Packing: several encoded rows (documents) in one row of at most ``max_length`` tokens, blind to each other.

Positions begin at 0 in every document and no attention mask is given: from that transformers makes a mask in which no
document sees another. Not every architecture follows it, nor every kind of attention, so the model that is about to be
trained is asked before its first step.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from finelaunch.data.features import Features
from finelaunch.errors import BadInput, Problem
from finelaunch.run.ranks import gather
from finelaunch.tasks.base import IGNORED, Batch, Encoded, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

LENGTHS = "document_lengths"
"""The column of a packed row that holds the tokens of each of its documents."""
EXAMPLES = "document_examples"
"""The column of a packed row that holds the examples that its documents come from."""

NOISE = {"fp32": 1e-3}
"""How much of what a visible document changes may be rounding, by precision; where every bit is equal none is."""
NOISE_16_BIT = 0.25


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Return which rows share a pack: the longest first, each where it leaves the least room.

    Args:
        lengths: Tokens of each row, none above ``room``.
        room: Tokens of a pack.

    Returns:
        Packs in the order of their first rows, each with its rows in order.

    Source: best-fit decreasing, which never needs more than 11/9 of the fewest packs and one (D. S. Johnson, 1973).
    """
    packs: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)
    rooms: list[int] = []  # the keys of with_room, ascending
    for row in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        place = bisect_left(rooms, lengths[row])
        if place == len(rooms):
            pack, left = len(packs), room
            packs.append([])
        else:
            left = rooms[place]
            pack = with_room[left].pop()
            if not with_room[left]:
                del rooms[place], with_room[left]
        packs[pack].append(row)
        left -= int(lengths[row])
        if left:
            if left not in with_room:
                insort(rooms, left)
            with_room[left].append(pack)
    return sorted(map(sorted, packs))


def packed(encoded: Encoded, max_length: int) -> Encoded:
    """Return the rows of ``encoded`` in packs of at most ``max_length`` tokens.

    Each has the columns :data:`LENGTHS` and :data:`EXAMPLES`; its ``example`` is that of its first document.
    """
    features = encoded.features
    lengths = features.lengths.tolist()
    columns: dict[str, list[Any]] = defaultdict(list)
    for rows in best_fit(lengths, max_length):
        for name in ("input_ids", "labels"):
            columns[name].append(np.concatenate([features.at(name, row) for row in rows]))
        examples = [int(features.at("example", row)) for row in rows]
        columns["example"].append(examples[0])
        columns[EXAMPLES].append(examples)
        columns[LENGTHS].append([lengths[row] for row in rows])
    notes = encoded.notes
    if len(columns["example"]) == len(lengths):
        what = f"no two rows fit into one pack of {max_length:,} tokens"
        notes = (*notes, f"{what}: raise task.max_length, or leave task.packing out")
    return Encoded(Features.from_lists(columns), notes)


def packs_text(features: Features, max_length: int) -> str:
    """Return how many packs of at most ``max_length`` tokens there are, of how many rows, and how full they are."""
    filled = int(features.lengths.sum()) / (len(features) * max_length)
    packs = f"{len(features):,} packs of at most {max_length:,} tokens"
    return f"{len(features.column(LENGTHS)):,} rows in {packs}, {filled:.1%} of their room filled"


def is_packed(features: Features) -> bool:
    """Return whether the rows are packs."""
    return LENGTHS in features.table.column_names


def documents_per_row(features: Features) -> float:
    """Return how many documents a row has on average; 1 where they are not packed."""
    return len(features.column(LENGTHS)) / len(features) if is_packed(features) else 1.0


def examples_of(features: Features, row: int) -> list[int]:
    """Return the examples that ``row`` holds."""
    return features.at(EXAMPLES, row).tolist() if is_packed(features) else [int(features.at("example", row))]


def collate_packs(rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> Batch:
    """Return ``input_ids``, ``position_ids`` and ``labels``, int64 ``[batch, longest]``, and no attention mask.

    What fills a row up is a document of its own without targets.
    """
    fill: Any = tokenizer.pad_token_id
    longest = max(len(row["input_ids"]) for row in rows)
    positions = [
        {"position_ids": restarting([*row[LENGTHS].tolist(), longest - len(row["input_ids"])])} for row in rows
    ]
    return {
        "input_ids": pad(rows, "input_ids", 0 if fill is None else fill),
        "position_ids": pad(positions, "position_ids", 0),
        "labels": pad(rows, "labels", IGNORED),
    }


def restarting(lengths: Sequence[int]) -> np.ndarray:
    """Return the positions of documents that stand one after another, each beginning at 0, int64 ``[sum]``."""
    return np.fromiter(chain.from_iterable(map(range, lengths)), dtype=np.int64)


def refuse_mixing(
    model: Any, tokenizer: "PreTrainedTokenizerBase", batch_size: int, precision: str, is_whole: bool
) -> None:
    """Refuse a model whose documents see each other in a pack, or are others there than alone; all ranks call this.

    It is shown two rows of two documents. The first document of each is changed: no logit of the second ones may move.
    Then the second ones are shown alone: their logits must be those of the pack. What a document that is seen changes
    is measured beside it, so that rounding is told from sight.

    Args:
        model: What is trained, as the engine has prepared it; left in the mode it was in, no random state is touched.
        tokenizer: Its tokenizer.
        batch_size: Rows of a micro-batch: flash attention finds documents in batches of one row only.
        precision: What a forward pass computes in.
        is_whole: The weights are not cut, so that a pass in training mode needs no backward pass: activation
            checkpointing is in it.

    Raises:
        BadInput: On some rank it is so; on all of them.
    """
    for why in gather(_why_mixed(model, tokenizer, batch_size, precision, is_whole)):
        if why:
            config = getattr(model, "module", model).config  # DeepSpeed's engine has its own settings there
            kind = getattr(config, "_attn_implementation", None) or "its own"
            what = f"{config.model_type} ({kind} attention) cannot be trained in packs: {why}"
            remedy = "task.packing=false" + (", or launch.per_device_batch_size=1" if "flash" in kind else "")
            raise BadInput(Problem("recipe", "task.packing", what, "", remedy))


FIRST, SECOND = (6, 9), (7, 7)
"""Tokens of the two documents of the two rows that a model is shown; 16 is the least ``max_length``."""
WIDTH = 16


def _why_mixed(
    model: Any, tokenizer: "PreTrainedTokenizerBase", batch_size: int, precision: str, is_whole: bool
) -> str:
    """Return why documents are no good in packs of this model; empty where they are."""
    import torch

    count = min(batch_size, len(FIRST))
    ids = (torch.arange(len(FIRST) * WIDTH).reshape(-1, WIDTH)[:count] * 7 + 11) % len(tokenizer)
    other = ids.clone()
    for row in range(count):
        other[row, : FIRST[row]] = (ids[row, : FIRST[row]] + 3) % len(tokenizer)
    lengths = [(first, second, WIDTH - first - second) for first, second in zip(FIRST, SECOND, strict=True)][:count]
    apart = torch.from_numpy(np.stack([restarting(row) for row in lengths]))
    places = [slice(first, first + second) for first, second in zip(FIRST, SECOND, strict=True)][:count]

    def second_of(ids: Any, positions: Any) -> "torch.Tensor":
        logits = _logits(model, input_ids=ids, position_ids=positions)
        return torch.stack([logits[row, place] for row, place in enumerate(places)])

    training = model.training
    try:
        model.eval()
        try:
            packed = second_of(ids, apart)
        except (TypeError, ValueError) as error:
            return f"it takes no position_ids ({str(error).splitlines()[0]:.120})"
        alone = torch.cat(
            [
                _logits(model, input_ids=row[None, place], attention_mask=torch.ones_like(row[None, place]))
                for row, place in zip(ids, places, strict=True)
            ]
        )
        seen = (second_of(ids, torch.arange(WIDTH).repeat(count, 1)) - alone).abs().max()
        bound = NOISE.get(precision, NOISE_16_BIT) * float(seen)
        moved = float((second_of(other, apart) - packed).abs().max())
        if is_whole:
            model.train()
            moved = max(moved, float((second_of(other, apart) - second_of(ids, apart)).abs().max()))
        differs = float((packed - alone).abs().max())
    finally:
        model.train(training)
    if moved > bound:
        return f"a changed document moves the logits of the next one by {moved:.2g}"
    if differs > bound:
        return f"a document in a pack has other logits than alone, by {differs:.2g}: its positions are not followed"
    return ""


def _logits(model: Any, **inputs: "torch.Tensor") -> "torch.Tensor":
    """Return the logits in float32, dropout masks drawn from one seed and without a trace in the random states."""
    import torch

    devices = [model.device.index or 0] if model.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        outputs = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    return outputs["logits"].float()
