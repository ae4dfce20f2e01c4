"""Ends that have nothing to do with the recipe, said as what they are; room for checkpoints."""

import errno
import os
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.engines import Engine
from finelaunch.errors import FinelaunchError, RequirementMissing
from finelaunch.run import files
from finelaunch.run.directory import RunDirectory
from finelaunch.training.faults import BESIDE_WEIGHTS_BYTES, check_room, checkpoint_bytes, name_fault
from finelaunch.training.placement import Placement
from finelaunch.training.section import TrainingSection

ALONE = Placement("cpu", "fp32", 8, 1)
ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:126] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


def named(error, run, placement=ALONE):
    with pytest.raises(FinelaunchError) as caught:
        name_fault(error, run, placement)
    return str(caught.value)


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


@given(st.integers(1, 64), st.integers(1, 12), st.integers(1, 8))
def test_the_batch_to_try_keeps_the_global_batch(per_device, processes, accumulation):
    """What divides the global batch alone, as 3 does 6 rows on 3 processes, could not be cut."""
    placement = Placement("cpu", "fp32", per_device, accumulation, processes, Engine("ddp"))
    with pytest.raises(FinelaunchError) as caught:
        name_fault(MemoryError(), RunDirectory(files.Path(os.curdir)), placement)
    said = str(caught.value)
    found = re.search(
        r"launch\.per_device_batch_size=(\d+) \(the global batch stays: (\d+) per device x (\d+) x (\d+) ", said
    )
    if per_device == 1:
        assert found is None
        assert "launch.activation_checkpointing=true" in said
        assert "task.max_length" in said
        return
    assert found is not None
    size, same, count, accumulated = map(int, found.groups())
    assert size == same <= per_device // 2
    assert size * count * accumulated == placement.global_batch_size
    assert count == processes


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (RuntimeError(f"{ON_CPU} 9 bytes. Error code 12 (Cannot allocate memory)"), "cpu"),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), "cpu"),
        (MemoryError(), "cpu"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "cpu"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB"), "cuda"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "cuda"),
    ],
)
def test_a_full_memory_is_named_on_any_device(error, where, run):
    said = named(error, run)
    assert said.startswith(f"launch.per_device_batch_size: out of memory on {where} with 8 rows a forward pass")
    assert "launch.per_device_batch_size=4" in said


def test_a_real_allocation_that_fails_is_named(run):
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "out of memory on cpu" in named(caught.value, run)


def test_one_row_is_answered_with_what_the_engine_has(run):
    zero3 = Placement("cuda", "bf16", 1, 4, 2, Engine("zero3"), activation_checkpointing=True)
    said = named(MemoryError(), run, zero3)
    assert "launch.offload=all, a smaller task.max_length" in said
    assert "activation_checkpointing" not in said
    assert "launch.accelerate_config=zero3" in named(
        MemoryError(), run, Placement("cuda", "bf16", 1, 4, 2, Engine("ddp"))
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception(
            'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'
        ),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 265792 vs 265680"),
        RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"),
    ],
)
def test_a_full_disk_is_named_with_path_and_bytes_whoever_met_it(error, run):
    check_room(run, 1234)
    said = named(error, run)
    assert said.startswith(f"{run.path}: cannot be written: ")
    assert re.search(r"; [\d,]+ bytes are free now, a checkpoint takes 1,234; make room, the same command", said)


