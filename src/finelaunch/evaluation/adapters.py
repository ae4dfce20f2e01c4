"""An adapter as a run leaves it: written so that plain peft can load it, and whole, or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finelaunch.data.sources import PACKAGE_PREFIX
from finelaunch.errors import FinelaunchError
from finelaunch.methods.lora import INITIAL_ADAPTER
from finelaunch.models.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_FOLDER,
    adapter_tensors,
    built_whole,
    whole_shape,
)
from finelaunch.models.config import local_folder
from finelaunch.models.fingerprint import content_of, weights_folder
from finelaunch.models.load import load_model
from finelaunch.models.section import ModelSection
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import plain_mode, write_json
from finelaunch.section.base import Section, build
from finelaunch.section.document import Document
from finelaunch.tasks.base import Task


class _Stated(Section):
    """What is read of a run's recipe."""

    model: ModelSection


def save_adapter(
    run: RunDirectory,
    model: Any,
    weights: Mapping[str, Any] | None,
    tokenizer: Any,
    task: Task,
    facts: Mapping[str, Any],
    base: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the adapter of ``model`` and its config to ``model/``, and return what is to be stated of its base.

    An adapter whose beginning was taken out of the base's weights is written as an ordinary one of twice the rank.

    Args:
        run: The run directory.
        model: A ``PeftModel``; its parameters may be empty where an engine keeps them in parts.
        weights: Its trained weights, whole; None: the model's own are.
        tokenizer: Its tokenizer.
        task: Its task.
        facts: What the training rows settled.
        base: What was tuned.

    Raises:
        FinelaunchError: A tensor is missing, empty or left over, or the base is not what it was.
    """
    from safetensors.torch import save_file

    parameters = dict(model.named_parameters())
    tensors = adapter_tensors(model)
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    lost = sorted(trained - set(tensors.values()))
    if lost:
        raise FinelaunchError(
            f"{run.model}: {lost[0]} was trained, and is not in the adapter; the checkpoints are kept"
        )
    tensors = {key: name for key, name in tensors.items() if name in trained}
    source = parameters if weights is None else weights
    absent = sorted(name for name in tensors.values() if name not in source)
    if absent:
        raise FinelaunchError(f"{run.model}: {absent[0]} was not gathered; the checkpoints are kept")
    saved = {key: source[name].detach().cpu().contiguous() for key, name in tensors.items()}
    shapes = {key: whole_shape(parameters[name]) for key, name in tensors.items()}
    config = _config(model, base)
    initial = getattr(model, INITIAL_ADAPTER, None)
    if initial is not None:
        saved, shapes = _converted(saved, shapes, {key: initial.get(name) for key, name in tensors.items()})
        _double(config)
    run.model.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone() for key, value in saved.items()}, run.model / ADAPTER_WEIGHTS, {"format": "pt"})
    plain_mode(run.model / ADAPTER_WEIGHTS)
    check_adapter(run.model, shapes)
    write_json(run.model / ADAPTER_CONFIG, config)
    _write_config(model, run.model)
    content = _content(run, tokenizer, task, facts, base)
    return {**base, "quantization": _held(model, base), "auto_class": task.auto_class, **content}


def _held(model: Any, base: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how the base is held, with the names of the modules that were kept whole."""
    if base["quantization"] is None:
        return None
    return {
        **base["quantization"],
        "kept": list(model.get_base_model().config.quantization_config.llm_int8_skip_modules),
    }


def _config(model: Any, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the adapter's config; its base goes by the name that the recipe gave."""
    config = model.peft_config["default"].to_dict()
    config["inference_mode"] = True
    config["base_model_name_or_path"] = base["name"] or BASE_FOLDER
    commit = str(base["fingerprint"]).rpartition("@")
    config["revision"] = commit[2] if commit[1] else base.get("revision")
    if isinstance(config.get("target_modules"), set):
        config["target_modules"] = sorted(config["target_modules"])
    return json.loads(json.dumps(config, default=_plain))


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))


