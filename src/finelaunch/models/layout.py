"""The modules of a model by name, from its config alone: every matrix, embedding and norm with its widths.

The plan must know which matrices an adapter sits on, and what stays in fp32 where the base is held in 4 bits, without
torch. One function a family of architectures, written down as transformers 5 names them; a test compares names, shapes
and sums with the models that transformers builds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal

from finelaunch.models.section import ModelSection
from finelaunch.models.shape import Shape, model_shape, no_model

DECODERS = ("llama", "mistral", "qwen2")
"""Model types with gates and grouped heads."""


@dataclass(frozen=True)
class Module:
    """A module that holds parameters itself.

    Args:
        name: Its full name.
        kind: ``conv1d`` is GPT-2's linear layer, whose weight lies the other way round.
        parameters: The shapes of its parameters by name; those that are tied to another module's are not there.
        num_in: Width of what a linear layer takes in, else 0.
        num_out: Width of what it gives, else 0.
        layer: Number of the layer that it belongs to, or None.
    """

    name: str
    kind: Literal["linear", "conv1d", "embedding", "norm", "convolution", "bias"]
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    num_in: int = 0
    num_out: int = 0
    layer: int | None = None

    @property
    def is_linear(self) -> bool:
        """Whether an adapter may sit on it."""
        return self.kind in ("linear", "conv1d")

    @cached_property
    def num_parameters(self) -> int:
        """All of its parameters."""
        return sum(map(prod, self.parameters.values()))

    def own_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of its parameters where it is copied, so that nothing is tied any more."""
        tied = {"weight": (self.num_out, self.num_in)} if self.is_linear else {}
        return list({**tied, **self.parameters}.values())


@dataclass(frozen=True)
class Layout:
    """All modules of a model.

    Args:
        model_type: The architecture, by transformers' name.
        base: The name under which the pretrained model stands in the model with the task's head.
        num_layers: Transformer layers.
        hidden_size: Width of the residual stream.
        key_width: Elements a token's keys have.
        modules: In no order that means anything.
        output: The full name of the matrix that turns states into words, of a causal LM.
    """

    model_type: str
    base: str
    num_layers: int
    hidden_size: int
    key_width: int
    modules: tuple[Module, ...]
    output: str | None = None

    @cached_property
    def linears(self) -> tuple[Module, ...]:
        """The linear layers."""
        return tuple(module for module in self.modules if module.is_linear)

    @cached_property
    def widths(self) -> dict[str, tuple[int, int]]:
        """By full name what goes into and comes out of each linear layer, without the one over the vocabulary."""
        return {one.name: (one.num_in, one.num_out) for one in self.linears if one.name != self.output}

    @cached_property
    def names(self) -> frozenset[str]:
        """The full names of all modules, of those that only hold others, too."""
        return frozenset(part for module in self.modules for part in enclosing(module.name))

    def head_modules(self, held: frozenset[str] | None) -> list[str]:
        """Return the modules that belong to the task: outside of the base, or in it without weights of a checkpoint.

        A causal LM has none, what turns its states into words being pretrained, too.

        Args:
            held: The names of the checkpoint's tensors; None: of the base only what every checkpoint holds. An encoder
                that was saved alone has no name before its modules.
        """
        found = [] if self.output else [one.name.partition(".")[0] for one in self.modules]
        found = [name for name in found if name != self.base]
        pooler = f"{self.base}.pooler.dense"
        if pooler in self.names and not {f"{pooler}.weight", "pooler.dense.weight"} & (held or frozenset()):
            found.append(pooler)
        return list(dict.fromkeys(found))

    @cached_property
    def stored_names(self) -> frozenset[str]:
        """The names of all parameters."""
        return frozenset(f"{one.name}.{name}" for one in self.modules for name in one.parameters)

    def is_in_base(self, name: str) -> bool:
        """Return whether the module ``name`` belongs to the pretrained model."""
        return name.startswith(f"{self.base}.")


def enclosing(name: str) -> list[str]:
    """Return the names of the modules that ``name`` lies in, itself the last."""
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def model_layout(section: ModelSection, task_name: str, num_labels: int) -> Layout | str:
    """Return the modules of the model that ``section`` names; a string says why they are unknown.

    Args:
        section: The model's section.
        task_name: ``question_answering``, ``text_classification`` or ``causal_lm``.
        num_labels: Classes of ``text_classification``; the other tasks do not use it.
    """
    shape = model_shape(section, task_name)
    if isinstance(shape, str):
        return shape
    try:
        return _layout(shape, task_name, 2 if task_name == "question_answering" else num_labels)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:  # a shape that no model has
        return no_model(shape["model_type"], error)


