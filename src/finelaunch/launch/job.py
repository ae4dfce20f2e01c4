"""What is to be run: a recipe on a machine."""

from dataclasses import dataclass

from finelaunch.launch.profile import Profile
from finelaunch.recipe.schema import Recipe
from finelaunch.run.ranks import ALONE, Ranks
from finelaunch.section.document import Document


@dataclass(frozen=True)
class Job:
    """What is to be run, complete.

    Args:
        recipe: The recipe.
        document: The document behind it, for origins.
        profile: The launch profile, with a number of processes.
        profile_document: The document behind that.
        profile_name: What the profile is called.
        ranks: This process among all that run the job.
    """

    recipe: Recipe
    document: Document
    profile: Profile
    profile_document: Document
    profile_name: str
    ranks: Ranks = ALONE
