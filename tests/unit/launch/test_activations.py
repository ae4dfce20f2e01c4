"""Activations: the formulas against what torch keeps for the backward pass, by architecture and method."""

from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import AutoConfig

from finelaunch.launch.activations import activation_bytes
from finelaunch.launch.estimate import everything
from finelaunch.methods import MethodSection, method_for
from finelaunch.methods.feature_extraction import FeatureExtractionSection
from finelaunch.methods.full import FullSection
from finelaunch.methods.lora import LoraSection
from finelaunch.methods.prompts import PrefixTuningSection, PromptTuningSection
from finelaunch.methods.trainable import Trainable, trainable_of
from finelaunch.models.load import LoadedModel
from finelaunch.models.section import ModelSection, TokenizerSection
from finelaunch.models.shape import HEADS
from finelaunch.models.size import ModelSize, model_size

pytestmark = pytest.mark.filterwarnings("ignore")
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
METHODS: dict[str, MethodSection] = {
    "full": FullSection(),
    "feature_extraction": FeatureExtractionSection(),
    "lora": LoraSection(rank=8, dropout=0.1),
    "all": LoraSection(rank=8, dropout=0.0, target_modules="all-linear"),
    "dora": LoraSection(rank=8, dropout=0.0, target_modules="all-linear", use_dora=True),
    "prompt_tuning": PromptTuningSection(num_virtual_tokens=16),
    "prefix_tuning": PrefixTuningSection(num_virtual_tokens=16),
}
CAUSAL = ("gpt2", "llama", "mistral")
FROZEN = [("feature_extraction", "bert"), ("feature_extraction", "deberta-v2")]
FROZEN += [(name, kind) for name in ("lora", "all", "dora") for kind in ("bert", "deberta-v2", "gpt2", "llama")]
FROZEN += [(name, kind) for name in ("prompt_tuning", "prefix_tuning") for kind in ("gpt2", "mistral")]
BAND = (0.9, 1.25)
"""Of estimate over measured. Without checkpointing 0.96 to 1.08; with it dropout's masks, which the hooks do not see
here, weigh more: 0.92 to 1.23. Of frozen models 0.91 to 1.15."""


def built(model_type: str, method: MethodSection) -> tuple[Any, ModelSize, Trainable]:
    """Return a model as the method trains it, its size, and what is trained."""
    task = "causal_lm" if model_type in CAUSAL else "question_answering"
    config = AutoConfig.for_model(model_type, vocab_size=1000, **SHAPES[model_type])
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 1
    # A CPU keeps dropout's masks as numbers of the tensors' own type, which no GPU does.
    for name in ("hidden_dropout_prob", "dropout", "resid_pdrop", "embd_pdrop", "attention_probs_dropout_prob"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    auto_class = f"AutoModelFor{HEADS[task]}"
    section = ModelSection(
        init="scratch",
        config={"model_type": model_type, **SHAPES[model_type]},
        tokenizer=TokenizerSection(vocab_size=1000),
    )
    plain = getattr(transformers, auto_class).from_config(config).train()
    loaded = LoadedModel(plain, (), (), "scratch", auto_class, is_scratch=True)
    size, trainable = model_size(section, task, 2), trainable_of(section, task, 2, method)
    assert isinstance(size, ModelSize)
    assert isinstance(trainable, Trainable)
    return method_for(method).apply(loaded), size, trainable


def kept_bytes(model: Any, rows: int, length: int, autocast: bool) -> int:
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
        outputs = model(input_ids=ids, attention_mask=mask, **({"use_cache": False} if is_causal(model) else {}))
        if is_causal(model):
            loss = cross_entropy(outputs.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        else:
            loss = outputs.start_logits.float().sum() + outputs.end_logits.float().sum()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def is_causal(model: Any) -> bool:
    return model.config.model_type in CAUSAL


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("checkpointing", "length"), [(False, 48), (False, 160), (True, 96)])
@pytest.mark.parametrize("model_type", SHAPES)
def test_activations_are_what_torch_keeps(model_type: str, checkpointing: bool, length: int, precision: str) -> None:
    rows, narrow = 4, 2 if precision == "bf16" else 4
    model, size, _ = built(model_type, FullSection())
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    expected = activation_bytes(
        size, rows, length, everything(size), wide=4, narrow=narrow, checkpointing=checkpointing
    )
    if checkpointing:
        # The layer that is computed again is not there yet while the hooks look.
        ends = 3 * size.hidden_size * 4 * rows * length
        whole = activation_bytes(size, rows, length, everything(size), wide=4, narrow=narrow)
        expected += size.hidden_size * 4 * rows * length - (whole - ends) // size.num_layers
    expected += 4 * rows * length * size.vocab_size if is_causal(model) else 0
    ratio = expected / kept_bytes(model, rows, length, precision == "bf16")
    print(f"{model_type} {precision} length {length} checkpointing {checkpointing}: {ratio:.3f}")
    assert BAND[0] < ratio < BAND[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "model_type"), FROZEN)
def test_of_a_frozen_model_torch_keeps_what_adapters_read(name: str, model_type: str, precision: str) -> None:
    rows, length = 4, 160
    model, size, trainable = built(model_type, METHODS[name])
    expected = activation_bytes(size, rows, length, trainable, wide=4, narrow=2 if precision == "bf16" else 4)
    expected += 4 * rows * length * size.vocab_size if is_causal(model) else 0
    if trainable.has_dropout:  # of the adapters; masks that a CPU keeps in fp32
        expected += 3 * rows * length * sum(num_in for _, num_in, _ in trainable.adapted)
    kept = kept_bytes(model, rows, length, precision == "bf16")
    print(f"{name} {model_type} {precision}: {expected / kept:.3f}")
    assert BAND[0] < expected / kept < BAND[1]
