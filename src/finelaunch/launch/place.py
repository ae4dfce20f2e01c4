"""The cut of the global batch: what recipe and profile come to on so many processes."""

from collections.abc import Iterable, Iterator
from itertools import chain

from finelaunch.engines import engine_faults
from finelaunch.errors import BadInput, Problem
from finelaunch.launch.profile import Profile
from finelaunch.methods.limits import method_faults
from finelaunch.recipe.schema import Recipe
from finelaunch.section.document import Document
from finelaunch.training.placement import Placement, count_of


def place(recipe: Recipe, profile: Profile, document: Document) -> Placement:
    """Return how a recipe runs on the processes of ``profile``.

    Args:
        recipe: What to train, and how.
        profile: The machine, with a number of processes.
        document: The profile's document, for the origin of its keys.

    Raises:
        BadInput: The global batch cannot be cut so, or the engine cannot run the combination.
    """
    if problems := list(_faults(recipe, profile, document)):
        raise BadInput(problems)
    assert profile.num_processes is not None
    return on_processes(recipe.training.global_batch_size, profile, document)


def check_place(recipe: Recipe, profile: Profile, document: Document) -> None:
    """Say what is wrong, also where the number of processes is not known yet.

    Raises:
        BadInput: With all that is wrong.
    """
    problems = list(_faults(recipe, profile, document))
    try:
        if not problems:
            known = profile if profile.num_processes else profile.with_processes(profile.num_nodes, 1)
            on_processes(recipe.training.global_batch_size, known, document)
    except BadInput as error:
        if profile.num_processes is not None:
            problems += error.problems
    if problems:
        raise BadInput(problems)


def on_processes(global_batch_size: int, profile: Profile, document: Document) -> Placement:
    """Return the cut of a global batch.

    Raises:
        BadInput: It is not a multiple of the processes times the per-device batch.
    """
    processes = profile.num_processes or 1
    per_device = profile.per_device_batch_size or max(1, global_batch_size // processes)
    if global_batch_size % (per_device * processes):
        raise BadInput(_indivisible(global_batch_size, per_device, processes, profile, document))
    return Placement(
        device=profile.device,
        precision=profile.precision,
        per_device_batch_size=per_device,
        gradient_accumulation_steps=global_batch_size // (per_device * processes),
        num_processes=processes,
        engine=profile.engine(document),
        per_device_eval_batch_size=profile.per_device_eval_batch_size,
        activation_checkpointing=profile.activation_checkpointing,
        dataloader_num_workers=profile.dataloader_num_workers,
        collective_timeout_seconds=profile.collective_timeout_seconds,
    )


def _faults(recipe: Recipe, profile: Profile, document: Document) -> Iterator[Problem]:
    """Yield what the engine cannot run, and what the recipe's method cannot run on it."""
    engine = profile.engine(document)
    checkpointing, precision = profile.activation_checkpointing, profile.precision
    by_method = method_faults(recipe.method, engine.name, checkpointing, engine.offload, precision)
    by_engine = engine_faults(
        engine,
        target=profile.target,
        device=profile.device,
        precision=profile.precision,
        num_processes=profile.num_processes,
        optim=recipe.training.optim,
    )
    for fault in chain(by_engine, by_method):
        origin = document.origin((fault.key,))
        yield Problem(origin, f"launch.{fault.key}", fault.what, fault.allowed, fault.remedy)


def _indivisible(size: int, per_device: int, processes: int, profile: Profile, document: Document) -> Problem:
    """Return the problem of a global batch that cannot be cut, with values that can."""
    unit = per_device * processes
    below = size - size % unit
    fitting = _either(filter(None, (below, below + unit)))
    if size % processes:
        what = f"{size} is not divisible by {count_of(processes)} x {per_device} per device = {unit}"
        origin = document.origin(("num_processes_per_node",))
        return Problem(origin, "training.global_batch_size", what, "", f"use {fitting}, or another number of processes")
    share = size // processes
    divisors = [number for number in range(1, share + 1) if share % number == 0]
    near = sorted(sorted(divisors, key=lambda number: abs(number - per_device))[:2])
    what = f"global_batch_size {size} is not divisible by {count_of(processes)} x {per_device} per device"
    remedy = f"use {_either(near)}, or training.global_batch_size={fitting}"
    return Problem(document.origin(("per_device_batch_size",)), "launch.per_device_batch_size", what, "", remedy)


def _either(sizes: Iterable[int]) -> str:
    return " or ".join(map(str, sizes))
