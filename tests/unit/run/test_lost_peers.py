"""What collectives say: which errors tell of another rank's end, and which are this rank's own."""

import pytest

from finelaunch.run.ranks import is_lost_peer

NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, "
PEERS = [
    "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.231.0.12]:31822",
    "[gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:8122: Connection reset by peer",
    "[gloo/transport/tcp/pair.cc:534] writev [127.0.0.1]:31822: Broken pipe",
    "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 10000ms for recv operation to complete",
    "[gloo/transport/tcp/unbound_buffer.cc:133] Application timeout caused pair closure",
    f"{NCCL}remote process exited or there was a network error, NCCL version 2.27.5\nncclRemoteError: A call failed "
    "possibly due to a network error or a remote process exiting prematurely.\nLast error:\n",
    f"{NCCL}unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.18.1\nLast error:\n"
    "socketProgress: Connection closed by remote peer node2<41300>",
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=BROADCAST, NumelIn=1, "
    "NumelOut=1, Timeout(ms)=600000) ran for 600081 milliseconds before timing out.",
    "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0', but "
    "store->get('0') got error: Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server "
    "shutdown or crash?",
    "wait timeout after 10000ms, keys: /default_pg/0/0",
]
OWN = [
    f"{NCCL}invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.27.5\nncclInvalidUsage: This usually "
    "reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA "
    "device 98000",
    f"{NCCL}unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclUnhandledCudaError: "
    "Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
    f"{NCCL}unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclSystemError: "
    "System call (e.g. socket, malloc) or external library call failed or device error.\nLast error:\n"
    "Error while creating shared memory segment /dev/shm/nccl-2MpBxk (size 9637888)",
    f"{NCCL}internal error - please report this issue to the NCCL developers, NCCL version 2.27.5",
    "CUDA error: an illegal memory access was encountered",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
]


@pytest.mark.parametrize("text", PEERS)
def test_the_end_of_another_rank(text: str) -> None:
    assert is_lost_peer(RuntimeError(text))
    assert not is_lost_peer(ValueError(text)), "no collective raises it"


@pytest.mark.parametrize("text", OWN)
def test_an_end_of_its_own(text: str) -> None:
    assert not is_lost_peer(RuntimeError(text))
