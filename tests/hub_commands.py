"""The command in processes of its own that reach nothing but the tests' hub, or nothing at all."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_server import Hub

SCRIPT = """
import json, os, sys
from finelaunch.provision.network import close_network
close_network(*json.loads(sys.argv[1]))
from finelaunch.cli import main
said = []
for words in json.load(sys.stdin):
    files = [open(f"{os.environ['FINELAUNCH_SAID']}.{name}", "w+") for name in ("out", "err")]
    for number, file in enumerate(files, 1):
        os.dup2(file.fileno(), number)
    sys.argv, code = ["finelaunch", *words], 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    sys.stdout.flush()
    said.append([code, *(open(file.name).read() for file in files)])
json.dump(said, open(f"{os.environ['FINELAUNCH_SAID']}.json", "w"))
"""


@dataclass(frozen=True)
class Said:
    """What became of one command."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        return json.loads(self.out)


@dataclass(frozen=True)
class Site:
    """A machine with its own caches, and the folder in which commands are given."""

    folder: Path

    @property
    def snapshots(self) -> Path:
        return self.folder / "hf" / "hub"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def environment(self, hub: Hub | None, **more: str) -> dict[str, str]:
        own = {"HF_HOME": str(self.folder / "hf"), "FINELAUNCH_CACHE": str(self.cache)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "FINELAUNCH_"))}
        reach = {"HF_HUB_OFFLINE": "1"} if hub is None else {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
        return {**kept, **own, **reach, "FINELAUNCH_SAID": str(self.folder / "said"), **more}

    def start(
        self, hub: Hub | None, *commands: Sequence[str], before: Sequence[str] = (), **more: str
    ) -> subprocess.Popen[str]:
        """Start commands one after the other in one process; without a hub it has no network at all."""
        words = [*before, sys.executable, "-c", SCRIPT, json.dumps(["127.0.0.1"] if hub else [])]
        environment = self.environment(hub, **more)
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=environment,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps([list(map(str, command)) for command in commands]))
        process.stdin.close()
        process.stdin = None
        return process

    def end(self, process: subprocess.Popen[str], said: str = "said") -> list[Said]:
        output, _ = process.communicate(timeout=300)
        errors = Path(f"{self.folder / said}.err")
        assert process.returncode == 0, output + (errors.read_text() if errors.exists() else "")
        return [Said(*one) for one in json.loads(Path(f"{self.folder / said}.json").read_text())]

    def run(self, hub: Hub | None, *commands: Sequence[str], before: Sequence[str] = (), **more: str) -> list[Said]:
        return self.end(self.start(hub, *commands, before=before, **more))
