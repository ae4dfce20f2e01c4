"""Real launches by the commands that users type: the same run however it is started, and what becomes of its ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from distributed.launches import EVERY_STEP
from integration.runs import curve, log_of, weights_hash

from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.section.lookup import shipped

pytestmark = pytest.mark.distributed

FINELAUNCH = [sys.executable, "-m", "finelaunch"]
FEW = ("data.train.max_samples=40", "data.test.max_samples=8", "training.max_steps=4", *EVERY_STEP)
LONG = (
    "training.num_train_epochs=200",
    "training.logging_steps=1",
    "training.eval_strategy=no",
    "evaluation.base=false",
)


def call(words, cwd, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, cwd=cwd, env=environment, timeout=600, check=False
    )


def engine_block(run: Path):
    return json.loads((run / "manifest.json").read_text())["engine"]


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3"])
def test_every_launcher_gives_the_same_run_and_the_same_checks(engine, tmp_path):
    """With no compiler to be found, and no place for what one would make: DeepSpeed needs neither here."""
    config = shipped("accelerate_configs") / f"{engine}.yaml"
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "-m", "finelaunch"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "finelaunch"]
    compiled = tmp_path / "compiled"
    bare = {"PATH": str(Path(sys.executable).parent), "TORCH_EXTENSIONS_DIR": str(compiled)}
    commands = {
        "accelerate": [*accelerate, "train", "imdb/smoke", *FEW],
        "torchrun": [*torchrun, "train", "imdb/smoke", *FEW, "--on", f"cpu_{engine}"],
        "finelaunch": [*FINELAUNCH, "launch", "imdb/smoke", *FEW, "--on", f"cpu_{engine}"],
    }
    runs = {}
    for name, words in commands.items():
        done = call([*words, "--run-dir", tmp_path / name], tmp_path, **bare)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
        runs[name] = RunDirectory(tmp_path / name)
        assert engine_block(runs[name].path)["name"] == engine
        assert engine_block(runs[name].path)["world_size"] == 2
    assert len(curve(runs["torchrun"])) == 4
    for name in ("accelerate", "torchrun"):
        assert engine_block(runs[name].path) == engine_block(runs["finelaunch"].path)
        assert curve(runs[name]) == curve(runs["finelaunch"])
        assert weights_hash(runs[name]) == weights_hash(runs["finelaunch"])
    assert not compiled.exists()


@pytest.mark.parametrize(("profile", "offload"), [("cpu_zero2", "optimizer"), ("cpu_zero3", "all")])
def test_offload_runs_on_a_cpu_too(profile, offload, tmp_path):
    words = ["launch", "imdb/smoke", *FEW, "--on", profile, f"launch.offload={offload}", "--run-dir", tmp_path / "run"]
    done = call([*FINELAUNCH, *words], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert engine_block(tmp_path / "run")["offload"] == offload


class Launched:
    """A launch in the background, and the ranks that belong to it."""

    def __init__(self, run: Path, *words: str, profile: str = "cpu_ddp") -> None:
        self.run = run
        self.output = run.with_suffix(".txt").open("w+")
        self.process = subprocess.Popen(
            [*FINELAUNCH, "launch", "imdb/smoke", *LONG, *words, "--on", profile, "--run-dir", str(run)],
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def wait_for_step(self, step: int) -> None:
        waited_until = time.monotonic() + 240
        while not any(row["step"] >= step for row in read_lines(self.run / "train_log.jsonl")):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < waited_until, self.said()
            time.sleep(0.05)

    def ranks(self) -> dict[int, psutil.Process]:
        found = {}
        for process in psutil.process_iter():
            try:
                words, environment = process.cmdline(), process.environ()
            except psutil.Error:
                continue
            if str(self.run) in words and "train" in words and "RANK" in environment:
                found[int(environment["RANK"])] = process
        return found

    def end(self) -> int:
        self.output.close()
        return self.process.wait(timeout=180)

    def said(self) -> str:
        return Path(self.output.name).read_text()


@pytest.mark.parametrize("rank", [1, 0])
def test_a_rank_that_dies_is_named_and_ends_the_others_within_15_seconds(rank, tmp_path):
    launched = Launched(tmp_path / "run", "training.save_strategy=steps", "training.save_steps=5")
    launched.wait_for_step(7)
    ranks = launched.ranks()
    assert set(ranks) == {0, 1}
    since = time.monotonic()
    ranks[rank].kill()
    assert launched.end() == 1
    seconds = time.monotonic() - since
    assert seconds < 15
    said = launched.said()
    assert f"rank {rank} on " in said
    assert "killed by SIGKILL after step" in said
    assert "the newest checkpoint is of step" in said
    assert not launched.ranks()
    last = read_lines(tmp_path / "run" / "events.jsonl")[-1]
    assert (last["event"], last["rank"], last["error"]) == ("failed", rank, "killed by SIGKILL")
    if rank:
        assert f"the end of {tmp_path / 'run' / 'logs' / 'rank_1.log'}:" in said
    print(f"rank {rank} killed: everything had ended after {seconds:.1f} s")


def test_ctrl_c_is_heard_while_the_ranks_still_meet(tmp_path):
    """The first rank waits for the others inside a library then, where Python raises nothing."""
    launched = Launched(tmp_path / "run")
    waited_until = time.monotonic() + 120
    while not (tmp_path / "run" / "events.jsonl").exists():
        assert launched.process.poll() is None, launched.said()
        assert time.monotonic() < waited_until
        time.sleep(0.02)
    since = time.monotonic()
    launched.process.send_signal(signal.SIGINT)
    assert launched.end() == 75, launched.said()
    assert time.monotonic() - since < 60, "the grace is 120 s"
    assert not launched.ranks()


@pytest.mark.parametrize("profile", ["cpu_ddp", "cpu_zero2", "cpu_zero3"])
def test_ctrl_c_leaves_no_orphan_and_the_same_command_ends_in_the_same_weights(profile, tmp_path):
    """Dropout is on: every rank's random states come back."""
    words = ("training.max_steps=24", "training.save_strategy=steps", "training.save_steps=100")
    stopped = Launched(tmp_path / "stopped", *words, profile=profile)
    stopped.wait_for_step(8)
    stopped.process.send_signal(signal.SIGINT)
    assert stopped.end() == 75, stopped.said()
    assert "the same command continues" in stopped.said()
    assert not stopped.ranks()
    assert not (tmp_path / "stopped" / "lock.json").exists()
    for other, number, key, said in (
        ("cpu_ddp" if profile != "cpu_ddp" else "cpu_zero2", 2, "accelerate_config", "cannot take its state"),
        (profile, 4, "num_processes_per_node", "cannot continue on 4"),
    ):
        changed = ["--on", other, f"launch.num_processes_per_node={number}", "--run-dir", tmp_path / "stopped"]
        refused = call([*FINELAUNCH, "launch", "imdb/smoke", *LONG, *words, *changed], tmp_path)
        assert refused.returncode == 2
        assert f"launch.{key}: the run was begun with" in refused.stderr
        if (profile, number) != ("cpu_ddp", 4):  # DDP may continue on another number where that is allowed
            changed += ["--allow-change", "launch"]
            permitted = call([*FINELAUNCH, "launch", "imdb/smoke", *LONG, *words, *changed], tmp_path)
            assert permitted.returncode == 2, permitted.stderr
            assert said in permitted.stderr

    again = Launched(tmp_path / "stopped", *words, profile=profile)
    whole = Launched(tmp_path / "whole", *words, profile=profile)
    assert (again.end(), whole.end()) == (0, 0), again.said() + whole.said()
    first, second = RunDirectory(tmp_path / "stopped"), RunDirectory(tmp_path / "whole")
    begun, continued = (event["from_step"] for event in read_lines(first.events) if event["event"] == "training")
    assert begun == 0
    assert 8 <= continued < 24, "the stop has saved the step that it came to"
    assert weights_hash(first) == weights_hash(second)
    assert log_of(first) == log_of(second)
    assert read_lines(first.samples) == read_lines(second.samples)
