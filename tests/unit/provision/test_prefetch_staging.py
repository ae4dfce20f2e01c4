"""The node's own copy: one copies, the others wait, a killed one is no obstacle, and what is there is complete."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from finelaunch.errors import RequirementMissing
from finelaunch.provision.locked import Lock, LockedSource, locked_file, new_lock, write_lock
from finelaunch.provision.staging import stage

SNAPSHOT = "models--tiny--bert/snapshots/" + "a" * 40


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lock:
    """Return a lock of three files as the hub's client keeps them: links into a folder of blobs."""
    home = tmp_path / "shared" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(home))
    monkeypatch.setenv("FINELAUNCH_CACHE", str(tmp_path / "cache"))
    (home / SNAPSHOT / "original").mkdir(parents=True)
    (home / "blobs").mkdir()
    paths = [f"{SNAPSHOT}/{name}" for name in ("config.json", "model.safetensors", "original/tokenizer.model")]
    for number, path in enumerate(paths):
        (home / "blobs" / str(number)).write_bytes(os.urandom(1000 * (number + 1)))
        (home / path).symlink_to(home / "blobs" / str(number))
    (home.parent / "token").write_text("hf_secret")
    files = tuple(locked_file("hub", path) for path in paths)
    source = LockedSource("model", "model", "tiny/bert", None, "a" * 40, files)
    return new_lock("recipe.yaml", [source], [])


def copies(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_copy_holds_what_is_locked_and_nothing_else(lock: Lock, tmp_path: Path) -> None:
    shared = tmp_path / "shared" / "hub"
    environment = stage(lock, tmp_path / "node")
    copy = Path(environment.pop("HF_HUB_CACHE"))
    assert not environment
    assert contents(copy) == {file.path: (shared / file.path).read_bytes() for _, file in lock.files()}
    assert not [path for path in copy.rglob("*") if path.is_symlink()]
    assert not list((tmp_path / "node").rglob("token"))


def test_a_complete_copy_is_taken_as_it_is_and_a_damaged_one_is_made_anew(lock: Lock, tmp_path: Path) -> None:
    copy = Path(stage(lock, tmp_path / "node")["HF_HUB_CACHE"])
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert stage(lock, tmp_path / "node") == {"HF_HUB_CACHE": str(copy)}
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    whole = contents(copy)
    os.truncate(copy / SNAPSHOT / "model.safetensors", 10)
    stage(lock, tmp_path / "node")
    assert contents(copy) == whole
    assert copies(tmp_path / "node") == [copy]


def test_other_files_are_another_copy(lock: Lock, tmp_path: Path) -> None:
    first = stage(lock, tmp_path / "node")
    blob = tmp_path / "shared" / "hub" / "blobs" / "0"
    blob.write_bytes(b"x" * blob.stat().st_size)
    source = lock.sources[0]
    renewed = replace(source, files=tuple(locked_file("hub", file.path) for file in source.files))
    second = stage(replace(lock, sources=(renewed,)), tmp_path / "node")
    assert first != second
    assert len(copies(tmp_path / "node")) == 2


def _stage(path: str, folder: str, start: float) -> None:
    from finelaunch.provision.locked import read_lock

    lock = read_lock(Path(path))
    assert lock is not None
    time.sleep(max(0.0, start - time.time()))
    print(json.dumps(stage(lock, Path(folder))))


def test_of_many_at_once_one_copies(lock: Lock, tmp_path: Path) -> None:
    write_lock(lock, tmp_path / "lock.json")
    context = multiprocessing.get_context("spawn")
    given = (str(tmp_path / "lock.json"), str(tmp_path / "node"), time.time() + 3)
    ranks = [context.Process(target=_stage, args=given) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    (copy,) = copies(tmp_path / "node")
    shared = tmp_path / "shared" / "hub"
    assert contents(copy) == {file.path: (shared / file.path).read_bytes() for _, file in lock.files()}
    assert [path.suffix for path in (tmp_path / "node").iterdir() if path.name.startswith(".")] == [".lock"]


HOLDER = """
import sys, time
from pathlib import Path
from finelaunch.provision.staging import _turn
with _turn(Path(sys.argv[1])):
    Path(sys.argv[1]).with_name(sys.argv[2]).mkdir()
    print("mine", flush=True)
    time.sleep(600)
"""


def test_a_copier_that_is_killed_keeps_nobody_waiting_and_leaves_nothing(lock: Lock, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    name = Path(stage(lock, tmp_path / "elsewhere")["HF_HUB_CACHE"]).name
    folder.mkdir()
    words = [sys.executable, "-c", HOLDER, str(folder / f".{name}.lock"), f".{name}-draft"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        staged: list[dict[str, str]] = []
        waiting = threading.Thread(target=lambda: staged.append(stage(lock, folder)))
        waiting.start()
        waiting.join(1.0)
        assert not copies(folder), "it did not wait"
        holder.send_signal(signal.SIGKILL)
    waiting.join(60)
    assert staged == [{"HF_HUB_CACHE": str(folder / name)}]
    assert sorted(path.name for path in folder.iterdir()) == sorted([name, f".{name}.lock"])


def test_what_is_gone_too_large_or_not_writable_is_said(lock: Lock, tmp_path: Path) -> None:
    source = lock.sources[0]
    huge = replace(source.files[1], bytes=1 << 60)
    blob = tmp_path / "shared" / "hub" / "blobs" / "1"
    os.truncate(blob, 1 << 40)  # holes take no room
    vast = replace(source.files[1], bytes=1 << 40)
    with pytest.raises(RequirementMissing, match=r"1,099,511,627,776 bytes|1,099,511,63\d,\d+ bytes are to be staged"):
        stage(replace(lock, sources=(replace(source, files=(vast,)),)), tmp_path / "node")
    with pytest.raises(RequirementMissing, match=r"model\.safetensors: model: has 1,099,511,627,776 bytes"):
        stage(replace(lock, sources=(replace(source, files=(huge,)),)), tmp_path / "node")
    blob.unlink()
    with pytest.raises(RequirementMissing, match=r"model\.safetensors: model: is missing"):
        stage(lock, tmp_path / "node")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RequirementMissing, match=r"cannot be written: .*set cluster\.scratch"):
        stage(lock, tmp_path / "file" / "node")
    assert not copies(tmp_path / "node")


def test_nothing_of_the_hub_needs_no_copy(lock: Lock, tmp_path: Path) -> None:
    assert stage(replace(lock, sources=()), tmp_path / "node") == {}
    assert not (tmp_path / "node").exists()
