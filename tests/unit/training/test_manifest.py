"""A checkpoint counts only while every file of it is what was written."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finelaunch.training.manifest import (
    NAME,
    Checkpoint,
    checkpoints_in,
    describe_files,
    discard,
    newest_checkpoint,
    publish,
    read_checkpoint,
    surplus,
    writer_of,
)

FILES = {
    "model.safetensors": (0, b"w" * 4096),
    "optimizer.pt": (0, b"o" * 8192),
    "rng_state_0.pth": (0, b"r" * 100),
    "rng_state_1.pth": (1, b"s" * 100),
    "global_step4/mp_rank_00_model_states.pt": (0, b"m" * 300),
    "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt": (0, b"p" * 300),
    "global_step4/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": (1, b"q" * 300),
    "global_step4/zero_pp_rank_11_mp_rank_00_model_states.pt": (11, b"q" * 300),
    "pytorch_model_fsdp_0/__3_0.distcp": (3, b"f" * 300),
    "trainer_state.json": (0, b"{}"),
}
RANKS = (0, 1, 3, 11)
DAMAGES = {
    "absent": lambda path: path.unlink(),
    "0 bytes": lambda path: os.truncate(path, 0),
    "1 %": lambda path: os.truncate(path, path.stat().st_size // 100),
    "50 %": lambda path: os.truncate(path, path.stat().st_size // 2),
    "99 %": lambda path: os.truncate(path, path.stat().st_size * 99 // 100),
    "one bit": lambda path: flip(path, path.stat().st_size // 2),
}


def flip(path: Path, place: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def written(folder: Path, step: int = 4) -> Path:
    """Write a checkpoint as all ranks together do."""
    path = folder / f"checkpoint-{step}"
    for name, (_, content) in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    files = {name: said for rank in RANKS for name, said in describe_files(path, rank).items()}
    publish(path, {"step": step, "recipe": {"training.learning_rate": 2e-5}, "losses": [0.1, 1 / 3]}, files)
    return path


def whole(path: Path) -> Checkpoint:
    found = read_checkpoint(path)
    assert isinstance(found, Checkpoint), found
    return found


def test_every_file_is_described_by_the_rank_that_writes_it(tmp_path: Path) -> None:
    assert {name: writer_of(name) for name in FILES} == {name: rank for name, (rank, _) in FILES.items()}
    found = whole(written(tmp_path))
    assert set(found.content["files"]) == set(FILES)
    assert found.step == 4
    assert found.num_bytes == sum(len(content) for _, content in FILES.values())
    assert found.content["losses"] == [0.1, 1 / 3]
    assert found.damage() == []


def test_a_copy_is_as_good(tmp_path: Path) -> None:
    shutil.copytree(written(tmp_path / "a"), tmp_path / "b" / "checkpoint-4")
    assert whole(tmp_path / "b" / "checkpoint-4").damage() == []


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [*FILES, NAME])
def test_every_damage_of_every_file_is_seen_and_the_older_one_taken(file: str, damage: str, tmp_path: Path) -> None:
    written(tmp_path, 2)
    path = written(tmp_path)
    if damage == "99 %" and len((path / file).read_bytes()) < 3:
        damage = "50 %"
    DAMAGES[damage](path / file)
    found = read_checkpoint(path)
    if file == NAME:
        assert isinstance(found, str)
        newest = newest_checkpoint(tmp_path)
        assert newest is not None
        assert newest.step == 2
    else:
        assert isinstance(found, Checkpoint)
        assert [one for one in found.damage() if one.startswith(f"{file} ")]
    assert whole(tmp_path / "checkpoint-2").damage() == []


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_the_manifest_is_seen(
    place: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = written(tmp_path_factory.mktemp("flip"))
    before = json.loads((path / NAME).read_bytes())
    flip(path / NAME, int(place * (path / NAME).stat().st_size), bit)
    found = read_checkpoint(path)
    # A bit may turn one kind of white space into another.
    assert isinstance(found, str) or json.loads((path / NAME).read_bytes()) == before


def test_sizes_alone_see_a_cut_and_no_flipped_bit(tmp_path: Path) -> None:
    path = written(tmp_path)
    flip(path / "optimizer.pt", 17)
    assert whole(path).damage("size") == []
    assert len(whole(path).damage("sha256")) == 1
    os.truncate(path / "optimizer.pt", 17)
    assert whole(path).damage("size") == ["optimizer.pt has 17 bytes, not 8,192"]


def test_each_rank_looks_at_a_share_and_together_at_everything(tmp_path: Path) -> None:
    path = written(tmp_path)
    for name in FILES:
        (path / name).unlink()
    shares = [whole(path).damage("sha256", (rank, 3)) for rank in range(3)]
    assert sorted(one for share in shares for one in share) == sorted(f"{name} is missing" for name in FILES)


def test_a_file_that_might_be_loaded_is_seen_and_a_note_is_not(tmp_path: Path) -> None:
    path = written(tmp_path)
    (path / "NOTES.md").write_text("the good one")
    assert whole(path).damage() == []
    (path / "scaler.pt").write_bytes(b"pickle")
    assert whole(path).damage() == ["scaler.pt was added after it was written"]


def test_what_was_not_written_to_its_end_or_half_deleted_does_not_count(tmp_path: Path) -> None:
    path = written(tmp_path)
    (path / NAME).unlink()
    assert "not written to its end" in str(read_checkpoint(path))
    discard(path)
    assert not path.exists()
    assert "not written to its end" in str(read_checkpoint(path))


def test_a_renamed_checkpoint_is_not_the_newest(tmp_path: Path) -> None:
    written(tmp_path).rename(tmp_path / "checkpoint-9")
    assert "was written as checkpoint-4" in str(read_checkpoint(tmp_path / "checkpoint-9"))


def test_what_cannot_be_read_for_now_is_no_damage(tmp_path: Path) -> None:
    path = written(tmp_path)
    (path / NAME).unlink()
    (path / NAME).mkdir()
    with pytest.raises(OSError, match="directory"):
        read_checkpoint(path)


def test_folders_are_ordered_by_their_number_and_others_left_alone(tmp_path: Path) -> None:
    others = ("checkpoint-x", "checkpoint-", "else-3", "checkpoint-4-backup-1", "aside-checkpoint-5")
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", *others):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-100", "checkpoint-10", "checkpoint-9"]


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    paths = [tmp_path / f"checkpoint-{step}" for step in (5, 4, 3, 2, 1)]
    assert surplus(paths, None, ()) == []
    assert surplus(paths, 2, ()) == paths[2:]
    assert surplus(paths, 1, ()) == paths[1:]
    assert surplus(paths, 1, [paths[4]]) == paths[1:4]
    assert surplus(paths, 2, [paths[0]]) == paths[2:]
    assert surplus(paths[:2], 3, ()) == []


def test_files_get_the_mode_of_any_new_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"w")
    (path / "model.safetensors").chmod(0o600)
    plain = tmp_path / "plain"
    plain.touch()
    describe_files(path, 0)
    assert (path / "model.safetensors").stat().st_mode == plain.stat().st_mode
