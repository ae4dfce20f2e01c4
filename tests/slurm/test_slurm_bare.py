"""Without accounting, as on many small clusters: a run is watched, cancelled, continued, and one has a failing rank."""

import json
import time

import pytest
from integration.runs import weights_hash
from slurm.cluster import (
    ask,
    events,
    finelaunch,
    job,
    job_ids,
    note_scenario,
    submission,
    submit,
    wait_for_end,
    wait_for_state,
    wait_for_step,
    with_settings,
)

from finelaunch.run.directory import RunDirectory
from finelaunch.training.manifest import newest_checkpoint

pytestmark = pytest.mark.slurm


def status(run):
    """Return what status says of a run, for people and for programs."""
    text, parsed = finelaunch("status", run, timeout=60), finelaunch("status", run, "--json", timeout=60)
    assert text.returncode == parsed.returncode == 0, text.stderr + parsed.stderr
    return text.stdout, json.loads(parsed.stdout)


@with_settings(ACCT=0)
def test_a_run_is_watched_cancelled_and_continued(tmp_path, copied, uninterrupted):
    run = tmp_path / "run"
    blocker = ask("sbatch", "--parsable", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 600").strip()
    copied.order(pace_seconds=0.3)
    try:
        first = submit(run, **copied.environment)
        text, facts = status(run)
        assert facts["state"] == "pending", facts
        assert first in text
        assert "Resources" in text or "Priority" in text or "free" in text, text
        again = finelaunch(*submission(run), **copied.environment)
        assert again.returncode != 0
        assert first in again.stderr, again.stderr
        assert job_ids(run) == [first]
    finally:
        ask("scancel", blocker)
    wait_for_step(run, 12)
    text, facts = status(run)
    assert facts["state"] == "running", facts
    assert "node[1-2]" in text
    said = finelaunch("logs", run, "--rank", "3", timeout=60)
    assert said.returncode == 0, said.stderr
    assert "step 10/" in said.stdout, said.stdout
    cancelled = finelaunch("cancel", run, timeout=120)
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    wait_for_state(first, ["CANCELLED"])
    time.sleep(10)  # longer than a requeued job waits
    assert (job(first)["JobState"], job(first)["Restarts"]) == ("CANCELLED", "0")
    assert newest_checkpoint(RunDirectory(run).checkpoints).step >= 12
    assert status(run)[1]["state"] == "cancelled"
    note_scenario("finelaunch cancel", run, end="CANCELLED, stays so", same_weights=None)

    copied.order()
    second = submit(run, **copied.environment)
    assert second != first
    wait_for_end(second)
    assert status(run)[1]["state"] == "finished"
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_ddp")
    assert events(run, "training")[-1]["from_step"] >= 12


@with_settings(ACCT=0)
def test_a_failing_rank_is_named_and_ends_the_job(tmp_path, copied):
    run = tmp_path / "run"
    copied.order(ends="raise", rank=3, step=8)
    failed = submit(run, **copied.environment)
    wait_for_end(failed, "FAILED")
    time.sleep(6)
    assert (job(failed)["JobState"], job(failed)["Restarts"]) == ("FAILED", "0")
    assert not events(run, "requeued")
    text, facts = status(run)
    assert facts["state"] == "failed", facts
    assert "rank 3" in text, text
    assert "the test had this rank fail" in text, text
    assert not any(f"rank {victim}" in text for victim in range(3)), text
    note_scenario("one rank raises", run, end="FAILED, not requeued", same_weights=None)
