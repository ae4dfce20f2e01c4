"""Adapters as runs leave them: whole, on their own base or refused, and the same by plain peft."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import LABELS, SHAPES, adapter_run, logits_of, write_base
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from finelaunch.errors import BadInput, FinelaunchError
from finelaunch.evaluation.adapters import check_adapter
from finelaunch.evaluation.finished import find_model, load_finished
from finelaunch.models.adapters import ADAPTER_WEIGHTS, built_whole, merged_base, merged_model, read_adapter
from finelaunch.models.load import load_model, load_tokenizer
from finelaunch.models.section import ModelSection

LM, CLS, QA = "causal_lm", "text_classification", "question_answering"
PROMPT = {"rank": None, "num_virtual_tokens": 4}
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lora": ("llama", LM, {}),
    "lora_classifier": ("bert", CLS, {}),
    "lora_qa_all_linear": ("bert", QA, {"target_modules": "all-linear"}),
    "lora_conv1d": ("gpt2", LM, {}),
    "rslora": ("llama", LM, {"use_rslora": True}),
    "dora": ("bert", CLS, {"use_dora": True}),
    "bias_all": ("bert", CLS, {"bias": "all"}),
    "bias_lora_only": ("bert", CLS, {"bias": "lora_only"}),
    "modules_to_save": ("llama", LM, {"modules_to_save": ["lm_head"]}),
    "qlora": ("llama", LM, {"name": "qlora", "target_modules": "all-linear"}),
    "qlora_conv1d": ("gpt2", LM, {"name": "qlora"}),
    "qlora_classifier": ("bert", CLS, {"name": "qlora"}),
}
CONVERTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "pissa": ("llama", LM, {"init_lora_weights": "pissa"}),
    "pissa_rslora": ("bert", CLS, {"init_lora_weights": "pissa", "use_rslora": True}),
    "pissa_conv1d": ("gpt2", LM, {"init_lora_weights": "pissa"}),
    "olora": ("llama", LM, {"init_lora_weights": "olora", "target_modules": "all-linear"}),
}
PROMPTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "prompt_tuning": ("llama", LM, {"name": "prompt_tuning", **PROMPT}),
    "prefix_tuning": ("llama", LM, {"name": "prefix_tuning", **PROMPT}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: write_base(folder / name, name) for name in SHAPES}


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


@pytest.mark.parametrize("name", [*METHODS, *PROMPTS])
def test_a_saved_adapter_answers_as_the_trained_model(name, bases, tmp_path):
    model_type, task, method = {**METHODS, **PROMPTS}[name]
    folder, trained = adapter_run(tmp_path / "run", bases[model_type], task, method)
    finished = load_finished(folder)
    assert difference(logits_of(finished.model, finished.tokenizer), trained) == 0.0
    assert not any(parameter.requires_grad for parameter in finished.model.parameters())
    if "bias" in method:  # peft leaves trained biases on
        return
    with finished.model.disable_adapter():
        assert difference(logits_of(finished.model, finished.tokenizer), trained) > 1e-3


@pytest.mark.parametrize("name", [*METHODS, *CONVERTED])
def test_merged_equals_adapter(name, bases, tmp_path):
    model_type, task, method = {**METHODS, **CONVERTED}[name]
    folder, trained = adapter_run(tmp_path / "run", bases[model_type], task, method, learning_rate=0.02)
    adapter = read_adapter(folder)
    tokenizer = load_tokenizer(ModelSection(name_or_path=str(folder)))
    merged = merged_model(adapter, tokenizer)
    assert difference(logits_of(merged, tokenizer), trained) < 1e-5
    assert not any("lora" in key or "base_layer" in key for key in merged.state_dict())


@pytest.mark.parametrize("name", CONVERTED)
def test_an_adapter_that_changed_its_base_is_an_ordinary_one_of_twice_the_rank(name, bases, tmp_path):
    model_type, task, method = CONVERTED[name]
    folder, trained = adapter_run(tmp_path / "run", bases[model_type], task, method, learning_rate=0.02)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    finished = load_finished(folder)
    assert difference(logits_of(finished.model, finished.tokenizer), trained) < 1e-5


def test_plain_peft_loads_what_was_saved(bases, tmp_path):
    folder, trained = adapter_run(tmp_path / "run", bases["bert"], CLS)
    torch.manual_seed(123)  # the head must not come from the seed
    config = AutoConfig.from_pretrained(folder)
    assert list(config.id2label.values()) == LABELS
    base = AutoModelForSequenceClassification.from_pretrained(bases["bert"], config=config)
    tokenizer = load_tokenizer(ModelSection(name_or_path=str(folder)))
    assert difference(logits_of(PeftModel.from_pretrained(base, str(folder)), tokenizer), trained) == 0.0


@pytest.mark.parametrize("method", [{}, {"name": "qlora"}, {"init_lora_weights": "pissa"}, {"bias": "all"}])
def test_a_base_that_was_drawn_lies_beside_its_adapter_as_it_was(method, bases, tmp_path):
    model = {"init": "scratch", "config": {"model_type": "bert", **SHAPES["bert"]}, "tokenizer": {"vocab_size": 320}}
    folder, trained = adapter_run(tmp_path / "run", bases["bert"], CLS, method, model)
    section = ModelSection(**model)
    finished = load_finished(folder)
    assert difference(logits_of(finished.model, finished.tokenizer), trained) < (
        1e-6 if "init_lora_weights" in method else 1e-12
    )
    config = {"id2label": dict(enumerate(LABELS)), "label2id": {name: number for number, name in enumerate(LABELS)}}
    drawn = load_model(section, "AutoModelForSequenceClassification", config, finished.tokenizer, 32, 7).model
    saved = load_file(folder / "base" / "model.safetensors")
    assert all(torch.equal(saved[name], parameter) for name, parameter in drawn.named_parameters())


def test_a_base_drawn_otherwise_is_refused(bases, tmp_path, monkeypatch):
    model = {"init": "scratch", "config": {"model_type": "bert", **SHAPES["bert"]}, "tokenizer": {"vocab_size": 320}}
    import adapted

    monkeypatch.setattr(adapted, "SEED", 8)  # the recipe says another seed than the base was drawn from
    with pytest.raises(FinelaunchError, match="another one than at the beginning"):
        adapter_run(tmp_path / "run", bases["bert"], CLS, None, model)
    assert not (tmp_path / "run" / "model" / "finelaunch.json").exists()


def reseeded(base: Path, to: Path, **shape: Any) -> Path:
    """Write a base of another seed or shape, with the tokenizer of ``base``."""
    model_type = json.loads((base / "config.json").read_text())["model_type"]
    write_base(to, model_type, seed=9, **shape)
    return to


FOREIGN = {
    "other weights": ({}, "llama", LM),
    "deeper": ({"num_hidden_layers": 3}, "llama", LM),
    "shallower": ({"num_hidden_layers": 1}, "llama", LM),
    "wider": ({"hidden_size": 128}, "llama", LM),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("targets", ["default", "all-linear"])
def test_another_base_is_refused_in_a_sentence(name, targets, bases, tmp_path):
    shape, model_type, task = FOREIGN[name]
    folder, _ = adapter_run(tmp_path / "run", bases[model_type], task, {"target_modules": targets})
    other = reseeded(bases[model_type], tmp_path / "other", **shape)
    with pytest.raises(BadInput) as caught:
        load_finished(folder, other)
    assert "the adapter belongs to another base: it was trained on" in str(caught.value)
    assert str(bases[model_type]) in str(caught.value)
    assert str(other) in str(caught.value)


@pytest.mark.parametrize("model_type", ["gpt2", "bert"])
def test_another_architecture_is_refused_in_a_sentence(model_type, bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM)
    with pytest.raises(BadInput, match="the adapter belongs to another base"):
        load_finished(folder, bases[model_type])


def test_the_same_files_with_another_config_are_another_base(bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM)
    other = shutil.copytree(bases["llama"], tmp_path / "copy")
    load_finished(folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(BadInput, match="the adapter belongs to another base"):
        load_finished(folder, other)


def restate(folder: Path, **changed: Any) -> None:
    path = folder / "finelaunch.json"
    content = json.loads(path.read_text())
    for name, values in changed.items():
        content[name] = {**content[name], **values}
    path.write_text(json.dumps(content))


def forget_files(folder: Path) -> None:
    """Make of ``folder`` one of the time when the hashes of its files were not stated."""
    path = folder / "finelaunch.json"
    content = json.loads(path.read_text())
    del content["files"]
    path.write_text(json.dumps(content))


def test_a_classifiers_adapter_on_a_qa_model_is_refused(bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["bert"], CLS)
    restate(
        folder,
        base={"auto_class": "AutoModelForQuestionAnswering"},
        task={"name": QA, "max_length": 48, "max_question_length": 16, "stride": 8},
    )
    with pytest.raises(BadInput, match="the adapter does not fit its base"):
        load_finished(folder)


def test_another_number_of_labels_is_refused(bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["bert"], CLS)
    config = json.loads((folder / "config.json").read_text())
    names = {str(number): f"label {number}" for number in range(4)}
    config |= {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"the adapter does not fit its base: .*size mismatch"):
        load_finished(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [("missing", "has no tensor"), ("left over", "has no place"), ("head", r"classifier\.weight has no tensor")],
)
def test_a_tensor_too_few_or_too_many_is_refused(change, said, bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["bert"], CLS)
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    if change == "left over":
        name = next(name for name in tensors if "layer.0" in name)
        tensors[name.replace("layer.0", "layer.7")] = tensors[name].clone()
    else:
        ending = "classifier.weight" if change == "head" else "lora_B.weight"
        del tensors[next(name for name in tensors if name.endswith(ending))]
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    forget_files(folder)
    with pytest.raises(BadInput, match=said):
        load_finished(folder)


def test_a_base_that_is_gone_is_named_and_given_by_the_user(bases, tmp_path):
    base = shutil.copytree(bases["llama"], tmp_path / "base")
    folder, trained = adapter_run(tmp_path / "run", base, LM)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(BadInput, match=r"base .*is not there; give --base DIR"):
        load_finished(folder)
    finished = load_finished(folder, moved)
    assert difference(logits_of(finished.model, finished.tokenizer), trained) == 0.0
    with pytest.raises(BadInput, match="nowhere is not there"):
        load_finished(folder, tmp_path / "nowhere")


def test_an_adapter_of_plain_peft_is_refused_by_what_it_lacks(bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM)
    alone = shutil.copytree(folder, tmp_path / "foreign")
    (alone / "finelaunch.json").unlink()
    with pytest.raises(BadInput, match=r"is an adapter without finelaunch\.json: its task"):
        find_model(str(alone))


@pytest.mark.parametrize(("model_type", "method"), [("llama", {}), ("gpt2", {"name": "qlora"})])
def test_an_adapter_goes_on_as_the_base_of_the_next(model_type, method, bases, tmp_path):
    first, trained = adapter_run(tmp_path / "first", bases[model_type], LM, method, learning_rate=0.02)
    section = ModelSection(name_or_path=str(first))
    tokenizer = load_tokenizer(section)
    loaded = load_model(section, "AutoModelForCausalLM", {}, tokenizer, 1, seed=0)
    assert difference(logits_of(loaded.model.eval(), tokenizer), trained) < 1e-5
    assert (loaded.newly_initialised, loaded.unused) == ((), ())
    assert merged_base(bases["llama"]) is None


@pytest.mark.parametrize("method", [{}, {"name": "qlora"}])
def test_an_adapter_on_an_adapter(method, bases, tmp_path):
    first, _ = adapter_run(tmp_path / "first", bases["llama"], LM, learning_rate=0.02)
    second, trained = adapter_run(tmp_path / "second", first, LM, method, learning_rate=0.02)
    finished = load_finished(second)
    assert difference(logits_of(finished.model, finished.tokenizer), trained) == 0.0
    tensors = {name: tensor + 0.01 for name, tensor in load_file(first / ADAPTER_WEIGHTS).items()}
    save_file(tensors, first / ADAPTER_WEIGHTS)
    with pytest.raises(BadInput, match="the adapter belongs to another base"):
        load_finished(second)


def test_shared_embeddings_are_shared_or_two_after_merging(bases, tmp_path):
    for modules, is_shared in ([], True), (["wte"], False):
        folder, trained = adapter_run(tmp_path / f"run{is_shared}", bases["gpt2"], LM, {"modules_to_save": modules})
        section = ModelSection(name_or_path=str(folder))
        tokenizer = load_tokenizer(section)
        model: Any = load_model(section, "AutoModelForCausalLM", {}, tokenizer, 1, seed=0).model.eval()
        assert (model.lm_head.weight is model.transformer.wte.weight) == is_shared
        assert difference(logits_of(model, tokenizer), trained) < 1e-5


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"a": (2, 3)}, None),
        ({"a": (2, 3), "b": (1,)}, "b is missing"),
        ({"a": (3, 2)}, r"a is \(2, 3\), not \(3, 2\)"),
        ({}, "a is left over"),
    ],
)
def test_a_file_is_held_against_what_was_trained(shapes, said, tmp_path):
    save_file({"a": torch.ones(2, 3)}, tmp_path / ADAPTER_WEIGHTS)
    if said is None:
        check_adapter(tmp_path, shapes)
        return
    with pytest.raises(FinelaunchError, match=said):
        check_adapter(tmp_path, shapes)


def test_an_empty_tensor_is_refused(tmp_path):
    save_file({"a": torch.ones(0, 3)}, tmp_path / ADAPTER_WEIGHTS)
    with pytest.raises(FinelaunchError, match="not whole: a is empty"):
        check_adapter(tmp_path, {"a": (0, 3)})


def test_models_are_built_whole_and_cut_again_afterwards():
    from transformers.integrations import deepspeed

    class Config:
        def is_zero3(self) -> bool:
            return True

    config = Config()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        with built_whole():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()
