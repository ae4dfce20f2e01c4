"""The figures of a run as rows: what was measured, before and after training."""

from collections.abc import Mapping
from typing import Any

from finelaunch.metrics.selection import gain

MAIN_FIGURES = {
    "question_answering": (
        "exact_match",
        "f1",
        "HasAns_exact",
        "HasAns_f1",
        "NoAns_exact",
        "exact_match_at_zero",
        "f1_at_zero",
        "always_no_answer",
        "no_answer_auc",
        "threshold",
        "loss",
        "total",
    ),
    "text_classification": (
        "accuracy",
        "f1_macro",
        "f1_micro",
        "f1_micro_at_half",
        "f1_samples",
        "hamming_loss",
        "threshold",
        "loss",
    ),
    "causal_lm": ("perplexity", "loss", "num_target_tokens"),
}
"""The figures that a table shows, by task, the most telling first."""

SOURCE_FIGURES = {
    "question_answering": ("exact_match", "f1"),
    "text_classification": ("accuracy", "f1_macro"),
    "causal_lm": ("perplexity", "loss"),
}
"""The figures that a table shows of each source of a split, by task."""

KEPT_BY = {"question_answering": "f1", "text_classification": "accuracy", "causal_lm": "perplexity"}
"""The figure by which a source counts as forgotten, by task."""


def figure_rows(metrics: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return ``(figure, {column: value})`` rows of a ``metrics.json``.

    The columns are ``base`` and ``tuned`` on data.test, and ``validation``; those that were not measured are absent.
    Figures of one source follow as ``SOURCE: figure``.
    """
    columns = {"base": metrics.get("base"), "tuned": metrics.get("eval"), "validation": metrics.get("validation")}
    present = {name: figures for name, figures in columns.items() if figures}
    shown = list(MAIN_FIGURES[metrics["task"]])
    shown += [name for name in (metrics.get("eval") or {}) if "." in name]
    rows = [(name, {column: figures.get(name) for column, figures in present.items()}) for name in shown]
    parts = {column: figures.get("by_source", {}) for column, figures in present.items()}
    for source in dict.fromkeys(name for part in parts.values() for name in part):
        for name in SOURCE_FIGURES[metrics["task"]]:
            rows.append(
                (f"{source}: {name}", {column: part.get(source, {}).get(name) for column, part in parts.items()})
            )
    return [(name, values) for name, values in rows if any(value is not None for value in values.values())]


def forgotten(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return ``{source: {metric, base, eval}}`` of the sources of data.test on which the tuned model is worse.

    None where that was not measured: of one source only, or without the untuned model's figures.
    """
    before, after = ((metrics.get(part) or {}).get("by_source") for part in ("base", "eval"))
    if before is None or after is None:
        return None
    name = KEPT_BY[metrics["task"]]
    return {
        source: {"metric": name, "base": before[source][name], "eval": figures[name]}
        for source, figures in after.items()
        if source in before and gain(name, figures[name], before[source][name]) < 0
    }


def forgotten_texts(metrics: Mapping[str, Any]) -> list[str]:
    """Return in words what was forgotten, a sentence a source."""
    return [
        f"forgotten: on {source} of data.test the {lost['metric']} went from {figure_text(lost['base'])} (base) "
        f"to {figure_text(lost['eval'])} (tuned)"
        for source, lost in (forgotten(metrics) or {}).items()
    ]


def figure_text(value: Any) -> str:
    """Return a figure as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"
    return str(value)


def print_table(title: str, metrics: Mapping[str, Any]) -> None:
    """Print the rows of a ``metrics.json`` below a title."""
    from rich.console import Console
    from rich.table import Table

    rows = figure_rows(metrics)
    print(title)
    table = Table()
    table.add_column("")
    for column in rows[0][1] if rows else ():
        table.add_column(column, justify="right")
    for name, values in rows:
        table.add_row(name, *map(figure_text, values.values()))
    Console().print(table)
    for text in forgotten_texts(metrics):
        print(text)
