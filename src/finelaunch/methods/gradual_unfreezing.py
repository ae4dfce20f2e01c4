"""Gradual unfreezing: from the head down, one stage after another, each part further down at a lower rate.

Source: Howard and Ruder 2018, Universal Language Model Fine-tuning for Text Classification, sections 3.2 and 3.3.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from finelaunch.errors import BadInput, Problem
from finelaunch.methods.base import AtOnce, Stage
from finelaunch.methods.parts import parts_of
from finelaunch.section.base import Section

if TYPE_CHECKING:
    from finelaunch.models.load import LoadedModel

DEFAULT_STAGES = 4


class GradualUnfreezingSection(Section):
    """The head first, then the layers from the top down, then the embeddings."""

    name: Literal["gradual_unfreezing"] = Field(default="gradual_unfreezing", description="the method")
    num_stages: int | None = Field(
        default=None, ge=1, description="stages of equal length; null: 4, or as many as the model has parts"
    )
    learning_rate_decay: float = Field(
        default=0.7, gt=0, le=1, description="each part further down learns with so much of the rate above it"
    )


class GradualUnfreezing(AtOnce):
    """Train more of the model with every stage."""

    def __init__(self, section: GradualUnfreezingSection) -> None:
        self.section = section

    def apply(self, loaded: "LoadedModel") -> Any:
        """Return the model with every parameter trainable, as in the last stage.

        Raises:
            BadInput: More stages than parts.
        """
        self._parts = parts_of(loaded)
        number = self.section.num_stages
        if number is not None and number > len(self._parts):
            raise BadInput(too_many_stages(number, [part.name for part in self._parts]))
        return loaded.model.requires_grad_(True)

    def stages(self, model: Any, num_steps: int) -> Sequence[Stage]:
        """Return the stages, the first of which trains the head and the last one everything."""
        number = num_stages_of(self.section, len(self._parts))
        if num_steps < number:
            raise BadInput(too_few_steps(number, num_steps))
        decay = self.section.learning_rate_decay
        rates = {name: decay**depth for depth, part in enumerate(self._parts) for name in part.parameters}
        stages = []
        for stage, count in enumerate(num_trained_parts(len(self._parts), number), 1):
            trained = frozenset(name for part in self._parts[:count] for name in part.parameters)
            lowest = self._parts[count - 1].name
            name = "head" if count == 1 else f"head to {lowest}"
            stages.append(Stage(name, round(num_steps * stage / number), trained, rates))
        return stages


def num_trained_parts(num_parts: int, num_stages: int) -> list[int]:
    """Return how many parts each stage trains, from the top: the first one, then evenly more, at last all of them."""
    if num_stages == 1:
        return [num_parts]
    return [1 + round(stage * (num_parts - 1) / (num_stages - 1)) for stage in range(num_stages)]


def num_stages_of(section: GradualUnfreezingSection, num_parts: int) -> int:
    """Return how many stages ``section`` makes of a model of ``num_parts`` parts."""
    return section.num_stages or min(DEFAULT_STAGES, num_parts)


def too_few_steps(number: int, num_steps: int) -> Problem:
    """Return the problem of fewer optimizer steps than stages."""
    what = f"{number} stages need at least {number} steps, and there are {num_steps}"
    return Problem("recipe", "method.num_stages", what, "", "train longer, or lower it")


def too_many_stages(number: int, parts: Sequence[str]) -> Problem:
    """Return the problem of more stages than parts of a model."""
    what = f"{number} is more than the {len(parts)} parts of the model: {', '.join(parts)}"
    return Problem("recipe", "method.num_stages", what, f"at most {len(parts)}, or null")
