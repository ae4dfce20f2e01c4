"""Every method through the real pipeline on one process: stopped and continued exactly, and saved small and whole."""

import json
import re
import shutil

import pytest
import torch
from integration.runs import log_of, run_recipe, signalled
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from unit.evaluation.adapted import write_base

from finelaunch.errors import BadInput, Stopped
from finelaunch.evaluation.again import evaluate_again
from finelaunch.run.files import read_lines
from finelaunch.training.placement import Placement

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

FEW = (
    "data.train.max_samples=40",
    "data.test.max_samples=16",
    "training.max_steps=8",
    "training.logging_steps=1",
    "training.eval_strategy=no",
    "training.save_strategy=steps",
    "training.save_steps=5",
    "training.save_total_limit=null",
    "evaluation.base=false",
    "evaluation.num_generations=0",
)
RUNS = {
    "lora": ("imdb/smoke", "method.name=lora"),
    "dora": ("squad_v2/smoke", "method.name=lora", "method.use_dora=true", "method.target_modules=all-linear"),
    "olora": ("imdb/smoke", "method.name=lora", "method.init_lora_weights=olora", "method.bias=all"),
    "pissa": ("domain_assistant/smoke", "method.name=lora", "method.init_lora_weights=pissa"),
    "qlora": ("imdb/smoke", "method.name=qlora"),
    "feature_extraction": ("imdb/smoke", "method.name=feature_extraction"),
    "gradual_unfreezing": ("imdb/smoke", "method.name=gradual_unfreezing"),
    "prefix_tuning": ("domain_assistant/smoke", "method.name=prefix_tuning"),
    "prompt_tuning": ("domain_assistant/smoke", "method.name=prompt_tuning"),
    "adamw_bnb_8bit": ("imdb/smoke", "training.optim=adamw_bnb_8bit"),
    "paged_adamw_8bit": ("imdb/smoke", "training.optim=paged_adamw_8bit"),
    "paged_adamw_32bit": ("imdb/smoke", "method.name=qlora", "training.optim=paged_adamw_32bit"),
}
ADAPTERS = ["lora", "dora", "olora", "pissa", "qlora", "prefix_tuning", "prompt_tuning"]
STAGE_ENDS = [2, 4, 6, 8]


def start(name, folder, *overrides):
    recipe, *own = RUNS[name]
    return run_recipe(recipe, folder, *FEW, *own, *overrides)


