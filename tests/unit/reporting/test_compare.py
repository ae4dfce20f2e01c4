"""Runs side by side: what is shown, what is said below it, what is refused."""

import json
import math

import numpy as np
import pytest
from unit.reporting.finished import DELETE, ENGINE, HOST, TRAIN, edit, finished_run, losses, reviews

from finelaunch.errors import BadInput
from finelaunch.metrics.intervals import bootstrap_interval, by_group, paired_difference, wilson_interval
from finelaunch.recipe.load import flatten
from finelaunch.reporting.compare import compare
from finelaunch.reporting.compare_table import bytes_text, markdown_lines, terminal_lines
from finelaunch.run.directory import RunDirectory

RIGHT = [True] * 15 + [False] * 5
BETTER = [True] * 18 + [False] * 2
LORA = ("method.name=lora", "method.rank=8", "method.alpha=16", "method.target_modules=all-linear")


def two(folder, *words, name="two", right=BETTER, **noted):
    first = finished_run(folder / "one", reviews(*RIGHT), {"accuracy": 0.75, "f1_macro": 0.5, "loss": 0.6})
    figures = {"accuracy": float(np.mean(right)), "f1_macro": 0.5, "loss": 0.6}
    return [first, finished_run(folder / name, reviews(*right), figures, *words, **noted)]


def shown(comparison, width=100):
    """Return the cells of the lines of the table by what they are about, as far as it is named once."""
    lines = terminal_lines(comparison, width)
    return {line[:17].strip(): line[17:].split() for line in lines if line and not line.startswith("note")}


def refusal(runs):
    with pytest.raises(BadInput) as caught:
        compare(runs)
    (problem,) = caught.value.problems
    return str(problem)


def test_equal_runs_have_no_notes_and_a_difference_of_nothing(tmp_path):
    found = compare(two(tmp_path, right=RIGHT))
    assert found.notes == []
    assert found.runs[1].facts["difference"] == {"accuracy": {"to": "one", "value": 0.0, "interval": (0.0, 0.0)}}


def test_the_figures_are_those_of_the_files(tmp_path):
    first, second = two(tmp_path, base={"accuracy": 0.5}, parameters={"total": 1000, "trainable": 25})
    found = compare([first, second])
    one, other = (run.facts for run in found.runs)
    assert one["intervals"] == {"accuracy": wilson_interval(15, 20)}
    assert other["difference"]["accuracy"]["value"] == pytest.approx(0.15)
    low, high = other["difference"]["accuracy"]["interval"]
    assert 0 <= low < 0.15 < high < 0.4
    assert (one["base"], other["base"]) == (None, {"accuracy": 0.5})
    assert (other["checkpoint_bytes"], other["delivered_bytes"], other["train_seconds"]) == (1_800_000, 600, 4.2)
    table = shown(found)
    assert table["untuned"] == ["-", "0.5000"]
    assert table["share"] == ["100", "%", "2.5", "%"]
    assert table["less the first"] == ["-", "+0.1500"]
    assert table["checkpoint"] == ["1.8", "MB", "1.8", "MB"]
    assert "peak on device" not in table
    assert json.loads(json.dumps(found.as_json()))["runs"][1]["train"] == TRAIN


def test_a_language_model_is_compared_by_tokens(tmp_path):
    rows, better = [(2.0, 10), (4.0, 30), (3.0, 5)], [(1.5, 10), (3.5, 30), (2.5, 5)]
    loss = (20 + 120 + 15) / 45
    first = {"loss": loss, "perplexity": math.exp(loss)}
    second = {"loss": loss - 0.5, "perplexity": math.exp(loss - 0.5)}
    runs = [
        finished_run(tmp_path / "a", losses(*rows), first, task="causal_lm"),
        finished_run(tmp_path / "b", losses(*better), second, task="causal_lm"),
    ]
    one, other = (run.facts for run in compare(runs).runs)
    interval = bootstrap_interval([20, 120, 15], [10, 30, 5])
    assert one["intervals"]["loss"] == pytest.approx(interval)
    assert one["intervals"]["perplexity"] == pytest.approx(np.exp(interval))
    assert other["difference"]["loss"]["value"] == pytest.approx(-0.5)
    assert other["difference"]["loss"]["interval"] == pytest.approx((-0.5, -0.5))


