"""What one worker runs on, settled before it starts: engine, device, precision and the cut of the global batch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from finelaunch.engines import SINGLE, Engine
from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.run.ranks import Ranks

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True)
class Placement:
    """The machine side of training, as numbers.

    Args:
        device: ``cpu`` or ``cuda``.
        precision: What forward and backward compute in; weights are held in fp32, by DeepSpeed in the precision itself
            beside an fp32 copy. ``tf32`` is fp32 with matrix products in TF32. ``auto`` until :func:`settle`.
        per_device_batch_size: Rows of a forward pass.
        gradient_accumulation_steps: Forward passes of an optimizer step.
        num_processes: All processes.
        engine: How they train together.
        per_device_eval_batch_size: Rows of a forward pass in evaluation.
        activation_checkpointing: Recompute activations in the backward pass.
        dataloader_num_workers: Processes that make batches.
        collective_timeout_seconds: How long ranks wait for each other.
    """

    device: Literal["cpu", "cuda"]
    precision: Precision
    per_device_batch_size: int
    gradient_accumulation_steps: int
    num_processes: int = 1
    engine: Engine = SINGLE
    per_device_eval_batch_size: int = 32
    activation_checkpointing: bool = False
    dataloader_num_workers: int = 0
    collective_timeout_seconds: int = 600

    @property
    def global_batch_size(self) -> int:
        """Rows of an optimizer step, over all processes."""
        return self.per_device_batch_size * self.num_processes * self.gradient_accumulation_steps

    @property
    def backend(self) -> str | None:
        """What collectives run over."""
        return self.engine.backend(self.device)

    def arithmetic(self) -> str:
        """Return the batch arithmetic as a reader can check it."""
        return batch_arithmetic(self.per_device_batch_size, self.num_processes, self.gradient_accumulation_steps)


def batch_arithmetic(per_device: int, processes: int, accumulation: int) -> str:
    """Return the cut of a global batch as a sentence."""
    cut = f"{per_device} per device x {count_of(processes)} x {accumulation} accumulated"
    return f"global batch {per_device * processes * accumulation} = {cut}"


def count_of(processes: int) -> str:
    """Return a number of processes in words, such as ``2 processes``."""
    return f"{processes} process{'es' if processes > 1 else ''}"


def too_few_gpus(wanted: int, there: int, origin: str) -> Problem:
    """Return the problem of more processes on a machine than GPUs; accelerate would let two share one."""
    what = f"{count_of(wanted)} and {there} GPU{'s' if there > 1 else ''}; two would share one"
    remedy = f"use launch.num_processes_per_node={there}, or check CUDA_VISIBLE_DEVICES"
    return Problem(origin, "launch.num_processes_per_node", what, "", remedy)


def expose_gpus(device: str, alone: bool) -> None:
    """Let this process see the GPUs that it may use; must come before torch is loaded.

    transformers wraps a model in ``nn.DataParallel`` where a single process sees several, and accelerate takes a GPU
    that it sees for a CPU run of DeepSpeed. cuBLAS reads the size of its workspace once, at its first call, so what
    deterministic training needs is set here too.

    Args:
        device: ``cpu`` hides all of them.
        alone: One process without others sees one GPU at most; a rank among others picks its own from all.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["DS_ACCELERATOR"] = "cpu"
    elif alone:
        os.environ["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]


def settle(placement: Placement, ranks: Ranks) -> Placement:
    """Return ``placement`` with its precision decided by the device at hand.

    Raises:
        BadInput: More processes on this machine than devices.
        RequirementMissing: The device is not there, or cannot compute in the precision that was asked for.
    """
    import torch

    placement.engine.require()
    if placement.device == "cpu":
        return replace(placement, precision="fp32") if placement.precision == "auto" else placement
    if not torch.cuda.is_available():
        raise RequirementMissing("launch.device: no CUDA device is visible to torch; use --on cpu, or check nvidia-smi")
    count, wanted = torch.cuda.device_count(), ranks.local_world_size
    has_own = has_own_gpu(count, wanted, os.environ)
    if count < wanted and not has_own:
        raise BadInput(too_few_gpus(wanted, count, "launch profile"))
    if placement.engine.name == "single" and count != 1:
        raise RequirementMissing(
            f"launch.device: this process sees {count} GPUs where one was to be exposed; "
            "set CUDA_VISIBLE_DEVICES to one of them"
        )
    if has_own:
        os.environ["LOCAL_RANK"] = "0"  # by which accelerate and DeepSpeed choose a device
    torch.cuda.set_device(0 if has_own else ranks.local_rank)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    has_tf32 = torch.cuda.get_device_capability() >= (8, 0)
    for precision, there in (("bf16", has_bf16), ("tf32", has_tf32)):
        if placement.precision == precision and not there:
            name = torch.cuda.get_device_name()
            others = "launch.precision=fp16, fp32 or auto"
            raise RequirementMissing(f"launch.precision: {name} has no {precision}; use {others}")
    if placement.precision == "auto":
        has_fp16 = torch.cuda.get_device_capability() >= (7, 0) and placement.engine.name != "fsdp2"
        placement = replace(placement, precision="bf16" if has_bf16 else "fp16" if has_fp16 else "fp32")
    # The same switch as the Trainer's, so that evaluation and prediction compute as training does.
    backends: Any = torch.backends
    backends.fp32_precision = "tf32" if placement.precision == "tf32" else "ieee"
    return placement


def has_own_gpu(count: int, wanted: int, environment: Mapping[str, str]) -> bool:
    """Return whether Slurm shows each rank one GPU of its own, as its first, as with ``--gpus-per-task``.

    That no two ranks were shown the same one is checked once they can ask each other.

    Args:
        count: The GPUs that this rank sees.
        wanted: The ranks of this machine.
        environment: Of this rank.
    """
    return count == 1 < wanted and "SLURM_STEP_ID" in environment


def start_engine(placement: Placement) -> None:
    """Make the process group of ``placement``, as its engine needs it; nothing for a single process.

    Must come before any ``TrainingArguments``. Without it accelerate runs one process beside a DeepSpeed of several,
    and every rank of a CPU run trains alone. What ``accelerate launch`` left in the environment was read before, and is
    taken away: it would contradict what is passed on explicitly.
    """
    engine = placement.engine
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]
    if not engine.is_distributed:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
        return
    if engine.zero_stage is not None:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        _without_compiled_collectives()
    from datetime import timedelta

    from accelerate import PartialState

    timeout = timedelta(seconds=placement.collective_timeout_seconds)
    on_cpu = placement.device == "cpu" and engine.zero_stage is None
    PartialState(cpu=on_cpu, backend=placement.backend, timeout=timeout)


def _without_compiled_collectives() -> None:
    """Leave out DeepSpeed's collective for CPUs over shared memory: gloo does its work without a compiler."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def stop_engine() -> None:
    """End the process group, all ranks together; a rank that ends without it may abort in the interpreter's exit."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def move(model: Any, placement: Placement) -> None:
    """Put the weights of ``model`` on this rank's device, in place."""
    import torch

    model.to("cpu" if placement.device == "cpu" else torch.device("cuda", torch.cuda.current_device()))


def cuda_is_there() -> bool:
    """Return whether torch can use a GPU here."""
    import torch

    return torch.cuda.is_available()
