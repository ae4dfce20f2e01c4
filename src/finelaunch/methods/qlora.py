"""QLoRA: LoRA beside a base that is held in 4 bits.

Source: Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from finelaunch.methods.lora import CHANGES_BASE, NAMES_OF_PEFT, LowRank, LowRankSection
from finelaunch.models.quantization import Quantization, require
from finelaunch.section.base import SettingError

if TYPE_CHECKING:
    from finelaunch.models.load import LoadedModel


class QLoraSection(LowRankSection):
    """Low-rank matrices are trained beside frozen ones in 4 bits."""

    answers: ClassVar[Mapping[str, str]] = {
        **NAMES_OF_PEFT,
        "bnb_4bit_quant_type": "use method.quantization_type",
        "bnb_4bit_use_double_quant": "use method.double_quantization",
        "bnb_4bit_compute_dtype": "use method.compute_dtype",
        "load_in_4bit": "qlora always does",
        "load_in_8bit": "not offered: use qlora, which takes 4 bits, or lora",
    }

    name: Literal["qlora"] = Field(default="qlora", description="the method")
    quantization_type: Literal["nf4", "fp4"] = Field(default="nf4", description="the 16 values of a weight")
    double_quantization: bool = Field(default=True, description="quantise the scales, too")
    compute_dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="what weights in 4 bits are multiplied in; auto: launch.precision"
    )

    def faults(self) -> Iterator[SettingError]:
        """Yield what LoRA refuses, and initialisations that need the base's own weights."""
        yield from super().faults()
        if self.init_lora_weights in CHANGES_BASE:
            what = f"{self.init_lora_weights} takes the base's weights apart, and 4 bits have none to take"
            yield SettingError("init_lora_weights", what, "default, gaussian or orthogonal", "or use lora")


class QLora(LowRank):
    """Train low-rank matrices and the task's head; the base is held in 4 bits."""

    def __init__(self, section: QLoraSection) -> None:
        super().__init__(section)
        self._quantised = section

    def quantization(self, precision: str) -> Quantization | None:
        """Return how the base is held."""
        section = self._quantised
        computed: Any = section.compute_dtype
        if computed == "auto":
            computed = {"tf32": "fp32"}.get(precision, precision)
        return Quantization(section.quantization_type, section.double_quantization, computed)

    def apply(self, loaded: "LoadedModel") -> Any:
        """Return the model with its adapter; what is not in 4 bits is in fp32.

        Raises:
            BadInput: As for LoRA.
            RequirementMissing: peft is not installed.
        """
        require("peft", "low-rank adapters")
        from peft import prepare_model_for_kbit_training

        prepare_model_for_kbit_training(loaded.model, use_gradient_checkpointing=False)
        return super().apply(loaded)
