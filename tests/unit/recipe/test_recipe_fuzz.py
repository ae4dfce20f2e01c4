"""Whatever the text, the values or the words: a recipe, or BadInput with a text that can be written."""

import string
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.recipe.written import SCRATCH, VALID, load, write

from finelaunch.errors import BadInput
from finelaunch.recipe.load import flatten, load_recipe, read_overrides
from finelaunch.recipe.schema import Recipe
from finelaunch.section.base import all_keys
from finelaunch.section.document import dotted

fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_refuses(folder: Path, text: str) -> None:
    try:
        load(folder, text)
    except BadInput as error:
        said = str(error)
    else:
        said = "loaded"
    said.encode()


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


@given(st.dictionaries(st.text(string.ascii_lowercase, min_size=1), anything, max_size=3))
@settings(deadline=None, max_examples=50)
def test_flattening_keeps_every_leaf(values: dict[str, Any]) -> None:
    flat = list(flatten(values))
    assert len(flat) >= min(len(values), 1)
    assert all(not isinstance(value, dict) or not value for _, value in flat)
