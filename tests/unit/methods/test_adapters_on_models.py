"""What is newly drawn is trained and saved, whatever the architecture; what cannot be is refused in words."""

import dataclasses

import pytest
import torch
from transformers import AutoTokenizer
from unit.methods.bases import (
    CLASSES,
    ENCODERS,
    SHAPES,
    SPANS,
    WORDS,
    batch,
    copy_of,
    load,
    loss_of,
    take_steps,
)

from finelaunch.errors import BadInput
from finelaunch.methods import method_for
from finelaunch.methods.feature_extraction import FeatureExtractionSection
from finelaunch.methods.lora import LoraSection
from finelaunch.methods.prompts import PrefixTuningSection, PromptTuningSection
from finelaunch.methods.qlora import QLoraSection
from finelaunch.models.load import load_model
from finelaunch.models.quantization import Quantization
from finelaunch.models.section import ModelSection, TokenizerSection
from finelaunch.models.weights import num_bytes_of, parameters_of
from finelaunch.recipe.schema import Recipe
from finelaunch.section.base import build
from finelaunch.section.document import Document
from finelaunch.training.stages import held

pytestmark = pytest.mark.filterwarnings("ignore")

NEW = {
    ("bert", CLASSES): "bert.pooler.dense",
    ("deberta-v2", CLASSES): "pooler.dense",
    ("albert", CLASSES): "albert.pooler",
    ("modernbert", SPANS): "classifier",
}
"""Modules that are drawn and that peft by itself neither trains nor saves."""


@pytest.mark.parametrize("auto_class", [CLASSES, SPANS])
@pytest.mark.parametrize("model_type", ENCODERS)
def test_what_is_drawn_is_trained_and_saved(model_type, auto_class, bases):
    from peft import get_peft_model_state_dict

    for section in (LoraSection(rank=4), LoraSection(rank=4, target_modules="all-linear")):
        loaded = load(bases(model_type), auto_class)
        drawn = set(loaded.drawn)
        assert drawn
        if (model_type, auto_class) in NEW:
            assert any(name.startswith(f"{NEW[model_type, auto_class]}.") for name in drawn)
        loaded.model.eval()
        with torch.no_grad():
            before = loss_of(loaded.model)
        adapted = method_for(section).apply(loaded)
        adapted.eval()
        with torch.no_grad():
            assert loss_of(adapted).equal(before)
        frozen = {name for name, one in adapted.named_parameters() if not one.requires_grad}
        weights = copy_of(adapted)
        take_steps(adapted)
        moved = {name for name, one in adapted.named_parameters() if not torch.equal(one, weights[name])}
        assert not moved & frozen
        assert moved | frozen == weights.keys()
        trained = {name.replace("base_model.model.", "").replace("modules_to_save.default.", "") for name in moved}
        assert drawn <= trained
        saved = {name.replace("base_model.model.", "") for name in get_peft_model_state_dict(adapted)}
        assert drawn <= saved


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "olora", "pissa"])
@pytest.mark.parametrize("extra", [{}, {"use_dora": True, "use_rslora": True}])
def test_an_adapter_begins_as_its_base(init, extra, bases):
    loaded = load(bases("llama"), WORDS)
    loaded.model.eval()
    with torch.no_grad():
        before = loaded.model(**batch()).logits
        adapted = method_for(LoraSection(rank=4, init_lora_weights=init, **extra)).apply(loaded).eval()
        after = adapted(**batch()).logits
    if init == "gaussian" and not extra:
        assert after.equal(before)
    assert (after - before).abs().max() < 1e-5 * before.abs().max()


