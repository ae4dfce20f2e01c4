"""The comparison of what runs with what was asked, where no rank is needed; with ranks in tests/distributed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finelaunch.engines import Engine
from finelaunch.errors import FinelaunchError
from finelaunch.training import verify as module
from finelaunch.training.placement import Placement
from finelaunch.training.verify import WHY, _bits_by_place, asked, differing, verify

PLACEMENTS = [
    Placement("cpu", "fp32", 8, 1),
    Placement("cpu", "fp32", 4, 1, num_processes=2, engine=Engine("zero3", "all")),
    Placement("cuda", "bf16", 4, 2, num_processes=2, engine=Engine("ddp")),
    Placement("cuda", "fp16", 4, 2, num_processes=2, engine=Engine("zero2", "optimizer")),
    Placement("cuda", "tf32", 8, 1),
]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("key", WHY)
def test_every_difference_is_one_sentence_with_its_reason(placement: Placement, key: str) -> None:
    wanted = asked(placement)
    assert set(wanted) == set(WHY)
    assert differing(wanted, dict(wanted)) == ""
    said = differing(wanted, {**wanted, key: "another"})
    assert said == f"engine: asked for {key} {wanted[key]}, but {key} another ran; {WHY[key]}"


def test_weights_are_fp32_but_for_deepspeed_in_16_bit() -> None:
    assert [asked(placement)["dtype"] for placement in PLACEMENTS] == [*["float32"] * 3, "float16", "float32"]


def told(monkeypatch: pytest.MonkeyPatch, *answers: tuple[str, str]) -> dict[str, Any]:
    """Return what ``verify`` gives where the ranks answer so."""
    placement = PLACEMENTS[2]
    monkeypatch.setattr(module, "live", lambda trainer: {**asked(placement), "zero_stage": None})
    monkeypatch.setattr(module, "_own_device", lambda trainer: answers[0][1])
    monkeypatch.setattr(module, "gather", lambda value: list(answers))
    return verify(SimpleNamespace(args=SimpleNamespace(device="cuda:0")), placement)  # type: ignore


def test_two_ranks_on_one_gpu_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, ("", "node1 H200 a"), ("", "node1 H200 b"))["devices"] == ["node1 H200 a", "node1 H200 b"]
    with pytest.raises(
        FinelaunchError, match=r"ranks \[0, 1\] share node1 H200 a: accelerate takes the local rank modulo"
    ):
        told(monkeypatch, ("", "node1 H200 a"), ("", "node1 H200 a"))


def test_what_another_rank_runs_ends_this_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FinelaunchError, match=r"asked for fp32 and so on \(rank 1\)"):
        told(monkeypatch, ("", "node1 H200 a"), ("asked for fp32 and so on", "node1 H200 b"))


def test_the_same_bits_in_other_places_are_other_weights() -> None:
    weights = torch.arange(3 * (1 << 20), dtype=torch.float32).reshape(3, -1)
    other = weights[[1, 0, 2]]
    assert _bits_by_place(weights) == _bits_by_place(weights.clone())
    assert _bits_by_place(weights) != _bits_by_place(other)
    assert _bits_by_place(weights.to(torch.bfloat16)) != _bits_by_place(other.to(torch.bfloat16))
