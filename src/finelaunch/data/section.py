"""The ``data`` section of a recipe: which rows to train on, to choose by, and to measure once."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from finelaunch.section.base import Section


class SplitSection(Section):
    """One source of rows."""

    answers: ClassVar[Mapping[str, str]] = {
        "name": "use path: hub:OWNER/NAME",
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


class DataSection(Section):
    """The splits and how a missing one is made."""

    answers: ClassVar[Mapping[str, str]] = {
        "eval": "use data.validation to choose by, data.test to measure once",
        "dev": "use data.validation to choose by, data.test to measure once",
        "path": "use data.train.path",
        "max_samples": "use data.train.max_samples",
        "columns": "use data.train.columns",
    }

    train: SplitSection = Field(description="a mapping with path: the rows to train on")
    validation: SplitSection | None = Field(default=None, description="rows to choose by")
    test: SplitSection | None = Field(default=None, description="rows measured once at the end")
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of train held out where validation is absent"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of max_samples and of the held-out share")


SPLITS = ("train", "validation", "test")
"""The names of the splits, in the order in which they are used."""

REPLACED_WITH_PATH = ("subset", "split", "revision", "columns", "source", "licence", "citation")
"""The keys of a split that describe its path: another path takes none of them along."""
