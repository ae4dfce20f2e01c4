"""Locks: found by what a recipe names on the hub, pinning it, and refusing a job whose files are not there."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hub_repositories import RECIPE

from finelaunch.data.hub import hub_fingerprint, kept_rows
from finelaunch.data.section import given_sources
from finelaunch.errors import BadInput, RequirementMissing
from finelaunch.launch.cluster import Cluster
from finelaunch.provision.command import prefetch_command, tokenise_command
from finelaunch.provision.locked import (
    Lock,
    LockedSource,
    check_locked,
    find_lock,
    hub_cache,
    hub_names,
    lock_path,
    locked_file,
    new_lock,
    pinned,
    read_lock,
    refuse_unfetched,
    write_lock,
)
from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.recipe.schema import Recipe
from finelaunch.section.document import Document

MODEL, DATA = "a" * 40, "b" * 40
Load = Callable[..., tuple[Recipe, Document]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return what loads the recipe of the hub's tests with words of the command line, in a folder with own caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("FINELAUNCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "reviews.yaml").write_text(RECIPE)
    return lambda *words: load_recipe("reviews.yaml", read_overrides(words)["recipe"])


@pytest.fixture
def lock(load: Load) -> Lock:
    """Return a lock of files that are there, written where the recipe finds it."""
    recipe, document = load()
    weights = Path("models--tiny--bert/snapshots", MODEL, "model.safetensors")
    (hub_cache() / weights).parent.mkdir(parents=True)
    (hub_cache() / weights).write_bytes(b"weights")
    sources = [LockedSource("model", "model", "tiny/bert", None, MODEL, (locked_file("hub", weights),))]
    for name in ("train", "test"):
        split = getattr(recipe.data, name).model_copy(update={"revision": DATA})
        rows = kept_rows(split, name)
        rows.parent.mkdir(parents=True)
        rows.write_bytes(name.encode())
        file = locked_file("cache", rows.relative_to(Path("cache").absolute()))
        sources.append(LockedSource(f"data.{name}", "dataset", "tiny/reviews", None, DATA, (file,)))
    made = new_lock(document.name, sources, [locked_file("local", Path("reviews.yaml").absolute())])
    write_lock(made, lock_path(recipe))
    fixed, _ = pinned(recipe, document, made)
    write_lock(made, lock_path(fixed))
    return made


def test_a_lock_is_read_as_it_was_written_and_another_file_is_said(lock: Lock, load: Load, tmp_path: Path) -> None:
    recipe, _ = load()
    assert find_lock(recipe) == lock
    assert read_lock(tmp_path / "none.json") is None
    content = json.loads(lock_path(recipe).read_text())
    for wrong in ("{", "[]", "{}", json.dumps({**content, "format": 99}), json.dumps({**content, "sources": [1]})):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(BadInput, match=r"wrong\.json: is no lock of this version: .*prefetch RECIPE writes it"):
            read_lock(tmp_path / "wrong.json")


def test_what_is_named_on_the_hub_alone_decides_which_lock_it_is(lock: Lock, load: Load, tmp_path: Path) -> None:
    path = lock_path(load()[0])
    for words in (
        ["training.learning_rate=1e-5"],
        ["data.train.max_samples=4"],
        ["task.max_length=16"],
        ["data.seed=1"],
    ):
        assert lock_path(load(*words)[0]) == path
    others = [
        ["model.name_or_path=tiny/other"],
        ["model.revision=v1"],
        ["data.train.path=hub:tiny/other"],
        ["data.train.subset=s"],
        ["data.train.split=test"],
        ["data.train.revision=v1"],
        ["data.train.path=reviews.yaml"],
    ]
    assert len({lock_path(load(*words)[0]) for words in others} | {path}) == len(others) + 1
    (tmp_path / "tiny" / "bert").mkdir(parents=True)  # a folder of that name is no hub name any more
    (tmp_path / "tiny" / "bert" / "config.json").write_text("{}")
    assert [name.key for name in hub_names(load()[0])] == ["data.train", "data.test"]
    assert find_lock(load()[0]) is None


def test_a_pinned_recipe_has_the_commits_wherever_it_comes_from_and_finds_the_same_lock(lock: Lock, load: Load) -> None:
    recipe, document = load("task.max_length=16")
    fixed, fixed_document = pinned(recipe, document)
    assert (fixed.model.revision, fixed.data.train.revision) == (MODEL, DATA)
    assert fixed.data.test is not None
    assert fixed.data.test.revision == DATA
    assert fixed.task.max_length == 16
    assert fixed_document.origin(("model", "revision")) == str(lock_path(recipe))
    assert fixed_document.origin(("task", "max_length")) == "command line"
    assert pinned(fixed, fixed_document)[0] == fixed
    assert find_lock(fixed) == lock
    assert hub_fingerprint(fixed.data.train, "train") == f"hub:tiny/reviews@{DATA}:None:train"
    other, other_document = load("model.name_or_path=tiny/other")
    assert pinned(other, other_document) == (other, other_document)


def test_sources_of_a_list_are_pinned_each(load: Load, tmp_path: Path) -> None:
    words = [
        "data.train=[{path: hub:tiny/reviews, weight: 1}, {path: reviews.yaml, weight: 1}, "
        "{path: hub:tiny/more, weight: 2, revision: v1}]",
        "data.test=[{path: hub:tiny/reviews, split: dev}]",
    ]
    recipe, document = load(*words)
    names = [(name.key, name.repository, name.revision) for name in hub_names(recipe)]
    assert names[1:] == [
        ("data.train[0]", "tiny/reviews", None),
        ("data.train[2]", "tiny/more", "v1"),
        ("data.test[0]", "tiny/reviews", None),
    ]
    sources = [
        LockedSource(name.key, name.kind, name.repository, name.revision, DATA, ()) for name in hub_names(recipe)[1:]
    ]
    made = new_lock(document.name, sources, [])
    write_lock(made, lock_path(recipe))
    fixed, fixed_document = pinned(recipe, document)
    found = [source.section.revision for source in given_sources(fixed.data)]
    assert found == [DATA, None, DATA, DATA]
    assert fixed_document.origin(("data", "train", 2, "revision")) == str(lock_path(recipe))
    assert fixed_document.origin(("data", "train", 2, "weight")) == "command line"
    assert given_sources(recipe.data)[0].section.revision is None
    others = [["data.test=[{path: hub:tiny/reviews, split: test}]", words[0]], ["data.train=[{path: a}]", words[1]]]
    assert len({lock_path(load(*given)[0]) for given in [words, *others]}) == 3


def test_what_is_gone_or_changed_is_named_by_size_or_by_content(lock: Lock, load: Load) -> None:
    assert check_locked(lock) == check_locked(lock, "hashes") == []
    weights = lock.sources[0].files[0].place()
    weights.write_bytes(b"WEIGHTS")
    assert check_locked(lock) == []
    (problem,) = check_locked(lock, "hashes")
    sha256 = lock.sources[0].files[0].sha256
    assert str(problem) == f"{weights}: model: has another content than when it was fetched (SHA-256 {sha256[:12]}…)"
    weights.write_bytes(b"more weights")
    lock.sources[2].files[0].place().unlink()
    problems = [str(problem) for problem in check_locked(lock)]
    assert problems[0] == f"{weights}: model: has 12 bytes, and had 7 when it was fetched"
    assert "data.test: is missing; it was fetched with 4 bytes" in problems[1]
    with pytest.raises(
        RequirementMissing, match=r"has 12 bytes(.|\n)*is missing(.|\n)*finelaunch prefetch reviews\.yaml"
    ):
        pinned(*load())


def test_a_job_without_internet_whose_files_are_not_there_is_refused_with_the_command(
    lock: Lock, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_unfetched(*load(), Cluster(), "here")
    refuse_unfetched(*load(), Cluster(hf_home=str(tmp_path / "hf")))
    refuse_unfetched(*load("model.name_or_path=tiny/other"), Cluster(offline=False))
    refuse_unfetched(*pinned(*load()), Cluster())
    with pytest.raises(
        RequirementMissing, match=r"model tiny/other, data\.train tiny/reviews.* was not fetched"
    ) as raised:
        refuse_unfetched(*load("model.name_or_path=tiny/other"), Cluster(), "here")
    command = "finelaunch prefetch reviews.yaml model.name_or_path=tiny/other --cluster here"
    assert str(raised.value).endswith(command)
    with monkeypatch.context() as elsewhere:  # the shell that submits has not set what the job will have
        elsewhere.delenv("HF_HOME")
        refuse_unfetched(*load(), Cluster(hf_home=str(tmp_path / "hf")))
    with pytest.raises(RequirementMissing, match=r"were fetched to .*/hf/hub, and the job looks into /elsewhere/hub"):
        refuse_unfetched(*load(), Cluster(hf_home="/elsewhere"))
    lock.sources[0].files[0].place().unlink()
    with pytest.raises(RequirementMissing, match=r"model\.safetensors: model: is missing"):
        refuse_unfetched(*load(), Cluster())


def test_the_commands_are_words_that_a_shell_takes_apart_again(load: Load) -> None:
    given = [
        "data.train.path=my file.jsonl",
        "task.label_names=[a, b c]",
        "data.train.max_samples=5",
        "model.revision=v1",
    ]
    recipe, document = load(*given, "training.max_steps=2")
    words = shlex.split(prefetch_command(document, "here"))
    assert words[:3] == ["finelaunch", "prefetch", "reviews.yaml"]
    assert words[-2:] == ["--cluster", "here"]
    again, _ = load(*words[3:-2])
    assert (again.data, again.model, again.task) == (recipe.data, recipe.model, recipe.task)
    cluster = Cluster(partition="cpu", account="lab", hf_home="/shared/hf")
    srun = shlex.split(tokenise_command(document, cluster, "here", "/shared/hf"))
    assert srun[0] == "srun"
    assert {"--partition=cpu", "--account=lab", "HF_HUB_OFFLINE=1", "HF_HOME=/shared/hf"} <= set(srun)
    assert srun[srun.index("finelaunch") :] == words


def test_the_hubs_cache_is_where_its_client_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import subprocess
    import sys

    cases = [
        {"HF_HOME": str(tmp_path / "a")},
        {"HF_HOME": str(tmp_path / "a"), "HF_HUB_CACHE": "~/b"},
        {"XDG_CACHE_HOME": str(tmp_path / "x")},
        {"HUGGINGFACE_HUB_CACHE": "$HOME/c"},
        {},
    ]
    names = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    for case in cases:
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in case.items():
            monkeypatch.setenv(name, value)
        asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert str(hub_cache()) == asked.stdout.strip(), case


def test_a_lock_of_one_file_knows_its_size(lock: Lock) -> None:
    assert lock.num_bytes() == 7 + 5 + 4
    assert replace(lock, sources=()).num_bytes() == 0
