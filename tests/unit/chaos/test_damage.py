"""Every kind of damage changes the file, and does what it is called."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.chaos.damage import DAMAGE, files_to_damage


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("damage") / "file"


@given(st.binary(min_size=1, max_size=400), st.sampled_from(sorted(DAMAGE)), st.integers())
def test_damage_is_damage_however_small_the_file(file, content, how, seed):
    file.write_bytes(content)
    DAMAGE[how](file, random.Random(seed))
    if how == "removed":
        assert not file.exists()
        return
    found = file.read_bytes()
    if how == "one bit flipped":
        changed = [one ^ other for one, other in zip(content, found, strict=True)]
        assert sum(byte.bit_count() for byte in changed) == 1
        return
    share = float(how.removeprefix("cut to ").removesuffix(" %").removesuffix(" bytes")) / 100
    assert content.startswith(found)
    assert len(found) == min(int(len(content) * share), len(content) - 1)


def test_files_that_hold_nothing_are_left_alone(tmp_path):
    (tmp_path / "global_step2").mkdir()
    for name, content in (("manifest.json", b"{}"), ("global_step2/part", b"x"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
    assert files_to_damage(tmp_path) == ["global_step2/part", "manifest.json"]
