"""Packs: nothing lost, no document seen by another, the loss and gradient of the documents alone; else refused."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from finelaunch.data.features import Features
from finelaunch.data.sampler import TrainingRows
from finelaunch.errors import BadInput
from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.tasks import CausalLM, CausalLMSection
from finelaunch.tasks.base import IGNORED, Encoded
from finelaunch.tasks.packing import (
    EXAMPLES,
    LENGTHS,
    best_fit,
    documents_per_row,
    examples_of,
    packed,
    packs_text,
    refuse_mixing,
    restarting,
)
from finelaunch.training.trainer import loss_rule

LM = CausalLM(CausalLMSection(name="causal_lm", packing=True))
ROOM = 32
GPT2 = {"vocab_size": 600, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
SMALL = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
OPT = {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}
SHAPES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": 4},
    "qwen2": LLAMA,
    "gemma": {**LLAMA, "head_dim": 8},
    "phi": SMALL,
    "gpt_neox": SMALL,
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "opt": OPT,
    "falcon": SMALL,
    "bloom": {"vocab_size": 600, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def model_of(kind: str, attention: str = "sdpa", **others: Any) -> Any:
    set_seed(3)
    config = AutoConfig.for_model(kind, **SHAPES[kind], **others)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().train()
    LM.prepare(model)
    return model


def encoded(lengths: tuple[int, ...] = (5, 23, 11, 2, 17, 8, 32, 9)) -> Encoded:
    """Return rows of which the first half is a prompt, two rows of one example among them."""
    generator, columns = np.random.default_rng(1), {"input_ids": [], "labels": [], "example": []}
    for number, length in enumerate(lengths):
        ids = generator.integers(7, 600, length).astype(np.int32)
        labels = np.where(np.arange(length) < max(length // 2, 1), IGNORED, ids)
        for name, value in zip(columns, (ids, labels, max(number, 1)), strict=True):
            columns[name].append(value)
    return Encoded(Features.from_lists(columns), ("a note",))


@pytest.mark.parametrize("seed", range(20))
def test_every_row_stands_in_one_pack_and_no_pack_is_too_long(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 65, 200).tolist()
    packs = best_fit(lengths, 64)
    assert sorted(chain.from_iterable(packs)) == list(range(200))
    assert packs == best_fit(lengths, 64)
    filled = [sum(lengths[row] for row in pack) for pack in packs]
    assert max(filled) <= 64
    # No row of a pack would have fitted into another one that was there: at most one pack is half empty.
    assert sum(tokens <= 32 for tokens in filled) <= 1
    assert len(packs) <= 11 / 9 * np.ceil(sum(lengths) / 64) + 1


def test_the_longest_rows_come_first_and_each_goes_where_it_fits_best() -> None:
    assert best_fit([3, 6, 4, 7, 10, 4, 6], 10) == [[0, 3], [1, 5], [2, 6], [4]]
    assert best_fit([2, 2, 2, 2], 4) == [[0, 1], [2, 3]]
    assert best_fit([5], 5) == [[0]]


def test_packs_hold_the_rows_unchanged_and_name_their_examples() -> None:
    whole, packs = encoded(), packed(encoded(), ROOM)
    found = {}
    for row in range(len(packs.features)):
        about = packs.features[row]
        cuts = np.cumsum(about[LENGTHS])[:-1]
        parts = zip(*(np.split(about[name], cuts) for name in ("input_ids", "labels")), strict=True)
        for example, (ids, labels) in zip(about[EXAMPLES], parts, strict=True):
            found[tuple(ids)] = (tuple(labels), int(example))
        assert examples_of(packs.features, row) == about[EXAMPLES].tolist()
        assert about["example"] == about[EXAMPLES][0]
    rows = [whole.features[row] for row in range(len(whole.features))]
    assert found == {tuple(row["input_ids"]): (tuple(row["labels"]), row["example"]) for row in rows}
    assert documents_per_row(packs.features) == len(rows) / len(packs.features) > 1
    assert documents_per_row(whole.features) == 1
    assert examples_of(whole.features, 2) == [2]
    assert packs.notes == ("a note",)
    said = f"8 rows in {len(packs.features)} packs of at most 32 tokens, 83.6% of their room filled"
    assert packs_text(packs.features, ROOM) == said
    alone = packed(encoded((20, 20)), ROOM)
    assert "raise task.max_length" in alone.notes[-1]


def test_positions_begin_anew_in_each_document_and_what_fills_up_is_one_of_its_own(bpe: Any) -> None:
    rows = [
        {"input_ids": np.arange(1, 8), "labels": np.arange(1, 8), LENGTHS: np.array([3, 4])},
        {"input_ids": np.arange(1, 6), "labels": np.arange(1, 6), LENGTHS: np.array([5])},
    ]
    batch = LM.collate(rows, bpe)
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1]]
    assert batch["labels"][1].tolist() == [1, 2, 3, 4, 5, IGNORED, IGNORED]
    assert batch["input_ids"][1].tolist() == [1, 2, 3, 4, 5, bpe.pad_token_id, bpe.pad_token_id]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert restarting([2, 0, 1]).tolist() == [0, 1, 0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_another_first_document_moves_no_logit_of_the_second_one(kind: str, attention: str, bpe: Any) -> None:
    model = model_of(kind, attention).eval()
    packs = packed(encoded(), ROOM).features
    batch = LM.collate([packs[row] for row in range(len(packs))], bpe)
    labels = batch.pop("labels")
    first = [int(packs.at(LENGTHS, row)[0]) for row in range(len(packs))]
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    for row, length in enumerate(first):
        changed["input_ids"][row, :length] = (batch["input_ids"][row, :length] + 5) % 600
    with torch.no_grad():
        before, after = model(**batch).logits, model(**changed).logits
        mixed = model(changed["input_ids"], attention_mask=torch.ones_like(labels)).logits
    moved = 0
    for row, length in enumerate(first):
        assert torch.equal(before[row, length:], after[row, length:])
        moved += not torch.equal(mixed[row, length:], after[row, length:])
    assert moved > 0  # what would be seen without the positions


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "gpt_neox"])
def test_loss_and_gradient_are_those_of_the_documents_unpacked(kind: str, bpe: Any) -> None:
    """A global batch of packs in micro-batches, filled up with rows without targets, against the rows one by one."""
    model = model_of(kind).eval()
    loss_of = loss_rule(LM.row_losses)

    def course(features: Features, rows: list[int], size: int) -> tuple[float, dict[str, torch.Tensor]]:
        data = TrainingRows(features, IGNORED)
        batches = [LM.collate([data[row] for row in rows[at : at + size]], bpe) for at in range(0, len(rows), size)]
        num_items = torch.stack([(batch["labels"] != IGNORED).sum() for batch in batches]).sum()
        model.zero_grad()
        total = 0.0
        for batch in batches:
            labels = batch.pop("labels")
            loss = loss_of(model(**batch), labels, num_items)
            loss.backward()
            total += float(loss.detach())
        return total, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    whole, packs = encoded().features, packed(encoded(), ROOM).features
    rows = list(range(len(packs)))
    loss, gradient = course(packs, [*rows, *[~rows[-1]] * (-len(rows) % 2)], 2)
    expected, expected_gradient = course(whole, list(range(len(whole))), 1)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradient.keys() == expected_gradient.keys()
    for name, one in gradient.items():
        torch.testing.assert_close(one, expected_gradient[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "qwen2", "gemma", "phi", "gpt_neox", "mixtral"])
def test_architectures_that_keep_documents_apart_may_be_trained_on_packs(kind: str, bpe: Any) -> None:
    model = model_of(kind)
    state = torch.get_rng_state()
    for batch_size in (1, 8):
        refuse_mixing(model, bpe, batch_size, "fp32", is_whole=True)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["opt", "falcon", "bloom", "mamba"])
def test_architectures_whose_documents_see_each_other_are_refused_by_name(kind: str, bpe: Any) -> None:
    model = model_of(kind, "eager").eval()
    with pytest.raises(BadInput, match=rf"task\.packing: {kind} \(.*\) cannot be trained in packs: .* moves"):
        refuse_mixing(model, bpe, 2, "fp32", is_whole=True)
    assert not model.training


def test_a_cache_would_let_documents_see_each_other(bpe: Any) -> None:
    model = model_of("llama")
    model.config.use_cache = True
    with pytest.raises(BadInput, match=r"llama \(sdpa attention\)"):
        refuse_mixing(model, bpe, 2, "fp32", is_whole=True)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA))
    CausalLM(CausalLMSection(name="causal_lm")).prepare(plain)
    assert plain.config.use_cache


def test_activation_checkpointing_keeps_documents_apart(bpe: Any) -> None:
    for kind in ("gpt2", "llama"):
        model = model_of(kind)
        model.gradient_checkpointing_enable()
        refuse_mixing(model, bpe, 2, "fp32", is_whole=True)


def test_what_takes_no_positions_or_ignores_them_is_refused(bpe: Any) -> None:
    llama = model_of("llama")

    class Bare(torch.nn.Module):
        """A model whose forward pass knows ids and a mask alone."""

        config, device = llama.config, llama.device

        def __init__(self, takes: bool) -> None:
            super().__init__()
            self.takes = takes

        def forward(self, input_ids: Any, attention_mask: Any = None, **others: Any) -> Any:
            if others and not self.takes:
                raise TypeError("forward() got an unexpected keyword argument 'position_ids'")
            return llama(input_ids, attention_mask=attention_mask)

    with pytest.raises(BadInput, match="takes no position_ids"):
        refuse_mixing(Bare(takes=False), bpe, 2, "fp32", is_whole=True)
    with pytest.raises(BadInput, match="moves the logits"):
        refuse_mixing(Bare(takes=True), bpe, 2, "fp32", is_whole=False)


def test_positions_that_run_on_are_refused(bpe: Any) -> None:
    """Documents apart, but the second one at later positions than alone."""
    model = model_of("gpt2")

    def later(_: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (given[0] + torch.arange(given[0].shape[-1]) // 2,)

    model.transformer.wpe.register_forward_pre_hook(later)
    with pytest.raises(BadInput, match="other logits than alone"):
        refuse_mixing(model, bpe, 2, "fp32", is_whole=False)


def test_methods_that_drop_positions_are_refused_before_anything_starts() -> None:
    for name, answer in (("prompt_tuning", True), ("prefix_tuning", True), ("lora", False)):
        words = read_overrides([f"method.name={name}", "task.packing=true"])["recipe"]
        if answer:
            with pytest.raises(BadInput, match=rf"task\.packing: {name} drops the positions"):
                load_recipe("domain_assistant/smoke", words)
        else:
            assert load_recipe("domain_assistant/smoke", words)[0].task.packing
