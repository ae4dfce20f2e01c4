"""Ranks from Slurm's variables: what srun has set on a real cluster, and everything that may be missing or odd."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.errors import BadInput, RequirementMissing
from finelaunch.run.ranks import Ranks
from finelaunch.slurm.ranks import FIRST_PORT, NUM_PORTS, check_address, first_node, is_task, ranks_environment

TASK = {
    "SLURM_JOB_ID": "65",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[1-2]",
}
"""The last of four tasks on two nodes, as srun 22.05 sets it."""


def test_ranks_of_a_task() -> None:
    found = ranks_environment(TASK)
    port = found.pop("MASTER_PORT")
    assert found == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "node1",
    }
    assert Ranks.from_environment({**found, "MASTER_PORT": port}) == Ranks(3, 4, 1, 2, is_launched=True)
    assert port != ranks_environment({**TASK, "SLURM_RESTART_COUNT": "1"})["MASTER_PORT"]
    assert port != ranks_environment({**TASK, "SLURM_JOB_ID": "66"})["MASTER_PORT"]


@given(st.integers(1, 2**31), st.integers(0, 1000), st.integers(0, 500))
def test_ports_are_free_to_listen_on(job: int, step: int, restart: int) -> None:
    values = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_RESTART_COUNT": str(restart)}
    port = int(ranks_environment({**TASK, **values})["MASTER_PORT"])
    assert FIRST_PORT <= port < FIRST_PORT + NUM_PORTS <= 32768


@pytest.mark.parametrize("name", sorted(TASK))
@pytest.mark.parametrize("value", ["", "x", "-1"])
def test_what_is_missing_is_named(name: str, value: str) -> None:
    if name == "SLURM_STEP_NODELIST" and value:
        pytest.skip("any text may be a node's name")
    with pytest.raises(BadInput, match=name):
        ranks_environment({**TASK, name: value})


@pytest.mark.parametrize("spread", ["3,1", "2(x3)", "1,1,2", "4(x2)"])
def test_uneven_nodes_are_refused(spread: str) -> None:
    with pytest.raises(BadInput, match="ntasks-per-node"):
        ranks_environment({**TASK, "SLURM_STEP_TASKS_PER_NODE": spread})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[1-2]", "node1"),
        ("node[07-09,12],gpu3", "node07"),
        ("gpu3,node[07-09]", "gpu3"),
        ("rack[0-3]n[01-12]", "rack0n01"),
        ("a-b[2,5-7]-ib,c", "a-b2-ib"),
    ],
)
def test_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_who_is_a_task() -> None:
    assert is_task(TASK, is_expected=False)
    assert is_task({**TASK, "SLURM_STEP_NUM_TASKS": "1"}, is_expected=True)
    assert not is_task({**TASK, "SLURM_STEP_NUM_TASKS": "1"}, is_expected=False), "srun --pty bash, and train in it"
    assert not is_task({**TASK, "RANK": "0", "WORLD_SIZE": "2"}, is_expected=True), "torchrun within a job"
    batch = {name: value for name, value in TASK.items() if not name.startswith("SLURM_STEP")}
    assert not is_task(batch, is_expected=True), "the batch script itself is no task"


@pytest.fixture
def name_that_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")


@pytest.mark.usefixtures("name_that_loops")
def test_a_name_that_leads_to_itself() -> None:
    two_nodes = Ranks(0, 4, 0, 2, is_launched=True)
    with pytest.raises(RequirementMissing, match=r"127\.0\.1\.1.*GLOO_SOCKET_IFNAME"):
        check_address(two_nodes, {})
    check_address(two_nodes, {"GLOO_SOCKET_IFNAME": "eth0"})
    check_address(Ranks(0, 2, 0, 2, is_launched=True), {})
