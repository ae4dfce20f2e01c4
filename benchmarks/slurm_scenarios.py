"""What becomes of a run on Slurm in each scenario of the tests: slurm_scenarios.py [PAGE.md]

It runs the tests of tests/slurm, which write down what each scenario ended in, and puts these lines into the page.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import page

HEAD = "scenario", "end", "same weights", "lost steps", "to saved", "running again", "seconds"


def main() -> None:
    """Run the tests and put the table into the page."""
    where = Path(sys.argv[1]) if sys.argv[1:] else None
    with tempfile.TemporaryDirectory() as folder:
        scenarios = Path(folder) / "scenarios.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slurm", str(page.ROOT / "tests" / "slurm")]
        code = subprocess.run(command, env={**os.environ, "FINELAUNCH_SCENARIOS": str(scenarios)}).returncode
        rows = [json.loads(line) for line in scenarios.read_text().splitlines()]
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *map(_line, rows)]
    version = subprocess.run(["sinfo", "--version"], capture_output=True, text=True).stdout.strip()
    page.put(where, "scenarios", lines, "make slurm-scenarios", f"{version}, each once")
    sys.exit(code)


def _line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    same = {True: "yes", False: "**no**", None: "-"}[row.get("same_weights")]
    lost = "-" if row.get("lost_steps") is None else str(row["lost_steps"])
    times = [_seconds(row.get(key)) for key in ("to_saved_seconds", "to_running_seconds")]
    whole = "-" if row.get("seconds") is None else f"{row['seconds']:.0f}"
    return f"| {' | '.join([row['scenario'], row['end'], same, lost, *times, whole])} |"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    main()
