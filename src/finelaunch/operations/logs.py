"""What a run says: the end of it, or all that comes until the run ends.

The first rank of a job has srun's words and its own in two files of Slurm, which a requeue appends to and a successor
begins anew; the other ranks, and all ranks of a local run, have a log file each. Whichever there are, they are shown as
one stream in the order in which they were written. Nothing is held in memory but a piece of one file.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from finelaunch.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILURE, EXIT_REQUIREMENT, EXIT_STOPPED, BadInput, Problem
from finelaunch.operations.evidence import task_log
from finelaunch.operations.progress import whole
from finelaunch.operations.records import jobs_of, manifest_of, section
from finelaunch.operations.show import in_words
from finelaunch.operations.status import RunStatus, status_of
from finelaunch.run.directory import RunDirectory

_PIECE_BYTES = 1 << 16
_LOOK_SECONDS = 0.3
"""Between two looks at the files."""

_ASK_SECONDS = {"local": 1.0, "slurm": 10.0}
"""Between two questions what became of the run; Slurm's controller is everybody's."""

_NEWS_SECONDS = 2.0
"""The same where the run's events have changed since."""

_SETTLE_SECONDS = 2.0
"""How long nothing more is to come after the end, and how long that is waited for."""

_LATEST_SECONDS = 15.0


def print_log(run: RunDirectory, rank: int, num_lines: int, follows: bool, since_job: str | None = None) -> int:
    """Print what a rank of ``run`` has said, and where ``follows`` what it says until the run ends.

    Args:
        run: The run directory.
        rank: Which process.
        num_lines: How many of the last lines; 0: all.
        follows: Go on.
        since_job: Leave out what jobs before this one have said.

    Returns:
        0, or where ``follows`` the exit code that the run's end means.

    Raises:
        BadInput: The run has no such rank.
    """
    count = whole(section(manifest_of(run), "engine", "world_size")) or next(
        (job.num_tasks for job in reversed(jobs_of(run)) if job.num_tasks), None
    )
    if count is not None and rank >= count:
        raise BadInput(
            Problem("command line", "--rank", f"the run has no rank {rank}", f"0 to {count - 1}" if count > 1 else "0")
        )
    stream = _Stream(run, rank, since_job)
    stream.skip_to_last(num_lines)
    printed = stream.print_news()
    if follows:
        return _follow(run, stream)
    if not printed:
        status = status_of([run])[0]
        _say(f"rank {rank} has said nothing yet; the run is {_state(status)}")
    return EXIT_DONE


def exit_code(status: RunStatus) -> int:
    """Return the exit code of the command that made the run, by what became of it."""
    if status.state == "finished":
        return EXIT_DONE
    if status.state in ("stopped", "cancelled"):
        return EXIT_STOPPED
    kinds = {"bad_input": EXIT_BAD_INPUT, "requirement": EXIT_REQUIREMENT}
    return kinds.get(status.end.kind, EXIT_FAILURE) if status.end else EXIT_FAILURE


def sources(run: RunDirectory, rank: int, since_job: str | None = None) -> list[Path]:
    """Return the files that hold what ``rank`` says, whether they exist yet or not."""
    submitted = [job.job_id for job in jobs_of(run) if job.cluster]
    submitted = submitted[submitted.index(since_job) :] if since_job in submitted else submitted
    files = [task_log(run, job, rank, stream) for job in submitted for stream in ("err", "out")]
    return files if files and rank == 0 else [*files, run.log_of(rank)]


