"""What gives way to what: a base to its recipe, both to the words of the command line."""

from pathlib import Path

import pytest
from unit.recipe.written import SCRATCH, VALID, load, problems_of, write

from finelaunch.errors import BadInput
from finelaunch.launch.profile import load_profile
from finelaunch.recipe.load import read_overrides


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
