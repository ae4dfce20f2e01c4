"""How large a model is, from its config alone.

A plan says what a run will need before any device is asked for and without torch, so the parameters are counted by
formulas, an architecture at a time. A test compares every formula with the model that transformers builds. Where the
shape is unknown (``shape.py``), the answer is a sentence instead of a guess.
"""

from collections.abc import Callable
from dataclasses import dataclass

from finelaunch.models.section import ModelSection
from finelaunch.models.shape import Shape, model_shape, no_model


@dataclass(frozen=True)
class ModelSize:
    """What memory and traffic follow from.

    Args:
        model_type: The architecture, by transformers' name.
        num_parameters: Parameters with the task's head, tied ones once.
        num_layers: Transformer layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the feed-forward block.
        num_attention_heads: Heads of the queries.
        vocab_size: Rows of the token embedding.
        largest_layer_parameters: Parameters of the largest unit that is gathered at once: a layer or the embeddings.
        max_positions: Positions that the config speaks of.
        layer_parameters: Parameters of one transformer layer.
        embedding_parameters: Parameters that are looked up rather than multiplied by: token, position, type.
        query_width: Elements a token's queries have, all heads together.
        key_value_width: Elements a token's keys have, and its values.
        activation_function: By transformers' name; how much the backward pass keeps hangs on it.
        num_relative_positions: Rows of DeBERTa's table of relative positions; 0 elsewhere.
        is_upper_bound: The vocabulary is at most this large, as it is still to be trained.
    """

    model_type: str
    num_parameters: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    vocab_size: int
    largest_layer_parameters: int
    max_positions: int
    layer_parameters: int
    embedding_parameters: int
    query_width: int
    key_value_width: int
    activation_function: str
    num_relative_positions: int = 0
    is_upper_bound: bool = False


@dataclass(frozen=True)
class _Parts:
    """Parameters of one layer, of what is looked up and of what else the body has; rows of relative positions."""

    layer: int
    lookup: int
    rest: int
    relative_positions: int = 0


def model_size(section: ModelSection, task_name: str, num_labels: int) -> ModelSize | str:
    """Return the size of the model that ``section`` names, with the head of a task; a string says why it is unknown.

    Args:
        section: The model's section.
        task_name: ``question_answering``, ``text_classification`` or ``causal_lm``.
        num_labels: Classes of ``text_classification``; the other tasks do not use it.
    """
    shape = model_shape(section, task_name)
    if isinstance(shape, str):
        return shape
    try:
        return _measure(shape["model_type"], shape, task_name, num_labels, section.init == "scratch")
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:  # a shape that no model has
        return no_model(shape["model_type"], error)


def _measure(model_type: str, shape: Shape, task_name: str, num_labels: int, is_upper_bound: bool) -> ModelSize:
    parts = _PARTS[model_type](shape)
    num_layers = shape["num_hidden_layers"]
    body = num_layers * parts.layer + parts.lookup + parts.rest
    head = _HEADS_OF.get(model_type, _decoder_head)(shape, task_name, num_labels)
    is_multi_head = model_type in _FULL_ATTENTION
    return ModelSize(
        model_type=model_type,
        num_parameters=body + head,
        num_layers=num_layers,
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_attention_heads=shape["num_attention_heads"],
        vocab_size=shape["vocab_size"],
        largest_layer_parameters=max(parts.layer, parts.lookup),
        max_positions=shape["max_position_embeddings"],
        layer_parameters=parts.layer,
        embedding_parameters=parts.lookup,
        query_width=shape["hidden_size"] if is_multi_head else shape["num_attention_heads"] * shape["head_dim"],
        key_value_width=shape["hidden_size"] if is_multi_head else shape["num_key_value_heads"] * shape["head_dim"],
        activation_function=str(shape["hidden_act"]),
        num_relative_positions=parts.relative_positions,
        is_upper_bound=is_upper_bound,
    )


_FULL_ATTENTION = {"bert", "roberta", "distilbert", "electra", "deberta-v2", "gpt2"}
"""Architectures whose heads share the hidden size and have keys and values of their own."""


def _linear(width: int, to: int, bias: bool = True) -> int:
    return width * to + (to if bias else 0)


def _norm(width: int) -> int:
    """Return the parameters of a layer norm: scale and shift."""
    return 2 * width


def _feed_forward(shape: Shape) -> int:
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    return _linear(hidden, inner) + _linear(inner, hidden)


def _encoder(shape: Shape) -> _Parts:
    """BERT, RoBERTa, DistilBERT, ELECTRA; GPT-2 has the same layer, and its last norm where they have the first."""
    hidden, embedding = shape["hidden_size"], shape["embedding_size"]
    layer = 4 * _linear(hidden, hidden) + _feed_forward(shape) + 2 * _norm(hidden)
    rows = shape["vocab_size"] + shape["max_position_embeddings"] + shape["type_vocab_size"]
    projection = _linear(embedding, hidden) if embedding != hidden else 0
    return _Parts(layer, rows * embedding, _norm(embedding) + projection)


