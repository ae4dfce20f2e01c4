"""How a launch of two ranks ends when one of them fails: seconds until all have ended, and what was said.

    python benchmarks/named_ends.py [PAGE]

Real launches of ``imdb/smoke``. In rank 1 a loss becomes NaN in its third step, the process is killed by SIGKILL, or it
sleeps for ever within a step (time-out 10 s). With PAGE the table is written into it.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from page import put

WORDS = (
    "data.train.max_samples=50",
    "training.num_train_epochs=4",
    "training.save_strategy=steps",
    "training.save_steps=2",
    "training.eval_strategy=no",
    "evaluation.base=false",
    "launch.collective_timeout_seconds=10",
)
ACTS = {
    "the loss of rank 1 is NaN": """
        def spoil(module, given, output):
            return output * float("nan")
        guard.trainer.model.get_input_embeddings().register_forward_hook(spoil)
""",
    "rank 1 is killed (SIGKILL)": """
        os.kill(os.getpid(), 9)
""",
    "rank 1 hangs, time-out 10 s": """
        time.sleep(300)
""",
}
CUSTOM = '''
"""Loaded by the interpreter before anything else: rank 1 fails within its third step."""

import importlib.abc
import importlib.util
import os
import pathlib
import sys
import time


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "finelaunch.training.guards":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            before_forward = module.Guard.before_forward

            def failing(guard, num_items):
                before_forward(guard, num_items)
                if guard.trainer.state.global_step == 2:
                    act(guard)

            module.Guard.before_forward = failing

        spec.loader.exec_module = exec_module
        return spec


def act(guard):
    moment = pathlib.Path(os.environ["FAULT"])
    if not moment.exists():
        moment.write_text(str(time.time()))
ACT

if os.environ.get("RANK") == "1":
    sys.meta_path.insert(0, Finder())
'''


def ended(profile: str, act: str, folder: Path) -> tuple[int, float, list[str]]:
    """Return exit code, seconds from the fault to the end of the launch, and what the launcher said."""
    (folder / "customs").mkdir(parents=True)
    (folder / "customs" / "sitecustomize.py").write_text(CUSTOM.replace("ACT", act))
    command = [sys.executable, "-m", "finelaunch", "launch", "imdb/smoke", *WORDS, "--on", profile]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAULT": str(folder / "fault")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder / "customs"), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*command, "--run-dir", str(folder / "run")], capture_output=True, text=True, check=False, env=environment
    )
    seconds = time.time() - float((folder / "fault").read_text())
    return done.returncode, seconds, [line for line in done.stderr.splitlines() if "rank" in line]


def main() -> None:
    rows = ["| fault | engine | exit code | seconds until all had ended | said |", "| --- | --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as scratch:
        for number, (fault, act) in enumerate(ACTS.items()):
            for profile in ("cpu_ddp", "cpu_zero2"):
                folder = Path(scratch) / f"{number}-{profile}"
                exit_code, seconds, said = ended(profile, act, folder)
                text = max(said, key=len).strip().replace(str(folder), "…")
                rows.append(f"| {fault} | {profile} | {exit_code} | {seconds:.1f} | {text:.260} … |")
                print(rows[-1], flush=True)
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    put(page, "named-ends", rows, "python benchmarks/named_ends.py", "shared cores, one launch each")


if __name__ == "__main__":
    main()
