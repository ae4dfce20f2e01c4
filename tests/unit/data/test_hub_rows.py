"""Rows kept for machines without a network are those that the hub's own reader gives."""

import json
from pathlib import Path
from typing import Any

import pytest

from finelaunch.data.hub import hub_fingerprint, is_commit, is_offline, keep_rows, kept_rows, repository
from finelaunch.data.section import SplitSection
from finelaunch.data.sources import read_rows
from finelaunch.errors import BadInput

COMMIT = "0123456789abcdef" * 2 + "01234567"
ROWS: list[dict[str, Any]] = [
    {"id": "1", "question": "Who?", "answers": {"text": ["a", "b"], "answer_start": [0, 7]}, "label": 1},
    {"id": "2", "question": "Zwölf – 十二\u2028", "answers": {"text": [], "answer_start": []}, "label": None},
    {"id": "3", "question": "", "answers": {"text": [""], "answer_start": [3]}, "label": 0},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data set in a folder, which the hub's reader takes as well."""
    monkeypatch.setenv("FINELAUNCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "set"


def test_kept_rows_are_the_same_rows_and_are_read_without_the_source(folder: Path, tmp_path: Path) -> None:
    split = SplitSection(path=f"hub:{folder}", revision=COMMIT)
    before = read_rows(split, "train", "r")
    assert [row["answers"] for row in before.rows] == [row["answers"] for row in ROWS]
    path = keep_rows(split, "train")
    assert path == kept_rows(split, "train")
    assert [file.name for file in path.parent.iterdir()] == ["rows.parquet"]
    written = path.stat().st_mtime_ns
    assert keep_rows(split, "train").stat().st_mtime_ns == written
    folder.rename(tmp_path / "gone")
    assert read_rows(split, "train", "r") == before
    assert hub_fingerprint(split, "train") == f"hub:{folder}@{COMMIT}:None:train"


def test_another_commit_split_or_subset_is_kept_apart_and_a_branch_is_never_read(folder: Path) -> None:
    split = SplitSection(path=f"hub:{folder}", revision=COMMIT)
    keep_rows(split, "train")
    others = [{"revision": "f" * 40}, {"split": "test"}, {"subset": "s"}, {"path": "hub:a/b"}]
    paths = {kept_rows(split.model_copy(update=other), "train") for other in others} | {kept_rows(split, "train")}
    assert len(paths) == len(others) + 1
    assert kept_rows(split, "test") != kept_rows(split, "train")
    with pytest.raises(BadInput, match="split"):
        keep_rows(split, "dev")
    assert not kept_rows(split, "dev").parent.exists()


def test_what_is_a_commit_and_what_is_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_commit(COMMIT)
    assert not any(map(is_commit, (None, "main", COMMIT[:12], COMMIT.upper(), COMMIT + "0")))
    assert repository(SplitSection(path="hub:a/b")) == "a/b"
    assert repository(SplitSection(path="a/b")) is None
    assert repository(SplitSection(path=f"hub:{folder}")) is None
    for value, expected in (("1", True), ("true", True), ("0", False), ("", False)):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        assert is_offline() is expected
