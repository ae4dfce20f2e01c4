"""Which rank a task of ``srun`` is, from Slurm's own variables, and what surrounds its training there.

Nothing is guessed, nothing falls back.

Source: the variables that ``srun`` sets for a task (SLURM_PROCID, SLURM_LOCALID, SLURM_STEP_NUM_TASKS,
SLURM_STEP_TASKS_PER_NODE, SLURM_STEP_NODELIST), srun(1), OUTPUT ENVIRONMENT VARIABLES.
"""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from finelaunch.errors import BadInput, Problem, RequirementMissing, Stopped
from finelaunch.launch.profile import Profile, load_profile
from finelaunch.run.directory import RunDirectory
from finelaunch.run.ranks import Ranks
from finelaunch.slurm.history import note_failure, state_requeues
from finelaunch.slurm.requeue import requeue_at_stop

FIRST_PORT = 20_000
NUM_PORTS = 12_000
"""Below the ports that Linux gives to outgoing connections, 32768 and up."""

_OTHERS = ("RANK", "WORLD_SIZE")
_BRACKET = re.compile(r"\[([^\]]*)\]")


def adopt_ranks(profile_name: str | None) -> None:
    """Let this process be the rank that Slurm's variables say, if it is one; must come before anybody asks.

    Args:
        profile_name: The launch profile that was asked for.

    Raises:
        BadInput: The variables make no sense.
    """
    try:
        is_expected = profile_name is not None and load_profile(profile_name)[0].target == "slurm"
    except BadInput:  # is said with all that is wrong
        is_expected = False
    if is_task(os.environ, is_expected):
        os.environ.update(ranks_environment(os.environ))


@contextmanager
def in_job(run: RunDirectory, profile: Profile, ranks: Ranks) -> Iterator[None]:
    """Have a training be one of a Slurm job, where the profile says so: what stops it requeues it, what fails is noted.

    Raises:
        BadInput: Somebody else than srun has started this process, or it is one of an array.
        RequirementMissing: The nodes cannot reach each other by their names.
    """
    if profile.target != "slurm":
        yield
        return
    _refuse_others(ranks, os.environ)
    requeue_at_stop(run.path, ranks.rank)
    try:
        check_address(ranks, os.environ)
        yield
    except Stopped:
        raise
    except Exception as error:
        note_failure(run, ranks, error)
        raise
    state_requeues(run)


def _refuse_others(ranks: Ranks, environment: Mapping[str, str]) -> None:
    """Refuse a profile of Slurm in a process that is no task of srun, and in an array of jobs.

    Raises:
        BadInput: It is so.
    """
    told = (environment.get("SLURM_PROCID"), environment.get("SLURM_STEP_NUM_TASKS"))
    if "SLURM_JOB_ID" not in environment or told != (str(ranks.rank), str(ranks.world_size)):
        what = f"rank {ranks.rank} of {ranks.world_size} is no task of srun, and the profile is one of Slurm"
        remedy = "start it with srun or finelaunch launch, or choose another profile, such as ddp"
        raise BadInput(Problem("environment", "SLURM_PROCID", what, "", remedy))
    if environment.get("SLURM_ARRAY_JOB_ID"):
        what = "is set: a requeue by number would requeue all members of the array"
        remedy = "submit each run as a job of its own: finelaunch launch"
        raise BadInput(Problem("environment", "SLURM_ARRAY_JOB_ID", what, "", remedy))


