"""The GPUs and ports of this machine, asked without torch."""

import ctypes
import socket

from finelaunch.engines import FSDP_ON_CPU
from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.launch.profile import Profile
from finelaunch.section.document import Document
from finelaunch.section.lookup import COMMAND_LINE
from finelaunch.training.placement import too_few_gpus


def num_visible_gpus() -> int:
    """Return how many GPUs the CUDA driver shows here; CUDA_VISIBLE_DEVICES counts, as it does for torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def default_on() -> str:
    """Return the profile of a command that names none: one process, on a GPU where there is one."""
    return "gpu" if num_visible_gpus() else "cpu"


def on_this_machine(profile: Profile, document: Document) -> Profile:
    """Return ``profile`` with the number of processes that it starts here; Slurm's nodes have theirs, wherever it is.

    Raises:
        BadInput: More processes than GPUs, or FSDP2 without one.
        RequirementMissing: No GPU is there, or DeepSpeed is not installed.
    """
    engine = profile.engine(document)
    engine.require()
    if profile.device == "cpu" or profile.target == "slurm":
        return profile
    count = num_visible_gpus()
    wanted = profile.num_processes_per_node
    if not count:
        if engine.name == "fsdp2":
            origin = document.origin(("accelerate_config",))
            what = f"no GPU is visible here, and {FSDP_ON_CPU}"
            remedy = "use --on cpu_zero3, which cuts the weights on CPUs"
            raise BadInput(Problem(origin, "launch.accelerate_config", what, "", remedy))
        remedy = f"use --on cpu{'' if engine.name == 'single' else f'_{engine.name}'}, or check nvidia-smi"
        raise RequirementMissing(f"launch.device: no GPU is visible here; {remedy}")
    if wanted == "visible":
        return profile.with_processes(profile.num_nodes, count)
    if wanted > count:
        raise BadInput(too_few_gpus(wanted, count, document.origin(("num_processes_per_node",))))
    return profile


def free_port(asked: int | None) -> int:
    """Return a port that nobody listens on: ``asked``, or any.

    Raises:
        BadInput: ``asked`` is taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the store does that will listen there: a port of connections that have just ended is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", asked or 0))
        except OSError as error:
            what = f"port {asked} cannot be used: {error.strerror}"
            raise BadInput(Problem(COMMAND_LINE, "--port", what, "", "leave it out for a free one")) from None
        return int(probe.getsockname()[1])
