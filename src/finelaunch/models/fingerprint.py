"""What tells one base model from another: a SHA-256 over its weight files and what its config says; no torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

from finelaunch.data.sources import hash_files
from finelaunch.errors import BadInput, Problem
from finelaunch.models.config import local_folder
from finelaunch.models.section import ModelSection

VOLATILE_KEYS = ("_name_or_path", "transformers_version", "base_model_name_or_path", "peft_version")
"""Keys of a config that differ between two copies of one model."""
CONFIGS = ("config.json", "adapter_config.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Names of weights that transformers takes, the first that is there, whole or cut as an index says."""


def weights_folder(section: ModelSection) -> Path | None:
    """Return the folder that holds the weights which ``section`` names, in the hub's cache too; None: not here.

    Raises:
        BadInput: A local folder that is not there.
    """
    folder = local_folder(section)
    if folder is not None:
        return folder
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(str(section.name_or_path), "config.json", revision=section.revision)
    return Path(path).parent if isinstance(path, str) else None


def weight_files(folder: Path) -> list[Path]:
    """Return the files that a model in ``folder`` is loaded from, and none that lie beside them.

    Raises:
        BadInput: An index of shards that cannot be read, or is none.
    """
    names = ("adapter_model.safetensors",) if (folder / "adapter_config.json").exists() else WHOLE
    for name in names:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = _read(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise BadInput(Problem(str(index), "weight_map", "is no mapping of tensors to files"))
            return sorted({folder / shard for shard in shards.values()})
    return []


def content_of(folder: Path) -> str:
    """Return the SHA-256 of a model folder: the same for every copy, another for other weights or another shape.

    An adapter's is over its own files and over what it states of its base.

    Raises:
        BadInput: There are no weights, or a file cannot be read.
    """
    files = weight_files(folder)
    if not files:
        raise BadInput(Problem(str(folder), "", "holds no weights", " or ".join(WHOLE)))
    digest = hashlib.sha256(hash_files(files, folder).encode())
    for name in CONFIGS:
        if (folder / name).exists():
            digest.update(json.dumps(_settled(folder / name), sort_keys=True).encode())
    if (folder / "adapter_config.json").exists() and (folder / "finelaunch.json").exists():
        base = _read(folder / "finelaunch.json").get("base")
        digest.update(str(base.get("content") if isinstance(base, dict) else None).encode())
    return digest.hexdigest()


def _settled(path: Path) -> dict[str, Any]:
    return {name: value for name, value in _read(path).items() if name not in VOLATILE_KEYS}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(Problem(str(path), "", f"cannot be read: {error}")) from None
    if not isinstance(content, dict):
        raise BadInput(Problem(str(path), "", "holds no JSON object"))
    return content
