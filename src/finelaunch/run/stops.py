"""A stop on which all ranks agree: a signal that any of them has noted stops them all, at the same place.

Nothing here waits for a signal. The places are the end of an optimizer step, a batch of an evaluation and the moment
before the first step; between two of them all ranks do the same.
"""

import math

from finelaunch.errors import Interrupted
from finelaunch.run import signals
from finelaunch.run.ranks import agree, gather


def stop_if_asked() -> None:
    """Stop all ranks here where any was asked to; before training, when there is nothing to lose, this one alone.

    Raises:
        Interrupted: One was, with what asked for it.
    """
    signals.check()
    if signals.notes_only() and agree(signals.requested() is not None)[0]:
        raise agreed_stop()


def agreed_stop() -> Interrupted:
    """Return the stop that all ranks have just agreed on; they may now take their time to save."""
    asked = next(filter(None, gather(signals.requested())), "a signal")
    signals.note_only(math.inf)
    return Interrupted(asked, agreed=True)
