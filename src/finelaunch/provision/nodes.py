"""Asking the nodes themselves: a short job, one task on each of as many nodes as a profile has."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finelaunch.launch.cluster import Cluster
from finelaunch.launch.profile import Profile
from finelaunch.launch.sbatch import submission_environment
from finelaunch.provision import probe
from finelaunch.provision.volumes import existing
from finelaunch.slurm.commands import ask

WAIT_SECONDS = 120.0
"""How long a job may wait for nodes, by default."""
RUN_SECONDS = 240.0
"""How long it may run: waits for files of others, and a few look-ups."""
_TIME_LIMIT = "00:05:00"
_MEMORY = "1G"
_JOB_ID = re.compile(r"job (\d+)")
_TASK_ENDED = re.compile(r"tasks? [\d,-]+: ")


@dataclass(frozen=True)
class Nodes:
    """What the nodes answered.

    Args:
        reports: What each found, from :func:`finelaunch.provision.probe.describe`.
        why: Where none or not all answered, the reason; empty where all did.
        has_waited: The job got no nodes in time.
        unseen: By folder, the nodes whose file did not come back to this machine.
        token: What this machine wrote into the folders.
        asked: The folders, by what each is for.
    """

    reports: tuple[Mapping[str, Any], ...] = ()
    why: str = ""
    has_waited: bool = False
    unseen: Mapping[str, Sequence[str]] = field(default_factory=dict)
    token: str = ""
    asked: Mapping[str, Path] = field(default_factory=dict)


def ask_nodes(
    cluster: Cluster,
    profile: Profile,
    folders: Mapping[str, Path],
    packages: Sequence[str],
    hub: tuple[str, int] | None,
    wait_seconds: float = WAIT_SECONDS,
) -> Nodes:
    """Run a short job on as many nodes as ``profile`` has, and return what they found.

    Args:
        cluster: Where.
        profile: Its number of nodes and processes, and whether it wants GPUs.
        folders: Folders that the nodes must see, by what each is for; the nearest one that is there counts.
        packages: Packages whose versions are asked for.
        hub: Host and port of the hub.
        wait_seconds: When to give up waiting for nodes.
    """
    token = uuid.uuid4().hex
    asked = {what: existing(path) for what, path in folders.items()}
    with _meeting_places(asked, token) as (places, refused):
        if refused:
            return Nodes(why=refused, token=token, asked=asked)
        wishes = {
            "folders": {what: str(place) for what, place in places.items()},
            "packages": list(packages),
            "scratch": cluster.scratch,
            "hub": hub,
            "wants_gpus": profile.device == "cuda",
        }
        reports, why, has_waited = _run(srun_command(cluster, profile, wishes), cluster, wait_seconds)
        unseen = {what: _unseen(place, what, token, reports) for what, place in places.items()}
    return Nodes(reports, why, has_waited, {what: nodes for what, nodes in unseen.items() if nodes}, token, asked)


def srun_command(cluster: Cluster, profile: Profile, wishes: Mapping[str, Any]) -> list[str]:
    """Return the words that run the probe on one task of each node, Python's program coming by standard input."""
    per_node = profile.num_processes_per_node if isinstance(profile.num_processes_per_node, int) else 1
    options = {
        "job-name": "finelaunch-doctor",
        "nodes": profile.num_nodes,
        "ntasks": profile.num_nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": 1,
        "time": _TIME_LIMIT,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "mem": _MEMORY if cluster.memory else None,  # where a site wants one named
    }
    if profile.device == "cuda":
        kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
        if cluster.gpus == "gres":
            options["gres"] = f"gpu:{kind}{per_node}"
        else:
            options["gpus-per-node"] = f"{kind}{per_node}"
    words = [f"--{key}={value}" for key, value in options.items() if value is not None]
    python = [*cluster.container, cluster.python or sys.executable, "-", json.dumps(wishes)]
    if cluster.setup:
        python = ["bash", "-c", "\n".join([*cluster.setup, f"exec {shlex.join(python)}"])]
    return ["srun", *words, *cluster.sbatch_args, *cluster.srun_args, *python]


