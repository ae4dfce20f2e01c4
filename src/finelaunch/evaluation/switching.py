"""Several adapters over one base, one of them active at a time."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finelaunch.errors import BadInput, Problem
from finelaunch.evaluation.finished import FinishedModel, read_facts, task_of
from finelaunch.models.adapters import COPY_AGAIN, Adapter, is_adapter, put_adapter, read_adapter
from finelaunch.models.load import TOKENIZER_FILES

FIRST = "default"
"""What the first adapter is called within the model."""
TOKENIZER_STATE = ("truncation", "padding", "is_local", "local_files_only", "name_or_path", "transformers_version")
"""Keys of a tokenizer's files that say how it was last called and where it came from."""


def read_adapters(folders: Mapping[str, Path]) -> dict[str, Adapter]:
    """Return the adapters in ``folders`` under their names.

    Raises:
        BadInput: One is none, or they cannot take turns over one base.
    """
    whole = [folder for folder in folders.values() if not is_adapter(folder)]
    if whole:
        what, remedy = f"{whole[0]} is a whole model, and no adapter", "give it as RUN, without --adapter"
        raise BadInput(Problem("command line", "--adapter", what, "", remedy))
    adapters = {name: read_adapter(folder) for name, folder in folders.items()}
    (one, first), *others = adapters.items()
    for other, adapter in others:
        for key, said in _differences(first, adapter).items():
            what = f"{one} and {other} cannot take turns over one base: {key} is {said[0]} and {said[1]}"
            raise BadInput(Problem("command line", "--adapter", what, "", "predict with one after the other"))
    return adapters


def _differences(first: Adapter, other: Adapter) -> dict[str, tuple[Any, Any]]:
    """Return what two adapters do not share, though they would have to."""

    def facts(adapter: Adapter) -> dict[str, Any]:
        stated = read_facts(adapter.folder)
        return {
            "their base": (adapter.base.content, adapter.base.config),
            "its quantization": adapter.quantization.facts() if adapter.quantization else None,
            "the tokenizer": _tokenizer_content(adapter.folder)[:12],
            "the task": adapter.task["name"],
            "what the task's data settled": stated["facts"],
            "the kind of method": adapter.method["name"] if adapter.is_prompt else "low-rank matrices",
            "method.bias": adapter.method.get("bias", "none"),
        }

    ours, theirs = facts(first), facts(other)
    found = {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}
    if ours["method.bias"] != "none":  # peft has a place for the biases of one adapter alone
        found["method.bias"] = (ours["method.bias"], "trained in both")
    if "their base" in found:
        return {"their base": (first.base_title, other.base_title)}
    return found


def _tokenizer_content(folder: Path) -> str:
    """Return the SHA-256 of the tokenizer in ``folder``, however it was called before it was written."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)}):
        if path.name == "config.json" or not path.is_file():
            continue
        content = path.read_bytes()
        if path.name in ("tokenizer.json", "tokenizer_config.json"):
            try:
                settled = {key: value for key, value in json.loads(content).items() if key not in TOKENIZER_STATE}
            except (ValueError, AttributeError) as error:
                raise BadInput(Problem(str(path), "", f"is damaged: {error}", "", COPY_AGAIN)) from None
            content = json.dumps(settled, sort_keys=True).encode()
        digest.update(f"{path.name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def load_beside(finished: FinishedModel, adapters: Mapping[str, Adapter]) -> Iterator[tuple[str, FinishedModel]]:
    """Put all ``adapters`` but the first beside it, and return an iterator that makes one active after the other.

    Args:
        finished: The first of them on its base.
        adapters: All of them, by name.

    Raises:
        BadInput: One does not fit the base.
    """
    inner = {name: f"adapter_{number}" if number else FIRST for number, name in enumerate(adapters)}
    for name, adapter in list(adapters.items())[1:]:
        put_adapter(finished.model, adapter, inner[name])
    return _switched(finished, adapters, inner)


def _switched(
    finished: FinishedModel, adapters: Mapping[str, Adapter], inner: Mapping[str, str]
) -> Iterator[tuple[str, FinishedModel]]:
    model: Any = finished.model
    for name, adapter in adapters.items():
        model.set_adapter(inner[name])
        model.requires_grad_(False)  # to make an adapter active turns on its gradients
        stated = read_facts(adapter.folder)
        task = task_of(stated, str(adapter.folder))
        yield name, replace(finished, task=task, threshold=stated["threshold"], stated=stated)
