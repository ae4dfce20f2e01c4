"""The batch script of a run, as exact text: computed anywhere, without Slurm and without submitit.

What must be so, and why:

- One task of srun is one rank: what Slurm sends reaches it, also where the site tracks processes by cgroups, and no
  second launcher has to agree with Slurm on who is who. The script itself gets no signal (``USR2``, not ``B:USR2``).
- ``--kill-on-bad-exit=1``: the others would wait for a dead rank until their collectives' time-out.
- SRUN_CPUS_PER_TASK: since Slurm 22.05 srun no longer reads what the job was given, and a task would get one core.
- OMP_NUM_THREADS is a constant: another number of threads adds in another order, and a requeue would change bits.
- ``--cpu-bind=none``, unless the site says otherwise: a rank may use every core that the job has on its node, as under
  torchrun. Binding is worth a few percent where it fits; where a job's cores are not whole sockets or whole cores it
  ends the job ("Unable to satisfy cpu bind request"), on some starts and not on others.
- No ``--export`` for sbatch: a job has the environment of its submission (:func:`submission_environment` says which). A
  list there would drop what the site's own profile sets. ``--export=ALL`` for every srun: where a site sets
  SLURM_EXPORT_ENV=NONE for jobs, ranks would get nothing of what the script exports.
- TMPDIR below scratch is made on every node by a step of its own, before it is exported: slurmd looks for the folder
  when it starts a task, and puts /tmp in its place where it is not there. Its name holds the job's number, since the
  last step removes it and several jobs may share a scratch. A job that Slurm ends does not come to that step: its next
  start finds the folder again.
"""

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from finelaunch.errors import BadInput, Problem
from finelaunch.launch import shell
from finelaunch.launch.cluster import Cluster
from finelaunch.launch.environment import SECRET, is_of_a_launcher
from finelaunch.launch.profile import Profile
from finelaunch.section.document import Document

JOB, FOLDER, CACHE = "<job>", "<folder>", "<cache>"
"""What stays symbolic in a plan beside run and python: the job before, where the command was typed, our cache."""

EARLY_SECONDS = 60
"""How much earlier than asked Slurm may send a signal. Source: sbatch(1), --signal."""

UNMEASURED_DELAY_SECONDS = 120
LEAST_DELAY_SECONDS = 60
NUM_SAVES = 3
"""So many saves must have room in a job, or it would hardly do anything else."""


def render(
    cluster: Cluster,
    document: Document,
    profile: Profile,
    run_name: str,
    *,
    run: str,
    python: str,
    folder: str = FOLDER,
    cache: str = CACHE,
    after: str | None = None,
    save_seconds: float | None = None,
) -> str:
    """Return the batch script of one job of a run.

    Args:
        cluster: The site.
        document: Behind it, for origins.
        profile: How many ranks, and on what.
        run_name: What the run is called.
        run: The run directory, absolute, or its symbol.
        python: The interpreter of the submission, or its symbol; the cluster's own goes before it.
        folder: Where the job starts, absolute, or its symbol.
        cache: The cache folder, absolute, or its symbol.
        after: For a job that takes over from another: the number of that one, or its symbol.
        save_seconds: The longest save that this run has measured.

    Raises:
        BadInput: The time limit leaves no time for progress, or a path cannot stand in a script.
    """
    check_time_limit(cluster, document, save_seconds)
    _check_paths({"run directory": run, "python": python, "folder": folder, "cache": cache})
    lines = [
        "#!/bin/bash",
        *_directives(cluster, profile, run_name, run, folder, after, signal_delay(cluster, save_seconds)),
        "",
        f"umask {'077' if cluster.group is None else '007'}",
        *cluster.setup,
        "",
        *_exports(cluster, profile, cache),
        *_scratch(cluster, profile),
        "",
        *_with_end(cluster, profile, _start(cluster, run, cluster.python or python)),
    ]
    return "\n".join(lines) + "\n"


def rank_environment(cluster: Cluster, profile: Profile) -> dict[str, str]:
    """Return what each rank of a job finds set beside the environment of its submission, in Slurm's own variables."""
    found = {
        "RANK": "$SLURM_PROCID",
        "LOCAL_RANK": "$SLURM_LOCALID",
        "WORLD_SIZE": str(profile.num_processes),
        "LOCAL_WORLD_SIZE": str(profile.num_processes_per_node),
        "MASTER_ADDR": "<first node>",
        "MASTER_PORT": "<by job, step and restart>",
        "OMP_NUM_THREADS": str(cluster.cpus_per_task),
    }
    return {**found, "DS_ACCELERATOR": "cpu"} if profile.device == "cpu" else found


