"""The commands that the README shows, run as they stand there."""

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

README = Path(__file__).parents[2] / "README.md"
REVIEWS = {
    "good": ("A joy from the first scene to the last.", "Warm, funny and wonderfully acted.", "I would see it again."),
    "bad": ("Dull and far too long.", "Wooden acting and a silly plot.", "Two hours that I will never get back."),
}


def commands(heading="## Train your own"):
    """Return the words of each finelaunch command in a section, by default the one on training one's own."""
    section = README.read_text(encoding="utf-8").split(heading)[1].split("```")[1]
    lines = section.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("finelaunch ")]


def write_reviews(path, copies):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "label"])
        for number in range(copies):
            writer.writerows([f"{text} Number {number}.", label] for label, texts in REVIEWS.items() for text in texts)


def test_the_commands_run_in_order(tmp_path):
    for name, copies in (("mine.csv", 4), ("held_out.csv", 2), ("more.csv", 1)):
        write_reviews(tmp_path / name, copies)
    verbs = []
    for words in commands():
        done = subprocess.run(
            [sys.executable, "-m", "finelaunch", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr)
        verbs.append(words[0])
    assert verbs == ["recipes", "validate", "data", "train", "evaluate", "predict"]
    assert done.stdout.strip() in REVIEWS


def test_the_commands_on_several_devices_are_plans():
    several = commands("## On several devices")
    assert [words[0] for words in several] == ["plan", "launch", "launch"]
    for words in several:
        dry = ["--dry-run"] if words[0] == "launch" else []
        done = subprocess.run(
            [sys.executable, "-m", "finelaunch", *words, *dry], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, (words, done.stderr)
        assert done.stdout.startswith(f"{words[1]} on {words[words.index('--on') + 1]}: ")
