"""Full fine-tuning: every weight is trained."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from finelaunch.methods.base import AtOnce
from finelaunch.section.base import Section

if TYPE_CHECKING:
    from finelaunch.models.load import LoadedModel


class FullSection(Section):
    """Every weight is trained."""

    name: Literal["full"] = Field(default="full", description="the method")


class Full(AtOnce):
    """Train every weight."""

    def __init__(self, section: FullSection) -> None:
        self.section = section

    def apply(self, loaded: "LoadedModel") -> Any:
        """Return the model with every parameter trainable."""
        return loaded.model.requires_grad_(True)
