"""LoRA and its kin: low-rank matrices beside frozen ones.

Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models; Kalajdzievski 2023 (rank-stabilised);
Liu et al. 2024 (DoRA); Meng et al. 2024 (PiSSA); Büyükakyüz 2024 (OLoRA). The layers are peft's.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

from finelaunch.errors import BadInput, Problem
from finelaunch.methods.adapted import adapted_layers, is_in, refuse_initialisation
from finelaunch.methods.base import AtOnce
from finelaunch.methods.parts import head_modules
from finelaunch.methods.targets import ALL_LINEAR
from finelaunch.models.quantization import require
from finelaunch.section.base import Section, SettingError, nearest, told_apart

if TYPE_CHECKING:
    from finelaunch.models.load import LoadedModel

INITIAL_ADAPTER = "finelaunch_initial_adapter"
"""Attribute of the adapted model: the adapter's first weights, where its initialisation has changed the base."""
CHANGES_BASE = ("olora", "pissa")
"""Initialisations that take what the adapter begins with out of the base's weights."""
TASK_TYPES = {"AutoModelForSequenceClassification": "SEQ_CLS", "AutoModelForQuestionAnswering": "QUESTION_ANS"}
TASK_TYPES |= {"AutoModelForCausalLM": "CAUSAL_LM"}
NAMES_OF_PEFT: Mapping[str, str] = {
    "r": "use method.rank",
    "lora_alpha": "use method.alpha",
    "lora_dropout": "use method.dropout",
    "targets": "use method.target_modules",
    "dora": "use method.use_dora",
    "rslora": "use method.use_rslora",
    "init": "use method.init_lora_weights",
    "task_type": "it follows from the task",
    "fan_in_fan_out": "it follows from the model",
    "layers_to_transform": "not offered: name the modules in method.target_modules",
    "rank_pattern": "not offered: one rank serves all modules",
    "alpha_pattern": "not offered: one alpha serves all modules",
}
NOT_OFFERED = {
    "pissa_niter": "its random decomposition differs when the adapter is loaded, without a word; use pissa",
    "loftq": "it needs scipy and a second base; use qlora with default or gaussian",
    "eva": "it needs a pass over the data before the first step; use default or pissa",
    "corda": "it needs a pass over the data before the first step; use default or pissa",
}
"""Initialisations of peft that are refused, and why."""


TARGETS = "default, all-linear or a list such as [q_proj, v_proj]"
"""What target_modules takes."""
TargetModules = Annotated[
    Annotated[str, Tag("a word")] | Annotated[list[str], Tag("names")],
    told_apart(
        lambda value: "a word" if isinstance(value, str) else "names" if isinstance(value, list) else None, TARGETS
    ),
]
"""Which layers take the matrices: a word for a set of them, or endings of their names."""


class LowRankSection(Section):
    """What LoRA and QLoRA share."""

    answers: ClassVar[Mapping[str, str]] = NAMES_OF_PEFT

    rank: int = Field(default=16, ge=1, le=4096, description="rank of the low-rank matrices")
    alpha: float = Field(default=32, gt=0, description="scale: alpha / rank, with use_rslora alpha / sqrt(rank)")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout on what goes into the low-rank matrices")
    target_modules: TargetModules = Field(
        default="default", description="default (by architecture), all-linear, or endings of module names"
    )
    bias: Literal["none", "all", "lora_only"] = Field(default="none", description="which biases are trained")
    modules_to_save: list[str] = Field(
        default=[], description="further modules that are trained and saved whole; the task's head always is"
    )
    use_rslora: bool = Field(default=False, description="rank-stabilised scale")
    use_dora: bool = Field(default=False, description="magnitude and direction apart; slower")
    init_lora_weights: str = Field(
        default="default", description="default, gaussian, orthogonal, olora or pissa: how the matrices begin"
    )

    def faults(self) -> Iterator[SettingError]:
        """Yield targets that are no names, and initialisations that are not offered."""
        targets = self.target_modules
        if isinstance(targets, str) and targets not in ("default", ALL_LINEAR):
            yield SettingError("target_modules", f"{targets!r} is no list", TARGETS, f"write [{targets}]")
        if not targets:
            yield SettingError("target_modules", "names nothing", "default, all-linear or a list of names")
        yield from self._init_faults()

    def _init_faults(self) -> Iterator[SettingError]:
        offered = ("default", "gaussian", "orthogonal", *CHANGES_BASE)
        given = self.init_lora_weights
        if given in offered:
            return
        why = next((why for name, why in NOT_OFFERED.items() if given.startswith(name)), "")
        near = nearest(given, offered)
        remedy = f"did you mean {near!r}?" if near and not why else ""
        what = f"{given!r} is not offered: {why}" if why else f"{given!r} is not known"
        yield SettingError("init_lora_weights", what, f"one of {', '.join(offered)}", remedy)


