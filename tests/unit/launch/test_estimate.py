"""Memory and traffic: cases by hand, what must never be the other way round, and activations as torch keeps them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import AutoConfig

from finelaunch.launch.estimate import (
    GIB,
    MIB,
    REDUCE_BUCKET_ELEMENTS,
    SHARDED,
    Memory,
    Traffic,
    advice,
    byte_text,
    estimate_memory,
    forecast_traffic,
)
from finelaunch.models.section import ModelSection, TokenizerSection
from finelaunch.models.size import ModelSize, model_size

BERT = ModelSize(
    model_type="bert",
    num_parameters=1_000_000,
    num_layers=4,
    hidden_size=100,
    intermediate_size=400,
    num_attention_heads=10,
    vocab_size=5000,
    largest_layer_parameters=500_000,
    max_positions=512,
    layer_parameters=120_000,
    embedding_parameters=500_000,
    query_width=100,
    key_value_width=100,
    activation_function="gelu",
)
LARGE = replace(BERT, num_parameters=7_000_000_000, num_layers=32, hidden_size=4096, layer_parameters=200_000_000)
BATCH: dict[str, Any] = {"per_device_batch_size": 8, "sequence_length": 128}
ENGINES = ("single", "ddp", *SHARDED)
sizes = st.builds(
    lambda layers, heads, width, kind, parameters: replace(
        BERT,
        model_type=kind,
        num_layers=layers,
        num_attention_heads=heads,
        hidden_size=heads * width,
        query_width=heads * width,
        key_value_width=width,
        intermediate_size=3 * heads * width,
        layer_parameters=parameters // (2 * layers),
        num_parameters=parameters,
        embedding_parameters=parameters // 3,
        num_relative_positions=64 if kind == "deberta-v2" else 0,
    ),
    st.integers(1, 40),
    st.integers(1, 64),
    st.integers(1, 128),
    st.sampled_from(["bert", "gpt2", "llama", "deberta-v2"]),
    st.integers(10_000, 10**11),
)
precisions = st.sampled_from(["fp32", "tf32", "bf16", "fp16"])
batches = st.fixed_dictionaries(
    {"per_device_batch_size": st.integers(1, 512), "sequence_length": st.integers(1, 4096)}
    | {"task_name": st.sampled_from(["causal_lm", "question_answering"])}
)


def memory(engine: str, world_size: int = 1, precision: str = "fp32", size: ModelSize = BERT, **more: Any) -> Memory:
    return estimate_memory(size, engine=engine, world_size=world_size, precision=precision, **{**BATCH, **more})


@pytest.mark.parametrize(
    ("engine", "world_size", "precision", "expected"),
    [  # millions of bytes for a million parameters
        ("single", 1, "fp32", (4, 4, 8)),
        ("single", 1, "bf16", (4, 4, 8)),
        ("ddp", 4, "fp16", (4, 4, 8)),
        ("zero1", 4, "bf16", (2, 2, 3)),
        ("zero2", 4, "bf16", (2, 0.5, 3)),
        ("zero3", 4, "bf16", (0.5, 0.5, 3)),
        ("zero1", 4, "fp32", (4, 4, 3)),
        ("zero2", 4, "tf32", (4, 1, 3)),
        ("zero3", 4, "fp32", (1, 1, 2)),
        ("fsdp2", 4, "bf16", (1, 1, 2)),
        ("fsdp2", 4, "auto", (1, 1, 2)),
    ],
)
def test_state_of_a_million_parameters(
    engine: str, world_size: int, precision: str, expected: tuple[float, ...]
) -> None:
    found = memory(engine, world_size, precision)
    assert (found.weights, found.gradients, found.optimizer) == tuple(round(part * 10**6) for part in expected)
    assert found.total == sum(expected) * 10**6 + found.activations + found.working


def test_frozen_parameters_have_neither_gradients_nor_state() -> None:
    found = memory("ddp", 2, num_trainable=1000)
    assert (found.weights, found.gradients, found.optimizer, found.working) == (4_000_000, 4000, 8000, 4000)


def test_optimizers() -> None:
    assert memory("ddp", optim="adamw_torch") == memory("ddp")
    assert memory("ddp", optim="sgd").optimizer == 0
    assert memory("ddp", optim="adafactor").optimizer == 80_000


def test_offload_moves_what_the_engine_can_move() -> None:
    def moved(engine: str, offload: str) -> tuple[bool, ...]:
        whole, rest = memory(engine, 2), memory(engine, 2, offload=offload)
        assert rest.working == whole.working
        return tuple(getattr(rest, part) == 0 for part in ("weights", "gradients", "optimizer"))

    assert moved("zero1", "optimizer") == (False, False, True)
    assert moved("zero2", "optimizer") == (False, True, True)
    assert moved("zero3", "optimizer") == (False, True, True)
    assert moved("zero3", "all") == moved("fsdp2", "all") == (True, True, True)
    assert moved("ddp", "all") == (False, False, False)


def test_activations_and_logits_by_hand() -> None:
    # A token and layer, fp32: 2 h of the norms, 6 h and 2 x 4 h of the matrices, 128 of the mask, 4 bytes each;
    # 10 numbers of the attention; 2 h bytes of dropout masks. Outside the layers 3 h.
    layer = 4 * (200 + 600 + 800 + 128 + 10) + 200
    assert memory("single").activations == 8 * 128 * (4 * layer + 1200)
    checkpointed = memory("single", activation_checkpointing=True)
    assert checkpointed.activations == 8 * 128 * (layer + 3 * 400 + 1200)
    words = memory("single", task_name="causal_lm")
    assert words.activations - memory("single").activations == 4 * 8 * 128 * 5000
    assert words.working == 8 * 8 * 128 * 5000


def test_working_memory_by_hand() -> None:
    assert memory("single").working == 0
    assert memory("single", precision="bf16").working == 2 * 500_000
    assert memory("single", precision="bf16", task_name="causal_lm").working == 2 * 10**6 + 8 * 8 * 128 * 5000
    assert memory("ddp", 2).working == 4_000_000
    assert memory("zero2", 2, "bf16").working == 2 * REDUCE_BUCKET_ELEMENTS
    assert memory("zero3", 2, "bf16", reduce_bucket_elements=10).working == 2 * (10**6 + 10)
    assert memory("fsdp2", 2, "bf16").working == 2 * (2 * 120_000 + 520_000 + 520_000)


def test_fsdp2_keeps_whole_gradients_between_micro_steps() -> None:
    more = memory("fsdp2", 4, "bf16", gradient_accumulation_steps=2).gradients - memory("fsdp2", 4, "bf16").gradients
    assert more == 2_000_000


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@given(world_size=st.integers(2, 1024), size=sizes)
def test_more_cutting_never_needs_more(precision: str, world_size: int, size: ModelSize) -> None:
    states = [memory(engine, world_size, precision, size).state for engine in ("zero3", "zero2", "zero1", "ddp")]
    # ddp is not padded to whole shares.
    assert states[0] <= states[1] <= states[2] <= states[3] + 32


@given(size=sizes, engine=st.sampled_from(SHARDED), ranks=st.integers(1, 512), precision=precisions, batch=batches)
def test_more_ranks_never_need_more(size: ModelSize, engine: str, ranks: int, precision: str, batch: Any) -> None:
    one, two = (memory(engine, count, precision, size, **batch) for count in (ranks, ranks + 1))
    assert two.total <= one.total
    assert memory("ddp", 2, precision, size, **batch) == memory("ddp", ranks + 1, precision, size, **batch)


@given(size=sizes, engine=st.sampled_from(ENGINES), precision=precisions, batch=batches)
def test_less_work_never_needs_more(size: ModelSize, engine: str, precision: str, batch: Any) -> None:
    whole = memory(engine, 2, precision, size, **batch)
    checkpointed = memory(engine, 2, precision, size, **batch, activation_checkpointing=True)
    assert checkpointed.activations <= whole.activations
    assert replace(checkpointed, activations=0) == replace(whole, activations=0)
    bigger = {**batch, "per_device_batch_size": batch["per_device_batch_size"] + 1}
    assert whole.activations < memory(engine, 2, precision, size, **bigger).activations
    for offload in ("optimizer", "all"):
        assert memory(engine, 2, precision, size, **batch, offload=offload).total <= whole.total
    assert memory(engine, 2, precision, size, **batch, num_trainable=size.num_parameters // 2).total <= whole.total


@pytest.mark.parametrize(
    ("engine", "precision", "expected"),
    [  # millions of bytes, 4 ranks, 3 micro-steps; a rank sends 3/4 of what is gathered
        ("single", "fp32", (0, 0)),
        ("ddp", "bf16", (6, 0)),
        ("zero1", "bf16", (4.5, 1.5)),
        ("zero2", "fp32", (9, 3)),
        ("zero3", "bf16", (4.5, 9)),
        ("fsdp2", "bf16", (1.5, 9)),
        ("fsdp2", "fp32", (3, 18)),
    ],
)
def test_traffic_by_hand(engine: str, precision: str, expected: tuple[float, float]) -> None:
    found = forecast_traffic(BERT, engine=engine, world_size=4, precision=precision, gradient_accumulation_steps=3)
    assert (found.gradients, found.weights) == tuple(round(part * 10**6) for part in expected)
    assert found.total == found.gradients + found.weights


@given(size=sizes, engine=st.sampled_from(ENGINES), precision=precisions, steps=st.integers(1, 64))
def test_alone_nothing_is_sent(size: ModelSize, engine: str, precision: str, steps: int) -> None:
    settings: dict[str, Any] = {"precision": precision, "gradient_accumulation_steps": steps}
    assert forecast_traffic(size, engine=engine, world_size=1, **settings) == Traffic(0, 0)
    two = forecast_traffic(size, engine="ddp", world_size=2, **settings)
    assert two.total == 4 * size.num_parameters == memory("ddp", 2, size=size).gradients
    frozen = forecast_traffic(size, engine=engine, world_size=8, **settings, num_trainable=0)
    assert frozen.gradients == 0


def advise(size: ModelSize = BERT, **changes: Any) -> list[str]:
    settings: dict[str, Any] = {"engine": "ddp", "world_size": 4, "precision": "bf16", **BATCH}
    return advice(size, **{**settings, **changes})


def test_a_small_model_is_not_cut() -> None:
    said = advise(engine="zero3", gradient_accumulation_steps=2)
    assert said == [
        "weights, gradients and optimizer are 15.3 MiB in all, which one device holds; launch.accelerate_config=ddp "
        "sends 5.7 MiB a rank and step instead of 8.6 MiB"
    ]
    assert advise() == advise(engine="single", world_size=1) == []
    assert advise(engine="zero3", world_size=1) == []
    # ZeRO-2 in 2 bytes sends half of what DDP sends in 4, as long as it reduces once.
    assert advise(engine="zero2") == []
    assert len(advise(engine="zero2", gradient_accumulation_steps=4)) == 1


def test_a_large_model_is_cut() -> None:
    for engine, ranks in (("single", 1), ("ddp", 4)):
        said = advise(LARGE, engine=engine, world_size=ranks)
        assert len(said) == 1
        assert "need 104.3 GiB a device" in said[0]
        assert all(name in said[0] for name in ("zero2 ", "zero3 ", "fsdp2 ", "launch.offload"))
    assert "zero3 26.1 GiB" in said[0]
    assert advise(LARGE, engine="zero3") == []


def test_large_activations_are_named() -> None:
    batch = {"per_device_batch_size": 512, "sequence_length": 2048}
    said = advise(**batch)
    assert len(said) == 1
    assert "launch.per_device_batch_size=256 makes it" in said[0]
    assert "launch.activation_checkpointing=true makes it" in said[0]
    only = advise(**batch, activation_checkpointing=True)
    assert len(only) == 1
    assert "checkpointing" not in only[0]
    alone = {"per_device_batch_size": 1, "sequence_length": 2**20, "activation_checkpointing": True}
    assert advise(**alone) == []


def test_byte_text() -> None:
    given = (0, 1023, 1024, round(88.4 * MIB), 1536 * MIB, MIB - 1, GIB - 1, 5000 * GIB)
    said = ["0 B", "1023 B", "1.0 KiB", "88.4 MiB", "1.5 GiB", "1.0 MiB", "1.0 GiB", "5,000.0 GiB"]
    assert [byte_text(count) for count in given] == said


WIDE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {**WIDE, "attention_probs_dropout_prob": 0.0},
    "electra": {**WIDE, "attention_probs_dropout_prob": 0.0},
    "distilbert": {"dim": 128, "n_layers": 4, "n_heads": 4, "hidden_dim": 512, "attention_dropout": 0.0},
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 4, "attn_pdrop": 0.0},
    "llama": WIDE,
    "mistral": {**WIDE, "num_key_value_heads": 2},
    "deberta-v2": {**WIDE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 64},
}
BAND = (0.9, 1.25)
"""Of estimate over measured. Without checkpointing 0.96 to 1.08; with it dropout's masks, which the hooks do not see
here, weigh more: 0.92 to 1.23."""


def kept_bytes(model: Any, task: str, rows: int, length: int, autocast: bool) -> int:
    """Return the bytes that autograd keeps of a forward pass and its loss, without parameters and their casts."""
    ours = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape)[::-1] for p in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        is_cast = tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes
        if tensor.untyped_storage().data_ptr() not in ours and not is_cast:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.randint(2, 900, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = model(input_ids=ids, attention_mask=mask, use_cache=False) if task == "causal_lm" else None
        if outputs is not None:
            loss = cross_entropy(outputs.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        else:
            outputs = model(input_ids=ids, attention_mask=mask)
            loss = outputs.start_logits.float().sum() + outputs.end_logits.float().sum()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("checkpointing", "length"), [(False, 48), (False, 160), (True, 96)])
@pytest.mark.parametrize("model_type", SHAPES)
def test_activations_are_what_torch_keeps(model_type: str, checkpointing: bool, length: int, precision: str) -> None:
    rows, task = 4, "causal_lm" if model_type in ("gpt2", "llama", "mistral") else "question_answering"
    config = AutoConfig.for_model(model_type, vocab_size=1000, **SHAPES[model_type])
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 1
    head = "AutoModelForCausalLM" if task == "causal_lm" else "AutoModelForQuestionAnswering"
    # A CPU keeps dropout's masks as numbers of the tensors' own type, which no GPU does.
    for name in ("hidden_dropout_prob", "dropout", "resid_pdrop", "embd_pdrop", "attention_probs_dropout_prob"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    model = getattr(transformers, head).from_config(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    section = ModelSection(
        init="scratch",
        config={"model_type": model_type, **SHAPES[model_type]},
        tokenizer=TokenizerSection(vocab_size=1000),
    )
    size = model_size(section, task, 2)
    assert isinstance(size, ModelSize)
    expected = memory(
        "single", precision=precision, size=size, per_device_batch_size=rows, sequence_length=length, task_name=task
    ).activations
    if checkpointing:
        checkpointed = memory(
            "single",
            precision=precision,
            size=size,
            per_device_batch_size=rows,
            sequence_length=length,
            task_name=task,
            activation_checkpointing=True,
        )
        # The layer that is computed again is not there yet while the hooks look.
        ends = 3 * size.hidden_size * 4 * rows * length
        words = 4 * rows * length * size.vocab_size if task == "causal_lm" else 0
        layer = (expected - ends - words) // size.num_layers
        inputs = size.hidden_size * 4 * rows * length
        expected = checkpointed.activations - layer + inputs
    ratio = expected / kept_bytes(model, task, rows, length, precision == "bf16")
    print(f"{model_type} {precision} length {length} checkpointing {checkpointing}: {ratio:.3f}")
    assert BAND[0] < ratio < BAND[1]