def test_losses_per_other_tokens_are_not_subtracted(tmp_path):
    runs = [
        finished_run(tmp_path / "a", losses((2.0, 10), (2.0, 5)), {"loss": 2.0}, task="causal_lm"),
        finished_run(tmp_path / "b", losses((1.0, 20), (1.0, 9)), {"loss": 1.0}, task="causal_lm"),
    ]
    found = compare(runs)
    assert found.runs[1].facts["difference"] == {}
    assert "other tokens" in " ".join(found.notes)


def test_answers_are_scored_as_the_official_script_does(tmp_path):
    rows = [
        {"id": "1", "prediction": "the red fox", "reference": ["Red fox!", "fox"]},
        {"id": "2", "prediction": "a grey wolf", "reference": ["wolf"]},
        {"id": "3", "prediction": "", "reference": []},
        {"id": "4", "prediction": "fox", "reference": []},
    ]
    figures = {"exact_match": 50.0, "f1": 100 * (1 + 2 / 3 + 1) / 4}
    runs = [finished_run(tmp_path / name, rows, figures, task="question_answering") for name in "ab"]
    found = compare(runs)
    assert [note.partition(",")[0] for note in found.notes] == [
        f"{name} was evaluated by an older version" for name in "ab"
    ]
    assert "too narrow" in found.notes[0]
    assert found.runs[0].facts["intervals"]["exact_match"] == tuple(100 * end for end in wilson_interval(2, 4))
    assert set(found.runs[0].facts["intervals"]) == {"exact_match", "f1"}


def answers(right, per_passage):
    """Return predictions: right where ``right`` says so, so many in a row on one passage."""
    return [
        {"id": f"{n}", "prediction": "fox" if good else "", "reference": ["fox"], "group": f"p{n // per_passage}"}
        for n, good in enumerate(right)
    ]


def answered(folder, right, per_passage):
    figures = {"exact_match": 100 * float(np.mean(right)), "f1": 100 * float(np.mean(right))}
    return finished_run(folder, answers(right, per_passage), figures, task="question_answering")


