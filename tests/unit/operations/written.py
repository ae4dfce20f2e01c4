"""Run directories as real runs write them, up to a chosen moment."""

import json

from finelaunch.run.directory import RunDirectory
from finelaunch.slurm.submission import SubmittedJob, add_job

ENGINE = {"name": "ddp", "world_size": 4, "device": "cpu", "dtype": "float32", "global_batch_size": 8}


def write_run(folder, *events, engine=True, target="inprocess", holder=None, num_logged=0):
    """Write a run with ``events``, each a name or a name with facts, and ``num_logged`` lines of its log."""
    run = RunDirectory(folder)
    run.begin({"task": {"name": "text_classification"}}, {"target": target}, ["finelaunch", "train"])
    run.note(profile="cpu", **({"engine": ENGINE} if engine else {}))
    for event in events:
        name, facts = (event, {}) if isinstance(event, str) else event
        run.record(name, **facts)
    for step in range(5, 5 * num_logged + 1, 5):
        row = {"step": step, "loss": 1 / step, "tokens_per_second": 1000.0, "samples_per_second": 16.0}
        with run.train_log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        with run.samples.open("a") as file:
            file.writelines(
                json.dumps({"step": one, "epoch": 0, "rows": [1]}) + "\n" for one in range(step - 4, step + 1)
            )
    if holder is not None:
        run.lock.write_text(json.dumps(holder))
    return run


def submitted(run, *job_ids, cluster="local", time_limit_seconds=600):
    """Write down that ``run`` was given jobs, each of which waits for the one before."""
    for before, job_id in zip([None, *job_ids], job_ids, strict=False):
        job = SubmittedJob("2026-11-22T07:14:00.000+00:00", job_id, before, cluster, "slurm_cpu_2x2", 2, 4)
        add_job(run, SubmittedJob(**{**job.__dict__, "time_limit_seconds": time_limit_seconds, "user": "root"}))
        run.record("submitted", job_id=job_id)
    return run


TRAINING = ("training", {"from_step": 0, "steps": 100, "checkpoint": None, "lost_steps": 0})
