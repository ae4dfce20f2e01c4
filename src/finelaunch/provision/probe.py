"""What a node is asked: run there by ``python - WISHES < probe.py``, so it needs nothing but Python itself.

It reads as few files and starts as few programs as it can, gives every one of them a time limit, and prints JSON in
lines behind :data:`MARK`. The same functions describe the machine that doctor runs on.
"""

from __future__ import annotations  # an older Python of a node is to say its version, not to stumble over a type

import contextlib
import ctypes
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

MARK = "FINELAUNCH-NODE "
PART_CHARACTERS = 700
BEGUN = "FINELAUNCH-BEGUN"
PATIENCE_SECONDS = 40.0
"""How long to wait for what another machine writes: NFS may remember for 30 s that a file is not there."""
TOKEN_SECONDS = 5.0
"""How long to wait for what was there before: nobody has asked for it yet, so nobody remembers otherwise."""
_QUERY = "--query-gpu=name,uuid,driver_version,compute_cap,memory.total"


def describe(wishes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of this node.

    Args:
        wishes: ``folders`` (by the name of each, where the token of the login node lies), ``packages`` to look for,
            ``scratch``, ``hub`` (host and port), and ``wants_gpus``.
    """
    nodes = hostnames(os.environ.get("SLURM_JOB_NODELIST", ""))
    name = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    # What waits for the other nodes comes first, while all of them are there.
    folders = {key: meet(Path(folder), name) for key, folder in wishes["folders"].items()}
    shared = [key for key, seen in folders.items() if seen["token"] is not None and seen["error"] is None]
    met = Path(wishes["folders"][shared[0]]) if shared else None
    return {
        "node": name,
        "folders": folders,
        "reached": reach(met, name, nodes) if met is not None and len(nodes) > 1 else None,
        "clock": clock(met) if met is not None else None,
        "addresses": {node: address_of(node) for node in (nodes or [name])},
        "interfaces": interfaces(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "executable": sys.executable,
        "packages": versions(wishes["packages"]),
        "is_importable": util.find_spec("finelaunch") is not None,
        "scontrol": scontrol(),
        "scratch": scratch(wishes.get("scratch")),
        "gpus": nvidia_smi() if wishes.get("wants_gpus") else None,
        "torch_cuda": torch_cuda(),
        "driver_cuda": driver_cuda() if wishes.get("wants_gpus") else None,
        "internet": is_reached(*wishes["hub"]) if wishes.get("hub") else None,
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "umask": umask(),
        "has_infiniband": Path("/sys/class/infiniband").is_dir(),
    }


def meet(folder: Path, name: str) -> dict[str, Any]:
    """Read the token of the login node in ``folder``, write it back under this node's name."""
    token = soon(folder / "login", TOKEN_SECONDS)
    error = None
    if token is not None:
        try:
            _publish(folder / f"seen-{name}", token)
        except OSError as fault:
            error = fault.strerror
    return {"token": token, "error": error}


def reach(folder: Path, name: str, nodes: Sequence[str]) -> dict[str, str | None]:
    """Listen here, and connect to every other node as gloo does: by its name, at a port that it chose.

    Returns:
        By node, what went wrong; None where nothing did.
    """
    found: dict[str, str | None] = {}
    until = time.monotonic() + PATIENCE_SECONDS
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("", 0))
        server.listen(len(nodes))
        _publish(folder / f"port-{name}", str(server.getsockname()[1]))
        for node in nodes:
            if node == name:
                continue
            port = soon(folder / f"port-{node}", until - time.monotonic())
            if port is None:
                found[node] = f"{node} was not heard of in the folder"
                continue
            try:
                with socket.create_connection((node, int(port)), timeout=5):
                    found[node] = None
            except OSError as fault:
                found[node] = str(fault.strerror or fault)
        # Whoever is done says so, and listens until all are: they may come later.
        _publish(folder / f"done-{name}", "")
        for node in nodes:
            soon(folder / f"done-{node}", until - time.monotonic())
    return found


def _publish(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    draft.replace(path)


def soon(path: Path, seconds: float) -> str | None:
    """Return the text of ``path`` as soon as it is there; None when the time is over."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # asks the server of a network file system anew
            return path.read_text(encoding="ascii")
        if time.monotonic() > until:
            return None
        time.sleep(0.2)


def clock(folder: Path) -> float | None:
    """Return by how many seconds the clock of the file system of ``folder`` is ahead of this machine's."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            before = time.time()
            os.utime(file.name)
            return os.stat(file.name).st_mtime - before
    except OSError:
        return None


def address_of(name: str) -> str | None:
    """Return the IPv4 address of a name, as a connection would use it; None where there is none in time."""

    def look_up() -> str:
        return str(socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])

    return within(5.0, look_up)


