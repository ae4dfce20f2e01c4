"""Launch profiles: the machine side of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, Tag

from finelaunch.engines import Engine, Offload, load_engine
from finelaunch.errors import BadInput
from finelaunch.section.base import Section, SettingError, build, told_apart
from finelaunch.section.document import Document, merge
from finelaunch.section.lookup import find, read_file
from finelaunch.training.placement import Precision


def _kind_of_number(value: Any) -> str | None:
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):  # quotes are answered with the number
        return "a number"
    return "visible" if value == "visible" else None


NumProcesses = Annotated[
    Annotated[PositiveInt, Tag("a number")] | Annotated[Literal["visible"], Tag("visible")],
    told_apart(_kind_of_number, "a number above 0, or 'visible'"),
]
"""Processes on each machine, or one for each GPU that is there."""


class Profile(Section):
    """On what to run; nothing of what is trained."""

    answers: ClassVar[Mapping[str, str]] = {
        "bf16": "use precision: bf16",
        "fp16": "use precision: fp16",
        "mixed_precision": "use precision",
        "global_batch_size": "it changes the result and stands in the recipe: training.global_batch_size",
        "per_device_train_batch_size": "use per_device_batch_size",
        "gradient_accumulation_steps": "it is computed: global_batch_size / (processes x per_device_batch_size)",
        "gradient_checkpointing": "use activation_checkpointing",
        "deepspeed": "an engine is an accelerate config: use accelerate_config: zero2 and the like",
        "zero_stage": "use accelerate_config: zero1, zero2 or zero3",
        "engine": "use accelerate_config",
        "num_gpus": "use num_processes_per_node",
        "num_processes": "use num_processes_per_node and num_nodes",
        "base": "a profile has none; copy its keys",
    }

    target: Literal["inprocess", "torchrun", "slurm"] = Field(
        default="inprocess", description="who starts the processes"
    )
    accelerate_config: str = Field(default="single", description="the engine: single, ddp, zero1, zero2, zero3, fsdp2")
    num_nodes: int = Field(default=1, ge=1, description="machines")
    num_processes_per_node: NumProcesses = Field(
        default=1, description="processes on each machine; visible: one for each GPU that is there"
    )
    device: Literal["cpu", "cuda"] = Field(description="cpu or cuda")
    precision: Precision = Field(
        default="auto", description="auto: bf16, else fp16 with loss scaling, else fp32, as the device can"
    )
    per_device_batch_size: int | None = Field(
        default=None, ge=1, le=2**20, description="rows a forward pass; null: the whole share, no accumulation"
    )
    per_device_eval_batch_size: int = Field(default=32, ge=1, description="rows a forward pass of evaluation")
    activation_checkpointing: bool = Field(default=False, description="recompute activations: less memory, slower")
    offload: Offload = Field(default="none", description="none, optimizer or all: what lives in host memory")
    dataloader_num_workers: int = Field(default=0, ge=0, description="processes that make batches; 0: this one")
    collective_timeout_seconds: int = Field(
        default=600, ge=10, description="how long ranks wait for each other before the run fails"
    )
    stop_grace_seconds: int = Field(default=120, ge=1, description="time to save between a stop and the end")
    max_run_seconds: int | None = Field(
        default=None, ge=1, description="be saved and stopped, resumable, when so much time is over; null: never"
    )

    def faults(self) -> Iterator[SettingError]:
        """Yield what does not go together on any engine."""
        if self.device == "cpu" and self.precision in ("fp16", "tf32"):
            what = f"{self.precision} is for GPUs"
            yield SettingError("precision", what, "fp32 or auto", "use launch.precision=fp32 or --on gpu")
        if self.device == "cpu" and self.precision == "bf16" and not cpu_has_bf16():
            what = "this CPU has no bf16 instructions (avx512_bf16 or amx_bf16), and bf16 takes up to 100 times as long"
            yield SettingError("precision", what, "fp32 or auto", "use launch.precision=fp32 or --on gpu")
        if self.device == "cpu" and self.num_processes_per_node == "visible":
            what = "visible counts GPUs, and the device is cpu"
            yield SettingError("num_processes_per_node", what, "a number", "such as 2")
        if self.max_run_seconds is not None and self.max_run_seconds <= self.stop_grace_seconds:
            what = f"{self.max_run_seconds} leaves no time before the {self.stop_grace_seconds} s of stop_grace_seconds"
            remedy = "raise it, or lower launch.stop_grace_seconds to what a checkpoint takes"
            yield SettingError("max_run_seconds", what, "", remedy)
        if self.target == "torchrun" and self.num_nodes > 1:
            what = f"torchrun on {self.num_nodes} machines is started by hand on each of them"
            remedy = "use num_nodes: 1, or on each: torchrun --nnodes … -m finelaunch train RECIPE --on PROFILE"
            yield SettingError("num_nodes", what, "1", remedy)
        if self.target == "slurm" and self.device == "cuda" and self.num_processes_per_node == "visible":
            what = "visible counts the GPUs of a node, and nobody sees those of one that was not asked for yet"
            yield SettingError("num_processes_per_node", what, "a number", "such as 4, one for each GPU to ask for")
        if self.target == "slurm" and self.max_run_seconds is not None:
            what = "a job of Slurm has a time limit already, before which it is saved and requeued"
            yield SettingError("max_run_seconds", what, "", "leave it out, and use cluster.time_limit")

    @property
    def seconds_until_stop(self) -> int | None:
        """When to stop, so that a checkpoint is written before ``max_run_seconds`` are over."""
        return None if self.max_run_seconds is None else self.max_run_seconds - self.stop_grace_seconds

    @property
    def num_processes(self) -> int | None:
        """All processes; None while only the machine knows how many devices there are."""
        if self.num_processes_per_node == "visible":
            return None
        return self.num_nodes * self.num_processes_per_node

    def with_processes(self, num_nodes: int, per_node: int) -> "Profile":
        """Return this profile with the number of processes that are really there."""
        return self.model_copy(update={"num_nodes": num_nodes, "num_processes_per_node": per_node})

    def engine(self, document: Document) -> Engine:
        """Return the engine that the profile names, with its offload.

        Raises:
            BadInput: There is no such accelerate config, or it contradicts itself.
        """
        engine = load_engine(self.accelerate_config, document.origin(("accelerate_config",)))
        return replace(engine, offload=self.offload)


def cpu_has_bf16() -> bool:
    """Return whether this machine's CPU computes in bf16; elsewhere than on Linux it counts as without."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def load_profile(name: str, overrides: Document | None = None) -> tuple[Profile, Document, Path]:
    """Return the profile that ``name`` and ``overrides`` make, its document and its file.

    Raises:
        BadInput: With all that is wrong.
    """
    path = find(name, "launch")
    document = read_file(path)
    if overrides is not None:
        document = merge(document, overrides, {})
    try:
        return build(Profile, document), document, path
    except BadInput as error:
        raise BadInput(replace(problem, key=f"launch.{problem.key}") for problem in error.problems) from None
