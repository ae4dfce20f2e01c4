"""Lines for sbatch, read by sbatch itself: a value arrives as it stands, whatever it holds."""

import subprocess
from pathlib import Path

import pytest

from finelaunch.launch.shell import directive

pytestmark = pytest.mark.slurm

VALUES = ("a b", "a#b", "#a", ":a", "a'b", 'a"b', "a\\b", "a\\\\b", "\\", "a$HOME`id`", "a'\"b # c", "é ü")
VALUES += ("[x|y]&z;!*?",)


@pytest.mark.parametrize("value", VALUES)
def test_a_value_is_read_as_it_stands(value: str, tmp_path: Path) -> None:
    script = tmp_path / "held.sh"
    lines = ["#!/bin/bash", directive("comment", value), directive("mem", "33M"), "true", ""]
    script.write_text("\n".join(lines), encoding="utf-8")
    submit = ["sbatch", "--hold", "--parsable", "--output=/dev/null", str(script)]
    job = subprocess.run(submit, capture_output=True, text=True, check=True).stdout.strip()
    try:
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run(["scancel", job], check=True)
    said = [line.strip() for line in shown.splitlines()]
    assert f"Comment={value}" in said
    assert "MinMemoryNode=33M" in shown, "the lines after it are read too"
