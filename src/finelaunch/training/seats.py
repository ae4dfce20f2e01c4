"""Where each rank sits: its host, its GPU, its cores; and that no two ranks share what each takes for its own."""

import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finelaunch.errors import RequirementMissing
from finelaunch.run.ranks import Gate, Ranks, gather
from finelaunch.training.placement import Placement


@dataclass(frozen=True)
class Seat:
    """One rank's place.

    Args:
        rank: Its number.
        host: Its machine.
        gpu: The UUID of its GPU; None on the CPU.
        cores: The cores that it may use, by number; empty where the system does not say.
        num_threads: The threads that torch computes with.
    """

    rank: int
    host: str
    gpu: str | None
    cores: tuple[int, ...]
    num_threads: int


def refuse_shared_gpus(placement: Placement, gate: Gate) -> None:
    """Refuse two ranks on one GPU; every rank calls this, on its device and before there is a process group.

    NCCL cannot make a group of such ranks, so none of them could tell the others over it.

    Args:
        placement: What they run on.
        gate: Where they have met.

    Raises:
        RequirementMissing: Two ranks share a GPU.
        LostPeer: A rank did not come.
    """
    if placement.device == "cpu":
        return
    values = gate.exchange(asdict(_this_seat(placement, gate.ranks)))
    if shared := shared_gpu([Seat(**{**value, "cores": tuple(value["cores"])}) for value in values]):
        first, second = shared
        raise RequirementMissing(
            f"launch.device: ranks {first.rank} and {second.rank} on {first.host} both have GPU {first.gpu}; "
            "each needs one of its own: check CUDA_VISIBLE_DEVICES, and on Slurm cluster.gpus and cluster.srun_args"
        )


def take_seats(placement: Placement, ranks: Ranks, are_bound: bool) -> list[dict[str, Any]]:
    """Return where all ranks sit, for the manifest; every rank calls this, once the engine has set its threads.

    Args:
        placement: What they run on.
        ranks: This process among all.
        are_bound: A scheduler has given them their cores, and may have given one where several were asked for.

    Raises:
        RequirementMissing: A rank has more threads than cores.
    """
    seats = gather(_this_seat(placement, ranks))
    if are_bound and (narrow := crowded(seats)):
        raise RequirementMissing(
            f"rank {narrow.rank} on {narrow.host} may use {len(narrow.cores)} core{'s' * (len(narrow.cores) > 1)} and "
            f"computes with {narrow.num_threads} threads, many times slower than with as many as cores; set "
            "OMP_NUM_THREADS, on Slurm cluster.cpus_per_task, or check how ranks are bound (cluster.srun_args)"
        )
    return [{**asdict(seat), "cores": len(seat.cores)} for seat in seats]


def shared_gpu(seats: Sequence[Seat]) -> tuple[Seat, Seat] | None:
    """Return two ranks of one machine with the same GPU, if there are any."""
    seen: dict[tuple[str, str], Seat] = {}
    for seat in seats:
        if seat.gpu is not None and (other := seen.setdefault((seat.host, seat.gpu), seat)) is not seat:
            return other, seat
    return None


def crowded(seats: Sequence[Seat]) -> Seat | None:
    """Return a rank with more threads than cores, if there is one."""
    return next((seat for seat in seats if seat.cores and seat.num_threads > len(seat.cores)), None)


def _this_seat(placement: Placement, ranks: Ranks) -> Seat:
    import torch

    gpu = None
    if placement.device == "cuda":
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    return Seat(ranks.rank, socket.gethostname(), gpu, cores, torch.get_num_threads())
