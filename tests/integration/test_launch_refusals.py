"""What ``finelaunch launch`` refuses, as a user meets it: an exit code, one line, no run directory, no process."""

import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from finelaunch.launch.profile import load_profile
from finelaunch.recipe.load import load_recipe
from finelaunch.run.directory import RunDirectory
from finelaunch.section.lookup import shipped

pytestmark = pytest.mark.integration

MARK = "FINELAUNCH_TEST_MARK"


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Launch on a machine without GPUs, with run directory and cache in ``folder``, and see that no process is left."""
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [sys.executable, "-m", "finelaunch", "launch", *words, "--run-dir", "run"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "FINELAUNCH_CACHE": str(folder / "cache"), MARK: mark},
        timeout=120,
        check=False,
    )
    assert not processes_with(mark)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def processes_with(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def assert_refused(folder: Path, exit_code: int, said: str, *words: str) -> None:
    before = sorted(folder.iterdir())
    done = launch(folder, *words)
    assert done.returncode == exit_code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert sorted(folder.iterdir()) == before


PROFILE = shipped("launch")


@pytest.mark.parametrize(
    ("exit_code", "words", "said"),
    [
        (3, ["--on", "gpu"], "launch.device: no GPU is visible here; use --on cpu, or check nvidia-smi"),
        (3, ["--on", "ddp"], "launch.device: no GPU is visible here; use --on cpu_ddp, or check nvidia-smi"),
        (3, ["--on", "zero2"], "launch.device: no GPU is visible here; use --on cpu_zero2, or check nvidia-smi"),
        (3, ["launch.num_processes_per_node=4", "--on", "zero3"], "no GPU is visible here; use --on cpu_zero3"),
        (
            2,
            ["--on", "fsdp2"],
            f"{PROFILE}/fsdp2.yaml:3: launch.accelerate_config: no GPU is visible here, and accelerate has no FSDP "
            "without a GPU and would run plain DDP; use --on cpu_zero3, which cuts the weights on CPUs",
        ),
        (
            2,
            ["launch.num_processes_per_node=3", "--on", "cpu_ddp"],
            "command line: training.global_batch_size: 8 is not divisible by 3 processes x 2 per device = 6; use 6 or "
            "12, or another number of processes",
        ),
        (
            2,
            ["launch.per_device_batch_size=3", "--on", "cpu_zero2"],
            "command line: launch.per_device_batch_size: global_batch_size 8 is not divisible by 2 processes x 3 per "
            "device; use 2 or 4, or training.global_batch_size=6 or 12",
        ),
        (
            2,
            ["--on", "cpu_ddpp"],
            "command line: profile: there is no profile 'cpu_ddpp'; did you mean 'cpu_ddp'?",
        ),
        (
            2,
            ["launch.num_nodes=2", "--on", "cpu_ddp"],
            "command line: launch.num_nodes: torchrun on 2 machines is started by hand on each of them",
        ),
        (
            2,
            ["launch.target=torchrun", "--on", "cpu"],
            "command line: launch.target: torchrun starts a process for each device, and single is one; inprocess",
        ),
        (
            2,
            ["launch.offload=optimizer", "--on", "cpu_ddp"],
            "command line: launch.offload: ddp cannot offload 'optimizer'; none; use zero1, zero2 or zero3",
        ),
        (
            2,
            ["launch.offload=all", "--on", "fsdp2"],
            "command line: launch.offload: fsdp2 cannot offload 'all'; none; use zero1, zero2 or zero3",
        ),
        (
            2,
            ["launch.precision=fp16", "--on", "fsdp2"],
            "command line: launch.precision: fsdp2 in fp16 cannot be resumed: its loss scaling does not go with its "
            "checkpoints; bf16, fp32, tf32 or auto; or use zero3",
        ),
        (
            2,
            ["--port", "29500", "--on", "cpu"],
            "command line: --port: cpu is one process, which meets nobody; leave it out",
        ),
        (2, ["launch.num_procs=2", "--on", "cpu_ddp"], "command line: launch.num_procs: unknown key; "),
    ],
)
def test_what_cannot_be_launched_is_refused_before_anything_begins(
    exit_code: int, words: Sequence[str], said: str, tmp_path: Path
) -> None:
    assert_refused(tmp_path, exit_code, said, "imdb/smoke", *words)


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as held:
        port = held.getsockname()[1]
        said = f"command line: --port: port {port} cannot be used: Address already in use; leave it out for a free one"
        assert_refused(tmp_path, 2, said, "imdb/smoke", "--on", "cpu_ddp", "--port", str(port))


@pytest.mark.parametrize("port", ["0", "70000", "-1", "http"])
def test_what_is_no_port_is_refused_with_the_usage(port: str, tmp_path: Path) -> None:
    done = launch(tmp_path, "imdb/smoke", "--on", "cpu_ddp", "--port", port)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("Error: Invalid value for '--port'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("mixed_precision: bf16", "mixed_precision: an engine states neither device nor precision; leave it out, and"),
        ("use_cpu: true", "use_cpu: an engine states neither device nor precision; leave it out, and"),
        ("deepspeed_config: {zero_stage: 2}", "deepspeed_config: has no effect with distributed_type: MULTI_GPU"),
        ("num_process: 3", "num_process: unknown key; did you mean 'num_processes'?"),
    ],
)
def test_an_accelerate_config_that_contradicts_is_refused(line: str, said: str, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(f"distributed_type: MULTI_GPU\nnum_processes: 2\n{line}\n")
    words = ["imdb/smoke", "launch.accelerate_config=mine.yaml", "--on", "cpu_ddp"]
    assert_refused(tmp_path, 2, f"mine.yaml:3: {said}", *words)


def begun(folder: Path, changes: Mapping[str, object], *events: str) -> RunDirectory:
    """Return a run as one of imdb/smoke on cpu_ddp leaves it after ``events``."""
    run = RunDirectory(folder / "run")
    profile = load_profile("cpu_ddp")[0].model_dump(mode="json")
    run.begin(load_recipe("imdb/smoke")[0].model_dump(mode="json"), {**profile, **changes}, ["finelaunch"])
    for event in events:
        run.record(event)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_was_begun_with_another_number_of_processes_is_refused_and_kept(tmp_path: Path) -> None:
    run = begun(tmp_path, {"num_processes_per_node": 4}, "started", "training")
    before = contents(run.path)
    said = (
        "run: launch.num_processes_per_node: the run was begun with 4, asked for is 2; --fresh begins anew and keeps "
        "the old run, --name names another, --allow-change KEY permits one"
    )
    assert_refused(tmp_path, 2, said, "imdb/smoke", "--on", "cpu_ddp")
    assert contents(run.path) == before


def test_a_word_that_is_no_key_permits_nothing(tmp_path: Path) -> None:
    begun(tmp_path, {"num_processes_per_node": 4}, "started", "training")
    words = ["imdb/smoke", "--on", "cpu_ddp", "--allow-change", "launch.num_process_per_node"]
    assert_refused(tmp_path, 2, "is no key; did you mean 'launch.num_processes_per_node'?", *words)


def test_a_finished_run_of_another_number_of_processes_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    begun(tmp_path, {"num_processes_per_node": 4}, "started", "training", "finished")
    words = ["imdb/smoke", "--on", "cpu_ddp", "--allow-change", "launch"]
    assert_refused(tmp_path, 2, "the run was begun with 4, asked for is 2", *words)


def test_a_fresh_launch_that_is_refused_leaves_the_old_run_where_it_is(tmp_path: Path) -> None:
    run = begun(tmp_path, {}, "started", "training", "finished")
    before = contents(run.path)
    with socket.create_server(("", 0)) as held:
        port = str(held.getsockname()[1])
        said = f"port {port} cannot be used: Address already in use"
        assert_refused(tmp_path, 2, said, "imdb/smoke", "--on", "cpu_ddp", "--fresh", "--port", port)
    assert_refused(tmp_path, 2, "--port: cpu is one process", "imdb/smoke", "--on", "cpu", "--fresh", "--port", port)
    assert_refused(tmp_path, 3, "no GPU is visible here", "imdb/smoke", "--on", "gpu", "--fresh")
    assert contents(run.path) == before


def test_a_finished_run_says_so_and_is_kept(tmp_path: Path) -> None:
    run = begun(tmp_path, {}, "started", "training", "finished")
    figures = {"accuracy": 0.5, "loss": 0.7}
    run.metrics.write_text(
        json.dumps(
            {"task": "text_classification", "base": figures, "validation": figures, "eval": figures, "train": {}}
        )
    )
    before = contents(run.path)
    done = launch(tmp_path, "imdb/smoke", "--on", "cpu_ddp")
    assert done.returncode == 0, done.stderr
    assert "run is finished; --fresh trains anew, --name NAME beside it" in done.stderr
    assert "run directory: run" in done.stdout
    assert {name: content for name, content in contents(run.path).items() if name in before} == before
