"""Plans: golden files, what holds for every shipped recipe and profile, and the command that prints them.

The golden files are ``tests/golden/plans/*.json`` and two ``.txt``; ``tests/golden_plans.py`` says how they are made.
"""

import json
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from golden_plans import GOLDEN, compare, planned
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from finelaunch.cli import app
from finelaunch.data.sampler import GlobalBatchSampler
from finelaunch.engines import load_engine
from finelaunch.errors import BadInput
from finelaunch.launch.plan import PORT, RUN, LaunchPlan, rank_command
from finelaunch.launch.profile import load_profile
from finelaunch.preparation import prepare
from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.section.lookup import names, shipped
from finelaunch.tasks import task_for

pytestmark = pytest.mark.usefixtures("bare_machine")

GPT2_MEDIUM = (
    "model.name_or_path=null model.init=scratch model.tokenizer.vocab_size=50257 "
    "'model.config={model_type: gpt2, n_embd: 1024, n_layer: 24, n_head: 16}'"
)
LLAMA_8B = (
    "model.name_or_path=null model.init=scratch model.tokenizer.vocab_size=128256 'model.config={model_type: llama, "
    "hidden_size: 4096, num_hidden_layers: 32, num_attention_heads: 32, num_key_value_heads: 8, "
    "intermediate_size: 14336, max_position_embeddings: 8192}'"
)
COMMANDS = {
    "imdb-smoke_cpu": "imdb/smoke --on cpu",
    "imdb-smoke_cpu_ddp": "imdb/smoke --on cpu_ddp",
    "imdb-smoke_cpu_zero2": "imdb/smoke --on cpu_zero2",
    "imdb-smoke_cpu_ddp_x4_accumulated": "imdb/smoke launch.num_processes_per_node=4 launch.per_device_batch_size=1 "
    "--on cpu_ddp",
    "imdb-smoke_cpu_max_steps": "imdb/smoke training.max_steps=7 --on cpu",
    "imdb-smoke_cpu_adafactor": "imdb/smoke training.optim=adafactor --on cpu",
    "imdb-smoke_cpu_time_budget": "imdb/smoke training.time_budget_minutes=5 --on cpu",
    "imdb-smoke_zero2_visible": "imdb/smoke --on zero2",
    "imdb-minilm_cpu_bf16": "imdb/minilm launch.precision=bf16 --on cpu",
    "imdb-minilm_cpu_zero1_accumulated": "imdb/minilm launch.per_device_batch_size=2 --on cpu_zero1",
    "imdb-minilm_gpu_fp16": "imdb/minilm launch.precision=fp16 launch.per_device_batch_size=8 --on gpu",
    "imdb-minilm_gpu_large_batch": "imdb/minilm training.global_batch_size=256 --on gpu",
    "imdb-minilm_ddp_x4": "imdb/minilm launch.num_processes_per_node=4 --on ddp",
    "imdb-distilbert_ddp_visible": "imdb/distilbert --on ddp",
    "imdb-distilbert_zero1_x2": "imdb/distilbert launch.num_processes_per_node=2 launch.per_device_batch_size=4 "
    "--on zero1",
    "squad_v2-smoke_cpu_zero3": "squad_v2/smoke --on cpu_zero3",
    "squad_v2-smoke_cpu_zero3_offload": "squad_v2/smoke launch.offload=all --on cpu_zero3",
    "squad_v2-minilm_zero3_x8": "squad_v2/minilm launch.num_processes_per_node=8 launch.per_device_batch_size=1 "
    "--on zero3",
    "squad_v2-minilm_zero1_offload": "squad_v2/minilm launch.offload=optimizer launch.num_processes_per_node=2 "
    "--on zero1",
    "squad_v2-minilm_fsdp2_x4_tf32": "squad_v2/minilm launch.num_processes_per_node=4 launch.per_device_batch_size=2 "
    "launch.precision=tf32 --on fsdp2",
    "squad_v2-distilbert_gpu": "squad_v2/distilbert --on gpu",
    "squad_v2-distilbert_fsdp2_visible": "squad_v2/distilbert training.max_steps=100 "
    "launch.activation_checkpointing=true launch.per_device_batch_size=4 --on fsdp2",
    "domain_assistant-smoke_cpu_zero2_offload": "domain_assistant/smoke launch.offload=optimizer --on cpu_zero2",
    "domain_assistant-smoke_zero3_visible_offload": "domain_assistant/smoke launch.offload=all --on zero3",
    "sst2-distilbert_gpu": "sst2/distilbert --on gpu",
    "support_tickets-smoke_cpu_ddp": "support_tickets/smoke --on cpu_ddp",
    "support_tickets-minilm_cpu_several_labels": "support_tickets/minilm task.multi_label=true --on cpu",
    "domain_assistant-domain_adaptation_cpu": "domain_assistant/domain_adaptation --on cpu",
    "domain_assistant-dialogpt_zero2_x2": "domain_assistant/dialogpt launch.num_processes_per_node=2 --on zero2",
    "domain_assistant-gpt2_medium_gpu_checkpointing": f"domain_assistant/dialogpt {GPT2_MEDIUM} "
    "launch.activation_checkpointing=true launch.per_device_batch_size=2 --on gpu",
    "domain_assistant-gpt2_medium_zero2_offload": f"domain_assistant/dialogpt {GPT2_MEDIUM} launch.offload=optimizer "
    "launch.num_processes_per_node=2 launch.per_device_batch_size=1 --on zero2",
    "domain_assistant-llama_8b_ddp_x8": f"domain_assistant/dialogpt {LLAMA_8B} launch.num_processes_per_node=8 "
    "--on ddp",
    "domain_assistant-llama_8b_fsdp2_checkpointing": f"domain_assistant/dialogpt {LLAMA_8B} "
    "launch.activation_checkpointing=true launch.num_processes_per_node=8 --on fsdp2",
    "imdb-feature_extraction_gpu": "imdb/feature_extraction --on gpu",
    "imdb-gradual_unfreezing_zero2_x2": "imdb/gradual_unfreezing launch.num_processes_per_node=2 launch.precision=fp32 "
    "--on zero2",
    "imdb-lora_cpu_zero3": "imdb/lora --on cpu_zero3",
    "imdb-lora_ddp_x2": "imdb/lora training.learning_rate=2e-5 launch.num_processes_per_node=2 --on ddp",
    "squad_v2-lora_gpu_dora": "squad_v2/lora method.use_dora=true --on gpu",
    "squad_v2-deberta_v3_base_gpu": "squad_v2/deberta_v3_base --on gpu",
    "squad_v2-deberta_v3_xsmall_gpu": "squad_v2/deberta_v3_xsmall --on gpu",
    "domain_assistant-lora_llama_8b_zero3_x8": f"domain_assistant/lora {LLAMA_8B} method.target_modules=all-linear "
    "launch.num_processes_per_node=8 --on zero3",
    "domain_assistant-qlora_llama_8b_gpu": f"domain_assistant/qlora {LLAMA_8B} training.optim=paged_adamw_8bit "
    "launch.per_device_batch_size=1 --on gpu",
    "domain_assistant-smoke_cpu_prefix_tuning": "domain_assistant/smoke method.name=prefix_tuning --on cpu",
}
TEXTS = ("imdb-smoke_cpu_zero2", "squad_v2-minilm_fsdp2_x4_tf32", "imdb-lora_ddp_x2")
TEXTS += ("domain_assistant-qlora_llama_8b_gpu",)
NOT_ON: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("domain_assistant/lora", "domain_assistant/qlora", "imdb/lora", "squad_v2/lora"), ("fsdp2",)),
    "imdb/feature_extraction": ("fsdp2",),
    "imdb/gradual_unfreezing": ("fsdp2", "zero1", "zero2", "zero3", "cpu_zero3"),
}
"""Profiles that refuse a shipped recipe's method."""
CPU_PROFILES = ("cpu", "cpu_ddp", "cpu_zero1", "cpu_zero2", "cpu_zero3")
PROFILES = (*CPU_PROFILES, "ddp", "fsdp2", "gpu", "zero1", "zero2", "zero3")
"""Of this machine; those of Slurm are in ``test_plan_slurm.py``."""


