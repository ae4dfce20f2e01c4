"""The cut of the global batch, and what this machine can compute in."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.errors import EXIT_BAD_INPUT, EXIT_REQUIREMENT, BadInput, RequirementMissing
from finelaunch.launch.plan import place
from finelaunch.launch.profile import Profile
from finelaunch.section.document import Document
from finelaunch.training.placement import Placement, expose_one_gpu, settle

sizes = st.integers(1, 600)


def cut(global_batch_size: int, per_device_batch_size: int | None) -> Placement:
    profile = Profile(device="cpu", per_device_batch_size=per_device_batch_size)
    return place(global_batch_size, profile, Document({}, {}, "launch/cpu.yaml"))


@given(sizes, sizes)
def test_the_arithmetic_holds_for_every_divisor(per_device: int, accumulation: int) -> None:
    placement = cut(per_device * accumulation, per_device)
    assert placement.per_device_batch_size == per_device
    assert placement.gradient_accumulation_steps == accumulation
    assert placement.global_batch_size == per_device * accumulation
    said = (
        f"global batch {per_device * accumulation} = {per_device} per device x 1 process x {accumulation} accumulated"
    )
    assert placement.arithmetic() == said


@given(sizes)
def test_without_a_per_device_batch_nothing_is_accumulated(global_batch_size: int) -> None:
    assert cut(global_batch_size, None).gradient_accumulation_steps == 1


@given(sizes, sizes)
def test_what_does_not_divide_is_refused_with_sizes_that_do(global_batch_size: int, per_device: int) -> None:
    if global_batch_size % per_device == 0:
        return
    with pytest.raises(BadInput) as caught:
        cut(global_batch_size, per_device)
    (problem,) = caught.value.problems
    assert caught.value.exit_code == EXIT_BAD_INPUT
    assert (problem.origin, problem.key) == ("launch/cpu.yaml", "launch.per_device_batch_size")
    mine, others = problem.remedy.removeprefix("use ").split(", or training.global_batch_size=")
    for size in mine.split(" or "):
        assert cut(global_batch_size, int(size))
    for size in others.split(" or "):
        assert cut(int(size), per_device)


def test_sizes_that_no_machine_has_are_refused() -> None:
    for size in (0, -1, 2**20 + 1, 10**30):
        with pytest.raises(ValueError):
            Profile(device="cpu", per_device_batch_size=size)


def placement(device: str, precision: str) -> Placement:
    return Placement(device, precision, 1, 1)  # type: ignore


def test_a_cpu_computes_in_fp32() -> None:
    assert settle(placement("cpu", "auto")).precision == "fp32"
    assert settle(placement("cpu", "fp32")).precision == "fp32"
    for precision in ("bf16", "fp16"):
        with pytest.raises(ValueError, match="precision"):
            Profile(device="cpu", precision=precision)  # type: ignore


def test_a_gpu_that_is_not_there_is_refused_with_what_to_do() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for precision in ("auto", "fp32", "bf16", "fp16"):
        with pytest.raises(RequirementMissing, match=r"launch.device: no CUDA device .*use --on cpu") as caught:
            settle(placement("cuda", precision))
        assert caught.value.exit_code == EXIT_REQUIREMENT


@pytest.mark.parametrize(("before", "after"), [(None, "0"), ("3", "3"), ("2,3", "2"), ("", "")])
def test_one_gpu_is_exposed(monkeypatch: pytest.MonkeyPatch, before: str | None, after: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before or "")
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    expose_one_gpu()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8", "cuBLAS reads it at its first call"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == after
