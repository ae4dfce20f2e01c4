"""A SentencePiece vocabulary without tokenizer.json, as DeBERTa-v3 has it: the package that reads it is named."""

import json
from importlib.metadata import distributions
from pathlib import Path

import pytest

from finelaunch.errors import RequirementMissing
from finelaunch.models.load import load_tokenizer
from finelaunch.models.section import ModelSection

PIECES = [("[PAD]", 3), ("[CLS]", 3), ("[SEP]", 3), ("[UNK]", 2), *((letter, 1) for letter in "▁adefghilmot")]


@pytest.fixture
def deberta(tmp_path: Path) -> ModelSection:
    """Give a folder with the files of a DeBERTa-v3 tokenizer."""
    from transformers.utils import sentencepiece_model_pb2_new as format

    model = format.ModelProto()
    for number, (piece, kind) in enumerate(PIECES):
        model.pieces.add(piece=piece, score=-float(number), type=kind)
    model.trainer_spec.model_type, model.trainer_spec.unk_id, model.trainer_spec.unk_piece = 1, 3, "[UNK]"
    (tmp_path / "spm.model").write_bytes(model.SerializeToString())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2", "vocab_size": len(PIECES)}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    return ModelSection(name_or_path=str(tmp_path))


@pytest.mark.skipif(bool(list(distributions(name="sentencepiece"))), reason="sentencepiece is installed")
def test_what_is_missing_is_named_and_not_what_transformers_falls_back_to(deberta: ModelSection) -> None:
    with pytest.raises(RequirementMissing, match=r"SentencePiece vocabulary .* pip install sentencepiece$"):
        load_tokenizer(deberta)