def test_questions_on_one_passage_are_drawn_together(tmp_path):
    first = [n % 8 < 4 for n in range(160)]
    second = [n % 8 < 4 or n % 16 == 4 for n in range(160)]
    runs = [answered(tmp_path / "a", first, 4), answered(tmp_path / "b", second, 4)]
    found = compare(runs)
    assert found.notes == []
    groups, ones = [n // 4 for n in range(160)], np.ones(160)
    one, other = (by_group(100.0 * np.array(right), ones, groups) for right in (first, second))
    assert found.runs[0].facts["intervals"]["exact_match"] == bootstrap_interval(*one)
    low, high = found.runs[0].facts["intervals"]["exact_match"]
    alone = [100 * end for end in wilson_interval(80, 160)]
    assert high - low > 1.8 * (alone[1] - alone[0])
    value, interval = paired_difference(one, other)
    expected = {"to": "a", "value": value, "interval": interval}
    assert found.runs[1].facts["difference"]["exact_match"] == expected
    assert "1,000 bootstrap draws of the test passages" in " ".join(terminal_lines(found, 300))


def test_few_passages_are_said_and_one_alone_has_no_interval(tmp_path):
    right = [True, False, True, True]
    few = compare([answered(tmp_path / "a", right, 2), answered(tmp_path / "b", right, 2)])
    assert "b has test rows on 2 passages only: its intervals are too narrow" in few.notes
    one = compare([answered(tmp_path / "c", right, 4), answered(tmp_path / "d", right, 4)])
    assert "c has no interval: all questions are on one passage" in one.notes
    assert one.runs[0].facts["intervals"] == {}
    assert one.runs[1].facts["difference"]["f1"] == {"to": "c", "value": 0.0, "interval": None}


@pytest.mark.parametrize(
    "reorder", [lambda rows: rows[::-1], lambda rows: [{**row, "id": f"x/{row['id']}"} for row in rows]]
)
def test_rows_in_another_order_or_of_other_ids_are_not_paired(tmp_path, reorder):
    first, second = two(tmp_path, right=RIGHT)
    second.predictions.write_text("".join(json.dumps(row) + "\n" for row in reorder(reviews(*RIGHT))))
    found = compare([first, second])
    assert found.runs[1].facts["difference"] == {}
    assert found.runs[1].facts["intervals"] == found.runs[0].facts["intervals"]
    said = (
        "two and one have predictions of other rows, or in another order: their ids differ, and nothing is subtracted"
    )
    assert found.notes == [said]


@pytest.mark.parametrize(
    ("words", "noted", "said"),
    [
        (("task.max_length=64",), {}, "task.max_length: one 96; two 64"),
        (("training.seed=1",), {}, "seed: one 42; two 1"),
        (
            (),
            {"engine": {**ENGINE, "precision": "bf16"}},
            "engine: one single, 1 x cpu, fp32; two single, 1 x cpu, bf16",
        ),
        ((), {"host": {**HOST, "num_cpus": 8}}, "machine: one node cpu, 2 CPU cores; two node cpu, 8 CPU cores"),
        ((), {"train": {**TRAIN, "steps": 68}}, "training: one 34 steps x 8 rows; two 68 steps x 8 rows"),
        ((), {"versions": {"torch": "2.14"}}, "versions: one torch 2.13.0, transformers 5.23.0; two torch 2.14"),
        ((), {"commit": None}, "finelaunch: one 0.1.0 88ecd1f6; two 0.1.0"),
        (
            (),
            {"model": {"name": "bert", "init": "pretrained", "fingerprint": "c" * 40}},
            "base model: one new weights (scratch); two bert (cccccccccccc)",
        ),
        (("training.learning_rate=5e-4", *LORA), {}, ""),
    ],
)
def test_what_differs_beside_the_method_is_said(tmp_path, words, noted, said):
    assert list(compare(two(tmp_path, *words, **noted)).notes) == ([said] if said else [])


def test_other_training_rows_are_said_and_other_test_rows_not_subtracted(tmp_path):
    first, second = two(tmp_path)
    edit(second.manifest, "data", "train", "num_examples", value=100)
    edit(second.manifest, "data", "test", "fingerprint", value="d" * 64)
    found = compare([first, second])
    assert found.runs[1].facts["difference"] == {}
    assert found.notes[0].startswith(
        "the test rows differ, so quality cannot be compared: one 20 (bbbbbbbbbbbb); two 20"
    )
    assert "training rows: one 270 of train.jsonl" in found.notes[1]


def test_the_sources_of_a_mixture_are_each_told_apart(tmp_path):
    first, second = two(tmp_path, right=RIGHT)
    for run, last in ((first, "e"), (second, "f")):
        sources = {"old": {"fingerprint": "d" * 64}, "new": {"fingerprint": last * 64}}
        edit(
            run.manifest,
            "data",
            "test",
            value={"path": None, "num_examples": 20, "fingerprint": None, "sources": sources},
        )
    assert (
        "one 20 (dddddddddddd + eeeeeeeeeeee); two 20 (dddddddddddd + ffffffffffff)"
        in compare([first, second]).notes[0]
    )


@pytest.mark.parametrize(
    "drawn", [["data.test.max_samples=20"], ["data.test=[{path: a.jsonl, max_samples: 20}, {path: b.jsonl}]"]]
)
def test_test_rows_that_were_drawn_by_another_seed_are_other_rows(tmp_path, drawn):
    runs = [
        finished_run(
            tmp_path / f"{seed}", reviews(*RIGHT), {"accuracy": 0.75}, "data.test.max_samples=20", f"data.seed={seed}"
        )
        for seed in (0, 1)
    ]
    assert "drawn by data.seed 1" in compare(runs).notes[0]


def test_what_a_resumed_run_and_one_without_test_rows_lack_is_said(tmp_path):
    first = finished_run(tmp_path / "a", [], None, events=[("started", {})])
    found = compare([first, finished_run(tmp_path / "b", reviews(*RIGHT), {"accuracy": 0.75})])
    said = " ".join(found.notes)
    assert "a was started 2 times" in said
    assert "a has no data.test" in said
    assert shown(found)["accuracy"] == ["-", "0.7500"]


@pytest.mark.parametrize("damage", ["", "{}\n", '{"prediction": "good", "reference": "good"}\n'])
def test_predictions_that_do_not_come_to_the_figures_give_no_interval(tmp_path, damage):
    first, second = two(tmp_path)
    second.predictions.write_text(damage)
    found = compare([first, second])
    assert found.runs[1].facts["intervals"] == found.runs[1].facts["difference"] == {}
    assert "two has no interval of accuracy" in found.notes[0]


def test_one_run_the_same_twice_and_unfinished_ones_are_refused(tmp_path):
    first, second = two(tmp_path)
    assert "nothing to compare with" in refusal([first])
    assert "named twice" in refusal([first, RunDirectory(tmp_path / "two" / ".." / "one")])
    second.events.write_text("")
    assert "is not finished" in refusal([first, second])


def test_runs_of_two_tasks_are_refused(tmp_path):
    first = two(tmp_path)[0]
    other = finished_run(tmp_path / "lm", losses((1.0, 3)), {"loss": 1.0, "perplexity": 2.7}, task="causal_lm")
    assert "one text_classification, lm causal_lm" in refusal([first, other])


@pytest.mark.parametrize("name", ["metrics", "manifest"])
@pytest.mark.parametrize("text", ["", "[]", "{", '{"task": 1}', "[" * 100_000])
def test_damaged_files_are_one_sentence(tmp_path, name, text):
    first, second = two(tmp_path)
    getattr(second, name).write_text(text)
    assert str(tmp_path / "two") in refusal([first, second])


@pytest.mark.parametrize("value", [DELETE, None, "x", {}, float("nan")])
@pytest.mark.parametrize("file", ["metrics", "manifest"])
def test_whatever_stands_in_a_file_it_is_shown_or_refused(tmp_path, file, value):
    first, second = two(tmp_path)
    path = getattr(second, file)
    whole = path.read_text()
    keys = {tuple(key.split(".")[:depth]) for key, _ in flatten(json.loads(whole)) for depth in (1, 2, 3)}
    outcomes = set()
    for key in sorted(key for key in keys if key):
        path.write_text(whole)
        edit(path, *key, value=value)
        try:
            found = compare([first, second])
            terminal_lines(found, 100)
            markdown_lines(found)
            outcomes.add("shown")
        except BadInput:
            outcomes.add("refused")
    assert outcomes == {"shown", "refused"}


def test_the_table_fits_a_terminal_and_leaves_no_run_out(tmp_path):
    names = ["full", "lora", "feature_extraction", "gradual_unfreezing", "qlora", "prefix_tuning"]
    runs = [finished_run(tmp_path / name, reviews(*RIGHT), {"accuracy": 0.75}, train={**TRAIN, "steps": number})
            for number, name in enumerate(names)]  # fmt: skip
    for width in (60, 100):
        lines = terminal_lines(compare(runs), width)
        assert max(map(len, lines)) <= width
        heads = [line.split() for line in lines if set(line.split()) <= set(names) and line]
        assert [name for head in heads for name in head] == names
    blocks = sum(line.startswith("method") for line in terminal_lines(compare(runs), 100))
    assert blocks == 2


def test_markdown_has_a_cell_for_each_run_and_intervals_beside_their_figures(tmp_path):
    lines = markdown_lines(compare(two(tmp_path, *LORA, name="a|b")))
    table = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert table[0] == "| | one | a\\|b |"
    assert "| method, with | - | rank 8, alpha 16, all-linear |" in table
    assert any(line.startswith("| accuracy | 0.7500 (0.5313 to 0.8881) | 0.9000 (") for line in table)
    assert "- the same for all: engine single, 1 x cpu; precision fp32; learning rate 0.001; training" in lines[-2]
    assert any(line.startswith("| accuracy, less the first | - | +0.1500 (") for line in table)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (574_728, "574.7 kB"),
        (10**9, "1.0 GB"),
        (3 * 10**15, "3,000.0 TB"),
    ],
)
def test_bytes_are_shown_in_a_fitting_unit(value, text):
    assert bytes_text(value) == text
