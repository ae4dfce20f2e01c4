"""Memory and traffic: cases by hand, and what must never be the other way round."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.launch.advice import advice, rate_advice
from finelaunch.launch.estimate import (
    GIB,
    MIB,
    REDUCE_BUCKET_ELEMENTS,
    SHARDED,
    Memory,
    byte_text,
    estimate_memory,
)
from finelaunch.launch.traffic import Traffic, forecast_traffic
from finelaunch.methods.lora import LoraSection
from finelaunch.methods.prompts import PromptTuningSection
from finelaunch.methods.qlora import QLoraSection
from finelaunch.methods.trainable import Quantised, Trainable
from finelaunch.models.size import ModelSize

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
    found = memory("ddp", 2, trainable=Trainable(1000))
    assert (found.weights, found.gradients, found.optimizer, found.working) == (4_000_000, 4000, 8000, 4000)


def test_a_held_model_keeps_and_casts_next_to_nothing() -> None:
    head = Trainable(1000, backward="head")
    found = memory("single", precision="bf16", trainable=head)
    assert (found.weights, found.gradients, found.optimizer) == (4_000_000, 4000, 8000)
    assert found.activations == 8 * 128 * 100 * 2
    assert found.working == 2 * 100 * 400 + 8 * 128 * (2 * 100 * 4 + 2 * 400 * 2)


def test_weights_in_4_bits_and_the_copy_that_is_multiplied() -> None:
    quantised = Quantised(num_parameters=400_000, num_bytes=206_000, largest=40_000)
    adapter = Trainable(10_000, num_added=10_000, backward="frozen", quantised=quantised)
    found = memory("single", trainable=adapter)
    assert found.weights == 4 * 610_000 + 206_000
    assert (found.gradients, found.optimizer, found.working) == (40_000, 80_000, 4 * 40_000)
    half = memory("single", precision="bf16", trainable=adapter)
    assert half.weights == found.weights
    assert half.working == 6 * 40_000 + 2 * (500_000 + 10_000 - 400_000)
    assert memory("zero3", 4, trainable=adapter).weights == 4 * 152_500 + 51_500
    lora = replace(adapter, quantised=None)
    assert memory("single", trainable=lora).weights == 4 * 1_010_000
    sent = {"engine": "zero3", "world_size": 4, "precision": "fp32", "gradient_accumulation_steps": 1}
    assert forecast_traffic(BERT, **sent, trainable=adapter).weights == 2 * found.weights * 3 // 4


def test_an_adapter_reads_a_frozen_layers_input() -> None:
    layers = tuple((f"layer.{number}.{name}", 100, 100) for number in range(4) for name in ("query", "value", "dense"))
    frozen = Trainable(0, backward="frozen")
    none, shared, own = (
        memory("single", trainable=one).activations
        for one in (
            frozen,
            replace(frozen, adapted=layers, rank=2),
            replace(frozen, adapted=layers, rank=2, has_dropout=True),
        )
    )
    # A token and layer, fp32: the first two read one tensor; with dropout each has its own, and a mask of a byte.
    assert shared - none == 8 * 128 * 4 * (3 * 2 * 4 + 2 * 100 * 4)
    assert own - none == 8 * 128 * 4 * (3 * 2 * 4 + 3 * 100 * 5)
    # Of what is trained whole: the inputs of four matrices, and what comes before the first layer.
    assert memory("single").activations - none == 8 * 128 * (4 * (2 * 100 + 400) * 4 + 2 * 400)


def test_optimizers() -> None:
    assert memory("ddp", optim="adamw_torch") == memory("ddp", optim="paged_adamw_32bit") == memory("ddp")
    mixed = Trainable(10_000, num_small=2_000, backward="frozen")
    for optim in ("adamw_bnb_8bit", "paged_adamw_8bit"):
        assert memory("single", optim=optim, trainable=mixed).optimizer == 8 * 2_000 + 2 * 8_000 + 250
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
    assert (
        memory(engine, 2, precision, size, **batch, trainable=Trainable(size.num_parameters // 2)).total <= whole.total
    )


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
    frozen = forecast_traffic(size, engine=engine, world_size=8, **settings, trainable=Trainable(0))
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


def test_methods_that_need_less_are_named() -> None:
    others = {"lora": Trainable(1000, num_added=1000, backward="frozen")}
    said = advise(LARGE, engine="single", world_size=1, others=others)
    assert said[1:] == ["the 104.3 GiB a device of full are 26.1 GiB with method.name=lora"]
    assert advise(others=others) == []


def test_only_what_a_method_can_use_is_advised() -> None:
    low_rank = Trainable(7_000_000_000, backward="frozen")
    said = advise(LARGE, engine="ddp", trainable=low_rank, method=QLoraSection())
    assert "zero3 " in said[0]
    assert "fsdp2" not in said[0]
    assert "offload" not in said[0]
    batch = {"per_device_batch_size": 512, "sequence_length": 2048, "trainable": Trainable(100, backward="frozen")}
    assert "checkpointing" in advise(**batch, method=LoraSection())[0]
    assert "checkpointing" not in advise(**batch, method=PromptTuningSection())[0]


def test_a_rate_of_full_fine_tuning_is_low_for_few_weights() -> None:
    assert rate_advice("full", 1e-6) == rate_advice("lora", 5e-5) == rate_advice("prompt_tuning", 0.3) == []
    assert rate_advice("lora", 2e-5) == [
        "training.learning_rate 2e-05 is low for lora, which usually needs 5 to 20 times the rate of full fine-tuning; "
        "such as training.learning_rate=2e-4"
    ]
    assert "training.learning_rate=0.3" in rate_advice("prefix_tuning", 2e-4)[0]


def test_byte_text() -> None:
    given = (0, 1023, 1024, round(88.4 * MIB), 1536 * MIB, MIB - 1, GIB - 1, 5000 * GIB)
    said = ["0 B", "1023 B", "1.0 KiB", "88.4 MiB", "1.5 GiB", "1.0 MiB", "1.0 GiB", "5,000.0 GiB"]
    assert [byte_text(count) for count in given] == said
