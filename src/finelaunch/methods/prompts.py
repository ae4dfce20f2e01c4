"""Prompt and prefix tuning: learned vectors before the text, or before the keys and values of every layer.

Source: Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning; Li and Liang 2021, Prefix-Tuning.
P-tuning and a projected prefix are not offered: their encoders are not in peft's checkpoints, so they do not resume.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from finelaunch.errors import BadInput, Problem
from finelaunch.methods.base import AtOnce
from finelaunch.methods.lora import refuse_unsaved
from finelaunch.models.quantization import require
from finelaunch.section.base import Section

if TYPE_CHECKING:
    from finelaunch.models.load import LoadedModel

ONLY_CAUSAL = "is offered for task causal_lm"
_ANSWERS = {
    "prefix_projection": "not offered: only its result is saved, and training could not be resumed",
    "encoder_hidden_size": "not offered: the encoder of P-tuning is not saved, and training could not be resumed",
}


class PromptTuningSection(Section):
    """Vectors before the text are trained; the model is held."""

    answers: ClassVar[Mapping[str, str]] = _ANSWERS

    name: Literal["prompt_tuning"] = Field(default="prompt_tuning", description="the method")
    num_virtual_tokens: int = Field(default=20, ge=1, description="vectors; they take positions of the model")


class PrefixTuningSection(Section):
    """Vectors before the keys and values of every layer are trained; the model is held."""

    answers: ClassVar[Mapping[str, str]] = _ANSWERS

    name: Literal["prefix_tuning"] = Field(default="prefix_tuning", description="the method")
    num_virtual_tokens: int = Field(default=20, ge=1, description="vectors a layer; they take positions of the model")


class Prompts(AtOnce):
    """Train vectors before the text."""

    def __init__(self, section: PromptTuningSection | PrefixTuningSection) -> None:
        self.section = section

    def apply(self, loaded: "LoadedModel") -> Any:
        """Return the model with its prompt, a ``PeftModel`` whose logits are those of the text alone.

        Raises:
            BadInput: It is no causal LM.
            RequirementMissing: peft is not installed.
        """
        require("peft", f"method {self.section.name}")
        if not loaded.is_causal:
            what = f"{self.section.name} {ONLY_CAUSAL}"
            raise BadInput(Problem("recipe", "method.name", what, "", "use lora"))
        from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

        kind = PromptTuningConfig if isinstance(self.section, PromptTuningSection) else PrefixTuningConfig
        config = kind(task_type="CAUSAL_LM", num_virtual_tokens=self.section.num_virtual_tokens)  # type: ignore[arg-type]
        adapted = get_peft_model(loaded.model, config)
        refuse_unsaved(adapted, loaded)
        leave_out_prompt(adapted)
        return adapted


def leave_out_prompt(adapted: Any) -> None:
    """Have a prompt-tuned model return the logits of the text alone, without those of its virtual tokens."""

    def hook(_: Any, arguments: tuple[Any, ...], given: Mapping[str, Any], outputs: Any) -> Any:
        ids = given.get("input_ids", arguments[0] if arguments else None)
        if ids is not None and outputs.logits.shape[1] > ids.shape[1]:
            outputs.logits = outputs.logits[:, -ids.shape[1] :]
        return outputs

    adapted.register_forward_hook(hook, with_kwargs=True)
