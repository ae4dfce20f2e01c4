"""The tables of the pages, each between two comments of its name, with where it comes from."""

import datetime
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def put(page: Path | None, name: str, lines: Sequence[str], command: str, about: str) -> None:
    """Print a table, and replace the one of that name in a page.

    Args:
        page: Where it stands; None: nowhere.
        name: Of the comments around it.
        lines: The table.
        command: What makes it anew.
        about: Machine and conditions.
    """
    note = f"`{command}`, commit {_commit()}, {datetime.date.today()}, {os.cpu_count()} CPU cores; {about}."
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    table = "\n".join([begin, "", *lines, "", note, "", end])
    print("\n".join(["", *lines, "", note]), flush=True)
    if page is not None:
        before, found, rest = page.read_text(encoding="utf-8").partition(begin)
        if not found:
            raise SystemExit(f"{page} has no {begin}")
        page.write_text(before + table + rest.partition(end)[2], encoding="utf-8")


def _commit() -> str:
    """Return the commit of the code, ``+`` where it has changes."""
    calls = ["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "-uno", "src"]
    said = [subprocess.run(["git", *call], cwd=ROOT, capture_output=True, text=True).stdout.strip() for call in calls]
    return said[0] + "+" * bool(said[1])
