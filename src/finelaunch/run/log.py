"""What a run says: sentences to the terminal, everything to the run's log file.

Warnings of libraries go to the file alone, so that the terminal shows what a user can act on.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

from rich.console import Console

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
    if log_file is None:
        root.addHandler(logging.NullHandler())
        return
    log_file.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(log_file, encoding="utf-8")
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
    print(text, file=sys.stderr, flush=True)
    if _terminal is not None and not os.path.sameopenfile(_terminal, 2):
        os.write(_terminal, f"{text}\n".encode(errors="replace"))


_terminal: int | None = None
