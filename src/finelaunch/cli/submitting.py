"""``launch`` on a Slurm cluster: everything is checked here, then the run is handed over."""

import grp
import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from finelaunch.data.cache import cache_root
from finelaunch.errors import EXIT_DONE, BadInput, Problem
from finelaunch.launch.cluster import Cluster
from finelaunch.launch.job import Job
from finelaunch.launch.place import place
from finelaunch.launch.plan import PYTHON, RUN, LaunchPlan, Site, rank_command
from finelaunch.launch.profile import Profile
from finelaunch.launch.runs import begin_anew, longest_save, refuse_another_job
from finelaunch.launch.sbatch import JOB, render, signal_delay, submission_environment
from finelaunch.operations.logs import print_log
from finelaunch.provision.locked import pinned, refuse_unfetched
from finelaunch.run.directory import RunDirectory
from finelaunch.run.lock import RunLock
from finelaunch.run.log import say
from finelaunch.section.document import Document
from finelaunch.slurm.jobs import job_states
from finelaunch.slurm.submission import Submission, read_jobs, require_submission, submit

UMASK = {True: 0o007, False: 0o077}
"""Who may read what a job writes: its owner's group where the cluster profile names one, else the owner alone."""


def submit_run(
    job: Job,
    plan: LaunchPlan,
    site: Site,
    run: RunDirectory,
    fresh: bool,
    allow_change: Sequence[str],
    wait: bool,
    as_json: bool,
) -> int:
    """Hand a run to Slurm, once nothing is wrong with it, and say which job it is.

    Args:
        job: What to run; the target of its profile is slurm.
        plan: What each rank is to do.
        site: The cluster profile, the document behind it, and its name.
        run: Where it goes.
        fresh: Set an older run aside.
        allow_change: Keys in which an older run may differ.
        wait: Follow the run to its end.
        as_json: Print one JSON object instead.

    Returns:
        The exit code: 0 once it is submitted; after waiting what the run's end comes to.

    Raises:
        BadInput: Something is wrong, or a job of this run is still in Slurm's hands.
        RequirementMissing: Slurm, submitit or prefetched files are not there.
        FinelaunchError: Slurm refuses.
    """
    cluster, cluster_document, cluster_name = site
    run = RunDirectory(Path(os.path.abspath(run.path)))
    _refuse_unshared(run, cluster, cluster_document)
    _refuse_foreign_group(cluster, cluster_document)
    refuse_unfetched(job.recipe, job.document, cluster, cluster_name)
    recipe, _ = pinned(job.recipe, job.document)
    placement = place(recipe, job.profile, job.profile_document)
    job.profile.engine(job.profile_document).require()
    require_submission()
    run.refuse_foreign_files()
    save_seconds = None if fresh else longest_save(run)
    delay_seconds = signal_delay(cluster, save_seconds)
    profile = _with_grace(job.profile, delay_seconds)
    scripts = [
        render(
            cluster,
            cluster_document,
            profile,
            run.path.name,
            run=str(run.path),
            python=sys.executable,
            folder=os.getcwd(),
            cache=str(cache_root()),
            after=JOB if number else None,
            save_seconds=save_seconds,
        )
        for number in range(1 + cluster.successors)
    ]
    environment, left_out = submission_environment(os.environ)
    argv, _ = rank_command(plan, {RUN: str(run.path), PYTHON: sys.executable})
    submission = Submission(
        run=run,
        recipe=recipe.model_dump(mode="json"),
        profile=profile.model_dump(mode="json"),
        cluster={**cluster.model_dump(mode="json"), "signal_delay_seconds": delay_seconds},
        profile_name=job.profile_name,
        cluster_name=cluster_name,
        time_limit_seconds=cluster.time_limit_seconds,
        num_nodes=profile.num_nodes,
        num_tasks=placement.num_processes,
        argv=argv[argv.index("train") :],
        scripts=scripts,
        environment=environment,
    )
    _refuse_second(run)  # it can say more than a lock that the job holds
    os.umask(UMASK[cluster.group is not None])
    if fresh and run.exists():
        begin_anew(run, recipe)
    with RunLock(run.lock):
        _refuse_second(run)  # somebody else may have been faster
        refuse_another_job(run, recipe, profile, placement, allow_change)
        if run.finished():
            say(f"{run.path} is finished; --fresh trains anew, --name NAME beside it")
            return EXIT_DONE
        _share(run, cluster, cluster_document)
        jobs = submit(submission)
    if secrets := [name for name in left_out if not name.startswith(("SLURM", "SBATCH", "SRUN"))]:
        say(f"not handed on to the job: {', '.join(secrets)}")
    if as_json:
        print(json.dumps({"run": str(run.path), "jobs": [one.job_id for one in jobs]}))
    else:
        others = f", then {', '.join(one.job_id for one in jobs[1:])} where it is stopped" if jobs[1:] else ""
        print(f"job {jobs[0].job_id}{others}: {run.path}")
        print(f"finelaunch status {run.path}; finelaunch logs -f {run.path}; finelaunch cancel {run.path}")
    if not wait:
        return EXIT_DONE
    return print_log(run, rank=0, num_lines=0, follows=True, since_job=jobs[0].job_id)


