"""Real runs for the tests: the shipped smoke recipes through the real pipeline, in this process."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from finelaunch.launch.profile import load_profile
from finelaunch.pipeline import Job, train_recipe
from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.run import signals
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


@contextmanager
def heard() -> Iterator[None]:
    """Let this process hear signals as the command does, and be deaf to them again after it."""
    before = {number: signal.getsignal(number) for number in signals.STOP_SIGNALS}
    signals.listen()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        signals.raise_again()
        signals._state.owner = 0


@contextmanager
def signalled(step: int, number: int = signal.SIGTERM, hook: str = "on_step_begin") -> Iterator[None]:
    """Send this process a signal within the optimizer step after ``step - 1`` steps."""
    from finelaunch.training.journal import Start

    def send(self, args, state, control, **_):
        if state.global_step == step - (hook == "on_step_begin"):
            os.kill(os.getpid(), number)

    with heard(), mock.patch.object(Start, hook, send):
        yield


def curve(run: RunDirectory) -> list[tuple[int, float, float]]:
    """Return step, loss and gradient norm of every logged step."""
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_lines(run.train_log)]


def log_of(run: RunDirectory) -> list[dict[str, float]]:
    """Return the lines of the train log without what depends on the clock."""
    rows = read_lines(run.train_log)
    return [{key: value for key, value in row.items() if not key.endswith(("_per_second", "_seconds"))} for row in rows]


def scalars_of(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of every scalar that tensorboard shows, without what depends on the clock."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if "runtime" not in name and "per_second" not in name]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def weights_hash(run: RunDirectory) -> str:
    """Return the SHA-256 of the final weights."""
    import hashlib

    return hashlib.sha256((run.model / "model.safetensors").read_bytes()).hexdigest()
