"""A configuration text read into plain values, with the place each value came from.

PyYAML finds the structure; the values are read here by the rules of YAML 1.2, because those of YAML 1.1 turn ``2e-5``
into a string, ``no`` into false and ``12:30`` into 750. Duplicate keys, tags, cycles, numbers that no setting can hold
and texts that unfold to more than any recipe needs are refused. No text whatever makes this module raise anything but
:class:`BadInput`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from finelaunch.errors import BadInput, Problem

MAX_CHARACTERS = 200_000
MAX_NODES = 20_000
MAX_DEPTH = 40

Path = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_INFINITE = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")
_PARTS = re.compile(r"\[(\d+)\]|([^.\[]+)")
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

    def put(self, path: Path, value: Any, origin: str) -> "Document":
        """Return this document with ``value`` at ``path``; what encloses it must be there."""

        def copied(values: Any, rest: Path) -> Any:
            if not rest:
                return value
            copy = values.copy()
            first, *others = rest
            copy[first] = copied(values[first] if others else None, tuple(others))
            return copy

        return Document(copied(self.values, path), {**self.origins, path: origin}, self.name)

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


def undotted(key: str) -> Path:
    """Return the path that :func:`dotted` writes as ``key``; the empty one where ``key`` is empty."""
    return tuple(int(number) if number else word for number, word in _PARTS.findall(key))


def places(values: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield ``values`` and every value in it, each with its path."""
    yield path, values
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from places(value, (*path, key))


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


def read_value(text: str, name: str, path: Path) -> Any:
    """Read one YAML value, as the right side of ``key=value`` on the command line.

    Args:
        text: The YAML text; an empty one gives None.
        name: What to call its origin.
        path: The key that it is given to.

    Raises:
        BadInput: ``text`` is not a YAML value.
    """
    reader = _Reader(name)
    try:
        node = _compose(text, name)
        value = None if node is None else reader.read(node, path, ())
    except BadInput as error:
        cause = error.problems[0].what.removeprefix("not YAML: ")
        remedy = """put each text in double quotes, and all of it in single ones: KEY='"…"', or KEY='["…", "…"]'"""
        raise BadInput(Problem(name, dotted(path), f"{text!r:.80} is not a YAML value", cause, remedy)) from None
    if reader.problems:
        raise BadInput([replace(problem, origin=name) for problem in reader.problems])
    return value


_UNTAGGED = "untagged"


