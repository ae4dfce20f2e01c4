"""From a recipe's name to a :class:`Recipe`: the file, its base, and ``key=value`` laid over it.

A name resolves as a path, then below the current folder's ``recipes/``, then among the recipes of the package.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from finelaunch.errors import BadInput, Problem
from finelaunch.recipe.schema import REPLACED, Recipe
from finelaunch.section.base import build, nearest
from finelaunch.section.document import MAX_CHARACTERS, MAX_DEPTH, Document, merge, read_document, read_value

COMMAND_LINE = "command line"


def shipped(folder: str) -> Path:
    """Return a data folder that comes with the package: ``recipes`` or ``launch``."""
    package = Path(__file__).parents[1]
    in_wheel = package / "_data" / folder
    return in_wheel if in_wheel.is_dir() else package.parents[1] / folder


def find(name: str, folder: str, origin: str = COMMAND_LINE, key: str = "") -> Path:
    """Return the file of a recipe or profile.

    Args:
        name: A path, or a name with or without ``folder/`` before and ``.yaml`` behind.
        folder: ``recipes`` or ``launch``.
        origin: Where the name stands, for the message.
        key: The key it stands under; by default ``recipe`` or ``profile``.

    Raises:
        BadInput: There is none; with the nearest known name.
    """
    stem = name.removesuffix(".yaml").removeprefix(f"{folder}/")
    for path in (Path(os.path.expanduser(name)), *(root / f"{stem}.yaml" for root in (Path(folder), shipped(folder)))):
        if _is_file(path):
            return path
    known = names(folder)
    near = nearest(stem, known)
    noun = "recipe" if folder == "recipes" else "profile"
    remedy = f"did you mean {near!r}?" if near else f"a path, or one of {', '.join(known)}"
    raise BadInput(Problem(origin, key or noun, f"there is no {noun} {name!r:.200}", "", remedy))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a folder that may not be entered, a NUL
        return False


def names(folder: str) -> list[str]:
    """Return the names of all recipes or profiles that resolve from here, without suffix."""
    found = set()
    for root in (Path(folder), shipped(folder)):
        found |= {str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml") if path.is_file()}
    return sorted(found)


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


def load_recipe(name: str, overrides: Document | None = None) -> tuple[Recipe, Document]:
    """Return the recipe that ``name`` and ``overrides`` make, and the document behind it.

    Raises:
        BadInput: With all that is wrong.
    """
    path = find(name, "recipes")
    document = _with_base(read_file(path), path)
    if overrides is not None:
        document = merge(document, overrides, REPLACED)
    return build(Recipe, document), document


def _with_base(document: Document, path: Path) -> Document:
    base = document.values.get("base")
    document, origin = document.without("base"), document.origin(("base",))
    if base is None:
        return document
    if not isinstance(base, str):
        raise BadInput(Problem(origin, "base", f"{base!r:.60} is not a recipe", "the path or name of one"))
    beside = path.parent / base
    lower = read_file(beside if _is_file(beside) else find(base, "recipes", origin, "base"))
    if lower.values.get("base") is not None:
        allowed = "one level only"
        raise BadInput(Problem(origin, "base", f"{base} has a base itself", allowed, "name that one, or copy the keys"))
    return merge(lower.without("base"), document, REPLACED)


def read_overrides(words: Iterable[str]) -> dict[str, Document]:
    """Return the documents that ``key=value`` words make, by what they address: ``recipe`` and ``launch``.

    Raises:
        BadInput: A word is not ``key=value``, or its key no dotted path; all of them at once.
    """
    documents = {kind: Document({}) for kind in ("recipe", "launch")}
    problems: list[Problem] = []
    for word in words:
        key, equals, text = word.partition("=")
        path = tuple(key.split("."))
        if not equals or not all(path) or not key.isprintable() or len(path) > MAX_DEPTH or path == ("launch",):
            remedy = "such as training.learning_rate=3e-5; options such as --on come before"
            problems.append(Problem(COMMAND_LINE, "", f"{word!r:.80} is not key=value", "", remedy))
            continue
        try:
            value = read_value(text, COMMAND_LINE, path)
            if path[0] == "launch":
                _put(documents["launch"], path[1:], value, key)
            else:
                _put(documents["recipe"], path, value, key)
        except BadInput as error:
            problems += error.problems
    if problems:
        raise BadInput(problems)
    return documents


def _put(document: Document, path: tuple[str, ...], value: Any, key: str) -> None:
    """Set ``value`` at ``path``.

    Raises:
        BadInput: Another word has set it, or made a key on the way to it a single value.
    """
    values = document.values
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise BadInput(Problem(COMMAND_LINE, key, f"another word gives {part!r} a single value", "", "keep one"))
    if path[-1] in values:
        raise BadInput(Problem(COMMAND_LINE, key, "is given twice", "", "keep one"))
    values[path[-1]] = value
    document.origins.update({path[:length]: COMMAND_LINE for length in range(1, len(path) + 1)})


def flatten(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of every leaf."""
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from flatten(value, (*path, str(name)))
    else:
        yield ".".join(path), values