def tensors_of(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs that nothing stopped, by name, each made when it is asked for."""
    made, folder = {}, tmp_path_factory.mktemp("whole")

    def run(name):
        if name not in made:
            made[name] = start(name, folder / name)
        return made[name]

    return run


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_ends_in_the_same_weights(name, whole, tmp_path):
    with signalled(3), pytest.raises(Stopped):
        start(name, tmp_path / "run")
    run = start(name, tmp_path / "run")
    assert are_equal(tensors_of(run.model), tensors_of(whole(name).model))
    assert log_of(run) == log_of(whole(name))
    assert [row["from_step"] for row in read_lines(run.events) if row["event"] == "training"] == [0, 3]


@pytest.mark.parametrize(("step", "hook"), [(4, "on_step_begin"), (4, "on_train_end"), (7, "on_step_begin")])
def test_gradual_unfreezing_continues_at_the_end_of_a_stage_and_in_its_last_one(step, hook, whole, tmp_path):
    with signalled(step, hook=hook), pytest.raises(Stopped):
        start("gradual_unfreezing", tmp_path / "run")
    run = start("gradual_unfreezing", tmp_path / "run")
    assert are_equal(tensors_of(run.model), tensors_of(whole("gradual_unfreezing").model))
    assert log_of(run) == log_of(whole("gradual_unfreezing"))


def test_every_stage_trains_what_it_says(whole):
    run, base = whole("gradual_unfreezing"), tensors_of(whole("lora").model / "base")
    stages = [row for row in read_lines(run.events) if row["event"] == "stage"]
    assert [row["name"] for row in stages] == ["head", "head to layer 1", "head to layer 0", "head to embeddings"]
    assert [row["end_step"] for row in stages] == STAGE_ENDS
    belongs = {"classifier": 0, "pooler": 0, "layer.1.": 1, "layer.0.": 2, "embeddings": 3}
    before = {name.removeprefix("base_model.model."): tensor for name, tensor in base.items()}
    for number, end in enumerate(STAGE_ENDS):
        after = tensors_of(run.checkpoints / f"checkpoint-{end}")
        assert after.keys() == before.keys()
        for name, tensor in after.items():
            is_held = next(stage for part, stage in belongs.items() if part in name) > number
            assert torch.equal(tensor, before[name]) == is_held, (end, name)
        before = after
    assert are_equal(before, tensors_of(run.model))
    sizes = [(run.checkpoints / f"checkpoint-{end}" / "optimizer.pt").stat().st_size for end in STAGE_ENDS]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 3


def test_rates_of_a_stage_are_in_its_checkpoint(whole):
    checkpoint = whole("gradual_unfreezing").checkpoints / "checkpoint-5"
    groups = torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"]
    assert sorted({round(group["initial_lr"] / 1e-3, 6) for group in groups}) == [0.49, 0.7, 1.0]


def test_feature_extraction_moves_nothing_but_the_head(whole):
    base, tuned = tensors_of(whole("lora").model / "base"), tensors_of(whole("feature_extraction").model)
    moved = {name for name in tuned if not torch.equal(tuned[name], base[name])}
    assert moved == {name for name in tuned if name.startswith(("classifier.", "bert.pooler."))}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_whole_and_its_checkpoints_hold_nothing_else(name, whole):
    run = whole(name)
    manifest = json.loads(run.manifest.read_text())
    counted = manifest["parameters"]
    assert 0 < counted["trainable"] < counted["total"]
    assert f"method.name={manifest['method']['name']}" in RUNS[name]
    saved = run.checkpoints / "checkpoint-8"
    assert sorted(path.name for path in saved.glob("*.safetensors")) == ["adapter_model.safetensors"]
    with safe_open(saved / "adapter_model.safetensors", "pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    sizes = [int(torch.tensor(shape).prod()) for shape in shapes]
    assert min(sizes) > 0
    if manifest["method"].get("bias", "none") == "none":
        assert sum(sizes) == counted["trainable"]
    state = (saved / "optimizer.pt").stat().st_size
    assert 8 * counted["trainable"] <= state < 8 * counted["trainable"] + 2000 * (1 + len(sizes))
    live = json.loads(run.metrics.read_text())["eval"]
    again, _ = evaluate_again(run.model, None, Placement("cpu", "fp32", 1, 1))
    assert again["loss"] == pytest.approx(live["loss"], rel=1e-6)


def test_another_base_is_refused_and_its_own_goes_on(tmp_path):
    base = write_base(tmp_path / "base", "bert")
    words = (*FEW, f"model.name_or_path={base}", "task.max_length=48", "method.name=lora")
    whole = run_recipe("imdb/smoke", tmp_path / "whole", *words)
    model = json.loads(whole.manifest.read_text())["model"]
    assert sorted(model["newly_initialised"]) == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    ]
    assert {"base_model.model.bert.pooler.dense.weight"} <= tensors_of(whole.model).keys()
    with signalled(3), pytest.raises(Stopped):
        run_recipe("imdb/smoke", tmp_path / "run", *words)
    shutil.copytree(base, tmp_path / "kept")
    changed = tensors_of(base)
    changed["bert.embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(changed, base / "model.safetensors", {"format": "pt"})
    sentence = r"model\.name_or_path: the weights are not those that the run in .* began with"
    with pytest.raises(BadInput, match=sentence) as caught:
        run_recipe("imdb/smoke", tmp_path / "run", *words)
    assert caught.value.exit_code == 2
    (tmp_path / "kept" / "model.safetensors").replace(base / "model.safetensors")
    run = run_recipe("imdb/smoke", tmp_path / "run", *words)
    assert are_equal(tensors_of(run.model), tensors_of(whole.model))


def test_a_checkpoint_says_which_weights_it_does_not_hold(whole):
    for name, pattern in (("lora", "scratch:[0-9a-f]{64}"), ("olora", r"scratch:[0-9a-f]{64}\+[0-9a-f]{64}")):
        manifest = json.loads((whole(name).checkpoints / "checkpoint-5" / "manifest.json").read_text())
        assert re.fullmatch(pattern, manifest["base"])


def test_an_optimizer_in_8_bit_keeps_the_state_of_small_tensors_and_embeddings_in_32(whole):
    saved = torch.load(whole("adamw_bnb_8bit").checkpoints / "checkpoint-8" / "optimizer.pt", weights_only=True)
    states = [one.get("__bnb_optimizer_quant_state__", one)["state1"] for one in saved["state"].values()]
    kinds = {
        name: {state.dtype for state in states if condition(state)}
        for name, condition in {
            "small": lambda state: state.numel() < 4096,
            "words": lambda state: len(state) == 1000,
            "matrices": lambda state: tuple(state.shape) in ((64, 64), (64, 128)),
        }.items()
    }
    assert kinds == {"small": {torch.float32}, "words": {torch.float32}, "matrices": {torch.uint8}}
