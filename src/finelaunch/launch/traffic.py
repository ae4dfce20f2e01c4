"""What a rank sends in an optimizer step, in bytes, by written formulas."""

from dataclasses import dataclass

from finelaunch.launch.estimate import element_bytes, everything, weight_bytes
from finelaunch.methods.trainable import Trainable
from finelaunch.models.size import ModelSize


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in an optimizer step.

    Args:
        gradients: To reduce the gradients.
        weights: To gather weights.
    """

    gradients: int
    weights: int

    @property
    def total(self) -> int:
        """Both."""
        return self.gradients + self.weights


def forecast_traffic(
    size: ModelSize,
    *,
    engine: str,
    world_size: int,
    precision: str,
    gradient_accumulation_steps: int,
    trainable: Trainable | None = None,
) -> Traffic:
    """Return the bytes that a rank sends in an optimizer step, by ring algorithms.

    A reduce-scatter or an all-gather of n bytes sends (W-1)/W n, an all-reduce both. DDP and FSDP2 reduce gradients
    once a step, ZeRO in every micro-step; ZeRO-1 and 2 gather the new weights once. ZeRO-3 and FSDP2 gather weights in
    the forward and the backward pass of every micro-step, which is an upper bound for ZeRO-3: it keeps what is used
    again soon.

    Args:
        size: The model.
        engine: As for :func:`estimate_memory`, and so are world_size, precision and trainable.
        world_size: Ranks.
        precision: Of the computation; FSDP2 sends in it (accelerate's mixed-precision policy), DDP always in fp32.
        gradient_accumulation_steps: Micro-steps of an optimizer step.
        trainable: What the method trains; by default all.

    Source: Rajbhandari et al. 2020, ZeRO, section 7.
    """
    trained = trainable.num_parameters if trainable else size.num_parameters
    held, computed = element_bytes(engine, precision)
    if engine == "ddp":
        return Traffic(_sent(2 * held * trained, world_size), 0)
    if engine in ("zero1", "zero2"):
        reduced = held * trained * gradient_accumulation_steps
        return Traffic(_sent(reduced, world_size), _sent(held * trained, world_size))
    if engine in ("zero3", "fsdp2"):
        reduced = computed * trained * (gradient_accumulation_steps if engine == "zero3" else 1)
        gathered = 2 * weight_bytes(size, computed, trainable or everything(size)) * gradient_accumulation_steps
        return Traffic(_sent(reduced, world_size), _sent(gathered, world_size))
    return Traffic(0, 0)


def _sent(count: int, world_size: int) -> int:
    """Return what a rank sends of a ring's reduce-scatter or all-gather of ``count`` bytes."""
    return count * (world_size - 1) // world_size
