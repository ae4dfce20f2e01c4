"""The loader of training rows: it follows the epochs of our sampler, and its workers outlive a stop."""

import os
import signal
import threading

from torch.utils.data import DataLoader

from finelaunch.run.signals import STOP_SIGNALS


class EpochLoader(DataLoader):
    """A loader that hands the epoch on to its batch sampler.

    Without ``set_epoch`` every epoch of a fresh run would have the order of the first one, and a resumed run another.
    """

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def outlive_signals(_worker: int) -> None:
    """Let a loader's worker ignore what asks the run to stop: to save, a rank may need its last batches.

    SIGTERM ends it only where its own rank has sent it, as multiprocessing does at the rank's exit, and waits.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an ignored signal is not waited for
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_rank, name="signals", daemon=True).start()


def _end_with_rank() -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == os.getppid():
            os._exit(0)
