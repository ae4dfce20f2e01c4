"""Which of the processes of a run this one is, and how the others wait for the first.

Whoever starts the processes (this launcher, accelerate, torchrun, Slurm) says it in the environment that torch reads:
RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
"""

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from finelaunch.errors import BadInput, FinelaunchError, LostPeer, Problem
from finelaunch.run import signals
from finelaunch.run.files import unreadable_text

HEARTBEAT_SECONDS = 5.0
LOOK_SECONDS = 0.1

LOST_PEER = (
    "Connection closed by peer",  # gloo
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Application timeout caused pair closure",
    "Connection closed by remote peer",  # NCCL
    "remote process exited",
    "ncclRemoteError",
    "Watchdog caught collective operation timeout",  # torch's ProcessGroupNCCL
    "Did the remote server shutdown or crash",  # the key-value store
    "wait timeout after",
)
"""What collectives say of a rank that ended or hangs; an NCCL error as such may as well be this rank's own."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run.

    Args:
        rank: Its number over all machines.
        world_size: How many there are.
        local_rank: Its number on this machine.
        local_world_size: How many there are on this machine.
        is_launched: Whether a launcher has said all this, or the process is alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    is_launched: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is shared and speaks to the terminal."""
        return self.rank == 0

    @property
    def num_nodes(self) -> int:
        """How many machines there are."""
        return self.world_size // self.local_world_size

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Ranks":
        """Return what a launcher has said, or one process alone.

        Raises:
            BadInput: It is incomplete or makes no sense.
        """
        if "RANK" not in environment and environment.get("WORLD_SIZE", "1") in ("", "1"):
            return cls()
        world_size = _number(environment, "WORLD_SIZE", "", 1)
        rank = _number(environment, "RANK", "", 0)
        local_rank = _number(environment, "LOCAL_RANK", "", 0)
        local = _number(environment, "LOCAL_WORLD_SIZE", str(world_size), 1)
        if not (rank < world_size and local_rank < local <= world_size and world_size % local == 0):
            what = f"rank {rank} of {world_size}, local rank {local_rank} of {local}, is not possible"
            raise BadInput(Problem("environment", "RANK", what, "", "unset RANK, WORLD_SIZE, LOCAL_RANK, or set all"))
        if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]:
            what = f"one of {world_size} processes, and {' and '.join(missing)} are not set"
            raise BadInput(Problem("environment", "WORLD_SIZE", what, "", "start it by finelaunch launch or torchrun"))
        return cls(rank, world_size, local_rank, local, is_launched=True)


ALONE = Ranks()


def _number(environment: Mapping[str, str], name: str, otherwise: str, least: int) -> int:
    text = environment.get(name) or otherwise
    if not text.isdecimal() or int(text) < least:
        what = f"is {text!r}" if text else "is missing where another of RANK, WORLD_SIZE, LOCAL_RANK is set"
        remedy = "start it by finelaunch launch or torchrun, or unset all of them"
        raise BadInput(Problem("environment", name, what, f"a number from {least}", remedy))
    return int(text)