class _File:
    """A file that is read on from where it was left.

    Args:
        path: The file; need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self._identity: int | None = None
        self._cut = b""

    def skip_to_last(self, num_lines: int) -> int:
        """Go to where the last ``num_lines`` begin, and return how many there are from there on."""
        try:
            with self.path.open("rb") as file:
                self._identity = os.fstat(file.fileno()).st_ino
                end = place = file.seek(0, os.SEEK_END)
                found = 0
                while place > 0:
                    size = min(_PIECE_BYTES, place)
                    place -= size
                    file.seek(place)
                    piece = file.read(size)
                    at = len(piece) - (place + size == end and piece.endswith(b"\n"))
                    while (at := piece.rfind(b"\n", 0, at)) >= 0:
                        found += 1
                        if found >= num_lines:
                            self.position = place + at + 1
                            return found
                self.position = 0
                return found + (end > 0)
        except OSError:
            return 0

    def skip_all(self) -> None:
        """Go to its end."""
        try:
            self.position = self.path.stat().st_size
        except OSError:
            self.position = 0

    def news(self) -> Iterator[str]:
        """Yield the lines that came since; a file that was cut or replaced is read from its beginning."""
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_size < self.position or self._identity not in (None, facts.st_ino):
                    self.position, self._cut = 0, b""
                self._identity = facts.st_ino
                file.seek(self.position)
                while piece := file.read(_PIECE_BYTES):
                    self.position += len(piece)
                    *lines, self._cut = (self._cut + piece).split(b"\n")
                    yield from map(_text, lines)
                    if len(self._cut) > _PIECE_BYTES:
                        yield self.rest()
        except OSError:
            return

    def rest(self) -> str:
        """Return what has no end of line yet."""
        cut, self._cut = self._cut, b""
        return _text(cut)


class _Stream:
    """All files of a rank, in the order in which they were written.

    Args:
        run: The run directory.
        rank: Which process.
        since_job: The first job whose files count; None: all do.
    """

    def __init__(self, run: RunDirectory, rank: int, since_job: str | None = None) -> None:
        self.run = run
        self.rank = rank
        self.since_job = since_job
        self._files: dict[Path, _File] = {}

    def files(self) -> list[_File]:
        """Return the files, those that were written last at the end; successors bring new ones."""
        for path in sources(self.run, self.rank, self.since_job):
            self._files.setdefault(path, _File(path))
        return sorted(self._files.values(), key=lambda file: _changed(file.path))

    def skip_to_last(self, num_lines: int) -> None:
        """Go to where the last ``num_lines`` of all files begin; 0: to the beginning."""
        left = num_lines
        for file in reversed(self.files()) if num_lines else ():
            if left > 0:
                left -= file.skip_to_last(left)
            else:
                file.skip_all()

    def print_news(self, is_end: bool = False) -> bool:
        """Print what came since, and return whether anything did."""
        printed = False
        for file in self.files():
            for line in file.news():
                printed = True
                print(line)
            if is_end and (rest := file.rest()):
                printed = True
                print(rest)
        if printed:
            sys.stdout.flush()
        return printed


def _follow(run: RunDirectory, stream: _Stream) -> int:
    """Print what comes until the run has ended, and return its exit code."""
    said, events_changed, asked = "", 0.0, 0.0
    while True:
        stream.print_news()
        since = time.monotonic() - asked
        changed = _changed(run.events)
        is_news = changed != events_changed and since >= _NEWS_SECONDS
        if not asked or is_news or since >= _ASK_SECONDS["slurm" if jobs_of(run) else "local"]:
            events_changed = changed
            status = status_of([run])[0]
            asked = time.monotonic()
            if not status.is_live:
                _settle(stream)
                _say(f"{run.path}: {_state(status)}")
                return exit_code(status)
            # A run that trains says so itself; one that waits does not.
            if status.state != "running" and (words := _state(status)) != said:
                said = words
                _say(f"{run.path}: {words}")
        time.sleep(_LOOK_SECONDS)


def _settle(stream: _Stream) -> None:
    """Print what still comes after the end: figures on the terminal, and what srun says of the ranks."""
    quiet_since = began = time.monotonic()
    while time.monotonic() < min(quiet_since + _SETTLE_SECONDS, began + _LATEST_SECONDS):
        if stream.print_news():
            quiet_since = time.monotonic()
        time.sleep(_LOOK_SECONDS)
    stream.print_news(is_end=True)


def _state(status: RunStatus) -> str:
    return f"{in_words(status)}{f' (job {status.job.job_id})' if status.job else ''}"


def _say(text: str) -> None:
    """Say what is not the run's own word, apart from it."""
    print(text, file=sys.stderr, flush=True)


def _text(line: bytes) -> str:
    """Return a line as a terminal shows it: of one that was overwritten, as progress bars do, the last state."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