class _Loader(yaml.BaseLoader):
    """Gives what has no tag one of our own, so that a tag that was written can be told from it."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        return _UNTAGGED


def _compose(text: str, name: str) -> yaml.Node | None:
    if len(text) > MAX_CHARACTERS:
        what = f"more than {MAX_CHARACTERS:,} characters"
        raise BadInput(Problem(name, "", what, "", "is this a recipe? data stands in files of its own"))
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        origin = f"{name}:{mark.line + 1}" if mark else name
        reason = ", ".join(filter(None, (error.context, error.problem)))
    except yaml.reader.ReaderError as error:
        origin = f"{name}:{text.count(chr(10), 0, error.position) + 1}"
        reason = f"the character {error.character!r} has no place in a text"
    except RecursionError:
        raise BadInput(_too_much(name)) from None
    except Exception as error:  # whatever a malformed escape makes PyYAML raise: ValueError, OverflowError …
        origin, reason = name, " ".join(str(error).split()) or type(error).__name__
    raise BadInput(Problem(origin, "", f"not YAML: {reason}"))


def _too_much(origin: str) -> Problem:
    limit = f"at most {MAX_NODES:,} values, {MAX_DEPTH} deep"
    return Problem(origin, "", "unfolds to more than any recipe needs", limit, "mind its aliases")


class _Reader:
    """Turns nodes into values; collects problems instead of stopping at the first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.origins: dict[Path, str] = {}
        self.problems: list[Problem] = []
        self.num_nodes = 0

    def read(self, node: yaml.Node, path: Path, enclosing: tuple[int, ...]) -> Any:
        self.num_nodes += 1
        origin = f"{self.name}:{node.start_mark.line + 1}"
        if id(node) in enclosing:
            raise BadInput(Problem(origin, dotted(path), "an alias that contains itself", "", "write the values out"))
        if self.num_nodes > MAX_NODES or len(enclosing) > MAX_DEPTH:
            raise BadInput(_too_much(origin))
        self.origins[path] = origin
        if node.tag != _UNTAGGED:
            self._refuse(origin, path, f"the tag {node.tag!r:.80}", "plain values only", "leave the tag out")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*enclosing, id(node)))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        return [self.read(child, (*path, i), (*enclosing, id(node))) for i, child in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: Path, enclosing: tuple[int, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            origin, key = f"{self.name}:{line}", key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _UNTAGGED or not key.isprintable():
                self._refuse(origin, path, f"the key {key!r:.40}", "a plain word" if isinstance(key, str) else "a word")
            elif key == "<<":
                self._refuse(origin, path, "the merge key '<<' is not read", "", "use base:, or write the keys out")
            elif key in values:
                self._refuse(origin, (*path, key), f"stands twice, first in line {first_lines[key]}", "", "keep one")
            else:
                first_lines[key] = line
                values[key] = self.read(value_node, (*path, key), enclosing)
                self.origins[(*path, key)] = origin
        return values

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        try:
            # "\ud83d\ude00" is one character to JSON and two halves of it to PyYAML.
            text = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._refuse(self.origins[path], path, f"{node.value!r:.80} holds half a character", "text", "write it out")
            return None
        value = text if node.style is not None else plain_value(text)
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(self.origins[path], path, f"{text:.40} is not a finite number", "", "write a smaller one")
        if isinstance(value, int) and abs(value) >= 2**63:
            self._refuse(self.origins[path], path, f"{text:.40} does not fit 64 bits", "", "write a smaller one")
        return value

    def _refuse(self, origin: str, path: Path, what: str, allowed: str = "", remedy: str = "") -> None:
        self.problems.append(Problem(origin, dotted(path), what, allowed, remedy))


def plain_value(text: str) -> Any:
    """Return what ``text`` without quotes stands for: None, a bool, an int, a float, or itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.match(text):
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    return float(text.replace(".", "", 1)) if _INFINITE.match(text) else text


def _holds_mappings(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _kind(value: Any) -> str:
    return {list: "a list", type(None): "nothing"}.get(type(value), f"the single value {value!r:.60}")


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that :func:`plain_value` would take for something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        style = None if isinstance(plain_value(text), str) else "'"
        if any(character in text for character in "\x85\u2028\u2029"):  # line breaks to PyYAML, lost outside escapes
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def write_document(values: Mapping[str, Any]) -> str:
    """Return YAML text from which :func:`read_document` reads ``values`` again, in their order."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def merge(lower: Document, upper: Document, replaced: Mapping[str, Iterable[str]]) -> Document:
    """Lay ``upper`` over ``lower``: mappings are merged key by key, anything else is replaced.

    Args:
        lower: The document that gives way.
        upper: The document that wins.
        replaced: Keys that describe one thing together: for a dotted key, the sibling keys of ``lower`` that are
            dropped when ``upper`` gives that key another value (another ``data.train.path`` takes no columns along).

    Raises:
        BadInput: ``upper`` gives a key to what is a list of mappings in ``lower``.
    """
    origins = dict(lower.origins)
    problems: list[Problem] = []

    def laid_over(below: dict[str, Any], above: dict[str, Any], path: Path) -> dict[str, Any]:
        changed = [key for key, value in above.items() if below.get(key) != value]
        dropped = {sibling for key in changed for sibling in replaced.get(dotted((*path, key)), ())}
        values = {key: value for key, value in below.items() if key not in dropped}
        for key, value in above.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(values.get(key), dict):
                values[key] = laid_over(values[key], value, here)
            elif isinstance(value, dict) and value and _holds_mappings(values.get(key)):
                place = (*here, next(iter(value)))
                what = f"{dotted(here)} is a list of {len(values[key])} here, which takes no single key"
                remedy = f"give the whole list: {dotted(here)}='[{{{place[-1]}: …}}, …]'"
                problems.append(Problem(upper.origin(place), dotted(place), what, "", remedy))
            else:
                values[key] = value
                origins.update({place: upper.origin(place) for place, _ in places(value, here)})
        return values

    values = laid_over(lower.values, upper.values, ())
    if problems:
        raise BadInput(problems)
    kept = {place: origins[place] for place, _ in places(values) if place in origins}
    return Document(values, kept, upper.name or lower.name)
