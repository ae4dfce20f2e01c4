"""What the launcher of this process asked for, read from the environment, and the profile that it comes to.

``accelerate launch`` hands its config file on as environment variables; torchrun and Slurm say only how many processes
there are. Where the environment and ``--on PROFILE`` disagree, or where accelerate starts something else than its
config says, nothing runs.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from finelaunch.engines import CPU_AND_SHARDED, FSDP_ON_CPU, MULTI_CPU, Offload
from finelaunch.errors import BadInput, Problem
from finelaunch.launch.place import on_processes
from finelaunch.launch.profile import Profile, load_profile
from finelaunch.run.log import say
from finelaunch.run.ranks import Ranks
from finelaunch.section.document import Document, merge
from finelaunch.section.lookup import COMMAND_LINE
from finelaunch.training.placement import Placement, count_of, cuda_is_there, expose_gpus, settle, start_engine


@dataclass(frozen=True)
class Request:
    """What a launcher asked for.

    Args:
        engine: The engine's name; None where it said nothing of it.
        precision: ``bf16`` or ``fp16``; None where it said nothing.
        offload: What is to live in host memory; None where it said nothing.
        device: ``cpu`` where no GPU is to be used; None where it said nothing.
    """

    engine: str | None = None
    precision: str | None = None
    offload: Offload | None = None
    device: str | None = None

    def adopted(self) -> Document:
        """Return what a profile that nobody named takes over."""
        said = {"precision": self.precision, "offload": self.offload}
        values = {key: value for key, value in said.items() if value is not None}
        return Document(values, {(key,): "accelerate config" for key in values})


@dataclass(frozen=True)
class Machine:
    """The profile that a process runs under.

    Args:
        profile: With the number of processes that are really there.
        document: Behind it, for origins.
        name: What it is called.
        why: How it was chosen where nobody named it; empty where somebody did.
    """

    profile: Profile
    document: Document
    name: str
    why: str = ""

    def sentence(self) -> str:
        """Return what a run's first line says of its machine."""
        return f"on {self.name}" + (f" ({self.why}; --on PROFILE states it)" if self.why else "")


def read_request(environment: Mapping[str, str], ranks: Ranks) -> Request:
    """Return what the environment asks for.

    Raises:
        BadInput: It asks for what accelerate silently does not run, or for settings that stand elsewhere.
    """
    from_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    if from_accelerate and not ranks.is_launched and "MASTER_PORT" in environment:
        remedy = "use distributed_type: MULTI_GPU, which runs over gloo on CPUs: accelerate_configs/ddp.yaml"
        raise BadInput(Problem("accelerate config", "distributed_type", MULTI_CPU, "", remedy))
    deepspeed, fsdp = _is_true(environment, "ACCELERATE_USE_DEEPSPEED"), _is_true(environment, "ACCELERATE_USE_FSDP")
    if (deepspeed or fsdp) and _is_true(environment, "ACCELERATE_USE_CPU"):
        raise BadInput(Problem("accelerate config", "use_cpu", CPU_AND_SHARDED, "", "leave it out"))
    mixed = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    precision = mixed if mixed in ("bf16", "fp16") else None
    if mixed not in ("no", "bf16", "fp16"):
        raise BadInput(Problem("accelerate config", "mixed_precision", f"{mixed} is not offered", "no, bf16 or fp16"))
    _refuse_unoffered(environment, fsdp)
    if deepspeed:
        return Request(f"zero{_stage(environment)}", precision, _offload(environment))
    if fsdp:
        if environment.get("FSDP_VERSION", "1") != "2":
            remedy = "set fsdp_version: 2, as in accelerate_configs/fsdp2.yaml"
            raise BadInput(Problem("accelerate config", "fsdp_version", "FSDP1 is not offered", "2", remedy))
        return Request("fsdp2", precision)
    device = "cpu" if _is_true(environment, "ACCELERATE_USE_CPU") else None
    if from_accelerate:
        return Request("ddp" if ranks.is_launched else "single", precision, device=device)
    return Request(device=device)


