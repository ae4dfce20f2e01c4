"""The doctor: whether a recipe would run on a machine, found out before a device is asked for.

Here facts are collected; what they mean is decided in ``checks_machine.py``, ``checks_slurm.py`` and
``checks_nodes.py``. Every command and every look at a folder has a time limit or is one that answers at once.
"""

import grp
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from finelaunch.data.cache import cache_root
from finelaunch.errors import BadInput, FinelaunchError
from finelaunch.launch.cluster import Cluster
from finelaunch.launch.devices import on_this_machine
from finelaunch.launch.estimate import byte_text
from finelaunch.launch.runs import longest_save
from finelaunch.launch.sbatch import render
from finelaunch.models.load import local_folder
from finelaunch.models.size import ModelSize, model_size
from finelaunch.provision import checks_machine, checks_nodes, checks_slurm, probe
from finelaunch.provision.checks_machine import Need
from finelaunch.provision.footprint import estimated_checkpoint_bytes, num_checkpoints
from finelaunch.provision.locked import hub_names
from finelaunch.provision.nodes import ask_nodes
from finelaunch.provision.patient import Patient
from finelaunch.provision.resolve import Resolved, resolve_offline
from finelaunch.provision.site import Site, read_site
from finelaunch.provision.verdicts import Check, failed, ok, unknown, warning
from finelaunch.provision.volumes import existing, read_mounts, rooms
from finelaunch.recipe.schema import Recipe
from finelaunch.slurm.commands import ask

FOLDER_SECONDS = 10.0
"""How long a file system may take to answer."""
NUM_NAMES = 4
"""So many names of nodes are looked up on this machine."""


def examine(patient: Patient) -> Iterator[Check]:
    """Yield the checks of a recipe, a machine and a cluster, without running anything on a node."""
    yield from _software(patient)
    yield from _devices(patient)
    yield from _storage(patient)
    yield from _offline(patient)
    if patient.cluster is not None:
        yield from _slurm(patient, patient.cluster)


def examine_nodes(patient: Patient, cluster: Cluster, wait_seconds: float) -> list[Check]:
    """Return the checks of the nodes, which run a short job."""
    packages = _installed(patient)
    folders = {"the run's": patient.run.path.absolute().parent, "the hub's": patient.hub_cache}
    folders["the cache"] = cache_root()
    answer = ask_nodes(cluster, patient.profile, folders, list(packages), _hub(), wait_seconds)
    here = {"python": checks_machine.this_python(), "packages": packages}
    return checks_nodes.check_reports(answer, cluster, patient.profile, here, patient.method)


def _software(patient: Patient) -> Iterator[Check]:
    required = metadata.metadata("finelaunch")["Requires-Python"]
    yield checks_machine.check_python(checks_machine.this_python(), required)
    wanted = _wanted(patient)
    yield from checks_machine.check_packages(probe.versions(list(wanted)), wanted)


def _wanted(patient: Patient) -> dict[str, str]:
    engine = patient.profile.engine(patient.profile_document)
    extras = ["deepspeed"] * (engine.zero_stage is not None) + ["slurm"] * (patient.cluster is not None)
    extras += ["qlora"] * (patient.method == "qlora")
    wanted = checks_machine.wanted_packages(extras)
    if patient.method == "lora":
        wanted["peft"] = checks_machine.wanted_packages(["qlora"])["peft"]
    return wanted


def _installed(patient: Patient) -> dict[str, str | None]:
    return {**probe.versions(list(_wanted(patient))), **probe.versions(["finelaunch"])}


def _devices(patient: Patient) -> Iterator[Check]:
    """Yield what concerns GPUs: those of this machine, or by its name the type that the cluster profile asks for."""
    profile, torch_cuda = patient.profile, probe.torch_cuda()
    if patient.cluster is not None and profile.target == "slurm":
        if profile.device == "cpu":
            return
        if torch_cuda == "" and patient.cluster.python is None:
            yield checks_machine.check_driver(profile, torch_cuda, None)
        else:
            yield unknown(
                "cuda", f"torch is built for CUDA {torch_cuda or '?'}; the drivers are the nodes'", "add --nodes"
            )
        kind = patient.cluster.gpu_type
        known = {kind: checks_machine.capability_of(kind)} if kind else {}
        yield from checks_machine.check_gpus(profile, patient.method, known, torch_cuda)
        return
    yield checks_machine.check_driver(profile, torch_cuda, probe.driver_cuda())
    try:
        on_this_machine(profile, patient.profile_document)
    except FinelaunchError as error:
        yield failed("devices", str(error))
        return
    if profile.device == "cuda":
        gpus = probe.nvidia_smi()
        if gpus is None:
            yield unknown("gpu", "nvidia-smi does not answer, so what the GPUs can do is not known")
        kinds = {gpu["name"]: _number(gpu["capability"]) for gpu in gpus or ()}
        yield from checks_machine.check_gpus(profile, patient.method, kinds, torch_cuda)


