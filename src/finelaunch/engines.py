"""What each engine is: read from its accelerate config, and turned into what a worker passes on explicitly; no torch.

An engine's source is one file that ``accelerate launch --config_file`` takes as it is. What such a file may also hold
and what a profile or a recipe states instead (precision, batch, accumulation, clipping, offload) is refused where it
disagrees, and so is every request of which this stack silently runs something else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from pydantic import Field

from finelaunch.errors import RequirementMissing
from finelaunch.section.base import Section, SettingError, build
from finelaunch.section.lookup import COMMAND_LINE, find, read_file

NAMES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")
Offload = Literal["none", "optimizer", "all"]

MULTI_CPU = "accelerate starts one process for MULTI_CPU, whatever num_processes says"
CPU_AND_SHARDED = "accelerate ignores it or runs plain DDP instead, without saying so"
FSDP_ON_CPU = "accelerate has no FSDP without a GPU and would run plain DDP"

_FORMATS = "safetensors weights and, under ZeRO-3, whole ones are always saved"
_MACHINE = "an engine states neither device nor precision"
_COMPUTED = "it is computed: training.global_batch_size / (processes x launch.per_device_batch_size)"


class _DeepSpeed(Section):
    answers: ClassVar[Mapping[str, str]] = {
        "deepspeed_config_file": "write zero_stage here instead: an engine is one self-contained file",
    }

    zero_stage: Literal[1, 2, 3] = Field(description="what is cut: 1 optimizer, 2 gradients too, 3 weights too")
    zero3_init_flag: bool = Field(default=True, description="build the model cut already; always done for stage 3")
    zero3_save_16bit_model: bool = Field(default=True, description=_FORMATS)
    deepspeed_multinode_launcher: Literal["standard"] = Field(default="standard", description="standard")
    gradient_accumulation_steps: int | str = Field(default="auto", description="auto")
    gradient_clipping: float | str = Field(default="auto", description="auto")
    offload_optimizer_device: str = Field(default="none", description="none")
    offload_param_device: str = Field(default="none", description="none")

    def faults(self) -> Iterator[SettingError]:
        """Yield settings that recipe and profile make; what says nothing may stand, as ``accelerate config`` writes."""
        for key, unsaid, remedy in (
            ("gradient_accumulation_steps", ("auto", 1), _COMPUTED),
            ("gradient_clipping", ("auto",), "use training.max_grad_norm"),
            ("offload_optimizer_device", ("none",), "use launch.offload=optimizer"),
            ("offload_param_device", ("none",), "use launch.offload=all"),
        ):
            value = getattr(self, key)
            if value not in unsaid:
                yield SettingError(key, f"{value!r} is not for an engine to say", "", f"leave it out: {remedy}")


class _Fsdp(Section):
    answers: ClassVar[Mapping[str, str]] = {
        "fsdp_sharding_strategy": "it is FSDP1's; use fsdp_version: 2 and fsdp_reshard_after_forward",
    }

    fsdp_version: Literal[2] = Field(description="2; FSDP1 is not offered and leaves transformers")
    fsdp_auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP"] = Field(
        default="TRANSFORMER_BASED_WRAP", description="cut layer by layer"
    )
    fsdp_transformer_layer_cls_to_wrap: str | None = Field(default=None, description="by default the model says it")
    fsdp_reshard_after_forward: bool = Field(default=True, description="free gathered weights after the forward pass")
    fsdp_state_dict_type: Literal["SHARDED_STATE_DICT"] = Field(
        default="SHARDED_STATE_DICT", description="form of checkpoints; the final model is whole"
    )
    fsdp_cpu_ram_efficient_loading: bool = Field(default=False, description="false")
    fsdp_activation_checkpointing: bool = Field(default=False, description="false")
    fsdp_offload_params: bool = Field(default=False, description="false")

    def faults(self) -> Iterator[SettingError]:
        """Yield what FSDP2 cannot do here."""
        for key, what, remedy in (
            (
                "fsdp_offload_params",
                "fsdp2 cannot offload weights",
                "zero3 offloads weights, launch.accelerate_config=zero3 launch.offload=all",
            ),
            (
                "fsdp_activation_checkpointing",
                "accelerate's own forgets the random states of dropout",
                "use launch.activation_checkpointing=true",
            ),
            (
                "fsdp_cpu_ram_efficient_loading",
                "every rank reads the weights by itself here",
                "it changes nothing of what is trained",
            ),
        ):
            if getattr(self, key):
                yield SettingError(key, what, "", f"leave it out: {remedy}")

    def passed_on(self) -> dict[str, Any]:
        """Return what the Trainer is given, under its names."""
        given = {
            "version": self.fsdp_version,
            "auto_wrap_policy": self.fsdp_auto_wrap_policy,
            "reshard_after_forward": self.fsdp_reshard_after_forward,
            "state_dict_type": self.fsdp_state_dict_type,
        }
        layer = self.fsdp_transformer_layer_cls_to_wrap
        return {**given, "transformer_layer_cls_to_wrap": layer} if layer else given


class AccelerateConfig(Section):
    """The keys of an accelerate config that name an engine."""

    answers: ClassVar[Mapping[str, str]] = {
        "deepspeed_config_file": _DeepSpeed.answers["deepspeed_config_file"],
        "zero_stage": "it stands below deepspeed_config",
        "gradient_accumulation_steps": _COMPUTED,
        "megatron_lm_config": "Megatron-LM is not offered",
        "fp8_config": "fp8 is not offered",
        "dynamo_config": "torch.compile is not offered",
        "parallelism_config": "it is not offered",
    }

    compute_environment: Literal["LOCAL_MACHINE"] = "LOCAL_MACHINE"
    distributed_type: Literal["NO", "MULTI_GPU", "MULTI_CPU", "DEEPSPEED", "FSDP"] = Field(description="the engine")
    num_processes: int = Field(ge=1, description="processes where nobody says otherwise")
    deepspeed_config: _DeepSpeed | None = None
    fsdp_config: _Fsdp | None = None
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(default="no", description="the profile's precision")
    use_cpu: bool = Field(default=False, description="false: the profile's device decides")
    # Of the way accelerate starts processes; nothing that may stand here changes what runs.
    num_machines: Literal[1] = 1
    machine_rank: Literal[0] = 0
    main_process_ip: str | None = None
    main_process_port: int | None = None
    rdzv_backend: Literal["static", "c10d"] = "static"
    same_network: bool = True
    main_training_function: str = "main"
    gpu_ids: Literal["all"] = "all"
    debug: Literal[False] = False
    enable_cpu_affinity: Literal[False] = False
    downcast_bf16: Literal["no", False] = "no"
    tpu_env: list[str] | None = Field(default=None, max_length=0)
    tpu_use_cluster: Literal[False] = False
    tpu_use_sudo: Literal[False] = False

    def faults(self) -> Iterator[SettingError]:
        """Yield what contradicts itself, and what accelerate would silently run otherwise."""
        remedy = "use distributed_type: MULTI_GPU, which runs over gloo where there is no GPU (accelerate_configs/ddp)"
        if self.distributed_type == "MULTI_CPU":
            yield SettingError("distributed_type", MULTI_CPU, "", remedy)
        if self.use_cpu and self.distributed_type in ("DEEPSPEED", "FSDP"):
            yield SettingError("use_cpu", CPU_AND_SHARDED, "", "leave it out: the profile's device decides")
        elif self.use_cpu:
            yield SettingError("use_cpu", _MACHINE, "", "leave it out, and use launch.device")
        if self.mixed_precision != "no":
            yield SettingError("mixed_precision", _MACHINE, "", "leave it out, and use launch.precision")
        for kind, key in (("DEEPSPEED", "deepspeed_config"), ("FSDP", "fsdp_config")):
            given = getattr(self, key) is not None
            if given != (self.distributed_type == kind):
                what = f"{'has no effect' if given else 'is missing'} with distributed_type: {self.distributed_type}"
                yield SettingError(key, what, "", f"set distributed_type: {kind}" if given else "")


@dataclass(frozen=True)
class Engine:
    """One way to train on one or several devices.

    Args:
        name: One of :data:`NAMES`.
        offload: What lives in host memory: nothing, the optimizer's state, or the weights as well.
        fsdp: Settings of FSDP2.
    """

    name: str
    offload: Offload = "none"
    fsdp: Mapping[str, Any] | None = None

    @property
    def zero_stage(self) -> int | None:
        """The stage of DeepSpeed ZeRO, if it is one."""
        return int(self.name.removeprefix("zero")) if self.name.startswith("zero") else None

    @property
    def shards_weights(self) -> bool:
        """Whether no device holds the whole model."""
        return self.name in ("zero3", "fsdp2")

    @property
    def is_distributed(self) -> bool:
        """Whether it runs in a process group, be it of one process."""
        return self.name != "single"

    def backend(self, device: str) -> str | None:
        """Return what collectives run over."""
        return None if not self.is_distributed else "gloo" if device == "cpu" else "nccl"

    def deepspeed(self) -> dict[str, Any] | None:
        """Return the DeepSpeed configuration; sizes, clipping and precision follow the Trainer's arguments.

        The optimizer is the recipe's own, on the host too where it is offloaded, so DeepSpeed compiles none.
        """
        if self.zero_stage is None:
            return None
        zero: dict[str, Any] = {"stage": self.zero_stage}
        if self.zero_stage == 3:
            zero["stage3_gather_16bit_weights_on_model_save"] = True
        if self.offload != "none":
            zero["offload_optimizer"] = {"device": "cpu"}
        if self.offload == "all":
            zero["offload_param"] = {"device": "cpu"}
        return {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": "auto"},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
        }

    def fsdp_config(self) -> dict[str, Any] | None:
        """Return the Trainer's settings of FSDP2."""
        if self.name != "fsdp2":
            return None
        return dict(self.fsdp or {})

    def require(self) -> None:
        """Raise what is missing to run this engine.

        Raises:
            RequirementMissing: DeepSpeed is not installed.
        """
        if self.zero_stage is not None and find_spec("deepspeed") is None:
            raise RequirementMissing(f"{self.name} needs DeepSpeed; pip install 'finelaunch[deepspeed]'")


