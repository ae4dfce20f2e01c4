"""Stopping at a step boundary: a signal to any rank stops all of them after the same step, which is then saved."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from finelaunch.errors import Interrupted
from finelaunch.run import signals
from finelaunch.run.ranks import agree
from finelaunch.run.stops import agreed_stop, stop_if_asked
from finelaunch.training.saving import Saving


class Preemption(TrainerCallback):
    """Asks at every step boundary whether any rank is to stop, and whether all have hashed the last checkpoint.

    One all-reduce a step serves both. It comes after the Trainer's own callback, whose decisions it overrules.

    Args:
        saving: Writes the checkpoint.
        grace_seconds: How long a signal may wait for a step boundary.
        before_first_step: Called once all is prepared; may measure, and may be stopped.
    """

    def __init__(self, saving: Saving, grace_seconds: float, before_first_step: Callable[[], None]) -> None:
        self.saving = saving
        self.grace_seconds = grace_seconds
        self.before_first_step = before_first_step
        self._begun_step: int | None = None
        self.stop: Interrupted | None = None
        """What stopped training, once all ranks have agreed on it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note signals from here on, and leave at once where there was one already: nothing was trained."""
        state.compute_steps(args, state.max_steps)  # a checkpoint brings the rhythm that it was written in
        self._begun_step = state.global_step
        signals.note_only(self.grace_seconds)
        self.before_first_step()
        if self.stop is not None:
            raise self.stop
        stop_if_asked()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop where any rank was asked to; an evaluation that is due now is made when the run continues."""
        stop, busy = agree(signals.requested() is not None, self.saving.is_busy())
        if not busy:
            self.saving.finish()
        if stop:
            self.end(agreed_stop(), state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave out what the end of an epoch would bring, where training was stopped at it, or had ended before."""
        if self.stop is not None or state.global_step == self._begun_step:
            control.should_evaluate = control.should_save = False

    def end(self, stop: Interrupted, state: Any, control: Any) -> None:
        """Have the Trainer save this step, unless it just has, and leave."""
        self.stop = stop
        control.should_save = self.saving.saved_step != state.global_step
        control.should_evaluate = False
        control.should_training_stop = True