def _layout(shape: Shape, task_name: str, num_labels: int) -> Layout:
    kind, count = shape["model_type"], shape["num_hidden_layers"]
    if kind == "gpt2":
        base, around, layer, layers = "transformer", _gpt2_ends, _gpt2_layer, "h"
    elif kind in DECODERS:
        is_named_otherwise = task_name == "question_answering" and kind != "mistral"
        base = "transformer" if is_named_otherwise else "model"
        around, layer, layers = _decoder_ends, _decoder_layer, "layers"
    elif kind == "distilbert":
        base, around, layer, layers = kind, _encoder_ends, _distilbert_layer, "transformer.layer"
    else:
        base = "deberta" if kind == "deberta-v2" else kind
        around, layer, layers = _encoder_ends, _encoder_layer, "encoder.layer"
    found = [replace(module, name=f"{base}.{module.name}") for module in around(shape)]
    one = list(layer(shape))
    for number in range(count):
        found += [replace(module, name=f"{base}.{layers}.{number}.{module.name}", layer=number) for module in one]
    head = list(_head(shape, base, task_name, num_labels))
    output = next((module.name for module in head if module.num_out and task_name == "causal_lm"), None)
    keys = shape["num_key_value_heads"] * shape["head_dim"] if kind in DECODERS else shape["hidden_size"]
    return Layout(kind, base, count, shape["hidden_size"], keys, (*found, *head), output)


def _linear(name: str, num_in: int, num_out: int, bias: bool = True) -> Module:
    parameters = {"weight": (num_out, num_in), **({"bias": (num_out,)} if bias else {})}
    return Module(name, "linear", parameters, num_in, num_out)


def _conv1d(name: str, num_in: int, num_out: int) -> Module:
    return Module(name, "conv1d", {"weight": (num_in, num_out), "bias": (num_out,)}, num_in, num_out)


def _norm(name: str, width: int) -> Module:
    return Module(name, "norm", {"weight": (width,), "bias": (width,)})


def _embedding(name: str, rows: int, width: int) -> Module:
    return Module(name, "embedding", {"weight": (rows, width)})


def _encoder_ends(shape: Shape) -> Iterator[Module]:
    hidden, embedding, kind = shape["hidden_size"], shape["embedding_size"], shape["model_type"]
    yield _embedding("embeddings.word_embeddings", shape["vocab_size"], embedding)
    if shape.get("position_biased_input", True):
        yield _embedding("embeddings.position_embeddings", shape["max_position_embeddings"], embedding)
    if shape["type_vocab_size"]:
        yield _embedding("embeddings.token_type_embeddings", shape["type_vocab_size"], embedding)
    yield _norm("embeddings.LayerNorm", hidden if kind == "deberta-v2" else embedding)
    if embedding != hidden and kind == "electra":
        yield _linear("embeddings_project", embedding, hidden)
    if kind == "deberta-v2":
        yield from _deberta_ends(shape)


