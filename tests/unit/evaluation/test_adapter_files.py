"""What lies in an adapter's folder: refused in a sentence where it is damaged, foreign or changed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import adapted
import pytest
import torch
from adapted import adapter_run, logits_of, write_base
from safetensors.torch import load_file, save_file

from finelaunch.errors import BadInput, FinelaunchError
from finelaunch.evaluation.finished import load_finished
from finelaunch.models.adapters import ADAPTER_WEIGHTS, merged_base, read_adapter
from finelaunch.models.fingerprint import content_of, weight_files
from finelaunch.models.load import load_model, load_tokenizer
from finelaunch.models.section import ModelSection
from finelaunch.reporting.card import model_card

LM, CLS, QA = "causal_lm", "text_classification", "question_answering"


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: write_base(folder / name, name) for name in ("bert", "llama")}


@pytest.fixture(scope="module")
def saved(bases, tmp_path_factory) -> Path:
    return adapter_run(tmp_path_factory.mktemp("saved") / "run", bases["bert"])[0]


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {**content, first: changed(content[first], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("base.quantization", {"foo": 1}, r"base\.quantization"),
        ("base.quantization", {"type": "nf5", "double": True, "compute": "fp32"}, r"base\.quantization\.type: .*nf5"),
        ("base.config", [1], r"base\.config: .*not a mapping"),
        ("base.auto_class", "os", r"base\.auto_class: .*'os' is not allowed"),
        ("base.content", None, r"base\.content: .*None is not allowed"),
        ("base.fingerprint", 7, r"base\.fingerprint: .*7 is not allowed"),
        ("base.name", None, r"base\.name: .*is missing"),
        ("base.init", "drawn", r"base\.init: .*'drawn' is not allowed"),
        ("base", [], r"base: .*not a mapping"),
        ("base", None, "base: "),
        ("method", "lora", r"method: .*not"),
        ("method", {"rank": 4}, r"method\.name: .*is missing"),
        ("task", {"name": None}, r"task\.name: .*is missing"),
        ("files", {"adapter_config.json": 1}, r"files\.adapter_config\.json: .*1 is not allowed"),
    ],
)
def test_damaged_facts_are_one_sentence(key, value, said, folder):
    path = folder / "finelaunch.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), key, value)))
    for read in (read_adapter, load_finished, merged_base):
        with pytest.raises(BadInput, match=said) as caught:
            read(folder)
        assert caught.value.exit_code == 2
        assert "is damaged" in str(caught.value)
        assert str(caught.value).endswith("copy the run again")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "null", "{", "[" * 100_000, "\ud83d"])
def test_what_is_no_json_object_is_one_sentence(text, folder):
    (folder / "finelaunch.json").write_text(text, errors="surrogatepass")
    with pytest.raises(BadInput, match="is damaged") as caught:
        read_adapter(folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_config_is_one_sentence(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"model: .*copy the run again"):
        load_finished(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", ADAPTER_WEIGHTS])
def test_changed_files_are_refused(name, folder):
    if name == ADAPTER_WEIGHTS:
        save_file({key: tensor + 0.01 for key, tensor in load_file(folder / name).items()}, folder / name)
    else:
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, "lora_alpha": 3 * config["lora_alpha"]}))
    with pytest.raises(BadInput, match=rf"{re.escape(name)}: was changed since it was written; copy the run again"):
        load_finished(folder)
    path = folder / "finelaunch.json"
    content = json.loads(path.read_text())
    del content["files"]
    path.write_text(json.dumps(content))
    load_finished(folder)  # an old folder does not know


def test_a_base_that_changed_in_training_is_refused(bases, tmp_path, monkeypatch):
    base = shutil.copytree(bases["llama"], tmp_path / "base")
    save = adapted.save_model

    def change_and_save(*given: Any) -> None:
        weights = base / "model.safetensors"
        save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
        save(*given)

    monkeypatch.setattr(adapted, "save_model", change_and_save)
    with pytest.raises(FinelaunchError, match="is not what it was when training began; the checkpoints are kept"):
        adapter_run(tmp_path / "run", base, LM)
    assert not (tmp_path / "run" / "model" / "finelaunch.json").exists()


def test_weights_are_those_that_are_loaded(bases, tmp_path):
    folder = shutil.copytree(bases["llama"], tmp_path / "copy")
    content = content_of(folder)
    save_file({"a": torch.ones(1)}, folder / "optimizer.safetensors")
    (folder / "training_args.bin").write_bytes(b"none")
    assert weight_files(folder) == [folder / "model.safetensors"]
    assert content_of(folder) == content
    section = ModelSection(name_or_path=str(folder))
    model = load_model(section, "AutoModelForCausalLM", {}, load_tokenizer(section), 1, 0).model
    sharded = tmp_path / "sharded"
    model.save_pretrained(sharded, max_shard_size="100KB")
    names = sorted(path.name for path in sharded.glob("model-*.safetensors"))
    assert len(names) > 1
    save_file({"a": torch.ones(1)}, sharded / "model-of-before.safetensors")
    assert [path.name for path in weight_files(sharded)] == names
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    with pytest.raises(BadInput, match="weight_map: is no mapping"):
        weight_files(sharded)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(BadInput, match=r"holds no weights; model\.safetensors or pytorch_model\.bin"):
        content_of(folder)


def card_of(folder: Path) -> str:
    """Return the card that a run whose adapter lies in ``folder`` would write."""
    stated = json.loads((folder / "finelaunch.json").read_text())
    recipe = {"task": stated["task"], "model": {"config": {}}, "method": stated["method"]}
    recipe["training"] = {"global_batch_size": 4, "learning_rate": 0.02, "seed": 7}
    quantization = stated["base"]["quantization"]
    if quantization:
        quantization = {key: quantization[key] for key in ("type", "double", "compute")}
    manifest = {
        "finelaunch": "0",
        "model": {**stated["base"], "quantization": quantization},
        "parameters": {"trainable": 1, "total": 2},
        "engine": {"precision": "fp32", "device": "cpu"},
        "data": {},
        "warnings": [],
    }
    return model_card("run", recipe, manifest, {"task": stated["task"]["name"], "train": {"steps": 2}})


@pytest.mark.parametrize(
    ("model_type", "task", "method"),
    [
        ("bert", CLS, {"name": "qlora"}),
        ("bert", QA, {"name": "qlora", "quantization_type": "fp4", "double_quantization": False}),
        ("llama", LM, {"name": "qlora", "target_modules": "all-linear"}),
        ("bert", CLS, {}),
    ],
)
def test_the_code_of_the_card_loads_the_adapter(model_type, task, method, bases, tmp_path):
    folder, trained = adapter_run(tmp_path / "run", bases[model_type], task, method)
    code = re.findall(r"```python\n(.*?)```", card_of(folder), re.DOTALL)
    assert len(code) == 1
    torch.manual_seed(123)  # the head must not come from the seed
    found: dict[str, Any] = {}
    exec(code[0].replace("DIR", str(folder)), found)
    assert torch.equal(logits_of(found["model"], found["tokenizer"]), trained)


def test_the_card_names_a_base_of_a_package(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    path = folder / "finelaunch.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()), "base.name", "package:finelaunch/models")))
    card = card_of(folder)
    line = next(line for line in card.splitlines() if line.startswith("base ="))
    found: dict[str, Any] = {}
    exec("from importlib.resources import files", found)
    name = eval(line.partition("from_pretrained(")[2].partition(", config")[0], found)
    assert (Path(name) / "adapters.py").exists()
    assert "from importlib.resources import files\n" in card
