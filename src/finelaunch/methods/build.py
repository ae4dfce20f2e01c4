"""From a recipe's sections to the model that is trained."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finelaunch.methods import Method, MethodSection, method_for
from finelaunch.methods.lora import INITIAL_ADAPTER
from finelaunch.models.load import LoadedModel, load_model
from finelaunch.models.quantization import Quantization
from finelaunch.models.section import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Built:
    """A model as task and method have prepared it.

    Args:
        section: What it was made of.
        loaded: What was loaded.
        quantization: What its base is held in.
        method: Says what is trained, and when.
        model: What is trained: the loaded model itself, or an adapter on it.
    """

    section: ModelSection
    loaded: LoadedModel
    quantization: Quantization | None
    method: Method
    model: Any

    @property
    def base(self) -> dict[str, Any]:
        """What was tuned, for a reader who is to find it again."""
        section, quantization = self.section, self.quantization
        return {
            "name": section.name_or_path,
            "revision": section.revision,
            "init": section.init,
            "config": section.config,
            "fingerprint": self.loaded.fingerprint,
            "quantization": quantization.facts() if quantization else None,
        }

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        loaded = self.loaded
        drawn = {} if loaded.is_scratch else {"newly_initialised": list(loaded.drawn), "unused": list(loaded.unused)}
        return {**self.base, "fingerprint": self.fingerprint, **drawn}

    @property
    def fingerprint(self) -> str:
        """What changes where the weights that are held change.

        Where an adapter's first weights were taken out of the base, these are part of it: another machine may find
        other ones, to which the weights of a checkpoint do not belong.
        """
        first: dict[str, Any] = getattr(self.model, INITIAL_ADAPTER, {})
        digest = hashlib.sha256()
        for name, tensor in first.items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return self.loaded.fingerprint + (f"+{digest.hexdigest()}" if first else "")


def needs_whole(section: ModelSection, method: MethodSection) -> bool:
    """Return whether a model must be there whole before an engine cuts it: it is drawn, or packed into 4 bits."""
    return section.init == "scratch" or method.name == "qlora"


def build_model(
    section: ModelSection,
    method: MethodSection,
    task: Any,
    tokenizer: "PreTrainedTokenizerBase",
    facts: dict[str, Any],
    max_length: int,
    seed: int,
    precision: str,
) -> Built:
    """Return the model to train.

    Args:
        section: Which model.
        method: How it is trained.
        task: Says its class and configuration, and may add a hook.
        tokenizer: Its tokenizer.
        facts: What the prepared data say, such as the labels.
        max_length: The longest row, in tokens.
        seed: Of weights that are drawn.
        precision: What the machine computes in, ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
    """
    chosen = method_for(method)
    quantization, config = chosen.quantization(precision), task.model_config(facts)
    positions = max_length + getattr(method, "num_virtual_tokens", 0)
    loaded = load_model(section, task.auto_class, config, tokenizer, positions, seed, quantization)
    task.prepare(loaded.model)
    return Built(section, loaded, quantization, chosen, chosen.apply(loaded))
