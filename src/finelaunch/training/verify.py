"""What really runs, read from the live objects of every rank and held against what was asked.

On this stack several requests silently run something else (several processes that each train alone, DDP instead of
ZeRO, two ranks on one GPU), with exit code 0 and a normal loss. So a run writes down what it is, and ends where that
is not what was asked for.
"""

import socket
from typing import TYPE_CHECKING, Any

from finelaunch.errors import FinelaunchError
from finelaunch.run.ranks import gather
from finelaunch.training.placement import Placement

if TYPE_CHECKING:
    from finelaunch.training.trainer import FinelaunchTrainer

WHY = {
    "name": "accelerate wraps the model as its environment says when the process group is made, and falls back to DDP "
    "or to one process where that is incomplete",
    "world_size": "each process trains alone where the backend or the ranks were not there when accelerate looked",
    "num_processes": "accelerate looked before the process group was made, or past it",
    "dtype": "a checkpoint's own dtype is kept unless another is asked for, and half of it would be lost in training",
    "backend": "the process group was made by someone else, or for another device",
    "device": "a GPU was visible to a CPU run, or hidden from a GPU run (CUDA_VISIBLE_DEVICES)",
    "precision": "accelerate takes it from ACCELERATE_MIXED_PRECISION where nothing else is said",
    "offload": "a DeepSpeed or FSDP configuration says otherwise",
    "global_batch_size": "a DeepSpeed or accelerate configuration gives sizes of its own",
    "num_gpus": "transformers wraps the model in nn.DataParallel where one process sees several GPUs",
}
"""Why something else may run, by what differs."""


IN_4_BITS = "4 bits"
"""What frozen weights may be held in beside the dtype that was asked for."""


def asked(placement: Placement) -> dict[str, Any]:
    """Return what the live objects must say."""
    return {
        "name": placement.engine.name,
        "world_size": placement.num_processes,
        "backend": placement.backend,
        "num_processes": placement.num_processes,
        "device": placement.device,
        "dtype": _held_in(placement),
        "precision": placement.precision,
        "global_batch_size": placement.global_batch_size,
        "offload": placement.engine.offload,
        "num_gpus": 1 if placement.device == "cuda" else 0,
    }


def _held_in(placement: Placement) -> str:
    """Return what the weights are held in: fp32, but for DeepSpeed in 16 bit, which keeps fp32 beside them."""
    if placement.engine.zero_stage is None:
        return "float32"
    return {"bf16": "bfloat16", "fp16": "float16"}.get(placement.precision, "float32")


def live(trainer: "FinelaunchTrainer") -> dict[str, Any]:
    """Return what runs on this rank, from the prepared model, the process group and the accelerator."""
    import torch
    import torch.distributed as dist

    accelerator, args = trainer.accelerator, trainer.args
    plain: Any = trainer.model
    wrapped: Any = trainer.model_wrapped
    grouped = dist.is_available() and dist.is_initialized()
    deepspeed = _is_deepspeed(wrapped)
    if deepspeed:
        precision = "bf16" if wrapped.bfloat16_enabled() else "fp16" if wrapped.fp16_enabled() else "fp32"
    else:
        precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    if precision == "fp32" and torch.cuda.is_available() and torch.backends.cuda.matmul.fp32_precision == "tf32":
        precision = "tf32"
    world_size = dist.get_world_size() if grouped else 1
    cut = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size
    parameter = next(plain.parameters())
    return {
        "name": _name(wrapped, alone_in_group=grouped and world_size == 1),
        "distributed_type": accelerator.distributed_type.value,
        "world_size": world_size,
        "num_processes": accelerator.num_processes,
        "zero_stage": wrapped.zero_optimization_stage() if deepspeed else None,
        "backend": dist.get_backend() if grouped else None,
        "device": parameter.device.type,
        "dtype": "+".join(sorted({_dtype(one) for one in plain.parameters()} - {IN_4_BITS})),
        "precision": precision,
        "global_batch_size": wrapped.train_batch_size() if deepspeed else cut,
        "per_device_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "model_class": type(wrapped).__name__,
        "optimizer_class": type(wrapped.optimizer if deepspeed else _bare(trainer.optimizer)).__name__,
        "offload": _offload(trainer, wrapped),
        "num_gpus": args.n_gpu if parameter.device.type == "cuda" else 0,
    }