def test_targets_of_gpt2_and_llama_are_the_usual_ones(bases):
    for model_type, per_layer in (("gpt2", 3), ("llama", 4)):
        adapted = method_for(LoraSection(rank=4)).apply(load(bases(model_type), WORDS))
        names = [name for name, _ in adapted.named_parameters() if ".lora_A." in name]
        assert len(names) == 2 * per_layer


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            LoraSection(target_modules=["querry"]),
            r"method\.target_modules: 'querry' matches none of .*query.*did you mean 'query'",
        ),
        (LoraSection(target_modules=["query", "nothing"]), r"'nothing' matches none of the layers that take low-rank"),
        (LoraSection(target_modules=["classifier"]), r"'classifier' matches none"),
        (LoraSection(modules_to_save=["bert"]), r"method\.modules_to_save: 'query' lies in modules_to_save \[bert\]"),
        (
            LoraSection(modules_to_save=["encoder", "pooler"], target_modules="all-linear"),
            r"method\.modules_to_save: every layer that takes low-rank matrices lies in \[encoder, pooler\]",
        ),
        (LoraSection(modules_to_save=["poller"]), r"method\.modules_to_save: 'poller' matches none of the model"),
        (LoraSection(rank=65), r"method\.rank: 65 is larger than bert\..*, which is 64 to 64; at most 64"),
        (PromptTuningSection(), r"method\.name: prompt_tuning is offered for task causal_lm"),
        (PrefixTuningSection(), r"method\.name: prefix_tuning is offered for task causal_lm"),
    ],
)
def test_what_does_not_fit_a_classifier_is_refused(section, said, bases):
    with pytest.raises(BadInput, match=said):
        method_for(section).apply(load(bases("bert"), CLASSES))


def test_feature_extraction_of_a_language_model_is_refused(bases):
    with pytest.raises(BadInput, match=r"method\.name: feature_extraction has nothing to train"):
        method_for(FeatureExtractionSection()).apply(load(bases("gpt2"), WORDS))


def test_drawn_weights_that_would_be_lost_are_refused(bases):
    """A language model whose last norm the checkpoint does not hold."""
    loaded = dataclasses.replace(load(bases("llama"), WORDS), newly_initialised=("model.norm.weight",))
    with pytest.raises(BadInput, match=r"the checkpoint does not hold model\.norm: drawn anew, they would be neither"):
        method_for(PromptTuningSection(num_virtual_tokens=2)).apply(loaded)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, r"'pissa_niter_4' is not offered: its random decomposition differs"),
        ({"init_lora_weights": "loftq"}, r"'loftq' is not offered: it needs scipy"),
        ({"init_lora_weights": "eva"}, r"'eva' is not offered: it needs a pass over the data"),
        ({"init_lora_weights": "gausian"}, r"'gausian' is not known; .*; did you mean 'gaussian'"),
        ({"target_modules": "query"}, r"'query' is no list; .*write \[query\]"),
        ({"target_modules": []}, r"names nothing"),
        ({"r": 8}, r"method\.r: .*use method\.rank"),
        (
            {"name": "qlora", "init_lora_weights": "olora"},
            r"olora takes the base's weights apart, and 4 bits have none",
        ),
        ({"name": "prefix_tuning", "prefix_projection": True}, r"not offered: only its result is saved"),
    ],
)
def test_what_peft_has_and_a_recipe_does_not_take_is_answered(values, said):
    document = {
        "task": {"name": "causal_lm"},
        "model": {"name_or_path": "gpt2"},
        "data": {"train": {"path": "rows.jsonl"}},
        "training": {"global_batch_size": 8, "learning_rate": 1e-3},
        "method": {"name": "lora", **values},
    }
    with pytest.raises(BadInput, match=said):
        build(Recipe, Document(document))


