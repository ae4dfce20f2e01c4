"""From a recipe's name to a :class:`Recipe`: the file, its base, and ``key=value`` laid over it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from finelaunch.errors import BadInput, Problem
from finelaunch.recipe.schema import REPLACED, Recipe
from finelaunch.section.base import build
from finelaunch.section.document import MAX_DEPTH, Document, merge, read_value
from finelaunch.section.lookup import COMMAND_LINE, find, is_file, read_file

_PREFIXES = ("launch", "cluster")
"""What words begin with that address something else than the recipe."""


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
    lower = read_file(beside if is_file(beside) else find(base, "recipes", origin, "base"))
    if lower.values.get("base") is not None:
        allowed = "one level only"
        raise BadInput(Problem(origin, "base", f"{base} has a base itself", allowed, "name that one, or copy the keys"))
    return merge(lower.without("base"), document, REPLACED)


def read_overrides(words: Iterable[str]) -> dict[str, Document]:
    """Return the documents that ``key=value`` words make, by what they address.

    Returns:
        ``recipe``, ``launch`` (for ``launch.key=value``) and ``cluster`` (for ``cluster.key=value``).

    Raises:
        BadInput: A word is not ``key=value``, or its key no dotted path; all of them at once.
    """
    documents = {kind: Document({}) for kind in ("recipe", *_PREFIXES)}
    problems: list[Problem] = []
    for word in words:
        key, equals, text = word.partition("=")
        path = tuple(key.split("."))
        if not equals or not all(path) or not key.isprintable() or len(path) > MAX_DEPTH or key in _PREFIXES:
            remedy = "such as training.learning_rate=3e-5; options such as --on come before"
            problems.append(Problem(COMMAND_LINE, "", f"{word!r:.80} is not key=value", "", remedy))
            continue
        try:
            value = read_value(text, COMMAND_LINE, path)
            if path[0] in _PREFIXES:
                _put(documents[path[0]], path[1:], value, key)
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
    """Yield the dotted key and value of every leaf; the places of a list of mappings count from 0."""
    if isinstance(values, list) and values and all(isinstance(value, dict) for value in values):
        values = dict(enumerate(values))
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from flatten(value, (*path, str(name)))
    else:
        yield ".".join(path), values
