"""The command line: a file for each kind of verb. Verbs that only read a recipe load neither torch nor transformers."""

import os
import sys

from finelaunch.cli import data, models, reading, runs, sites, training
from finelaunch.cli.app import app
from finelaunch.errors import EXIT_FAILURE, EXIT_STOPPED, FinelaunchError, Interrupted, Stopped
from finelaunch.run import files, signals
from finelaunch.run.ranks import is_lost_peer

__all__ = ["app", "data", "main", "models", "reading", "runs", "sites", "training"]


def main() -> None:
    """Run the command line; every end that a user can act on is one message and an exit code."""
    from finelaunch.run.log import complain

    signals.listen()
    try:
        app(standalone_mode=True)
    except Stopped as stop:
        complain(str(stop))
        signals.leave(stop.reason or str(stop))
        sys.exit(stop.exit_code)
    except FinelaunchError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except Interrupted as stop:
        complain("stopped")
        signals.leave(str(stop))
        sys.exit(EXIT_STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)
    except Exception as error:
        stopped = signals.requested() and is_lost_peer(error)
        if not (stopped or files.is_full_disk(error)):
            raise
        complain("stopped" if stopped else files.full_disk_text(error))
        if stopped:
            signals.leave(str(signals.requested()))
        sys.exit(EXIT_STOPPED if stopped else EXIT_FAILURE)
