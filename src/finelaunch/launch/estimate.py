"""What a run will need, in numbers: bytes on a device, from the model's size, the method and the engine.

It is an estimate from written formulas, for advice before anything is started: the CUDA context, the allocator's
fragments and the collectives' own buffers (about 1 GiB together) are not in it. The parts that depend on a library's
behaviour were read off torch 2.13, accelerate 1.15, deepspeed 0.19.8, peft 0.21 and bitsandbytes 0.50. Nothing here
changes a setting.
"""

from dataclasses import dataclass

from finelaunch.launch.activations import activation_bytes
from finelaunch.methods.trainable import Trainable
from finelaunch.models.size import ModelSize

KIB, MIB, GIB = 2**10, 2**20, 2**30

ZERO = ("zero1", "zero2", "zero3")
SHARDED = (*ZERO, "fsdp2")

REDUCE_BUCKET_ELEMENTS = 500_000_000
"""Elements of the buffer that DeepSpeed lays out for gradients whatever the model's size (its reduce_bucket_size)."""
MAX_LIVE_ELEMENTS = 1_000_000_000
"""Gathered elements that ZeRO-3 may keep for reuse within a micro-step (stage3_max_reuse_distance, max_live)."""

STATE_BYTES = {"adamw_torch_fused": 8, "adamw_torch": 8, "paged_adamw_32bit": 8, "sgd": 0}
"""Bytes of optimizer state a trained parameter, fp32; the recipe's SGD has no momentum."""
EIGHT_BIT = ("adamw_bnb_8bit", "paged_adamw_8bit")
EIGHT_BIT_STATE = 2 + 2 * 4 / 256
"""Bytes of state in 8 bits: two of 1 byte, each with a scale of 4 bytes for 256 of them (bitsandbytes 0.50)."""
PAGED = ("paged_adamw_8bit", "paged_adamw_32bit")
"""Optimizers whose state moves to the host where the device is full."""


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


