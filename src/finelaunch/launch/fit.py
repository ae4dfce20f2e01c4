"""Whether a method fits a recipe's task, its model and this machine's packages: said before anything is started.

What hangs on the model's shape is checked where its config is at hand; otherwise training says it, once the model is
loaded, in the same words.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from finelaunch.errors import BadInput, Problem
from finelaunch.launch.estimate import EIGHT_BIT, PAGED
from finelaunch.methods.adapted import refuse_initialisation
from finelaunch.methods.feature_extraction import NO_HEAD, NO_HEAD_REMEDY, FeatureExtractionSection
from finelaunch.methods.gradual_unfreezing import (
    GradualUnfreezingSection,
    num_stages_of,
    too_few_steps,
    too_many_stages,
)
from finelaunch.methods.limits import ADAPTERS
from finelaunch.methods.lora import LowRankSection
from finelaunch.methods.prompts import ONLY_CAUSAL, PrefixTuningSection, PromptTuningSection
from finelaunch.methods.trainable import Trainable, trainable_of
from finelaunch.models.config import too_long
from finelaunch.models.layout import Layout, model_layout
from finelaunch.models.quantization import require
from finelaunch.models.shape import Shape, model_positions, model_shape
from finelaunch.recipe.schema import Recipe
from finelaunch.section.document import Document


def check_fit(recipe: Recipe, document: Document) -> None:
    """Refuse a method that fits neither the task nor the model.

    Args:
        recipe: The recipe.
        document: Behind it, for the origin of its keys.

    Raises:
        BadInput: With all that is wrong.
    """
    problems = [*_task_problems(recipe), *_length_problems(recipe)]
    shape = model_shape(recipe.model, recipe.task.name)
    if not problems and not isinstance(shape, str):
        problems += _shape_problems(recipe, shape)
    if not problems and recipe.training.max_steps > 0:
        problems += _step_problems(recipe, recipe.training.max_steps)
    _refuse(problems, document)


def check_steps(recipe: Recipe, document: Document, num_steps: int) -> None:
    """Refuse a training of ``num_steps`` optimizer steps that is too short for the method's stages.

    Raises:
        BadInput: It is.
    """
    _refuse(list(_step_problems(recipe, num_steps)), document)


def _refuse(problems: Sequence[Problem], document: Document) -> None:
    if problems:
        raise BadInput(replace(one, origin=document.origin(tuple(one.key.split(".")))) for one in problems)


def _step_problems(recipe: Recipe, num_steps: int) -> Iterator[Problem]:
    method, shape = recipe.method, model_shape(recipe.model, recipe.task.name)
    if not isinstance(method, GradualUnfreezingSection) or (isinstance(shape, str) and method.num_stages is None):
        return
    number = method.num_stages if isinstance(shape, str) else num_stages_of(method, shape["num_hidden_layers"] + 2)
    assert number is not None
    if num_steps < number:
        yield too_few_steps(number, num_steps)


def check_packages(recipe: Recipe) -> None:
    """Refuse a method or an optimizer whose package is not installed.

    Raises:
        RequirementMissing: It is not.
    """
    if recipe.method.name in ADAPTERS:
        require("peft", f"method {recipe.method.name}")
    if recipe.method.name == "qlora":
        require("bitsandbytes", "weights in 4 bits")
    if recipe.training.optim in (*EIGHT_BIT, *PAGED):
        require("bitsandbytes", f"training.optim {recipe.training.optim}")


def _task_problems(recipe: Recipe) -> Iterator[Problem]:
    is_causal = recipe.task.name == "causal_lm"
    if isinstance(recipe.method, FeatureExtractionSection) and is_causal:
        yield Problem("recipe", "method.name", NO_HEAD, "", NO_HEAD_REMEDY)
    if isinstance(recipe.method, GradualUnfreezingSection) and recipe.training.time_budget_minutes is not None:
        what = "the stages of gradual_unfreezing end at shares of all steps, and the first of them tells nothing of"
        what += " the time of the others"
        yield Problem("recipe", "training.time_budget_minutes", what, "", "use training.max_steps, or another method")
    if isinstance(recipe.method, PromptTuningSection | PrefixTuningSection) and not is_causal:
        yield Problem("recipe", "method.name", f"{recipe.method.name} {ONLY_CAUSAL}", "", "use lora")


def _shape_problems(recipe: Recipe, shape: Shape) -> Iterator[Problem]:
    method, count = recipe.method, shape["num_hidden_layers"]
    if isinstance(method, GradualUnfreezingSection) and (method.num_stages or 0) > count + 2:
        layers = [f"layer {number}" for number in reversed(range(count))]
        assert method.num_stages is not None
        yield too_many_stages(method.num_stages, ["head", *layers, "embeddings"])
    yield from _problems_of(lambda: _refuse_adapter(recipe))


def _refuse_adapter(recipe: Recipe) -> None:
    method, trainable = recipe.method, trainable_of(recipe.model, recipe.task.name, 2, recipe.method)
    layout = model_layout(recipe.model, recipe.task.name, 2)
    if isinstance(method, LowRankSection) and isinstance(trainable, Trainable) and isinstance(layout, Layout):
        conv1d = {module.name for module in layout.linears if module.kind == "conv1d"}
        refuse_initialisation(method, layout.model_type, any(name in conv1d for name, *_ in trainable.adapted))


def _length_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield inputs that are longer than the model's positions, alone or with a method's virtual tokens."""
    limit, length, method = model_positions(recipe.model), recipe.task.max_length, recipe.method
    virtual = method.num_virtual_tokens if isinstance(method, PromptTuningSection | PrefixTuningSection) else 0
    if limit is None:
        return
    if length > limit:
        yield too_long(length, limit)
    elif length + virtual > limit:
        what = f"{virtual} and task.max_length {length} are more than the {limit} positions of the model"
        remedy = f"task.max_length={limit - virtual}" if virtual < limit else ""
        yield Problem("recipe", "method.num_virtual_tokens", what, f"at most {limit} together", remedy)


def _problems_of(call: Callable[[], object]) -> Iterator[Problem]:
    try:
        call()
    except BadInput as error:
        yield from error.problems
