"""Every engine that a CPU can run against one process: python benchmarks/invariance.py [PAGE.md].

Three tasks, two epochs, last batch ragged, no dropout, fp32, global batch 8; largest relative difference of loss and of
gradient norm at any step against one process that takes the batch at once. With a page, its table is replaced.
"""

import datetime
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
BEGIN, END = "<!-- invariance -->", "<!-- end of invariance -->"


def main() -> None:
    from distributed.launches import ENGINES, TASKS, curve_jobs, difference, run_jobs

    lines = ["| engine | cut | " + " | ".join(TASKS.values()) + " |", "| --- | --- |" + " --- |" * len(TASKS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        single = curve_jobs("cpu", folder / "one process", per_device=(8, 4, 2))
        launches = {"one process": (single, 1)}
        launches |= {engine: (curve_jobs(profile, folder / engine), 2) for engine, profile in ENGINES.items()}
        for engine, (jobs, ranks) in launches.items():
            for said in run_jobs(folder / engine, jobs, ranks):
                assert all(one["error"] is None for one in said), said
            for size in (4, 2):
                cut = f"{size} per device x {ranks} x {8 // size // ranks}"
                row = []
                for recipe in TASKS:
                    task = recipe.split("/")[0]
                    pair = folder / "one process" / f"{task}-8", folder / engine / f"{task}-{size}"
                    row.append(" / ".join(f"{value:.1e}" for value in difference(*pair)))
                lines.append(f"| {engine}{', 2 processes' * (ranks > 1)} | {cut} | {' | '.join(row)} |")
                print(lines[-1], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    note = f"`make invariance`, commit {commit.strip()}, {datetime.date.today()}, CPU over gloo; loss / gradient norm."
    table = "\n".join([BEGIN, "", *lines, "", note, "", END])
    if len(sys.argv) > 1:
        page = Path(sys.argv[1])
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        page.write_text(before + table + rest.partition(END)[2], encoding="utf-8")
    else:
        print(table)


if __name__ == "__main__":
    main()
