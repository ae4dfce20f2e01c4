"""status, logs and cancel on run directories that are half written, empty or damaged: a sentence, never a traceback."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.operations.written import TRAINING, submitted, write_run
from unit.slurm.told import ERRORS

from finelaunch.errors import BadInput, FinelaunchError
from finelaunch.operations import show
from finelaunch.operations.cancel import cancel_run
from finelaunch.operations.logs import print_log
from finelaunch.operations.records import find_run, last_lines, last_rows
from finelaunch.operations.status import status_of
from finelaunch.run.directory import RunDirectory

FILES = (
    "events.jsonl",
    "manifest.json",
    "recipe.yaml",
    "lock.json",
    "samples.jsonl",
    "train_log.jsonl",
    "slurm/jobs.jsonl",
    "slurm/3_0_log.err",
    "logs/rank_0.log",
    "checkpoints/checkpoint-5/manifest.json",
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
KEYS = ("event", "time", "step", "steps", "job_id", "rank", "error", "by", "why", "signal", "validation", "lost_steps")
KEYS += ("loss", "samples_per_second", "tokens_per_second", "reason", "host", "pid", "machine", "started", "slurm_job")
KEYS += ("engine", "launch", "warnings", "profile", "time_limit_seconds", "num_tasks", "cluster", "after", "from_step")
EVENTS = ("started", "job_started", "training", "evaluated", "saved", "stopped", "failed", "requeued", "not_requeued")
ROWS = st.builds(
    lambda event, facts: {"event": event, "job_id": "3", "time": "2026-11-22T07:14:00+00:00", **facts},
    st.sampled_from((*EVENTS, "cancelled", "submitted")) | SCALARS,
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6),
)
LINES = st.lists(st.one_of(ROWS.map(json.dumps), VALUES.map(json.dumps), st.text(max_size=20)), max_size=6)


@pytest.fixture(autouse=True)
def no_slurm(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def look(run: RunDirectory, capsys) -> str:
    """Go through all three verbs and return what they say; any exception but the user's fails the test."""
    status = status_of([run])[0]
    text = "\n".join([*show.details(status), *show.table([status])])
    json.loads(json.dumps(show.as_json(status)))
    print_log(run, 0, 3, follows=False)
    with suppress(FinelaunchError):
        cancel_run(run, 0.0)
    return text + capsys.readouterr().out


def whole(folder: Path) -> RunDirectory:
    run = submitted(write_run(folder, "job_started", "started", TRAINING, target="slurm", num_logged=3), "3")
    (run.slurm / "3_0_log.err").write_text(ERRORS["raise"])
    run.log.parent.mkdir()
    run.log.write_text("a line\n")
    (run.checkpoints / "checkpoint-5").mkdir(parents=True)
    (run.checkpoints / "checkpoint-5" / "manifest.json").write_text("{}")
    return run


@pytest.mark.parametrize("name", FILES)
def test_each_file_missing_empty_cut_foreign_or_a_folder(name, tmp_path, capsys):
    damages = {
        "missing": Path.unlink,
        "empty": lambda path: path.write_text(""),
        "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "binary": lambda path: path.write_bytes(os.urandom(4096)),
        "null": lambda path: path.write_text("null\n3\n[]\n"),
        "deep": lambda path: path.write_text("[" * 100_000),
        "folder": lambda path: (path.unlink(), path.mkdir()),
        "dangling": lambda path: (path.unlink(), path.symlink_to(path.with_name("nowhere"))),
    }
    for kind, damage in damages.items():
        run = whole(tmp_path / f"{kind}")
        path = run.path / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"pid": 1, "host": "x"}))
        damage(path)
        assert run.path.name in look(run, capsys)


@given(st.dictionaries(st.sampled_from(FILES), LINES, min_size=1, max_size=4))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_content_gives_a_traceback(tmp_path_factory, capsys, content):
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    for name, lines in content.items():
        path = run.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("\n".join(lines).encode("utf-8", errors="surrogatepass"))
    assert look(run, capsys)


@pytest.mark.parametrize("name", ["nothing", "", "a\0b", "x" * 5000, "folder", "file", "/"])
def test_what_is_no_run_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput) as caught:
        find_run(name)
    assert len(caught.value.problems) == 1
    assert "RUN" in str(caught.value)


def test_of_a_long_file_the_end_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for step in range(20_000):
            file.write(json.dumps({"step": step, "rows": list(range(20))}) + "\n")
        file.write('{"step": 20000, "ro')
    assert last_rows(path)[0]["step"] == 19_999
    assert [row["step"] for row in last_rows(path, 2)] == [19_998, 19_999]
    path.write_text(json.dumps({"step": 1, "rows": list(range(200_000))}) + "\n")
    assert last_rows(path)[0]["step"] == 1
    assert last_lines(tmp_path / "nowhere", 10) == []
