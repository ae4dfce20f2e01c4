"""Full fine-tuning: every weight is trained."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from finelaunch.section.base import Section

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FullSection(Section):
    """Every weight is trained."""

    name: Literal["full"] = Field(default="full", description="the method")


class Full:
    """Train every weight."""

    def __init__(self, section: FullSection) -> None:
        self.section = section

    def apply(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """Return ``model`` with every parameter trainable."""
        return model.requires_grad_(True)
