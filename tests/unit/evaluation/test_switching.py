"""Adapters that take turns over one base."""

import json
from pathlib import Path

import pytest
import torch
from adapted import adapter_run, logits_of, write_base

from finelaunch.cli.models import refuse_both
from finelaunch.errors import BadInput
from finelaunch.evaluation.finished import load_finished
from finelaunch.evaluation.generate import Generation, generate, num_virtual_tokens
from finelaunch.evaluation.predict import predict_adapters, predict_inputs
from finelaunch.evaluation.switching import load_beside, read_adapters
from finelaunch.training.placement import Placement

CPU = Placement("cpu", "fp32", 1, 1, per_device_eval_batch_size=4)
LM, CLS = "causal_lm", "text_classification"
PROMPT = {"name": "prompt_tuning", "rank": None, "num_virtual_tokens": 4}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: write_base(folder / name, name) for name in ("bert", "llama")}


@pytest.mark.parametrize(
    ("model_type", "task", "methods"),
    [
        ("bert", CLS, ({}, {"rank": 8}, {"use_dora": True})),
        ("llama", LM, ({"name": "qlora"}, {"name": "qlora", "target_modules": "all-linear"})),
        ("llama", LM, (PROMPT, {**PROMPT, "num_virtual_tokens": 6})),
    ],
)
def test_each_answers_as_it_does_alone(model_type, task, methods, bases, tmp_path):
    saved = {
        f"run {number}": adapter_run(
            tmp_path / str(number), bases[model_type], task, method, learning_rate=0.02 * number
        )
        for number, method in enumerate(methods, start=1)
    }
    adapters = read_adapters({name: folder for name, (folder, _) in saved.items()})
    finished = load_finished(next(iter(adapters.values())).folder)
    for _ in range(2):  # there and back
        switched = load_beside(finished, adapters)
        for name, chosen in switched:
            assert torch.equal(logits_of(chosen.model, finished.tokenizer), saved[name][1]), name
            assert not any(parameter.requires_grad for parameter in chosen.model.parameters())


def test_rows_carry_their_adapter(bases, tmp_path):
    rates = {"a": 0.01, "b": 0.3}
    folders = {name: adapter_run(tmp_path / name, bases["bert"], CLS, learning_rate=rates[name])[0] for name in rates}
    asked = [{"__place__": "here", "text": "A dull film."}, {"__place__": "here", "id": "x", "text": "The fox runs."}]
    rows = predict_adapters(folders, asked, Generation(), CPU, None)
    assert [(row["id"], row["adapter"]) for row in rows] == [("0", "a"), ("0", "b"), ("x", "a"), ("x", "b")]
    for name, folder in folders.items():
        alone = predict_inputs(folder, asked, Generation(), CPU)
        assert [{key: row[key] for key in row if key != "adapter"} for row in rows if row["adapter"] == name] == alone


@pytest.mark.parametrize(
    ("model_type", "task", "method", "said"),
    [
        ("llama", LM, {"name": "qlora"}, "its quantization is None and"),
        ("llama", LM, PROMPT, "the kind of method is low-rank matrices and prompt_tuning"),
        ("llama", LM, {"bias": "all"}, "method.bias is none and all"),
        ("bert", CLS, {}, "their base is"),
    ],
)
def test_what_cannot_take_turns_is_said(model_type, task, method, said, bases, tmp_path):
    first, _ = adapter_run(tmp_path / "a", bases["llama"], LM)
    other, _ = adapter_run(tmp_path / "b", bases[model_type], task, method)
    with pytest.raises(BadInput, match="a and b cannot take turns over one base") as caught:
        read_adapters({"a": first, "b": other})
    assert said in str(caught.value)


def test_another_tokenizer_cannot_take_turns(bases, tmp_path):
    folders = {name: adapter_run(tmp_path / name, bases["bert"], CLS)[0] for name in "ab"}
    path = folders["b"] / "tokenizer.json"
    content = json.loads(path.read_text())
    cut = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps({**content, "truncation": cut}))
    read_adapters(folders)  # how it was called last is no part of it
    vocab = content["model"]["vocab"]
    last, other = list(vocab)[-2:]
    vocab[last], vocab[other] = vocab[other], vocab[last]
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"cannot take turns over one base: the tokenizer is \w{12} and \w{12};"):
        read_adapters(folders)
    path.write_text("[]")
    with pytest.raises(BadInput, match=r"tokenizer\.json: is damaged"):
        read_adapters(folders)


def test_two_that_trained_biases_cannot_take_turns(bases, tmp_path):
    folders = {name: adapter_run(tmp_path / name, bases["bert"], CLS, {"bias": "all"})[0] for name in "ab"}
    with pytest.raises(BadInput, match=r"method\.bias is all and trained in both"):
        read_adapters(folders)


def test_a_whole_model_is_no_adapter(bases):
    with pytest.raises(BadInput, match="is a whole model, and no adapter; give it as RUN"):
        read_adapters({"a": bases["llama"]})


@pytest.mark.parametrize(
    ("run", "adapters", "said"),
    [
        (None, [], "a model is needed"),
        ("a", ["b"], "a model is given twice"),
        (None, ["a", "b", "a"], "a is given twice; each adapter once"),
    ],
)
def test_the_command_takes_a_run_or_adapters(run, adapters, said):
    with pytest.raises(BadInput, match=said):
        refuse_both(run, adapters)


@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning", "lora"])
def test_answers_hang_on_no_batch_and_fit_the_positions(name, bases, tmp_path):
    method = {} if name == "lora" else {**PROMPT, "name": name}
    folder, _ = adapter_run(tmp_path / "run", bases["llama"], LM, method)
    finished = load_finished(folder)
    assert num_virtual_tokens(finished.model) == (0 if name == "lora" else 4)
    prompts = [finished.tokenizer(text)["input_ids"] for text in ("Why?", "A fox ran over the hill.", "Who was it?")]
    how = Generation(max_new_tokens=6)
    together = generate(finished.model, finished.tokenizer, prompts, how, [], 3)
    assert together == generate(finished.model, finished.tokenizer, prompts, how, [], 1)
    long = [prompts[0] * 40]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finelaunch.evaluation.generate.warn", lambda text: None)
        cut = generate(finished.model, finished.tokenizer, long, how, [], 1)
        room = 64 - num_virtual_tokens(finished.model) - 6
        assert cut == generate(finished.model, finished.tokenizer, [long[0][-room:]], how, [], 1)
