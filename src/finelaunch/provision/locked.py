"""Lock files: which commits of the hub a recipe means, which files they are, and where they lie.

``finelaunch prefetch`` writes them on a machine with a network. They are found again by what a recipe names on the hub,
so that nobody must pass one along, and they give the recipe commits in place of branches and tags.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from finelaunch import __version__
from finelaunch.data.cache import cache_root, content_key
from finelaunch.data.hub import is_offline, repository
from finelaunch.data.section import given_sources
from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.launch.cluster import Cluster
from finelaunch.models.load import local_folder
from finelaunch.provision.command import prefetch_command
from finelaunch.recipe.schema import Recipe
from finelaunch.run.files import write_json
from finelaunch.run.log import say
from finelaunch.section.base import build
from finelaunch.section.document import Document, undotted

FORMAT = 1
Root = Literal["hub", "cache", "local"]
"""What a file's path is relative to: the hub's cache, FINELAUNCH_CACHE, or nothing as it is the user's own."""
Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class HubName:
    """One thing that a recipe names on the hub.

    Args:
        key: ``model``, or the key of a source of rows such as ``data.train`` or ``data.train[1]``.
        kind: The type of the repository.
        repository: Such as ``distilbert/distilbert-base-uncased``.
        revision: Branch, tag or commit; None: the default branch.
    """

    key: str
    kind: Kind
    repository: str
    revision: str | None


@dataclass(frozen=True)
class LockedFile:
    """One file that a job reads.

    Args:
        root: What ``path`` is relative to.
        path: Where it lies.
        bytes: Its size.
        sha256: Of its content, in hexadecimal.
    """

    root: Root
    path: str
    bytes: int
    sha256: str

    def place(self, hub: Path | None = None) -> Path:
        """Return where the file lies; ``hub`` is the hub's cache, by default that of this process."""
        return {"hub": hub or hub_cache(), "cache": cache_root(), "local": Path()}[self.root] / self.path


@dataclass(frozen=True)
class LockedSource:
    """Something of the hub at one commit.

    Args:
        key: As of :class:`HubName`.
        kind: As of :class:`HubName`.
        repository: As of :class:`HubName`.
        revision: What the recipe asks for.
        commit: What it is.
        files: What a job reads.
        made_from: What some of them were made of and no job reads: pickled weights, files of a data set.
    """

    key: str
    kind: Kind
    repository: str
    revision: str | None
    commit: str
    files: tuple[LockedFile, ...]
    made_from: tuple[LockedFile, ...] = ()

    def __str__(self) -> str:
        """Return such as ``tiny/bert at 31b7f937eef0``."""
        return f"{self.repository} at {self.commit[:12]}"


@dataclass(frozen=True)
class Lock:
    """All that was fetched for a recipe.

    Args:
        recipe: The recipe's file.
        sources: What it names on the hub.
        local: Files that it names on this machine.
        prepared: The folder of the tokenised data below FINELAUNCH_CACHE; None before it is known.
        time: When it was written, ISO 8601 in UTC.
        hub_cache: Where the hub's files were put.
        cache: FINELAUNCH_CACHE at that time.
        versions: Of the packages that took part.
    """

    recipe: str
    sources: tuple[LockedSource, ...]
    local: tuple[LockedFile, ...]
    prepared: str | None
    time: str
    hub_cache: str
    cache: str
    versions: dict[str, str]

    @property
    def commits(self) -> dict[str, str]:
        """The commit of everything of the hub, by key."""
        return {source.key: source.commit for source in self.sources}

    def files(self) -> Iterator[tuple[str, LockedFile]]:
        """Yield every file that a job reads, with the key that it stands under."""
        for source in self.sources:
            yield from ((source.key, file) for file in source.files)

    def num_bytes(self) -> int:
        """Return the size of all that a job reads."""
        return sum(file.bytes for _, file in self.files())


def hub_cache() -> Path:
    """Return the hub's cache as its client finds it, without loading that."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _expanded(given) if given else _hub_home() / "hub"


def use_hub_home(home: str) -> None:
    """Let the hub's client, which is not loaded yet, keep its files below ``home``; a login stays where it is."""
    token = _hub_home() / "token"
    if token.exists():
        os.environ.setdefault("HF_TOKEN_PATH", str(token))
    os.environ["HF_HOME"] = home


def _hub_home() -> Path:
    above = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(os.environ.get("HF_HOME") or os.path.join(above, "huggingface"))


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path)))


def hub_names(recipe: Recipe) -> list[HubName]:
    """Return what ``recipe`` names on the hub.

    Raises:
        BadInput: The model's name looks like a path and is not there.
        RequirementMissing: The model stands in a package that is not installed.
    """
    found = []
    model = recipe.model
    if model.name_or_path is not None and local_folder(model) is None:
        found.append(HubName("model", "model", model.name_or_path, model.revision))
    for source in given_sources(recipe.data):
        if (on_hub := repository(source.section)) is not None:
            found.append(HubName(source.key, "dataset", on_hub, source.section.revision))
    return found


def lock_path(recipe: Recipe) -> Path:
    """Return where the lock of all that ``recipe`` names on the hub lies; what else it says does not matter."""
    sources = {source.key: source for source in given_sources(recipe.data)}
    parts = [asdict(name) for name in hub_names(recipe)]
    for part in parts:
        if (source := sources.get(part["key"])) is not None:
            part |= {"subset": source.section.subset, "split": source.section.split or source.split}
    return cache_root() / "locks" / f"{content_key({'names': parts})[:32]}.json"


