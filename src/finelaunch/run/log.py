"""What a run says: sentences to the terminal, everything to the run's log file.

Warnings of libraries go to the file alone, so that the terminal shows what a user can act on.
"""

import contextlib
import logging
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console

from finelaunch.run.files import is_full_disk

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""The terminal, where a progress bar may stand below the lines."""

_logger = logging.getLogger("finelaunch")


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        try:
            console.print(self.format(record), markup=False, style=style)
        except (OSError, SystemExit):
            # The terminal was closed; rich would end the process, and Python its exit code over what is left to flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


class _File(logging.FileHandler):
    """A log file on a disk that may fill up: a line that cannot be written is lost, and said once on the terminal."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            warn(f"{self.baseFilename}: cannot be written: {error.strerror}")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written is still in its buffer
            super().close()


class _Threads:
    """Takes what threads end with: that of a full disk, which the main thread meets as well, needs no traceback."""

    def __init__(self) -> None:
        self.before = threading.excepthook

    def __call__(self, ended: Any) -> None:
        if ended.exc_value is None or not is_full_disk(ended.exc_value):
            self.before(ended)


def set_up(log_file: Path | None = None, terminal: bool = True) -> None:
    """Send what :func:`say` and :func:`warn` are given to the terminal and to ``log_file``; can be called again."""
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
    root = logging.getLogger()
    for logger in (_logger, root):
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
    _logger.addHandler(_Terminal() if terminal else logging.NullHandler())
    logging.captureWarnings(True)
    if not isinstance(threading.excepthook, _Threads):
        threading.excepthook = _Threads()
    if log_file is None:
        root.addHandler(logging.NullHandler())
        return
    log_file.parent.mkdir(parents=True, exist_ok=True)
    file = _File(log_file, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _logger.addHandler(file)
    root.addHandler(file)


def say(text: str) -> None:
    """Tell the user."""
    _logger.info(text)


def warn(text: str) -> None:
    """Tell the user of something that may not be as expected."""
    _logger.warning("warning: %s", text)


def quiet_libraries() -> None:
    """Send what transformers, datasets and the hub say through the root logger, and hide their progress bars."""
    import datasets
    import transformers

    for library in (transformers.utils.logging, datasets.logging):
        library.set_verbosity_warning()
        library.disable_default_handler() if library is transformers.utils.logging else None
        library.enable_propagation()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("default")


def capture(log_file: Path) -> None:
    """Send all output of this process to ``log_file``, whoever writes it; for ranks that do not own the terminal."""
    global _terminal
    sys.stdout.flush()
    sys.stderr.flush()
    if _terminal is None:
        _terminal = os.dup(2)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def complain(text: str) -> None:
    """Say why this process ends, on the terminal too where its output is captured."""
    with contextlib.suppress(OSError):  # its output may go to a disk that is full
        print(text, file=sys.stderr, flush=True)
    if _terminal is not None and not os.path.sameopenfile(_terminal, 2):
        os.write(_terminal, f"{text}\n".encode(errors="replace"))


_terminal: int | None = None
