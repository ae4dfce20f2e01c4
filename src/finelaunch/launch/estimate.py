"""What a run will need, in numbers: bytes on a device and bytes sent by a rank, from the model's size and the engine.

It is an estimate from written formulas, for advice before anything is started: the CUDA context, the allocator's
fragments and the collectives' own buffers (about 1 GiB together) are not in it. The parts that depend on a library's
behaviour name the version that was read: torch 2.13, accelerate 1.15, deepspeed 0.19.8. Nothing here changes a setting.
"""

from dataclasses import dataclass
from typing import Any

from finelaunch.models.size import ModelSize

KIB, MIB, GIB = 2**10, 2**20, 2**30

ZERO = ("zero1", "zero2", "zero3")
SHARDED = (*ZERO, "fsdp2")

REDUCE_BUCKET_ELEMENTS = 500_000_000
"""Elements of the buffer that DeepSpeed lays out for gradients whatever the model's size (its reduce_bucket_size)."""
MAX_LIVE_ELEMENTS = 1_000_000_000
"""Gathered elements that ZeRO-3 may keep for reuse within a micro-step (stage3_max_reuse_distance, max_live)."""

GATED = ("llama", "mistral", "qwen2")
"""Model types with RMS norms, a gate in the feed-forward block, and no dropout."""
KEPT_BY_ACTIVATION = {"relu": 1, "gelu_new": 5}
"""Tensors of the intermediate size that an activation function and the matrix after it keep; others keep 2.

``gelu_new`` is written out in elementary steps in transformers; ReLU keeps its result alone, which the matrix shares.
"""
STATE_BYTES = {"adamw_torch_fused": 8, "adamw_torch": 8, "sgd": 0}
"""Bytes of optimizer state a trained parameter, fp32; the recipe's SGD has no momentum."""

SMALL_STATE = 4 * GIB
"""Weights, gradients and optimizer below this fit beside the activations on any device that trains."""
LARGE_STATE = 40 * GIB
"""Above this nothing of an 80 GB device is left for activations with certainty, and a 40 GB device is too small."""
LARGE_ACTIVATIONS = 1 * GIB
"""Below this their share is not worth a word."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step.

    Args:
        weights: The parameters that the device holds all the time.
        gradients: Their gradients.
        optimizer: The optimizer's state, and master weights where the weights are in 2 bytes.
        activations: What the forward pass keeps for the backward pass.
        working: What comes and goes: gathered layers, casts of weights, gradient buckets, logits.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer: what does not depend on the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """All of it; an upper bound, as not every part is at its peak at the same moment."""
        return self.state + self.activations + self.working


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in an optimizer step.

    Args:
        gradients: To reduce the gradients.
        weights: To gather weights.
    """

    gradients: int
    weights: int

    @property
    def total(self) -> int:
        """Both."""
        return self.gradients + self.weights


