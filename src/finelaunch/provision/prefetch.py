"""``finelaunch prefetch``: all that a recipe names on the hub brought here, tokenised, and written down.

On the login node, which has a network, or its second half alone in a job on a CPU node, which has none.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finelaunch.data.cache import cache_root
from finelaunch.data.hub import HUB_PREFIX, is_offline, repository
from finelaunch.data.section import given_sources
from finelaunch.data.sources import resolve
from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.evaluation.metrics import require_metrics
from finelaunch.models.load import local_folder
from finelaunch.preparation import prepare, prepared_folder
from finelaunch.provision.command import prefetch_command
from finelaunch.provision.download import fetch_model, fetch_rows, remove_fetched, resolve_commit
from finelaunch.provision.locked import (
    HubName,
    Lock,
    LockedFile,
    LockedSource,
    check_locked,
    find_lock,
    hub_cache,
    hub_names,
    lock_path,
    locked_file,
    new_lock,
    pinned,
    write_lock,
)
from finelaunch.recipe.schema import Recipe
from finelaunch.run.log import say, warn
from finelaunch.section.document import Document, undotted
from finelaunch.tasks import task_for


@dataclass(frozen=True)
class Fetched:
    """What prefetch has done.

    Args:
        lock: What was fetched.
        path: Where that is written; None where the recipe names nothing of the hub.
        prepared: The folder of the tokenised data; None where that was left to a job.
    """

    lock: Lock
    path: Path | None
    prepared: Path | None


def prefetch(recipe: Recipe, document: Document, download_only: bool = False, copy: Path | None = None) -> Fetched:
    """Fetch what ``recipe`` names on the hub and tokenise its data, as a job with HF_HUB_OFFLINE=1 will look for it.

    The same call again fetches what is missing, and newer commits where branches have moved. With HF_HUB_OFFLINE=1 it
    fetches nothing and tokenises what was fetched.

    Args:
        recipe: The recipe.
        document: The document behind it.
        download_only: Do not tokenise.
        copy: Write the lock to this file, too.

    Raises:
        BadInput: Something that the recipe names is not there.
        RequirementMissing: The hub is out of reach or asks for an account, or there is no room.
    """
    lock = _fetched_before(recipe, document) if is_offline() else _fetch(recipe, document)
    fixed, fixed_document = pinned(recipe, document, lock)
    _write(lock, recipe, fixed, copy)
    values = recipe.task.model_dump(mode="json")
    folder = prepared_folder(fixed.data, fixed.model, values, fixed_document)
    if not download_only:
        say(f"data: {'already tokenised' if folder.is_dir() else 'is being tokenised'}")
        prepare(fixed.data, fixed.model, task_for(fixed.task), values, fixed_document)
    lock = replace(lock, prepared=folder.relative_to(cache_root()).as_posix())
    return Fetched(lock, _write(lock, recipe, fixed, copy), folder if folder.is_dir() else None)


def _fetched_before(recipe: Recipe, document: Document) -> Lock:
    lock = find_lock(recipe) or new_lock(document.name, [], [])
    problems = check_locked(lock)
    if hub_names(recipe) and not lock.sources:
        raise RequirementMissing(
            "HF_HUB_OFFLINE is set and nothing was fetched yet; where there is a network, without it: "
            f"{prefetch_command(document)}"
        )
    if problems:
        raise RequirementMissing("\n".join([*map(str, problems), f"fetch it again: {prefetch_command(document)}"]))
    return replace(lock, local=tuple(_local_files(recipe, document)))


def _fetch(recipe: Recipe, document: Document) -> Lock:
    """Fetch everything; what is wrong with several names is said at once."""
    names = hub_names(recipe)
    origins = {name.key: _origin(document, name) for name in names}
    commits: dict[tuple[Any, ...], str] = {}
    wrong: list[BadInput] = []
    for name in names:
        asked = (name.kind, name.repository, name.revision)
        try:
            commits[asked] = commits.get(asked) or resolve_commit(name, origins[name.key])
        except BadInput as error:
            wrong.append(error)
    if wrong:
        raise BadInput(problem for error in wrong for problem in error.problems)
    _remove_damaged(recipe)
    sources: list[LockedSource] = []
    for name in names:
        commit = commits[name.kind, name.repository, name.revision]
        if name.kind == "model":
            sources.append(fetch_model(name, commit, origins[name.key]))
        else:
            source = next(source for source in given_sources(recipe.data) if source.key == name.key)
            split = source.section.model_copy(update={"revision": commit})
            sources.append(fetch_rows(name, split, source.split, commit, origins[name.key]))
    require_metrics(recipe.evaluation.metrics)
    return new_lock(document.name, sources, list(_local_files(recipe, document)))


def _remove_damaged(recipe: Recipe) -> None:
    """Remove what was made here of the hub's files and has changed since, so that it is made again."""
    try:
        lock = find_lock(recipe)
    except BadInput:  # the lock itself is damaged, and about to be written anew
        lock = None
    for key, file in lock.files() if lock else ():
        place = file.place()
        try:
            if place.exists() and locked_file(file.root, file.path) != file:
                warn(f"{key}: {place} has changed since it was fetched; it is fetched again")
                shutil.rmtree(place.parent) if file.root == "cache" else remove_fetched(place)
        except OSError as error:
            raise RequirementMissing(f"{place}: cannot be fetched again: {error.strerror}") from None


def _origin(document: Document, name: HubName) -> str:
    return document.origin((*undotted(name.key), "name_or_path" if name.kind == "model" else "path"))


def _local_files(recipe: Recipe, document: Document) -> Iterator[LockedFile]:
    """Yield the files on this machine that a recipe names; of a folder all that lie in it."""
    found: list[Path] = []
    if recipe.model.name_or_path is not None and (folder := local_folder(recipe.model)) is not None:
        found.append(folder)
    for source in given_sources(recipe.data):
        path = source.section.path.removeprefix(HUB_PREFIX)
        if repository(source.section) is None:
            found.append(resolve(path, f"{source.key}.path", document.origin((*source.place, "path"))))
    for path in dict.fromkeys(found):
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            try:
                yield locked_file("local", file.absolute())
            except OSError as error:
                raise BadInput(Problem(str(file), "", f"cannot be read: {error.strerror}")) from None


def _write(lock: Lock, recipe: Recipe, fixed: Recipe, copy: Path | None) -> Path | None:
    """Write the lock where the recipe as it is asked for finds it, and the one with commits that a job is given."""
    path = lock_path(recipe) if lock.sources else None
    for place in {path, lock_path(fixed), copy} if path else {copy}:
        if place is None:
            continue
        try:
            write_lock(lock, place)
        except OSError as error:
            raise RequirementMissing(f"{place}: cannot be written: {error.strerror}") from None
    return path


def as_json(fetched: Fetched) -> dict[str, Any]:
    """Return what prefetch has done, for ``--json``."""
    sources = [
        {
            "key": source.key,
            "kind": source.kind,
            "repository": source.repository,
            "revision": source.revision,
            "commit": source.commit,
            "num_files": len(source.files),
            "bytes": sum(file.bytes for file in source.files),
        }
        for source in fetched.lock.sources
    ]
    folder = str(fetched.prepared) if fetched.prepared else None
    path = str(fetched.path) if fetched.path else None
    return {"lock": path, "hub_cache": str(hub_cache()), "sources": sources, "prepared": folder}
