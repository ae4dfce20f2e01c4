"""What a way of fine-tuning must be able to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from finelaunch.models.quantization import Quantization

if TYPE_CHECKING:
    from finelaunch.models.load import LoadedModel


@dataclass(frozen=True)
class Stage:
    """Steps of a training in which the same weights are trained.

    Args:
        name: What is trained, in words.
        end_step: How many steps of the whole training are done at its end.
        trained: The names of the trained parameters, all others being held: without gradient, their modules in
            evaluation mode. None: what is trained is as the method has set it.
        rates: By the name of a parameter the share of the learning rate that it is trained with; 1 for all others.
    """

    name: str
    end_step: int
    trained: frozenset[str] | None = None
    rates: Mapping[str, float] = field(default_factory=dict)


class Method(Protocol):
    """Decides which weights of a model are trained, and when."""

    def quantization(self, precision: str) -> Quantization | None:
        """Return what the base is held in, where that is not fp32.

        Args:
            precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``: what the machine computes in.
        """
        ...

    def apply(self, loaded: "LoadedModel") -> Any:
        """Return the model to train, with ``requires_grad`` set on what is trained.

        Raises:
            BadInput: The method does not fit the model.
        """
        ...

    def stages(self, model: Any, num_steps: int) -> Sequence[Stage]:
        """Return the stages of a training of ``num_steps`` steps, the last of which ends it.

        Args:
            model: What :meth:`apply` has returned.
            num_steps: Steps of the whole training.

        Raises:
            BadInput: They are too few.
        """
        ...


class AtOnce:
    """What a method is that trains the same weights from the first step to the last, over a base in fp32."""

    def quantization(self, precision: str) -> Quantization | None:
        """Return None: the base is held in fp32."""
        return None

    def stages(self, model: Any, num_steps: int) -> Sequence[Stage]:
        """Return one stage."""
        return (Stage("", num_steps),)
