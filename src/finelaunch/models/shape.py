"""The shape of a model: its config under one set of names, read without torch.

Every formula about a model (how many parameters, which modules) starts here. Nothing is fetched: a hub model's shape is
known once its config is in the local hub cache. Where it is out of reach, or the architecture has no formulas, the
answer is a sentence instead of a guess. A test holds every default against transformers' config class.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finelaunch.errors import FinelaunchError
from finelaunch.models.config import local_folder, usable_positions
from finelaunch.models.section import ModelSection

Shape = Mapping[str, Any]
"""A model's config under the names of BERT's, all keys of the formulas settled."""

MAX_HEADER_BYTES = 100_000_000
"""What safetensors takes for a header at most."""
MADE_KNOWN = "finelaunch train writes the number of parameters to the run's manifest"

_ENCODER = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "tie_word_embeddings": True,
}
_DECODER = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "intermediate_size": 11008,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "vocab_size": 50265},
    "electra": {
        **_ENCODER,
        "embedding_size": 128,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    "distilbert": {
        name: 6 if name == "num_hidden_layers" else value
        for name, value in _ENCODER.items()
        if name != "type_vocab_size"
    },
    "deberta-v2": {
        **_ENCODER,
        "vocab_size": 128100,
        "hidden_size": 1536,
        "num_hidden_layers": 24,
        "num_attention_heads": 24,
        "intermediate_size": 6144,
        "type_vocab_size": 0,
        "relative_attention": False,
        "max_relative_positions": -1,
        "position_biased_input": True,
        "pos_att_type": None,
    },
    "gpt2": {
        "vocab_size": 50257,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": None,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    "llama": {**_DECODER, "head_dim": None, "attention_bias": False, "mlp_bias": False},
    "mistral": {
        **_DECODER,
        "num_key_value_heads": 8,
        "head_dim": None,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
    },
    "qwen2": {
        **_DECODER,
        "vocab_size": 151936,
        "num_key_value_heads": 32,
        "intermediate_size": 22016,
        "max_position_embeddings": 32768,
    },
}
"""What a config that does not say has. Source: the config classes of transformers 5."""

OWN_NAMES: dict[str, dict[str, str]] = {
    "gpt2": {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
        "n_inner": "intermediate_size",
        "activation_function": "hidden_act",
    },
    "distilbert": {
        "dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size",
        "activation": "hidden_act",
    },
}
"""Names of an architecture's own for keys of the formulas."""

HEADS = {"question_answering": "QuestionAnswering", "text_classification": "SequenceClassification"}
HEADS |= {"causal_lm": "CausalLM"}
HEADLESS = {("distilbert", "causal_lm"), ("deberta-v2", "causal_lm")}
"""Architectures for which transformers has no such head."""


def model_shape(section: ModelSection, task_name: str) -> Shape | str:
    """Return the shape of the model that ``section`` names; a string says why it is unknown.

    Args:
        section: The model's section.
        task_name: ``question_answering``, ``text_classification`` or ``causal_lm``.
    """
    config = section.config if section.init == "scratch" else _config_file(section)
    if isinstance(config, str):
        return config
    model_type = config.get("model_type")
    if model_type not in DEFAULTS:
        return f"parameters are counted for {', '.join(DEFAULTS)}, not for {model_type}; {MADE_KNOWN}"
    if (model_type, task_name) in HEADLESS:
        return f"transformers has no {HEADS[task_name]} head for {model_type}"
    if section.init == "scratch":
        assert section.tokenizer is not None
        config = {**config, "vocab_size": section.tokenizer.vocab_size}
    else:
        config = {**config, **_renamed(model_type, section.config)}
    for name in ("add_cross_attention", "quantization_config"):
        if config.get(name):
            return f"parameters are not counted for a model with {name}; {MADE_KNOWN}"
    try:
        return _settled(model_type, config)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:  # a shape that no model has
        return no_model(model_type, error)


def model_positions(section: ModelSection) -> int | None:
    """Return how many tokens the model takes, of whatever architecture; None where its config does not tell."""
    config = section.config if section.init == "scratch" else _config_file(section)
    if isinstance(config, str):
        return None
    model_type = str(config.get("model_type"))
    known = {**DEFAULTS.get(model_type, {}), **_renamed(model_type, {**config, **section.config})}
    return usable_positions(model_type, known.get("max_position_embeddings"), known.get("pad_token_id"))


def no_model(model_type: str, error: Exception) -> str:
    """Return the sentence for a config that fits no model."""
    return f"the model's config makes no {model_type}: {error}"


def stored_names(section: ModelSection) -> frozenset[str] | None:
    """Return the names of the tensors that a checkpoint holds, or None where they cannot be read without torch.

    They stand in the header of a safetensors file, and in the index of several.

    Source: the file format of safetensors: 8 bytes, little endian, say how long the JSON after them is.
    """
    if section.init == "scratch":
        return None
    try:
        config = local_folder(section) or _cached_config(section)
        if config is None:
            return None
        folder = config if config.is_dir() else config.parent
        index = folder / "model.safetensors.index.json"
        if index.exists():
            return frozenset(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        with (folder / "model.safetensors").open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES)))
        return frozenset(header) - {"__metadata__"}
    except (FinelaunchError, OSError, ValueError, KeyError, TypeError):
        return None


def _config_file(section: ModelSection) -> dict[str, Any] | str:
    """Return the config of a pretrained model under the formulas' names, or why it is not at hand."""
    try:
        folder = local_folder(section)
    except FinelaunchError as error:
        return str(error)
    path = folder / "config.json" if folder is not None else _cached_config(section)
    if path is None:
        return f"the config of {section.name_or_path} is not on this machine; finelaunch train fetches it"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {error}"
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        return f"{path} names no model_type; {MADE_KNOWN}"
    return _renamed(config["model_type"], config)


def _cached_config(section: ModelSection) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(str(section.name_or_path), "config.json", revision=section.revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _renamed(model_type: str, config: Shape) -> dict[str, Any]:
    return {OWN_NAMES.get(model_type, {}).get(name, name): value for name, value in config.items()}


def _settled(model_type: str, config: Shape) -> dict[str, Any]:
    """Return the shape that ``config`` makes over the defaults, with what follows from other keys.

    Raises:
        ValueError: A number of the formulas is none.
    """
    shape = {**DEFAULTS[model_type], **_renamed(model_type, config), "model_type": model_type}
    hidden = shape["hidden_size"]
    if model_type == "gpt2" and shape["intermediate_size"] is None:
        shape["intermediate_size"] = 4 * hidden
    followers = {
        "num_key_value_heads": shape["num_attention_heads"],
        "head_dim": hidden // shape["num_attention_heads"],
        "embedding_size": hidden,
        "type_vocab_size": 0,
    }
    shape |= {name: value for name, value in followers.items() if shape.get(name) is None}
    for name, default in (*DEFAULTS[model_type].items(), *followers.items()):
        is_number = isinstance(default, int | None) and not isinstance(default, bool) and name != "pos_att_type"
        least = {"type_vocab_size": 0, "max_relative_positions": -1}.get(name, 1)
        value = shape[name]
        if is_number and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"{name} is {value!r}")
    return shape
