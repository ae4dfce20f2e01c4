"""A first version of a cluster profile, from what Slurm says; every value with where it came from."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.launch.cluster import Cluster
from finelaunch.provision.site import UNLIMITED, NodeGroup, Site, listed, seconds_of
from finelaunch.provision.verdicts import one_line
from finelaunch.provision.volumes import Mount, existing, mount_of
from finelaunch.run.files import write_text
from finelaunch.section.base import build
from finelaunch.section.document import read_document

USUAL_SECONDS = 4 * 3600
"""A time limit that most schedulers find a place for, and that leaves time to train between two starts."""
PROJECT_VARIABLES = ("WORK", "PROJECT", "PROJECTS", "GROUP_HOME", "DATA", "SCRATCH", "WORKDIR")
"""Variables by which sites name shared folders."""

_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off"}


def profile_file(name: str) -> Path:
    """Return the file of a new cluster profile: a path as it is, a name below slurm/clusters of the current folder.

    Raises:
        BadInput: ``name`` can be no file's.
    """
    if not name.strip(". /") or not name.isprintable():
        raise BadInput(Problem("command line", "--cluster", f"{name!r:.80} is no name", "", "such as --cluster mine"))
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name).expanduser()
    return Path("slurm", "clusters", f"{name}.yaml")


def write_profile(name: str, text: str, force: bool) -> tuple[Path, Path | None]:
    """Write the text of a profile where ``--cluster name`` will find it.

    Args:
        name: A name or a path.
        text: From :func:`first_profile`.
        force: Where there is one already, rename it to the first free ``NAME.yaml.N``.

    Returns:
        The file, and where the old one is kept.

    Raises:
        BadInput: It is there already, or cannot be written.
    """
    path, kept = profile_file(name), None
    build(Cluster, read_document(text, str(path)))  # never write what cannot be read
    try:
        if path.exists():
            if not force:
                remedy = "--force makes a new one and keeps the old one beside it"
                raise BadInput(Problem(str(path), "", "is there already", "", remedy))
            number = 1
            while (kept := path.with_name(f"{path.name}.{number}")).exists():
                number += 1
            path.rename(kept)
        write_text(path, text)
    except OSError as error:
        raise BadInput(Problem(str(path), "", f"cannot be written: {error.strerror}")) from None
    return path, kept


def require_slurm(site: Site) -> None:
    """Refuse where nothing is known of a Slurm.

    Raises:
        RequirementMissing: There is none, or it does not answer.
    """
    if site.partitions or site.groups or site.config:
        return
    missing = all("not installed" in why for why in site.silent.values())
    what = "there is no Slurm here" if missing else "Slurm does not answer"
    why = "; ".join(dict.fromkeys(site.silent.values()))
    raise RequirementMissing(f"{what} ({why}); run this on a login node of the cluster")


def choose_partition(site: Site) -> tuple[str, str] | None:
    """Return a partition and why: the default one, unless only others have GPUs."""
    accounts = {one.account for one in site.associations}

    def is_open(name: str) -> bool:
        keys = site.partitions.get(name, {})
        allowed = listed(keys.get("AllowAccounts", "ALL"))
        return keys.get("State", "UP") == "UP" and (allowed is None or not accounts or bool(accounts & set(allowed)))

    names = list(site.partitions or dict.fromkeys(group.partition for group in site.groups))
    usable = [name for name in names if is_open(name)] or names
    if not usable:
        return None
    default = site.default_partition()
    with_gpus = [name for name in usable if any(group.gpus for group in site.groups_of(name))]
    if default in usable and (default in with_gpus or not with_gpus):
        return default, "scontrol show partition: the default"
    if with_gpus:
        others = f"; others with GPUs: {', '.join(with_gpus[1:])}" if with_gpus[1:] else ""
        return with_gpus[0], f"sinfo: the first with GPUs{others}"
    return usable[0], "sinfo: the first"


def first_profile(name: str, site: Site, here: "Surroundings") -> str:
    """Return the text of a cluster profile.

    Args:
        name: As it was typed.
        site: What Slurm says.
        here: What this machine, a login node, shows.
    """
    lines = [f"# A first version, made by finelaunch doctor --cluster {name} --write: read it through, and change it"]
    version = site.config.get("SLURM_VERSION")
    lines += (
        [f"# Slurm {version}" + (f", cluster {site.config.get('ClusterName')}" if version else "")] if version else []
    )
    lines += [f"# not known: {command} said nothing: {why}" for command, why in site.silent.items()]
    chosen = choose_partition(site)
    partition = chosen[0] if chosen else None
    keys = site.partitions.get(partition or "", {})
    lines += [_line("partition", *chosen)] if chosen else ["# partition: not known"]
    account, qos = _account(site, keys)
    lines += [*account, *_time_limit(site, keys, qos)]
    groups = site.groups_of(partition) if partition else []
    lines += _gpus(groups, partition)
    lines += _memory(site.config, keys, groups)
    lines += here.lines()
    lines += [
        "# requeue: successors  # where finelaunch doctor --nodes says that scontrol is forbidden on nodes; and",
        "# successors: 3",
    ]
    return "\n".join(one_line(line) for line in lines) + "\n"


class Surroundings:
    """What a login node shows beside Slurm.

    Args:
        environment: The variables of the caller.
        mounts: What is mounted.
        folder: The current folder.
        interfaces: Network interfaces that are up.
        home: The caller's home.
    """

    def __init__(
        self, environment: Mapping[str, str], mounts: list[Mount], folder: Path, interfaces: Sequence[str], home: Path
    ) -> None:
        self.environment = environment
        self.mounts = mounts
        self.folder = folder
        self.interfaces = interfaces
        self.home = home

    def lines(self) -> list[str]:
        """Return the lines about folders, network and modules."""
        return [*self._modules(), *self._folders(), *self._network()]

    def _folders(self) -> list[str]:
        found = []
        candidates = {"the current folder": self.folder, "the home": self.home}
        candidates |= {
            f"${name}": Path(self.environment[name])
            for name in PROJECT_VARIABLES
            if self.environment.get(name, "").startswith("/")
        }
        shared: dict[str, tuple[Path, Mount]] = {}
        for what, path in candidates.items():
            mount = mount_of(path, self.mounts)
            if mount is not None and mount.is_network and existing(path) == path:
                shared[what] = (path, mount)
            kind = (
                "unknown" if mount is None else f"{mount.kind}{', a network file system' if mount.is_network else ''}"
            )
            found.append(f"# {what} {path} lies on {kind}")
        if not shared:
            text = "# shared_folder: not known: none of these is on a network file system; doctor --nodes tries them"
            return [*found, text]
        home = shared.get("the home")
        what, (path, mount) = next(iter(shared.items()))
        if home is not None and (path == self.home or self.home in path.parents):
            folder, why = self.home, f"the home, on {mount.kind}"
        elif home is None or home[1].folder != mount.folder:
            folder, why = Path(mount.folder), f"where {what} lies, on {mount.kind}"
        else:
            folder, why = path, f"{what}, on {mount.kind}"
        found.append(_line("shared_folder", str(folder), f"{why}; runs must lie below it"))
        given = self.environment.get("HF_HOME")
        if given and (on := mount_of(Path(given), self.mounts)) is not None and on.is_network:
            return [*found, _line("hf_home", given, "HF_HOME here")]
        if home is not None and folder == self.home:
            return [*found, _line("hf_home", str(folder / ".cache" / "huggingface"), "its usual place; mind the quota")]
        return [*found, _line("hf_home", str(path / "huggingface"), "a proposal: home may be too small, or not shared")]

    def _network(self) -> list[str]:
        fast = [name for name in self.interfaces if name.startswith(("ib", "hsn", "opa", "roce"))]
        if fast:
            return [
                f"# env:  # fast interfaces here: {', '.join(fast)}; doctor --nodes lists those of the nodes",
                f"#   NCCL_SOCKET_IFNAME: {fast[0]}",
            ]
        return ["# env: NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME are only needed where doctor --nodes says so"]

    def _modules(self) -> list[str]:
        loaded = [name for name in self.environment.get("LOADEDMODULES", "").split(":") if name]
        if loaded:
            return [f"# setup: [{json.dumps('module load ' + ' '.join(loaded))}]  # loaded here now; if jobs need them"]
        return ["# setup: [module load …]  # if jobs need modules"]


def _account(site: Site, keys: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the lines of account and QOS, and the QOS that jobs will have; empty where it is not known."""
    allowed = listed(keys.get("AllowAccounts", "ALL"))
    usable = {one.account: one for one in site.associations if allowed is None or one.account in allowed}
    own = usable.get(site.default_account) or next(iter(usable.values()), None)
    if own is None:
        known = f": the partition allows {', '.join(allowed)}" if allowed else ""
        lines = [f"# account: not known{known}; needed where sbatch says so"]
    else:
        others = [name for name in usable if name != own.account]
        kind = "the default one" if own.account == site.default_account else "one that may be used"
        rest = f"; others: {', '.join(others)}" if others else ""
        lines = [_line("account", own.account, f"sacctmgr: {kind}{rest}")]
    wanted = listed(keys.get("AllowQos", "ALL"))
    names, default = (own.qos, own.default_qos) if own else ((), "")
    if wanted is None or default in wanted:
        lines += [f"# qos: none is needed; yours: {', '.join(names)}"] if names else []
        return lines, default
    if fitting := [name for name in names if name in wanted]:
        why = f"scontrol show partition: it allows {', '.join(wanted)} only"
        return [*lines, _line("qos", fitting[0], why)], fitting[0]
    text = f"# qos: the partition allows {', '.join(wanted)} only; which of them is yours is not known"
    return [*lines, text], ""