def test_feature_extraction_holds_the_encoder(bases):
    loaded = load(bases("bert"), CLASSES, hidden_dropout_prob=0.5)
    chosen = method_for(FeatureExtractionSection())
    model = chosen.apply(loaded)
    (stage,) = chosen.stages(model, 5)
    before, outputs = copy_of(model), []
    model.bert.encoder.register_forward_hook(lambda *given: outputs.append(given[2].last_hidden_state))
    with held(model, stage):
        take_steps(model)
        model.train()
        loss_of(model)
        loss_of(model)
        assert not model.bert.encoder.training
        assert not model.bert.embeddings.training
        assert model.training
    assert all(output.grad_fn is None and not output.requires_grad for output in outputs)
    assert outputs[-1].equal(outputs[-2]), "no dropout in what is held"
    moved = {name.partition(".")[0] for name, one in model.named_parameters() if not one.equal(before[name])}
    assert moved == {"classifier", "bert"}
    assert {name for name, one in model.named_parameters() if not one.equal(before[name]) and "bert" in name} == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }
    model.train()
    loss_of(model)
    assert model.bert.encoder.training, "held no longer"


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(
    ("model_type", "auto_class"),
    [
        ("bert", CLASSES),
        ("bert", SPANS),
        ("deberta-v2", CLASSES),
        ("modernbert", SPANS),
        ("gpt2", WORDS),
        ("llama", WORDS),
    ],
)
def test_a_base_in_4_bits(model_type, auto_class, kind, bases):
    from torch import nn

    section = QLoraSection(rank=4, quantization_type=kind, double_quantization=kind == "nf4")
    method = method_for(section)
    held_in = method.quantization("tf32")
    assert held_in == Quantization(kind, kind == "nf4", "fp32")
    plain = load(bases(model_type), auto_class).model.eval()
    loaded = load(bases(model_type), auto_class, held_in)
    modules = dict(loaded.model.named_modules())
    for name in {name.rpartition(".")[0] for name in loaded.drawn}:
        if isinstance(modules[name], nn.Linear):
            assert type(modules[name]) is nn.Linear, name
            assert modules[name].weight.dtype is torch.float32
    packed = {name for name, one in loaded.model.named_parameters() if type(one).__name__ == "Params4bit"}
    assert packed
    assert {str(one.dtype) for name, one in loaded.model.named_parameters() if name not in packed} == {"torch.float32"}
    assert parameters_of(loaded.model)["total"] == parameters_of(plain)["total"] == loaded.model.num_parameters()
    with torch.no_grad():
        exact, near = plain(**batch())[0], loaded.model.eval()(**batch())[0]
    assert 0 < (exact - near).abs().max() < 0.5 * max(1.0, float(exact.abs().max()))
    states = [one.quant_state for name, one in loaded.model.named_parameters() if name in packed]
    assert all(state.quant_type == kind and state.nested == (kind == "nf4") for state in states)
    beside = sum(state.absmax.nbytes + state.code.nbytes for state in states)
    beside += sum(state.state2.absmax.nbytes + state.state2.code.nbytes for state in states if state.nested)
    buffers = sum(one.nbytes for one in loaded.model.buffers())
    assert num_bytes_of(loaded.model) == loaded.model.get_memory_footprint() - buffers + beside
    adapted = method.apply(loaded)
    weights = copy_of(adapted)
    take_steps(adapted)
    for name, one in adapted.named_parameters():
        assert torch.equal(one, weights[name]) != one.requires_grad, name


def test_drawn_weights_in_4_bits_are_those_of_the_same_seed(bases):
    tokenizer = AutoTokenizer.from_pretrained(bases("gpt2"))
    config = {"model_type": "gpt2", **SHAPES["gpt2"]}
    section = ModelSection(init="scratch", config=config, tokenizer=TokenizerSection(vocab_size=320))
    plain = load_model(section, WORDS, {}, tokenizer, 16, 7)
    packed = load_model(section, WORDS, {}, tokenizer, 16, 7, Quantization("nf4", True, "fp32"))
    assert packed.fingerprint == plain.fingerprint
    assert packed.model.transformer.wte.weight.equal(plain.model.transformer.wte.weight)
    assert packed.model.lm_head.weight is packed.model.transformer.wte.weight
    assert type(packed.model.transformer.h[0].attn.c_attn.weight).__name__ == "Params4bit"
