"""The process that all starts of the command are children of, run as ``python -m finelaunch.chaos.starter``.

It starts the command afresh, or forks itself and goes on as the command would: the imports, most of the time of a short
run, are then done once. Whatever it started ends with it, and it ends with whoever holds the other end of its channel,
however that one ends.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from typing import Any

import psutil

from finelaunch.training.placement import expose_gpus

LIBRARIES = (
    "torch",
    "torch.utils.tensorboard",
    "transformers",
    "transformers.trainer",
    "transformers.modeling_utils",
    "transformers.integrations.integration_utils",
    "transformers.integrations.deepspeed",
    "datasets",
)
"""What every training loads. Loading them starts nothing that a fork would lack: no model, no tensor, no threads."""


def main() -> None:
    """Serve whoever holds the channel whose number is the first word, with the libraries loaded if one follows it."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    environment = dict(os.environ)
    if sys.argv[2:]:
        expose_gpus("cpu", alone=True)
        for name in LIBRARIES:
            importlib.import_module(name)
        gc.freeze()  # a collection in a fork would touch, thus copy, every page of them
    _send(channel, {"ready": os.getpid()})
    if request := _serve(channel):
        _become(channel, request, environment)


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork at every request and say how each child ended; return the request in a child, and None at the end."""
    received = b""
    while True:
        while b"\n" not in received:
            if not (part := channel.recv(65536)):
                return None
            received += part
        line, _, received = received.partition(b"\n")
        child = os.fork()
        if child == 0:
            return json.loads(line)
        _send(channel, {"pid": child})
        ended = os.pidfd_open(child)
        if ended not in select.select([channel, ended], [], [])[0]:  # the other end has gone
            _kill(child)
            return None
        os.close(ended)
        _send(channel, {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})


def _become(channel: socket.socket, request: dict[str, Any], environment: dict[str, str]) -> None:
    """Go on as the command: a session of its own, no input, all output in a file."""
    os.setsid()
    channel.close()
    output = os.open(request["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if not request["fork"]:
        os.execve(sys.executable, [sys.executable, "-m", "finelaunch", *request["words"]], environment)
    sys.argv[1:] = request["words"]
    runpy.run_module("finelaunch", run_name="__main__", alter_sys=True)


def _kill(pid: int) -> None:
    """Kill a process and all below it."""
    with contextlib.suppress(psutil.Error):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
