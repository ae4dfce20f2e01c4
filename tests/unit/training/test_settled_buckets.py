"""Settling DDP's buckets: its private methods are as they were, no gradient is left, and what cannot be is said."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Reducer
from torch.nn.parallel import DistributedDataParallel

from finelaunch.run.directory import RunDirectory
from finelaunch.training.buckets import PRIVATE, settle_buckets


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.begin({}, {}, [])
    return made


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrapped(**others: bool) -> DistributedDataParallel:
    layers = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 4), torch.nn.Linear(4, 2))
    layers[1].requires_grad_(False)
    with torch.no_grad():
        layers[0].weight[0, 0] = float("nan")  # a weight that is no number makes no gradient of the pass of zeros
    return DistributedDataParallel(layers, **others)


def warnings(run: RunDirectory) -> list[str]:
    return run.read_manifest().get("warnings", [])


def test_the_private_methods_of_the_reducer_are_as_they_were() -> None:
    for name, signature in PRIVATE.items():
        said = re.sub(r"torch\._C\._distributed_c10d\.", "", getattr(Reducer, name).__doc__)
        assert f"{name}{signature}\n" in said


def test_buckets_are_cut_once_and_no_gradient_is_left(run: RunDirectory) -> None:
    model = wrapped()
    settle_buckets(model, run)
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.reducer._rebuild_buckets(), "they would be cut anew"
    assert not warnings(run)
    with model.no_sync():  # as gradients are accumulated
        model(torch.ones(2, 3)).sum().backward()
    model(torch.ones(2, 3)).sum().backward()
    assert not model.reducer._rebuild_buckets()
    assert model.module[2].bias.grad.tolist() == [4.0, 4.0]
    assert model.module[1].weight.grad is None


def test_buckets_that_are_never_cut_anew_are_left_alone(run: RunDirectory) -> None:
    model = wrapped(find_unused_parameters=True)
    settle_buckets(model, run)
    model(torch.ones(2, 3)).sum().backward()
    assert not model.reducer._rebuild_buckets()
    assert not warnings(run)


def test_what_is_not_of_ddp_is_left_alone(run: RunDirectory) -> None:
    settle_buckets(torch.nn.Linear(2, 2), run)
    assert not warnings(run)


@pytest.mark.parametrize("other_torch", ["without", "other", "static"])
def test_a_torch_that_does_it_otherwise_is_said(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, other_torch: str
) -> None:
    model = wrapped(static_graph=other_torch == "static")
    with monkeypatch.context() as patch:
        if other_torch == "without":
            patch.delattr(Reducer, "_rebuild_buckets")
        elif other_torch == "other":
            patch.setattr(Reducer, "prepare_for_backward", Reducer.prepare_for_forward)
        settle_buckets(model, run)
    (said,) = warnings(run)
    assert said.startswith(f"torch {torch.__version__}: DDP does not settle the order")
    model(torch.ones(2, 3)).sum().backward()  # the training goes on
    assert model.module[2].bias.grad.tolist() == [2.0, 2.0]
