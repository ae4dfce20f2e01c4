"""Methods that fit neither task nor model nor machine: one sentence each, before anything is started."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from golden_plans import planned
from typer.testing import CliRunner

from finelaunch.cli import app
from finelaunch.errors import EXIT_BAD_INPUT, BadInput, RequirementMissing
from finelaunch.launch.check import check
from finelaunch.models.section import ModelSection
from finelaunch.models.shape import model_positions
from finelaunch.preparation import prepare
from finelaunch.recipe.load import read_overrides
from finelaunch.tasks import task_for

pytestmark = pytest.mark.usefixtures("bare_machine")
ASSISTANT, IMDB = "domain_assistant/smoke", "imdb/smoke"
RECIPES = Path(__file__).parents[3] / "recipes"
REFUSED = {
    "imdb/smoke method.name=lora method.target_modules=[query,valeu]": "command line: method.target_modules: 'valeu' "
    "matches none of the layers that take low-rank matrices; such as dense, key, query, value; did you mean 'value'?",
    "domain_assistant/smoke method.name=qlora method.target_modules=[q_proj]": "command line: method.target_modules: "
    "'q_proj' matches none of the layers that take low-rank matrices; such as c_attn, c_fc, c_proj; did you mean "
    "'c_proj'?",
    "domain_assistant/smoke method.name=lora method.rank=65": "command line: method.rank: 65 is larger than "
    "transformer.h.0.attn.c_attn, which is 64 to 192; at most 64",
    "imdb/smoke method.name=lora method.modules_to_save=[poolr]": "command line: method.modules_to_save: 'poolr' "
    "matches none of the model; such as LayerNorm, attention, bert, classifier, dense, embeddings, encoder, "
    "intermediate, key, layer, output, pooler, …; did you mean 'pooler'?",
    "imdb/smoke method.name=gradual_unfreezing method.num_stages=5": "command line: method.num_stages: 5 is more than "
    "the 4 parts of the model: head, layer 1, layer 0, embeddings; at most 4, or null",
    "imdb/smoke method.name=gradual_unfreezing training.max_steps=2": "command line: method.num_stages: 4 stages need "
    "at least 4 steps, and there are 2; train longer, or lower it",
    "domain_assistant/smoke method.name=lora method.init_lora_weights=olora": "command line: "
    "method.init_lora_weights: peft cannot take the layers of gpt2 apart by olora; default, gaussian, orthogonal or "
    "pissa",
    "imdb/smoke method.name=lora method.modules_to_save=[bert]": "command line: method.modules_to_save: 'query' lies "
    "in modules_to_save [bert], which is trained whole; save fewer modules whole, or use full\n"
    "command line: method.modules_to_save: 'value' lies in modules_to_save [bert], which is trained whole; save fewer "
    "modules whole, or use full",
    "imdb/smoke method.name=lora method.target_modules=all-linear method.modules_to_save=[encoder,pooler]": "command "
    "line: method.modules_to_save: every layer that takes low-rank matrices lies in [encoder, pooler], which is "
    "trained whole; save fewer modules whole, or use full",
    "domain_assistant/smoke method.name=prefix_tuning method.num_virtual_tokens=65": "command line: "
    "method.num_virtual_tokens: 65 and task.max_length 192 are more than the 256 positions of the model; at most 256 "
    "together; task.max_length=191",
    "domain_assistant/smoke model.config.n_positions=128": f"{RECIPES}/domain_assistant/smoke.yaml:8: task.max_length: "
    "192 is more than the 128 positions of the model; at most 128",
    "domain_assistant/smoke task.max_length=300 method.name=prefix_tuning": "command line: task.max_length: 300 is "
    "more than the 256 positions of the model; at most 256",
    "imdb/smoke method.name=prompt_tuning": "command line: method.name: prompt_tuning is offered for task causal_lm; "
    "use lora",
    "domain_assistant/smoke method.name=feature_extraction": "command line: method.name: feature_extraction has "
    "nothing to train: a causal LM has no head of its own; use full, gradual_unfreezing or lora",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_fits_nothing_is_refused_in_a_line(command: str, tmp_path: Path) -> None:
    recipe, *words = command.split()
    said = []
    for verb in ("validate", "plan", "train"):
        more = ["--run-dir", str(tmp_path / "run")] if verb == "train" else []
        on = [] if verb == "validate" else ["--on", "cpu"]
        done = CliRunner().invoke(app, [verb, recipe, *words, *on, *more])
        assert isinstance(done.exception, BadInput), done.exception
        assert done.exception.exit_code == EXIT_BAD_INPUT
        said.append(str(done.exception))
    assert said == [REFUSED[command]] * 3
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"model_type": "mpnet", "max_position_embeddings": 66, "pad_token_id": 1}, 64),
        ({"model_type": "gpt2", "n_positions": 64}, 64),
        ({"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 1}, 64),
        ({"model_type": "t5", "n_positions": 64}, None),  # its positions are relative
        ({"model_type": "xlnet"}, None),
        ({"model_type": "bert", "max_position_embeddings": "many"}, None),
    ],
)
def test_positions_are_read_from_the_config_of_any_architecture(
    config: dict[str, Any], limit: int | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_positions(ModelSection(name_or_path=str(tmp_path))) == limit
    if limit is not None:
        words = [f"model.name_or_path={tmp_path}", f"task.max_length={limit}"]
        check(IMDB, read_overrides(words), "cpu")
        with pytest.raises(BadInput, match=f"{limit + 1} is more than the {limit} positions of the model"):
            check(IMDB, read_overrides([words[0], f"task.max_length={limit + 1}"]), "cpu")


@pytest.mark.parametrize(
    "command",
    [
        "domain_assistant/smoke method.name=lora method.rank=64",
        "domain_assistant/smoke method.name=prefix_tuning method.num_virtual_tokens=64",
        "imdb/smoke method.name=gradual_unfreezing method.num_stages=4",
        "imdb/smoke method.name=gradual_unfreezing training.max_steps=4",
        "imdb/smoke method.name=gradual_unfreezing method.num_stages=2 training.max_steps=2",
        "imdb/smoke method.name=full training.max_steps=1",
        "imdb/smoke method.name=lora method.modules_to_save=[layer.0]",
        "imdb/smoke method.name=lora method.target_modules=[encoder.layer.1.output.dense]",
        # Its config is not at hand: training says it, once the model is loaded.
        "imdb/distilbert method.name=lora method.target_modules=[nowhere]",
    ],
)
def test_what_fits_just_so_is_taken(command: str) -> None:
    recipe, *words = command.split()
    check(recipe, read_overrides(words), "cpu")


def test_stages_of_a_model_that_is_not_at_hand_are_counted_where_they_are_stated() -> None:
    words = ["method.name=gradual_unfreezing", "method.num_stages=3", "training.max_steps=2"]
    with pytest.raises(BadInput, match="3 stages need at least 3 steps, and there are 2"):
        check("imdb/distilbert", read_overrides(words), "cpu")
    check("imdb/distilbert", read_overrides([words[0], words[2]]), "cpu")


def test_a_plan_knows_steps_from_the_prepared_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINELAUNCH_CACHE", str(tmp_path / "cache"))
    words = ["method.name=gradual_unfreezing", "training.num_train_epochs=0.05"]
    recipe, document = check(IMDB, read_overrides(words), "cpu")
    assert planned(IMDB, words, "cpu").steps["total"] is None
    prepare(recipe.data, recipe.model, task_for(recipe.task), recipe.task.model_dump(mode="json"), document)
    with pytest.raises(BadInput, match=r"method\.num_stages: 4 stages need at least 4 steps, and there are 2"):
        planned(IMDB, words, "cpu")
    assert planned(IMDB, [*words, "method.num_stages=2"], "cpu").steps["total"] == 2


@pytest.mark.parametrize("name", ["full", "feature_extraction", "gradual_unfreezing", "lora", "qlora"])
def test_a_plan_says_that_a_base_of_random_weights_is_held(name: str) -> None:
    said = f"method {name} holds a base whose weights are drawn (model.init: scratch): nothing was learned that could"
    found = [text for text in planned(IMDB, [f"method.name={name}"], "cpu").advice if text.startswith(said)]
    assert len(found) == (name not in ("full", "gradual_unfreezing"))
    words = [f"method.name={name}"]
    assert not any("are drawn" in text for text in planned("imdb/distilbert", words, "cpu").advice)


@pytest.mark.parametrize(
    ("package", "word", "what"),
    [
        ("peft", "method.name=lora", "method lora"),
        ("peft", "method.name=prompt_tuning", "method prompt_tuning"),
        ("bitsandbytes", "method.name=qlora", "weights in 4 bits"),
        ("bitsandbytes", "training.optim=paged_adamw_8bit", "training.optim paged_adamw_8bit"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    package: str, word: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(ASSISTANT, read_overrides([word]), "cpu")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RequirementMissing) as missing:
        check(ASSISTANT, read_overrides([word]), "cpu")
    expected = f"{what}: {package} is not installed; pip install 'finelaunch[qlora]' brings it"
    assert str(missing.value) == expected
    check(ASSISTANT, read_overrides([]), "cpu")


def test_all_that_is_wrong_is_said_at_once() -> None:
    words = ["method.name=lora", "method.target_modules=[nowhere]", "data.train.path=/nowhere.csv"]
    with pytest.raises(BadInput) as found:
        check(IMDB, read_overrides(words), "cpu")
    assert {problem.key for problem in found.value.problems} == {"method.target_modules", "data.train.path"}
