"""What becomes of a stopped job: every state that Slurm was seen in at that moment, and what is written down."""

from pathlib import Path

import pytest

from finelaunch.errors import FinelaunchError, LostPeer
from finelaunch.launch.cluster import Cluster
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.run.ranks import Ranks
from finelaunch.slurm import requeue
from finelaunch.slurm.commands import Answer
from finelaunch.slurm.history import (
    BY_SLURM,
    UNKNOWN_END,
    events_of,
    note_failure,
    note_start,
    requeues,
    state_requeues,
)
from finelaunch.slurm.requeue import Decision, decide
from finelaunch.slurm.submission import SubmittedJob, add_job, read_jobs

RUNNING = (
    "JobId=12 JobName=finelaunch-x UserId=root(0) JobState=RUNNING Reason=None Dependency=(null) Restarts={0} "
    "RunTime=00:01:33 TimeLimit=00:02:00 TimeMin=N/A PreemptEligibleTime=2026-11-21T10:00:00 PreemptTime={1}"
)
COMPLETING = RUNNING.replace("JobState=RUNNING", "JobState=COMPLETING")
CLUSTER = Cluster(signal_delay_seconds=20)
WITH_SUCCESSORS = Cluster(requeue="successors", successors=2)


def said(text: str, restarts: int = 0, preempted: str = "None") -> Answer:
    return Answer(True, text.format(restarts, preempted) + "\n")


@pytest.mark.parametrize(
    ("answer", "asked_by", "expected"),
    [
        (said(RUNNING), "SIGUSR2", Decision(True, True, "time limit")),
        (said(RUNNING, 3), "SIGUSR2", Decision(True, True, "time limit")),
        (
            said(RUNNING, 0, "2026-11-21T10:01:00"),
            "SIGUSR2",
            Decision(True, True, "preempted", "2026-11-21T10:01:00"),
        ),
        (
            said(RUNNING, 0, "2026-11-21T10:01:00"),
            "SIGTERM",
            Decision(True, True, "preempted", "2026-11-21T10:01:00"),
        ),
        (said(COMPLETING, 4), "SIGTERM", Decision(False, True, "requeued by Slurm or an operator")),
        (said(RUNNING.replace("00:02:00", "04:00:00")), "SIGUSR2", Decision(True, True, "asked by SIGUSR2")),
        (said(RUNNING), "came to no place", Decision(True, True, "came to no place")),
    ],
)
def test_what_goes_on(answer: Answer, asked_by: str, expected: Decision) -> None:
    assert decide(answer, asked_by, 3, CLUSTER, None, 1) == expected


@pytest.mark.parametrize("state", ["SIGNALING", "RUNNING,SIGNALING", "CONFIGURING", "SUSPENDED"])
def test_states_that_pass_are_no_end(state: str) -> None:
    answer = said(RUNNING.replace("JobState=RUNNING", f"JobState={state}"))
    assert decide(answer, "SIGUSR2", 0, CLUSTER, None, 1).requeue


def test_preemptions_do_not_count_as_standing_still() -> None:
    many = CLUSTER.max_restarts_without_progress + 5
    assert decide(said(RUNNING, 0, "2026-11-21T10:01:00"), "SIGTERM", 0, CLUSTER, None, many).requeue


