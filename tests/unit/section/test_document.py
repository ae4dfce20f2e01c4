"""Reading, writing and merging of documents: YAML 1.2 scalars, refusals with lines, origins after a merge."""

import math
import string
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finelaunch.errors import BadInput
from finelaunch.section.document import (
    MAX_CHARACTERS,
    Document,
    Path,
    dotted,
    merge,
    places,
    plain_value,
    read_document,
    read_value,
    undotted,
    write_document,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
words = st.text(string.ascii_lowercase + "_-1.e:#'\" ", max_size=8) | texts
scalars = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | words
keys = st.text(string.ascii_letters + string.digits + "_.:-# é", min_size=1, max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
mappings = st.dictionaries(keys, values, max_size=4)


def problems_of(text: str) -> list[Any]:
    with pytest.raises(BadInput) as caught:
        read_document(text, "r.yaml")
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5), ("1E3", 1000.0), (".5", 0.5), ("5.", 5.0), ("-3", -3), ("+7", 7), ("010", 10), ("no", "no"),
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("y", "y"), ("12:30", "12:30"), ("2026-01-01", "2026-01-01"),
        ("0x10", "0x10"), ("1_000", "1_000"), ("true", True), ("False", False), ("tRUE", "tRUE"), ("~", None),
        ("null", None), ("", None), ("'5'", "5"), ('"true"', "true"), ("1.2.3", "1.2.3"), ("e5", "e5"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = read_document(f"a: {text}", "r.yaml").values["a"]
    assert read == value
    assert type(read) is type(value)


@given(mappings)
@settings(deadline=None, max_examples=150)
@example({"revision": "12e4567", "a": "1e5", "b": "on", "c": "0o7", "d": ".inf", "e": 1e-7, "f": {}, "g": [], "h": ""})
@example({"a": "x\u2028y\x85z", "b": "\ufeff", "c": " lead", "d": "a\n\n b\n", "e": "\t", "f": "😀", "<": "<<"})
def test_what_is_written_is_read_again(written: dict[str, Any]) -> None:
    finite = {place for place, value in places(written) if not isinstance(value, float) or math.isfinite(value)}
    if len(finite) < len(list(places(written))):
        return
    read = read_document(write_document(written), "r.yaml").values
    assert read == written
    assert [type(value) for _, value in places(read)] == [type(value) for _, value in places(written)]


@given(mappings)
@settings(deadline=None, max_examples=60)
def test_every_value_has_an_origin(written: dict[str, Any]) -> None:
    if any(isinstance(value, float) and not math.isfinite(value) for _, value in places(written)):
        return
    text = write_document(written)
    document = read_document(text, "r.yaml")
    for place, _ in places(document.values):
        line = int(document.origins[place].removeprefix("r.yaml:"))
        assert 1 <= line <= text.count("\n") + 1


@given(texts | st.text("{}[]-:,&*!|>'\"#%@?~ab\n\t \0\ufeff\ud800", max_size=40))
@settings(deadline=None, max_examples=400)
def test_no_text_makes_the_reader_fail(text: str) -> None:
    for read in (lambda: read_document(text, "r.yaml"), lambda: read_value(text, "command line", ("a",))):
        said = "r.yaml, command line: a: "
        try:
            read()
        except BadInput as error:
            said = str(error)
        assert said.startswith(("r.yaml", "command line: a: "))
        said.encode()


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: 2\na: 3", 3, "first in line 1"),
        ("a: !!python/object:os.system x", 1, "tag"),
        ("a: 1\nb: !!str 5", 2, "tag"),
        ("a: !mine {b: 1}", 1, "tag"),
        ("!!int 5: 1", 1, "key"),
        ("? [1, 2]\n: 3", 1, "key"),
        ("x: &x {a: 1}\ny:\n  <<: *x", 3, "base:"),
        ("a: &a [*a]", 1, "contains itself"),
        ("a: &a {b: *a}", 1, "contains itself"),
        ("a: 1\nb: .nan", 2, "not a finite number"),
        ("b: -.inf", 1, "not a finite number"),
        ("b: 1e999", 1, "not a finite number"),
        ("b: " + "9" * 5000, 1, "not a finite number"),
        ("b: " + "9" * 50, 1, "64 bits"),
        ('a: 1\nb: "\\ud800"', 2, "half a character"),
        ("a: 1\nb:\n\tc: 1", 3, "not YAML"),
        ("a: 1\nb: x\0y", 2, "has no place"),
        ("a: 1\n\x1b[31m: 2", 2, "has no place"),
        ('"a\\e[31m": 2', 1, "plain word"),
        ("a: [1, 2", 1, "not YAML"),
        ("a: 1\n---\nb: 2", 2, "not YAML"),
        ("a: *nowhere", 1, "not YAML"),
        ('a: "\\UFFFFFFFF"', None, "not YAML"),
        ("[" * 700, None, "unfolds"),
        ("a: " + "[" * 60 + "]" * 60, 1, "unfolds"),
        ("- 1", None, "a list"),
        ("5", None, "the single value 5"),
        ("", None, "empty"),
        ("# only a comment", None, "empty"),
        ("a: " + "x" * MAX_CHARACTERS, None, "characters"),
    ],
)
def test_refusals_name_the_line(text: str, line: int | None, said: str) -> None:
    problem = problems_of(text)[0]
    assert said in str(problem)
    assert len(str(problem)) < 300
    assert problem.origin == (f"r.yaml:{line}" if line else "r.yaml")


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    begun = time.monotonic()
    assert "unfolds" in problems_of("\n".join(rows))[0].what
    assert time.monotonic() - begun < 5


