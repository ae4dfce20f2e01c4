"""Steps that a start makes again: those that an earlier one has made beyond the checkpoint."""

from pathlib import Path

import pytest

from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import write_lines
from finelaunch.training.train import num_lost_steps


@pytest.mark.parametrize(("steps", "lost"), [([], 0), ([1, 2, 3, 4, 5, 6, 7], 3), ([1, 2], 0), ([4], 0)])
def test_steps_beyond_the_checkpoint_are_lost(tmp_path: Path, steps: list[int], lost: int) -> None:
    run = RunDirectory(tmp_path)
    assert num_lost_steps(run, 4) == 0, "nothing was made"
    write_lines(run.samples, [{"epoch": 0}, *({"step": step} for step in steps)])
    assert num_lost_steps(run, 4) == lost
