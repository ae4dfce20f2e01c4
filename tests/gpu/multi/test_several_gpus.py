"""Two processes on two GPUs: what ran, the curve of one GPU, too many processes, and a resumed run."""

import math
import signal
import subprocess
import time

import pytest
from gpu.commands import (
    NUM_GPUS,
    PROFILES,
    RECIPE,
    command,
    evaluated_loss,
    finelaunch,
    launched,
    runs_folder,
    worst_difference,
)
from integration.runs import NO_DROPOUT, curve

from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

WHY = f"two GPUs are needed, and {NUM_GPUS} visible to the driver"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NUM_GPUS < 2, reason=WHY)]

ENGINES = [engine for engine in PROFILES if engine != "single"]
CASES = [*((engine, "bf16") for engine in ENGINES), ("ddp", "fp16"), ("zero2", "fp16")]
LIMIT = 1e-5
LONG = ("training.max_steps=400", "training.save_strategy=steps", "training.save_steps=20", "training.logging_steps=1")


@pytest.mark.parametrize(("engine", "precision"), [*CASES, *((engine, "fp32") for engine in ENGINES)])
def test_two_processes_train_on_two_gpus(engine, precision):
    done = launched(engine, precision, 2)
    assert (done.engine["name"], done.engine["world_size"], done.engine["precision"]) == (engine, 2, precision)
    assert done.engine["backend"] == "nccl"
    assert len(set(done.engine["devices"])) == 2
    assert (done.engine["global_batch_size"], done.engine["per_device_batch_size"]) == (8, 4)
    assert all(math.isfinite(loss) for _, loss, _ in curve(done.run))
    tolerance = LIMIT if precision == "fp32" else 1e-2
    assert evaluated_loss(done.run, precision) == pytest.approx(done.metrics["eval"]["loss"], rel=tolerance)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_gpus_have_the_curve_of_one(engine):
    assert worst_difference(launched("single", "fp32").run, launched(engine, "fp32", 2).run) <= LIMIT


@pytest.mark.parametrize("engine", ["ddp", "zero3", "fsdp2"])
def test_more_processes_than_gpus_are_refused(engine, tmp_path):
    many = NUM_GPUS + 1
    words = (f"launch.num_processes_per_node={many}", f"training.global_batch_size={2 * many}")
    done = finelaunch("launch", RECIPE, "--on", engine, *words, "--run-dir", tmp_path / "run")
    assert done.returncode == 2
    assert "two would share one" in done.stderr
    assert not (tmp_path / "run").exists()


def stopped(words, run):
    """Start a launch, press Ctrl-C once it has a checkpoint, and return its exit code."""
    process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not any(row["step"] > 30 for row in read_lines(run.train_log)):
        assert process.poll() is None, f"the run in {run.path} ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    return process.wait(timeout=300)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stopped_run_continues_on_as_many_gpus(engine):
    machine = ("--on", engine, "launch.num_processes_per_node=2", "launch.precision=fp32")
    run = RunDirectory(runs_folder() / f"{engine}-stopped")
    words = ("launch", RECIPE, *machine, *NO_DROPOUT[RECIPE], *LONG, "--run-dir", run.path)
    assert stopped(words, run) == 75
    before = {step: loss for step, loss, _ in curve(run)}
    done = finelaunch(*words)
    assert done.returncode == 0, done.stderr[-6000:]
    from_step = [event["from_step"] for event in read_lines(run.events) if event["event"] == "training"][-1]
    assert from_step >= 20
    assert [step for step, _, _ in curve(run)] == list(range(1, 401))
    after = {step: loss for step, loss, _ in curve(run)}
    for step in [step for step in before if from_step < step <= from_step + 5]:
        assert after[step] == pytest.approx(before[step], rel=1e-4)
