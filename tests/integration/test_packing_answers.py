"""Packs and answers in whole runs: exact when they are stopped, answers without a trace in training, refusals."""

import json
import os
import signal

import pytest
import yaml
from integration.runs import curve, heard, log_of, run_recipe, scalars_of, signalled, weights_hash

from finelaunch.errors import BadInput, Stopped
from finelaunch.evaluation import answers as answers_module
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.section.lookup import shipped

pytestmark = pytest.mark.integration

RECIPE = "domain_assistant/smoke"
PACKED = ("task.packing=true", "task.max_length=600", "model.config.n_positions=640", "training.global_batch_size=4")
RHYTHM = (
    "training.logging_steps=1",
    "training.save_strategy=steps",
    "training.save_steps=2",
    "training.eval_strategy=no",
    "evaluation.base=false",
)
WORDS = (*PACKED, *RHYTHM)
STEPS_AN_EPOCH = 5
END_OF_EPOCH, WITHIN_EPOCH = 5, 7


def mixing_recipe(folder):
    """Write the recipe with an architecture whose documents see each other, and return its path."""
    recipe = yaml.safe_load((shipped("recipes") / f"{RECIPE}.yaml").read_text())
    shape = {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    recipe["model"]["config"] = shape
    (folder / "falcon.yaml").write_text(yaml.safe_dump(recipe))
    return str(folder / "falcon.yaml")


def pages_of(run):
    """Return the page of tensorboard at every step that has one."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard), size_guidance={"tensors": 0}).Reload()
    return {event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors("answers/text_summary")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing stopped, dropout on."""
    return run_recipe(RECIPE, tmp_path_factory.mktemp("whole") / "run", *WORDS)


def test_what_a_packed_run_says_of_itself(whole):
    report = json.loads(whole.data_report.read_text())["splits"]
    train, validation = report["train"], report["validation"]
    assert train["num_features"] == 17 < train["num_examples"] == 65
    assert validation["num_features"] == validation["num_examples"] == 5
    said = "65 rows in 17 packs of at most 600 tokens"
    assert said in train["packing"] == whole.read_manifest()["data"]["train"]["packing"]
    rows = [row for line in read_lines(whole.samples) if line["epoch"] == 0 for row in line["rows"]]
    assert sorted(rows) == list(range(17))
    assert len(curve(whole)) == 2 * STEPS_AN_EPOCH
    log = whole.log.read_text()
    assert f"INFO finelaunch: task.packing: {said}" in log
    assert "warning: data.train" not in log
    assert "a row is a pack of 3.82 examples: a step sees 15 of them" in log
    assert sorted(row["padding_fraction"] for row in read_lines(whole.train_log))[7] < 0.15  # 2 of 10 are filled up
    assert not json.loads((whole.model / "config.json").read_text())["use_cache"]


def test_the_same_prompts_are_answered_before_training_and_after_each_epoch(whole):
    rows = read_lines(whole.answers)
    assert [(row["step"], row["epoch"]) for row in rows] == [(0, 0), (0, 0), (5, 1), (5, 1), (10, 2), (10, 2)]
    assert all(rows[at]["id"] == rows[at + 2]["id"] for at in range(4))
    first = RunDirectory(whole.path).read_manifest()["answers"]
    assert (first["prompts"], first["num_prompts"], first["max_new_tokens"]) == ("data.validation", 2, 16)
    assert all(row["reference"] and row["prompt"] and isinstance(row["answer"], str) for row in rows)
    assert [event["step"] for event in read_lines(whole.events) if event["event"] == "answered"] == [0, 5, 10]
    pages = pages_of(whole)
    assert sorted(pages) == [0, 5, 10]
    heading, _, *lines = pages[10].splitlines()
    assert heading == "| prompt | reference | untuned | epoch 1 (step 5) | epoch 2 (step 10) |"
    assert len(lines) == 2
    assert pages[0].splitlines()[0] == "| prompt | reference | untuned |"


@pytest.mark.parametrize("step", [END_OF_EPOCH, WITHIN_EPOCH])
def test_a_stopped_run_ends_in_the_same_weights_log_and_answers(step, whole, tmp_path):
    with signalled(step), pytest.raises(Stopped):
        run_recipe(RECIPE, tmp_path / "run", *WORDS)
    before = read_lines(RunDirectory(tmp_path / "run").answers)
    assert [row["step"] for row in before] == [0, 0] + [5, 5] * (step > END_OF_EPOCH)
    run = run_recipe(RECIPE, tmp_path / "run", *WORDS)
    assert weights_hash(run) == weights_hash(whole)
    assert log_of(run) == log_of(whole)
    assert read_lines(run.samples) == read_lines(whole.samples)
    assert read_lines(run.answers) == read_lines(whole.answers)
    assert pages_of(run) == pages_of(whole)
    assert scalars_of(run) == scalars_of(whole)


def test_a_stop_while_prompts_are_answered_is_made_up_for(whole, tmp_path, monkeypatch):
    original = answers_module.generate

    def signalled_generate(*given):
        if read_lines(RunDirectory(tmp_path / "run").answers):  # the untuned model's are there
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given)

    with heard(), monkeypatch.context() as patch:
        patch.setattr(answers_module, "generate", signalled_generate)
        with pytest.raises(Stopped, match="step 5 is saved"):
            run_recipe(RECIPE, tmp_path / "run", *WORDS)
    assert [row["step"] for row in read_lines(RunDirectory(tmp_path / "run").answers)] == [0, 0]
    run = run_recipe(RECIPE, tmp_path / "run", *WORDS)
    assert weights_hash(run) == weights_hash(whole)
    assert read_lines(run.answers) == read_lines(whole.answers)


