"""What trials came to is said as it is: one that failed fails the whole, one that could not be made is no success."""

import json
from pathlib import Path

import pytest
from unit.chaos.chaos_rows import BENCH

from finelaunch.chaos.attempt import Bench
from finelaunch.chaos.session import STATE, _refuse_other_trials
from finelaunch.chaos.summary import exit_code_of, print_summary, sentence, summary
from finelaunch.errors import BadInput
from finelaunch.run.files import write_json


def row(kind="kill", index=0, recovered=True, **others):
    made = {"weights_equal": True, "log_equal": True, "steps_lost": 1, "seconds": 2.0, "problems": [], "folder": None}
    return {"kind": kind, "index": index, "seed": 0, "about": "SIGKILL", "recovered": recovered, **made, **others}


GOOD = row()
BAD = row(index=1, recovered=False, weights_equal=False, problems=["weights: SHA-256 a for b"], folder="chaos/kill-1")
NOT_RUN = {**row("disk", recovered=None, not_run="unshare: not permitted", steps_lost=None), "seconds": 0.0}


@pytest.mark.parametrize(
    ("rows", "code"),
    [([GOOD], 0), ([GOOD, NOT_RUN], 0), ([GOOD, BAD], 1), ([BAD, NOT_RUN], 1), ([NOT_RUN], 3), ([], 3)],
)
def test_exit_codes(rows, code):
    assert exit_code_of(rows) == code
    assert summary(rows, BENCH, Path("chaos"), "abc")["recovered"] is (code == 0)


def test_figures_count_what_was_run(capsys):
    found = summary([GOOD, BAD, NOT_RUN], BENCH, Path("chaos"), "abc")
    kill, disk = found["kinds"]["kill"], found["kinds"]["disk"]
    assert (kill["trials"], kill["run"], kill["recovered"], kill["weights_equal"]) == (2, 2, 1, 1)
    assert (disk["trials"], disk["run"], disk["recovered"], disk["max_steps_lost"]) == (1, 0, 0, None)
    print_summary(found)
    said = capsys.readouterr().out
    assert "disk: not run: unshare: not permitted" in said
    assert "kept in chaos/kill-1" in said


def test_a_trial_is_a_line():
    assert sentence(GOOD) == "kill 0: SIGKILL: recovered, same weights and log, 1 steps lost, 2.0 s"
    assert "NOT recovered: weights: SHA-256 a for b; kept in chaos/kill-1" in sentence(BAD)
    assert sentence({**NOT_RUN, "about": ""}) == "disk 0: not run: unshare: not permitted"
    assert not any("\n" in sentence(one) for one in (GOOD, BAD, NOT_RUN))


def test_a_bench_survives_being_written_down(tmp_path):
    write_json(tmp_path / "bench.json", BENCH.as_values())
    assert Bench.from_values(json.loads((tmp_path / "bench.json").read_text())) == BENCH


def test_only_the_same_trials_go_on_in_a_folder(tmp_path):
    asked = {"training": {"seed": 1}, "launch": {"device": "cpu"}}
    _refuse_other_trials(tmp_path / "new", asked)
    _refuse_other_trials(tmp_path, asked)
    (tmp_path / "lock.json").touch()
    _refuse_other_trials(tmp_path, asked)
    write_json(tmp_path / STATE, {"asked": asked, "facts": None})
    _refuse_other_trials(tmp_path, asked)
    with pytest.raises(BadInput) as caught:
        _refuse_other_trials(tmp_path, {"training": {"seed": 2}, "launch": {"device": "cuda"}})
    assert [problem.key for problem in caught.value.problems] == ["launch.device", "training.seed"]
    (tmp_path / STATE).unlink()
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(BadInput, match="holds no trials"):
        _refuse_other_trials(tmp_path, asked)
