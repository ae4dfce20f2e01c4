"""Launch profiles: the machine side of a run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from finelaunch.errors import BadInput
from finelaunch.recipe.load import find, read_file
from finelaunch.section.base import Section, SettingError, build
from finelaunch.section.document import Document, merge


class Profile(Section):
    """On what to run; nothing of what is trained."""

    answers: ClassVar[Mapping[str, str]] = {
        "bf16": "use precision: bf16",
        "fp16": "use precision: fp16",
        "mixed_precision": "use precision",
        "global_batch_size": "it changes the result and stands in the recipe: training.global_batch_size",
        "per_device_train_batch_size": "use per_device_batch_size",
        "gradient_accumulation_steps": "it is computed: global_batch_size / (processes x per_device_batch_size)",
        "gradient_checkpointing": "use activation_checkpointing",
        "base": "a profile has none; copy its keys",
    }

    target: Literal["inprocess"] = Field(default="inprocess", description="who starts the workers")
    device: Literal["cpu", "cuda"] = Field(description="cpu or cuda")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16, else fp16 with loss scaling, else fp32, as the device can"
    )
    per_device_batch_size: int | None = Field(
        default=None, ge=1, le=2**20, description="rows a forward pass; null: the whole share, no accumulation"
    )
    per_device_eval_batch_size: int = Field(default=32, ge=1, description="rows a forward pass of evaluation")
    activation_checkpointing: bool = Field(default=False, description="recompute activations: less memory, slower")
    dataloader_num_workers: int = Field(default=0, ge=0, description="processes that make batches; 0: this one")

    @model_validator(mode="after")
    def _precision_of_cpu(self) -> "Profile":
        if self.device == "cpu" and self.precision in ("bf16", "fp16"):
            what = f"{self.precision} on a CPU is not offered: it takes up to 100 times as long as fp32"
            raise SettingError("precision", what, "fp32 or auto", "use launch.precision=fp32 or --on gpu")
        return self


def load_profile(name: str, overrides: Document | None = None) -> tuple[Profile, Document, Path]:
    """Return the profile that ``name`` and ``overrides`` make, its document and its file.

    Raises:
        BadInput: With all that is wrong.
    """
    path = find(name, "launch")
    document = read_file(path)
    if overrides is not None:
        document = merge(document, overrides, {})
    try:
        return build(Profile, document), document, path
    except BadInput as error:
        raise BadInput(replace(problem, key=f"launch.{problem.key}") for problem in error.problems) from None
