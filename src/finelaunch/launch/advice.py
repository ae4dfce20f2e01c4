"""What may go better, in sentences; nothing is ever changed."""

from collections.abc import Mapping
from typing import Any

from finelaunch.launch.estimate import GIB, SHARDED, Memory, byte_text, estimate_memory
from finelaunch.launch.traffic import forecast_traffic
from finelaunch.methods import MethodSection
from finelaunch.methods.full import FullSection
from finelaunch.methods.limits import PROMPTS, method_faults
from finelaunch.methods.trainable import Trainable
from finelaunch.models.size import ModelSize

SMALL_STATE = 4 * GIB
"""Weights, gradients and optimizer below this fit beside the activations on any device that trains."""
LARGE_STATE = 40 * GIB
"""Above this nothing of an 80 GB device is left for activations with certainty, and a 40 GB device is too small."""
LARGE_ACTIVATIONS = 1 * GIB
"""Below this their share is not worth a word."""
LOW_RATES = {"lora": 5e-5, "qlora": 5e-5, "prompt_tuning": 1e-2, "prefix_tuning": 1e-2}
"""Learning rates below which a method learns next to nothing."""


def advice(
    size: ModelSize,
    *,
    engine: str,
    world_size: int,
    precision: str,
    per_device_batch_size: int,
    sequence_length: int,
    gradient_accumulation_steps: int = 1,
    trainable: Trainable | None = None,
    optim: str = "adamw_torch_fused",
    activation_checkpointing: bool = False,
    offload: str = "none",
    task_name: str = "",
    method: MethodSection | None = None,
    others: Mapping[str, Trainable] | None = None,
) -> list[str]:
    """Return what would fit better, a sentence each; nothing is changed.

    The arguments are those of :func:`estimate_memory` and :func:`forecast_traffic`; ``method`` is the method's section,
    by default full, and ``others`` is what methods that need less would train, by name.
    """
    method = method or FullSection()

    def runs(engine: str, activation_checkpointing: bool = False, offload: str = "none") -> bool:
        return not any(method_faults(method, engine, activation_checkpointing, offload, precision))

    def memory(**changes: Any) -> Memory:
        settings: dict[str, Any] = {"engine": engine, "per_device_batch_size": per_device_batch_size}
        settings |= {"activation_checkpointing": activation_checkpointing, "offload": offload, "world_size": world_size}
        settings |= {"precision": precision, "sequence_length": sequence_length, "trainable": trainable}
        settings |= {"optim": optim, "task_name": task_name}
        return estimate_memory(size, gradient_accumulation_steps=gradient_accumulation_steps, **{**settings, **changes})

    def sent(name: str) -> int:
        return forecast_traffic(
            size,
            engine=name,
            world_size=world_size,
            precision=precision,
            gradient_accumulation_steps=gradient_accumulation_steps,
            trainable=trainable,
        ).total

    said, now = [], memory()
    whole = memory(engine="ddp", offload="none").state
    if engine in SHARDED and world_size > 1 and runs("ddp") and whole < SMALL_STATE and sent("ddp") < sent(engine):
        said.append(
            f"weights, gradients and optimizer are {byte_text(whole)} in all, which one device holds; "
            f"launch.accelerate_config=ddp sends {byte_text(sent('ddp'))} a rank and step instead of "
            f"{byte_text(sent(engine))}"
        )
    if engine in ("single", "ddp") and now.state > LARGE_STATE:
        ranks, names = max(2, world_size), [name for name in ("zero2", "zero3", "fsdp2") if runs(name)]
        shares = ", ".join(f"{name} {byte_text(memory(engine=name, world_size=ranks).state)}" for name in names)
        offloaded = " or with launch.offload" if runs("zero2", offload="optimizer") else ""
        said.append(
            f"weights, gradients and optimizer need {byte_text(now.state)} a device; on {ranks} ranks "
            f"{shares}, less with more ranks{offloaded}"
        )
    if now.state > LARGE_STATE and others:
        needs = [f"{byte_text(memory(trainable=one).state)} with method.name={name}" for name, one in others.items()]
        said.append(f"the {byte_text(now.state)} a device of {method.name} are {', '.join(needs)}")
    if now.activations >= LARGE_ACTIVATIONS and now.activations == max(now.state, now.activations, now.working):
        ways = []
        if per_device_batch_size > 1:
            half = per_device_batch_size // 2
            less = memory(per_device_batch_size=half).activations
            ways.append(f"launch.per_device_batch_size={half} makes it {byte_text(less)}")
        if not activation_checkpointing and runs(engine, activation_checkpointing=True):
            less = memory(activation_checkpointing=True).activations
            ways.append(f"launch.activation_checkpointing=true makes it {byte_text(less)} and is slower")
        if ways:
            said.append(f"activations are the largest part, {byte_text(now.activations)} a device; {'; '.join(ways)}")
    return said


def rate_advice(method_name: str, learning_rate: float) -> list[str]:
    """Return what is to be said of a learning rate that is one of full fine-tuning, where few weights are trained.

    Source: Biderman et al. 2024, LoRA Learns Less and Forgets Less, section 6; Lester et al. 2021, The Power of Scale
    for Parameter-Efficient Prompt Tuning, section 2.
    """
    if learning_rate >= LOW_RATES.get(method_name, 0):
        return []
    more, usual = ("hundreds of", "0.3") if method_name in PROMPTS else ("5 to 20", "2e-4")
    return [
        f"training.learning_rate {learning_rate:g} is low for {method_name}, which usually needs {more} times the rate "
        f"of full fine-tuning; such as training.learning_rate={usual}"
    ]
