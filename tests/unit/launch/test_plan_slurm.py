"""Plans for Slurm: golden files with the exact batch script, what holds for every shipped pair, and what is refused."""

import json
import re
import shlex
from pathlib import Path

import pytest
from golden_plans import GOLDEN, compare, planned
from typer.testing import CliRunner

from finelaunch.cli import app
from finelaunch.errors import EXIT_BAD_INPUT, BadInput
from finelaunch.launch.plan import PYTHON, RUN, rank_command
from finelaunch.launch.profile import load_profile
from finelaunch.recipe.load import load_recipe
from finelaunch.section.lookup import names, shipped

pytestmark = pytest.mark.usefixtures("bare_machine")

HOSTILE = {
    "gpus": "gpus-per-task",
    "requeue": "successors",
    "successors": 2,
    "container": ["apptainer", "exec", "--nv", "/images/it's $HOME;rm -rf `pwd`.sif"],
    "account": 'a "b" # c',
    "constraint": "[x|y]&z",
    "env": {"NOTE": '$(touch x) \\ "quoted" it\'s'},
    "srun_args": ["--mpi=none", "--cpu-bind=cores"],
    "sbatch_args": ["--comment=a; b # c \\ d", "--spread-job"],
    "scratch": "/local disk/${USER}_x/$SLURM_JOB_ID",
    "exclusive": True,
    "group": "lab",
    "python": "/opt/my env/bin/python",
    "hf_home": "/proj/hf",
    "offline": False,
    "mail_user": "a@b.org",
    "mail_type": "END,FAIL",
    "qos": "long",
    "exclude": "node[3,7-9]",
}
HOSTILE_WORDS = shlex.join(f"cluster.{key}={json.dumps(value)}" for key, value in HOSTILE.items())
COMMANDS = {
    "imdb-smoke_cpu_2x2_local": "imdb/smoke --on slurm_cpu_2x2 --cluster local",
    "squad_v2-distilbert_2x4_example": "squad_v2/distilbert --on slurm_2x4 --cluster example",
    "imdb-minilm_1x4_hostile": "imdb/minilm training.global_batch_size=24 launch.num_nodes=3 "
    f"{HOSTILE_WORDS} --on slurm_1x4 --cluster example",
}
TEXTS = ("imdb-smoke_cpu_2x2_local", "imdb-minilm_1x4_hostile")


def words_of(command: str) -> tuple[str, list[str], str, str]:
    """Return the recipe, the ``key=value`` words, the profile and the cluster of a command."""
    recipe, *words, _, on, _, cluster = shlex.split(command)
    return recipe, words, on, cluster


