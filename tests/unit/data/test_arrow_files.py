"""Arrow files of both formats, data sets that ``datasets`` saved to disk, and text files: whole, or one sentence."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finelaunch.data.section import SplitSection
from finelaunch.data.sources import fingerprint, read_rows
from finelaunch.errors import BadInput
from finelaunch.tasks import QuestionAnswering, QuestionAnsweringSection

ROWS = [
    {"id": "a", "text": "Dull; naïve – 映画.", "label": 0},
    {"id": "b", "text": "Bad.", "label": 0},
    {"id": "c", "text": "Fine,\r\nreally.", "label": 1},
]
QUESTION = {
    "id": "q",
    "title": "t",
    "context": "Two cats.",
    "question": "How many?",
    "answers": {"text": ["Two"], "answer_start": [0]},
}


def rows_of(path: Path, name: str = "train", **settings: Any) -> Any:
    return read_rows(SplitSection(path=str(path), **settings), name, "recipe.yaml:3")


def plain(rows: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "__place__"} for row in rows.rows]


def write(path: Path, rows: list[dict[str, Any]] = ROWS, stream: bool = False, batch: int | None = None) -> Path:
    table = pa.Table.from_pylist(rows)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``one`` saved data set in two files, and ``several`` splits."""
    import datasets

    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("saved")
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
        }
    )
    dataset = datasets.Dataset.from_list(ROWS, features=features)
    dataset.save_to_disk(folder / "one", num_shards=2)
    datasets.DatasetDict({"train": dataset, "held_out": dataset.select([2, 0])}).save_to_disk(folder / "several")
    dataset.to_parquet(folder / "rows.parquet")
    datasets.Dataset.from_list([QUESTION]).save_to_disk(folder / "questions")
    return folder


@pytest.mark.parametrize("suffix", [".arrow", ".feather", ".ARROW"])
@pytest.mark.parametrize("stream", [False, True])
def test_both_formats_give_the_same_rows(tmp_path: Path, suffix: str, stream: bool) -> None:
    rows = rows_of(write(tmp_path / f"rows{suffix}", stream=stream, batch=2))
    assert plain(rows) == ROWS
    assert rows.place(1).endswith(f"rows{suffix}:row 2")


def test_a_saved_data_set_brings_its_rows_in_order_and_its_label_names(saved: Path) -> None:
    for path in ("one", "one/data-00000-of-00002.arrow", "rows.parquet"):
        rows = rows_of(saved / path)
        assert plain(rows) == ROWS[: len(rows.rows)]
        assert rows.class_names == ("neg", "pos")
    assert len(rows_of(saved / "one").rows) == 3
    assert rows_of(saved / "one", columns={"label": "id"}).class_names is None
    assert rows_of(saved / "one", columns={"text": "text"}).class_names == ("neg", "pos")


def test_a_saved_data_set_has_splits(saved: Path) -> None:
    assert plain(rows_of(saved / "several")) == ROWS
    assert plain(rows_of(saved / "several", "test", split="held_out")) == [ROWS[2], ROWS[0]]
    with pytest.raises(BadInput, match=r"holds no split 'test'; its splits are train, held_out; .*data\.test\.split="):
        rows_of(saved / "several", "test")
    with pytest.raises(BadInput, match=r"data\.train\.split: has no effect on the local path"):
        rows_of(saved / "one", split="train")
    splits = [SplitSection(path=str(saved / "several"), split=split) for split in ("train", "held_out")]
    prints = [fingerprint(split, "test", "r") for split in splits]
    assert len(set(prints)) == 2


def test_nested_features_are_read(saved: Path) -> None:
    task = QuestionAnswering(QuestionAnsweringSection(name="question_answering"))
    (example,) = task.read(rows_of(saved / "questions"), {}, {})
    assert {name: example[name] for name in QUESTION} == QUESTION


def test_text_files_are_rows(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one\n\nparagraph")
    (tmp_path / "notes.md").write_text("left aside")
    rows = rows_of(tmp_path)
    assert plain(rows) == [{"id": "a", "text": "one\n\nparagraph"}, {"id": "b", "text": "two"}]
    assert rows.place(1) == f"{tmp_path}:b.txt"
    assert plain(rows_of(tmp_path / "a.txt")) == [{"id": "a", "text": "one\n\nparagraph"}]
    before = fingerprint(SplitSection(path=str(tmp_path)), "train", "r")
    (tmp_path / "notes.md").write_text("changed")
    assert fingerprint(SplitSection(path=str(tmp_path)), "train", "r") == before
    (tmp_path / "b.txt").write_text("too")
    assert fingerprint(SplitSection(path=str(tmp_path)), "train", "r") != before


def damaged_state(folder: Path, saved: Path, **state: Any) -> Path:
    path = shutil.copytree(saved / "one", folder / "damaged")
    content = json.loads((path / "state.json").read_text()) | state
    (path / "state.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"_data_files": None}, "state.json: is damaged"),
        ({"_data_files": [{"filename": "../one/data-00000-of-00002.arrow"}]}, "a file outside of its folder"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow: cannot be read"),
        ({"_data_files": []}, "holds no rows"),
        ({"_indices_data_files": [{"filename": "x.arrow"}]}, "in another order than its files"),
    ],
)
def test_a_damaged_data_set_is_said(tmp_path: Path, saved: Path, state: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        rows_of(damaged_state(tmp_path, saved, **state))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_none_are_said(tmp_path: Path) -> None:
    for content, said in ((b"", "no Arrow data"), (b"FEA1" + bytes(20), "version 1"), (b"ARROW1 then", "not Arrow")):
        path = tmp_path / "a.feather"
        path.write_bytes(content)
        with pytest.raises(BadInput, match=said):
            rows_of(path)
    (tmp_path / "dataset_dict.json").write_text("[1")
    with pytest.raises(BadInput, match=r"dataset_dict\.json: is damaged"):
        rows_of(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_no_cut_file_is_taken_for_a_whole_one(tmp_path: Path, stream: bool) -> None:
    content = write(tmp_path / "whole.arrow", stream=stream, batch=1).read_bytes()
    path = tmp_path / "cut.arrow"
    for end in range(0, len(content), 8):
        path.write_bytes(content[:end])
        with pytest.raises(BadInput):
            rows_of(path)


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pa.ipc.new_file(tmp_path / "twice.arrow", table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, tmp_path / "twice.parquet")
    for suffix in ("arrow", "parquet"):
        with pytest.raises(BadInput, match=r"text: a column stands twice"):
            rows_of(tmp_path / f"twice.{suffix}")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.booleans(), st.data())
def test_no_flipped_byte_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, stream: bool, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(write(folder / "whole.arrow", stream=stream).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (folder / "flipped.arrow").write_bytes(content)
    with suppress(BadInput):
        rows_of(folder / "flipped.arrow")