def test_a_byte_order_mark_and_windows_lines_are_read() -> None:
    assert read_document("\ufeffa: 1\r\nb: 2\r\n", "r.yaml").values == {"a": 1, "b": 2}


def test_json_escapes_of_one_character_are_joined() -> None:
    assert read_document('{"a": "\\ud83d\\ude00"}', "r.yaml").values == {"a": "😀"}


def test_all_faults_of_a_text_are_said_at_once() -> None:
    found = problems_of("a: 1\na: 2\nb: !!set {}\nc: {d: .nan}\n<<: 1\n")
    assert [problem.origin for problem in found] == [f"r.yaml:{line}" for line in (2, 3, 4, 5)]
    assert found[2].key == "c.d"


def layer(text: str, name: str) -> Document:
    return read_document(text, name)


REPLACED = {"data.path": ("columns", "split")}
LOWER = "data:\n  path: a.csv\n  columns: {text: t}\n  split: train\n  max_samples: 5\nlist: [1, 2, 3]\n"


def test_another_path_drops_what_described_the_old_one() -> None:
    merged = merge(layer(LOWER, "low"), layer("data: {path: b.csv}", "up"), REPLACED)
    assert merged.values == {"data": {"path": "b.csv", "max_samples": 5}, "list": [1, 2, 3]}
    assert merged.origin(("data", "path")) == "up:1"
    assert merged.origin(("data", "max_samples")) == "low:5"
    assert ("data", "columns") not in merged.origins


def test_the_same_path_drops_nothing() -> None:
    merged = merge(layer(LOWER, "low"), layer("data: {path: a.csv, split: test}", "up"), REPLACED)
    assert merged.values["data"] == {"path": "a.csv", "columns": {"text": "t"}, "split": "test", "max_samples": 5}


def test_columns_given_beside_another_path_are_taken() -> None:
    merged = merge(layer(LOWER, "low"), layer("data: {columns: {label: y}, path: b.csv}", "up"), REPLACED)
    assert merged.values["data"]["columns"] == {"label": "y"}


