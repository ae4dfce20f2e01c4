"""Slurm's commands for tests that need no cluster: they say again what the real ones have said."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from unit.slurm.told import commands


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Give what sets the commands that are found, by name and shell; before it is called none is installed."""

    def answer(**scripts: str) -> None:
        folder = commands(tmp_path / "bin", cat='exec /bin/cat "$@"', **scripts)
        monkeypatch.setenv("PATH", str(folder))

    monkeypatch.setenv("TZ", "UTC")  # what they say is the local time of where they said it
    time.tzset()
    answer()
    yield answer
    monkeypatch.undo()
    time.tzset()
