"""Handing a run to Slurm, through submitit, and the list of the jobs that a run was given.

What is submitted is the plan's script, letter for letter. The job reads recipe, profile and cluster as they were at
that moment from the run directory; files that are edited while it waits or is requeued change nothing of it.
"""

import getpass
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from finelaunch.errors import BadInput, FinelaunchError, Problem, RequirementMissing
from finelaunch.launch.cluster import VARIABLE, Cluster, load_cluster
from finelaunch.run import signals
from finelaunch.run.directory import RunDirectory, now
from finelaunch.run.files import append_line, read_lines, write_json, write_text
from finelaunch.run.log import warn
from finelaunch.section.document import write_document
from finelaunch.slurm.commands import ask

COMMAND = "command.json"
JOBS = "jobs.jsonl"


@dataclass(frozen=True)
class SubmittedJob:
    """One job of a run.

    Args:
        time: When it was submitted, in UTC.
        job_id: Slurm's number.
        after: The job that it waits for and takes over from; None where it waits for none.
        cluster: The cluster profile's name; None where the job was submitted by hand.
        profile: The launch profile's name.
        num_nodes: Machines.
        num_tasks: Ranks.
        time_limit_seconds: Of each start.
        partition: Slurm's; None: the site's default.
        user: Who submitted it.
    """

    time: str
    job_id: str
    after: str | None = None
    cluster: str | None = None
    profile: str | None = None
    num_nodes: int | None = None
    num_tasks: int | None = None
    time_limit_seconds: int | None = None
    partition: str | None = None
    user: str | None = None


def read_jobs(run: RunDirectory) -> list[SubmittedJob]:
    """Return the jobs of a run, in the order of their submission; a line that is damaged is left out."""
    known = {field.name for field in fields(SubmittedJob)}
    rows = [row for row in read_lines(run.slurm / JOBS) if isinstance(row.get("job_id"), str) and "time" in row]
    return [SubmittedJob(**{key: value for key, value in row.items() if key in known}) for row in rows]


def add_job(run: RunDirectory, job: SubmittedJob) -> None:
    """Write down that ``job`` belongs to ``run``."""
    run.slurm.mkdir(parents=True, exist_ok=True)
    append_line(run.slurm / JOBS, asdict(job))


def this_job(profile_name: str) -> SubmittedJob:
    """Return the job that this process is a task of, as far as Slurm's variables tell."""
    environment = os.environ
    return SubmittedJob(
        time=now(),
        job_id=environment["SLURM_JOB_ID"],
        profile=profile_name,
        num_nodes=int(environment.get("SLURM_STEP_NUM_NODES") or 1),
        num_tasks=int(environment.get("SLURM_STEP_NUM_TASKS") or 1),
        partition=environment.get("SLURM_JOB_PARTITION"),
        user=environment.get("SLURM_JOB_USER"),
    )


def profile_name_of(run: RunDirectory, name: str) -> str:
    """Return what the launch profile of a rank is called: by its own name where it is the run's copy of one."""
    jobs = read_jobs(run) if name == str(run.slurm / "profile.yaml") else []
    return next((job.profile for job in reversed(jobs) if job.profile), name)


