"""Small pretrained models for the tests: drawn from a config, saved as masked or causal language models."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from finelaunch.models.load import LoadedModel, load_model, train_tokenizer
from finelaunch.models.quantization import Quantization
from finelaunch.models.section import ModelSection

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
POSITIONS = {"max_position_embeddings": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {**SMALL, **POSITIONS},
    "roberta": {**SMALL, **POSITIONS},
    "electra": {**SMALL, **POSITIONS, "embedding_size": 32},
    "mpnet": {**SMALL, **POSITIONS},
    "albert": {**SMALL, **POSITIONS, "embedding_size": 32},
    "modernbert": {**SMALL, **POSITIONS, "global_attn_every_n_layers": 2, "local_attention": 16},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 96, **POSITIONS},
    "deberta-v2": {
        **SMALL,
        **POSITIONS,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {**SMALL, **POSITIONS, "num_key_value_heads": 2},
}
ENCODERS = [name for name in SHAPES if name not in ("gpt2", "llama")]
CLASSES = "AutoModelForSequenceClassification"
SPANS = "AutoModelForQuestionAnswering"
WORDS = "AutoModelForCausalLM"
TEXTS = ["A dull film with a good end.", "The fox runs over the hill.", "Why not?"]


def write_base(folder: Path, model_type: str) -> Path:
    """Write a base and its tokenizer to ``folder``, and return it."""
    drawn = ModelSection(init="scratch", config={"model_type": model_type}, tokenizer={"vocab_size": 320})  # type: ignore[arg-type]
    train_tokenizer(iter(TEXTS * 20), drawn, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.for_model(model_type, **SHAPES[model_type], vocab_size=len(tokenizer))
    for name in ("pad", "bos", "eos"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    torch.manual_seed(0)
    kind = "AutoModelForMaskedLM" if model_type in ENCODERS else WORDS
    getattr(transformers, kind).from_config(config).save_pretrained(folder)
    return folder


def load(folder: Path, auto_class: str, quantization: Quantization | None = None, **config: Any) -> LoadedModel:
    """Return the base in ``folder`` with a new head."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = {"num_labels": 3, **config} if auto_class == CLASSES else config
    section = ModelSection(name_or_path=str(folder))
    return load_model(section, auto_class, config, tokenizer, 16, 7, quantization)


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return ids of three rows."""
    ids = torch.randint(7, 250, (3, 12), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def loss_of(model: Any, seed: int = 0) -> torch.Tensor:
    """Return something to train: the mean of the squared distance of all logits to 1."""
    outputs = model(**batch(seed))
    return sum(((outputs[name] - 1) ** 2).mean() for name in outputs if name.endswith("logits"))  # type: ignore[return-value]


def take_steps(model: Any, num_steps: int = 3) -> None:
    """Train what is trainable with AdamW."""
    model.train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    for step in range(num_steps):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def copy_of(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of all weights, by name."""
    return {name: one.detach().clone() for name, one in model.named_parameters()}
