"""Why a job ended, from what real jobs have left behind; the culprit is named, and none of its victims."""

import pytest
from unit.slurm.told import ERRORS, SACCT

from finelaunch.slurm.ends import Evidence, blamed_ranks, clock, complaint, lines_of_last_start, why_ended
from finelaunch.slurm.jobs import JobState, Step, read_sacct

PEER = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.231.0.12]:31822"
BEGUN = ({"event": "submitted", "job_id": "3"}, {"event": "job_started", "job_id": "3"}, {"event": "started"})
FAILED = JobState("3", "FAILED", "scontrol", exit_code="143:0", derived_exit_code="0:15", nodes="node[1-2]")
UNKNOWN = JobState("3")


def lines(name):
    return lines_of_last_start(ERRORS[name].splitlines())


def ended(name, *events, job=FAILED, errors=None):
    return why_ended(Evidence((*BEGUN, *events), job, lines(name) if name else (), errors or {}))


def test_the_runs_own_word_beats_slurms():
    end = ended("kill", {"event": "finished"})
    assert end.kind == "finished"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING", "SUSPENDED"])
def test_what_goes_on_has_not_ended(state):
    assert ended("requeue", {"event": "stopped", "signal": "SIGUSR2"}, job=JobState("3", state)) is None


def test_the_first_rank_that_died_is_named_with_its_own_message():
    errors = {3: "ValueError: row 7 has no label", 2: PEER}
    end = ended("raise", errors=errors)
    assert (end.kind, end.rank, end.host) == ("error", 3, "node2")
    assert end.text == "rank 3 on node2: ValueError: row 7 has no label"
    assert "exited with exit code 1" in ended("raise").text


def test_a_victim_that_srun_saw_first_is_not_named():
    early = "srun: error: node1: tasks 0-1: Exited with exit code 1\n" + ERRORS["raise"].partition("\n")[2]
    errors = {0: PEER, 3: "ValueError: row 7 has no label"}
    assert why_ended(Evidence(BEGUN, FAILED, early.splitlines(), errors)).rank == 3
    victim = {"event": "failed", "rank": 0, "host": "node1", "victim": True, "error": "another rank has ended"}
    assert why_ended(Evidence((*BEGUN, victim), FAILED, early.splitlines(), {3: errors[3]})).rank == 3


def test_the_runs_own_records_name_the_culprit_where_srun_says_nothing():
    victim = {"event": "failed", "error": "another rank has ended, or did not answer within 600 s"}
    culprit = {"event": "failed", "rank": 2, "host": "node2", "victim": False, "error": "ValueError: x"}
    for order in ((victim, culprit), (culprit, victim)):
        end = ended("", *order, job=UNKNOWN)
        assert (end.rank, end.text) == (2, "rank 2 on node2: ValueError: x")
    assert ended("", victim).kind == "error"


def test_a_killed_rank_and_a_full_memory_are_told_apart():
    end = ended("kill", errors={3: PEER})
    assert (end.kind, end.rank) == ("killed", 2)
    assert "SIGKILL" in end.text
    by_line = ended("memory")
    assert (by_line.kind, by_line.rank, by_line.host) == ("out_of_memory", 1, "node1")
    by_step = ended("", job=JobState("3", "FAILED", "sacct", steps=(Step("0", "OUT_OF_MEMORY", "0:125"),)))
    by_code = ended("", job=JobState("3", "FAILED", "scontrol", derived_exit_code="0:125"))
    assert by_step.kind == by_code.kind == "out_of_memory"


def test_the_time_limit_by_state_and_by_the_daemons_word():
    job = read_sacct(SACCT["timeout"])["6"]
    end = ended("timeout", job=job)
    assert (end.kind, end.rank) == ("time_limit", None)
    assert "time limit of 1:00" in end.text
    assert ended("timeout", job=UNKNOWN).kind == "time_limit"
    refused = {"event": "not_requeued", "why": "3 restarts have brought no newer checkpoint"}
    assert "3 restarts" in ended("timeout", refused, job=job).text


def test_who_cancelled():
    end = ended("cancel", job=read_sacct(SACCT["cancel"])["7"])
    assert (end.kind, end.text) == ("cancelled", "cancelled by root")
    by_file = ended("cancel", {"event": "cancelled", "job_id": "3", "by": "anna"}, job=JobState("3", "CANCELLED"))
    assert by_file.text == "cancelled by anna"
    assert ended("cancel", job=UNKNOWN).text == "cancelled"
    stopped = {"event": "stopped", "signal": "SIGTERM"}
    assert ended("cancel", stopped, job=JobState("3", "CANCELLED")).kind == "cancelled"