def words_of(command: str) -> tuple[str, list[str], str]:
    """Return the recipe, the ``key=value`` words and the profile of a command."""
    recipe, *words, _, on = shlex.split(command)
    return recipe, words, on


def printed(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.exception
    return done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_plan_is_the_golden_one(name: str) -> None:
    compare(GOLDEN / f"{name}.json", planned(*words_of(COMMANDS[name])).as_json() + "\n")


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_is_the_golden_one(name: str) -> None:
    compare(GOLDEN / f"{name}.txt", planned(*words_of(COMMANDS[name])).as_text() + "\n")


def test_the_golden_plans_are_of_every_recipe_profile_and_kind() -> None:
    cases = [words_of(command) for command in COMMANDS.values()]
    assert len(cases) == 43
    assert {recipe for recipe, _, _ in cases} == set(names("recipes"))
    assert {on for _, _, on in cases} == set(PROFILES)
    expected = {f"{name}.json" for name in COMMANDS} | {f"{name}.txt" for name in TEXTS}
    assert {path.name for path in GOLDEN.iterdir() if path.is_file()} == expected
    plans = [json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8")) for name in COMMANDS]
    assert {"fp32", "tf32", "bf16", "fp16", "auto"} == {plan["precision"] for plan in plans}
    assert {"none", "optimizer", "all"} == {plan["engine"]["offload"] for plan in plans}
    assert sum((plan["batch"]["accumulation"] or 0) > 1 for plan in plans) >= 5
    assert sum(plan["num_processes"] is None for plan in plans) >= 3
    said = " ".join(text for plan in plans for text in plan["advice"])
    assert all(word in said for word in ("launch.accelerate_config=ddp", "activations are the largest", "zero3 "))
    assert {plan["method"]["name"] for plan in plans} == {
        *("full", "feature_extraction", "gradual_unfreezing", "lora", "qlora", "prefix_tuning")
    }


def as_shipped() -> list[tuple[str, str, int | None]]:
    """Return every shipped recipe on every shipped profile; those of ``visible`` GPUs with numbers of processes too."""
    cases: list[tuple[str, str, int | None]] = []
    for recipe in names("recipes"):
        for on in [name for name in PROFILES if name not in NOT_ON.get(recipe, ())]:
            is_visible = load_profile(on)[0].num_processes_per_node == "visible"
            cases += [(recipe, on, count) for count in ((None, 1, 2, 4) if is_visible else (None,))]
    return cases


def test_every_shipped_recipe_and_profile_is_tried() -> None:
    pairs = {(recipe, on) for recipe, on, _ in as_shipped()}
    assert len(pairs) == 20 * 11 - 10
    assert len(as_shipped()) == 20 * (6 + 5 * 4) - 9 * 4 - 1
    assert len(names("recipes")) == len(list(shipped("recipes").rglob("*.yaml"))) == 20
    slurm = {name for name in names("launch") if load_profile(name)[0].target == "slurm"}
    assert len(slurm) == 3
    assert set(names("launch")) == slurm | set(PROFILES)
    assert len(names("launch")) == len(list(shipped("launch").rglob("*.yaml"))) == 14


@pytest.mark.parametrize(("recipe", "on"), [(recipe, on) for recipe, those in NOT_ON.items() for on in those])
def test_an_engine_that_a_method_cannot_use_is_refused_with_another(recipe: str, on: str) -> None:
    with pytest.raises(BadInput, match=r"launch\.(accelerate_config|precision): .*use .*ddp") as error:
        planned(recipe, [], on)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(("recipe", "on", "processes"), as_shipped())
def test_every_shipped_pair_makes_a_plan_that_adds_up(recipe: str, on: str, processes: int | None) -> None:
    words = [f"launch.num_processes_per_node={processes}"] if processes else []
    plan = planned(recipe, words, on)
    profile = load_profile(on, read_overrides(words)["launch"])[0]
    engine = "single" if on in ("cpu", "gpu") else on.removeprefix("cpu_")
    assert plan.engine["name"] == engine == load_engine(profile.accelerate_config).name
    assert plan.engine["backend"] == (None if engine == "single" else "gloo" if on in CPU_PROFILES else "nccl")
    assert (plan.engine["deepspeed"] is not None) == engine.startswith("zero")
    assert (plan.engine["fsdp"] is not None) == (engine == "fsdp2")
    assert plan.num_processes == profile.num_processes
    assert_adds_up(plan, load_recipe(recipe)[0].training.global_batch_size)
    assert_runs_anywhere(plan)
    assert json.loads(plan.as_json()) == json.loads(json.dumps(asdict(plan)))
    assert all(text in plan.as_text() for text in (plan.by_hand, plan.batch["arithmetic"], plan.memory["text"]))
    for rank in range(plan.num_processes or 0):
        argv, environment = rank_command(
            plan, {RUN: "/runs/a", PORT: "29500", "<python>": "python", "<rank>": f"{rank}"}
        )
        assert argv[:4] == ("python", "-m", "finelaunch", "train")
        assert argv[argv.index("--run-dir") + 1] == "/runs/a"
        assert environment.get("RANK", f"{rank}") == f"{rank}"
        assert "<" not in " ".join(argv)


def assert_adds_up(plan: LaunchPlan, global_batch_size: int) -> None:
    """Check the numbers of a plan against each other."""
    assert plan.batch["global"] == global_batch_size
    if plan.num_processes is None:
        assert (plan.batch["accumulation"], plan.memory["total"], plan.traffic["total"]) == (None, None, None)
        assert "unknown until launch.num_processes_per_node is a number" in plan.batch["arithmetic"]
    else:
        cut = (plan.batch["per_device"], plan.num_processes, plan.batch["accumulation"])
        assert cut[0] * cut[1] * cut[2] == global_batch_size
        said = re.fullmatch(
            r"global batch (\d+) = (\d+) per device x (\d+) process(?:es)? x (\d+) accumulated",
            plan.batch["arithmetic"],
        )
        assert said is not None
        assert tuple(map(int, said.groups())) == (global_batch_size, *cut)
    if plan.memory["total"] is not None:
        parts = ("weights", "gradients", "optimizer", "activations", "working")
        assert plan.memory["total"] == sum(plan.memory[part] for part in parts)
        assert plan.traffic["total"] == plan.traffic["gradients"] + plan.traffic["weights"]
        assert (plan.traffic["total"] == 0) == (plan.num_processes == 1)
    if plan.steps["epoch"] is None:
        assert "unknown" in plan.steps["text"]


def assert_runs_anywhere(plan: LaunchPlan) -> None:
    """Check that nothing of a plan is this machine's: no path, no port, no interpreter, no number of cores."""
    assert plan.argv[:4] == ("<python>", "-m", "finelaunch", "train")
    assert plan.argv[-4:] == ("--on", plan.profile, "--run-dir", "<run>")
    text = plan.as_json()
    for mine in (sys.executable, sys.prefix, str(Path.home()), str(Path.cwd()), str(shipped("recipes").parent)):
        assert mine == "/" or mine not in text
    assert not any(word.startswith(("/", "~")) or "--port" in word for word in plan.argv)
    if plan.target == "inprocess":
        assert plan.environment == {}
        return
    world = "<visible GPUs>" if plan.num_processes is None else str(plan.num_processes)
    assert plan.environment["WORLD_SIZE"] == plan.environment["LOCAL_WORLD_SIZE"] == world
    assert (plan.environment["MASTER_PORT"], plan.environment["RANK"]) == ("<port>", "<rank>")
    assert plan.environment["OMP_NUM_THREADS"].startswith("<")
    assert ("DS_ACCELERATOR" in plan.environment) == (plan.device == "cpu")


@pytest.mark.parametrize("on", [on for on in PROFILES if on not in ("cpu", "gpu")])
def test_three_processes_cut_no_shipped_recipe_and_are_refused_in_a_line(on: str) -> None:
    for recipe in [name for name in names("recipes") if on not in NOT_ON.get(name, ())]:
        with pytest.raises(BadInput) as caught:
            planned(recipe, ["launch.num_processes_per_node=3"], on)
        assert len(caught.value.problems) == 1
        assert re.fullmatch(
            r"command line: training.global_batch_size: \d+ is not divisible by 3 processes x \d+ per device = \d+; "
            r"use \d+ or \d+, or another number of processes",
            str(caught.value),
        )


@given(
    size=st.integers(1, 5000),
    per_device=st.none() | st.integers(1, 64),
    processes=st.integers(1, 64),
    on=st.sampled_from([on for on in PROFILES if on not in ("cpu", "gpu")]),
)
def test_a_cut_adds_up_or_is_refused_in_a_line(size: int, per_device: int | None, processes: int, on: str) -> None:
    words = [f"training.global_batch_size={size}", f"launch.num_processes_per_node={processes}"]
    words += [f"launch.per_device_batch_size={per_device}"] if per_device else []
    if size % (processes * (per_device or max(1, size // processes))):
        with pytest.raises(BadInput) as caught:
            planned("imdb/smoke", words, on)
        assert len(caught.value.problems) == len(str(caught.value).splitlines()) == 1
        return
    plan = planned("imdb/smoke", words, on)
    assert_adds_up(plan, size)
    assert_runs_anywhere(plan)


@pytest.mark.parametrize("recipe_name", ["imdb/smoke", "squad_v2/smoke", "domain_assistant/smoke"])
def test_the_steps_of_prepared_data_are_those_of_the_run(
    recipe_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINELAUNCH_CACHE", str(tmp_path))
    assert planned(recipe_name, [], "cpu").steps == {
        "epoch": None,
        "total": None,
        "text": "those of an epoch are unknown until the data is encoded; train and launch prepare it first",
    }
    recipe, document = load_recipe(recipe_name)
    values = recipe.task.model_dump(mode="json")
    prepared = prepare(recipe.data, recipe.model, task_for(recipe.task), values, document)
    features, size = prepared.splits["train"].features, recipe.training.global_batch_size
    sampler = GlobalBatchSampler(features.lengths, size, size, seed=0)
    epoch, total = sampler.num_global_batches, num_steps_of(sampler, recipe.training)
    if recipe_name == "imdb/smoke":
        assert (epoch, total) == (34, 68)
    assert len(features) == prepared.report["splits"]["train"]["num_features"]
    for on in ("cpu", "cpu_zero2", "fsdp2"):
        plan = planned(recipe_name, [], on)
        assert plan.steps == {"epoch": epoch, "total": total, "text": f"{epoch} an epoch, {total} in all"}
        few = planned(recipe_name, ["training.max_steps=5"], on)
        assert few.steps == {"epoch": epoch, "total": 5, "text": f"{epoch} an epoch, 5 in all"}
    part = planned(recipe_name, ["training.num_train_epochs=1.3"], "cpu").steps["total"]
    longer = recipe.training.model_copy(update={"num_train_epochs": 1.3})
    assert part == num_steps_of(sampler, longer)
    assert f"{epoch} an epoch, {total} in all" in printed("plan", recipe_name, "--on", "cpu_ddp")


@pytest.mark.parametrize("also", [[], ["training.time_budget_minutes=5"]])
def test_the_steps_tell_of_packs_and_of_an_early_end(
    also: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINELAUNCH_CACHE", str(tmp_path))
    name, words = "domain_assistant/smoke", ["task.packing=true", *also]
    patience = ["training.metric_for_best_model=loss", "training.early_stopping_patience=2"]
    steps = [planned(name, given, "cpu").steps["text"] for given in ([], words, [*words, *patience])]
    assert "pack" not in steps[0] + planned(name, patience, "cpu").steps["text"]
    assert steps[1].endswith("; a row of the global batch is a pack (task.packing)")
    assert steps[2] == f"{steps[1]}; fewer with no better loss for 2 evaluations"
    recipe, document = load_recipe(name, read_overrides(words)["recipe"])
    prepare(recipe.data, recipe.model, task_for(recipe.task), recipe.task.model_dump(mode="json"), document)
    known = planned(name, [*words, *patience], "cpu").steps
    said = re.search(
        r"an epoch, .* is a pack \(task.packing: 65 rows in (\d+) packs of .*\); fewer with", known["text"]
    )
    assert said is not None
    assert known["epoch"] == -(-int(said[1]) // recipe.training.global_batch_size)
    assert known["text"] in printed("plan", name, *words, *patience, "--on", "cpu")


def num_steps_of(sampler: GlobalBatchSampler, training: Any) -> int:
    """Return the steps that a run announces and takes."""
    from finelaunch.training.train import num_steps

    return num_steps(sampler, training)


def test_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be known without it is said to be unknown; asking took 25 s where there is no network."""
    import datasets

    monkeypatch.setattr(datasets, "load_dataset_builder", None)
    for recipe in ("imdb/distilbert", "squad_v2/distilbert"):
        plan = planned(recipe, ["training.max_steps=9"], "gpu")
        said = "9 in all; those of an epoch are unknown, as the data is the hub's; train and launch prepare it first"
        assert plan.steps == {"epoch": None, "total": 9, "text": said}
        assert plan.memory["text"] == (
            "unknown: the config of distilbert-base-uncased is not on this machine; finelaunch train fetches it"
        )


def test_a_config_in_the_hub_cache_makes_the_size_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--distilbert-base-uncased"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text('{"model_type": "distilbert"}')
    plan = planned("imdb/distilbert", [], "gpu")
    assert plan.memory["num_parameters"] == 66_955_010
    assert_adds_up(plan, 16)


@pytest.mark.parametrize("name", ["imdb-smoke_cpu", "imdb-minilm_ddp_x4", "squad_v2-distilbert_fsdp2_visible"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_plan_and_a_dry_launch_print_the_same(name: str, form: list[str]) -> None:
    words = shlex.split(COMMANDS[name])
    plan = planned(*words_of(COMMANDS[name]))
    assert printed("plan", *words, *form) == (plan.as_json() if form else plan.as_text()) + "\n"
    assert printed("launch", *words, *form, "--dry-run") == printed("plan", *words, *form)


@pytest.mark.parametrize("on", ["cpu", "cpu_ddp", "fsdp2"])
def test_what_may_change_is_handed_on(on: str) -> None:
    words = ["imdb/smoke", "--on", on, "--json"]
    keys = ["--allow-change", "training.learning_rate", "--allow-change", "launch"]
    dry, plain = (json.loads(printed("launch", *words, *extra, "--dry-run")) for extra in (keys, []))
    assert dry["argv"] == [*plain["argv"], *keys]
    assert dry["by_hand"] == shlex.join([plain["by_hand"], *keys]).replace("'", "")
    assert {**dry, "argv": plain["argv"], "by_hand": plain["by_hand"]} == plain
    assert json.loads(printed("plan", *words, *keys)) == dry


def test_the_command_by_hand_survives_a_shell() -> None:
    words = ["data.train.columns={text: review}"]
    plan = planned("imdb/smoke", words, "cpu_ddp")
    expected = ["torchrun", "--nproc-per-node", "2", "-m", "finelaunch", "train", "imdb/smoke"]
    assert shlex.split(plan.by_hand) == [*expected, *words, "--on", "cpu_ddp"]
