"""The file systems behind folders: of which kind, how much room, and what a quota leaves of it."""

import getpass
import os
import re
from dataclasses import dataclass
from pathlib import Path

from finelaunch.slurm.commands import ask

NETWORK_KINDS = frozenset(
    (
        *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "panfs", "wekafs", "cifs", "smb3", "afs"),
        *("orangefs", "pvfs2", "glusterfs", "quobyte", "virtiofs", "9p"),
        *("fuse.glusterfs", "fuse.ceph", "fuse.beegfs", "fuse.sshfs", "fuse.juicefs", "fuse.quobyte"),
    )
)
"""File systems that several machines may see; virtiofs and 9p where those are virtual."""
QUOTA_TIMEOUT_SECONDS = 10.0

_MOUNTS = Path("/proc/self/mounts")


@dataclass(frozen=True)
class Mount:
    """Where a file system is mounted.

    Args:
        source: The device, or the server and its folder.
        folder: Where.
        kind: Such as ``nfs4`` or ``ext4``.
    """

    source: str
    folder: str
    kind: str

    @property
    def is_network(self) -> bool:
        """Whether other machines may see the same files."""
        return self.kind in NETWORK_KINDS


@dataclass(frozen=True)
class Room:
    """What can still be written.

    Args:
        bytes_left: Bytes; None: no limit is known.
        files_left: Files and folders.
        what: Whose limit it is, such as ``the file system`` or ``the quota of user alice``.
    """

    bytes_left: int | None
    files_left: int | None
    what: str


def existing(path: Path) -> Path:
    """Return ``path``, or the nearest folder above it that is there."""
    path = Path(os.path.abspath(path.expanduser()))
    while not os.path.exists(path) and path != path.parent:  # Path.exists raises where a folder may not be entered
        path = path.parent
    return path


def read_mounts() -> list[Mount]:
    """Return what is mounted here; elsewhere than on Linux nothing is known."""
    try:
        return parse_mounts(_MOUNTS.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []


def parse_mounts(text: str) -> list[Mount]:
    """Return the mounts in the text of /proc/mounts; spaces in names stand there in octal."""
    rows = (line.split(" ") for line in text.splitlines())
    return [Mount(_plain(row[0]), _plain(row[1]), row[2]) for row in rows if len(row) >= 3]


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """Return where the file system of ``path`` is mounted: the deepest folder, and of several there the last."""
    folder = os.path.realpath(existing(path))
    above = [mount for mount in mounts if _is_below(folder, mount.folder)]
    return max(enumerate(above), key=lambda one: (len(one[1].folder), one[0]))[1] if above else None


def rooms(path: Path, mounts: list[Mount]) -> list[Room]:
    """Return all known limits of what can be written below ``path``: of the file system, and of quotas.

    Raises:
        OSError: The file system does not answer.
    """
    folder = existing(path)
    state = os.statvfs(folder)
    # Some file systems make files as they need, and count none.
    files = state.f_favail if state.f_files else None
    found = [Room(state.f_bavail * state.f_frsize, files, "the file system")]
    mount = mount_of(folder, mounts)
    if mount is None or not (mount.is_network or mount.kind in ("xfs", "ext4", "zfs")):
        return found
    user = getpass.getuser()
    if mount.kind == "lustre":
        gid = str(folder.stat().st_gid)
        for flag, who, name in (("-u", user, f"user {user}"), ("-g", gid, f"group {gid}")):
            said = ask(["lfs", "quota", "-q", flag, who, mount.folder], QUOTA_TIMEOUT_SECONDS)
            found += [parse_quota_numbers(said.text, f"the quota of {name}")] if said.text.strip() else []
    else:
        # It answers 1 where a limit is passed, and prints all the same.
        said = ask(["quota", "-w", "-p", "-u", "-g"], QUOTA_TIMEOUT_SECONDS)
        found += parse_quota(said.text, mount)
    return [room for room in found if room.bytes_left is not None or room.files_left is not None]


def parse_quota(text: str, mount: Mount) -> list[Room]:
    """Return what ``quota -w -p`` says of the file system of ``mount``, a room for each of user and groups."""
    found, who = [], ""
    for line in text.splitlines():
        if title := re.match(r"Disk quotas for (user|group) (\S+)", line):
            who = f"the quota of {title.group(1)} {title.group(2)}"
        words = line.split()
        if words and words[0] in (mount.source, mount.folder):
            found.append(parse_quota_numbers(line, who))
    return found


def parse_quota_numbers(text: str, who: str) -> Room:
    """Return the room of a line of ``quota -w -p`` or ``lfs quota -q``: name, then used, soft, hard, grace, twice.

    Both count kibibytes; ``*`` marks what is passed, and a limit of 0 is none.
    """
    words = [word.rstrip("*").strip("[]") for word in text.split()[1:]]
    numbers = [int(word) if word.isdigit() else 0 for word in words]
    if len(numbers) < 8:
        return Room(None, None, who)
    kibibytes = _left(*numbers[:3])
    return Room(None if kibibytes is None else 1024 * kibibytes, _left(*numbers[4:7]), who)


def _left(used: int, soft: int, hard: int) -> int | None:
    limit = hard or soft
    return max(0, limit - used) if limit else None


def _is_below(folder: str, above: str) -> bool:
    return folder == above or above == "/" or folder.startswith(above.rstrip("/") + "/")


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), text)
