"""``python -m finelaunch``, and the command: signals are heard before anything slow is imported."""

import sys

from finelaunch.errors import EXIT_STOPPED, Interrupted
from finelaunch.run import signals


def main() -> None:
    """Run the command line."""
    signals.listen()
    try:
        from finelaunch.cli import main as command

        command()
    except Interrupted as stop:
        signals.leave(str(stop))
        sys.exit(EXIT_STOPPED)


if __name__ == "__main__":
    main()
