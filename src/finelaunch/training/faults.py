"""Ends of a training that have nothing to do with the recipe, each said as what it is, and what is known beforehand."""

import errno
import os
import shutil
from collections.abc import Iterator
from typing import Any

from finelaunch.errors import FinelaunchError, LostPeer, RequirementMissing
from finelaunch.models.weights import is_adapted, num_bytes, num_elements
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import is_full_disk, size_of
from finelaunch.run.ranks import is_lost_peer
from finelaunch.training.placement import Placement
from finelaunch.training.section import TrainingSection

NO_SPACE_BYTES = 1 << 20
BESIDE_WEIGHTS_BYTES = 4 << 20
"""What a checkpoint holds beside weights and optimizer: tokenizer, states, manifest."""
FULL_MEMORY = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Failed to CUDA calloc", "DefaultCPUAllocator")
FULL_MEMORY += ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
UNWRITTEN = ("PytorchStreamWriter failed", "unexpected pos ", "file write failed")
"""What torch says of a file that it could not write to its end; it does not say why."""

_checkpoint_bytes: dict[str, int] = {}
"""What :func:`check_room` found that a checkpoint of a run takes, for the message of a disk that is full later."""


def name_fault(error: BaseException, run: RunDirectory, placement: Placement) -> None:
    """Raise ``error`` as a sentence, where it is a full disk, a full memory or a lost rank.

    Raises:
        FinelaunchError: It is one of these.
    """
    if isinstance(error, FinelaunchError):
        return
    _name_full_disk(error, run)
    _name_full_memory(error, placement)
    if is_lost_peer(error):
        logs = [str(run.log_of(rank)) for rank in range(placement.num_processes)]
        shown = ", ".join(logs) if len(logs) <= 4 else f"{logs[0]} to {logs[-1]}"
        raise LostPeer(
            f"another rank has ended, or did not answer within {placement.collective_timeout_seconds} s "
            f"(launch.collective_timeout_seconds): {_first_line(error)}; a rank that hung has written where it stood "
            f"into its log: {shown}"
        ) from None


def checkpoint_bytes(model: Any, section: TrainingSection, placement: Placement) -> int:
    """Return what a checkpoint takes on the disk: the weights, and what the optimizer keeps of each.

    Args:
        model: The model; parameters that an engine keeps in parts count whole. Of a base only its adapter is written.
        section: Its ``optim`` is what is kept.
        placement: ZeRO writes the weights in the precision of the computation, and in fp32 beside them.
    """
    zero = placement.engine.zero_stage is not None
    copies = 1 if zero and placement.engine.zero_stage != 3 else 0
    total = BESIDE_WEIGHTS_BYTES
    for parameter in model.parameters():
        count = num_elements(parameter)
        if parameter.requires_grad or not is_adapted(model):
            total += num_bytes(parameter) * (1 + copies)
        if parameter.requires_grad:
            total += 4 * (count * zero + _num_states(count, tuple(parameter.shape), section.optim))
    return total


def _num_states(count: int, shape: tuple[int, ...], optim: str) -> int:
    """Return how many numbers an optimizer keeps of a weight: AdamW two of each, Adafactor two edges of a matrix."""
    if "adamw" in optim:
        return 2 * count  # at most: of those in 8 bits, small tensors and embeddings are kept in 32
    if optim == "adafactor":
        return count if len(shape) < 2 else count // shape[-1] + count // shape[-2]
    return 0


def check_room(run: RunDirectory, bytes_needed: int) -> None:
    """Refuse to train where the disk cannot hold two checkpoints: the newest one stays until the next one is whole.

    Args:
        run: The run directory; checkpoints that it holds already count.
        bytes_needed: What one checkpoint takes, from :func:`checkpoint_bytes`.

    Raises:
        RequirementMissing: Less is free.
    """
    _checkpoint_bytes[str(run.path)] = bytes_needed
    held = size_of(run.checkpoints)
    needed, free = max(2 * bytes_needed - held, bytes_needed), shutil.disk_usage(run.path).free
    if free < needed:
        count = "two checkpoints of" if needed > bytes_needed else "one more checkpoint of"
        raise RequirementMissing(
            f"{run.path}: {count} {bytes_needed:,} bytes need {needed:,} bytes, and {free:,} are free; make room, or "
            "choose another disk by --run-dir DIR"
        )


def _name_full_disk(error: BaseException, run: RunDirectory) -> None:
    """Raise what a full disk comes to; torch reports one as a RuntimeError without saying so.

    Raises:
        FinelaunchError: Something could not be written for want of room.
    """
    free = shutil.disk_usage(run.path).free
    full = any(is_full_disk(one) for one in _chain(error))
    unsaid = isinstance(error, RuntimeError) and (
        free < NO_SPACE_BYTES or any(sign in str(error) for sign in UNWRITTEN)
    )
    if full or unsaid:
        named = next((one for one in _chain(error) if isinstance(one, OSError) and one.filename), None)
        needed = _checkpoint_bytes.get(str(run.path))
        room = f", a checkpoint takes {needed:,}" if needed else ""
        why = f"a file was cut off, as where no space is left ({_first_line(error)})"
        if full:
            why = named.strerror if named and named.strerror else os.strerror(errno.ENOSPC)
        path = named.filename if named else run.path
        now = f"{free:,} bytes are free now{room}"
        raise FinelaunchError(
            f"{path}: cannot be written: {why}; {now}; make room, the same command continues"
        ) from None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, and those that it came of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _name_full_memory(error: BaseException, placement: Placement) -> None:
    """Raise what a memory without room comes to, on a GPU or on the host.

    Raises:
        FinelaunchError: That is what ``error`` is.
    """
    said = isinstance(error, RuntimeError | OSError) and any(sign in str(error) for sign in FULL_MEMORY)
    if not said and not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
        return
    where = "cuda" if "CU" in str(error) or type(error).__name__ == "OutOfMemoryError" else "cpu"
    why = f": {_first_line(error)}" if str(error) else ""
    raise FinelaunchError(
        f"launch.per_device_batch_size: out of memory on {where} with {placement.per_device_batch_size} rows a forward "
        f"pass{why}; {_less_memory(placement)}, with --allow-change launch where the run has begun; evaluation takes "
        f"launch.per_device_eval_batch_size={placement.per_device_eval_batch_size} rows"
    ) from None


def _less_memory(placement: Placement) -> str:
    """Return what to try: a batch that the share of a process is a multiple of, so that the global batch stays."""
    share = placement.global_batch_size // placement.num_processes
    half = placement.per_device_batch_size // 2
    size = next((number for number in range(half, 0, -1) if share % number == 0), None)
    if size is not None:
        cut = f"{size} per device x {placement.num_processes} x {share // size} accumulated"
        return f"try launch.per_device_batch_size={size} (the global batch stays: {cut})"
    ways = ["launch.activation_checkpointing=true"] * (not placement.activation_checkpointing)
    if placement.engine.zero_stage is not None and placement.engine.offload != "all":
        ways.append(f"launch.offload={'all' if placement.engine.zero_stage == 3 else 'optimizer'}")
    elif placement.engine.zero_stage is None and placement.num_processes > 1:
        ways.append("launch.accelerate_config=zero3")
    return f"one row is all there is, try {', '.join([*ways, 'a smaller task.max_length'])}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
