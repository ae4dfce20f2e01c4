"""Exports are loaded in a fresh process and proven, or there are none."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import adapter_run, logits_of, write_base
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from finelaunch.errors import BadInput, FinelaunchError
from finelaunch.evaluation import export
from finelaunch.evaluation.export import export_model
from finelaunch.evaluation.finished import find_model, load_finished
from finelaunch.evaluation.proof import Expected, expected_of, inputs_for, prove, weights_hash
from finelaunch.models.adapters import merge_adapter
from finelaunch.reporting.card import merged_card

LM, CLS = "causal_lm", "text_classification"


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: write_base(folder / name, name) for name in ("bert", "llama")}


def test_an_adapter_alone_is_what_plain_peft_takes(bases, tmp_path):
    folder, trained = adapter_run(tmp_path / "run", bases["llama"], LM)
    done = export_model(folder, tmp_path / "out", False, None, merged_card)
    assert (done.kind, done.difference, done.folder) == ("adapter", 0.0, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(bases["llama"])
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    assert torch.equal(logits_of(PeftModel.from_pretrained(base, str(done.folder)), tokenizer), trained)
    files = {path.name for path in done.folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "finelaunch.json"} <= files
    assert json.loads((done.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        bases["llama"]
    )
    again = load_finished(find_model(str(done.folder)))
    assert torch.equal(logits_of(again.model, tokenizer), trained)


def test_a_merged_model_is_a_plain_one_and_states_its_difference(bases, tmp_path):
    folder, trained = adapter_run(tmp_path / "run", bases["bert"], CLS)
    done = export_model(folder, tmp_path / "out", True, None, merged_card)
    assert done.kind == "merged"
    assert done.difference <= done.tolerance < 0.001 * done.logits_std
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    plain = AutoModelForSequenceClassification.from_pretrained(done.folder)
    assert float((logits_of(plain, tokenizer) - trained).abs().max()) < 1e-5
    stated = json.loads((done.folder / "finelaunch.json").read_text())
    assert stated["merged"]["max_logit_difference"] == done.difference
    assert not (done.folder / "adapter_config.json").exists()
    card = (done.folder / "README.md").read_text()
    assert f"{done.difference:.3g}" in card
    assert "from_pretrained" in card
    copied = export_model(done.folder, tmp_path / "copy", False, None, merged_card)
    assert (copied.kind, copied.difference) == ("model", 0.0)
    with pytest.raises(BadInput, match="there is nothing to merge"):
        export_model(done.folder, tmp_path / "again", True, None, merged_card)


def test_from_4_bits_the_difference_is_to_the_model_in_4_bits(bases, tmp_path):
    method = {"name": "qlora", "target_modules": "all-linear"}
    folder, trained = adapter_run(tmp_path / "run", bases["llama"], LM, method)
    done = export_model(folder, tmp_path / "out", True, None, merged_card)
    assert done.difference <= done.tolerance < 1e-3 * done.logits_std
    assert done.from_4_bits is not None
    assert 0 < done.from_4_bits < 1e-4
    stated = json.loads((done.folder / "finelaunch.json").read_text())["merged"]
    assert stated["max_logit_difference_from_4_bits"] == done.from_4_bits
    assert f"from the model in 4 bits it differs by {done.from_4_bits:.3g}" in done.sentence()
    plain = AutoModelForCausalLM.from_pretrained(done.folder)
    assert plain.dtype == torch.float32
    assert not hasattr(plain.config, "quantization_config")
    assert float((logits_of(plain, AutoTokenizer.from_pretrained(done.folder)) - trained).abs().max()) < 1e-4
    assert f"in 4 bits they differ by {done.from_4_bits:.3g}." in (done.folder / "README.md").read_text()


@pytest.mark.parametrize(("method", "learning_rate"), [({}, 0.0), ({}, 1e-6), ({"name": "qlora"}, 1e-7)])
def test_an_adapter_that_changes_next_to_nothing_is_merged(method, learning_rate, bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM, method, learning_rate=learning_rate)
    done = export_model(folder, tmp_path / "out", True, None, merged_card)
    assert done.difference <= done.tolerance


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_names_no_place_of_this_machine(merge, bases, tmp_path, monkeypatch):
    shutil.copytree(bases["llama"], tmp_path / "here" / "base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder, trained = adapter_run(tmp_path / "run", Path("base"), LM)
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = export_model(folder, tmp_path / "out", merge, None, merged_card)
    for file in done.folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    if merge:
        return
    with pytest.raises(BadInput, match="its base base is not there; give --base DIR"):
        load_finished(done.folder)
    for given in (tmp_path / "here" / "base", None):
        if given is None:
            monkeypatch.chdir(tmp_path / "here")
        finished = load_finished(done.folder, given)
        assert torch.equal(logits_of(finished.model, finished.tokenizer), trained)


@pytest.mark.parametrize("merge", [False, True])
def test_a_flipped_byte_is_found_and_nothing_is_left(merge, bases, tmp_path, monkeypatch):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM)

    def flip_and_prove(draft: Path, expected: Expected, base: Path | None = None) -> float:
        file = next(draft.glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-40] ^= 1  # the lowest bits of one weight
        file.write_bytes(content)
        return prove(draft, expected, base)

    monkeypatch.setattr(export, "prove", flip_and_prove)
    said = "has other weights in a fresh process" if merge else "was changed since it was written"
    with pytest.raises(FinelaunchError, match=said) as caught:
        export_model(folder, tmp_path / "out" / "here", merge, None, merged_card)
    assert caught.value.exit_code == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_loaded_afresh_is_said_and_nothing_is_left(bases, tmp_path, monkeypatch):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM)

    def break_and_prove(draft: Path, expected: Expected, base: Path | None = None) -> float:
        (draft / "adapter_model.safetensors").write_bytes(b"none")
        return prove(draft, expected, base)

    monkeypatch.setattr(export, "prove", break_and_prove)
    with pytest.raises(FinelaunchError, match=r"cannot be loaded in a fresh process: .*adapter"):
        export_model(folder, tmp_path / "out", False, None, merged_card)
    assert not (tmp_path / "out").exists()


def scaled_head(model: Any) -> Any:
    merged: Any = merge_adapter(model)
    merged.lm_head.weight.data.mul_(1.01)
    return merged


def without_the_adapter(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        parameter.data.zero_() if ".lora_B." in name else None
    return merge_adapter(model)


@pytest.mark.parametrize("learning_rate", [0.05, 1e-6])
@pytest.mark.parametrize("method", [{}, {"name": "qlora"}, {"use_dora": True}])
@pytest.mark.parametrize("wrong", [scaled_head, without_the_adapter])
def test_a_wrong_merge_is_not_written(wrong, method, learning_rate, bases, tmp_path, monkeypatch):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM, method, learning_rate=learning_rate)
    monkeypatch.setattr(export, "merge_adapter", wrong)
    with pytest.raises(FinelaunchError, match=r"the merged model's logits differ by .* nothing was written"):
        export_model(folder, tmp_path / "out", True, None, merged_card)
    assert not (tmp_path / "out").exists()


def test_prompts_cannot_be_merged(bases, tmp_path):
    method = {"name": "prompt_tuning", "rank": None, "num_virtual_tokens": 4}
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM, method)
    with pytest.raises(BadInput, match="prompt_tuning cannot be merged"):
        export_model(folder, tmp_path / "out", True, None, merged_card)


def test_a_folder_that_holds_something_is_refused(bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    for taken in (tmp_path / "out", tmp_path / "out" / "mine.txt"):
        with pytest.raises(BadInput, match="is there and not empty; give another folder"):
            export_model(folder, taken, False, None, merged_card)
    with pytest.raises(BadInput, match="cannot be written"):
        export_model(folder, tmp_path / "out" / "mine.txt" / "below", False, None, merged_card)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_the_models_own_folder_takes_no_export(bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM)
    before = sorted(folder.iterdir())
    for inside in (folder, folder / "export", tmp_path / "run" / "other" / ".." / "model" / "base"):
        with pytest.raises(BadInput, match="the model's own folder; give --to DIR, a folder elsewhere"):
            export_model(folder, inside, False, None, merged_card)
    assert sorted(folder.iterdir()) == before
    assert export_model(folder, tmp_path / "run" / "export" / "adapter", False, None, merged_card).difference == 0.0


def test_the_hash_of_weights_holds_buffers_and_scales(bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM, {"name": "qlora"})
    model: Any = load_finished(folder).model
    known = {weights_hash(model)}
    projection = next(module for module in model.modules() if type(module).__name__ == "Linear4bit").base_layer
    for tensor in (projection.weight.quant_state.absmax, next(model.buffers()), next(model.parameters())):
        assert weights_hash(model) in known
        tensor.data.add_(1)
        known.add(weights_hash(model))
    assert len(known) == 4


def test_differences_that_are_no_number_are_infinite(bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM)
    finished = load_finished(folder)
    expected = expected_of(finished.model, inputs_for(finished.model, finished.tokenizer))
    assert expected.difference(expected.logits) == 0.0
    assert expected.difference(expected.logits[1:]) == float("inf")
    assert expected.difference(torch.full_like(expected.logits, float("nan"))) == float("inf")