def _storage(patient: Patient) -> Iterator[Check]:
    """Yield room, quotas, caches and clocks; what lies on one file system is added up."""
    written = _written(patient)
    devices = {name: _device(folder) for name, folder in written.items()}
    for name in (name for name, device in devices.items() if device is None):
        yield failed(name, f"the file system of {written.pop(name)} does not answer", "choose another, or ask the site")
    together: dict[int, list[Need]] = {}
    for name, need in _needs(patient).items():
        if (device := devices[name]) is not None:
            together.setdefault(device, []).append(need)
    mounts = read_mounts()
    for needs in together.values():
        left = rooms(needs[0].folder, mounts)
        yield from checks_machine.check_room(left, needs)
    ahead = {name: probe.clock(existing(folder)) for name, folder in written.items()}
    for name, folder in written.items():
        yield checks_machine.check_writable(name, folder, ahead[name])
    if "run directory" in written:
        yield checks_machine.check_clock(ahead["run directory"], existing(patient.run.path))


def _device(folder: Path) -> int | None:
    """Return the file system of a folder; None where it does not answer, as that of a server that is away."""
    return probe.within(FOLDER_SECONDS, lambda: existing(folder).stat().st_dev)


def _written(patient: Patient) -> dict[str, Path]:
    return {"run directory": patient.run.path, "cache": cache_root(), "hub cache": patient.hub_cache}


def _needs(patient: Patient) -> dict[str, Need]:
    """Return what a run writes, by the names of :func:`_written`."""
    files, recipe = checks_machine.FILES_OF_A_RUN, patient.recipe
    needs = {"cache": Need(cache_root(), checks_machine.CACHE_BYTES, files, "1.0 GiB for the cache")}
    if recipe is None:
        return needs
    size, count = _size(recipe), num_checkpoints(recipe, patient.steps)
    ranks = patient.profile.num_processes or 1
    more = (count or 0) * (checks_machine.FILES_OF_A_CHECKPOINT + ranks * checks_machine.FILES_OF_A_RANK)
    run = Need(patient.run.path, None, files + more, "")
    each = _checkpoint_bytes(patient)
    if isinstance(size, str) or each is None:
        return {"run directory": replace(run, purpose=f"what a checkpoint takes is unknown: {size}"), **needs}
    weights = 4 * size.num_parameters
    text = f"{byte_text(each)} for each checkpoint, all of which are kept"
    if count is not None:
        text = f"{count} checkpoints of {byte_text(each)} + the model of {byte_text(weights)}"
        run = replace(run, num_bytes=count * each + weights)
    needs = {"run directory": replace(run, purpose=text), **needs}
    name = recipe.model.name_or_path
    if name is None or local_folder(recipe.model) is not None or _is_fetched(patient.hub_cache, name):
        return needs
    return {**needs, "hub cache": Need(patient.hub_cache, weights, files, f"{byte_text(weights)} for the hub's model")}


def _is_fetched(hub_cache: Path, name: str) -> bool:
    return os.path.isdir(hub_cache / f"models--{name.replace('/', '--')}" / "snapshots")


def _offline(patient: Patient) -> Iterator[Check]:
    """Yield whether all that the recipe names is found without a network, by a process that has none."""
    recipe = patient.recipe
    if recipe is None:
        return
    cluster = patient.cluster
    is_offline = cluster.offline if cluster is not None else is_true(os.environ.get("HF_HUB_OFFLINE", ""))
    if not is_offline and not hub_names(recipe):
        yield ok("offline", "nothing of the hub is named")
        return
    environment = {"HF_HOME": str(patient.hub_cache.parent)} if cluster is not None and cluster.hf_home else None
    yield from offline_checks(resolve_offline(recipe, patient.document, environment), is_offline)


