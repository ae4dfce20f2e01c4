"""The ``data`` section of a recipe: which rows to train on, to choose by, and to measure once."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, ClassVar

from pydantic import Discriminator, Field, Tag

from finelaunch.section.base import Section, SettingError
from finelaunch.section.document import Path, dotted


class SplitSection(Section):
    """One source of rows."""

    answers: ClassVar[Mapping[str, str]] = {
        "name": "a hub data set is path: hub:OWNER/NAME; sources have names where there are several: "
        "[{path: …, name: …}, {path: …, name: …}]",
        "weight": "sources have weights where there are several: [{path: …, weight: 0.7}, {path: …, weight: 0.3}]",
        "hub": "use path: hub:OWNER/NAME",
        "dataset": "use path: hub:OWNER/NAME",
        "file": "use path",
        "config": "use subset",
        "license": "use licence",
    }

    path: str = Field(min_length=1, description="a file or folder, package:MODULE/FILE, or hub:OWNER/NAME")
    subset: str | None = Field(default=None, description="configuration of a hub data set")
    split: str | None = Field(default=None, description="split of a hub data set; by default the name of this key")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub data set")
    columns: dict[str, str] = Field(default={}, description="the task's column: the column in the data")
    max_samples: int | None = Field(default=None, ge=1, description="take this many rows, drawn by data.seed")
    source: str | None = Field(default=None, description="where the data comes from, for the manifest")
    licence: str | None = Field(default=None, description="under which licence, for the manifest")
    citation: str | None = Field(default=None, description="how to cite it, for the manifest")


class SourceSection(SplitSection):
    """One of several sources of a split."""

    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=80,
        description="what to call it, without a slash; by default the path's last part",
    )
    weight: float | None = Field(
        default=None, gt=0, description="train: its share of an epoch, beside the weights of the other sources"
    )


Sources = Annotated[
    Annotated[SplitSection, Tag("one source")] | Annotated[list[SourceSection], Tag("several sources")],
    Discriminator(lambda value: "several sources" if isinstance(value, list) else "one source"),
]
"""A split: one source, or a list of them."""


class DataSection(Section):
    """The splits and how a missing one is made."""

    answers: ClassVar[Mapping[str, str]] = {
        "eval": "use data.validation to choose by, data.test to measure once",
        "dev": "use data.validation to choose by, data.test to measure once",
        "path": "use data.train.path",
        "max_samples": "use data.train.max_samples",
        "columns": "use data.train.columns",
    }

    train: Sources = Field(description="a mapping with path: the rows to train on; or a list of such sources")
    validation: Sources | None = Field(default=None, description="rows to choose by; one source or a list")
    test: Sources | None = Field(default=None, description="rows measured once at the end; one source or a list")
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of train held out where validation is absent"
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="seed of max_samples, of the held-out share and of what is mixed"
    )

    def faults(self) -> Iterator[SettingError]:
        """Yield what is wrong with lists of sources."""
        for split in SPLITS:
            sources = getattr(self, split)
            if isinstance(sources, list):
                yield from _list_faults(split, sources)


SPLITS = ("train", "validation", "test")
"""The names of the splits, in the order in which they are used."""


def label_column(columns: Mapping[str, str], present: Collection[str]) -> str:
    """Return the column that holds labels: the one that ``columns`` names, ``label``, or ``labels`` if that is there.

    Args:
        columns: ``columns`` of a source.
        present: The columns of its rows.
    """
    other = "labels" if "labels" in present and "label" not in present else "label"
    return columns.get("label") or columns.get("labels") or other


@dataclass(frozen=True)
class Source:
    """One source of rows, and where it stands.

    Args:
        split: ``train``, ``validation`` or ``test``.
        section: Its settings.
        name: What it is called among the sources of a list; None: it is the split's only one.
        place: Its path in the recipe.
    """

    split: str
    section: SplitSection
    name: str | None
    place: Path

    @property
    def key(self) -> str:
        """The dotted key, such as ``data.train`` or ``data.train[1]``."""
        return dotted(self.place)

    @property
    def weight(self) -> float | None:
        """Its weight in the mixture, where one is stated."""
        return self.section.weight if isinstance(self.section, SourceSection) else None


def given_sources(data: DataSection) -> list[Source]:
    """Return the sources of all splits that a recipe names, in the order of the splits."""
    return [source for split in SPLITS for source in split_sources(data, split)]


def split_sources(data: DataSection, split: str) -> list[Source]:
    """Return the sources of one split; none where the recipe does not name it."""
    given = getattr(data, split)
    if given is None:
        return []
    if not isinstance(given, list):
        return [Source(split, given, None, ("data", split))]
    names = source_names(given)
    return [Source(split, one, names[index], ("data", split, index)) for index, one in enumerate(given)]


def source_names(sources: list[SourceSection]) -> list[str]:
    """Return the name of each source of a list: the one stated, else the last part of its path, made unique."""
    taken = {source.name for source in sources if source.name is not None}
    names = []
    for source in sources:
        name = source.name
        if name is None:
            stem = PurePosixPath(source.path.rstrip("/").rpartition(":")[2]).stem.strip(". ") or "source"
            candidates = (stem, *(f"{stem}-{number}" for number in range(2, len(sources) + len(taken) + 2)))
            name = next(candidate for candidate in candidates if candidate not in taken)
            taken.add(name)
        names.append(name)
    return names


def _list_faults(split: str, sources: list[SourceSection]) -> Iterator[SettingError]:
    if not sources:
        yield SettingError(split, "is an empty list", "one source or more, each a mapping with path", "add one")
    first: dict[str, int] = {}
    for index, source in enumerate(sources):
        if source.name is not None and ("/" in source.name or not source.name.strip() or not source.name.isprintable()):
            what = f"{source.name!r:.60} is no name of a source"
            yield SettingError(f"{split}[{index}].name", what, "a word or several, without a slash")
        if source.name is not None and first.setdefault(source.name, index) != index:
            what = f"{source.name!r} is the name of data.{split}[{first[source.name]}], too"
            yield SettingError(f"{split}[{index}].name", what, "", "give each source a name of its own")
        if source.weight is not None and split != "train":
            what = f"has no effect: all rows of data.{split} are measured, each once"
            yield SettingError(f"{split}[{index}].weight", what, "", "leave it out")
    without = [index for index, source in enumerate(sources) if source.weight is None]
    if split == "train" and 0 < len(without) < len(sources):
        for index in without:
            what = "has no weight, and other sources of the list have one"
            yield SettingError(f"{split}[{index}]", what, "", "give each source a weight, or none")


REPLACED_WITH_PATH = ("subset", "split", "revision", "columns", "source", "licence", "citation")
"""The keys of a split that describe its path: another path takes none of them along."""
