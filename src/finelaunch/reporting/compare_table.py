"""A comparison of runs as a table: for a terminal, in blocks of columns that fit, or in Markdown."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from finelaunch.metrics.intervals import Interval
from finelaunch.reporting.compare import FIGURES, Comparison
from finelaunch.reporting.figures import figure_text

_DASH = "-"
_GAP = "  "
_INTERVAL = "95 %"
_DRAWN = {
    "text_classification": "Wilson's interval for accuracy, of rows that count as independent; of a difference 1,000 "
    "bootstrap draws of the test rows",
    "question_answering": "1,000 bootstrap draws of the test passages, each with all its questions",
    "causal_lm": "1,000 bootstrap draws of the test rows, which count as independent",
}
"""What intervals come from, by task."""
_CONDITIONS = ("engine", "precision", "learning rate", "training examples", "steps")

Line = tuple[str, list[str]]
"""What a line is about, and the cell of every run."""


def terminal_lines(comparison: Comparison, width: int) -> list[str]:
    """Return the table with as many runs side by side as ``width`` characters take, and the notes below it."""
    lines = [("", [run.name for run in comparison.runs]), *_lines(comparison)]
    head = max(len(name) for name, _ in lines)
    widths = [max(len(cells[column]) for _, cells in lines) for column in range(len(comparison.runs))]
    text: list[str] = []
    for block in _blocks(widths, width - head):
        text += [""] * bool(text)
        for name, cells in lines:
            shown = (f"{cells[column]:>{widths[column]}}" for column in block)
            text.append(_GAP.join([f"{name:<{head}}", *shown]).rstrip())
    for note in _notes(comparison):
        text += ["", *textwrap.wrap(f"note: {note}", max(width, 40), subsequent_indent="      ")]
    return text


def markdown_lines(comparison: Comparison) -> list[str]:
    """Return the table in Markdown, an interval in the cell of its figure, and the notes as a list below it.

    Conditions that all runs share are said once, above the notes.
    """
    rows: list[Line] = []
    above, shared = "", []
    for name, cells in _lines(comparison):
        if name in _CONDITIONS and len(set(cells)) == 1:
            shared.append(f"{name} {cells[0]}")
            continue
        if name.strip() == _INTERVAL:
            last, figures = rows[-1]
            both = zip(figures, cells, strict=True)
            rows[-1] = (last, [figure if cell == _DASH else f"{figure} ({cell})" for figure, cell in both])
            continue
        above = above if name.startswith(" ") else name
        rows.append((f"{above}, {name.strip()}" if name.startswith(" ") else name, cells))
    lines = [f"| | {' | '.join(_escaped(run.name) for run in comparison.runs)} |"]
    lines.append("| --- |" + " ---: |" * len(comparison.runs))
    lines += [f"| {name} | {' | '.join(map(_escaped, cells))} |" for name, cells in rows]
    notes = [f"the same for all: {'; '.join(shared)}"] * bool(shared) + _notes(comparison)
    return [*lines, "", *(f"- {_escaped(note)}" for note in notes)]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Return the columns of each block: as many as fit, at least one."""
    blocks: list[list[int]] = []
    left = 0
    for column, width in enumerate(widths):
        if not blocks or width + len(_GAP) > left:
            blocks.append([])
            left = room
        blocks[-1].append(column)
        left -= width + len(_GAP)
    return blocks


def _notes(comparison: Comparison) -> list[str]:
    has_intervals = any(run.facts["intervals"] for run in comparison.runs)
    about = f"95 %: {_DRAWN[comparison.task]}; another seed of the training may differ by more"
    return [about] * has_intervals + list(comparison.notes)


def _lines(comparison: Comparison) -> list[Line]:
    """Return what is compared, line by line; what no run has is left out."""
    lines: list[Line] = []

    def add(name: str, cell: Callable[[dict[str, Any]], str]) -> None:
        cells = [cell(run.facts) for run in comparison.runs]
        if any(own != _DASH for own in cells):
            lines.append((name, cells))

    add("method", lambda facts: str(facts["method"]["name"]))
    add("  with", lambda facts: facts["method_settings"] or _DASH)
    add("engine", lambda facts: "{name}, {world_size} x {device}".format(**facts["engine"]))
    add("precision", lambda facts: str(facts["engine"]["precision"]))
    add("trained", lambda facts: f"{facts['parameters']['trainable']:,}")
    add("  of parameters", lambda facts: f"{facts['parameters']['total']:,}")
    add("  share", lambda facts: _percent(facts["parameters"]["share"]))
    add("learning rate", lambda facts: f"{facts['learning_rate']:g}")
    add("training examples", lambda facts: f"{facts['num_train_examples']:,}")
    add("steps", lambda facts: figure_text(facts["train"].get("steps")))
    for figure in FIGURES[comparison.task]:
        add(figure, lambda facts, figure=figure: figure_text((facts["eval"] or {}).get(figure)))
        add(f"  {_INTERVAL}", lambda facts, figure=figure: _ends(facts["intervals"].get(figure)))
        add("  untuned", lambda facts, figure=figure: figure_text((facts["base"] or {}).get(figure)))
        add("  less the first", lambda facts, figure=figure: _signed(_difference(facts, figure, "value")))
        add(f"    {_INTERVAL}", lambda facts, figure=figure: _ends(_difference(facts, figure, "interval"), _signed))
    add("last train loss", lambda facts: figure_text(facts["train"].get("loss")))
    add("samples/s", lambda facts: figure_text(facts["train"].get("samples_per_second")))
    add("tokens/s", lambda facts: figure_text(facts["train"].get("tokens_per_second")))
    add("train seconds", lambda facts: f"{facts['train_seconds']:,.1f}")
    add("peak host memory", lambda facts: bytes_text(facts["train"].get("peak_host_bytes")))
    add("peak on device", lambda facts: bytes_text(facts["train"].get("peak_device_bytes")))
    add("weights in memory", lambda facts: bytes_text(facts["train"].get("model_bytes")))
    add("checkpoint", lambda facts: bytes_text(facts["checkpoint_bytes"]))
    add("model/ delivered", lambda facts: bytes_text(facts["delivered_bytes"]))
    return lines


def bytes_text(value: float | None) -> str:
    """Return a number of bytes in the unit that leaves one to three digits before the point."""
    if value is None:
        return _DASH
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(f"{int(value):d}") - 1, 3 * (len(units) - 1)) // 3
    return f"{value / 1000**power:,.{1 if power else 0}f} {units[power]}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _signed(value: float | None) -> str:
    return _DASH if value is None else f"{'+' if value > 0 else ''}{figure_text(float(value))}"


def _ends(interval: Interval | None, text: Callable[[float], str] = figure_text) -> str:
    return _DASH if interval is None else f"{text(interval[0])} to {text(interval[1])}"


def _difference(facts: dict[str, Any], figure: str, key: str) -> Any:
    return facts.get("difference", {}).get(figure, {}).get(key)
