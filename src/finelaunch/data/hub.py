"""Rows of the hub: read through the ``datasets`` package, and kept at one commit for machines without a network.

Offline, ``datasets`` gives the newest version that it happens to have and does not look at the revision. So what is to
be read offline is kept here as Parquet, under a key of repository, subset, split and commit: that version or none.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finelaunch.data.cache import cached, content_key, entry
from finelaunch.data.files import label_names, read_file
from finelaunch.data.section import SplitSection
from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.run.files import is_full_disk

HUB_PREFIX = "hub:"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_offline() -> bool:
    """Return whether the environment forbids the hub."""
    given = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return given.upper() in ("1", "ON", "YES", "TRUE")


def is_commit(revision: str | None) -> bool:
    """Return whether ``revision`` is a whole commit hash, under which the files never change."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def repository(split: SplitSection) -> str | None:
    """Return the hub data set that ``split`` reads; None for files, and for a folder behind ``hub:``."""
    name = split.path.removeprefix(HUB_PREFIX)
    return name if split.path.startswith(HUB_PREFIX) and not Path(name).is_dir() else None


def hub_rows(split: SplitSection, name: str) -> tuple[list[dict[str, Any]], tuple[str, ...] | None]:
    """Return the rows of a hub data set, kept ones where they are there, and the names of its integer labels.

    Raises:
        BadInput: The data set has no such split.
        RequirementMissing: It is neither kept nor to be had from the hub.
    """
    kept = kept_rows(split, name)
    if is_commit(split.revision) and kept.exists():
        content = read_file(kept, f"data.{name}", split.path)
        return content.rows, label_names(content.features, split.columns)
    with hub_faults(split):
        dataset = _load(split, name)
    return dataset.to_list(), label_names(dataset.features.to_dict(), split.columns)


def hub_fingerprint(split: SplitSection, name: str) -> str:
    """Return what changes when the rows of a hub data set change; a commit needs no network to be told.

    Raises:
        RequirementMissing: It is neither cached nor reachable.
    """
    commit = split.revision
    if not is_commit(commit) or repository(split) is None:
        from datasets import load_dataset_builder

        with hub_faults(split):
            commit = load_dataset_builder(
                split.path.removeprefix(HUB_PREFIX), split.subset, revision=split.revision
            ).hash
    return f"{split.path}@{commit}:{split.subset}:{split.split or name}"


def kept_rows(split: SplitSection, name: str) -> Path:
    """Return the file in which :func:`keep_rows` keeps the rows of ``split`` at the commit that it names."""
    return cached("rows", _rows_key(split, name)) / "rows.parquet"


def keep_rows(split: SplitSection, name: str) -> Path:
    """Keep the rows of ``split``, whose revision is a commit, as Parquet in the cache; return the file.

    Raises:
        BadInput: The data set has no such split.
        RequirementMissing: The hub is out of reach, or the cache cannot be written.
    """

    def write(folder: Path) -> None:
        with hub_faults(split):
            dataset = _load(split, name, folder / "arrow")
            dataset.to_parquet(folder / "rows.parquet")
        del dataset
        shutil.rmtree(folder / "arrow")

    entry("rows", _rows_key(split, name), write)
    return kept_rows(split, name)


@contextmanager
def hub_faults(split: SplitSection) -> Iterator[None]:
    """Turn the many exceptions of a hub that is out of reach into one sentence."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if is_full_disk(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, ValueError) and "split" in str(error).lower():
            raise BadInput(Problem(split.path, "split", reason)) from error
        if "BuilderConfig" in reason:
            raise BadInput(Problem(split.path, "subset", reason)) from error
        raise RequirementMissing(
            f"data: {split.path} is neither in the local cache nor to be had from the hub{why_offline()}: {reason:.200}"
            "; finelaunch prefetch RECIPE fetches it where there is a network, or give data.<split>.path=FILE"
        ) from error


def why_offline() -> str:
    """Return a remark for messages where the environment forbids the hub."""
    return " (HF_HUB_OFFLINE is set)" if is_offline() else ""


def _rows_key(split: SplitSection, name: str) -> str:
    parts = {"path": split.path, "subset": split.subset, "split": split.split or name, "commit": split.revision}
    return content_key(parts)


def _load(split: SplitSection, name: str, cache: Path | None = None) -> Any:
    from datasets import load_dataset

    return load_dataset(
        split.path.removeprefix(HUB_PREFIX),
        split.subset,
        split=split.split or name,
        revision=split.revision,
        cache_dir=str(cache) if cache else None,
    )
