"""What Slurm says of a site, read from its commands: parsed here, judged elsewhere."""

import getpass
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from finelaunch.slurm.commands import Answer, ask, fields

UNLIMITED = ("UNLIMITED", "INFINITE", "infinite", "NONE", "N/A", "n/a", "(null)", "")
SINFO_COLUMNS = "%P|%G|%c|%m|%D|%f"

_GPU = re.compile(r"(?:^|,)gpu(?::([^:,]+))?:(\d+)(?=,|$)")
_DURATION = re.compile(r"(?:(\d+)-)?(\d+):(\d+)(?::(\d+))?")


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of a partition that are alike.

    Args:
        partition: Whose nodes they are.
        gpus: How many of each type a node has; the type is empty where Slurm knows none.
        num_cpus: CPUs of a node, as Slurm counts them.
        memory_mib: Memory of a node.
        num_nodes: How many there are.
        features: What ``constraint`` may ask for.
    """

    partition: str
    gpus: Mapping[str, int]
    num_cpus: int
    memory_mib: int
    num_nodes: int
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Association:
    """Under which account a user may compute.

    Args:
        account: Its name.
        partition: The only one where it counts; empty: all.
        qos: The names that may be asked for.
        default_qos: The one that counts where none is asked for; empty: the cluster's.
    """

    account: str
    partition: str = ""
    qos: tuple[str, ...] = ()
    default_qos: str = ""


@dataclass(frozen=True)
class Site:
    """What Slurm's commands have said.

    Args:
        config: ``scontrol show config``.
        partitions: ``scontrol show partition`` by name, in its order.
        groups: ``sinfo``.
        associations: ``sacctmgr show assoc`` of this user.
        default_account: ``sacctmgr show user`` of this user.
        qos_max_wall: The longest time of each QOS that limits it.
        silent: Why a command said nothing, by its name.
    """

    config: Mapping[str, str] = field(default_factory=dict)
    partitions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    groups: tuple[NodeGroup, ...] = ()
    associations: tuple[Association, ...] = ()
    default_account: str = ""
    qos_max_wall: Mapping[str, str] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)

    def default_partition(self) -> str | None:
        """Return the partition of a job that names none."""
        return next((name for name, keys in self.partitions.items() if keys.get("Default") == "YES"), None)

    def groups_of(self, partition: str) -> list[NodeGroup]:
        """Return the nodes of a partition."""
        return [group for group in self.groups if group.partition == partition]


def read_site() -> Site:
    """Ask the commands of Slurm that are there; what they do not say is left out, with the reason in ``silent``."""
    silent: dict[str, str] = {}

    def said(argv: Sequence[str]) -> Answer:
        answer = ask(argv)
        if not answer.ok:
            silent.setdefault(argv[0] if argv[0] != "scontrol" else " ".join(argv[:3]), answer.why)
        return answer

    user = getpass.getuser()
    config = said(["scontrol", "show", "config"])
    partitions = said(["scontrol", "show", "partition", "-o"])
    sinfo = said(["sinfo", "-h", "-o", SINFO_COLUMNS])
    columns = "format=account,partition,qos,defaultqos"
    associations = said(["sacctmgr", "-n", "-P", "show", "assoc", "where", f"user={user}", columns])
    default = qos = Answer(False)
    if associations.ok:
        default = said(["sacctmgr", "-n", "-P", "show", "user", user, "format=defaultaccount"])
        qos = said(["sacctmgr", "-n", "-P", "show", "qos", "format=name,maxwall"])
    return Site(
        config=parse_config(config.text) if config.ok else {},
        partitions=parse_partitions(partitions.text) if partitions.ok else {},
        groups=parse_sinfo(sinfo.text) if sinfo.ok else (),
        associations=parse_associations(associations.text) if associations.ok else (),
        default_account=default.text.strip() if default.ok else "",
        qos_max_wall=parse_qos(qos.text) if qos.ok else {},
        silent=silent,
    )


def parse_config(text: str) -> dict[str, str]:
    """Return ``scontrol show config`` by key."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() and " " not in key.strip():
            found[key.strip()] = value.strip()
    return found


def parse_partitions(text: str) -> dict[str, dict[str, str]]:
    """Return the partitions of ``scontrol show partition``, with or without ``-o``."""
    found: dict[str, dict[str, str]] = {}
    lines = " ".join(line.strip() for line in text.splitlines()).replace("PartitionName=", "\nPartitionName=")
    for line in lines.splitlines():
        keys = fields(line.strip())
        if name := keys.get("PartitionName"):
            found[name] = keys
    return found


def parse_sinfo(text: str) -> tuple[NodeGroup, ...]:
    """Return what ``sinfo -o`` prints with :data:`SINFO_COLUMNS`."""
    found = []
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) != 6:
            continue
        partition, gres, cpus, memory, nodes, features = parts
        found.append(
            NodeGroup(
                partition.rstrip("*"),
                parse_gres(gres),
                _number(cpus),
                _number(memory),
                _number(nodes),
                () if features in UNLIMITED else tuple(features.split(",")),
            )
        )
    return tuple(found)


def parse_gres(text: str) -> dict[str, int]:
    """Return the GPUs of ``gpu:a100:4(S:0-1),nvme:1`` by type; without one the type is empty."""
    found: dict[str, int] = {}
    for kind, count in _GPU.findall(re.sub(r"\([^)]*\)", "", text)):
        found[kind] = found.get(kind, 0) + int(count)
    return found


def parse_associations(text: str) -> tuple[Association, ...]:
    """Return ``sacctmgr -nP show assoc format=account,partition,qos,defaultqos``."""
    rows = (line.split("|") for line in text.splitlines() if line.count("|") == 3)
    return tuple(
        Association(account, partition, tuple(filter(None, qos.split(","))), default)
        for account, partition, qos, default in rows
    )


def parse_qos(text: str) -> dict[str, str]:
    """Return ``sacctmgr -nP show qos format=name,maxwall`` of those that have a limit."""
    rows = (line.split("|") for line in text.splitlines() if line.count("|") == 1)
    return {name: wall for name, wall in rows if wall not in UNLIMITED}


def seconds_of(text: str) -> int | None:
    """Return a time as Slurm prints limits, ``1-00:00:00`` or ``30:00``; None: unlimited, or no time."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        return None
    days, first, second, third = (int(part) if part else 0 for part in found.groups())
    if found.group(4) is None and found.group(1) is None:
        return 60 * first + second
    return 86400 * days + 3600 * first + 60 * second + third


def leading_seconds(text: str) -> int | None:
    """Return the number of seconds in ``5 sec``, ``2 min`` or ``30``; None where there is none."""
    number, _, unit = text.partition(" ")
    if not number.isdigit():
        return None
    return int(number) * (60 if unit.startswith("min") else 1)


def listed(text: str) -> list[str] | None:
    """Return the names of a list such as AllowAccounts; None where it allows all."""
    return None if text in ("ALL", *UNLIMITED) else text.split(",")


def _number(text: str) -> int:
    digits = re.match(r"\d+", text)
    return int(digits.group()) if digits else 0
