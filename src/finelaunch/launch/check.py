"""Everything that is wrong with a recipe and a profile, found without torch and said at once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finelaunch.data.section import given_sources
from finelaunch.data.sources import HUB_PREFIX, resolve
from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.launch.fit import check_fit, check_packages
from finelaunch.launch.place import check_place
from finelaunch.launch.profile import load_profile
from finelaunch.models.load import local_folder
from finelaunch.recipe.load import load_recipe
from finelaunch.recipe.schema import Recipe
from finelaunch.section.document import Document
from finelaunch.section.lookup import COMMAND_LINE

ANY_MACHINE = "gpu"
"""The profile that takes every value of every key; stands in where none is named."""


def check(name: str, overrides: Mapping[str, Document], profile_name: str | None) -> tuple[Recipe, Document]:
    """Return the recipe that ``name`` and ``overrides`` make, after all that can be checked at once.

    Its keys and values, the profile and the batch arithmetic, the local paths of data, model and checkpoint, and
    whether the method fits the task, the model, the engine and the packages that are installed.

    Raises:
        BadInput: With all that is wrong.
        RequirementMissing: Nothing is wrong, but a package that a path or the method needs is not installed.
    """
    problems: list[Problem] = []
    missing: list[RequirementMissing] = []

    def attempt(call: Callable[..., Any], *given: Any) -> Any:
        try:
            return call(*given)
        except BadInput as error:
            problems.extend(error.problems)
        except RequirementMissing as error:
            missing.append(error)
        return None

    loaded = attempt(load_recipe, name, overrides["recipe"])
    profile = attempt(load_profile, profile_name or ANY_MACHINE, overrides["launch"])
    if loaded is None:
        raise BadInput(problems)
    recipe, document = loaded
    if profile is not None and profile_name is not None:
        attempt(check_place, recipe, profile[0], profile[1])
    if overrides["cluster"].values and profile is not None and profile[0].target != "slurm":
        key = f"cluster.{next(iter(overrides['cluster'].values))}"
        what = (
            "has no effect: the profile is not one of Slurm" if profile_name else "has no effect without --on PROFILE"
        )
        problems.append(Problem(COMMAND_LINE, key, what, "", "leave it out, or use --on slurm_2x4 and the like"))
    for source in given_sources(recipe.data):
        if not source.section.path.startswith(HUB_PREFIX):
            attempt(resolve, source.section.path, f"{source.key}.path", document.origin((*source.place, "path")))
    if recipe.model.name_or_path is not None:
        attempt(local_folder, recipe.model, document.origin(("model", "name_or_path")))
    attempt(check_packages, recipe)
    attempt(check_fit, recipe, document)
    if recipe.training.resume not in ("auto", "never") and not Path(recipe.training.resume).is_dir():
        what = f"there is no checkpoint at {recipe.training.resume}"
        origin = document.origin(("training", "resume"))
        problems.append(Problem(origin, "training.resume", what, "auto, never or a checkpoint-N folder"))
    if problems:
        raise BadInput(problems)
    if missing:
        raise missing[0]
    return recipe, document
