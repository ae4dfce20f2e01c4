"""What a method trains, counted from a config: against the parameters that transformers and peft make trainable."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoConfig, set_seed

from finelaunch.launch.estimate import weight_bytes
from finelaunch.methods import MethodSection, method_for
from finelaunch.methods.feature_extraction import FeatureExtractionSection
from finelaunch.methods.full import FullSection
from finelaunch.methods.gradual_unfreezing import GradualUnfreezingSection
from finelaunch.methods.lora import LoraSection
from finelaunch.methods.prompts import PrefixTuningSection, PromptTuningSection
from finelaunch.methods.qlora import QLoraSection
from finelaunch.methods.trainable import SMALL_TENSOR, Trainable, trainable_of
from finelaunch.models.load import LoadedModel
from finelaunch.models.section import ModelSection, TokenizerSection
from finelaunch.models.shape import HEADLESS, HEADS
from finelaunch.models.size import ModelSize, model_size
from finelaunch.models.weights import num_bytes_of, num_elements, parameters_of

pytestmark = pytest.mark.filterwarnings("ignore")
VOCAB = 400
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL,
    "electra": {**SMALL, "embedding_size": 32},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
    "deberta-v2": {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 8},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "llama": {**SMALL, "num_key_value_heads": 2},
    "mistral": {**SMALL, "num_key_value_heads": 1, "head_dim": 24},
    "qwen2": {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
}
METHODS: dict[str, MethodSection] = {
    "full": FullSection(),
    "feature_extraction": FeatureExtractionSection(),
    "gradual_unfreezing": GradualUnfreezingSection(),
    "lora": LoraSection(rank=4),
    "all": LoraSection(rank=3, target_modules="all-linear", bias="all"),
    "dora": LoraSection(rank=2, target_modules="all-linear", use_dora=True, bias="lora_only"),
    "prompt_tuning": PromptTuningSection(num_virtual_tokens=5),
    "prefix_tuning": PrefixTuningSection(num_virtual_tokens=5),
}


def loaded_from(model_type: str, task: str) -> tuple[ModelSection, LoadedModel]:
    """Return a section, and the model that it names as loading makes it."""
    shape, auto_class = SHAPES[model_type], f"AutoModelFor{HEADS[task]}"
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 1)
    config = AutoConfig.for_model(model_type, **shape, **ids, vocab_size=VOCAB, num_labels=2)
    model = getattr(transformers, auto_class).from_config(config)
    section = ModelSection(
        init="scratch", config={"model_type": model_type, **shape}, tokenizer=TokenizerSection(vocab_size=VOCAB)
    )
    return section, LoadedModel(model, (), (), "scratch", auto_class, is_scratch=True)


def assert_counted(found: Trainable | str, model: Any, num_before: int) -> None:
    assert isinstance(found, Trainable), found
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    assert found.num_parameters == sum(sizes)
    assert found.num_small == sum(size for size in sizes if size < SMALL_TENSOR)
    assert found.num_added == sum(parameter.numel() for parameter in model.parameters()) - num_before
    assert parameters_of(model)["total"] == num_before + found.num_added - found.num_replaced


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("model_type", SHAPES)
def test_counts_are_those_of_the_real_model(model_type: str, task: str) -> None:
    if (model_type, task) in HEADLESS:
        section = ModelSection(
            init="scratch", config={"model_type": model_type}, tokenizer=TokenizerSection(vocab_size=VOCAB)
        )
        assert isinstance(trainable_of(section, task, 2, FullSection()), str)
        return
    for name, method in METHODS.items():
        is_words, is_prompt = task == "causal_lm", name in ("prompt_tuning", "prefix_tuning")
        if is_prompt != is_words and (is_prompt or name == "feature_extraction"):
            continue
        if is_words and (name == "feature_extraction" or (is_prompt and model_type in ("bert", "roberta", "electra"))):
            continue
        section, loaded = loaded_from(model_type, task)
        before = sum(parameter.numel() for parameter in loaded.model.parameters())
        assert_counted(trainable_of(section, task, 2, method), method_for(method).apply(loaded), before)


@pytest.mark.parametrize("saved_as", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
@pytest.mark.parametrize("name", ["feature_extraction", "lora", "all"])
def test_a_pooler_is_the_heads_where_the_checkpoint_has_none(saved_as: str, name: str, tmp_path: Path) -> None:
    set_seed(0)
    config = AutoConfig.for_model("bert", **SMALL, vocab_size=VOCAB)
    getattr(transformers, saved_as)(config).save_pretrained(tmp_path)
    section = ModelSection(name_or_path=str(tmp_path))
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    drawn = tuple(sorted(info["missing_keys"]))
    assert any("pooler" in one for one in drawn) == (saved_as == "BertForMaskedLM")
    loaded = LoadedModel(model, drawn, (), "", "AutoModelForSequenceClassification")
    found = trainable_of(section, "text_classification", 2, METHODS[name])
    assert isinstance(found, Trainable)
    assert not found.is_upper_bound
    before = sum(parameter.numel() for parameter in model.parameters())
    assert_counted(found, method_for(METHODS[name]).apply(loaded), before)
    (tmp_path / "model.safetensors").rename(tmp_path / "other")
    guess = trainable_of(section, "text_classification", 2, METHODS[name])
    assert isinstance(guess, Trainable)
    assert guess.is_upper_bound == (name != "feature_extraction")  # which trains any pooler
    assert guess.num_parameters >= found.num_parameters


def test_modules_to_save_are_copied() -> None:
    for method in (LoraSection(modules_to_save=["lm_head"]), LoraSection(modules_to_save=["ln_f", "wpe"], bias="all")):
        section, loaded = loaded_from("gpt2", "causal_lm")
        before = sum(parameter.numel() for parameter in loaded.model.parameters())
        assert_counted(trainable_of(section, "causal_lm", 2, method), method_for(method).apply(loaded), before)


@pytest.mark.parametrize("is_double", [True, False])
@pytest.mark.parametrize(
    ("model_type", "task"), [("llama", "causal_lm"), ("gpt2", "causal_lm"), ("bert", "text_classification")]
)
def test_weights_in_4_bits_take_what_is_said(model_type: str, task: str, is_double: bool, tmp_path: Path) -> None:
    section, plain = loaded_from(model_type, task)
    plain.model.save_pretrained(tmp_path)
    method = QLoraSection(rank=4, double_quantization=is_double)
    prefix = plain.model.base_model_prefix
    kept = [name for name, _ in plain.model.named_modules() if name and not name.startswith(prefix)]
    quantization = method_for(method).quantization("fp32")
    assert quantization is not None
    model = type(plain.model).from_pretrained(tmp_path, dtype="float32", **quantization.arguments(kept))
    size, found = model_size(section, task, 2), trainable_of(section, task, 2, method)
    assert isinstance(size, ModelSize)
    assert isinstance(found, Trainable)
    assert found.quantised is not None
    assert parameters_of(model)["total"] == size.num_parameters
    in_4_bits = [one for one in model.parameters() if hasattr(one, "quant_state")]
    assert found.quantised.num_parameters == sum(num_elements(one) for one in in_4_bits)
    assert found.quantised.largest == max(num_elements(one) for one in in_4_bits)
    assert weight_bytes(size, 4, replace(found, num_added=0)) == num_bytes_of(model) + 4 * is_double * len(in_4_bits)
    packed = found.quantised.num_parameters // 2
    rest = size.num_parameters - found.quantised.num_parameters
    buffers = sum(one.nbytes for one in model.buffers())
    assert packed + 4 * rest + buffers == model.get_memory_footprint()
    adapted = method_for(method).apply(replace(plain, model=model))
    assert parameters_of(adapted) == {
        "trainable": found.num_parameters,
        "total": size.num_parameters + found.num_added - found.num_replaced,
    }


def test_what_is_in_4_bits_is_counted_and_weighed() -> None:
    section, _ = loaded_from("llama", "causal_lm")
    found = trainable_of(section, "causal_lm", 2, QLoraSection())
    plain = trainable_of(section, "causal_lm", 2, QLoraSection(double_quantization=False))
    assert isinstance(found, Trainable)
    assert isinstance(plain, Trainable)
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
    assert (found.quantised.num_parameters, found.quantised.largest) == (2 * layer, 64 * 96)  # type: ignore[union-attr]
    assert plain.quantised.num_bytes == 2 * (layer // 2 + layer // 16 + 7 * 64)  # type: ignore[union-attr]
