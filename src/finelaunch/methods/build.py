"""From a recipe's sections to the model that is trained."""

from typing import TYPE_CHECKING, Any

from finelaunch.methods import MethodSection, method_for
from finelaunch.models.load import LoadedModel, load_model
from finelaunch.models.section import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def build_model(
    section: ModelSection,
    method: MethodSection,
    task: Any,
    tokenizer: "PreTrainedTokenizerBase",
    facts: dict[str, Any],
    max_length: int,
    seed: int,
) -> tuple[LoadedModel, "PreTrainedModel"]:
    """Return what was loaded, and of it the model to train, as task and method have prepared it.

    Args:
        section: Which model.
        method: How it is trained.
        task: Says its class and configuration, and may add a hook.
        tokenizer: Its tokenizer.
        facts: What the prepared data say, such as the labels.
        max_length: The longest row, in tokens.
        seed: Of weights that are drawn.
    """
    loaded = load_model(section, task.auto_class, task.model_config(facts), tokenizer, max_length, seed)
    task.prepare(loaded.model)
    return loaded, method_for(method).apply(loaded.model)