def estimate_memory(
    size: ModelSize,
    *,
    engine: str,
    world_size: int,
    precision: str,
    per_device_batch_size: int,
    sequence_length: int,
    num_trainable: int | None = None,
    optim: str = "adamw_torch_fused",
    activation_checkpointing: bool = False,
    offload: str = "none",
    task_name: str = "",
    gradient_accumulation_steps: int = 1,
    reduce_bucket_elements: int = REDUCE_BUCKET_ELEMENTS,
) -> Memory:
    """Return the bytes that one device needs in training.

    single, ddp and fsdp2 hold fp32 weights and compute under autocast; DeepSpeed in bf16 or fp16 holds 2-byte weights
    and gradients, and master weights in fp32. ZeRO-1 and 2 keep a master copy in fp32, too (deepspeed 0.19.8,
    stage_1_and_2.py); ZeRO-3 does not.

    Args:
        size: The model.
        engine: ``single``, ``ddp``, ``zero1``, ``zero2``, ``zero3`` or ``fsdp2``.
        world_size: Ranks.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``; ``auto`` is taken as ``bf16``.
        per_device_batch_size: Rows of a forward pass.
        sequence_length: Tokens of the longest row.
        num_trainable: Parameters that are trained; by default all.
        optim: The recipe's optimizer. Adafactor's rows and columns are an approximation: two vectors a square matrix.
        activation_checkpointing: Whether layers are computed again in the backward pass.
        offload: ``none``, ``optimizer`` or ``all`` (weights as well); where an engine has none, nothing moves.
        task_name: ``causal_lm`` adds the logits over the vocabulary.
        gradient_accumulation_steps: Forward passes of an optimizer step; above 1, FSDP2 keeps whole gradients between
            them (accelerate's ``no_sync`` turns its reduction off).
        reduce_bucket_elements: DeepSpeed's reduce_bucket_size. On a CPU only what is touched becomes real.

    Source: Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, section 5.
    """
    trained = size.num_parameters if num_trainable is None else num_trainable
    held, computed = _element_bytes(engine, precision)
    cut = world_size if engine in SHARDED else 1
    weights = held * (_share(size.num_parameters, cut) if engine in ("zero3", "fsdp2") else size.num_parameters)
    gradients = held * (_share(trained, cut) if engine in ("zero2", "zero3", "fsdp2") else trained)
    if engine == "fsdp2" and gradient_accumulation_steps > 1:
        gradients += computed * trained
    state_bytes = STATE_BYTES.get(optim, 8 / size.hidden_size)
    if engine in ("zero1", "zero2") or (engine == "zero3" and held == 2):
        state_bytes += 4
    optimizer = round(state_bytes * _share(trained, cut))
    if offload == "all" and engine in ("zero3", "fsdp2"):
        weights = gradients = optimizer = 0
    elif offload == "optimizer" and engine in ZERO:
        gradients = gradients if engine == "zero1" else 0  # ZeRO-2 and 3 move a gradient as soon as it is reduced
        optimizer = 0
    tokens = per_device_batch_size * sequence_length
    activations = _activations(
        size, per_device_batch_size, sequence_length, wide=held, narrow=computed, checkpointing=activation_checkpointing
    )
    working = _gathered(size, engine, world_size, trained, held, computed, task_name, reduce_bucket_elements)
    if task_name == "causal_lm":
        # The log-softmax is kept, 4 bytes an element. Before it come the logits and their fp32 copy, after it their
        # gradients: 8 bytes more at either time. Every token counts as a target, as in an answer without a prompt.
        activations += 4 * tokens * size.vocab_size
        working += 8 * tokens * size.vocab_size
    return Memory(weights, gradients, optimizer, activations, working)


def _element_bytes(engine: str, precision: str) -> tuple[int, int]:
    """Return the bytes of an element of the weights as they are held, and as they are computed with."""
    computed = 4 if precision in ("fp32", "tf32") else 2
    return (computed if engine in ZERO else 4), computed