def is_task(environment: Mapping[str, str], is_expected: bool) -> bool:
    """Return whether this process is one rank that ``srun`` has started.

    Args:
        environment: Of this process. One that another launcher has numbered is none.
        is_expected: The profile says so; otherwise only a task among several is, since a single one may as well be a
            shell on a node.
    """
    if any(environment.get(name) for name in _OTHERS) or "SLURM_STEP_ID" not in environment:
        return False
    return is_expected or environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def ranks_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of this task.

    The address is the first node of the step, where rank 0 is. The port follows from job, step and restart, so that all
    tasks know it without asking, and a restart does not meet what the start before has left.

    Raises:
        BadInput: A variable is missing or makes no sense, or the nodes have different numbers of tasks.
    """
    job, step = _whole(environment, "SLURM_JOB_ID", 1), _whole(environment, "SLURM_STEP_ID", 0)
    restart = _whole(environment, "SLURM_RESTART_COUNT", 0) if environment.get("SLURM_RESTART_COUNT") else 0
    tasks = _whole(environment, "SLURM_STEP_NUM_TASKS", 1)
    each = _tasks_per_node(_text(environment, "SLURM_STEP_TASKS_PER_NODE"))
    if len(set(each)) > 1 or sum(each) != tasks:
        what = f"{tasks} tasks are spread as {environment['SLURM_STEP_TASKS_PER_NODE']}"
        remedy = "use --ntasks-per-node, and no --distribution of your own"
        raise BadInput(Problem("environment", "SLURM_STEP_TASKS_PER_NODE", what, "as many on every node", remedy))
    return {
        "RANK": str(_whole(environment, "SLURM_PROCID", 0)),
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": str(_whole(environment, "SLURM_LOCALID", 0)),
        "LOCAL_WORLD_SIZE": str(each[0]),
        "MASTER_ADDR": first_node(_text(environment, "SLURM_STEP_NODELIST")),
        "MASTER_PORT": str(FIRST_PORT + (job * 101 + step * 13 + restart * 7) % NUM_PORTS),
    }


def first_node(nodes: str) -> str:
    """Return the first name of Slurm's ``node[07-09,12],gpu3``, written short as there."""
    depth, end = 0, len(nodes)
    for place, letter in enumerate(nodes):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            end = place
            break
    return _BRACKET.sub(lambda found: re.split("[,-]", found[1])[0], nodes[:end])


def check_address(ranks: Ranks, environment: Mapping[str, str]) -> None:
    """Refuse to start where gloo would tell the other nodes an address that leads each of them to itself.

    gloo gives its peers what this machine's own name resolves to. Where /etc/hosts has it as 127.0.1.1, as Debian
    writes it, they would wait for themselves until the time-out.

    Raises:
        RequirementMissing: That is so, and no interface is named.
    """
    if ranks.num_nodes == 1 or environment.get("GLOO_SOCKET_IFNAME"):
        return
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise RequirementMissing(
            f"node {name}: its own name does not resolve ({error.strerror}), so other nodes cannot reach it; "
            f"name the interface to use: cluster.env GLOO_SOCKET_IFNAME, one of {_interfaces()}"
        ) from None
    if address.startswith("127."):
        raise RequirementMissing(
            f"node {name}: its own name resolves to {address}, which leads every other node to itself; "
            f"name the interface to use: cluster.env GLOO_SOCKET_IFNAME, one of {_interfaces()}"
        )


def _interfaces() -> str:
    return ", ".join(name for _, name in socket.if_nameindex() if name != "lo") or "none is there"


def _tasks_per_node(text: str) -> list[int]:
    """Return the numbers behind Slurm's ``2(x2),1``."""
    each: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise BadInput(Problem("environment", "SLURM_STEP_TASKS_PER_NODE", f"is {text!r}", "such as 2(x2)"))
        each += [int(found[1])] * int(found[2] or 1)
    return each


def _text(environment: Mapping[str, str], name: str) -> str:
    if not (text := environment.get(name, "")):
        remedy = "start it with srun, or finelaunch launch; a container has to let SLURM_* through"
        raise BadInput(Problem("environment", name, "is missing in a task of srun", "", remedy))
    return text


def _whole(environment: Mapping[str, str], name: str, least: int) -> int:
    text = _text(environment, name)
    if not text.isdecimal() or int(text) < least:
        raise BadInput(Problem("environment", name, f"is {text!r}", f"a number from {least}", "it is set by srun"))
    return int(text)
