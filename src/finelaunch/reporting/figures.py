"""The figures of a run as rows: what was measured, before and after training."""

from collections.abc import Mapping
from typing import Any

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
    "text_classification": ("accuracy", "f1_macro", "f1_micro", "loss"),
    "causal_lm": ("perplexity", "loss", "num_target_tokens"),
}
"""The figures that a table shows, by task, the most telling first."""


def figure_rows(metrics: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return ``(figure, {column: value})`` rows of a ``metrics.json``.

    The columns are ``base`` and ``tuned`` on data.test, and ``validation``; those that were not measured are absent.
    """
    columns = {"base": metrics.get("base"), "tuned": metrics.get("eval"), "validation": metrics.get("validation")}
    present = {name: figures for name, figures in columns.items() if figures}
    shown = list(MAIN_FIGURES[metrics["task"]])
    shown += [name for name in (metrics.get("eval") or {}) if "." in name]
    rows = [(name, {column: figures.get(name) for column, figures in present.items()}) for name in shown]
    return [(name, values) for name, values in rows if any(value is not None for value in values.values())]


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
