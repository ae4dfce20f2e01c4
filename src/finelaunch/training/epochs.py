"""What is done with the model before the first step and after each epoch, besides measuring it.

It happens outside of training: it is not booked as training time, a stop in it is heard like one in an evaluation, and
what a stop has left out is made up for before the next step.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from transformers import TrainerCallback

from finelaunch.errors import Interrupted
from finelaunch.methods.base import Stage
from finelaunch.run.ranks import gather
from finelaunch.training.journal import Journal
from finelaunch.training.preemption import Preemption

if TYPE_CHECKING:
    from finelaunch.training.trainer import FinelaunchTrainer


class EpochEnd(Protocol):
    """What is to be done; the first rank decides, and all of them do it together."""

    def begin(self, step: int) -> None:
        """Drop what is of later steps than ``step``, from which training goes on."""
        ...

    def is_done(self, step: int) -> bool:
        """Return whether it was done after ``step``; asked on the first rank only."""
        ...

    def __call__(self, model: Any, step: int, epoch: float, page: Callable[[str, str, int], None]) -> None:
        """Do it with ``model``, which is left as it was; ``page`` takes a title, a text and the step."""
        ...


class Epochs(TrainerCallback):
    """Calls an :class:`EpochEnd` with the untuned model, and at the end of every epoch.

    It stands after :class:`Preemption`, so that a step at which it is stopped is saved.

    Args:
        end: What is to be done.
        trainer: The trainer of a stage.
        stages: All of them.
        preemption: Knows of stops.
        journal: Knows what is training time.
        writer: Of tensorboard, on the first rank.
    """

    def __init__(
        self,
        end: EpochEnd,
        trainer: "FinelaunchTrainer",
        stages: Sequence[Stage],
        preemption: Preemption,
        journal: Journal,
        writer: Any,
    ) -> None:
        self.end = end
        self.trainer = trainer
        self.ends = {stage.end_step for stage in stages}
        self.steps_per_epoch = trainer.sampler.num_global_batches
        self.preemption = preemption
        self.journal = journal
        self.writer = writer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin with the untuned model, or make up for what a stop has left out."""
        self.end.begin(state.global_step)
        if state.global_step % self.steps_per_epoch == 0 or state.global_step in self.ends:
            self._do(state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Do it, unless training is stopping at this very step: it is then done when the run continues."""
        if self.preemption.stop is not None:
            return
        try:
            self._do(state.global_step)
        except Interrupted as stop:
            self.preemption.end(stop, state, control)

    def _do(self, step: int) -> None:
        if gather(self.end.is_done(step) if self.writer is not None else None)[0]:
            return
        self.end(self.trainer.model, step, round(step / self.steps_per_epoch, 4), self._page)
        self.journal.leave_out()

    def _page(self, title: str, text: str, step: int) -> None:
        if self.writer is not None:
            self.writer.add_text(title, text, step)
            self.writer.flush()
