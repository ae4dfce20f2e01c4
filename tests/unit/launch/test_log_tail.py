"""The last lines of a rank's log, whatever stands in it."""

from pathlib import Path

import pytest

from finelaunch.launch.processes import tail


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"one", ["one"]),
        (b"one\ntwo\n\nfour\n", ["two", "", "four"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"10%\r20%\r30%\nend\n", ["30%", "end"]),
        (b"\xff\xfe broken \xe4\n", ["\ufffd\ufffd broken \ufffd"]),
        (b"a\n" * 500_000 + b"last\n", ["a", "a", "last"]),
        (b"x" * 1_000_000, ["x" * 65_536]),
        (b"x" * 1_000_000 + b"\nlast\n", ["last"]),
    ],
    ids=["empty", "no end", "more", "dos", "bar", "broken", "many lines", "one long line", "long line before"],
)
def test_tail(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    (tmp_path / "log").write_bytes(content)
    assert tail(tmp_path / "log", 3) == lines
    assert tail(tmp_path / "log", 0) == []


def test_tail_of_no_file(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == []
