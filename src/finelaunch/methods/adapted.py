"""Which layers an adapter sits on and which modules are trained beside it, settled from names and widths alone.

The plan asks it with the modules that a config speaks of (``models/layout.py``), training with those of the loaded
model, so that both give the same answer and refuse in the same words.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finelaunch.errors import BadInput, Problem
from finelaunch.methods.targets import ALL_LINEAR, default_targets
from finelaunch.section.base import nearest

if TYPE_CHECKING:
    from finelaunch.methods.lora import LowRankSection

SHOWN_NAMES = 12
"""Names that an answer lists at most."""
FEWER = "save fewer modules whole, or use full"


@dataclass(frozen=True)
class Adapted:
    """Where an adapter sits.

    Args:
        targets: As peft takes them: endings of module names, or ``all-linear``.
        saved: Modules that are trained and saved whole.
        layers: By full name the widths of what goes into and comes out of each adapted layer.
    """

    targets: list[str] | str
    saved: list[str]
    layers: Mapping[str, tuple[int, int]]


def adapted_layers(
    section: "LowRankSection",
    model_type: str,
    linear: Mapping[str, tuple[int, int]],
    modules: Collection[str],
    head: Sequence[str],
) -> Adapted:
    """Return where the adapter of ``section`` sits.

    Args:
        section: The method.
        model_type: The architecture, by transformers' name.
        linear: By full name the widths of the linear layers, without the matrix over a causal LM's vocabulary.
        modules: The full names of all modules.
        head: The names of the modules that belong to the task.

    Raises:
        BadInput: A name matches no module, no layer is left beside the modules that are saved whole, or the rank is
            larger than an adapted layer.
    """
    saved = list(dict.fromkeys([*head, *section.modules_to_save]))
    refuse_unknown(modules, section.modules_to_save, "method.modules_to_save", "the model")
    free = {name: shape for name, shape in linear.items() if not is_in(name, saved)}
    targets = section.target_modules
    if targets == "default":
        targets = default_targets(model_type)
    if targets != ALL_LINEAR:
        _refuse_saved(section.modules_to_save, targets, linear, free)
        refuse_unknown(free, targets, "method.target_modules", "the layers that take low-rank matrices")
    layers = {name: shape for name, shape in free.items() if targets == ALL_LINEAR or matches(name, targets)}
    if not layers:
        _refuse_nothing_left(section.modules_to_save)
    name, shape = min(layers.items(), key=lambda one: min(one[1]))
    if section.rank > min(shape):
        what = f"{section.rank} is larger than {name}, which is {shape[0]} to {shape[1]}"
        raise BadInput(Problem("recipe", "method.rank", what, f"at most {min(shape)}"))
    return Adapted(targets, saved, layers)


def refuse_initialisation(section: "LowRankSection", model_type: str, has_conv1d: bool) -> None:
    """Refuse a beginning of the matrices that the adapted layers do not have.

    Args:
        section: The method.
        model_type: The architecture, by transformers' name.
        has_conv1d: Whether one of the adapted layers is GPT-2's, whose weight lies the other way round.

    Raises:
        BadInput: peft fails at taking such a layer apart.
    """
    if section.init_lora_weights == "olora" and has_conv1d:
        what = f"peft cannot take the layers of {model_type} apart by olora"
        raise BadInput(Problem("recipe", "method.init_lora_weights", what, "default, gaussian, orthogonal or pissa"))


def matches(name: str, targets: Iterable[str]) -> bool:
    """Return whether peft takes the module ``name`` for one of ``targets``: it is one, or ends with one."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def is_in(name: str, modules: Iterable[str]) -> bool:
    """Return whether the module ``name`` is one of ``modules``, by its full name or its ending, or lies in one."""
    return any(name == one or f".{one}." in f".{name}." for one in modules)


def _refuse_saved(
    modules_to_save: Sequence[str], targets: Iterable[str], linear: Collection[str], free: Collection[str]
) -> None:
    """Refuse targets all of whose layers lie in modules that the recipe has saved whole."""
    problems = []
    for target in targets:
        meant = [name for name in linear if matches(name, [target])]
        around = [one for one in modules_to_save if any(is_in(name, [one]) for name in meant)]
        if around and not any(name in free for name in meant):
            what = f"{target!r} lies in modules_to_save [{', '.join(around)}], which is trained whole"
            problems.append(Problem("recipe", "method.modules_to_save", what, "", FEWER))
    if problems:
        raise BadInput(problems)


def _refuse_nothing_left(modules_to_save: Sequence[str]) -> None:
    if modules_to_save:
        what = (
            f"every layer that takes low-rank matrices lies in [{', '.join(modules_to_save)}], which is trained whole"
        )
        raise BadInput(Problem("recipe", "method.modules_to_save", what, "", FEWER))
    what = "the model has no layer outside of its head that takes low-rank matrices"
    raise BadInput(Problem("recipe", "method.target_modules", what, "", "use full"))


def refuse_unknown(known: Collection[str], given: Iterable[str], key: str, of_what: str) -> None:
    """Refuse names that match none of ``known``; peft leaves such a name out without a word, if another one matches.

    Raises:
        BadInput: With the names there are.
    """
    endings = sorted({name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdecimal()} - {""})
    shown = ", ".join(endings[:SHOWN_NAMES]) + ", …" * (len(endings) > SHOWN_NAMES)
    problems = []
    for name in [name for name in given if not any(matches(one, [name]) for one in known)]:
        near = nearest(name, endings)
        remedy = f"did you mean {near!r}?" if near else ""
        problems.append(Problem("recipe", key, f"{name!r} matches none of {of_what}", f"such as {shown}", remedy))
    if problems:
        raise BadInput(problems)