def estimate_memory(
    size: ModelSize,
    *,
    engine: str,
    world_size: int,
    precision: str,
    per_device_batch_size: int,
    sequence_length: int,
    trainable: Trainable | None = None,
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
        trainable: What the method trains; by default all.
        optim: The recipe's optimizer. Adafactor's rows and columns are an approximation: two vectors a square matrix.
        activation_checkpointing: Whether layers are computed again in the backward pass.
        offload: ``none``, ``optimizer`` or ``all`` (weights as well); where an engine has none, nothing moves.
        task_name: ``causal_lm`` adds the logits over the vocabulary.
        gradient_accumulation_steps: Forward passes of an optimizer step; above 1, FSDP2 keeps whole gradients between
            them (accelerate's ``no_sync`` turns its reduction off).
        reduce_bucket_elements: DeepSpeed's reduce_bucket_size. On a CPU only what is touched becomes real.

    Source: Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, section 5.
    """
    trainable = trainable or everything(size)
    trained = trainable.num_parameters
    held, computed = element_bytes(engine, precision)
    cut = world_size if engine in SHARDED else 1
    weights = weight_bytes(size, held, trainable, cut if engine in ("zero3", "fsdp2") else 1)
    gradients = held * (_share(trained, cut) if engine in ("zero2", "zero3", "fsdp2") else trained)
    if engine == "fsdp2" and gradient_accumulation_steps > 1:
        gradients += computed * trained
    state_bytes = _state_bytes(size, optim, trainable)
    if engine in ("zero1", "zero2") or (engine == "zero3" and held == 2):
        state_bytes += 4
    optimizer = round(state_bytes * _share(trained, cut))
    if offload == "all" and engine in ("zero3", "fsdp2"):
        weights = gradients = optimizer = 0
    elif offload == "optimizer" and engine in ZERO:
        gradients = gradients if engine == "zero1" else 0  # ZeRO-2 and 3 move a gradient as soon as it is reduced
        optimizer = 0
    tokens = per_device_batch_size * sequence_length
    activations = activation_bytes(
        size,
        per_device_batch_size,
        sequence_length,
        trainable,
        wide=held,
        narrow=computed,
        checkpointing=activation_checkpointing,
    )
    working = _gathered(size, engine, world_size, trainable, held, computed, task_name, reduce_bucket_elements)
    if trainable.backward == "head":
        # A layer's states come and go: its input and output, and the feed-forward block's around its function.
        working += tokens * (2 * size.hidden_size * held + 2 * size.intermediate_size * computed)
    if task_name == "causal_lm":
        # The log-softmax is kept, 4 bytes an element. Before it come the logits and their fp32 copy, after it their
        # gradients: 8 bytes more at either time. Every token counts as a target, as in an answer without a prompt.
        activations += 4 * tokens * size.vocab_size
        working += 8 * tokens * size.vocab_size
    return Memory(weights, gradients, optimizer, activations, working)


def everything(size: ModelSize) -> Trainable:
    """Return what is trained where all weights are; how many tensors of a model are small is not worth counting."""
    return Trainable(size.num_parameters)


def weight_bytes(size: ModelSize, held: int, trainable: Trainable, ranks: int = 1) -> int:
    """Return the bytes of a rank's share of all weights, what a method adds and what it holds in 4 bits included.

    Args:
        size: The model.
        held: Bytes of an element of a weight that is not in 4 bits.
        trainable: What the method trains and adds.
        ranks: How many share them.
    """
    quantised = trainable.quantised
    whole = size.num_parameters + trainable.num_added - (quantised.num_parameters if quantised else 0)
    return held * _share(whole, ranks) + (_share(quantised.num_bytes, ranks) if quantised else 0)


def _state_bytes(size: ModelSize, optim: str, trainable: Trainable) -> float:
    """Return the bytes of optimizer state a trained parameter; transformers keeps that of embeddings in 32 bits."""
    if optim not in EIGHT_BIT:
        return STATE_BYTES.get(optim, 8 / size.hidden_size)
    in_32_bits = trainable.num_small + (size.embedding_parameters if trainable.backward == "weights" else 0)
    small = min(1.0, in_32_bits / max(1, trainable.num_parameters))
    return 8 * small + EIGHT_BIT_STATE * (1 - small)


def element_bytes(engine: str, precision: str) -> tuple[int, int]:
    """Return the bytes of an element of the weights as they are held, and as they are computed with."""
    computed = 4 if precision in ("fp32", "tf32") else 2
    return (computed if engine in ZERO else 4), computed


def _share(count: int, ranks: int) -> int:
    """Return the largest share of ``count`` that a rank of ``ranks`` has."""
    return -(-count // ranks)


def _gathered(
    size: ModelSize,
    engine: str,
    world_size: int,
    trainable: Trainable,
    held: int,
    computed: int,
    task_name: str,
    bucket_elements: int,
) -> int:
    """Return the bytes of weights and gradients that are there for a while: gathered, cast or on their way."""
    quantised = trainable.quantised
    # A matrix in 4 bits is multiplied as a copy in fp32, cast where the computation is in 2 bytes.
    copies = quantised.largest * (4 if computed == 4 else 6) if quantised else 0
    if engine in ZERO:
        live = min(weight_bytes(size, held, trainable), held * MAX_LIVE_ELEMENTS) if engine == "zero3" else 0
        return live + held * bucket_elements + copies
    if engine == "fsdp2":
        # A layer and the next one, the gradients of one, and what stands outside the layers, which stays gathered.
        outside = size.num_parameters - size.num_layers * size.layer_parameters
        return computed * (2 * size.layer_parameters + outside + max(size.layer_parameters, outside)) + copies
    # gradient_as_bucket_view is off, so DDP's buckets are a second copy.
    buckets = held * trainable.num_parameters if engine == "ddp" and world_size > 1 else 0
    if computed == held:
        return copies + buckets
    if trainable.backward == "head":  # no cast outlives its multiplication
        return computed * size.hidden_size * size.intermediate_size + buckets
    # Embeddings are looked up in fp32; tied to the head of a language model, they are cast for it.
    multiplied, words = size.num_parameters - size.embedding_parameters, size.vocab_size * size.hidden_size
    if task_name == "causal_lm" and multiplied - size.num_layers * size.layer_parameters < words:
        multiplied = min(size.num_parameters, multiplied + words)
    multiplied += trainable.num_added - (quantised.num_parameters if quantised else 0)
    return computed * multiplied + copies + buckets


def byte_text(count: int) -> str:
    """Return ``count`` bytes as a reader wants them, such as ``1.5 GiB`` or ``88.4 MiB``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        # 0.05 below the unit already rounds to 1.0 of it: never "1024.0 MiB".
        if count >= unit * (1 - 0.5 / 10240):
            return f"{count / unit:,.1f} {name}"
    return f"{count} B"
