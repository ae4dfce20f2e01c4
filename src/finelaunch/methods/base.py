"""What a way of fine-tuning must be able to do."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Method(Protocol):
    """Decides which weights of a loaded model are trained."""

    def apply(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """Return the model to train, with ``requires_grad`` set on what is trained."""
        ...
