"""What a run says: sentences to the terminal, everything to the run's log file.

Warnings of libraries go to the file alone, so that the terminal shows what a user can act on.
"""

import logging
import warnings
from pathlib import Path

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""The terminal, where a progress bar may stand below the lines."""

_logger = logging.getLogger("finelaunch")


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False, style="yellow" if record.levelno >= logging.WARNING else None)


def set_up(log_file: Path | None = None) -> None:
    """Send what :func:`say` and :func:`warn` are given to the terminal and to ``log_file``; can be called again."""
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
    root = logging.getLogger()
    for logger in (_logger, root):
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
    _logger.addHandler(_Terminal())
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