@pytest.mark.parametrize(
    ("state", "kind"), [("NODE_FAIL", "node_failure"), ("BOOT_FAIL", "node_failure"), ("PREEMPTED", "preempted")]
)
def test_ends_that_slurm_alone_makes(state, kind):
    assert ended("", job=JobState("3", state, nodes="node1")).kind == kind
    words = {"NODE_FAIL": "NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS", "PREEMPTED": "PREEMPTION"}
    if state in words:
        line = f"slurmstepd-node1: error: *** JOB 3 ON node1 CANCELLED AT 2026-11-22T07:21:10 DUE TO {words[state]} ***"
        assert why_ended(Evidence(BEGUN, UNKNOWN, [line])).kind == kind


def test_a_users_mistake_is_said_as_it_was_said():
    text = "recipes/x.yaml:3: training.learning_rate: 'a' is no number"
    end = ended("exit 2", errors={0: complaint(lines("exit 2"))})
    assert (end.kind, end.rank, end.text) == ("bad_input", 0, f"rank 0 on node1: {text}")
    recorded = ended("exit 2", {"event": "failed", "error": text})
    assert (recorded.kind, recorded.text) == ("bad_input", text)


def test_a_stop_that_was_saved_is_no_failure():
    stopped, refused = {"event": "stopped", "signal": "SIGTERM"}, {"event": "not_requeued", "why": "no progress"}
    early = ["srun: error: node1: task 0: Exited with exit code 75", "srun: error: node2: tasks 2-3: Terminated"]
    end = why_ended(Evidence((*BEGUN, stopped, refused), FAILED, early))
    assert (end.kind, end.text) == ("stopped", "stopped and not requeued: no progress")
    assert why_ended(Evidence((*BEGUN, stopped), None)).text == "stopped by SIGTERM"


def test_a_requeue_by_its_own_word_is_no_end():
    events = ({"event": "stopped", "signal": "SIGUSR2"}, {"event": "requeued", "job_id": "3"})
    assert ended("", *events, job=UNKNOWN) is None


def test_an_end_without_a_trace_is_said_to_be_one():
    end = ended("", job=JobState("3", "FAILED", nodes="node1"))
    assert (end.kind, end.rank) == ("unknown", None)
    assert "nothing that was left says why" in end.text
    assert why_ended(Evidence(BEGUN, None)) is None
    assert why_ended(Evidence(())) is None


def test_a_local_launch_names_the_rank_that_died_first():
    events = (
        {"event": "started"},
        {"event": "failed", "error": "another rank has ended, or did not answer within 60 s"},
        {"event": "failed", "rank": 1, "host": "here", "error": "killed by SIGKILL"},
    )
    end = why_ended(Evidence(events))
    assert (end.kind, end.rank, end.text) == ("killed", 1, "rank 1 on here: killed by SIGKILL")
    events = ({"event": "started"}, {"event": "failed", "rank": 1, "host": "here", "error": "exit code 1"})
    assert why_ended(Evidence(events, errors={1: "ValueError: x"})).text == "rank 1 on here: ValueError: x"


def test_only_the_last_start_counts():
    old = ({"event": "failed", "rank": 1, "error": "ValueError: of the first start"},)
    assert why_ended(Evidence((*BEGUN, *old, {"event": "started"}))) is None
    both = (ERRORS["requeue"] + ERRORS["kill"]).splitlines()
    assert blamed_ranks(lines_of_last_start(both))[0] == 2
    assert why_ended(Evidence(BEGUN, FAILED, lines_of_last_start(both))).rank == 2
    assert lines_of_last_start(ERRORS["requeue"].splitlines()) == []


def test_a_complaint_is_the_end_of_the_last_traceback():
    log = [
        "Traceback (most recent call last):",
        "ValueError: the first",
        "submitit ERROR (2026-11-22 07:14:04) - Submitted job triggered an exception",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "[W1122 07:14:04 ProcessGroup.cpp] destroying",
        "srun: error: node1: task 0: Exited with exit code 1",
    ]
    assert complaint(log).startswith("torch.OutOfMemoryError: CUDA")
    assert complaint(["disk full; make room", "srun: error: x"]) == "disk full; make room"
    assert complaint([]) == ""


def test_times_are_written_as_slurm_writes_them():
    assert [clock(seconds) for seconds in (0, 61, 3661, 90061)] == ["0:00", "1:01", "1:01:01", "1-01:01:01"]
