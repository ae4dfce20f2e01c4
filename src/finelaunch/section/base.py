"""The frozen base of all configuration, and how a document becomes one.

:func:`build` says everything that is wrong at once: pydantic finds the faults, this module gives each its origin, its
dotted key and the nearest known key. A section that refuses certain keys with an answer of its own (a setting that
belongs to the launch profile, a name that was removed) lists them in ``answers``.
"""

import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from finelaunch.errors import BadInput, Problem
from finelaunch.section.document import Document, Path, dotted


class Section(BaseModel):
    """A frozen group of settings that knows every key it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    answers: ClassVar[Mapping[str, str]] = {}
    """Keys that users may well write here and that are refused: what to do instead, by key."""


S = TypeVar("S", bound=Section)


class SettingError(ValueError):
    """A fault in one key of a section, raised by validators that look at several.

    Args:
        key: The key of the section concerned; empty for the section as a whole.
        what: What is wrong.
        allowed: What would be accepted.
        remedy: What to do.
    """

    def __init__(self, key: str, what: str, allowed: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.key, self.what, self.allowed, self.remedy = key, what, allowed, remedy


def build(section: type[S], document: Document) -> S:
    """Return ``document`` as a ``section``.

    Raises:
        BadInput: With one problem for each fault found.
    """
    try:
        return section.model_validate(document.values)
    except ValidationError as error:
        problems = [_problem(section, document, fault) for fault in error.errors(include_url=False)]
    raise BadInput(list(dict.fromkeys(problems)))


def _problem(root: type[Section], document: Document, fault: Any) -> Problem:
    path = _path_in(document.values, fault["loc"], fault["type"])
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, SettingError):
        path = (*path, cause.key) if cause.key else path
        return Problem(document.origin(path), dotted(path), cause.what, cause.allowed, cause.remedy)
    origin, key = document.origin(path), dotted(path)
    if kind == "extra_forbidden":
        return _unknown_key(root, document, path)
    if kind == "missing":
        return Problem(origin, key, "is missing", _description(root, document.values, path))
    if kind == "union_tag_not_found":
        return Problem(origin, f"{key}.name", "is missing", "one of " + ", ".join(_tags(root, document.values, path)))
    if kind == "union_tag_invalid":
        known = _tags(root, document.values, path)
        near = difflib.get_close_matches(str(context["tag"]), known, 1, 0.5)
        return Problem(
            document.origin((*path, "name")),
            f"{key}.name",
            f"{context['tag']!r} is not known",
            "one of " + ", ".join(known),
            f"did you mean {near[0]!r}?" if near else "",
        )
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return Problem(origin, key or document.name, f"{value!r:.80} is not a mapping", "a mapping of its keys")
    allowed = (
        f"one of {context['expected']}" if kind == "literal_error" else fault["msg"].replace("Input should", "should")
    )
    near = _nearest_literal(value, context) if kind == "literal_error" else ""
    return Problem(origin, key, f"{value!r:.80} is not allowed", allowed, near)


def _nearest_literal(value: Any, context: Mapping[str, Any]) -> str:
    known = [word.strip("' ") for word in context["expected"].replace(" or ", ", ").split(",")]
    near = difflib.get_close_matches(str(value), known, 1, 0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def _path_in(values: Any, location: tuple[str | int, ...], kind: str) -> Path:
    """Drop from pydantic's location the tags of unions and names of types, which stand in no document."""
    path: list[str | int] = []
    for index, part in enumerate(location):
        if (isinstance(values, dict) and part in values) or (isinstance(values, list) and isinstance(part, int)):
            values = values[part]
        elif not (kind == "missing" and index == len(location) - 1):
            continue
        path.append(part)
    return tuple(path)


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated):
        for part in get_args(annotation):
            yield from _sections_in(part)


def _section_at(root: type[Section], values: Any, path: Path) -> type[Section] | None:
    """Return the section class that ``path`` leads to, the member of a union chosen by its ``name``."""
    section: type[Section] | None = root
    for part in path:
        if section is None or part not in section.model_fields:
            return None
        values = values.get(part) if isinstance(values, dict) else None
        members = list(_sections_in(section.model_fields[str(part)].annotation))
        name = values.get("name") if isinstance(values, dict) else None
        named = [member for member in members if _tag(member) == name]
        section = (named or members or [None])[0]
    return section


def _tag(section: type[Section]) -> str | None:
    options = get_args(section.model_fields["name"].annotation) if "name" in section.model_fields else ()
    return options[0] if options else None


def _tags(root: type[Section], values: Any, path: Path) -> list[str]:
    parent = _section_at(root, values, path[:-1])
    members = _sections_in(parent.model_fields[str(path[-1])].annotation) if parent else ()
    return [tag for tag in map(_tag, members) if tag]


def _description(root: type[Section], values: Any, path: Path) -> str:
    section = _section_at(root, values, path[:-1])
    return (section.model_fields[str(path[-1])].description or "") if section else ""


def _unknown_key(root: type[Section], document: Document, path: Path) -> Problem:
    section, word = _section_at(root, document.values, path[:-1]) or root, str(path[-1])
    origin, key = document.origin(path), dotted(path)
    if word in section.answers:
        return Problem(origin, key, "is not taken here", "", section.answers[word])
    near = nearest(word, section.model_fields)
    if near:
        return Problem(origin, key, "unknown key", "", f"did you mean {dotted((*path[:-1], near))!r}?")
    elsewhere = {dotted(known): str(known[-1]) for known in all_keys(root)}
    alike = nearest(word, elsewhere.values(), 0.85)
    places = [place for place, name in elsewhere.items() if name == alike]
    known = f"known here: {', '.join(section.model_fields)}"
    return Problem(origin, key, "unknown key", known, f"did you mean {places[0]!r}?" if places else "")


def nearest(word: str, known: Any, cutoff: float = 0.6) -> str | None:
    """Return the member of ``known`` most like ``word``, or None where none is alike."""
    found = difflib.get_close_matches(word, list(known), 1, cutoff)
    return found[0] if found else None


def all_keys(root: type[Section], path: Path = ()) -> Iterator[Path]:
    """Yield the path of every key that ``root`` and the sections in it take."""
    for name, info in root.model_fields.items():
        yield (*path, name)
        for section in _sections_in(info.annotation):
            yield from all_keys(section, (*path, name))