def _converted(
    saved: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], initial: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return what changes the base as it was by as much as ``saved`` changes the base without its ``initial``.

    ``B A - B0 A0`` is the product of ``[B, -B0]`` and ``[A; A0]``. Source: peft, LoraModel.subtract_mutated_init.
    """
    import torch

    tensors, whole = dict(saved), dict(shapes)
    for key, tensor in saved.items():
        if ".lora_A." in key or ".lora_B." in key:
            first, axis = initial[key].to(tensor.device, tensor.dtype), 0 if ".lora_A." in key else 1
            tensors[key] = torch.cat([tensor, first if axis == 0 else -first], dim=axis)
            whole[key] = tuple(2 * size if number == axis else size for number, size in enumerate(shapes[key]))
    return tensors, whole


def _double(config: dict[str, Any]) -> None:
    """Let ``config`` state twice the rank at the same scale, and a beginning that leaves the base alone."""
    config["init_lora_weights"] = True
    config["r"] *= 2
    config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2


def check_adapter(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse an adapter's file in which a tensor is missing, empty, of another shape or left over.

    Raises:
        FinelaunchError: One is.
    """
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    faults = [
        f"{name} is {found.get(name, 'missing')}, not {shape}"
        for name, shape in shapes.items()
        if found.get(name) != shape
    ]
    faults += [f"{name} is empty" for name, shape in shapes.items() if 0 in shape]
    faults += [f"{name} is left over" for name in found if name not in shapes]
    if faults:
        raise FinelaunchError(f"{folder}: the saved adapter is not whole: {faults[0]}; the checkpoints are kept")


def _write_config(model: Any, folder: Path) -> None:
    """Write the config of the model, which says its shape and its labels, without what holds it in 4 bits."""
    config = model.get_base_model().config.to_dict()
    config.pop("quantization_config", None)
    config["architectures"] = [type(model.get_base_model()).__name__]
    write_json(folder / "config.json", json.loads(json.dumps(config, default=str)))


def _content(
    run: RunDirectory, tokenizer: Any, task: Task, facts: Mapping[str, Any], base: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the hash of the base's files and, of a local one, its place; a base that was drawn is written first.

    Raises:
        FinelaunchError: The base is not what it was when training began.
    """
    if base["init"] == "scratch":
        return {"content": _write_drawn_base(run, tokenizer, task, facts, base)}
    section = ModelSection(name_or_path=base["name"], revision=_revision(base))
    folder = weights_folder(section)
    if folder is None:
        raise FinelaunchError(f"{run.model}: the base {base['name']} is not there any more; the checkpoints are kept")
    content = content_of(folder)
    if local_folder(section) is None:
        return {"content": content}
    if content != str(base["fingerprint"]).partition("+")[0]:
        what = f"the base {base['name']} is not what it was when training began"
        raise FinelaunchError(f"{run.model}: {what}; the checkpoints are kept")
    is_path = not str(base["name"]).startswith(PACKAGE_PREFIX)
    return {"content": content, **({"path": str(folder.resolve())} if is_path else {})}


def _revision(base: Mapping[str, Any]) -> str | None:
    _, at, commit = str(base["fingerprint"]).rpartition("@")
    return commit if at and commit != "None" else base.get("revision")


def _write_drawn_base(
    run: RunDirectory, tokenizer: Any, task: Task, facts: Mapping[str, Any], base: Mapping[str, Any]
) -> str:
    """Draw the base of ``init: scratch`` once more from the run's seed, and write it as it was before training.

    What is in memory is no longer it where biases were trained, where the adapter began with a part of the weights, or
    where they are held in 4 bits or in parts.

    Raises:
        FinelaunchError: It is another one.
    """
    stated = run.stated()
    section = build(_Stated, Document({"model": stated["model"]}, name=str(run.recipe))).model
    seed = stated["training"]["seed"]
    with built_whole():
        drawn = load_model(section, task.auto_class, task.model_config(facts), tokenizer, 1, seed)
    if drawn.fingerprint != base["fingerprint"]:
        what = f"the base drawn from seed {seed} is another one than at the beginning ({drawn.fingerprint})"
        raise FinelaunchError(f"{run.model}: {what}; the checkpoints are kept")
    drawn.model.save_pretrained(run.model / BASE_FOLDER, save_original_format=False)
    for path in (run.model / BASE_FOLDER).glob("*.safetensors"):
        plain_mode(path)
    return content_of(run.model / BASE_FOLDER)
