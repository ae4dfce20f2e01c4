"""Loading recipes: whatever the text, only BadInput; all faults at once; bases and overrides."""

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finelaunch.data.section import SourceSection
from finelaunch.errors import BadInput, Problem
from finelaunch.launch.profile import load_profile
from finelaunch.recipe.load import flatten, load_recipe, read_overrides
from finelaunch.recipe.schema import Recipe, recipe_json_schema
from finelaunch.section.base import all_keys
from finelaunch.section.document import Document, dotted
from finelaunch.section.lookup import find, names

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
fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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


def loads_or_refuses(folder: Path, text: str) -> None:
    try:
        load(folder, text)
    except BadInput as error:
        said = str(error)
    else:
        said = "loaded"
    said.encode()


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


@given(st.text(max_size=60))
@settings(fuzz, max_examples=100)
def test_any_text_loads_or_is_refused(tmp_path: Path, text: str) -> None:
    loads_or_refuses(tmp_path, text)


pieces = [
    "'", '"', "\t", "\0", "\ufeff", ": ", "- ", "[", "]", "{", "}", "&a ", "*a", "!!int ", "|", ">", "#", "\n", "\n  ",
    "null", ".nan", ".inf", "1e999", "9" * 40, "9" * 4400, "-1", "0", "[]", "{}", "[[[[[[", "true", "12:30", "é😀",
    '"\\ud800"', '"\\UFFFFFFFF"', "\x85", "\u2028", "? ", "%", "@", "`", "name", "base: r.yaml", "training: 5",
    "<<: *a",
]  # fmt: skip
changes = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(pieces)), min_size=1, max_size=4)


@given(st.sampled_from([VALID, SCRATCH]), changes)
@settings(fuzz, max_examples=300)
def test_a_damaged_recipe_loads_or_is_refused(tmp_path: Path, text: str, made: list[tuple[float, int, str]]) -> None:
    for share, num_lost, piece in made:
        at = int(share * len(text))
        text = text[:at] + piece + text[at + num_lost :]
    loads_or_refuses(tmp_path, text)


paths = sorted(set(all_keys(Recipe)))
anything: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.dates()
    | st.binary(max_size=3)
    | st.sampled_from(["text_classification", "causal_lm", "full", "steps", "scratch", "gpt2", 2**70, -(10**4000)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.sampled_from(paths), anything), max_size=5), st.booleans())
@settings(fuzz, max_examples=200)
def test_any_values_load_or_are_refused(tmp_path: Path, given_values: list[tuple[Any, Any]], whole: bool) -> None:
    values: dict[str, Any] = yaml.safe_load(VALID) if whole else {}
    for path, value in given_values:
        inner = values
        for part in path[:-1]:
            if not isinstance(inner.get(part), dict):
                inner[part] = {}
            inner = inner[part]
        inner[path[-1]] = value
    loads_or_refuses(tmp_path, yaml.safe_dump(values, allow_unicode=True))


override_words = st.builds(
    "{}={}".format,
    st.sampled_from([*map(dotted, paths)]) | st.text(string.ascii_letters + "._[]\ud800\x1b é", max_size=10),
    st.sampled_from(pieces) | st.text(max_size=8) | st.integers().map(str) | st.floats().map(repr),
) | st.text(max_size=10)


@given(st.lists(override_words, max_size=4))
@settings(fuzz, max_examples=300)
def test_any_words_are_overrides_or_refused(tmp_path: Path, given_words: list[str]) -> None:
    try:
        given_documents = read_overrides(given_words)
        load_recipe(write(tmp_path, VALID), given_documents["recipe"])
    except BadInput as error:
        said = str(error)
    else:
        said = "loaded"
    said.encode()


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


