"""What a plan says of a run's needs: what is trained, memory, traffic and advice, each with its sentence."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from finelaunch.engines import Engine
from finelaunch.errors import BadInput
from finelaunch.launch.advice import LARGE_STATE, advice, rate_advice
from finelaunch.launch.estimate import PAGED, REDUCE_BUCKET_ELEMENTS, Memory, byte_text, estimate_memory
from finelaunch.launch.profile import Profile
from finelaunch.launch.traffic import forecast_traffic
from finelaunch.methods.full import FullSection
from finelaunch.methods.gradual_unfreezing import GradualUnfreezingSection
from finelaunch.methods.limits import method_faults
from finelaunch.methods.lora import LoraSection
from finelaunch.methods.qlora import QLoraSection
from finelaunch.methods.trainable import Trainable, trainable_of
from finelaunch.models.size import ModelSize, model_size
from finelaunch.recipe.schema import Recipe
from finelaunch.training.placement import Placement

LATER = "unknown until launch.num_processes_per_node is a number"
UNPACKED = (
    "weights in 4 bits make a process no smaller on a CPU: loading and every multiplication unpack them; "
    "method.name=lora takes about as much, and is exact"
)


@dataclass(frozen=True)
class Needs:
    """What a run needs; numbers are None while unknown, with the reason in ``text``.

    Args:
        method: Its name, trained and all parameters.
        memory: Bytes a device, by what they hold.
        traffic: Bytes a rank sends each optimizer step.
        advice: What may go better.
    """

    method: dict[str, Any]
    memory: dict[str, Any]
    traffic: dict[str, Any]
    advice: tuple[str, ...]


def needs_of(recipe: Recipe, profile: Profile, engine: Engine, placement: Placement | None, num_labels: int) -> Needs:
    """Return what a recipe needs on a profile.

    Args:
        recipe: What is trained.
        profile: The machine.
        engine: The profile's.
        placement: The cut of the batch; None while the number of processes is unknown.
        num_labels: Classes of a classifier.

    Raises:
        BadInput: An adapter's names match no module, or its rank is larger than a layer.
    """
    size = model_size(recipe.model, recipe.task.name, num_labels)
    trainable = trainable_of(recipe.model, recipe.task.name, num_labels, recipe.method)
    said = rate_advice(recipe.method.name, recipe.training.learning_rate)
    if recipe.method.name == "qlora" and profile.device == "cpu":
        said.append(UNPACKED)
    if isinstance(size, str) or isinstance(trainable, str):
        unknown = {"total": None, "text": f"unknown: {size}"}
        later = {"total": None, "text": LATER} if placement is None else unknown
        count = "all" if isinstance(recipe.method, FullSection | GradualUnfreezingSection) else "an unknown number of"
        text = f"{recipe.method.name}: trained are {count} parameters"
        method = {"name": recipe.method.name, "trainable": None, "total": None, "text": text}
        return Needs(method, later, later, tuple(said))
    method = _method(recipe, size, trainable)
    if placement is None:
        later = {"total": None, "text": LATER}
        return Needs(method, later, later, tuple(said))
    precision = profile.precision if profile.precision != "auto" else "fp32" if profile.device == "cpu" else "bf16"
    common: dict[str, Any] = {
        "engine": engine.name,
        "world_size": placement.num_processes,
        "precision": precision,
        "gradient_accumulation_steps": placement.gradient_accumulation_steps,
        "trainable": trainable,
    }
    rows: dict[str, Any] = {
        "per_device_batch_size": placement.per_device_batch_size,
        "sequence_length": recipe.task.max_length,
        "optim": recipe.training.optim,
        "activation_checkpointing": placement.activation_checkpointing,
        "offload": engine.offload,
        "task_name": recipe.task.name,
    }
    # On a CPU only what is used of the bucket takes memory.
    used = trainable.num_parameters if profile.device == "cpu" else REDUCE_BUCKET_ELEMENTS
    settings = {**common, **rows, "reduce_bucket_elements": min(used, REDUCE_BUCKET_ELEMENTS)}
    memory = estimate_memory(size, **settings)
    traffic = forecast_traffic(size, **common)
    others = _others(recipe, profile, engine, num_labels) if memory.state > LARGE_STATE else {}
    is_bound = size.is_upper_bound or trainable.is_upper_bound
    most = "at most about" if is_bound else "about"
    sent = f"{most} {byte_text(traffic.total)} a rank and optimizer step" if traffic.total else "nothing"
    said = [*advice(size, **common, **rows, method=recipe.method, others=others), *said]
    told = _memory(recipe, profile, size, memory, f"{most} {byte_text(memory.total)}", precision)
    if recipe.method.name == "qlora":
        settings["activation_checkpointing"] = not placement.activation_checkpointing
        told["checkpointing"] = _checkpointing(memory, estimate_memory(size, **settings))
    return Needs(method, told, {"total": traffic.total, **asdict(traffic), "text": sent}, tuple(said))


def _method(recipe: Recipe, size: ModelSize, trainable: Trainable) -> dict[str, Any]:
    name, trained = recipe.method.name, trainable.num_parameters
    total = size.num_parameters + trainable.num_added - trainable.num_replaced
    is_whole = trained == total
    most = "at most " if trainable.is_upper_bound or (size.is_upper_bound and is_whole) else ""
    of_most = "at most " if size.is_upper_bound else ""
    share = "all" if is_whole else f"{trained / total:.3%}"
    text = f"{name}: trained are {most}{trained:,} of {of_most}{total:,} parameters, {share}"
    if isinstance(recipe.method, GradualUnfreezingSection):
        text += " (in its last stage)"
    if trainable.adapted:
        endings = dict.fromkeys(one.rpartition(".")[2] for one, *_ in trainable.adapted)
        text += f"; rank {trainable.rank} on {len(trainable.adapted)} layers ({', '.join(endings)})"
    if trainable.quantised:
        held, count = trainable.quantised.num_bytes, trainable.quantised.num_parameters
        text += f"; {count:,} in 4 bits take {byte_text(held)}, {8 * held / max(1, count):.2f} bits each"
    return {"name": name, "trainable": trained, "total": total, "text": text}


def _memory(
    recipe: Recipe, profile: Profile, size: ModelSize, memory: Memory, total: str, precision: str
) -> dict[str, Any]:
    parts = asdict(memory)
    said = ", ".join(f"{name} {byte_text(count)}" for name, count in parts.items())
    longest = f"rows of {recipe.task.max_length} tokens, {precision}"
    text = f"{total} a device ({said}; {size.num_parameters:,} parameters, {longest})"
    if recipe.training.optim in PAGED and profile.device == "cuda":
        text += "; the optimizer's part moves to the host where the device is full"
    return {"total": memory.total, **parts, "num_parameters": size.num_parameters, "precision": precision, "text": text}


def _checkpointing(now: Memory, other: Memory) -> str:
    """Return what activation checkpointing saves and costs."""
    less, more = sorted((now.activations, other.activations))
    key = "launch.activation_checkpointing=true" if now.activations == more else "launch.activation_checkpointing"
    verb = "makes" if now.activations == more else "has made"
    return (
        f"{key} {verb} activations {byte_text(less)} instead of {byte_text(more)}, "
        "at the price of one more forward pass a step, about a third more computing"
    )


def _others(recipe: Recipe, profile: Profile, engine: Engine, num_labels: int) -> Mapping[str, Trainable]:
    """Return what methods that need less would train, of those that run on the engine."""
    sections = {"full": (LoraSection(), QLoraSection()), "gradual_unfreezing": (LoraSection(), QLoraSection())}
    found = {}
    for section in (*sections.get(recipe.method.name, ()), *([QLoraSection()] if recipe.method.name == "lora" else [])):
        if any(method_faults(section, engine.name, profile.activation_checkpointing, engine.offload)):
            continue
        try:
            trainable = trainable_of(recipe.model, recipe.task.name, num_labels, section)
        except BadInput:  # a layer too small for the default rank
            continue
        if isinstance(trainable, Trainable):
            found[section.name] = trainable
    return found