def test_the_file_that_found_the_disk_full_is_named(run, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    path = tmp_path / "events.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="it takes 15 bytes") as caught:
        files.append_line(path, {"event": "x"})
    said = named(caught.value, run)
    assert said.startswith(f"{path}: cannot be written: No space left on device: it takes 15 bytes, and ")
    assert files.full_disk_text(caught.value).startswith(f"{path}: cannot be written: No space left on device")


def test_what_came_of_a_full_disk_is_one_too(run):
    error = ValueError("I/O operation on closed file")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/x/y")
    assert named(error, run).startswith("/x/y: cannot be written: No space left on device; ")


def test_other_errors_are_left_as_they_are(run):
    for error in (ValueError("x"), RuntimeError("shape mismatch"), OSError(errno.ENOENT, "none"), KeyboardInterrupt()):
        name_fault(error, run, ALONE)
    name_fault(FinelaunchError("No space left on device"), run, ALONE)


@pytest.mark.parametrize(("world_size", "shown"), [(2, "rank_0.log, "), (8, "rank_0.log to ")])
def test_a_lost_rank_names_the_logs_of_all(world_size, shown, run):
    placement = Placement("cpu", "fp32", 1, 1, world_size, Engine("ddp"), collective_timeout_seconds=77)
    said = named(RuntimeError("[unbound_buffer.cc:129] Timed out waiting 77000ms for send operation"), run, placement)
    assert "within 77 s (launch.collective_timeout_seconds)" in said
    assert f"{run.log.parent}/{shown}" in said
    assert said.endswith(f"rank_{world_size - 1}.log")


def test_room_for_two_checkpoints_is_asked_for_and_for_one_where_one_stands(run):
    free = shutil.disk_usage(run.path).free
    check_room(run, free // 4)
    with pytest.raises(RequirementMissing) as caught:
        check_room(run, free)
    assert re.match(
        rf"{run.path}: two checkpoints of {free:,} bytes need {2 * free:,} bytes, and [\d,]+ are free; make room",
        str(caught.value),
    )
    (run.checkpoints / "checkpoint-2").mkdir(parents=True)
    sparse = run.checkpoints / "checkpoint-2" / "model.safetensors"
    with sparse.open("wb") as file:
        file.truncate(4 * free)
    check_room(run, free * 2 // 3)
    with pytest.raises(RequirementMissing, match=f"one more checkpoint of {2 * free:,} bytes"):
        check_room(run, 2 * free)


@pytest.mark.parametrize(
    ("optim", "states"), [("adamw_torch_fused", 2), ("adamw_torch", 2), ("sgd", 0), ("adafactor", None)]
)
def test_the_size_of_a_checkpoint_is_that_of_weights_and_optimizer(optim, states):
    """Held against what the optimizers of torch and transformers really keep."""
    import torch
    from transformers import Adafactor

    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20, bias=False))
    model[1].requires_grad_(False)
    trained = [one for one in model.parameters() if one.requires_grad]
    kinds = {"sgd": lambda them: torch.optim.SGD(them, 0.1), "adafactor": Adafactor}
    optimizer = kinds.get(optim, torch.optim.AdamW)(trained)
    model(torch.ones(1, 40)).sum().backward()
    optimizer.step()
    kept = [
        one for state in optimizer.state.values() for one in state.values() if torch.is_tensor(one) and one.numel() > 1
    ]
    section = TrainingSection(global_batch_size=1, learning_rate=1e-3, optim=optim)
    weights = sum(one.nbytes for one in model.parameters())
    found = checkpoint_bytes(model, section, Placement("cpu", "fp32", 1, 1)) - weights - BESIDE_WEIGHTS_BYTES
    assert found == sum(one.nbytes for one in kept)
    if states is not None:
        assert found == 4 * states * sum(one.numel() for one in trained)


def test_zero_keeps_the_weights_in_fp32_beside_those_it_computes_with():
    import torch

    model = torch.nn.Linear(100, 10, bias=False)
    section = TrainingSection(global_batch_size=1, learning_rate=1e-3)
    zero2 = Placement("cpu", "fp32", 1, 1, 2, Engine("zero2"))
    assert checkpoint_bytes(model, section, zero2) - BESIDE_WEIGHTS_BYTES == 1000 * 4 * (2 + 1 + 2)
    model.weight.ds_numel = 5000  # type: ignore[attr-defined]
    zero3 = Placement("cpu", "fp32", 1, 1, 2, Engine("zero3"))
    assert checkpoint_bytes(model, section, zero3) - BESIDE_WEIGHTS_BYTES == 5000 * 4 * (1 + 1 + 2)
