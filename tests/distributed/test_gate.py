"""The gate before any process group, with real processes: what they exchange, and what they say of one that is gone."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest

from finelaunch.errors import BadInput
from finelaunch.run.ranks import Gate, Ranks

pytestmark = pytest.mark.distributed

WORKER = """
import json, os, sys
from types import SimpleNamespace
from finelaunch.errors import FinelaunchError
from finelaunch.run.ranks import Gate, Ranks
from finelaunch.training import seats

ranks = Ranks.from_environment()
rank, (part, timeout, first) = ranks.rank, json.loads(sys.argv[1])
gate = Gate(ranks, timeout, first)

def exchange():
    one = gate.exchange({"rank": rank, "cores": [rank, 7]})
    print(json.dumps([one, gate.exchange(None if rank else "first")]), flush=True)

def last_is_gone():
    if rank == ranks.world_size - 1:
        os._exit(9)
    gate.exchange(rank)

def first_is_gone():
    gate.exchange(rank)
    if ranks.is_first:
        os._exit(9)
    gate.exchange(rank)

def shared_gpu():
    seats._this_seat = lambda *_: seats.Seat(rank, "node1", f"GPU-{rank % 2}", (0,), 1)  # no GPU is needed for it
    seats.refuse_shared_gpus(SimpleNamespace(device="cuda"), gate)

print("here", flush=True)
try:
    gate.meet()
    gate.open() if ranks.is_first else gate.wait()
    globals()[part]()
except FinelaunchError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
os._exit(0)  # at once: what the first rank keeps goes with it
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Party:
    """Some ranks that do one thing.

    Args:
        part: Which function of the worker.
        world_size: How many there are.
        timeout_seconds: Of the gate.
        first_comes_within_seconds: Of the gate.
    """

    def __init__(
        self, part: str, world_size: int, timeout_seconds: float = 60.0, first_comes_within_seconds: float = 0.0
    ) -> None:
        self.words = json.dumps([part, timeout_seconds, first_comes_within_seconds])
        self.world_size, self.port = world_size, free_port()

    def start(self, rank: int) -> "subprocess.Popen[str]":
        own = {"RANK": rank, "WORLD_SIZE": self.world_size, "LOCAL_RANK": rank}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{name: str(value) for name, value in {**own, **place}.items()}}
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(WORKER), self.words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)

    def said(self) -> list[str]:
        """Start all ranks and return the last line of each."""
        return [last_line(process) for process in [self.start(rank) for rank in range(self.world_size)]]


def last_line(process: "subprocess.Popen[str]") -> str:
    return process.communicate(timeout=120)[0].splitlines()[-1]


def test_all_ranks_get_what_all_have_given() -> None:
    said = Party("exchange", 3).said()
    seats = [{"rank": rank, "cores": [rank, 7]} for rank in range(3)]
    assert [json.loads(line) for line in said] == [[seats, ["first", None, None]]] * 3


def test_one_process_gives_to_itself() -> None:
    gate = Gate(Ranks(), 60.0)
    gate.meet()
    assert gate.exchange({"rank": 0}) == [{"rank": 0}]


def test_a_rank_that_never_comes() -> None:
    first, second, gone = Party("last_is_gone", 3, timeout_seconds=3.0).said()
    assert gone == "here"
    assert first.startswith("LostPeer: rank 0: nothing came of rank 2 within 3 s (launch.collective_timeout_seconds)")
    assert second.startswith(("LostPeer: rank 1: nothing came of rank 2", "LostPeer: rank 1: the first rank has ended"))


def test_the_first_rank_ends() -> None:
    _, *others = Party("first_is_gone", 3).said()
    assert [line.partition(": the first rank has ended")[0] for line in others] == [
        "LostPeer: rank 1",
        "LostPeer: rank 2",
    ]


def test_every_rank_says_who_shares_a_gpu() -> None:
    said = Party("shared_gpu", 3).said()
    assert len(set(said)) == 1
    assert said[0].startswith("RequirementMissing: launch.device: ranks 0 and 2 on node1 both have GPU GPU-0; ")


@pytest.mark.parametrize(("within", "comes"), [(0.0, False), (100.0, True)])
def test_the_first_rank_is_late(within: float, comes: bool) -> None:
    """The other waits longer than a rank waits for a sign of life, and tries again at longer and longer intervals."""
    party = Party("exchange", 2, 6.0, within)
    second = party.start(1)
    assert second.stdout is not None
    assert second.stdout.readline() == "here\n"
    if not comes:
        assert "the 2 processes did not meet at 127.0.0.1" in (line := last_line(second))
        assert "within 6 s" in line
        return
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=9)
    first = party.start(0)
    assert json.loads(last_line(first)) == json.loads(last_line(second))


@pytest.mark.parametrize(("job", "remedy"), [(None, "choose a free one"), ("12", "launch again")])
def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch, job: str | None, remedy: str) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        with pytest.raises(BadInput, match=f"is in use by another program; {remedy}"):
            Gate(Ranks(0, 2, 0, 2, True), 5.0).meet()
