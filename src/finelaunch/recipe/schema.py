"""A recipe as a whole; the sections live beside the code that they configure."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, get_args

from pydantic import Field

from finelaunch.data.section import REPLACED_WITH_PATH, SPLITS, DataSection
from finelaunch.evaluation.section import EvaluationSection
from finelaunch.methods import MethodSection
from finelaunch.methods.full import FullSection
from finelaunch.methods.limits import packing_faults
from finelaunch.models.section import ModelSection
from finelaunch.section.base import Section, SettingError
from finelaunch.tasks import TaskSection
from finelaunch.training.section import ANSWERS, TrainingSection
from finelaunch.training.selection import selection_faults


class Recipe(Section):
    """What to train; the same on every machine."""

    answers: ClassVar[Mapping[str, str]] = {
        **ANSWERS,
        "launch": "it speaks of the machine: use --on PROFILE and launch.KEY=VALUE on the command line",
        "cluster": "it speaks of the machine and stands in a cluster profile",
        "base": "it stands in the file, at the top; on the command line name the recipe itself",
    }
    file_keys: ClassVar[tuple[str, ...]] = ("base",)

    task: Annotated[TaskSection, Field(discriminator="name")] = Field(description="a mapping with name: what to learn")
    model: ModelSection = Field(description="a mapping with name_or_path: what to start from")
    data: DataSection = Field(description="a mapping with train: the rows")
    method: Annotated[MethodSection, Field(discriminator="name")] = Field(
        default=FullSection(), description="a mapping with name: which weights are trained, and how"
    )
    training: TrainingSection = Field(description="a mapping with global_batch_size and learning_rate")
    evaluation: EvaluationSection = Field(default=EvaluationSection(), description="what to measure")

    def faults(self) -> Iterator[SettingError]:
        """Yield what does not fit between sections."""
        if self.evaluation.metrics and self.task.name == "causal_lm":
            what = "has nothing to compare for causal_lm, which is measured by the loss of each answer"
            yield SettingError("evaluation.metrics", what, "", "leave it out")
        if self.evaluation.sample_prompts and self.task.name != "causal_lm":
            yield SettingError("evaluation.sample_prompts", f"{self.task.name} answers no prompts", "", "leave it out")
        if getattr(self.task, "packing", False):
            yield from packing_faults(self.method)
        multi_label = getattr(self.task, "multi_label", False)
        yield from selection_faults(self.task.name, multi_label, self.method.name, self.training)


REPLACED: dict[str, tuple[str, ...]] = {
    **{f"data.{split}.path": REPLACED_WITH_PATH for split in SPLITS},
    "model.name_or_path": ("revision", "init", "config", "tokenizer"),
    "method.name": tuple(sorted({key for one in get_args(MethodSection) for key in one.model_fields} - {"name"})),
}
"""What another value of a key takes away from below: another path has other columns, another method other keys."""


def recipe_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file, for completion and checks in editors."""
    schema = Recipe.model_json_schema()
    schema["properties"]["base"] = {"type": "string", "description": "a recipe that this one changes; one level"}
    schema.pop("required", None)
    for definition in schema["$defs"].values():
        definition.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "finelaunch recipe"}
