"""The order in which DistributedDataParallel adds up gradients: the same at every step of every start."""

from typing import Any

from finelaunch.run.directory import RunDirectory
from finelaunch.run.log import warn

PRIVATE = {
    "prepare_for_forward": "(self: Reducer) -> None",
    "prepare_for_backward": "(self: Reducer, arg0: collections.abc.Sequence[torch.Tensor]) -> None",
    "_rebuild_buckets": "(self: Reducer) -> bool",
}
"""Private methods of DDP's reducer that are called, and what torch says of them; a test holds that they are so."""


def settle_buckets(model: Any, run: RunDirectory) -> None:
    """Have DDP cut the gradients into the buckets that it will keep, before the first step; every rank calls this.

    After the first backward pass of a process DDP cuts them anew, in the order in which they were ready. Where a
    gradient lies in a bucket decides in which order the values of three or more ranks are added, and thus how they are
    rounded. Left to itself the first step of every start is therefore rounded otherwise than the same step of a run
    that goes on, and a run that was stopped does not end in the same bits. A backward pass of zeros settles it. Where
    that cannot be done, with a torch whose reducer is another one, the run goes on and its manifest says so.

    Args:
        model: As the engine has prepared it; one that is not DDP's is left alone.
        run: Takes the warning.
    """
    import torch
    from torch.nn.parallel import DistributedDataParallel

    if not isinstance(model, DistributedDataParallel):
        return
    if model.find_unused_parameters and not model.static_graph:
        return  # the buckets of the beginning are kept
    if not _cut_anew(model):
        text = (
            f"torch {torch.__version__}: DDP does not settle the order in which it adds up gradients before the first "
            "step; with three ranks and more a run that was stopped and continued does not end in the same bits"
        )
        if run.warn(text):
            warn(text)


def _cut_anew(model: Any) -> bool:
    """Return whether DDP has cut its buckets in the order of a backward pass; no gradient is left of that."""
    if model.static_graph:
        return False  # the pass would be taken for the graph of all others
    if not all(hasattr(model.reducer, name) for name in PRIVATE):
        return False
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        model.reducer.prepare_for_forward()
        model.reducer.prepare_for_backward([])
    except TypeError:  # they take something else
        return False
    sum(weight.sum() * 0.0 for weight in weights).backward()  # type: ignore[union-attr]
    settled = model.reducer._rebuild_buckets()
    model.zero_grad()
    return settled
