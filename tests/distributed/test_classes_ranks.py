"""Class weights and several labels a text on real ranks: the curve of one process."""

import pytest
from distributed.launches import LIMIT, difference, run_jobs
from integration.runs import run_recipe
from integration.test_classes import EVERY_STEP, RECIPE, TAGS, WEIGHTS

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore")]

KINDS = {"tagged": TAGS, "single": (WEIGHTS,)}


def test_the_weighted_loss_does_not_depend_on_the_ranks(tmp_path):
    jobs = [
        {
            "recipe": RECIPE,
            "profile": "cpu_ddp",
            "folder": str(tmp_path / f"ranks-{kind}"),
            "overrides": [*EVERY_STEP, *own, "launch.per_device_batch_size=2"],
            "faults": [],
        }
        for kind, own in KINDS.items()
    ]
    run_jobs(tmp_path, jobs)
    for kind, own in KINDS.items():
        run_recipe(RECIPE, tmp_path / kind, *EVERY_STEP, *own)
        loss, norm = difference(tmp_path / kind, tmp_path / f"ranks-{kind}")
        print(f"{kind}: loss {loss:.1e}, gradient norm {norm:.1e}")
        assert max(loss, norm) <= LIMIT
