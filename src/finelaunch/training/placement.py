"""What one worker runs on, settled before it starts: device, precision and the cut of the global batch."""

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

from finelaunch.errors import RequirementMissing

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Placement:
    """The machine side of training, as numbers.

    Args:
        device: ``cpu`` or ``cuda``.
        precision: What forward and backward compute in; weights are held in fp32. ``auto`` until :func:`settle`.
        per_device_batch_size: Rows of a forward pass.
        gradient_accumulation_steps: Forward passes of an optimizer step.
        per_device_eval_batch_size: Rows of a forward pass in evaluation.
        activation_checkpointing: Recompute activations in the backward pass.
        dataloader_num_workers: Processes that make batches.
    """

    device: Literal["cpu", "cuda"]
    precision: Precision
    per_device_batch_size: int
    gradient_accumulation_steps: int
    per_device_eval_batch_size: int = 32
    activation_checkpointing: bool = False
    dataloader_num_workers: int = 0

    @property
    def global_batch_size(self) -> int:
        """Rows of an optimizer step."""
        return self.per_device_batch_size * self.gradient_accumulation_steps

    def arithmetic(self) -> str:
        """Return the batch arithmetic as a reader can check it."""
        cut = f"{self.per_device_batch_size} per device x 1 process x {self.gradient_accumulation_steps} accumulated"
        return f"global batch {self.global_batch_size} = {cut}"


def expose_one_gpu() -> None:
    """Let this process see one GPU at most; must come before torch is imported.

    transformers wraps a model in ``nn.DataParallel`` where a single process sees several. cuBLAS reads the size of its
    workspace once, at its first call, so what deterministic training needs is set here too.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]


def settle(placement: Placement) -> Placement:
    """Return ``placement`` with its precision decided by the device at hand.

    Raises:
        RequirementMissing: The device is not there, or cannot compute in the precision that was asked for.
    """
    import torch

    if placement.device == "cpu":
        return replace(placement, precision="fp32")
    if not torch.cuda.is_available():
        raise RequirementMissing("launch.device: no CUDA device is visible to torch; use --on cpu, or check nvidia-smi")
    if torch.cuda.device_count() != 1:
        raise RequirementMissing(
            f"launch.device: this process sees {torch.cuda.device_count()} GPUs where one was to be exposed; "
            "set CUDA_VISIBLE_DEVICES to one of them"
        )
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if placement.precision == "bf16" and not has_bf16:
        name = torch.cuda.get_device_name()
        raise RequirementMissing(f"launch.precision: {name} has no bf16; use launch.precision=fp16, fp32 or auto")
    if placement.precision == "auto":
        has_fp16 = torch.cuda.get_device_capability() >= (7, 0)
        return replace(placement, precision="bf16" if has_bf16 else "fp16" if has_fp16 else "fp32")
    return placement


def move(model: Any, device: str) -> None:
    """Put the weights of ``model`` on ``device``, in place."""
    model.to(device)


def cuda_is_there() -> bool:
    """Return whether torch can use a GPU here."""
    import torch

    return torch.cuda.is_available()