def test_a_base_gives_way(tmp_path: Path) -> None:
    write(tmp_path, VALID, "low.yaml")
    text = "base: low.yaml\ndata:\n  train:\n    path: other.jsonl\ntraining:\n  seed: 7\n"
    recipe, document = load(tmp_path, text, "training.learning_rate=3e-5", "training.seed=8")
    assert (recipe.training.global_batch_size, recipe.training.learning_rate, recipe.training.seed) == (16, 3e-5, 8)
    assert recipe.data.train.model_dump(exclude_defaults=True) == {"path": "other.jsonl", "max_samples": 100}
    assert document.origin(("training", "global_batch_size")) == f"{tmp_path}/low.yaml:14"
    assert document.origin(("data", "train", "path")) == f"{tmp_path}/r.yaml:4"
    assert document.origin(("training", "learning_rate")) == "command line"
    assert document.name == f"{tmp_path}/r.yaml"


def test_faults_below_point_to_the_file_they_stand_in(tmp_path: Path) -> None:
    write(tmp_path, VALID.replace("steps: 10", "steps: 0"), "low.yaml")
    found = problems_of(tmp_path, "base: low.yaml\ntraining:\n  sed: 7\n", "task.max_length=1")
    places = [(problem.origin.removeprefix(f"{tmp_path}/"), problem.key) for problem in found]
    assert places == [
        ("low.yaml:19", "training.save_steps"),
        ("r.yaml:3", "training.sed"),
        ("command line", "task.max_length"),
    ]


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("nowhere", "r.yaml:1: base: there is no recipe 'nowhere'"),
        ("[a]", "r.yaml:1: base: ['a'] is not a recipe; the path or name of one"),
        ("5", "r.yaml:1: base: 5 is not a recipe"),
        ("''", "r.yaml:1: base: there is no recipe ''"),
        ("r.yaml", "r.yaml:1: base: r.yaml has a base itself; one level only"),
        ("mid.yaml", "r.yaml:1: base: mid.yaml has a base itself; one level only"),
        ("bad.yaml", "bad.yaml:1: not YAML"),
    ],
)
def test_a_base_that_is_none_is_refused(tmp_path: Path, base: str, said: str) -> None:
    write(tmp_path, "base: low.yaml\n", "mid.yaml")
    write(tmp_path, "a: [", "bad.yaml")
    found = problems_of(tmp_path, f"base: {base}\n")
    assert str(found[0]).removeprefix(f"{tmp_path}/").startswith(said)


def test_a_base_of_nothing_is_none(tmp_path: Path) -> None:
    write(tmp_path, "base:\n" + VALID, "low.yaml")
    assert load(tmp_path, "base: low.yaml\n")[0] == load(tmp_path, VALID)[0]


def test_another_model_takes_no_shape_along(tmp_path: Path) -> None:
    recipe = load(tmp_path, SCRATCH, "model.name_or_path=other/model")[0]
    assert recipe.model.model_dump(exclude_defaults=True) == {"name_or_path": "other/model"}
    recipe = load(tmp_path, VALID, "model.name_or_path=other/model")[0]
    assert recipe.model.revision is None
    recipe = load(tmp_path, VALID, "model.name_or_path=some/model")[0]
    assert recipe.model.revision == "12e4567"
    recipe = load(tmp_path, VALID, "model.name_or_path=null", "model.init=scratch", "model.config={model_type: bert}",
                  "model.tokenizer.vocab_size=400")[0]  # fmt: skip
    assert recipe.model.revision is None


