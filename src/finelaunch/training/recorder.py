"""What is kept of a micro-batch whose loss or gradient was not finite, so that it can be computed again."""

import base64
import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from finelaunch.errors import FinelaunchError
from finelaunch.models.weights import is_adapted
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import plain_mode, write_json
from finelaunch.run.ranks import Ranks, gather
from finelaunch.training.placement import Placement

FORMAT = 1
SPARE_BYTES = 1 << 24
"""What is to stay free on the disk beside the weights."""


@dataclass
class Forward:
    """What a forward pass began with, and what came of it.

    Args:
        states: The random states, as :func:`random_states` gives them.
        num_items: Targets of the whole global batch, a number or a scalar tensor.
        loss: The loss of this rank's micro-batch, a scalar tensor.
    """

    states: dict[str, Any]
    num_items: Any
    loss: Any = None

    def facts(self) -> dict[str, Any]:
        """Return all of it for JSON; numbers as text, since JSON has neither NaN nor every bit of a float."""
        loss = "unknown" if self.loss is None else repr(float(self.loss))
        return {"loss": loss, "num_items": float(self.num_items), "random_states": as_json(self.states)}


def random_states(device: str) -> dict[str, Any]:
    """Return the states of all random generators of this process; some ten microseconds."""
    import torch

    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    return {**states, "cuda": torch.cuda.get_rng_state()} if device == "cuda" else states


def as_json(states: Mapping[str, Any]) -> dict[str, Any]:
    """Return random states for JSON: bytes as base64, numbers as they are."""
    version, numbers, gauss = states["python"]
    name, keys, *rest = states["numpy"]
    bits = base64.b64encode(np.array(numbers, dtype="<u4").tobytes()).decode()
    kept: dict[str, Any] = {"python": [version, bits, gauss]}
    kept["numpy"] = [name, base64.b64encode(keys.astype("<u4").tobytes()).decode(), *rest]
    for device in ("cpu", "cuda"):
        if device in states:
            kept[device] = base64.b64encode(states[device].numpy().tobytes()).decode()
    return kept


def restore_random_states(kept: Mapping[str, Any], device: str) -> None:
    """Set the random generators of this process, and of ``device``, to what :func:`as_json` was given."""
    import torch

    version, bits, gauss = kept["python"]
    numbers = np.frombuffer(base64.b64decode(bits), dtype="<u4")
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, *rest = kept["numpy"]
    np.random.set_state((name, np.frombuffer(base64.b64decode(keys), dtype="<u4"), *rest))
    torch.set_rng_state(_bytes(kept["cpu"]))
    if device == "cuda" and "cuda" in kept:
        torch.cuda.set_rng_state(_bytes(kept["cuda"]))


def _bytes(text: str) -> Any:
    import torch

    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def keep_weights(run: RunDirectory, step: int, trainer: Any, ranks: Ranks) -> dict[str, Any]:
    """Write the whole weights in memory to ``replay/step-N.safetensors`` of the run; all ranks call it.

    Returns:
        ``file``, its name, or None where it could not be written; ``why`` then says why; ``aliases``, the names of
        weights that share their memory with another one, by name.
    """
    weights = whole_weights(trainer)
    kept = _write_weights(run, f"step-{step}.safetensors", weights) if ranks.is_first else None
    return gather(kept)[0]


def whole_weights(trainer: Any) -> dict[str, Any]:
    """Return the weights of the model by name, gathered where an engine has cut them; all ranks call this.

    Of an adapter these are the ones that are trained: its base is not written anywhere.
    """
    if not is_adapted(trainer.model):
        return trainer.accelerator.get_state_dict(trainer.model_wrapped)
    trained = {name: one for name, one in trainer.model.named_parameters() if one.requires_grad}
    if not any(hasattr(one, "ds_id") for one in trained.values()):
        return {name: one.detach() for name, one in trained.items()}
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(trained.values()), modifier_rank=None):
        return {name: one.detach().clone() for name, one in trained.items()}


def _write_weights(run: RunDirectory, name: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    aliases: dict[str, str] = {}
    once: dict[str, Any] = {}
    places: dict[tuple[Any, ...], str] = {}
    for key, tensor in weights.items():
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in places:
            aliases[key] = places[place]
        else:
            places[place] = key
            once[key] = tensor.detach().contiguous()
    needed = sum(tensor.nbytes for tensor in once.values())
    folder = run.replay
    draft = folder / f".{name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed + SPARE_BYTES:
            return {
                "file": None,
                "aliases": {},
                "why": f"they need {needed:,} bytes, and {free:,} are free in {folder}",
            }
        save_file(once, draft)
        plain_mode(draft)
        draft.replace(folder / name)
    except (OSError, SafetensorError) as error:
        return {"file": None, "aliases": {}, "why": f"{folder}: {error}"}
    finally:
        draft.unlink(missing_ok=True)
    return {"file": name, "aliases": aliases, "why": ""}


def write_record(
    run: RunDirectory, ranks: Ranks, placement: Placement, facts: Mapping[str, Any]
) -> tuple[str | None, str]:
    """Write ``replay/step-N-rank-R.json`` of the run.

    Args:
        run: The run directory.
        ranks: This process.
        placement: What it ran on.
        facts: What happened: ``step``, ``micro_batches`` and so on.

    Returns:
        The path of the file, or None and why it could not be written; a failure here must not hide the first one.
    """
    import torch

    path = run.replay / f"step-{facts['step']}-rank-{ranks.rank}.json"
    try:
        stated, manifest = run.stated(), run.read_manifest()
        content = {
            "format": FORMAT,
            "run": os.path.abspath(run.path),
            "rank": ranks.rank,
            "world_size": ranks.world_size,
            "engine": placement.engine.name,
            "device": placement.device,
            "precision": placement.precision,
            "num_threads": torch.get_num_threads(),
            "versions": manifest.get("versions", {}),
            "data": {name: split.get("fingerprint") for name, split in manifest.get("data", {}).items()},
            **facts,
            "launch": stated.pop("launch"),
            "recipe": stated,
        }
        json.dumps(content, allow_nan=False)
        write_json(path, content)
    except (OSError, ValueError, FinelaunchError) as error:
        return None, f"{path}: {error}"
    return str(path), ""
