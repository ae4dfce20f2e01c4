"""Ends of a training that have nothing to do with the recipe, each said as what it is."""

import errno
import shutil

from finelaunch.errors import FinelaunchError
from finelaunch.run.directory import RunDirectory
from finelaunch.training.placement import Placement

NO_SPACE_BYTES = 1 << 20
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe", "NCCL error")
"""What collectives say of a rank that ended or hangs."""
FULL_MEMORY = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Failed to CUDA calloc")


def name_fault(error: BaseException, run: RunDirectory, placement: Placement) -> None:
    """Raise ``error`` as a sentence, where it is a full disk, a full memory or a lost rank.

    Raises:
        FinelaunchError: It is one of these.
    """
    _name_full_disk(error, run)
    _name_full_memory(error, placement)
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_PEER):
        raise FinelaunchError(
            f"another rank has ended, or did not answer within {placement.collective_timeout_seconds} s "
            f"(launch.collective_timeout_seconds): {str(error).splitlines()[0]:.200}; see the logs of the others in "
            f"{run.log.parent}"
        ) from None


def _name_full_disk(error: BaseException, run: RunDirectory) -> None:
    """Raise what a full disk comes to; torch reports one as a RuntimeError without saying so.

    Raises:
        FinelaunchError: Nothing, or next to nothing, can be written in the run directory.
    """
    free = shutil.disk_usage(run.path).free
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    full = full or (isinstance(error, Exception) and "No space left on device" in str(error))
    if full or (isinstance(error, RuntimeError) and free < NO_SPACE_BYTES):
        raise FinelaunchError(
            f"{run.path}: cannot be written: no space left ({free:,} bytes free); make room, the same command continues"
        ) from None


def _name_full_memory(error: BaseException, placement: Placement) -> None:
    """Raise what a GPU without memory left comes to.

    Raises:
        FinelaunchError: That is what ``error`` is.
    """
    if type(error).__name__ == "OutOfMemoryError" or (
        placement.device == "cuda"
        and isinstance(error, RuntimeError)
        and any(sign in str(error) for sign in FULL_MEMORY)
    ):
        size = max(1, placement.per_device_batch_size // 2)
        while placement.global_batch_size % size:
            size -= 1
        raise FinelaunchError(
            f"out of memory on {placement.device}: {str(error).splitlines()[0]:.200}; try "
            f"launch.per_device_batch_size={size} (the global batch stays), launch.per_device_eval_batch_size=8 or "
            "launch.activation_checkpointing=true, with --allow-change launch where the run has begun"
        ) from None