def ran(*words: str) -> tuple[int, str]:
    """Return the exit code of the command, and what it printed or complained about."""
    done = CliRunner().invoke(app, list(words), catch_exceptions=True)
    return (
        (EXIT_BAD_INPUT, str(done.exception)) if isinstance(done.exception, BadInput) else (done.exit_code, done.stdout)
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_the_plan_is_the_golden_one(name: str) -> None:
    compare(GOLDEN / "slurm" / f"{name}.json", planned(*words_of(COMMANDS[name])).as_json() + "\n")


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_is_the_golden_one(name: str) -> None:
    compare(GOLDEN / "slurm" / f"{name}.txt", planned(*words_of(COMMANDS[name])).as_text() + "\n")


def test_every_golden_file_is_compared() -> None:
    expected = {f"{name}.json" for name in COMMANDS} | {f"{name}.txt" for name in TEXTS}
    assert {path.name for path in (GOLDEN / "slurm").iterdir()} == expected


SLURM_PROFILES = ("slurm_1x4", "slurm_2x4", "slurm_cpu_2x2")


@pytest.mark.parametrize("cluster", ["example", "local"])
@pytest.mark.parametrize("on", SLURM_PROFILES)
@pytest.mark.parametrize("recipe", names("recipes"))
def test_every_shipped_recipe_is_planned_for_every_shipped_cluster(recipe: str, on: str, cluster: str) -> None:
    plan = planned(recipe, [], on, cluster)
    profile = load_profile(on)[0]
    assert (plan.target, plan.cluster, plan.num_nodes) == ("slurm", cluster, profile.num_nodes)
    assert plan.num_processes == profile.num_processes
    cut = (plan.batch["per_device"], plan.num_processes, plan.batch["accumulation"])
    assert cut[0] * cut[1] * cut[2] == load_recipe(recipe)[0].training.global_batch_size
    assert plan.sbatch is not None
    assert plan.sbatch.startswith("#!/bin/bash\n#SBATCH --job-name=finelaunch-" + recipe.replace("/", "-"))
    assert f"#SBATCH --nodes={profile.num_nodes}\n" in plan.sbatch
    assert f"#SBATCH --ntasks-per-node={profile.num_processes_per_node}\n" in plan.sbatch
    assert ("gpu:" in plan.sbatch) == (profile.device == "cuda")
    assert ("DS_ACCELERATOR=cpu" in plan.sbatch) == (profile.device == "cpu")
    argv, environment = rank_command(plan, {RUN: "/runs/a", PYTHON: "python"})
    frozen = ("/runs/a/slurm/recipe.yaml", "--on", "/runs/a/slurm/profile.yaml", "--run-dir", "/runs/a")
    assert argv == ("python", "-m", "finelaunch", "train", *frozen)
    assert environment["RANK"] == "$SLURM_PROCID"
    assert environment["WORLD_SIZE"] == str(plan.num_processes)
    lines = plan.as_text().splitlines()
    assert [line.strip() for line in lines[-len(plan.sbatch.splitlines()) :]] == [
        line.strip() for line in plan.sbatch.splitlines()
    ]


def test_every_profile_and_cluster_of_slurm_is_tried() -> None:
    assert {name for name in names("launch") if load_profile(name)[0].target == "slurm"} == set(SLURM_PROFILES)
    assert names("slurm/clusters") == ["example", "local"]
    assert (shipped("slurm") / "train.sbatch").is_file()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_plan_and_a_dry_launch_print_the_same(name: str, form: list[str]) -> None:
    words = [*shlex.split(COMMANDS[name]), *form]
    plan = planned(*words_of(COMMANDS[name]))
    assert ran("plan", *words) == (0, (plan.as_json() if form else plan.as_text()) + "\n")
    assert ran("launch", *words, "--dry-run") == ran("plan", *words)


def test_what_may_change_is_handed_on() -> None:
    keys = ["--allow-change", "training.learning_rate"]
    _, said = ran("plan", *shlex.split(COMMANDS["imdb-smoke_cpu_2x2_local"]), *keys, "--json")
    plan = json.loads(said)
    assert plan["argv"][-2:] == keys
    assert plan["by_hand"].endswith(shlex.join(["slurm/train.sbatch", *keys]))


def test_the_cluster_of_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINELAUNCH_CLUSTER", "local")
    words = ("plan", "imdb/smoke", "--on", "slurm_cpu_2x2")
    assert ran(*words) == ran(*words, "--cluster", "local")
    assert ran("plan", "imdb/smoke", "--on", "cpu")[0] == 0, "it says where Slurm would run, not that it must"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--on slurm_2x4",
            r"--cluster: no cluster is named; .*example, local; add --cluster NAME or set FINELAUNCH_CLUSTER",
        ),
        ("--on cpu --cluster local", r"--cluster: has no effect on cpu, which is no profile for Slurm"),
        ("cluster.partition=x --on cpu", r"cluster.partition: has no effect: the profile is not one of Slurm"),
        ("cluster.partition=x", r"cluster.partition: has no effect without --on PROFILE"),
        ("--on slurm_2x4 --cluster exmaple", r"there is no cluster 'exmaple'; did you mean 'example'\?"),
        (
            "cluster.partitoin=x --on slurm_2x4 --cluster local",
            r"cluster.partitoin: .*did you mean 'partition'",
        ),
        (
            "launch.num_processes_per_node=visible --on slurm_2x4 --cluster local",
            r"launch.num_processes_per_node: visible counts the GPUs of a node, and nobody sees .*; a number",
        ),
        (
            "launch.max_run_seconds=500 --on slurm_2x4 --cluster local",
            r"launch.max_run_seconds: a job of Slurm has a time limit already, .*use cluster.time_limit",
        ),
        (
            "launch.accelerate_config=single launch.num_nodes=1 launch.num_processes_per_node=1 --on slurm_2x4 "
            "--cluster local",
            r"launch.target: slurm starts a process for each device, and single is one; inprocess; or launch.acc.*=ddp",
        ),
        (
            "cluster.time_limit=00:04:00 --on slurm_2x4 --cluster example",
            r"cluster.time_limit: 00:04:00 leaves no time for progress: 120 from signal to limit \+ 60 that Slurm may "
            r"be early \+ 120 to start \+ no save measured yet = 300 s; 00:05:00 or more; ",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(words: str, said: str) -> None:
    code, text = ran("plan", "imdb/smoke", *shlex.split(words))
    assert code == EXIT_BAD_INPUT
    assert len(text.splitlines()) == 1
    assert re.search(said, text)


def test_one_process_on_slurm_is_ddp() -> None:
    words = ["launch.num_nodes=1", "launch.num_processes_per_node=1"]
    assert planned("imdb/smoke", words, "slurm_cpu_2x2", "local").num_processes == 1


def test_a_plan_is_the_same_on_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(COMMANDS["squad_v2-distilbert_2x4_example"])
    before = planned(*words)
    for name, value in {
        "FINELAUNCH_CACHE": str(tmp_path),
        "SLURM_JOB_ID": "1",
        "SBATCH_PARTITION": "x",
        "USER": "me",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(tmp_path))  # neither Slurm nor anything else is there
    assert planned(*words) == before
