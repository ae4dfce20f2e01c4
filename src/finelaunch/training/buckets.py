"""The order in which DistributedDataParallel adds up gradients: the same at every step of every start."""

from typing import Any


def settle_buckets(model: Any) -> None:
    """Have DDP cut the gradients into the buckets that it will keep, before the first step.

    After the first backward pass of a process DDP cuts them anew, in the order in which they were ready. Where a
    gradient lies in a bucket decides in which order the values of three or more ranks are added, and thus how they are
    rounded. Left to itself the first step of every start is therefore rounded otherwise than the same step of a run
    that goes on, and a run that was stopped does not end in the same bits. A backward pass of zeros settles it.

    Args:
        model: As the engine has prepared it; one that is not DDP's is left alone.
    """
    from torch.nn.parallel import DistributedDataParallel

    if not isinstance(model, DistributedDataParallel):
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    model.reducer.prepare_for_forward()
    model.reducer.prepare_for_backward([])
    sum(weight.sum() * 0.0 for weight in weights).backward()  # type: ignore[union-attr]
    settled = model.reducer._rebuild_buckets()
    model.zero_grad()
    assert settled, "DDP has not cut its buckets anew"
