"""From a recipe's name to a :class:`Recipe`: the file, its base, and ``key=value`` laid over it.

A name resolves as a path, then below the current folder's ``recipes/``, then among the recipes that come with the package.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from finelaunch.errors import BadInput, Problem
from finelaunch.recipe.schema import REPLACED, Recipe
from finelaunch.section.base import build, nearest
from finelaunch.section.document import Document, merge, read_document, read_value

COMMAND_LINE = "command line"


def shipped(folder: str) -> Path:
    """Return a data folder that comes with the package: ``recipes`` or ``launch``."""
    package = Path(__file__).parents[1]
    in_wheel = package / "_data" / folder
    return in_wheel if in_wheel.is_dir() else package.parents[1] / folder


def find(name: str, folder: str) -> Path:
    """Return the file of a recipe or profile.

    Args:
        name: A path, or a name with or without ``folder/`` before and ``.yaml`` behind.
        folder: ``recipes`` or ``launch``.

    Raises:
        BadInput: There is none; with the nearest known name.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    stem = name.removesuffix(".yaml").removeprefix(f"{folder}/")
    for root in (Path(folder), shipped(folder)):
        path = root / f"{stem}.yaml"
        if path.is_file():
            return path
    known = names(folder)
    near = nearest(stem, known)
    noun = "recipe" if folder == "recipes" else "profile"
    remedy = f"did you mean {near!r}?" if near else f"a path, or one of {', '.join(known)}"
    raise BadInput(Problem(COMMAND_LINE, noun, f"there is no {noun} {name!r}", "", remedy))


def names(folder: str) -> list[str]:
    """Return the names of all recipes or profiles that resolve from here, without suffix."""
    found = set()
    for root in (Path(folder), shipped(folder)):
        found |= {str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml")}
    return sorted(found)


def read_file(path: Path) -> Document:
    """Return the document in ``path``.

    Raises:
        BadInput: It cannot be read or is not YAML.
    """
    try:
        return read_document(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise BadInput(Problem(f"{path}:byte {error.start}", "", "not UTF-8", "", "convert it to UTF-8")) from None
    except OSError as error:
        raise BadInput(Problem(str(path), "", f"cannot be read: {error.strerror}")) from None


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
    if base is None:
        return document.without("base")
    origin = document.origin(("base",))
    if not isinstance(base, str):
        raise BadInput(Problem(origin, "base", f"{base!r:.60} is not a recipe", "the path or name of one"))
    beside = path.parent / base
    lower_path = beside if beside.is_file() else find(base, "recipes")
    lower = read_file(lower_path)
    if "base" in lower.values:
        allowed = "one level only"
        raise BadInput(Problem(origin, "base", f"{base} has a base itself", allowed, "name that one, or copy the keys"))
    return merge(lower, document.without("base"), REPLACED)


def read_overrides(words: Iterable[str]) -> dict[str, Document]:
    """Return the documents that ``key=value`` words make, by what they address: ``recipe`` and ``launch``.

    Raises:
        BadInput: A word is not ``key=value``, or its key no dotted path; all of them at once.
    """
    values: dict[str, dict[str, Any]] = {"recipe": {}, "launch": {}}
    origins: dict[str, dict[tuple[str | int, ...], str]] = {"recipe": {}, "launch": {}}
    problems: list[Problem] = []
    for word in words:
        key, equals, text = word.partition("=")
        parts: Sequence[str] = key.split(".")
        if not equals or not all(parts):
            remedy = "such as training.learning_rate=3e-5; options such as --on come before"
            problems.append(Problem(COMMAND_LINE, "", f"{word!r} is not key=value", "", remedy))
            continue
        try:
            value = read_value(text, COMMAND_LINE, key)
        except BadInput as error:
            problems.extend(error.problems)
            continue
        kind = "launch" if parts[0] == "launch" else "recipe"
        path = tuple(parts[1:] if kind == "launch" else parts)
        problem = _put(values[kind], path, value, key)
        problems += [problem] if problem else []
        origins[kind] |= {path[:length]: COMMAND_LINE for length in range(1, len(path) + 1)}
    if problems:
        raise BadInput(problems)
    return {kind: Document(values[kind], origins[kind], COMMAND_LINE) for kind in values}


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any, key: str) -> Problem | None:
    """Set ``value`` at ``path``; a key that another word made a single value cannot be entered."""
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            return Problem(COMMAND_LINE, key, f"{part!r} is given a single value by another word", "", "keep one")
    if not path or path[-1] in values:
        return Problem(COMMAND_LINE, key, "is given twice" if path else "names no key", "", "keep one")
    values[path[-1]] = value
    return None


def flatten(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of every leaf."""
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from flatten(value, (*path, str(name)))
    else:
        yield ".".join(path), values