def test_answers_of_later_steps_are_dropped_and_training_is_the_same_without_any(whole, tmp_path):
    silent = run_recipe(RECIPE, tmp_path / "silent", *WORDS, "evaluation.num_generations=0")
    assert not silent.answers.exists()
    assert weights_hash(silent) == weights_hash(whole)
    assert log_of(silent) == log_of(whole)

    with signalled(WITHIN_EPOCH), pytest.raises(Stopped):
        run_recipe(RECIPE, tmp_path / "run", *WORDS)
    run = RunDirectory(tmp_path / "run")
    rows = read_lines(run.answers)
    run.answers.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[-1], "step": 9, "answer": "x"}]))
    prompts = "evaluation.sample_prompts=['What is srun?', 'How do I ask for a GPU?']"
    run_recipe(RECIPE, run.path, *WORDS, prompts, allow_change=["evaluation.sample_prompts"])
    assert weights_hash(run) == weights_hash(whole)
    after = read_lines(run.answers)
    assert after[: len(rows)] == rows
    assert [(row["step"], row["id"], row["reference"]) for row in after[len(rows) :]] == [
        (10, "prompt-1", None),
        (10, "prompt-2", None),
    ]


def test_an_architecture_whose_documents_see_each_other_trains_no_step(tmp_path):
    with pytest.raises(
        BadInput, match=r"task\.packing: falcon \(sdpa attention\) cannot be trained in packs"
    ) as caught:
        run_recipe(mixing_recipe(tmp_path), tmp_path / "run", *PACKED[:2], *RHYTHM)
    assert caught.value.exit_code == 2
    run = RunDirectory(tmp_path / "run")
    assert not run.has_trained()
    assert not run.train_log.exists()


def test_prompts_of_the_recipe_are_checked_and_only_a_causal_lm_has_any(tmp_path):
    for recipe, given, what in (
        (RECIPE, "[a question, '  ']", r"evaluation\.sample_prompts\[1\]: is empty"),
        (RECIPE, "[a question, a question]", r"sample_prompts\[1\]: 'a question' stands there twice"),
        ("imdb/smoke", "[a question]", "text_classification answers no prompts"),
    ):
        with pytest.raises(BadInput, match=what):
            run_recipe(recipe, tmp_path / "run", f"evaluation.sample_prompts={given}")
