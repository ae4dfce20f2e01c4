"""Checks of one machine, from facts that were collected before: software, driver, GPUs, room, clock."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from finelaunch.launch.estimate import byte_text
from finelaunch.launch.profile import Profile
from finelaunch.provision.verdicts import Check, State, failed, ok, unknown, warning
from finelaunch.provision.volumes import Room

BF16_CAPABILITY = 8.0
"""bf16 and tf32 came with Ampere. Source: NVIDIA, CUDA C++ Programming Guide, compute capabilities."""
FOUR_BIT_CAPABILITY = 6.0
"""NF4 and FP4 of bitsandbytes 0.48 to 0.50. Source: its installation guide, NVIDIA CUDA."""
CUDA_13_CAPABILITY = 7.5
"""CUDA 13 compiles for nothing older than Turing. Source: its release notes."""
CAPABILITIES = {
    "k80": 3.7, "p100": 6.0, "p40": 6.1, "v100": 7.0, "titanv": 7.0, "t4": 7.5, "rtx6000": 7.5, "rtx8000": 7.5,
    "2080": 7.5, "a100": 8.0, "a30": 8.0, "a10": 8.6, "a40": 8.6, "a5000": 8.6, "a6000": 8.6, "3090": 8.6,
    "l4": 8.9, "l40": 8.9, "l40s": 8.9, "4090": 8.9, "ada": 8.9, "h100": 9.0, "h200": 9.0, "gh200": 9.0,
    "b200": 10.0, "gb200": 10.0, "5090": 12.0,
}  # fmt: skip
"""Compute capability by the word that sites use in the names of GPU types."""
CLOCK_WARNING_SECONDS = 5.0
CLOCK_FAILED_SECONDS = 30.0
"""Half of the silence after which a run's lock counts as nobody's."""
CACHE_BYTES = 1 << 30
UNWRITABLE: dict[str, tuple[State, str]] = {
    "run directory": ("failed", "choose another --run-dir"),
    "cache": ("failed", "set FINELAUNCH_CACHE to a folder of yours"),
    "hub cache": ("warning", "nothing can be fetched into it, as it may be meant; HF_HOME names another"),
}
"""What follows where a folder cannot be written: a cache of the hub that others fill may be read alone."""
FILES_OF_A_CHECKPOINT = 20
FILES_OF_A_RANK = 4
FILES_OF_A_RUN = 100


def check_python(version: str, wanted: str) -> Check:
    """Say whether Python ``version`` fits ``wanted``, a specifier such as ``>=3.11``."""
    from packaging.specifiers import SpecifierSet

    if version in SpecifierSet(wanted, prereleases=True):
        return ok("python", version)
    return failed("python", f"{version} is not supported, {wanted} is", "make the environment with another Python")


def wanted_packages(extras: Sequence[str] = ()) -> dict[str, str]:
    """Return the packages that finelaunch needs, with those of ``extras``, and the versions that are supported."""
    from packaging.requirements import Requirement

    found = {}
    for text in metadata.requires("finelaunch") or ():
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found[one.name] = str(one.specifier)
    return found


def check_packages(installed: Mapping[str, str | None], wanted: Mapping[str, str]) -> list[Check]:
    """Say which packages are missing or not supported."""
    from packaging.specifiers import SpecifierSet

    found = []
    for name, specifier in wanted.items():
        version = installed.get(name)
        remedy = f"pip install '{name}{specifier}'"
        if version is None:
            found.append(failed("packages", f"{name} is not installed", remedy))
        elif not SpecifierSet(specifier).contains(version, prereleases=True):
            found.append(failed("packages", f"{name} {version} is not supported, {specifier} is", remedy))
    return found or [ok("packages", f"{len(wanted)} installed in versions that are supported")]


def check_driver(profile: Profile, torch_cuda: str | None, driver: str | None, where: str = "here") -> Check:
    """Say whether the driver runs what torch was built for.

    Args:
        profile: On a CPU nothing of this is needed.
        torch_cuda: The CUDA version of torch's build; empty: it was built without; None: torch is not installed.
        driver: The newest CUDA version that the driver runs; None: there is no driver.
        where: The machine, for the text.
    """
    name = "cuda"
    if profile.device == "cpu":
        return ok(name, "not needed on a CPU")
    if torch_cuda is None:
        return unknown(name, "torch is not installed")
    if not torch_cuda:
        return failed(name, "torch is built without CUDA", "install a build with it: https://pytorch.org/get-started")
    if driver is None:
        return failed(name, f"torch is built for CUDA {torch_cuda}, and {where} is no driver", "check nvidia-smi")
    if _major(driver) < _major(torch_cuda):
        return failed(
            name,
            f"torch is built for CUDA {torch_cuda}, and the driver {where} runs {driver} at most",
            f"install torch for CUDA {_major(driver)}, or a newer driver",
        )
    return ok(name, f"torch is built for CUDA {torch_cuda}, the driver {where} runs up to {driver}")


def capability_of(gpu_type: str) -> float | None:
    """Return the compute capability of a GPU that a site calls ``gpu_type``; None where the name says nothing."""
    words = gpu_type.lower().replace("-", "_").replace(".", "_").split("_")
    return next((CAPABILITIES[word] for word in words if word in CAPABILITIES), None)


def check_gpus(
    profile: Profile, method: str | None, capabilities: Mapping[str, float | None], torch_cuda: str | None
) -> list[Check]:
    """Say whether GPUs can do what profile and method ask of them.

    Args:
        profile: Its precision is what is asked.
        method: ``qlora`` needs 4-bit weights; None: no recipe is given.
        capabilities: Compute capability by GPU; None where its name says nothing.
        torch_cuda: The CUDA version of torch's build.
    """
    if profile.device == "cpu" or not capabilities:
        return []
    found = []
    for gpu, capability in capabilities.items():
        if capability is None:
            found.append(unknown("gpu", f"what a {gpu} can do is not known by its name", "--nodes asks it"))
            continue
        what = f"{gpu} (compute capability {capability})"
        if profile.precision in ("bf16", "tf32") and capability < BF16_CAPABILITY:
            remedy = f"use launch.precision={'fp16' if profile.precision == 'bf16' else 'fp32'} or auto"
            found.append(failed("gpu", f"{what} has no {profile.precision}, which came with 8.0", remedy))
        elif method == "qlora" and capability < FOUR_BIT_CAPABILITY:
            remedy = "use another GPU, or method.name=lora"
            found.append(failed("gpu", f"{what} is too old for the 4-bit weights of bitsandbytes", remedy))
        elif torch_cuda and _major(torch_cuda) >= 13 and capability < CUDA_13_CAPABILITY:
            text = f"{what} is too old for torch built for CUDA {torch_cuda}, which begins at {CUDA_13_CAPABILITY}"
            found.append(failed("gpu", text, "install torch for CUDA 12"))
        elif profile.precision == "auto" and capability < BF16_CAPABILITY:
            found.append(ok("gpu", f"{what}: precision auto takes fp16 with loss scaling"))
        else:
            found.append(ok("gpu", f"{what} runs {'bf16' if profile.precision == 'auto' else profile.precision}"))
    return found


@dataclass(frozen=True)
class Need:
    """What is to be written into a folder.

    Args:
        folder: Where.
        num_bytes: How much; None: nobody knows yet.
        num_files: How many files, at most.
        purpose: What it is, with its arithmetic.
    """

    folder: Path
    num_bytes: int | None
    num_files: int
    purpose: str


def check_room(rooms: Sequence[Room], needs: Sequence[Need]) -> list[Check]:
    """Say whether a file system holds what is to be written.

    Args:
        rooms: All limits that are known, at least that of the file system.
        needs: What will be written there, at least one.
    """
    name, folder = "room", needs[0].folder
    known = [need.num_bytes for need in needs if need.num_bytes is not None]
    is_known, least, files = len(known) == len(needs), sum(known), sum(need.num_files for need in needs)
    purpose = " + ".join(need.purpose for need in needs if need.num_bytes is not None)
    remedy = "make room, or choose another disk by --run-dir, FINELAUNCH_CACHE or HF_HOME"
    found = []
    for room in rooms:
        if room.bytes_left is not None and room.bytes_left < least:
            text = f"{folder}: {byte_text(room.bytes_left)} are left of {room.what}, needed are {purpose}"
            found.append(failed(name, text, remedy))
        if room.files_left is not None and room.files_left < files:
            text = f"{folder}: {room.files_left:,} files are left of {room.what}, and {files:,} may be written"
            found.append(failed(name, text, remedy))
    if found:
        return found
    left = "; ".join(
        f"{room.what} has {byte_text(room.bytes_left)} left" for room in rooms if room.bytes_left is not None
    )
    if is_known:
        return [ok(name, f"{folder}: {left}, needed are {purpose}")]
    unsaid = "; ".join(need.purpose for need in needs if need.num_bytes is None)
    return [unknown(name, f"{folder}: {left}; {unsaid}")]


def check_clock(ahead: float | None, folder: Path) -> Check:
    """Say whether this machine and the file system of ``folder`` agree on the time, as locks and logs go by both."""
    if ahead is None:
        return unknown("clock", f"{folder} cannot be written")
    if abs(ahead) <= CLOCK_WARNING_SECONDS:
        return ok("clock", f"this machine and {folder} differ by {abs(ahead):.1f} s")
    text = f"the file system of {folder} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine"
    remedy = "ask the site to synchronise clocks; locks of runs go by the file system's"
    return (warning if abs(ahead) <= CLOCK_FAILED_SECONDS else failed)("clock", text, remedy)


def check_writable(name: str, folder: Path, ahead: float | None) -> Check:
    """Say whether one of :data:`UNWRITABLE` can be written; ``ahead`` is None where a file could not be made."""
    if ahead is not None:
        return ok(name, f"{folder} can be written")
    state, remedy = UNWRITABLE[name]
    return Check(name, state, f"{folder} cannot be written", remedy)


def this_python() -> str:
    """Return the version of the Python that runs this."""
    return platform.python_version()


def _major(version: str) -> int:
    return int(version.split(".")[0])