def _deberta(shape: Shape) -> _Parts:
    hidden, embedding = shape["hidden_size"], shape["embedding_size"]
    width = shape["num_attention_heads"] * shape.get("attention_head_size", hidden // shape["num_attention_heads"])
    is_relative = shape["relative_attention"]
    kinds = shape["pos_att_type"] or ()
    kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
    num_projections = 3
    if is_relative and not shape.get("share_att_key", False):
        num_projections += ("c2p" in kinds) + ("p2c" in kinds)
    layer = num_projections * _linear(hidden, width) + _linear(hidden, hidden)
    layer += _feed_forward(shape) + 2 * _norm(hidden)
    rows = shape["vocab_size"] + shape["type_vocab_size"]
    rows += shape["max_position_embeddings"] if shape["position_biased_input"] else 0
    rest = _norm(hidden) + (_linear(embedding, hidden, bias=False) if embedding != hidden else 0)
    num_relative = 0
    if is_relative:
        reach = shape["max_relative_positions"]
        reach = reach if reach >= 1 else shape["max_position_embeddings"]
        buckets = shape.get("position_buckets", -1)
        num_relative = 2 * (buckets if buckets > 0 else reach)
        rest += num_relative * hidden
    if "layer_norm" in shape.get("norm_rel_ebd", "none").lower().split("|"):
        rest += _norm(hidden)
    kernel = shape.get("conv_kernel_size", 0)
    if kernel > 0:
        rest += _linear(hidden * kernel // shape.get("conv_groups", 1), hidden) + _norm(hidden)
    return _Parts(layer, rows * embedding, rest, num_relative)


def _decoder(shape: Shape) -> _Parts:
    """LLaMA, Mistral, Qwen2: grouped heads, gated feed-forward, RMS norms, rotary positions."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    queries, keys = (shape[name] * shape["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    is_qwen = shape["model_type"] == "qwen2"
    attention_bias = bool(shape.get("attention_bias", False)) and shape["model_type"] == "llama"
    mlp_bias = bool(shape.get("mlp_bias", False)) and shape["model_type"] == "llama"
    layer = _linear(hidden, queries, attention_bias or is_qwen) + 2 * _linear(hidden, keys, attention_bias or is_qwen)
    layer += _linear(queries, hidden, attention_bias)
    layer += 2 * _linear(hidden, inner, mlp_bias) + _linear(inner, hidden, mlp_bias) + 2 * hidden
    return _Parts(layer, shape["vocab_size"] * hidden, hidden)


_PARTS: dict[str, Callable[[Shape], _Parts]] = {
    **dict.fromkeys(("bert", "roberta", "distilbert", "electra", "gpt2"), _encoder),
    "deberta-v2": _deberta,
    **dict.fromkeys(("llama", "mistral", "qwen2"), _decoder),
}


def _decoder_head(shape: Shape, task_name: str, num_labels: int) -> int:
    """GPT-2, LLaMA, Mistral, Qwen2: one matrix, without bias but for questions."""
    hidden = shape["hidden_size"]
    if task_name == "causal_lm":
        return 0 if shape["tie_word_embeddings"] else _linear(hidden, shape["vocab_size"], bias=False)
    return _linear(hidden, 2) if task_name == "question_answering" else _linear(hidden, num_labels, bias=False)


def _encoder_head(shape: Shape, task_name: str, num_labels: int) -> int:
    """One matrix for questions; a dense layer (or pooler) before it for classes; a transform before it for words."""
    hidden, embedding, vocab = shape["hidden_size"], shape["embedding_size"], shape["vocab_size"]
    if task_name == "question_answering":
        return _linear(hidden, 2)
    if task_name == "text_classification":
        pooled = shape.get("pooler_hidden_size", hidden) if shape["model_type"] == "deberta-v2" else hidden
        return _linear(pooled, pooled) + _linear(hidden, num_labels)
    is_electra = shape["model_type"] == "electra"
    width = embedding if is_electra else hidden
    # Untied, BERT and RoBERTa keep a bias beside the decoder that has one.
    untied = _linear(width, vocab, bias=not is_electra)
    return _linear(hidden, width) + _norm(width) + vocab + (0 if shape["tie_word_embeddings"] else untied)


_HEADS_OF: dict[str, Callable[[Shape, str, int], int]] = {
    **dict.fromkeys(("bert", "roberta", "distilbert", "electra", "deberta-v2"), _encoder_head)
}
