"""A shown batch in words: every token above its id, and a mark under those that carry loss, with or without colour."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.cells import cell_len

OPEN, CLOSE = "⟦", "⟧"
"""Stand around what carries loss."""
_BAR = 40


def batch_text(shown: Mapping[str, Any], max_rows: int, width: int) -> str:
    """Return a batch for a reader.

    Args:
        shown: From ``ShownSplit.batch``.
        max_rows: Rows that are written out.
        width: Columns of the terminal.
    """
    batch = shown["batch"]
    shapes = ", ".join(f"{name} {shape}" for name, shape in batch["shapes"].items())
    lines = [*_split_lines(shown, width), "", f"batch: {batch['place']}, on {shown['profile']}"]
    lines += _wrapped(f"{shapes}; {batch['padding_fraction']:.1%} padding", "  ", width)
    if "attention_mask" not in batch["shapes"]:
        lines.append("  no attention mask: documents are told apart by position_ids, which begin anew in each")
    rows = batch["rows"]
    for row in rows[:max_rows]:
        lines += ["", *_row_lines(row, width)]
    if len(rows) > max_rows:
        lines += ["", f"and {len(rows) - max_rows} more rows (--rows {len(rows)} shows them, --json has all)"]
    return "\n".join(lines)


def _split_lines(shown: Mapping[str, Any], width: int) -> list[str]:
    spread, longest, full = shown["tokens_per_row"], shown["max_length"], shown["num_of_max_length"]
    rows = f"{shown['num_rows']:,} rows" + (
        f" of {shown['num_examples']:,} examples" if shown["num_examples"] != shown["num_rows"] else ""
    )
    lines = [
        f"{shown['task']}, data.{shown['split']}: {rows}, {shown['num_tokens']:,} tokens",
        f"  lengths: {spread['min']} to {spread['max']} tokens, {spread['mean']:g} on average, half of the rows up to "
        f"{spread['p50']}",
        f"  {full:,} rows ({full / shown['num_rows']:.1%}) are as long as task.max_length {longest} permits",
    ]
    most = max(one["num_rows"] for one in shown["histogram"])
    digits = len(str(shown["histogram"][-1]["last"]))
    for one in shown["histogram"]:
        count = one["num_rows"]
        bar = "█" * max(round(_BAR * count / most), count > 0)
        lines.append(f"    {one['first']:>{digits}}-{one['last']:<{digits}} {bar}{' ' if bar else ''}{count:,}")
    lines.append(f"  padding: {shown['padding_fraction']:.1%} of the places in all batches of an epoch")
    if "target_fraction" in shown:
        lines.append(f"  loss: {shown['target_fraction']:.1%} of the tokens carry it")
    weights = shown.get("class_weights", {})
    for label, count in shown.get("num_per_label", {}).items():
        lines.append(f"  label {label}: {count:,} rows" + (f", weight {weights[label]:.3g}" if weights else ""))
    return lines + [line for note in shown["notes"] for line in _wrapped(f"note: {note}", "  ", width)]


def _row_lines(row: Mapping[str, Any], width: int) -> list[str]:
    targets = sum(row["is_target"])
    about = [f"{len(row['ids'])} tokens, {row['num_padding']} padding"]
    if row["is_filler"]:
        about.append("fills up the last batch and has no target")
    elif "label_names" in row:
        about.append(f"label {', '.join(row['label_names']) or '(none)'}")
    elif "answer" in row:
        about.append(f"answer {row['answer']!r}" if row["answer"] is not None else "no answer in it")
    else:
        about.append(f"{targets} with loss")
    lines = [f"row {row['row']}: {', '.join(about)}"]
    for number, document in enumerate(row["documents"], start=1):
        said = f"  document {number}: " if len(row["documents"]) > 1 else "  example "
        said += f"{document['id']}, {document['num_tokens']} tokens"
        if "part" in document:
            said += f", part {document['part']} of {document['num_parts']}"
        if document.get("num_elsewhere"):
            said += f", {document['num_elsewhere']} more of the text in other rows"
        lines.append(said + (f", {document['num_cut']} tokens cut off its end" if document.get("num_cut") else ""))
    text = "".join(f"{OPEN}{piece}{CLOSE}" if is_target else piece for piece, is_target in row["text"])
    lines += _wrapped(_printable(text), "  ", width)
    return lines + _cells(row, width)


def _cells(row: Mapping[str, Any], width: int) -> list[str]:
    """Return blocks of lines: tokens, their ids, their positions where they are given, and marks of loss."""
    tokens = [_printable(token) for token in row["tokens"]]
    columns: dict[str, Sequence[str]] = {"token": tokens, "id": [str(number) for number in row["ids"]]}
    for key, name in (("position_ids", "position"), ("token_type_ids", "segment")):
        if key in row:
            columns[name] = [str(number) for number in row[key][: len(tokens)]]
    label = "answer" if "answer" in row else "loss"
    if any(row["is_target"]):
        sizes = [cell_len(token) for token in tokens]
        columns[label] = ["^" * max(size, 1) if on else "" for size, on in zip(sizes, row["is_target"], strict=True)]
    head = max(map(len, columns)) + 4
    sizes = [max(cell_len(column[place]) for column in columns.values()) for place in range(len(tokens))]
    starts, used = [0], head
    for place, size in enumerate(sizes):
        if used + size + 1 > width and place > starts[-1]:
            starts.append(place)
            used = head
        used += size + 1
    lines = []
    for start, end in pairwise([*starts, len(tokens)]):
        for name, column in columns.items():
            cells = (
                value + " " * (size - cell_len(value))
                for value, size in zip(column[start:end], sizes[start:end], strict=True)
            )
            lines.append(f"  {name:<{head - 2}}{' '.join(cells)}".rstrip())
    if count := row["num_padding"]:
        mask = " with attention mask 0" if "attention_mask" in row else ", a document of their own"
        lines.append(f"  and {count} place{'s' if count > 1 else ''} of padding{mask}, without loss")
    return lines


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), initial_indent=indent, subsequent_indent=indent + "  ") or [indent]


def _printable(text: str) -> str:
    """Return ``text`` on one line, what cannot be printed written as in Python."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