def by_hand(
    cluster: Cluster, profile: Profile, recipe_name: str, profile_name: str, run_name: str, words: Sequence[str]
) -> str:
    """Return the command that submits the same without submitit, from a folder that has ``slurm/train.sbatch``.

    Options of the command win over the lines of the script; its first lines tell what else a site may need.
    """
    variables = {"RECIPE": recipe_name, "PROFILE": profile_name, "RUN": f"runs/{run_name}"}
    told = ("partition", "account", "qos", "time", "nodes", "ntasks-per-node", "cpus-per-task", "gres", "mem")
    told += ("gpus-per-node", "gpus-per-task", "signal")
    options = _options(cluster, profile, run_name, "", "", None, signal_delay(cluster))
    options.setdefault("gres", "none")  # takes back what the script asks for
    options["mem"] = options.get("mem") or "0"  # the same: all that the node has
    named = [f"--{name}={options[name]}" for name in told if options.get(name) is not None]
    set_before = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    others = [word for word in words if not word.startswith("cluster.")]
    return f"{set_before} {shlex.join(['sbatch', *named, 'slurm/train.sbatch', *others])}"


def signal_delay(cluster: Cluster, save_seconds: float | None = None) -> int:
    """Return how many seconds before the time limit Slurm is to send its signal.

    The cluster's own number; else three times the longest save and 30 s for the step that is under way, at least 60;
    else 120 until a save was measured. Three times, since all jobs of a shared file system may save at once.
    """
    if cluster.signal_delay_seconds is not None:
        return cluster.signal_delay_seconds
    if save_seconds is None:
        return UNMEASURED_DELAY_SECONDS
    return min(65_535, max(LEAST_DELAY_SECONDS, math.ceil(3 * save_seconds + 30)))


def check_time_limit(cluster: Cluster, document: Document, save_seconds: float | None = None) -> None:
    """Refuse a time limit in which a job would start, be told to stop, and have done nothing, for ever.

    Raises:
        BadInput: It is too short; with the arithmetic and the shortest that will do. Or the cluster's own delay is
            shorter than a save.
    """
    own = cluster.signal_delay_seconds
    if own is not None and save_seconds is not None and own < save_seconds:
        what = f"{own} s between signal and time limit, and a save of this run has taken {save_seconds:.0f} s"
        remedy = f"leave it out, or raise it to {signal_delay(Cluster(), save_seconds)}"
        origin = document.origin(("signal_delay_seconds",))
        raise BadInput(Problem(origin, "cluster.signal_delay_seconds", what, "", remedy))
    delay, saves = signal_delay(cluster, save_seconds), math.ceil(NUM_SAVES * (save_seconds or 0))
    needed = delay + EARLY_SECONDS + cluster.startup_seconds + saves
    if 60 * math.ceil(cluster.time_limit_seconds / 60) >= needed:  # Slurm counts begun minutes whole
        return
    save = f"{saves} for {NUM_SAVES} saves" if save_seconds is not None else "no save measured yet"
    parts = (
        f"{delay} from signal to limit + {EARLY_SECONDS} that Slurm may be early + {cluster.startup_seconds} to start"
    )
    what = f"{cluster.time_limit} leaves no time for progress: {parts} + {save} = {needed} s"
    hours, minutes = divmod(math.ceil(needed / 60), 60)
    remedy = "or lower cluster.signal_delay_seconds or cluster.startup_seconds, if they are less here"
    origin = document.origin(("time_limit",))
    raise BadInput(Problem(origin, "cluster.time_limit", what, f"{hours:02}:{minutes:02}:00 or more", remedy))