class LoraSection(LowRankSection):
    """Low-rank matrices are trained beside the frozen ones of chosen layers."""

    name: Literal["lora"] = Field(default="lora", description="the method")


class LowRank(AtOnce):
    """Train low-rank matrices and the task's head; the base is held."""

    def __init__(self, section: LowRankSection) -> None:
        self.section = section

    def apply(self, loaded: "LoadedModel") -> Any:
        """Return the model with its adapter, a ``PeftModel``.

        Raises:
            BadInput: A target matches no module, the rank is larger than a layer, or weights that were drawn would be
                neither trained nor saved.
            RequirementMissing: peft is not installed.
        """
        require("peft", "low-rank adapters")
        from peft import get_peft_model

        config = self._config(loaded)
        with warnings.catch_warnings():  # of its own arguments, which were checked here
            warnings.filterwarnings("ignore", module="peft|transformers")
            adapted = get_peft_model(loaded.model, config)
        refuse_unsaved(adapted, loaded)
        if self.section.init_lora_weights in CHANGES_BASE:
            first = {name: one.detach().clone() for name, one in adapted.named_parameters() if ".lora_" in name}
            setattr(adapted, INITIAL_ADAPTER, first)
        return adapted

    def _config(self, loaded: "LoadedModel") -> Any:
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        section, modules = self.section, dict(loaded.model.named_modules())
        where = adapted_layers(
            section, loaded.model.config.model_type, linear_layers(loaded), modules, head_modules(loaded)
        )
        init, is_conv = section.init_lora_weights, any(isinstance(modules[name], Conv1D) for name in where.layers)
        refuse_initialisation(section, loaded.model.config.model_type, is_conv)
        return LoraConfig(
            task_type=TASK_TYPES[loaded.auto_class],
            r=section.rank,
            lora_alpha=section.alpha,  # type: ignore[arg-type]
            lora_dropout=section.dropout,
            target_modules=where.targets,
            exclude_modules=[name for name in modules if is_in(name, where.saved)] or None,
            modules_to_save=where.saved or None,
            bias=section.bias,
            use_rslora=section.use_rslora,
            use_dora=section.use_dora,
            init_lora_weights=True if init == "default" else init,  # type: ignore[arg-type]
            fan_in_fan_out=is_conv,
        )


def linear_layers(loaded: "LoadedModel") -> dict[str, tuple[int, int]]:
    """Return the layers that take low-rank matrices: by full name the widths of what goes in and what comes out.

    The matrix that turns a causal LM's states into words is left out, as ``all-linear`` of peft does.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = loaded.model.get_output_embeddings() if loaded.is_causal else None
    found = {}
    for name, module in loaded.model.named_modules():
        if module is output:
            continue
        if isinstance(module, nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            found[name] = (module.nx, module.nf)
    return found


def refuse_unsaved(adapted: Any, loaded: "LoadedModel") -> None:
    """Refuse an adapter beside which weights that the checkpoint did not hold would stay as they were drawn.

    Raises:
        BadInput: There are such weights.
    """
    from peft.utils.other import AuxiliaryTrainingWrapper

    kept = [name for name, module in adapted.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    kept = [name.removeprefix("base_model.model.") for name in kept]
    lost = [name for name in loaded.drawn if not any(name.startswith(f"{one}.") for one in kept)]
    if lost:
        modules = sorted({name.rpartition(".")[0] for name in lost})
        what = f"the checkpoint does not hold {', '.join(modules)}: drawn anew, they would be neither trained nor saved"
        raise BadInput(Problem("recipe", "method.modules_to_save", what, "", f"add [{', '.join(modules)}]"))
