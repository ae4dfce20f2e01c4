"""Several adapters over one base, one of them active at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finelaunch.errors import BadInput, Problem
from finelaunch.evaluation.finished import FinishedModel, read_facts, task_of
from finelaunch.models.adapters import Adapter, is_adapter, put_adapter, read_adapter

FIRST = "default"
"""What the first adapter is called within the model."""


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
            "their base": (adapter.base["content"][:12], adapter.base.get("config") or {}),
            "its quantization": adapter.base.get("quantization"),
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
