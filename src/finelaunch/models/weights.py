"""What a live model holds: how many parameters, of which how many are trained, and the bytes that they take."""

import math
from typing import Any

REPLACED = ".original_module."
"""In the name of a weight of which peft trains a copy, and that is not used."""


def parameters_of(model: Any) -> dict[str, int]:
    """Return how many parameters there are, and how many are trained."""
    used = [(num_elements(one), one.requires_grad) for name, one in model.named_parameters() if REPLACED not in name]
    return {"total": sum(size for size, _ in used), "trainable": sum(size for size, trained in used if trained)}


def num_elements(parameter: Any) -> int:
    """Return the elements of a whole parameter.

    ZeRO-3 leaves an empty one in its place and keeps the number; of one in 4 bits, two share a byte.
    """
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return math.prod(state.shape)
    return getattr(parameter, "ds_numel", parameter.numel())


def num_bytes(parameter: Any) -> int:
    """Return the bytes of a whole parameter; of one in 4 bits with its scales and tables."""
    held = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        held += sum(one.nbytes for one in (state.absmax, state.code) if one is not None)
        state = state.state2 if state.nested else None
    return held


def num_bytes_of(model: Any) -> int:
    """Return the bytes of all parameters."""
    return sum(num_bytes(parameter) for parameter in model.parameters())


def is_adapted(model: Any) -> bool:
    """Return whether ``model`` is an adapter of peft on a base."""
    return hasattr(model, "peft_config")
