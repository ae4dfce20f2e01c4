"""Proof that a job without a network will find all that its recipe names: the same resolve with the network closed.

It runs in a process of its own, ``python -m finelaunch.provision.resolve``, which cannot open the network again, with
HF_HUB_OFFLINE=1 as in the job.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finelaunch.data.section import given_sources
from finelaunch.errors import BadInput, FinelaunchError, Problem
from finelaunch.models.load import load_tokenizer, local_folder
from finelaunch.preparation import prepared_folder
from finelaunch.provision.command import prefetch_command
from finelaunch.provision.locked import Lock, check_locked, find_lock, hub_names, pinned
from finelaunch.provision.network import close_network
from finelaunch.recipe.schema import Recipe
from finelaunch.section.base import build
from finelaunch.section.document import Document, undotted

PROOF_SECONDS = 600


@dataclass
class Resolved:
    """What a job without a network finds.

    Args:
        found: What is there, a sentence each.
        notes: What a job would have to do itself, a sentence each.
        problems: What is missing.
    """

    found: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def resolve_offline(recipe: Recipe, document: Document, environment: Mapping[str, str] | None = None) -> Resolved:
    """Look for all that ``recipe`` names in a process without a network.

    Args:
        recipe: The recipe.
        document: The document behind it.
        environment: What the job's environment has in addition, such as HF_HOME.
    """
    closed = {**os.environ, **(environment or {}), "HF_HUB_OFFLINE": "1"}
    asked = {"recipe": recipe.model_dump(mode="json"), "name": document.name, "command": prefetch_command(document)}
    command = [sys.executable, "-m", "finelaunch.provision.resolve"]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, env=closed, timeout=PROOF_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Resolved(problems=[Problem(document.name, "", f"could not be resolved in {PROOF_SECONDS} s")])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Resolved(problems=[Problem(document.name, "", f"could not be resolved offline: {last:.300}")])
    answer = json.loads(done.stdout.splitlines()[-1])
    problems = [Problem(**problem) for problem in answer["problems"]]
    return Resolved(answer["found"], answer["notes"], [_placed(problem, document) for problem in problems])


def _placed(problem: Problem, document: Document) -> Problem:
    """Return ``problem`` with its line in the recipe, which the other process does not know."""
    if problem.origin not in ("", "recipe", document.name):
        return problem
    return replace(problem, origin=document.origin(undotted(problem.key)))


def main() -> None:
    """Answer what :func:`resolve_offline` asks on the standard input."""
    close_network()
    asked = json.load(sys.stdin)
    document = Document(asked["recipe"], {}, asked["name"])
    resolved = Resolved()
    with _collected("", resolved):
        _resolve(build(Recipe, document), document, asked["command"], resolved)
    print(json.dumps(asdict(resolved)))


def _resolve(recipe: Recipe, document: Document, command: str, resolved: Resolved) -> None:
    lock = find_lock(recipe)
    if lock is None and (names := hub_names(recipe)):
        missing = ", ".join(dict.fromkeys(name.repository for name in names))
        resolved.problems.append(Problem("", names[0].key, f"{missing}: nothing was fetched", "", f"first: {command}"))
        return
    if lock is not None:
        resolved.problems += [replace(problem, remedy=f"fetch it again: {command}") for problem in check_locked(lock)]
        if resolved.problems:
            return
        recipe, document = pinned(recipe, document, lock)
        resolved.found += [f"{source.key}: {source}" for source in lock.sources]

    def attempt(key: str, look: Callable[..., str], *given: Any) -> None:
        with _collected(key, resolved):
            resolved.found.append(look(*given))

    if recipe.model.init == "pretrained":
        attempt("model", _tokenizer, recipe)
        attempt("model", _config, recipe)
        attempt("model", _weights, recipe, lock)
    with _collected("data", resolved):
        _data(recipe, document, resolved, command)
    if recipe.evaluation.metrics:
        attempt("evaluation.metrics", _metrics, recipe)


@contextmanager
def _collected(key: str, resolved: Resolved) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        resolved.problems += error.problems
    except (FinelaunchError, OSError) as error:
        resolved.problems.append(Problem("", key, str(error)))


def _tokenizer(recipe: Recipe) -> str:
    tokenizer = load_tokenizer(recipe.model)
    return f"tokenizer: {len(tokenizer):,} tokens"


def _config(recipe: Recipe) -> str:
    from transformers import AutoConfig

    source = local_folder(recipe.model) or str(recipe.model.name_or_path)
    config = AutoConfig.from_pretrained(source, revision=recipe.model.revision, trust_remote_code=False)
    return f"config: {config.model_type}"


def _weights(recipe: Recipe, lock: Lock | None) -> str:
    """Open every file of weights: its header must be right and the file as long as that says."""
    from safetensors import SafetensorError, safe_open

    folder = local_folder(recipe.model)
    if folder is not None:
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    else:
        read = [file for source in (lock.sources if lock else ()) if source.key == "model" for file in source.files]
        files = [file.place() for file in read if file.path.endswith(".safetensors")]
    if not files:
        raise BadInput(Problem("", "model.name_or_path", f"{folder or recipe.model.name_or_path} holds no weights"))
    num_tensors = 0
    for file in files:
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(file, framework="np") as weights:
                num_tensors += len(weights.keys())
        except SafetensorError as error:
            raise BadInput(Problem(str(file), "model", f"is damaged: {error!s:.100}")) from None
    return f"weights: {num_tensors:,} tensors in {len(files)} files"


def _data(recipe: Recipe, document: Document, resolved: Resolved, command: str) -> None:
    from finelaunch.data.cache import read_table

    folder = prepared_folder(recipe.data, recipe.model, recipe.task.model_dump(mode="json"), document)
    if not folder.is_dir():
        splits = ", ".join(dict.fromkeys(source.split for source in given_sources(recipe.data)))
        resolved.found.append(f"data: rows of {splits}")
        resolved.notes.append(f"the data is not tokenised, so the job will do it before it trains; {command} does")
        return
    rows = {}
    for path in sorted(folder.glob("*.features.arrow")):
        rows[path.name.split(".")[0]] = len(_table(path, read_table))
    resolved.found.append(f"data: tokenised, {', '.join(f'{name} {count:,}' for name, count in rows.items())}")


def _table(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (ValueError, OSError) as error:  # pyarrow's faults are ValueErrors
        what = f"is damaged: {error!s:.100}"
        raise BadInput(Problem(str(path), "data", what, "", f"remove {path.parent}, and fetch again")) from None


def _metrics(recipe: Recipe) -> str:
    from finelaunch.evaluation.metrics import require_metrics

    require_metrics(recipe.evaluation.metrics)
    return f"metrics: {', '.join(recipe.evaluation.metrics)}"


if __name__ == "__main__":
    main()
