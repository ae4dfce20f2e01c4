"""What a method trains of a model, counted from the model's config alone.

The plan needs it without torch: which parameters get gradients and optimizer state, what is added to the model, and
which layers an adapter sits on. Tests hold every count against the models that transformers and peft build.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from finelaunch.methods.adapted import adapted_layers
from finelaunch.methods.feature_extraction import FeatureExtractionSection
from finelaunch.methods.full import FullSection
from finelaunch.methods.gradual_unfreezing import GradualUnfreezingSection
from finelaunch.methods.lora import LowRankSection
from finelaunch.methods.parts import POOLER
from finelaunch.methods.prompts import PromptTuningSection
from finelaunch.methods.qlora import QLoraSection
from finelaunch.models.layout import Layout, Module, enclosing, model_layout
from finelaunch.models.section import ModelSection
from finelaunch.models.shape import stored_names

if TYPE_CHECKING:
    from finelaunch.methods import MethodSection

SMALL_TENSOR = 4096
"""Tensors of fewer elements keep their optimizer state in 32 bits. Source: bitsandbytes 0.50, min_8bit_size."""


@dataclass(frozen=True)
class Quantised:
    """Weights in 4 bits.

    Args:
        num_parameters: How many.
        num_bytes: What they take, with their scales.
        largest: Parameters of the largest matrix among them.
    """

    num_parameters: int
    num_bytes: int
    largest: int


@dataclass(frozen=True)
class Trainable:
    """What is trained.

    Args:
        num_parameters: Trained parameters; of several stages those of the last.
        num_small: Those of them in tensors of fewer than 4,096 elements.
        num_added: Parameters that the method adds to the model, copies of whole modules included.
        num_replaced: Those of the model that such copies stand in for; they are held, and not used.
        backward: How far gradients go back: through ``weights`` that are trained, through ``frozen`` ones, or not
            beyond the ``head``.
        adapted: Names and widths, in and out, of the layers with an adapter.
        rank: Of the adapter.
        has_dropout: Whether the adapter has its own copy of what goes into a layer.
        has_magnitudes: Whether it is one of DoRA.
        num_virtual_tokens: Vectors before the text.
        are_in_layers: Whether they stand before keys and values instead.
        quantised: Weights in 4 bits.
        is_upper_bound: A module counts as drawn because nobody can say yet whether the checkpoint holds it.
    """

    num_parameters: int
    num_small: int = 0
    num_added: int = 0
    num_replaced: int = 0
    backward: Literal["weights", "frozen", "head"] = "weights"
    adapted: tuple[tuple[str, int, int], ...] = ()
    rank: int = 0
    has_dropout: bool = False
    has_magnitudes: bool = False
    num_virtual_tokens: int = 0
    are_in_layers: bool = False
    quantised: Quantised | None = None
    is_upper_bound: bool = False


def trainable_of(model: ModelSection, task_name: str, num_labels: int, method: "MethodSection") -> Trainable | str:
    """Return what ``method`` trains of the model that ``model`` names; a string says why it is unknown.

    Args:
        model: The model's section.
        task_name: ``question_answering``, ``text_classification`` or ``causal_lm``.
        num_labels: Classes of ``text_classification``; the other tasks do not use it.
        method: The method's section.

    Raises:
        BadInput: An adapter's names match no module, or its rank is larger than a layer.
    """
    layout = model_layout(model, task_name, num_labels)
    if isinstance(layout, str):
        return layout
    held = stored_names(model)
    if isinstance(method, FullSection | GradualUnfreezingSection):
        return _whole(layout)
    if isinstance(method, FeatureExtractionSection | LowRankSection):
        # From scratch all is drawn, and nothing of the base counts as new.
        head = layout.head_modules(layout.stored_names if model.init == "scratch" else held)
        is_guess = held is None and model.init != "scratch" and any(layout.is_in_base(name) for name in head)
        if isinstance(method, LowRankSection):
            return _lora(layout, method, head, is_guess)
        trained = [
            one for one in layout.modules if _is_saved(one, head) or (POOLER in f"{one.name}." and not layout.output)
        ]
        shapes = [shape for one in trained for shape in one.parameters.values()]
        return Trainable(*_counts(shapes), backward="head")
    width = layout.hidden_size if isinstance(method, PromptTuningSection) else 2 * layout.num_layers * layout.key_width
    count = method.num_virtual_tokens * width
    return Trainable(
        *_counts([(count,)]),
        num_added=count,
        backward="frozen",
        num_virtual_tokens=method.num_virtual_tokens,
        are_in_layers=not isinstance(method, PromptTuningSection),
    )


def _whole(layout: Layout) -> Trainable:
    return Trainable(*_counts(shape for one in layout.modules for shape in one.parameters.values()))


def _counts(shapes: Iterable[tuple[int, ...]]) -> tuple[int, int]:
    """Return the elements of all tensors, and of the small ones among them."""
    sizes = list(map(prod, shapes))
    return sum(sizes), sum(size for size in sizes if size < SMALL_TENSOR)


def _lora(layout: Layout, section: LowRankSection, head: list[str], is_guess: bool) -> Trainable:
    adapted = adapted_layers(section, layout.model_type, layout.widths, layout.names, head)
    shapes: list[tuple[int, ...]] = []
    for num_in, num_out in adapted.layers.values():
        shapes += [(section.rank, num_in), (num_out, section.rank), *([(num_out,)] if section.use_dora else [])]
    saved = [one for one in layout.modules if _is_saved(one, adapted.saved)]
    for one in saved:
        shapes += one.own_shapes()
    added = sum(map(prod, shapes))
    if section.bias != "none":
        rest = [one for one in layout.modules if one not in saved]
        rest = [one for one in rest if section.bias == "all" or one.name in adapted.layers]
        shapes += [one.parameters["bias"] for one in rest if "bias" in one.parameters]
    return Trainable(
        *_counts(shapes),
        num_added=added,
        num_replaced=sum(one.num_parameters for one in saved),
        backward="frozen",
        adapted=tuple((name, *widths) for name, widths in adapted.layers.items()),
        rank=section.rank,
        has_dropout=section.dropout > 0,
        has_magnitudes=section.use_dora,
        quantised=_quantised(layout, section, head) if isinstance(section, QLoraSection) else None,
        is_upper_bound=is_guess,
    )


def _is_saved(module: Module, names: list[str]) -> bool:
    """Return whether peft takes ``module`` for one of ``names``, or for a part of one; it compares endings."""
    return any(part.endswith(name) for part in enclosing(module.name) for name in names)


def _quantised(layout: Layout, section: QLoraSection, head: list[str]) -> Quantised:
    """Count what is held in 4 bits: the linear layers of the base; the head, new or not, stays in fp32.

    A block of 64 weights has a scale of 4 bytes; quantised once more, of 1 byte, with 4 bytes for every 256 of them
    and a table of 256 numbers and an offset for each matrix. Each matrix has a table of its 16 values.

    Source: Dettmers et al. 2023, QLoRA, section 3; bitsandbytes 0.50, functional.py, quantize_4bit.
    """
    matrices = [one for one in layout.linears if layout.is_in_base(one.name) and not _is_saved(one, head)]
    sizes = [one.num_in * one.num_out for one in matrices]
    taken = 0
    for size in sizes:
        blocks = -(-size // 64)
        taken += -(-size // 2) + 16 * 4
        taken += blocks + 4 * -(-blocks // 256) + 257 * 4 if section.double_quantization else 4 * blocks
    return Quantised(sum(sizes), taken, max(sizes, default=0))
