"""The frozen base of all configuration, and how a document becomes one.

:func:`build` says everything that is wrong at once: pydantic finds the faults, this module gives each its origin, its
dotted key and the nearest known key. A section that refuses certain keys with an answer of its own (a setting that
belongs to the launch profile, a name that was removed) lists them in ``answers``.
"""

import difflib
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, ValidationError, model_validator

from finelaunch.errors import BadInput, Problem
from finelaunch.section.document import Document, Path, dotted, plain_value, undotted


class SettingError(ValueError):
    """A fault of a section that pydantic does not find, such as two keys that exclude each other.

    Args:
        key: The key of the section concerned, dotted where it lies deeper, such as ``train[1].name``; empty for the
            section as a whole.
        what: What is wrong.
        allowed: What would be accepted.
        remedy: What to do.
    """

    def __init__(self, key: str, what: str, allowed: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.key, self.what, self.allowed, self.remedy = key, what, allowed, remedy


class _Faults(ValueError):
    def __init__(self, found: list[SettingError]) -> None:
        super().__init__("; ".join(map(str, found)))
        self.found = found


class Section(BaseModel):
    """A frozen group of settings that knows every key it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    answers: ClassVar[Mapping[str, str]] = {}
    """Keys that users may well write here and that are refused: what to do instead, by key. Those of the outermost
    section answer in every section."""

    file_keys: ClassVar[tuple[str, ...]] = ()
    """Keys that may stand in the file and are settled before the section is built."""

    def faults(self) -> Iterator[SettingError]:
        """Yield what is wrong with keys that are each right by themselves; for sections to override."""
        yield from ()

    @model_validator(mode="after")
    def _without_faults(self) -> Self:
        if found := list(self.faults()):
            raise _Faults(found)
        return self


def told_apart(kind: Callable[[Any], str | None], allowed: str) -> Discriminator:
    """Return what settles which member of a union a value is meant to be, so that a wrong one is one fault.

    Args:
        kind: Gives the tag of the member; None: the value is of none.
        allowed: What would be accepted instead, words in quotes.
    """
    return Discriminator(kind, custom_error_type=_NO_MEMBER, custom_error_message=allowed)


_NO_MEMBER = "no_member"

S = TypeVar("S", bound=Section)


def build(section: type[S], document: Document) -> S:
    """Return ``document`` as a ``section``.

    Raises:
        BadInput: With one problem for each fault found, in the order of files and lines.
    """
    try:
        return section.model_validate(document.values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    problems = [problem for fault in faults for problem in _problems(section, document, fault)]
    raise BadInput(sorted(dict.fromkeys(problems), key=_file_and_line))


def _file_and_line(problem: Problem) -> tuple[bool, str, int]:
    file, _, line = problem.origin.rpartition(":")
    return (False, file, int(line)) if line.isdecimal() else (True, problem.origin, 0)


def _problems(root: type[Section], document: Document, fault: Any) -> Iterator[Problem]:
    path = _path_in(root, document.values, fault["loc"], fault["type"])
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, SettingError | _Faults):
        for found in cause.found if isinstance(cause, _Faults) else [cause]:
            place = (*path, *undotted(found.key))
            yield Problem(document.origin(place), dotted(place), found.what, found.allowed, found.remedy)
    elif fault["type"] == "extra_forbidden":
        yield _unknown_key(root, document, path)
    elif fault["type"].startswith("union_tag"):
        yield _unknown_name(root, document, path)
    elif fault["type"] == "missing":
        parent = _section_at(root, document.values, path[:-1])
        about = parent.model_fields[str(path[-1])].description if parent else None
        yield Problem(document.origin(path), dotted(path), "is missing", about or "")
    else:
        yield _bad_value(root, document, path, fault)


def _bad_value(root: type[Section], document: Document, path: Path, fault: Any) -> Problem:
    value, allowed, remedy = fault["input"], fault["msg"].replace("Input should", "should"), ""
    what = f"{value!r:.80} is not allowed"
    if fault["type"] in ("model_type", "dict_type", "model_attributes_type"):
        section = _section_at(root, document.values, path)
        what = "is empty" if value is None else f"{value!r:.80} is not a mapping"
        allowed = f"a mapping with keys such as {', '.join(section.model_fields)}" if section else "a mapping"
        remedy = "leave it out, or give it keys" if value is None else ""
    elif fault["type"] in ("literal_error", _NO_MEMBER):
        allowed = f"one of {fault['ctx']['expected']}" if fault["type"] == "literal_error" else allowed
        near = nearest(str(value), re.findall("'([^']*)'", allowed))
        remedy = f"did you mean {near!r}?" if near else ""
    elif isinstance(value, str) and not isinstance(plain_value(value), str):
        remedy = "leave the quotes out"
    return Problem(document.origin(path), dotted(path), what, allowed, remedy)


def _path_in(root: type[Section], values: Any, location: tuple[str | int, ...], kind: str) -> Path:
    """Drop from pydantic's location the tags of unions and names of types, which stand in no document."""
    path: Path = ()
    here: Any = values
    tag_follows = False
    for index, part in enumerate(location):
        if tag_follows:
            tag_follows = False
            continue
        if _holds(here, part):
            here = here[part]
        elif not (kind == "missing" and index == len(location) - 1):
            continue
        path = (*path, part)
        tag_follows = len(_sections_at(root, values, path)) > 1
    return path


def _holds(values: Any, part: str | int) -> bool:
    if isinstance(values, dict):
        return part in values
    return isinstance(values, list) and isinstance(part, int) and part < len(values)


def _members(annotation: Any) -> Iterator[Any]:
    """Yield what a value under ``annotation`` may be: the members of its unions."""
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _members(part)
    elif get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    else:
        yield annotation


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    yield from (one for one in _members(annotation) if isinstance(one, type) and issubclass(one, Section))


def _items_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the section classes that a list under ``annotation`` may hold."""
    for member in _members(annotation):
        if get_origin(member) is list:
            yield from _sections_in(get_args(member)[0])


def _sections_at(root: type[Section], values: Any, path: Path) -> list[type[Section]]:
    """Return the section classes that may stand at ``path``: several for a union, none for a single value."""
    if not path:
        return [root]
    is_item = isinstance(path[-1], int)
    above, name = (path[:-2], path[-2:-1]) if is_item else (path[:-1], path[-1:])
    parent = _section_at(root, values, above) if name else None
    field = parent.model_fields.get(str(name[0])) if parent else None
    within = _items_in if is_item else _sections_in
    return list(within(field.annotation)) if field else []


def _section_at(root: type[Section], values: Any, path: Path) -> type[Section] | None:
    """Return the section class that ``path`` leads to, the member of a union chosen by its ``name``."""
    members = _sections_at(root, values, path)
    for part in path:
        values = values[part] if _holds(values, part) else None
    name = values.get("name") if isinstance(values, dict) else None
    named = [member for member in members if _tag(member) == name]
    return next(iter(named or members), None)


def _tag(section: type[Section]) -> str | None:
    annotation = section.model_fields["name"].annotation if "name" in section.model_fields else None
    return get_args(annotation)[0] if get_origin(annotation) is Literal else None


def _unknown_name(root: type[Section], document: Document, path: Path) -> Problem:
    """Return the fault of a union whose ``name`` is missing, misspelt, or none of its members'."""
    members = _sections_at(root, document.values, path)
    known = [tag for tag in map(_tag, members) if tag]
    values: Any = document.values
    for part in path:
        values = values[part]
    place, allowed = (*path, "name"), "one of " + ", ".join(known)
    if "name" in values:
        near = nearest(str(values["name"]), known)
        what, remedy = f"{values['name']!r:.80} is not known", f"did you mean {near!r}?" if near else ""
        return Problem(document.origin(place), dotted(place), what, allowed, remedy)
    meant = nearest("name", [key for key in values if not any(key in member.model_fields for member in members)])
    if meant:
        wrong = (*path, meant)
        return Problem(document.origin(wrong), dotted(wrong), "unknown key", "", f"did you mean {dotted(place)!r}?")
    return Problem(document.origin(path), dotted(place), "is missing", allowed)


def _unknown_key(root: type[Section], document: Document, path: Path) -> Problem:
    above, word = path[:-1], str(path[-1])
    section = _section_at(root, document.values, above) or root
    origin, key = document.origin(path), dotted(path)
    answer = section.answers.get(word) or root.answers.get(word)
    if answer:
        return Problem(origin, key, "is not taken here", "", answer)
    if (parts := tuple(word.split("."))) in set(all_keys(section)):
        nested = ": {".join(parts) + ": …" + "}" * (len(parts) - 1)
        return Problem(origin, key, "a dotted key, as on the command line", "", f"write it nested: {nested}")
    meant = _meant(root, section, above, word)
    known = f"known here: {', '.join((*section.model_fields, *section.file_keys))}"
    if not meant:
        return Problem(origin, key, "unknown key", known)
    return Problem(origin, key, "unknown key", "", f"did you mean {' or '.join(map(repr, meant))}?")


def _meant(root: type[Section], section: type[Section], above: Path, word: str) -> list[str]:
    """Return the dotted keys that ``word``, written in the section at ``above``, may have meant."""
    near = nearest(word, (*section.model_fields, *section.file_keys))
    elsewhere = {dotted(path): str(path[-1]) for path in all_keys(root)}
    if near and (word not in elsewhere.values() or _num_edits(word, near) == 1):
        return [dotted((*above, near))]
    alike = nearest(word, elsewhere.values(), 0.85)
    return [place for place, name in elsewhere.items() if name == alike and place != dotted((*above, word))][:4]


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the member of ``known`` most like ``word``, or None where none is alike.

    Alike is what shares at least ``cutoff`` of its letters in order; the fewest edits decide between several.
    """
    known = list(dict.fromkeys(known))
    alike = difflib.get_close_matches(word, known, max(1, len(known)), cutoff)
    return min(alike, key=lambda name: _num_edits(word, name), default=None)


def _num_edits(word: str, name: str) -> int:
    """Return how many letters are put in, left out, changed or swapped with their neighbour between the two.

    Source: Damerau, A technique for computer detection and correction of spelling errors, CACM 7(3), 1964, in the form
    that edits no place twice (optimal string alignment).
    """
    rows = [list(range(len(name) + 1))]
    for i, letter in enumerate(word, 1):
        row, above = [i], rows[-1]
        for j, other in enumerate(name, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == name[j - 2] and word[i - 2] == other:
                row[j] = min(row[j], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def all_keys(root: type[Section], path: Path = ()) -> Iterator[Path]:
    """Yield the path of every key that ``root`` and the sections in it take, those that stand in lists left out."""
    for name, info in root.model_fields.items():
        yield (*path, name)
        for section in _sections_in(info.annotation):
            yield from all_keys(section, (*path, name))
