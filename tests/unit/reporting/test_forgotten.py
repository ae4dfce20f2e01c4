"""What is said of each source: rows of the table, and what training has made worse."""

from typing import Any

from finelaunch.reporting.figures import figure_rows, forgotten, forgotten_texts


def metrics(task: str, name: str, base: dict[str, float], tuned: dict[str, float]) -> dict[str, Any]:
    def part(values: dict[str, float]) -> dict[str, Any]:
        return {name: 0.5, "loss": 1.0, "by_source": {source: {name: value} for source, value in values.items()}}

    return {"task": task, "base": part(base), "eval": part(tuned), "validation": {name: 0.25}}


def test_what_got_worse_is_forgotten_and_what_did_not_is_not() -> None:
    before, after = {"old": 0.9, "same": 0.5, "new": 0.4}, {"old": 0.7, "same": 0.5, "new": 0.8}
    found = metrics("text_classification", "accuracy", before, after)
    assert forgotten(found) == {"old": {"metric": "accuracy", "base": 0.9, "eval": 0.7}}
    assert forgotten_texts(found) == [
        "forgotten: on old of data.test the accuracy went from 0.9000 (base) to 0.7000 (tuned)"
    ]


def test_a_higher_perplexity_is_worse() -> None:
    found = metrics("causal_lm", "perplexity", {"old": 10.0, "new": 30.0}, {"old": 30.0, "new": 10.0})
    assert forgotten(found) == {"old": {"metric": "perplexity", "base": 10.0, "eval": 30.0}}


def test_nothing_is_said_where_it_was_not_measured() -> None:
    whole = metrics("text_classification", "accuracy", {"old": 0.9}, {"old": 0.7})
    for without in ({"base": None}, {"eval": None}, {"base": {"accuracy": 0.9}}):
        assert forgotten({**whole, **without}) is None
        assert forgotten_texts({**whole, **without}) == []
    assert forgotten(metrics("text_classification", "accuracy", {"old": 0.7}, {"old": 0.9})) == {}


def test_the_table_has_rows_of_every_source() -> None:
    found = metrics("text_classification", "accuracy", {"old": 0.9}, {"old": 0.7, "new": 0.8})
    assert figure_rows(found) == [
        ("accuracy", {"base": 0.5, "tuned": 0.5, "validation": 0.25}),
        ("loss", {"base": 1.0, "tuned": 1.0, "validation": None}),
        ("old: accuracy", {"base": 0.9, "tuned": 0.7, "validation": None}),
        ("new: accuracy", {"base": None, "tuned": 0.8, "validation": None}),
    ]