def is_reached(host: str, port: int) -> bool:
    """Return whether a connection to ``host`` opens within some seconds."""

    def connect() -> bool:
        socket.create_connection((host, port), timeout=4).close()
        return True

    return bool(within(6.0, connect))


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what ``call`` gives; None where it fails or takes longer, as a look-up of a name can be given no limit."""
    found: list[Any] = []

    def run() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found.append(call())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def interfaces() -> list[str]:
    """Return the names of the network interfaces, without loopback."""
    try:
        return sorted(name for _, name in socket.if_nameindex() if name != "lo")
    except OSError:
        return []


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Return the installed version of each package; None where it is not there."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def torch_cuda() -> str | None:
    """Return the CUDA version that torch was built for; empty: for none; None: torch is not installed."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith("cuda")), "")
    value = line.partition("=")[2].strip().strip("'\"")
    return "" if value in ("None", "") else value


def driver_cuda() -> str | None:
    """Return the newest CUDA version that the driver of this machine runs, such as ``12.4``; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        number = ctypes.c_int(0)
        if driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def nvidia_smi() -> list[dict[str, str]] | None:
    """Return name, UUID, driver, compute capability and memory of each GPU; None where nvidia-smi does not answer."""
    said = output(["nvidia-smi", _QUERY, "--format=csv,noheader"])
    return None if said is None else parse_gpus(said)


def parse_gpus(text: str) -> list[dict[str, str]]:
    """Return the GPUs in the table of nvidia-smi; what it says in other words is left out."""
    keys = ("name", "uuid", "driver", "capability", "memory")
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines() if line.strip()]
    return [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]


def scontrol() -> str | None:
    """Return why ``scontrol`` does not answer about this job; None where it does."""
    if shutil.which("scontrol") is None:
        return "scontrol is not installed"
    said = output(["scontrol", "show", "job", "-o", os.environ.get("SLURM_JOB_ID", "0")])
    return None if said is not None and "JobId=" in said else "scontrol show job gives no answer"


def scratch(wanted: str | None) -> dict[str, Any]:
    """Return where temporary files go, and how much room is there.

    Args:
        wanted: The cluster's ``scratch``, whose variables this node fills in; None: TMPDIR, else /tmp.
    """
    path = Path(os.path.expandvars(os.path.expanduser(wanted or os.environ.get("TMPDIR") or "/tmp")))
    there = path
    while not os.path.exists(there) and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        free = 0
    return {"path": str(path), "free": free, "writable": os.access(there, os.W_OK | os.X_OK), "below": str(there)}


def output(argv: Sequence[str], timeout_seconds: float = 15.0) -> str | None:
    """Return what a program prints; None where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            list(argv), capture_output=True, text=True, errors="replace", timeout=timeout_seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def umask() -> str:
    """Return the umask of this process in octal digits."""
    mask = os.umask(0o077)
    os.umask(mask)
    return f"{mask:03o}"


def hostnames(text: str) -> list[str]:
    """Return the names in a node list of Slurm: ``node[1-2,05-07],login`` and the like."""
    parts, depth, word = [], 0, ""
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append(word)
            word = ""
        else:
            word += letter
    found = []
    for part in filter(None, [*parts, word]):
        found += _unfolded(part)
    return found


def _unfolded(text: str) -> list[str]:
    head, bracket, rest = text.partition("[")
    if not bracket:
        return [text]
    inside, _, tail = rest.partition("]")
    numbers = []
    for one in inside.split(","):
        first, _, last = one.partition("-")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return (
        [f"{head}{number}{end}" for number in numbers for end in _unfolded(tail)]
        if tail
        else [f"{head}{number}" for number in numbers]
    )


def lines_of(task: str, facts: Mapping[str, Any]) -> list[str]:
    """Return ``facts`` as lines that srun hands on whole: it cuts and mixes those of several tasks at 1,024 bytes."""
    text = json.dumps(facts)
    parts = [text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS)]
    return [f"{MARK}{task} {number} {len(parts)} {part}" for number, part in enumerate(parts)]


def gather(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the facts that stand in ``lines``, by task; what else was printed and what is not whole is left out."""
    found: dict[int, dict[int, str]] = {}
    totals: dict[int, int] = {}
    for line in lines:
        if not line.startswith(MARK):
            continue
        task, number, total, part = line.removeprefix(MARK).rstrip("\n").split(" ", 3)
        found.setdefault(int(task), {})[int(number)] = part
        totals[int(task)] = int(total)
    whole = (parts for task, parts in sorted(found.items()) if len(parts) == totals[task])
    return [json.loads("".join(parts[number] for number in sorted(parts))) for parts in whole]


if __name__ == "__main__":
    print(BEGUN, flush=True)
    told = lines_of(os.environ.get("SLURM_PROCID", "0"), describe(json.loads(sys.argv[1])))
    print("\n".join(told), flush=True)
