"""Checks of a cluster from what Slurm's commands have said, against a cluster profile and a launch profile."""

import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import median

from finelaunch.errors import BadInput
from finelaunch.launch import sbatch
from finelaunch.launch.cluster import Cluster
from finelaunch.launch.profile import Profile
from finelaunch.provision.site import UNLIMITED, NodeGroup, Site, leading_seconds, listed, seconds_of
from finelaunch.provision.verdicts import Check, failed, ok, unknown, warning
from finelaunch.run.files import read_lines
from finelaunch.section.document import Document
from finelaunch.slurm.commands import Answer

CRED_EXPIRE_SECONDS = 120
"""How long a requeued job waits where AuthInfo does not say. Source: slurm.conf(5), AuthInfo, cred_expire."""
TRUSTED_LOG_LINES = 20
STEP_SECONDS = 10
"""What the step that is under way may take to its end."""
SAVED_BYTES_PER_SECOND = 100e6
"""A slow shared file system."""

_MEMORY = re.compile(r"(\d+)([KMGT]?)")
_MIB = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}


def check_commands(answers: Mapping[str, Answer]) -> list[Check]:
    """Say which of sbatch, srun, scontrol, squeue and sacct are there and answer; ``answers`` is by their names."""
    found = []
    needed = [name for name in answers if name != "sacct"]
    for name in needed:
        answer = answers[name]
        if not answer.ok:
            remedy = "run this on a login node of the cluster" if answer.is_missing else "ask the site, or try again"
            found.append(failed("slurm", _said(name, answer), remedy))
    if not found:
        found.append(ok("slurm", f"{', '.join(needed)} are there and answer"))
    if (sacct := answers.get("sacct")) is not None:
        text = f"{_said('sacct', sacct)}; status will use squeue and the run's files"
        found.append(ok("sacct", "answers") if sacct.ok else warning("sacct", text))
    return found


def partition_of(cluster: Cluster, site: Site) -> tuple[str | None, Mapping[str, str]]:
    """Return the partition that jobs will go to, and its keys; both empty where nothing is known."""
    name = cluster.partition or site.default_partition()
    return name, site.partitions.get((name or "").split(",")[0], {})


def check_partition(cluster: Cluster, profile: Profile, site: Site) -> list[Check]:
    """Say whether the partition is there, open to the account, and large enough."""
    if not site.partitions:
        return [unknown("partition", site.silent.get("scontrol show partition", "nothing is known of it"))]
    name, keys = partition_of(cluster, site)
    if name is None:
        known = ", ".join(site.partitions)
        return [failed("partition", "the site has no default one", f"set cluster.partition to one of {known}")]
    if not keys:
        remedy = f"set cluster.partition to one of {', '.join(site.partitions)}"
        return [failed("partition", f"there is no {name}", remedy)]
    found = []
    if keys.get("State", "UP") != "UP":
        found.append(failed("partition", f"{name} is {keys['State']}", "wait, or choose another"))
    for key, what, value in (
        ("AllowAccounts", "account", cluster.account or site.default_account),
        ("AllowQos", "QOS", cluster.qos),
    ):
        allowed = listed(keys.get(key, "ALL"))
        if allowed is not None and value and value not in allowed:
            remedy = f"set cluster.{what.lower()}"
            found.append(
                failed("partition", f"{name} is not open to {what} {value}, but to {', '.join(allowed)}", remedy)
            )
    most = keys.get("MaxNodes", "UNLIMITED")
    here = keys.get("TotalNodes", "")
    for limit, what in ((most, "allows"), (here, "has")):
        if limit.isdigit() and int(limit) < profile.num_nodes:
            text = f"{name} {what} {limit} nodes, and the profile asks for {profile.num_nodes}"
            found.append(failed("partition", text, f"use launch.num_nodes={limit}, or another partition"))
    return found or [ok("partition", f"{name} is up, with {here or 'some'} nodes")]


