"""``data show`` tells what the model gets: the sampler's rows, the collated tensors, and what in them is a target."""

import json
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from finelaunch.cli import app
from finelaunch.data.sampler import GlobalBatchSampler
from finelaunch.errors import BadInput
from finelaunch.preparation import Prepared, prepare
from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.recipe.schema import Recipe
from finelaunch.reporting.batch import histogram
from finelaunch.tasks import task_for
from finelaunch.tasks.base import IGNORED

ASSISTANT, TEXTS = "domain_assistant/smoke", "domain_assistant/domain_adaptation"


def shown(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["data", "show", *words, "--on", "cpu", "--json"])
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def printed(*words: str) -> str:
    done = CliRunner().invoke(app, ["data", "show", *words, "--on", "cpu"], env={"COLUMNS": "100"})
    assert done.exception is None
    return done.stdout


def prepared(name: str, *overrides: str) -> tuple[Recipe, Prepared]:
    recipe, document = load_recipe(name, read_overrides(overrides)["recipe"])
    values = recipe.task.model_dump(mode="json")
    return recipe, prepare(recipe.data, recipe.model, task_for(recipe.task), values, document)


def test_a_batch_is_what_training_is_given() -> None:
    recipe, data = prepared(ASSISTANT)
    features, section = data.splits["train"].features, recipe.training
    sampler = GlobalBatchSampler(features.lengths, 8, 4, section.seed, section.length_window_batches)
    steps = sampler.num_global_batches
    for number in (1, steps, steps + 2):
        found = shown(ASSISTANT, "launch.per_device_batch_size=4", "--batch", str(number))["batch"]
        epoch, step = divmod(number - 1, steps)
        sampler.set_epoch(epoch)
        wanted = list(sampler)[2 * step]
        assert [~row["row"] if row["is_filler"] else row["row"] for row in found["rows"]] == wanted
        assert found["shapes"]["input_ids"] == [4, max(len(row["ids"]) for row in found["rows"])]
        for row in found["rows"]:
            feature = features[row["row"]]
            ids, labels = feature["input_ids"].tolist(), feature["labels"].tolist()
            assert row["ids"] == ids
            filled = [IGNORED] * row["num_padding"]
            assert row["labels"] == [IGNORED] * len(ids + filled) if row["is_filler"] else labels + filled
            assert row["attention_mask"] == [1] * len(ids) + [0] * row["num_padding"]
            assert len(ids) + row["num_padding"] == found["shapes"]["input_ids"][1]
            example = data.splits["train"].examples[feature["example"]]
            targets = "".join(text for text, is_target in row["text"] if is_target)
            assert targets == ("" if row["is_filler"] else f" {example['messages'][-1]['content']}[EOS]")
            assert row["documents"] == [{"id": example["id"], "num_tokens": len(ids), "num_cut": 0}]


def test_the_figures_of_a_split_are_those_of_its_rows() -> None:
    found = shown("imdb/smoke", "task.max_length=48")
    _, data = prepared("imdb/smoke", "task.max_length=48")
    lengths = data.splits["train"].features.lengths
    assert found["num_tokens"] == lengths.sum()
    assert found["num_of_max_length"] == (lengths == 48).sum()
    for one in found["histogram"]:
        assert one["num_rows"] == ((lengths >= one["first"]) & (lengths <= one["last"])).sum()
    assert sum(one["num_rows"] for one in found["histogram"]) == len(lengths) == found["num_rows"]
    assert found["num_per_label"] == {"negative": 135, "positive": 135}
    (note,) = found["notes"]
    _, whole = prepared("imdb/smoke", "task.max_length=512")
    num_cut = int((whole.splits["train"].features.lengths > 48).sum())
    assert note == f"{num_cut} of 270 texts cut at task.max_length 48"
    for row in found["batch"]["rows"]:
        length = whole.splits["train"].features.lengths[row["row"]]
        assert row["documents"][0]["num_cut"] == length - len(row["ids"])
        assert row["label_names"] == [("negative", "positive")[row["labels"]]]


