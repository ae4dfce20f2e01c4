"""Seats: two ranks on one GPU and threads without cores are found; the same UUID on two hosts is no sharing."""

from finelaunch.training.placement import has_own_gpu
from finelaunch.training.seats import Seat, crowded, shared_gpu


def seat(rank: int, host: str, gpu: str | None, cores: tuple[int, ...] = (0, 1), num_threads: int = 1) -> Seat:
    return Seat(rank, host, gpu, cores, num_threads)


def test_two_ranks_on_one_gpu() -> None:
    apart = [seat(0, "node1", "GPU-a"), seat(1, "node1", "GPU-b"), seat(2, "node2", "GPU-a"), seat(3, "node2", "GPU-b")]
    assert shared_gpu(apart) is None
    both = [*apart[:3], seat(3, "node2", "GPU-a")]
    found = shared_gpu(both)
    assert found is not None
    assert [one.rank for one in found] == [2, 3]
    assert shared_gpu([seat(0, "node1", None), seat(1, "node1", None)]) is None, "CPUs are shared"


def test_more_threads_than_cores() -> None:
    fine = [seat(0, "node1", None, (0, 1), 2), seat(1, "node1", None, (), 64)]
    assert crowded(fine) is None
    assert crowded([*fine, seat(2, "node1", None, (5,), 2)]) == seat(2, "node1", None, (5,), 2)


def test_one_gpu_for_each_task_of_slurm() -> None:
    in_step = {"SLURM_STEP_ID": "0"}
    assert has_own_gpu(1, 4, in_step)
    assert not has_own_gpu(1, 4, {}), "torchrun with too few GPUs"
    assert not has_own_gpu(1, 1, in_step)
    assert not has_own_gpu(4, 4, in_step), "--gres shows all of them to each"
