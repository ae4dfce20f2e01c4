"""Real runs for the tests: the shipped smoke recipes through the real pipeline, in this process."""

from collections.abc import Sequence
from pathlib import Path

from finelaunch.launch.profile import load_profile
from finelaunch.pipeline import Job, train_recipe
from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

NO_DROPOUT = {
    "imdb/smoke": ("model.config.hidden_dropout_prob=0.0", "model.config.attention_probs_dropout_prob=0.0"),
    "squad_v2/smoke": ("model.config.hidden_dropout_prob=0.0", "model.config.attention_probs_dropout_prob=0.0"),
    "domain_assistant/smoke": (
        "model.config.resid_pdrop=0.0",
        "model.config.embd_pdrop=0.0",
        "model.config.attn_pdrop=0.0",
    ),
}


def run_recipe(name: str, folder: Path, *overrides: str, allow_change: Sequence[str] = ()) -> RunDirectory:
    """Train a recipe in ``folder`` on the CPU and return the run directory."""
    given = read_overrides(overrides)
    recipe, document = load_recipe(name, given["recipe"])
    profile, profile_document, _ = load_profile("cpu", given["launch"])
    run = RunDirectory(folder)
    train_recipe(Job(recipe, document, profile, profile_document, "cpu"), run, allow_change)
    return run


def curve(run: RunDirectory) -> list[tuple[int, float, float]]:
    """Return step, loss and gradient norm of every logged step."""
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_lines(run.train_log)]


def weights_hash(run: RunDirectory) -> str:
    """Return the SHA-256 of the final weights."""
    import hashlib

    return hashlib.sha256((run.model / "model.safetensors").read_bytes()).hexdigest()
