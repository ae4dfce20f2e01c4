"""Exports are loaded in a fresh process and proven, or there are none."""

import json
from pathlib import Path

import pytest
import torch
from adapted import adapter_run, logits_of, write_base
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from finelaunch.errors import BadInput, FinelaunchError
from finelaunch.evaluation import export
from finelaunch.evaluation.export import export_model
from finelaunch.evaluation.finished import find_model, load_finished
from finelaunch.evaluation.proof import Expected, expected_of, inputs_for, prove
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
    assert 0 < done.difference < 1e-4
    plain = AutoModelForCausalLM.from_pretrained(done.folder)
    assert plain.dtype == torch.float32
    assert not hasattr(plain.config, "quantization_config")
    assert float((logits_of(plain, AutoTokenizer.from_pretrained(done.folder)) - trained).abs().max()) < 1e-4
    assert "4 bits" in (done.folder / "README.md").read_text()


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
    with pytest.raises(FinelaunchError, match="has other weights in a fresh process") as caught:
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


def test_a_wrong_merge_is_not_written(bases, tmp_path, monkeypatch):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM)
    right = export.merged_model

    def wrong(*given):
        model = right(*given)
        model.lm_head.weight.data.mul_(1.01)
        return model

    monkeypatch.setattr(export, "merged_model", wrong)
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


def test_differences_that_are_no_number_are_infinite(bases, tmp_path):
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM)
    finished = load_finished(folder)
    expected = expected_of(finished.model, inputs_for(finished.model, finished.tokenizer))
    assert expected.difference(expected.logits) == 0.0
    assert expected.difference(expected.logits[1:]) == float("inf")
    assert expected.difference(torch.full_like(expected.logits, float("nan"))) == float("inf")
