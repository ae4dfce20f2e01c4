"""What is examined: a recipe on a machine or a cluster, as the command line names it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from finelaunch.errors import RequirementMissing
from finelaunch.launch.check import check
from finelaunch.launch.cluster import Cluster, load_cluster
from finelaunch.launch.devices import default_on
from finelaunch.launch.profile import Profile, load_profile
from finelaunch.launch.runs import run_directory
from finelaunch.provision.footprint import steps_in_all
from finelaunch.provision.locked import hub_cache
from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.recipe.schema import Recipe
from finelaunch.run.directory import RunDirectory
from finelaunch.section.document import Document
from finelaunch.section.lookup import find


@dataclass(frozen=True)
class Patient:
    """What is examined.

    Args:
        profile: The launch profile.
        profile_document: The document behind it.
        recipe: The recipe; None: the machine alone.
        document: The document behind the recipe.
        run: The run directory that a launch would use.
        cluster: The cluster profile; None: this machine alone.
        cluster_document: The document behind that.
    """

    profile: Profile
    profile_document: Document
    recipe: Recipe | None
    document: Document
    run: RunDirectory
    cluster: Cluster | None = None
    cluster_document: Document = field(default_factory=lambda: Document({}))

    @property
    def method(self) -> str | None:
        """The name of the recipe's method."""
        return self.recipe.method.name if self.recipe else None

    @cached_property
    def steps(self) -> int | None:
        """The optimizer steps of the run; None until the data is encoded."""
        return steps_in_all(self.recipe, self.document) if self.recipe else None

    @property
    def hub_cache(self) -> Path:
        """Where the hub's client keeps what it downloads."""
        if self.cluster is not None and self.cluster.hf_home:
            return Path(os.path.expandvars(os.path.expanduser(self.cluster.hf_home)), "hub")
        return hub_cache()


def find_patient(
    recipe_name: str | None,
    words: Sequence[str],
    on: str | None,
    cluster_name: str | None,
    name: str | None,
    run_dir: Path | None,
) -> Patient:
    """Return what the command line names.

    Args:
        recipe_name: A path or a name; None: the machine alone.
        words: ``key=value``.
        on: The launch profile; by default that of this machine.
        cluster_name: The cluster profile; by default the environment's, where the launch profile is one for Slurm.
        name: Of the run.
        run_dir: The run directory itself.

    Raises:
        BadInput: With all that is wrong.
    """
    given = read_overrides(words)
    recipe, document = None, Document({})
    if recipe_name is not None:
        try:
            recipe, document = check(recipe_name, given, on)
        except RequirementMissing:  # a package, which is one of the things that are looked at
            recipe, document = load_recipe(recipe_name, given["recipe"])
    profile, profile_document, _ = load_profile(on or default_on(), given["launch"])
    cluster, cluster_document = None, Document({})
    if cluster_name is not None or profile.target == "slurm":
        cluster, cluster_document, _ = load_cluster(cluster_name, given["cluster"])
    if recipe_name is not None:
        run = run_directory(name, run_dir, find(recipe_name, "recipes"))
    else:
        run = RunDirectory(run_dir or Path("runs", name or "."))
    return Patient(profile, profile_document, recipe, document, run, cluster, cluster_document)