def offline_checks(resolved: Resolved, is_offline: bool) -> Iterator[Check]:
    """Yield what a look without a network comes to; ``is_offline``: a run will have none."""
    for problem in resolved.problems:
        text = f"{problem.key}: {problem.what}" if problem.key else problem.what
        yield (failed if is_offline else warning)("offline", f"without a network: {text}", problem.remedy)
    if not resolved.problems:
        yield ok("offline", f"all is found without a network: {'; '.join([*resolved.found, *resolved.notes])}")


def is_true(text: str) -> bool:
    """Return whether a variable says yes, as the hub's client reads it."""
    return text.upper() in ("1", "ON", "YES", "TRUE")


def _checkpoint_bytes(patient: Patient) -> int | None:
    """Return what a checkpoint takes; None where the recipe or the size of its model is not known."""
    size = None if patient.recipe is None else _size(patient.recipe)
    if patient.recipe is None or size is None or isinstance(size, str):
        return None
    return estimated_checkpoint_bytes(size, patient.recipe, patient.profile, patient.profile_document)


def _size(recipe: Recipe) -> ModelSize | str:
    """Return the size of the recipe's model; the number of classes makes no difference that counts here."""
    return model_size(recipe.model, recipe.task.name, 2)


def _slurm(patient: Patient, cluster: Cluster) -> Iterator[Check]:
    """Yield what Slurm's commands say on this machine."""
    asked = {
        "sbatch": ["sbatch", "--version"],
        "srun": ["srun", "--version"],
        "scontrol": ["scontrol", "ping"],
        "squeue": ["squeue", "-h", "-o", "%i", "--me"],
        "sacct": ["sacct", "-n", "-X", "-P", "-o", "JobID", "-S", "now"],
    }
    answers = {name: ask(argv) for name, argv in asked.items()}
    yield from checks_slurm.check_commands(answers)
    if any(not answer.ok for name, answer in answers.items() if name != "sacct"):
        return
    site = read_site()
    save_seconds = longest_save(patient.run)
    yield from checks_slurm.check_partition(cluster, patient.profile, site)
    yield from checks_slurm.check_nodes(cluster, patient.profile, site)
    yield from checks_slurm.check_time_limit(cluster, patient.cluster_document, site, save_seconds)
    yield from checks_slurm.check_requeue(cluster, site, _checkpoint_bytes(patient))
    if patient.recipe is not None:
        seconds, done = checks_slurm.measured_step(patient.run.train_log, patient.recipe.training.global_batch_size)
        left = None if patient.steps is None else max(0, patient.steps - done)
        yield checks_slurm.check_run_time(cluster, save_seconds, left, seconds)
    if patient.profile.target == "slurm":
        yield from _test_script(patient, cluster, save_seconds)
    yield from checks_slurm.check_shared(cluster, patient.run.path)
    yield from checks_slurm.check_group(cluster.group, _own_groups() if cluster.group else ())
    yield from checks_slurm.check_names(_addresses(cluster, site))


def _test_script(patient: Patient, cluster: Cluster, save_seconds: float | None) -> Iterator[Check]:
    """Yield what sbatch says of the script that a launch would submit."""
    if patient.profile.num_processes is None:
        yield checks_slurm.check_script(None)
        return
    run = patient.run.path.absolute()
    places = {"run": str(run), "python": sys.executable, "folder": os.getcwd(), "cache": str(cache_root())}
    try:
        text = render(cluster, patient.cluster_document, patient.profile, run.name, **places, save_seconds=save_seconds)
    except BadInput as error:
        others = [problem for problem in error.problems if problem.key != "cluster.time_limit"]  # that was said
        yield from (failed("script", f"{one.key}: {one.what}", one.remedy) for one in others)
        return
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch", encoding="utf-8") as script:
        script.write(text)
        script.flush()
        yield checks_slurm.check_script(ask(["sbatch", "--test-only", script.name]))


def _own_groups() -> set[str]:
    found = set()
    for number in {os.getegid(), *os.getgroups()}:
        with suppress(KeyError):
            found.add(grp.getgrgid(number).gr_name)
    return found


def _addresses(cluster: Cluster, site: Site) -> dict[str, str | None]:
    name, keys = checks_slurm.partition_of(cluster, site)
    nodes = probe.hostnames(keys.get("Nodes", "")) if name else []
    return {node: probe.address_of(node) for node in nodes[:NUM_NAMES]}


def _hub() -> tuple[str, int]:
    """Return where the hub is reached: at its own address, or at that of the proxy."""
    address = os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")
    address = address or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.hostname or "huggingface.co", port or (80 if parts.scheme == "http" else 443)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