def check_nodes(cluster: Cluster, profile: Profile, site: Site) -> list[Check]:
    """Say whether enough nodes of the partition have the GPUs, cores and memory that are asked for."""
    name, _ = partition_of(cluster, site)
    groups = site.groups_of(name) if name else []
    if not groups:
        return [unknown("nodes", f"sinfo says nothing of {name or 'the partition'}")]
    per_node = profile.num_processes_per_node
    wishes: list[tuple[str, str]] = []
    fitting = groups
    if profile.device == "cuda":
        count = per_node if isinstance(per_node, int) else 1
        kind = cluster.gpu_type
        fitting = [group for group in fitting if _num_gpus(group, kind) >= count]
        kinds = sorted({f"{gpu or 'gpu'} x {number}" for group in groups for gpu, number in group.gpus.items()})
        have = ", ".join(kinds) or "no GPUs"
        wishes.append((f"{count} {kind or ''} GPUs a node".replace("  ", " "), have))
    if isinstance(per_node, int):
        cores = per_node * cluster.cpus_per_task
        fitting = [group for group in fitting if group.num_cpus >= cores]
        wishes.append((f"{cores} cores a node", f"{max(group.num_cpus for group in groups)} cores"))
    if cluster.memory and (wanted := memory_mib(cluster.memory)) is not None:
        fitting = [group for group in fitting if group.memory_mib >= wanted]
        wishes.append((f"memory {cluster.memory} a node", f"{max(group.memory_mib for group in groups):,} MiB"))
    if cluster.constraint and re.fullmatch(r"[\w.-]+", cluster.constraint):
        fitting = [group for group in fitting if cluster.constraint in group.features]
        wishes.append((f"constraint {cluster.constraint}", "others"))
    enough = sum(group.num_nodes for group in fitting)
    asked = ", ".join(wish for wish, _ in wishes)
    if enough >= profile.num_nodes:
        return [ok("nodes", f"{enough} of {name} have {asked or 'what is asked for'}")]
    have = "; ".join(f"{wish}: they have {there}" for wish, there in wishes)
    remedy = "change the cluster profile (gpu_type, cpus_per_task, memory, constraint) or launch.num_processes_per_node"
    return [failed("nodes", f"{enough} of {name} fit, {profile.num_nodes} are needed; asked are {have}", remedy)]


def check_time_limit(cluster: Cluster, document: Document, site: Site, save_seconds: float | None) -> list[Check]:
    """Say whether the time limit is allowed, and leaves time for progress; ``save_seconds`` is the longest save."""
    name, keys = partition_of(cluster, site)
    wanted = cluster.time_limit_seconds
    most = seconds_of(keys.get("MaxTime", ""))
    if most is not None and wanted > most:
        text = f"{cluster.time_limit} is more than {name} allows, {keys['MaxTime']}"
        return [failed("time limit", text, f"set cluster.time_limit to {keys['MaxTime']} or less")]
    try:
        sbatch.check_time_limit(cluster, document, save_seconds)
    except BadInput as error:
        return [failed("time limit", one.what, f"use {one.allowed}, {one.remedy}") for one in error.problems]
    over = keys.get("OverTimeLimit", "NONE")
    over = site.config.get("OverTimeLimit", "") if over in UNLIMITED else over
    grace = f"; jobs may run over by {over}" if over not in ("", "0", "0 min", *UNLIMITED) else ""
    text = f"{cluster.time_limit}, of which {_hours(useful_seconds(cluster, save_seconds))} or more train{grace}"
    return [ok("time limit", text if most is not None or not keys else f"{text}; {name} has no limit")]


def useful_seconds(cluster: Cluster, save_seconds: float | None) -> int:
    """Return how long a job trains at least, between its start-up and its signal."""
    lost = sbatch.signal_delay(cluster, save_seconds) + sbatch.EARLY_SECONDS + cluster.startup_seconds
    return max(0, cluster.time_limit_seconds - lost)


