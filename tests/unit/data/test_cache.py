"""Cache entries appear whole or not at all, whoever writes them and however it ends."""

import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.data.cache import cache_root, content_key, entry, read_table, write_table
from finelaunch.errors import BadInput, Problem, RequirementMissing

KEY = "0123456789abcdef" * 4
WRITER = """
import sys, time
from pathlib import Path
from finelaunch.data.cache import entry
def write(folder):
    (folder / "half").write_text("x")
    print("writing", flush=True)
    sys.stdin.readline()
    (folder / "whole").write_text(sys.argv[2])
folder, there = entry("prepared", sys.argv[1], write)
print(folder, there, (folder / "whole").read_text(), flush=True)
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINELAUNCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


def fill(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")


def refuse(folder: Path) -> None:
    raise AssertionError("must not be written again")


def start(content: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, KEY, content]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "writing\n"
    return process


def test_an_entry_is_written_once(root: Path) -> None:
    folder, there = entry("prepared", KEY, fill)
    assert (folder.parent, there) == (root, False)
    assert entry("prepared", KEY, refuse) == (folder, True)
    assert (folder / "deep" / "file").read_text() == "x"
    assert [path.name for path in root.iterdir()] == [folder.name]
    assert entry("prepared", KEY[::-1], fill)[0] != folder


def test_two_writers_at_once_make_one_entry(root: Path) -> None:
    first, second = start("first"), start("second")
    said = [process.communicate("\n", timeout=60)[0].split() for process in (second, first)]
    folder = root / KEY[:32]
    assert said == [[str(folder), "False", "second"]] * 2
    assert [path.name for path in root.iterdir()] == [folder.name]
    assert (folder / "whole").read_text() == "second"


def test_a_killed_writer_leaves_no_entry_and_no_lock(root: Path) -> None:
    writer = start("killed")
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=60)
    assert not (root / KEY[:32]).exists()
    (draft,) = root.iterdir()
    folder, there = entry("prepared", KEY, fill)
    assert not there
    assert draft.exists(), "it could belong to a process that lives"
    for path in (draft, *draft.iterdir()):
        os.utime(path, (time.time() - 100_000,) * 2)
    entry("prepared", KEY[::-1], fill)
    assert not draft.exists()
    assert folder.exists()


@pytest.mark.parametrize("error", [BadInput(Problem("a", "b", "c")), OSError("lost"), KeyboardInterrupt(), KeyError(1)])
def test_a_write_that_fails_leaves_nothing(root: Path, error: BaseException) -> None:
    def write(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(type(error)):
        entry("prepared", KEY, write)
    assert list(root.iterdir()) == []
    assert entry("prepared", KEY, fill)[1] is False


def test_a_cache_that_cannot_be_written_is_named(root: Path) -> None:
    root.parent.write_text("a file")
    with pytest.raises(RequirementMissing, match=f"the cache {root} cannot be written: .*FINELAUNCH_CACHE"):
        entry("prepared", KEY, fill)


def test_a_full_disk_is_named(root: Path) -> None:
    def write(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RequirementMissing, match="No space left on device; make room there"):
        entry("prepared", KEY, write)


def test_an_entry_can_be_read_by_whom_the_user_lets(root: Path) -> None:
    folder, _ = entry("prepared", KEY, fill)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables, expected in (
        ({"FINELAUNCH_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/finelaunch"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/finelaunch"),
        ({"FINELAUNCH_CACHE": "~/x"}, "/home/me/x"),
    ):
        for name in ("FINELAUNCH_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", "/home/me")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert cache_root() == Path(expected)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(
    st.dictionaries(st.text(max_size=3), values, max_size=4), st.dictionaries(st.text(max_size=3), values, max_size=4)
)
def test_keys_differ_where_contents_do(one: dict[str, object], other: dict[str, object]) -> None:
    turned = dict(reversed(one.items()))
    assert content_key(one) == content_key(turned)
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (content_key(one) == content_key(other)) == same
    assert len(content_key(one)) == 64


def test_the_key_is_the_same_in_another_process() -> None:
    parts = {"b": [1, 2.5, None], "a": {"é": True}}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(content_key, (parts,)) == content_key(parts)


def test_tables_come_back(tmp_path: Path) -> None:
    table = pa.table({"a": [[1, 2], []], "b": ["x", None]})
    write_table(table, tmp_path / "t.arrow")
    assert read_table(tmp_path / "t.arrow").equals(table)
