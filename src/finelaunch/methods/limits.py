"""Which method runs on which engine: what fails there, or was never seen to work, is refused by name; no torch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from finelaunch.models.adapters import PROMPTS
from finelaunch.section.base import SettingError

if TYPE_CHECKING:
    from finelaunch.methods import MethodSection
    from finelaunch.models.section import ModelSection

ADAPTERS = ("lora", "qlora", *PROMPTS)
"""Methods whose result is an adapter on a base."""

_WHOLE = "use single, ddp, zero1 or zero2"


def method_faults(
    section: "MethodSection", engine: str, activation_checkpointing: bool, offload: str, precision: str = "fp32"
) -> Iterator[SettingError]:
    """Yield why a method does not run on an engine, under the keys of the launch profile.

    Args:
        section: The recipe's ``method`` section.
        engine: Name of the engine.
        activation_checkpointing: Of the profile.
        offload: Of the profile.
        precision: Of the profile; ``auto`` may be 16 bits.
    """
    name, key = section.name, "accelerate_config"
    if name in ADAPTERS and engine == "fsdp2":
        what = f"{name} on fsdp2 was never seen to save and resume exactly"
        yield SettingError(key, what, "", "use ddp, zero2 or zero3")
    if name == "gradual_unfreezing" and engine in ("zero3", "fsdp2"):
        what = f"gradual_unfreezing prepares the model anew for every stage, and {engine} has cut it by then"
        yield SettingError(key, what, "", _WHOLE)
    if name == "gradual_unfreezing" and engine in ("zero1", "zero2") and precision not in ("fp32", "tf32"):
        what = (
            f"gradual_unfreezing on {engine} in {precision} would round the trained weights to 16 bits at every stage"
        )
        yield SettingError("precision", what, "fp32 or tf32", "or use ddp, which keeps them in fp32")
    if name == "feature_extraction" and engine == "fsdp2":
        what = "fsdp2 cuts trained and held weights alike, and gains nothing where next to none are trained"
        yield SettingError(key, what, "", _WHOLE)
    if name in PROMPTS and engine == "zero3":
        yield SettingError(key, f"{name} on zero3 was never seen to save and resume exactly", "", _WHOLE)
    if getattr(section, "init_lora_weights", "") in ("olora", "pissa") and engine == "zero3":
        what = f"init_lora_weights {section.init_lora_weights} takes whole weights apart, and zero3 has cut them"  # type: ignore[union-attr]
        yield SettingError(key, what, "", _WHOLE)
    if name == "qlora" and offload != "none":
        yield SettingError("offload", "weights in 4 bits are not moved to the host", "none", "qlora saves more")
    if name in PROMPTS and activation_checkpointing:
        what = f"{name} fails with it: the keys of its vectors are missing when a layer is computed again"
        yield SettingError("activation_checkpointing", what, "", "leave it out, or use lora")
    if name == "feature_extraction" and activation_checkpointing:
        what = "has no effect: feature_extraction keeps no activations of the model that it holds"
        yield SettingError("activation_checkpointing", what, "", "leave it out")


def packing_faults(section: "MethodSection") -> Iterator[SettingError]:
    """Yield why a method does not train on packs, under keys of the recipe."""
    if section.name in PROMPTS:
        what = f"{section.name} drops the positions by which the documents of a pack are told apart"
        yield SettingError("task.packing", what, "false", "or use lora")


def scratch_note(method: "MethodSection", model: "ModelSection") -> str | None:
    """Return what is to be said of a method that holds a base of random weights; None where it does not."""
    if model.init != "scratch" or method.name not in ("feature_extraction", *ADAPTERS):
        return None
    return (
        f"method {method.name} holds a base whose weights are drawn (model.init: scratch): nothing was learned that "
        "could be held; start from a pretrained model"
    )