def read_command(run_dir: str | Path) -> list[str]:
    """Return the words of the ``train`` verb that each rank of the run in ``run_dir`` is to obey.

    Raises:
        BadInput: They are not there.
    """
    path = RunDirectory(Path(run_dir)).slurm / COMMAND
    try:
        return [str(word) for word in json.loads(path.read_text(encoding="utf-8"))["argv"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(Problem(str(path), "", "is missing or damaged", "", "launch the run again")) from None


def read_cluster(run: RunDirectory) -> Cluster:
    """Return the cluster profile that the run was submitted with, else the one the environment names, else defaults."""
    path = run.slurm / "cluster.yaml"
    named = str(path) if path.exists() else os.environ.get(VARIABLE)
    try:
        return load_cluster(named)[0] if named else Cluster()
    except BadInput as error:
        warn(f"{error}; how jobs go on is taken from the defaults")
        return Cluster()


@dataclass(frozen=True)
class Submission:
    """What is handed to Slurm.

    Args:
        run: The run directory, its path absolute.
        recipe: The resolved recipe.
        profile: The resolved launch profile.
        cluster: The resolved cluster profile.
        profile_name: What the launch profile is called.
        cluster_name: What the cluster is called.
        time_limit_seconds: Of each job.
        num_nodes: Machines.
        num_tasks: Ranks.
        argv: The words of ``train`` for each rank.
        scripts: The batch script of each job, in their order; ``<job>`` stands for the number of the one before.
        environment: What the command that submits is to see, and with it the job.
    """

    run: RunDirectory
    recipe: Mapping[str, Any]
    profile: Mapping[str, Any]
    cluster: Mapping[str, Any]
    profile_name: str
    cluster_name: str
    time_limit_seconds: int
    num_nodes: int
    num_tasks: int
    argv: Sequence[str]
    scripts: Sequence[str]
    environment: Mapping[str, str]


def require_submission() -> None:
    """Check that a run can be handed to Slurm from here.

    Raises:
        RequirementMissing: submitit or Slurm is not there.
    """
    _executor_class()


def submit(submission: Submission) -> list[SubmittedJob]:
    """Hand a run to Slurm and return its jobs: the first, and those that wait to take over.

    A job that Slurm has is written down, whatever signal comes meanwhile: nobody would know of it otherwise.

    Raises:
        RequirementMissing: submitit or Slurm is not there.
        FinelaunchError: Slurm refuses, or the job cannot be written down; jobs that were submitted before are named.
        Interrupted: A signal came; what was submitted until then is written down.
    """
    run, user = submission.run, this_user()
    executor_class = _executor_class()
    run.slurm.mkdir(parents=True, exist_ok=True)
    for name, values in (
        ("recipe", submission.recipe),
        ("profile", submission.profile),
        ("cluster", submission.cluster),
    ):
        write_text(run.slurm / f"{name}.yaml", write_document(values))
    write_json(run.slurm / COMMAND, {"argv": list(submission.argv)})
    jobs: list[SubmittedJob] = []
    for script in submission.scripts:
        before = jobs[-1].job_id if jobs else None
        text = script if before is None else script.replace("<job>", before)
        time = now()
        with signals.held():
            job = SubmittedJob(
                time=time,
                job_id=_hand_over(executor_class, submission, text, jobs),
                after=before,
                cluster=submission.cluster_name,
                profile=submission.profile_name,
                num_nodes=submission.num_nodes,
                num_tasks=submission.num_tasks,
                time_limit_seconds=submission.time_limit_seconds,
                partition=submission.cluster.get("partition"),
                user=user,
            )
            _write_down(run, job)
        jobs.append(job)
    return jobs


def this_user() -> str:
    """Return who asks; in a container without a list of users their number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _write_down(run: RunDirectory, job: SubmittedJob) -> None:
    """Add a job that Slurm has to the run's list; where that cannot be, the job is cancelled.

    Raises:
        FinelaunchError: The list cannot be written.
    """
    try:
        add_job(run, job)
        run.record("submitted", job_id=job.job_id)
    except OSError as error:
        answer = ask(["scancel", job.job_id])
        then = "it is cancelled" if answer.ok else f"scancel {job.job_id} ends it"
        what = f"job {job.job_id} is submitted, but cannot be written down: {error.strerror}; {then}"
        raise FinelaunchError(f"{run.slurm / JOBS}: {what}") from None


def _executor_class() -> Any:
    """Return submitit's executor, made to submit a script that is given."""
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise RequirementMissing("submitit is not installed; pip install 'finelaunch[slurm]'") from None
    if SlurmExecutor.affinity() < 0:
        raise RequirementMissing(
            "srun is not there: this is no login node of a Slurm cluster; finelaunch plan shows the script anywhere"
        )

    class PlannedExecutor(SlurmExecutor):
        """Submits the plan's script instead of one of submitit's own making."""

        script = ""
        num_tasks = 1

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return self.script

        def _num_tasks(self) -> int:
            return self.num_tasks

    return PlannedExecutor


def _hand_over(executor_class: Any, submission: Submission, script: str, before: Sequence[SubmittedJob]) -> str:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from finelaunch.slurm import task

    executor = executor_class(folder=submission.run.slurm)
    executor.script, executor.num_tasks = script, submission.num_tasks
    try:
        with _environment(submission.environment), _without_ctrl_c():
            return str(executor.submit(task.train, str(submission.run.path)).job_id)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        said = [line.partition("error:")[2].strip() for line in str(error).splitlines() if "error:" in line]
        left = f"; submitted before: {', '.join(job.job_id for job in before)}" if before else ""
        for path in submission.run.slurm.iterdir():  # what submitit has left of it
            if path.suffix in (".pkl", ".sh") and "_sub" not in path.name.removeprefix(".submission_file"):
                path.unlink()
        what = "; ".join(dict.fromkeys(said)) or str(error).strip() or "no answer"
        remedy = f"finelaunch doctor --cluster {submission.cluster_name} says what there is"
        raise FinelaunchError(f"sbatch refuses the job: {what:.400}{left}; {remedy}") from None


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Have commands that are started within not hear Ctrl-C, which a terminal sends to them too.

    sbatch would end between Slurm's taking the job and the job's number.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(environment: Mapping[str, str]) -> Iterator[None]:
    """Have the variables of this process be ``environment`` meanwhile: submitit hands on what it sees."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
