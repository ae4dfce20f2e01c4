"""Weights of a frozen base in 4 bits, by bitsandbytes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal

from finelaunch.errors import RequirementMissing

EXTRA = "pip install 'finelaunch[qlora]'"


@dataclass(frozen=True)
class Quantization:
    """How the weights of linear layers are held.

    Args:
        type: ``nf4`` (quantiles of a normal distribution) or ``fp4``.
        double: The scales of the blocks are quantised, too.
        compute: What they are computed in: ``fp32``, ``bf16`` or ``fp16``.

    Source: Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs, section 3.
    """

    type: Literal["nf4", "fp4"]
    double: bool
    compute: Literal["fp32", "bf16", "fp16"]

    def facts(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    def arguments(self, kept: Sequence[str]) -> dict[str, Any]:
        """Return what ``from_pretrained`` takes for it.

        Args:
            kept: Full names of the modules that stay as they are. Without them transformers 5.23 would quantise new
                heads, which hold no weights yet.

        Raises:
            RequirementMissing: bitsandbytes is not installed.
        """
        require("bitsandbytes", "weights in 4 bits")
        import torch
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.type,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.compute],
            llm_int8_skip_modules=list(kept),
        )
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        return {"quantization_config": config, "device_map": {"": device}}


def require(package: str, what: str) -> None:
    """Refuse to go on without a package of the extra ``qlora``.

    Raises:
        RequirementMissing: It is not installed.
    """
    if find_spec(package) is None:
        raise RequirementMissing(f"{what}: {package} is not installed; {EXTRA} brings it")