def _deberta_ends(shape: Shape) -> Iterator[Module]:
    hidden, embedding = shape["hidden_size"], shape["embedding_size"]
    if embedding != hidden:
        yield _linear("embeddings.embed_proj", embedding, hidden, bias=False)
    if shape["relative_attention"]:
        reach, buckets = shape["max_relative_positions"], shape.get("position_buckets", -1)
        reach = reach if reach >= 1 else shape["max_position_embeddings"]
        yield _embedding("encoder.rel_embeddings", 2 * (buckets if buckets > 0 else reach), hidden)
    if "layer_norm" in shape.get("norm_rel_ebd", "none").lower().split("|"):
        yield _norm("encoder.LayerNorm", hidden)
    kernel = shape.get("conv_kernel_size", 0)
    if kernel > 0:
        window = (hidden, hidden // shape.get("conv_groups", 1), kernel)
        yield Module("encoder.conv.conv", "convolution", {"weight": window, "bias": (hidden,)})
        yield _norm("encoder.conv.LayerNorm", hidden)


def _encoder_layer(shape: Shape) -> Iterator[Module]:
    """Yield a layer of BERT, RoBERTa, ELECTRA or DeBERTa."""
    hidden, inner, ending, width = shape["hidden_size"], shape["intermediate_size"], "", shape["hidden_size"]
    names = ["query", "key", "value"]
    if shape["model_type"] == "deberta-v2":
        ending, heads = "_proj", shape["num_attention_heads"]
        width = heads * shape.get("attention_head_size", hidden // heads)
        kinds = shape["pos_att_type"] or ()
        kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
        if shape["relative_attention"] and not shape.get("share_att_key", False):
            names += [name for kind, name in (("c2p", "pos_key"), ("p2c", "pos_query")) if kind in kinds]
    for name in names:
        yield _linear(f"attention.self.{name}{ending}", hidden, width)
    yield _linear("attention.output.dense", hidden, hidden)
    yield _norm("attention.output.LayerNorm", hidden)
    yield _linear("intermediate.dense", hidden, inner)
    yield _linear("output.dense", inner, hidden)
    yield _norm("output.LayerNorm", hidden)


def _distilbert_layer(shape: Shape) -> Iterator[Module]:
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
        yield _linear(f"attention.{name}", hidden, hidden)
    yield _norm("sa_layer_norm", hidden)
    yield _linear("ffn.lin1", hidden, inner)
    yield _linear("ffn.lin2", inner, hidden)
    yield _norm("output_layer_norm", hidden)


def _gpt2_ends(shape: Shape) -> Iterator[Module]:
    yield _embedding("wte", shape["vocab_size"], shape["hidden_size"])
    yield _embedding("wpe", shape["max_position_embeddings"], shape["hidden_size"])
    yield _norm("ln_f", shape["hidden_size"])


def _gpt2_layer(shape: Shape) -> Iterator[Module]:
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    yield _norm("ln_1", hidden)
    yield _conv1d("attn.c_attn", hidden, 3 * hidden)
    yield _conv1d("attn.c_proj", hidden, hidden)
    yield _norm("ln_2", hidden)
    yield _conv1d("mlp.c_fc", hidden, inner)
    yield _conv1d("mlp.c_proj", inner, hidden)


def _decoder_ends(shape: Shape) -> Iterator[Module]:
    yield _embedding("embed_tokens", shape["vocab_size"], shape["hidden_size"])
    yield Module("norm", "norm", {"weight": (shape["hidden_size"],)})


def _decoder_layer(shape: Shape) -> Iterator[Module]:
    """Yield a layer of LLaMA, Mistral or Qwen2."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    queries, keys = (shape[name] * shape["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    is_llama, is_qwen = shape["model_type"] == "llama", shape["model_type"] == "qwen2"
    bias, mlp_bias = (is_llama and bool(shape.get(name, False)) for name in ("attention_bias", "mlp_bias"))
    yield _linear("self_attn.q_proj", hidden, queries, bias or is_qwen)
    yield _linear("self_attn.k_proj", hidden, keys, bias or is_qwen)
    yield _linear("self_attn.v_proj", hidden, keys, bias or is_qwen)
    yield _linear("self_attn.o_proj", queries, hidden, bias)
    yield _linear("mlp.gate_proj", hidden, inner, mlp_bias)
    yield _linear("mlp.up_proj", hidden, inner, mlp_bias)
    yield _linear("mlp.down_proj", inner, hidden, mlp_bias)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield Module(name, "norm", {"weight": (hidden,)})


def _head(shape: Shape, base: str, task_name: str, num_labels: int) -> Iterator[Module]:
    """Yield what the task puts on the base, and the pooler in it that only classes need."""
    kind, hidden = shape["model_type"], shape["hidden_size"]
    if task_name == "question_answering":
        yield _linear("qa_outputs", hidden, 2)
    elif task_name == "causal_lm":
        yield from _words(shape)
    elif kind in ("gpt2", *DECODERS):
        yield _linear("score", hidden, num_labels, bias=False)
    elif kind in ("roberta", "electra"):
        yield _linear("classifier.dense", hidden, hidden)
        yield _linear("classifier.out_proj", hidden, num_labels)
    else:
        pooled = shape.get("pooler_hidden_size", hidden) if kind == "deberta-v2" else hidden
        name = {"bert": f"{base}.pooler.dense", "deberta-v2": "pooler.dense", "distilbert": "pre_classifier"}[kind]
        yield _linear(name, pooled, pooled)
        yield _linear("classifier", pooled, num_labels)


def _words(shape: Shape) -> Iterator[Module]:
    """Yield a causal LM's head, the matrix over the vocabulary first; tied, it has no weight of its own."""
    kind, hidden, vocab = shape["model_type"], shape["hidden_size"], shape["vocab_size"]
    is_tied = bool(shape["tie_word_embeddings"])
    if kind in ("gpt2", *DECODERS):
        yield Module("lm_head", "linear", {} if is_tied else {"weight": (vocab, hidden)}, hidden, vocab)
        return
    names = {
        "bert": ("cls.predictions.decoder", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
        "roberta": ("lm_head.decoder", "lm_head.dense", "lm_head.layer_norm"),
        "electra": ("generator_lm_head", "generator_predictions.dense", "generator_predictions.LayerNorm"),
    }
    output, dense, norm = names[kind]
    width = shape["embedding_size"] if kind == "electra" else hidden
    own: dict[str, tuple[int, ...]] = {} if is_tied else {"weight": (vocab, width)}
    if not is_tied or kind == "electra":
        own["bias"] = (vocab,)
    yield Module(output, "linear", own, width, vocab)
    yield _linear(dense, hidden, width)
    yield _norm(norm, width)
    if kind != "electra":
        yield Module(output.rpartition(".")[0], "bias", {"bias": (vocab,)})
