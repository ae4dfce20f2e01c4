"""Which checkpoint a run continues from: the newest that verifies and that goes with what is asked for now.

Every checkpoint that is passed over is named with its reason. What cannot be continued exactly is refused with the keys
that differ, or said.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.errors import BadInput, Problem
from finelaunch.run.directory import RunDirectory, differences, is_permitted, versions
from finelaunch.run.log import warn
from finelaunch.run.ranks import Ranks, gather
from finelaunch.training.manifest import NAME, Checkpoint, Verification, checkpoints_in, discard, read_checkpoint
from finelaunch.training.placement import Placement, count_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPE = ("model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers")
EXACT_ONLY_WITH = ("python", "torch", "transformers", "accelerate", "deepspeed", "numpy", "finelaunch")
"""Versions under which a run continues bit for bit; with others it may not."""

FREE_KEYS = (
    "training.resume",
    "training.verify",
    "training.save_total_limit",
    "launch.dataloader_num_workers",
    "launch.collective_timeout_seconds",
    "launch.stop_grace_seconds",
    "launch.max_run_seconds",
)
"""Settings that say how to go on and not what comes out: they may differ without being allowed."""

_NOT_TRAINED_ON = re.compile(r"evaluation\.|data\.test\.|data\.\w+\.(path|source|licence|citation|revision)$")
"""Keys without a part in training; of the rows themselves the fingerprint counts, wherever they lie."""


@dataclass(frozen=True)
class Identity:
    """What a run trains, as its checkpoints state it.

    Args:
        recipe: The resolved recipe, flat: dotted keys and values.
        data: The fingerprint of the rows of each split.
    """

    recipe: Mapping[str, Any]
    data: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over all that has a part in training."""
        return hashlib.sha256(json.dumps(_trained_on(self.recipe, self.data), sort_keys=True).encode()).hexdigest()

    def differs_from(self, checkpoint: Checkpoint) -> list[tuple[str, Any, Any]]:
        """Return the keys in which a checkpoint states something else, with its value and the one asked for."""
        before = _trained_on(checkpoint.content["recipe"], checkpoint.content["data"])
        return differences(before, _trained_on(self.recipe, self.data), ())[0]


def _trained_on(recipe: Mapping[str, Any], data: Mapping[str, str]) -> dict[str, Any]:
    kept = {key: value for key, value in recipe.items() if key not in FREE_KEYS and not _NOT_TRAINED_ON.match(key)}
    return {**kept, **{f"data.{name}.path": fingerprint for name, fingerprint in data.items()}}


@dataclass(frozen=True)
class Continued:
    """What a training goes on from.

    Args:
        checkpoint: A verified checkpoint.
        is_foreign: It lies outside of the run.
        bad: Checkpoints of the run that were passed over.
    """

    checkpoint: Checkpoint | None
    is_foreign: bool
    bad: tuple[Path, ...]


def choose_checkpoint(
    resume: str,
    how: Verification,
    run: RunDirectory,
    placement: Placement,
    identity: Identity,
    ranks: Ranks,
    permitted: Collection[str],
) -> Continued:
    """Return the checkpoint that ``training.resume`` means; every rank calls this, and each looks at its share.

    The newest of the run that verifies, for a path too once the run has one of its own; none for ``never``.

    Args:
        resume: ``auto``, ``never`` or a path.
        how: ``sha256``, or ``size``, which does not see a byte that changed.
        run: The run directory.
        placement: What is to continue it.
        identity: What is to be trained.
        ranks: This process among all.
        permitted: Keys that may differ from those of a checkpoint of another run.

    Raises:
        BadInput: It is a path without a whole checkpoint, or of another job, or one that this engine cannot take.
    """
    bad: list[Path] = []
    if resume == "never":
        return Continued(None, False, tuple(gather(checkpoints_in(run.checkpoints))[0]))
    for path in gather(checkpoints_in(run.checkpoints))[0]:
        found = _verified(path, how, run, ranks)
        reason = gather(_reason_of_the_run(found, run, identity) if ranks.is_first else None)[0]
        if reason is None:
            assert isinstance(found, Checkpoint)
            _on_first(ranks, lambda found=found: _check(found, run, placement, how))
            return Continued(found, False, tuple(bad))
        _pass_over(path, reason, run)
        bad.append(path)
    if resume == "auto":
        return Continued(None, False, tuple(bad))
    found = _verified(Path(resume), how, run, ranks)
    if isinstance(found, str):
        what = f"there is no whole checkpoint at {resume}: {found}"
        raise BadInput(Problem("recipe", "training.resume", what, "auto, never or a checkpoint-N folder"))
    _on_first(ranks, lambda: _refuse_other_job(found, identity, permitted))
    _on_first(ranks, lambda: _check(found, run, placement, how))
    return Continued(found, True, tuple(bad))


def _refuse_other_job(checkpoint: Checkpoint, identity: Identity, permitted: Collection[str]) -> None:
    """Refuse a checkpoint of another run that was trained otherwise.

    Raises:
        BadInput: With the keys that differ and may not.
    """
    refused = [one for one in identity.differs_from(checkpoint) if not is_permitted(one[0], permitted)]
    if refused:
        remedy = "go on in the run that wrote it, --allow-change KEY permits one"
        raise BadInput(
            Problem(str(checkpoint.path), key, f"was written with {old!r}, asked for is {new!r}", "", remedy)
            for key, old, new in refused
        )


