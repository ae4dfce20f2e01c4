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

from finelaunch.errors import BadInput, FinelaunchError, Problem
from finelaunch.models.weights import is_adapted
from finelaunch.run.directory import RunDirectory, differences, is_permitted, versions
from finelaunch.run.files import read_lines, unreadable_text
from finelaunch.run.log import say, warn
from finelaunch.run.ranks import Ranks, gather, on_first
from finelaunch.run.watch import alive
from finelaunch.training.manifest import (
    ASIDE,
    NAME,
    OLD,
    UNFIT,
    Checkpoint,
    Verification,
    checkpoints_in,
    discard,
    read_checkpoint,
    set_aside,
)
from finelaunch.training.placement import Placement, count_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPE = ("model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers")
EXACT_ONLY_WITH = ("python", "torch", "transformers", "accelerate", "deepspeed", "numpy", "finelaunch")
"""Versions under which a run continues bit for bit; with others it may not."""

NOT_EXACT = "going on is not bit for bit"
"""What is said, and kept in the manifest, where a run goes on in other circumstances."""

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

BOUND = "method."
"""How keys begin that no run may change on its way: weights and optimizer states of its checkpoints belong to them."""

_NOT_TRAINED_ON = re.compile(
    r"evaluation\.|data\.test(\.|$)|data\.\w+\.(\d+\.)?(path|source|licence|citation|revision)$"
)
"""Keys without a part in training; of the rows themselves the fingerprint counts, wherever they lie."""


NOT_DAMAGED = ("it is of another job", *UNFIT)
"""How reasons begin for which a checkpoint is passed over, and never deleted."""


@dataclass(frozen=True)
class Identity:
    """What a run trains, as its checkpoints state it.

    Args:
        recipe: The resolved recipe, flat: dotted keys and values.
        data: The fingerprint of the rows of each split.
        base: The fingerprint of the weights that training began with; a checkpoint need not hold those that are held.
    """

    recipe: Mapping[str, Any]
    data: Mapping[str, str]
    base: str = ""

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over all that has a part in training."""
        return hashlib.sha256(
            json.dumps(_trained_on(self.recipe, self.data, self.base), sort_keys=True).encode()
        ).hexdigest()

    def differs_from(self, checkpoint: Checkpoint) -> list[tuple[str, Any, Any]]:
        """Return the keys in which a checkpoint states something else, with its value and the one asked for."""
        content = checkpoint.content
        before = _trained_on(content["recipe"], content["data"], content.get("base", ""))
        return differences(before, _trained_on(self.recipe, self.data, self.base), ())[0]


def _trained_on(recipe: Mapping[str, Any], data: Mapping[str, str], base: str) -> dict[str, Any]:
    kept = {key: value for key, value in recipe.items() if key not in FREE_KEYS and not _NOT_TRAINED_ON.match(key)}
    weights = {"model.name_or_path": base} if base else {}
    return {**kept, **weights, **{f"data.{name}.path": fingerprint for name, fingerprint in data.items()}}


@dataclass(frozen=True)
class Continued:
    """What a training goes on from.

    Args:
        checkpoint: A verified checkpoint.
        is_foreign: It lies outside of the run.
        newer: Checkpoints of the run that are newer and not gone on from, with whether they may be deleted later.
    """

    checkpoint: Checkpoint | None
    is_foreign: bool
    newer: tuple[tuple[Path, bool], ...]

    def since_step(self, run: RunDirectory) -> int:
        """Return after which step the course begins that goes on here: 0, or that of the checkpoint of another run."""
        since = self.checkpoint.step if self.checkpoint else 0
        for event in read_lines(run.events) if since and not self.is_foreign else ():
            if event.get("event") == "training":
                since = event["from_step"] if event.get("foreign") else min(since, event["from_step"])
        return since


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

    Args:
        resume: ``auto``: the newest of the run that verifies; ``never``: none; a path: that one, unless it lies outside
            of a run that has one of its own already.
        how: ``sha256``, or ``size``, which does not see a byte that changed.
        run: The run directory.
        placement: What is to continue it.
        identity: What is to be trained.
        ranks: This process among all.
        permitted: Keys that may differ from those of a checkpoint of another run.

    Raises:
        BadInput: It is a path without a whole checkpoint, or of another job, or one that this engine cannot take.
        FinelaunchError: A checkpoint cannot be read for now.
    """
    folders: list[Path] = on_first(ranks, lambda: checkpoints_in(run.checkpoints))
    if resume == "never":
        return Continued(None, False, tuple((path, True) for path in folders))
    own = next((path for path in folders if resume != "auto" and path.resolve() == Path(resume).resolve()), None)
    skipped = folders.index(own) if own else 0
    newer = [(path, False) for path in folders[:skipped]]
    for path in folders[skipped:]:
        found = verified(path, how, ranks)
        if isinstance(found, Checkpoint):
            other = on_first(ranks, lambda found=found: _of_another_job(found, run, identity))
            if other is None:
                on_first(ranks, lambda found=found: _check(found, run, placement, how))
                if resume != "auto" and own is None:
                    on_first(ranks, lambda path=path: _say_unused(resume, path, run))
                return Continued(found, False, tuple(newer))
            found = other
        on_first(ranks, lambda path=path, reason=found: _pass_over(path, reason, run))
        newer.append((path, not found.startswith(NOT_DAMAGED)))
    if resume == "auto":
        return Continued(None, False, tuple(newer))
    foreign = verified(Path(resume), how, ranks)
    if isinstance(foreign, str):
        what = f"there is no whole checkpoint at {resume}: {foreign}"
        raise BadInput(Problem("recipe", "training.resume", what, "auto, never or a checkpoint-N folder"))
    on_first(ranks, lambda: _refuse_other_job(foreign, placement, identity, permitted))
    on_first(ranks, lambda: _check(foreign, run, placement, how))
    return Continued(foreign, True, tuple(newer))


