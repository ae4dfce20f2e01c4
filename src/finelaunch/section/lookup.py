"""From a name to the document behind it.

A name resolves as a path, then below the folder of its kind in the current folder, then in the package.
"""

import os
from pathlib import Path

from finelaunch.errors import BadInput, Problem
from finelaunch.section.base import nearest
from finelaunch.section.document import MAX_CHARACTERS, Document, read_document

COMMAND_LINE = "command line"
NOUNS = {
    "recipes": "recipe",
    "launch": "profile",
    "accelerate_configs": "accelerate config",
    "slurm/clusters": "cluster",
}
"""The data folders, and what a file of each is called."""


def shipped(folder: str) -> Path:
    """Return a data folder that comes with the package, such as ``recipes``."""
    package = Path(__file__).parents[1]
    in_wheel = package / "_data" / folder
    return in_wheel if in_wheel.is_dir() else package.parents[1] / folder


def find(name: str, folder: str, origin: str = COMMAND_LINE, key: str = "") -> Path:
    """Return the file of a recipe, a launch profile or an accelerate config.

    Args:
        name: A path, or a name with or without ``folder/`` before and ``.yaml`` behind.
        folder: One of :data:`NOUNS`.
        origin: Where the name stands, for the message.
        key: The key it stands under; by default the noun.

    Raises:
        BadInput: There is none; with the nearest known name.
    """
    stem = name.removesuffix(".yaml").removeprefix(f"{folder}/")
    for path in (Path(os.path.expanduser(name)), *(root / f"{stem}.yaml" for root in (Path(folder), shipped(folder)))):
        if is_file(path):
            return path
    known = names(folder)
    near = nearest(stem, known)
    noun = NOUNS[folder]
    remedy = f"did you mean {near!r}?" if near else f"a path, or one of {', '.join(known)}"
    raise BadInput(Problem(origin, key or noun, f"there is no {noun} {name!r:.200}", "", remedy))


def is_file(path: Path) -> bool:
    """Return whether ``path`` is a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a folder that may not be entered, a NUL
        return False


def names(folder: str) -> list[str]:
    """Return the names of all files of ``folder`` that resolve from here, without suffix."""
    found = set()
    for root in (Path(folder), shipped(folder)):
        found |= {str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml") if path.is_file()}
    return sorted(found)


def about(path: Path) -> str:
    """Return the first comment line of a file that is not for editors: what it is."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        text = line.removeprefix("#").strip()
        if line.startswith("#") and text and not text.startswith("yaml-language-server"):
            return text
    return ""


def read_file(path: Path) -> Document:
    """Return the document in ``path``.

    Raises:
        BadInput: It cannot be read or is not YAML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(4 * MAX_CHARACTERS + 1).decode()
    except UnicodeDecodeError as error:
        raise BadInput(Problem(f"{path}:byte {error.start}", "", "not UTF-8", "", "convert it to UTF-8")) from None
    except OSError as error:
        raise BadInput(Problem(str(path), "", f"cannot be read: {error.strerror}")) from None
    return read_document(text, str(path))
