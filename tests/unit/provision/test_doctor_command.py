"""The verb as a user types it, on a machine without Slurm."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration


def doctor(*words, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "finelaunch", "doctor", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PATH": "/no/such/folder", "CUDA_VISIBLE_DEVICES": "", **environment},
        timeout=120,
        check=False,
    )


def states(done):
    return {(check["name"], check["state"]) for check in json.loads(done.stdout)["checks"]}


def test_a_machine_and_a_recipe(tmp_path):
    done = doctor("imdb/smoke", "--on", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert all(line.split()[0] in ("ok", "warning") for line in lines[:-1]), done.stdout
    assert lines[-1].endswith("ok")
    assert "checkpoints of" in done.stdout
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_the_same_for_programs(tmp_path):
    done = doctor("--json", "--on", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["passed"] is True
    assert set(answer["checks"][0]) == {"name", "state", "text", "remedy"}


def test_a_requirement_that_fails(tmp_path):
    done = doctor("imdb/smoke", "--on", "gpu", "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert {("devices", "failed"), ("python", "ok")} <= states(done)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o555)
    done = doctor("--on", "cpu", "--json", cwd=tmp_path, FINELAUNCH_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 3
    assert ("cache", "failed") in states(done)


def test_a_cluster_without_slurm_fails_and_the_rest_is_told(tmp_path):
    done = doctor("imdb/smoke", "--on", "slurm_cpu_2x2", "--cluster", "local", "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert {("slurm", "failed"), ("sacct", "warning"), ("python", "ok")} <= states(done)
    text = " ".join(check["text"] for check in json.loads(done.stdout)["checks"])
    assert "sbatch: is not installed here" in text


def test_nodes_cannot_be_asked_without_slurm(tmp_path):
    done = doctor("--on", "slurm_cpu_2x2", "--cluster", "local", "--nodes", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert ("nodes", "failed") in states(done)
    assert list(tmp_path.iterdir()) == []


def test_no_profile_is_written_where_there_is_no_slurm(tmp_path):
    done = doctor("--cluster", "mine", "--write", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("there is no Slurm here")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--write"], "add --cluster NAME"),
        (["--write", "--cluster", "a\nb"], "is no name"),
        (["imdb/smoke", "--write", "--cluster", "x"], "RECIPE: has no effect with --write"),
        (["--force"], "has no effect without --write"),
        (["--nodes"], "add --cluster NAME"),
        (["--on", "slurm_cpu_2x2"], "no cluster is named"),
        (["imdb/smok"], "did you mean 'imdb/smoke'?"),
        (["imdb/smoke", "training.learning_rat=1"], "did you mean"),
        (["imdb/smoke", "--on", "slurm_cpu_2x2", "--cluster", "local", "cluster.partitio=x"], "did you mean"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, words, says):
    done = doctor(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_it_loads_neither_torch_nor_transformers(tmp_path):
    verb = "from finelaunch.cli import app; app(['doctor', 'imdb/smoke', '--on', 'cpu'], standalone_mode=False)"
    loaded = "print(sorted({'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules)), file=sys.stderr)"
    code = f"import sys; {verb}; {loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_no_secret_is_printed(tmp_path):
    secrets = {"HF_TOKEN": "hf_canary", "WANDB_API_KEY": "wandb-canary", "https_proxy": "http://u:canary@127.0.0.1:9"}
    for words in ([], ["--cluster", "local", "--nodes", "--on", "slurm_cpu_2x2", "--json"]):
        done = doctor(*words, cwd=tmp_path, **secrets)
        assert "canary" not in done.stdout + done.stderr
