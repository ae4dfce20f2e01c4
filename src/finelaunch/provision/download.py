"""The hub's client as prefetch uses it: the files of one commit that a job reads, each held against the hub's hash."""

import fnmatch
import glob
import hashlib
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from finelaunch.data.cache import cache_root
from finelaunch.data.hub import hub_faults, is_commit, keep_rows
from finelaunch.data.section import SplitSection
from finelaunch.errors import BadInput, FinelaunchError, Problem, RequirementMissing
from finelaunch.models.load import TOKENIZER_FILES
from finelaunch.provision.convert import INDEX, PICKLED, PICKLED_INDEX, to_safetensors
from finelaunch.provision.locked import HubName, LockedFile, LockedSource, hub_cache, locked_file
from finelaunch.run.files import is_full_disk
from finelaunch.run.log import say

MODEL_FILES = (*TOKENIZER_FILES, "generation_config.json", "*.tiktoken")
SAFETENSORS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
ABANDONED_SECONDS = 3_600.0
"""A partial file that did not grow for so long belongs to a process that was killed."""


@dataclass(frozen=True)
class Entry:
    """A file of a repository, as the hub describes it.

    Args:
        size: In bytes.
        sha256: Of its content, which the hub knows of large files.
        blob: Its hash as git has it.
    """

    size: int
    sha256: str | None
    blob: str


def resolve_commit(name: HubName, origin: str) -> str:
    """Return the commit that a branch, a tag or nothing stands for at this moment.

    Raises:
        BadInput: There is no such repository or revision.
        RequirementMissing: The hub is out of reach.
    """
    if is_commit(name.revision):
        return str(name.revision)
    from huggingface_hub import HfApi

    with _answers(name, origin):
        return str(HfApi().repo_info(name.repository, repo_type=name.kind, revision=name.revision).sha)


def fetch_model(name: HubName, commit: str, origin: str) -> LockedSource:
    """Download tokenizer, config and weights of a model; pickled weights become safetensors.

    Raises:
        BadInput: There is no such repository, or it holds no weights, or ones that cannot be read as such.
        RequirementMissing: It is gated, the hub is out of reach, or there is no room.
    """
    with _answers(name, origin):
        entries = _entries(name, commit)
        small = [path for path in entries if any(fnmatch.fnmatch(path, pattern) for pattern in MODEL_FILES)]
        weights = [path for path in entries if SAFETENSORS.fullmatch(path) or path == INDEX]
        pickled = [] if weights else [path for path in entries if PICKLED.fullmatch(path) or path == PICKLED_INDEX]
        if not weights and not pickled:
            what = f"{name.repository} at {commit[:12]} holds neither model.safetensors nor pytorch_model.bin"
            raise BadInput(Problem(origin, "model.name_or_path", what, "a model that transformers has saved"))
        converted_bytes = sum(entries[path].size for path in pickled)
        snapshot = _fetch(name, commit, {path: entries[path] for path in (*small, *weights, *pickled)}, converted_bytes)
        made = to_safetensors(snapshot, pickled)
        read = [_in_hub_cache(snapshot / path) for path in (*small, *weights, *made)]
        return _locked(name, commit, read, [snapshot / path for path in pickled])


def fetch_rows(name: HubName, split: SplitSection, split_name: str, commit: str, origin: str) -> LockedSource:
    """Download the files that a split's rows stand in, and keep the rows where a job reads them.

    Args:
        name: The data set.
        split: The split's section, its revision being ``commit``.
        split_name: ``train``, ``validation`` or ``test``.
        commit: Which version.
        origin: Where the split stands in the recipe, for messages.

    Raises:
        BadInput: There is no such repository, subset or split.
        RequirementMissing: It is gated, the hub is out of reach, or there is no room.
    """
    with _answers(name, origin):
        entries = _entries(name, commit)
        _require_access(name, commit, entries)
        wanted = [path for path in _row_files(name, split, commit) if path in entries]
        snapshot = _fetch(name, commit, {path: entries[path] for path in wanted})
        kept = locked_file("cache", keep_rows(split, split_name).relative_to(cache_root()))
        return _locked(name, commit, [kept], [snapshot / path for path in wanted])


def remove_fetched(path: Path) -> None:
    """Remove a file of a snapshot, and what it links to, so that it is fetched again."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _locked(name: HubName, commit: str, read: Collection[LockedFile], made_from: Collection[Path]) -> LockedSource:
    others = tuple(_in_hub_cache(path) for path in made_from)
    return LockedSource(name.key, name.kind, name.repository, name.revision, commit, tuple(read), others)


def _in_hub_cache(path: Path) -> LockedFile:
    return locked_file("hub", path.relative_to(hub_cache()))


def _entries(name: HubName, commit: str) -> dict[str, Entry]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(name.repository, recursive=True, revision=commit, repo_type=name.kind)
    return {
        file.path: Entry(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
        for file in tree
        if isinstance(file, RepoFile)
    }


def _require_access(name: HubName, commit: str, entries: Mapping[str, Entry]) -> None:
    """Ask for a file before ``datasets`` does, which does not pass on why the hub refuses it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if entries:
        largest = max(entries, key=lambda path: entries[path].size)  # the card may be for everybody
        get_hf_file_metadata(hf_hub_url(name.repository, largest, repo_type=name.kind, revision=commit))