def test_spans_of_answers_are_told() -> None:
    _, data = prepared("squad_v2/smoke")
    golds = {example["id"]: example["answers"]["text"] for example in data.splits["train"].examples}
    rows = [row for batch in ("1", "2") for row in shown("squad_v2/smoke", "--batch", batch)["batch"]["rows"]]
    answered = [row for row in rows if row["answer"] is not None]
    assert 0 < len(answered) < len(rows)
    for row in answered:
        start, end = row["labels"]
        assert [place for place, on in enumerate(row["is_target"]) if on] == list(range(start, end + 1))
        assert row["answer"].strip() in golds[row["documents"][0]["id"]]
    assert all(not any(row["is_target"]) for row in rows if row["answer"] is None)
    assert any(row["documents"][0].get("num_parts", 1) > 1 for row in rows)


def test_packs_and_the_pieces_of_texts() -> None:
    split = shown(ASSISTANT, "task.packing=true", "task.max_length=512", "model.config.n_positions=512")
    assert "packs of at most 512 tokens" in split["notes"][0]
    found = split["batch"]
    assert "attention_mask" not in found["shapes"]
    row = found["rows"][0]
    assert len(row["documents"]) > 1
    lengths = [document["num_tokens"] for document in row["documents"]]
    assert row["position_ids"][: len(row["ids"])] == [place for length in lengths for place in range(length)]
    rows = shown(TEXTS, "--split", "test")["batch"]["rows"]
    for row in rows:
        (document,) = row["documents"]
        assert document["num_elsewhere"] > 0
        assert 1 <= document["part"] <= document["num_parts"]
        assert row["is_target"] == [False] + [True] * (len(row["ids"]) - 1)


def test_the_terminal_marks_what_carries_loss() -> None:
    text = printed(ASSISTANT, "--rows", "2")
    assert "causal_lm, data.train: 65 rows" in text
    assert "batch: optimizer step 1: step 1 of 9 of epoch 1, on cpu" in text
    assert text.count("\nrow ") == 2
    assert "and 6 more rows (--rows 8 shows them" in text
    found = shown(ASSISTANT)["batch"]["rows"][0]
    lines = text.split("\nrow ")[1].splitlines()
    blocks = [(lines[at], lines[at + 1], lines[at + 2]) for at, line in enumerate(lines) if line.startswith("  token ")]
    tokens, marked = [], []
    for token_line, id_line, loss_line in blocks:
        for start in (cell.start() for cell in re.finditer(r"\S+", id_line[7:])):
            tokens.append(token_line[7 + start :].split(" ")[0])
            marked.append(loss_line[7 + start : 8 + start] == "^")
    assert tokens == found["tokens"]
    assert marked == found["is_target"]
    assert max(map(len, lines)) <= 100


def test_the_filled_up_batch_and_the_labels_are_said() -> None:
    text = printed("imdb/smoke", "--batch", "34", "--rows", "8")
    assert text.count("fills up the last batch and has no target") == 2
    assert text.count("label positive\n") + text.count("label negative\n") == 6
    assert "  label negative: 135 rows" in text


def test_a_machine_of_unknown_size_is_said() -> None:
    done = CliRunner().invoke(app, ["data", "show", ASSISTANT, "--on", "ddp", "--rows", "1"])
    assert "on ddp, where one process stands for all visible GPUs" in done.stdout
    done = CliRunner().invoke(app, ["data", "show", ASSISTANT, "--on", "cpu_ddp", "--rows", "1"])
    assert "the first micro-batch of the first process (global batch 8 = 4 per device x 2 processes" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "dev"], "--split: 'dev' is no split; train, validation, test"),
        (["--split", "test", "--batch", "99"], "there is no batch 99: data.test has 1 of up to 32 rows; 1 to 1"),
        (["--split", "test", "data.test=null"], "the recipe names no data.test"),
        (["task.max_lenght=3"], "max_lenght"),
        (["launch.per_device_batch_size=3"], "per_device_batch_size"),
    ],
)
def test_bad_input_is_said(words: list[str], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        shown(ASSISTANT, *words)
    assert said in str(raised.value)


@pytest.mark.parametrize("lengths", [[5], [5, 5, 5], [1, 2, 3], [7, 500], list(range(3, 200))])
def test_a_histogram_has_every_row_once(lengths: list[int]) -> None:
    bins = histogram(np.array(lengths))
    assert len(bins) <= 12
    assert sum(one["num_rows"] for one in bins) == len(lengths)
    assert (bins[0]["first"], bins[-1]["last"]) == (min(lengths), max(lengths))
    assert all(one["last"] + 1 == other["first"] for one, other in pairwise(bins))
