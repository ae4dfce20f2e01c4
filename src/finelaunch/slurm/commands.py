"""Slurm's own commands, asked with a time limit: a controller that does not answer never hangs a command of ours."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class Answer:
    """What a command said.

    Args:
        ok: It ended with 0.
        text: Its standard output.
        why: Where it did not: its complaint in a line, or that it is not installed or gave no answer.
        is_missing: The command is not installed here.
    """

    ok: bool
    text: str = ""
    why: str = ""
    is_missing: bool = False

    @property
    def lines(self) -> list[str]:
        """The lines of the text that are not empty."""
        return [line for line in self.text.splitlines() if line.strip()]


def ask(argv: Sequence[str], timeout_seconds: float = TIMEOUT_SECONDS) -> Answer:
    """Run a command of Slurm and return what it said; it is ended when the time is up."""
    if shutil.which(argv[0]) is None:
        return Answer(False, why=f"{argv[0]} is not installed here", is_missing=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    environment = {**environment, "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(
            list(argv),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Answer(False, why=f"{argv[0]} gave no answer within {timeout_seconds:g} s")
    except OSError as error:
        return Answer(False, why=f"{argv[0]}: {error.strerror}")
    complaint = (done.stderr.strip() or done.stdout.strip()).splitlines()
    why = "" if done.returncode == 0 else complaint[-1][:300] if complaint else f"exit code {done.returncode}"
    return Answer(done.returncode == 0, done.stdout, why)


def fields(line: str) -> dict[str, str]:
    """Return the ``Key=value`` words of a line of ``scontrol -o``; a word without ``=`` belongs to the one before."""
    found: dict[str, str] = {}
    last = ""
    for word in line.split(" "):
        key, equals, value = word.partition("=")
        if equals and key.replace("_", "").replace(":", "").replace("/", "").isalnum():
            last = key
            found[key] = value
        elif last and word:
            found[last] += f" {word}"
    return found