def _with_grace(profile: Profile, delay_seconds: int) -> Profile:
    """Return ``profile`` with no more patience for a place to save than there is between signal and time limit."""
    most = max(delay_seconds // 2, delay_seconds - 15)
    if profile.stop_grace_seconds <= most:
        return profile
    return profile.model_copy(update={"stop_grace_seconds": max(1, most)})


def _refuse_second(run: RunDirectory) -> None:
    """Refuse to submit what has been submitted.

    Raises:
        BadInput: A job of this run waits or runs.
    """
    jobs = [job.job_id for job in read_jobs(run)]
    if not jobs:
        return
    seen = job_states(jobs)
    for state in seen.jobs.values():
        if state.is_waiting or state.is_active:
            what = f"job {state.job_id} of this run is {state.state}"
            remedy = f"finelaunch status {run.path} shows it, finelaunch cancel {run.path} ends it"
            raise BadInput(Problem(str(run.path), "", what, "one job at a time", remedy))
    if seen.is_controller_silent:
        what = f"Slurm does not answer, and job {jobs[-1]} of this run may still be there"
        raise BadInput(Problem(str(run.path), "", what, "", "try again when squeue answers"))


def _refuse_unshared(run: RunDirectory, cluster: Cluster, document: Document) -> None:
    """Refuse a run directory that the nodes do not see; sbatch would fail without a word.

    Raises:
        BadInput: It does not lie below the cluster's shared folder.
    """
    if cluster.shared_folder is None:
        return
    shared = Path(os.path.expandvars(os.path.expanduser(cluster.shared_folder))).resolve()
    if shared not in (run.path.resolve(), *run.path.resolve().parents):
        origin = document.origin(("shared_folder",))
        what = f"{run.path} does not lie below {shared}, so the nodes do not see it"
        raise BadInput(Problem(origin, "cluster.shared_folder", what, "", "choose --run-dir below it"))


def _refuse_foreign_group(cluster: Cluster, document: Document) -> None:
    """Refuse a group that this user cannot give files to.

    Raises:
        BadInput: There is none of that name, or this user does not belong to it.
    """
    if cluster.group is None:
        return
    try:
        number = grp.getgrnam(cluster.group).gr_gid
    except KeyError:
        what = f"there is no group {cluster.group!r}"
    else:
        if os.geteuid() == 0 or number in (os.getegid(), *os.getgroups()):
            return
        what = f"this user does not belong to {cluster.group!r}"
    raise BadInput(Problem(document.origin(("group",)), "cluster.group", what, "", "one that id -Gn names"))


def _share(run: RunDirectory, cluster: Cluster, document: Document) -> None:
    """Make the folders of a run, for the group that the cluster profile names where it names one.

    Raises:
        BadInput: A folder of somebody else is not for that group; only its owner can change that.
    """
    run.slurm.mkdir(parents=True, exist_ok=True)
    if cluster.group is None:
        return
    group, wanted = grp.getgrnam(cluster.group).gr_gid, stat.S_ISGID | 0o770
    for folder in (run.path, run.slurm):
        known = folder.stat()
        try:
            if known.st_gid != group:
                os.chown(folder, -1, group)
            if known.st_gid != group or known.st_mode & wanted != wanted:
                folder.chmod(wanted)
        except PermissionError:
            what = f"{folder} is somebody else's, and not for {cluster.group!r}"
            remedy = f"have its owner do: chgrp {cluster.group} {folder}; chmod 2770 {folder}"
            raise BadInput(Problem(document.origin(("group",)), "cluster.group", what, "", remedy)) from None