def _share(count: int, ranks: int) -> int:
    """Return the largest share of ``count`` that a rank of ``ranks`` has."""
    return -(-count // ranks)


def _activations(
    size: ModelSize, rows: int, sequence_length: int, *, wide: int, narrow: int, checkpointing: bool
) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without logits over a vocabulary.

    A layer keeps what its norms take in (``wide``: the residual stream, fp32 under autocast), and what its matrices and
    the attention take in (``narrow``): its input, queries, keys and values, the attention's result, the input of the
    feed-forward block, and there as many intermediate tensors as the activation function needs. In 16 bits and
    with a feed-forward block four times as wide that is the paper's 34 sbh. Its term 5as/h, the attention's
    probabilities, is not there: SDPA computes them again, and keeps the mask and one number a head and token. DeBERTa
    has no SDPA, and adds the scores of its relative positions. Autocast casts an input for each matrix that reads it,
    and every cast is kept. Dropout's masks count one byte an element, as on a GPU; a CPU keeps them as numbers.

    Source: Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, section 4.1; what
    differs was read off ``torch.autograd.graph.saved_tensors_hooks`` (tests/unit/launch/test_estimate.py).
    """
    hidden, inner, tokens = size.hidden_size, size.intermediate_size, rows * sequence_length
    is_gated, is_autocast = size.model_type in GATED, wide > narrow
    layer = 2 * hidden * wide
    elements = 2 * hidden + 2 * size.query_width + 2 * size.key_value_width
    elements += inner * KEPT_BY_ACTIVATION.get(size.activation_function, 2)
    if is_gated:
        layer += 2 * hidden * 4  # RMS norms compute in fp32 and keep their input and its normalised form
        elements += 2 * inner  # what the gate is multiplied by, and the product
    if is_autocast:
        elements += (hidden if is_gated else 0) + (0 if size.model_type == "gpt2" else 2 * hidden)
    layer += elements * narrow + (0 if is_gated else 2 * hidden)
    if size.model_type == "deberta-v2":
        scores = (sequence_length + 2 * size.num_relative_positions) * narrow
        layer += size.num_attention_heads * (scores + sequence_length)
    else:
        layer += sequence_length * narrow + 4 * size.num_attention_heads
    layer *= tokens
    if size.model_type == "deberta-v2":
        layer += 2 * (rows + 1) * size.num_relative_positions * hidden * narrow
    ends = 3 * hidden * wide * tokens
    if not checkpointing:
        return size.num_layers * layer + ends
    return (size.num_layers - 1) * hidden * wide * tokens + layer + ends


def _gathered(
    size: ModelSize,
    engine: str,
    world_size: int,
    trained: int,
    held: int,
    computed: int,
    task_name: str,
    bucket_elements: int,
) -> int:
    """Return the bytes of weights and gradients that are there for a while: gathered, cast or on their way."""
    if engine in ZERO:
        live = min(size.num_parameters, MAX_LIVE_ELEMENTS) if engine == "zero3" else 0
        return held * (live + bucket_elements)
    if engine == "fsdp2":
        # A layer and the next one, the gradients of one, and what stands outside the layers, which stays gathered.
        outside = size.num_parameters - size.num_layers * size.layer_parameters
        return computed * (2 * size.layer_parameters + outside + max(size.layer_parameters, outside))
    # Embeddings are looked up in fp32; tied to the head of a language model, they are cast for it.
    multiplied = size.num_parameters - size.embedding_parameters
    if task_name == "causal_lm":
        multiplied = min(size.num_parameters, multiplied + size.vocab_size * size.hidden_size)
    casts = computed * multiplied if computed < held else 0
    # gradient_as_bucket_view is off, so DDP's buckets are a second copy.
    return casts + (held * trained if engine == "ddp" and world_size > 1 else 0)


def forecast_traffic(
    size: ModelSize,
    *,
    engine: str,
    world_size: int,
    precision: str,
    gradient_accumulation_steps: int,
    num_trainable: int | None = None,
) -> Traffic:
    """Return the bytes that a rank sends in an optimizer step, by ring algorithms.

    A reduce-scatter or an all-gather of n bytes sends (W-1)/W n, an all-reduce both. DDP and FSDP2 reduce gradients
    once a step, ZeRO in every micro-step; ZeRO-1 and 2 gather the new weights once. ZeRO-3 and FSDP2 gather weights in
    the forward and the backward pass of every micro-step, which is an upper bound for ZeRO-3: it keeps what is used
    again soon.

    Args:
        size: The model.
        engine: As for :func:`estimate_memory`, and so are world_size, precision and num_trainable.
        world_size: Ranks.
        precision: Of the computation; FSDP2 sends in it (accelerate's mixed-precision policy), DDP always in fp32.
        gradient_accumulation_steps: Micro-steps of an optimizer step.
        num_trainable: Parameters that are trained; by default all.

    Source: Rajbhandari et al. 2020, ZeRO, section 7.
    """
    trained = size.num_parameters if num_trainable is None else num_trainable
    held, computed = _element_bytes(engine, precision)
    if engine == "ddp":
        return Traffic(_sent(2 * held * trained, world_size), 0)
    if engine in ("zero1", "zero2"):
        reduced = held * trained * gradient_accumulation_steps
        return Traffic(_sent(reduced, world_size), _sent(held * trained, world_size))
    if engine in ("zero3", "fsdp2"):
        reduced = computed * trained * (gradient_accumulation_steps if engine == "zero3" else 1)
        gathered = 2 * computed * size.num_parameters * gradient_accumulation_steps
        return Traffic(_sent(reduced, world_size), _sent(gathered, world_size))
    return Traffic(0, 0)


def _sent(count: int, world_size: int) -> int:
    """Return what a rank sends of a ring's reduce-scatter or all-gather of ``count`` bytes."""
    return count * (world_size - 1) // world_size


def advice(
    size: ModelSize,
    *,
    engine: str,
    world_size: int,
    precision: str,
    per_device_batch_size: int,
    sequence_length: int,
    gradient_accumulation_steps: int = 1,
    num_trainable: int | None = None,
    optim: str = "adamw_torch_fused",
    activation_checkpointing: bool = False,
    offload: str = "none",
    task_name: str = "",
) -> list[str]:
    """Return what would fit better, a sentence each; nothing is changed.

    The arguments are those of :func:`estimate_memory` and :func:`forecast_traffic`.
    """

    def memory(**changes: Any) -> Memory:
        settings: dict[str, Any] = {"engine": engine, "per_device_batch_size": per_device_batch_size}
        settings |= {"activation_checkpointing": activation_checkpointing, "offload": offload, "world_size": world_size}
        settings |= {"precision": precision, "sequence_length": sequence_length, "num_trainable": num_trainable}
        settings |= {"optim": optim, "task_name": task_name}
        return estimate_memory(size, gradient_accumulation_steps=gradient_accumulation_steps, **{**settings, **changes})

    def sent(name: str) -> int:
        return forecast_traffic(
            size,
            engine=name,
            world_size=world_size,
            precision=precision,
            gradient_accumulation_steps=gradient_accumulation_steps,
            num_trainable=num_trainable,
        ).total

    said, now = [], memory()
    whole = memory(engine="ddp", offload="none").state
    if engine in SHARDED and world_size > 1 and whole < SMALL_STATE and sent("ddp") < sent(engine):
        said.append(
            f"weights, gradients and optimizer are {byte_text(whole)} in all, which one device holds; "
            f"launch.accelerate_config=ddp sends {byte_text(sent('ddp'))} a rank and step instead of "
            f"{byte_text(sent(engine))}"
        )
    if engine in ("single", "ddp") and now.state > LARGE_STATE:
        ranks = max(2, world_size)
        shares = [
            f"{name} {byte_text(memory(engine=name, world_size=ranks).state)}" for name in ("zero2", "zero3", "fsdp2")
        ]
        said.append(
            f"weights, gradients and optimizer need {byte_text(now.state)} a device; on {ranks} ranks "
            f"{', '.join(shares)}, less with more ranks or with launch.offload"
        )
    if now.activations >= LARGE_ACTIVATIONS and now.activations == max(now.state, now.activations, now.working):
        ways = []
        if per_device_batch_size > 1:
            half = per_device_batch_size // 2
            less = memory(per_device_batch_size=half).activations
            ways.append(f"launch.per_device_batch_size={half} makes it {byte_text(less)}")
        if not activation_checkpointing:
            less = memory(activation_checkpointing=True).activations
            ways.append(f"launch.activation_checkpointing=true makes it {byte_text(less)} and is slower")
        if ways:
            said.append(f"activations are the largest part, {byte_text(now.activations)} a device; {'; '.join(ways)}")
    return said


def byte_text(count: int) -> str:
    """Return ``count`` bytes as a reader wants them, such as ``1.5 GiB`` or ``88.4 MiB``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        # 0.05 below the unit already rounds to 1.0 of it: never "1024.0 MiB".
        if count >= unit * (1 - 0.5 / 10240):
            return f"{count / unit:,.1f} {name}"
    return f"{count} B"