def _time_limit(site: Site, keys: Mapping[str, str], qos: str) -> list[str]:
    limits = {"the partition's MaxTime": keys.get("MaxTime", "")}
    names = [name for name in (qos, keys.get("QoS", "")) if name not in UNLIMITED]
    limits |= {f"QOS {name}": site.qos_max_wall[name] for name in names if name in site.qos_max_wall}
    known = {what: seconds for what, text in limits.items() if (seconds := seconds_of(text)) is not None}
    if known and min(known.values()) <= USUAL_SECONDS:
        what = min(known, key=lambda name: known[name])
        return [_line("time_limit", _hours(known[what]), what)]
    most = f"at most {_hours(min(known.values()))}" if known else "no limit is known"
    return [_line("time_limit", _hours(USUAL_SECONDS), f"usual; {most}")]


def _gpus(groups: Sequence[NodeGroup], partition: str | None) -> list[str]:
    with_gpus = [group for group in groups if group.gpus]
    if not with_gpus:
        return [f"# gpus: sinfo shows none in {partition}" if groups else "# gpus: not known", *_cpus(groups)]
    kinds = sorted({kind for group in with_gpus for kind in group.gpus if kind})
    most = max(sum(group.gpus.values()) for group in with_gpus)
    lines = [_line("gpus", "gres", f"sinfo: Gres, up to {most} a node; gpus-per-node works on most sites as well")]
    if len(kinds) == 1 and all(set(group.gpus) == set(kinds) for group in with_gpus):
        lines.append(_line("gpu_type", kinds[0], "sinfo: the only one"))
    elif kinds:
        lines.append(f"# gpu_type: one of {', '.join(kinds)}; without it a job takes any")
    else:
        lines.append("# gpu_type: sinfo names none")
    per_gpu = min(group.num_cpus // sum(group.gpus.values()) for group in with_gpus)
    return [*lines, _line("cpus_per_task", max(1, per_gpu), "sinfo: the share of a GPU in the cores of a node")]


def _cpus(groups: Sequence[NodeGroup]) -> list[str]:
    if not groups:
        return ["# cpus_per_task: not known"]
    return [f"# cpus_per_task: 1 where it is not set; a node has {min(group.num_cpus for group in groups)}"]


def _memory(config: Mapping[str, str], keys: Mapping[str, str], groups: Sequence[NodeGroup]) -> list[str]:
    for source in (keys, config):
        for key, what in (("DefMemPerCPU", "CPU"), ("DefMemPerNode", "node"), ("DefMemPerGPU", "GPU")):
            if (value := source.get(key, "")) not in UNLIMITED:
                return [f"# memory: {value} MiB a {what} where it is not set ({key}); set it, such as 64G, for more"]
    if not config and not keys:
        return ["# memory: not known; set it where sbatch asks for --mem"]
    selected = " ".join((config.get("SelectTypeParameters", ""), keys.get("SelectTypeParameters", ""))).upper()
    if "MEMORY" not in selected:
        return ["# memory: not counted by this site (SelectTypeParameters); leave it out"]
    most = min((group.memory_mib for group in groups), default=0)
    size = f", {most} MiB" if most else ""
    return [
        f"# memory: where it is not set a job takes all of a node{size} (no DefMemPerCPU, DefMemPerNode): nobody else "
        "fits beside it"
    ]


def _line(key: str, value: object, comment: str) -> str:
    return f"{key}: {value if isinstance(value, int) else _scalar(str(value))}  # {one_line(comment)}"


def _scalar(text: str) -> str:
    """Return ``text`` as YAML reads it back, and as nothing else than text."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return text if plain else json.dumps(text)


def _hours(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def surroundings() -> Surroundings:
    """Return what this machine shows."""
    from finelaunch.provision.probe import interfaces
    from finelaunch.provision.volumes import read_mounts

    return Surroundings(os.environ, read_mounts(), Path.cwd(), interfaces(), Path.home())
