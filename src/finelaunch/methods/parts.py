"""The parts of a model from its head down to its embeddings, by the names of their parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finelaunch.models.load import LoadedModel

SHARED_BY_LAYERS = {"deberta-v2": ("encoder.LayerNorm.", "encoder.conv.")}
"""Parameters that stand beside the layers and that every one of them uses, by model type."""


POOLER = ".pooler."
"""In the name of a parameter between the last layer and the head."""


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Args:
        name: ``head``, ``layer N`` or ``embeddings``.
        parameters: The names of its parameters.
    """

    name: str
    parameters: tuple[str, ...]


def head_modules(loaded: "LoadedModel") -> list[str]:
    """Return the names of the modules that belong to the task and not to the pretrained model.

    These are the modules outside of the base model, and those inside of it whose weights were drawn, such as a pooler
    that the checkpoint did not hold. A causal LM has none: what turns its states into words was pretrained, too.
    """
    names = []
    if not loaded.is_causal:
        prefix = f"{loaded.model.base_model_prefix}."
        outside = [name for name, _ in loaded.model.named_parameters() if not name.startswith(prefix)]
        names = [name.partition(".")[0] for name in outside]
    names += [name.rpartition(".")[0] for name in loaded.drawn]
    return [one for one in dict.fromkeys(names) if not any(one.startswith(f"{other}.") for other in names)]


def head_parameters(loaded: "LoadedModel") -> list[str]:
    """Return the names of the parameters that turn a text's states into an answer to the task.

    Those of :func:`head_modules` and of a pooler: where it stands and whether a checkpoint holds one differs from
    architecture to architecture, and nothing but the head reads what it gives.
    """
    modules = tuple(f"{name}." for name in head_modules(loaded))
    names = [name for name, _ in loaded.model.named_parameters()]
    return [name for name in names if name.startswith(modules) or (POOLER in name and not loaded.is_causal)]


def parts_of(loaded: "LoadedModel") -> Sequence[Part]:
    """Return the parts from the top down; every parameter is in exactly one of them.

    What comes after the last layer, such as a last norm, belongs to the head; what comes before the first one, and
    every embedding, to the embeddings.
    """
    from torch import nn
    from transformers.modeling_layers import GradientCheckpointingLayer

    model = loaded.model
    modules = dict(model.named_modules())
    layers = [name for name, module in modules.items() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:  # MPNet, ALBERT
        lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
        layers = [name for name in modules if name.rpartition(".")[0] in lists]
    layers = [name for name in layers if not any(name.startswith(f"{other}.") for other in layers)]
    embedded = {name for name, module in modules.items() if isinstance(module, nn.Embedding)}
    head = set(head_parameters(loaded))
    shared = SHARED_BY_LAYERS.get(model.config.model_type, ())
    found: dict[str, list[str]] = {"head": [], "embeddings": []}
    found |= {name: [] for name in layers}
    is_after = False
    for name, _ in model.named_parameters():
        layer = next((one for one in layers if name.startswith(f"{one}.")), None)
        is_after = is_after or layer is not None
        below = name.rpartition(".")[0] in embedded or any(part in name for part in shared)
        if name in head:
            found["head"].append(name)
        elif layer is not None:
            found[layer].append(name)
        else:
            found["embeddings" if below or not is_after else "head"].append(name)
    named = [("head", found["head"])]
    named += [(f"layer {number}", found[name]) for number, name in reversed(list(enumerate(layers)))]
    named += [("embeddings", found["embeddings"])]
    return [Part(name, tuple(parameters)) for name, parameters in named if parameters]
