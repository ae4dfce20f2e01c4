"""The verb on a real recipe: real faults recover, and where something is lost it says so."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from finelaunch.chaos import session
from finelaunch.chaos.attempt import Bench, attempt_trial, expect_stop
from finelaunch.chaos.evidence import compare
from finelaunch.chaos.kinds import KINDS, Chain
from finelaunch.chaos.starts import Starts
from finelaunch.chaos.trials import Trial
from finelaunch.errors import EXIT_DONE, EXIT_STOPPED
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

pytestmark = pytest.mark.integration

RHYTHM = (
    "data.train.max_samples=50",
    "training.logging_steps=1",
    "training.save_strategy=steps",
    "training.save_steps=2",
    "training.eval_strategy=steps",
    "training.eval_steps=4",
    "evaluation.base=false",
)
WORDS = ("imdb/smoke", *RHYTHM, "--on", "cpu")


def chaos(folder, *options):
    words = [sys.executable, "-m", "finelaunch", "chaos", *WORDS, "--run-dir", str(folder), *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other take all of a small machine's time, and change nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def proved(tmp_path_factory):
    """A folder with a reference and the trials that stop a run, and what the command said of them."""
    folder = tmp_path_factory.mktemp("chaos") / "all"
    done = chaos(folder, "--fault", "kill", "--fault", "signal", "--fault", "corruption", "--count", "2", "--json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def bench(proved):
    folder = proved[0]
    facts = json.loads((folder / session.STATE).read_text())["facts"]
    return Bench.from_values(
        {"words": ["train", *WORDS], "reference": str(folder / "reference"), "facts": facts, "num_ranks": 1}
    )


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    with Starts(tmp_path_factory.mktemp("starts") / "log.txt", forks=True) as starts:
        yield starts


def test_kills_signals_and_damage_lose_nothing(proved):
    folder, summed, said = proved
    rows = summed["trials"]
    assert [(row["kind"], row["index"]) for row in rows] == [
        (kind, index) for index in range(2) for kind in ("kill", "signal", "corruption")
    ]
    assert all(row["recovered"] and row["weights_equal"] and row["log_equal"] for row in rows), said
    assert rows == read_lines(folder / "trials.jsonl")
    assert len([line for line in said.splitlines() if ": recovered, " in line]) == 6
    kills = {row["where"]: row for row in rows if row["kind"] == "kill"}
    assert set(kills) == {"step", "save"}
    assert all(row["steps_lost"] <= 1 for row in rows if row["kind"] == "signal")
    assert summed["reference"]["steps"] == 12
    assert not (folder / "trials").exists()
    assert not (folder / "repeat").exists()


def test_the_same_command_adds_what_is_missing_and_another_recipe_is_refused(proved, monkeypatch):
    folder = proved[0]
    before = (folder / "trials.jsonl").read_text()
    reference = (folder / "reference" / "metrics.json").stat().st_mtime_ns
    done = chaos(folder, "--fault", "kill", "--fault", "disk", "--count", "2")
    assert done.returncode == 0, done.stderr
    assert (folder / "reference" / "metrics.json").stat().st_mtime_ns == reference
    rows = (folder / "trials.jsonl").read_text()
    assert rows.startswith(before)
    disks = [json.loads(line) for line in rows[len(before) :].splitlines()]
    assert [row["kind"] for row in disks] == ["disk", "disk"]
    for word in ("kill", "disk", "same weights"):
        assert word in done.stdout
    other = chaos(folder, "training.seed=7")
    assert other.returncode == 2
    assert "training.seed: the trials were begun with 42, asked for is 7" in other.stderr
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # other bits
    assert "bits.threads: the trials were begun with '1', asked for is '2'" in chaos(folder).stderr
    if disks[0]["recovered"] is None:
        pytest.skip(f"no disk could be filled here: {disks[0]['not_run']}")
    assert all(row["recovered"] and row["exit_code"] in (1, 3) for row in disks)
    assert {row["when"] for row in disks} == {"begin", "later"}


def test_a_chain_of_stops_ends_where_one_go_does(bench, starts, tmp_path):
    row = attempt_trial(bench, Trial("chain", 0, 3), Chain(3), tmp_path / "chain", starts)
    assert row["recovered"], row
    assert row["num_stops"] == 3
    assert row["steps_lost"] <= 1


def test_a_fork_is_the_command(bench, starts, tmp_path):
    runs = {}
    for name, fresh in (("forked", False), ("fresh", True)):
        runs[name] = RunDirectory(tmp_path / name)
        words = [*bench.words, "--run-dir", str(runs[name].path)]
        process = starts.start(words, tmp_path / f"{name}.txt", fresh=fresh)
        assert process.wait(300) == 0
    assert set(compare(runs["forked"], runs["fresh"]).values()) == {None}
    manifests = [run.read_manifest() for run in runs.values()]
    commands = [[word.replace("forked", "fresh") for word in one.pop("command")] for one in manifests]
    assert commands[0] == commands[1]
    for key in ("engine", "parameters", "versions", "warnings", "data"):
        assert manifests[0][key] == manifests[1][key]
    outputs = [(tmp_path / f"{name}.txt").read_text().splitlines() for name in runs]
    assert len(outputs[0]) == len(outputs[1])


class TamperedWeights:
    """A run that ends well, and whose weights are others."""

    def run(self, attempt):
        attempt.finish()
        file = attempt.run.model / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)


class LostCheckpoint:
    """A run that is stopped, and whose checkpoints go."""

    def run(self, attempt):
        attempt.start()
        assert attempt.wait_until(7)
        step = attempt.strike(signal.SIGTERM, "process")
        attempt.ended()
        shutil.rmtree(attempt.run.checkpoints)
        expect_stop(attempt, step, (EXIT_STOPPED,))
        attempt.finish()


class SkippedStep:
    """A run whose log lacks a line."""

    def run(self, attempt):
        attempt.finish()
        lines = attempt.run.train_log.read_text().splitlines(keepends=True)
        attempt.run.train_log.write_text("".join(lines[:3] + lines[4:]))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (TamperedWeights(), "weights: SHA-256"),
        (LostCheckpoint(), "the newest checkpoint is of step 0"),
        (SkippedStep(), "log: line 4: "),
    ],
)
def test_what_is_lost_is_found(fault, said, bench, starts, tmp_path, monkeypatch):
    row = attempt_trial(bench, Trial("kill", 0, 5), fault, tmp_path / "trial", starts)
    assert row["recovered"] is False
    assert said in row["problems"][0]
    assert row["folder"] == str(tmp_path / "trial")
    assert (tmp_path / "trial" / "run" / "model").exists()


def test_one_trial_that_did_not_recover_fails_the_command(proved, monkeypatch, capsys):
    folder = proved[0]
    monkeypatch.setitem(KINDS, "kill", TamperedWeights())
    assert session.prove(*WORDS[:1], RHYTHM, "cpu", 1, 5, ["kill"], folder, False) == 1
    row = read_lines(folder / "trials.jsonl")[-1]
    assert (row["recovered"], row["weights_equal"], row["log_equal"]) == (False, False, True)
    said = capsys.readouterr().out
    assert "0/1" in said
    assert row["folder"] in said


def test_ctrl_c_ends_all_that_was_started_and_the_same_command_goes_on(proved):
    folder = proved[0]
    options = ("--fault", "kill", "--count", "40", "--seed", "9")
    words = [sys.executable, "-m", "finelaunch", "chaos", *WORDS, "--run-dir", str(folder), *options]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def rows():
        return [row for row in read_lines(folder / "trials.jsonl") if row["seed"] == 9]

    deadline = time.monotonic() + 300
    while not rows() or not (folder / "trials" / "kill-1" / "run" / "train_log.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= 2
    os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75, said
    assert "the same command goes on" in said
    assert not psutil.wait_procs(below, timeout=30)[1]
    (first,) = rows()
    again = chaos(folder, "--fault", "kill", "--count", "2", "--seed", "9", "--json")
    assert again.returncode == EXIT_DONE, again.stderr
    assert [row["index"] for row in rows()] == [0, 1]
    assert rows()[0] == first
