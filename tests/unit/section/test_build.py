"""From a document to a section: every fault at once, in order, with place, key, what is allowed and what to do."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from finelaunch.errors import BadInput, Problem
from finelaunch.section.base import Section, SettingError, all_keys, build, nearest
from finelaunch.section.document import read_document


class Cat(Section):
    name: Literal["cat"] = Field(description="the animal")
    lives: int = Field(default=9, gt=0, description="how many")


class Dog(Section):
    name: Literal["dog"] = Field(description="the animal")
    tricks: list[str] = Field(default=[], description="what it can do")


class Food(Section):
    answers: ClassVar[Mapping[str, str]] = {"milk": "not offered: use water"}

    kind: Literal["dry", "wet"] = Field(default="dry", description="dry or wet")
    grams: float = Field(default=1.0, description="how much")
    scoops: int | None = Field(default=None, description="how many")

    def faults(self) -> Iterator[SettingError]:
        if self.grams < 0:
            yield SettingError("grams", "is negative", "at least 0", "raise it")
        if self.scoops == 0:
            yield SettingError("scoops", "is none", "", "leave it out")


class House(Section):
    answers: ClassVar[Mapping[str, str]] = {"garden": "it is no part of a house"}
    file_keys: ClassVar[tuple[str, ...]] = ("base",)

    pet: Annotated[Cat | Dog, Field(discriminator="name")] = Field(description="a mapping with name")
    food: Food | None = Field(default=None, description="what it eats")
    extra: dict[str, Any] = Field(default={}, description="anything")
    labels: dict[str, str] = Field(default={}, description="a name each")


def problems_of(text: str) -> list[Problem]:
    with pytest.raises(BadInput) as caught:
        build(House, read_document(text, "h.yaml"))
    return caught.value.problems


def only(text: str) -> str:
    found = problems_of(text)
    assert len(found) == 1, found
    return str(found[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("food: {}", "h.yaml:1: pet: is missing; a mapping with name"),
        ("pet: {}", "h.yaml:1: pet.name: is missing; one of cat, dog"),
        ("pet: cat", "h.yaml:1: pet: 'cat' is not a mapping; a mapping with keys such as name, lives"),
        ("pet:", "h.yaml:1: pet: is empty; a mapping with keys such as name, lives; leave it out, or give it keys"),
        ("pet: {name: cta}", "h.yaml:1: pet.name: 'cta' is not known; one of cat, dog; did you mean 'cat'?"),
        ("pet: {name: [cat]}", "h.yaml:1: pet.name: ['cat'] is not known; one of cat, dog; did you mean 'cat'?"),
        ("pet:\n  nmae: cat\n  lives: 3", "h.yaml:2: pet.nmae: unknown key; did you mean 'pet.name'?"),
        ("pet: {name: cat, lives: 0}", "h.yaml:1: pet.lives: 0 is not allowed; should be greater than 0"),
        (
            "pet: {name: cat, lives: '9'}",
            "h.yaml:1: pet.lives: '9' is not allowed; should be a valid integer; leave the quotes out",
        ),
        ("pet: {name: cat, cat: {lives: 0}}", "h.yaml:1: pet.cat: unknown key; known here: name, lives"),
        ("pet:\n  name: cat\n  lvies: 3", "h.yaml:3: pet.lvies: unknown key; did you mean 'pet.lives'?"),
        ("pet: {name: dog, lives: 3}", "h.yaml:1: pet.lives: unknown key; known here: name, tricks"),
        ("pet: {name: dog, tricks: [1]}", "h.yaml:1: pet.tricks[0]: 1 is not allowed; should be a valid string"),
        ("pet: {name: dog}\nlives: 3", "h.yaml:2: lives: unknown key; did you mean 'pet.lives'?"),
        ("pet: {name: dog}\nbsae: x", "h.yaml:2: bsae: unknown key; did you mean 'base'?"),
        ("pet: {name: dog}\nfood.grams: 3", "h.yaml:2: food.grams: a dotted key, as on the command line; "
         "write it nested: food: {grams: …}"),
        ("pet: {name: dog}\nfood: {milk: 1}", "h.yaml:2: food.milk: is not taken here; not offered: use water"),
        ("pet: {name: dog, garden: 1}", "h.yaml:1: pet.garden: is not taken here; it is no part of a house"),
        ("pet: {name: dog}\nfood: {kind: dyr}", "h.yaml:2: food.kind: 'dyr' is not allowed; one of 'dry' or 'wet'; "
         "did you mean 'dry'?"),
        ("pet: {name: dog}\nfood: {grams: -1}", "h.yaml:2: food.grams: is negative; at least 0; raise it"),
        ("pet: {name: dog}\nlabels: {a: 1}", "h.yaml:2: labels.a: 1 is not allowed; should be a valid string"),
        ("pet: {name: dog}\nlabels: 3", "h.yaml:2: labels: 3 is not a mapping; a mapping"),
        ("pet: {name: dog}\nzzz: 3", "h.yaml:2: zzz: unknown key; known here: pet, food, extra, labels, base"),
    ],
)  # fmt: skip
def test_a_fault_says_where_what_and_what_to_do(text: str, said: str) -> None:
    assert only(text) == said


def test_all_faults_are_said_at_once_in_the_order_of_lines() -> None:
    text = "labels: {a: 1}\nfood:\n  grams: -1\n  scoops: 0\nzzz: 1\npet:\n  name: cat\n  lives: x\n  live: 1\n"
    found = problems_of(text)
    assert [problem.origin for problem in found] == [f"h.yaml:{line}" for line in (1, 3, 4, 5, 8, 9)]
    assert [problem.key for problem in found] == [
        "labels.a",
        "food.grams",
        "food.scoops",
        "zzz",
        "pet.lives",
        "pet.live",
    ]


def test_lines_are_ordered_as_numbers() -> None:
    text = "pet: {name: cat}\n" + "\n".join(f"wrong{n}: 1" for n in range(20))
    lines = [int(problem.origin.split(":")[1]) for problem in problems_of(text)]
    assert lines == sorted(lines)


def test_a_right_document_becomes_a_frozen_section() -> None:
    house = build(House, read_document("pet: {name: cat}\nfood: {grams: 2}\nextra: {a: [1, {b: null}]}", "h.yaml"))
    assert house.pet == Cat(name="cat")
    assert house.extra == {"a": [1, {"b": None}]}
    with pytest.raises(ValueError, match="frozen"):
        house.pet = Cat(name="cat")  # pyright: ignore


def test_all_keys_go_into_every_member_of_a_union() -> None:
    keys = set(all_keys(House))
    assert {("pet", "name"), ("pet", "lives"), ("pet", "tricks"), ("food", "grams"), ("labels",)} <= keys


def edits(word: str, name: str) -> int:
    """Optimal string alignment by its recursive definition."""
    if not word or not name:
        return len(word) + len(name)
    best = min(edits(word[1:], name) + 1, edits(word, name[1:]) + 1, edits(word[1:], name[1:]) + (word[0] != name[0]))
    if word[:2] == name[1::-1] and len(word) > 1 and len(name) > 1:
        best = min(best, edits(word[2:], name[2:]) + 1)
    return best


@given(st.text("abc", max_size=5), st.lists(st.text("abc", max_size=5), max_size=5))
@settings(deadline=None)
def test_the_nearest_has_the_fewest_edits(word: str, known: list[str]) -> None:
    found = nearest(word, known, 0.0)
    assert (found is None) == (not known)
    if found is not None:
        assert edits(word, found) == min(edits(word, name) for name in known)


@given(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=4))
@settings(deadline=None)
def test_a_known_word_is_its_own_nearest(word: str, known: list[str]) -> None:
    assert nearest(word, [*known, word]) == word or word == ""
