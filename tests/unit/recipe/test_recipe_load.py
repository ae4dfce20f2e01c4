"""Loading recipes: by name, all faults at once with their places, and the schema."""

import json
import re
from pathlib import Path

import pytest
from unit.recipe.written import SCRATCH, VALID, load, problems_of

from finelaunch.data.section import SourceSection
from finelaunch.errors import BadInput
from finelaunch.launch.profile import load_profile
from finelaunch.recipe.load import load_recipe
from finelaunch.recipe.schema import Recipe, recipe_json_schema
from finelaunch.section.base import all_keys
from finelaunch.section.lookup import find, names


def test_the_valid_recipe_is_valid(tmp_path: Path) -> None:
    recipe, document = load(tmp_path, VALID)
    assert recipe.training.learning_rate == 2e-5
    assert recipe.training.eval_strategy == "no"
    assert recipe.model.revision == "12e4567"
    assert document.origin(("training", "learning_rate")) == f"{tmp_path}/r.yaml:15"
    assert load(tmp_path, SCRATCH)[0].model.tokenizer is not None


def test_shipped_names_resolve_and_load() -> None:
    for name in names("recipes"):
        load_recipe(name)
    for name in names("launch"):
        load_profile(name)


@pytest.mark.parametrize(
    "name", ["~nobody/x", "x" * 5000, "a\0b", "", ".", "/", "../..", "recipes/", "é", "a b", "\udcff"]
)
def test_a_name_of_no_recipe_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"^command line: recipe: there is no recipe "):
        find(name, "recipes")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"a: 1\nb: \xff\xfe")
    with pytest.raises(BadInput, match=r"r.yaml:byte 8: not UTF-8; convert it to UTF-8$"):
        load_recipe(str(tmp_path / "r.yaml"))
    (tmp_path / "big.yaml").write_text("a: " + "x" * 2_000_000)
    with pytest.raises(BadInput, match="characters"):
        load_recipe(str(tmp_path / "big.yaml"))


TWELVE = """\
task:
  name: text_clasification
  max_length: 128
model:
  name_or_path: some/model
  tokenizer: {vocab_size: 500}
data:
  train:
    pth: rows.jsonl
    max_samples: 0
  eval: {path: x}
training:
  global_batch_size: 0
  learning_rate: "2e-5"
  lr_scheduler_type: cosin
  bf16: true
  warmup_ratio: 0.1
  fp16: true
  evaluation_strategy: epoch
evaluation:
  metrics: glue
deepspeed: zero2.json
traning: {}
"""


def test_all_faults_of_a_recipe_are_said_at_once_in_order(tmp_path: Path) -> None:
    found = problems_of(tmp_path, TWELVE)
    keys = [
        "task.name", "model.tokenizer", "data.train.path", "data.train.pth", "data.train.max_samples", "data.eval",
        "training.global_batch_size", "training.learning_rate", "training.lr_scheduler_type", "training.bf16",
        "training.warmup_ratio", "training.fp16", "training.evaluation_strategy", "evaluation.metrics", "deepspeed",
        "traning",
    ]  # fmt: skip
    assert [problem.key for problem in found] == keys
    places = [re.fullmatch(rf"{re.escape(str(tmp_path))}/r.yaml:(\d+)", problem.origin) for problem in found]
    lines = [int(place.group(1)) for place in places if place]
    assert lines == [2, 6, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23]
    said = {problem.key: str(problem) for problem in found}
    assert "did you mean 'text_classification'?" in said["task.name"]
    assert "did you mean 'data.train.path'?" in said["data.train.pth"]
    assert "did you mean 'training'?" in said["traning"]
    assert "launch.precision=bf16" in said["training.bf16"]
    assert "--on PROFILE" in said["deepspeed"]
    assert "training.warmup_steps" in said["training.warmup_ratio"]
    assert "training.eval_strategy" in said["training.evaluation_strategy"]


@pytest.mark.parametrize("place", ["{}: 1", "training: {{{}: 1}}", "model: {{{}: 1}}"])
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("bf16", "launch.precision=bf16"),
        ("per_device_train_batch_size", "launch.per_device_batch_size"),
        ("per_device_eval_batch_size", "launch.per_device_eval_batch_size"),
        ("gradient_accumulation_steps", "launch.per_device_batch_size"),
        ("gradient_checkpointing", "launch.activation_checkpointing"),
        ("use_cpu", "launch.device=cpu"),
        ("fsdp", "--on PROFILE"),
        ("ddp_timeout", "--on PROFILE"),
        ("no_cuda", "--on cpu"),
        ("group_by_length", "training.length_window_batches"),
        ("overwrite_output_dir", "--fresh"),
        ("lr", "training.learning_rate"),
    ],
)
def test_pasted_settings_are_answered_wherever_they_stand(tmp_path: Path, name: str, answer: str, place: str) -> None:
    said = [str(problem) for problem in problems_of(tmp_path, place.format(name)) if problem.key.endswith(name)]
    assert len(said) == 1
    assert answer in said[0]


def test_the_schema_for_editors_knows_every_key() -> None:
    schema = recipe_json_schema()
    assert json.dumps(schema) == json.dumps(recipe_json_schema())
    known: dict[str, set[str]] = {}
    for definition in [schema, *schema["$defs"].values()]:
        assert definition["additionalProperties"] is False
        for name, about in definition["properties"].items():
            assert about.get("description"), name
            known.setdefault(name, set()).add(definition["title"])
    assert {path[-1] for path in all_keys(Recipe)} | {"base", *SourceSection.model_fields} == set(known)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "heavy",
            "task.class_weights: 'heavy' is not allowed; 'none', 'balanced', or a weight for each label such as ",
        ),
        ("balance", "task.class_weights: 'balance' is not allowed; 'none', 'balanced', or a weight .* 'balanced'"),
        ("{a: x}", "task.class_weights.a: 'x' is not allowed; should be a valid number"),
    ],
)
def test_a_value_of_no_kind_that_a_key_takes_is_one_fault(tmp_path: Path, value: str, said: str) -> None:
    (problem,) = problems_of(tmp_path, VALID, f"task.class_weights={value}")
    assert re.match(f"command line: {said}", str(problem))