SINGLE = Engine("single")


def load_engine(name: str, origin: str = COMMAND_LINE) -> Engine:
    """Return the engine of an accelerate config, given by name or path.

    Args:
        name: Such as ``zero2`` or ``my_configs/zero2.yaml``.
        origin: Where the name stands, for messages.

    Raises:
        BadInput: There is no such file, or it is no engine that can run as it says.
    """
    path = find(name, "accelerate_configs", origin, "launch.accelerate_config")
    config = build(AccelerateConfig, read_file(path))
    engine = Engine(_name(config))
    if config.fsdp_config is not None:
        return replace(engine, fsdp=config.fsdp_config.passed_on())
    return engine


def _name(config: AccelerateConfig) -> str:
    if config.deepspeed_config is not None:
        return f"zero{config.deepspeed_config.zero_stage}"
    return {"NO": "single", "MULTI_GPU": "ddp", "FSDP": "fsdp2"}[config.distributed_type]


def engine_faults(
    engine: Engine, *, target: str, device: str, precision: str, num_processes: int | None, optim: str
) -> Iterator[SettingError]:
    """Yield what this engine cannot run, each with the alternative, under the keys of the launch profile.

    Args:
        engine: The engine, with its offload.
        target: ``inprocess``, ``torchrun`` or ``slurm``.
        device: ``cpu`` or ``cuda``.
        precision: As the profile has it.
        num_processes: All processes; None while they are unknown.
        optim: The recipe's optimizer.
    """
    key = "accelerate_config"
    if engine.name == "fsdp2" and device == "cpu":
        yield SettingError(key, f"fsdp2 on a CPU: {FSDP_ON_CPU}", "", "use zero3, which cuts the weights on CPUs too")
    if engine.name == "single" and num_processes not in (None, 1):
        what = f"single is one process, and {num_processes} are asked for"
        yield SettingError(key, what, "", "use ddp, or num_processes_per_node: 1")
    if engine.name == "single" and target != "inprocess":
        what = f"{target} starts a process for each device, and single is one"
        on_slurm = "or launch.accelerate_config=ddp, which is right for one process too" if target == "slurm" else ""
        yield SettingError("target", what, "inprocess", on_slurm)
    if engine.is_distributed and target == "inprocess":
        yield SettingError("target", f"inprocess is one process without others, and {engine.name} is not", "torchrun")
    allowed = {"zero1": ("optimizer",), "zero2": ("optimizer",), "zero3": ("optimizer", "all")}
    if engine.offload != "none" and engine.offload not in allowed.get(engine.name, ()):
        can = " or ".join(["none", *allowed.get(engine.name, ())])
        remedy = "use zero1, zero2 or zero3" if engine.name not in allowed else ""
        yield SettingError("offload", f"{engine.name} cannot offload {engine.offload!r}", can, remedy)
    if engine.name == "fsdp2" and precision == "fp16":
        what = "fsdp2 in fp16 cannot be resumed: its loss scaling does not go with its checkpoints"
        yield SettingError("precision", what, "bf16, fp32, tf32 or auto", "or use zero3")
    if engine.zero_stage and device == "cpu" and precision == "bf16":
        yield SettingError("precision", f"{engine.name} on a CPU computes in fp32 alone", "fp32 or auto", "or use ddp")
    if engine.name in ("zero1", "zero2", "zero3", "fsdp2") and optim == "adafactor":
        what = (
            f"{engine.name} cuts and flattens what adafactor factors by rows and columns: it would be another optimizer"
        )
        yield SettingError(key, what, "", "use training.optim=adamw_torch_fused, or ddp")
