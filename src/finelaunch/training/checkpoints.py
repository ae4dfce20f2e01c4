"""Which checkpoint a run continues from."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from finelaunch.errors import BadInput, Problem
from finelaunch.run.directory import RunDirectory
from finelaunch.run.log import warn
from finelaunch.training.placement import Placement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATE = "trainer_state.json"
"""What the Trainer writes last: a checkpoint without it was not written to its end."""
SHAPE = ("model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers")


def checkpoint_to_resume(resume: str, run: RunDirectory) -> Path | None:
    """Return the checkpoint that ``training.resume`` means.

    The newest whole one of the run, for a path too once the run has one of its own; none for ``never``.

    Raises:
        BadInput: It is a path without a whole checkpoint.
    """
    if resume == "never":
        return None
    steps = {path: step_of(path) for path in run.checkpoints.glob("checkpoint-*")}
    for path in (path for path, step in steps.items() if step is None):
        text = f"{path} is passed over: it was not written to its end"
        if run.warn(text):
            warn(text)
    newest = max(((step, path) for path, step in steps.items() if step is not None), default=(0, None))[1]
    if newest is not None or resume == "auto":
        return newest
    if step_of(Path(resume)) is None:
        what = f"there is no whole checkpoint at {resume}"
        raise BadInput(Problem("recipe", "training.resume", what, "auto, never or a checkpoint-N folder"))
    return Path(resume)


def step_of(checkpoint: Path) -> int | None:
    """Return the step that a checkpoint stands at, or None where it is not whole."""
    try:
        return int(json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_engine(checkpoint: Path, placement: Placement) -> None:
    """Refuse a checkpoint whose optimizer state this engine cannot take; the Trainer would go on without it.

    Weights and the optimizer's state of one process and of DDP are whole and serve both, at any number of processes.
    ZeRO and FSDP keep a part for each rank.

    Raises:
        BadInput: It was written by another kind of engine, or under ZeRO by another number of processes.
    """
    parts = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
    wrote, reads = _kind_of(checkpoint), _KINDS[placement.engine.name]
    key, what = "launch.accelerate_config", f"written by {wrote}, and {placement.engine.name} cannot take its state"
    if wrote == reads:
        if not parts or parts == placement.num_processes:
            return
        key = "launch.num_processes_per_node"
        what = f"written by {parts} processes, and ZeRO cannot continue on {placement.num_processes}"
    remedy = "continue as it began, or train anew with --fresh"
    raise BadInput(Problem("launch profile", key, f"{checkpoint} was {what}", "", remedy))


_WHOLE, _ZERO, _ZERO3, _FSDP = "one process or DDP", "ZeRO-1 or 2", "ZeRO-3", "FSDP2"
_KINDS = {"single": _WHOLE, "ddp": _WHOLE, "zero1": _ZERO, "zero2": _ZERO, "zero3": _ZERO3, "fsdp2": _FSDP}


def _kind_of(checkpoint: Path) -> str:
    """Return what kind of engine wrote a checkpoint, by its files."""
    if list(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt")):
        return _ZERO3
    if list(checkpoint.glob("global_step*")):
        return _ZERO
    return _FSDP if list(checkpoint.glob("optimizer_*")) else _WHOLE


def check_foreign(checkpoint: Path, model: "PreTrainedModel", num_steps: int) -> None:
    """Refuse a checkpoint of another run that is of another model or leaves nothing to train.

    Args:
        checkpoint: A whole checkpoint.
        model: The model that is to take its weights.
        num_steps: Optimizer steps of the whole training.

    Raises:
        BadInput: It is one of these.
    """
    if not (checkpoint / "config.json").exists():
        what = f"{checkpoint} holds the parts of FSDP2, which only its own run can continue"
        raise BadInput(Problem("recipe", "training.resume", what, "auto, never or a checkpoint with config.json"))
    step = step_of(checkpoint) or 0
    what = f"{checkpoint} stands at step {step}, and {num_steps} steps are asked for" if step >= num_steps else ""
    saved = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    here = model.config.to_dict()
    here["architectures"] = [type(model).__name__]
    for key in SHAPE:
        if saved.get(key) != here.get(key):
            what = f"{checkpoint} is of another model: {key} {saved.get(key)}, not {here.get(key)}"
    if what:
        raise BadInput(Problem("recipe", "training.resume", what, "auto, never or a checkpoint of such a run"))
