"""A stop on which all ranks agree: a signal that any of them has noted stops them all, at the same place.

Nothing here waits for a signal. The places are the end of an optimizer step, a batch of an evaluation and the moment
before the first step; between two of them all ranks do the same.
"""

import math
import time

from finelaunch.errors import Interrupted, LostPeer
from finelaunch.run import signals
from finelaunch.run.ranks import agree, gather

PATIENCE_SECONDS = 2.0
"""How long a rank that has lost a peer waits for the signal that the launcher then sends to all."""


def stop_if_asked() -> None:
    """Stop all ranks here where any was asked to; before training, when there is nothing to lose, this one alone.

    Raises:
        Interrupted: One was, with what asked for it.
    """
    signals.check()
    if signals.notes_only() and agree(signals.requested() is not None)[0]:
        raise agreed_stop()


def has_peer_stopped(error: BaseException | None) -> bool:
    """Return whether a lost peer is no failure: this rank is to stop as well, or is told so in a moment."""
    if signals.stays_at_stop():
        return False
    patience = time.monotonic() + PATIENCE_SECONDS
    while isinstance(error, LostPeer) and signals.requested() is None and time.monotonic() < patience:
        time.sleep(0.05)
    return isinstance(error, LostPeer) and signals.requested() is not None


def agreed_stop() -> Interrupted:
    """Return the stop that all ranks have just agreed on; they may now take their time to save."""
    asked = next(filter(None, gather(signals.requested())), "a signal")
    signals.note_only(math.inf)
    return Interrupted(asked, agreed=True)