def test_a_controller_that_is_busy_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in the place of scontrol, that is busy twice; and one that says a word that stays."""
    count = tmp_path / "count"
    program = tmp_path / "scontrol"
    program.write_text(
        f"#!/bin/sh\necho x >> {count}\n[ $(wc -l < {count}) -gt 2 ] && echo JobState=RUNNING && exit 0\n"
        "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(requeue, "ASK_AGAIN_SECONDS", 0.05)
    assert requeue.ask_patiently(["scontrol"], seconds=20).ok
    assert count.read_text() == "x\n" * 3
    program.write_text(f"#!/bin/sh\necho x >> {count}\necho 'error: Access/permission denied' >&2; exit 1\n")
    assert not requeue.ask_patiently(["scontrol"], seconds=20).ok
    assert count.read_text() == "x\n" * 4


def test_a_job_that_is_cancelled_stays_so() -> None:
    decision = decide(said(COMPLETING, 3), "SIGTERM", 3, CLUSTER, None, 1)
    assert not decision.requeue
    assert not decision.goes_on
    assert "cancelled" in decision.reason


def test_the_end_of_another_rank_is_no_reason_to_requeue() -> None:
    """srun ends the others by SIGTERM, while the job is RUNNING."""
    decision = decide(said(RUNNING), "SIGTERM", 0, CLUSTER, None, 1)
    assert not decision.goes_on
    assert "another rank" in decision.reason


def test_without_progress_it_ends() -> None:
    assert decide(said(RUNNING), "SIGUSR2", 0, CLUSTER, None, CLUSTER.max_restarts_without_progress).requeue
    decision = decide(said(RUNNING), "SIGUSR2", 0, CLUSTER, None, CLUSTER.max_restarts_without_progress + 1)
    assert not decision.goes_on
    assert "time_limit" in decision.reason


def test_where_scontrol_is_forbidden() -> None:
    silent = Answer(False, why="slurm_load_jobs error: Access/permission denied")
    decision = decide(silent, "SIGUSR2", 0, CLUSTER, None, 1)
    assert not decision.goes_on
    assert "successors" in decision.reason
    assert "denied" in decision.reason
    assert decide(silent, "SIGUSR2", 0, WITH_SUCCESSORS, "13", 1) == Decision(
        False, True, "time limit; job 13 takes over"
    )
    last = decide(silent, "SIGUSR2", 0, WITH_SUCCESSORS, None, 1)
    assert not last.goes_on
    assert "no job is left" in last.reason


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.delenv("FINELAUNCH_CLUSTER", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")  # no sacct
    run = RunDirectory(tmp_path / "run")
    run.begin({}, {}, ["test"])
    return run


def start(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, job: str, restart: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
    note_start(run, "slurm_cpu_2x2")


def test_an_end_without_a_word_is_written_down_at_the_next_start(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(run, monkeypatch, "12", 0)
    run.record("training", from_step=0, lost_steps=0)
    start(run, monkeypatch, "12", 1)
    run.record("training", from_step=10, lost_steps=4)
    state_requeues(run)
    told = run.read_manifest()["slurm"]
    assert told["jobs"] == ["12"]
    assert [(one["reason"], one["restart"], one["lost_steps"]) for one in told["requeues"]] == [(UNKNOWN_END, 0, 4)]
    assert [job.profile for job in read_jobs(run)] == ["slurm_cpu_2x2"]


def test_starts_without_progress_come_to_an_end(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    for restart in range(4):
        start(run, monkeypatch, "12", restart)
    with pytest.raises(FinelaunchError, match="no newer checkpoint"):
        start(run, monkeypatch, "12", 4)


def test_a_launch_after_the_end_without_progress_begins_to_count_anew(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for restart in range(4):
        start(run, monkeypatch, "12", restart)
    with pytest.raises(FinelaunchError):
        start(run, monkeypatch, "12", 4)
    add_job(run, SubmittedJob(time="2026-11-21T10:00:00+00:00", job_id="13"))
    run.record("submitted", job_id="13")
    start(run, monkeypatch, "13", 0)
    start(run, monkeypatch, "13", 1)


def test_launches_by_hand_are_no_requeues(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    for job in range(12, 18):
        start(run, monkeypatch, str(job), 0)
    assert requeues(read_lines(run.events)) == []


def test_a_preemption_that_slurm_names_later_is_known_at_the_next_start(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(run, monkeypatch, "12", 0)
    run.record("requeued", job_id="12", restart=0, reason=BY_SLURM, preempt_time=None, step=5)
    line = "slurmstepd-node1: error: *** JOB 12 ON node1 CANCELLED AT 2026-11-22T07:24:09 DUE TO PREEMPTION ***\n"
    (run.slurm / "12_0_log.err").write_text(line)
    start(run, monkeypatch, "12", 1)
    run.record("training", from_step=5, lost_steps=0)
    (one,) = requeues(read_lines(run.events))
    assert (one["reason"], one["preempt_time"], one["lost_steps"]) == ("preempted", "2026-11-22T07:24:09", 0)
    start(run, monkeypatch, "12", 2)
    assert requeues(read_lines(run.events))[-1]["reason"] == UNKNOWN_END, "the line is of the start before"


def test_failures_of_other_ranks_stand_in_files_of_their_own(run: RunDirectory) -> None:
    run.record("job_started", job_id="12", restart=0)
    note_failure(run, Ranks(2, 4, 0, 2, is_launched=True), ValueError("boom"))
    note_failure(run, Ranks(1, 4, 1, 2, is_launched=True), LostPeer("gone"))
    failed = [event for event in events_of(run) if event["event"] == "failed"]
    assert {(event["rank"], event["victim"]) for event in failed} == {(2, False), (1, True)}
    assert [event["event"] for event in read_lines(run.events)] == ["created", "job_started"]


def test_a_successor_of_a_cancelled_job_ends_and_one_of_victims_does_not(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job, after in (("12", None), ("13", "12"), ("14", "13")):
        add_job(run, SubmittedJob(time="2026-11-21T10:00:00+00:00", job_id=job, after=after))
    start(run, monkeypatch, "12", 0)
    run.record("requeued", job_id="12", restart=0, reason="time limit", preempt_time=None, step=5)
    note_failure(run, Ranks(1, 4, 1, 2, is_launched=True), LostPeer("gone"))
    start(run, monkeypatch, "13", 0)
    run.record("not_requeued", job_id="13", why="the job is COMPLETING: cancelled, or ended by Slurm")
    with pytest.raises(FinelaunchError, match="cancelled"):
        start(run, monkeypatch, "14", 0)


def test_a_successor_goes_on_with_a_stop_and_not_with_a_failure(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job, after in (("12", None), ("13", "12"), ("14", "13")):
        add_job(run, SubmittedJob(time="2026-11-21T10:00:00+00:00", job_id=job, after=after))
    start(run, monkeypatch, "12", 0)
    run.record("requeued", job_id="12", restart=0, reason="time limit", preempt_time=None, step=5)
    start(run, monkeypatch, "13", 0)
    run.record("failed", error="loss is no number at step 7")
    with pytest.raises(FinelaunchError, match=r"job 13.*loss is no number"):
        start(run, monkeypatch, "14", 0)


def test_lost_steps_belong_to_the_requeue_before() -> None:
    events = [
        {"event": "training", "lost_steps": 0},
        {"event": "requeued", "job_id": "1", "reason": "preempted"},
        {"event": "training", "lost_steps": 0},
        {"event": "requeued", "job_id": "1", "reason": "node failure"},
        {"event": "training", "lost_steps": 7},
        {"event": "training", "lost_steps": 9},
        {"event": "requeued", "job_id": "1", "reason": "time limit"},
    ]
    assert [(one["reason"], one["lost_steps"]) for one in requeues(events)] == [
        ("preempted", 0),
        ("node failure", 7),
        ("time limit", None),
    ]


def test_damaged_lines_of_the_list_of_jobs_are_left_out(run: RunDirectory) -> None:
    add_job(run, SubmittedJob(time="2026-11-21T10:00:00+00:00", job_id="12"))
    with (run.slurm / "jobs.jsonl").open("a") as file:
        file.write('{"job_id": 7}\n{"time": "x"}\n{"job_id": "13", "time": "x", "later": 1}\n{"cut')
    assert [job.job_id for job in read_jobs(run)] == ["12", "13"]
    assert len(read_lines(run.slurm / "jobs.jsonl")) == 4