_FROM_FILE = "leave it out, or start with finelaunch launch and launch.accelerate_config=FILE"
_UNOFFERED = {
    "ACCELERATE_DYNAMO_BACKEND": (("no",), "torch.compile is not offered: leave it out"),
    "ACCELERATE_USE_MEGATRON_LM": (("false",), "Megatron-LM is not offered: use zero3 or fsdp2"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (("false",), "it is not offered: leave it out"),
    "FSDP_OFFLOAD_PARAMS": (("false",), "fsdp2 cannot offload: use zero3"),
    "FSDP_ACTIVATION_CHECKPOINTING": (("false",), "use launch.activation_checkpointing=true"),
    "FSDP_AUTO_WRAP_POLICY": (("transformer_based_wrap",), _FROM_FILE),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": (("",), _FROM_FILE),
    "FSDP_RESHARD_AFTER_FORWARD": (("true",), _FROM_FILE),
    "FSDP_STATE_DICT_TYPE": (("sharded_state_dict",), _FROM_FILE),
}
"""What accelerate hands on and nothing here reads: the values that say nothing, and what to do about others."""


def _refuse_unoffered(environment: Mapping[str, str], fsdp: bool) -> None:
    """Refuse settings that would be dropped without a word.

    Raises:
        BadInput: One is there.
    """
    for name, (unsaid, remedy) in _UNOFFERED.items():
        value = environment.get(name)
        if value is not None and value.lower() not in unsaid and (fsdp or not name.startswith("FSDP_")):
            raise BadInput(Problem("accelerate config", name.lower(), f"{value} has no effect here", "", remedy))


def _stage(environment: Mapping[str, str]) -> str:
    if environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none").lower() != "none":
        what, remedy = "a second file", "write deepspeed_config: {zero_stage: N}, as in accelerate_configs/zero2.yaml"
        raise BadInput(Problem("accelerate config", "deepspeed_config_file", what, "", remedy))
    stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("1", "2", "3"):
        raise BadInput(Problem("accelerate config", "zero_stage", f"{stage} cuts nothing", "1, 2 or 3", "or use ddp"))
    return stage


def _offload(environment: Mapping[str, str]) -> Offload | None:
    prefix = "ACCELERATE_DEEPSPEED_OFFLOAD_"
    devices = {kind: environment.get(f"{prefix}{kind}_DEVICE", "none").lower() for kind in ("OPTIMIZER", "PARAM")}
    for kind, device in devices.items():
        if device not in ("none", "cpu"):
            key = f"offload_{kind.lower()}_device"
            raise BadInput(Problem("accelerate config", key, f"{device} is not offered", "none or cpu"))
    return "all" if devices["PARAM"] == "cpu" else "optimizer" if devices["OPTIMIZER"] == "cpu" else None


def choose(on: str | None, overrides: Document, ranks: Ranks, request: Request, device: str) -> Machine:
    """Return the machine that this process runs on.

    Args:
        on: The profile that was asked for by name.
        overrides: ``launch.key=value`` of the command line.
        ranks: This process among all.
        request: What its launcher asked for.
        device: ``cuda`` where torch sees a GPU, else ``cpu``; used where no profile is named.

    Raises:
        BadInput: Profile and environment disagree.
    """
    if on is None:
        engine = request.engine or ("ddp" if ranks.world_size > 1 else "single")
        if engine == "fsdp2" and device == "cpu":
            remedy = "use accelerate_configs/zero3.yaml, which cuts the weights on CPUs too"
            raise BadInput(Problem("accelerate config", "distributed_type", FSDP_ON_CPU, "", remedy))
        name = default_profile(engine, device)
        profile, document, _ = load_profile(name, overrides)
        _refuse_other(profile, document, request, overrides.values)
        profile, document, _ = load_profile(name, merge(overrides, request.adopted(), {}))
        why = (
            "chosen by the device"
            if request.engine is None and ranks.world_size == 1
            else "chosen by device and launcher"
        )
    else:
        name, why = on, ""
        profile, document, _ = load_profile(name, overrides)
        _refuse_unlaunched(profile, name, ranks)
        _refuse_other_number(profile, document, name, ranks)
        _refuse_other(profile, document, request, {*document.values, "offload"})
    return Machine(profile.with_processes(ranks.num_nodes, ranks.local_world_size), document, name, why)


def _refuse_unlaunched(profile: Profile, name: str, ranks: Ranks) -> None:
    """Refuse a profile of several processes in a process that nobody launched."""
    if profile.target != "inprocess" and not ranks.is_launched:
        many = count_of(profile.num_processes) if profile.num_processes else "a process for each GPU"
        remedy = f"use finelaunch launch RECIPE --on {name}, or torchrun or accelerate launch with -m finelaunch"
        if profile.target == "slurm":
            remedy = f"use finelaunch launch RECIPE --on {name} --cluster NAME, or srun as in slurm/train.sbatch"
        raise BadInput(Problem(COMMAND_LINE, "--on", f"{name} is {many}, and this is one alone", "", remedy))


def _refuse_other_number(profile: Profile, document: Document, name: str, ranks: Ranks) -> None:
    """Refuse a number of processes that is not the profile's."""
    if profile.num_processes not in (None, ranks.world_size):
        what = f"{name} is {count_of(profile.num_processes or 0)}, and {ranks.world_size} were started"
        others = f"add launch.num_processes_per_node={ranks.local_world_size}"
        alone = "leave --on out, or name a profile of several processes, such as cpu_ddp"
        remedy = f"start as many, or {others if profile.target != 'inprocess' else alone}"
        origin = document.origin(("num_processes_per_node",))
        raise BadInput(Problem(origin, "launch.num_processes_per_node", what, "", remedy))


def _refuse_other(profile: Profile, document: Document, request: Request, stated: Collection[str]) -> None:
    """Refuse what the launcher asked for and the profile, where it states the key, has otherwise."""
    has = {"accelerate_config": profile.engine(document).name, "precision": profile.precision}
    wants = {"accelerate_config": request.engine, "precision": request.precision}
    if request.device is not None and profile.device != request.device:
        has, wants = {**has, "device": profile.device}, {**wants, "device": request.device}
        stated = {*stated, "device"}
    if request.offload is not None:
        has, wants = {**has, "offload": profile.offload}, {**wants, "offload": request.offload}
    for key, wanted in wants.items():
        if wanted is not None and key in stated and has[key] != wanted:
            what = f"the profile says {has[key]}, and this process was launched with {wanted}"
            remedy = f"make them agree: launch.{key}={wanted}, or another accelerate config"
            raise BadInput(Problem(document.origin((key,)), f"launch.{key}", what, "", remedy))


def this_machine(on: str | None, overrides: Document, ranks: Ranks) -> Machine:
    """Return the machine of this process, by its environment; must come before torch is loaded.

    Raises:
        BadInput: Profile and environment disagree.
    """
    request, alone = read_request(os.environ, ranks), ranks.world_size == 1
    if on is not None:
        device = load_profile(on, overrides)[0].device
        expose_gpus(device, alone)
        return choose(on, overrides, ranks, request, device)
    expose_gpus("cuda", alone)
    device = request.device or ("cuda" if cuda_is_there() else "cpu")
    machine = choose(None, overrides, ranks, request, device)
    expose_gpus(machine.profile.device, alone)
    return machine


def settled_machine(on: str | None, ranks: Ranks) -> Placement:
    """Return the placement of an evaluation or prediction on this machine, its process group made.

    Raises:
        BadInput: Profile and environment disagree.
        RequirementMissing: The device is not there.
    """
    machine = this_machine(on, Document({}), ranks)
    say(machine.sentence())
    size = (machine.profile.per_device_batch_size or 1) * ranks.world_size
    placement = settle(on_processes(size, machine.profile, machine.document), ranks)
    start_engine(placement)
    return placement


def default_profile(engine: str, device: str) -> str:
    """Return the name of the shipped profile of an engine on a device; FSDP2 has none for the CPU, and says why."""
    if engine == "single":
        return "cpu" if device == "cpu" else "gpu"
    return f"cpu_{engine}" if device == "cpu" and engine != "fsdp2" else engine


def check_arithmetic(placement: Placement, environment: Mapping[str, str], max_grad_norm: float) -> None:
    """Refuse an accelerate config that states another accumulation or clipping than recipe and profile come to.

    Raises:
        BadInput: It does.
    """
    computed = {
        "GRADIENT_ACCUMULATION_STEPS": (
            placement.gradient_accumulation_steps,
            f"{placement.arithmetic()}; leave it out, or change launch.per_device_batch_size",
        ),
        "GRADIENT_CLIPPING": (max_grad_norm, "leave it out, or change training.max_grad_norm"),
    }
    for name, (ours, remedy) in computed.items():
        text = environment.get(f"ACCELERATE_{name}", "auto").lower()
        unsaid = ("auto", "none", "1") if name == "GRADIENT_ACCUMULATION_STEPS" else ("auto", "none")
        if text not in unsaid and (not _is_number(text) or float(text) != ours):
            what = f"is {text}, and the run has {ours:g}"
            raise BadInput(Problem("accelerate config", name.lower(), what, "", remedy))


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes", "on")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