def gives_a_key_to_a_list(low: Any, high: Any) -> bool:
    """Return whether somewhere a list of mappings lies below a mapping with keys."""
    if isinstance(low, list):
        return bool(high) and isinstance(high, dict) and any(isinstance(item, dict) for item in low)
    both = low.keys() & high.keys() if isinstance(low, dict) and isinstance(high, dict) else ()
    return any(gives_a_key_to_a_list(low[key], high[key]) for key in both)


@given(mappings, mappings)
@settings(deadline=None, max_examples=150)
def test_merging_keeps_both_and_every_origin(low: dict[str, Any], high: dict[str, Any]) -> None:
    def document(values: dict[str, Any], name: str) -> Document:
        return Document(values, {place: f"{name}:{place}" for place, _ in places(values)}, name)

    if gives_a_key_to_a_list(low, high):
        with pytest.raises(BadInput, match="here, which takes no single key; give the whole list"):
            merge(document(low, "low"), document(high, "up"), {})
        return
    merged = merge(document(low, "low"), document(high, "up"), {})
    leaves = {place: value for place, value in places(high) if not isinstance(value, dict) or not value}
    for place, value in leaves.items():
        found: Any = merged.values
        for part in place:
            found = found[part]
        if not isinstance(value, dict):
            assert found == value
            assert merged.origins[place] == f"up:{place}" or place == ()
    assert {place for place, _ in places(merged.values)} == set(merged.origins)
    assert merge(document(low, "low"), document({}, "up"), {}).values == low
    assert merge(document({}, "low"), document(high, "up"), {}).values == high
    again = merge(merged, document(high, "up"), {})
    assert again.values == merged.values


def test_a_key_of_what_is_a_list_below_is_refused_and_a_whole_list_is_taken() -> None:
    low = layer("data: {train: [{path: a, weight: 1}, {path: b, weight: 2}]}\nnames: [x, y]", "low")
    with pytest.raises(BadInput) as caught:
        merge(low, layer("data: {train: {path: c, split: d}}", "up"), REPLACED)
    assert [str(problem) for problem in caught.value.problems] == [
        "up:1: data.train.path: data.train is a list of 2 here, which takes no single key; "
        "give the whole list: data.train='[{path: …}, …]'"
    ]
    merged = merge(low, layer("data: {train: [{path: c}]}", "up"), REPLACED)
    assert merged.values == {"data": {"train": [{"path": "c"}]}, "names": ["x", "y"]}
    assert merged.origin(("data", "train", 0, "path")) == "up:1"
    assert ("data", "train", 1) not in merged.origins
    assert merge(low, layer("names: {x: y}", "up"), REPLACED).values["names"] == {"x": "y"}


@pytest.mark.parametrize("path", [(), ("data",), ("data", "train", 1, "path"), ("a", 0, "b"), ("a", 12)])
def test_a_dotted_key_is_read_back(path: Path) -> None:
    assert undotted(dotted(path)) == path


def test_a_value_is_put_into_a_list_without_a_change_to_the_first_document() -> None:
    low = layer("data: {train: [{path: a}, {path: b}]}", "low")
    new = low.put(("data", "train", 1, "revision"), "v1", "up")
    assert new.values == {"data": {"train": [{"path": "a"}, {"path": "b", "revision": "v1"}]}}
    assert low.values == {"data": {"train": [{"path": "a"}, {"path": "b"}]}}
    assert new.origin(("data", "train", 1, "revision")) == "up"


def test_merging_many_keys_takes_no_time() -> None:
    many = Document({f"k{n}": n for n in range(15_000)}, {(f"k{n}",): "x:1" for n in range(15_000)}, "x")
    begun = time.monotonic()
    assert merge(many, many, {}).values == many.values
    assert time.monotonic() - begun < 3


@given(st.text(max_size=12))
def test_a_plain_value_is_finite_in_kinds(text: str) -> None:
    assert isinstance(plain_value(text), type(None) | bool | int | float | str)
