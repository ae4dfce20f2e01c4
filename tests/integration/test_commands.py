"""The commands as a user types them: exit codes, what is printed, and what is never imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from unit.reporting.finished import finished_run, reviews

from finelaunch.section.lookup import names, shipped

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "evaluate", "datasets", "accelerate")


def finelaunch(*words, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "finelaunch", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=300,
        check=False,
    )


def write_score_files(folder):
    answers = [{"text": "a fox", "answer_start": 0}]
    qas = [
        {"id": "1", "question": "Who?", "is_impossible": False, "answers": answers},
        {"id": "2", "question": "Why?", "is_impossible": True, "answers": []},
    ]
    paragraphs = [{"context": "a fox runs", "qas": qas}]
    (folder / "data.json").write_text(
        json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]})
    )
    (folder / "predictions.json").write_text(json.dumps({"1": "the fox", "2": "it runs"}))


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["recipes"],
        ["recipes", "--schema"],
        ["validate", "imdb/smoke"],
        ["validate", "squad_v2/smoke", "--data", "--on", "cpu"],
        ["plan", "imdb/smoke", "--on", "cpu_zero2"],
        ["plan", "imdb/distilbert", "--on", "gpu"],
        ["launch", "imdb/smoke", "--on", "cpu_zero2", "--dry-run"],
        ["score", "predictions.json", "--task", "question_answering", "--data", "data.json", "--json"],
        ["status"],
        ["status", "--all", "--json"],
        ["compare", "one", "two"],
        ["compare", "one", "two", "--markdown"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_light_verbs_load_no_heavy_library(words, tmp_path):
    write_score_files(tmp_path)
    for name in ("one", "two"):
        finished_run(tmp_path / "runs" / name, reviews(True, False), {"accuracy": 0.5})
    script = (
        "import sys\n"
        "from finelaunch.cli import main\n"
        f"sys.argv = ['finelaunch', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_score_prints_the_official_figures(tmp_path):
    write_score_files(tmp_path)
    done = finelaunch("score", "predictions.json", "--data", "data.json", "--json", cwd=tmp_path)
    figures = json.loads(done.stdout)
    assert (figures["exact_match"], figures["HasAns_exact"], figures["NoAns_exact"], figures["total"]) == (
        50,
        100,
        0,
        2,
    )


def test_bad_input_is_one_message_and_exit_code_2(tmp_path):
    for words, said in (
        (["train", "imdb/smok"], "imdb/smoke"),
        (["train", "imdb/smoke", "training.learning_rat=1"], "training.learning_rate"),
        (["train", "imdb/smoke", "--on", "cpuu"], "'cpu'"),
        (["train", "imdb/smoke", "data.train.path=nowhere.jsonl", "--run-dir", "r", "--on", "cpu"], "data.train.path"),
        (["train", "imdb/smoke", "launch.per_device_batch_size=3", "--on", "cpu", "--run-dir", "r"], "use 2 or 4"),
        (
            ["train", "imdb/smoke", "launch.per_device_batch_size=3", "data.train.path=no.csv", "--on", "cpu"],
            "data.train",
        ),
        (["train", "imdb/smoke", "--name", "a", "--run-dir", "r"], "--name"),
        (["train", "imdb/smoke", "--on", "slurm_cpu_2x2", "--run-dir", "r"], "finelaunch launch"),
        (["chaos", "imdb/smoke", "--on", "slurm_cpu_2x2", "--run-dir", "r"], "processes of this machine"),
        (["launch", "imdb/smoke", "--on", "slurm_cpu_2x2", "--run-dir", "r"], "--cluster"),
        (["launch", "imdb/smoke", "--on", "cpu", "--wait", "--run-dir", "r"], "--wait"),
        (["plan", "imdb/smoke", "--on", "cpu", "--cluster", "local"], "--cluster"),
        (["evaluate", "nothing"], "there is no run"),
        (["predict", "nothing", "--text", "x"], "there is no run"),
        (["compare", "nothing", "nowhere"], "there is no run"),
        (["compare", "."], "no run"),
        (["score", "none.json", "--data", "none.json"], "none.json"),
    ):
        done = finelaunch(*words, cwd=tmp_path)
        assert done.returncode == 2, (words, done.stderr)
        assert said in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr, (words, done.stderr)


def test_a_rank_of_several_that_no_launcher_started_is_refused(tmp_path):
    done = finelaunch("train", "imdb/smoke", "--run-dir", tmp_path / "run", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2
    assert "environment: LOCAL_RANK: is missing" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_hub_out_of_reach_is_a_missing_requirement_that_names_what_is_missing(tmp_path):
    home = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = finelaunch("train", "imdb/distilbert", "--on", "cpu", "--run-dir", tmp_path / "run", **home)
    assert done.returncode == 3, done.stderr
    assert "stanfordnlp/imdb" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_shipped_recipe_is_valid_and_opens_with_what_it_trains_and_its_command():
    recipes = names("recipes")
    assert len(recipes) == 20
    for name in recipes:
        done = finelaunch("validate", name)
        assert done.returncode == 0, done.stderr
        text = (shipped("recipes") / f"{name}.yaml").read_text(encoding="utf-8")
        comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
        assert f"finelaunch train {name}" in comment
        assert any(word in comment for word in ("seconds", "minute", "not measured here"))


def test_the_schema_beside_the_recipes_is_the_one_of_the_code():
    from finelaunch.recipe.schema import recipe_json_schema

    assert json.loads((shipped("recipes") / "recipe.schema.json").read_text()) == recipe_json_schema()


def test_the_wheel_runs_in_an_empty_folder(tmp_path):
    wheels, site, empty = tmp_path / "wheels", tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT], check=True, timeout=300)
    wheel = next(wheels.glob("finelaunch-*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, timeout=300)
    environment = {"PYTHONPATH": str(site)}
    where = subprocess.run(
        [sys.executable, "-c", "import finelaunch; print(finelaunch.__file__)"],
        capture_output=True,
        text=True,
        cwd=empty,
        env={**os.environ, **environment},
        check=True,
    )
    assert where.stdout.startswith(str(site))
    listed = finelaunch("recipes", "--json", cwd=empty, **environment)
    assert sorted(json.loads(listed.stdout)) == names("recipes")
    on_slurm = finelaunch("plan", "imdb/smoke", "--on", "slurm_cpu_2x2", "--cluster", "local", cwd=empty, **environment)
    assert "#SBATCH --partition=debug" in on_slurm.stdout, on_slurm.stderr
    assert (site / "finelaunch" / "_data" / "slurm" / "train.sbatch").is_file()
    assert finelaunch("validate", "imdb/smoke", "--data", cwd=empty, **environment).returncode == 0
    trained = finelaunch("train", "imdb/smoke", "--on", "cpu", "--json", cwd=empty, **environment)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["train"]["steps"] > 0
    assert (empty / "runs" / "imdb-smoke" / "model" / "model.safetensors").exists()