def submission_environment(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return what a job is submitted with, and the names that were left out.

    Left out is what speaks of another job or launcher, which a job would take for its own; secrets, since Slurm keeps
    and shows what a job was submitted with; and which GPUs the machine that submits has. SLURM_CONF stays, by which the
    commands find their cluster.
    """
    within_job = "SLURM_JOB_ID" in environment
    kept, left_out = {}, []
    for name, value in environment.items():
        is_foreign = is_of_a_launcher(name) and name != "SLURM_CONF"
        if is_foreign or SECRET.search(name) or name in _DEVICES or (within_job and name == "TMPDIR"):
            left_out.append(name)
        else:
            kept[name] = value
    return kept, sorted(left_out)


_DEVICES = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def _directives(
    cluster: Cluster, profile: Profile, run_name: str, run: str, folder: str, after: str | None, delay: int
) -> Iterator[str]:
    """Yield the lines for sbatch, in a fixed order."""
    given = _options(cluster, profile, run_name, run, folder, after, delay)
    yield from (shell.directive(name, value) for name, value in given.items() if value is not None)
    for word in cluster.sbatch_args:
        name, equals, value = word.removeprefix("--").partition("=")
        yield shell.directive(name, value if equals else True)
    if cluster.successors and after is None:
        yield f"# Then {cluster.successors} more, to take over, each with one line more: --dependency=afterany:{JOB}"


def _options(
    cluster: Cluster, profile: Profile, run_name: str, run: str, folder: str, after: str | None, delay: int
) -> dict[str, object]:
    """Return the options of sbatch; None for those that are not given."""
    return {
        "job-name": f"finelaunch-{re.sub(r'[^A-Za-z0-9._-]+', '-', run_name)[:100]}",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "exclusive": cluster.exclusive or None,
        "time": cluster.time_limit,
        "nodes": profile.num_nodes,
        "ntasks-per-node": profile.num_processes_per_node,
        "cpus-per-task": cluster.cpus_per_task,
        **_gpus(cluster, profile),
        "mem": cluster.memory,
        "mail-user": cluster.mail_user,
        "mail-type": cluster.mail_type,
        "signal": f"USR2@{delay}",
        "requeue" if cluster.requeue == "scontrol" else "no-requeue": True,
        "dependency": None if after is None else f"afterany:{after}",
        "open-mode": "append",
        "output": f"{run}/slurm/%j_0_log.out",
        "error": f"{run}/slurm/%j_0_log.err",
        "chdir": folder,
    }


def _gpus(cluster: Cluster, profile: Profile) -> dict[str, str]:
    if profile.device != "cuda":
        return {}
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    if cluster.gpus == "gpus-per-task":
        return {"gpus-per-task": f"{kind}1"}
    count = f"{kind}{profile.num_processes_per_node}"
    return {"gres": f"gpu:{count}"} if cluster.gpus == "gres" else {"gpus-per-node": count}


def _exports(cluster: Cluster, profile: Profile, cache: str) -> Iterator[str]:
    variables = dict(cluster.env)
    if cluster.hf_home is not None:
        variables["HF_HOME"] = cluster.hf_home
    if cluster.offline:
        variables["HF_HUB_OFFLINE"] = "1"
    variables["FINELAUNCH_CACHE"] = cache
    variables["OMP_NUM_THREADS"] = variables["SRUN_CPUS_PER_TASK"] = str(cluster.cpus_per_task)
    if profile.device == "cpu":
        variables["DS_ACCELERATOR"] = "cpu"
    variables["SUBMITIT_EXECUTOR"] = "slurm"  # by which submitit knows within the job where it is
    yield from (f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def _scratch(cluster: Cluster, profile: Profile) -> Iterator[str]:
    """Yield what makes the folder for temporary files on every node."""
    if cluster.scratch is None:
        return
    yield f"export FINELAUNCH_SCRATCH={shell.scratch_word(cluster.scratch)}"
    yield f'{_on_each_node(profile)} mkdir -p -- "$FINELAUNCH_SCRATCH/tmp-$SLURM_JOB_ID" || exit'
    yield 'export TMPDIR="$FINELAUNCH_SCRATCH/tmp-$SLURM_JOB_ID"'


def _with_end(cluster: Cluster, profile: Profile, start: str) -> Iterator[str]:
    """Yield the start, and what removes the folder for temporary files after it and keeps its exit code.

    The copy that was staged goes too, unless the folder is not the job's alone: others may use it then.
    """
    if cluster.scratch is None:
        yield start
        return
    remove = 'rm -rf -- "${FINELAUNCH_SCRATCH:?}/tmp-$SLURM_JOB_ID"'
    if cluster.stage and shell.names_job(cluster.scratch):
        staged = ' "${FINELAUNCH_SCRATCH:?}"/hub-* "${FINELAUNCH_SCRATCH:?}"/.hub-*'
        remove = f"sh -c '{remove}{staged}'"  # * is to be what lies on the node
    yield from ("code=0", f"{start} || code=$?", f"{_on_each_node(profile)} {remove}", 'exit "$code"')


def _on_each_node(profile: Profile) -> str:
    nodes = profile.num_nodes
    return f"srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --export=ALL"


def _start(cluster: Cluster, run: str, python: str) -> str:
    binding = [] if any(word.startswith("--cpu-bind") for word in cluster.srun_args) else ["--cpu-bind=none"]
    logs = ["--open-mode=append", "--output", f"{run}/slurm/%j_%t_log.out", "--error", f"{run}/slurm/%j_%t_log.err"]
    srun = ["srun", "--unbuffered", "--kill-on-bad-exit=1", "--export=ALL", *binding, *logs, *cluster.srun_args]
    return shlex.join([*srun, *cluster.container, python, "-u", "-m", "finelaunch.slurm.task", f"{run}/slurm"])


def _check_paths(paths: Mapping[str, str]) -> None:
    """Refuse what would end a line of the script, or what Slurm takes for a pattern.

    Raises:
        BadInput: A path is so.
    """
    problems = []
    for name, text in paths.items():
        if not text.isprintable():
            problems.append(Problem("command line", name, f"{text!r:.200} holds characters that cannot be seen"))
        elif name == "run directory" and ("%" in text or "\\" in text):
            what = f"{text!r:.200} holds % or \\, which mean something to Slurm in names of logs"
            problems.append(Problem("command line", name, what, "", "choose another --run-dir"))
    if problems:
        raise BadInput(problems)
