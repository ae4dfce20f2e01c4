"""Where no file system can be mounted the trials say so; nothing is made up."""

import pytest
from unit.chaos.chaos_rows import BENCH

from finelaunch.chaos import small_disk
from finelaunch.chaos.trials import Trial
from finelaunch.errors import FinelaunchError

TRIALS = [Trial("disk", index, 0) for index in range(2)]


@pytest.mark.parametrize(
    ("namespace", "why"),
    [
        (("no-such-command",), "no-such-command: No such file or directory"),
        (("sh", "-c", "echo unshare failed: Operation not permitted >&2; exit 1"), "Operation not permitted"),
        (("env", "PATH=/nowhere"), "mount"),
    ],
)
def test_trials_that_cannot_be_made_say_why(namespace, why, tmp_path, monkeypatch):
    monkeypatch.setattr(small_disk, "NAMESPACE", namespace)
    rows = list(small_disk.small_disk_rows(BENCH, TRIALS, tmp_path, forks=False))
    assert [(row["index"], row["recovered"]) for row in rows] == [(0, None), (1, None)]
    assert all(why in row["not_run"] for row in rows)


def test_a_fault_of_our_own_is_not_taken_for_a_missing_right(tmp_path, monkeypatch):
    monkeypatch.setattr(small_disk, "NAMESPACE", ("env", f"PYTHONPATH={tmp_path}"))
    (tmp_path / "psutil.py").write_text("raise RuntimeError('not this one')")
    with pytest.raises(FinelaunchError, match="has failed"):
        list(small_disk.small_disk_rows(BENCH, TRIALS, tmp_path, forks=False))
