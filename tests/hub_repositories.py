"""Small repositories for tests/hub_server.py: a tiny BERT, pickled or not, and reviews with labels."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finelaunch.models.load import load_tokenizer, train_tokenizer
from finelaunch.models.section import ModelSection, TokenizerSection

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXTS = ["a fine film, warm and funny", "a dull film, cold and long", "they laughed all evening", "nobody laughed once"]


def tiny_model(folder: Path, pickled: bool = False, num_shards: int = 1) -> dict[str, Any]:
    """Write a random BERT and its tokenizer as a repository and return its weights; shared ones where it is pickled."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    section = ModelSection(init="scratch", config={"model_type": "bert"}, tokenizer=TokenizerSection(vocab_size=400))
    train_tokenizer(iter(TEXTS), section, folder)
    tokenizer = load_tokenizer(section, folder)
    torch.manual_seed(7)
    config = AutoConfig.for_model("bert", vocab_size=len(tokenizer), max_position_embeddings=64, **TINY)
    model = AutoModelForMaskedLM.from_config(config)
    if not pickled:
        model.save_pretrained(folder)
        return dict(model.state_dict())
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(folder)
    state = dict(model.state_dict())
    if num_shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return state
    names = sorted(state)
    weights = {}
    for number in range(num_shards):
        file = f"pytorch_model-{number + 1:05d}-of-{num_shards:05d}.bin"
        part = {name: state[name] for name in names[number::num_shards]}
        torch.save(part, folder / file)
        weights |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weights}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return state


def reviews(folder: Path, num_rows: int = 40, words: str = "") -> None:
    """Write a data set of reviews in Parquet with named labels, as a repository with a card."""
    about = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    for split, count in (("train", num_rows), ("test", num_rows // 2)):
        rows = [{"text": f"{TEXTS[n % 4]} {split} {n} {words}", "label": 1 - n % 2} for n in range(count)]
        schema = pa.schema([("text", pa.string()), ("label", pa.int64())])
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": about}})})
        (folder / "plain_text").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"plain_text/{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain_text\n  data_files:\n  - split: train\n    path: plain_text/train-*\n"
        "  - split: test\n    path: plain_text/test-*\n---\n# Reviews\n"
    )


RECIPE = """# Reviews with a tiny BERT, all of it from the hub
task:
  name: text_classification
  max_length: 32
  label_names: [bad, good]
model:
  name_or_path: tiny/bert
data:
  train: {path: "hub:tiny/reviews", split: train}
  test: {path: "hub:tiny/reviews", split: test}
  validation_fraction: 0.2
training:
  global_batch_size: 8
  learning_rate: 1e-3
  max_steps: 3
  logging_steps: 1
"""
