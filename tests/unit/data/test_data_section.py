"""The data section with lists of sources: what is taken, what it is called, and every way to write it wrong."""

from pathlib import Path

import pytest

from finelaunch.data.section import DataSection, SourceSection, SplitSection, given_sources, source_names
from finelaunch.errors import BadInput, Problem
from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.recipe.schema import Recipe
from finelaunch.section.document import Document

HEAD = """task: {name: text_classification}
model: {name_or_path: some/model}
training: {global_batch_size: 8, learning_rate: 1e-5}
"""
LIST = """data:
  train:
    - path: old.jsonl
      weight: 1
    - {path: new.jsonl, name: newer, weight: 3.5}
  test:
    - path: old_test.jsonl
    - path: hub:owner/reviews
      split: dev
"""


def load(folder: Path, text: str, *words: str) -> tuple[Recipe, Document]:
    (folder / "r.yaml").write_text(HEAD + text)
    return load_recipe(str(folder / "r.yaml"), read_overrides(words)["recipe"])


def said(folder: Path, text: str, *words: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        load(folder, text, *words)
    return [plain(problem, folder) for problem in caught.value.problems]


def plain(problem: Problem, folder: Path) -> str:
    return str(problem).replace(f"{folder}/r.yaml:", "line ")


def test_lists_are_read_with_names_places_and_weights(tmp_path: Path) -> None:
    recipe, document = load(tmp_path, LIST)
    sources = given_sources(recipe.data)
    assert [(source.key, source.name, source.weight) for source in sources] == [
        ("data.train[0]", "old", 1),
        ("data.train[1]", "newer", 3.5),
        ("data.test[0]", "old_test", None),
        ("data.test[1]", "reviews", None),
    ]
    assert document.origin((*sources[1].place, "path")).endswith("r.yaml:8")


def test_one_source_is_what_it_was_before_there_were_lists() -> None:
    data = DataSection(train=SplitSection(path="a.jsonl"))
    assert set(data.model_dump()["train"]) == set(SplitSection.model_fields)
    assert not {"name", "weight"} & set(SplitSection.model_fields)
    (source,) = given_sources(data)
    assert (source.key, source.name, source.weight) == ("data.train", None, None)


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        ([{"path": "a/train.jsonl"}, {"path": "b/train.jsonl"}], ["train", "train-2"]),
        ([{"path": "train.csv"}, {"path": "x.csv", "name": "train"}], ["train-2", "train"]),
        ([{"path": "hub:owner/name"}, {"path": "package:m/d/e.json"}, {"path": "aclImdb/"}], ["name", "e", "aclImdb"]),
        ([{"path": "/"}, {"path": ".."}], ["source", "source-2"]),
    ],
)
def test_names_come_from_the_path_and_are_unique(sources: list[dict[str, str]], names: list[str]) -> None:
    found = source_names([SourceSection(**source) for source in sources])  # type: ignore[arg-type]
    assert found == names


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "data: {train: []}",
            [
                "line 4: data.train: is an empty list; one source or more, each a mapping with path; add one",
            ],
        ),
        (
            "data:\n  train:\n    - path: a\n      weigth: 1",
            ["line 7: data.train[0].weigth: unknown key; did you mean 'data.train[0].weight'?"],
        ),
        (
            "data:\n  train:\n    - path: a\n    - pth: b",
            [
                "line 7: data.train[1].path: is missing; a file or folder, package:MODULE/FILE, or hub:OWNER/NAME",
                "line 7: data.train[1].pth: unknown key; did you mean 'data.train[1].path'?",
            ],
        ),
        (
            "data:\n  train:\n    - path: a\n      zzz: 1",
            [
                "line 7: data.train[0].zzz: unknown key; known here: path, subset, split, revision, columns, "
                "max_samples, source, licence, citation, name, weight"
            ],
        ),
        (
            "data:\n  train:\n    - {path: a, hub: b}",
            [
                "line 6: data.train[0].hub: is not taken here; use path: hub:OWNER/NAME",
            ],
        ),
        (
            "data:\n  train:\n    - {path: a, name: x}\n    - {path: b, name: y}\n    - {path: c, name: x}",
            ["line 8: data.train[2].name: 'x' is the name of data.train[0], too; give each source a name of its own"],
        ),
        (
            "data:\n  train:\n    - {path: a, weight: 1}\n    - {path: b}",
            [
                "line 7: data.train[1]: has no weight, and other sources of the list have one; "
                "give each source a weight, or none"
            ],
        ),
        (
            "data:\n  train: {path: a}\n  validation: [{path: b, weight: 2}]\n  test: [{path: b, weight: 2}]",
            [
                f"line {line}: data.{split}[0].weight: has no effect: all rows of data.{split} are measured, "
                "each once; leave it out"
                for line, split in ((6, "validation"), (7, "test"))
            ],
        ),
        (
            "data:\n  train:\n    - {path: a, weight: 0}\n    - {path: b, weight: -1}\n    - {path: c, weight: many}",
            [
                "line 6: data.train[0].weight: 0 is not allowed; should be greater than 0",
                "line 7: data.train[1].weight: -1 is not allowed; should be greater than 0",
                "line 8: data.train[2].weight: 'many' is not allowed; should be a valid number",
            ],
        ),
        (
            "data:\n  train:\n    - {path: a, weight: .nan}",
            [
                "line 6: data.train[0].weight: .nan is not a finite number; write a smaller one",
            ],
        ),
        (
            "data:\n  train: [a.jsonl]",
            [
                "line 5: data.train[0]: 'a.jsonl' is not a mapping; a mapping with keys such as path, subset, split, "
                "revision, columns, max_samples, source, licence, citation, name, weight"
            ],
        ),
        (
            "data:\n  train:\n    - {path: a, max_samples: 0}",
            [
                "line 6: data.train[0].max_samples: 0 is not allowed; should be greater than or equal to 1",
            ],
        ),
        (
            "data:\n  train:\n    - {path: a, name: b/c}",
            [
                "line 6: data.train[0].name: 'b/c' is no name of a source; a word or several, without a slash",
            ],
        ),
        (
            "data:\n  train:\n    path: a\n    name: b",
            [
                "line 7: data.train.name: is not taken here; a hub data set is path: hub:OWNER/NAME; sources have "
                "names where there are several: [{path: …, name: …}, {path: …, name: …}]"
            ],
        ),
        (
            "data:\n  train: {path: a, weight: 2}",
            [
                "line 5: data.train.weight: is not taken here; sources have weights where there are several: "
                "[{path: …, weight: 0.7}, {path: …, weight: 0.3}]"
            ],
        ),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path: Path, text: str, problems: list[str]) -> None:
    assert said(tmp_path, text) == problems


def test_a_key_of_a_list_is_refused_on_the_command_line_and_a_whole_list_is_taken(tmp_path: Path) -> None:
    assert said(tmp_path, LIST, "data.train.path=x.jsonl", "data.test.max_samples=5") == [
        "command line: data.train.path: data.train is a list of 2 here, which takes no single key; "
        "give the whole list: data.train='[{path: …}, …]'",
        "command line: data.test.max_samples: data.test is a list of 2 here, which takes no single key; "
        "give the whole list: data.test='[{max_samples: …}, …]'",
    ]
    words = "data.train=[{path: a.jsonl, weight: 0.7}, {path: b.jsonl, weight: 0.3}]"
    for text in (LIST, "data: {train: {path: z, columns: {text: t}}}"):
        recipe, document = load(tmp_path, text, words)
        assert [source.section.path for source in given_sources(recipe.data)][:2] == ["a.jsonl", "b.jsonl"]
        assert document.origin(("data", "train", 1, "path")) == "command line"
    assert said(tmp_path, LIST, "data.train=[{path: a, wieght: 1}]") == [
        "command line: data.train[0].wieght: unknown key; did you mean 'data.train[0].weight'?"
    ]
