"""The journal of answers: what it keeps and drops, its page, and a model that is left as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from finelaunch.data.section import SplitSection
from finelaunch.data.sources import read_rows
from finelaunch.evaluation.answers import Answers, Prompt, as_page
from finelaunch.evaluation.generate import Generation
from finelaunch.models.load import load_tokenizer, train_tokenizer
from finelaunch.models.section import ModelSection, TokenizerSection
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines, write_lines


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = "package:finelaunch/data/samples/domain_assistant/train.jsonl"
    texts = [row["completion"] for row in read_rows(SplitSection(path=path), "train", "recipe").rows]
    section = ModelSection(init="scratch", config={"model_type": "gpt2"}, tokenizer=TokenizerSection(vocab_size=400))
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(texts), section, folder)
    return load_tokenizer(section, folder)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.begin({"task": {"name": "causal_lm"}}, {}, [])
    return run


def answers(run: RunDirectory, tokenizer: Any, length: int = 3, base: str = "base") -> Answers:
    prompts = [Prompt(f"prompt-{number}", "a | b\n<c>", list(range(7, 7 + length + number)), None) for number in (1, 2)]
    return Answers(run, tokenizer, prompts, Generation(max_new_tokens=4), [6], base, "evaluation.sample_prompts")


def steps_of(run: RunDirectory) -> list[int]:
    return [row["step"] for row in read_lines(run.answers)]


def test_the_model_and_the_random_states_are_left_as_they_were(run: RunDirectory, tokenizer: Any) -> None:
    set_seed(1)
    shape = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **shape)).train()
    model.config.use_cache = False
    before, weights = torch.get_rng_state(), {name: one.clone() for name, one in model.state_dict().items()}
    pages: list[str] = []
    journal = answers(run, tokenizer, length=40)
    journal.begin(0)
    for step, epoch in ((0, 0.0), (5, 1.0)):
        journal(model, step, epoch, lambda _, text, __: pages.append(text))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert not model.config.use_cache
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())
    assert not any(one.is_inference() for one in model.parameters())
    rows = read_lines(run.answers)
    assert [(row["step"], row["id"]) for row in rows] == [
        (0, "prompt-1"),
        (0, "prompt-2"),
        (5, "prompt-1"),
        (5, "prompt-2"),
    ]
    assert [row["answer"] for row in rows[:2]] == [row["answer"] for row in rows[2:]]  # dropout was off
    assert pages[1].splitlines()[0] == "| prompt | reference | untuned | epoch 1 (step 5) |"
    assert all(len(prompt.tokens) == 28 for prompt in journal.prompts)  # 32 positions and 4 new tokens


def test_later_answers_are_dropped_and_those_of_another_attempt(run: RunDirectory, tokenizer: Any) -> None:
    rows = [{"step": step, "epoch": 0.0, "id": "a", "prompt": "b", "answer": "c"} for step in (0, 5, 10)]
    journal = answers(run, tokenizer)
    journal.begin(0)
    write_lines(run.answers, rows)
    journal.begin(5)
    assert steps_of(run) == [0, 5]
    assert journal.is_done(5)
    assert not journal.is_done(10)
    journal.begin(0)
    assert steps_of(run) == [0]
    other = answers(run, tokenizer, base="another base")
    write_lines(run.answers, rows)
    other.begin(5)  # on its way: what was answered stays
    assert steps_of(run) == [0, 5]
    answers(run, tokenizer).begin(0)  # from its first step: it is another model's
    assert steps_of(run) == []
    follower = answers(RunDirectory(run.path, rank=1), tokenizer)
    write_lines(run.answers, rows)
    follower.begin(0)
    assert steps_of(run) == [0, 5, 10]


def test_a_start_from_the_checkpoint_of_another_run_drops_the_answers_of_the_course_before(
    run: RunDirectory, tokenizer: Any
) -> None:
    rows = [{"step": step, "epoch": 0.0, "id": "a", "prompt": "b", "answer": "c"} for step in (0, 5, 10)]
    journal = answers(run, tokenizer)
    run.record("training", from_step=0)
    journal.begin(0)
    write_lines(run.answers, rows)
    run.record("training", from_step=5, foreign=True)
    journal.begin(5)
    assert steps_of(run) == []
    assert not journal.is_done(5), "the weights at hand have not been asked"
    write_lines(run.answers, rows[1:])
    journal.begin(10)  # the next stage of the same start
    assert steps_of(run) == [5, 10]
    run.record("training", from_step=5)  # from a checkpoint of its own
    journal.begin(5)
    assert steps_of(run) == [5]


def test_a_page_is_a_table_whatever_stands_in_the_texts() -> None:
    row = {"epoch": 0.0, "id": "x", "prompt": "a | b\n<i>*", "reference": None}
    page = as_page([{**row, "step": 0, "answer": "one\n\ntwo"}, {**row, "step": 7, "epoch": 0.5, "answer": "z" * 700}])
    heading, rule, line = page.splitlines()
    assert heading == "| prompt | reference | untuned | epoch 0.5 (step 7) |"
    assert rule == "| --- | --- | --- | --- |"
    assert line.startswith(r"| a \| b<br>&lt;i&gt;\* |  | one<br><br>two | zzz")
    assert line.endswith("z … |")
