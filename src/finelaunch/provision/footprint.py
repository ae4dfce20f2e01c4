"""What a run will leave on the disks, estimated before there is a model."""

import math

from finelaunch.data.section import given_sources
from finelaunch.data.sources import HUB_PREFIX
from finelaunch.errors import BadInput, FinelaunchError
from finelaunch.launch.place import on_processes
from finelaunch.launch.profile import Profile
from finelaunch.models.size import ModelSize
from finelaunch.preparation import cached_report
from finelaunch.recipe.schema import Recipe
from finelaunch.section.document import Document
from finelaunch.training.faults import checkpoint_bytes


def estimated_checkpoint_bytes(size: ModelSize, recipe: Recipe, profile: Profile, document: Document) -> int:
    """Return what a checkpoint takes at most, all parameters trained, before there is a model."""
    one = profile.with_processes(1, 1)
    try:
        placement = on_processes(recipe.training.global_batch_size, one, document)
    except BadInput:  # how a batch is cut changes nothing of what a checkpoint holds
        placement = on_processes(1, one.model_copy(update={"per_device_batch_size": 1}), document)
    return checkpoint_bytes(_Weights(size), recipe.training, placement)


def num_checkpoints(recipe: Recipe, steps: int | None) -> int | None:
    """Return how many checkpoints lie on the disk at once, at most; None: all are kept, and nobody knows how many.

    The newest ``save_total_limit``, the best one, and the one that is being written.
    """
    training = recipe.training
    if training.save_total_limit is not None:
        return training.save_total_limit + 2
    if training.save_strategy == "no":
        return 2
    if training.save_strategy == "steps":
        return None if steps is None or training.save_steps is None else math.ceil(steps / training.save_steps) + 1
    return math.ceil(training.num_train_epochs) + 1 if training.max_steps <= 0 else None


def steps_in_all(recipe: Recipe, document: Document) -> int | None:
    """Return the optimizer steps of a run; None until the data is encoded, and for the hub's, which would be asked."""
    training = recipe.training
    if training.max_steps > 0:
        return training.max_steps
    if any(source.section.path.startswith(HUB_PREFIX) for source in given_sources(recipe.data)):
        return None
    try:
        report = cached_report(recipe.data, recipe.model, recipe.task.model_dump(mode="json"), document)
    except FinelaunchError:
        return None
    if report is None:
        return None
    epoch = math.ceil(report["splits"]["train"]["num_features"] / training.global_batch_size)
    return math.ceil(training.num_train_epochs * epoch)


class _Weights:
    """A model as :func:`finelaunch.training.faults.checkpoint_bytes` looks at one: all its parameters as one matrix."""

    requires_grad = True

    def __init__(self, size: ModelSize) -> None:
        self.shape = (max(1, size.num_parameters // size.hidden_size), size.hidden_size)
        self._num_parameters = size.num_parameters

    def parameters(self) -> list["_Weights"]:
        return [self]

    def numel(self) -> int:
        return self._num_parameters

    def element_size(self) -> int:
        return 4
