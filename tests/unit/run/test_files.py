"""Files of a run survive kills and writers at the same time."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finelaunch.run.files import append_line, read_lines, write_json, write_lines, write_text

spawn = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
rows = st.dictionaries(st.text(max_size=5), st.text(max_size=10) | st.integers() | st.booleans(), max_size=3)


@given(st.lists(rows, max_size=6))
@settings(deadline=None, max_examples=50)
def test_rows_come_back(tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    write_lines(folder / "whole.jsonl", written)
    for row in written:
        append_line(folder / "deep" / "appended.jsonl", row)
    assert read_lines(folder / "whole.jsonl") == written
    assert read_lines(folder / "deep" / "appended.jsonl") == written


def test_line_separators_inside_a_text_separate_no_rows(tmp_path: Path) -> None:
    written = [{"text": f"a{mark}b"} for mark in "\u2028\u2029\x85\x0b\x0c\x1c\r\n"] + [{"last": 1}]
    write_lines(tmp_path / "rows.jsonl", written)
    assert read_lines(tmp_path / "rows.jsonl") == written


def test_names_of_files_that_are_no_utf_8_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {"command": [name]})
    append_line(tmp_path / "a.jsonl", {"command": [name]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"command": [name]}
    assert read_lines(tmp_path / "a.jsonl") == [{"command": [name]}]


def test_no_file_gives_no_rows(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("num_bytes_lost", [1, 2, 5, 9])
def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path: Path, num_bytes_lost: int) -> None:
    path = tmp_path / "events.jsonl"
    for number in range(3):
        append_line(path, {"n": number, "text": "é\u2028"})
    path.write_bytes(path.read_bytes()[: -1 - num_bytes_lost])
    assert [row["n"] for row in read_lines(path)] == [0, 1]
    append_line(path, {"n": 3})
    append_line(path, {"n": 4})
    assert [row["n"] for row in read_lines(path)] == [0, 1, 3, 4]


def _append(path: Path, writer: int) -> None:
    for number in range(200):
        append_line(path, {"writer": writer, "n": number, "text": "é" * (number % 97)})


def test_lines_of_several_processes_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writers = [spawn.Process(target=_append, args=(path, writer)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
    found = read_lines(path)
    written = [line for line in path.read_bytes().split(b"\n") if line]  # between two writers an empty one may stand
    assert len(written) == len(found) == 800
    for writer in range(4):
        assert [row["n"] for row in found if row["writer"] == writer] == list(range(200))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, {"old": True})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    path.with_name("folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(path.with_name("folder"), "x")
    assert json.loads(path.read_text()) == {"old": True}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "manifest.json"]


WRITER = """
import sys
from pathlib import Path
from finelaunch.run.files import write_json
path = Path(sys.argv[1])
number = 0
while True:
    write_json(path, {"number": number, "text": "x" * 2_000_000, "again": number})
    number += 1
    if number == 2:
        print("writing", flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    for attempt in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout
        assert writer.stdout.readline() == b"writing\n"
        time.sleep(0.013 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
        writer.stdout.close()
        content = json.loads(path.read_text())
        assert content["number"] == content["again"]
        assert len(content["text"]) == 2_000_000
