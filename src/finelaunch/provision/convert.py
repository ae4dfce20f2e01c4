"""Pickled weights of the hub made into safetensors, once and where they are fetched: no job unpickles anything.

The converted files lie in the hub's cache beside the others of the same commit, under the names that transformers looks
for first, so that a model is loaded by its name and commit as ever.
"""

import json
import re
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finelaunch.errors import BadInput, Problem
from finelaunch.run.files import plain_mode, write_json

PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
PICKLED_INDEX = "pytorch_model.bin.index.json"
INDEX = "model.safetensors.index.json"


def safetensors_name(pickled: str) -> str:
    """Return the name of what ``pytorch_model-00001-of-00002.bin`` becomes."""
    return pickled.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"


def to_safetensors(snapshot: Path, pickled: Iterable[str]) -> list[str]:
    """Write the weights of ``pickled`` as safetensors beside them, and return all that was written before and now.

    Every name of a file stands in what is made of it with the same bits, also one that shares its tensor with another:
    which of several names a model reads is its own business.

    Args:
        snapshot: The folder of one commit in the hub's cache.
        pickled: Names of its ``.bin`` files, and of their index.

    Raises:
        BadInput: A file that holds more than tensors, or cannot be read without running its code.
    """
    made = []
    for name in sorted(pickled, key=lambda name: name == PICKLED_INDEX):  # the index last: it says that all are there
        target = snapshot / (INDEX if name == PICKLED_INDEX else safetensors_name(name))
        made.append(target.name)
        if not target.exists():
            _write_index(snapshot / name, target) if name == PICKLED_INDEX else _convert(snapshot / name, target)
        # The hub's client remembers that the repository has no such file, and would not look.
        (snapshot.parents[1] / ".no_exist" / snapshot.name / target.name).unlink(missing_ok=True)
    return made


def _write_index(pickled: Path, target: Path) -> None:
    try:
        index = json.loads(pickled.read_text(encoding="utf-8"))
        weights = {name: safetensors_name(file) for name, file in index["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refusal(pickled, f"is no index of weights: {error!s:.100}") from None
    write_json(target, {"metadata": index.get("metadata", {}), "weight_map": weights})


def _convert(pickled: Path, target: Path) -> None:
    from safetensors.torch import save_file

    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        save_file(_apart(_tensors(pickled)), draft, metadata={"format": "pt"})
        plain_mode(draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _tensors(pickled: Path) -> dict[str, Any]:
    """Return the tensors in a file of pickled weights, none of its code having run."""
    import torch

    try:
        try:
            content = torch.load(pickled, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            content = torch.load(pickled, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError: whatever a damaged or hostile file leads to
        raise _refusal(pickled, f"cannot be read as weights alone: {_first_line(error)}") from None
    values = list(content.values()) if isinstance(content, dict) else [None]
    if not all(isinstance(value, torch.Tensor) and value.layout == torch.strided for value in values):
        raise _refusal(pickled, "holds something other than dense tensors by name")
    return content


def _apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors each in memory of its own, which safetensors asks for."""
    import torch

    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        is_whole = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
        if not is_whole or storage.data_ptr() in seen:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
        apart[name] = tensor
    return apart


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _refusal(pickled: Path, what: str) -> BadInput:
    remedy = "take a revision or a model with safetensors"
    return BadInput(Problem(str(pickled), "model.name_or_path", what, "", remedy))