def new_lock(recipe_file: str, sources: Sequence[LockedSource], local: Sequence[LockedFile]) -> Lock:
    """Return a lock of what was fetched just now."""
    packages = ("huggingface_hub", "datasets", "transformers", "tokenizers", "safetensors", "torch")
    versions = {"finelaunch": __version__, **{name: version(name) for name in packages}}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    places = (str(hub_cache().absolute()), str(cache_root().absolute()))
    return Lock(recipe_file, tuple(sources), tuple(local), None, now, *places, versions)


def write_lock(lock: Lock, path: Path) -> None:
    """Write ``lock`` to ``path``, whole or not at all."""
    write_json(path, {"format": FORMAT, **asdict(lock)})


def read_lock(path: Path) -> Lock | None:
    """Return the lock in ``path``; None where there is none.

    Raises:
        BadInput: The file is no lock, or one of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("written by another version of finelaunch")
        content["local"] = tuple(LockedFile(**file) for file in content["local"])
        content["sources"] = tuple(_source(source) for source in content["sources"])
        return Lock(**content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"is no lock of this version: {str(error) or type(error).__name__:.100}"
        raise BadInput(Problem(str(path), "", what, "", "finelaunch prefetch RECIPE writes it anew")) from None


def find_lock(recipe: Recipe) -> Lock | None:
    """Return the lock of what ``recipe`` names on the hub; None where nothing was fetched, or there is nothing.

    Raises:
        BadInput: The file is no lock.
    """
    return read_lock(lock_path(recipe)) if hub_names(recipe) else None


def pinned(recipe: Recipe, document: Document, lock: Lock | None = None) -> tuple[Recipe, Document]:
    """Return ``recipe`` with the commits that were fetched in place of branches, tags and nothing.

    Where the hub is forbidden, all that was fetched must still be there. A recipe of which nothing was fetched is
    returned as it is, and so is one that has the commits already.

    Args:
        recipe: The recipe.
        document: The document behind it.
        lock: What was fetched; by default what :func:`find_lock` finds.

    Raises:
        BadInput: The lock is none.
        RequirementMissing: The hub is forbidden and a file is gone or has another size.
    """
    found = lock or find_lock(recipe)
    if found is None:
        return recipe, document
    if is_offline() and (problems := check_locked(found)):
        remedy = f"where there is a network, fetch it again: {prefetch_command(document)}"
        raise RequirementMissing("\n".join([*map(str, problems), remedy]))
    for key, commit in found.commits.items():
        document = document.put((*undotted(key), "revision"), commit, str(lock_path(recipe)))
    if lock is None:
        say(f"as fetched on {found.time[:10]}: {', '.join(dict.fromkeys(map(str, found.sources)))}")
    return build(Recipe, document), document


def check_locked(lock: Lock, how: Literal["sizes", "hashes"] = "sizes", hub: Path | None = None) -> list[Problem]:
    """Return what is missing or changed of the files that a job reads from the hub.

    Args:
        lock: What was fetched.
        how: ``hashes`` reads all of it.
        hub: The hub's cache of whoever reads them; by default that of this process.
    """
    problems = []
    for key, file in lock.files():
        if (what := _fault(file, file.place(hub), how)) is not None:
            problems.append(Problem(str(file.place(hub)), key, what))
    return problems


def refuse_unfetched(recipe: Recipe, document: Document, cluster: Cluster, cluster_name: str | None = None) -> None:
    """Refuse a job on nodes without internet that reads what was not fetched.

    Args:
        recipe: What the job runs.
        document: The document behind it.
        cluster: Where.
        cluster_name: What that is called, for the command to give.

    Raises:
        BadInput: The lock is none.
        RequirementMissing: Something of the hub was not fetched, is gone, or lies where the job does not look.
    """
    names = hub_names(recipe)
    if not cluster.offline or not names:
        return
    command = prefetch_command(document, cluster_name)
    lock = find_lock(recipe)
    if lock is None:
        what = ", ".join(dict.fromkeys(f"{name.key} {name.repository}" for name in names))
        text = f"compute nodes of this cluster have no internet (cluster.offline), and {what} was not fetched"
        raise RequirementMissing(f"{text}; first, on a machine with a network: {command}")
    seen = _expanded(cluster.hf_home) / "hub" if cluster.hf_home else hub_cache()
    if Path(lock.hub_cache).resolve() != seen.resolve():
        where = f"files of the hub were fetched to {lock.hub_cache}, and the job looks into {seen}"
        raise RequirementMissing(f"{where} (cluster.hf_home, HF_HOME); fetch them there: {command}")
    if problems := check_locked(lock, hub=seen):
        raise RequirementMissing("\n".join([*map(str, problems), f"fetch it again: {command}"]))


def locked_file(root: Root, path: Path | str) -> LockedFile:
    """Return what a lock says of the file at ``path`` below ``root``."""
    place = LockedFile(root, str(path), 0, "").place()
    return LockedFile(root, str(path), place.stat().st_size, _sha256(place))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source(content: dict[str, Any]) -> LockedSource:
    files = {name: tuple(LockedFile(**file) for file in content[name]) for name in ("files", "made_from")}
    return LockedSource(**{**content, **files})


def _fault(file: LockedFile, place: Path, how: str) -> str | None:
    """Return what is wrong with a file."""
    try:
        size = place.stat().st_size
        if size != file.bytes:
            return f"has {size:,} bytes, and had {file.bytes:,} when it was fetched"
        if how == "hashes" and _sha256(place) != file.sha256:
            return f"has another content than when it was fetched (SHA-256 {file.sha256[:12]}…)"
    except FileNotFoundError:
        return f"is missing; it was fetched with {file.bytes:,} bytes"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None
