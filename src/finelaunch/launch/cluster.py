"""Cluster profiles: the facts of one site, and nothing of what is trained or on how many devices."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from finelaunch.errors import BadInput, Problem
from finelaunch.launch import shell
from finelaunch.section.base import Section, SettingError, build
from finelaunch.section.document import Document, merge
from finelaunch.section.lookup import COMMAND_LINE, find, names, read_file

VARIABLE = "FINELAUNCH_CLUSTER"
"""Names the cluster where ``--cluster`` does not."""

_TIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d)(?::([0-5]\d))?")


class Cluster(Section):
    """The facts of one site."""

    answers: ClassVar[Mapping[str, str]] = {
        "time": "use time_limit",
        "mem": "use memory",
        "gres": "use gpus: gres and gpu_type; their number is the launch profile's num_processes_per_node",
        "gpus_per_node": "use gpus: gpus-per-node; their number is the launch profile's num_processes_per_node",
        "nodes": "it stands in the launch profile: num_nodes",
        "num_nodes": "it stands in the launch profile: num_nodes",
        "ntasks": "it follows from the launch profile: num_nodes x num_processes_per_node",
        "ntasks_per_node": "it stands in the launch profile: num_processes_per_node",
        "modules": "use setup: [module load …]",
        "signal": "use signal_delay_seconds",
    }

    partition: str | None = Field(default=None, description="--partition; null: the site's default")
    account: str | None = Field(default=None, description="--account, whose hours are used")
    qos: str | None = Field(default=None, description="--qos")
    constraint: str | None = Field(default=None, description="--constraint, features a node must have")
    exclude: str | None = Field(default=None, description="--exclude, nodes not to be used, such as node[3,7-9]")
    exclusive: bool = Field(default=False, description="--exclusive: nobody else on the nodes")
    time_limit: str = Field(default="01:00:00", description="--time as HH:MM:SS, MM:SS or D-HH:MM:SS")
    gpus: Literal["gres", "gpus-per-node", "gpus-per-task"] = Field(
        default="gres", description="how GPUs are asked for: --gres=gpu:N, --gpus-per-node=N or --gpus-per-task=1"
    )
    gpu_type: str | None = Field(default=None, description="such as a100; null: any")
    memory: str | None = Field(default=None, description="--mem of a node, such as 64G; null: the site's default")
    cpus_per_task: int = Field(default=1, ge=1, description="cores of each process")
    setup: list[str] = Field(
        default_factory=list, description="lines of shell before the start, such as module load cuda"
    )
    container: list[str] = Field(
        default_factory=list, description="words before python, such as [apptainer, exec, --nv, image.sif]"
    )
    python: str | None = Field(default=None, description="python on the nodes; null: the one that submits")
    srun_args: list[str] = Field(default_factory=list, description="further options of srun, such as --mpi=none")
    sbatch_args: list[str] = Field(
        default_factory=list, description="further options of sbatch, such as --reservation=x"
    )
    shared_folder: str | None = Field(default=None, description="a folder that every node sees; runs must lie below it")
    hf_home: str | None = Field(default=None, description="HF_HOME of login and compute nodes, on a shared folder")
    scratch: str | None = Field(
        default=None, description="node-local folder; TMPDIR lies below it; may hold $SLURM_JOB_ID, $USER, $TMPDIR"
    )
    stage: bool = Field(default=False, description="copy what prefetch has listed to scratch once on every node")
    offline: bool = Field(default=True, description="compute nodes have no internet: HF_HUB_OFFLINE=1 in jobs")
    env: dict[str, str] = Field(
        default_factory=dict,
        description="variables of the job, such as NCCL_SOCKET_IFNAME: ib0; taken letter for letter",
    )
    mail_user: str | None = Field(default=None, description="--mail-user")
    mail_type: str | None = Field(default=None, description="--mail-type, such as END,FAIL")
    group: str | None = Field(default=None, description="the group that may read and write runs; null: their owner")
    requeue: Literal["scontrol", "successors"] = Field(
        default="scontrol",
        description="how a stopped job goes on: it requeues itself; successors: jobs submitted beforehand take over, "
        "where scontrol is forbidden on nodes",
    )
    successors: int = Field(default=0, ge=0, le=100, description="how many jobs are submitted beforehand to take over")
    signal_delay_seconds: int | None = Field(
        default=None, ge=5, le=65535, description="time between signal and time limit; null: by the measured saves"
    )
    startup_seconds: int = Field(default=120, ge=1, description="from the start of a job to its first step, about")
    max_restarts_without_progress: int = Field(
        default=3, ge=1, description="a job that restarts so often without a newer checkpoint ends"
    )

    def faults(self) -> Iterator[SettingError]:
        """Yield what does not go together."""
        if not is_time(self.time_limit):
            what = f"{self.time_limit!r:.40} is no time"
            yield SettingError("time_limit", what, "HH:MM:SS, MM:SS or D-HH:MM:SS", "such as 04:00:00")
        if self.requeue == "successors" and not self.successors:
            what = "no job is there to take over"
            yield SettingError("successors", what, "1 or more with requeue: successors", "such as 3")
        if self.requeue == "scontrol" and self.successors:
            what = f"{self.successors} jobs wait for one that requeues itself"
            yield SettingError("successors", what, "0 with requeue: scontrol", "set requeue: successors")
        if self.stage and self.scratch is None:
            yield SettingError("scratch", "stage copies to a folder that is not named", "", "set scratch")
        yield from self._unsafe()

    def _unsafe(self) -> Iterator[SettingError]:
        """Yield what may not reach a batch script."""
        for key, value in self:
            if isinstance(value, str) and key != "scratch":
                yield from shell.text_faults(key, value)
        for number, word in enumerate(self.container):
            yield from shell.text_faults(f"container.{number}", word)
        yield from shell.option_faults("srun_args", self.srun_args)
        yield from shell.option_faults("sbatch_args", self.sbatch_args)
        yield from shell.setup_faults(self.setup)
        yield from shell.env_faults(self.env)
        if self.scratch is not None:
            yield from shell.scratch_faults(self.scratch)

    @property
    def time_limit_seconds(self) -> int:
        """The time limit."""
        return time_seconds(self.time_limit)


def is_time(text: str) -> bool:
    """Return whether ``text`` is a time as Slurm writes it."""
    return _TIME.fullmatch(text) is not None


def time_seconds(text: str) -> int:
    """Return a time of Slurm, ``[D-]HH:MM:SS`` or ``MM:SS``, in seconds."""
    found = _TIME.fullmatch(text)
    assert found is not None
    days, first, second, third = (int(part) if part else None for part in found.groups())
    if third is None:
        if days is not None:  # D-HH:MM
            return 86400 * days + 3600 * (first or 0) + 60 * (second or 0)
        return 60 * (first or 0) + (second or 0)
    return 86400 * (days or 0) + 3600 * (first or 0) + 60 * (second or 0) + third


def load_cluster(name: str | None, overrides: Document | None = None) -> tuple[Cluster, Document, str]:
    """Return the cluster profile that ``name``, else the environment, and ``overrides`` make.

    Returns:
        The profile, the document behind it, and its name.

    Raises:
        BadInput: With all that is wrong, or no cluster is named.
    """
    origin = COMMAND_LINE if name else "environment"
    name = name or os.environ.get(VARIABLE)
    if not name:
        remedy = f"add --cluster NAME or set {VARIABLE}; finelaunch doctor --cluster NAME --write makes one"
        raise BadInput(
            Problem(COMMAND_LINE, "--cluster", "no cluster is named", f"a path, or one of {_known()}", remedy)
        )
    path: Path = find(name, "slurm/clusters", origin)
    document = read_file(path)
    if overrides is not None:
        document = merge(document, overrides, {})
    try:
        return build(Cluster, document), document, name
    except BadInput as error:
        raise BadInput(replace(problem, key=f"cluster.{problem.key}") for problem in error.problems) from None


def _known() -> str:
    return ", ".join(names("slurm/clusters"))