class Gate:
    """Where every rank but the first waits until that one has prepared the run, before any process group exists.

    The first rank gives signs of life meanwhile, so that the others wait for hours of encoding and not for a process
    that is gone. Everything goes through torch's key-value store at MASTER_ADDR:MASTER_PORT; nothing is left on disk.

    Args:
        ranks: This process.
        timeout_seconds: How long a rank waits without a sign of life of the others.
        first_comes_within_seconds: How long the others wait for the first rank to come, where that may be longer: in a
            job of Slurm it may have to wait for the lock of a start before.
    """

    _numbers = itertools.count()

    def __init__(self, ranks: Ranks, timeout_seconds: float, first_comes_within_seconds: float = 0.0) -> None:
        self.ranks = ranks
        self.timeout_seconds = timeout_seconds
        self.first_comes_within_seconds = first_comes_within_seconds
        number = next(self._numbers)  # the same on every rank, for processes that make several runs
        keys = ("alive", "word", "read", "exchange")
        self._alive, self._word, self._read, self._exchange = (f"finelaunch/{number}/{key}" for key in keys)
        self._num_exchanges = 0
        self._store: Any = None
        self._opened = threading.Event()

    def meet(self) -> None:
        """Wait until all ranks have come; the first then begins to give signs of life.

        Raises:
            BadInput: The port is in use.
            FinelaunchError: Some have not come in time.
        """
        if self.ranks.world_size == 1:
            return
        with signals.held():
            from torch.distributed import DistError
            from torch.distributed.rendezvous import rendezvous

        wait = self.timeout_seconds
        if not self.ranks.is_first:  # which has waited for all that it waits for when it comes here
            wait = max(wait, self.first_comes_within_seconds)
        limit = timedelta(seconds=wait)
        try:
            self._store, _, _ = next(rendezvous("env://", self.ranks.rank, self.ranks.world_size, timeout=limit))
        except (DistError, RuntimeError, ValueError) as error:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            if "EADDRINUSE" in str(error) or "address already in use" in str(error):
                what = f"port {os.environ['MASTER_PORT']} is in use by another program"
                remedy = "choose a free one"
                if "SLURM_JOB_ID" in os.environ:
                    remedy = "launch again: the port follows from the number of the job"
                raise BadInput(Problem("environment", "MASTER_PORT", what, "", remedy)) from None
            raise FinelaunchError(
                f"rank {self.ranks.rank}: the {self.ranks.world_size} processes did not meet at {place} within "
                f"{wait:.0f} s: {str(error).splitlines()[0]:.200}; check that all were started and "
                "that MASTER_ADDR can be reached from every machine"
            ) from None
        self._store.set_timeout(timedelta(seconds=self.timeout_seconds))
        if self.ranks.is_first:
            threading.Thread(target=self._beat, name="gate", daemon=True).start()

    def _beat(self) -> None:
        count = 0
        while not self._opened.is_set():
            self._store.set(self._alive, str(count))
            count += 1
            self._opened.wait(HEARTBEAT_SECONDS)

    def open(self, word: str = "go") -> None:
        """Let the others go on, with a word for them."""
        self._opened.set()
        if self._store is not None:
            self._store.set(self._word, word)

    def dismiss(self, word: str) -> None:
        """Let the others end with a word for them; the first rank stays until all have read it, since it keeps it."""
        self.open(word)
        deadline = time.monotonic() + self.timeout_seconds
        while self._store is not None and time.monotonic() < deadline:
            if self._store.add(self._read, 0) >= self.ranks.world_size - 1:
                return
            time.sleep(LOOK_SECONDS)

    def wait(self) -> str:
        """Return the first rank's word.

        Raises:
            FinelaunchError: It gave no sign of life.
        """
        if self._store is None:
            return "go"
        seen, since = b"", time.monotonic()
        try:
            while not self._store.check([self._word]):
                alive = self._store.get(self._alive)
                if alive != seen:
                    seen, since = alive, time.monotonic()
                if time.monotonic() - since > self.timeout_seconds:
                    raise FinelaunchError(
                        f"rank {self.ranks.rank}: the first rank gave no sign of life for {self.timeout_seconds:.0f} s "
                        "while it prepared the run; see its log"
                    )
                time.sleep(LOOK_SECONDS)
            word = self._store.get(self._word).decode()
            self._store.add(self._read, 1)
            return word
        except RuntimeError as error:  # the store went with the first rank
            raise self._first_has_ended(error) from None

    def exchange(self, value: Any) -> list[Any]:
        """Return ``value`` of every rank, in their order, on every rank; it goes through JSON, and no process group.

        All ranks call this at the same place, after :meth:`open` and :meth:`wait`. The first one stays until all have
        read, since it keeps the store: each of them may end over what it reads.

        Raises:
            LostPeer: A rank has not come in time, or the first one has ended.
        """
        if self._store is None:
            return [value]
        name, self._num_exchanges = f"{self._exchange}/{self._num_exchanges}", self._num_exchanges + 1
        keys = [f"{name}/{rank}" for rank in range(self.ranks.world_size)]
        deadline = time.monotonic() + self.timeout_seconds
        try:
            self._store.set(keys[self.ranks.rank], json.dumps(value))
            while not self._store.check(keys):
                if time.monotonic() > deadline:
                    missing = [str(rank) for rank, key in enumerate(keys) if not self._store.check([key])]
                    raise LostPeer(
                        f"rank {self.ranks.rank}: nothing came of rank {', '.join(missing)} within "
                        f"{self.timeout_seconds:.0f} s (launch.collective_timeout_seconds) after the run was prepared; "
                        "see its log"
                    )
                time.sleep(LOOK_SECONDS)
            values = [json.loads(self._store.get(key)) for key in keys]
            num_read = self._store.add(f"{name}/read", 1)
            while self.ranks.is_first and num_read < self.ranks.world_size and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
                num_read = self._store.add(f"{name}/read", 0)
            return values
        except RuntimeError as error:
            raise self._first_has_ended(error) from None

    def _first_has_ended(self, error: RuntimeError) -> LostPeer:
        """Return what it means that the store, which the first rank keeps, does not answer."""
        return LostPeer(f"rank {self.ranks.rank}: the first rank has ended: {str(error).splitlines()[0]:.200}")


def is_lost_peer(error: BaseException) -> bool:
    """Return whether ``error`` is what a collective raises when another rank has ended or hangs."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_PEER)


def gather(value: Any) -> list[Any]:
    """Return ``value`` of every rank, in their order, on every rank; it goes through pickle."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def agree(*flags: bool) -> tuple[bool, ...]:
    """Return for each of ``flags`` whether it is set on any rank; all ranks call this at the same place."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return flags
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    numbers = torch.tensor([int(flag) for flag in flags], device=device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return tuple(bool(number) for number in numbers.tolist())


def on_first(ranks: Ranks, call: Callable[[], Any]) -> Any:
    """Return on all ranks what ``call`` gives on the first one; a sentence that ends it there ends all of them."""
    value, refusal = None, None
    if ranks.is_first:
        try:
            value = call()
        except BadInput as error:
            refusal = BadInput, error.problems
        except FinelaunchError as error:
            refusal = type(error), str(error)
        except OSError as error:
            refusal = FinelaunchError, unreadable_text(f"{error.filename}: {error.strerror}")
    value, refusal = gather((value, refusal))[0]
    if refusal is not None:
        kind, said = refusal
        raise kind(said)
    return value
