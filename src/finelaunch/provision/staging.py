"""A node's own copy of what was fetched, so that a hundred ranks do not read one file of a shared disk at once."""

import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finelaunch.errors import RequirementMissing
from finelaunch.provision.locked import Lock, LockedFile, check_locked, find_lock
from finelaunch.recipe.schema import Recipe
from finelaunch.run import signals
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import is_full_disk
from finelaunch.run.log import say
from finelaunch.slurm.submission import read_cluster

POLL_SECONDS = 0.2
SPARE_BYTES = 64 << 20


def staged(run: RunDirectory, recipe: Recipe) -> dict[str, str]:
    """Return the variables of a rank whose cluster profile asks for a copy on the node, once that is made.

    Args:
        run: The run directory, which holds that profile.
        recipe: What is to be trained.

    Raises:
        RequirementMissing: The copy cannot be made.
    """
    cluster, lock = read_cluster(run), find_lock(recipe)
    folder = os.environ.get("FINELAUNCH_SCRATCH")
    return stage(lock, Path(folder)) if cluster.stage and lock is not None and folder else {}


def stage(lock: Lock, folder: Path) -> dict[str, str]:
    """Copy the hub's files of ``lock`` below ``folder`` once on this node, and return the variables that point there.

    All ranks of a node call it, before the hub's client is loaded. One of them copies while the others wait: their turn
    is a lock of the kernel, which a killed process gives back by itself. What stands there under its name is complete.

    Args:
        lock: What was fetched.
        folder: On a disk of this node.

    Returns:
        HF_HUB_CACHE; empty where nothing of the hub is locked.

    Raises:
        RequirementMissing: Something that was fetched is gone, or the folder cannot take it.
        Interrupted: A signal asked for the end meanwhile.
    """
    files = [file for _, file in lock.files() if file.root == "hub"]
    if not files:
        return {}
    about = "\n".join(sorted(f"{file.path} {file.sha256}" for file in files))
    copy = folder / f"hub-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
    try:
        if not _is_complete(copy, files):
            folder.mkdir(parents=True, exist_ok=True)
            with _turn(folder / f".{copy.name}.lock"):
                if not _is_complete(copy, files):
                    _copy(lock, files, copy)
    except OSError as error:
        if not is_full_disk(error) and error.errno not in _UNWRITABLE:
            raise
        raise RequirementMissing(f"{folder}: cannot be written: {error.strerror}; {_REMEDY}") from None
    return {"HF_HUB_CACHE": str(copy)}


_UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
_DAMAGED = "damaged"
_REMEDY = "set cluster.scratch to a folder of the node with room, or cluster.stage=false"


def _is_complete(copy: Path, files: Sequence[LockedFile]) -> bool:
    try:
        return all((copy / file.path).stat().st_size == file.bytes for file in files)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _copy(lock: Lock, files: Sequence[LockedFile], copy: Path) -> None:
    if problems := [problem for problem in check_locked(lock) if problem.key]:
        raise RequirementMissing("\n".join(map(str, problems)))
    for left in copy.parent.glob(f".{copy.name}-*"):  # of a process that was killed in its turn
        shutil.rmtree(left, ignore_errors=True)
    num_bytes, free = sum(file.bytes for file in files), shutil.disk_usage(copy.parent).free
    if free < num_bytes + SPARE_BYTES:
        room = f"{num_bytes:,} bytes are to be staged, and {free:,} are free"
        raise RequirementMissing(f"{copy.parent}: {room}; {_REMEDY}")
    say(f"staging {num_bytes:,} bytes to {copy}")
    draft = copy.with_name(f".{copy.name}-{uuid.uuid4().hex}")
    try:
        for file in files:
            signals.check()
            target = draft / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.place(), target)
        if not _is_complete(draft, files):
            raise RequirementMissing(f"{copy}: files changed while they were copied; fetch them again")
        if copy.exists():
            copy.rename(draft / _DAMAGED)
        try:
            draft.rename(copy)
        except OSError:  # where the disk knows no locks, another rank may have been faster
            if not _is_complete(copy, files):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(copy / _DAMAGED, ignore_errors=True)


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` of this node; where its disk knows no locks, go on: each copy is then made apart."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                signals.check()
                time.sleep(POLL_SECONDS)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                    raise
                break
        yield
