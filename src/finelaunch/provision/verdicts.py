"""What an examination answers: one line for each thing that was looked at."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

State = Literal["ok", "warning", "failed", "not checked"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: What was looked at, in a word or two.
        state: ``failed`` where a run would not work; ``warning`` where it works, and not as one may expect.
        text: What was found.
        remedy: What to do; empty where nothing is to be done.
    """

    name: str
    state: State
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return the check as one line."""
        said = "; ".join(part for part in (self.text, self.remedy) if part)
        return f"{self.state:<11}  {self.name:<18}  {one_line(said)}"


def ok(name: str, text: str) -> Check:
    """Return a check of which nothing is to be said but what was found."""
    return Check(name, "ok", text)


def warning(name: str, text: str, remedy: str = "") -> Check:
    """Return a check of what works otherwise than one may expect."""
    return Check(name, "warning", text, remedy)


def failed(name: str, text: str, remedy: str = "") -> Check:
    """Return a check of what keeps a run from working."""
    return Check(name, "failed", text, remedy)


def unknown(name: str, text: str, remedy: str = "") -> Check:
    """Return what could not be looked at."""
    return Check(name, "not checked", text, remedy)


def has_failed(checks: Iterable[Check]) -> bool:
    """Return whether a run would not work."""
    return any(check.state == "failed" for check in checks)


def totals(checks: Sequence[Check]) -> str:
    """Return how many checks came out how."""
    counts = {state: sum(check.state == state for check in checks) for state in get_args(State)}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def as_json(checks: Sequence[Check]) -> str:
    """Return the checks as one JSON object."""
    return json.dumps({"passed": not has_failed(checks), "checks": [asdict(check) for check in checks]}, indent=2)


def one_line(text: str) -> str:
    """Return ``text`` without what would break a line or reach a terminal as a command."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
