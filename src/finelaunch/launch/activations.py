"""What a forward pass keeps for the backward pass, in bytes, by formulas an architecture and a method at a time.

Held against ``torch.autograd.graph.saved_tensors_hooks`` by a test.
"""

from finelaunch.methods.trainable import Trainable
from finelaunch.models.size import ModelSize

GATED = ("llama", "mistral", "qwen2")
"""Model types with RMS norms, a gate in the feed-forward block, and no dropout."""
KEPT_BY_ACTIVATION = {"relu": 1, "gelu_new": 5}
"""Tensors of the intermediate size that an activation function and the matrix after it keep; others keep 2.

``gelu_new`` is written out in elementary steps in transformers; ReLU keeps its result alone, which the matrix shares.
"""
ONE_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)
"""Layers that read the same tensor, by the endings of their names."""
OF_POSITIONS = ("pos_key_proj", "pos_query_proj")
"""Layers of DeBERTa that read the table of relative positions instead of tokens."""


def activation_bytes(
    size: ModelSize,
    rows: int,
    sequence_length: int,
    trainable: Trainable,
    *,
    wide: int,
    narrow: int,
    checkpointing: bool = False,
) -> int:
    """Return the bytes that are kept, without logits over a vocabulary.

    Nothing is kept of a model below which nothing is trained but the last states, which the head reads.

    Args:
        size: The model.
        rows: Rows of a forward pass.
        sequence_length: Tokens of the longest one.
        trainable: What the method trains.
        wide: Bytes of an element of the residual stream, fp32 under autocast.
        narrow: Bytes of an element that matrices and the attention take in.
        checkpointing: Whether layers are computed again in the backward pass.
    """
    hidden = size.hidden_size
    if trainable.backward == "head":
        return rows * sequence_length * hidden * narrow
    prompt = trainable.num_virtual_tokens
    length = sequence_length + (0 if trainable.are_in_layers else prompt)
    tokens = rows * length
    layer = _layer(size, rows, length, trainable, wide, narrow)
    if trainable.are_in_layers:
        layer += 2 * rows * prompt * size.key_value_width * narrow
    adapters = _adapters(size, tokens, trainable, wide, narrow)
    ends = (3 if trainable.backward == "weights" else 1) * hidden * wide * tokens
    if not checkpointing:
        return size.num_layers * layer + adapters + ends
    return (size.num_layers - 1) * hidden * wide * tokens + layer + adapters // size.num_layers + ends


def _layer(size: ModelSize, rows: int, length: int, trainable: Trainable, wide: int, narrow: int) -> int:
    """Return the bytes of one layer.

    A layer keeps what its norms take in (``wide``), and what its matrices and the attention take in (``narrow``): its
    input, queries, keys and values, the attention's result, the input of the feed-forward block, and there as many
    intermediate tensors as the activation function needs. In 16 bits and with a feed-forward block four times as wide
    that is the paper's 34 sbh. Its term 5as/h, the attention's probabilities, is not there: SDPA computes them again,
    and keeps the mask and one number a head and token. DeBERTa has no SDPA, and adds the scores of its relative
    positions. Autocast casts an input for each matrix that reads it, and every cast is kept. Dropout's masks count one
    byte an element, as on a GPU; a CPU keeps them as numbers.

    A frozen matrix keeps nothing that it takes in, and a frozen RMS norm not its normalised form: these are needed for
    gradients of weights only.

    Source: Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, section 4.1; what
    differs was read off ``torch.autograd.graph.saved_tensors_hooks`` (tests/unit/launch/test_activations.py).
    """
    hidden, inner, tokens = size.hidden_size, size.intermediate_size, rows * length
    is_gated, is_autocast = size.model_type in GATED, wide > narrow
    is_frozen = trainable.backward == "frozen"
    layer = 2 * hidden * wide
    elements = 2 * size.query_width + 2 * size.key_value_width
    kept = KEPT_BY_ACTIVATION.get(size.activation_function, 2) + (2 if is_gated else 0)
    if is_frozen:
        kept -= size.activation_function != "relu"
    else:
        elements += 2 * hidden
        if is_gated:
            layer += 2 * hidden * 4  # RMS norms compute in fp32 and keep their input and its normalised form
        if is_autocast:
            elements += (hidden if is_gated else 0) + (0 if size.model_type == "gpt2" else 2 * hidden)
    layer += (elements + inner * kept) * narrow + (0 if is_gated else 2 * hidden)
    if size.model_type == "deberta-v2":
        scores = (length + 2 * size.num_relative_positions) * narrow
        layer += size.num_attention_heads * (scores + length)
    else:
        layer += length * narrow + 4 * size.num_attention_heads
    layer *= tokens
    if size.model_type == "deberta-v2":
        layer += 2 * (rows + 1) * size.num_relative_positions * hidden * narrow
    return layer


def _adapters(size: ModelSize, tokens: int, trainable: Trainable, wide: int, narrow: int) -> int:
    """Return the bytes that low-rank matrices keep: what goes into them, and what goes from the first to the second.

    With dropout, or under autocast, each has an input of its own. DoRA keeps the layer's result and its own.
    """
    total, seen = 0, set()
    has_own = trainable.has_dropout or narrow < wide
    result = narrow if size.model_type in GATED else wide  # less its bias, which is in fp32
    for name, num_in, num_out in trainable.adapted:
        place, _, ending = name.rpartition(".")
        group = next((names for names in ONE_INPUT if ending in names), (ending,))
        is_kept = has_own or (place, group) not in seen
        seen.add((place, group))
        width = trainable.rank * narrow
        width += num_in * (narrow + trainable.has_dropout) if is_kept else 0
        width += num_out * (narrow + result) if trainable.has_magnitudes else 0
        total += width * (size.num_relative_positions if ending in OF_POSITIONS else tokens)
    return total
