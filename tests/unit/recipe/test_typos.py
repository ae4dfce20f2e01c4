"""A misspelt key gets the right suggestion; what transformers knows and a recipe does not take gets an answer."""

import dataclasses
import random
import re
import string
from typing import get_args

import pytest

from finelaunch.errors import BadInput
from finelaunch.launch.cluster import Cluster
from finelaunch.launch.profile import Profile
from finelaunch.methods import MethodSection
from finelaunch.recipe.schema import Recipe
from finelaunch.section.base import Section, all_keys, build
from finelaunch.section.document import Document, Path, dotted
from finelaunch.tasks.causal_lm import CausalLMSection
from finelaunch.tasks.question_answering import QuestionAnsweringSection
from finelaunch.tasks.text_classification import TextClassificationSection
from finelaunch.training.section import ANSWERS, MACHINE_SETTINGS, TrainingSection

METHODS = get_args(MethodSection)
TASKS = (QuestionAnsweringSection, TextClassificationSection, CausalLMSection)
LETTERS = string.ascii_lowercase + "_"


def typos(word: str) -> set[str]:
    """Every word that one letter put in, left out, changed, or swapped with its neighbour makes of ``word``."""
    cuts = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    put_in = {left + letter + right for left, right in cuts for letter in LETTERS}
    changed = {left + letter + right[1:] for left, right in cuts if right for letter in LETTERS}
    left_out = {left + right[1:] for left, right in cuts if right}
    swapped = {left + right[1] + right[0] + right[2:] for left, right in cuts if len(right) > 1}
    return (put_in | changed | left_out | swapped) - {word, ""}


def takers(path: Path) -> dict[str, type[Section]]:
    """The task and the method that take the key at ``path``, the first of each where it is another section's."""
    first = {"task": TASKS, "method": METHODS}
    for name, members in first.items():
        if path[0] == name and len(path) > 1:
            first[name] = tuple(member for member in members if path[1] in member.model_fields)
    return {name: members[0] for name, members in first.items()}


def known_beside(path: Path) -> set[str]:
    siblings = {str(key[-1]) for key in all_keys(Recipe) if key[:-1] == path[:-1]}
    if len(path) == 2 and path[0] in ("task", "method"):
        siblings = set(takers(path)[str(path[0])].model_fields)
    return siblings | {"base"}


def suggestion(path: Path, typo: str) -> str:
    values: dict[str, object] = {
        name: {"name": get_args(one.model_fields["name"].annotation)[0]} for name, one in takers(path).items()
    }
    inner = values
    for part in path[:-1]:
        inner = inner.setdefault(str(part), {})  # type: ignore
    if path[1:] == ("name",):
        inner.pop("name", None)
    inner[typo] = 1
    with pytest.raises(BadInput) as caught:
        build(Recipe, Document(values))
    wrong = dotted((*path[:-1], typo))
    return next((problem.remedy for problem in caught.value.problems if problem.key == wrong), "nothing said")


def test_one_letter_typos_of_every_key_get_the_right_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    num_right = num_tried = 0
    wrong = []
    for path in dict.fromkeys([("base",), *all_keys(Recipe)]):
        found = sorted(typos(str(path[-1])) - known_beside(path) - set(ANSWERS))
        for typo in draw.sample(found, min(30, len(found))):
            said = suggestion(path, typo)
            right = said == f"did you mean {dotted(path)!r}?"
            num_tried += 1
            num_right += right
            wrong += [] if right else [f"{dotted((*path[:-1], typo))}: {said}"]
    share = num_right / num_tried
    with capsys.disabled():
        print(f"\n{share:.2%} of {num_tried:,} one-letter typos get the right suggestion; others: {wrong[:8]}")
    assert num_tried > 2000
    assert share >= 0.95


@pytest.mark.parametrize("value", [object(), "?", -1.5, [object()], {"?": object()}, None])
def test_a_wrong_value_of_any_key_is_one_fault(value: object) -> None:
    for section in (*TASKS, *METHODS, TrainingSection, Profile, Cluster):
        for name in section.model_fields:
            try:
                build(section, Document({name: value}))
            except BadInput as error:
                said = [one for one in error.problems if re.match(rf"{name}(\W|$)", one.key)]
                assert len(said) <= 1, said


def test_every_field_of_training_arguments_is_taken_or_answered() -> None:
    from transformers import TrainingArguments

    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert len(fields) > 100
    assert not fields - set(ANSWERS) - set(TrainingSection.model_fields)


def test_no_key_is_taken_and_refused_at_once() -> None:
    assert not set(ANSWERS) & set(TrainingSection.model_fields)
    assert set(MACHINE_SETTINGS) <= set(ANSWERS)
    for section_keys in (Recipe.model_fields,):
        assert not set(Recipe.answers) & set(section_keys)


def test_answers_name_what_there_is() -> None:
    taken = {dotted(path) for path in all_keys(Recipe)} | {f"launch.{name}" for name in Profile.model_fields}
    for answer in Recipe.answers.values():
        for word in answer.replace(",", " ").replace(";", " ").split():
            key = word.partition("=")[0].strip("()")
            if key.startswith(("training.", "launch.")) and not key.isupper() and "KEY" not in key:
                assert key in taken, answer
