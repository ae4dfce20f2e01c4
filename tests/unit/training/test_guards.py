"""The guard where no run is needed; with real runs in tests/integration and real ranks in tests/distributed."""

import math
from types import SimpleNamespace

import pytest
import torch

from finelaunch.data.features import Features
from finelaunch.data.sampler import GlobalBatchSampler
from finelaunch.engines import Engine
from finelaunch.errors import FinelaunchError
from finelaunch.run.directory import RunDirectory
from finelaunch.run.ranks import ALONE
from finelaunch.training.guards import MAX_SKIPPED_STEPS, Guard
from finelaunch.training.placement import Placement

ARGS = SimpleNamespace(max_grad_norm=1.0, device=torch.device("cpu"))


def guard_of(tmp_path, model=None, placement=None, checkpoint="checkpoint-2", **accelerator):
    features = Features.from_lists({"input_ids": [[1, 2]] * 8, "labels": [0] * 8, "example": list(range(8))})
    sampler = GlobalBatchSampler(features.lengths, 4, 2, 0, 1)
    examples = [{"id": f"row-{number}"} for number in range(8)]
    placement = placement or Placement("cpu", "fp32", 2, 2)
    guard = Guard(RunDirectory(tmp_path), sampler, features, lambda: examples, ALONE, placement, lambda: checkpoint)
    model = model or torch.nn.Linear(3, 1)
    guard.trainer = SimpleNamespace(
        model=model,
        model_wrapped=model,
        args=ARGS,
        state=SimpleNamespace(global_step=2),
        num_steps=4,
        accelerator=SimpleNamespace(get_state_dict=lambda wrapped: wrapped.state_dict(), **accelerator),
    )
    return guard


def forward(guard, *losses):
    guard.on_step_begin(ARGS, guard.trainer.state, None)
    for loss in losses:
        guard.before_forward(torch.tensor(4))
        guard.check_loss(torch.tensor(loss, requires_grad=True))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_ends_the_run_also_where_nothing_else_can_be_written(loss, tmp_path):
    """The folder holds no recipe and no manifest: the first fault is said all the same, and the second one with it."""
    guard = guard_of(tmp_path)
    with pytest.raises(FinelaunchError) as caught:
        forward(guard, 0.5, loss)
    said = str(caught.value)
    rows = guard.sampler.micro_batches(guard.sampler.global_batches(1)[0])[1].tolist()
    ids = ", ".join(f"'row-{row}'" for row in rows)
    assert said.startswith(f"training: step 3: the loss is {loss!r} (micro-batch 2 of 2, examples {ids}); ")
    assert "the newest checkpoint, checkpoint-2, holds the very weights that this happened with" in said
    assert f"what would compute it again could not be written: {tmp_path / 'replay' / 'step-3-rank-0.json'}" in said


def check_gradient(guard, value):
    """Give every gradient this value and let the guard see what clipping returns."""
    for parameter in guard.trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    guard.check_gradient(torch.nn.utils.clip_grad_norm_(guard.trainer.model.parameters(), 1.0))


def test_numbers_pass_and_a_batch_without_targets_too(tmp_path):
    guard = guard_of(tmp_path)
    for losses, gradient in (((0.0, 0.0), 0.0), ((1e30, -2.0), 1e18), ((0.5, 0.5), 0.0)):
        forward(guard, *losses)
        check_gradient(guard, gradient)
        guard.check_weights()


@pytest.mark.parametrize(("gradient", "norm"), [(math.nan, "nan"), (math.inf, "inf"), (1e30, "inf")])
def test_a_gradient_ends_the_run(gradient, norm, tmp_path):
    """One of numbers that are finite too, where its norm is not."""
    guard = guard_of(tmp_path)
    forward(guard, 0.5, 0.25)
    with pytest.raises(
        FinelaunchError, match=f"step 3: the norm of the gradient is {norm}, with losses that are numbers"
    ):
        check_gradient(guard, gradient)


def test_fp16_may_leave_steps_out_but_not_for_ever(tmp_path):
    guard = guard_of(tmp_path, placement=Placement("cuda", "fp16", 2, 2), optimizer_step_was_skipped=True)
    check_gradient(guard, math.inf)
    state = SimpleNamespace(global_step=9)
    for _ in range(MAX_SKIPPED_STEPS - 1):
        guard.on_step_end(ARGS, state, None)
    guard.trainer.accelerator.optimizer_step_was_skipped = False
    guard.on_step_end(ARGS, state, None)
    guard.trainer.accelerator.optimizer_step_was_skipped = True
    for _ in range(MAX_SKIPPED_STEPS - 1):
        guard.on_step_end(ARGS, state, None)
    with pytest.raises(FinelaunchError, match=r"launch\.precision=bf16 or fp32"):
        guard.on_step_end(ARGS, state, None)


@pytest.mark.parametrize("norm", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("skipped", [True, False])
def test_deepspeeds_norm_that_is_none_ends_the_run_and_says_what_the_weights_are(norm, skipped, tmp_path):
    """In bf16 DeepSpeed takes such a step, in fp32 it leaves it out without a word."""
    placement = Placement("cpu", "bf16", 1, 2, 1, Engine("zero2"))
    guard = guard_of(tmp_path, None, placement, optimizer_step_was_skipped=skipped)
    forward(guard, 0.5, 0.25)
    with pytest.raises(FinelaunchError) as caught:
        guard.check_gradient(norm)
    assert ("the weights in memory took the step and are dropped" in str(caught.value)) is not skipped
    assert (tmp_path / "replay" / "step-3.safetensors").exists() is skipped


def test_weights_in_parts_are_looked_at_where_they_are(tmp_path):
    model = torch.nn.Linear(3, 1)
    guard = guard_of(tmp_path, model)
    guard.check_weights()
    model.weight.ds_tensor = torch.tensor([1.0, math.nan])  # type: ignore[attr-defined]
    with pytest.raises(FinelaunchError, match="1 weights are not finite, weight among them; they are not saved"):
        guard.check_weights()


def test_without_a_checkpoint_it_says_so(tmp_path):
    guard = guard_of(tmp_path, checkpoint=None)
    with pytest.raises(FinelaunchError, match="there is no checkpoint to go on from"):
        forward(guard, math.nan)
