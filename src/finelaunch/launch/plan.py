"""The arithmetic of a run: what recipe and profile come to on this machine."""

from collections.abc import Iterable

from finelaunch.errors import BadInput, Problem
from finelaunch.launch.profile import Profile
from finelaunch.section.document import Document
from finelaunch.training.placement import Placement


def place(global_batch_size: int, profile: Profile, document: Document) -> Placement:
    """Return how the global batch is cut on the one process of ``profile``.

    Args:
        global_batch_size: Rows an optimizer step.
        profile: The machine.
        document: The profile's document, for the origin of its keys.

    Raises:
        BadInput: The global batch is not a multiple of the per-device batch.
    """
    per_device = profile.per_device_batch_size or global_batch_size
    if global_batch_size % per_device:
        divisors = [size for size in range(1, global_batch_size + 1) if global_batch_size % size == 0]
        near = sorted(sorted(divisors, key=lambda size: abs(size - per_device))[:2])
        below = global_batch_size - global_batch_size % per_device
        what = f"global_batch_size {global_batch_size} is not divisible by 1 process x {per_device} per device"
        remedy = (
            f"use {_either(near)}, or training.global_batch_size={_either(filter(None, (below, below + per_device)))}"
        )
        origin = document.origin(("per_device_batch_size",))
        raise BadInput(Problem(origin, "launch.per_device_batch_size", what, "", remedy))
    return Placement(
        device=profile.device,
        precision=profile.precision,
        per_device_batch_size=per_device,
        gradient_accumulation_steps=global_batch_size // per_device,
        per_device_eval_batch_size=profile.per_device_eval_batch_size,
        activation_checkpointing=profile.activation_checkpointing,
        dataloader_num_workers=profile.dataloader_num_workers,
    )


def _either(sizes: Iterable[int]) -> str:
    return " or ".join(map(str, sizes))