def check_requeue(cluster: Cluster, site: Site, checkpoint_bytes: int | None) -> list[Check]:
    """Say how a job that is stopped goes on, and whether a preempted one has the time to save a checkpoint."""
    if not site.config:
        return [unknown("requeue", site.silent.get("scontrol show config", "nothing is known of it"))]
    found = []
    expire = re.search(r"cred_expire=(\d+)", site.config.get("AuthInfo", ""))
    wait = int(expire.group(1)) if expire else CRED_EXPIRE_SECONDS
    pause = f"{wait} s or more pass between a requeue and the next start (AuthInfo cred_expire)"
    if cluster.requeue == "successors":
        found.append(ok("requeue", f"{cluster.successors} jobs that wait take over"))
    elif site.config.get("JobRequeue") == "0":
        found.append(
            warning("requeue", f"JobRequeue=0: only jobs that ask for it may, as ours do by --requeue; {pause}")
        )
    else:
        found.append(ok("requeue", f"permitted; {pause}"))
    return [*found, *_preemption(cluster, site, checkpoint_bytes)]


def sends_user_signal(config: Mapping[str, str]) -> bool:
    """Return whether a job that is preempted gets the signal that it asked for.

    The word moved from SlurmctldParameters to PreemptParameters. Source: slurm.conf(5) of 22.05 and 24.05.
    """
    newer = config.get("PreemptParameters", "").split(",")
    older = config.get("SlurmctldParameters", "").split(",")
    return "send_user_signal" in newer or "preempt_send_user_signal" in older


def _preemption(cluster: Cluster, site: Site, checkpoint_bytes: int | None) -> list[Check]:
    name, keys = partition_of(cluster, site)
    if not keys:
        return [unknown("preemption", f"nothing is known of {name or 'the partition'}")]
    kind = site.config.get("PreemptType", "")
    mode = keys.get("PreemptMode", site.config.get("PreemptMode", "OFF"))
    if kind in ("preempt/none", *UNLIMITED) or mode.split(",")[0] == "OFF":
        return [ok("preemption", f"jobs of {name or 'the partition'} are not preempted")]
    grace = leading_seconds(keys.get("GraceTime", "0")) or 0
    kill = leading_seconds(site.config.get("KillWait", "")) or 30
    told = "USR2" if sends_user_signal(site.config) else "TERM alone"
    text = f"{mode}: {told}, then {grace} s (GraceTime) until the end, and {kill} s (KillWait) between TERM and KILL"
    if "CANCEL" in mode:
        remedy = "use a partition that requeues, or launch again with the same command: it continues"
        return [warning("preemption", f"{text}; jobs are cancelled, not requeued", remedy)]
    if "SUSPEND" in mode or "GANG" in mode:
        return [warning("preemption", f"{mode}: jobs stand still for a while, and collectives may run out of time")]
    needed = STEP_SECONDS + (checkpoint_bytes or 0) / SAVED_BYTES_PER_SECOND
    if grace + kill < needed:
        remedy = "save often (training.save_steps): steps since the last checkpoint are done again"
        return [warning("preemption", f"{text}; ending a step and saving may take {needed:.0f} s", remedy)]
    return [ok("preemption", text)]


def check_run_time(
    cluster: Cluster, save_seconds: float | None, steps_left: int | None, seconds_per_step: float | None
) -> Check:
    """Say in how many jobs a run will end.

    Args:
        cluster: Its time limit and start-up.
        save_seconds: The longest save; None before the first.
        steps_left: Optimizer steps to go; None: unknown until the data is encoded.
        seconds_per_step: Of an earlier part of the run; None: nothing was measured.
    """
    name = "run time"
    if steps_left is None:
        return unknown(name, "the number of steps is unknown until the data is encoded", "finelaunch prefetch does")
    if steps_left == 0:
        return ok(name, "no step is left")
    if seconds_per_step is None:
        return unknown(name, f"{steps_left:,} steps, and none was measured yet")
    useful = useful_seconds(cluster, save_seconds)
    total = steps_left * seconds_per_step
    text = f"{steps_left:,} steps of {seconds_per_step:.3g} s take about {_hours(total)}"
    if useful <= 0:
        return failed(name, f"{text}, and a job has no time for any", "raise cluster.time_limit")
    jobs = math.ceil(total / useful)
    if jobs <= 1:
        return ok(name, f"{text}, and a job has {_hours(useful)}")
    more = f"{text}, and a job has {_hours(useful)}: it will be requeued about {jobs - 1} times"
    if cluster.requeue == "successors" and jobs - 1 > cluster.successors:
        return warning(name, more, f"set cluster.successors to {min(100, jobs - 1)}, or raise cluster.time_limit")
    return ok(name, more)


