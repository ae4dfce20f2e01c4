"""A run directory: begun, stated, compared, set aside; and what happens where it is not what it should be."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finelaunch.errors import BadInput
from finelaunch.recipe.load import flatten
from finelaunch.run.directory import RunDirectory, Stopwatch, differences, refuse_differences
from finelaunch.run.lock import RunLock

RECIPE = {"task": {"name": "causal_lm"}, "training": {"learning_rate": 2e-5, "resume": "no"}, "revision": "12e4567"}
scalars = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.text("abc_", min_size=1, max_size=5)
values = st.recursive(scalars | words, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner))
recipes = st.dictionaries(names, values, max_size=4)


def begun(path: Path, recipe: Any = RECIPE) -> RunDirectory:
    run = RunDirectory(path)
    run.begin(recipe, {"device": "cpu"}, ["finelaunch", "train"])
    return run


@given(recipes)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_run_was_begun_with_comes_back(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any]
) -> None:
    monkeypatch.setattr("finelaunch.run.directory._commit", lambda: None)
    run = begun(tmp_path_factory.mktemp("run") / "r", recipe)
    assert run.stated() == {**recipe, "launch": {"device": "cpu"}}
    assert differences(dict(flatten(run.stated())), dict(flatten({**recipe, "launch": {"device": "cpu"}})), ()) == (
        [],
        [],
    )


def test_a_new_run_has_its_manifest_and_its_first_event(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "one")
    assert not run.exists()
    assert not run.finished()
    run = begun(run.path)
    assert run.exists()
    manifest = run.read_manifest()
    assert manifest["name"] == "one"
    assert manifest["command"] == ["finelaunch", "train"]
    assert {"torch", "transformers", "numpy"} <= set(manifest["versions"])
    run.note(engine={"name": "single"})
    assert run.warn("slow")
    assert not run.warn("slow")
    assert run.read_manifest() == {**manifest, "engine": {"name": "single"}, "warnings": ["slow"]}
    assert not run.has_trained()
    run.record("training", step=0)
    assert run.has_trained()
    run.record("finished")
    assert run.finished()


def test_the_folder_here_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = begun(Path("."))
    assert run.read_manifest()["name"] == "here"
    assert run.set_aside() == tmp_path / "here.1"


def test_runs_are_set_aside_under_the_first_free_number(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        run = begun(tmp_path / "r")
        run.record("mark", number=number)
        assert run.begin_anew() == tmp_path / f"r.{number}"
        assert not run.path.exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["r.1", "r.2", "r.3"]
    assert sorted(entry.name for entry in (tmp_path / "r.1").iterdir()) == [
        "events.jsonl", "manifest.json", "recipe.yaml",
    ]  # fmt: skip


def test_a_run_that_is_being_written_is_not_set_aside(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    with RunLock(run.lock), pytest.raises(BadInput, match="is being written by"):
        run.begin_anew()
    assert run.exists()


@pytest.mark.parametrize("name", ["train.py", "model", "checkpoints", "metrics.json"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(BadInput, match=f"holds no run, but {name}; an empty or a new folder; choose another --run-dir"):
        begun(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_run_that_was_killed_while_it_began_is_begun_again(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    run.recipe.unlink()
    run.log.parent.mkdir()
    with RunLock(run.lock):
        assert begun(tmp_path / "r").exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"a": ', "\ud800", None])
def test_a_manifest_that_was_changed_is_named(tmp_path: Path, content: str | None) -> None:
    run = begun(tmp_path / "r")
    run.manifest.unlink()
    if content is not None:
        run.manifest.write_bytes(content.encode(errors="surrogatepass"))
    for read in (run.read_manifest, run.stated):
        with pytest.raises(BadInput, match=r"manifest.json: is missing or no JSON object; put it back, or begin anew"):
            read()


def test_a_recipe_that_was_changed_is_named_with_its_line(tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    run.recipe.write_text("task: {name: a}\ntraining: [\n")
    with pytest.raises(BadInput, match=r"recipe.yaml:\d: not YAML"):
        run.stated()


def test_differences_name_the_key_and_both_values(tmp_path: Path) -> None:
    before = {"a.b": 1, "a.c": [1], "ab": None, "d.e.f": "x"}
    after = {"a.b": 2, "a.c": [1], "d.e.f": "y", "g": 3}
    assert differences(before, after, ()) == ([("a.b", 1, 2), ("d.e.f", "x", "y"), ("g", None, 3)], [])
    assert differences(before, after, ["a", "g"]) == ([("d.e.f", "x", "y")], ["a.b", "g"])
    assert differences(before, after, ["a.b", "d.e", "g"]) == ([], ["a.b", "d.e.f", "g"])
    assert differences(before, before, ()) == ([], [])
    with pytest.raises(BadInput, match=r"a\.b: the run was begun with 1, asked for is 2; --fresh begins anew"):
        refuse_differences(RunDirectory(tmp_path), differences(before, after, ["g"])[0])
    refuse_differences(RunDirectory(tmp_path), [])


@given(st.dictionaries(st.sampled_from(["a", "a.b", "ab.c", "d"]), st.integers(0, 1)), st.sampled_from(["a", "d"]))
def test_a_change_that_is_allowed_hides_no_other(before: dict[str, int], word: str) -> None:
    after = {"a": 0, "a.b": 0, "ab.c": 0, "d": 0}
    every, rest = differences(before, after, ())[0], differences(before, after, [word])[0]
    assert rest == [change for change in every if change[0].split(".")[0] != word]


def test_an_allowed_word_that_is_no_key_is_refused() -> None:
    with pytest.raises(BadInput, match=r"--allow-change: 'training.sede' is no key; did you mean 'training.seed'\?"):
        differences({"training.seed": 1}, {"training.seed": 2}, ["training.sede"])


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("x")
    for path in (tmp_path / "r", tmp_path / "r" / "deeper"):
        with pytest.raises(BadInput, match=r"cannot be a run directory: .*; choose another --run-dir"):
            RunLock(RunDirectory(path).lock).__enter__()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for path in (tmp_path, tmp_path / "r"):
        with pytest.raises(BadInput, match="cannot be a run directory: Permission denied"):
            RunLock(RunDirectory(path).lock).__enter__()


def test_seconds_are_booked_by_name() -> None:
    watch = Stopwatch()
    elapsed = watch.lap("a") + watch.lap("a")
    watch.lap("b")
    assert list(watch.seconds) == ["a", "b"]
    assert abs(watch.seconds["a"] - elapsed) < 0.01
    assert json.dumps(watch.seconds)
