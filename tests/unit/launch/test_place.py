"""The cut of the global batch, and what this machine can compute in."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.errors import EXIT_BAD_INPUT, EXIT_REQUIREMENT, BadInput, RequirementMissing
from finelaunch.launch import profile as profile_module
from finelaunch.launch.place import place
from finelaunch.launch.profile import Profile
from finelaunch.methods.full import FullSection
from finelaunch.recipe.schema import Recipe
from finelaunch.run.ranks import ALONE
from finelaunch.section.document import Document
from finelaunch.training.placement import Placement, expose_gpus, settle
from finelaunch.training.section import TrainingSection

sizes = st.integers(1, 600)


def cut(global_batch_size: int, per_device_batch_size: int | None, num_processes: int = 1) -> Placement:
    target, engine = ("inprocess", "single") if num_processes == 1 else ("torchrun", "ddp")
    profile = Profile(
        target=target,  # type: ignore
        accelerate_config=engine,
        num_processes_per_node=num_processes,
        device="cpu",
        per_device_batch_size=per_device_batch_size,
    )
    training = TrainingSection(global_batch_size=global_batch_size, learning_rate=1e-3)
    recipe = Recipe.model_construct(training=training, method=FullSection())
    return place(recipe, profile, Document({}, {}, "launch/cpu.yaml"))


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
    assert settle(placement("cpu", "auto"), ALONE).precision == "fp32"
    assert settle(placement("cpu", "fp32"), ALONE).precision == "fp32"
    for precision in ("fp16", "tf32"):
        with pytest.raises(ValueError, match="for GPUs"):
            Profile(device="cpu", precision=precision)  # type: ignore


def test_bf16_on_a_cpu_needs_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "cpu_has_bf16", lambda: False)
    with pytest.raises(ValueError, match="avx512_bf16"):
        Profile(device="cpu", precision="bf16")
    monkeypatch.setattr(profile_module, "cpu_has_bf16", lambda: True)
    assert Profile(device="cpu", precision="bf16").precision == "bf16"


def test_a_gpu_that_is_not_there_is_refused_with_what_to_do() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for precision in ("auto", "fp32", "bf16", "fp16"):
        with pytest.raises(RequirementMissing, match=r"launch.device: no CUDA device .*use --on cpu") as caught:
            settle(placement("cuda", precision), ALONE)
        assert caught.value.exit_code == EXIT_REQUIREMENT


@pytest.mark.parametrize(("before", "after"), [(None, "0"), ("3", "3"), ("2,3", "2"), ("", "")])
def test_one_gpu_is_exposed(monkeypatch: pytest.MonkeyPatch, before: str | None, after: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before or "")
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    expose_gpus("cuda", alone=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8", "cuBLAS reads it at its first call"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == after


def test_a_cpu_run_sees_no_gpu_and_a_rank_sees_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    expose_gpus("cuda", alone=False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    expose_gpus("cpu", alone=False)
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["DS_ACCELERATOR"]) == ("", "cpu")


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_the_arithmetic_holds_for_every_number_of_processes(processes: int, per_device: int, accumulation: int) -> None:
    size = processes * per_device * accumulation
    placement = cut(size, per_device, processes)
    assert placement.gradient_accumulation_steps == accumulation
    assert placement.global_batch_size == size
    assert cut(size, None, processes).gradient_accumulation_steps == 1


@given(st.integers(2, 9), st.integers(1, 600), st.integers(1, 40))
def test_what_does_not_divide_among_processes_is_refused_with_sizes_that_do(
    processes: int, size: int, per_device: int
) -> None:
    if size % (processes * per_device) == 0:
        return
    with pytest.raises(BadInput) as caught:
        cut(size, per_device, processes)
    (problem,) = caught.value.problems
    if size % processes:
        assert problem.key == "training.global_batch_size"
        assert f"{processes} processes x {per_device} per device = {processes * per_device}" in problem.what
        fitting = problem.remedy.removeprefix("use ").split(", or another")[0]
    else:
        assert problem.key == "launch.per_device_batch_size"
        mine, fitting = problem.remedy.removeprefix("use ").split(", or training.global_batch_size=")
        for one in mine.split(" or "):
            assert cut(size, int(one), processes)
    for one in fitting.split(" or "):
        assert cut(int(one), per_device, processes)
