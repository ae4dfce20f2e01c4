"""Sizes of models: the formulas against the models that transformers builds, and what is said where there is none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from finelaunch.models.section import ModelSection, TokenizerSection
from finelaunch.models.shape import DEFAULTS, HEADLESS, HEADS, OWN_NAMES
from finelaunch.models.size import ModelSize, model_size
from finelaunch.recipe.load import load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
VOCAB = 400
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
OTHER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56}
OTHER |= {"max_position_embeddings": 96}
GROUPED = {"num_key_value_heads": 2}
SHAPES: dict[str, tuple[dict[str, Any], ...]] = {
    "bert": (SMALL, {**OTHER, "type_vocab_size": 3, "tie_word_embeddings": False, "hidden_act": "relu"}),
    "roberta": (SMALL, {**OTHER, "type_vocab_size": 1, "tie_word_embeddings": False}),
    "electra": (
        {**SMALL, "embedding_size": 12},
        {**OTHER, "embedding_size": 32},
        {**OTHER, "embedding_size": 16, "tie_word_embeddings": False},
    ),
    "distilbert": (
        {"dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 40},
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_dim": 48},
        {"dim": 32, "n_heads": 4, "sinusoidal_pos_embds": True, "max_position_embeddings": 64},
    ),
    "deberta-v2": (
        SMALL,
        {**OTHER, "type_vocab_size": 2, "relative_attention": True, "pos_att_type": "p2c|c2p"},
        {**OTHER, "relative_attention": True, "max_relative_positions": 24, "position_biased_input": False},
        {**OTHER, "relative_attention": True, "pos_att_type": ["c2p"]},
    ),
    "gpt2": (
        {"n_embd": 24, "n_layer": 2, "n_head": 2},
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 40, "n_positions": 64, "tie_word_embeddings": False},
    ),
    "llama": (
        SMALL,
        {**OTHER, **GROUPED, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {**OTHER, "head_dim": 24},
    ),
    "mistral": ({**SMALL, "num_key_value_heads": 1}, {**OTHER, **GROUPED, "tie_word_embeddings": True, "head_dim": 24}),
    "qwen2": ({**SMALL, "num_key_value_heads": 1}, {**OTHER, **GROUPED, "tie_word_embeddings": True}),
}
ONLY_IN_FILES = (
    {**OTHER, "model_type": "deberta-v2", "relative_attention": True, "pos_att_type": "p2c|c2p", "share_att_key": True}
    | {"position_buckets": 16, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "vocab_size": 500},
    {**OTHER, "model_type": "deberta-v2", "relative_attention": True, "embedding_size": 16, "vocab_size": 500}
    | {"conv_kernel_size": 3, "conv_groups": 2, "attention_head_size": 8, "pooler_hidden_size": 32},
    {**OTHER, "model_type": "llama", "num_key_value_heads": None, "head_dim": None, "vocab_size": 500},
    {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_inner": None, "n_ctx": 64, "vocab_size": 500},
)
"""Keys as checkpoints on the hub have them; a scratch recipe may not set all of them."""


def scratch(model_type: str, shape: dict[str, Any]) -> ModelSection:
    config = {"model_type": model_type, **shape}
    return ModelSection(init="scratch", config=config, tokenizer=TokenizerSection(vocab_size=VOCAB))


def built(config: Any, task: str, num_labels: int) -> torch.nn.Module:
    config.num_labels = 2 if task == "question_answering" else num_labels
    with torch.device("meta"):
        return getattr(transformers, f"AutoModelFor{HEADS[task]}").from_config(config)


def config_of(model_type: str, shape: dict[str, Any], **more: Any) -> Any:
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 1)
    return AutoConfig.for_model(model_type, **shape, **ids, **more)


def assert_same(size: ModelSize | str, model: torch.nn.Module) -> None:
    assert isinstance(size, ModelSize), size
    assert size.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    assert size.num_layers == len(blocks)
    assert size.layer_parameters == sum(parameter.numel() for parameter in blocks[0].parameters())
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    looked_up = sum(table.weight.numel() for table in tables)
    if size.model_type == "deberta-v2":  # its table of relative positions is multiplied by
        looked_up -= sum(p.numel() for name, p in model.named_parameters() if "rel_embeddings" in name)
    assert size.embedding_parameters == looked_up
    assert size.largest_layer_parameters == max(looked_up, size.layer_parameters)


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize(
    ("model_type", "number"), [(kind, n) for kind, given in SHAPES.items() for n in range(len(given))]
)
def test_a_formula_counts_what_transformers_builds(model_type: str, number: int, task: str) -> None:
    shape = SHAPES[model_type][number]
    size = model_size(scratch(model_type, shape), task, 3)
    if (model_type, task) in HEADLESS:
        assert size == f"transformers has no CausalLM head for {model_type}"
        with pytest.raises(ValueError, match="Unrecognized configuration class"):
            built(config_of(model_type, shape, vocab_size=VOCAB), task, 3)
        return
    config = config_of(model_type, shape, vocab_size=VOCAB)
    assert_same(size, built(config, task, 3))
    assert isinstance(size, ModelSize)
    assert size.is_upper_bound
    assert (size.hidden_size, size.num_attention_heads) == (config.hidden_size, config.num_attention_heads)
    assert (size.vocab_size, size.max_positions) == (VOCAB, config.max_position_embeddings)


@pytest.mark.parametrize("number", range(len(ONLY_IN_FILES)))
def test_a_checkpoint_is_counted_from_its_config(number: int, tmp_path: Path) -> None:
    given = ONLY_IN_FILES[number]
    (tmp_path / "config.json").write_text(json.dumps(given))
    section = ModelSection(
        name_or_path=str(tmp_path), config={"num_hidden_layers": 2} if number < 3 else {"n_layer": 2}
    )
    config = AutoConfig.from_pretrained(tmp_path)
    config.num_hidden_layers = 2
    for task in ("question_answering", "text_classification"):
        size = model_size(section, task, 5)
        assert_same(size, built(config, task, 5))
        assert isinstance(size, ModelSize)
        assert not size.is_upper_bound


def test_a_run_directory_stands_for_its_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config_of("bert", SMALL, vocab_size=500).save_pretrained(tmp_path / "model")
    size = model_size(ModelSection(name_or_path=str(tmp_path)), "question_answering", 2)
    assert isinstance(size, ModelSize)
    assert size.vocab_size == 500


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    config = type(AutoConfig.for_model(model_type))
    own = {ours: theirs for theirs, ours in OWN_NAMES.get(model_type, {}).items()}
    fields = {name: getattr(config, own.get(name, name)) for name in DEFAULTS[model_type]}
    assert fields == DEFAULTS[model_type]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "electra", "deberta-v2", "gpt2"])
def test_a_whole_model_by_defaults(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, vocab_size=VOCAB)
    assert_same(model_size(scratch(model_type, {}), "text_classification", 2), built(config, "text_classification", 2))


def test_every_shipped_recipe_has_a_size_or_a_reason() -> None:
    seen = {}
    for path in sorted(RECIPES.rglob("*.yaml")):
        name, recipe = path.relative_to(RECIPES).with_suffix("").as_posix(), load_recipe(str(path))[0]
        size = model_size(recipe.model, recipe.task.name, 2)
        seen[name] = size.num_parameters if isinstance(size, ModelSize) else size
    # The hub's models are known where they are cached; published: 66,955,010 with two classes, 354,823,168.
    assert len(seen) >= 8
    assert seen["imdb/minilm"] == 22_713_986  # 22,713,216 of the body and pooler, 770 of the head
    assert seen["squad_v2/minilm"] == 22_713_986 - 384 * 385
    for name in ("imdb/smoke", "squad_v2/smoke", "domain_assistant/smoke"):
        assert isinstance(seen[name], int), seen[name]
    for name, value in seen.items():
        assert isinstance(value, int) or value.endswith("is not on this machine; finelaunch train fetches it"), name


@pytest.mark.parametrize(
    ("shape", "task", "expected"),
    [
        ({"model_type": "distilbert"}, "text_classification", 66_955_010),
        ({"model_type": "distilbert"}, "question_answering", 66_364_418),
        ({"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16}, "causal_lm", 354_823_168),
        ({"model_type": "bert"}, "question_answering", 108_893_186),
        ({"model_type": "llama"}, "causal_lm", 6_738_415_616),
        ({"model_type": "mistral"}, "causal_lm", 7_241_732_096),
    ],
)
def test_published_sizes(shape: dict[str, Any], task: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape))
    size = model_size(ModelSection(name_or_path=str(tmp_path)), task, 2)
    assert isinstance(size, ModelSize)
    assert size.num_parameters == expected


def test_a_hub_model_is_known_once_it_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    section = ModelSection(name_or_path="someone/something")
    unknown = "the config of someone/something is not on this machine; finelaunch train fetches it"
    assert model_size(section, "question_answering", 2) == unknown
    folder = tmp_path / "models--someone--something"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps({"model_type": "distilbert"}))
    import huggingface_hub.file_download as download

    found = download.try_to_load_from_cache("someone/something", "config.json", cache_dir=str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: found)
    size = model_size(section, "question_answering", 2)
    assert isinstance(size, ModelSize)
    assert size.num_parameters == 66_364_418


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "t5"}, "not for t5"),
        ({"model_type": "bert", "hidden_size": "big"}, "the model's config makes no bert"),
        ({"model_type": "bert", "hidden_size": None}, "the model's config makes no bert"),
        ({"model_type": "bert", "num_attention_heads": 0}, "the model's config makes no bert"),
        ({"model_type": "gpt2", "n_layer": -1}, "num_hidden_layers is -1"),
        ({"model_type": "deberta-v2", "pos_att_type": 3, "relative_attention": True}, "makes no deberta-v2"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "with add_cross_attention"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "with quantization_config"),
        ({"hidden_size": 3}, "names no model_type"),
        ([], "names no model_type"),
    ],
)
def test_what_cannot_be_counted_is_said(config: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = model_size(ModelSection(name_or_path=str(tmp_path)), "text_classification", 2)
    assert isinstance(size, str)
    assert said in size


def test_faults_of_the_path_are_said_and_not_raised(tmp_path: Path) -> None:
    assert "holds no config.json" in str(model_size(ModelSection(name_or_path=str(tmp_path)), "causal_lm", 2))
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in str(model_size(ModelSection(name_or_path=str(tmp_path)), "causal_lm", 2))
    missing = ModelSection(name_or_path="package:no_such_package_here/model")
    assert isinstance(model_size(missing, "causal_lm", 2), str)
    assert isinstance(model_size(ModelSection(name_or_path="odd name!!"), "causal_lm", 2), str)
