"""Feature extraction: the pretrained model is held, and the task's head learns on what it gives."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from finelaunch.errors import BadInput, Problem
from finelaunch.methods.base import AtOnce, Stage
from finelaunch.methods.parts import head_parameters
from finelaunch.section.base import Section

if TYPE_CHECKING:
    from finelaunch.models.load import LoadedModel

NO_HEAD = "feature_extraction has nothing to train: a causal LM has no head of its own"
NO_HEAD_REMEDY = "use full, gradual_unfreezing or lora"


class FeatureExtractionSection(Section):
    """The task's head is trained on a pretrained model that is held."""

    name: Literal["feature_extraction"] = Field(default="feature_extraction", description="the method")


class FeatureExtraction(AtOnce):
    """Train the head alone."""

    def __init__(self, section: FeatureExtractionSection) -> None:
        self.section = section

    def apply(self, loaded: "LoadedModel") -> Any:
        """Return the model with its head trainable.

        Raises:
            BadInput: It has none.
        """
        self._head = frozenset(head_parameters(loaded))
        if loaded.is_causal or not self._head:
            raise BadInput(Problem("recipe", "method.name", NO_HEAD, "", NO_HEAD_REMEDY))
        for name, parameter in loaded.model.named_parameters():
            parameter.requires_grad_(name in self._head)
        return loaded.model

    def stages(self, model: Any, num_steps: int) -> Sequence[Stage]:
        """Return one stage, in which the rest is held."""
        return (Stage("head", num_steps, self._head),)