def test_another_path_takes_no_columns_along_but_the_number_of_samples(tmp_path: Path) -> None:
    train = load(tmp_path, VALID, "data.train.path=b.csv", "data.train.columns.text=body")[0].data.train
    assert train.model_dump(exclude_defaults=True) == {"path": "b.csv", "columns": {"text": "body"}, "max_samples": 100}
    assert load(tmp_path, VALID, "data.train.columns.text=body")[0].data.train.columns == {
        "text": "body",
        "label": "no",
    }


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.seed", "command line: 'training.seed' is not key=value; such as training.learning_rate=3e-5"),
        ("=3", "command line: '=3' is not key=value"),
        ("a..b=3", "command line: 'a..b=3' is not key=value"),
        ("launch=cpu", "command line: 'launch=cpu' is not key=value"),
        (".".join("a" * 10_000) + "=1", "command line: 'a.a.a.a"),
        ("training.seed=[", "command line: training.seed: '[' is not a YAML value; "),
        (
            "task.label_separator=,",
            "command line: task.label_separator: ',' is not a YAML value; while parsing a block node, expected the "
            "node content, but found ','; put each text in double quotes, and all of it in single ones: ",
        ),
        ("training.seed=!!int 5", "command line: training.seed: the tag 'tag:yaml.org,2002:int'; plain values only"),
        ("training={seed: 1, seed: 2}", "command line: training.seed: stands twice"),
        ("training.seed=.nan", "command line: training.seed: .nan is not a finite number"),
        ("training.sede=1", "command line: training.sede: unknown key; did you mean 'training.seed'?"),
        ("training.bf16=true", "command line: training.bf16: is not taken here; it speaks of the machine"),
        ("cluster=a", "command line: 'cluster=a' is not key=value"),
        ("base=imdb/smoke", "command line: base: is not taken here; it stands in the file"),
        (
            "training.learning_rate=fast",
            "command line: training.learning_rate: 'fast' is not allowed; should be a valid",
        ),
    ],
)
def test_a_wrong_word_is_refused(tmp_path: Path, word: str, said: str) -> None:
    assert str(problems_of(tmp_path, VALID, word)[0]).startswith(said)


def test_words_that_contradict_are_refused_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        read_overrides(["a.b=1", "a.b=2", "a=3", "c=1", "c.d=2", "x"])
    assert [problem.key for problem in caught.value.problems] == ["a.b", "a", "c.d", ""]


def test_overrides_are_sorted_by_what_they_address() -> None:
    words = ["launch.precision=bf16", "cluster.env.A=b", "training.seed=1", "data.train.path=", "a={b: {c: 1}}"]
    documents = read_overrides(words)
    assert documents.keys() == {"recipe", "launch", "cluster"}
    assert documents["launch"].values == {"precision": "bf16"}
    assert documents["cluster"].values == {"env": {"A": "b"}}
    recipe = documents["recipe"]
    assert recipe.values == {"training": {"seed": 1}, "data": {"train": {"path": None}}, "a": {"b": {"c": 1}}}
    assert recipe.origin(("a", "b", "c")) == "command line"


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


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("visibel", "a number above 0, or 'visible'; did you mean 'visible'"),
        ("2.5", "a number above 0, or 'visible'"),
        ("0", "should be greater than 0"),
        ('"2"', "should be a valid integer; leave the quotes out"),
    ],
)
def test_what_is_no_number_of_processes_is_one_fault(value: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        load_profile("cpu_ddp", read_overrides([f"launch.num_processes_per_node={value}"])["launch"])
    assert len(caught.value.problems) == 1


def test_faults_of_a_profile_carry_the_key_of_the_command_line() -> None:
    with pytest.raises(BadInput, match=r"^command line: launch.precison: unknown key; did you mean 'precision'\?$"):
        load_profile("cpu", read_overrides(["launch.precison=fp32"])["launch"])
    with pytest.raises(BadInput, match=r"^command line: profile: there is no profile 'cup'; did you mean 'cpu'\?$"):
        load_profile("cup")


@given(st.dictionaries(st.text(string.ascii_lowercase, min_size=1), anything, max_size=3))
@settings(deadline=None, max_examples=50)
def test_flattening_keeps_every_leaf(values: dict[str, Any]) -> None:
    flat = list(flatten(values))
    assert len(flat) >= min(len(values), 1)
    assert all(not isinstance(value, dict) or not value for _, value in flat)


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
