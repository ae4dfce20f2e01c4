"""Every damage to every file of a checkpoint: python benchmarks/corruption.py [--engines A,B] [--resume none] [PAGE.md]

A run of imdb/smoke on each engine is stopped with three checkpoints. Each file of the newest, its manifest included,
is removed, cut to 0 bytes, 1, 50 and 99 %, and has one bit flipped: the run must name it in a warning and choose the
newest of the others. With each file damaged in one of these ways, in turn, the command is also given again, and must
end in the weights (SHA-256) and the log of a run that nothing has stopped. Cells that fail are listed, and the answer
is 1: ``--verify size`` shows it, a check that sees no flipped bit.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import page

sys.path.insert(0, str(page.ROOT / "tests"))
from integration.damages import Command, choices, kinds_in_turn, resumed

from finelaunch.training.manifest import Verification

HEAD = "engine", "files", "cells", "noticed", "fell back", "resumed", "equal SHA-256 and log", "seconds"
NAMES = {
    "single": "one process",
    "ddp": "DDP, 2 processes",
    "zero2": "ZeRO-2, 2 processes",
    "zero3": "ZeRO-3, 2 processes",
}


def row(engine: str, folder: Path, resume: bool, verify: Verification) -> tuple[str, list[str]]:
    """Return an engine's line of the table, and its cells that fail."""
    since = time.perf_counter()
    command = Command(engine, folder / "run", (f"training.verify={verify}",))
    command.stop()
    chosen = list(choices(command, verify))
    files = list(dict.fromkeys(cell.file for cell in chosen))
    print(f"{engine}: {sum(cell.is_good for cell in chosen)} of {len(chosen)} choices are good", flush=True)
    cells = []
    if resume:
        shutil.copytree(command.folder, folder / "stopped")
        whole = Command(engine, folder / "whole").finish()
        for file, kind in kinds_in_turn(files):
            cells.append(resumed(command, folder / "stopped", file, kind, whole))
            print(f"{engine}, continued: {cells[-1]}", flush=True)
    figures = [len(files), len(chosen), sum(cell.noticed for cell in chosen), sum(cell.fell_back for cell in chosen)]
    figures += [len(cells), sum(cell.is_good for cell in cells)] if resume else ["-", "-"]
    figures.append(f"{time.perf_counter() - since:.0f}")
    failed = [f"{engine}: {cell}" for cell in chosen if not cell.is_good]
    failed += [f"{engine}, continued: {cell}" for cell in cells if not cell.is_good]
    return f"| {NAMES[engine]} | {' | '.join(map(str, figures))} |", failed


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?", type=Path)
    parser.add_argument("--engines", default=",".join(NAMES), help="of " + ",".join(NAMES))
    parser.add_argument("--resume", choices=("all", "none"), default="all")
    parser.add_argument("--verify", choices=("sha256", "size"), default="sha256", help="how a checkpoint is checked")
    options = parser.parse_args(words)
    engines = options.engines.split(",")
    if unknown := sorted({*engines} - {*NAMES}):
        parser.error(f"--engines: {', '.join(unknown)} is not of {', '.join(NAMES)}")
    lines, failed = [f"| {' | '.join(HEAD)} |", "| --- |" + " --- |" * (len(HEAD) - 1)], []
    with tempfile.TemporaryDirectory() as name:
        for engine in engines:
            with contextlib.redirect_stderr(io.StringIO()):  # what the runs in this process say
                line, cells = row(engine, Path(name) / engine, options.resume == "all", options.verify)
            lines.append(line)
            failed += cells
    page.put(options.page, "corruption", lines, "make corruption", "`imdb/smoke` on the CPU, 2 processes over gloo")
    for text in failed:
        print(f"failed: {text}")
    return bool(failed)


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch is loaded
    sys.exit(main())