def verify(trainer: "FinelaunchTrainer", placement: Placement) -> dict[str, Any]:
    """Return what runs, for the manifest, the same on every rank.

    Raises:
        FinelaunchError: On some rank it is not what was asked, or two ranks share a GPU; on every rank.
    """
    ran = live(trainer)
    different = differing(asked(placement), ran)
    if different and placement.num_processes not in (1, ran["world_size"]):  # alone: nobody to tell
        raise FinelaunchError(different)
    told = gather((different, _own_device(trainer)))
    for rank, (text, _) in enumerate(told):
        if text:
            raise FinelaunchError(f"{text} (rank {rank})" if len(told) > 1 else text)
    devices = [device for _, device in told]
    if placement.device == "cuda" and len(set(devices)) < len(devices):
        shared = next(device for device in devices if devices.count(device) > 1)
        where = [rank for rank, device in enumerate(devices) if device == shared]
        raise FinelaunchError(
            f"engine: asked for a GPU of its own for each rank, but ranks {where} share {shared}: accelerate takes the "
            "local rank modulo the visible devices; start no more processes than GPUs"
        )
    del ran["num_gpus"], ran["num_processes"]
    return {**ran, "device": str(trainer.args.device), "devices": devices}


def verify_equal(model: Any, placement: Placement) -> None:
    """End the run where the ranks of an engine that holds whole weights on each have not trained the same ones.

    Args:
        model: The plain model, after its last step; all ranks call this.
        placement: A settled placement.

    Raises:
        FinelaunchError: Two ranks hold different bits.
    """
    if placement.num_processes == 1 or placement.engine.shards_weights:
        return
    trained = [(name, one.detach()) for name, one in model.named_parameters() if one.requires_grad]
    told = gather({name: _bits_by_place(one) for name, one in trained})
    different = [name for name in told[0] if len({of_rank[name] for of_rank in told}) > 1]
    if different:
        raise FinelaunchError(
            f"engine: after the last step the ranks hold different weights, {len(different)} of {len(told[0])} "
            f"tensors, {different[0]} among them: their gradients were not reduced; no checkpoint of this run is of use"
        )


def _bits_by_place(weights: Any) -> int:
    """Return a number that another bit, or the same bits in other places, would change."""
    import torch

    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weights.element_size()]
    total = 0
    for number, part in enumerate(weights.flatten().view(kind).split(1 << 20)):
        places = torch.arange(1, 2 * len(part), 2, device=part.device)
        total += (2 * number + 1) * int((part.to(torch.int64) * places).sum())
    return total


def differing(wanted: dict[str, Any], ran: dict[str, Any]) -> str:
    """Return the sentence for what was asked and did not run; empty where all is as asked."""
    different = [key for key in wanted if ran[key] != wanted[key]]
    if not different:
        return ""
    first = "world_size" if "world_size" in different else different[0]
    said = ", ".join(f"{key} {wanted[key]}" for key in different)
    found = ", ".join(f"{key} {ran[key]}" for key in different)
    return f"engine: asked for {said}, but {found} ran; {WHY[first]}"


def _name(wrapped: Any, alone_in_group: bool) -> str:
    """Return the engine that the class of a prepared model belongs to.

    In a group of one accelerate does not wrap a model on a GPU for DDP: there is nobody to share gradients with.
    """
    from torch.nn import DataParallel
    from torch.nn.parallel import DistributedDataParallel

    if _is_deepspeed(wrapped):
        stage = wrapped.zero_optimization_stage()
        return f"zero{stage}" if "Zero" in type(wrapped.optimizer).__name__ else f"deepspeed without ZeRO ({stage})"
    if isinstance(wrapped, DistributedDataParallel):
        return "ddp"
    if isinstance(wrapped, DataParallel):
        return "nn.DataParallel"
    from torch.distributed.fsdp import FSDPModule

    if isinstance(wrapped, FSDPModule):
        return "fsdp2"
    return "ddp" if alone_in_group else "single"


def _dtype(parameter: Any) -> str:
    """Return what a weight is held in; what it is packed into says nothing where it is in 4 bits."""
    is_packed = type(parameter).__name__ == "Params4bit"
    return IN_4_BITS if is_packed else str(parameter.dtype).removeprefix("torch.")


def _is_deepspeed(wrapped: Any) -> bool:
    return type(wrapped).__name__ == "DeepSpeedEngine"


def _bare(optimizer: Any) -> Any:
    """Return the optimizer itself, out of accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _offload(trainer: "FinelaunchTrainer", wrapped: Any) -> str:
    """Return what lives in host memory, in the words of the launch profile."""
    if _is_deepspeed(wrapped):
        weights, optimizer = wrapped.zero_offload_param(), wrapped.zero_offload_optimizer()
        on_host = [part is not None and str(part.device) not in ("none", "None") for part in (weights, optimizer)]
        return "all" if on_host[0] else "optimizer" if on_host[1] else "none"
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return "all" if plugin is not None and bool(plugin.cpu_offload) else "none"


def _own_device(trainer: "FinelaunchTrainer") -> str:
    """Return what names this rank's device among all machines."""
    import torch

    host = socket.gethostname()
    if trainer.args.device.type != "cuda":
        return f"{host} cpu"
    properties = torch.cuda.get_device_properties(trainer.args.device)
    return f"{host} {properties.name} {getattr(properties, 'uuid', trainer.args.device)}"
