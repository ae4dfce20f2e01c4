"""Checks of what the nodes of a cluster have found."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finelaunch.launch.cluster import Cluster
from finelaunch.launch.estimate import byte_text
from finelaunch.launch.profile import Profile
from finelaunch.provision.checks_machine import check_driver, check_gpus
from finelaunch.provision.nodes import Nodes
from finelaunch.provision.verdicts import Check, failed, ok, unknown, warning

CLOCK_SECONDS = 5.0
NUM_OPEN_FILES = 4096
"""Fewer open files are too few for loaders and sockets of many ranks."""
SMALL_SCRATCH_BYTES = 1 << 30

Report = Mapping[str, Any]


def check_reports(
    answer: Nodes,
    cluster: Cluster,
    profile: Profile,
    here: Mapping[str, Any],
    method: str | None = None,
) -> list[Check]:
    """Return the checks of all that the nodes answered.

    Args:
        answer: What they did.
        cluster: The cluster profile.
        profile: The launch profile.
        here: ``python`` and ``packages`` of the machine that submits.
        method: As for :func:`finelaunch.provision.checks_machine.check_gpus`.
    """
    name = "nodes"
    if answer.has_waited:
        return [unknown(name, answer.why, "try again, or wait longer with --wait SECONDS")]
    if not answer.reports:
        return [failed(name, answer.why, "the job must run: change the cluster profile as Slurm says")]
    nodes = [report["node"] for report in answer.reports]
    found = [failed(name, answer.why)] if answer.why else [ok(name, f"a job ran on {', '.join(nodes)}")]
    found += _folders(answer)
    for look in (_python, _packages):
        found.append(look(answer.reports, here))
    found += [_addresses(answer.reports, cluster, profile), *_reached(answer.reports), _clocks(answer.reports)]
    found += [_scontrol(answer.reports, cluster), *_scratch(answer.reports, cluster)]
    found += _gpus(answer.reports, profile, method)
    return [*found, *_internet(answer.reports, cluster), *_limits(answer.reports)]


def _folders(answer: Nodes) -> list[Check]:
    found = []
    for what, folder in answer.asked.items():
        blind = [one["node"] for one in answer.reports if one["folders"][what]["token"] != answer.token]
        mute = {one["node"]: one["folders"][what]["error"] for one in answer.reports if one["folders"][what]["error"]}
        lost = [node for node in answer.unseen.get(what, ()) if node not in blind and node not in mute]
        title = f"{what} {folder}"
        remedy = "use a folder on a file system that all nodes see" + _KEYS.get(what, "")
        if blind:
            found.append(failed("shared folder", f"{title} is not seen from {', '.join(blind)}", remedy))
        elif mute:
            why = "; ".join(f"{node}: {error}" for node, error in mute.items())
            found.append(failed("shared folder", f"{title} cannot be written by nodes: {why}", remedy))
        elif lost:
            text = f"{title}: what {', '.join(lost)} wrote is not seen here"
            found.append(failed("shared folder", text, remedy))
        else:
            found.append(ok("shared folder", f"{title} is seen by all, both ways"))
    return found


_KEYS = {
    "the run's": ": --run-dir, or change to another folder",
    "the hub's": ": set cluster.hf_home",
    "the cache": ": set FINELAUNCH_CACHE",
}


def _python(reports: Iterable[Report], here: Mapping[str, Any]) -> Check:
    name, mine = "python there", here["python"]
    others = {one["node"]: one["python"] for one in reports if one["python"] != mine}
    if not others:
        return ok(name, f"{mine}, as here")
    text = f"{_by_node(others)}, and here it is {mine}"
    if all(_minor(version) == _minor(mine) for version in others.values()):
        return ok(name, text)
    return failed(name, text, _ENVIRONMENT)


def _packages(reports: Sequence[Report], here: Mapping[str, Any]) -> Check:
    """Say which packages nodes lack, or have in another version; of which build (``+cu128``) makes no difference."""
    name = "packages there"
    wanted = {package: version for package, version in here["packages"].items() if version}
    lost: dict[str, list[str]] = {}
    others: list[str] = []
    for package, version in wanted.items():
        there = {one["node"]: one["packages"].get(package) for one in reports}
        for node in (node for node, found in there.items() if not found):
            lost.setdefault(node, []).append(package)
        differing = {node: found for node, found in there.items() if found and _public(found) != _public(version)}
        others += [f"{package} {version} here, and {_by_node(differing)}"] if differing else []
    if lost:
        texts = {node: "all" if len(names) == len(wanted) else ", ".join(names) for node, names in lost.items()}
        return failed(name, f"missing are {_by_node(texts)}", _ENVIRONMENT)
    if hidden := [one["node"] for one in reports if not one["is_importable"]]:
        text = f"finelaunch is installed, and its files are not seen from {', '.join(hidden)}"
        return failed(name, text, "install it into the environment that the nodes use (not with -e)")
    if others:
        return warning(name, "; ".join(others), _ENVIRONMENT)
    return ok(name, f"{len(wanted)} in the same versions as here")


_ENVIRONMENT = "set cluster.python, or cluster.setup, to the environment of this machine"


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _public(version: str) -> str:
    return version.partition("+")[0]


def _addresses(reports: Iterable[Report], cluster: Cluster, profile: Profile) -> Check:
    """Say whether nodes resolve each other: gloo and torch's store listen at what a node's own name comes to."""
    name = "node names there"
    lost, loops = [], []
    for one in reports:
        lost += [f"{one['node']} does not resolve {node}" for node, at in one["addresses"].items() if at is None]
        loops += [
            f"{node} is {at} on {one['node']}" for node, at in one["addresses"].items() if str(at).startswith("127.")
        ]
    if lost:
        return failed(name, "; ".join(lost), "ask the site: ranks meet under the first node's name")
    if loops and profile.num_nodes > 1:
        text = f"{'; '.join(loops)}: other nodes would connect to themselves"
        if "GLOO_SOCKET_IFNAME" in cluster.env:
            return ok(name, f"{text}, and cluster.env.GLOO_SOCKET_IFNAME is set")
        known = sorted({interface for one in reports for interface in one["interfaces"]})
        remedy = f"set cluster.env.GLOO_SOCKET_IFNAME to one of {', '.join(known)}"
        return failed(name, text, remedy)
    faces = " ".join(sorted({interface for one in reports for interface in one["interfaces"]}))
    return ok(name, f"all resolve each other; interfaces: {faces or 'unknown'}")


def _reached(reports: Iterable[Report]) -> list[Check]:
    tried = [one for one in reports if one["reached"] is not None]
    if not tried:
        return []
    wrong = [f"{one['node']} to {node}: {why}" for one in tried for node, why in one["reached"].items() if why]
    if wrong:
        remedy = "ask the site which ports and interfaces are open between nodes"
        return [failed("network", f"no connection from {'; '.join(wrong)}", remedy)]
    return [ok("network", "the nodes reach each other at ports of their choice")]


def _clocks(reports: Iterable[Report]) -> Check:
    ahead = {one["node"]: one["clock"] for one in reports if one["clock"] is not None}
    if not ahead:
        return unknown("clocks", "no folder is shared to compare them by")
    skew = max(ahead.values()) - min(ahead.values())
    most = max(map(abs, ahead.values()))
    if max(skew, most) <= CLOCK_SECONDS:
        return ok("clocks", f"nodes differ by {skew:.1f} s, from the file system by {most:.1f} s at most")
    text = f"nodes differ by {skew:.0f} s, from the file system by {most:.0f} s"
    return warning("clocks", text, "ask the site to synchronise clocks: times in logs and locks go by them")


def _scontrol(reports: Iterable[Report], cluster: Cluster) -> Check:
    mute = {one["node"]: one["scontrol"] for one in reports if one["scontrol"]}
    if not mute:
        return ok("scontrol there", "answers on the nodes: a job can requeue itself")
    if cluster.requeue == "successors":
        return ok("scontrol there", f"{_by_node(mute)}; not needed with requeue: successors")
    remedy = "set cluster.requeue=successors and cluster.successors=3"
    return failed("scontrol there", f"{_by_node(mute)}, so a job cannot requeue itself", remedy)


def _scratch(reports: Iterable[Report], cluster: Cluster) -> list[Check]:
    name = "scratch"
    wrong = [one for one in reports if not one["scratch"]["writable"]]
    if wrong:
        text = _by_node({one["node"]: f"{one['scratch']['path']} cannot be written" for one in wrong})
        return [failed(name, text, "set cluster.scratch to a node-local folder")]
    least = min(reports, key=lambda one: one["scratch"]["free"])
    text = f"{byte_text(least['scratch']['free'])} or more are free for {least['scratch']['path']}"
    if least["scratch"]["free"] < SMALL_SCRATCH_BYTES:
        return [warning(name, text, "set cluster.scratch to a larger node-local folder")]
    return [ok(name, text)]


def _gpus(reports: Iterable[Report], profile: Profile, method: str | None) -> list[Check]:
    if profile.device == "cpu":
        return []
    found = []
    for one in reports:
        found.append(check_driver(profile, one["torch_cuda"], one["driver_cuda"], f"on {one['node']}"))
        if not one["gpus"]:
            text = f"nvidia-smi shows none on {one['node']}"
            found.append(failed("gpu", text, "check cluster.gpus and cluster.gpu_type, or ask the site"))
            continue
        kinds = {f"{gpu['name']} of {one['node']}": _number(gpu["capability"]) for gpu in one["gpus"]}
        found += check_gpus(profile, method, kinds, one["torch_cuda"])
        wanted = profile.num_processes_per_node
        uuids = {gpu["uuid"] for gpu in one["gpus"]}
        if isinstance(wanted, int) and len(uuids) < wanted:
            text = f"{len(uuids)} are visible on {one['node']}, and {wanted} processes need one each"
            found.append(failed("gpu", text, "check cluster.gpus, or launch.num_processes_per_node"))
    return list(dict.fromkeys(found))


def _internet(reports: Iterable[Report], cluster: Cluster) -> list[Check]:
    asked = {one["node"]: one["internet"] for one in reports if one["internet"] is not None}
    if not asked:
        return []
    name, without = "internet", [node for node, reached in asked.items() if not reached]
    if cluster.offline:
        there = "the hub is reached, and jobs do not use it" if not without else "the hub is not reached, nor asked"
        return [ok(name, f"{there} (cluster.offline: true)")]
    if without:
        text = f"the hub is not reached from {', '.join(without)}"
        return [failed(name, text, "set cluster.offline=true, and run finelaunch prefetch on the login node")]
    return [ok(name, "the hub is reached from the nodes")]


def _limits(reports: Iterable[Report]) -> list[Check]:
    found = []
    few = {one["node"]: one["nofile"] for one in reports if 0 <= one["nofile"] < NUM_OPEN_FILES}
    if few:
        text = f"open files of a process: {_by_node(few)}"
        found.append(warning("ulimit", text, "add ulimit -n 4096 to cluster.setup, or ask the site"))
    locked = {one["node"]: one["memlock"] for one in reports if one["has_infiniband"] and one["memlock"] >= 0}
    if locked:
        remedy = "ask the site for unlimited locked memory in jobs: InfiniBand needs it"
        found.append(warning("ulimit", f"bytes of locked memory: {_by_node(locked)}", remedy))
    masks = {one["umask"] for one in reports}
    return [*found, ok("umask", f"{', '.join(sorted(masks))} in jobs that set none; ours set their own")]


def _by_node(values: Mapping[str, Any], most: int = 4) -> str:
    """Return the values with their nodes; nodes of equal value together."""
    groups: dict[str, list[str]] = {}
    for node, value in values.items():
        groups.setdefault(str(value), []).append(node)

    def named(nodes: list[str]) -> str:
        return ", ".join(nodes[:most]) + (f" and {len(nodes) - most} more" if nodes[most:] else "")

    return "; ".join(f"{value} on {named(nodes)}" for value, nodes in groups.items())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