def measured_step(train_log: Path, global_batch_size: int) -> tuple[float | None, int]:
    """Return the seconds of a step by a run's log, and the last step that stands in it."""
    rows = [row for row in read_lines(train_log) if isinstance(row.get("samples_per_second"), int | float)]
    speeds = [row["samples_per_second"] for row in rows[-TRUSTED_LOG_LINES:] if row["samples_per_second"] > 0]
    last = max((row["step"] for row in rows if isinstance(row.get("step"), int)), default=0)
    return (global_batch_size / median(speeds) if speeds else None), last


def check_script(answer: Answer | None) -> Check:
    """Say whether Slurm would take the job's script; None: it cannot be written yet."""
    name = "script"
    if answer is None:
        return unknown(name, "the number of processes is not known", "set launch.num_processes_per_node to a number")
    if answer.ok:
        return ok(name, "sbatch --test-only takes it")
    return failed(name, _said("sbatch --test-only", answer), "change the cluster profile as it says")


def check_shared(cluster: Cluster, run: Path) -> list[Check]:
    """Say whether the run directory lies where the cluster profile says that nodes see it."""
    if cluster.shared_folder is None:
        return []
    shared = Path(os.path.expandvars(os.path.expanduser(cluster.shared_folder)))
    if shared.resolve() in (run.resolve(), *run.resolve().parents):
        return [ok("run directory", f"lies below {shared} (cluster.shared_folder)")]
    text = f"{run} does not lie below {shared} (cluster.shared_folder), so the nodes do not see it"
    return [failed("run directory", text, "choose --run-dir below it")]


def check_group(group: str | None, own: Collection[str]) -> list[Check]:
    """Say whether the user belongs to the group that may read and write runs; ``own`` are the user's groups."""
    if group is None:
        return []
    if group in own:
        return [ok("group", f"{group} may read and write the runs")]
    remedy = f"set cluster.group to one of {', '.join(sorted(own))}"
    return [failed("group", f"{group} is no group of this user's", remedy)]


def check_names(addresses: Mapping[str, str | None]) -> list[Check]:
    """Say whether this machine resolves the names of nodes; ``addresses`` are by name, None where there is none."""
    if not addresses:
        return []
    lost = [name for name, address in addresses.items() if address is None]
    if lost:
        text = f"{', '.join(lost)} cannot be resolved on this machine"
        return [warning("node names", text, "what counts is whether nodes resolve each other: --nodes asks them")]
    return [ok("node names", f"{', '.join(addresses)} resolve here")]


def memory_mib(text: str) -> float | None:
    """Return ``64G`` and the like in MiB, as Slurm reads --mem; None where it is no such text."""
    found = _MEMORY.fullmatch(text.strip().upper().removesuffix("B"))
    return int(found.group(1)) * _MIB[found.group(2)] if found else None


def _said(command: str, answer: Answer) -> str:
    """Return what a command complained of, its name once."""
    why = answer.why.removeprefix(f"{command.split()[0]}: error: ").removeprefix(f"{command} ")
    return f"{command}: {why}"


def _num_gpus(group: NodeGroup, kind: str | None) -> int:
    return sum(group.gpus.values()) if kind is None else group.gpus.get(kind, 0)


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min" if minutes else "a minute"
