"""Plans as golden files.

They are written anew, where a change is meant, by

    FINELAUNCH_UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/unit/launch -k golden

Every file that is written fails its test, so that no pipeline ever passes by writing them; read the difference, and run
again without the variable. They hold on every machine: nothing is prepared, no model lies in the hub's cache, and no
profile asks the machine for its number of GPUs.
"""

import os
from pathlib import Path

import pytest

from finelaunch.launch.check import check
from finelaunch.launch.cluster import load_cluster
from finelaunch.launch.plan import LaunchPlan, make_plan
from finelaunch.launch.profile import load_profile
from finelaunch.recipe.load import read_overrides

GOLDEN = Path(__file__).parent / "golden" / "plans"


def planned(recipe_name: str, words: list[str], on: str, cluster: str | None = None) -> LaunchPlan:
    """Return a plan as the command makes it."""
    given = read_overrides(words)
    recipe, document = check(recipe_name, given, on)
    profile, profile_document, _ = load_profile(on, given["launch"])
    site = load_cluster(cluster, given["cluster"]) if cluster else None
    return make_plan(recipe_name, words, recipe, document, on, profile, profile_document, site=site)


def compare(path: Path, text: str) -> None:
    """Hold ``text`` against the golden file, or write it, which fails."""
    if os.environ.get("FINELAUNCH_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"updated {path.name}; read the difference and run again without FINELAUNCH_UPDATE_GOLDEN")
    assert path.exists(), f"no golden file {path.name}; see tests/golden_plans.py"
    assert text == path.read_text(encoding="utf-8"), "where the change is meant, see tests/golden_plans.py"
