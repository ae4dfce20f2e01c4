"""Runs on two nodes: what is asked runs, and a run that was requeued is the run that nobody stopped."""

import json
import os
import pickletools
import shlex
import sys

import canary
import pytest
from integration.runs import weights_hash
from slurm.cluster import (
    ROOT,
    WORDS,
    ask,
    events,
    finelaunch,
    job,
    job_ids,
    manifest,
    note_scenario,
    requeues,
    submission,
    submit,
    wait_for_end,
    wait_for_event,
    wait_for_step,
)

from finelaunch.data.cache import cache_root
from finelaunch.run.directory import RunDirectory, now

pytestmark = pytest.mark.slurm


def test_two_nodes_run_what_was_asked(tmp_path, uninterrupted):
    """Bit for bit what four processes on one machine give."""
    run = tmp_path / "run"
    done = finelaunch(*submission(run), "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    engine = manifest(run)["engine"]
    facts = {key: engine[key] for key in ("name", "world_size", "backend", "dtype")}
    assert facts == {"name": "ddp", "world_size": 4, "backend": "gloo", "dtype": "float32"}
    (number,) = job_ids(run)
    wait_for_end(number)  # --wait ends with the run, a moment before its job
    assert job(number)["JobState"] == "COMPLETED"
    assert manifest(run)["slurm"] == {"cluster": "local", "jobs": [number], "requeues": []}
    assert "node[1-2]" in events(run, "job_started")[0]["nodes"]
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_ddp")
    planned = finelaunch("plan", *submission(run)[1:-2], "--json")  # without --run-dir
    submitted = (run / "slurm" / f"{number}_submission.sh").read_text()
    symbols = {"<run>": str(run), "<python>": sys.executable, "<folder>": os.getcwd(), "<cache>": str(cache_root())}
    assert words_of(json.loads(planned.stdout)["sbatch"], symbols | {"imdb-smoke": "run"}) == words_of(submitted, {})
    names, texts = pickled(run / "slurm" / f"{number}_submitted.pkl")
    assert {name for name in names if not name.startswith("submitit")} == {"finelaunch.slurm.task train"}
    assert str(run) in texts
    (run / "said.txt").write_text(done.stdout + done.stderr)
    assert canary.found_in(run) == []
    assert canary.VALUE not in ask("scontrol", "write", "batch_script", number, "-")
    assert not [text for text in texts if "learning_rate" in text or "import " in text]
    note_scenario("2 x 2 DDP", run)


def test_the_time_limit_requeues_and_the_code_of_the_restart_counts(tmp_path, copied, uninterrupted):
    run = tmp_path / "run"
    copied.order(pace_seconds=1.2)  # 100 steps take longer than the limit
    number = submit(run, "cluster.time_limit=00:02:00", "cluster.signal_delay_seconds=20", **copied.environment)
    wait_for_event(run, "requeued", seconds=180)
    copied.edit("this is the code of the restart")
    copied.order()
    wait_for_end(number)
    assert job(number)["Restarts"] == "1"
    (requeue,) = requeues(run)
    assert requeue["lost_steps"] == 0
    assert "time limit" in requeue["reason"]
    assert requeue["preempt_time"] is None
    assert events(run, "training")[1]["from_step"] == requeue["step"] > 0
    said = (run / "logs" / "rank_0.log").read_text()
    assert said.index("the code of the submission") < said.index("the code of the restart")
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_ddp")
    note_scenario("time limit", run)


def test_zero2_goes_on_after_a_requeue_by_an_operator(tmp_path, copied, uninterrupted):
    run = tmp_path / "run"
    copied.order(pace_seconds=0.3)
    number = submit(run, "launch.accelerate_config=zero2", **copied.environment)
    wait_for_step(run, 12)
    asked = now()
    ask("scontrol", "requeue", number)
    wait_for_event(run, "requeued", seconds=60)
    copied.order()
    wait_for_end(number)
    engine = manifest(run)["engine"]
    assert (engine["name"], engine["zero_stage"], engine["world_size"]) == ("zero2", 2, 4)
    (requeue,) = requeues(run)
    assert requeue["lost_steps"] == 0
    assert requeue["step"] >= 12
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_zero2")
    note_scenario("scontrol requeue by an operator, ZeRO-2", run, asked=asked)


def test_a_time_limit_that_leaves_no_time_to_train_is_refused(tmp_path):
    words = ["cluster.time_limit=00:01:00", "cluster.signal_delay_seconds=20"]
    done = finelaunch(*submission(tmp_path / "run", *words), timeout=60)
    assert done.returncode == 2, done.stderr
    assert "cluster.time_limit" in done.stderr
    assert job_ids(tmp_path / "run") == []


def test_the_batch_script_for_hand_use_runs_the_same(tmp_path, uninterrupted):
    """slurm/train.sbatch needs no submitit; edited as its comments say, for a site without modules and scratch."""
    lines = (ROOT / "slurm" / "train.sbatch").read_text().splitlines()
    site = ("module ", "export FINELAUNCH_SCRATCH", "srun --nodes", "export TMPDIR")
    script, run = tmp_path / "train.sbatch", tmp_path / "run"
    script.write_text("\n".join(line for line in lines if not line.startswith(site)) + "\n")
    given = {"RECIPE": "imdb/smoke", "PROFILE": "slurm_cpu_2x2", "RUN": str(run), "PYTHON": sys.executable}
    options = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem=800M", "--gres=none", "--time=10"]
    site = ["--parsable", "--partition=debug", f"--output={tmp_path}/job.out", f"--chdir={tmp_path}"]
    number = ask("sbatch", *site, *options, script, *WORDS, **given).strip()
    wait_for_end(number)
    assert manifest(run)["engine"]["world_size"] == 4
    assert job_ids(run) == [number]
    assert weights_hash(RunDirectory(run)) == uninterrupted("cpu_ddp")


def words_of(script, symbols):
    """Return the words of each line of a batch script, its symbols replaced, however they are quoted."""
    for symbol, value in symbols.items():
        script = script.replace(symbol, value)
    return [shlex.split(line) for line in script.splitlines()]


def pickled(path):
    """Return what a pickle imports, each as ``module name``, and the other texts in it."""
    imported, texts = set(), []
    for opcode, value, _ in pickletools.genops(path.read_bytes()):
        if opcode.name == "GLOBAL":
            imported.add(value)
        elif opcode.name == "STACK_GLOBAL":
            imported.add(" ".join(texts[-2:]))
        elif isinstance(value, str):
            texts.append(value)
    return imported, texts
