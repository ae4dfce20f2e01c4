"""A configuration text read into plain values, with the place each value came from.

PyYAML finds the structure; the values are read here by the rules of YAML 1.2, because those of YAML 1.1 turn ``2e-5``
into a string, ``no`` into false and ``12:30`` into 750. Duplicate keys, tags, cycles and texts that unfold to more than
any recipe needs are refused. No text whatever makes this module raise anything but :class:`BadInput`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from finelaunch.errors import BadInput, Problem

MAX_CHARACTERS = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 40

Path = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_INFINITE = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True)
class Document:
    """Plain values and where each of them stands.

    Args:
        values: Nested dicts, lists and scalars.
        origins: For the path of each value, ``file:line`` or the word that stands for the command line.
        name: The origin of the document as a whole.
    """

    values: dict[str, Any]
    origins: dict[Path, str] = field(default_factory=dict)
    name: str = ""

    def origin(self, path: Path) -> str:
        """Return the origin of ``path``, or of the nearest enclosing value that has one."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.name

    def without(self, key: str) -> "Document":
        """Return this document without the top-level ``key``."""
        values = {name: value for name, value in self.values.items() if name != key}
        return Document(
            values, {path: origin for path, origin in self.origins.items() if path[:1] != (key,)}, self.name
        )


def dotted(path: Path) -> str:
    """Return ``path`` as a user writes it: ``data.train.columns``, ``evaluation.metrics[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_document(text: str, name: str) -> Document:
    """Read YAML ``text`` whose outermost value is a mapping.

    Args:
        text: The YAML text.
        name: What to call it in messages, usually its path.

    Raises:
        BadInput: The text is not YAML, not a mapping, or breaks a rule of this module; with its line.
    """
    node = _compose(text, name)
    reader = _Reader(name)
    if node is None:
        raise BadInput(Problem(name, "", "the file is empty", "a mapping of sections", "start from a shipped recipe"))
    values = reader.read(node, (), ())
    if reader.problems:
        raise BadInput(reader.problems)
    if not isinstance(values, dict):
        raise BadInput(Problem(name, "", f"holds {_kind(values)}", "a mapping such as 'task: {name: …}'"))
    return Document(values, reader.origins, name)


def read_value(text: str, name: str, key: str) -> Any:
    """Read one YAML value, as the right side of ``key=value`` on the command line.

    Raises:
        BadInput: ``text`` is not a YAML value.
    """
    try:
        node = _compose(text, name)
        reader = _Reader(name)
        value = None if node is None else reader.read(node, (), ())
    except BadInput as error:
        raise BadInput(Problem(name, key, f"{text!r} is not a YAML value", "", error.problems[0].what)) from None
    if reader.problems:
        raise BadInput([Problem(name, key, problem.what, problem.allowed) for problem in reader.problems])
    return value


def _compose(text: str, name: str) -> yaml.Node | None:
    if len(text) > MAX_CHARACTERS:
        raise BadInput(
            Problem(name, "", f"{len(text):,} characters", f"at most {MAX_CHARACTERS:,}", "is this a recipe?")
        )
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        origin = f"{name}:{mark.line + 1}" if mark else name
        reason = " ".join(filter(None, (error.context, error.problem)))
        raise BadInput(Problem(origin, "", f"not YAML: {reason}")) from None
    except yaml.YAMLError as error:
        raise BadInput(Problem(name, "", "not YAML: " + " ".join(str(error).split()))) from None
    except (RecursionError, ValueError, IndexError) as error:  # PyYAML's scanner on deep or malformed text
        raise BadInput(Problem(name, "", f"not YAML: {type(error).__name__} while reading it")) from None


class _Reader:
    """Turns nodes into values; collects problems instead of stopping at the first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.origins: dict[Path, str] = {}
        self.problems: list[Problem] = []
        self.num_nodes = 0

    def read(self, node: yaml.Node, path: Path, enclosing: tuple[int, ...]) -> Any:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES or len(path) > MAX_DEPTH:
            limit = f"at most {MAX_NODES:,} values, {MAX_DEPTH} deep"
            raise BadInput(Problem(self.name, "", "unfolds to more than any recipe needs", limit, "mind its aliases"))
        origin = f"{self.name}:{node.start_mark.line + 1}"
        if id(node) in enclosing:
            raise BadInput(Problem(origin, dotted(path), "an alias that contains itself"))
        self.origins[path] = origin
        if node.tag not in _PLAIN_TAGS:
            self._refuse(origin, path, f"the tag {node.tag!r}", "plain values only")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*enclosing, id(node)))
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*path, i), (*enclosing, id(node))) for i, child in enumerate(node.value)]
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path, enclosing: tuple[int, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            origin = f"{self.name}:{line}"
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(origin, path, "a key that is itself a list or mapping", "a word")
                continue
            key = key_node.value
            if key in values:
                self._refuse(origin, (*path, key), f"stands twice, first in line {first_lines[key]}", "", "keep one")
                continue
            first_lines[key] = line
            values[key] = self.read(value_node, (*path, key), enclosing)
            self.origins[(*path, key)] = origin
        return values

    def _refuse(self, origin: str, path: Path, what: str, allowed: str = "", remedy: str = "") -> None:
        self.problems.append(Problem(origin, dotted(path), what, allowed, remedy))


_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq")}


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    if node.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.match(text):
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    return float(text.replace(".", "", 1)) if _INFINITE.match(text) else text


def _kind(value: Any) -> str:
    return {list: "a list", type(None): "nothing"}.get(type(value), f"the single value {value!r:.60}")


def merge(lower: Document, upper: Document, replaced: Mapping[str, Iterable[str]]) -> Document:
    """Lay ``upper`` over ``lower``: mappings are merged key by key, anything else is replaced.

    Args:
        lower: The document that gives way.
        upper: The document that wins.
        replaced: Keys that describe one thing together: for a dotted key, the sibling keys of ``lower`` that are dropped
            when ``upper`` gives that key anew (a new ``data.train.path`` takes no columns from the old one).
    """
    origins = dict(lower.origins)
    values = _merged(lower.values, upper.values, (), origins, upper.origins, replaced)
    return Document(values, origins, upper.name or lower.name)


def _merged(
    lower: dict[str, Any],
    upper: dict[str, Any],
    path: Path,
    origins: dict[Path, str],
    upper_origins: Mapping[Path, str],
    replaced: Mapping[str, Iterable[str]],
) -> dict[str, Any]:
    values = dict(lower)
    for key in upper:
        for sibling in replaced.get(dotted((*path, key)), ()):
            if key in lower:
                values.pop(sibling, None)
    for key, value in upper.items():
        here = (*path, key)
        below = values.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            values[key] = _merged(below, value, here, origins, upper_origins, replaced)
            continue
        values[key] = value
        for stale in [known for known in origins if known[: len(here)] == here]:
            del origins[stale]
        origins.update({known: origin for known, origin in upper_origins.items() if known[: len(here)] == here})
    return values