def set_newer_aside(chosen: Continued, run: RunDirectory) -> list[Path]:
    """Let nothing newer than what a training goes on from count, and return what may go once a newer one is whole.

    Otherwise a later start could go on from a checkpoint whose steps are no longer in the log. What a save that was cut
    off has left is deleted.
    """
    for path, may_go in chosen.newer:
        if not (path / NAME).exists():
            discard(path)
            continue
        aside = set_aside(path, OLD if may_go else ASIDE)
        say(f"{path} is set aside as {aside.name}" + ", until a newer checkpoint is whole" * may_go)
    return sorted(run.checkpoints.glob(f"{OLD}checkpoint-*"))


def verified(path: Path, how: Verification, ranks: Ranks) -> Checkpoint | str:
    """Return the checkpoint in ``path``, or why it is passed over; the ranks look at a share of the files each.

    Raises:
        FinelaunchError: It cannot be read for now, which is no reason to do without it.
    """
    found: Checkpoint | str = on_first(ranks, lambda: read_checkpoint(path))
    if isinstance(found, str):
        return found
    damage, error = [], None
    try:
        damage = found.damage(how, (ranks.rank, ranks.world_size), alive)
    except OSError as caught:
        error = f"{caught.filename or path}: {caught.strerror}"
    said = gather((damage, error))
    if errors := [error for _, error in said if error]:
        raise FinelaunchError(unreadable_text(errors[0]))
    damage = [one for of_rank, _ in said for one in of_rank]
    return f"{'; '.join(damage[:3])}{' …' if len(damage) > 3 else ''}" if damage else found


def _of_another_job(checkpoint: Checkpoint, run: RunDirectory, identity: Identity) -> str | None:
    """Return why a checkpoint is none of the run's, if it was copied in from another job."""
    if checkpoint.content["fingerprint"] in [*run.read_manifest().get("fingerprints", []), identity.fingerprint]:
        return None
    keys = ", ".join(f"{key} {old!r} instead of {new!r}" for key, old, new in identity.differs_from(checkpoint)[:3])
    return f"{NOT_DAMAGED[0]}: {keys}"


def _say_unused(resume: str, path: Path, run: RunDirectory) -> None:
    text = f"training.resume {resume} is not used: the run goes on from its own {path.name}"
    if run.warn(text):
        warn(text)


def _refuse_other_job(
    checkpoint: Checkpoint, placement: Placement, identity: Identity, permitted: Collection[str]
) -> None:
    """Refuse a checkpoint of another run that was trained otherwise.

    Raises:
        BadInput: With the keys that differ and may not.
    """
    wrote, here = checkpoint.content, placement
    machine = (
        ("launch.accelerate_config", wrote["engine"], here.engine.name),
        ("launch.num_processes_per_node", wrote["world_size"], here.num_processes),
    )
    differing = [*identity.differs_from(checkpoint), *(one for one in machine if one[1] != one[2])]
    refused = [one for one in differing if one[0].startswith(BOUND) or not is_permitted(one[0], permitted)]
    if refused:
        remedy = "go on in the run that wrote it, --allow-change KEY permits one"
        raise BadInput(
            Problem(str(checkpoint.path), key, f"was written with {old!r}, asked for is {new!r}", "", remedy)
            for key, old, new in refused
        )


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
        texts.append(f"{checkpoint.path} was written with {', '.join(other)}: {NOT_EXACT}")
    threads = torch.get_num_threads()
    if placement.device == "cpu" and checkpoint.content["num_threads"] != threads:
        counts = f"{checkpoint.content['num_threads']} threads a process, and {threads} go on"
        texts.append(f"{checkpoint.path} was computed by {counts} (OMP_NUM_THREADS): {NOT_EXACT}")
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


def refuse_fewer_steps(checkpoint: Checkpoint, num_steps: int) -> None:
    """Refuse to end a run before where it stands.

    Raises:
        BadInput: More steps than ``num_steps`` are done.
    """
    if checkpoint.step > num_steps:
        what = f"{checkpoint.path} stands at step {checkpoint.step}, and {num_steps} steps are asked for"
        remedy = "raise training.max_steps or training.num_train_epochs, or --fresh"
        raise BadInput(Problem("recipe", "training.max_steps", what, "", remedy))


def check_foreign(checkpoint: Checkpoint, model: "PreTrainedModel", num_steps: int) -> None:
    """Refuse a checkpoint of another run that is of another model or leaves nothing to train.

    Args:
        checkpoint: A verified checkpoint.
        model: The model that is to take its weights.
        num_steps: Optimizer steps of the whole training.

    Raises:
        BadInput: It is one of these.
    """
    path, step, what = checkpoint.path, checkpoint.step, ""
    if not is_adapted(model):  # an adapter's is of the same base and method, see _refuse_other_job
        if not (path / "config.json").exists():
            what = f"{path} holds the parts of FSDP2, which only its own run can continue"
            raise BadInput(Problem("recipe", "training.resume", what, "auto, never or a checkpoint with config.json"))
        saved = json.loads((path / "config.json").read_text(encoding="utf-8"))
        here = {**model.config.to_dict(), "architectures": [type(model).__name__]}
        if key := next((key for key in SHAPE if saved.get(key) != here.get(key)), None):
            what = f"{path} is of another model: {key} {saved.get(key)}, not {here.get(key)}"
    if not what and step >= num_steps:
        what = f"{path} stands at step {step}, and {num_steps} steps are asked for"
    if what:
        raise BadInput(Problem("recipe", "training.resume", what, "auto, never or a checkpoint of such a run"))