def _row_files(name: HubName, split: SplitSection, commit: str) -> list[str]:
    """Return the files of the subset of a data set, in all splits: the library reads no split alone."""
    from datasets import load_dataset_builder

    with hub_faults(split):
        files = load_dataset_builder(name.repository, split.subset, revision=commit).config.data_files or {}
    before = f"hf://datasets/{name.repository}@{commit}/"
    return [url.removeprefix(before) for urls in files.values() for url in urls if url.startswith(before)]


def _fetch(name: HubName, commit: str, wanted: Mapping[str, Entry], further_bytes: int = 0) -> Path:
    """Download ``wanted`` and return the folder of the commit; what is there already is not fetched again."""
    from huggingface_hub import snapshot_download

    prefix = {"model": "models", "dataset": "datasets"}[name.kind]
    repository = hub_cache() / "--".join([prefix, *name.repository.split("/")])
    snapshot = repository / "snapshots" / commit
    _remove_abandoned(repository / "blobs")
    for path, entry in wanted.items():
        if (snapshot / path).exists() and not _is_intact(snapshot / path, entry):
            remove_fetched(snapshot / path)
    missing = {path: entry for path, entry in wanted.items() if not (snapshot / path).exists()}
    if missing:
        num_bytes = sum(entry.size for entry in missing.values())
        _require_room(hub_cache(), num_bytes + further_bytes)
        say(f"{name.key}: {name.repository} at {commit[:12]}: {len(missing)} files, {num_bytes:,} bytes")
    patterns = [glob.escape(path) for path in wanted]
    snapshot_download(name.repository, repo_type=name.kind, revision=commit, allow_patterns=patterns)
    for path, entry in missing.items():
        if not _is_intact(snapshot / path, entry):
            remove_fetched(snapshot / path)
            what = f"{path} of {name.repository} arrived with another content than the hub has"
            raise RequirementMissing(f"{name.key}: {what}; the same command fetches it again")
    return snapshot


def _is_intact(path: Path, entry: Entry) -> bool:
    """Return whether a file has the hub's hash."""
    if path.stat().st_size != entry.size:
        return False
    digest = hashlib.sha256() if entry.sha256 else hashlib.sha1(b"blob %d\0" % entry.size, usedforsecurity=False)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest() == (entry.sha256 or entry.blob)


def _remove_abandoned(blobs: Path) -> None:
    """Remove what killed downloads left: the client begins a file anew under another name."""
    for partial in blobs.glob("*.incomplete"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                partial.unlink()


def _require_room(folder: Path, num_bytes: int) -> None:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if (free := shutil.disk_usage(existing).free) < num_bytes:
        raise RequirementMissing(_no_room(folder, f"{num_bytes:,} bytes are needed, and {free:,} are free"))


def _no_room(place: object, why: str) -> str:
    return f"{place}: {why}; make room there, or set HF_HOME and FINELAUNCH_CACHE to folders with more"


@contextmanager
def _answers(name: HubName, origin: str) -> Iterator[None]:
    """Turn all that the hub and its client answer with into one sentence."""
    try:
        yield
    except Exception as error:
        named = _named(name, origin, error)
        if named is None:
            raise
        raise named from None


def _named(name: HubName, origin: str, error: Exception) -> FinelaunchError | None:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    noun = {"model": "model", "dataset": "data set"}[name.kind]
    endpoint = re.sub(r"//[^/@]*@", "//", constants.ENDPOINT)  # a mirror's may hold a password
    page = f"{endpoint}/{'datasets/' if name.kind == 'dataset' else ''}{name.repository}"
    key = f"{name.key}.{'name_or_path' if name.kind == 'model' else 'path'}"
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            known = "this account has no access" if cause.response.status_code == 403 else "nobody is logged in"
            text = f"{key}: the {noun} {name.repository} is gated, and {known}"
            return RequirementMissing(f"{text}; accept its terms at {page}, then: hf auth login (or set HF_TOKEN)")
        if isinstance(cause, RevisionNotFoundError):
            what = f"{name.repository} has no revision {name.revision!r:.80}"
            return BadInput(Problem(origin, f"{name.key}.revision", what, "a branch, a tag or a commit hash"))
        if isinstance(cause, RepositoryNotFoundError | HFValidationError):
            what = f"the hub has no {noun} {name.repository!r:.120}, or it is private"
            return BadInput(Problem(origin, key, what, "", "mind the spelling; for a private one: hf auth login"))
    if isinstance(error, FinelaunchError):
        return error
    for cause in causes:
        if is_full_disk(cause):
            place = cause.filename if isinstance(cause, OSError) else None
            return RequirementMissing(_no_room(place or f"{hub_cache()}, {cache_root()}", "no space left, or no quota"))
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return RequirementMissing(
                f"{key}: the hub answers {cause.response.status_code} for {name.repository}; {_AGAIN}"
            )
        if type(cause).__module__.startswith(("httpx", "httpcore")) or isinstance(
            cause, ConnectionError | TimeoutError
        ):
            reason = type(cause).__name__
            text = f"{key}: {name.repository} cannot be fetched from {endpoint}: {reason}"
            return RequirementMissing(f"{text}; is there a network here? {_AGAIN}")
    if isinstance(error, OSError):
        place = error.filename or hub_cache()
        return RequirementMissing(f"{key}: {place}: {error.strerror or str(error).splitlines()[0][:200]}; {_AGAIN}")
    return None


_AGAIN = "what has arrived is kept, and the same command fetches the rest"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        here = waiting.pop(0)
        if here is not None and here not in seen:
            seen.append(here)
            yield here
            waiting += [here.__cause__, here.__context__]