def _verified(path: Path, how: Verification, run: RunDirectory, ranks: Ranks) -> Checkpoint | str:
    """Return the checkpoint in ``path``, or why it is passed over; the ranks look at a share of the files each."""
    found = gather(read_checkpoint(path) if ranks.is_first else None)[0]
    if isinstance(found, str):
        return found
    damage = [one for of_rank in gather(found.damage(how, (ranks.rank, ranks.world_size))) for one in of_rank]
    return f"{'; '.join(damage[:3])}{' …' if len(damage) > 3 else ''}" if damage else found


def _on_first(ranks: Ranks, call: Any) -> None:
    """Make ``call`` on the first rank, and refuse on all what it refuses there."""
    problems = None
    if ranks.is_first:
        try:
            call()
        except BadInput as error:
            problems = error.problems
    if said := gather(problems)[0]:
        raise BadInput(said)


def _reason_of_the_run(found: Checkpoint | str, run: RunDirectory, identity: Identity) -> str | None:
    """Return why the run cannot use a checkpoint, or None: one copied in from another job does not count."""
    if isinstance(found, str):
        return found
    if found.content["fingerprint"] in [*run.read_manifest().get("fingerprints", []), identity.fingerprint]:
        return None
    keys = ", ".join(f"{key} {old!r} instead of {new!r}" for key, old, new in identity.differs_from(found)[:3])
    return f"it is of another job: {keys}"


def _pass_over(path: Path, reason: str, run: RunDirectory) -> None:
    text = f"{path} is passed over: {reason}"
    if run.warn(text):
        warn(text)


def _check(checkpoint: Checkpoint, run: RunDirectory, placement: Placement, how: Verification) -> None:
    """Refuse what cannot be continued on this machine, and say what will not be exact.

    Raises:
        BadInput: See :func:`check_engine`.
    """
    import torch

    check_engine(checkpoint, placement)
    texts = []
    before, now = checkpoint.content["world_size"], placement.num_processes
    if before != now:
        texts.append(
            f"{checkpoint.path} holds the random states of {count_of(before)}, and {now} go on: dropout draws other "
            "masks than the run would have drawn, order and data are the same"
        )
    here = versions()
    other = [
        f"{name} {version} (now {here.get(name)})"
        for name, version in checkpoint.content["versions"].items()
        if name in EXACT_ONLY_WITH and here.get(name) != version
    ]
    if other:
        texts.append(f"{checkpoint.path} was written with {', '.join(other)}: going on is not bit for bit")
    threads = torch.get_num_threads()
    if placement.device == "cpu" and checkpoint.content["num_threads"] != threads:
        counts = f"{checkpoint.content['num_threads']} threads a process, and {threads} go on"
        texts.append(f"{checkpoint.path} was computed by {counts} (OMP_NUM_THREADS): going on is not bit for bit")
    if how == "size":
        texts.append(f"{checkpoint.path}: only the sizes of its files were checked (training.verify: size)")
    for text in texts:
        if run.warn(text):
            warn(text)


def check_engine(checkpoint: Checkpoint, placement: Placement) -> None:
    """Refuse a checkpoint whose optimizer state this engine cannot take; the Trainer would go on without it.

    Weights and the optimizer's state of one process and of DDP are whole and serve both, at any number of processes.
    ZeRO and FSDP keep a part for each rank.

    Raises:
        BadInput: It was written by another kind of engine, or under ZeRO by another number of processes.
    """
    wrote, size, name = checkpoint.content["engine"], checkpoint.content["world_size"], placement.engine.name
    key, what = "launch.accelerate_config", f"written by {wrote}, and {name} cannot take its state"
    if _KINDS[wrote] == _KINDS[name]:
        if _KINDS[name] == "whole" or size == placement.num_processes:
            return
        key = "launch.num_processes_per_node"
        what = f"written by {count_of(size)}, and {name} cannot continue on {placement.num_processes}"
    remedy = "continue as it began, or train anew with --fresh"
    if (checkpoint.path / "config.json").exists():
        way = f"model.init=pretrained model.name_or_path={checkpoint.path}"  # --fresh would rename it
        remedy += f"; another run begins from its weights, at step 0: --run-dir DIR {way}"
    raise BadInput(Problem("launch profile", key, f"{checkpoint.path} was {what}", "", remedy))


_KINDS = {"single": "whole", "ddp": "whole", "zero1": "ZeRO", "zero2": "ZeRO", "zero3": "ZeRO-3", "fsdp2": "FSDP"}
"""Engines of one kind can take each other's state."""


def check_foreign(checkpoint: Checkpoint, model: "PreTrainedModel", num_steps: int) -> None:
    """Refuse a checkpoint of another run that is of another model or leaves nothing to train.

    Args:
        checkpoint: A verified checkpoint.
        model: The model that is to take its weights.
        num_steps: Optimizer steps of the whole training.

    Raises:
        BadInput: It is one of these.
    """
    path = checkpoint.path
    if not (path / "config.json").exists():
        what = f"{path} holds the parts of FSDP2, which only its own run can continue"
        raise BadInput(Problem("recipe", "training.resume", what, "auto, never or a checkpoint with config.json"))
    step = checkpoint.step
    what = f"{path} stands at step {step}, and {num_steps} steps are asked for" if step >= num_steps else ""
    saved = json.loads((path / "config.json").read_text(encoding="utf-8"))
    here = model.config.to_dict()
    here["architectures"] = [type(model).__name__]
    for key in SHAPE:
        if saved.get(key) != here.get(key):
            what = f"{path} is of another model: {key} {saved.get(key)}, not {here.get(key)}"
    if what:
        raise BadInput(Problem("recipe", "training.resume", what, "auto, never or a checkpoint of such a run"))


def remove_unfinished(paths: Collection[Path]) -> None:
    """Delete what saves that were cut off have left; damaged ones stay until a newer one is whole."""
    for path in paths:
        if not (path / NAME).exists():
            discard(path)
