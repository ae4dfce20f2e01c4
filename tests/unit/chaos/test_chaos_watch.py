"""What is seen of a run from outside: whole lines only, and only what is new."""

import json

from finelaunch.chaos.watch import TAIL_BYTES, Trace, Watch, is_partial, last_step
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import append_line, write_lines


def test_the_last_whole_line_counts(tmp_path):
    file = tmp_path / "log.jsonl"
    assert last_step(file) == 0
    file.write_bytes(b"")
    assert last_step(file) == 0
    file.write_bytes(b'{"step": 3}\n{"step": 4}\n{"step": 5')
    assert last_step(file) == 4
    file.write_bytes(b'{"step": 3}\n\n\n')
    assert last_step(file) == 3
    write_lines(file, [{"step": 8, "rows": list(range(TAIL_BYTES))}])
    assert last_step(file) == 8
    append_line(file, {"step": 9, "rows": list(range(TAIL_BYTES))})
    assert last_step(file) == 9


def test_a_watch_sees_the_step_of_either_journal_and_events_since_it_began(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert Watch(run).step() == 0
    run.record("training", from_step=0)
    append_line(run.train_log, {"step": 10})
    watch = Watch(run)
    assert (watch.step_before, watch.events("training")) == (10, [])
    append_line(run.samples, {"step": 11})
    assert watch.step() == 11
    run.record("training", from_step=10)
    assert [event["from_step"] for event in watch.events("training")] == [10]
    write_lines(run.train_log, [{"step": 10}])
    write_lines(run.samples, [{"step": 10}])
    assert watch.step() == 10
    assert watch.step_before == 10


def test_a_trace_times_steps_saves_and_evaluations(tmp_path):
    run = RunDirectory(tmp_path / "run")
    trace = Trace(run)
    trace.look(1.0)
    run.record("started")
    trace.look(2.0)
    run.record("training", from_step=0)
    trace.look(5.0)
    for step in (1, 2):
        append_line(run.train_log, {"step": step})
        trace.look(5.0 + step)
    folder = run.checkpoints / "checkpoint-2"
    folder.mkdir(parents=True)
    assert is_partial(folder)
    trace.look(8.0)
    (folder / "manifest.json").write_text(json.dumps({"files": {}}))
    assert not is_partial(folder)
    run.record("saved", step=2)
    run.record("evaluated", step=2)
    trace.look(8.5)
    trace.look(11.0)
    assert (trace.started, trace.trained) == (2.0, 5.0)
    assert trace.step_seconds() == 1.0
    assert trace.save_seconds() == 0.5
    assert trace.evaluate_seconds() == 1.5
    assert trace.seconds_after(2) == 4.0
    assert 0 < trace.begin_bytes < trace.peak_bytes