def _run(argv: Sequence[str], cluster: Cluster, wait_seconds: float) -> tuple[tuple[Mapping[str, Any], ...], str, bool]:
    """Run the job; return what the nodes found, why not all did, and whether it has waited in vain."""
    if shutil.which("srun") is None:
        return (), "srun is not installed here", False
    source = Path(probe.__file__).read_text(encoding="utf-8")
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**submission_environment(os.environ)[0], **cluster.env},
        start_new_session=True,
    )
    printed: list[str] = []
    complaints: list[str] = []
    begun = threading.Event()

    def read_output() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            begun.set()

    def read_complaints() -> None:
        assert process.stderr is not None
        complaints.extend(process.stderr)

    def write_input() -> None:
        assert process.stdin is not None
        with suppress(OSError), process.stdin:
            process.stdin.write(source)

    threads = [threading.Thread(target=one, daemon=True) for one in (read_output, read_complaints, write_input)]
    for thread in threads:
        thread.start()
    has_waited = False
    deadline = time.monotonic() + wait_seconds
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if begun.is_set():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(RUN_SECONDS)
                break
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            has_waited = not begun.is_set()
            _end(process, complaints)
    for thread in threads:
        thread.join(5)
    reports = tuple(probe.gather(printed))
    return reports, _why(process, reports, complaints, argv, has_waited, wait_seconds), has_waited


def _why(
    process: subprocess.Popen[str],
    reports: Sequence[Mapping[str, Any]],
    complaints: Sequence[str],
    argv: Sequence[str],
    has_waited: bool,
    wait_seconds: float,
) -> str:
    """Return what kept nodes from answering; empty where all did."""
    num_nodes = next(int(word.partition("=")[2]) for word in argv if word.startswith("--nodes="))
    if has_waited:
        return f"still waiting for {num_nodes} nodes after {wait_seconds:.0f} s"
    if len(reports) == num_nodes:
        return ""
    lines = [line.strip() for line in complaints if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    # What kept a task from starting says more than srun's line that it has ended.
    causes = [line for line in errors if not _TASK_ENDED.search(line)]
    causes = causes or [line for line in lines if not line.startswith("srun:")] or lines
    said = causes[0].split("error: ", 1)[-1] if causes else f"srun ended with exit code {process.returncode}"
    return f"{len(reports)} of {num_nodes} nodes answered: {said:.300}"


def _end(process: subprocess.Popen[str], complaints: Sequence[str]) -> None:
    """End srun, which gives its job up; where it does not, the job is cancelled by its number."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    if process.poll() is None:
        process.kill()
        process.wait(10)
    if found := _JOB_ID.search("".join(complaints)):
        ask(["scancel", found.group(1)])


@contextmanager
def _meeting_places(folders: Mapping[str, Path], token: str) -> Any:
    """Make a folder with a token in each of ``folders``; they are removed in the end.

    Yields:
        The new folders, and why one could not be made; empty where all could.
    """
    made: dict[str, Path] = {}
    refused = ""
    try:
        for what, folder in folders.items():
            try:
                made[what] = Path(tempfile.mkdtemp(prefix=".finelaunch-doctor-", dir=folder))
                (made[what] / "login").write_text(token, encoding="ascii")
            except OSError as error:
                refused = refused or f"{folder} cannot be written: {error.strerror}"
        yield made, refused
    finally:
        for place in made.values():
            shutil.rmtree(place, ignore_errors=True)


def _unseen(place: Path, what: str, token: str, reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the nodes that have written into ``place``, and whose file does not show up here."""
    written = [one["node"] for one in reports if one["folders"][what] == {"token": token, "error": None}]
    until = time.monotonic() + probe.PATIENCE_SECONDS
    return [node for node in written if probe.soon(place / f"seen-{node}", until - time.monotonic()) != token]
