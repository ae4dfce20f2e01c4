"""Recipes that tests write, and what comes of loading them."""

from pathlib import Path

import pytest

from finelaunch.errors import BadInput, Problem
from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.recipe.schema import Recipe
from finelaunch.section.document import Document

VALID = """\
task:
  name: text_classification
  max_length: 128
model:
  name_or_path: some/model
  revision: "12e4567"
data:
  train:
    path: rows.jsonl
    columns: {text: review, label: "no"}
    max_samples: 100
  validation_fraction: 0.2
training:
  global_batch_size: 16
  learning_rate: 2e-5
  lr_scheduler_type: cosine
  eval_strategy: no
  save_strategy: steps
  save_steps: 10
evaluation:
  metrics: [glue, sacrebleu]
"""
SCRATCH = """\
task: {name: causal_lm}
model:
  init: scratch
  config: {model_type: gpt2, n_layer: 2}
  tokenizer: {vocab_size: 500}
data: {train: {path: rows.jsonl}}
training: {global_batch_size: 4, learning_rate: 1e-3}
"""


def write(folder: Path, text: str, name: str = "r.yaml") -> str:
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    return str(folder / name)


def load(folder: Path, text: str, *words: str) -> tuple[Recipe, Document]:
    return load_recipe(write(folder, text), read_overrides(words)["recipe"])


def problems_of(folder: Path, text: str, *words: str) -> list[Problem]:
    with pytest.raises(BadInput) as caught:
        load(folder, text, *words)
    for problem in caught.value.problems:
        assert problem.origin
        assert problem.what
        assert problem.allowed or problem.remedy or problem.what.startswith("not YAML")
    return caught.value.problems
